//! What we write: messages byte for byte as libprocess does, and receipts.

use std::cell::Cell;
use std::io::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::StatusCode;

use crate::addr::Upid;
use crate::transport::Refusal;

/// Appends a message to `output`. Returns false, and appends nothing, if a name in it would break
/// the request line or a header: libprocess writes names raw, so we cannot escape them.
pub(super) fn message(
    output: &mut Vec<u8>,
    from: &Upid,
    to: &Upid,
    name: &str,
    body: &[u8],
) -> bool {
    let is_plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
    if !is_plain(&from.id) || !is_plain(&to.id) || !is_plain(name) {
        return false;
    }
    // Enough for the fixed words, three addresses and the chunk's size, so that memory is got once.
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
    if body.is_empty() {
        output.extend_from_slice(b"\r\n");
    } else {
        let _ = write!(output, "Transfer-Encoding: chunked\r\n\r\n{:x}\r\n", body.len());
        output.extend_from_slice(body);
        output.extend_from_slice(b"\r\n0\r\n\r\n");
    }
    true
}

/// Appends the receipt of a message that is on its way to its process.
pub(super) fn accepted(output: &mut Vec<u8>, is_kept_alive: bool) {
    output.extend_from_slice(b"HTTP/1.1 202 Accepted\r\nDate: ");
    output.extend_from_slice(&date());
    if !is_kept_alive {
        output.extend_from_slice(b"\r\nConnection: close");
    }
    output.extend_from_slice(b"\r\nContent-Length: 0\r\n\r\n");
}

/// Appends the answer to something that was refused.
pub(super) fn refused(output: &mut Vec<u8>, refusal: &Refusal, is_kept_alive: bool) {
    let status = refusal.status();
    let text = refusal.to_string();
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

/// The time of day as a header has it. Formatted once a second for each thread, since every receipt
/// has it.
fn date() -> [u8; DATE_LENGTH] {
    thread_local! {
        static LAST: Cell<(u64, [u8; DATE_LENGTH])> = const { Cell::new((0, [b' '; DATE_LENGTH])) };
    }
    #[expect(clippy::disallowed_methods, reason = "a receipt carries the time of day")]
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
