//! Parser and encoder without sockets.

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

use super::super::framing::{Body, BodyLimits, inflate};
use super::super::head::{self, Encoding, Framing, Head, envelope};
use super::super::replies::{ErrorReply, Replies};
use super::super::{HEAD_LIMIT, encode};
use super::{GOLDEN, golden, golden_body};
use crate::testing::BODY_MAX;
use crate::{Receipt, Rejection, Upid};

const LIMITS: BodyLimits = BodyLimits { max: BODY_MAX, is_kept: true };

fn is_malformed<T>(result: Result<T, Rejection>) -> bool {
    matches!(result, Err(Rejection::Malformed(_)))
}

#[test]
fn encoded_messages_match_recordings() {
    for name in GOLDEN {
        let recorded = golden(name);
        let length = head::head_length(&recorded, 0).unwrap().unwrap();
        let Head::Message(message) = head::parse(&recorded[..length]).unwrap() else {
            panic!("{name} is not parsed as a message")
        };
        let read = message.envelope.unwrap();
        let text = String::from_utf8_lossy(&recorded);
        let host = text.lines().find_map(|line| line.strip_prefix("Host: ")).unwrap();
        let to = format!("{}@{host}", read.to).parse().unwrap();
        let mut written = Vec::new();
        assert!(encode::message(
            &mut written,
            &read.from,
            &to,
            (&read.name, golden_body(&recorded)),
            Receipt::Always
        ));
        assert_eq!(written, recorded, "{name}");
    }
}

#[test]
fn encode_rejects_name_that_corrupts_request() {
    let plain: Upid = "a@1.2.3.4:5".parse().unwrap();
    for id in ["a b", "a\r\nX: y", "\u{e9}"] {
        let odd = Upid { id: id.to_owned(), ..plain.clone() };
        let mut output = Vec::new();
        assert!(!encode::message(&mut output, &plain, &odd, ("n", b""), Receipt::Always), "{id:?}");
        assert!(!encode::message(&mut output, &odd, &plain, ("n", b""), Receipt::Always), "{id:?}");
        assert!(
            !encode::message(&mut output, &plain, &plain, (id, b""), Receipt::Always),
            "{id:?}"
        );
        assert!(output.is_empty());
    }
}

#[test]
fn envelope_decodes_process_but_not_name() {
    let from = Some(&b"agent@1.2.3.4:5"[..]);
    let read = envelope("/slave%281%29+x/a%20b/c+d?q=1", from, None).unwrap();
    assert_eq!((read.to.as_str(), read.name.as_str()), ("slave(1) x", "a%20b/c+d"));
    for path in ["/%", "/%2", "/%zz", "/%ff"] {
        assert_eq!(envelope(&format!("{path}/n"), from, None), Err(Rejection::Escape), "{path}");
    }
    for path in ["", "a/n", "/", "/n", "*", "http://h/a/n"] {
        assert_eq!(envelope(path, from, None), Err(Rejection::Path), "{path}");
    }
}

#[test]
fn envelope_prefers_libprocess_from_to_user_agent() {
    let both = envelope("/a/n", Some(b" one@1.1.1.1:1 junk"), Some(b"libprocess/two@2.2.2.2:2"));
    assert_eq!(both.unwrap().from.id, "one");
    let fallback = envelope("/a/n", None, Some(b"libprocess/two@2.2.2.2:2"));
    assert_eq!(fallback.unwrap().from.id, "two");
    for from in ["", "x", "@0.0.0.0:0", "a@host:1"] {
        let rejected = envelope("/a/n", Some(from.as_bytes()), None);
        assert!(matches!(rejected, Err(Rejection::Sender(_))), "{from}");
    }
}

#[test]
fn parse_detects_message_by_method_and_header() {
    let is_message = |request: &str| {
        let bytes = request.replace('\n', "\r\n");
        matches!(head::parse(bytes.as_bytes()).unwrap(), Head::Message(_))
    };
    assert!(is_message("POST / HTTP/1.1\nlibprocess-from: x\n\n"));
    assert!(is_message("POST / HTTP/1.1\nLIBPROCESS-FROM:\n\n"));
    assert!(is_message("POST / HTTP/1.1\nuser-agent: libprocess/x\n\n"));
    assert!(!is_message("GET / HTTP/1.1\nLibprocess-From: x\n\n"));
    assert!(!is_message("POST / HTTP/1.1\nUser-Agent: curl libprocess/x\n\n"));
    assert!(!is_message("POST / HTTP/1.1\nHost:\n\n"));
}

#[test]
fn parse_repeated_header_uses_last_or_rejects_ambiguity() {
    let parse = |headers: &str| {
        let text = format!("POST /a/n HTTP/1.1\r\nLibprocess-From: a@1.1.1.1:1\r\n{headers}\r\n");
        match head::parse(text.as_bytes()) {
            Ok(Head::Message(message)) => Ok(message),
            Ok(Head::Http) => panic!("no message"),
            Err(rejection) => Err(rejection),
        }
    };
    let last = parse("Libprocess-From: b@2.2.2.2:2\r\n").unwrap();
    assert_eq!(last.envelope.unwrap().from.id, "b");
    assert_eq!(parse("").unwrap().framing, Framing::Length(0));
    assert_eq!(
        parse("Content-Length: 7\r\nContent-Length: 7\r\n").unwrap().framing,
        Framing::Length(7)
    );
    assert_eq!(parse("Transfer-Encoding: Chunked\r\n").unwrap().framing, Framing::Chunked);
    assert!(is_malformed(parse("Content-Length: 7\r\nContent-Length: 8\r\n")));
    assert!(is_malformed(parse("Content-Length: 7\r\nTransfer-Encoding: chunked\r\n")));
    assert!(is_malformed(parse("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n")));
    assert!(is_malformed(parse("Transfer-Encoding: gzip, chunked\r\n")));
    assert!(is_malformed(parse("Content-Length: +7\r\n")));
    assert!(is_malformed(parse("Content-Length:\r\n")));
    let long = "9".repeat(40);
    for length in [&(BODY_MAX + 1).to_string(), &long] {
        let framing = parse(&format!("Content-Length: {length}\r\n")).unwrap().framing;
        let rejected = Body::new(framing, LIMITS).map(|_| ());
        assert_eq!(rejected, Err(Rejection::BodyTooLarge(BODY_MAX)), "{length}");
    }
    assert!(parse("").unwrap().is_kept_alive);
    assert!(!parse("Connection: Close\r\n").unwrap().is_kept_alive);
    assert_eq!(parse("Content-Encoding: br\r\n").unwrap().encoding, Encoding::Unknown);
}

/// Decodes a body that arrives in pieces. Returns the body and the rest of the input.
fn read_body(framing: Framing, pieces: &[&[u8]]) -> Result<Option<(Bytes, Vec<u8>)>, Rejection> {
    let mut body = Body::new(framing, LIMITS)?;
    let mut input = BytesMut::new();
    for (index, piece) in pieces.iter().enumerate() {
        input.extend_from_slice(piece);
        if let Some(body) = body.read(&mut input)? {
            let mut left = input.to_vec();
            left.extend(pieces[index + 1..].concat());
            return Ok(Some((body, left)));
        }
    }
    Ok(None)
}

#[test]
fn chunked_body_in_pieces_is_decoded() {
    let text =
        b"5;ext=1\r\nhello\r\n1 \r\n,\r\n00a\r\n0123456789\r\n0\r\nTrailer: x\r\nB: c\r\n\r\nPOST";
    for first in 0..text.len() {
        for second in first..text.len() {
            let pieces = [&text[..first], &text[first..second], &text[second..]];
            let (body, left) = read_body(Framing::Chunked, &pieces).unwrap().unwrap();
            assert_eq!((&body[..], &left[..]), (&b"hello,0123456789"[..], &b"POST"[..]));
        }
    }
}

#[test]
fn hostile_chunks_are_rejected() {
    let long_line = format!("1;{}", "x".repeat(2000));
    let trailers = format!("0\r\n{}", "T: x\r\n".repeat(2000));
    for text in [
        "\r\n",
        "g\r\n",
        "-1\r\n",
        "0x1\r\n",
        "1\n",
        "1x\r\n",
        "1\r\nabc",
        "1\r\na\n\n",
        &long_line,
        &trailers,
    ] {
        assert!(is_malformed(read_body(Framing::Chunked, &[text.as_bytes()])), "{text:?}");
    }
    for text in ["fffffffffffffffffffffff\r\n", "1000001\r\n", "1000000\r\n"] {
        let full = [b"1\r\na\r\n", text.as_bytes()].concat();
        let rejected = read_body(Framing::Chunked, &[&full]);
        assert_eq!(rejected, Err(Rejection::BodyTooLarge(BODY_MAX)), "{text:?}");
    }
}

#[test]
fn announced_length_allocates_no_memory() {
    let mut body = Body::new(Framing::Length(BODY_MAX), LIMITS).unwrap();
    let mut input = BytesMut::from(&b"abc"[..]);
    assert_eq!(body.read(&mut input), Ok(None));
    assert!(body.held() < 1024);
}

#[test]
fn head_length_at_limit_is_accepted() {
    let fill = |length: usize| {
        let mut head = b"POST /a/n HTTP/1.1\r\nX: ".to_vec();
        head.resize(length - 4, b'x');
        head.extend_from_slice(b"\r\n\r\n");
        head
    };
    assert_eq!(head::head_length(&fill(HEAD_LIMIT), 0), Ok(Some(HEAD_LIMIT)));
    assert!(head::parse(&fill(HEAD_LIMIT)).is_ok());
    let rejected = Err(Rejection::HeadTooLarge(HEAD_LIMIT));
    assert_eq!(head::head_length(&fill(HEAD_LIMIT + 1), 0), rejected);
}

#[test]
fn inflate_is_bounded() {
    let deflate = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut encoder, bytes).unwrap();
        encoder.finish().unwrap()
    };
    let inflate = |bytes: &[u8]| inflate(bytes, BODY_MAX, |_| Ok(()));
    assert_eq!(inflate(&deflate(b"hello")), Ok(Bytes::from_static(b"hello")));
    assert!(inflate(&deflate(&vec![0; BODY_MAX])).is_ok());
    let bomb = deflate(&vec![0; BODY_MAX + 1]);
    assert_eq!(inflate(&bomb), Err(Rejection::BodyTooLarge(BODY_MAX)));
    assert!(is_malformed(inflate(b"no gzip")));
    // Empty members would cost time without output.
    assert!(is_malformed(inflate(&deflate(b"").repeat(2))));
}

#[test]
fn inflate_requests_memory_before_allocation() {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, &vec![0; BODY_MAX]).unwrap();
    let bomb = encoder.finish().unwrap();
    let mut asked = Vec::new();
    let rejected = inflate(&bomb, BODY_MAX, |bytes| {
        asked.push(bytes);
        if bytes > 100_000 { Err(Rejection::Busy) } else { Ok(()) }
    });
    assert_eq!((rejected, asked), (Err(Rejection::Busy), vec![32_768, 65_536, 131_072]));
}

#[test]
fn discarded_body_stores_nothing_and_finds_end() {
    let limits = BodyLimits { max: 100, is_kept: false };
    let mut body = Body::new(Framing::Chunked, limits).unwrap();
    let mut input = BytesMut::from(&b"3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\nPOST"[..]);
    assert_eq!(body.read(&mut input), Ok(Some(Bytes::new())));
    assert_eq!((&input[..], body.held()), (&b"POST"[..], 0));
    let mut input = BytesMut::from(&b"65\r\n"[..]);
    let mut long = Body::new(Framing::Chunked, limits).unwrap();
    assert_eq!(long.read(&mut input), Err(Rejection::BodyTooLarge(100)));
}

#[test]
fn error_reply_of_unknown_process_includes_hint() {
    let describe = |status, text: &str| {
        ErrorReply { status, text: text.to_owned() }.describe("see the address")
    };
    assert_eq!(describe(404, ""), "404: see the address");
    assert_eq!(describe(404, "Not Found."), "404: Not Found.: see the address");
    assert_eq!(describe(500, ""), "500");
    let text = "UPID IP address validation failed";
    assert_eq!(describe(400, text), format!("400: {text}"));
}

#[test]
fn replies_in_pieces_are_counted_and_errors_returned() {
    let text = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n\
        HTTP/1.1 404 Not Found\r\nContent-Length: 14\r\n\r\n404 Not\nFound.HTTP/1.1 202 Accepted\r\n\r\n\
        HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n";
    let expected = [
        ErrorReply { status: 404, text: "404 Not\\nFound.".into() },
        ErrorReply { status: 500, text: String::new() },
    ];
    for cut in 0..text.len() {
        let mut replies = Replies::default();
        let mut error_replies = Vec::new();
        let first = replies.read(&text[..cut], &mut error_replies);
        assert_eq!(first + replies.read(&text[cut..], &mut error_replies), 4, "cut at {cut}");
        assert_eq!(error_replies, expected);
    }
}

#[test]
fn replies_after_malformed_input_are_ignored() {
    let endless = "x".repeat(100_000);
    for text in ["junk\r\n\r\n", "HTTP/1.1 202 A\r\nTransfer-Encoding: chunked\r\n\r\n", &endless] {
        let mut replies = Replies::default();
        let mut error_replies = Vec::new();
        replies.read(text.as_bytes(), &mut error_replies);
        let sound = b"HTTP/1.1 202 Accepted\r\n\r\n";
        assert_eq!(replies.read(sound, &mut error_replies), 0, "{:?}", &text[..10.min(text.len())]);
        assert!(error_replies.is_empty());
    }
}

/// Generates bytes that resemble requests.
fn wire() -> impl Strategy<Value = Vec<u8>> {
    let fragments: Vec<&[u8]> = vec![
        b"POST /a/n HTTP/1.1\r\n",
        b"Libprocess-From: a@1.1.1.1:1\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Content-Length: 3\r\n",
        b"\r\n",
        b"\n",
        b"3\r\nabc\r\n",
        b"0\r\n\r\n",
        b"ffffffffffffffff\r\n",
        b"HTTP/1.1 404 Not Found\r\n",
        b";",
        b"a",
        b"\xff",
    ];
    let piece = prop_oneof![
        4 => proptest::sample::select(fragments).prop_map(<[u8]>::to_vec),
        1 => proptest::collection::vec(any::<u8>(), 0..8),
    ];
    proptest::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn arbitrary_input_does_not_panic(bytes in wire(), cut in any::<prop::sample::Index>()) {
        let cut = cut.index(bytes.len() + 1);
        if let Ok(Some(length)) = head::head_length(&bytes, 0) {
            prop_assert!(length <= bytes.len());
            // The scanned prefix does not change the result.
            let in_two = match head::head_length(&bytes[..cut], 0) {
                Ok(None) => head::head_length(&bytes, cut),
                found => found,
            };
            prop_assert_eq!(in_two, Ok(Some(length)));
            let _ = head::parse(&bytes[..length]);
        }
        let mut replies = Replies::default();
        let mut error_replies = Vec::new();
        replies.read(&bytes[..cut], &mut error_replies);
        replies.read(&bytes[cut..], &mut error_replies);
    }

    #[test]
    fn body_does_not_depend_on_pieces(bytes in wire(), cut in any::<prop::sample::Index>()) {
        let cut = cut.index(bytes.len() + 1);
        for framing in [Framing::Chunked, Framing::Length(5)] {
            let whole = read_body(framing, &[&bytes]);
            prop_assert_eq!(&whole, &read_body(framing, &[&bytes[..cut], &bytes[cut..]]));
            if let Ok(Some((_, left))) = whole {
                prop_assert!(bytes.ends_with(&left));
            }
        }
    }

    #[test]
    fn body_leaves_following_bytes(
        chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 0..6),
        behind in proptest::collection::vec(any::<u8>(), 0..20),
    ) {
        let mut text = Vec::new();
        for chunk in &chunks {
            text.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
            text.extend(chunk);
            text.extend(b"\r\n");
        }
        text.extend(b"0\r\n\r\n");
        text.extend(&behind);
        let (body, left) = read_body(Framing::Chunked, &[&text]).unwrap().unwrap();
        prop_assert_eq!(body, chunks.concat());
        prop_assert_eq!(left, behind);
    }
}
