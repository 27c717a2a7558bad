//! Garbage collection of the Docker networks of overlays that are no longer assigned.
//!
//! A removal examines all Docker networks at once and keeps the desired networks. So it never runs
//! beside an attempt at a network that is not desired. Such an attempt could create a network after
//! the removal examined Docker, and the network would stay. For the same reason a network that is
//! assigned during a removal waits for its end: the removal would delete it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use overlay_types::addr::OverlayName;
use overlay_types::clock::Now;
use overlay_types::container_network::{ContainerNetwork, NetworkKind};

/// The state of the garbage collection.
#[derive(Debug, Default)]
pub(super) struct DockerGc {
    /// The Docker networks with an attempt under way, by the number of the attempt.
    attempts: BTreeMap<u64, OverlayName>,
    /// The networks that the removal under way keeps.
    removal_keeps: Option<BTreeSet<OverlayName>>,
    /// When the next removal is due, since `Now::elapsed` 0.
    due: Option<Duration>,
    /// The networks that the last removal could not remove, one sentence each.
    not_removed: Vec<String>,
    /// Why the last removal failed as a whole.
    failure: Option<String>,
}

impl DockerGc {
    /// Makes a removal due now, because the assignments changed.
    pub(super) const fn schedule(&mut self, now: Now) {
        self.due = Some(now.elapsed);
    }

    /// Notes that an attempt at a network starts.
    pub(super) fn start_attempt(&mut self, attempt: u64, network: &ContainerNetwork) {
        if network.kind() == NetworkKind::Docker {
            self.attempts.insert(attempt, network.name().clone());
        }
    }

    /// Notes that an attempt has ended.
    pub(super) fn finish_attempt(&mut self, attempt: u64) {
        self.attempts.remove(&attempt);
    }

    /// Returns whether the network has to wait for the end of a removal.
    pub(super) fn delays(&self, network: &ContainerNetwork) -> bool {
        let Some(keeps) = &self.removal_keeps else { return false };
        network.kind() == NetworkKind::Docker && !keeps.contains(network.name())
    }

    /// Starts a removal of all networks except `desired`, if one is due.
    pub(super) fn take_due(&mut self, now: Now, desired: &BTreeSet<OverlayName>) -> bool {
        let is_due = self.due.is_some_and(|due| due <= now.elapsed) && !self.is_blocked(desired);
        if is_due {
            self.due = None;
            self.removal_keeps = Some(desired.clone());
        }
        is_due
    }

    /// Returns when the next removal is due. Returns `None` also while a job blocks the removal:
    /// the end of the job is an event.
    pub(super) fn next_due(&self, desired: &BTreeSet<OverlayName>) -> Option<Duration> {
        self.due.filter(|_| !self.is_blocked(desired))
    }

    /// Notes the result of a removal: the networks that remain, one sentence each, or why the
    /// removal failed as a whole.
    pub(super) fn finish_removal(
        &mut self,
        now: Now,
        result: Result<Vec<String>, String>,
        verify_interval: Duration,
    ) {
        self.removal_keeps = None;
        let is_complete = matches!(&result, Ok(not_removed) if not_removed.is_empty());
        match result {
            Ok(not_removed) => {
                for sentence in &not_removed {
                    if !self.not_removed.contains(sentence) {
                        log::warn!("{sentence}");
                    }
                }
                self.not_removed = not_removed;
                self.failure = None;
            }
            Err(reason) => {
                if self.failure.as_ref() != Some(&reason) {
                    log::warn!(
                        "cannot remove docker networks that are no longer assigned: {reason}"
                    );
                }
                self.failure = Some(reason);
            }
        }
        if !is_complete {
            self.due.get_or_insert(now.elapsed + verify_interval);
        }
    }

    /// Returns the networks that the last removal could not remove, one sentence each.
    pub(super) fn problems(&self) -> &[String] {
        &self.not_removed
    }

    fn is_blocked(&self, desired: &BTreeSet<OverlayName>) -> bool {
        self.removal_keeps.is_some() || self.attempts.values().any(|name| !desired.contains(name))
    }
}
