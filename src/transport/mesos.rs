//! The transport of a module: a libprocess process in mesos-master or mesos-agent brings what comes
//! in and sends what goes out.
//!
//! libprocess calls from its own few threads, which all of Mesos shares. So [`Gateway`] never
//! waits: what comes in goes into one bounded queue, in order, from which a task of ours feeds the
//! host. When the queue is full, messages are lost, as libprocess allows, and requests are told to
//! come again. The gateway outlives its host: what waits while a host is started again is for the
//! new one.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use http::{Method, Request, Response};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;

use super::addresses::{Addresses, Reservation, Resource};
use super::libprocess::check_names;
use super::{Admission, Handler, Incoming, Refusal, RequestClass, Sender, Transport};
use crate::addr::Upid;
use crate::http::error;
use crate::limits::Limits;

/// What waits for the host, at most. 10,000 agents that register at once send as many messages, and
/// libprocess delivers them faster than they can be served.
const QUEUE_ITEMS: usize = 64 * 1024;
/// Requests that are being answered at a time. Those whose answers take long are far fewer.
const REQUESTS: usize = 1024;

/// Who sent what has no usable sender.
const NOBODY: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0));

/// What the Mesos process does for a part of us that lives in it. Nothing here may wait.
pub trait Process: Send + Sync + 'static {
    /// Sends a message from the part's own process.
    fn send(&self, to: &Upid, name: &'static str, body: &[u8]);

    /// Links the part's own process to another.
    fn link(&self, to: &Upid);
}

/// Who waits for the answer to a request. Dropped without one, it answers for itself.
pub trait Responder: Send + 'static {
    /// Gives the answer.
    fn respond(self: Box<Self>, response: Response<Bytes>);
}

/// How what comes in is judged before it is copied, by names alone.
#[derive(Debug, Clone, Copy)]
pub struct Judge {
    /// See [`Handler::admit`].
    pub admit: fn(&str, &str) -> Result<Admission, Refusal>,
    /// See [`Handler::classify`].
    pub classify: fn(&Method, &str) -> RequestClass,
}

/// Where the Mesos process brings what comes in.
pub struct Gateway {
    judge: Judge,
    /// What senders make us hold. Without `require_peer_address_ip_match` of libprocess, a sender
    /// can claim any address: then only the totals are certain.
    addresses: Arc<Addresses>,
    process: RwLock<Option<Arc<dyn Process>>>,
    queue: mpsc::Sender<Item>,
    /// The other end of the queue, while no host reads it.
    parked: Mutex<Option<mpsc::Receiver<Item>>>,
    /// Counts what was refused, once there was a host.
    refuse: Mutex<Option<Refuse>>,
    is_closed: AtomicBool,
    requests: Arc<Semaphore>,
}

/// What a request holds while it is answered.
struct Slots {
    _request: OwnedSemaphorePermit,
    _body: Reservation,
    _heavy: Option<Reservation>,
}

type Refuse = Arc<dyn Fn(SocketAddr, &Refusal) + Send + Sync>;

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
    /// A gateway without process and host: what comes in waits for a host, nothing goes out.
    #[must_use]
    pub fn new(limits: Limits, judge: Judge) -> Arc<Self> {
        let (queue, items) = mpsc::channel(QUEUE_ITEMS);
        Arc::new(Self {
            judge,
            addresses: Addresses::new(limits),
            process: RwLock::new(None),
            queue,
            parked: Mutex::new(Some(items)),
            refuse: Mutex::new(None),
            is_closed: AtomicBool::new(false),
            requests: Arc::new(Semaphore::new(REQUESTS)),
        })
    }

    /// From now on messages go out through `process`.
    pub fn attach(&self, process: Arc<dyn Process>) {
        *self.process.write() = Some(process);
    }

    /// Takes nothing any more, and lets whoever waits for an answer go without. To be called when
    /// there is no host any more.
    pub fn close(&self) {
        self.is_closed.store(true, Ordering::Release);
        *self.parked.lock() = None;
    }

    /// When this returns, no call into the Mesos process is under way any more, and none will come.
    pub fn detach(&self) {
        *self.process.write() = None;
    }

    /// Calls into the Mesos process, unless it is gone; meanwhile it stays.
    pub fn with_process(&self, call: impl FnOnce(&dyn Process)) {
        if let Some(process) = self.process.read().as_deref() {
            call(process);
        }
    }

    /// The transport of one host, of which this process is told to others as `address`.
    #[must_use]
    pub fn transport(self: &Arc<Self>, address: SocketAddrV4) -> Mesos {
        Mesos { gateway: Arc::clone(self), address }
    }

    /// Takes a message of `from`, as libprocess writes a sender, to the process `to`.
    pub fn deliver(&self, from: &str, to: &str, name: &str, body: &[u8]) {
        let sender = check_names([from, to, name]).and_then(|()| Ok(from.parse::<Upid>()?));
        let (peer, message) = match sender {
            Ok(from) => (from.address.into(), self.message(from, to, name, body)),
            Err(refusal) => (NOBODY, Err(refusal)),
        };
        if let Err(refusal) = message.and_then(|message| self.put(message)) {
            self.refused(peer, &refusal);
        }
    }

    fn message(&self, from: Upid, to: &str, name: &str, body: &[u8]) -> Result<Item, Refusal> {
        let Admission { body_max, is_read, is_registration } = (self.judge.admit)(to, name)?;
        if body.len() > body_max {
            return Err(Refusal::BodyTooLarge(body_max));
        }
        let account = self.addresses.account((*from.address.ip()).into());
        self.addresses.count_message(&account, is_registration)?;
        let body = if is_read { body } else { &[] };
        let memory = self.addresses.reserve(&account, Resource::RequestBytes, body.len())?;
        let (to, name) = (to.to_owned(), name.to_owned());
        Ok(Item::Message(Incoming { from, to, name, body: Bytes::copy_from_slice(body) }, memory))
    }

    /// Longest body of a request in bytes. To be asked before the body is copied.
    #[must_use]
    pub fn body_max(&self, method: &Method, path: &str) -> usize {
        (self.judge.classify)(method, path).body_max
    }

    /// Takes a request of the client `peer`.
    pub fn request(&self, request: Request<Bytes>, peer: &str, responder: Box<dyn Responder>) {
        let peer = peer.parse().unwrap_or(NOBODY);
        let refusal = match self.slots(&request, peer) {
            Ok(slots) => match self.put(Item::Request(Box::new(request), responder, slots)) {
                Ok(()) => return,
                // The responder is gone with the item, and has answered for itself.
                Err(refusal) => refusal,
            },
            Err(refusal) => {
                responder.respond(error(refusal.status(), &refusal.to_string()));
                refusal
            }
        };
        self.refused(peer, &refusal);
    }

    /// The program at `peer` is gone, or its connection is.
    pub fn exited(&self, peer: SocketAddrV4) {
        if let Err(refusal) = self.put(Item::Exited(peer)) {
            self.refused(peer.into(), &refusal);
        }
    }

    fn put(&self, item: Item) -> Result<(), Refusal> {
        if self.is_closed.load(Ordering::Acquire) {
            return Err(Refusal::Busy);
        }
        self.queue.try_send(item).map_err(|_| Refusal::Busy)
    }

    fn refused(&self, peer: SocketAddr, refusal: &Refusal) {
        let refuse = self.refuse.lock().clone();
        if let Some(refuse) = refuse {
            refuse(peer, refusal);
        }
    }

    /// What a request holds, if its client may hold that.
    fn slots(&self, request: &Request<Bytes>, peer: SocketAddr) -> Result<Slots, Refusal> {
        let RequestClass { body_max, is_heavy } =
            (self.judge.classify)(request.method(), request.uri().path());
        let length = request.body().len();
        if length > body_max {
            return Err(Refusal::BodyTooLarge(body_max));
        }
        let account = self.addresses.account(peer.ip());
        self.addresses.count_request(&account)?;
        let body = self.addresses.reserve(&account, Resource::RequestBytes, length)?;
        let heavy = is_heavy.then(|| self.addresses.reserve(&account, Resource::Requests, 1));
        let request = Arc::clone(&self.requests).try_acquire_owned();
        let request = request.map_err(|_| Refusal::Busy)?;
        Ok(Slots { _request: request, _body: body, _heavy: heavy.transpose()? })
    }
}

/// The transport of a host that lives in a Mesos process.
#[derive(Debug)]
pub struct Mesos {
    gateway: Arc<Gateway>,
    address: SocketAddrV4,
}

impl Transport for Mesos {
    fn address(&self) -> SocketAddrV4 {
        self.address
    }

    fn open<H: Handler>(
        self,
        handler: Arc<H>,
    ) -> (Box<dyn Sender>, impl Future<Output = ()> + Send + 'static) {
        let refusing = Arc::clone(&handler);
        *self.gateway.refuse.lock() =
            Some(Arc::new(move |peer, refusal| refusing.refused(peer, refusal)));
        let items = self.gateway.parked.lock().take();
        let feed = Feed { items, gateway: self.gateway };
        (Box::new(Outgoing(Arc::clone(&feed.gateway))), feed.run(handler))
    }
}

/// Brings what waits to a host. When it ends, what still waits is for the next host.
struct Feed {
    gateway: Arc<Gateway>,
    items: Option<mpsc::Receiver<Item>>,
}

impl Feed {
    /// In order; but an answer may take longer than what comes after it.
    async fn run<H: Handler>(mut self, handler: Arc<H>) {
        let mut answers = JoinSet::new();
        let Some(items) = &mut self.items else { return };
        loop {
            // What comes after the end of the host is not for it.
            let item = tokio::select! {
                biased;
                () = handler.ended() => return,
                item = items.recv() => item,
            };
            let Some(item) = item else { return };
            while answers.try_join_next().is_some() {}
            match item {
                Item::Message(message, memory) => handler.deliver(message, memory).await,
                Item::Exited(peer) => handler.exited(peer).await,
                Item::Request(request, responder, slots) => {
                    let handler = Arc::clone(&handler);
                    answers.spawn(async move {
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
        if !self.gateway.is_closed.load(Ordering::Acquire) {
            *self.gateway.parked.lock() = self.items.take();
        }
    }
}

struct Outgoing(Arc<Gateway>);

impl Sender for Outgoing {
    fn send(&self, _: &Upid, to: &Upid, name: &'static str, body: &Bytes) {
        self.0.with_process(|process| process.send(to, name, body));
    }

    fn link(&self, to: &Upid) {
        self.0.with_process(|process| process.link(to));
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;
    use crate::limits::Limit;
    use crate::transport::tests::{BODY_MAX, Host, Told, admit, classify};

    const FROM: &str = "overlay-agent@10.0.0.7:5051";

    fn own() -> SocketAddrV4 {
        "10.0.0.1:5050".parse().unwrap()
    }

    fn gateway() -> Arc<Gateway> {
        Gateway::new(Limits::of_master(), Judge { admit, classify })
    }

    /// Notes what it is asked to do.
    #[derive(Default)]
    struct Sent(Mutex<Vec<String>>);

    impl Process for Sent {
        fn send(&self, to: &Upid, name: &'static str, body: &[u8]) {
            self.0.lock().push(format!("{name} to {to}: {body:?}"));
        }

        fn link(&self, to: &Upid) {
            self.0.lock().push(format!("link to {to}"));
        }
    }

    /// Notes the answer.
    struct Waiting(std::sync::mpsc::Sender<(StatusCode, Bytes)>);

    impl Responder for Waiting {
        fn respond(self: Box<Self>, response: Response<Bytes>) {
            self.0.send((response.status(), response.into_body())).unwrap();
        }
    }

    fn ask(
        gateway: &Gateway,
        body: &'static [u8],
    ) -> std::sync::mpsc::Receiver<(StatusCode, Bytes)> {
        let (sender, receiver) = std::sync::mpsc::channel();
        let mut request = Request::new(Bytes::from_static(body));
        *request.uri_mut() = "/overlay-master/state".parse().unwrap();
        gateway.request(request, "10.0.0.2:40000", Box::new(Waiting(sender)));
        receiver
    }

    #[tokio::test]
    async fn what_comes_in_reaches_the_host_in_order() {
        let gateway = gateway();
        let (host, mut told) = Host::new();
        let (_sender, feed) = gateway.transport(own()).open(host);
        let feed = tokio::spawn(feed);
        gateway.deliver(FROM, "overlay-master", "First", b"1");
        gateway.exited("10.0.0.9:5051".parse().unwrap());
        gateway.deliver(FROM, "overlay-master", "Second", b"");
        let message = |name: &str, body: &'static [u8]| {
            Told::Message(Incoming {
                from: FROM.parse().unwrap(),
                to: "overlay-master".to_owned(),
                name: name.to_owned(),
                body: Bytes::from_static(body),
            })
        };
        assert_eq!(told.recv().await, Some(message("First", b"1")));
        assert_eq!(told.recv().await, Some(Told::Exited("10.0.0.9:5051".parse().unwrap())));
        assert_eq!(told.recv().await, Some(message("Second", b"")));
        let answer = ask(&gateway, b"");
        assert!(matches!(told.recv().await, Some(Told::Request(..))));
        let answer = tokio::task::spawn_blocking(move || answer.recv().unwrap()).await.unwrap();
        assert_eq!(answer, (StatusCode::OK, Bytes::from_static(b"GET /overlay-master/state")));
        feed.abort();
    }

    #[tokio::test]
    async fn a_full_queue_loses_messages_and_refuses_requests_at_once() {
        let gateway = gateway();
        let (host, _told) = Host::new();
        let refused = Arc::clone(&host);
        // Nobody polls the feed.
        let (_sender, _feed) = gateway.transport(own()).open(host);
        let body = vec![0; BODY_MAX];
        for _ in 0..4 {
            gateway.deliver(FROM, "overlay-master", "Big", &body);
        }
        assert!(refused.refused.lock().is_empty());
        gateway.deliver(FROM, "overlay-master", "Big", &body);
        // Others find their share of it.
        gateway.deliver("overlay-agent@10.0.0.8:5051", "overlay-master", "Big", &body);
        let full = Refusal::Limit(Limit::RequestBytesPerAddress);
        assert_eq!(*refused.refused.lock(), [full]);
    }

    #[tokio::test]
    async fn ignored_message_is_not_copied_and_counts_against_rate() {
        let gateway = gateway();
        let (host, mut told) = Host::new();
        let refused = Arc::clone(&host);
        let (_sender, feed) = gateway.transport(own()).open(host);
        let feed = tokio::spawn(feed);
        gateway.deliver(FROM, "overlay-master", "Ignored", &vec![0; BODY_MAX]);
        assert!(matches!(told.recv().await, Some(Told::Message(it)) if it.body.is_empty()));
        for _ in 0..2000 {
            gateway.deliver(FROM, "overlay-master", "N", b"");
        }
        let limited = Refusal::Limit(Limit::MessagesPerSecondPerAddress);
        assert!(refused.refused.lock().iter().all(|refusal| *refusal == limited));
        assert!(refused.refused.lock().len() > 900);
        let other = "overlay-agent@10.0.0.8:5051";
        let before = refused.refused.lock().len();
        gateway.deliver(other, "overlay-master", "N", b"");
        assert_eq!(refused.refused.lock().len(), before);
        feed.abort();
    }

    #[tokio::test]
    async fn what_cannot_be_used_is_refused() {
        let gateway = gateway();
        let (host, _told) = Host::new();
        let refused = Arc::clone(&host);
        let (_sender, _feed) = gateway.transport(own()).open(host);
        gateway.deliver("(1)@[::1]:5051", "overlay-master", "Six", b"");
        gateway.deliver(FROM, "overlay-master", "Big", &vec![0; BODY_MAX + 1]);
        let texts: Vec<_> = refused.refused.lock().iter().map(ToString::to_string).collect();
        let sender = "unusable sender: '(1)@[::1]:5051' is no process address: expected id@ip:port";
        assert_eq!(texts, [sender.to_owned(), format!("the body exceeds {BODY_MAX} bytes")]);
    }

    #[tokio::test]
    async fn what_waits_is_for_the_next_host() {
        let gateway = gateway();
        gateway.deliver(FROM, "overlay-master", "Early", b"");
        drop(gateway.transport(own()).open(Host::new().0));
        let answer = ask(&gateway, b"");
        let (host, mut told) = Host::new();
        let (_sender, feed) = gateway.transport(own()).open(host);
        let feed = tokio::spawn(feed);
        assert!(matches!(told.recv().await, Some(Told::Message(it)) if it.name == "Early"));
        assert!(matches!(told.recv().await, Some(Told::Request(..))));
        feed.abort();
        assert!(feed.await.is_err());
        drop(answer);
        let answer = ask(&gateway, b"");
        gateway.close();
        assert!(answer.recv().is_err(), "the responder was dropped");
        assert!(ask(&gateway, b"").recv().is_err(), "nothing is taken any more");
    }

    #[tokio::test]
    async fn nothing_goes_out_once_the_process_is_gone() {
        let gateway = gateway();
        let sent = Arc::new(Sent::default());
        gateway.attach(Arc::clone(&sent) as _);
        let (sender, _feed) = gateway.transport(own()).open(Host::new().0);
        let (from, to) = (Upid::master(own()), FROM.parse().unwrap());
        sender.link(&to);
        sender.send(&from, &to, "Name", &Bytes::from_static(b"ab"));
        gateway.detach();
        sender.send(&from, &to, "Name", &Bytes::new());
        let expected = [format!("link to {FROM}"), format!("Name to {FROM}: [97, 98]")];
        assert_eq!(*sent.0.lock(), expected);
        assert_eq!(Arc::strong_count(&sent), 1, "it is let go");
    }
}
