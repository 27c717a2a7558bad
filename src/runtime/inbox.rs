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
use crate::limits::Limit;
use crate::machine::is_worth_a_line;
use crate::protocol::{MessageKind, Refused, RequestId};
use crate::transport::{Admission, Handler, Incoming, Refusal, RequestClass, Reservation};
use crate::wire;

/// Heavy requests that are processed at the same time. A heavy request takes a processor for a good
/// part of a second, and memory of many times its answer.
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
        if let Some(limit) = refusal.limit() {
            self.metrics.count_limit(limit);
        }
        // Clients that keep a connection and come back later do nothing wrong.
        if refusal.limit() == Some(Limit::HttpIdleTimeout) {
            return;
        }
        self.metrics.count_refused();
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::addr::Upid;
    use crate::agent::{self, Agent};
    use crate::config::AgentConfig;
    use crate::master::{self, Master};
    use crate::protocol::Network;

    fn message(name: &str, body: &'static [u8]) -> Incoming {
        Incoming {
            from: "overlay-agent@10.0.0.7:5051".parse().unwrap(),
            to: Upid::MASTER.to_owned(),
            name: name.to_owned(),
            body: body.into(),
        }
    }

    fn master() -> Master {
        let network = Network {
            vtep_subnet: "44.128.0.0/16".parse().unwrap(),
            vtep_subnet6: None,
            vtep_mac_oui: "70:B3:D5:00:00:00".parse().unwrap(),
            vtep_mtu: None,
            vxlan: crate::protocol::Vxlan::default(),
            overlays: Vec::new(),
        };
        let reuse_after = Duration::ZERO;
        Master::new(master::Settings { network: Arc::new(network), reuse_after }, 1)
    }

    #[test]
    fn message_is_admitted_by_process_and_role() {
        let refused = admit::<Master>(Upid::AGENT, MessageKind::RegisterAgent.name());
        assert_eq!(refused, Err(Refusal::UnknownProcess(Upid::AGENT.to_owned())));
        let to_master = |name: &str| admit::<Master>(Upid::MASTER, name).unwrap();
        let register = to_master(MessageKind::RegisterAgent.name());
        assert!(register.is_registration && register.is_read && register.body_max <= 4096);
        let report = to_master(MessageKind::AgentRegistered.name());
        assert!(!report.is_registration && report.body_max < 1024 * 1024);
        assert_eq!(to_master(MessageKind::UpdatePeers.name()), Admission::IGNORED);
        assert_eq!(to_master("mesos.modules.overlay.internal.Later"), Admission::IGNORED);
        let to_agent = admit::<Agent>(Upid::AGENT, MessageKind::RegisterAgent.name());
        assert_eq!(to_agent, Ok(Admission::IGNORED));
    }

    #[test]
    fn message_of_another_role_or_an_unknown_sender_is_not_decoded() {
        let garbage = b"\xff\xff";
        let master = master();
        let to_master =
            |kind: MessageKind| event_of(&master, &message(kind.name(), garbage)).to_string();
        let ignored = "ignored AgentRegisteredMessage from overlay-agent@10.0.0.7:5051";
        assert_eq!(to_master(MessageKind::AgentRegistered), ignored);
        assert!(to_master(MessageKind::UpdatePeers).starts_with("ignored UpdatePeersMessage"));
        assert!(to_master(MessageKind::RegisterAgent).starts_with("malformed "));
        let settings = agent::Settings::from(&AgentConfig::new("/c".into()));
        let agent = Agent::new([10, 0, 0, 8].into(), settings, 1);
        let event = event_of(&agent, &message(MessageKind::UpdatePeers.name(), garbage));
        assert!(event.to_string().starts_with("ignored UpdatePeersMessage"), "{event}");
        let long = "x".repeat(10_000);
        let event = event_of(&master, &message(&long, b""));
        assert!(event.to_string().len() < 400, "{event}");
    }

    #[tokio::test]
    async fn refusal_is_counted_with_its_limit_and_kept_to_a_length() {
        let (inbox, _receiver) = Inbox::<Master>::new(Metrics::new());
        let peer = "10.0.0.9:40000".parse().unwrap();
        inbox.refused(peer, &Refusal::Limit(Limit::Requests));
        inbox.refused(peer, &Refusal::UnknownProcess("x".repeat(10_000)));
        inbox.refused(peer, &Refusal::Limit(Limit::HttpIdleTimeout));
        let host = inbox.metrics().host();
        assert_eq!(host.limits[Limit::HttpIdleTimeout as usize], 1);
        assert_eq!((host.refused, host.limits[Limit::Requests as usize]), (2, 1));
        let last = inbox.refused.lock().last.clone().unwrap();
        assert!(last.chars().count() <= LAST_MAX + 10, "{last}");
    }
}
