//! The receipts that come back on an outgoing connection: counted, and thrown away unless they
//! complain.
//!
//! libprocess never looks at them. We do, because a refusal ("UPID IP address validation failed",
//! no such process) is otherwise invisible: the message is simply lost, on either side without a
//! trace.

use std::fmt;
use std::mem::MaybeUninit;

use super::HEADERS_LIMIT;

/// Longest head of a receipt. libprocess' have some 100 bytes.
const HEAD_LIMIT: usize = 8 * 1024;

/// How much of a complaint's text is kept for the log.
const TEXT_LIMIT: usize = 300;

/// A complaint of a peer about one of our messages.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Complaint {
    pub(super) status: u16,
    pub(super) text: String,
}

/// libprocess has no words for a process that is not there.
impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { status, text } = self;
        write!(f, "{status}")?;
        if !text.is_empty() {
            write!(f, ": {text}")?;
        }
        if *status == 404 {
            let remedy = "no such process is there: see that this is the address of an overlay \
                          master or agent, or of the Mesos with its module";
            write!(f, ": {remedy}")?;
        }
        Ok(())
    }
}

/// Reads receipts, however they are cut.
#[derive(Debug, Default)]
pub(super) struct Replies {
    /// The beginning of a head whose rest is still to come.
    head: Vec<u8>,
    /// Bytes of a body still to come.
    rest: usize,
    /// The complaint whose text is coming.
    complaint: Option<(u16, Vec<u8>)>,
    /// Whether the peer said something that we do not understand; then nothing after it is looked
    /// at.
    is_lost: bool,
}

impl Replies {
    /// Takes what was read. Adds to `complaints` and returns how many receipts were completed.
    pub(super) fn read(&mut self, mut input: &[u8], complaints: &mut Vec<Complaint>) -> usize {
        let mut count = 0;
        while !self.is_lost {
            if self.rest > 0 {
                let (body, after) = input.split_at(self.rest.min(input.len()));
                self.rest -= body.len();
                input = after;
                if let Some((_, text)) = &mut self.complaint {
                    let room = TEXT_LIMIT - text.len();
                    text.extend_from_slice(&body[..body.len().min(room)]);
                }
                if self.rest > 0 {
                    return count;
                }
            }
            if let Some((status, text)) = self.complaint.take() {
                let text = String::from_utf8_lossy(&text).trim().escape_debug().to_string();
                complaints.push(Complaint { status, text });
            }
            if input.is_empty() {
                return count;
            }
            let Some(is_receipt) = self.read_head(&mut input) else { return count };
            count += usize::from(is_receipt);
        }
        count
    }

    /// Takes a head out of `input`. Returns whether it is a receipt, or nothing if it is not
    /// complete.
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
                self.is_lost = true;
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
            // No libprocess sends a receipt in chunks.
            self.is_lost |= header.name.eq_ignore_ascii_case("transfer-encoding");
        }
        if !has_body {
            self.rest = 0;
        }
        if status >= 400 {
            self.complaint = Some((status, Vec::new()));
        }
        *input = &input[length - before..];
        Some(status >= 200)
    }
}
