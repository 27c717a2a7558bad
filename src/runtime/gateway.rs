//! The transport of a Mesos module. A libprocess process in mesos-master or mesos-agent delivers
//! messages and requests, and sends messages.
//!
//! libprocess calls the gateway from its few threads, which all of Mesos shares. So [`Gateway`]
//! never blocks: it puts messages and requests into one bounded queue. A tokio task passes them in
//! order to the host, which is a running `MasterHost` or `AgentHost`. When the queue is full,
//! messages are dropped, which libprocess allows, and requests are refused with status 503. The
//! gateway outlives its host: after a restart, the new host gets the items that were queued
//! meanwhile.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use http::{Method, Request, Response};
use libprocess::addresses::{Addresses, Reservation, Resource};
use libprocess::limits::Limits;
use libprocess::{
    Admission, Handler, Incoming, Receipt, Rejection, RequestClass, Sender, Transport, Upid,
    check_names,
};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::http::{MesosClient, error};

/// Capacity of the queue. 10,000 agents that register at once send 10,000 messages, and libprocess
/// delivers them faster than the host handles them.
const QUEUE_ITEMS: usize = 64 * 1024;
/// Largest number of concurrent requests. A much lower limit applies to heavy requests.
const REQUESTS: usize = 1024;

/// The peer of a message or request without a valid sender.
const UNKNOWN_PEER: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0));

/// The libprocess process of a module. The functions must not block.
pub trait Process: Send + Sync + 'static {
    /// Sends a message from the process of the module.
    fn send(&self, to: &Upid, name: &'static str, body: &[u8]);

    /// Links the process of the module to another process.
    fn link(&self, to: &Upid);
}

/// The pending response of a request. An implementation that is dropped sends an error response.
pub trait Responder: Send + 'static {
    /// Sends the response.
    fn respond(self: Box<Self>, response: Response<Bytes>);
}

/// The rules that decide on a message or request by its names, before its body is copied.
#[derive(Debug, Clone, Copy)]
pub struct AdmissionRules {
    /// See [`Handler::admit`].
    pub admit: fn(&str, &str) -> Result<Admission, Rejection>,
    /// See [`Handler::classify`].
    pub classify: fn(&Method, &str) -> RequestClass,
}

/// The entry point for messages and requests of a Mesos process.
pub struct Gateway {
    rules: AdmissionRules,
    /// The resources that each sender uses. Without `require_peer_address_ip_match` of libprocess,
    /// a sender can claim any address. Then only the total limits protect the process.
    addresses: Arc<Addresses>,
    process: RwLock<Option<Arc<dyn Process>>>,
    queue: mpsc::Sender<Item>,
    /// The receiving end of the queue, while no host reads it.
    parked: Mutex<Option<mpsc::Receiver<Item>>>,
    /// Counts refusals. `None` before the first host.
    on_refusal: Mutex<Option<OnRefusal>>,
    is_closed: AtomicBool,
    requests: Arc<Semaphore>,
}

/// The resources that a request holds until its response is sent.
struct Slots {
    _request: OwnedSemaphorePermit,
    _body: Reservation,
    _heavy: Option<Reservation>,
}

type OnRefusal = Arc<dyn Fn(SocketAddr, &Rejection) + Send + Sync>;

enum Item {
    Message(Incoming, Reservation),
    Request(Box<Request<Bytes>>, Box<dyn Responder>, Slots),
    Exited(SocketAddrV4),
}

impl std::fmt::Debug for Gateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gateway").field("is_closed", &self.is_closed).finish_non_exhaustive()
    }
}

impl Gateway {
    /// Creates a gateway without process and host. Items are queued for the host, and no message is
    /// sent.
    #[must_use]
    pub fn new(limits: Limits, rules: AdmissionRules) -> Arc<Self> {
        let (queue, items) = mpsc::channel(QUEUE_ITEMS);
        Arc::new(Self {
            rules,
            addresses: Addresses::new(limits),
            process: RwLock::new(None),
            queue,
            parked: Mutex::new(Some(items)),
            on_refusal: Mutex::new(None),
            is_closed: AtomicBool::new(false),
            requests: Arc::new(Semaphore::new(REQUESTS)),
        })
    }

    /// Sends messages through `process` from now on.
    pub fn attach(&self, process: Arc<dyn Process>) {
        *self.process.write() = Some(process);
    }

    /// Refuses all further items, and drops the queued ones. A host that still runs keeps the items
    /// that it has received.
    pub fn close(&self) {
        self.is_closed.store(true, Ordering::Release);
        *self.parked.lock() = None;
    }

    /// Detaches the Mesos process. After this function returns, no call into the process is running
    /// or will follow.
    pub fn detach(&self) {
        *self.process.write() = None;
    }

    /// Calls into the Mesos process, unless it is detached. The process cannot be detached during
    /// the call.
    pub fn with_process(&self, call: impl FnOnce(&dyn Process)) {
        if let Some(process) = self.process.read().as_deref() {
            call(process);
        }
    }

    /// Returns the transport of one host. `address` is the address that the process advertises.
    #[must_use]
    pub fn transport(self: &Arc<Self>, address: SocketAddrV4) -> GatewayTransport {
        GatewayTransport { gateway: Arc::clone(self), address }
    }

    /// Queues a message to the process `to`. `from` is the UPID of the sender, as text.
    pub fn deliver(&self, from: &str, to: &str, name: &str, body: &[u8]) {
        let sender = check_names([from, to, name]).and_then(|()| Ok(from.parse::<Upid>()?));
        let (peer, message) = match sender {
            Ok(from) => (from.address.into(), self.message(from, to, name, body)),
            Err(refusal) => (UNKNOWN_PEER, Err(refusal)),
        };
        if let Err(refusal) = message.and_then(|message| self.enqueue(message)) {
            self.report_refusal(peer, &refusal);
        }
    }

    fn message(&self, from: Upid, to: &str, name: &str, body: &[u8]) -> Result<Item, Rejection> {
        let Admission { body_max, is_read, is_registration } = (self.rules.admit)(to, name)?;
        if body.len() > body_max {
            return Err(Rejection::BodyTooLarge(body_max));
        }
        let account = self.addresses.account((*from.address.ip()).into());
        self.addresses.count_message(&account, is_registration)?;
        let body = if is_read { body } else { &[] };
        let memory = self.addresses.reserve(&account, Resource::RequestBytes, body.len())?;
        let (to, name) = (to.to_owned(), name.to_owned());
        Ok(Item::Message(Incoming { from, to, name, body: Bytes::copy_from_slice(body) }, memory))
    }

    /// Returns the longest allowed body of a request in bytes. Must be checked before the body is
    /// copied.
    #[must_use]
    pub fn body_max(&self, method: &Method, path: &str) -> usize {
        (self.rules.classify)(method, path).body_max
    }

    /// Queues a request of `client`.
    pub fn request(
        &self,
        mut request: Request<Bytes>,
        client: MesosClient,
        responder: Box<dyn Responder>,
    ) {
        let peer = client.peer.unwrap_or(UNKNOWN_PEER);
        request.extensions_mut().insert(client);
        let refusal = match self.reserve_slots(&request, peer) {
            Ok(slots) => match self.enqueue(Item::Request(Box::new(request), responder, slots)) {
                Ok(()) => return,
                // The responder was dropped with the item, and has sent an error response.
                Err(refusal) => refusal,
            },
            Err(refusal) => {
                responder.respond(error(refusal.status(), &refusal.to_string()));
                refusal
            }
        };
        self.report_refusal(peer, &refusal);
    }

    /// Queues the event that the process at `peer` or its connection has ended.
    pub fn exited(&self, peer: SocketAddrV4) {
        if let Err(refusal) = self.enqueue(Item::Exited(peer)) {
            self.report_refusal(peer.into(), &refusal);
        }
    }

    fn enqueue(&self, item: Item) -> Result<(), Rejection> {
        if self.is_closed.load(Ordering::Acquire) {
            return Err(Rejection::Busy);
        }
        self.queue.try_send(item).map_err(|_| Rejection::Busy)
    }

    fn report_refusal(&self, peer: SocketAddr, refusal: &Rejection) {
        let on_refusal = self.on_refusal.lock().clone();
        if let Some(on_refusal) = on_refusal {
            on_refusal(peer, refusal);
        }
    }

    /// Reserves the resources of a request, within the limits of its client.
    fn reserve_slots(
        &self,
        request: &Request<Bytes>,
        peer: SocketAddr,
    ) -> Result<Slots, Rejection> {
        let RequestClass { body_max, is_heavy } =
            (self.rules.classify)(request.method(), request.uri().path());
        let length = request.body().len();
        if length > body_max {
            return Err(Rejection::BodyTooLarge(body_max));
        }
        let account = self.addresses.account(peer.ip());
        self.addresses.count_request(&account)?;
        let body = self.addresses.reserve(&account, Resource::RequestBytes, length)?;
        let heavy = is_heavy.then(|| self.addresses.reserve(&account, Resource::Requests, 1));
        let request = Arc::clone(&self.requests).try_acquire_owned();
        let request = request.map_err(|_| Rejection::Busy)?;
        Ok(Slots { _request: request, _body: body, _heavy: heavy.transpose()? })
    }
}

/// The transport of a host in a Mesos process.
#[derive(Debug)]
pub struct GatewayTransport {
    gateway: Arc<Gateway>,
    address: SocketAddrV4,
}

impl Transport for GatewayTransport {
    fn address(&self) -> SocketAddrV4 {
        self.address
    }

    fn open<H: Handler>(
        self,
        handler: Arc<H>,
    ) -> (Box<dyn Sender>, impl Future<Output = ()> + Send + 'static) {
        let counting = Arc::clone(&handler);
        *self.gateway.on_refusal.lock() =
            Some(Arc::new(move |peer, refusal| counting.rejected(peer, refusal)));
        let items = self.gateway.parked.lock().take();
        let feed = Feed { items, gateway: self.gateway };
        (Box::new(GatewaySender(Arc::clone(&feed.gateway))), feed.run(handler))
    }
}

/// Passes queued items to a host. When the host ends, the next host gets the remaining items.
struct Feed {
    gateway: Arc<Gateway>,
    items: Option<mpsc::Receiver<Item>>,
}

impl Feed {
    /// Passes the items in order. Requests are processed concurrently.
    async fn run<H: Handler>(mut self, handler: Arc<H>) {
        let mut responses = JoinSet::new();
        let Some(items) = &mut self.items else { return };
        loop {
            // The next host gets the items that arrive after the end of this host.
            let item = tokio::select! {
                biased;
                () = handler.stopped() => return,
                item = items.recv() => item,
            };
            let Some(item) = item else { return };
            while responses.try_join_next().is_some() {}
            match item {
                Item::Message(message, memory) => handler.deliver(message, memory).await,
                Item::Exited(peer) => handler.exited(peer).await,
                Item::Request(request, responder, slots) => {
                    let handler = Arc::clone(&handler);
                    responses.spawn(async move {
                        responder.respond(handler.respond(*request).await);
                        drop(slots);
                    });
                }
            }
        }
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        // `close` may run at the same time. It clears the requests that were parked before.
        let mut parked = self.gateway.parked.lock();
        if !self.gateway.is_closed.load(Ordering::Acquire) {
            *parked = self.items.take();
        }
    }
}

struct GatewaySender(Arc<Gateway>);

impl Sender for GatewaySender {
    fn send(&self, _: &Upid, to: &Upid, name: &'static str, body: &[u8], _: Receipt) {
        self.0.with_process(|process| process.send(to, name, body));
    }

    fn link(&self, to: &Upid) {
        self.0.with_process(|process| process.link(to));
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use libprocess::limits::Limit;
    use libprocess::testing::{BODY_MAX, Call, RecordingHandler, admit, classify};
    use overlay_types::addr::master_upid;

    use super::*;

    const FROM: &str = "overlay-agent@10.0.0.7:5051";

    fn own() -> SocketAddrV4 {
        "10.0.0.1:5050".parse().unwrap()
    }

    fn gateway() -> Arc<Gateway> {
        Gateway::new(Limits::for_server(), AdmissionRules { admit, classify })
    }

    /// Records messages and links.
    #[derive(Default)]
    struct Recorder(Mutex<Vec<String>>);

    impl Process for Recorder {
        fn send(&self, to: &Upid, name: &'static str, body: &[u8]) {
            self.0.lock().push(format!("{name} to {to}: {body:?}"));
        }

        fn link(&self, to: &Upid) {
            self.0.lock().push(format!("link to {to}"));
        }
    }

    /// Sends the response to the test.
    struct ChannelResponder(std::sync::mpsc::Sender<(StatusCode, Bytes)>);

    impl Responder for ChannelResponder {
        fn respond(self: Box<Self>, response: Response<Bytes>) {
            self.0.send((response.status(), response.into_body())).unwrap();
        }
    }

    fn send_request(
        gateway: &Gateway,
        body: &'static [u8],
    ) -> std::sync::mpsc::Receiver<(StatusCode, Bytes)> {
        let (sender, receiver) = std::sync::mpsc::channel();
        let mut request = Request::new(Bytes::from_static(body));
        *request.uri_mut() = "/overlay-master/state".parse().unwrap();
        let client = MesosClient { peer: "10.0.0.2:40000".parse().ok(), principal: None };
        gateway.request(request, client, Box::new(ChannelResponder(sender)));
        receiver
    }

    #[tokio::test]
    async fn items_reach_host_in_order() {
        let gateway = gateway();
        let (host, mut calls) = RecordingHandler::new();
        let (_sender, feed) = gateway.transport(own()).open(host);
        let feed = tokio::spawn(feed);
        gateway.deliver(FROM, "server", "First", b"1");
        gateway.exited("10.0.0.9:5051".parse().unwrap());
        gateway.deliver(FROM, "server", "Second", b"");
        let message = |name: &str, body: &'static [u8]| {
            Call::Message(Incoming {
                from: FROM.parse().unwrap(),
                to: "server".to_owned(),
                name: name.to_owned(),
                body: Bytes::from_static(body),
            })
        };
        assert_eq!(calls.recv().await, Some(message("First", b"1")));
        assert_eq!(calls.recv().await, Some(Call::Exited("10.0.0.9:5051".parse().unwrap())));
        assert_eq!(calls.recv().await, Some(message("Second", b"")));
        let response = send_request(&gateway, b"");
        assert!(matches!(calls.recv().await, Some(Call::Request(..))));
        let response = tokio::task::spawn_blocking(move || response.recv().unwrap()).await.unwrap();
        assert_eq!(response, (StatusCode::OK, Bytes::from_static(b"GET /overlay-master/state")));
        feed.abort();
    }

    #[tokio::test]
    async fn sender_beyond_byte_limit_is_refused_alone() {
        let gateway = gateway();
        let (host, _calls) = RecordingHandler::new();
        let refused = Arc::clone(&host);
        // The feed is not polled.
        let (_sender, _feed) = gateway.transport(own()).open(host);
        let body = vec![0; BODY_MAX];
        for _ in 0..4 {
            gateway.deliver(FROM, "server", "Big", &body);
        }
        assert!(refused.rejections.lock().is_empty());
        gateway.deliver(FROM, "server", "Big", &body);
        // The limit applies to each address separately.
        gateway.deliver("overlay-agent@10.0.0.8:5051", "server", "Big", &body);
        let full = Rejection::Limit(Limit::RequestBytesPerAddress);
        assert_eq!(*refused.rejections.lock(), [full]);
    }

    #[tokio::test]
    async fn ignored_message_is_not_copied_and_counts_against_rate() {
        let gateway = gateway();
        let (host, mut calls) = RecordingHandler::new();
        let refused = Arc::clone(&host);
        let (_sender, feed) = gateway.transport(own()).open(host);
        let feed = tokio::spawn(feed);
        gateway.deliver(FROM, "server", "Ignored", &vec![0; BODY_MAX]);
        assert!(
            matches!(calls.recv().await, Some(Call::Message(message)) if message.body.is_empty())
        );
        for _ in 0..2000 {
            gateway.deliver(FROM, "server", "N", b"");
        }
        let limited = Rejection::Limit(Limit::MessagesPerSecondPerAddress);
        assert!(refused.rejections.lock().iter().all(|refusal| *refusal == limited));
        assert!(refused.rejections.lock().len() > 900);
        let other = "overlay-agent@10.0.0.8:5051";
        let before = refused.rejections.lock().len();
        gateway.deliver(other, "server", "N", b"");
        assert_eq!(refused.rejections.lock().len(), before);
        feed.abort();
    }

    #[tokio::test]
    async fn invalid_sender_and_oversized_body_are_refused() {
        let gateway = gateway();
        let (host, _calls) = RecordingHandler::new();
        let refused = Arc::clone(&host);
        let (_sender, _feed) = gateway.transport(own()).open(host);
        gateway.deliver("(1)@[::1]:5051", "server", "Six", b"");
        gateway.deliver(FROM, "server", "Big", &vec![0; BODY_MAX + 1]);
        let texts: Vec<_> = refused.rejections.lock().iter().map(ToString::to_string).collect();
        let sender = "unusable sender: '(1)@[::1]:5051' is no process address: expected id@ip:port";
        assert_eq!(texts, [sender.to_owned(), format!("the body exceeds {BODY_MAX} bytes")]);
    }

    #[tokio::test]
    async fn queued_items_are_for_next_host() {
        let gateway = gateway();
        gateway.deliver(FROM, "server", "Early", b"");
        drop(gateway.transport(own()).open(RecordingHandler::new().0));
        let response = send_request(&gateway, b"");
        let (host, mut calls) = RecordingHandler::new();
        let (_sender, feed) = gateway.transport(own()).open(host);
        let feed = tokio::spawn(feed);
        assert!(
            matches!(calls.recv().await, Some(Call::Message(message)) if message.name == "Early")
        );
        assert!(matches!(calls.recv().await, Some(Call::Request(..))));
        feed.abort();
        assert!(feed.await.is_err());
        drop(response);
        let response = send_request(&gateway, b"");
        gateway.close();
        assert!(response.recv().is_err(), "the responder was dropped");
        assert!(send_request(&gateway, b"").recv().is_err(), "a closed gateway refuses requests");
    }

    #[tokio::test]
    async fn detached_process_receives_no_calls() {
        let gateway = gateway();
        let sent = Arc::new(Recorder::default());
        gateway.attach(Arc::clone(&sent) as _);
        let (sender, _feed) = gateway.transport(own()).open(RecordingHandler::new().0);
        let (from, to) = (master_upid(own()), FROM.parse().unwrap());
        sender.link(&to);
        sender.send(&from, &to, "Name", &Bytes::from_static(b"ab"), Receipt::Always);
        gateway.detach();
        sender.send(&from, &to, "Name", &Bytes::new(), Receipt::Always);
        let expected = [format!("link to {FROM}"), format!("Name to {FROM}: [97, 98]")];
        assert_eq!(*sent.0.lock(), expected);
        assert_eq!(Arc::strong_count(&sent), 1, "the gateway has dropped the process");
    }
}
