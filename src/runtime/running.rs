//! A machine that runs, and the transport that serves it.

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::inbox::{Inbox, Input, Stopped};
use super::{Executor, Hosted, Metrics, drive};
use crate::logging::FLUSH_INTERVAL;

/// The tasks of a machine. Dropped, they end.
pub(super) struct Running<M: Hosted> {
    inbox: Inbox<M>,
    machine: JoinHandle<()>,
    transport: JoinHandle<()>,
    flusher: JoinHandle<()>,
}

/// Has the log say from time to time how many lines it left out.
async fn flush_log() {
    let mut ticks = tokio::time::interval(FLUSH_INTERVAL);
    loop {
        ticks.tick().await;
        log::logger().flush();
    }
}

impl<M: Hosted> Running<M> {
    pub(super) fn start(
        machine: M,
        executor: impl Executor<M> + 'static,
        (inbox, receiver): (Inbox<M>, mpsc::Receiver<Input<M>>),
        transport: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        let metrics = inbox.metrics().clone();
        Self {
            inbox,
            machine: tokio::spawn(drive(machine, executor, receiver, metrics)),
            transport: tokio::spawn(transport),
            flusher: tokio::spawn(flush_log()),
        }
    }

    /// Asks the machine, as a request over HTTP would.
    pub(super) async fn ask(&self, question: M::Question) -> Result<M::Reply, Stopped> {
        self.inbox.ask(question).await
    }

    pub(super) fn metrics(&self) -> Metrics<M> {
        self.inbox.metrics().clone()
    }

    /// Waits until a task has ended by itself, which it never should.
    pub(super) async fn stopped(&mut self) {
        tokio::select! {
            _ = &mut self.machine => {}
            _ = &mut self.transport => {}
        }
    }

    /// Ends both tasks, and returns when they have ended.
    pub(super) async fn stop(mut self) {
        self.abort();
        for task in [&mut self.transport, &mut self.machine] {
            // One that has ended was perhaps waited for already, which is possible only once.
            if !task.is_finished() {
                let _ = task.await;
            }
        }
        log::logger().flush();
    }

    fn abort(&self) {
        self.transport.abort();
        self.machine.abort();
        self.flusher.abort();
    }
}

impl<M: Hosted> Drop for Running<M> {
    fn drop(&mut self) {
        self.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::master::Master;

    async fn nothing() {}

    async fn defect() {
        panic!("asked to");
    }

    #[tokio::test]
    async fn what_has_stopped_by_itself_can_be_stopped() {
        for (machine, transport) in [
            (tokio::spawn(defect()), tokio::spawn(std::future::pending())),
            (tokio::spawn(std::future::pending()), tokio::spawn(nothing())),
            (tokio::spawn(defect()), tokio::spawn(nothing())),
        ] {
            let (inbox, _receiver) = Inbox::<Master>::new(Metrics::new());
            let flusher = tokio::spawn(nothing());
            let mut running = Running { inbox, machine, transport, flusher };
            running.stopped().await;
            running.stop().await;
        }
    }
}
