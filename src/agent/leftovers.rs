//! The Docker networks of overlays that are no longer assigned: when to have them removed, and what
//! keeps one.
//!
//! Removing looks at all Docker networks at once, and is told which ones are wanted. So it never
//! runs beside an attempt at a network that is not among these: neither one that makes what was
//! dropped meanwhile, which would stay, nor one that makes what was assigned meanwhile, which would
//! be removed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{ContainerNetwork, NetworkKind};
use crate::addr::OverlayName;
use crate::clock::Now;

/// What is known of them.
#[derive(Debug, Default)]
pub(super) struct Leftovers {
    /// The Docker networks that are being made or verified, by their attempts.
    attempts: BTreeMap<u64, OverlayName>,
    /// What is wanted, while the rest is being removed.
    removing: Option<BTreeSet<OverlayName>>,
    due: Option<Duration>,
    /// What is still there, and why.
    kept: Vec<String>,
    /// Why it is not known what is there.
    failure: Option<String>,
}

impl Leftovers {
    /// Other networks are assigned: those of before are to go.
    pub(super) const fn assigned(&mut self, now: Now) {
        self.due = Some(now.elapsed);
    }

    /// An attempt at a network begins.
    pub(super) fn begun(&mut self, attempt: u64, network: &ContainerNetwork) {
        if network.kind() == NetworkKind::Docker {
            self.attempts.insert(attempt, network.name().clone());
        }
    }

    /// An attempt has ended.
    pub(super) fn ended(&mut self, attempt: u64) {
        self.attempts.remove(&attempt);
    }

    /// Whether a Docker network has to wait, since others are being removed.
    pub(super) fn holds(&self, network: &ContainerNetwork) -> bool {
        let is_wanted = |wanted: &BTreeSet<OverlayName>| wanted.contains(network.name());
        network.kind() == NetworkKind::Docker && !self.removing.as_ref().is_none_or(is_wanted)
    }

    /// Whether the networks that are not wanted are to be removed now.
    pub(super) fn take_due(&mut self, now: Now, wanted: &BTreeSet<OverlayName>) -> bool {
        let is_due = self.due.is_some_and(|due| due <= now.elapsed) && !self.is_blocked(wanted);
        if is_due {
            self.due = None;
            self.removing = Some(wanted.clone());
        }
        is_due
    }

    /// When to look again. `None` also while something is under way, whose end is an event.
    pub(super) fn next_due(&self, wanted: &BTreeSet<OverlayName>) -> Option<Duration> {
        self.due.filter(|_| !self.is_blocked(wanted))
    }

    /// They were removed but for these, each a sentence; or it could not be found out.
    pub(super) fn removed(
        &mut self,
        now: Now,
        result: Result<Vec<String>, String>,
        verify_interval: Duration,
    ) {
        self.removing = None;
        let is_done = matches!(&result, Ok(kept) if kept.is_empty());
        match result {
            Ok(kept) => {
                for sentence in kept.iter().filter(|sentence| !self.kept.contains(sentence)) {
                    log::warn!("{sentence}");
                }
                self.kept = kept;
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
        if !is_done {
            self.due.get_or_insert(now.elapsed + verify_interval);
        }
    }

    /// What is still there, one sentence each.
    pub(super) fn kept(&self) -> &[String] {
        &self.kept
    }

    fn is_blocked(&self, wanted: &BTreeSet<OverlayName>) -> bool {
        self.removing.is_some() || self.attempts.values().any(|name| !wanted.contains(name))
    }
}
