//! The HTTP endpoints: from a request to a question for a machine, and from its reply to a
//! response. `/overlay-master/state`, `/overlay-master/agents/delete` and `/overlay-agent/overlay`
//! are those of the C++ modules, byte for byte; the others are ours.
//!
//! Everything here is a function of its arguments. Large replies take milliseconds to render: the
//! runtime renders them on a thread that nothing else waits for.

mod agent;
mod history;
mod master;
mod metrics;

use std::borrow::Cow;
use std::io::Write as _;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{
    ACCEPT, ACCEPT_ENCODING, ALLOW, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, HOST, ORIGIN,
    RETRY_AFTER, VARY, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use serde::Serialize;

pub use agent::{classify_agent, render_agent, route_agent};
pub use master::{classify_master, render_master, route_master};

use crate::{escape, wire};

/// A request, as a transport hands it over.
pub type Request = http::Request<Bytes>;
/// What the transport sends back.
pub type Response = http::Response<Bytes>;

/// Bodies shorter than this are not worth compressing; libprocess draws the line here too.
const GZIP_MIN: usize = 1024;
/// Longest text of an error, in characters: enough for all problems of a configuration.
const ERROR_MAX: usize = 64 * 1024;
/// Longest name of a JSONP callback.
const CALLBACK_MAX: usize = 128;
/// Seconds after which a client should ask again while the state is not there.
const RETRY_SECONDS: u32 = 2;

/// In which form the client wants the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Format {
    body: BodyFormat,
    is_gzip_welcome: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum BodyFormat {
    Json,
    /// JSON wrapped in a call of this function.
    Jsonp(String),
    Protobuf,
}

impl Format {
    /// What `request` asks for. JSON is preferred, as in the C++ modules.
    ///
    /// # Errors
    /// The response that says why it cannot be given.
    fn of(request: &Request) -> Result<Self, Box<Response>> {
        let accepts = |wanted| accepts(request.headers(), "application/*", wanted);
        let body = if accepts("application/json") {
            match callback(request)? {
                Some(name) => BodyFormat::Jsonp(name),
                None => BodyFormat::Json,
            }
        } else if accepts("application/x-protobuf") {
            BodyFormat::Protobuf
        } else {
            // 406 would be the word of HTTP; clients of the C++ modules know this one.
            return Err(Box::new(error(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "this is available as application/json and application/x-protobuf",
            )));
        };
        Ok(Self { body, ..Self::of_one_form(request) })
    }

    /// For an answer that has one form, whatever `request` asks for.
    fn of_one_form(request: &Request) -> Self {
        // A client that does not say so does not expect it, as in libprocess.
        let is_gzip_welcome = is_welcome(request.headers(), &ACCEPT_ENCODING, &["gzip", "*"]);
        Self { body: BodyFormat::Json, is_gzip_welcome }
    }

    /// The response with a protobuf message.
    fn message<M: wire::Message>(&self, message: &M) -> Response {
        match self.body {
            BodyFormat::Protobuf => {
                self.respond(StatusCode::OK, "application/x-protobuf", message.encode_to_vec())
            }
            BodyFormat::Json | BodyFormat::Jsonp(_) => {
                self.json(StatusCode::OK, wire::print_json(message))
            }
        }
    }

    /// The response with something of ours, which has no protobuf form.
    fn value(&self, status: StatusCode, value: &impl Serialize) -> Response {
        match serde_json::to_string(value) {
            Ok(text) => self.json(status, text),
            Err(reason) => error(StatusCode::INTERNAL_SERVER_ERROR, &reason.to_string()),
        }
    }

    fn json(&self, status: StatusCode, text: String) -> Response {
        // Strangers choose texts in it, which a terminal may show.
        let text = match escape::json(&text) {
            Cow::Borrowed(_) => text,
            Cow::Owned(escaped) => escaped,
        };
        match &self.body {
            BodyFormat::Jsonp(name) => {
                let text = format!("{name}({text});");
                self.respond(status, "text/javascript", text.into_bytes())
            }
            BodyFormat::Json | BodyFormat::Protobuf => {
                self.respond(status, "application/json", text.into_bytes())
            }
        }
    }

    fn respond(&self, status: StatusCode, content_type: &'static str, body: Vec<u8>) -> Response {
        let is_compressed = self.is_gzip_welcome && body.len() >= GZIP_MIN;
        let (body, is_compressed) = match is_compressed.then(|| gzip(&body)) {
            Some(Ok(compressed)) => (compressed, true),
            // Writing to memory does not fail; if it did, the plain body is as good.
            Some(Err(_)) | None => (body, false),
        };
        let mut response = response(status, content_type, body);
        if is_compressed {
            response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        response.headers_mut().insert(VARY, HeaderValue::from_static("accept, accept-encoding"));
        response
    }
}

fn gzip(body: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(body)?;
    encoder.finish()
}

/// The name of the JSONP callback. It becomes code in somebody's page, so it must be a plain name.
fn callback(request: &Request) -> Result<Option<String>, Box<Response>> {
    let query = request.uri().query().unwrap_or_default();
    let Some((_, name)) =
        form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key.as_ref() == "jsonp")
    else {
        return Ok(None);
    };
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "_$.".contains(letter);
    if name.is_empty() || name.len() > CALLBACK_MAX || !name.chars().all(is_plain) {
        let message = "jsonp: write the name of a function: letters, digits, '_', '$' and '.'";
        return Err(Box::new(error(StatusCode::BAD_REQUEST, message)));
    }
    Ok(Some(name.into_owned()))
}

/// Whether the client takes this media type. A client that says nothing takes everything.
fn accepts(headers: &HeaderMap, kind: &str, wanted: &str) -> bool {
    let entries = [wanted, kind, "*/*"];
    !headers.contains_key(ACCEPT) || is_welcome(headers, &ACCEPT, &entries)
}

/// Whether a list of the kind of RFC 9110, section 12.5, gives weight to something that `entries`
/// names, the most specific first: that one decides.
fn is_welcome(headers: &HeaderMap, name: &HeaderName, entries: &[&str]) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    let listed: Vec<(String, f32)> = values
        .flat_map(|value| value.split(','))
        .map(|entry| {
            let mut parts = entry.split(';').map(str::trim);
            let token = parts.next().unwrap_or_default().to_ascii_lowercase();
            let weight = parts.find_map(|part| part.strip_prefix("q=")?.parse().ok());
            (token, weight.unwrap_or(1.0))
        })
        .collect();
    let deciding = entries.iter().find_map(|entry| listed.iter().find(|(token, _)| token == entry));
    deciding.is_some_and(|(_, weight)| *weight > 0.0)
}

/// Refuses a method that is not in `allowed`.
fn insist_on_method(request: &Request, allowed: &[Method]) -> Result<(), Box<Response>> {
    if allowed.contains(request.method()) {
        return Ok(());
    }
    let list = allowed.iter().map(Method::as_str).collect::<Vec<_>>().join(", ");
    let message = format!("{} is not allowed here: use {list}", request.method());
    let mut response = error(StatusCode::METHOD_NOT_ALLOWED, &message);
    if let Ok(list) = HeaderValue::from_str(&list) {
        response.headers_mut().insert(ALLOW, list);
    }
    Err(Box::new(response))
}

/// Refuses what a page of another site makes a browser send: it must not change anything here.
fn insist_on_same_origin(request: &Request) -> Result<(), Box<Response>> {
    let Some(origin) = request.headers().get(ORIGIN) else {
        return Ok(());
    };
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok());
    let origin = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
    if host.is_some() && origin.map(|(_, authority)| authority) == host {
        return Ok(());
    }
    Err(Box::new(error(StatusCode::FORBIDDEN, "refused: the request comes from another site")))
}

/// The path with its trailing slashes removed, as libprocess 1.6 and later has it.
fn path(request: &Request) -> &str {
    request.uri().path().trim_end_matches('/')
}

fn not_found(request: &Request, known: &[&str]) -> Box<Response> {
    let path: String = request.uri().path().chars().take(100).collect();
    let message = format!("nothing is at {path}: there are {}", known.join(", "));
    Box::new(error(StatusCode::NOT_FOUND, &message))
}

/// The machine cannot answer now.
fn unavailable(reason: &str) -> Response {
    let mut response = error(StatusCode::SERVICE_UNAVAILABLE, reason);
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(RETRY_SECONDS));
    response
}

/// A response that says what is wrong, mostly in one line. It may quote the request.
#[must_use]
pub fn error(status: StatusCode, message: &str) -> Response {
    let message = escape::bounded_lines(message, ERROR_MAX) + "\n";
    response(status, "text/plain; charset=utf-8", message.into_bytes())
}

fn response(status: StatusCode, content_type: &'static str, body: Vec<u8>) -> Response {
    let mut response = Response::new(Bytes::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests;
