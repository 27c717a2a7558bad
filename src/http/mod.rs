//! The HTTP endpoints: routing of requests to a state machine, and rendering of its replies.
//!
//! `/overlay-master/state`, `/overlay-master/agents/delete` and `/overlay-agent/overlay` return the
//! same bytes as the C++ modules. All other endpoints are extensions.
//!
//! All functions are pure. A large reply takes milliseconds to render, so the runtime renders it on
//! a blocking thread.

mod access;
mod agent;
mod history;
mod host;
mod keys;
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
use overlay_types::escape;
use overlay_wire as wire;
use serde::Serialize;

use keys::{require_no_body, require_query};

pub use access::{Access, AccessRules, Authentication, Denial, MesosClient, Realms, client_of};
pub use agent::{classify_agent, render_agent, route_agent};
pub use master::{access_to_master, classify_master, describe_change, render_master, route_master};

/// A request from a transport, with its whole body.
pub type Request = http::Request<Bytes>;
/// The response to a transport.
pub type Response = http::Response<Bytes>;

/// Minimum length of a compressed body. libprocess has the same threshold.
const GZIP_MIN: usize = 1024;
/// Maximum length of an error's text in characters, which is enough for all problems of a
/// configuration.
const ERROR_MAX: usize = 64 * 1024;
/// Maximum length of the name of a JSONP callback.
const CALLBACK_MAX: usize = 128;
/// The parameter with the name of a JSONP callback.
const JSONP: &str = "jsonp";
/// Seconds after which a client should retry while the state is unavailable.
const RETRY_SECONDS: u32 = 2;

/// The format of a response, from the headers and the query of the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Format {
    body: BodyFormat,
    accepts_gzip: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum BodyFormat {
    Json,
    /// JSON wrapped in a call of this function.
    Jsonp(String),
    Protobuf,
    /// Version 0.0.4 of the text format of Prometheus.
    PrometheusText,
    OpenMetrics,
}

impl Format {
    /// Selects the format by the header `Accept`. JSON is preferred, as in the C++ modules.
    ///
    /// # Errors
    /// The response with the reason if no format is acceptable.
    fn negotiated(request: &Request) -> Result<Self, Box<Response>> {
        let accepts = |media_type| accepts(request.headers(), "application/*", media_type);
        let body = if accepts("application/json") {
            match callback(request)? {
                Some(name) => BodyFormat::Jsonp(name),
                None => BodyFormat::Json,
            }
        } else if accepts("application/x-protobuf") {
            BodyFormat::Protobuf
        } else {
            // HTTP suggests 406, but clients of the C++ modules expect this status.
            return Err(Box::new(error(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "the available types are application/json and application/x-protobuf",
            )));
        };
        Ok(Self::new(body, request))
    }

    fn new(body: BodyFormat, request: &Request) -> Self {
        // Without the header, the client does not expect compression, as in libprocess.
        let accepts_gzip = has_weight(request.headers(), &ACCEPT_ENCODING, &["gzip", "*"]);
        Self { body, accepts_gzip }
    }

    /// Returns the response with a protobuf message, as protobuf or JSON.
    fn message<M: wire::JsonMessage>(&self, message: &M) -> Response {
        match self.body {
            BodyFormat::Protobuf => {
                self.respond(StatusCode::OK, "application/x-protobuf", message.encode_to_vec())
            }
            _ => self.json(StatusCode::OK, wire::print_json(message)),
        }
    }

    /// Returns the response with a value of an extension, which has no protobuf form.
    fn json_value(&self, status: StatusCode, value: &impl Serialize) -> Response {
        match serde_json::to_string(value) {
            Ok(text) => self.json(status, text),
            Err(reason) => error(StatusCode::INTERNAL_SERVER_ERROR, &reason.to_string()),
        }
    }

    fn json(&self, status: StatusCode, text: String) -> Response {
        // The text may contain input of unauthenticated peers, and a terminal may show it.
        let text = match escape::json(&text) {
            Cow::Borrowed(_) => text,
            Cow::Owned(escaped) => escaped,
        };
        match &self.body {
            BodyFormat::Jsonp(name) => {
                let text = format!("{name}({text});");
                self.respond(status, "text/javascript", text.into_bytes())
            }
            _ => self.respond(status, "application/json", text.into_bytes()),
        }
    }

    fn respond(&self, status: StatusCode, content_type: &'static str, body: Vec<u8>) -> Response {
        let is_compressed = self.accepts_gzip && body.len() >= GZIP_MIN;
        let (body, is_compressed) = match is_compressed.then(|| gzip(&body)) {
            Some(Ok(compressed)) => (compressed, true),
            // Writing to memory does not fail. The plain body would be correct too.
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

/// Returns the name of the JSONP callback. The name becomes code in a web page, so it must be a
/// plain identifier.
fn callback(request: &Request) -> Result<Option<String>, Box<Response>> {
    let query = request.uri().query().unwrap_or_default();
    let Some((_, name)) =
        form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key.as_ref() == JSONP)
    else {
        return Ok(None);
    };
    let is_allowed = |letter: char| letter.is_ascii_alphanumeric() || "_$.".contains(letter);
    if name.is_empty() || name.len() > CALLBACK_MAX || !name.chars().all(is_allowed) {
        let message = "jsonp: write the name of a function: letters, digits, '_', '$' and '.'";
        return Err(Box::new(error(StatusCode::BAD_REQUEST, message)));
    }
    Ok(Some(name.into_owned()))
}

/// Returns whether the client accepts this media type. Without the header, it accepts all types.
fn accepts(headers: &HeaderMap, wildcard: &str, media_type: &str) -> bool {
    let entries = [media_type, wildcard, "*/*"];
    !headers.contains_key(ACCEPT) || has_weight(headers, &ACCEPT, &entries)
}

/// Returns whether a header with a list of RFC 9110, section 12.5, gives a positive weight to one
/// of `entries`. The entries are sorted from specific to general, and the first listed entry
/// decides.
fn has_weight(headers: &HeaderMap, name: &HeaderName, entries: &[&str]) -> bool {
    let listed = weighted_entries(headers, name);
    let deciding = entries.iter().find_map(|entry| listed.iter().find(|found| found.is(entry)));
    deciding.is_some_and(|found| found.weight > 0.0)
}

/// An entry of a list of RFC 9110, section 12.5.
struct WeightedEntry {
    token: String,
    /// The parameter `version` of a media type.
    version: Option<String>,
    weight: f32,
}

impl WeightedEntry {
    fn is(&self, token: &str) -> bool {
        self.token == token
    }
}

/// Returns the entries of all values of a header.
fn weighted_entries(headers: &HeaderMap, name: &HeaderName) -> Vec<WeightedEntry> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    let parse = |entry: &str| {
        let mut parts = entry.split(';').map(|part| part.trim().to_ascii_lowercase());
        let token = parts.next().unwrap_or_default();
        let (mut version, mut weight) = (None, 1.0);
        for part in parts {
            match part.split_once('=').map(|(name, value)| (name.trim(), value.trim())) {
                Some(("version", value)) => version = Some(value.trim_matches('"').to_owned()),
                Some(("q", value)) => weight = value.parse().unwrap_or(weight),
                _ => {}
            }
        }
        WeightedEntry { token, version, weight }
    };
    values.flat_map(|value| value.split(',')).map(parse).collect()
}

/// Checks a request that reads: method, query and body.
fn require_read(request: &Request, parameters: &[&str]) -> Result<(), Box<Response>> {
    require_method(request, &[Method::GET, Method::HEAD])?;
    require_query(request, parameters)?;
    require_no_body(request)
}

/// Checks a request with a body, or one that changes the state: method, origin and query.
fn require_post(request: &Request, parameters: &[&str]) -> Result<(), Box<Response>> {
    require_method(request, &[Method::POST])?;
    require_same_origin(request)?;
    require_query(request, parameters)
}

/// Refuses a request whose method is not in `allowed`.
fn require_method(request: &Request, allowed: &[Method]) -> Result<(), Box<Response>> {
    if allowed.contains(request.method()) {
        return Ok(());
    }
    let list = allowed.iter().map(Method::as_str).collect::<Vec<_>>().join(", ");
    let message = format!("method {} is not allowed: use {list}", request.method());
    let mut response = error(StatusCode::METHOD_NOT_ALLOWED, &message);
    if let Ok(list) = HeaderValue::from_str(&list) {
        response.headers_mut().insert(ALLOW, list);
    }
    Err(Box::new(response))
}

/// Set by browsers for servers that they trust, also behind a proxy that changes `Host`. Pages
/// cannot set it.
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Refuses a cross-site request of a browser: a page of another site must not change the state.
fn require_same_origin(request: &Request) -> Result<(), Box<Response>> {
    let headers = request.headers();
    let refused = || {
        let message = "refused: the request comes from another site";
        Err(Box::new(error(StatusCode::FORBIDDEN, message)))
    };
    // `none` is a request of the user, such as a bookmark.
    let mut sites = headers.get_all(SEC_FETCH_SITE).iter().peekable();
    if sites.peek().is_some() {
        let is_own = sites.all(|site| site == "same-origin" || site == "none");
        return if is_own { Ok(()) } else { refused() };
    }
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    let is_own = |origin: &HeaderValue| {
        let origin = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
        host.is_some() && origin.map(|(_, authority)| authority) == host
    };
    if headers.get_all(ORIGIN).iter().all(is_own) { Ok(()) } else { refused() }
}

/// Returns the path without trailing slashes, as libprocess 1.6 and later do.
fn path(request: &Request) -> &str {
    request.uri().path().trim_end_matches('/')
}

/// Returns the response to a request for an unknown path. Its paths are relative, since a proxy may
/// serve this server below a prefix.
fn not_found(request: &Request, endpoints: &[&str]) -> Box<Response> {
    let path: String = request.uri().path().chars().take(100).collect();
    let path = path.trim_start_matches('/');
    let endpoints = endpoints.iter().map(|endpoint| endpoint.trim_start_matches('/'));
    let endpoints = endpoints.collect::<Vec<_>>().join(", ");
    let message = format!("no endpoint at '{path}': the endpoints of this server are {endpoints}");
    Box::new(error(StatusCode::NOT_FOUND, &message))
}

/// Returns the response for a state machine that hangs.
pub fn stalled(path: &str, reason: &str) -> Response {
    if !path.trim_end_matches('/').ends_with("/health") {
        return unavailable(reason);
    }
    let health = serde_json::json!({ "status": "failed", "problems": [reason] });
    let text = escape::json(&health.to_string()).into_owned();
    response(StatusCode::SERVICE_UNAVAILABLE, "application/json", text.into_bytes())
}

/// Returns the response of a state machine that cannot answer at present.
fn unavailable(reason: &str) -> Response {
    let mut response = error(StatusCode::SERVICE_UNAVAILABLE, reason);
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(RETRY_SECONDS));
    response
}

fn bad_request(message: &str) -> Response {
    error(StatusCode::BAD_REQUEST, message)
}

/// Returns an error response with a text, mostly of one line. The text may quote the request.
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
