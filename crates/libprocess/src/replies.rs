//! Parses the HTTP responses on an outgoing connection: counts them and reports errors.
//!
//! libprocess ignores these responses. This crate reads them, because an error response is the only
//! trace of a lost message, for example "UPID IP address validation failed".

use std::mem::MaybeUninit;

use super::HEADERS_LIMIT;

/// Longest head of a response. libprocess sends about 100 bytes.
const HEAD_LIMIT: usize = 8 * 1024;

/// Longest text of an error response that is logged, in bytes.
const TEXT_LIMIT: usize = 300;

/// An error response of a peer to a message.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ErrorReply {
    pub(super) status: u16,
    pub(super) text: String,
}

impl ErrorReply {
    /// Describes the error. libprocess sends no text for an unknown process, so `hint` is added.
    pub(super) fn describe(&self, hint: &str) -> String {
        let Self { status, text } = self;
        let hint = if *status == 404 { hint } else { "" };
        let parts = [text.as_str(), hint].into_iter().filter(|part| !part.is_empty());
        parts.fold(status.to_string(), |description, part| description + ": " + part)
    }
}

/// An incremental parser of responses.
#[derive(Debug, Default)]
pub(super) struct Replies {
    /// The first part of an incomplete head.
    head: Vec<u8>,
    /// Missing bytes of a body.
    rest: usize,
    /// The error response whose text is incomplete.
    error_reply: Option<(u16, Vec<u8>)>,
    /// Whether the input is malformed. Then the rest of the input is ignored.
    is_malformed: bool,
}

impl Replies {
    /// Parses `input`, appends error responses to `error_replies`, and returns the number of
    /// completed responses.
    pub(super) fn read(&mut self, mut input: &[u8], error_replies: &mut Vec<ErrorReply>) -> usize {
        let mut count = 0;
        while !self.is_malformed {
            if self.rest > 0 {
                let (body, after) = input.split_at(self.rest.min(input.len()));
                self.rest -= body.len();
                input = after;
                if let Some((_, text)) = &mut self.error_reply {
                    let remaining = TEXT_LIMIT - text.len();
                    text.extend_from_slice(&body[..body.len().min(remaining)]);
                }
                if self.rest > 0 {
                    return count;
                }
            }
            if let Some((status, text)) = self.error_reply.take() {
                let text = String::from_utf8_lossy(&text).trim().escape_debug().to_string();
                error_replies.push(ErrorReply { status, text });
            }
            if input.is_empty() {
                return count;
            }
            let Some(is_final) = self.read_head(&mut input) else { return count };
            count += usize::from(is_final);
        }
        count
    }

    /// Removes a head from `input`. Returns whether the response is final, or `None` if the head is
    /// incomplete.
    fn read_head(&mut self, input: &mut &[u8]) -> Option<bool> {
        let before = self.head.len();
        let joined;
        let bytes = if before == 0 {
            *input
        } else {
            self.head.extend_from_slice(input);
            joined = std::mem::take(&mut self.head);
            &joined
        };
        let mut headers = [const { MaybeUninit::uninit() }; HEADERS_LIMIT];
        let mut response = httparse::Response::new(&mut []);
        let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(
            &mut response,
            bytes,
            &mut headers,
        );
        let length = match parsed {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) if bytes.len() < HEAD_LIMIT => {
                self.head = bytes.to_vec();
                *input = &[];
                return None;
            }
            _ => {
                self.is_malformed = true;
                return None;
            }
        };
        let status = response.code.unwrap_or_default();
        let has_body = !matches!(status, 100..200 | 204 | 304);
        for header in response.headers.iter() {
            if header.name.eq_ignore_ascii_case("content-length") {
                let text = std::str::from_utf8(header.value).unwrap_or_default();
                self.rest = text.trim().parse().unwrap_or_default();
            }
            // libprocess never sends a chunked response to a message.
            self.is_malformed |= header.name.eq_ignore_ascii_case("transfer-encoding");
        }
        if !has_body {
            self.rest = 0;
        }
        if status >= 400 {
            self.error_reply = Some((status, Vec::new()));
        }
        *input = &input[length - before..];
        Some(status >= 200)
    }
}
