//! Time as an argument. Machines read no clock: whoever runs them says what time it is.

use std::time::Duration;

/// A moment, on two clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Now {
    /// Since the program started, on a clock that never jumps: for timeouts.
    pub elapsed: Duration,
    /// Seconds since 1970 on the wall clock: for what is stored.
    pub unix: u64,
}

/// The rounds of an exponential backoff with jitter.
///
/// Each wait is drawn from the upper half of the current bound, so that many who failed at one
/// moment come back spread out, and none at once.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    bound: Duration,
}

impl Backoff {
    /// Waits begin with at most `first` and never exceed `longest`.
    #[must_use]
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, bound: first }
    }

    /// Begins anew.
    pub const fn reset(&mut self) {
        self.bound = self.first;
    }

    /// How long to wait now; the next wait is about twice as long.
    pub fn next_wait(&mut self, random: &mut fastrand::Rng) -> Duration {
        let half = self.bound / 2;
        self.bound = self.longest.min(self.bound * 2);
        half + half.mul_f64(random.f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_differ_between_seeds() {
        let waits = |seed| {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(8));
            (0..6).map(|_| backoff.next_wait(&mut random)).collect::<Vec<_>>()
        };
        for (wait, bound) in waits(1).into_iter().zip([1, 2, 4, 8, 8, 8]) {
            let bound = Duration::from_secs(bound);
            assert!(wait >= bound / 2 && wait <= bound, "{wait:?} is not within {bound:?}");
        }
        assert_ne!(waits(1), waits(2));
    }
}
