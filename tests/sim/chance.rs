//! Chance, all of it from one seed.

use std::time::Duration;

/// The dice of a world.
pub(crate) struct Chance(fastrand::Rng);

impl Chance {
    pub(crate) fn of(seed: u64) -> Self {
        Self(fastrand::Rng::with_seed(seed))
    }

    /// True in `share` of all cases.
    pub(crate) fn is(&mut self, share: f64) -> bool {
        share > 0.0 && self.0.f64() < share
    }

    pub(crate) fn number(&mut self, range: std::ops::Range<u64>) -> u64 {
        self.0.u64(range)
    }

    /// One of `count` places.
    pub(crate) fn index(&mut self, count: usize) -> usize {
        self.0.usize(..count)
    }

    pub(crate) fn seed(&mut self) -> u64 {
        self.0.u64(..)
    }

    /// A time up to `longest`, short ones more often: a tenth of it is as likely as all the rest.
    pub(crate) fn time_up_to(&mut self, longest: Duration) -> Duration {
        let share = self.0.f64();
        longest.mul_f64(share * share * share)
    }

    /// A time between the two, all alike.
    pub(crate) fn time_between(&mut self, shortest: Duration, longest: Duration) -> Duration {
        shortest + longest.saturating_sub(shortest).mul_f64(self.0.f64())
    }

    /// The time until something happens that happens once in `mean`.
    pub(crate) fn time_until(&mut self, mean: Duration) -> Duration {
        let share = 1.0 - self.0.f64();
        mean.mul_f64(-share.ln()).min(mean * 8)
    }

    pub(crate) fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.0.u8(..)).collect()
    }
}
