//! Parses a complete message from memory with the parser of a connection. Useful for fuzzing, and
//! for recorded traffic.

use bytes::BytesMut;

use super::framing::{Body, BodyLimits, inflate};
use super::head::{self, Encoding, Head};
use crate::{Incoming, Rejection};

/// Returns the first message in `pieces`. Returns `None` if the first request is not a message, or
/// is incomplete. `body_max` returns the maximum length of a body for a message name.
///
/// # Errors
/// If a connection would reject the message.
pub fn read_message(
    pieces: &[&[u8]],
    body_max: impl Fn(&str) -> usize,
) -> Result<Option<Incoming>, Rejection> {
    let mut input = BytesMut::new();
    let mut scanned = 0;
    let mut partial = None;
    for piece in pieces {
        input.extend_from_slice(piece);
        if partial.is_none() {
            let Some(length) = head::head_length(&input, scanned)? else {
                scanned = input.len();
                continue;
            };
            let Head::Message(head) = head::parse(&input.split_to(length))? else {
                return Ok(None);
            };
            let name = head.envelope.as_ref().map_or("", |envelope| &envelope.name);
            let limits = BodyLimits { max: body_max(name), is_kept: true };
            partial = Some((Body::new(head.framing, limits)?, limits, head));
        }
        if let Some((body, limits, head)) = &mut partial
            && let Some(body) = body.read(&mut input)?
        {
            let envelope = head.envelope.clone()?;
            let body = match head.encoding {
                Encoding::Identity => body,
                Encoding::Gzip => inflate(&body, limits.max, |_| Ok(()))?,
                Encoding::Unknown => return Err(Rejection::Encoding),
            };
            let head::Envelope { from, to, name } = envelope;
            return Ok(Some(Incoming { from, to, name, body }));
        }
    }
    Ok(None)
}
