//! The way into a machine: messages, HTTP requests and the results of what it wanted done become
//! events.

use std::collections::HashMap;
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use super::{Hosted, INBOX_SIZE, Metrics};
use crate::http::{Request, Response, error};
use crate::machine::is_worth_a_line;
use crate::protocol::{Refused, RequestId};
use crate::transport::{Handler, Incoming, Refusal};
use crate::wire;

/// What comes into a machine.
pub(super) enum Input<M: Hosted> {
    /// Something happened.
    Event(M::Event),
    /// Somebody asks, and waits for the reply.
    Question(M::Question, oneshot::Sender<M::Reply>),
}

/// The machine has stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it has stopped")]
pub struct Stopped;

/// The sending end. Clones lead to the same machine.
pub(super) struct Inbox<M: Hosted> {
    sender: mpsc::Sender<Input<M>>,
    refused: Arc<Mutex<Refused>>,
    metrics: Metrics<M>,
}

impl<M: Hosted> Clone for Inbox<M> {
    fn clone(&self) -> Self {
        Self {
            sender: self.sender.clone(),
            refused: Arc::clone(&self.refused),
            metrics: self.metrics.clone(),
        }
    }
}

impl<M: Hosted> Inbox<M> {
    pub(super) fn new(metrics: Metrics<M>) -> (Self, mpsc::Receiver<Input<M>>) {
        let (sender, receiver) = mpsc::channel(INBOX_SIZE);
        (Self { sender, refused: Arc::default(), metrics }, receiver)
    }

    pub(super) const fn metrics(&self) -> &Metrics<M> {
        &self.metrics
    }

    /// Tells the machine. An event for a machine that has stopped is lost, as it would be a moment
    /// later.
    pub(super) async fn tell(&self, event: M::Event) {
        let _ = self.sender.send(Input::Event(event)).await;
    }

    /// The same from a thread of our own.
    pub(super) fn tell_blocking(&self, event: M::Event) {
        let _ = self.sender.blocking_send(Input::Event(event));
    }

    pub(super) async fn ask(&self, question: M::Question) -> Result<M::Reply, Stopped> {
        let (sender, receiver) = oneshot::channel();
        self.sender.send(Input::Question(question, sender)).await.map_err(|_| Stopped)?;
        let mut reply = receiver.await.map_err(|_| Stopped)?;
        M::complete(&mut reply, self.refused.lock().clone(), self.metrics.host());
        Ok(reply)
    }
}

impl<M: Hosted> Handler for Inbox<M> {
    fn has_process(&self, id: &str) -> bool {
        id == M::PROCESS
    }

    async fn deliver(&self, message: Incoming) {
        let Incoming { from, name, body, .. } = message;
        let event = match wire::decode_message(&name, &body) {
            Ok(message) => M::message(from, message),
            Err(reason) => M::malformed(from, name, reason.to_string()),
        };
        self.tell(event).await;
    }

    async fn respond(&self, request: Request) -> Response {
        let (question, format) = match M::route(&request) {
            Ok(routed) => routed,
            Err(response) => return *response,
        };
        let Ok(reply) = self.ask(question).await else {
            return error(http::StatusCode::SERVICE_UNAVAILABLE, "stopping");
        };
        // The state of a large cluster takes milliseconds to print.
        match tokio::task::spawn_blocking(move || M::render(&reply, &format)).await {
            Ok(response) => response,
            Err(reason) => {
                log::error!("render the answer to {}: {reason}", request.uri().path());
                error(http::StatusCode::INTERNAL_SERVER_ERROR, "the answer could not be rendered")
            }
        }
    }

    async fn exited(&self, peer: SocketAddrV4) {
        if let Some(event) = M::exited(peer) {
            self.tell(event).await;
        }
    }

    async fn ended(&self) {
        self.sender.closed().await;
    }

    fn refused(&self, peer: SocketAddr, refusal: &Refusal) {
        self.metrics.count_refused();
        let count = {
            let mut refused = self.refused.lock();
            refused.count += 1;
            refused.last = Some(format!("from {peer}: {refusal}"));
            refused.count
        };
        // Not under the lock: the log may be on a disk that hangs.
        if is_worth_a_line(count) {
            log::warn!("refused what {peer} sent: {refusal} ({count} refused since the start)");
        }
    }
}

/// The receiving end's book of who waits for a reply.
pub(super) struct Inputs<M: Hosted> {
    waiting: HashMap<RequestId, oneshot::Sender<M::Reply>>,
    last_id: u64,
}

impl<M: Hosted> Inputs<M> {
    pub(super) fn new() -> Self {
        Self { waiting: HashMap::new(), last_id: 0 }
    }

    pub(super) fn event(&mut self, input: Input<M>) -> M::Event {
        match input {
            Input::Event(event) => event,
            Input::Question(question, sender) => {
                self.last_id += 1;
                let id = RequestId(self.last_id);
                self.waiting.insert(id, sender);
                M::request(id, question)
            }
        }
    }

    /// Answers whoever waits for it; who went away needs no answer.
    pub(super) fn reply(&mut self, id: RequestId, reply: M::Reply) {
        if let Some(sender) = self.waiting.remove(&id) {
            let _ = sender.send(reply);
        }
    }
}
