//! The trait that the state machines of the master and the agent implement.

use std::fmt::Display;
use std::time::Duration;

use overlay_types::clock::Now;
use overlay_types::warnings::Severity;

use crate::metrics::Catalogue;

/// A state machine without IO, clock or randomness of its own.
///
/// Its host calls [`Self::handle`] for every event and then [`Self::poll_command`] until no command
/// is left. The host sends [`Self::TIMEOUT`] at [`Self::next_timeout`]. All calls come from one
/// thread at a time. The same events at the same times lead to the same commands.
///
/// A state machine never fails: it shows a failure as a status, a counter or a line in the log.
pub trait StateMachine {
    /// Something that happened. Prints in one line.
    type Event: Display;
    /// Something that the host has to do. Prints in one line.
    type Command: Display;
    /// The values that the catalogue reads. They are plain and cheap to copy.
    type Metrics: 'static;

    /// The event that the time of [`Self::next_timeout`] has come.
    const TIMEOUT: Self::Event;
    /// The metrics of the state machine.
    const CATALOGUE: &'static Catalogue<Self::Metrics>;

    /// Handles an event.
    fn handle(&mut self, now: Now, event: Self::Event);

    /// Returns the next command. The host runs commands in this order.
    fn poll_command(&mut self) -> Option<Self::Command>;

    /// Returns when the state machine needs [`Self::TIMEOUT`], as a value of `Now::elapsed`.
    fn next_timeout(&self) -> Option<Duration>;

    /// Returns the current values of the metrics.
    fn metrics(&self) -> Self::Metrics;

    /// Worsens the status, because of a warning that only the host knows. A worse status stays.
    fn degrade(metrics: &mut Self::Metrics, severity: Severity);
}

/// The status of a state machine, of which warnings change one value to another.
pub trait Degrade: PartialEq + Sized {
    /// The status without a problem.
    const OK: Self;
    /// The status with a problem that needs an operator.
    const DEGRADED: Self;

    /// Returns the status while a failure lasts.
    #[must_use]
    fn failed(self) -> Self;

    /// Returns the status while a warning lasts: `ok` becomes `degraded`, a worse status stays.
    #[must_use]
    fn degraded(self, severity: Severity) -> Self {
        match severity {
            Severity::Degraded if self == Self::OK => Self::DEGRADED,
            Severity::Degraded => self,
            Severity::Failed => self.failed(),
        }
    }
}

/// Returns whether to log the `count`th message of a kind that any host can send: the 1st, 2nd, 4th,
/// 8th... A host that sends nonsense must not be able to fill the disk.
#[must_use]
pub const fn should_log_sample(count: u64) -> bool {
    count.is_power_of_two()
}
