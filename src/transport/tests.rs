//! A host that notes what it is told, for the tests of every transport.

use std::net::{SocketAddr, SocketAddrV4};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc};

use super::{Handler, Incoming, Refusal};

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
    fn has_process(&self, id: &str) -> bool {
        ["overlay-master", "overlay-agent", "slave(1) x"].contains(&id)
    }

    async fn deliver(&self, message: Incoming) {
        assert_ne!(message.name, "Panic", "asked for by a test");
        self.room.acquire().await.unwrap().forget();
        let _ = self.told.send(Told::Message(message));
    }

    async fn respond(&self, request: http::Request<Bytes>) -> http::Response<Bytes> {
        let text = format!("{} {}", request.method(), request.uri());
        assert!(!text.contains("panic"), "asked for by a test");
        let _ = self.told.send(Told::Request(text.clone(), request.into_body()));
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
