//! The interfaces between a transport and a program. A transport moves bytes between addresses and
//! does not interpret messages. A [`Handler`] receives messages and HTTP requests.
//!
//! A transport acknowledges messages and never answers them. If a message cannot reach a process,
//! the sender gets the text of the [`Rejection`], and the handler can count the rejection.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;

use crate::addresses::Reservation;
use crate::limits::{Limit, RequestClass, Unit};
use crate::upid::{Upid, UpidError};

/// A received message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incoming {
    /// The claimed sender, and the destination of answers.
    pub from: Upid,
    /// Id of the local process that receives the message.
    pub to: String,
    /// Name of the message type.
    pub name: String,
    /// The serialized message.
    pub body: Bytes,
}

/// Stands for all clients of the Unix socket in the place of an address. No TCP client has it.
pub const UNIX_PEER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// The connection on which an HTTP request arrived. It is in the extensions of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestSource {
    /// A TCP connection.
    Tcp {
        /// The address of the client.
        peer: SocketAddr,
        /// The address of this server that the client connected to.
        local: SocketAddr,
    },
    /// A connection to the Unix socket.
    Unix {
        /// The user id of the client, if the system reports it.
        user: Option<u32>,
    },
}

/// A transport for messages and HTTP requests that is ready to be opened.
pub trait Transport: Send + 'static {
    /// Returns the advertised address.
    fn address(&self) -> SocketAddrV4;

    /// Opens the transport. The sender works immediately. While the future is polled, messages and
    /// requests reach `handler`. Must be called within a tokio runtime.
    fn open<H: Handler>(
        self,
        handler: Arc<H>,
    ) -> (Box<dyn Sender>, impl Future<Output = ()> + Send + 'static);
}

/// Which messages of a sender the receiver acknowledges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Receipt {
    /// Every message, as in libprocess. A missing acknowledgment is reported as a lost message.
    Always,
    /// Only a refused message. A receiver of another implementation acknowledges every message. For
    /// messages that the receiver answers by a message anyway: each acknowledgment costs both ends
    /// about as much as a message.
    ErrorsOnly,
}

/// Sends messages. No method blocks, and delivery is not reported.
pub trait Sender: Send + Sync + 'static {
    /// Sends a message, without a guarantee of delivery. A transport of another implementation may
    /// ignore `receipt`.
    fn send(&self, from: &Upid, to: &Upid, name: &'static str, body: &[u8], receipt: Receipt);

    /// Links to the program of `to`: [`Handler::exited`] is called when the connection ends.
    fn link(&self, to: &Upid);
}

/// Longest body of a message with an unknown name. The body is discarded.
pub const UNKNOWN_BODY_MAX: usize = 1024 * 1024;

/// How a handler treats the messages of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Admission {
    /// Maximum length of the body in bytes, compressed and uncompressed.
    pub body_max: usize,
    /// Whether the handler needs the body. Otherwise the message is delivered with an empty body.
    pub is_read: bool,
    /// Whether the message introduces a new peer. Such messages have their own rate limit, and
    /// their connections are closed last.
    pub is_registration: bool,
}

impl Admission {
    /// A message that the handler ignores.
    pub const IGNORED: Self =
        Self { body_max: UNKNOWN_BODY_MAX, is_read: false, is_registration: false };
}

/// Receives the messages and requests of a transport.
pub trait Handler: Send + Sync + 'static {
    /// Decides how to treat a message, by its process and its name.
    ///
    /// # Errors
    /// If the process does not exist. The sender gets the rejection as an HTTP error.
    fn admit(&self, to: &str, name: &str) -> Result<Admission, Rejection>;

    /// Receives a message. The method may wait while the program is overloaded: then only the
    /// connection of the message waits. The handler drops `memory` after it has processed the
    /// message.
    fn deliver(&self, message: Incoming, memory: Reservation) -> impl Future<Output = ()> + Send;

    /// Classifies an HTTP request by its method and path.
    fn classify(&self, method: &http::Method, path: &str) -> RequestClass;

    /// Answers an HTTP request that is not a message. A server adds its [`RequestSource`] to the
    /// extensions of the request.
    fn respond(
        &self,
        request: http::Request<Bytes>,
    ) -> impl Future<Output = http::Response<Bytes>> + Send;

    /// Called when the connection to a linked peer has ended or could not be established. The link
    /// no longer exists and can be created again.
    fn exited(&self, peer: SocketAddrV4) -> impl Future<Output = ()> + Send;

    /// Completes when the program no longer accepts messages.
    fn stopped(&self) -> impl Future<Output = ()> + Send;

    /// Called when input of `peer` is rejected before it reaches a process, or when a limit ends a
    /// connection. The clients of the Unix socket are [`UNIX_PEER`].
    fn rejected(&self, peer: SocketAddr, rejection: &Rejection);

    /// Returns the text that is logged when a peer answers that the receiver of a message does not
    /// exist. It should say how the address of a peer is configured.
    fn unknown_process_hint(&self) -> &'static str {
        "no such process at this address: check that the address is the right program's"
    }
}

/// Why a message or request did not reach a process. The text is for the operator of the sender.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// The request is not valid HTTP/1.
    #[error("malformed request: {0}")]
    Malformed(&'static str),
    /// The path does not contain a process and a message name.
    #[error("malformed path: the path of a message is /PROCESS/NAME")]
    Path,
    /// The process id in the path is not properly percent-encoded.
    #[error("malformed path: the process id is not percent-encoded text")]
    Escape,
    /// The sender's UPID is invalid.
    #[error("unusable sender: {0}")]
    Sender(#[from] UpidError),
    /// The claimed address of the sender differs from the source address.
    #[error(
        "UPID IP address validation failed: the message claims to be from {claimed}, but it came \
         from {actual}: let the sender advertise {actual} or send from {claimed}, or switch off \
         require_peer_address_ip_match here"
    )]
    AddressMismatch {
        /// The address claimed by the sender.
        claimed: Ipv4Addr,
        /// The source address of the connection.
        actual: IpAddr,
    },
    /// A message arrived on the Unix socket, whose clients have no address.
    #[error("the Unix socket is for HTTP requests only: send messages to the TCP port")]
    MessageOnUnixSocket,
    /// Too many logins of the address have failed.
    #[error(
        "too many requests of this address had wrong credentials: check principal and secret, and \
         try again in some seconds"
    )]
    FailedLogins,
    /// No process has this id.
    #[error("unknown process '{id}'", id = .0.escape_debug())]
    UnknownProcess(String),
    /// The request line and headers exceed the limit.
    #[error("the header section exceeds {0} bytes")]
    HeadTooLarge(usize),
    /// The compressed or uncompressed body exceeds the limit.
    #[error("the body exceeds {0} bytes")]
    BodyTooLarge(usize),
    /// The content encoding of the body is not supported.
    #[error("the content encoding is neither gzip nor identity")]
    Encoding,
    /// The request was not completed in time.
    #[error(
        "the request was incomplete after limits.request_timeout: see whether the peer hangs, or \
         raise limits.request_timeout"
    )]
    Stalled,
    /// The connection ended within a request.
    #[error("the connection ended in the middle of a request")]
    Truncated,
    /// The queue of the program is full.
    #[error("the queue of incoming messages is full: try again later")]
    Busy,
    /// The connection was closed so that another one can be accepted.
    #[error(
        "closed the connection to accept another one: limits.{key} is reached: raise it",
        key = .0.key()
    )]
    Evicted(Limit),
    /// A limit is reached.
    #[error("limit {key} is reached: try again later, or raise limits.{key}", key = .0.key())]
    Limit(Limit),
}

impl Rejection {
    /// Returns the HTTP status of the response to the sender.
    #[must_use]
    pub const fn status(&self) -> StatusCode {
        match self {
            Self::Malformed(_) | Self::Path | Self::Sender(_) | Self::AddressMismatch { .. } => {
                StatusCode::BAD_REQUEST
            }
            Self::Truncated | Self::MessageOnUnixSocket => StatusCode::BAD_REQUEST,
            // Not 400, because libprocess returns 500 here.
            Self::Escape => StatusCode::INTERNAL_SERVER_ERROR,
            Self::UnknownProcess(_) => StatusCode::NOT_FOUND,
            Self::HeadTooLarge(_) => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::BodyTooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Encoding => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Stalled => StatusCode::REQUEST_TIMEOUT,
            Self::FailedLogins => StatusCode::TOO_MANY_REQUESTS,
            Self::Busy | Self::Evicted(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Limit(limit) => match limit.unit() {
                Unit::PerSecond => StatusCode::TOO_MANY_REQUESTS,
                Unit::Seconds => StatusCode::REQUEST_TIMEOUT,
                Unit::Count | Unit::Bytes => StatusCode::SERVICE_UNAVAILABLE,
            },
        }
    }

    /// Returns the configurable limit that caused the rejection, if any.
    #[must_use]
    pub const fn limit(&self) -> Option<Limit> {
        match self {
            Self::Limit(limit) | Self::Evicted(limit) => Some(*limit),
            Self::Stalled => Some(Limit::RequestTimeout),
            _ => None,
        }
    }
}
