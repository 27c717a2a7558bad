//! The head of a request: is it a message, from whom to whom, and how long is its body.
//!
//! Stricter than libprocess where its leniency would let two readers of the same bytes disagree on
//! where a request ends (two lengths, a length beside chunks), and as lenient everywhere else.

use std::mem::MaybeUninit;

use super::{HEAD_LIMIT, HEADERS_LIMIT};
use crate::addr::Upid;
use crate::transport::Refusal;

const AGENT_PREFIX: &[u8] = b"libprocess/";

/// How the end of a body is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// After this many bytes.
    Length(usize),
    /// After the chunk of no length.
    Chunked,
}

/// What a head says.
#[derive(Debug)]
pub(super) enum Head {
    /// It is a message.
    Message(MessageHead),
    /// It is any other request.
    Http,
}

/// What the head of a message says.
#[derive(Debug)]
pub(super) struct MessageHead {
    /// From whom to whom. A refusal is kept until the body has been read, so that the connection
    /// can go on.
    pub(super) envelope: Result<Envelope, Refusal>,
    pub(super) framing: Framing,
    pub(super) encoding: Encoding,
    /// Whether the sender wants to use the connection again.
    pub(super) is_kept_alive: bool,
    /// Whether the sender waits for a word before it sends the body, as curl does.
    pub(super) is_continue_awaited: bool,
}

/// From whom to whom a message is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Envelope {
    pub(super) from: Upid,
    pub(super) to: String,
    pub(super) name: String,
}

/// How a body is compressed.
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

/// The length of the head at the start of `input`, if all of it is there. The first `scanned` bytes
/// are known not to hold its end, so that a head that trickles in is not searched again and again.
pub(super) fn head_length(input: &[u8], scanned: usize) -> Result<Option<usize>, Refusal> {
    // The end may begin in what was scanned: "\n\r" before, "\n" now.
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
    if input.len() >= HEAD_LIMIT { Err(Refusal::HeadTooLarge(HEAD_LIMIT)) } else { Ok(None) }
}

/// Reads a head that [`head_length`] has measured.
pub(super) fn parse(head: &[u8]) -> Result<Head, Refusal> {
    let mut headers = [const { MaybeUninit::uninit() }; HEADERS_LIMIT];
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(head, &mut headers) {
        Ok(httparse::Status::Complete(length)) if length == head.len() => {}
        Ok(_) => return Err(Refusal::Malformed("the header section ends early")),
        Err(httparse::Error::TooManyHeaders) => return Err(Refusal::HeadTooLarge(HEAD_LIMIT)),
        Err(_) => return Err(Refusal::Malformed("not an HTTP/1 request")),
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
        is_continue_awaited: fields
            .expect
            .is_some_and(|value| value.eq_ignore_ascii_case(b"100-continue")),
    }))
}

/// Whether a request is a message, by the very test of libprocess.
pub(super) fn is_message(method: &str, from: Option<&[u8]>, user_agent: Option<&[u8]>) -> bool {
    method == "POST"
        && (from.is_some() || user_agent.is_some_and(|value| value.starts_with(AGENT_PREFIX)))
}

/// From whom to whom a message is. `target` is the target of its request, with or without a query.
pub(super) fn envelope(
    target: &str,
    from: Option<&[u8]>,
    user_agent: Option<&[u8]>,
) -> Result<Envelope, Refusal> {
    let path = target.split_once('?').map_or(target, |(path, _)| path);
    let (id, name) =
        path.strip_prefix('/').and_then(|path| path.split_once('/')).ok_or(Refusal::Path)?;
    let from = from.or_else(|| user_agent?.strip_prefix(AGENT_PREFIX)).unwrap_or_default();
    let from = String::from_utf8_lossy(from);
    let from = from.split_whitespace().next().unwrap_or_default();
    check_names([from, id, name])?;
    let to = unescape(id).ok_or(Refusal::Escape)?;
    Ok(Envelope { from: from.parse()?, to, name: name.to_owned() })
}

/// Longest name of a process or a message, in bytes. Those of Mesos have less than 100.
const NAME_MAX: usize = 512;

/// Refuses names that are too long: they are kept, and quoted, as long as the message waits.
pub(in crate::transport) fn check_names(names: [&str; 3]) -> Result<(), Refusal> {
    if names.iter().any(|name| name.len() > NAME_MAX) {
        return Err(Refusal::Malformed("the name of the message or of a process is too long"));
    }
    Ok(())
}

/// Undoes percent-encoding, and the `+` that stands for a space.
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

/// The value of a hexadecimal digit.
pub(super) const fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

/// The headers that matter. Of a repeated one the last counts, as in libprocess.
#[derive(Default)]
struct Fields<'a> {
    libprocess_from: Option<&'a [u8]>,
    user_agent: Option<&'a [u8]>,
    connection: Option<&'a [u8]>,
    content_encoding: Option<&'a [u8]>,
    content_length: Option<&'a [u8]>,
    transfer_encoding: Option<&'a [u8]>,
    expect: Option<&'a [u8]>,
}

impl<'a> Fields<'a> {
    fn collect(headers: &[httparse::Header<'a>]) -> Result<Self, Refusal> {
        let mut fields = Self::default();
        for header in headers {
            let is = |name: &str| header.name.eq_ignore_ascii_case(name);
            let value = Some(header.value);
            // Told apart by length first: most headers need one comparison.
            match header.name.len() {
                6 if is("expect") => fields.expect = value,
                10 if is("user-agent") => fields.user_agent = value,
                10 if is("connection") => fields.connection = value,
                14 if is("content-length") => {
                    if fields.content_length.is_some_and(|before| before != header.value) {
                        return Err(Refusal::Malformed("two different content lengths"));
                    }
                    fields.content_length = value;
                }
                15 if is("libprocess-from") => fields.libprocess_from = value,
                16 if is("content-encoding") => fields.content_encoding = value,
                17 if is("transfer-encoding") => {
                    if fields.transfer_encoding.is_some() {
                        return Err(Refusal::Malformed("two transfer encodings"));
                    }
                    fields.transfer_encoding = value;
                }
                _ => {}
            }
        }
        Ok(fields)
    }

    fn framing(&self) -> Result<Framing, Refusal> {
        match (self.transfer_encoding, self.content_length) {
            (Some(_), Some(_)) => {
                Err(Refusal::Malformed("both a content length and a transfer encoding"))
            }
            (Some(value), None) if value.trim_ascii().eq_ignore_ascii_case(b"chunked") => {
                Ok(Framing::Chunked)
            }
            (Some(_), None) => Err(Refusal::Malformed("a transfer encoding other than chunked")),
            (None, Some(value)) => {
                let digits = value.trim_ascii();
                if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
                    return Err(Refusal::Malformed("the content length is no number"));
                }
                // Only digits, so what does not parse is too large for the type, and for any body.
                let length =
                    std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok());
                Ok(Framing::Length(length.unwrap_or(usize::MAX)))
            }
            (None, None) => Ok(Framing::Length(0)),
        }
    }
}
