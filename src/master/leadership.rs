//! Whether this master leads, and what it knows because of that. Every term begins with reading the
//! state anew: nothing of an earlier term is kept, neither what was allocated nor what was held
//! back. A result of the store that belongs to an earlier term is ignored.

use std::collections::BTreeMap;
use std::mem;
use std::net::Ipv4Addr;
use std::time::Duration;

use super::command::Command;
use super::leading::Leading;
use super::registry::Reports;
use super::{Master, NOT_LEADING, WAITING_MAX};
use crate::addr::Upid;
use crate::clock::Now;
use crate::mutation::Mutation;
use crate::protocol::AgentOptions;
use crate::store::{Loaded, StoreError, Version};

#[derive(Debug)]
pub(super) enum Phase {
    Standby(Standby),
    Recovering(Recovering),
    Leading(Box<Leading>),
}

/// Another master leads, or none.
#[derive(Debug, Default)]
pub(super) struct Standby {
    /// Whether the store still has a job of an earlier term.
    is_store_busy: bool,
    /// The error by which the store demoted this master, unless the election has confirmed it; and
    /// when to believe the election, by which this master still leads.
    demoted_by_store: Option<(StoreError, Duration)>,
}

impl Standby {
    pub(super) const fn demoted_by_store(&self) -> Option<&(StoreError, Duration)> {
        self.demoted_by_store.as_ref()
    }

    /// Returns when the state is read again in spite of the store's error.
    pub(super) fn retry_due(&self) -> Option<Duration> {
        self.demoted_by_store.as_ref().map(|(_, due)| *due)
    }
}

/// This master leads, and does not have its state yet.
#[derive(Debug)]
pub(super) struct Recovering {
    /// The latest registration of each agent, to be served when the state is there.
    waiting: BTreeMap<Ipv4Addr, (Upid, AgentOptions)>,
    /// What agents reported before the store failed. They do not notice the failure, and would
    /// report again only after a quarter of an hour.
    reported: Reports,
    progress: Progress,
}

/// How far the recovery is.
#[derive(Debug)]
pub(super) enum Progress {
    /// The store has a job of an earlier term. After that the state is read.
    Queued,
    /// The state is being read.
    Reading,
    /// Why the state could not be read or written, and when to try again.
    Failed(StoreError, Duration),
}

impl Recovering {
    const fn new(progress: Progress) -> Self {
        Self { waiting: BTreeMap::new(), reported: Reports::new(), progress }
    }

    pub(super) const fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Returns when the store is tried again.
    pub(super) const fn retry_due(&self) -> Option<Duration> {
        match self.progress {
            Progress::Failed(_, due) => Some(due),
            Progress::Queued | Progress::Reading => None,
        }
    }

    /// Keeps a registration for later. Returns whether there is room for it.
    pub(super) fn keep(&mut self, from: Upid, options: AgentOptions) -> bool {
        let ip = *from.address.ip();
        let has_room = self.waiting.len() < WAITING_MAX || self.waiting.contains_key(&ip);
        if has_room {
            self.waiting.insert(ip, (from, options));
        }
        has_room
    }
}

impl Master {
    /// Takes the result of the election: whether this master leads.
    pub(super) fn elected(&mut self, leads: bool) {
        match (&self.phase, leads) {
            (Phase::Standby(standby), true) => {
                log::info!("elected as the leader: reading the state");
                let progress = if standby.is_store_busy {
                    Progress::Queued
                } else {
                    self.outbox.push(Command::Load);
                    Progress::Reading
                };
                self.phase = Phase::Recovering(Recovering::new(progress));
            }
            (Phase::Recovering(_) | Phase::Leading(_), false)
                if !Mutation::IgnoreDemotion.is_on() =>
            {
                log::info!("lost leadership: stopped allocating");
                self.step_down(None);
            }
            (Phase::Standby(_), false) => {
                // The election confirms what the store said.
                if let Phase::Standby(standby) = &mut self.phase {
                    standby.demoted_by_store = None;
                }
            }
            (Phase::Recovering(_) | Phase::Leading(_), _) => {}
        }
    }

    /// Drops the state and everything that is held back for it.
    fn step_down(&mut self, demoted_by_store: Option<(StoreError, Duration)>) {
        let is_store_busy = match &self.phase {
            Phase::Standby(standby) => standby.is_store_busy,
            Phase::Recovering(Recovering { progress, .. }) => {
                matches!(progress, Progress::Queued | Progress::Reading)
            }
            Phase::Leading(leading) => leading.is_writing(),
        };
        if demoted_by_store.is_none() {
            self.store_backoff.reset();
        }
        let standby = Standby { is_store_busy, demoted_by_store };
        self.leave(Phase::Standby(standby), NOT_LEADING);
    }

    /// Changes to another phase. Requests that wait for this phase are answered with `why`.
    fn leave(&mut self, next: Phase, why: &str) {
        let unanswered = match mem::replace(&mut self.phase, next) {
            Phase::Standby(_) => return,
            Phase::Recovering(Recovering { waiting, .. }) => waiting.len(),
            Phase::Leading(leading) => leading.pending_update_count(),
        };
        let unanswered = u64::try_from(unanswered).unwrap_or(u64::MAX);
        self.outbox.counters.register_agent_messages_dropped += unanswered;
        self.outbox.push(Command::Abandon(why.to_owned()));
    }

    /// Notes that a job of the store has ended. Returns whether its result is of this term.
    fn is_of_this_term(&mut self) -> bool {
        match &mut self.phase {
            Phase::Standby(standby) => {
                standby.is_store_busy = false;
                false
            }
            Phase::Recovering(Recovering { progress: progress @ Progress::Queued, .. }) => {
                *progress = Progress::Reading;
                self.outbox.push(Command::Load);
                false
            }
            Phase::Recovering(_) | Phase::Leading(_) => true,
        }
    }

    pub(super) fn loaded(&mut self, now: Now, loaded: Loaded) {
        if !self.is_of_this_term() {
            return;
        }
        let Phase::Recovering(recovering) = &mut self.phase else {
            log::error!("ignored a state that was not requested");
            return;
        };
        let waiting = mem::take(&mut recovering.waiting);
        let reported = mem::take(&mut recovering.reported);
        let mut leading = Leading::recover(now, &self.settings, loaded, &reported);
        self.store_backoff.reset();
        for (from, options) in waiting.into_values() {
            leading.register(now, from, &options, &mut self.outbox);
        }
        self.phase = Phase::Leading(Box::new(leading));
    }

    /// Reads the state again, unless another master leads: what was allocated since the last commit
    /// is not stored.
    pub(super) fn store_failed(&mut self, now: Now, error: StoreError) {
        self.outbox.counters.store_failures += 1;
        if !self.is_of_this_term() {
            log::warn!("{error}: the job was of an earlier term of this master, which goes on");
            return;
        }
        if self.is_elected && matches!(error, StoreError::Deposed { .. }) {
            let wait = self.store_backoff.next_wait(&mut self.random);
            log::error!(
                "{error}; reading the state again in {wait:.1?} if the election has no other leader"
            );
            self.step_down(Some((error, now.elapsed + wait)));
            // The job that said so has ended.
            if let Phase::Standby(standby) = &mut self.phase {
                standby.is_store_busy = false;
            }
            return;
        }
        if Mutation::IgnoreFailedCommit.is_on()
            && let Phase::Leading(leading) = &self.phase
        {
            let version = leading.durable().next();
            self.committed(version);
            return;
        }
        let wait = self.store_backoff.next_wait(&mut self.random);
        log::error!(
            "{error}; reading the state again in {wait:.1?}, no address is sent until then"
        );
        let progress = Progress::Failed(error, now.elapsed + wait);
        match &mut self.phase {
            Phase::Recovering(recovering) => recovering.progress = progress,
            Phase::Leading(leading) => {
                let mut recovering = Recovering::new(progress);
                recovering.reported = leading.reports();
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
            self.outbox.push(Command::Load);
        }
        // A process can make itself the writer without leading: the C++ module does so whenever an
        // agent registers with it. No election reports that, or its end.
        if let Phase::Standby(Standby { demoted_by_store: Some((_, due)), .. }) = &self.phase
            && *due <= now.elapsed
            && !Mutation::NeverRetryAfterDemotion.is_on()
        {
            self.elected(true);
        }
    }

    pub(super) fn committed(&mut self, version: Version) {
        self.outbox.counters.commits += 1;
        if !self.is_of_this_term() {
            return;
        }
        if let Phase::Leading(leading) = &mut self.phase {
            leading.committed(version);
        }
    }
}
