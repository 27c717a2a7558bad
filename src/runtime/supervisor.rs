//! Restarts the host of a module ([`MasterHost`] or [`AgentHost`]) in a Mesos process. A defect of
//! the host must not end Mesos.

use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use overlay_types::clock::Backoff;
use overlay_types::repetition::Repetitions;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{AgentHost, MasterHost};

/// Shortest and longest interval between restarts of a host that stops repeatedly.
const BACKOFF_MIN: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// A host that ran for this time restarts after the shortest interval again.
const HEALTHY_AFTER: Duration = Duration::from_secs(600);

/// A host that the supervisor restarts.
pub trait Supervised: Send + 'static {
    /// Waits until the host has stopped by itself.
    fn stopped(&mut self) -> impl Future<Output = ()> + Send;

    /// Stops the host and waits for the end of all its tasks.
    fn stop(self) -> impl Future<Output = ()> + Send;
}

impl Supervised for MasterHost {
    async fn stopped(&mut self) {
        Self::stopped(self).await;
    }

    async fn stop(self) {
        Self::stop(self).await;
    }
}

impl Supervised for AgentHost {
    async fn stopped(&mut self) {
        Self::stopped(self).await;
    }

    async fn stop(self) {
        Self::stop(self).await;
    }
}

/// Starts the host `name`, and restarts it whenever it stops by itself, until `end` is sent or
/// dropped. Calls `on_restart` before each restart.
pub async fn supervise<H: Supervised>(
    name: &str,
    mut start: impl FnMut() -> io::Result<H>,
    mut on_restart: impl FnMut(),
    mut end: oneshot::Receiver<()>,
) {
    let mut backoff = Backoff::new(BACKOFF_MIN, BACKOFF_MAX);
    let mut random = fastrand::Rng::new();
    let mut repetitions = Repetitions::new();
    loop {
        let started = Instant::now();
        let mut problem = "it stopped by itself, a defect".to_owned();
        let started_host = catch_unwind(AssertUnwindSafe(&mut start))
            .unwrap_or_else(|_| Err(io::Error::other("it panicked")));
        match started_host {
            Ok(mut host) => {
                tokio::select! {
                    () = host.stopped() => {}
                    _ = &mut end => {
                        host.stop().await;
                        return;
                    }
                }
                host.stop().await;
                if started.elapsed() >= HEALTHY_AFTER {
                    backoff.reset();
                    repetitions.clear();
                }
            }
            Err(reason) => problem = format!("start: {reason}"),
        }
        let interval = backoff.next_delay(&mut random);
        if let Some(repetition) = repetitions.note(&problem) {
            log::error!("{name}: {problem}{repetition}: starting it again in {interval:?}");
        }
        tokio::select! {
            () = tokio::time::sleep(interval) => on_restart(),
            _ = &mut end => return,
        }
    }
}
