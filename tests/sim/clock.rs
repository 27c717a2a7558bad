//! The two clocks of a process: a monotonic clock that runs a little fast or slow, and the wall
//! clock, which an operator or a time server may set.

use std::time::Duration;

use overlay_types::clock::Now;

/// The start of every world, in seconds since 1970.
const BEGINNING: i64 = 1_700_000_000;

/// The clocks of one process.
#[derive(Clone, Copy)]
pub(crate) struct Clock {
    started: Duration,
    /// The rate of the clock: 1.0 is exact.
    rate: f64,
    /// How far the wall clock is ahead, in seconds.
    ahead: i64,
}

impl Clock {
    pub(crate) const fn new(started: Duration, rate: f64, ahead: i64) -> Self {
        Self { started, rate, ahead }
    }

    /// Returns the time that the process reads at `now`.
    pub(crate) fn read(&self, now: Duration) -> Now {
        let elapsed = now.saturating_sub(self.started).mul_f64(self.rate);
        let seconds = BEGINNING + i64::try_from(now.as_secs()).unwrap_or(i64::MAX) + self.ahead;
        Now { elapsed, unix: u64::try_from(seconds).unwrap_or(0) }
    }

    /// Returns when the clock will show at least `elapsed`.
    pub(crate) fn moment_of(&self, elapsed: Duration) -> Duration {
        // A time that is never due is after the end of any world.
        let elapsed = elapsed.min(Duration::from_hours(1_000_000));
        self.started + elapsed.div_f64(self.rate) + Duration::from_micros(1)
    }

    /// Sets the wall clock.
    pub(crate) const fn jump(&mut self, ahead: i64) {
        self.ahead = ahead;
    }
}
