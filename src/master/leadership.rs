//! Whether this master leads, and what follows from it: its state is read when it begins to lead,
//! and forgotten when it ends, since another master may change it from then on.
//!
//! What an agent is told is durable in the epoch of this master. So nothing of an earlier tenure is
//! kept, neither what was allocated nor what was to be sent; and a result of the store that belongs
//! to an earlier one is thrown away.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::mem;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use super::command::Command;
use super::history::History;
use super::peers::Peers;
use super::recovery::{Adopted, Recovered, Reports};
use super::registry::Registry;
use super::{Master, NOT_LEADING, WAITING_MAX};
use crate::addr::Upid;
use crate::clock::Now;
use crate::mutation::Mutation;
use crate::protocol::{Addresses, AgentOptions, HistoryEntry, HistoryEvent};
use crate::store::{Change, Epoch, Key, Loaded, StoreError, Version};
use crate::words::first_few;

#[derive(Debug)]
pub(super) enum Phase {
    Standby(Standby),
    Recovering(Recovering),
    Leading(Box<Leading>),
}

/// Another master leads, or none.
#[derive(Debug, Default)]
pub(super) struct Standby {
    /// Whether the store still does what it was told before.
    is_store_busy: bool,
    /// How this master learned that it does not lead, unless the election said so; and when to
    /// believe the election, which still says that it does.
    pub(super) deposed: Option<(StoreError, Duration)>,
}

/// This master leads, and the state is not there.
#[derive(Debug)]
pub(super) struct Recovering {
    /// The latest registration of each agent, to be served when the state is there.
    waiting: BTreeMap<Ipv4Addr, (Upid, AgentOptions)>,
    /// What agents have reported to this master before the store failed: they do not hear of that,
    /// and would report again in a quarter of an hour only.
    reported: Reports,
    pub(super) progress: Progress,
}

/// How far the state is from being there.
#[derive(Debug)]
pub(super) enum Progress {
    /// The store still does what it was told before this tenure; then it is read.
    Queued,
    /// It is being read.
    Reading,
    /// Why it could not be read or written, and when to try again.
    Failed(StoreError, Duration),
}

impl Recovering {
    const fn new(progress: Progress) -> Self {
        Self { waiting: BTreeMap::new(), reported: Reports::new(), progress }
    }

    /// Keeps a registration for later. Whether there is room for it.
    pub(super) fn keep(&mut self, from: Upid, options: AgentOptions) -> bool {
        let ip = *from.address.ip();
        let has_room = self.waiting.len() < WAITING_MAX || self.waiting.contains_key(&ip);
        if has_room {
            self.waiting.insert(ip, (from, options));
        }
        has_room
    }
}

/// This master leads, and the state is there.
#[derive(Debug)]
pub(super) struct Leading {
    pub(super) registry: Registry,
    pub(super) history: History,
    pub(super) peers: Peers,
    pub(super) epoch: Epoch,
    /// When that was, since `Now::elapsed` 0.
    pub(super) since: Duration,
    pub(super) durable: Version,
    /// Whether the version after `durable` is being written.
    is_writing: bool,
    /// What goes into the next commit: the last change of each key.
    pending: BTreeMap<Key, Change>,
    /// Whose update waits for a version that is not durable. Agents ask again and again while a
    /// disk hangs, and one answer is enough.
    pub(super) told: HashMap<Upid, Version>,
    /// Agents that were deleted while their update waited.
    pub(super) withdrawn: BTreeSet<Ipv4Addr>,
}

impl Leading {
    /// The version that the next commit will have.
    pub(super) fn next_version(&self) -> Version {
        if self.is_writing && !Mutation::VersionRepeats.is_on() {
            self.durable.next().next()
        } else {
            self.durable.next()
        }
    }

    /// The version that holds everything that was changed until now.
    pub(super) fn latest_version(&self) -> Version {
        if self.has_changes() {
            self.next_version()
        } else if self.is_writing {
            self.durable.next()
        } else {
            self.durable
        }
    }

    /// Finds out what can be served now that agents were deleted whose addresses were in doubt.
    pub(super) fn settle_doubts(&mut self, now: Now) {
        if self.registry.take_unsettled() {
            let network = Arc::clone(&self.registry.network);
            let Recovered { registry, adopted } =
                self.registry.rebuilt(network, self.next_version());
            self.registry = registry;
            self.adopt(now, adopted);
        }
    }

    /// Takes back what waits to be said to agents that are now deleted. It was never stored, and
    /// the next commit may give it to others.
    pub(super) fn take_withdrawal(&mut self) -> Option<Command> {
        let agents = mem::take(&mut self.withdrawn);
        if agents.is_empty() || Mutation::TellTheDeleted.is_on() {
            return None;
        }
        self.told.retain(|to, _| !agents.contains(to.address.ip()));
        Some(Command::Withdraw(agents))
    }

    /// Agents keep addresses under another name.
    pub(super) fn adopt(&mut self, now: Now, adopted: Vec<Adopted>) {
        for Adopted { ip, change, addresses } in adopted {
            self.change([change]);
            let reason = "the configuration has another name for the overlay";
            self.note(now, Some(ip), HistoryEvent::Renamed, addresses, reason);
        }
    }

    /// Adds to the history.
    pub(super) fn note(
        &mut self,
        now: Now,
        agent: Option<Ipv4Addr>,
        event: HistoryEvent,
        addresses: Addresses,
        reason: &str,
    ) {
        let (version, reason) = (self.next_version().0, reason.to_owned());
        self.history.note(&HistoryEntry { at: now.unix, version, agent, event, addresses, reason });
    }

    /// Whether something has changed that is not being written.
    fn has_changes(&self) -> bool {
        !self.pending.is_empty() || self.history.has_changes()
    }

    pub(super) fn change(&mut self, changes: impl IntoIterator<Item = Change>) {
        for change in changes {
            let (Change::Put(key, _) | Change::Delete(key)) = &change;
            self.pending.insert(*key, change);
        }
    }
}

impl Master {
    /// The election says that this master leads, or that it does not.
    pub(super) fn elected(&mut self, leads: bool) {
        match (&self.phase, leads) {
            (Phase::Standby(standby), true) => {
                log::info!("this master leads: reading the state");
                let progress = if standby.is_store_busy {
                    Progress::Queued
                } else {
                    self.commands.push_back(Command::Load);
                    Progress::Reading
                };
                self.phase = Phase::Recovering(Recovering::new(progress));
            }
            (Phase::Recovering(_) | Phase::Leading(_), false) if !Mutation::KeepLeading.is_on() => {
                log::info!("this master leads no more: another one gives addresses from now on");
                self.step_down(None);
            }
            (Phase::Standby(_), false) => {
                // Whatever it was, the election knows it now.
                if let Phase::Standby(standby) = &mut self.phase {
                    standby.deposed = None;
                }
            }
            (Phase::Recovering(_) | Phase::Leading(_), _) => {}
        }
    }

    /// Forgets the state, and drops all that waits for it.
    fn step_down(&mut self, deposed: Option<(StoreError, Duration)>) {
        let is_store_busy = match &self.phase {
            Phase::Standby(standby) => standby.is_store_busy,
            Phase::Recovering(Recovering { progress, .. }) => {
                matches!(progress, Progress::Queued | Progress::Reading)
            }
            Phase::Leading(leading) => leading.is_writing,
        };
        if deposed.is_none() {
            self.store_backoff.reset();
        }
        self.leave(Phase::Standby(Standby { is_store_busy, deposed }), NOT_LEADING);
    }

    /// Goes on in another phase; who waits for something of this one is told why it does not come.
    fn leave(&mut self, next: Phase, why: &str) {
        let unanswered = match mem::replace(&mut self.phase, next) {
            Phase::Standby(_) => return,
            Phase::Recovering(Recovering { waiting, .. }) => waiting.len(),
            Phase::Leading(leading) => leading.told.len(),
        };
        let unanswered = u64::try_from(unanswered).unwrap_or(u64::MAX);
        self.counters.register_agent_messages_dropped += unanswered;
        self.commands.push_back(Command::Abandon(why.to_owned()));
    }

    /// The store has done what it was told. Whether the result is of this tenure.
    fn is_of_this_tenure(&mut self) -> bool {
        match &mut self.phase {
            Phase::Standby(standby) => {
                standby.is_store_busy = false;
                false
            }
            Phase::Recovering(Recovering { progress: progress @ Progress::Queued, .. }) => {
                *progress = Progress::Reading;
                self.commands.push_back(Command::Load);
                false
            }
            Phase::Recovering(_) | Phase::Leading(_) => true,
        }
    }

    pub(super) fn loaded(&mut self, now: Now, loaded: Loaded) {
        if !self.is_of_this_tenure() {
            return;
        }
        let Phase::Recovering(recovering) = &mut self.phase else {
            log::error!("ignored a state that nobody asked for");
            return;
        };
        let waiting = mem::take(&mut recovering.waiting);
        let reported = mem::take(&mut recovering.reported);
        let Loaded { epoch, version, records } = loaded;
        let (mut agents, mut parts) = (Vec::new(), Vec::new());
        for (key, bytes) in records {
            match key {
                Key::Agent(ip) => agents.push((ip, bytes)),
                Key::History(number) => parts.push((number, bytes)),
            }
        }
        let Recovered { mut registry, adopted } =
            Registry::recover(Arc::clone(&self.settings.network), version, agents);
        registry.recall(&reported);
        let doubts: Vec<String> = registry.doubts().into_values().collect();
        let (few, more) = first_few(&doubts);
        for sentence in few {
            log::error!("{sentence}");
        }
        if more > 0 {
            log::error!(
                "{more} more problems of the recovered state: see the health of the master"
            );
        }
        log::info!(
            "recovered {} agents from version {} of the state; epoch {} begins",
            registry.tally().total,
            version.0,
            epoch.0
        );
        self.store_backoff.reset();
        let mut leading = Leading {
            peers: Peers::new(epoch.0, registry.take_peers()),
            registry,
            history: History::recover(parts),
            epoch,
            since: now.elapsed,
            durable: version,
            is_writing: false,
            pending: BTreeMap::new(),
            told: HashMap::new(),
            withdrawn: BTreeSet::new(),
        };
        leading.adopt(now, adopted);
        self.phase = Phase::Leading(Box::new(leading));
        for (from, options) in waiting.into_values() {
            self.register(now, from, &options);
        }
    }

    /// Nothing of what was allocated since can be relied on: the state is read again, unless
    /// another master has it.
    pub(super) fn store_failed(&mut self, now: Now, error: StoreError) {
        self.counters.store_failures += 1;
        if !self.is_of_this_tenure() {
            log::warn!("{error}: it was for an earlier tenure of this master, which goes on");
            return;
        }
        if self.is_elected && matches!(error, StoreError::Deposed { .. }) {
            let wait = self.store_backoff.next_wait(&mut self.random);
            log::error!(
                "{error}; reading the state again in {wait:.1?} if the election has no other leader"
            );
            self.step_down(Some((error, now.elapsed + wait)));
            // The job has ended: it is what said so.
            if let Phase::Standby(standby) = &mut self.phase {
                standby.is_store_busy = false;
            }
            return;
        }
        if Mutation::KeepWhatWasNotStored.is_on()
            && let Phase::Leading(leading) = &self.phase
        {
            let version = leading.durable.next();
            self.committed(version);
            return;
        }
        let wait = self.store_backoff.next_wait(&mut self.random);
        log::error!(
            "{error}; reading the state again in {wait:.1?}, nothing is promised meanwhile"
        );
        let progress = Progress::Failed(error, now.elapsed + wait);
        match &mut self.phase {
            Phase::Recovering(recovering) => recovering.progress = progress,
            Phase::Leading(leading) => {
                let mut recovering = Recovering::new(progress);
                recovering.reported = leading.registry.reports();
                let why = "the state could not be written: ask again";
                self.leave(Phase::Recovering(recovering), why);
            }
            Phase::Standby(_) => {
                self.phase = Phase::Recovering(Recovering::new(progress));
            }
        }
    }

    pub(super) fn retry_store(&mut self, now: Now) {
        if let Phase::Recovering(Recovering { progress, .. }) = &mut self.phase
            && matches!(progress, Progress::Failed(_, due) if *due <= now.elapsed)
        {
            *progress = Progress::Reading;
            self.commands.push_back(Command::Load);
        }
        // Others may make themselves the writer without leading: the C++ module does so whenever
        // an agent registers with it. No election tells of that, or of its end.
        if let Phase::Standby(Standby { deposed: Some((_, due)), .. }) = &self.phase
            && *due <= now.elapsed
            && !Mutation::NeverReclaim.is_on()
        {
            self.elected(true);
        }
    }

    pub(super) fn committed(&mut self, version: Version) {
        self.counters.commits += 1;
        if !self.is_of_this_tenure() {
            return;
        }
        if let Phase::Leading(leading) = &mut self.phase {
            leading.durable = version;
            leading.is_writing = false;
            leading.told.retain(|_, when| *when > version);
        }
    }

    pub(super) fn commit_what_waits(&mut self) {
        if let Phase::Leading(leading) = &mut self.phase
            && !leading.is_writing
            && leading.has_changes()
        {
            leading.is_writing = true;
            let mut changes: Vec<Change> = mem::take(&mut leading.pending).into_values().collect();
            changes.extend(leading.history.take_changes());
            self.commands.push_back(Command::Commit { epoch: leading.epoch, changes });
        }
    }
}
