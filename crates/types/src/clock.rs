//! Time as an argument. State machines read no clock: their runtime passes the current time.

use std::time::Duration;

/// The current time on two clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Now {
    /// Time since the program started, on a monotonic clock. Used for timeouts.
    pub elapsed: Duration,
    /// Seconds since 1970 on the wall clock. Used for stored times.
    pub unix: u64,
}

/// Exponential backoff with jitter.
///
/// Each delay is drawn from the upper half of the current bound. Many clients that fail at the same
/// time therefore retry at different times, and none retries immediately.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    bound: Duration,
}

impl Backoff {
    /// Creates a backoff. The first delay is at most `first`; no delay exceeds `longest`.
    #[must_use]
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, bound: first }
    }

    /// Restarts with the first delay.
    pub const fn reset(&mut self) {
        self.bound = self.first;
    }

    /// Returns the next delay. The bound of the delay doubles with every call.
    pub fn next_delay(&mut self, random: &mut fastrand::Rng) -> Duration {
        let half = self.bound / 2;
        self.bound = self.longest.min(self.bound * 2);
        half + half.mul_f64(random.f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_delays_double_up_to_longest_and_vary() {
        let delays = |seed| {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(8));
            (0..6).map(|_| backoff.next_delay(&mut random)).collect::<Vec<_>>()
        };
        for (delay, bound) in delays(1).into_iter().zip([1, 2, 4, 8, 8, 8]) {
            let bound = Duration::from_secs(bound);
            assert!(delay >= bound / 2 && delay <= bound, "{delay:?} is not within {bound:?}");
        }
        assert_ne!(delays(1), delays(2));
    }
}
