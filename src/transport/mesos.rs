//! The transport of a module: a libprocess process in mesos-master or mesos-agent brings what comes
//! in and sends what goes out.
//!
//! libprocess calls from its own few threads, which all of Mesos shares. So [`Gateway`] never
//! waits: what comes in goes into one bounded queue, in order, from which a task of ours feeds the
//! host. When the queue is full, messages are lost, as libprocess allows, and requests are told to
//! come again. The gateway outlives its host: a host that is started again opens a new queue.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;

use super::{Handler, Incoming, Refusal, Sender, Transport};
use crate::addr::Upid;

/// What waits for the host, at most. 10,000 agents that register at once send as many messages, and
/// libprocess delivers them faster than they can be served.
const QUEUE_ITEMS: usize = 64 * 1024;
/// Bytes of message and request bodies that wait, at most.
const QUEUE_BYTES: usize = 64 * 1024 * 1024;
/// Longest body of one message or request; that of the program's transport.
const BODY_LIMIT: usize = 4 * 1024 * 1024;
/// Requests that are being answered at a time.
const REQUESTS: usize = 1024;

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

/// Where the Mesos process brings what comes in.
pub struct Gateway {
    process: RwLock<Option<Arc<dyn Process>>>,
    route: Mutex<Option<Route>>,
    room: Arc<Semaphore>,
    requests: Arc<Semaphore>,
}

/// The way to the host that is running now.
#[derive(Clone)]
struct Route {
    queue: mpsc::Sender<Item>,
    refuse: Arc<dyn Fn(SocketAddr, &Refusal) + Send + Sync>,
}

enum Item {
    /// The permit gives the room of the body back.
    Message(Incoming, OwnedSemaphorePermit),
    Request(Request<Bytes>, Box<dyn Responder>, [OwnedSemaphorePermit; 2]),
    Exited(SocketAddrV4),
}

impl std::fmt::Debug for Gateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gateway")
            .field("is_attached", &self.process.read().is_some())
            .field("is_open", &self.route.lock().is_some())
            .finish_non_exhaustive()
    }
}

impl Gateway {
    /// A gateway without process and host: what comes in is lost, and nothing can go out.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            process: RwLock::new(None),
            route: Mutex::new(None),
            room: Arc::new(Semaphore::new(QUEUE_BYTES)),
            requests: Arc::new(Semaphore::new(REQUESTS)),
        })
    }

    /// From now on messages go out through `process`.
    pub fn attach(&self, process: Arc<dyn Process>) {
        *self.process.write() = Some(process);
    }

    /// When this returns, no call into the Mesos process is under way any more, and none will come.
    pub fn detach(&self) {
        *self.route.lock() = None;
        *self.process.write() = None;
    }

    /// Calls the Mesos process, unless it is gone.
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
        let Some(route) = self.route() else { return };
        let peer = from.parse().map(|from: Upid| from.address);
        let nobody = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let peer_address = peer.as_ref().map_or(nobody, |&address| address.into());
        let refuse = |refusal| (route.refuse)(peer_address, &refusal);
        let from = match from.parse() {
            Ok(from) => from,
            Err(error) => return refuse(Refusal::Sender(error)),
        };
        let room = match self.room_for(body) {
            Ok(room) => room,
            Err(refusal) => return refuse(refusal),
        };
        let message = Incoming {
            from,
            to: to.to_owned(),
            name: name.to_owned(),
            body: Bytes::copy_from_slice(body),
        };
        if route.queue.try_send(Item::Message(message, room)).is_err() {
            refuse(Refusal::Busy);
        }
    }

    /// Takes a request. `peer` is whom to name if it is refused.
    pub fn request(
        &self,
        request: Request<Bytes>,
        peer: SocketAddr,
        responder: Box<dyn Responder>,
    ) {
        let Some(route) = self.route() else {
            return responder.respond(refusal_response(&Refusal::Busy));
        };
        let permits = self.room_for(request.body()).and_then(|room| {
            let slot = Arc::clone(&self.requests).try_acquire_owned();
            slot.map(|slot| [room, slot]).map_err(|_| Refusal::Busy)
        });
        let refusal = match permits {
            Ok(permits) => {
                let sent = route.queue.try_send(Item::Request(request, responder, permits));
                // The responder is within the error, and answers for itself.
                if sent.is_ok() {
                    return;
                }
                Refusal::Busy
            }
            Err(refusal) => {
                responder.respond(refusal_response(&refusal));
                refusal
            }
        };
        (route.refuse)(peer, &refusal);
    }

    /// The program at `peer` is gone, or its connection is.
    pub fn exited(&self, peer: SocketAddrV4) {
        if let Some(route) = self.route()
            && route.queue.try_send(Item::Exited(peer)).is_err()
        {
            (route.refuse)(peer.into(), &Refusal::Busy);
        }
    }

    fn route(&self) -> Option<Route> {
        self.route.lock().clone()
    }

    fn room_for(&self, body: &[u8]) -> Result<OwnedSemaphorePermit, Refusal> {
        if body.len() > BODY_LIMIT {
            return Err(Refusal::BodyTooLarge(BODY_LIMIT));
        }
        // At least 1, so that empty messages count too; BODY_LIMIT fits in a u32.
        let bytes = u32::try_from(body.len().max(1)).unwrap_or(u32::MAX);
        Arc::clone(&self.room).try_acquire_many_owned(bytes).map_err(|_| Refusal::Busy)
    }
}

fn refusal_response(refusal: &Refusal) -> Response<Bytes> {
    let status = match refusal {
        Refusal::Busy => StatusCode::SERVICE_UNAVAILABLE,
        other => other.status(),
    };
    let mut response = Response::new(Bytes::from(format!("{refusal}\n")));
    *response.status_mut() = status;
    response
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
        let (queue, items) = mpsc::channel(QUEUE_ITEMS);
        let refusing = Arc::clone(&handler);
        let route =
            Route { queue, refuse: Arc::new(move |peer, refusal| refusing.refused(peer, refusal)) };
        *self.gateway.route.lock() = Some(route);
        (Box::new(Outgoing(Arc::clone(&self.gateway))), feed(handler, items))
    }
}

/// Brings what waits to the host, in order. An answer may take longer than what comes after it.
async fn feed<H: Handler>(handler: Arc<H>, mut items: mpsc::Receiver<Item>) {
    let mut answers = JoinSet::new();
    while let Some(item) = items.recv().await {
        while answers.try_join_next().is_some() {}
        match item {
            Item::Message(message, room) => {
                handler.deliver(message).await;
                drop(room);
            }
            Item::Exited(peer) => handler.exited(peer).await,
            Item::Request(request, responder, permits) => {
                let handler = Arc::clone(&handler);
                answers.spawn(async move {
                    responder.respond(handler.respond(request).await);
                    drop(permits);
                });
            }
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
