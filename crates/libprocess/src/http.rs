//! HTTP on an accepted connection, served by hyper. Few clients use it at a time: browsers, scripts
//! and monitoring. The memory and the idle timeouts of hyper are acceptable for them.
//!
//! hyper gets no timer: its header timeout also runs while a connection is idle, and the connection
//! of a peer that sends messages must not be closed by such a timeout.

use std::convert::Infallible;
use std::io::{self, Cursor};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderName,
    HeaderValue, USER_AGENT,
};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use super::HEADERS_LIMIT;
use super::connections::{CloseHandle, ConnectionGuard};
use super::head::{self, Encoding, Framing, MessageHead};
use super::server_state::{CheckedMessage, RATE_LIMIT_DELAY, ServerState};
use crate::addresses::{Account, Reservation, Resource};
use crate::limits::Limit;
use crate::{Handler, Receipt, Rejection, RequestClass, RequestSource};

/// Interval of the checks for idle connections and for clients that do not read.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// Minimum of bytes that a client must read within `write_timeout`.
const READ_MIN: usize = 1024 * 1024;
/// A response up to this length needs no reservation. The limit on connections bounds the memory of
/// such responses, and short requests are answered while other clients hold all the memory.
const SMALL_RESPONSE: usize = 32 * 1024;

/// Longest head of a request after the first request of a connection. Browsers send far less.
const HEAD_MAX: usize = 32 * 1024;

const LIBPROCESS_FROM: HeaderName = HeaderName::from_static("libprocess-from");

/// The client of a connection.
pub(super) struct HttpClient {
    pub(super) peer: SocketAddr,
    pub(super) source: RequestSource,
    pub(super) account: Arc<Account>,
    /// The entry among all accepted connections.
    pub(super) link: Arc<ConnectionGuard>,
}

/// Serves the halves of a connection. `received` contains the bytes that were read before.
pub(super) async fn serve<H: Handler>(
    (read, write): (impl AsyncRead + Unpin, impl AsyncWrite + Unpin),
    received: Bytes,
    client: HttpClient,
    server: Arc<ServerState<H>>,
) {
    let peer = client.peer;
    server.evict_if_full(&server.http, peer);
    let (close_handle, closed) = oneshot::channel::<()>();
    let guard = server.http.guard();
    server.http.insert(peer, &guard, CloseHandle::Signal(close_handle));
    let activity = Arc::new(Activity::default());
    let session = Arc::new(Session { client, server, activity: Arc::clone(&activity), guard });
    let service = {
        let session = Arc::clone(&session);
        service_fn(move |request| {
            let session = Arc::clone(&session);
            async move { Ok::<_, Infallible>(session.answer(request).await.map(Full::new)) }
        })
    };
    let write = MonitoredWriter { write, activity };
    let io = TokioIo::new(tokio::io::join(Cursor::new(received).chain(read), write));
    let connection = http1::Builder::new()
        // A client may shut down its sending side after the request and wait for the response.
        .half_close(true)
        .max_buf_size(HEAD_MAX)
        .max_headers(HEADERS_LIMIT)
        .serve_connection(io, service);
    tokio::select! {
        ended = pin!(connection) => {
            if let Err(error) = ended {
                log::debug!("serve HTTP to {peer}: {error}");
            }
        }
        // The connection was evicted so that another one can be accepted.
        _ = closed => {}
        limit = session.wait_for_timeout() => {
            session.server.handler.rejected(peer, &Rejection::Limit(limit));
        }
    }
}

/// Activity of a connection: shows whether it is idle, and whether the client reads.
#[derive(Debug, Default)]
struct Activity {
    /// Counts the starts and the ends of requests.
    requests: AtomicUsize,
    answering: AtomicUsize,
    has_messages: AtomicBool,
    /// Bytes that the socket accepted.
    written: AtomicUsize,
    /// Whether the response waits for the client to read.
    is_blocked: AtomicBool,
}

/// The write half of a connection. Records the progress of the client.
struct MonitoredWriter<W> {
    write: W,
    activity: Arc<Activity>,
}

impl<W> MonitoredWriter<W> {
    fn record(&self, written: &Poll<io::Result<usize>>) {
        self.activity.is_blocked.store(written.is_pending(), Ordering::Relaxed);
        if let Poll::Ready(Ok(count)) = written {
            self.activity.written.fetch_add(*count, Ordering::Relaxed);
        }
    }
}

impl<W: AsyncWrite + Unpin> AsyncWrite for MonitoredWriter<W> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.write).poll_write(context, bytes);
        self.record(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.write).poll_write_vectored(context, buffers);
        self.record(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.write.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.write).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.write).poll_shutdown(context)
    }
}

/// A connection that hyper serves.
struct Session<H> {
    client: HttpClient,
    server: Arc<ServerState<H>>,
    activity: Arc<Activity>,
    guard: Arc<ConnectionGuard>,
}

impl<H: Handler> Session<H> {
    /// Waits until the client exceeds a timeout, and returns the limit.
    async fn wait_for_timeout(&self) -> Limit {
        let limits = &self.server.options.limits;
        let Activity { requests, answering, has_messages, written, is_blocked } = &*self.activity;
        let mut request = (requests.load(Ordering::Relaxed), Instant::now());
        let mut progress = (written.load(Ordering::Relaxed), Instant::now());
        loop {
            tokio::time::sleep(WATCH_INTERVAL).await;
            let now = Instant::now();
            let taken = written.load(Ordering::Relaxed);
            if !is_blocked.load(Ordering::Relaxed) || taken - progress.0 >= READ_MIN {
                progress = (taken, now);
            } else if now - progress.1 >= limits.timeout(Limit::WriteTimeout) {
                return Limit::WriteTimeout;
            }
            let count = requests.load(Ordering::Relaxed);
            let is_used = count != request.0
                || answering.load(Ordering::Relaxed) > 0
                || is_blocked.load(Ordering::Relaxed)
                // libprocess treats the end of such a connection as the exit of this program.
                || has_messages.load(Ordering::Relaxed);
            if is_used {
                request = (count, now);
            } else if now - request.1 >= limits.timeout(Limit::HttpIdleTimeout) {
                return Limit::HttpIdleTimeout;
            }
        }
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<Bytes> {
        self.activity.requests.fetch_add(1, Ordering::Relaxed);
        self.guard.received();
        self.client.link.received();
        let (mut parts, body) = request.into_parts();
        parts.extensions.insert(self.client.source);
        let checked = match self.check_head(&parts) {
            Ok(checked) => checked,
            Err(rejection) => return self.reject(&rejection, true),
        };
        if checked.message.is_none() && parts.uri.path().contains("/..") {
            return text(StatusCode::NOT_FOUND, "404 Not Found.");
        }
        let (body, memory) = match self.read_body(body, &checked).await {
            Ok(read) => read,
            Err(rejection) => return self.reject(&rejection, true),
        };
        let slot = checked.is_heavy.then(|| self.slot()).transpose();
        let slot = match slot {
            Ok(slot) => slot,
            Err(rejection) => return self.reject(&rejection, true),
        };
        self.activity.answering.fetch_add(1, Ordering::Relaxed);
        let pending = self.guard.begin_answer();
        // A separate task, because hyper drops this future when the connection breaks, and the
        // handler must not be interrupted.
        let session = Arc::clone(&self);
        let answered = tokio::spawn(async move {
            match checked.message {
                Some(message) => session.receive(message, body, memory).await,
                None => {
                    let _held = (memory, slot);
                    session.respond(Request::from_parts(parts, body)).await
                }
            }
        })
        .await;
        self.activity.answering.fetch_sub(1, Ordering::Relaxed);
        self.activity.requests.fetch_add(1, Ordering::Relaxed);
        let answered = answered.unwrap_or_else(|error| {
            if error.is_cancelled() {
                return text(StatusCode::SERVICE_UNAVAILABLE, "503 Service Unavailable.");
            }
            log::error!("answer a request of {}: {error}: this is a defect", self.client.peer);
            text(StatusCode::INTERNAL_SERVER_ERROR, "500 Internal Server Error.")
        });
        // hyper takes the body at once, and releases its bytes when they are written.
        answered.map(|bytes| Bytes::from_owner(HeldBytes { bytes, _held: pending }))
    }

    /// Reserves a slot for an expensive request.
    fn slot(&self) -> Result<Reservation, Rejection> {
        self.server.addresses.reserve(&self.client.account, Resource::Requests, 1)
    }

    /// Checks the head of a request, or of a message on this connection.
    fn check_head(&self, parts: &http::request::Parts) -> Result<CheckedRequest, Rejection> {
        let HttpClient { peer, account, .. } = &self.client;
        let length = length_of(&parts.headers);
        let from = last(&parts.headers, &LIBPROCESS_FROM);
        let user_agent = last(&parts.headers, &USER_AGENT);
        if head::is_message(parts.method.as_str(), from, user_agent) {
            if matches!(self.client.source, RequestSource::Unix { .. }) {
                return Err(Rejection::MessageOnUnixSocket);
            }
            self.activity.has_messages.store(true, Ordering::Relaxed);
            let head = MessageHead {
                envelope: head::envelope(parts.uri.path(), from, user_agent),
                framing: length.map_or(Framing::Chunked, Framing::Length),
                encoding: Encoding::of(last(&parts.headers, &CONTENT_ENCODING)),
                is_kept_alive: true,
                // hyper sends a response to every request.
                receipt: Receipt::Always,
                is_continue_awaited: false,
            };
            let message = self.server.check_head(*peer, account, head)?;
            return Ok(CheckedRequest {
                body_max: message.limits.max,
                is_kept: message.limits.is_kept,
                message: Some(message),
                is_heavy: false,
            });
        }
        let RequestClass { body_max, is_heavy } =
            self.server.handler.classify(&parts.method, parts.uri.path());
        if length.is_some_and(|length| length > body_max) {
            return Err(Rejection::BodyTooLarge(body_max));
        }
        self.server.addresses.count_request(account)?;
        if parts.headers.contains_key(AUTHORIZATION) {
            self.server.addresses.check_logins(account)?;
        }
        Ok(CheckedRequest { body_max, is_kept: true, message: None, is_heavy })
    }

    /// Reads a body within the limits of length, memory and time.
    async fn read_body(
        &self,
        mut body: Incoming,
        checked: &CheckedRequest,
    ) -> Result<(Bytes, Reservation), Rejection> {
        let mut memory = self.server.body_memory(&self.client.account);
        let mut bytes = BytesMut::new();
        let mut length = 0;
        let limit = self.server.options.limits.timeout(Limit::RequestTimeout);
        let read = async {
            while let Some(frame) = body.frame().await {
                let Ok(data) = frame.map_err(|_| Rejection::Truncated)?.into_data() else {
                    continue;
                };
                length += data.len();
                if length > checked.body_max {
                    return Err(Rejection::BodyTooLarge(checked.body_max));
                }
                if checked.is_kept {
                    memory.grow_to(bytes.capacity().max(length))?;
                    bytes.put(data);
                }
            }
            Ok(())
        };
        timeout(limit, read).await.unwrap_or(Err(Rejection::Stalled))?;
        Ok((bytes.freeze(), memory))
    }

    async fn receive(
        &self,
        message: CheckedMessage,
        body: Bytes,
        memory: Reservation,
    ) -> Response<Bytes> {
        let is_registration = message.is_registration;
        match self.server.receive(self.client.peer, message, body, memory).await {
            Ok(()) => {
                if is_registration {
                    self.client.link.registered();
                    self.guard.registered();
                }
                text(StatusCode::ACCEPTED, "")
            }
            Err(rejection) => {
                if rejection.status() == StatusCode::TOO_MANY_REQUESTS {
                    tokio::time::sleep(RATE_LIMIT_DELAY).await;
                }
                text(rejection.status(), rejection.to_string())
            }
        }
    }

    /// Answers a request. The memory of the response is released when the client has read it.
    async fn respond(&self, request: Request<Bytes>) -> Response<Bytes> {
        let has_credentials = request.headers().contains_key(AUTHORIZATION);
        let (parts, body) = self.server.handler.respond(request).await.into_parts();
        if has_credentials && parts.status == StatusCode::UNAUTHORIZED {
            self.server.addresses.count_failed_login(&self.client.account);
        }
        if body.len() <= SMALL_RESPONSE {
            return Response::from_parts(parts, body);
        }
        let account = &self.client.account;
        match self.server.addresses.reserve(account, Resource::ResponseBytes, body.len()) {
            Ok(memory) => {
                let body = Bytes::from_owner(HeldBytes { bytes: body, _held: memory });
                Response::from_parts(parts, body)
            }
            Err(rejection) => self.reject(&rejection, false),
        }
    }

    fn reject(&self, rejection: &Rejection, is_last: bool) -> Response<Bytes> {
        self.server.handler.rejected(self.client.peer, rejection);
        let mut response = text(rejection.status(), rejection.to_string());
        if is_last {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// A request whose head was checked.
struct CheckedRequest {
    body_max: usize,
    is_kept: bool,
    /// The message, unless it is an HTTP request.
    message: Option<CheckedMessage>,
    /// Whether the request is expensive.
    is_heavy: bool,
}

/// The bytes of a response. They hold a value, such as a reservation, until the last byte is
/// written.
struct HeldBytes<T> {
    bytes: Bytes,
    _held: T,
}

impl<T> AsRef<[u8]> for HeldBytes<T> {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

fn length_of(headers: &HeaderMap) -> Option<usize> {
    let length = last(headers, &CONTENT_LENGTH)?;
    std::str::from_utf8(length).ok()?.parse().ok()
}

/// Returns the last value of a header, which is the relevant value in libprocess.
fn last<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a [u8]> {
    headers.get_all(name).iter().next_back().map(HeaderValue::as_bytes)
}

fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<Bytes> {
    let text = text.into();
    let mut response = Response::new(text);
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    response
}
