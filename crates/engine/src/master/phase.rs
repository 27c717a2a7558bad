//! Whether this master leads, and the data of each phase. Every term begins with a load of the
//! state: allocations and pending sends of an earlier term are dropped. A result of a store job of
//! an earlier term is ignored.

use std::collections::BTreeMap;
use std::mem;
use std::net::Ipv4Addr;
use std::time::Duration;

use overlay_types::addr::Upid;
use overlay_types::clock::Now;
use overlay_types::mutation::Mutation;
use overlay_types::protocol::{AgentOptions, HeldAddresses, Leader, Principal};
use overlay_types::state::{LoadedState, StoreError, Version};

use super::command::Command;
use super::leading::Leading;
use super::registry::LastKnown;
use super::{Master, WAITING_MAX};

/// A state that was in use for this time had no fault: the next error of the store is a new one. A
/// store that can be read and not written fails sooner, and must not be read every second.
const STORE_WORKS_AFTER: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) enum Phase {
    Standby(Standby),
    Recovering(Recovering),
    Leading(Box<Leading>),
}

/// Another master leads, or no master does.
#[derive(Debug, Default)]
pub(super) struct Standby {
    /// Whether the store still has a job of an earlier term.
    is_store_busy: bool,
    /// The error by which the store demoted this master, and when to load the state again. `None`
    /// after the election has confirmed the demotion.
    demoted_by_store: Option<(StoreError, Duration)>,
}

impl Standby {
    pub(super) const fn demoted_by_store(&self) -> Option<&(StoreError, Duration)> {
        self.demoted_by_store.as_ref()
    }

    /// Returns when the state is loaded again although the store demoted this master.
    pub(super) fn retry_due(&self) -> Option<Duration> {
        self.demoted_by_store.as_ref().map(|(_, due)| *due)
    }
}

/// This master leads, and has not loaded its state yet.
#[derive(Debug)]
pub(super) struct Recovering {
    /// The latest registration of each agent, handled when the state is loaded.
    waiting: BTreeMap<Ipv4Addr, Waiting>,
    progress: Progress,
}

/// A registration that waits for the state.
#[derive(Debug)]
struct Waiting {
    from: Upid,
    /// The principal of an authenticated agent.
    principal: Option<Principal>,
    options: AgentOptions,
    /// The number of the registration, if the agent wants to know its problems. The held addresses
    /// are not kept: the master of many agents would need too much memory for them.
    asks: Option<u64>,
}

/// The progress of the recovery.
#[derive(Debug)]
pub(super) enum Progress {
    /// A job of an earlier term is under way at the store. The load starts after it.
    Queued,
    /// The state is being loaded.
    Reading,
    /// Why the state could not be read or written, and when to try again.
    Failed(StoreError, Duration),
}

impl Recovering {
    const fn new(progress: Progress) -> Self {
        Self { waiting: BTreeMap::new(), progress }
    }

    pub(super) const fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Returns when the load is retried.
    pub(super) const fn retry_due(&self) -> Option<Duration> {
        match self.progress {
            Progress::Failed(_, due) => Some(due),
            Progress::Queued | Progress::Reading => None,
        }
    }

    /// Keeps a registration for later. Returns false, and drops it, if too many are waiting, or if
    /// the agent has authenticated and this sender has not.
    pub(super) fn keep(
        &mut self,
        (from, principal): (Upid, Option<Principal>),
        options: AgentOptions,
    ) -> bool {
        let ip = *from.address.ip();
        let is_kept = match self.waiting.get(&ip) {
            Some(waiting) => waiting.principal.is_none() || principal.is_some(),
            None => self.waiting.len() < WAITING_MAX,
        };
        if is_kept {
            self.waiting.insert(ip, Waiting { from, principal, options, asks: None });
        }
        is_kept
    }

    /// Returns whether the last registration of this process waits.
    pub(super) fn is_waiting(&self, from: &Upid) -> bool {
        self.waiting.get(from.address.ip()).is_some_and(|waiting| waiting.from == *from)
    }

    /// Notes that an agent wants to know the problems of its registration.
    pub(super) fn ask_problems(
        &mut self,
        (from, is_authenticated): (&Upid, bool),
        held: &HeldAddresses,
    ) {
        if let Some(waiting) = self.waiting.get_mut(from.address.ip())
            && waiting.from == *from
            && waiting.principal.is_some() == is_authenticated
        {
            waiting.asks = Some(held.registration());
        }
    }
}

impl Master {
    /// Handles the result of the election: whether this master leads.
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
                // The election confirms the demotion by the store.
                if let Phase::Standby(standby) = &mut self.phase {
                    standby.demoted_by_store = None;
                }
                self.is_unnoticed = false;
                self.last_known = LastKnown::default();
            }
            (Phase::Recovering(_) | Phase::Leading(_), _) => {}
        }
    }

    /// Notes the leading master, which a master on standby names to its clients.
    pub(super) fn leader_changed(&mut self, leader: Option<Leader>) {
        if leader == self.leader {
            return;
        }
        if matches!(self.phase, Phase::Standby(_)) {
            match &leader {
                Some(leader) => log::info!("on standby: the leading master is {leader}"),
                None => log::info!("on standby: no leading master is known"),
            }
        }
        self.leader = leader;
    }

    /// Drops the state and all pending sends.
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
        let is_by_store = demoted_by_store.is_some();
        self.is_unnoticed &= is_by_store;
        let standby = Standby { is_store_busy, demoted_by_store };
        let why = self.not_leading_reason();
        self.leave(Phase::Standby(standby), &why);
        // Agents send their next messages to the leader that the election knows.
        let last_known = mem::take(&mut self.last_known);
        if is_by_store {
            self.last_known = last_known.without_reports();
        }
    }

    /// Changes to another phase. Requests that wait for this phase are answered with `why`.
    fn leave(&mut self, next: Phase, why: &str) {
        let unanswered = match mem::replace(&mut self.phase, next) {
            Phase::Standby(_) => return,
            Phase::Recovering(Recovering { waiting, .. }) => waiting.len(),
            Phase::Leading(leading) => {
                let unanswered = leading.pending_update_count();
                self.last_known = leading.into_last_known();
                unanswered
            }
        };
        let unanswered = u64::try_from(unanswered).unwrap_or(u64::MAX);
        self.outbox.counters.register_agent_messages_dropped += unanswered;
        self.outbox.push(Command::Abandon(why.to_owned()));
    }

    /// Notes that a job of the store has ended. Returns whether the job belongs to this term.
    fn end_store_job(&mut self) -> bool {
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

    pub(super) fn loaded(&mut self, now: Now, loaded: LoadedState) {
        if !self.end_store_job() {
            return;
        }
        let Phase::Recovering(recovering) = &mut self.phase else {
            log::error!("ignored a state that was not requested");
            return;
        };
        let waiting = mem::take(&mut recovering.waiting);
        let mut last_known = mem::take(&mut self.last_known);
        if mem::take(&mut self.is_unnoticed) {
            last_known.begin_unnoticed();
        }
        let mut leading =
            Leading::recover(now, &self.settings, loaded, self.encode_update, last_known);
        for Waiting { from, principal, options, asks } in waiting.into_values() {
            let sender = (from.clone(), principal.as_ref());
            leading.register(now, sender, &options, &mut self.outbox);
            if let Some(registration) = asks {
                let held = HeldAddresses::default().with_registration(registration);
                leading.send_problems(from, &held, &mut self.outbox);
            }
        }
        self.phase = Phase::Leading(Box::new(leading));
    }

    /// Handles the loss of the state between two commits, as after a failed commit. While a job of
    /// the store is under way, the result of that job reports the loss.
    pub(super) fn store_lost(&mut self, now: Now, error: StoreError) {
        match &self.phase {
            Phase::Leading(leading) if !leading.is_writing() => self.store_failed(now, error),
            Phase::Leading(_) | Phase::Recovering(_) | Phase::Standby(_) => {}
        }
    }

    /// Schedules another load, unless another master leads: allocations since the last commit are
    /// not stored.
    pub(super) fn store_failed(&mut self, now: Now, error: StoreError) {
        self.outbox.counters.store_failures += 1;
        if !self.end_store_job() {
            log::warn!("{error}: ignored: the job belongs to an earlier term of this master");
            return;
        }
        if let Phase::Leading(leading) = &self.phase
            && leading.age(now) >= STORE_WORKS_AFTER
        {
            self.store_has_worked();
        }
        let repetition = self.store_errors.note(&error.to_string());
        if self.is_elected && matches!(error, StoreError::EpochEnded { .. }) {
            let wait = self.store_backoff.next_delay(&mut self.random);
            if let Some(repetition) = repetition {
                log::error!(
                    "{error}{repetition}; reading the state again in {wait:.1?} if the election has \
                     no other leader"
                );
            }
            self.step_down(Some((error, now.elapsed + wait)));
            // The job that failed has ended.
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
        let wait = self.store_backoff.next_delay(&mut self.random);
        if let Some(repetition) = repetition {
            log::error!(
                "{error}{repetition}; reading the state again in {wait:.1?}, no address is sent \
                 until then"
            );
        }
        let progress = Progress::Failed(error, now.elapsed + wait);
        match &mut self.phase {
            Phase::Recovering(recovering) => recovering.progress = progress,
            Phase::Leading(_) => {
                let recovering = Recovering::new(progress);
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
        // A process can become the writer without an election: the C++ module does so whenever an
        // agent registers with it. The election does not report such a writer.
        if let Phase::Standby(Standby { demoted_by_store: Some((_, due)), .. }) = &self.phase
            && *due <= now.elapsed
            && !Mutation::NeverRetryAfterDemotion.is_on()
        {
            self.elected(true);
        }
    }

    pub(super) fn committed(&mut self, version: Version) {
        self.outbox.counters.commits += 1;
        if !self.end_store_job() {
            return;
        }
        if let Phase::Leading(leading) = &mut self.phase {
            leading.committed(version);
            self.store_has_worked();
        }
    }

    fn store_has_worked(&mut self) {
        self.store_backoff.reset();
        self.store_errors.clear();
    }
}
