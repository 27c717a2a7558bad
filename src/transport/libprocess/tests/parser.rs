//! Heads, chunks, receipts and what is written, without a socket.

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

use super::super::framing::{Body, BodyLimits, inflate};
use super::super::head::{self, Encoding, Framing, Head, envelope};
use super::super::replies::{Complaint, Replies};
use super::super::{HEAD_LIMIT, encode};
use super::{GOLDEN, golden, golden_body};
use crate::addr::Upid;
use crate::transport::Refusal;
use crate::transport::tests::BODY_MAX;

const LIMITS: BodyLimits = BodyLimits { max: BODY_MAX, is_kept: true };

fn is_malformed<T>(result: Result<T, Refusal>) -> bool {
    matches!(result, Err(Refusal::Malformed(_)))
}

#[test]
fn the_recorded_messages_are_written_byte_for_byte() {
    for name in GOLDEN {
        let recorded = golden(name);
        let length = head::head_length(&recorded, 0).unwrap().unwrap();
        let Head::Message(message) = head::parse(&recorded[..length]).unwrap() else {
            panic!("{name} was not taken for a message")
        };
        let read = message.envelope.unwrap();
        let text = String::from_utf8_lossy(&recorded);
        let host = text.lines().find_map(|line| line.strip_prefix("Host: ")).unwrap();
        let to = format!("{}@{host}", read.to).parse().unwrap();
        let mut written = Vec::new();
        assert!(encode::message(&mut written, &read.from, &to, &read.name, golden_body(&recorded)));
        assert_eq!(written, recorded, "{name}");
    }
}

#[test]
fn a_name_that_would_break_the_request_is_not_written() {
    let plain: Upid = "a@1.2.3.4:5".parse().unwrap();
    for id in ["a b", "a\r\nX: y", "\u{e9}"] {
        let odd = Upid { id: id.to_owned(), ..plain.clone() };
        let mut output = Vec::new();
        assert!(!encode::message(&mut output, &plain, &odd, "n", b""), "{id:?}");
        assert!(!encode::message(&mut output, &odd, &plain, "n", b""), "{id:?}");
        assert!(!encode::message(&mut output, &plain, &plain, id, b""), "{id:?}");
        assert!(output.is_empty());
    }
}

#[test]
fn the_process_is_unescaped_and_the_name_is_not() {
    let from = Some(&b"agent@1.2.3.4:5"[..]);
    let read = envelope("/slave%281%29+x/a%20b/c+d?q=1", from, None).unwrap();
    assert_eq!((read.to.as_str(), read.name.as_str()), ("slave(1) x", "a%20b/c+d"));
    for path in ["/%", "/%2", "/%zz", "/%ff"] {
        assert_eq!(envelope(&format!("{path}/n"), from, None), Err(Refusal::Escape), "{path}");
    }
    for path in ["", "a/n", "/", "/n", "*", "http://h/a/n"] {
        assert_eq!(envelope(path, from, None), Err(Refusal::Path), "{path}");
    }
}

#[test]
fn the_sender_is_in_its_own_header_or_else_in_the_agent_header() {
    let both = envelope("/a/n", Some(b" one@1.1.1.1:1 junk"), Some(b"libprocess/two@2.2.2.2:2"));
    assert_eq!(both.unwrap().from.id, "one");
    let agent = envelope("/a/n", None, Some(b"libprocess/two@2.2.2.2:2"));
    assert_eq!(agent.unwrap().from.id, "two");
    for from in ["", "x", "@0.0.0.0:0", "a@host:1"] {
        let refused = envelope("/a/n", Some(from.as_bytes()), None);
        assert!(matches!(refused, Err(Refusal::Sender(_))), "{from}");
    }
}

#[test]
fn a_message_is_told_by_method_and_header_alone() {
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
fn of_a_repeated_header_the_last_counts_unless_two_readers_could_differ() {
    let parse = |headers: &str| {
        let text = format!("POST /a/n HTTP/1.1\r\nLibprocess-From: a@1.1.1.1:1\r\n{headers}\r\n");
        match head::parse(text.as_bytes()) {
            Ok(Head::Message(message)) => Ok(message),
            Ok(Head::Http) => panic!("no message"),
            Err(refusal) => Err(refusal),
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
        let refused = Body::new(framing, LIMITS).map(|_| ());
        assert_eq!(refused, Err(Refusal::BodyTooLarge(BODY_MAX)), "{length}");
    }
    assert!(parse("").unwrap().is_kept_alive);
    assert!(!parse("Connection: Close\r\n").unwrap().is_kept_alive);
    assert_eq!(parse("Content-Encoding: br\r\n").unwrap().encoding, Encoding::Unknown);
}

/// Reads a body that comes in pieces; gives it, and what was left of the input.
fn read_body(framing: Framing, pieces: &[&[u8]]) -> Result<Option<(Bytes, Vec<u8>)>, Refusal> {
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
fn chunks_may_be_cut_anywhere() {
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
fn hostile_chunks_are_refused() {
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
        let refused = read_body(Framing::Chunked, &[&full]);
        assert_eq!(refused, Err(Refusal::BodyTooLarge(BODY_MAX)), "{text:?}");
    }
}

#[test]
fn a_claimed_length_costs_no_memory() {
    let mut body = Body::new(Framing::Length(BODY_MAX), LIMITS).unwrap();
    let mut input = BytesMut::from(&b"abc"[..]);
    assert_eq!(body.read(&mut input), Ok(None));
    assert!(body.held() < 1024);
}

#[test]
fn a_head_is_as_long_as_it_may_be_and_no_longer() {
    let fill = |length: usize| {
        let mut head = b"POST /a/n HTTP/1.1\r\nX: ".to_vec();
        head.resize(length - 4, b'x');
        head.extend_from_slice(b"\r\n\r\n");
        head
    };
    assert_eq!(head::head_length(&fill(HEAD_LIMIT), 0), Ok(Some(HEAD_LIMIT)));
    assert!(head::parse(&fill(HEAD_LIMIT)).is_ok());
    let refused = Err(Refusal::HeadTooLarge(HEAD_LIMIT));
    assert_eq!(head::head_length(&fill(HEAD_LIMIT + 1), 0), refused);
}

#[test]
fn inflating_is_bounded() {
    let deflate = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut encoder, bytes).unwrap();
        encoder.finish().unwrap()
    };
    let inflate = |bytes: &[u8]| inflate(bytes, BODY_MAX, |_| Ok(()));
    assert_eq!(inflate(&deflate(b"hello")), Ok(Bytes::from_static(b"hello")));
    assert!(inflate(&deflate(&vec![0; BODY_MAX])).is_ok());
    let bomb = deflate(&vec![0; BODY_MAX + 1]);
    assert_eq!(inflate(&bomb), Err(Refusal::BodyTooLarge(BODY_MAX)));
    assert!(is_malformed(inflate(b"no gzip")));
    // Members that hold nothing would cost time for nothing.
    assert!(is_malformed(inflate(&deflate(b"").repeat(2))));
}

#[test]
fn inflating_asks_for_memory_before_it_takes_it() {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, &vec![0; BODY_MAX]).unwrap();
    let bomb = encoder.finish().unwrap();
    let mut asked = Vec::new();
    let refused = inflate(&bomb, BODY_MAX, |bytes| {
        asked.push(bytes);
        if bytes > 100_000 { Err(Refusal::Busy) } else { Ok(()) }
    });
    assert_eq!((refused, asked), (Err(Refusal::Busy), vec![32_768, 65_536, 131_072]));
}

#[test]
fn discarded_body_keeps_nothing_and_has_its_end_found() {
    let limits = BodyLimits { max: 100, is_kept: false };
    let mut body = Body::new(Framing::Chunked, limits).unwrap();
    let mut input = BytesMut::from(&b"3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\nPOST"[..]);
    assert_eq!(body.read(&mut input), Ok(Some(Bytes::new())));
    assert_eq!((&input[..], body.held()), (&b"POST"[..], 0));
    let mut input = BytesMut::from(&b"65\r\n"[..]);
    let mut long = Body::new(Framing::Chunked, limits).unwrap();
    assert_eq!(long.read(&mut input), Err(Refusal::BodyTooLarge(100)));
}

#[test]
fn a_complaint_says_what_to_do_where_that_is_known() {
    let said = |status, text: &str| Complaint { status, text: text.to_owned() }.to_string();
    let remedy = "no such process is there: see that this is the address of an overlay master or \
                  agent, or of the Mesos with its module";
    assert_eq!(said(404, ""), format!("404: {remedy}"));
    assert_eq!(said(404, "Not Found."), format!("404: Not Found.: {remedy}"));
    assert_eq!(said(500, ""), "500");
    let text = "UPID IP address validation failed";
    assert_eq!(said(400, text), format!("400: {text}"));
}

#[test]
fn receipts_may_be_cut_anywhere_and_complaints_are_kept() {
    let text = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n\
        HTTP/1.1 404 Not Found\r\nContent-Length: 14\r\n\r\n404 Not\nFound.HTTP/1.1 202 Accepted\r\n\r\n\
        HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n";
    let expected = [
        Complaint { status: 404, text: "404 Not\\nFound.".into() },
        Complaint { status: 500, text: String::new() },
    ];
    for cut in 0..text.len() {
        let mut replies = Replies::default();
        let mut complaints = Vec::new();
        let first = replies.read(&text[..cut], &mut complaints);
        assert_eq!(first + replies.read(&text[cut..], &mut complaints), 4, "cut at {cut}");
        assert_eq!(complaints, expected);
    }
}

#[test]
fn receipts_that_make_no_sense_are_not_looked_at_any_more() {
    let endless = "x".repeat(100_000);
    for text in ["junk\r\n\r\n", "HTTP/1.1 202 A\r\nTransfer-Encoding: chunked\r\n\r\n", &endless] {
        let mut replies = Replies::default();
        let mut complaints = Vec::new();
        replies.read(text.as_bytes(), &mut complaints);
        let sound = b"HTTP/1.1 202 Accepted\r\n\r\n";
        assert_eq!(replies.read(sound, &mut complaints), 0, "{:?}", &text[..10.min(text.len())]);
        assert!(complaints.is_empty());
    }
}

/// Bytes that look like the wire more often than not.
fn wire() -> impl Strategy<Value = Vec<u8>> {
    let words: Vec<&[u8]> = vec![
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
        4 => proptest::sample::select(words).prop_map(<[u8]>::to_vec),
        1 => proptest::collection::vec(any::<u8>(), 0..8),
    ];
    proptest::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn no_bytes_make_a_parser_panic(bytes in wire(), cut in any::<prop::sample::Index>()) {
        let cut = cut.index(bytes.len() + 1);
        if let Ok(Some(length)) = head::head_length(&bytes, 0) {
            prop_assert!(length <= bytes.len());
            // What was scanned before makes no difference.
            let in_two = match head::head_length(&bytes[..cut], 0) {
                Ok(None) => head::head_length(&bytes, cut),
                found => found,
            };
            prop_assert_eq!(in_two, Ok(Some(length)));
            let _ = head::parse(&bytes[..length]);
        }
        let mut replies = Replies::default();
        let mut complaints = Vec::new();
        replies.read(&bytes[..cut], &mut complaints);
        replies.read(&bytes[cut..], &mut complaints);
    }

    #[test]
    fn a_body_is_the_same_however_it_is_cut(bytes in wire(), cut in any::<prop::sample::Index>()) {
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
    fn a_body_ends_where_it_ends(
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
