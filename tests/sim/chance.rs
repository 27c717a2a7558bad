//! The random numbers of a world, all from one seed.

use std::time::Duration;

/// The random number generator of a world.
pub(crate) struct Chance(fastrand::Rng);

impl Chance {
    pub(crate) fn of(seed: u64) -> Self {
        Self(fastrand::Rng::with_seed(seed))
    }

    /// Returns true with the probability `share`.
    pub(crate) fn is(&mut self, share: f64) -> bool {
        share > 0.0 && self.0.f64() < share
    }

    pub(crate) fn number(&mut self, range: std::ops::Range<u64>) -> u64 {
        self.0.u64(range)
    }

    /// Returns an index below `count`.
    pub(crate) fn index(&mut self, count: usize) -> usize {
        self.0.usize(..count)
    }

    pub(crate) fn seed(&mut self) -> u64 {
        self.0.u64(..)
    }

    /// Returns a time up to `longest`. Short times are more frequent.
    pub(crate) fn time_up_to(&mut self, longest: Duration) -> Duration {
        let share = self.0.f64();
        longest.mul_f64(share * share * share)
    }

    /// Returns a time between `shortest` and `longest`, uniformly distributed.
    pub(crate) fn time_between(&mut self, shortest: Duration, longest: Duration) -> Duration {
        shortest + longest.saturating_sub(shortest).mul_f64(self.0.f64())
    }

    /// Returns the time until the next event, exponentially distributed with this mean.
    pub(crate) fn time_until(&mut self, mean: Duration) -> Duration {
        let share = 1.0 - self.0.f64();
        mean.mul_f64(-share.ln()).min(mean * 8)
    }

    pub(crate) fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.0.u8(..)).collect()
    }
}
