//! Keeps a host running where a defect in it must not take others down: inside of Mesos.

use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{AgentHost, MasterHost};
use crate::clock::Backoff;

/// Waits between attempts to start a host that keeps stopping.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// A host that ran this long begins with the shortest wait again.
const HEALTHY: Duration = Duration::from_secs(600);

/// Something that runs and that should not stop by itself.
pub trait Host: Send + 'static {
    /// Waits until it has stopped by itself.
    fn stopped(&mut self) -> impl Future<Output = ()> + Send;

    /// Stops it, and returns when nothing of it runs any more.
    fn stop(self) -> impl Future<Output = ()> + Send;
}

impl Host for MasterHost {
    async fn stopped(&mut self) {
        Self::stopped(self).await;
    }

    async fn stop(self) {
        Self::stop(self).await;
    }
}

impl Host for AgentHost {
    async fn stopped(&mut self) {
        Self::stopped(self).await;
    }

    async fn stop(self) {
        Self::stop(self).await;
    }
}

/// Starts `name`, and starts it again whenever it has stopped by itself, which `restarted` is told,
/// until `end` is sent or dropped.
pub async fn supervise<H: Host>(
    name: &str,
    mut start: impl FnMut() -> io::Result<H>,
    mut restarted: impl FnMut(),
    mut end: oneshot::Receiver<()>,
) {
    let mut backoff = Backoff::new(PAUSE_MIN, PAUSE_MAX);
    let mut random = fastrand::Rng::new();
    loop {
        let started = Instant::now();
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
                if started.elapsed() >= HEALTHY {
                    backoff.reset();
                }
            }
            Err(reason) => log::error!("{name}: start: {reason}"),
        }
        let pause = backoff.next_wait(&mut random);
        log::error!("{name}: it stopped by itself, a defect: starting it again in {pause:?}");
        tokio::select! {
            () = tokio::time::sleep(pause) => restarted(),
            _ = &mut end => return,
        }
    }
}
