//! Proof that a master makes progress. A master that hangs must not lead: a probe has to pass
//! through everything that a registration needs, and a master without a recent probe gives up its
//! candidacy.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// Longest time without progress, as a part of the session timeout. The rest of the session timeout
/// is for the withdrawal, and for the next master to begin.
#[must_use]
pub fn progress_deadline(session_timeout: Duration) -> Duration {
    session_timeout * 3 / 5
}

/// The last proof of progress. Clones share it.
#[derive(Debug, Clone)]
pub struct Progress(Arc<watch::Sender<Proof>>);

#[derive(Debug, Clone)]
struct Proof {
    /// Start of the last probe that passed.
    proven: Instant,
    /// What the current probe waits for.
    awaited: String,
    /// Time without progress after which the process counts as hanging.
    deadline: Duration,
}

impl Progress {
    /// Creates the proof of a process that has just started. Without a probe for `deadline`, the
    /// process counts as hanging.
    #[must_use]
    pub fn new(deadline: Duration) -> Self {
        let awaited = "the first probe".to_owned();
        let proof = Proof { proven: Instant::now(), awaited, deadline };
        Self(Arc::new(watch::channel(proof).0))
    }

    /// Returns the time without progress after which the process counts as hanging.
    #[must_use]
    pub fn deadline(&self) -> Duration {
        self.0.borrow().deadline
    }

    /// Changes the deadline.
    pub fn set_deadline(&self, deadline: Duration) {
        self.0.send_if_modified(|proof| {
            proof.deadline = deadline;
            false
        });
    }

    /// Notes what the current probe waits for, such as `the store`.
    pub fn wait_for(&self, awaited: &str) {
        self.0.send_if_modified(|proof| {
            if proof.awaited != awaited {
                awaited.clone_into(&mut proof.awaited);
            }
            // Nobody waits for this change.
            false
        });
    }

    /// Returns whether the current probe waits for `awaited`.
    #[must_use]
    pub fn is_waiting_for(&self, awaited: &str) -> bool {
        self.0.borrow().awaited == awaited
    }

    /// Notes that a probe has passed which began at `start`.
    pub fn prove(&self, start: Instant) {
        self.0.send_if_modified(|proof| {
            let is_later = start > proof.proven;
            proof.proven = proof.proven.max(start);
            is_later
        });
    }

    /// Returns what the current probe waits for, if no probe has passed within the deadline.
    #[must_use]
    pub fn awaited_by_stall(&self) -> Option<String> {
        let proof = self.0.borrow();
        (proof.proven.elapsed() >= proof.deadline).then(|| proof.awaited.clone())
    }

    /// Waits until no probe has passed within the deadline. Returns what the probe waits for.
    pub async fn stalled(&self) -> String {
        loop {
            if let Some(awaited) = self.awaited_by_stall() {
                return awaited;
            }
            let end = {
                let proof = self.0.borrow();
                proof.proven + proof.deadline
            };
            sleep_until(end).await;
        }
    }

    /// Waits until the next probe has passed.
    pub async fn proven(&self) {
        // The sender is this value.
        let _ = self.0.subscribe().changed().await;
    }

    /// Waits until a probe has passed within the deadline.
    pub async fn resumed(&self) {
        let mut proofs = self.0.subscribe();
        // The sender is this value.
        let _ = proofs.wait_for(|proof| proof.proven.elapsed() < proof.deadline).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;

    const DEADLINE: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn progress_stalls_after_deadline_and_resumes_with_a_probe() {
        let progress = Progress::new(DEADLINE * 1000);
        assert_eq!(progress.awaited_by_stall(), None);
        progress.wait_for("the store");
        progress.set_deadline(DEADLINE);
        assert_eq!(progress.stalled().await, "the store");
        let late = Instant::now();
        let prover = progress.clone();
        tokio::spawn(async move {
            sleep(DEADLINE).await;
            prover.prove(late - DEADLINE);
            prover.prove(Instant::now());
        });
        progress.resumed().await;
        assert!(late.elapsed() >= DEADLINE, "an outdated probe proves nothing");
        assert_eq!(progress.awaited_by_stall(), None);
    }

    #[test]
    fn deadline_is_shorter_than_session_timeout() {
        assert_eq!(progress_deadline(Duration::from_secs(10)), Duration::from_secs(6));
    }
}
