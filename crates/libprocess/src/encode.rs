//! Encodes messages exactly as libprocess does, and acknowledgments.
//!
//! A message may have one header more, [`RECEIPT_HEADER`], which libprocess ignores.

use std::cell::Cell;
use std::io::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::StatusCode;

use crate::{Receipt, Rejection, Upid};

/// The header of a message whose sender needs no acknowledgment, with the value
/// [`ERRORS_ONLY`]. It is an extension of this crate.
pub(super) const RECEIPT_HEADER: &str = "Libprocess-Receipt";

/// Asks for a response only if the message is refused.
pub(super) const ERRORS_ONLY: &str = "errors";

/// Appends a message to `output`. Returns false and appends nothing if a name would corrupt the
/// request line or a header. libprocess writes names without escapes, so an escape would change the
/// name.
pub(super) fn message(
    output: &mut Vec<u8>,
    from: &Upid,
    to: &Upid,
    (name, body): (&str, &[u8]),
    receipt: Receipt,
) -> bool {
    let is_plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
    if !is_plain(&from.id) || !is_plain(&to.id) || !is_plain(name) {
        return false;
    }
    // Reserve the fixed text, three addresses and the chunk size in a single allocation.
    let names = 2 * from.id.len() + to.id.len() + name.len();
    output.reserve(names + body.len() + 256);
    let slash = if to.id.is_empty() { "" } else { "/" };
    // Writing to a vector does not fail.
    let _ = write!(
        output,
        "POST {slash}{}/{name} HTTP/1.1\r\nUser-Agent: libprocess/{from}\r\n\
         Libprocess-From: {from}\r\nConnection: Keep-Alive\r\nHost: {}\r\n",
        to.id, to.address
    );
    if receipt == Receipt::ErrorsOnly {
        let _ = write!(output, "{RECEIPT_HEADER}: {ERRORS_ONLY}\r\n");
    }
    if body.is_empty() {
        output.extend_from_slice(b"\r\n");
    } else {
        let _ = write!(output, "Transfer-Encoding: chunked\r\n\r\n{:x}\r\n", body.len());
        output.extend_from_slice(body);
        output.extend_from_slice(b"\r\n0\r\n\r\n");
    }
    true
}

/// Appends the acknowledgment of a message.
pub(super) fn accepted(output: &mut Vec<u8>, is_kept_alive: bool) {
    output.extend_from_slice(b"HTTP/1.1 202 Accepted\r\nDate: ");
    output.extend_from_slice(&date());
    if !is_kept_alive {
        output.extend_from_slice(b"\r\nConnection: close");
    }
    output.extend_from_slice(b"\r\nContent-Length: 0\r\n\r\n");
}

/// Appends the response to a rejected request.
pub(super) fn rejected(output: &mut Vec<u8>, rejection: &Rejection, is_kept_alive: bool) {
    let status = rejection.status();
    let text = rejection.to_string();
    let _ = write!(output, "HTTP/1.1 {} {}\r\nDate: ", status.as_str(), reason(status));
    output.extend_from_slice(&date());
    if !is_kept_alive {
        output.extend_from_slice(b"\r\nConnection: close");
    }
    let _ = write!(
        output,
        "\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n\r\n{text}",
        text.len()
    );
}

fn reason(status: StatusCode) -> &'static str {
    status.canonical_reason().unwrap_or_default()
}

/// Returns the current time in the format of the `Date` header. Every acknowledgment contains it,
/// so each thread formats it once per second.
fn date() -> [u8; DATE_LENGTH] {
    thread_local! {
        static LAST: Cell<(u64, [u8; DATE_LENGTH])> = const { Cell::new((0, [b' '; DATE_LENGTH])) };
    }
    #[expect(clippy::disallowed_methods, reason = "the Date header contains the wall-clock time")]
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    LAST.with(|last| {
        let (second, text) = last.get();
        if second == now {
            return text;
        }
        let mut text = [b' '; DATE_LENGTH];
        let formatted = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(now));
        if formatted.len() == DATE_LENGTH {
            text.copy_from_slice(formatted.as_bytes());
        }
        last.set((now, text));
        text
    })
}

/// Length of "Sun, 06 Nov 1994 08:49:37 GMT".
const DATE_LENGTH: usize = 29;
