//! The CNI configurations that could not be removed.

use std::time::Duration;

use overlay_types::clock::Now;

/// The result of the last removal of CNI configurations.
#[derive(Debug, Default)]
pub(super) struct CniGc {
    /// Why configurations remain, one sentence each.
    failures: Vec<String>,
    /// When the removal is repeated, since `Now::elapsed` 0.
    due: Option<Duration>,
}

impl CniGc {
    /// Notes the result of a removal: why configurations remain, one sentence each.
    pub(super) fn finish_removal(
        &mut self,
        now: Now,
        failures: Vec<String>,
        verify_interval: Duration,
    ) {
        for failure in &failures {
            if !self.failures.contains(failure) {
                log::warn!("cannot remove cni configurations: {failure}");
            }
        }
        self.due = (!failures.is_empty()).then_some(now.elapsed + verify_interval);
        self.failures = failures;
    }

    /// Returns whether the removal has to be repeated now.
    pub(super) fn take_due(&mut self, now: Now) -> bool {
        self.due.take_if(|due| *due <= now.elapsed).is_some()
    }

    pub(super) const fn due(&self) -> Option<Duration> {
        self.due
    }

    /// Returns why configurations remain, one sentence each.
    pub(super) fn problems(&self) -> &[String] {
        &self.failures
    }
}
