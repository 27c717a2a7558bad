//! A whole message out of memory, through the very readers of a connection: for fuzzing, and for
//! whoever has bytes and no socket.

use bytes::BytesMut;

use super::framing::{Body, BodyLimits, inflate};
use super::head::{self, Encoding, Head};
use crate::transport::{Incoming, Refusal};

/// The first message in what comes in these pieces. `None` if it is another request, or is not all
/// there. `body_max` is the longest body of a message of a name.
///
/// # Errors
/// Why a connection would refuse it.
pub fn read_message(
    pieces: &[&[u8]],
    body_max: impl Fn(&str) -> usize,
) -> Result<Option<Incoming>, Refusal> {
    let mut input = BytesMut::new();
    let mut scanned = 0;
    let mut unread = None;
    for piece in pieces {
        input.extend_from_slice(piece);
        if unread.is_none() {
            let Some(length) = head::head_length(&input, scanned)? else {
                scanned = input.len();
                continue;
            };
            let Head::Message(head) = head::parse(&input.split_to(length))? else {
                return Ok(None);
            };
            let name = head.envelope.as_ref().map_or("", |envelope| &envelope.name);
            let limits = BodyLimits { max: body_max(name), is_kept: true };
            unread = Some((Body::new(head.framing, limits)?, limits, head));
        }
        if let Some((body, limits, head)) = &mut unread
            && let Some(body) = body.read(&mut input)?
        {
            let envelope = head.envelope.clone()?;
            let body = match head.encoding {
                Encoding::Identity => body,
                Encoding::Gzip => inflate(&body, limits.max, |_| Ok(()))?,
                Encoding::Unknown => return Err(Refusal::Encoding),
            };
            let head::Envelope { from, to, name } = envelope;
            return Ok(Some(Incoming { from, to, name, body }));
        }
    }
    Ok(None)
}
