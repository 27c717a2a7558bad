//! How messages and HTTP requests come in and messages go out. A transport moves bytes between
//! addresses and knows no message type: what a message means is decided behind [`Handler`].
//!
//! Nothing here answers a message by itself beyond the protocol's receipt. A message that cannot
//! reach a process is a [`Refusal`]: told to the sender in words, and to the host for counting.

mod addresses;
pub mod libprocess;
pub mod mesos;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;

pub use addresses::Reservation;

use crate::addr::{Upid, UpidError};
pub use crate::limits::RequestClass;
use crate::limits::{Limit, Unit};

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

/// Longest body of a message that nobody here knows. Only its length is looked at.
pub const UNKNOWN_BODY_MAX: usize = 1024 * 1024;

/// What a host does with a message, as far as the message's name tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Admission {
    /// Longest body, as sent and inflated, in bytes.
    pub body_max: usize,
    /// Whether the body is of use. If not, the message is delivered without it.
    pub is_read: bool,
    /// Whether it makes the host remember a new peer.
    pub is_registration: bool,
}

impl Admission {
    /// A message that the host ignores.
    pub const IGNORED: Self =
        Self { body_max: UNKNOWN_BODY_MAX, is_read: false, is_registration: false };
}

/// What a transport hands to its host.
pub trait Handler: Send + Sync + 'static {
    /// Judges a message by the process that it is for and by its name.
    ///
    /// # Errors
    /// When no such process lives here. The sender is told so.
    fn admit(&self, to: &str, name: &str) -> Result<Admission, Refusal>;

    /// Takes a message. It may wait while the host has too much to do: only the connection that the
    /// message came on then waits too. The host drops `memory` when it has processed the message.
    fn deliver(&self, message: Incoming, memory: Reservation) -> impl Future<Output = ()> + Send;

    /// Judges an HTTP request by its method and path.
    fn classify(&self, method: &http::Method, path: &str) -> RequestClass;

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

    /// Something from `peer` was refused before it reached a process, or a limit ended it.
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
    #[error(
        "the request was incomplete after limits.request_timeout: see whether the peer hangs, or \
         raise limits.request_timeout"
    )]
    Stalled,
    /// The connection ended in the middle of a request.
    #[error("the connection ended in the middle of a request")]
    Truncated,
    /// The host does not take anything now.
    #[error("the queue of incoming messages is full: try again later")]
    Busy,
    /// The connection was closed to make room for another one.
    #[error(
        "closed its connection to make room: limits.{key} is reached: raise it",
        key = .0.key()
    )]
    Evicted(Limit),
    /// A limit is reached.
    #[error("limit {key} is reached: try again later, or raise limits.{key}", key = .0.key())]
    Limit(Limit),
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
            Self::Busy | Self::Evicted(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Limit(limit) => match limit.unit() {
                Unit::PerSecond => StatusCode::TOO_MANY_REQUESTS,
                Unit::Seconds => StatusCode::REQUEST_TIMEOUT,
                Unit::Count | Unit::Bytes => StatusCode::SERVICE_UNAVAILABLE,
            },
        }
    }

    /// The limit that it follows from, if it is one that the operator can set.
    #[must_use]
    pub const fn limit(&self) -> Option<Limit> {
        match self {
            Self::Limit(limit) | Self::Evicted(limit) => Some(*limit),
            Self::Stalled => Some(Limit::RequestTimeout),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
