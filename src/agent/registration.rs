//! Where the agent stands with its master: when to register, when to report, whom to believe.
//!
//! ```text
//!   detached -> registering -> configuring -> reporting -> registered
//! ```
//! A master is detected; it assigns; every network has been tried; the master acknowledges. A
//! status that changes later leads back to reporting; no answer, the end of the connection or
//! another master to registering.

use std::net::SocketAddrV4;
use std::time::Duration;

use crate::addr::Upid;
use crate::clock::{Backoff, Now};
use crate::mutation::Mutation;

/// Longest wait before the first message to a master that was just found, and before coming back
/// after its connection ended: at a failover all agents find the new one in the same moment.
const SPREAD: Duration = Duration::from_millis(500);
/// First bound of the wait for an answer. A busy master needs longer than an idle one, and asking
/// again costs it as much as the first time.
const FIRST_WAIT: Duration = Duration::from_secs(2);
/// Last bound of the wait for an answer.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// After how long a registered agent registers again at the latest, and at the earliest after half
/// of it. It changes nothing where all is well; but an agent that was deleted by mistake is back
/// then, one that got nothing of an exhausted overlay gets it when there is room, and a master that
/// hangs with its connection open is noticed.
const REFRESH: Duration = Duration::from_secs(15 * 60);

/// What the agent waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// For a master to be found.
    Detached,
    /// For its share of the overlays.
    Registering,
    /// For its container networks.
    Configuring,
    /// For the acknowledgement of what it reported.
    Reporting,
    /// For nothing.
    Registered,
}

/// Where the agent stands with its master.
#[derive(Debug)]
pub(super) struct Registration {
    master: Option<Upid>,
    phase: Phase,
    /// Whether the master has acknowledged a report since it was found, and answers.
    is_acknowledged: bool,
    /// Registrations in a row that the master did not answer with an assignment.
    unanswered: u32,
    backoff: Backoff,
    /// When to send the registration (again), since `Now::elapsed` 0.
    due: Option<Duration>,
}

impl Registration {
    pub(super) const fn new() -> Self {
        Self {
            master: None,
            phase: Phase::Detached,
            is_acknowledged: false,
            unanswered: 0,
            backoff: Backoff::new(FIRST_WAIT, LONGEST_WAIT),
            due: None,
        }
    }

    /// Another master leads, or none. Says whether that is news.
    pub(super) fn detected(
        &mut self,
        now: Now,
        address: Option<SocketAddrV4>,
        random: &mut fastrand::Rng,
    ) -> bool {
        let master = address.map(Upid::master);
        if master == self.master {
            return false;
        }
        self.master = master;
        self.is_acknowledged = false;
        self.unanswered = 0;
        self.backoff.reset();
        if self.master.is_some() {
            self.phase = Phase::Registering;
            self.due = Some(now.elapsed + SPREAD.mul_f64(random.f64()));
        } else {
            self.phase = Phase::Detached;
            self.due = None;
        }
        true
    }

    /// The connection to `address` has ended. Says whether it was the master's.
    pub(super) fn exited(
        &mut self,
        now: Now,
        address: SocketAddrV4,
        random: &mut fastrand::Rng,
    ) -> bool {
        if self.master.as_ref().is_none_or(|master| master.address != address) {
            return false;
        }
        // While the master does not answer, the wait that is under way goes on: a connection that
        // is refused at once must not lead to registering at once.
        if self.phase == Phase::Registered {
            self.backoff.reset();
            self.due = Some(now.elapsed + SPREAD.mul_f64(random.f64()));
        }
        self.phase = Phase::Registering;
        self.is_acknowledged = false;
        true
    }

    /// The moment to register has come; the next one, should nothing be heard, is set.
    pub(super) fn take_due(&mut self, now: Now, random: &mut fastrand::Rng) -> Option<Upid> {
        if self.due.is_none_or(|due| due > now.elapsed) {
            return None;
        }
        let master = self.master.clone()?;
        // What is done again before it was answered was not answered in time.
        self.is_acknowledged &= self.phase == Phase::Registered;
        self.phase = Phase::Registering;
        self.unanswered = self.unanswered.saturating_add(1);
        let wait = if Mutation::RetryWithoutDelay.is_on() {
            Duration::from_millis(100)
        } else {
            self.backoff.next_wait(random)
        };
        self.due = (!Mutation::RegisterOnce.is_on()).then_some(now.elapsed + wait);
        Some(master)
    }

    /// The master has assigned. A report that is under way is then of an older share: its
    /// acknowledgement says nothing, and the next report does not wait for it.
    pub(super) const fn assigned(&mut self) {
        self.unanswered = 0;
        if matches!(self.phase, Phase::Registering | Phase::Reporting) {
            self.phase = Phase::Configuring;
        }
    }

    /// A report goes out now: to whom. `None` while there is no master.
    pub(super) fn reporting(&mut self, now: Now, random: &mut fastrand::Rng) -> Option<Upid> {
        let master = self.master.clone()?;
        self.phase = Phase::Reporting;
        self.due = Some(now.elapsed + self.backoff.next_wait(random));
        Some(master)
    }

    /// The master has acknowledged the report.
    pub(super) fn registered(&mut self, now: Now, random: &mut fastrand::Rng) {
        self.phase = Phase::Registered;
        self.is_acknowledged = true;
        self.backoff.reset();
        let half = REFRESH / 2;
        self.due = Some(now.elapsed + half + half.mul_f64(random.f64()));
    }

    /// How many registrations in a row were not answered, the last of which may still be.
    pub(super) const fn unanswered(&self) -> u32 {
        self.unanswered
    }

    /// Whether the master knows this agent, as far as can be told.
    pub(super) const fn is_acknowledged(&self) -> bool {
        self.is_acknowledged
    }

    pub(super) fn is_master(&self, from: &Upid) -> bool {
        self.master.as_ref() == Some(from)
    }

    pub(super) const fn phase(&self) -> Phase {
        self.phase
    }

    pub(super) const fn master(&self) -> Option<&Upid> {
        self.master.as_ref()
    }

    pub(super) const fn due(&self) -> Option<Duration> {
        self.due
    }
}
