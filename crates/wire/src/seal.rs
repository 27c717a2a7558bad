//! The seal: the last field of an authenticated message.
//!
//! ```text
//!   key of field 1000 | length | session 8 | counter 8 | code 32 | opening, in a first message
//!   opening: nonce of the agent 16 | cookie of the master 16 | principal 1 to 255
//! ```
//! Numbers are in network order. The code covers all bytes before the field, so the seal is found
//! and checked before anything of the message is decoded.

use overlay_types::protocol::{
    AuthenticateAgent, AuthenticityFault, Nonce, Principal, Seal, SessionOpening,
};
use prost::encoding::{
    DecodeContext, WireType, decode_key, decode_varint, encode_key, encode_varint, skip_field,
};

/// The number of the field. No message of the C++ modules has a field with such a number.
const FIELD: u32 = 1000;
/// Length of the seal without an opening.
const SHORT: usize = 8 + 8 + 32;
/// Length of the nonces of an opening.
const NONCES: usize = 16 + 16;

/// Maximum length of the field in bytes.
pub const SEAL_BYTES_MAX: usize = 2 + 2 + SHORT + NONCES + Principal::BYTES_MAX;

/// Appends the seal to the body of a message.
pub fn append_seal(body: &mut Vec<u8>, seal: &Seal) {
    let Seal { session, counter, code, opening } = seal;
    let principal = opening.as_ref().map(|opening| opening.request.principal.as_str());
    let length = SHORT + principal.map_or(0, |principal| NONCES + principal.len());
    encode_key(FIELD, WireType::LengthDelimited, body);
    encode_varint(length as u64, body);
    body.extend(session.to_be_bytes());
    body.extend(counter.to_be_bytes());
    body.extend(code);
    if let Some(SessionOpening { request, cookie }) = opening {
        body.extend(request.nonce);
        body.extend(cookie);
        body.extend(request.principal.as_str().bytes());
    }
}

/// Splits the body of a message into the content that its seal covers, and the seal. A body without
/// a seal is all content. So is a body that is no protobuf message: decoding it fails.
///
/// # Errors
/// If the seal is malformed, or is not the last field.
pub fn split_seal(body: &[u8]) -> Result<(&[u8], Option<Seal>), AuthenticityFault> {
    let Some((content, mut field)) = find_field(body) else {
        return Ok((body, None));
    };
    let length = decode_varint(&mut field).map_err(|_| AuthenticityFault::MalformedSeal)?;
    if usize::try_from(length) != Ok(field.len()) {
        return Err(AuthenticityFault::MalformedSeal);
    }
    let seal = read_seal(field).ok_or(AuthenticityFault::MalformedSeal)?;
    Ok((content, Some(seal)))
}

/// Returns the bytes before the first field with the number of the seal, and the bytes after its
/// key.
fn find_field(body: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut rest = body;
    while !rest.is_empty() {
        let content = &body[..body.len() - rest.len()];
        let (number, wire_type) = decode_key(&mut rest).ok()?;
        if number == FIELD {
            // A length that is missing, or another type, makes the field malformed.
            let is_bytes = wire_type == WireType::LengthDelimited;
            return Some((content, if is_bytes { rest } else { &[] }));
        }
        skip_field(wire_type, number, &mut rest, DecodeContext::default()).ok()?;
    }
    None
}

fn read_seal(bytes: &[u8]) -> Option<Seal> {
    let (session, bytes) = bytes.split_first_chunk::<8>()?;
    let (counter, bytes) = bytes.split_first_chunk::<8>()?;
    let (code, bytes) = bytes.split_first_chunk::<32>()?;
    let opening = if bytes.is_empty() { None } else { Some(read_opening(bytes)?) };
    let (session, counter) = (u64::from_be_bytes(*session), u64::from_be_bytes(*counter));
    Some(Seal { session, counter, code: *code, opening })
}

fn read_opening(bytes: &[u8]) -> Option<SessionOpening> {
    let (nonce, bytes) = bytes.split_first_chunk()?;
    let (cookie, bytes) = bytes.split_first_chunk()?;
    let (nonce, cookie): (Nonce, Nonce) = (*nonce, *cookie);
    let principal = std::str::from_utf8(bytes).ok()?.parse().ok()?;
    Some(SessionOpening { request: AuthenticateAgent { principal, nonce }, cookie })
}

#[cfg(test)]
mod tests {
    use overlay_types::protocol::{AgentOptions, Message};
    use proptest::prelude::*;

    use super::super::protocol::{decode_message, encode_message};
    use super::*;

    fn seal(opening: Option<SessionOpening>) -> Seal {
        Seal { session: 7, counter: u64::MAX, code: [0xab; 32], opening }
    }

    fn opening(principal: &str) -> Option<SessionOpening> {
        let request = AuthenticateAgent { principal: principal.parse().unwrap(), nonce: [1; 16] };
        Some(SessionOpening { request, cookie: [2; 16] })
    }

    fn sealed(content: &[u8], seal: &Seal) -> Vec<u8> {
        let mut body = content.to_vec();
        append_seal(&mut body, seal);
        body
    }

    #[test]
    fn seal_survives_encoding_and_is_ignored_by_decoding() {
        let message = Message::RegisterAgent(AgentOptions::default());
        let (name, content) = encode_message(&message);
        for opening in [None, opening("a"), opening(&"x".repeat(255))] {
            let seal = seal(opening);
            let body = sealed(&content, &seal);
            assert!(body.len() <= content.len() + SEAL_BYTES_MAX);
            assert_eq!(split_seal(&body), Ok((content.as_slice(), Some(seal))));
            assert_eq!(decode_message(name, &body).as_ref(), Ok(&message));
        }
    }

    #[test]
    fn body_without_seal_or_malformed_body_is_content() {
        for body in [&b""[..], b"\x0a\x02\x08\x01", b"\xff\xff", b"\x0a\x05ab"] {
            assert_eq!(split_seal(body), Ok((body, None)), "{body:?}");
        }
    }

    #[test]
    fn empty_content_may_be_sealed() {
        let seal = seal(None);
        assert_eq!(split_seal(&sealed(b"", &seal)), Ok((&b""[..], Some(seal))));
    }

    #[test]
    fn wrong_type_and_repeated_seal_are_malformed() {
        let once = sealed(b"\x08\x01", &seal(None));
        let twice = sealed(&once, &seal(None));
        assert_eq!(split_seal(&twice), Err(AuthenticityFault::MalformedSeal));
        let number = [0xc0, 0x3e, 0x01];
        assert_eq!(split_seal(&number), Err(AuthenticityFault::MalformedSeal));
    }

    proptest! {
        #[test]
        fn cut_or_extended_seal_is_malformed(
            content in prop::collection::vec(any::<u8>(), 0..20),
            has_opening: bool,
            cut in 1_usize..300,
            extension in prop::collection::vec(any::<u8>(), 1..20),
        ) {
            // One field with arbitrary bytes.
            let mut body = vec![0x0a, u8::try_from(content.len()).unwrap()];
            body.extend(content);
            let start = body.len();
            append_seal(&mut body, &seal(if has_opening { opening("agents") } else { None }));
            // The key of the field has two bytes: without them, no seal is there.
            let end = body.len().saturating_sub(cut).max(start + 2);
            if end < body.len() {
                prop_assert_eq!(split_seal(&body[..end]), Err(AuthenticityFault::MalformedSeal));
            }
            let extended = [body, extension].concat();
            prop_assert_eq!(split_seal(&extended), Err(AuthenticityFault::MalformedSeal));
        }

        #[test]
        fn arbitrary_bytes_are_split_without_panic(body in prop::collection::vec(any::<u8>(), 0..99)) {
            if let Ok((content, Some(seal))) = split_seal(&body) {
                let again = sealed(content, &seal);
                prop_assert_eq!(split_seal(&again), Ok((content, Some(seal))));
            }
        }
    }
}
