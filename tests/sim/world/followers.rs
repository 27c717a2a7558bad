//! Agents that keep the identities of their peers only, so that 10,000 of them fit into memory. They
//! request, check and apply updates by the rules of the real agents, and program one job at a time,
//! which combines the changes during the job before. The time of a job is that of other kernels.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use overlay_types::addr::{Upid, agent_upid};
use overlay_types::clock::Backoff;
use overlay_types::protocol::{
    Message, PeerTableVersion, PeersRequest, PeersUpdate, UpdateForm, peer_digest,
};
use overlay_wire as wire;

use super::agents::AgentNode;
use super::{Packet, SimEvent, World};
use crate::chance::Chance;
use crate::invariants::{Fact, InvariantResult, Violation};
use crate::kernel::Kernel;

/// Bounds of the timeout of an answer, as in the real agent.
const ANSWER_TIMEOUT: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));
/// The interval between two requests of a real agent that misses nothing.
const RENEWAL_INTERVAL: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(60));

/// The peers of an agent that keeps their identities only.
pub(crate) struct Follower {
    master: Option<Upid>,
    have: PeerTableVersion,
    table: PeerSet,
    /// The table of the running job.
    programming: Option<PeerSet>,
    programmed: PeerSet,
    backoff: Backoff,
    random: fastrand::Rng,
    /// When the next request is due.
    due: Option<Duration>,
}

impl Follower {
    pub(super) fn new(chance: &mut Chance) -> Self {
        Self {
            master: None,
            have: PeerTableVersion::default(),
            table: PeerSet::default(),
            programming: None,
            programmed: PeerSet::default(),
            backoff: Backoff::new(ANSWER_TIMEOUT.0, ANSWER_TIMEOUT.1),
            random: fastrand::Rng::with_seed(chance.seed()),
            due: None,
        }
    }

    /// Applies an update. Returns whether the table has changed, or `None` if the update does not
    /// fit the table.
    fn apply(&mut self, update: &DecodedUpdate) -> Option<bool> {
        let PeersUpdate { epoch, version, digest, base, removed, .. } = &*update.content;
        if (*epoch, *version) < (self.have.epoch, self.have.version) {
            return Some(false);
        }
        let has_changed = *digest != self.have.digest;
        if has_changed {
            if base.is_some_and(|base| base != self.have.digest) {
                return None;
            }
            if base.is_none() {
                (self.table, self.have.digest) = (PeerSet::default(), 0);
            }
            assert!(removed.is_empty(), "no agent is released in a world with followers");
            for (index, part) in update.parts.iter() {
                if self.table.insert(*index) {
                    self.have.digest = self.have.digest.wrapping_add(*part);
                }
            }
        }
        (self.have.epoch, self.have.version) = (*epoch, *version);
        Some(has_changed)
    }
}

/// A set of agents by their number.
#[derive(Clone, Default)]
struct PeerSet {
    words: Vec<u64>,
    len: usize,
}

impl PeerSet {
    /// Inserts an agent. Returns whether the agent is new.
    fn insert(&mut self, index: usize) -> bool {
        let (word, bit) = (index / 64, 1 << (index % 64));
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        let is_new = self.words[word] & bit == 0;
        self.words[word] |= bit;
        self.len += usize::from(is_new);
        is_new
    }

    /// Returns the agents that are not in `other`.
    fn difference(&self, other: &Self) -> Vec<usize> {
        let mut indexes = Vec::new();
        for (at, word) in self.words.iter().enumerate() {
            let mut new = word & !other.words.get(at).copied().unwrap_or(0);
            while new != 0 {
                indexes.push(at * 64 + new.trailing_zeros() as usize);
                new &= new - 1;
            }
        }
        indexes
    }
}

/// An update of peers, decoded once for all receivers of its body.
#[derive(Clone)]
pub(super) struct DecodedUpdate {
    pub(super) content: Arc<PeersUpdate>,
    /// The number of each changed agent, and its part of the digest.
    parts: Rc<[(usize, u64)]>,
}

impl DecodedUpdate {
    pub(super) fn new(content: Arc<PeersUpdate>) -> Self {
        let parts = content.changed.iter();
        let parts = parts.map(|(ip, info)| (World::number(*ip), peer_digest(*ip, info)));
        Self { parts: parts.collect(), content }
    }
}

impl World {
    /// Lets a follower request its peers from the master that has sent its assignments.
    pub(super) fn follow(&mut self, agent: usize, master: Upid) -> InvariantResult {
        let Some(follower) = &mut self.agents[agent].follower else { return Ok(()) };
        follower.master = Some(master);
        follower.backoff.reset();
        self.request_for_follower(agent)
    }

    fn request_for_follower(&mut self, agent: usize) -> InvariantResult {
        let (now, ip) = (self.now, self.agents[agent].ip);
        let from = agent_upid(self.agents[agent].address());
        let Some(follower) = &mut self.agents[agent].follower else { return Ok(()) };
        let Some(to) = follower.master.clone() else { return Ok(()) };
        let have = follower.have;
        let due = now + follower.backoff.next_delay(&mut follower.random);
        follower.due = Some(due);
        self.queue.plan(due, SimEvent::FollowerTimer { agent, due });
        self.monitor.observe(now, &Fact::PeersRequested { agent: ip, have })?;
        self.monitor.observe(now, &Fact::MessageSent { agent: ip, is_by_agent: true })?;
        let message = Message::RequestPeers(PeersRequest {
            have,
            form: UpdateForm::Compact,
            ..PeersRequest::default()
        });
        let (name, body) = wire::encode_message(&message);
        self.send(Packet::new(from, to, name, body.into()));
        Ok(())
    }

    pub(super) fn follower_timer(&mut self, agent: usize, due: Duration) -> InvariantResult {
        let follower = self.agents[agent].follower.as_ref();
        if follower.is_some_and(|follower| follower.due == Some(due)) {
            return self.request_for_follower(agent);
        }
        Ok(())
    }

    pub(super) fn follower_receives(
        &mut self,
        agent: usize,
        update: &DecodedUpdate,
    ) -> InvariantResult {
        let Some(follower) = &mut self.agents[agent].follower else { return Ok(()) };
        let Some(has_changed) = follower.apply(update) else {
            return self.request_for_follower(agent);
        };
        if follower.have.digest != update.content.digest {
            let detail = format!("agent {agent} has another digest than {}", update.content.digest);
            return Err(Violation { invariant: "updates of peers are complete", detail });
        }
        follower.backoff.reset();
        let (shortest, longest) = RENEWAL_INTERVAL;
        let due = self.now + self.chance.time_between(shortest, longest);
        follower.due = Some(due);
        self.queue.plan(due, SimEvent::FollowerTimer { agent, due });
        if has_changed && follower.programming.is_none() {
            self.program_follower(agent);
        }
        Ok(())
    }

    /// Begins a job of the kernel.
    fn program_follower(&mut self, agent: usize) {
        let Some(follower) = &mut self.agents[agent].follower else { return };
        let time = Kernel::programming_time(follower.table.len, &mut self.chance);
        follower.programming = Some(follower.table.clone());
        self.plan_in(time, SimEvent::FollowerProgrammed { agent });
    }

    pub(super) fn follower_programmed(&mut self, agent: usize) -> InvariantResult {
        let AgentNode { ip, follower: Some(follower), .. } = &mut self.agents[agent] else {
            return Ok(());
        };
        let Some(done) = follower.programming.take() else { return Ok(()) };
        let peers = done.difference(&follower.programmed);
        follower.programmed = done;
        let has_more = follower.table.len > follower.programmed.len;
        let fact = Fact::FollowerProgrammed { agent: *ip, peers: &peers };
        self.monitor.observe(self.now, &fact)?;
        if has_more {
            self.program_follower(agent);
        }
        Ok(())
    }
}
