//! A host that notes what it is told, for the tests of every transport.

use std::net::{SocketAddr, SocketAddrV4};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc};

use super::{Admission, Handler, Incoming, Refusal, RequestClass, Reservation};

/// Longest body of a message or a request that the host takes.
pub(in crate::transport) const BODY_MAX: usize = 1024 * 1024;

/// Length of a large response: more than the sockets of a connection take.
const LARGE: usize = 12 * 1024 * 1024;

/// See [`Handler::admit`]. Names with `Registration` register.
pub(in crate::transport) fn admit(to: &str, name: &str) -> Result<Admission, Refusal> {
    if !["overlay-master", "overlay-agent", "slave(1) x"].contains(&to) {
        return Err(Refusal::UnknownProcess(to.to_owned()));
    }
    if name == "Ignored" {
        return Ok(Admission::IGNORED);
    }
    let is_registration = name.contains("Registration");
    Ok(Admission { body_max: BODY_MAX, is_read: true, is_registration })
}

/// See [`Handler::classify`]. Paths with `heavy` are.
pub(in crate::transport) fn classify(_: &http::Method, path: &str) -> RequestClass {
    RequestClass { body_max: BODY_MAX, is_heavy: path.contains("heavy") }
}

/// What the host was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::transport) enum Told {
    Message(Incoming),
    Request(String, Bytes),
    Exited(SocketAddrV4),
}

/// The processes `overlay-master`, `overlay-agent` and `slave(1) x` live here.
pub(in crate::transport) struct Host {
    told: mpsc::UnboundedSender<Told>,
    pub(in crate::transport) refused: Mutex<Vec<Refusal>>,
    /// Messages that the host still has room for.
    pub(in crate::transport) room: Semaphore,
}

impl Host {
    pub(in crate::transport) fn new() -> (Arc<Self>, mpsc::UnboundedReceiver<Told>) {
        let (told, receiver) = mpsc::unbounded_channel();
        let room = Semaphore::new(Semaphore::MAX_PERMITS / 2);
        (Arc::new(Self { told, refused: Mutex::default(), room }), receiver)
    }
}

impl Handler for Host {
    fn admit(&self, to: &str, name: &str) -> Result<Admission, Refusal> {
        admit(to, name)
    }

    fn classify(&self, method: &http::Method, path: &str) -> RequestClass {
        classify(method, path)
    }

    async fn deliver(&self, message: Incoming, _memory: Reservation) {
        assert_ne!(message.name, "Panic", "asked for by a test");
        self.room.acquire().await.unwrap().forget();
        let _ = self.told.send(Told::Message(message));
    }

    async fn respond(&self, request: http::Request<Bytes>) -> http::Response<Bytes> {
        let text = format!("{} {}", request.method(), request.uri());
        assert!(!text.contains("panic"), "asked for by a test");
        let _ = self.told.send(Told::Request(text.clone(), request.into_body()));
        if text.contains("held") {
            std::future::pending::<()>().await;
        }
        if text.contains("large") {
            return http::Response::new(vec![b'x'; LARGE].into());
        }
        http::Response::new(text.into())
    }

    async fn exited(&self, peer: SocketAddrV4) {
        let _ = self.told.send(Told::Exited(peer));
    }

    async fn ended(&self) {
        std::future::pending().await
    }

    fn refused(&self, _: SocketAddr, refusal: &Refusal) {
        self.refused.lock().push(refusal.clone());
    }
}
