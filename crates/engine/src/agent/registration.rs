//! The registration with the master: when to register, when to report, and which process is the
//! master.
//!
//! ```text
//!   detached -> registering -> configuring -> reporting -> registered
//! ```
//! The steps are: a master is detected, it assigns, every network is attempted, the master
//! acknowledges the report. A later change of a status leads back to reporting. A missing answer,
//! the end of the connection and a new master lead back to registering.

use std::net::SocketAddrV4;
use std::time::Duration;

use overlay_types::addr::{Upid, master_upid};
use overlay_types::clock::{Backoff, Now};
use overlay_types::mutation::Mutation;

/// Longest delay of the first message to a new master, and of a registration after the connection
/// ended. After a failover, all agents detect the new master at the same moment.
const JITTER: Duration = Duration::from_millis(500);
/// Bounds of the timeout of an answer. A busy master needs longer than an idle master, and a
/// repeated registration costs it as much as the first.
const ANSWER_TIMEOUT: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));

/// Longest interval after which a registered agent registers again; the shortest is half of it.
///
/// The registration changes nothing in the normal case. It brings back an agent that was deleted by
/// mistake, and allocates from an overlay that was exhausted before. It also reveals a master that
/// hangs with an open connection.
const REREGISTER_INTERVAL: Duration = Duration::from_secs(15 * 60);

/// The event that the agent waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The detection of a master.
    Detached,
    /// The assignment of the master.
    Registering,
    /// The first attempt at every container network.
    Configuring,
    /// The acknowledgement of the report.
    Reporting,
    /// No event: the registration is complete.
    Registered,
}

/// The state of the registration.
#[derive(Debug)]
pub(super) struct Registration {
    master: Option<Upid>,
    phase: Phase,
    /// Whether the master has acknowledged a report since its detection, and still answers.
    is_acknowledged: bool,
    /// Consecutive registrations that the master did not answer with an assignment.
    unanswered: u32,
    backoff: Backoff,
    /// When to send the next registration, since `Now::elapsed` 0.
    due: Option<Duration>,
}

impl Registration {
    pub(super) const fn new() -> Self {
        Self {
            master: None,
            phase: Phase::Detached,
            is_acknowledged: false,
            unanswered: 0,
            backoff: Backoff::new(ANSWER_TIMEOUT.0, ANSWER_TIMEOUT.1),
            due: None,
        }
    }

    /// Sets the detected master, or none. Returns whether it differs from the current master.
    pub(super) fn set_master(
        &mut self,
        now: Now,
        address: Option<SocketAddrV4>,
        random: &mut fastrand::Rng,
    ) -> bool {
        let master = address.map(master_upid);
        if master == self.master {
            return false;
        }
        self.master = master;
        self.is_acknowledged = false;
        self.unanswered = 0;
        self.backoff.reset();
        if self.master.is_some() {
            self.phase = Phase::Registering;
            self.due = Some(now.elapsed + JITTER.mul_f64(random.f64()));
        } else {
            self.phase = Phase::Detached;
            self.due = None;
        }
        true
    }

    /// Handles the end of the connection to `address`. Returns whether the master has that address.
    pub(super) fn handle_exit(
        &mut self,
        now: Now,
        address: SocketAddrV4,
        random: &mut fastrand::Rng,
    ) -> bool {
        if self.master.as_ref().is_none_or(|master| master.address != address) {
            return false;
        }
        // In other phases a timeout is running already, and stays: an immediately refused
        // connection must not lead to an immediate registration.
        if self.phase == Phase::Registered {
            self.backoff.reset();
            self.due = Some(now.elapsed + JITTER.mul_f64(random.f64()));
        }
        self.phase = Phase::Registering;
        self.is_acknowledged = false;
        true
    }

    /// Returns the master if a registration is due, and sets when the next registration is due.
    pub(super) fn take_due(&mut self, now: Now, random: &mut fastrand::Rng) -> Option<Upid> {
        if self.due.is_none_or(|due| due > now.elapsed) {
            return None;
        }
        let master = self.master.clone()?;
        // A registration in any other phase means that the master did not answer in time.
        self.is_acknowledged &= self.phase == Phase::Registered;
        self.phase = Phase::Registering;
        self.unanswered = self.unanswered.saturating_add(1);
        let timeout = if Mutation::RetryWithoutDelay.is_on() {
            Duration::from_millis(100)
        } else {
            self.backoff.next_delay(random)
        };
        self.due = (!Mutation::RegisterOnce.is_on()).then_some(now.elapsed + timeout);
        Some(master)
    }

    /// Notes an assignment of the master. A report that is under way is then outdated: its
    /// acknowledgement is ignored, and the next report does not wait for it.
    pub(super) const fn begin_configuring(&mut self) {
        self.unanswered = 0;
        if matches!(self.phase, Phase::Registering | Phase::Reporting) {
            self.phase = Phase::Configuring;
        }
    }

    /// Notes that the master refused the registration. The agent repeats it, with the backoff of an
    /// unanswered registration.
    pub(super) const fn note_refusal(&mut self) {
        self.unanswered = 0;
        self.is_acknowledged = false;
    }

    /// Makes the next registration due now, if a master is known: the address of this host works
    /// again.
    pub(super) fn register_now(&mut self, now: Now) {
        self.backoff.reset();
        self.due = self.master.is_some().then_some(now.elapsed);
    }

    /// Notes that a report is sent now. Returns its receiver, or `None` without a master.
    pub(super) fn begin_report(&mut self, now: Now, random: &mut fastrand::Rng) -> Option<Upid> {
        let master = self.master.clone()?;
        self.phase = Phase::Reporting;
        self.due = Some(now.elapsed + self.backoff.next_delay(random));
        Some(master)
    }

    /// Notes that the master has acknowledged the report.
    pub(super) fn complete(&mut self, now: Now, random: &mut fastrand::Rng) {
        self.phase = Phase::Registered;
        self.is_acknowledged = true;
        self.backoff.reset();
        let half = REREGISTER_INTERVAL / 2;
        self.due = Some(now.elapsed + half + half.mul_f64(random.f64()));
    }

    /// Returns the number of consecutive unanswered registrations. The answer to the last
    /// registration may be under way.
    pub(super) const fn unanswered(&self) -> u32 {
        self.unanswered
    }

    /// Returns whether the master has acknowledged this agent and still answers.
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
