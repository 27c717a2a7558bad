//! Converts requests and responses between libprocess, which passes their parts, and the endpoints.

use bytes::Bytes;
use form_urlencoded::Serializer;
use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use libprocess::Rejection;

use crate::runtime::gateway::Gateway;

/// The parts of a request from libprocess.
#[derive(Debug)]
pub struct RequestParts<'a> {
    /// `GET`, `POST`...
    pub method: &'a str,
    /// Path with the ID of the process, without the query.
    pub path: &'a str,
    /// The query, decoded.
    pub query: Vec<(String, String)>,
    /// Names and values as received.
    pub headers: Vec<(String, String)>,
    /// The whole body.
    pub body: &'a [u8],
}

/// The parts of a response for libprocess.
#[derive(Debug, PartialEq, Eq)]
pub struct ResponseParts {
    /// The status code.
    pub status: u16,
    /// `Content-Type`.
    pub content_type: String,
    /// All other headers.
    pub headers: Vec<(String, String)>,
    /// The body, compressed if a header says so.
    pub body: Bytes,
}

/// Assembles a request. Invalid headers are omitted, since no endpoint needs them.
///
/// # Errors
/// The response to an invalid request or a body that is too long.
pub(super) fn assemble_request(
    parts: RequestParts<'_>,
    gateway: &Gateway,
) -> Result<Request<Bytes>, Box<Response<Bytes>>> {
    let method = Method::from_bytes(parts.method.as_bytes());
    let body_max = method.as_ref().map_or(0, |method| gateway.body_max(method, parts.path));
    if method.is_ok() && parts.body.len() > body_max {
        let refusal = Rejection::BodyTooLarge(body_max);
        return Err(Box::new(crate::http::error(refusal.status(), &refusal.to_string())));
    }
    assemble(parts).map_err(|reason| Box::new(bad_request(&reason)))
}

fn assemble(parts: RequestParts<'_>) -> Result<Request<Bytes>, http::Error> {
    let mut target = parts.path.to_owned();
    if !parts.query.is_empty() {
        let query = Serializer::new(String::new()).extend_pairs(parts.query).finish();
        target = format!("{target}?{query}");
    }
    let mut request = Request::new(Bytes::copy_from_slice(parts.body));
    *request.method_mut() = Method::from_bytes(parts.method.as_bytes())?;
    *request.uri_mut() = Uri::try_from(target)?;
    for (name, value) in parts.headers {
        let name = HeaderName::from_bytes(name.as_bytes());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(value.as_bytes())) {
            request.headers_mut().append(name, value);
        }
    }
    Ok(request)
}

/// Splits a response into its parts. libprocess sends the body of every response, so the response
/// to HEAD gets an empty body.
#[must_use]
pub fn split_response(response: Response<Bytes>, is_head: bool) -> ResponseParts {
    let (mut head, body) = response.into_parts();
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let content_type = head.headers.remove(CONTENT_TYPE).as_ref().map(text).unwrap_or_default();
    let headers = head.headers.iter().map(|(name, value)| (name.to_string(), text(value)));
    let mut headers: Vec<_> = headers.collect();
    headers.sort();
    let body = if is_head { Bytes::new() } else { body };
    ResponseParts { status: head.status.as_u16(), content_type, headers, body }
}

/// Returns the response to a request that the module did not answer, because the module has ended
/// or its task panicked.
#[must_use]
pub fn interrupted_response() -> ResponseParts {
    split_response(
        crate::http::error(StatusCode::SERVICE_UNAVAILABLE, "interrupted: try again"),
        false,
    )
}

/// Returns the response of a module that cannot run in this Mesos: for the path of its health a
/// health, else an error.
pub(super) fn failed_response(path: &str, reason: &str) -> Response<Bytes> {
    let unavailable = StatusCode::SERVICE_UNAVAILABLE;
    if !path.trim_end_matches('/').ends_with("/health") {
        return crate::http::error(unavailable, reason);
    }
    let health = serde_json::json!({ "status": "failed", "problems": [reason] });
    let mut response = crate::http::error(unavailable, "");
    *response.body_mut() = health.to_string().into();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Returns the response to an invalid request.
fn bad_request(reason: &http::Error) -> Response<Bytes> {
    crate::http::error(StatusCode::BAD_REQUEST, &format!("malformed request: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts<'a>(path: &'a str, query: &[(&str, &str)]) -> RequestParts<'a> {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        RequestParts {
            method: "GET",
            path,
            query: query.iter().map(own).collect(),
            headers: vec![own(&("Accept", "a/b")), own(&("bad header", "x")), own(&("X", "\n"))],
            body: b"{}",
        }
    }

    #[test]
    fn request_is_assembled_from_parts() {
        let request = assemble(parts("/overlay-master/state", &[("jsonp", "a b&c")])).unwrap();
        assert_eq!(request.uri(), "/overlay-master/state?jsonp=a+b%26c");
        assert_eq!(request.headers().len(), 1);
        assert_eq!(request.headers()["accept"], "a/b");
        assert_eq!(request.body().as_ref(), b"{}");
    }

    #[test]
    fn invalid_request_is_refused() {
        assert!(assemble(parts("/overlay-master/ \u{0}", &[])).is_err());
        assert!(assemble(RequestParts { method: "G T", ..parts("/", &[]) }).is_err());
    }

    #[test]
    fn response_to_head_has_no_body() {
        let response = || crate::http::error(StatusCode::NOT_FOUND, "nothing");
        let expected = ResponseParts {
            status: 404,
            content_type: "text/plain; charset=utf-8".to_owned(),
            headers: vec![
                ("cache-control".to_owned(), "no-store".to_owned()),
                ("x-content-type-options".to_owned(), "nosniff".to_owned()),
            ],
            body: Bytes::from_static(b"nothing\n"),
        };
        assert_eq!(split_response(response(), false), expected);
        assert_eq!(split_response(response(), true).body, Bytes::new());
    }
}
