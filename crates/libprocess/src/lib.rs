//! Messages and HTTP of [libprocess], the actor library of Apache Mesos, over TCP.
//!
//! A program that uses this crate can exchange messages with libprocess programs, for example a
//! Mesos master, and can answer HTTP requests on the same port. The crate does not need libprocess
//! itself.
//!
//! # Protocol
//!
//! A process has an id and the address of its program: [`Upid`]. A message is a one-way HTTP/1.1
//! request, `POST /PROCESS/NAME`, whose body is the serialized message. Each direction has its own
//! connections: [`Server`] accepts the connections of peers, and [`Client`] opens connections to
//! peers. An answer is a separate message on a separate connection. The `202 Accepted` response to
//! a message is only an acknowledgment that the process exists, and no sender waits for it.
//!
//! ```text
//!   server ── connection ─┬─ head, framing ── Handler::deliver        (messages)
//!                         └─ http (hyper) ─── Handler::respond        (browsers, scripts)
//!   client ── peer (one task and one queue per address) ── encode, replies
//! ```
//!
//! # Example
//!
//! A handler receives messages and requests. `examples/echo.rs` is a complete program.
//!
//! ```
//! use std::net::{SocketAddr, SocketAddrV4};
//! use std::sync::Arc;
//!
//! use bytes::Bytes;
//! use libprocess::{
//!     Admission, Handler, Incoming, Receipt, Rejection, RequestClass, Reservation, Server, ServerOptions,
//!     TcpTransport, Transport, Upid,
//! };
//! use tokio::sync::mpsc;
//!
//! struct Printer(mpsc::UnboundedSender<String>);
//!
//! impl Handler for Printer {
//!     fn admit(&self, to: &str, _name: &str) -> Result<Admission, Rejection> {
//!         if to != "printer" {
//!             return Err(Rejection::UnknownProcess(to.to_owned()));
//!         }
//!         Ok(Admission { body_max: 4096, is_read: true, is_registration: false })
//!     }
//!
//!     async fn deliver(&self, message: Incoming, _memory: Reservation) {
//!         let _ = self.0.send(format!("{} from {}", message.name, message.from));
//!     }
//!
//!     fn classify(&self, _method: &http::Method, _path: &str) -> RequestClass {
//!         RequestClass { body_max: 4096, is_heavy: false }
//!     }
//!
//!     async fn respond(&self, _request: http::Request<Bytes>) -> http::Response<Bytes> {
//!         http::Response::new("hello".into())
//!     }
//!
//!     async fn exited(&self, _peer: SocketAddrV4) {}
//!
//!     async fn stopped(&self) {
//!         std::future::pending().await
//!     }
//!
//!     fn rejected(&self, _peer: SocketAddr, _rejection: &Rejection) {}
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> std::io::Result<()> {
//! let server = Server::bind(SocketAddrV4::new([127, 0, 0, 1].into(), 0))?;
//! let advertise = server.local_addr();
//! let transport = TcpTransport { server, options: ServerOptions::default(), advertise };
//! let (calls, mut received) = mpsc::unbounded_channel();
//! let (sender, serve) = transport.open(Arc::new(Printer(calls)));
//! tokio::spawn(serve);
//!
//! let printer = Upid { id: "printer".to_owned(), address: advertise };
//! sender.send(&printer, &printer, "Greeting", &Bytes::from_static(b"hello"), Receipt::Always);
//! assert_eq!(received.recv().await, Some(format!("Greeting from {printer}")));
//! # Ok(())
//! # }
//! ```
//!
//! # Memory
//!
//! A general HTTP server or client does not fit this protocol: the client would wait for each
//! response, and the server holds about 16 KiB per idle connection. This crate holds less than 1
//! KiB. A server with thousands of peers has two connections for each of them. [`limits`] bounds
//! the memory, the connections and the rates of peers.
//!
//! # Features
//!
//! - `net` (default): server, client and handler. Without it the crate has only [`Upid`] and
//!   [`limits`], for crates that must not depend on tokio.
//! - `testing`: `testing::RecordingHandler`, for the tests of other transports.
//!
//! [libprocess]: https://github.com/apache/mesos/tree/master/3rdparty/libprocess

pub mod limits;
mod upid;

#[cfg(feature = "net")]
pub mod addresses;
#[cfg(feature = "net")]
mod client;
#[cfg(feature = "net")]
mod connection;
#[cfg(feature = "net")]
mod connections;
#[cfg(feature = "net")]
mod encode;
#[cfg(feature = "net")]
mod framing;
#[cfg(feature = "net")]
mod handler;
#[cfg(feature = "net")]
mod head;
#[cfg(feature = "net")]
mod http;
#[cfg(feature = "net")]
mod outgoing;
#[cfg(feature = "net")]
mod parse;
#[cfg(feature = "net")]
mod peer;
#[cfg(feature = "net")]
mod replies;
#[cfg(feature = "net")]
mod server;
#[cfg(feature = "net")]
mod server_state;
#[cfg(feature = "net")]
mod socket;
#[cfg(feature = "net")]
mod tcp;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
#[cfg(feature = "net")]
mod unix;

pub use limits::RequestClass;
pub use upid::{Upid, UpidError};

#[cfg(feature = "net")]
pub use {
    addresses::Reservation,
    client::Client,
    handler::{
        Admission, Handler, Incoming, Receipt, Rejection, RequestSource, Sender, Transport,
        UNIX_PEER, UNKNOWN_BODY_MAX,
    },
    head::check_names,
    parse::read_message,
    server::Server,
    server_state::ServerOptions,
    tcp::TcpTransport,
    unix::UnixServer,
};

/// Longest head of a request in bytes: the same limit as in libprocess.
#[cfg(feature = "net")]
const HEAD_LIMIT: usize = 80 * 1024;

/// Maximum number of headers of a request or a response.
#[cfg(feature = "net")]
const HEADERS_LIMIT: usize = 128;
