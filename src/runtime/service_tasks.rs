//! The tasks of a running state machine and its transport.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::inbox::{Inbox, Input, Stopped};
use super::progress::watch_progress;
use super::{Executor, Metrics, ProgressOptions, Service, drive};
use crate::logging::FLUSH_INTERVAL;

/// The tasks of a service. Dropping this aborts the tasks.
pub(super) struct ServiceTasks<M: Service> {
    inbox: Inbox<M>,
    state_machine: JoinHandle<()>,
    transport: JoinHandle<()>,
    flusher: JoinHandle<()>,
    progress: JoinHandle<()>,
}

/// Flushes the log at an interval, which logs the number of omitted lines.
async fn flush_log() {
    let mut ticks = tokio::time::interval(FLUSH_INTERVAL);
    loop {
        ticks.tick().await;
        log::logger().flush();
    }
}

impl<M: Service> ServiceTasks<M> {
    pub(super) fn start(
        state_machine: M,
        executor: impl Executor<M> + 'static,
        (inbox, receiver): (Inbox<M>, mpsc::Receiver<Input<M>>),
        transport: impl Future<Output = ()> + Send + 'static,
        (progress, activity): (ProgressOptions, Option<Arc<AtomicU64>>),
    ) -> Self {
        let metrics = inbox.metrics().clone();
        let progress = tokio::spawn(watch_progress(inbox.clone(), progress, activity));
        Self {
            inbox,
            state_machine: tokio::spawn(drive(state_machine, executor, receiver, metrics)),
            transport: tokio::spawn(transport),
            flusher: tokio::spawn(flush_log()),
            progress,
        }
    }

    /// Sends a request to the state machine and awaits the reply.
    pub(super) fn request(
        &self,
        request: M::Request,
    ) -> impl Future<Output = Result<M::Reply, Stopped>> + Send + use<M> {
        let inbox = self.inbox.clone();
        async move { inbox.request(request).await }
    }

    pub(super) fn metrics(&self) -> Metrics<M> {
        self.inbox.metrics().clone()
    }

    /// Waits until a task has ended by itself, which only a defect causes.
    pub(super) async fn stopped(&mut self) {
        tokio::select! {
            _ = &mut self.state_machine => {}
            _ = &mut self.transport => {}
        }
    }

    /// Aborts the tasks and waits for their end.
    pub(super) async fn stop(mut self) {
        self.abort();
        for task in [&mut self.transport, &mut self.state_machine] {
            // `stopped` may have awaited an ended task already, and a second await would panic.
            if !task.is_finished() {
                let _ = task.await;
            }
        }
        log::logger().flush();
    }

    fn abort(&self) {
        self.transport.abort();
        self.state_machine.abort();
        self.flusher.abort();
        self.progress.abort();
    }
}

impl<M: Service> Drop for ServiceTasks<M> {
    fn drop(&mut self) {
        self.abort();
    }
}

#[cfg(test)]
mod tests {
    use overlay_engine::master::Master;

    use super::*;

    async fn end() {}

    async fn defect() {
        panic!("requested by a test");
    }

    #[tokio::test]
    async fn stop_after_task_ended_by_itself_returns() {
        for (state_machine, transport) in [
            (tokio::spawn(defect()), tokio::spawn(std::future::pending())),
            (tokio::spawn(std::future::pending()), tokio::spawn(end())),
            (tokio::spawn(defect()), tokio::spawn(end())),
        ] {
            let (inbox, _receiver) = Inbox::<Master>::new(Metrics::new());
            let (flusher, progress) = (tokio::spawn(end()), tokio::spawn(end()));
            let mut tasks = ServiceTasks { inbox, state_machine, transport, flusher, progress };
            tasks.stopped().await;
            tasks.stop().await;
        }
    }
}
