//! A handler that records its calls, for the tests of transports.

use std::net::{SocketAddr, SocketAddrV4};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc};

use super::{Admission, Handler, Incoming, Rejection, RequestClass, Reservation};

/// Maximum length of the body of a message or a request.
pub const BODY_MAX: usize = 1024 * 1024;

/// Length of a large response: more than the socket buffers of a connection hold.
pub const LARGE: usize = 12 * 1024 * 1024;

/// Implements [`Handler::admit`] for the processes `server`, `client` and `slave(1) x`. A name that
/// contains `Registration` is a registration, and the name `Ignored` is ignored.
///
/// # Errors
/// If the process does not exist.
pub fn admit(to: &str, name: &str) -> Result<Admission, Rejection> {
    if !["server", "client", "slave(1) x"].contains(&to) {
        return Err(Rejection::UnknownProcess(to.to_owned()));
    }
    if name == "Ignored" {
        return Ok(Admission::IGNORED);
    }
    let is_registration = name.contains("Registration");
    Ok(Admission { body_max: BODY_MAX, is_read: true, is_registration })
}

/// Implements [`Handler::classify`]. A path that contains `heavy` is expensive.
pub fn classify(_: &http::Method, path: &str) -> RequestClass {
    RequestClass { body_max: BODY_MAX, is_heavy: path.contains("heavy") }
}

/// A call of the handler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// A message was delivered.
    Message(Incoming),
    /// A request was received, with this method, target and body.
    Request(String, Bytes),
    /// A linked peer has exited.
    Exited(SocketAddrV4),
}

/// A handler that records its calls. Its processes are `server`, `client` and `slave(1) x`.
#[derive(Debug)]
pub struct RecordingHandler {
    calls: mpsc::UnboundedSender<Call>,
    /// All rejections in order.
    pub rejections: Mutex<Vec<Rejection>>,
    /// Number of messages that the handler still accepts.
    pub capacity: Semaphore,
}

impl RecordingHandler {
    /// Creates a handler, and the receiver of its calls.
    #[must_use]
    pub fn new() -> (Arc<Self>, mpsc::UnboundedReceiver<Call>) {
        let (calls, receiver) = mpsc::unbounded_channel();
        let capacity = Semaphore::new(Semaphore::MAX_PERMITS / 2);
        (Arc::new(Self { calls, rejections: Mutex::default(), capacity }), receiver)
    }
}

impl Handler for RecordingHandler {
    fn admit(&self, to: &str, name: &str) -> Result<Admission, Rejection> {
        admit(to, name)
    }

    fn classify(&self, method: &http::Method, path: &str) -> RequestClass {
        classify(method, path)
    }

    async fn deliver(&self, message: Incoming, _memory: Reservation) {
        assert_ne!(message.name, "Panic", "requested by a test");
        self.capacity.acquire().await.expect("the semaphore stays open").forget();
        let _ = self.calls.send(Call::Message(message));
    }

    async fn respond(&self, request: http::Request<Bytes>) -> http::Response<Bytes> {
        let text = format!("{} {}", request.method(), request.uri());
        assert!(!text.contains("panic"), "requested by a test");
        let _ = self.calls.send(Call::Request(text.clone(), request.into_body()));
        if text.contains("held") {
            std::future::pending::<()>().await;
        }
        if text.contains("large") {
            return http::Response::new(vec![b'x'; LARGE].into());
        }
        http::Response::new(text.into())
    }

    async fn exited(&self, peer: SocketAddrV4) {
        let _ = self.calls.send(Call::Exited(peer));
    }

    async fn stopped(&self) {
        std::future::pending().await
    }

    fn rejected(&self, _: SocketAddr, rejection: &Rejection) {
        self.rejections.lock().push(rejection.clone());
    }
}
