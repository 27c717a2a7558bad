//! Raw peers that speak the wire by hand. Everything runs on loopback, on ports that the system
//! chooses.

mod browser;
mod client;
mod connection;
mod parser;

use std::net::{SocketAddr, SocketAddrV4};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::{Server, ServerOptions};
use crate::transport::Incoming;
pub(super) use crate::transport::tests::{Host, Told};

/// No test waits longer for something that must happen.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running server.
pub(super) struct Running {
    pub(super) address: SocketAddrV4,
    pub(super) host: Arc<Host>,
    pub(super) told: mpsc::UnboundedReceiver<Told>,
    pub(super) task: JoinHandle<()>,
}

impl Running {
    pub(super) fn start(options: ServerOptions) -> Self {
        let server = Server::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = server.local_addr();
        let (host, told) = Host::new();
        let task = tokio::spawn(server.run(Arc::clone(&host), options, std::future::pending()));
        Self { address, host, told, task }
    }

    pub(super) async fn connect(&self) -> TcpStream {
        TcpStream::connect(SocketAddr::V4(self.address)).await.unwrap()
    }

    pub(super) async fn told(&mut self) -> Told {
        next(&mut self.told).await
    }

    pub(super) async fn message(&mut self) -> Incoming {
        match self.told().await {
            Told::Message(message) => message,
            other => panic!("expected a message, not {other:?}"),
        }
    }

    /// Sends `request` on a connection of its own, ends the sending side, and gives all that comes
    /// back.
    pub(super) async fn ask(&self, request: impl AsRef<[u8]>) -> String {
        let mut stream = self.connect().await;
        stream.write_all(request.as_ref()).await.unwrap();
        stream.shutdown().await.unwrap();
        rest(&mut stream).await
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(super) async fn next(told: &mut mpsc::UnboundedReceiver<Told>) -> Told {
    timeout(PATIENCE, told.recv()).await.expect("nothing was told").unwrap()
}

/// All that comes until the end, which must come soon.
pub(super) async fn rest(stream: &mut TcpStream) -> String {
    timeout(PATIENCE, rest_at_last(stream)).await.expect("no end came")
}

/// All that comes until the end, whenever that is.
pub(super) async fn rest_at_last(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    stream.read_to_end(&mut text).await.unwrap();
    String::from_utf8(text).unwrap()
}

/// Exactly `count` replies without a body, with their statuses.
pub(super) async fn statuses(stream: &mut TcpStream, count: usize) -> Vec<u16> {
    let mut text = String::new();
    while text.matches("\r\n\r\n").count() < count {
        let mut piece = [0; 1024];
        let length = timeout(PATIENCE, stream.read(&mut piece)).await.expect("no reply").unwrap();
        assert_ne!(length, 0, "the connection ended after {text:?}");
        text.push_str(std::str::from_utf8(&piece[..length]).unwrap());
    }
    statuses_in(&text)
}

pub(super) fn statuses_in(text: &str) -> Vec<u16> {
    text.match_indices("HTTP/1.1 ").map(|(at, _)| text[at + 9..at + 12].parse().unwrap()).collect()
}

/// A recorded request.
pub(super) fn golden(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    std::fs::read(path).unwrap()
}

pub(super) const GOLDEN: [&str; 4] = [
    "RegisterAgentMessage.http",
    "UpdateAgentOverlaysMessage.http",
    "AgentRegisteredMessage.http",
    "AgentRegisteredAcknowledgement.http",
];

/// The body of a recorded request: it has one chunk or none.
pub(super) fn golden_body(request: &[u8]) -> &[u8] {
    let head = request.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
    let Some(line) = request[head..].windows(2).position(|window| window == b"\r\n") else {
        return &[];
    };
    &request[head + line + 2..request.len() - b"\r\n0\r\n\r\n".len()]
}

/// A message without a body.
pub(super) fn message(to: &str, name: &str) -> String {
    format!("POST /{to}/{name} HTTP/1.1\r\nLibprocess-From: overlay-agent@127.0.0.1:5051\r\n\r\n")
}
