//! Plain HTTP on an accepted connection, by hyper. People and scripts ask here, few at a time, so
//! its memory and its rules for idle connections may be the usual ones; agents never come here.
//!
//! hyper gets no timer: its header timeout also runs while a connection is idle, and a peer that
//! sends messages on the connection must never see it closed for that.

use std::convert::Infallible;
use std::io::Cursor;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    CONNECTION, CONTENT_ENCODING, CONTENT_TYPE, HeaderName, HeaderValue, USER_AGENT,
};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use super::connection::close_gently;
use super::head::{self, Encoding};
use super::server::Host;
use super::{BODY_LIMIT, HEAD_LIMIT, HEADERS_LIMIT, encode};
use crate::transport::{Handler, Refusal};

/// Connections with the HTTP server at a time. Each holds at least 16 KiB, and every page and
/// script needs only one.
const CONNECTIONS_LIMIT: usize = 512;

/// A connection on which no request came and none was being answered for this long, at most twice
/// this long, is closed, unless a message ever came on it.
const IDLE_TIME: Duration = Duration::from_secs(120);

const LIBPROCESS_FROM: HeaderName = HeaderName::from_static("libprocess-from");

/// Serves a connection of which the bytes in `already` have been read.
pub(super) async fn serve<H: Handler>(
    stream: TcpStream,
    already: Bytes,
    peer: SocketAddr,
    host: Arc<Host<H>>,
) {
    let place = Place::take(Arc::clone(&host));
    if place.is_beyond_limit {
        host.handler.refused(peer, &Refusal::Busy);
        let mut output = Vec::new();
        encode::refused(&mut output, &Refusal::Busy, false);
        if stream.try_write(&output).is_ok() {
            close_gently(stream).await;
        }
        return;
    }
    let activity = Arc::new(Activity::default());
    let service = {
        let activity = Arc::clone(&activity);
        service_fn(move |request| answer(request, peer, Arc::clone(&host), Arc::clone(&activity)))
    };
    let (read, write) = stream.into_split();
    let io = TokioIo::new(tokio::io::join(Cursor::new(already).chain(read), write));
    let connection = http1::Builder::new()
        // A client may end its side at once after the request and still wants the answer.
        .half_close(true)
        .max_buf_size(HEAD_LIMIT)
        .max_headers(HEADERS_LIMIT)
        .serve_connection(io, service);
    let mut connection = pin!(connection);
    let mut seen = 0;
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    log::debug!("serve HTTP to {peer}: {error}");
                }
                return;
            }
            () = tokio::time::sleep(IDLE_TIME) => {
                let now = activity.requests.load(Ordering::Relaxed);
                let is_idle = now == seen && activity.answering.load(Ordering::Relaxed) == 0;
                if is_idle && !activity.has_messages.load(Ordering::Relaxed) {
                    return;
                }
                seen = now;
            }
        }
    }
}

/// What tells an idle connection from a used one.
#[derive(Default)]
struct Activity {
    /// Requests that came, counted again when they were answered.
    requests: AtomicUsize,
    answering: AtomicUsize,
    has_messages: AtomicBool,
}

/// One of the places for HTTP connections; given back when dropped.
struct Place<H> {
    host: Arc<Host<H>>,
    is_beyond_limit: bool,
}

impl<H> Place<H> {
    fn take(host: Arc<Host<H>>) -> Self {
        let is_beyond_limit = host.http.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS_LIMIT;
        Self { host, is_beyond_limit }
    }
}

impl<H> Drop for Place<H> {
    fn drop(&mut self) {
        self.host.http.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn answer<H: Handler>(
    request: Request<Incoming>,
    peer: SocketAddr,
    host: Arc<Host<H>>,
    activity: Arc<Activity>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    activity.requests.fetch_add(1, Ordering::Relaxed);
    let (parts, body) = request.into_parts();
    let from = last(&parts.headers, &LIBPROCESS_FROM);
    let is_message =
        head::is_message(parts.method.as_str(), from, last(&parts.headers, &USER_AGENT));
    if is_message {
        activity.has_messages.store(true, Ordering::Relaxed);
    } else if parts.uri.path().contains("/..") {
        return Ok(text(StatusCode::NOT_FOUND, "404 Not Found."));
    }
    let body = match Limited::new(body, BODY_LIMIT).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => {
            let refusal = if error.is::<LengthLimitError>() {
                Refusal::BodyTooLarge(BODY_LIMIT)
            } else {
                Refusal::Truncated
            };
            host.handler.refused(peer, &refusal);
            let mut response = refused(&refusal);
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            return Ok(response);
        }
    };
    activity.answering.fetch_add(1, Ordering::Relaxed);
    // In a task of its own, because hyper drops this future when the peer's connection breaks, and
    // what has begun must be done.
    let answered = tokio::spawn(async move {
        if is_message {
            let envelope = head::envelope(
                parts.uri.path(),
                last(&parts.headers, &LIBPROCESS_FROM),
                last(&parts.headers, &USER_AGENT),
            );
            let encoding = Encoding::of(last(&parts.headers, &CONTENT_ENCODING));
            match host.receive(peer, envelope, encoding, body).await {
                Ok(()) => text(StatusCode::ACCEPTED, ""),
                Err(refusal) => refused(&refusal),
            }
        } else {
            host.handler.respond(Request::from_parts(parts, body)).await.map(Full::new)
        }
    })
    .await;
    activity.answering.fetch_sub(1, Ordering::Relaxed);
    activity.requests.fetch_add(1, Ordering::Relaxed);
    Ok(answered.unwrap_or_else(|error| {
        log::error!("answer a request of {peer}: {error}: this is a defect");
        text(StatusCode::INTERNAL_SERVER_ERROR, "500 Internal Server Error.")
    }))
}

/// The last value of a header, which is the one that counts in libprocess.
fn last<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a [u8]> {
    headers.get_all(name).iter().next_back().map(HeaderValue::as_bytes)
}

fn refused(refusal: &Refusal) -> Response<Full<Bytes>> {
    text(refusal.status(), refusal.to_string())
}

fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let text = text.into();
    let mut response = Response::new(Full::new(text));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    response
}
