//! Plain HTTP on an accepted connection, by hyper. People and scripts ask here, few at a time, so
//! its memory and its rules for idle connections may be the usual ones; agents never come here.
//!
//! hyper gets no timer: its header timeout also runs while a connection is idle, and a peer that
//! sends messages on the connection must never see it closed for that.

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
    CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, USER_AGENT,
};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWrite};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use super::HEADERS_LIMIT;
use super::connection::REFUSED_PAUSE;
use super::connections::{Closer, ConnectionGuard};
use super::head::{self, Encoding, Framing, MessageHead};
use super::server::{Host, Judged};
use crate::limits::Limit;
use crate::transport::addresses::{Account, Reservation, Resource};
use crate::transport::{Handler, Refusal, RequestClass};

/// How often it is looked whether a connection is idle, and whether its client reads.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// A client that reads less of a response in `write_timeout` reads too slowly.
const READ_MIN: usize = 1024 * 1024;
/// A response up to this length needs no reservation: the number of connections bounds how much
/// memory they take, and health is answered however much the others hold.
const SMALL_RESPONSE: usize = 32 * 1024;

/// Longest head of a request after the first one of a connection: browsers send far less.
const HEAD_MAX: usize = 32 * 1024;

const LIBPROCESS_FROM: HeaderName = HeaderName::from_static("libprocess-from");

/// Whose connection it is.
pub(super) struct Client {
    pub(super) peer: SocketAddr,
    pub(super) account: Arc<Account>,
    /// Its entry among the accepted connections.
    pub(super) link: Arc<ConnectionGuard>,
}

/// Serves a connection of which the bytes in `already` have been read.
pub(super) async fn serve<H: Handler>(
    stream: TcpStream,
    already: Bytes,
    client: Client,
    host: Arc<Host<H>>,
) {
    let peer = client.peer;
    host.evict_if_full(&host.http, peer);
    let (closer, closed) = oneshot::channel::<()>();
    let guard = host.http.guard();
    host.http.insert(peer, &guard, Closer::Signal(closer));
    let activity = Arc::new(Activity::default());
    let session = Arc::new(Session { client, host, activity: Arc::clone(&activity), guard });
    let service = {
        let session = Arc::clone(&session);
        service_fn(move |request| {
            let session = Arc::clone(&session);
            async move { Ok::<_, Infallible>(session.answer(request).await) }
        })
    };
    let (read, write) = stream.into_split();
    let write = Watched { write, activity };
    let io = TokioIo::new(tokio::io::join(Cursor::new(already).chain(read), write));
    let connection = http1::Builder::new()
        // A client may end its side at once after the request and still wants the answer.
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
        // There was no room for another connection, and this one was silent for long.
        _ = closed => {}
        limit = session.watch() => session.host.handler.refused(peer, &Refusal::Limit(limit)),
    }
}

/// What tells an idle connection from a used one, and a client that reads from one that does not.
#[derive(Debug, Default)]
struct Activity {
    /// Requests that came, counted again when they were answered.
    requests: AtomicUsize,
    answering: AtomicUsize,
    has_messages: AtomicBool,
    /// Bytes that the client took.
    written: AtomicUsize,
    /// Whether the client has to take more before it gets the rest.
    is_blocked: AtomicBool,
}

/// The way out to a client, watched.
struct Watched {
    write: OwnedWriteHalf,
    activity: Arc<Activity>,
}

impl Watched {
    fn note(&self, written: &Poll<io::Result<usize>>) {
        self.activity.is_blocked.store(written.is_pending(), Ordering::Relaxed);
        if let Poll::Ready(Ok(count)) = written {
            self.activity.written.fetch_add(*count, Ordering::Relaxed);
        }
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.write).poll_write(context, bytes);
        self.note(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.write).poll_write_vectored(context, buffers);
        self.note(&written);
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

/// A connection with the HTTP server.
struct Session<H> {
    client: Client,
    host: Arc<Host<H>>,
    activity: Arc<Activity>,
    guard: Arc<ConnectionGuard>,
}

impl<H: Handler> Session<H> {
    /// Waits until the client has been idle or has not read for too long: until which limit.
    async fn watch(&self) -> Limit {
        let limits = &self.host.options.limits;
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
                // libprocess takes the end of such a connection for the end of this program.
                || has_messages.load(Ordering::Relaxed);
            if is_used {
                request = (count, now);
            } else if now - request.1 >= limits.timeout(Limit::HttpIdleTimeout) {
                return Limit::HttpIdleTimeout;
            }
        }
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<Full<Bytes>> {
        self.activity.requests.fetch_add(1, Ordering::Relaxed);
        self.guard.received();
        self.client.link.received();
        let (parts, body) = request.into_parts();
        let judged = match self.judge(&parts) {
            Ok(judged) => judged,
            Err(refusal) => return self.refuse(&refusal, true),
        };
        if judged.message.is_none() && parts.uri.path().contains("/..") {
            return text(StatusCode::NOT_FOUND, "404 Not Found.");
        }
        let (body, memory) = match self.collect(body, &judged).await {
            Ok(collected) => collected,
            Err(refusal) => return self.refuse(&refusal, true),
        };
        let slot = judged.is_heavy.then(|| self.slot()).transpose();
        let slot = match slot {
            Ok(slot) => slot,
            Err(refusal) => return self.refuse(&refusal, true),
        };
        self.activity.answering.fetch_add(1, Ordering::Relaxed);
        // In a task of its own, because hyper drops this future when the peer's connection breaks,
        // and what has begun must be done.
        let session = Arc::clone(&self);
        let answered = tokio::spawn(async move {
            match judged.message {
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
        answered.unwrap_or_else(|error| {
            log::error!("answer a request of {}: {error}: this is a defect", self.client.peer);
            text(StatusCode::INTERNAL_SERVER_ERROR, "500 Internal Server Error.")
        })
    }

    /// Takes one of the slots for requests whose answers grow with the cluster.
    fn slot(&self) -> Result<Reservation, Refusal> {
        self.host.addresses.reserve(&self.client.account, Resource::Requests, 1)
    }

    /// Judges a request, or a message that came on this connection, by its head.
    fn judge(&self, parts: &http::request::Parts) -> Result<JudgedRequest, Refusal> {
        let Client { peer, account, .. } = &self.client;
        let length = length_of(&parts.headers);
        let from = last(&parts.headers, &LIBPROCESS_FROM);
        let user_agent = last(&parts.headers, &USER_AGENT);
        if head::is_message(parts.method.as_str(), from, user_agent) {
            self.activity.has_messages.store(true, Ordering::Relaxed);
            let head = MessageHead {
                envelope: head::envelope(parts.uri.path(), from, user_agent),
                framing: length.map_or(Framing::Chunked, Framing::Length),
                encoding: Encoding::of(last(&parts.headers, &CONTENT_ENCODING)),
                is_kept_alive: true,
                is_continue_awaited: false,
            };
            let message = self.host.judge(*peer, account, head)?;
            return Ok(JudgedRequest {
                body_max: message.limits.max,
                is_kept: message.limits.is_kept,
                message: Some(message),
                is_heavy: false,
            });
        }
        let RequestClass { body_max, is_heavy } =
            self.host.handler.classify(&parts.method, parts.uri.path());
        if length.is_some_and(|length| length > body_max) {
            return Err(Refusal::BodyTooLarge(body_max));
        }
        self.host.addresses.count_request(account)?;
        Ok(JudgedRequest { body_max, is_kept: true, message: None, is_heavy })
    }

    /// Reads a body, within its limits of length, memory and time.
    async fn collect(
        &self,
        mut body: Incoming,
        judged: &JudgedRequest,
    ) -> Result<(Bytes, Reservation), Refusal> {
        let mut memory = self.host.body_memory(&self.client.account);
        let mut bytes = BytesMut::new();
        let mut length = 0;
        let patience = self.host.options.limits.timeout(Limit::RequestTimeout);
        let read = async {
            while let Some(frame) = body.frame().await {
                let Ok(data) = frame.map_err(|_| Refusal::Truncated)?.into_data() else { continue };
                length += data.len();
                if length > judged.body_max {
                    return Err(Refusal::BodyTooLarge(judged.body_max));
                }
                if judged.is_kept {
                    memory.grow_to(bytes.capacity().max(length))?;
                    bytes.put(data);
                }
            }
            Ok(())
        };
        timeout(patience, read).await.unwrap_or(Err(Refusal::Stalled))?;
        Ok((bytes.freeze(), memory))
    }

    async fn receive(
        &self,
        message: Judged,
        body: Bytes,
        memory: Reservation,
    ) -> Response<Full<Bytes>> {
        let is_registration = message.is_registration;
        match self.host.receive(self.client.peer, message, body, memory).await {
            Ok(()) => {
                if is_registration {
                    self.client.link.registered();
                    self.guard.registered();
                }
                text(StatusCode::ACCEPTED, "")
            }
            Err(refusal) => {
                if refusal.status() == StatusCode::TOO_MANY_REQUESTS {
                    tokio::time::sleep(REFUSED_PAUSE).await;
                }
                text(refusal.status(), refusal.to_string())
            }
        }
    }

    /// Answers a request. The memory of the response is given back when the client has taken it.
    async fn respond(&self, request: Request<Bytes>) -> Response<Full<Bytes>> {
        let (parts, body) = self.host.handler.respond(request).await.into_parts();
        if body.len() <= SMALL_RESPONSE {
            return Response::from_parts(parts, Full::new(body));
        }
        let account = &self.client.account;
        match self.host.addresses.reserve(account, Resource::ResponseBytes, body.len()) {
            Ok(memory) => {
                let body = Bytes::from_owner(Held { bytes: body, _memory: memory });
                Response::from_parts(parts, Full::new(body))
            }
            Err(refusal) => self.refuse(&refusal, false),
        }
    }

    fn refuse(&self, refusal: &Refusal, is_last: bool) -> Response<Full<Bytes>> {
        self.host.handler.refused(self.client.peer, refusal);
        let mut response = text(refusal.status(), refusal.to_string());
        if is_last {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// What follows from the head of a request.
struct JudgedRequest {
    body_max: usize,
    is_kept: bool,
    /// If it is a message.
    message: Option<Judged>,
    /// Whether its answer grows with the cluster.
    is_heavy: bool,
}

/// The bytes of a response, which hold memory until the last of them is sent.
struct Held {
    bytes: Bytes,
    _memory: Reservation,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

fn length_of(headers: &HeaderMap) -> Option<usize> {
    let length = last(headers, &CONTENT_LENGTH)?;
    std::str::from_utf8(length).ok()?.parse().ok()
}

/// The last value of a header, which is the one that counts in libprocess.
fn last<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a [u8]> {
    headers.get_all(name).iter().next_back().map(HeaderValue::as_bytes)
}

fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let text = text.into();
    let mut response = Response::new(Full::new(text));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    response
}
