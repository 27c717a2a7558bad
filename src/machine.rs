//! The one shape of the master and the agent: pure state machines that say what they want done.

use std::fmt::Display;
use std::time::Duration;

use crate::clock::Now;
use crate::metrics::Catalogue;

/// A state machine without IO, clock or randomness of its own.
///
/// Whoever runs it calls [`Self::handle`] for every event and then [`Self::poll_command`] until
/// there is none, and sends [`Self::TIMEOUT`] at [`Self::next_timeout`]; all from one thread at a
/// time. A machine never fails: what cannot be done is a status, a counter or a line in the log.
/// The same events at the same times lead to the same commands.
pub trait Machine {
    /// Something that happened. Prints in one line.
    type Event: Display;
    /// Something to do. Prints in one line.
    type Command: Display;
    /// What the numbers of the catalogue are read from: plain values, which cost little to take.
    type Metrics: 'static;

    /// The event that the moment of [`Self::next_timeout`] has come.
    const TIMEOUT: Self::Event;
    /// The numbers by which operators watch it.
    const CATALOGUE: &'static Catalogue<Self::Metrics>;

    /// Takes note of what happened.
    fn handle(&mut self, now: Now, event: Self::Event);

    /// What is to be done next, in order.
    fn poll_command(&mut self) -> Option<Self::Command>;

    /// When something is due even if nothing happens, since `Now::elapsed` 0.
    fn next_timeout(&self) -> Option<Duration>;

    /// How it is.
    fn metrics(&self) -> Self::Metrics;

    /// Turns the status `ok` into `degraded`, for a warning that the machine knows nothing of. A
    /// worse status stays.
    fn degrade(metrics: &mut Self::Metrics);
}

/// Whether the `count`th message of a kind that anybody can send is worth a line in the log: the
/// 1st, 2nd, 4th, 8th... Whoever sends nonsense must not be able to fill the disk.
pub(crate) const fn is_worth_a_line(count: u64) -> bool {
    count.is_power_of_two()
}
