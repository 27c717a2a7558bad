//! Parses the head of a request: message or HTTP, sender and receiver, and the framing of the body.
//!
//! The parser rejects input on which two implementations could disagree about the end of a request:
//! two different lengths, or a length and chunks. Elsewhere it is as lenient as libprocess.

use std::mem::MaybeUninit;

use super::encode::{ERRORS_ONLY, RECEIPT_HEADER};
use super::{HEAD_LIMIT, HEADERS_LIMIT};
use crate::{Receipt, Rejection, Upid};

const AGENT_PREFIX: &[u8] = b"libprocess/";

/// How the length of a body is determined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// The body has this many bytes.
    Length(usize),
    /// The body ends with an empty chunk.
    Chunked,
}

/// A parsed head.
#[derive(Debug)]
pub(super) enum Head {
    /// A message.
    Message(MessageHead),
    /// Any other request.
    Http,
}

/// The parsed head of a message.
#[derive(Debug)]
pub(super) struct MessageHead {
    /// Sender, receiver and name. A rejection is stored until the body has been read, so that the
    /// connection can continue.
    pub(super) envelope: Result<Envelope, Rejection>,
    pub(super) framing: Framing,
    pub(super) encoding: Encoding,
    /// Whether the sender keeps the connection open.
    pub(super) is_kept_alive: bool,
    pub(super) receipt: Receipt,
    /// Whether the sender waits for `100 Continue` before it sends the body, as curl does.
    pub(super) is_continue_awaited: bool,
}

/// Sender, receiver and name of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Envelope {
    pub(super) from: Upid,
    pub(super) to: String,
    pub(super) name: String,
}

/// Compression of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    Identity,
    Gzip,
    Unknown,
}

impl Encoding {
    pub(super) fn of(value: Option<&[u8]>) -> Self {
        match value.map(<[u8]>::trim_ascii) {
            None | Some(b"") => Self::Identity,
            Some(value) if value.eq_ignore_ascii_case(b"identity") => Self::Identity,
            Some(value) if value.eq_ignore_ascii_case(b"gzip") => Self::Gzip,
            Some(_) => Self::Unknown,
        }
    }
}

/// Returns the length of the head at the start of `input`, or `None` if the head is incomplete. The
/// first `scanned` bytes do not contain the end, so they are not searched again.
pub(super) fn head_length(input: &[u8], scanned: usize) -> Result<Option<usize>, Rejection> {
    // The end may begin in the scanned bytes: "\n\r" before, "\n" now.
    let start = scanned.saturating_sub(2);
    let mut from = start;
    let limit = input.len().min(HEAD_LIMIT);
    while let Some(offset) = input[from..limit].iter().position(|&byte| byte == b'\n') {
        let next = from + offset + 1;
        match input.get(next..limit) {
            Some([b'\n', ..]) => return Ok(Some(next + 1)),
            Some([b'\r', b'\n', ..]) => return Ok(Some(next + 2)),
            _ => from = next,
        }
    }
    if input.len() >= HEAD_LIMIT { Err(Rejection::HeadTooLarge(HEAD_LIMIT)) } else { Ok(None) }
}

/// Parses a complete head, whose length comes from [`head_length`].
pub(super) fn parse(head: &[u8]) -> Result<Head, Rejection> {
    let mut headers = [const { MaybeUninit::uninit() }; HEADERS_LIMIT];
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(head, &mut headers) {
        Ok(httparse::Status::Complete(length)) if length == head.len() => {}
        Ok(_) => return Err(Rejection::Malformed("the header section ends early")),
        Err(httparse::Error::TooManyHeaders) => return Err(Rejection::HeadTooLarge(HEAD_LIMIT)),
        Err(_) => return Err(Rejection::Malformed("not an HTTP/1 request")),
    }
    let fields = Fields::collect(request.headers)?;
    if !is_message(request.method.unwrap_or_default(), fields.libprocess_from, fields.user_agent) {
        return Ok(Head::Http);
    }
    let framing = fields.framing()?;
    let has_option = |option: &str| {
        let mut options = fields.connection.unwrap_or_default().split(|&byte| byte == b',');
        options.any(|text| text.trim_ascii().eq_ignore_ascii_case(option.as_bytes()))
    };
    let is_kept_alive =
        !has_option("close") && (request.version == Some(1) || has_option("keep-alive"));
    let path = request.path.unwrap_or_default();
    Ok(Head::Message(MessageHead {
        envelope: envelope(path, fields.libprocess_from, fields.user_agent),
        framing,
        encoding: Encoding::of(fields.content_encoding),
        is_kept_alive,
        receipt: fields.receipt(),
        is_continue_awaited: fields
            .expect
            .is_some_and(|value| value.eq_ignore_ascii_case(b"100-continue")),
    }))
}

/// Whether a request is a message. The test is the same as in libprocess.
pub(super) fn is_message(method: &str, from: Option<&[u8]>, user_agent: Option<&[u8]>) -> bool {
    method == "POST"
        && (from.is_some() || user_agent.is_some_and(|value| value.starts_with(AGENT_PREFIX)))
}

/// Parses sender, receiver and name. `target` is the request target, with or without a query.
pub(super) fn envelope(
    target: &str,
    from: Option<&[u8]>,
    user_agent: Option<&[u8]>,
) -> Result<Envelope, Rejection> {
    let path = target.split_once('?').map_or(target, |(path, _)| path);
    let (id, name) =
        path.strip_prefix('/').and_then(|path| path.split_once('/')).ok_or(Rejection::Path)?;
    let from = from.or_else(|| user_agent?.strip_prefix(AGENT_PREFIX)).unwrap_or_default();
    let from = String::from_utf8_lossy(from);
    let from = from.split_whitespace().next().unwrap_or_default();
    check_names([from, id, name])?;
    let to = unescape(id).ok_or(Rejection::Escape)?;
    Ok(Envelope { from: from.parse()?, to, name: name.to_owned() })
}

/// Longest name of a process or a message, in bytes. Names in Mesos have less than 100.
const NAME_MAX: usize = 512;

/// Checks the length of names, which are stored and quoted while the message waits.
///
/// # Errors
/// If a name is too long.
pub fn check_names(names: [&str; 3]) -> Result<(), Rejection> {
    if names.iter().any(|name| name.len() > NAME_MAX) {
        return Err(Rejection::Malformed("the name of the message or of a process is too long"));
    }
    Ok(())
}

/// Decodes percent-encoding, and `+` as a space.
fn unescape(text: &str) -> Option<String> {
    if !text.bytes().any(|byte| matches!(byte, b'%' | b'+')) {
        return Some(text.to_owned());
    }
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        plain.push(match byte {
            b'+' => b' ',
            b'%' => {
                let (&[high, low], after) = rest.split_first_chunk::<2>()?;
                rest = after;
                hex(high)? << 4 | hex(low)?
            }
            byte => byte,
        });
    }
    String::from_utf8(plain).ok()
}

/// Returns the value of a hexadecimal digit.
pub(super) const fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

/// The relevant headers. The last value of a repeated header counts, as in libprocess.
#[derive(Default)]
struct Fields<'a> {
    libprocess_from: Option<&'a [u8]>,
    user_agent: Option<&'a [u8]>,
    connection: Option<&'a [u8]>,
    content_encoding: Option<&'a [u8]>,
    content_length: Option<&'a [u8]>,
    transfer_encoding: Option<&'a [u8]>,
    expect: Option<&'a [u8]>,
    receipt: Option<&'a [u8]>,
}

impl<'a> Fields<'a> {
    fn collect(headers: &[httparse::Header<'a>]) -> Result<Self, Rejection> {
        let mut fields = Self::default();
        for header in headers {
            let is = |name: &str| header.name.eq_ignore_ascii_case(name);
            let value = Some(header.value);
            // Compare the length first: most headers then need a single comparison.
            match header.name.len() {
                6 if is("expect") => fields.expect = value,
                10 if is("user-agent") => fields.user_agent = value,
                10 if is("connection") => fields.connection = value,
                14 if is("content-length") => {
                    if fields.content_length.is_some_and(|before| before != header.value) {
                        return Err(Rejection::Malformed("two different content lengths"));
                    }
                    fields.content_length = value;
                }
                15 if is("libprocess-from") => fields.libprocess_from = value,
                16 if is("content-encoding") => fields.content_encoding = value,
                17 if is("transfer-encoding") => {
                    if fields.transfer_encoding.is_some() {
                        return Err(Rejection::Malformed("two transfer encodings"));
                    }
                    fields.transfer_encoding = value;
                }
                18 if is(RECEIPT_HEADER) => fields.receipt = value,
                _ => {}
            }
        }
        Ok(fields)
    }

    fn receipt(&self) -> Receipt {
        match self.receipt {
            Some(value) if value.eq_ignore_ascii_case(ERRORS_ONLY.as_bytes()) => {
                Receipt::ErrorsOnly
            }
            _ => Receipt::Always,
        }
    }

    fn framing(&self) -> Result<Framing, Rejection> {
        match (self.transfer_encoding, self.content_length) {
            (Some(_), Some(_)) => {
                Err(Rejection::Malformed("both a content length and a transfer encoding"))
            }
            (Some(value), None) if value.trim_ascii().eq_ignore_ascii_case(b"chunked") => {
                Ok(Framing::Chunked)
            }
            (Some(_), None) => Err(Rejection::Malformed("a transfer encoding other than chunked")),
            (None, Some(value)) => {
                let digits = value.trim_ascii();
                if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
                    return Err(Rejection::Malformed("the content length is no number"));
                }
                // Only digits: a value that does not parse exceeds every limit.
                let length =
                    std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok());
                Ok(Framing::Length(length.unwrap_or(usize::MAX)))
            }
            (None, None) => Ok(Framing::Length(0)),
        }
    }
}
