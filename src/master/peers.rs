//! The table of all agents, as their peers need it, and its subscribers.
//!
//! Every change makes a version of the table, and a log of the changes tells what a subscriber with
//! an earlier version is missing. A change is not sent at once: it waits for the changes that
//! follow, and sending is paced. So a storm of registrations costs an agent a handful of messages
//! and the network no more than it carries, and a registration costs the same however many
//! subscribe.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use super::gate::{Gate, Gated};
use super::view::PeersTally;
use crate::addr::Upid;
use crate::mutation::Mutation;
use crate::protocol::{Message, PeerInfo, PeersHave, PeersUpdate, digest_of};
use crate::store::Version;
use crate::wire::encode_message;
use crate::words::named;

/// How long a change waits for further changes: a quarter of the two seconds within which the peers
/// of an agent know it, which leaves the rest for sending and for their kernels.
const DEBOUNCE: Duration = Duration::from_millis(500);
/// Interval between two slices of sending.
const SLICE_INTERVAL: Duration = Duration::from_millis(100);
/// Bytes of one slice: ten of them a second are just less than a network of 1 Gbit/s carries, so
/// that nothing piles up in memory when all agents need a snapshot.
const SLICE_BYTES: usize = 10 * 1000 * 1000;
/// Agents repeat their request every minute: an agent that missed five of them is gone.
const LEASE: Duration = Duration::from_secs(5 * 60);
/// Changes in the log: of the largest cluster each agent once or twice, in 2 MB. A subscriber that
/// is missing more gets a snapshot, which is hardly longer.
const LOG_MAX: usize = 32 * 1024;

/// The table, its log, and the subscribers.
#[derive(Debug)]
pub(super) struct Peers {
    epoch: u64,
    /// The table that the epoch began with is version 1.
    version: u64,
    digest: u64,
    table: BTreeMap<Ipv4Addr, PeerInfo>,
    /// The gate of everything in the table and the log.
    gate: Gate,
    /// The latest changes. Each made a new version.
    log: VecDeque<Change>,
    /// The latest version with a digest, as far back as the log goes.
    versions: HashMap<u64, u64>,
    subscribers: BTreeMap<Ipv4Addr, Subscriber>,
    /// All subscribers by the version that they have: the earliest is served first.
    turns: BTreeSet<(u64, Ipv4Addr)>,
    /// All subscribers by the time of their last request.
    leases: BTreeSet<(Duration, Ipv4Addr)>,
    /// When the next slice is sent, if any subscriber is missing a change.
    due: Option<Duration>,
    /// The version that the last slice waits for.
    awaited: Version,
    /// The last update: many subscribers need the same.
    prepared: Option<Prepared>,
    /// The size of an update that no agent would take, and that was not sent.
    too_large: Option<usize>,
}

/// A change of the table.
#[derive(Debug, Clone, Copy)]
struct Change {
    /// The agent that changed.
    ip: Ipv4Addr,
    /// The digest of the table before.
    before: u64,
}

/// An agent that is sent the changes of its peers.
#[derive(Debug)]
struct Subscriber {
    upid: Upid,
    /// The version that the agent has or will have when it gets what was sent. 0: an unknown one.
    has: u64,
    /// When the last request was received.
    last_seen: Duration,
    /// The version with which its last request was answered, and what that answer waits for.
    answered: (u64, Version),
}

/// An update for the subscribers that have version `since`.
#[derive(Debug, Clone)]
struct Prepared {
    since: u64,
    update: Arc<PeersUpdate>,
    /// Its length on the wire.
    bytes: usize,
}

/// One update to many subscribers.
#[derive(Debug)]
pub(super) struct Shipment {
    pub(super) to: Vec<Upid>,
    pub(super) update: Gated<Arc<PeersUpdate>>,
    /// The length of the update on the wire.
    pub(super) bytes: usize,
}

impl Peers {
    pub(super) fn new(
        epoch: u64,
        agents: impl IntoIterator<Item = (Ipv4Addr, Gated<Option<PeerInfo>>)>,
    ) -> Self {
        let mut gate = Gate::open();
        let agents = agents.into_iter();
        let table: BTreeMap<Ipv4Addr, PeerInfo> =
            agents.filter_map(|(ip, info)| Some((ip, gate.absorb(info)?))).collect();
        let digests = table.iter().map(|(ip, info)| digest_of(*ip, info));
        let digest = digests.fold(0, u64::wrapping_add);
        Self {
            epoch,
            version: 1,
            digest,
            table,
            gate,
            log: VecDeque::new(),
            versions: HashMap::from([(digest, 1)]),
            subscribers: BTreeMap::new(),
            turns: BTreeSet::new(),
            leases: BTreeSet::new(),
            due: None,
            awaited: Version(0),
            prepared: None,
            too_large: None,
        }
    }

    /// Returns when something is due.
    pub(super) fn next_timeout(&self) -> Option<Duration> {
        let lease = self.leases.first().map(|(last_seen, _)| *last_seen + LEASE);
        self.due.into_iter().chain(lease).min()
    }

    pub(super) fn tally(&self) -> PeersTally {
        PeersTally {
            version: self.version,
            agents: self.table.len(),
            subscribers: self.subscribers.len(),
        }
    }

    /// Returns a problem that needs an operator.
    pub(super) fn problem(&self) -> Option<String> {
        self.too_large.map(|bytes| {
            format!(
                "what agents are to be told of their peers has {bytes} bytes, and they take {}: \
                 they do not all reach each other: let there be fewer overlays",
                PeersUpdate::BYTES_MAX
            )
        })
    }

    /// Returns the first version since which the log has every change.
    fn first(&self) -> u64 {
        self.version - self.log.len() as u64
    }

    /// Returns the number of changes and digests in the log.
    #[cfg(test)]
    pub(super) fn log_sizes(&self) -> (usize, usize) {
        (self.log.len(), self.versions.len())
    }

    /// Inserts, changes or removes an agent.
    pub(super) fn set(&mut self, ip: Ipv4Addr, info: Gated<Option<PeerInfo>>) {
        let info = self.gate.absorb(info);
        let old = self.table.get(&ip);
        if old == info.as_ref() {
            return;
        }
        let before = self.digest;
        let part = |info: Option<&PeerInfo>| info.map_or(0, |info| digest_of(ip, info));
        self.digest = before.wrapping_sub(part(old)).wrapping_add(part(info.as_ref()));
        match info {
            Some(info) => drop(self.table.insert(ip, info)),
            None => drop(self.table.remove(&ip)),
        }
        self.log.push_back(Change { ip, before });
        self.version += 1;
        self.versions.insert(self.digest, self.version);
        if self.log.len() > LOG_MAX {
            let dropped = self.first();
            if let Some(Change { before, .. }) = self.log.pop_front()
                && self.versions.get(&before) == Some(&dropped)
            {
                self.versions.remove(&before);
            }
        }
    }

    /// Subscribes an agent that is registered. Returns the answer, with its length on the wire, if
    /// the agent has the latest table. A repeated request is not answered while an answer is held
    /// back. The answer is held back until `latest` is durable, the version with every change until
    /// now.
    pub(super) fn subscribe(
        &mut self,
        from: Upid,
        have: PeersHave,
        elapsed: Duration,
        (latest, durable): (Version, Version),
    ) -> Option<(Gated<Arc<PeersUpdate>>, usize)> {
        let ip = *from.address.ip();
        let before = self.subscribers.get(&ip).filter(|it| it.upid == from);
        let mut answered = before.map_or((0, Version(0)), |it| it.answered);
        self.unsubscribe(ip);
        let has = self.versions.get(&have.digest).copied().unwrap_or(0);
        self.turns.insert((has, ip));
        self.leases.insert((elapsed, ip));
        let is_up_to_date = has == self.version;
        let is_held_back = answered.0 == self.version && answered.1 > durable;
        let answer = (is_up_to_date && !is_held_back).then(|| {
            let update = Arc::new(self.update(has));
            let bytes = encode_message(&Message::UpdatePeers(Arc::clone(&update))).1.len();
            (self.gate.wrap(update).not_before(latest), bytes)
        });
        if let Some((update, _)) = &answer {
            answered = (self.version, update.valid_from());
        }
        self.subscribers.insert(ip, Subscriber { upid: from, has, last_seen: elapsed, answered });
        if !is_up_to_date {
            self.due.get_or_insert(elapsed + DEBOUNCE);
        }
        answer
    }

    pub(super) fn unsubscribe(&mut self, ip: Ipv4Addr) {
        if let Some(Subscriber { has, last_seen, .. }) = self.subscribers.remove(&ip) {
            self.turns.remove(&(has, ip));
            self.leases.remove(&(last_seen, ip));
        }
    }

    /// Schedules a slice if a subscriber is missing a change.
    pub(super) fn schedule(&mut self, elapsed: Duration) {
        if self.earliest().is_some() {
            let is_undelayed = Mutation::SendPeersWithoutDebounce.is_on();
            let delay = if is_undelayed { Duration::ZERO } else { DEBOUNCE };
            self.due.get_or_insert(elapsed + delay);
        }
    }

    /// Returns the earliest version that a subscriber has, unless all have the latest.
    fn earliest(&self) -> Option<u64> {
        self.turns.first().map(|(has, _)| *has).filter(|has| *has < self.version)
    }

    /// Returns what a subscriber with version `since` is missing: the delta, or a snapshot if that
    /// is no longer.
    fn update(&self, since: u64) -> PeersUpdate {
        let Self { epoch, version, digest, table, log, .. } = self;
        let mut update = PeersUpdate {
            epoch: *epoch,
            version: *version,
            digest: *digest,
            ..PeersUpdate::default()
        };
        let missed = since.checked_sub(self.first()).and_then(|at| usize::try_from(at).ok());
        let changes = missed.map(|at| log.range(at..));
        let agents = changes.map(|changes| changes.map(|it| it.ip).collect::<BTreeSet<_>>());
        match agents.filter(|agents| agents.is_empty() || agents.len() < table.len()) {
            Some(agents) => {
                update.base =
                    Some(missed.and_then(|at| log.get(at)).map_or(*digest, |it| it.before));
                for ip in agents {
                    match table.get(&ip) {
                        Some(info) => drop(update.changed.insert(ip, info.clone())),
                        None => drop(update.removed.insert(ip)),
                    }
                }
            }
            None => update.changed.clone_from(table),
        }
        update
    }

    fn prepare(&mut self, since: u64) -> Prepared {
        let is_it = |it: &Prepared| it.since == since && it.update.version == self.version;
        if let Some(prepared) = self.prepared.as_ref().filter(|it| is_it(it)) {
            return prepared.clone();
        }
        let update = Arc::new(self.update(since));
        let (_, bytes) = encode_message(&Message::UpdatePeers(Arc::clone(&update)));
        let prepared = Prepared { since, update, bytes: bytes.len() };
        self.prepared.insert(prepared).clone()
    }

    /// Returns what is to be sent now. It is held back until `latest` is durable, the version with
    /// every change until now.
    pub(super) fn slice(
        &mut self,
        elapsed: Duration,
        latest: Version,
        durable: Version,
    ) -> Vec<Shipment> {
        let mut ended = Vec::new();
        while let Some(&(last_seen, ip)) = self.leases.first()
            && last_seen + LEASE <= elapsed
        {
            self.unsubscribe(ip);
            ended.push(ip);
        }
        if !ended.is_empty() {
            log::info!(
                "ended the subscriptions to peers, since no request came for {LEASE:?}, of {}",
                named(&ended, "agent")
            );
        }
        if self.due.is_none_or(|due| due > elapsed) {
            return Vec::new();
        }
        let mut slice = Vec::new();
        // While the store hangs only one slice is held back.
        if self.awaited <= durable {
            let mut budget = SLICE_BYTES;
            while let Some(since) = self.earliest() {
                let Prepared { update, bytes, .. } = self.prepare(since);
                let count = if slice.is_empty() { 1.max(budget / bytes) } else { budget / bytes };
                if count == 0 {
                    break;
                }
                let to = self.advance(since, count);
                if bytes > PeersUpdate::BYTES_MAX {
                    self.too_large = Some(bytes);
                    continue;
                }
                if update.base.is_none() {
                    self.too_large = None;
                }
                budget = budget.saturating_sub(bytes * to.len());
                let is_early = Mutation::SendPeersBeforeDurable.is_on();
                let gate = if is_early { Gate::open() } else { self.gate };
                let latest = if is_early { Version(0) } else { latest };
                let update = gate.wrap(update).not_before(latest);
                self.awaited = update.valid_from();
                slice.push(Shipment { to, update, bytes });
            }
        }
        self.due = self.earliest().map(|_| elapsed + SLICE_INTERVAL);
        if self.due.is_none() {
            // A snapshot is large.
            self.prepared = None;
        }
        slice
    }

    /// Moves at most `count` subscribers from version `since` to the latest, and returns them.
    fn advance(&mut self, since: u64, count: usize) -> Vec<Upid> {
        let same = (since, Ipv4Addr::UNSPECIFIED)..=(since, Ipv4Addr::BROADCAST);
        let agents: Vec<Ipv4Addr> = self.turns.range(same).take(count).map(|(_, ip)| *ip).collect();
        let mut to = Vec::with_capacity(agents.len());
        for ip in agents {
            self.turns.remove(&(since, ip));
            if let Some(subscriber) = self.subscribers.get_mut(&ip) {
                subscriber.has = self.version;
                self.turns.insert((self.version, ip));
                to.push(subscriber.upid.clone());
            }
        }
        to
    }
}
