//! The way into a machine: messages, HTTP requests and the results of what it wanted done become
//! events.

use std::collections::HashMap;
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::Arc;

use http::{Method, StatusCode};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::{Hosted, INBOX_SIZE, Metrics};
use crate::escape::bounded_args;
use crate::http::{Request, Response, error};
use crate::machine::is_worth_a_line;
use crate::protocol::{MessageKind, Refused, RequestId};
use crate::transport::{Admission, Handler, Incoming, Refusal, RequestClass, Reservation};
use crate::wire;

/// Requests whose answers grow with the cluster that are worked on at a time: such a request takes
/// a processor for a good part of a second, and memory of many times its answer.
const HEAVY_REQUESTS: usize = 2;
/// Longest text that is kept of what was refused last, in characters.
const LAST_MAX: usize = 512;

/// What comes into a machine.
pub(super) enum Input<M: Hosted> {
    /// Something happened.
    Event(M::Event),
    /// A message came, which is not decoded yet.
    Message(Incoming, Reservation),
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
    heavy: Arc<Semaphore>,
    metrics: Metrics<M>,
}

impl<M: Hosted> Clone for Inbox<M> {
    fn clone(&self) -> Self {
        Self {
            sender: self.sender.clone(),
            refused: Arc::clone(&self.refused),
            heavy: Arc::clone(&self.heavy),
            metrics: self.metrics.clone(),
        }
    }
}

impl<M: Hosted> Inbox<M> {
    pub(super) fn new(metrics: Metrics<M>) -> (Self, mpsc::Receiver<Input<M>>) {
        let (sender, receiver) = mpsc::channel(INBOX_SIZE);
        let heavy = Arc::new(Semaphore::new(HEAVY_REQUESTS));
        (Self { sender, refused: Arc::default(), heavy, metrics }, receiver)
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
        let refused = self.refused.lock().clone();
        M::complete(&mut reply, refused, self.metrics.host(), self.metrics.warnings());
        Ok(reply)
    }
}

/// See [`Handler::admit`].
pub(super) fn admit<M: Hosted>(to: &str, name: &str) -> Result<Admission, Refusal> {
    if to != M::PROCESS {
        return Err(Refusal::UnknownProcess(to.chars().take(80).collect()));
    }
    let Some(kind) = wire::kind_of(name).filter(|kind| M::takes(*kind)) else {
        return Ok(Admission::IGNORED);
    };
    let is_registration = kind == MessageKind::RegisterAgent;
    Ok(Admission { body_max: kind.body_max(), is_read: true, is_registration })
}

/// The event that a message is for a machine. It is decoded only where its kind is one that the
/// machine takes and its sender one that may send it.
pub(super) fn event_of<M: Hosted>(machine: &M, message: &Incoming) -> M::Event {
    let Incoming { from, name, body, .. } = message;
    if let Some(kind) = wire::kind_of(name)
        && !(M::takes(kind) && machine.accepts(from, kind))
    {
        return M::ignored(from.clone(), kind);
    }
    match wire::decode_message(name, body) {
        Ok(message) => M::message(from.clone(), message),
        Err(reason) => {
            let name = name.chars().take(80).collect();
            M::malformed(from.clone(), name, reason.to_string())
        }
    }
}

impl<M: Hosted> Handler for Inbox<M> {
    fn admit(&self, to: &str, name: &str) -> Result<Admission, Refusal> {
        admit::<M>(to, name)
    }

    async fn deliver(&self, message: Incoming, memory: Reservation) {
        let _ = self.sender.send(Input::Message(message, memory)).await;
    }

    fn classify(&self, method: &Method, path: &str) -> RequestClass {
        M::classify(method, path)
    }

    async fn respond(&self, request: Request) -> Response {
        let path = request.uri().path().to_owned();
        let is_heavy = M::classify(request.method(), &path).is_heavy;
        let _slot = match is_heavy.then(|| Arc::clone(&self.heavy).acquire_owned()) {
            // The semaphore is never closed.
            Some(slot) => slot.await.ok(),
            None => None,
        };
        // A network file to read, or the state of a large cluster to print, takes a while.
        let routed = match off_the_loop(&path, move || M::route(&request)).await {
            Ok(routed) => routed,
            Err(response) => return response,
        };
        let (question, format) = match routed {
            Ok(routed) => routed,
            Err(response) => return *response,
        };
        let Ok(reply) = self.ask(question).await else {
            return error(StatusCode::SERVICE_UNAVAILABLE, "stopping");
        };
        off_the_loop(&path, move || M::render(&reply, &format)).await.unwrap_or_else(|it| it)
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
        self.metrics.count_refused(refusal.limit());
        let count = {
            let mut refused = self.refused.lock();
            refused.count += 1;
            let last = format_args!("from {peer}: {refusal}");
            refused.last = Some(bounded_args(last, LAST_MAX));
            refused.count
        };
        // Not under the lock: the log may be on a disk that hangs.
        if is_worth_a_line(count) {
            log::warn!("peer {peer}: {refusal} ({count} refused since the start)");
        }
    }
}

/// Does what takes long on a thread that nothing else waits for.
///
/// # Errors
/// With the response that it failed, which only a defect can cause.
async fn off_the_loop<T: Send + 'static>(
    path: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Response> {
    tokio::task::spawn_blocking(work).await.map_err(|reason| {
        let path = bounded_args(format_args!("{path}"), LAST_MAX);
        log::error!("answer a request of {path}: {reason}: this is a defect");
        error(StatusCode::INTERNAL_SERVER_ERROR, "the answer could not be made")
    })
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

    pub(super) fn event(&mut self, machine: &M, input: Input<M>) -> M::Event {
        match input {
            Input::Event(event) => event,
            Input::Message(message, _memory) => event_of(machine, &message),
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
