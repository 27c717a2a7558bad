//! A machine that runs, and its server.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::inbox::{Inbox, Input, Stopped};
use super::{Executor, Hosted, drive};
use crate::transport::libprocess::{Server, ServerOptions};

/// The two tasks of a machine. Dropped, they end.
pub(super) struct Running<M: Hosted> {
    inbox: Inbox<M>,
    machine: JoinHandle<()>,
    server: JoinHandle<()>,
}

impl<M: Hosted> Running<M> {
    pub(super) fn start(
        machine: M,
        executor: impl Executor<M> + 'static,
        (inbox, receiver): (Inbox<M>, mpsc::Receiver<Input<M>>),
        server: Server,
        options: ServerOptions,
    ) -> Self {
        let handler = Arc::new(inbox.clone());
        Self {
            inbox,
            machine: tokio::spawn(drive(machine, executor, receiver)),
            server: tokio::spawn(server.run(handler, options, std::future::pending())),
        }
    }

    /// Asks the machine, as a request over HTTP would.
    pub(super) async fn ask(&self, question: M::Question) -> Result<M::Reply, Stopped> {
        self.inbox.ask(question).await
    }

    /// Waits until a task has ended by itself, which it never should.
    pub(super) async fn stopped(&mut self) {
        tokio::select! {
            _ = &mut self.machine => {}
            _ = &mut self.server => {}
        }
    }

    /// Ends both tasks, and returns when they have ended.
    pub(super) async fn stop(mut self) {
        self.abort();
        let _ = (&mut self.server).await;
        let _ = (&mut self.machine).await;
    }

    fn abort(&self) {
        self.server.abort();
        self.machine.abort();
    }
}

impl<M: Hosted> Drop for Running<M> {
    fn drop(&mut self) {
        self.abort();
    }
}
