//! Tests with raw sockets as peers, on loopback and on ports that the system chooses.

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
pub(super) use crate::testing::{Call, RecordingHandler};
use crate::{Incoming, Upid};

/// Timeout of every expected event.
const TIMEOUT: Duration = Duration::from_secs(20);

/// A running server.
pub(super) struct RunningServer {
    pub(super) address: SocketAddrV4,
    pub(super) handler: Arc<RecordingHandler>,
    pub(super) calls: mpsc::UnboundedReceiver<Call>,
    pub(super) task: JoinHandle<()>,
}

impl RunningServer {
    pub(super) fn start(options: ServerOptions) -> Self {
        let server = Server::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = server.local_addr();
        let (handler, calls) = RecordingHandler::new();
        let task = tokio::spawn(server.run(Arc::clone(&handler), options, std::future::pending()));
        Self { address, handler, calls, task }
    }

    pub(super) async fn connect(&self) -> TcpStream {
        TcpStream::connect(SocketAddr::V4(self.address)).await.unwrap()
    }

    pub(super) async fn next_call(&mut self) -> Call {
        next(&mut self.calls).await
    }

    pub(super) async fn message(&mut self) -> Incoming {
        match self.next_call().await {
            Call::Message(message) => message,
            other => panic!("expected a message, not {other:?}"),
        }
    }

    /// Sends `request` on a new connection, shuts down the sending side, and returns the complete
    /// response.
    pub(super) async fn ask(&self, request: impl AsRef<[u8]>) -> String {
        let mut stream = self.connect().await;
        stream.write_all(request.as_ref()).await.unwrap();
        stream.shutdown().await.unwrap();
        rest(&mut stream).await
    }
}

impl Drop for RunningServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(super) async fn next(calls: &mut mpsc::UnboundedReceiver<Call>) -> Call {
    timeout(TIMEOUT, calls.recv()).await.expect("the handler is called in time").unwrap()
}

/// Reads to the end of the connection, which must come before the timeout.
pub(super) async fn rest(stream: &mut TcpStream) -> String {
    timeout(TIMEOUT, rest_without_timeout(stream)).await.expect("the connection ends in time")
}

/// Reads to the end of the connection, without a timeout.
pub(super) async fn rest_without_timeout(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    stream.read_to_end(&mut text).await.unwrap();
    String::from_utf8(text).unwrap()
}

/// Reads `count` responses without a body and returns their statuses.
pub(super) async fn statuses(stream: &mut TcpStream, count: usize) -> Vec<u16> {
    let mut text = String::new();
    while text.matches("\r\n\r\n").count() < count {
        let mut piece = [0; 1024];
        let length =
            timeout(TIMEOUT, stream.read(&mut piece)).await.expect("a response in time").unwrap();
        assert_ne!(length, 0, "the connection ended after {text:?}");
        text.push_str(std::str::from_utf8(&piece[..length]).unwrap());
    }
    statuses_in(&text)
}

pub(super) fn statuses_in(text: &str) -> Vec<u16> {
    text.match_indices("HTTP/1.1 ").map(|(at, _)| text[at + 9..at + 12].parse().unwrap()).collect()
}

/// Reads a recorded request. The heads are recorded libprocess traffic with neutral names.
pub(super) fn golden(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name);
    std::fs::read(path).unwrap()
}

pub(super) const GOLDEN: [&str; 4] =
    ["RegisterMessage.http", "UpdateMessage.http", "ReportMessage.http", "Acknowledgement.http"];

/// Returns the body of a recorded request, which has at most one chunk.
pub(super) fn golden_body(request: &[u8]) -> &[u8] {
    let head = request.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
    let Some(line) = request[head..].windows(2).position(|window| window == b"\r\n") else {
        return &[];
    };
    &request[head + line + 2..request.len() - b"\r\n0\r\n\r\n".len()]
}

/// Returns a message without a body.
pub(super) fn message(to: &str, name: &str) -> String {
    format!("POST /{to}/{name} HTTP/1.1\r\nLibprocess-From: client@127.0.0.1:5051\r\n\r\n")
}

/// Returns the process `server` at `address`.
pub(super) fn server_upid(address: SocketAddrV4) -> Upid {
    Upid { id: "server".to_owned(), address }
}

/// Returns the process `client` at `address`.
pub(super) fn client_upid(address: SocketAddrV4) -> Upid {
    Upid { id: "client".to_owned(), address }
}
