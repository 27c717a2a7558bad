//! How messages and HTTP requests come in and messages go out. A transport moves bytes between
//! addresses and knows no message type: what a message means is decided behind [`Handler`].
//!
//! Nothing here answers a message by itself beyond the protocol's receipt. A message that cannot
//! reach a process is a [`Refusal`]: told to the sender in words, and to the host for counting.

pub mod libprocess;
pub mod mesos;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;

use crate::addr::{Upid, UpidError};

/// A message as it came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incoming {
    /// Who says to have sent it, and where answers go.
    pub from: Upid,
    /// The local process that it is for.
    pub to: String,
    /// The message's type.
    pub name: String,
    /// The message, serialized.
    pub body: Bytes,
}

/// A way to exchange messages and to be asked over HTTP, ready to be opened.
pub trait Transport: Send + 'static {
    /// The address that peers are told.
    fn address(&self) -> SocketAddrV4;

    /// Opens it: from now on it is possible to send, and while the future is polled, what comes in
    /// reaches `handler`. To be called within a tokio runtime.
    fn open<H: Handler>(
        self,
        handler: Arc<H>,
    ) -> (Box<dyn Sender>, impl Future<Output = ()> + Send + 'static);
}

/// The way out. Nothing here waits, and nothing tells whether a message arrived.
pub trait Sender: Send + Sync + 'static {
    /// Sends a message, if it can be.
    fn send(&self, from: &Upid, to: &Upid, name: &'static str, body: &Bytes);

    /// Wants to know when the connection to the program of `to` ends: [`Handler::exited`] tells.
    fn link(&self, to: &Upid);
}

/// What a transport hands to its host.
pub trait Handler: Send + Sync + 'static {
    /// Whether a process of this id lives here. If not, the sender is told so.
    fn has_process(&self, id: &str) -> bool;

    /// Takes a message. It may wait while the host has too much to do: only the connection that the
    /// message came on then waits too.
    fn deliver(&self, message: Incoming) -> impl Future<Output = ()> + Send;

    /// Answers a plain HTTP request.
    fn respond(
        &self,
        request: http::Request<Bytes>,
    ) -> impl Future<Output = http::Response<Bytes>> + Send;

    /// The connection to a linked peer has ended or could not be made. The link is gone: whoever
    /// still wants it links again.
    fn exited(&self, peer: SocketAddrV4) -> impl Future<Output = ()> + Send;

    /// Completes when the host takes nothing any more.
    fn ended(&self) -> impl Future<Output = ()> + Send;

    /// Something from `peer` was refused before it reached a process.
    fn refused(&self, peer: SocketAddr, refusal: &Refusal);
}

/// Why something that came in did not reach a process. The text is for the operator of the sender.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The request is not HTTP/1 as we read it.
    #[error("malformed request: {0}")]
    Malformed(&'static str),
    /// The path does not name a process and a message.
    #[error("malformed path: the path of a message is /PROCESS/NAME")]
    Path,
    /// The process id in the path is not properly percent-encoded.
    #[error("malformed path: the process id is not percent-encoded text")]
    Escape,
    /// The sender's name cannot be answered.
    #[error("unusable sender: {0}")]
    Sender(#[from] UpidError),
    /// The sender names another address than the one that it sends from.
    #[error(
        "UPID IP address validation failed: the message says that it is from {claimed}, but it came from \
         {actual}: let the sender advertise {actual} or send from {claimed}, or switch off \
         require_peer_address_ip_match here"
    )]
    AddressMismatch {
        /// What the sender calls itself.
        claimed: Ipv4Addr,
        /// Where its connection came from.
        actual: IpAddr,
    },
    /// No process of that id lives here.
    #[error("no process '{id}' lives here", id = .0.escape_debug())]
    UnknownProcess(String),
    /// The request line and headers exceed the limit.
    #[error("the header section exceeds {0} bytes")]
    HeadTooLarge(usize),
    /// The body, as sent or inflated, exceeds the limit.
    #[error("the body exceeds {0} bytes")]
    BodyTooLarge(usize),
    /// The body is compressed in a way that we do not know.
    #[error("the content encoding is neither gzip nor identity")]
    Encoding,
    /// A request was begun and not finished in time.
    #[error("the request was not complete in time")]
    Stalled,
    /// The connection ended in the middle of a request.
    #[error("the connection ended in the middle of a request")]
    Truncated,
    /// A limit on connections or on memory is reached.
    #[error("too many connections or too much unfinished data: try again later")]
    Busy,
}

impl Refusal {
    /// The status that tells the sender.
    #[must_use]
    pub const fn status(&self) -> StatusCode {
        match self {
            Self::Malformed(_) | Self::Path | Self::Sender(_) | Self::AddressMismatch { .. } => {
                StatusCode::BAD_REQUEST
            }
            Self::Truncated => StatusCode::BAD_REQUEST,
            // Not 400, because libprocess says 500 here.
            Self::Escape => StatusCode::INTERNAL_SERVER_ERROR,
            Self::UnknownProcess(_) => StatusCode::NOT_FOUND,
            Self::HeadTooLarge(_) => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::BodyTooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Encoding => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Stalled => StatusCode::REQUEST_TIMEOUT,
            Self::Busy => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

#[cfg(test)]
mod tests;
