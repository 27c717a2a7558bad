//! The peers, counted by the outcomes of their probes.

use std::time::Duration;

use overlay_types::protocol::PeerFailureCause;

use super::super::view::ProbeTally;
use super::path::PeerPath;

/// The sums of all peers. A visit changes them by the peer that was visited: a batch costs the same
/// in a cluster of any size.
#[derive(Debug, Default)]
pub(super) struct Totals {
    reached: u64,
    unreachable: u64,
    large_lost: u64,
    /// Sum of the smoothed round-trip times, and number of the peers that have one.
    round_trips: Duration,
    measured: u32,
    /// Number of the visited peers, by the number of unanswered visits of their last 8.
    by_loss: [u64; 9],
}

impl Totals {
    /// Adds a peer.
    pub(super) fn add(&mut self, path: &PeerPath) {
        *self.class_of(path) += u64::from(is_counted(path));
        if let Some(peers) = self.loss_class_of(path) {
            *peers += 1;
        }
        if let Some(smoothed) = path.smoothed_round_trip() {
            self.round_trips += smoothed;
            self.measured += 1;
        }
    }

    /// Subtracts a peer as it was when it was added.
    pub(super) fn subtract(&mut self, path: &PeerPath) {
        *self.class_of(path) -= u64::from(is_counted(path));
        if let Some(peers) = self.loss_class_of(path) {
            *peers -= 1;
        }
        if let Some(smoothed) = path.smoothed_round_trip() {
            self.round_trips -= smoothed;
            self.measured -= 1;
        }
    }

    fn class_of(&mut self, path: &PeerPath) -> &mut u64 {
        match path.failure_cause() {
            None => &mut self.reached,
            Some(PeerFailureCause::LargeLost) => &mut self.large_lost,
            Some(_) => &mut self.unreachable,
        }
    }

    fn loss_class_of(&mut self, path: &PeerPath) -> Option<&mut u64> {
        self.by_loss
            .get_mut(usize::try_from(path.unanswered_visits()).ok().filter(|_| is_counted(path))?)
    }

    pub(super) fn tally(&self) -> ProbeTally {
        let mean = self.round_trips.checked_div(self.measured).unwrap_or_default();
        ProbeTally {
            reached: self.reached,
            unreachable: self.unreachable,
            large_lost: self.large_lost,
            round_trip_microseconds: u64::try_from(mean.as_micros()).unwrap_or(u64::MAX),
            by_loss: self.by_loss,
        }
    }
}

/// Returns whether the peer answered or failed: a peer that was not probed yet counts as nothing.
fn is_counted(path: &PeerPath) -> bool {
    path.failure_cause().is_some() || path.is_reached()
}
