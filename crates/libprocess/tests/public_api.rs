//! Messages, HTTP requests, links and rejections between two programs, with the public API only.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use libprocess::limits::{Limit, Limits};
use libprocess::{
    Admission, Handler, Incoming, Receipt, Rejection, RequestClass, Reservation, Sender, Server,
    ServerOptions, TcpTransport, Transport, Upid, read_message,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Timeout of every expected event.
const TIMEOUT: Duration = Duration::from_secs(20);

const BODY_MAX: usize = 1024;

#[derive(Debug, PartialEq, Eq)]
enum Event {
    Message(Incoming),
    Exited(SocketAddrV4),
    Rejected(Rejection),
}

/// A handler with the process `worker` that reports every call.
struct Worker(mpsc::UnboundedSender<Event>);

impl Handler for Worker {
    fn admit(&self, to: &str, _name: &str) -> Result<Admission, Rejection> {
        if to != "worker" {
            return Err(Rejection::UnknownProcess(to.to_owned()));
        }
        Ok(Admission { body_max: BODY_MAX, is_read: true, is_registration: false })
    }

    async fn deliver(&self, message: Incoming, _memory: Reservation) {
        let _ = self.0.send(Event::Message(message));
    }

    fn classify(&self, _method: &http::Method, _path: &str) -> RequestClass {
        RequestClass { body_max: BODY_MAX, is_heavy: false }
    }

    async fn respond(&self, request: http::Request<Bytes>) -> http::Response<Bytes> {
        let (parts, body) = request.into_parts();
        http::Response::new(format!("{} {} {body:?}", parts.method, parts.uri).into())
    }

    async fn exited(&self, peer: SocketAddrV4) {
        let _ = self.0.send(Event::Exited(peer));
    }

    async fn stopped(&self) {
        self.0.closed().await;
    }

    fn rejected(&self, _peer: SocketAddr, rejection: &Rejection) {
        let _ = self.0.send(Event::Rejected(rejection.clone()));
    }
}

/// A running program with the process `worker`.
struct Program {
    worker: Upid,
    sender: Box<dyn Sender>,
    events: mpsc::UnboundedReceiver<Event>,
    server: JoinHandle<()>,
}

impl Program {
    fn start() -> Self {
        Self::with_limits(Limits::for_server())
    }

    fn with_limits(limits: Limits) -> Self {
        let server = Server::bind(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).expect("bound");
        let advertise = server.local_addr();
        let options = ServerOptions { limits, ..ServerOptions::default() };
        let (events, receiver) = mpsc::unbounded_channel();
        let transport = TcpTransport { server, options, advertise };
        let (sender, serve) = transport.open(Arc::new(Worker(events)));
        let worker = Upid { id: "worker".to_owned(), address: advertise };
        Self { worker, sender, events: receiver, server: tokio::spawn(serve) }
    }

    async fn event(&mut self) -> Event {
        timeout(TIMEOUT, self.events.recv()).await.expect("an event in time").expect("running")
    }

    /// Sends raw bytes on a new connection and returns the complete response.
    async fn exchange(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.worker.address).await.expect("connected");
        stream.write_all(request.as_bytes()).await.expect("written");
        stream.shutdown().await.expect("shut down");
        let mut response = String::new();
        let read = stream.read_to_string(&mut response);
        timeout(TIMEOUT, read).await.expect("a response in time").expect("read");
        response
    }
}

fn message(from: &Upid, name: &str, body: &Bytes) -> Event {
    let (from, to, name) = (from.clone(), "worker".to_owned(), name.to_owned());
    Event::Message(Incoming { from, to, name, body: body.clone() })
}

#[tokio::test]
async fn message_is_delivered_and_answered() {
    let (mut first, mut second) = (Program::start(), Program::start());
    let body = Bytes::from_static(b"\x00\r\n\r\n body");
    first.sender.send(&first.worker, &second.worker, "Question", &body, Receipt::Always);
    assert_eq!(second.event().await, message(&first.worker, "Question", &body));
    second.sender.send(&second.worker, &first.worker, "Answer", &Bytes::new(), Receipt::Always);
    assert_eq!(first.event().await, message(&second.worker, "Answer", &Bytes::new()));
}

#[tokio::test]
async fn http_request_on_message_port_is_answered() {
    let program = Program::start();
    let request = "POST /status?full HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi";
    let response = program.exchange(request).await;
    assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
    assert!(response.ends_with("POST /status?full b\"hi\""), "{response}");
}

#[tokio::test]
async fn message_to_unknown_process_is_rejected() {
    let (first, mut second) = (Program::start(), Program::start());
    let unknown = Upid { id: "nobody".to_owned(), ..second.worker.clone() };
    first.sender.send(&first.worker, &unknown, "Question", &Bytes::new(), Receipt::Always);
    let rejection = Rejection::UnknownProcess("nobody".to_owned());
    assert_eq!(second.event().await, Event::Rejected(rejection));
    let request = "POST /nobody/Question HTTP/1.1\r\nLibprocess-From: a@127.0.0.1:1\r\n\r\n";
    let response = second.exchange(request).await;
    assert!(response.starts_with("HTTP/1.1 404 Not Found\r\n"), "{response}");
    assert!(response.ends_with("unknown process 'nobody'"), "{response}");
}

#[tokio::test]
async fn message_beyond_rate_limit_is_rejected() {
    // One message per second, in bursts of ten seconds.
    let limits = Limits::for_server().with(Limit::MessagesPerSecondPerAddress, 1);
    let mut receiver = Program::with_limits(limits);
    let sender = Program::start();
    for _ in 0..11 {
        sender.sender.send(&sender.worker, &receiver.worker, "N", &Bytes::new(), Receipt::Always);
    }
    for _ in 0..10 {
        assert_eq!(receiver.event().await, message(&sender.worker, "N", &Bytes::new()));
    }
    let rejection = Rejection::Limit(Limit::MessagesPerSecondPerAddress);
    assert_eq!(receiver.event().await, Event::Rejected(rejection));
}

#[tokio::test]
async fn end_of_linked_program_is_reported() {
    let (mut first, mut second) = (Program::start(), Program::start());
    first.sender.link(&second.worker);
    // The message uses the connection of the link, so the link is established when it arrives.
    first.sender.send(&first.worker, &second.worker, "N", &Bytes::new(), Receipt::Always);
    assert_eq!(second.event().await, message(&first.worker, "N", &Bytes::new()));
    second.server.abort();
    assert_eq!(first.event().await, Event::Exited(second.worker.address));
}

#[test]
fn recorded_message_is_parsed() {
    let recorded = include_bytes!("data/RegisterMessage.http");
    let parsed = read_message(&[recorded], |_| BODY_MAX).expect("accepted").expect("complete");
    assert_eq!(parsed.from.to_string(), "client@127.0.0.1:5051");
    assert_eq!((&*parsed.to, &*parsed.name), ("server", "example.internal.RegisterMessage"));
    assert_eq!(parsed.body.len(), 11);
}
