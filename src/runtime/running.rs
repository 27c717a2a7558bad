//! A machine that runs, and the transport that serves it.

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::inbox::{Inbox, Input, Stopped};
use super::{Executor, Hosted, Metrics, drive};

/// The two tasks of a machine. Dropped, they end.
pub(super) struct Running<M: Hosted> {
    inbox: Inbox<M>,
    machine: JoinHandle<()>,
    transport: JoinHandle<()>,
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
        let _ = (&mut self.transport).await;
        let _ = (&mut self.machine).await;
    }

    fn abort(&self) {
        self.transport.abort();
        self.machine.abort();
    }
}

impl<M: Hosted> Drop for Running<M> {
    fn drop(&mut self) {
        self.abort();
    }
}
