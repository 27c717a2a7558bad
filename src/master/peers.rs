//! The table of all agents, as their peers need it, and who wants to be told of it.
//!
//! Every change makes a version of the table, and a log of them says what a subscriber lacks that
//! has an earlier one. Nobody is told at once: a change waits until those that follow it have come,
//! and what is sent is paced. So a storm of registrations costs an agent a handful of messages and
//! the network no more than it carries, and a registration costs the same however many subscribe.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use super::Master;
use super::command::Command;
use super::leadership::{Leading, Phase};
use super::registry::Registry;
use super::view::PeersTally;
use crate::addr::Upid;
use crate::clock::Now;
use crate::machine::is_worth_a_line;
use crate::mutation::Mutation;
use crate::protocol::{Message, PeerInfo, PeersHave, PeersUpdate, digest_of};
use crate::store::Version;
use crate::wire::encode_message;
use crate::words::named;

/// How long a change waits for others to go with it: a quarter of the two seconds within which an
/// agent is to be known to its peers, which leaves the rest for sending and for their kernels.
const DEBOUNCE: Duration = Duration::from_millis(500);
/// How far apart slices of the sending are.
const SLICE_TIME: Duration = Duration::from_millis(100);
/// Bytes of one slice: with ten of them a second just less than a network of 1 Gbit/s carries, so
/// that nothing piles up in memory when all agents need the whole table.
const SLICE_BYTES: usize = 10 * 1000 * 1000;
/// Agents repeat their request every minute: who missed five of them is gone.
const LEASE: Duration = Duration::from_secs(5 * 60);
/// Changes that are remembered: of the largest cluster each agent once or twice, in 2 MB. Whoever
/// lacks more needs the whole table, which is hardly longer.
const LOG_MAX: usize = 32 * 1024;

/// The table, its log, and the subscribers.
#[derive(Debug)]
pub(super) struct Peers {
    epoch: u64,
    /// 1 is the table that the epoch began with.
    version: u64,
    digest: u64,
    table: BTreeMap<Ipv4Addr, PeerInfo>,
    /// The latest changes, each of which made a version of the one before.
    log: VecDeque<Change>,
    /// The latest version with a digest, of those that the log reaches back to.
    versions: HashMap<u64, u64>,
    subscribers: BTreeMap<Ipv4Addr, Subscriber>,
    /// All subscribers by the version that they have: who has the earliest is served first.
    turns: BTreeSet<(u64, Ipv4Addr)>,
    /// All subscribers by when they were heard.
    leases: BTreeSet<(Duration, Ipv4Addr)>,
    /// When the next slice is sent, if anybody lacks anything.
    due: Option<Duration>,
    /// What was sent last waits for this to be durable.
    awaited: Version,
    /// The update that was made last: many need the same.
    prepared: Option<Prepared>,
    /// The size of what was not sent since no agent would take it.
    too_large: Option<usize>,
}

/// A change of the table.
#[derive(Debug, Clone, Copy)]
struct Change {
    /// Which agent has changed.
    ip: Ipv4Addr,
    /// The digest of the table before.
    before: u64,
}

/// An agent that wants to know its peers.
#[derive(Debug)]
struct Subscriber {
    upid: Upid,
    /// The version that it has, or that is under way to it; 0: none that is known here.
    has: u64,
    heard: Duration,
    /// The table that its last question was answered with, and what that answer waits for.
    answered: (u64, Version),
}

/// An update, and for whom it is.
#[derive(Debug, Clone)]
struct Prepared {
    since: u64,
    update: Arc<PeersUpdate>,
    /// Its length on the wire.
    bytes: usize,
}

/// One message to many.
#[derive(Debug)]
struct Shipment {
    to: Vec<Upid>,
    update: Arc<PeersUpdate>,
    bytes: usize,
}

impl Peers {
    pub(super) fn new(epoch: u64, table: BTreeMap<Ipv4Addr, PeerInfo>) -> Self {
        let digests = table.iter().map(|(ip, info)| digest_of(*ip, info));
        let digest = digests.fold(0, u64::wrapping_add);
        Self {
            epoch,
            version: 1,
            digest,
            table,
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

    /// When there is something to do.
    pub(super) fn next_timeout(&self) -> Option<Duration> {
        let lease = self.leases.first().map(|(heard, _)| *heard + LEASE);
        self.due.into_iter().chain(lease).min()
    }

    pub(super) fn tally(&self) -> PeersTally {
        PeersTally {
            version: self.version,
            agents: self.table.len(),
            subscribers: self.subscribers.len(),
        }
    }

    /// What needs an operator.
    pub(super) fn problem(&self) -> Option<String> {
        self.too_large.map(|bytes| {
            format!(
                "what agents are to be told of their peers has {bytes} bytes, and they take {}: \
                 they do not all reach each other: let there be fewer overlays",
                PeersUpdate::BYTES_MAX
            )
        })
    }

    /// The first version of which the log tells what has changed since.
    fn first(&self) -> u64 {
        self.version - self.log.len() as u64
    }

    /// How many changes and digests are kept.
    #[cfg(test)]
    pub(super) fn remembered(&self) -> (usize, usize) {
        (self.log.len(), self.versions.len())
    }

    /// Puts an agent in, changes it, or takes it out.
    pub(super) fn set(&mut self, ip: Ipv4Addr, info: Option<PeerInfo>) {
        let old = self.table.get(&ip);
        if old == info.as_ref() {
            return;
        }
        let before = self.digest;
        let share = |info: Option<&PeerInfo>| info.map_or(0, |info| digest_of(ip, info));
        self.digest = before.wrapping_sub(share(old)).wrapping_add(share(info.as_ref()));
        match info {
            Some(info) => drop(self.table.insert(ip, info)),
            None => drop(self.table.remove(&ip)),
        }
        self.log.push_back(Change { ip, before });
        self.version += 1;
        self.versions.insert(self.digest, self.version);
        if self.log.len() > LOG_MAX {
            let forgotten = self.first();
            if let Some(Change { before, .. }) = self.log.pop_front()
                && self.versions.get(&before) == Some(&forgotten)
            {
                self.versions.remove(&before);
            }
        }
    }

    /// An agent that is registered wants to know its peers. What it is answered once `when` is
    /// durable, if it lacks nothing; one that asks again while its answer is held back is answered
    /// once.
    fn subscribe(
        &mut self,
        from: Upid,
        have: PeersHave,
        elapsed: Duration,
        (when, durable): (Version, Version),
    ) -> Option<Arc<PeersUpdate>> {
        let ip = *from.address.ip();
        let before = self.subscribers.get(&ip).filter(|it| it.upid == from);
        let mut answered = before.map_or((0, Version(0)), |it| it.answered);
        self.unsubscribe(ip);
        let has = self.versions.get(&have.digest).copied().unwrap_or(0);
        self.turns.insert((has, ip));
        self.leases.insert((elapsed, ip));
        let lacks_nothing = has == self.version;
        let is_held_back = answered.0 == self.version && answered.1 > durable;
        if lacks_nothing && !is_held_back {
            answered = (self.version, when);
        }
        self.subscribers.insert(ip, Subscriber { upid: from, has, heard: elapsed, answered });
        if !lacks_nothing {
            self.due.get_or_insert(elapsed + DEBOUNCE);
        }
        (lacks_nothing && !is_held_back).then(|| Arc::new(self.update(has)))
    }

    fn unsubscribe(&mut self, ip: Ipv4Addr) {
        if let Some(Subscriber { has, heard, .. }) = self.subscribers.remove(&ip) {
            self.turns.remove(&(has, ip));
            self.leases.remove(&(heard, ip));
        }
    }

    /// The earliest version that a subscriber has, if it lacks anything.
    fn earliest(&self) -> Option<u64> {
        self.turns.first().map(|(has, _)| *has).filter(|has| *has < self.version)
    }

    /// What somebody needs who has version `since`: the changes, or the whole table if that is no
    /// longer.
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

    /// What is to be sent now, once `when` is durable.
    fn slice(&mut self, elapsed: Duration, when: Version, durable: Version) -> Vec<Shipment> {
        let mut ended = Vec::new();
        while let Some(&(heard, ip)) = self.leases.first()
            && heard + LEASE <= elapsed
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
        // While the store hangs one slice is held back, and not one after the other.
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
                slice.push(Shipment { to, update, bytes });
                self.awaited = when;
            }
        }
        self.due = self.earliest().map(|_| elapsed + SLICE_TIME);
        if self.due.is_none() {
            // It may be a whole table.
            self.prepared = None;
        }
        slice
    }

    /// At most `count` of those with version `since` get the present one.
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

impl Registry {
    /// An agent as its peers need it, also without any subnet: what is put through the tunnel for
    /// it. `None` if it is not served, or no peer can reach it where it says.
    pub(super) fn peer(&self, ip: Ipv4Addr) -> Option<PeerInfo> {
        let agent = self.agents.get(&ip)?;
        if self.underlays.is_unserved(ip) {
            return None;
        }
        let vtep = self.vtep(ip, &agent.record)?;
        let mut subnets = Vec::new();
        for overlay in &agent.info.overlays {
            for subnet in overlay.subnet.into_iter().chain(overlay.subnet6) {
                subnets.push((overlay.name().clone(), subnet));
            }
        }
        // Another order in the configuration changes nothing for the peers.
        subnets.sort();
        let address = |address: IpAddr| match address {
            IpAddr::V4(v4) => (Some(v4), None),
            IpAddr::V6(v6) => (None, Some(v6)),
        };
        let peer = crate::tunnel::Peer {
            ip: address(vtep.ip.address()).0,
            ip6: vtep.ip6.and_then(|ip6| address(ip6.address()).1),
            mac: vtep.mac,
            subnets,
        };
        let underlay = agent.record.underlay.map_or(IpAddr::V4(ip), IpAddr::V6);
        Some(PeerInfo { underlay, peer })
    }

    /// The agents as their peers need them.
    pub(super) fn take_peers(&mut self) -> BTreeMap<Ipv4Addr, PeerInfo> {
        let touched = std::mem::take(&mut self.touched);
        touched.into_iter().filter_map(|ip| Some((ip, self.peer(ip)?))).collect()
    }
}

impl Leading {
    /// Brings the table up to date with what has changed in the registry.
    pub(super) fn note_peers(&mut self, now: Now) {
        for ip in std::mem::take(&mut self.registry.touched) {
            if Mutation::PassOverNewPeers.is_on() {
                continue;
            }
            self.peers.set(ip, self.registry.peer(ip));
            if !self.registry.agents.contains_key(&ip) {
                self.peers.unsubscribe(ip);
            }
        }
        if self.peers.earliest().is_some() {
            let is_told_at_once = Mutation::TellOfPeersAtOnce.is_on();
            let wait = if is_told_at_once { Duration::ZERO } else { DEBOUNCE };
            self.peers.due.get_or_insert(now.elapsed + wait);
        }
    }
}

impl Master {
    /// An agent wants to know its peers.
    pub(super) fn subscribe(&mut self, now: Now, from: Upid, have: PeersHave) {
        self.counters.request_peers_messages_received += 1;
        let ip = *from.address.ip();
        let leading = match &mut self.phase {
            Phase::Leading(leading) if leading.registry.agents.contains_key(&ip) => Some(leading),
            // It will register, and ask again when it is.
            Phase::Leading(_) | Phase::Recovering(_) | Phase::Standby(_) => None,
        };
        // What is said in the name of an agent by another process would turn its updates away.
        let leading = leading.filter(|leading| {
            leading.registry.contacts.get(&ip).is_none_or(|contact| contact.upid == from)
        });
        let Some(leading) = leading else {
            self.counters.request_peers_messages_dropped += 1;
            if is_worth_a_line(self.counters.request_peers_messages_dropped) {
                log::warn!("ignored a request for peers from {from}: it is not registered here");
            }
            return;
        };
        leading.registry.heard(&from, now.elapsed);
        let when = leading.latest_version();
        let held = (when, leading.durable);
        if let Some(update) = leading.peers.subscribe(from.clone(), have, now.elapsed, held) {
            let message = Message::UpdatePeers(update);
            self.counters.update_peers_messages_sent += 1;
            self.counters.update_peers_bytes_sent += encode_message(&message).1.len() as u64;
            self.commands.push_back(Command::Send { to: from, message, when });
        }
    }

    /// Tells the next ones what they lack, if it is time.
    pub(super) fn serve_peers(&mut self, now: Now) {
        let Phase::Leading(leading) = &mut self.phase else {
            return;
        };
        let is_too_early = Mutation::TellOfPeersBeforeDurable.is_on();
        let when = if is_too_early { Version(0) } else { leading.latest_version() };
        for shipment in leading.peers.slice(now.elapsed, when, leading.durable) {
            let Shipment { to, update, bytes } = shipment;
            self.counters.update_peers_messages_sent += to.len() as u64;
            self.counters.update_peers_bytes_sent += (to.len() * bytes) as u64;
            let message = Message::UpdatePeers(update);
            self.commands.push_back(Command::Broadcast { to, message, when });
        }
    }
}
