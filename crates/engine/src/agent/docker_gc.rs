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

use super::command::Command;
use super::refusal::FoundNetworks;
use super::refused::add_networks;

/// The networks that a removal removes.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Removal {
    /// All networks except those of these overlays.
    Except(BTreeSet<OverlayName>),
    /// The networks of these overlays with these subnets.
    Only(FoundNetworks),
}

impl Removal {
    fn affects(&self, name: &OverlayName) -> bool {
        match self {
            Self::Except(kept) => !kept.contains(name),
            Self::Only(removed) => removed.contains_key(name),
        }
    }
}

/// The networks to remove, until a removal is complete.
#[derive(Debug, Default)]
enum Pending {
    #[default]
    Nothing,
    /// All networks that are not assigned.
    Unassigned,
    /// The networks of these overlays with these subnets. An agent without an assignment removes no
    /// others.
    Only(FoundNetworks),
}

/// The state of the garbage collection.
#[derive(Debug, Default)]
pub(super) struct DockerGc {
    /// The Docker networks with an attempt under way, by the number of the attempt.
    attempts: BTreeMap<u64, OverlayName>,
    pending: Pending,
    /// The removal under way.
    running: Option<Removal>,
    /// When the next removal is due, since `Now::elapsed` 0.
    due: Option<Duration>,
    /// The networks that the last removal could not remove, one sentence each.
    not_removed: Vec<String>,
    /// Why the last removal failed as a whole.
    failure: Option<String>,
}

impl DockerGc {
    /// Makes a removal due now, because the assignments changed.
    pub(super) fn schedule(&mut self, now: Now) {
        self.pending = Pending::Unassigned;
        self.due = Some(now.elapsed);
    }

    /// Makes a removal of the networks of these overlays due now: other agents have their subnets.
    pub(super) fn schedule_only(&mut self, now: Now, overlays: FoundNetworks) {
        match &mut self.pending {
            Pending::Nothing => self.pending = Pending::Only(overlays),
            // The overlays are not assigned.
            Pending::Unassigned => {}
            Pending::Only(pending) => add_networks(pending, overlays),
        }
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
        let Some(removal) = &self.running else { return false };
        network.kind() == NetworkKind::Docker && removal.affects(network.name())
    }

    /// Starts a removal if one is due, and returns its command. `desired` are the overlays whose
    /// networks are assigned.
    pub(super) fn take_due(
        &mut self,
        now: Now,
        desired: &BTreeSet<OverlayName>,
    ) -> Option<Command> {
        let removal = self.next_removal(desired)?;
        self.due.take_if(|due| *due <= now.elapsed)?;
        self.running = Some(removal.clone());
        Some(match removal {
            Removal::Except(kept) => Command::RetainDocker(kept),
            Removal::Only(removed) => Command::RemoveDocker(removed),
        })
    }

    /// Returns when the next removal is due. Returns `None` also while a job blocks the removal:
    /// the end of the job is an event.
    pub(super) fn next_due(&self, desired: &BTreeSet<OverlayName>) -> Option<Duration> {
        self.due.filter(|_| self.next_removal(desired).is_some())
    }

    /// Notes the result of a removal: the networks that remain, one sentence each, or why the
    /// removal failed as a whole.
    pub(super) fn finish_removal(
        &mut self,
        now: Now,
        result: Result<Vec<String>, String>,
        verify_interval: Duration,
    ) {
        self.running = None;
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
                let sentence =
                    format!("cannot remove docker networks that are no longer assigned: {reason}");
                if self.failure.as_ref() != Some(&sentence) {
                    log::warn!("{sentence}");
                }
                self.failure = Some(sentence);
            }
        }
        if !is_complete {
            self.due.get_or_insert(now.elapsed + verify_interval);
        } else if self.due.is_none() {
            self.pending = Pending::Nothing;
        }
    }

    /// Makes a removal due now if the last removal failed as a whole.
    pub(super) fn retry_failed(&mut self, now: Now) {
        if self.failure.is_some() {
            self.due = self.due.map(|_| now.elapsed);
        }
    }

    /// Returns the networks that the last removal could not remove, one sentence each, and why it
    /// failed as a whole.
    pub(super) fn problems(&self) -> impl Iterator<Item = &String> {
        self.not_removed.iter().chain(&self.failure)
    }

    /// Returns the pending removal, unless another job blocks it.
    fn next_removal(&self, desired: &BTreeSet<OverlayName>) -> Option<Removal> {
        let removal = match &self.pending {
            Pending::Nothing => return None,
            Pending::Unassigned => Removal::Except(desired.clone()),
            Pending::Only(overlays) => Removal::Only(overlays.clone()),
        };
        let is_blocked =
            self.running.is_some() || self.attempts.values().any(|name| removal.affects(name));
        (!is_blocked).then_some(removal)
    }
}
