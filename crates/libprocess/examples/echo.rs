//! Two programs on loopback: `caller` sends a message to `echo`, and `echo` sends the body back.
//!
//! Run with `cargo run --example echo`.

use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use libprocess::{
    Admission, Handler, Incoming, Receipt, Rejection, RequestClass, Reservation, Sender, Server,
    ServerOptions, TcpTransport, Transport, Upid,
};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Longest accepted body in bytes.
const BODY_MAX: usize = 64 * 1024;

/// Passes all messages for one process to a channel.
struct Inbox {
    process: &'static str,
    messages: mpsc::Sender<Incoming>,
}

impl Handler for Inbox {
    fn admit(&self, to: &str, _name: &str) -> Result<Admission, Rejection> {
        if to != self.process {
            return Err(Rejection::UnknownProcess(to.to_owned()));
        }
        Ok(Admission { body_max: BODY_MAX, is_read: true, is_registration: false })
    }

    async fn deliver(&self, message: Incoming, _memory: Reservation) {
        let _ = self.messages.send(message).await;
    }

    fn classify(&self, _method: &http::Method, _path: &str) -> RequestClass {
        RequestClass { body_max: BODY_MAX, is_heavy: false }
    }

    async fn respond(&self, request: http::Request<Bytes>) -> http::Response<Bytes> {
        http::Response::new(format!("{} at {}\n", self.process, request.uri().path()).into())
    }

    async fn exited(&self, _peer: SocketAddrV4) {}

    async fn stopped(&self) {
        self.messages.closed().await;
    }

    fn rejected(&self, peer: SocketAddr, rejection: &Rejection) {
        log::warn!("peer {peer}: {rejection}");
    }
}

/// A running program with one process.
struct Program {
    process: Upid,
    sender: Box<dyn Sender>,
    messages: mpsc::Receiver<Incoming>,
}

impl Program {
    /// Starts a program with the process `id` on a port that the system chooses.
    fn start(id: &'static str) -> std::io::Result<Self> {
        let server = Server::bind(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0))?;
        let advertise = server.local_addr();
        let transport = TcpTransport { server, options: ServerOptions::default(), advertise };
        let (sender, messages) = mpsc::channel(16);
        let inbox = Arc::new(Inbox { process: id, messages: sender });
        let (sender, serve) = transport.open(inbox);
        tokio::spawn(serve);
        Ok(Self { process: Upid { id: id.to_owned(), address: advertise }, sender, messages })
    }

    /// Answers every message with its own body.
    async fn echo(mut self) {
        while let Some(message) = self.messages.recv().await {
            self.sender.send(&self.process, &message.from, "Echo", &message.body, Receipt::Always);
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let echo = Program::start("echo")?;
    let mut caller = Program::start("caller")?;
    let destination = echo.process.clone();
    tokio::spawn(echo.echo());

    let body = Bytes::from_static(b"hello");
    caller.sender.send(&caller.process, &destination, "Call", &body, Receipt::Always);
    let answer = timeout(Duration::from_secs(10), caller.messages.recv()).await?;
    match answer {
        Some(answer) if answer.name == "Echo" && answer.body == body => Ok(()),
        other => Err(format!("unexpected answer: {other:?}").into()),
    }
}
