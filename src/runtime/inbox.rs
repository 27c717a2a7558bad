//! The input of a state machine: messages, HTTP requests and results of commands become events.

use std::collections::HashMap;
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::Arc;

use http::{Method, StatusCode};
use libprocess::limits::Limit;
use libprocess::{Admission, Handler, Incoming, Rejection, RequestClass, Reservation, UNIX_PEER};
use overlay_engine::state_machine::should_log_sample;
use overlay_types::addr::Upid;
use overlay_types::escape::bounded_args;
use overlay_types::protocol::{
    AuthenticityFault, MessageKind, Principal, RejectedMessages, RequestId,
};
use overlay_wire as wire;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::progress::{PROBE_PATH, Probe};
use super::{AccessControl, Authenticator, INBOX_SIZE, Metrics, RuntimeStatus, Service};
use crate::http::{Denial, Format, Request, Response, client_of, error, stalled};

/// Number of heavy requests that are processed concurrently. A heavy request uses a processor for a
/// large part of a second, and many times the memory of its response.
const HEAVY_REQUESTS: usize = 2;
/// Longest kept text of the last refusal, in characters.
const LAST_MAX: usize = 512;

/// An input of a state machine.
pub(super) enum Input<M: Service> {
    Event(M::Event),
    /// A message that is not decoded yet.
    Message(Incoming, Reservation),
    /// A request whose sender waits for the reply.
    Request(M::Request, oneshot::Sender<M::Reply>),
    /// A probe of the progress.
    Probe(Probe),
}

/// The state machine has stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the state machine has stopped")]
pub struct Stopped;

/// The sending end of the queue of a state machine. Clones send to the same queue.
pub(super) struct Inbox<M: Service> {
    sender: mpsc::Sender<Input<M>>,
    refused: Arc<Mutex<RejectedMessages>>,
    heavy: Arc<Semaphore>,
    metrics: Metrics<M>,
    access: AccessControl,
}

impl<M: Service> Clone for Inbox<M> {
    fn clone(&self) -> Self {
        Self {
            sender: self.sender.clone(),
            refused: Arc::clone(&self.refused),
            heavy: Arc::clone(&self.heavy),
            metrics: self.metrics.clone(),
            access: self.access.clone(),
        }
    }
}

impl<M: Service> Inbox<M> {
    /// Creates a queue whose HTTP requests need no access.
    #[cfg(test)]
    pub(super) fn new(metrics: Metrics<M>) -> (Self, mpsc::Receiver<Input<M>>) {
        Self::with_access(metrics, AccessControl::default())
    }

    pub(super) fn with_access(
        metrics: Metrics<M>,
        access: AccessControl,
    ) -> (Self, mpsc::Receiver<Input<M>>) {
        let (sender, receiver) = mpsc::channel(INBOX_SIZE);
        let heavy = Arc::new(Semaphore::new(HEAVY_REQUESTS));
        (Self { sender, refused: Arc::default(), heavy, metrics, access }, receiver)
    }

    pub(super) const fn metrics(&self) -> &Metrics<M> {
        &self.metrics
    }

    /// Sends an event. An event for a stopped state machine is dropped.
    pub(super) async fn send(&self, event: M::Event) {
        let _ = self.sender.send(Input::Event(event)).await;
    }

    /// Sends an event from a thread outside the tokio runtime.
    pub(super) fn send_blocking(&self, event: M::Event) {
        let _ = self.sender.blocking_send(Input::Event(event));
    }

    /// Sends a probe. A probe of a stopped state machine is dropped.
    pub(super) async fn probe(&self, probe: Probe) {
        let _ = self.sender.send(Input::Probe(probe)).await;
    }

    /// Sends a request and awaits the reply.
    pub(super) async fn request(&self, request: M::Request) -> Result<M::Reply, Stopped> {
        let (sender, receiver) = oneshot::channel();
        self.sender.send(Input::Request(request, sender)).await.map_err(|_| Stopped)?;
        let mut reply = receiver.await.map_err(|_| Stopped)?;
        let refused = self.refused.lock().clone();
        let runtime = RuntimeStatus::new(refused, self.metrics.host(), self.metrics.warnings());
        M::complete(&mut reply, runtime);
        Ok(reply)
    }
}

impl<M: Service> Inbox<M> {
    /// Passes a request to the state machine, and renders the reply.
    async fn answer(&self, path: &str, request: M::Request, format: Format) -> Response {
        let Ok(reply) = self.request(request).await else {
            return error(StatusCode::SERVICE_UNAVAILABLE, "stopping");
        };
        run_blocking(path, move || M::render(&reply, &format))
            .await
            .unwrap_or_else(|response| response)
    }

    /// Counts and logs a refused request, and returns the response.
    fn deny(&self, request: &Request, denial: Denial) -> Response {
        let Denial { reason, has_wrong_credentials, .. } = &denial;
        // A browser, and `curl --anyauth`, ask without credentials first.
        let is_first_attempt =
            denial.status() == StatusCode::UNAUTHORIZED && !has_wrong_credentials;
        if !is_first_attempt {
            let count = self.metrics.count_denial(*has_wrong_credentials);
            if should_log_sample(count) {
                let (method, path) = (request.method(), request.uri().path());
                let client = client_of(request);
                log::warn!(
                    "audit: refused {method} {path} of {client}: {reason} ({count} such requests \
                     since the start)"
                );
            }
        }
        denial.into_response()
    }
}

/// See [`Handler::admit`].
pub(super) fn admit<M: Service>(to: &str, name: &str) -> Result<Admission, Rejection> {
    if to != M::PROCESS {
        return Err(Rejection::UnknownProcess(to.chars().take(80).collect()));
    }
    let Some(kind) = wire::kind_of(name).filter(|kind| M::handles(*kind)) else {
        return Ok(Admission::IGNORED);
    };
    let is_registration = kind == MessageKind::RegisterAgent;
    let body_max = kind.body_max() + wire::SEAL_BYTES_MAX;
    Ok(Admission { body_max, is_read: true, is_registration })
}

/// Converts a message to an event. Decodes only authentic messages of a kind that the service
/// handles, from a sender that it accepts. `reserve` reserves the memory for decompressed bytes.
pub(super) fn message_event<M: Service>(
    state_machine: &M,
    sessions: &mut dyn Authenticator,
    message: &Incoming,
    reserve: &mut dyn FnMut(usize) -> bool,
) -> M::Event {
    let Incoming { from, name, body, .. } = message;
    let (mut content, mut principal) = (&body[..], None);
    if let Some(kind) = wire::kind_of(name) {
        if !(M::handles(kind) && state_machine.accepts(from, kind)) {
            return M::ignored(from.clone(), kind);
        }
        match authenticate(state_machine, sessions, (from, kind), body) {
            Ok(sender) => (content, principal) = sender,
            Err(fault) => return M::unauthentic(from.clone(), kind, fault),
        }
    }
    match wire::decode_message_reserving(name, content, reserve) {
        Ok(message) => M::message(from.clone(), principal, message),
        Err(reason) => {
            let name = name.chars().take(80).collect();
            M::malformed(from.clone(), name, reason.to_string())
        }
    }
}

/// Returns the content of a message without its seal, and the principal of the sender.
fn authenticate<'a, M: Service>(
    state_machine: &M,
    sessions: &mut dyn Authenticator,
    (from, kind): (&Upid, MessageKind),
    body: &'a [u8],
) -> Result<(&'a [u8], Option<Principal>), AuthenticityFault> {
    let (content, seal) = if sessions.is_on() { wire::split_seal(body)? } else { (body, None) };
    let principal = sessions.authenticate(from, kind, content, seal.as_ref())?;
    if !state_machine.trusts(from, kind, principal.is_some()) {
        return Err(AuthenticityFault::NotSealed);
    }
    Ok((content, principal))
}

impl<M: Service> Handler for Inbox<M> {
    fn admit(&self, to: &str, name: &str) -> Result<Admission, Rejection> {
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
        if path == PROBE_PATH {
            return error(StatusCode::NOT_FOUND, "no endpoint: the probe of the listener");
        }
        let author = match self.access.authorize(&request, M::access(&path)) {
            Ok(author) => author,
            Err(denial) => return self.deny(&request, *denial),
        };
        let is_heavy = M::classify(request.method(), &path).is_heavy;
        let _slot = match is_heavy.then(|| Arc::clone(&self.heavy).acquire_owned()) {
            // The semaphore is never closed.
            Some(slot) => slot.await.ok(),
            None => None,
        };
        // Parsing a network file or rendering the state of a large cluster is slow.
        let routed = match run_blocking(&path, move || M::route(&request)).await {
            Ok(routed) => routed,
            Err(response) => return response,
        };
        let (request, format) = match routed {
            Ok(routed) => routed,
            Err(response) => return *response,
        };
        if let Some(reason) = self.metrics.stalled() {
            return stalled(&path, &reason);
        }
        let Some(change) = M::describe_change(&request) else {
            return self.answer(&path, request, format).await;
        };
        let request = M::with_author(request, author.clone());
        let response = self.answer(&path, request, format).await;
        log::info!("audit: {author}: {change}: {}", response.status());
        response
    }

    async fn exited(&self, peer: SocketAddrV4) {
        if let Some(event) = M::exited(peer) {
            self.send(event).await;
        }
    }

    fn unknown_process_hint(&self) -> &'static str {
        "no such process at this address: check that it is the address of an overlay master or \
         agent, or of a Mesos process with the module"
    }

    async fn stopped(&self) {
        self.sender.closed().await;
    }

    fn rejected(&self, peer: SocketAddr, rejection: &Rejection) {
        if let Some(limit) = rejection.limit() {
            self.metrics.count_limit(limit);
        }
        // Idle connections of well-behaved clients are closed too.
        if rejection.limit() == Some(Limit::HttpIdleTimeout) {
            return;
        }
        self.metrics.count_refused();
        let peer = match peer {
            UNIX_PEER => "the Unix socket".to_owned(),
            address => address.to_string(),
        };
        let count = {
            let mut refused = self.refused.lock();
            refused.count += 1;
            let last = format_args!("from {peer}: {rejection}");
            refused.last = Some(bounded_args(last, LAST_MAX));
            refused.count
        };
        // Logs after the lock is released: the log may be on a disk that hangs.
        if should_log_sample(count) {
            log::warn!("peer {peer}: {rejection} ({count} refused since the start)");
        }
    }
}

/// Runs slow work on a thread of the blocking pool.
///
/// # Errors
/// With a response of status 500 if the work panicked, which is a defect.
async fn run_blocking<T: Send + 'static>(
    path: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Response> {
    tokio::task::spawn_blocking(work).await.map_err(|reason| {
        if reason.is_cancelled() {
            return error(StatusCode::SERVICE_UNAVAILABLE, "stopping");
        }
        let path = bounded_args(format_args!("{path}"), LAST_MAX);
        log::error!("answer a request of {path}: {reason}: this is a defect");
        error(StatusCode::INTERNAL_SERVER_ERROR, "the response could not be rendered")
    })
}

/// The requests that wait for a reply of the state machine.
pub(super) struct PendingReplies<M: Service> {
    by_id: HashMap<RequestId, oneshot::Sender<M::Reply>>,
    last_id: u64,
}

impl<M: Service> PendingReplies<M> {
    pub(super) fn new() -> Self {
        Self { by_id: HashMap::new(), last_id: 0 }
    }

    /// Converts an input to an event, and registers a request for its reply. A probe is returned as
    /// it is.
    pub(super) fn convert_input(
        &mut self,
        state_machine: &M,
        sessions: &mut dyn Authenticator,
        input: Input<M>,
    ) -> Result<M::Event, Probe> {
        Ok(match input {
            Input::Event(event) => event,
            Input::Message(message, mut memory) => {
                let length = message.body.len();
                let mut reserve = |expanded: usize| memory.grow_to(length + expanded).is_ok();
                message_event(state_machine, sessions, &message, &mut reserve)
            }
            Input::Request(request, sender) => {
                self.last_id += 1;
                let id = RequestId(self.last_id);
                self.by_id.insert(id, sender);
                M::request(id, request)
            }
            Input::Probe(probe) => return Err(probe),
        })
    }

    /// Sends a reply. A reply is dropped if its client has disconnected.
    pub(super) fn send(&mut self, id: RequestId, reply: M::Reply) {
        if let Some(sender) = self.by_id.remove(&id) {
            let _ = sender.send(reply);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use overlay_config::AgentConfig;
    use overlay_engine::agent::{self, Agent};
    use overlay_engine::authentication::MasterSessions;
    use overlay_engine::master::{self, Master};
    use overlay_types::addr::{AGENT_PROCESS, MASTER_PROCESS};
    use overlay_types::protocol::{MasterKind, Network};

    use super::*;

    fn message(name: &str, body: &'static [u8]) -> Incoming {
        Incoming {
            from: "overlay-agent@10.0.0.7:5051".parse().unwrap(),
            to: MASTER_PROCESS.to_owned(),
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
            vxlan: overlay_types::protocol::Vxlan::default(),
            overlays: Vec::new(),
        };
        let reuse_after = Duration::ZERO;
        let settings = master::Settings {
            network: Arc::new(network),
            reuse_after,
            kind: MasterKind::Module,
            authentication: None,
        };
        Master::new(settings, overlay_wire::encode_peers_update, 1)
    }

    #[test]
    fn message_is_admitted_by_process_and_role() {
        let refused = admit::<Master>(AGENT_PROCESS, MessageKind::RegisterAgent.name());
        assert_eq!(refused, Err(Rejection::UnknownProcess(AGENT_PROCESS.to_owned())));
        let to_master = |name: &str| admit::<Master>(MASTER_PROCESS, name).unwrap();
        let register = to_master(MessageKind::RegisterAgent.name());
        assert!(register.is_registration && register.is_read && register.body_max <= 4500);
        let report = to_master(MessageKind::AgentRegistered.name());
        assert!(!report.is_registration && report.body_max < 1024 * 1024);
        assert_eq!(to_master(MessageKind::UpdatePeers.name()), Admission::IGNORED);
        assert_eq!(to_master("mesos.modules.overlay.internal.Later"), Admission::IGNORED);
        let to_agent = admit::<Agent>(AGENT_PROCESS, MessageKind::RegisterAgent.name());
        assert_eq!(to_agent, Ok(Admission::IGNORED));
    }

    #[test]
    fn message_of_other_role_or_unknown_sender_is_ignored() {
        let garbage = b"\xff\xff";
        let (master, mut sessions) = (master(), MasterSessions::new(None, &[0; 32]));
        let mut to_master = |kind: MessageKind| {
            message_event(&master, &mut sessions, &message(kind.name(), garbage), &mut |_| true)
                .to_string()
        };
        let ignored = "ignored AgentRegisteredMessage from overlay-agent@10.0.0.7:5051";
        assert_eq!(to_master(MessageKind::AgentRegistered), ignored);
        assert!(to_master(MessageKind::UpdatePeers).starts_with("ignored UpdatePeersMessage"));
        assert!(to_master(MessageKind::RegisterAgent).starts_with("malformed "));
        let settings = agent::Settings::from(&AgentConfig::new("/c".into()));
        let agent = Agent::new([10, 0, 0, 8].into(), settings, 1);
        let update = message(MessageKind::UpdatePeers.name(), garbage);
        let event = message_event(&agent, &mut sessions, &update, &mut |_| true);
        assert!(event.to_string().starts_with("ignored UpdatePeersMessage"), "{event}");
        let long = "x".repeat(10_000);
        let event = message_event(&master, &mut sessions, &message(&long, b""), &mut |_| true);
        assert!(event.to_string().len() < 400, "{event}");
    }

    #[tokio::test]
    async fn refusal_is_counted_by_limit_and_truncated() {
        let (inbox, _receiver) = Inbox::<Master>::new(Metrics::new());
        let peer = "10.0.0.9:40000".parse().unwrap();
        inbox.rejected(peer, &Rejection::Limit(Limit::Requests));
        inbox.rejected(peer, &Rejection::UnknownProcess("x".repeat(10_000)));
        inbox.rejected(peer, &Rejection::Limit(Limit::HttpIdleTimeout));
        let host = inbox.metrics().host();
        assert_eq!(host.limits[Limit::HttpIdleTimeout as usize], 1);
        assert_eq!((host.refused, host.limits[Limit::Requests as usize]), (2, 1));
        let last = inbox.refused.lock().last.clone().unwrap();
        assert!(last.chars().count() <= LAST_MAX + 10, "{last}");
        inbox.rejected(UNIX_PEER, &Rejection::Limit(Limit::Requests));
        let last = inbox.refused.lock().last.clone().unwrap();
        assert!(last.starts_with("from the Unix socket: limit "), "{last}");
    }
}
