//! Tests of the echo requests and their outcomes.

use super::*;

const WORDS: [u8; COOKIE] = [1, 2, 3, 4, 5, 6, 7, 8];

fn request_to(to: &str, size: u32) -> EchoRequest {
    let to: IpAddr = to.parse().unwrap();
    EchoRequest { from: to, to, size }
}

/// Returns an IPv4 packet with the message as its payload.
fn packet(protocol: u8, from: [u8; 4], to: [u8; 4], message: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0];
    packet.extend(from);
    packet.extend(to);
    packet.extend(message);
    packet
}

#[test]
fn request_has_requested_size_and_checksum() {
    let bytes = encode(&request_to("10.0.0.2", 1450), 0x1234, 7, &WORDS);
    assert_eq!(bytes.len(), 1430);
    assert_eq!((bytes[0], &bytes[4..8]), (8, &[0x12, 0x34, 0, 7][..]));
    assert_eq!(bytes[8..16], WORDS);
    assert_eq!(checksum(&bytes), 0, "the checksum of a packet with its checksum is 0");
    assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), 0x220d);
    assert_eq!(checksum(&[0xff; 3]), 0x00ff);
    assert_eq!(encode(&request_to("fd00::2", 1430), 1, 1, &WORDS).len(), 1390);
    assert_eq!(encode(&request_to("fd00::2", 1), 1, 1, &WORDS).len(), 16);
}

#[test]
fn foreign_messages_are_ignored() {
    let cookie = Some(WORDS);
    let reply = [&[0, 0, 0, 0, 0x12, 0x34, 0, 7][..], &WORDS].concat();
    let bytes = packet(1, [10, 0, 0, 2], [10, 0, 0, 1], &reply);
    let from = "10.0.0.2".parse().unwrap();
    assert_eq!(parse_v4(&bytes, 0x1234), Some(IcmpMessage::EchoReply { number: 7, from, cookie }));
    assert_eq!(parse_v4(&bytes, 0x1334), None);
    assert!(parse_v4(&bytes, 0x1235).is_some(), "the request of an earlier round");
    let mut with_options = bytes.clone();
    with_options[0] = 0x46;
    with_options.splice(20..20, [0; 4]);
    assert_eq!(
        parse_v4(&with_options, 0x1234),
        Some(IcmpMessage::EchoReply { number: 7, from, cookie })
    );
    let request = encode(&request_to("10.0.0.1", 84), 0x1234, 7, &WORDS);
    let request = packet(1, [10, 0, 0, 2], [10, 0, 0, 1], &request);
    assert_eq!(parse_v4(&request, 0x1234), None, "a request is no reply");
    let from = "fd00::2".parse().unwrap();
    let reply = [&[129, 0, 0, 0, 0x12, 0x34, 0, 7][..], &WORDS].concat();
    assert_eq!(
        parse_v6(&reply, from, 0x1234),
        Some(IcmpMessage::EchoReply { number: 7, from, cookie })
    );
    for length in 0..bytes.len() - COOKIE {
        assert_eq!(parse_v4(&bytes[..length], 0x1234), None);
    }
}

#[test]
fn only_first_reply_of_destination_counts() {
    let requests = [request_to("10.0.0.2", 84)];
    let mut round = Round { outcomes: vec![Outcome::NoReply], ..Round::default() };
    let pending = Pending::from([(7, (0, now()))]);
    let cookies = Cookies::new();
    let mut reply = |number, from: &str| {
        let from = from.parse().unwrap();
        let cookie = Some(cookies.of(number, from));
        let message = IcmpMessage::EchoReply { number, from, cookie };
        record(message, &requests, &cookies, &pending, &mut round);
        round.outcomes[0].clone()
    };
    assert_eq!(reply(8, "10.0.0.2"), Outcome::NoReply);
    assert_eq!(reply(7, "10.0.0.3"), Outcome::NoReply);
    let first = reply(7, "10.0.0.2");
    assert!(first.has_reply(), "{first:?}");
    assert_eq!(reply(7, "10.0.0.2"), first, "the round-trip time stays");
}

#[test]
fn messages_of_strangers_are_no_outcome() {
    let requests = [request_to("10.0.0.2", 84)];
    let mut round = Round { outcomes: vec![Outcome::NoReply], ..Round::default() };
    let pending = Pending::from([(7, (0, now()))]);
    let (cookies, from) = (Cookies::new(), requests[0].to);
    let error = unreachable(from, UnreachableReason::Host);
    let mut outcome_of = |message| {
        record(message, &requests, &cookies, &pending, &mut round);
        round.outcomes[0].clone()
    };
    for cookie in [None, Some(WORDS), Some(cookies.of(8, from)), Some(Cookies::new().of(7, from))] {
        let message = IcmpMessage::EchoReply { number: 7, from, cookie };
        assert_eq!(outcome_of(message), Outcome::NoReply);
    }
    let message = IcmpMessage::RequestError { number: 7, cookie: Some(WORDS), outcome: error };
    assert_eq!(outcome_of(message), Outcome::NoReply);
    let cookie = Some(cookies.of(7, from));
    assert!(outcome_of(IcmpMessage::EchoReply { number: 7, from, cookie }).has_reply());
}

#[test]
fn icmp_error_for_request_has_its_number() {
    let request = packet(1, [10, 0, 0, 1], [10, 0, 0, 2], &[8, 0, 0, 0, 0x12, 0x34, 0, 9]);
    let outcome_of = |code, mtu: u8| {
        let mut message = vec![3, code, 0, 0, 0, 0, 5, mtu];
        message.extend(&request);
        let bytes = packet(1, [10, 0, 0, 9], [10, 0, 0, 1], &message);
        match parse_v4(&bytes, 0x1234) {
            Some(IcmpMessage::RequestError { number: 9, cookie: None, outcome }) => outcome,
            other => panic!("{other:?}"),
        }
    };
    let reporter = "10.0.0.9".parse().unwrap();
    assert_eq!(outcome_of(1, 0), unreachable(reporter, UnreachableReason::Host));
    assert_eq!(outcome_of(0, 0), unreachable(reporter, UnreachableReason::Network));
    assert_eq!(outcome_of(13, 0), unreachable(reporter, UnreachableReason::Prohibited));
    assert_eq!(outcome_of(4, 0x78), Outcome::TooBig(Some(1400)));
}

#[test]
fn icmp_error_for_tunnel_packet_has_its_port() {
    let port = 64_000_u16.to_be_bytes();
    let datagram = packet(17, [10, 0, 0, 1], [10, 0, 0, 2], &[1, 2, port[0], port[1], 0, 0, 0, 0]);
    let mut message = vec![3, 3, 0, 0, 0, 0, 0, 0];
    message.extend(datagram);
    let reporter = IpAddr::from([10, 0, 0, 2]);
    let error = IcmpError { reporter, reason: UnreachableReason::Port };
    assert_eq!(
        parse_v4(&packet(1, [10, 0, 0, 2], [10, 0, 0, 1], &message), 1),
        Some(IcmpMessage::DatagramError { to: reporter, port: 64_000, error })
    );
    let mut message = vec![1, 4, 0, 0, 0, 0, 0, 0, 0x60, 0, 0, 0, 0, 16, 17, 64];
    let (from, to): (Ipv6Addr, Ipv6Addr) = ("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap());
    message.extend(from.octets().into_iter().chain(to.octets()));
    message.extend([1, 2, port[0], port[1], 0, 0, 0, 0]);
    let to = IpAddr::V6(to);
    let error = IcmpError { reporter: to, reason: UnreachableReason::Port };
    let expected = IcmpMessage::DatagramError { to, port: 64_000, error };
    assert_eq!(parse_v6(&message, to, 1), Some(expected));
}

#[test]
fn late_error_for_unanswered_request_names_its_destination() {
    let mut prober = Prober::open(&BTreeSet::new()).unwrap();
    let to: IpAddr = "192.168.1.126".parse().unwrap();
    prober.unanswered.insert(7, (to, now()));
    let error = IcmpError { reporter: to, reason: UnreachableReason::Host };
    let mut round = Round::default();
    let mut late = |number, cookie, outcome| {
        let message = IcmpMessage::RequestError { number, cookie, outcome };
        prober.record_late(&message, &mut round);
        std::mem::take(&mut round.late_errors)
    };
    let unreachable = || Outcome::Unreachable(error.clone());
    assert_eq!(late(8, None, unreachable()), BTreeMap::new());
    assert_eq!(late(7, Some(WORDS), unreachable()), BTreeMap::new(), "of another process");
    assert_eq!(late(7, None, Outcome::TooBig(None)), BTreeMap::new());
    assert_eq!(late(7, None, unreachable()), BTreeMap::from([(to, error.clone())]));
}
