//! The table of peers, with all agents, and its subscribers.
//!
//! Every change makes a new version of the table. From a log of the changes the master computes the
//! delta for a subscriber with an earlier version. A change is debounced, so that it is sent
//! together with later changes, and sending is paced. So a storm of registrations costs each agent
//! a few messages, and does not exceed the bandwidth of the network. The cost of a registration
//! does not depend on the number of subscribers.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use overlay_types::addr::Upid;
use overlay_types::mutation::Mutation;
use overlay_types::protocol::{PeerInfo, PeerTableVersion, PeersUpdate, UpdateForm, peer_digest};
use overlay_types::state::Version;
use overlay_types::text::count_and_list;

use super::EncodeUpdate;
use super::encoded_update::EncodedUpdate;
use super::gate::{Gate, Gated};
use super::view::PeersTally;

/// How long a change waits for further changes. The peers of an agent have to program it within two
/// seconds: a quarter is for this debounce, the rest for sending and for the kernels.
const DEBOUNCE: Duration = Duration::from_millis(500);
/// Interval between two slices of sending.
const SLICE_INTERVAL: Duration = Duration::from_millis(100);
/// Bytes of one slice. Ten slices a second are just less than a network of 1 Gbit/s carries, so
/// that messages do not pile up in memory when all agents need a snapshot.
const SLICE_BYTES: usize = 10 * 1000 * 1000;
/// Bytes of a message besides its body: the head of the HTTP request, and headers of IP and TCP.
const MESSAGE_HEAD_BYTES: usize = 300;
/// The duration of a subscription without a request. Agents repeat their request every minute, so
/// an agent that missed five requests is gone.
const LEASE: Duration = Duration::from_secs(5 * 60);
/// Changes in the log: one or two of each agent in the largest cluster, in 2 MB. A subscriber that
/// is missing more changes gets a snapshot, which is hardly longer than the delta.
const LOG_MAX: usize = 32 * 1024;

/// The table, its log, and the subscribers.
#[derive(Debug)]
pub(super) struct Peers {
    epoch: u64,
    /// The version of the table. Each epoch begins with version 1.
    version: u64,
    digest: u64,
    table: BTreeMap<Ipv4Addr, PeerInfo>,
    /// The gate of everything in the table and the log.
    gate: Gate,
    /// The latest changes. Each made a new version.
    log: VecDeque<Change>,
    /// The latest version with each digest, as far back as the log goes.
    versions: HashMap<u64, u64>,
    subscribers: BTreeMap<Ipv4Addr, Subscriber>,
    /// All subscribers by the version that they have, and by form. The subscriber with the earliest
    /// version is served first.
    turns: BTreeSet<(u64, UpdateForm, Ipv4Addr)>,
    /// The number of subscribers that get the plain form.
    plain_subscribers: usize,
    /// All subscribers by the time of their last request.
    leases: BTreeSet<(Duration, Ipv4Addr)>,
    /// When the next slice is sent, if any subscriber is missing a change.
    due: Option<Duration>,
    /// The version of the state that the last slice waits for.
    awaited: Version,
    /// The last update. Many subscribers need the same update.
    prepared: Option<Prepared>,
    encode_update: EncodeUpdate,
    /// The number of updates that were encoded since the last call of [`Self::take_encoded`].
    encoded: u64,
    /// The size of an update that was not sent, since agents refuse updates of this size.
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
    form: UpdateForm,
    /// The version that the agent has, or will have when it receives the sent updates. 0 stands for
    /// an unknown table.
    has: u64,
    /// When the last request was received.
    last_seen: Duration,
    /// The version of the table in the last answer, and the version of the state that the answer
    /// waits for.
    answered: (u64, Version),
}

/// An update for the subscribers that have version `since` and want `form`.
#[derive(Debug, Clone)]
struct Prepared {
    since: u64,
    form: UpdateForm,
    update: EncodedUpdate,
}

/// One update to many subscribers.
#[derive(Debug)]
pub(super) struct Shipment {
    pub(super) to: Vec<Upid>,
    pub(super) update: Gated<EncodedUpdate>,
    /// The length of the body on the wire.
    pub(super) bytes: usize,
}

impl Peers {
    pub(super) fn new(
        epoch: u64,
        agents: impl IntoIterator<Item = (Ipv4Addr, Gated<Option<PeerInfo>>)>,
        encode_update: EncodeUpdate,
    ) -> Self {
        let mut gate = Gate::open();
        let agents = agents.into_iter();
        let table: BTreeMap<Ipv4Addr, PeerInfo> =
            agents.filter_map(|(ip, info)| Some((ip, gate.absorb(info)?))).collect();
        let digests = table.iter().map(|(ip, info)| peer_digest(*ip, info));
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
            plain_subscribers: 0,
            leases: BTreeSet::new(),
            due: None,
            awaited: Version(0),
            prepared: None,
            encode_update,
            encoded: 0,
            too_large: None,
        }
    }

    /// Returns when a slice is due or a subscription expires.
    pub(super) fn next_timeout(&self) -> Option<Duration> {
        let lease = self.leases.first().map(|(last_seen, _)| *last_seen + LEASE);
        self.due.into_iter().chain(lease).min()
    }

    pub(super) fn tally(&self) -> PeersTally {
        PeersTally {
            version: self.version,
            agents: self.table.len(),
            subscribers: self.subscribers.len(),
            plain_subscribers: self.plain_subscribers,
        }
    }

    /// Returns the number of updates that were encoded since the last call.
    pub(super) const fn take_encoded(&mut self) -> u64 {
        std::mem::replace(&mut self.encoded, 0)
    }

    /// Returns the version from which the table may be sent.
    pub(super) const fn valid_from(&self) -> Version {
        self.gate.valid_from()
    }

    /// Returns a problem that needs an operator.
    pub(super) fn problem(&self) -> Option<String> {
        self.too_large.map(|bytes| {
            format!(
                "the table of peers has {bytes} bytes, and agents accept at most {}: agents \
                 without it do not reach their new peers: remove overlays",
                PeersUpdate::BYTES_MAX
            )
        })
    }

    /// Returns the earliest version from which the log has every later change.
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
        let part = |info: Option<&PeerInfo>| info.map_or(0, |info| peer_digest(ip, info));
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

    /// Subscribes a registered agent. If the agent has the latest table, returns the answer and its
    /// length on the wire. A repeated request is not answered while an answer is held back. The
    /// answer is held back until `latest` is durable, the version of the state with every change
    /// until now.
    pub(super) fn subscribe(
        &mut self,
        from: Upid,
        (have, form): (PeerTableVersion, UpdateForm),
        elapsed: Duration,
        (latest, durable): (Version, Version),
    ) -> Option<(Gated<EncodedUpdate>, usize)> {
        let ip = *from.address.ip();
        let before = self.subscribers.get(&ip).filter(|subscriber| subscriber.upid == from);
        let mut answered = before.map_or((0, Version(0)), |subscriber| subscriber.answered);
        self.unsubscribe(ip);
        let has = self.versions.get(&have.digest).copied().unwrap_or(0);
        self.turns.insert((has, form, ip));
        self.plain_subscribers += usize::from(form == UpdateForm::Plain);
        self.leases.insert((elapsed, ip));
        let is_up_to_date = has == self.version;
        let is_held_back = answered.0 == self.version && answered.1 > durable;
        let answer = (is_up_to_date && !is_held_back).then(|| {
            let update = self.encode(has, form);
            let bytes = update.body().len();
            (self.gate.wrap(update).not_before(latest), bytes)
        });
        if let Some((update, _)) = &answer {
            answered = (self.version, update.valid_from());
        }
        self.subscribers
            .insert(ip, Subscriber { upid: from, form, has, last_seen: elapsed, answered });
        if !is_up_to_date {
            self.due.get_or_insert(elapsed + DEBOUNCE);
        }
        answer
    }

    pub(super) fn unsubscribe(&mut self, ip: Ipv4Addr) {
        if let Some(Subscriber { form, has, last_seen, .. }) = self.subscribers.remove(&ip) {
            self.turns.remove(&(has, form, ip));
            self.plain_subscribers -= usize::from(form == UpdateForm::Plain);
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

    /// Returns the earliest version that a subscriber has, with its form, or `None` if all
    /// subscribers have the latest version.
    fn earliest(&self) -> Option<(u64, UpdateForm)> {
        let first = self.turns.first().map(|(has, form, _)| (*has, *form));
        first.filter(|(has, _)| *has < self.version)
    }

    /// Returns the update for a subscriber with version `since`: the delta, or a snapshot if the
    /// snapshot is not longer.
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
        let agents =
            changes.map(|changes| changes.map(|change| change.ip).collect::<BTreeSet<_>>());
        match agents.filter(|agents| agents.is_empty() || agents.len() < table.len()) {
            Some(agents) => {
                update.base =
                    Some(missed.and_then(|at| log.get(at)).map_or(*digest, |change| change.before));
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

    fn encode(&mut self, since: u64, form: UpdateForm) -> EncodedUpdate {
        self.encoded += 1;
        let update = self.update(since);
        let body = (self.encode_update)(&update, form);
        EncodedUpdate::new(Arc::new(update), body)
    }

    /// Returns the update for version `since`, computed and encoded at most once in a row.
    fn prepare(&mut self, since: u64, form: UpdateForm) -> EncodedUpdate {
        let is_current = |last: &&Prepared| {
            (last.since, last.form) == (since, form)
                && last.update.content().version == self.version
        };
        if let Some(prepared) = self.prepared.as_ref().filter(is_current) {
            return prepared.update.clone();
        }
        let update = self.encode(since, form);
        self.prepared.insert(Prepared { since, form, update }).update.clone()
    }

    /// Ends expired subscriptions, and returns the shipments of a slice if one is due. They are
    /// held back until `latest` is durable, the version of the state with every change until now.
    pub(super) fn take_slice(
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
                count_and_list(&ended, "agent")
            );
        }
        if self.due.is_none_or(|due| due > elapsed) {
            return Vec::new();
        }
        let mut slice = Vec::new();
        // While the store hangs, only one slice is held back.
        if self.awaited <= durable {
            let mut budget = SLICE_BYTES;
            while let Some((since, form)) = self.earliest() {
                let update = self.prepare(since, form);
                let bytes = update.body().len();
                let fitting = budget / (bytes + MESSAGE_HEAD_BYTES);
                let count = if slice.is_empty() { fitting.max(1) } else { fitting };
                if count == 0 {
                    break;
                }
                let to = self.advance((since, form), count);
                if bytes > PeersUpdate::BYTES_MAX {
                    self.too_large = Some(bytes);
                    continue;
                }
                if update.content().base.is_none() {
                    self.too_large = None;
                }
                budget = budget.saturating_sub((bytes + MESSAGE_HEAD_BYTES) * to.len());
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
            // A prepared snapshot occupies much memory.
            self.prepared = None;
        }
        slice
    }

    /// Moves at most `count` subscribers of one form from version `since` to the latest version,
    /// and returns them.
    fn advance(&mut self, (since, form): (u64, UpdateForm), count: usize) -> Vec<Upid> {
        let same = (since, form, Ipv4Addr::UNSPECIFIED)..=(since, form, Ipv4Addr::BROADCAST);
        let agents = self.turns.range(same).take(count).map(|(_, _, ip)| *ip);
        let agents: Vec<Ipv4Addr> = agents.collect();
        let mut to = Vec::with_capacity(agents.len());
        for ip in agents {
            self.turns.remove(&(since, form, ip));
            if let Some(subscriber) = self.subscribers.get_mut(&ip) {
                subscriber.has = self.version;
                self.turns.insert((self.version, form, ip));
                to.push(subscriber.upid.clone());
            }
        }
        to
    }
}
