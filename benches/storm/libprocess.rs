//! The part of the libprocess protocol that a simulated agent needs. It deliberately does not use
//! the transport of the program, which is under test: an error on both ends would stay unnoticed.

use overlay_types::addr::Upid;
use overlay_types::protocol::{Message, Seal};
use overlay_wire as wire;

/// The HTTP response to a message.
pub(crate) const RECEIPT: &[u8] =
    b"HTTP/1.1 202 Accepted\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nContent-Length: 0\r\n\r\n";

/// The end of the head of a request.
pub(crate) const HEAD_END: &[u8] = b"\r\n\r\n";

/// The header of a message whose sender needs no receipt.
const NO_RECEIPT: &str = "Libprocess-Receipt: errors\r\n";

/// Encodes a message as Mesos 1.4 to 1.11 do, with an empty Host header. `seal` returns the seal of
/// its content. Like an agent with a credential, it asks for no receipt of a message that has a seal
/// or begins a session.
pub(crate) fn request(
    from: &Upid,
    to: &Upid,
    message: &Message,
    seal: impl FnOnce(&[u8]) -> Option<Seal>,
) -> Vec<u8> {
    request_to_host(from, to, message, "", seal)
}

/// Encodes a message with this value of the Host header, see [`request`].
pub(crate) fn request_to_host(
    from: &Upid,
    to: &Upid,
    message: &Message,
    host: &str,
    seal: impl FnOnce(&[u8]) -> Option<Seal>,
) -> Vec<u8> {
    let (name, mut body) = wire::encode_message(message);
    let seal = seal(&body);
    let begins_session = matches!(message, Message::AuthenticateAgent(_));
    let receipt = if seal.is_some() || begins_session { NO_RECEIPT } else { "" };
    if let Some(seal) = seal {
        wire::append_seal(&mut body, &seal);
    }
    let mut request = format!(
        "POST /{}/{name} HTTP/1.1\r\nUser-Agent: libprocess/{from}\r\nLibprocess-From: {from}\r\n\
         Connection: Keep-Alive\r\nHost: {host}\r\n{receipt}",
        to.id
    )
    .into_bytes();
    if body.is_empty() {
        request.extend_from_slice(b"\r\n");
    } else {
        let size = format!("Transfer-Encoding: chunked\r\n\r\n{:x}\r\n", body.len());
        request.extend_from_slice(size.as_bytes());
        request.extend_from_slice(&body);
        request.extend_from_slice(b"\r\n0\r\n\r\n");
    }
    request
}

/// A message that an agent received.
pub(crate) struct Received {
    pub(crate) from: Upid,
    pub(crate) message: Message,
    pub(crate) body: Vec<u8>,
    /// Whether the sender waits for a receipt.
    pub(crate) is_receipt_expected: bool,
}

/// Removes a complete message to the overlay agent from `input`. Returns `None` if the message is
/// not complete yet.
pub(crate) fn take_message(input: &mut Vec<u8>) -> Result<Option<Received>, String> {
    let Some(head_length) = position(input, HEAD_END) else { return Ok(None) };
    let head = std::str::from_utf8(&input[..head_length]).map_err(|error| error.to_string())?;
    let name = head
        .strip_prefix("POST /overlay-agent/")
        .and_then(|rest| rest.split_once(" HTTP/1.1\r\n"))
        .map(|(name, _)| name.to_owned())
        .ok_or_else(|| format!("not a message to an agent: {head:?}"))?;
    let from = head
        .lines()
        .find_map(|line| line.strip_prefix("Libprocess-From: "))
        .ok_or_else(|| format!("the message has no sender: {head:?}"))?;
    let from = from.parse::<Upid>().map_err(|error| error.to_string())?;
    let is_receipt_expected = !head.contains(NO_RECEIPT.trim_end());
    let is_chunked = head.contains("\r\nTransfer-Encoding: chunked");
    let rest = &input[head_length + HEAD_END.len()..];
    let (body, length) = if is_chunked {
        match chunk(rest)? {
            Some(chunk) => chunk,
            None => return Ok(None),
        }
    } else {
        (&rest[..0], 0)
    };
    let message = wire::decode_message(&name, body).map_err(|error| error.to_string())?;
    let body = body.to_vec();
    input.drain(..head_length + HEAD_END.len() + length);
    Ok(Some(Received { from, message, body, is_receipt_expected }))
}

/// Removes all complete receipts from `input`.
pub(crate) fn take_receipts(input: &mut Vec<u8>) -> Result<(), String> {
    while let Some(length) = position(input, HEAD_END) {
        let head = String::from_utf8_lossy(&input[..length]);
        if !head.starts_with("HTTP/1.1 202 ") || !head.ends_with("\r\nContent-Length: 0") {
            return Err(format!("not a receipt: {}", String::from_utf8_lossy(input)));
        }
        input.drain(..length + HEAD_END.len());
    }
    Ok(())
}

/// Returns the only chunk of a body and the encoded length of the body, or `None` if the body is
/// not complete.
pub(crate) fn chunk(input: &[u8]) -> Result<Option<(&[u8], usize)>, String> {
    let Some(line) = position(input, b"\r\n") else { return Ok(None) };
    let size = std::str::from_utf8(&input[..line])
        .ok()
        .and_then(|size| usize::from_str_radix(size, 16).ok())
        .ok_or_else(|| format!("invalid chunk size: {:?}", input[..line].escape_ascii()))?;
    const END: &[u8] = b"\r\n0\r\n\r\n";
    let start = line + 2;
    let end = start + size + END.len();
    if input.len() < end {
        return Ok(None);
    }
    if !input[..end].ends_with(END) {
        return Err("the body has several chunks".to_owned());
    }
    Ok(Some((&input[start..start + size], end)))
}

/// Returns the offset of the first `pattern` in `input`.
pub(crate) fn position(input: &[u8], pattern: &[u8]) -> Option<usize> {
    input.windows(pattern.len()).position(|window| window == pattern)
}
