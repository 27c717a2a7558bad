//! ICMP echo requests with a given source and size, and their outcomes: replies with round-trip
//! times, and errors of routers and hosts.
//!
//! Requests are never fragmented. They are sent in paced bursts. The raw sockets also receive ICMP
//! errors for UDP packets of the tunnels, which distinguish a closed port from a silent one.
//! A filter in the kernel drops all other ICMP messages, so that a flood of them costs nothing. The
//! payload of a request has a keyed hash, so that only its receiver can answer it.
//! A socket stays in the network namespace of the thread that opened it. The program `ping` is not
//! needed.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{
    Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover,
};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, ipproto, recvfrom, sendto,
    socket_with,
};
use socket2::SockRef;

use super::filter::{self, IDENTIFIER_MASK};

/// Length of the header of an echo request.
const ICMP_HEADER: usize = 8;
const V4_HEADER: usize = 20;
const V6_HEADER: usize = 40;
/// Length of the words at the begin of the payload: one of the process, and one of the request.
const COOKIE: usize = 8;
/// The most messages that are received of a socket at a time.
const RECEIVED_MAX: usize = 1024;
/// Time in which an ICMP error for a request without a reply is recognized. A host reports a missing
/// neighbor after three ARP requests, one a second, and the socket keeps the report until the next
/// round.
const LATE_MAX: Duration = Duration::from_mins(6);
/// Number of requests without a reply that are remembered, a part of all sequence numbers.
const LATE_COUNT_MAX: usize = 16_384;
/// Number of requests in a burst. The replies to a burst fit the receive buffer of a socket.
const BURST: usize = 64;
/// Interval between two bursts, in which replies are received.
const BURST_INTERVAL: Duration = Duration::from_millis(10);
/// Size of the receive buffer. No packet is larger.
const BUFFER: usize = 65_536;
/// IP protocol numbers.
const ICMP: u8 = 1;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
/// ICMP message types (RFC 792).
const ECHO_REPLY: u8 = 0;
const DESTINATION_UNREACHABLE: u8 = 3;
const ECHO_REQUEST: u8 = 8;
/// ICMPv6 message types (RFC 4443).
const V6_DESTINATION_UNREACHABLE: u8 = 1;
const V6_PACKET_TOO_BIG: u8 = 2;
const V6_ECHO_REQUEST: u8 = 128;
const V6_ECHO_REPLY: u8 = 129;

/// An echo request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EchoRequest {
    /// Source address, which must be an address of this host.
    pub from: IpAddr,
    /// Destination address.
    pub to: IpAddr,
    /// Length of the whole packet in bytes, IP header included.
    pub size: u32,
}

/// The outcome of an echo request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// A reply arrived after this round-trip time.
    Replied(Duration),
    /// Neither a reply nor an ICMP error arrived.
    NoReply,
    /// A router or host reported the packet as undeliverable.
    Unreachable(IcmpError),
    /// The packet exceeds the MTU of a link, which the reporting router may name.
    TooBig(Option<u32>),
    /// The kernel did not send the packet, with its reason.
    NotSent(String),
}

impl Outcome {
    /// Returns whether a reply arrived.
    #[must_use]
    pub const fn has_reply(&self) -> bool {
        matches!(self, Self::Replied(_))
    }

    /// Returns whether a reply may still arrive.
    const fn is_open(&self) -> bool {
        matches!(self, Self::NoReply | Self::Unreachable(_))
    }
}

/// An ICMP error that reports an undeliverable packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IcmpError {
    /// The reporting router or host.
    pub reporter: IpAddr,
    /// The reported reason.
    pub reason: UnreachableReason,
}

/// Why a packet is undeliverable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnreachableReason {
    /// There is no route.
    Network,
    /// The host does not answer in its own network.
    Host,
    /// Nothing listens on the port.
    Port,
    /// A firewall refuses the packet.
    Prohibited,
}

/// The outcomes of a round of echo requests.
#[derive(Debug, Default)]
pub struct Round {
    /// One outcome for each request, in order.
    pub outcomes: Vec<Outcome>,
    /// ICMP errors for UDP packets of this host, by the packet's destination and port.
    pub datagram_errors: BTreeMap<(IpAddr, u16), IcmpError>,
    /// ICMP errors for requests of earlier rounds that had no reply, by the request's destination.
    pub late_errors: BTreeMap<IpAddr, IcmpError>,
}

/// Sent requests by sequence number: index of the request, and time of sending.
type Pending = BTreeMap<u16, (usize, Instant)>;

/// A received ICMP message that concerns this host's packets.
#[derive(Debug, PartialEq, Eq)]
enum IcmpMessage {
    EchoReply {
        number: u16,
        from: IpAddr,
        cookie: Option<[u8; COOKIE]>,
    },
    /// Without a cookie if the reporter has returned the header of the request only.
    RequestError {
        number: u16,
        cookie: Option<[u8; COOKIE]>,
        outcome: Outcome,
    },
    DatagramError {
        to: IpAddr,
        port: u16,
        error: IcmpError,
    },
}

/// Raw sockets, one for each source address.
#[derive(Debug)]
pub struct Prober {
    sockets: BTreeMap<IpAddr, OwnedFd>,
    /// Changes with each round: to a firewall, the packets of each round are a new flow.
    identifier: u16,
    next_number: u16,
    cookies: Cookies,
    /// The requests of the last seconds without a reply, by number: destination and time of sending.
    unanswered: BTreeMap<u16, (IpAddr, Instant)>,
    buffer: Vec<u8>,
}

/// The contents of payloads.
#[derive(Debug)]
struct Cookies {
    word: u32,
    /// Has keys of the operating system.
    keys: RandomState,
}

impl Cookies {
    fn new() -> Self {
        let keys = RandomState::new();
        Self { word: low_word(keys.hash_one("process")), keys }
    }

    /// Returns the begin of the payload of a request.
    fn of(&self, number: u16, to: IpAddr) -> [u8; COOKIE] {
        let mut cookie = [0; COOKIE];
        cookie[..4].copy_from_slice(&self.word.to_be_bytes());
        cookie[4..].copy_from_slice(&low_word(self.keys.hash_one((number, to))).to_be_bytes());
        cookie
    }
}

fn low_word(hash: u64) -> u32 {
    u32::try_from(hash & u64::from(u32::MAX)).unwrap_or_default()
}

#[expect(clippy::disallowed_methods, reason = "a probe waits for answers, and measures their time")]
pub(super) fn now() -> Instant {
    Instant::now()
}

impl Prober {
    /// Opens a socket for each of `sources`. Addresses that this host does not have are skipped,
    /// and requests from them have the outcome [`Outcome::NotSent`].
    ///
    /// # Errors
    /// When a raw socket cannot be opened.
    pub fn open(sources: &BTreeSet<IpAddr>) -> io::Result<Self> {
        let mut prober = Self {
            sockets: BTreeMap::new(),
            identifier: fastrand::u16(..),
            next_number: fastrand::u16(..),
            cookies: Cookies::new(),
            unanswered: BTreeMap::new(),
            buffer: vec![0; BUFFER],
        };
        for source in sources {
            match open_socket(*source) {
                Ok(socket) => prober.insert(*source, socket, true)?,
                Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {}
                Err(error) => return Err(error),
            }
        }
        Ok(prober)
    }

    /// Adds a socket of [`open_socket`], possibly of another network namespace. It receives no
    /// errors of UDP packets.
    ///
    /// # Errors
    /// When the kernel refuses the filter.
    pub fn add(&mut self, source: IpAddr, socket: OwnedFd) -> io::Result<()> {
        self.insert(source, socket, false)
    }

    fn insert(&mut self, source: IpAddr, socket: OwnedFd, takes_datagrams: bool) -> io::Result<()> {
        let word = self.cookies.word;
        let filter = filter::program(source.is_ipv4(), self.identifier, word, takes_datagrams);
        SockRef::from(&socket).attach_filter(&filter)?;
        self.sockets.insert(source, socket);
        Ok(())
    }

    /// Closes the socket of a source.
    pub fn remove(&mut self, source: IpAddr) {
        self.sockets.remove(&source);
    }

    /// Returns whether there is a socket of this source.
    #[must_use]
    pub fn has(&self, source: IpAddr) -> bool {
        self.sockets.contains_key(&source)
    }

    /// Sends all requests, and repeats those without a reply up to `tries` times. Waits at most
    /// `timeout` after each try.
    pub fn round(&mut self, requests: &[EchoRequest], tries: u32, timeout: Duration) -> Round {
        let mut round =
            Round { outcomes: vec![Outcome::NoReply; requests.len()], ..Round::default() };
        let mut pending = Pending::new();
        let round_bits = self.identifier.wrapping_add(1) & !IDENTIFIER_MASK;
        self.identifier = self.identifier & IDENTIFIER_MASK | round_bits;
        for message in self.receive() {
            self.record_late(&message, &mut round);
        }
        self.unanswered.retain(|_, (_, sent)| sent.elapsed() < LATE_MAX);
        if self.unanswered.len() > LATE_COUNT_MAX {
            self.unanswered.clear();
        }
        for _ in 0..tries {
            let open: Vec<usize> =
                (0..requests.len()).filter(|index| round.outcomes[*index].is_open()).collect();
            for (count, index) in open.iter().enumerate() {
                let number = self.next_number;
                self.next_number = number.wrapping_add(1);
                pending.insert(number, (*index, now()));
                if let Err(outcome) = self.send(&requests[*index], number) {
                    round.outcomes[*index] = outcome;
                }
                if count % BURST == BURST - 1 {
                    self.receive_replies(requests, &pending, &mut round, BURST_INTERVAL);
                }
            }
            if !open.is_empty() {
                self.receive_replies(requests, &pending, &mut round, timeout);
            }
        }
        let unanswered = pending
            .into_iter()
            .filter(|(_, (index, _))| matches!(round.outcomes[*index], Outcome::NoReply));
        let unanswered =
            unanswered.map(|(number, (index, sent))| (number, (requests[index].to, sent)));
        self.unanswered.extend(unanswered);
        round
    }

    /// Records an ICMP error for a request of an earlier round.
    fn record_late(&self, message: &IcmpMessage, round: &mut Round) {
        if let IcmpMessage::RequestError { number, cookie, outcome: Outcome::Unreachable(error) } =
            message
            && let Some((to, _)) = self.unanswered.get(number)
            && cookie.is_none_or(|cookie| cookie == self.cookies.of(*number, *to))
        {
            round.late_errors.insert(*to, error.clone());
        }
    }

    fn send(&self, request: &EchoRequest, number: u16) -> Result<(), Outcome> {
        let not_sent = |error: Errno| match error {
            Errno::MSGSIZE => Outcome::TooBig(None),
            error => Outcome::NotSent(io::Error::from(error).to_string()),
        };
        let socket = self.sockets.get(&request.from);
        let socket = socket.ok_or_else(|| {
            Outcome::NotSent(format!("this host has no address {}", request.from))
        })?;
        let cookie = self.cookies.of(number, request.to);
        let packet = encode(request, self.identifier, number, &cookie);
        let to = SocketAddr::new(request.to, 0);
        sendto(socket, &packet, SendFlags::DONTWAIT, &to).map(drop).map_err(not_sent)
    }

    /// Receives messages until no request is open or the timeout ends.
    fn receive_replies(
        &mut self,
        requests: &[EchoRequest],
        pending: &Pending,
        round: &mut Round,
        timeout: Duration,
    ) {
        let end = now() + timeout;
        while round.outcomes.iter().any(Outcome::is_open) {
            let left = end.saturating_duration_since(now());
            if left.is_zero() {
                return;
            }
            let mut ready: Vec<_> =
                self.sockets.values().map(|socket| PollFd::new(socket, PollFlags::IN)).collect();
            let timeout = Timespec::try_from(left).ok();
            match poll(&mut ready, timeout.as_ref()) {
                Ok(0) => return,
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => {
                    log::warn!("wait for echo replies: {error}");
                    return;
                }
            }
            for message in self.receive() {
                self.record_late(&message, round);
                record(message, requests, &self.cookies, pending, round);
            }
        }
    }

    /// Receives messages that have arrived, a bounded number of each socket.
    fn receive(&mut self) -> Vec<IcmpMessage> {
        let mut messages = Vec::new();
        for (source, socket) in &self.sockets {
            for _ in 0..RECEIVED_MAX {
                match recvfrom(socket, &mut self.buffer[..], RecvFlags::DONTWAIT) {
                    Ok((_, length, from)) => {
                        let from = from.and_then(|from| SocketAddr::try_from(from).ok());
                        let bytes = &self.buffer[..length.min(BUFFER)];
                        messages.extend(match (source, from) {
                            (IpAddr::V4(_), _) => parse_v4(bytes, self.identifier),
                            (IpAddr::V6(_), Some(from)) => {
                                parse_v6(bytes, from.ip(), self.identifier)
                            }
                            (IpAddr::V6(_), None) => None,
                        });
                    }
                    Err(Errno::INTR) => {}
                    // The kernel reports other errors, of earlier packets, once each.
                    Err(Errno::AGAIN) => break,
                    Err(_) => {}
                }
            }
        }
        messages
    }
}

/// Opens a socket with this source, in the network namespace of the calling thread.
///
/// # Errors
/// When raw sockets are forbidden, or the namespace does not have the address.
pub fn open_socket(source: IpAddr) -> io::Result<OwnedFd> {
    let (family, protocol) = match source {
        IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP),
        IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6),
    };
    let socket = socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, Some(protocol))?;
    // The probe must measure the path MTU, not use the MTU that the kernel has cached.
    match source {
        IpAddr::V4(_) => set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::PROBE)?,
        IpAddr::V6(_) => set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::PROBE)?,
    }
    bind(&socket, &SocketAddr::new(source, 0))?;
    Ok(socket)
}

fn record(
    message: IcmpMessage,
    requests: &[EchoRequest],
    cookies: &Cookies,
    pending: &Pending,
    round: &mut Round,
) {
    match message {
        IcmpMessage::EchoReply { number, from, cookie } => {
            if let Some((index, at)) = pending.get(&number)
                && requests[*index].to == from
                && cookie == Some(cookies.of(number, from))
                && !round.outcomes[*index].has_reply()
            {
                round.outcomes[*index] = Outcome::Replied(now().duration_since(*at));
            }
        }
        IcmpMessage::RequestError { number, cookie, outcome } => {
            if let Some((index, _)) = pending.get(&number)
                && cookie.is_none_or(|cookie| cookie == cookies.of(number, requests[*index].to))
                && !round.outcomes[*index].has_reply()
            {
                round.outcomes[*index] = outcome;
            }
        }
        IcmpMessage::DatagramError { to, port, error } => {
            round.datagram_errors.insert((to, port), error);
        }
    }
}

/// Encodes an echo request without its IP header. The kernel adds the checksum of ICMPv6.
fn encode(request: &EchoRequest, identifier: u16, number: u16, cookie: &[u8; COOKIE]) -> Vec<u8> {
    let header = if request.to.is_ipv4() { V4_HEADER } else { V6_HEADER };
    let length = usize::try_from(request.size).unwrap_or(BUFFER).saturating_sub(header);
    let mut packet: Vec<u8> =
        vec![if request.to.is_ipv4() { ECHO_REQUEST } else { V6_ECHO_REQUEST }, 0, 0, 0];
    packet.extend(identifier.to_be_bytes());
    packet.extend(number.to_be_bytes());
    packet.extend(cookie);
    packet.resize(length.max(packet.len()), 0x5a);
    if request.to.is_ipv4() {
        let sum = checksum(&packet).to_be_bytes();
        packet[2..4].copy_from_slice(&sum);
    }
    packet
}

/// Returns the internet checksum (RFC 1071).
pub(super) fn checksum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    #[expect(clippy::cast_possible_truncation, reason = "the carry is folded in above")]
    let sum = sum as u16;
    !sum
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// Parses a message with its IP header, as a raw IPv4 socket receives it.
fn parse_v4(bytes: &[u8], identifier: u16) -> Option<IcmpMessage> {
    let from = v4_address(bytes, 12)?;
    let message = bytes.get(v4_header_length(bytes)?..)?;
    let (kind, code) = (*message.first()?, *message.get(1)?);
    if kind == ECHO_REPLY {
        return parse_echo_reply(message, from, identifier);
    }
    if kind != DESTINATION_UNREACHABLE {
        return None;
    }
    let outcome = match code {
        4 => Outcome::TooBig(u16_at(message, 6).map(u32::from).filter(|mtu| *mtu > 0)),
        0 | 5 | 6 | 11 => unreachable(from, UnreachableReason::Network),
        1 | 7 | 8 | 12 => unreachable(from, UnreachableReason::Host),
        2 | 3 => unreachable(from, UnreachableReason::Port),
        _ => unreachable(from, UnreachableReason::Prohibited),
    };
    let packet = message.get(ICMP_HEADER..)?;
    let to = v4_address(packet, 16)?;
    let payload = packet.get(v4_header_length(packet)?..)?;
    match *packet.get(9)? {
        ICMP => parse_request_error(payload, ECHO_REQUEST, outcome, identifier),
        UDP => parse_datagram_error(payload, to, outcome),
        _ => None,
    }
}

/// Parses a message without its IP header, as a raw IPv6 socket receives it.
fn parse_v6(message: &[u8], from: IpAddr, identifier: u16) -> Option<IcmpMessage> {
    let (kind, code) = (*message.first()?, *message.get(1)?);
    if kind == V6_ECHO_REPLY {
        return parse_echo_reply(message, from, identifier);
    }
    let outcome = match (kind, code) {
        (V6_PACKET_TOO_BIG, _) => {
            let mtu: [u8; 4] = message.get(4..8)?.try_into().ok()?;
            Outcome::TooBig(Some(u32::from_be_bytes(mtu)))
        }
        (V6_DESTINATION_UNREACHABLE, 0) => unreachable(from, UnreachableReason::Network),
        (V6_DESTINATION_UNREACHABLE, 3) => unreachable(from, UnreachableReason::Host),
        (V6_DESTINATION_UNREACHABLE, 4) => unreachable(from, UnreachableReason::Port),
        (V6_DESTINATION_UNREACHABLE, _) => unreachable(from, UnreachableReason::Prohibited),
        _ => return None,
    };
    let packet = message.get(ICMP_HEADER..)?;
    let octets: [u8; 16] = packet.get(24..40)?.try_into().ok()?;
    let to = IpAddr::V6(Ipv6Addr::from(octets));
    let payload = packet.get(V6_HEADER..)?;
    match *packet.get(6)? {
        ICMPV6 => parse_request_error(payload, V6_ECHO_REQUEST, outcome, identifier),
        UDP => parse_datagram_error(payload, to, outcome),
        _ => None,
    }
}

fn v4_header_length(packet: &[u8]) -> Option<usize> {
    Some(usize::from(packet.first()? & 0xf) * 4)
}

fn v4_address(packet: &[u8], at: usize) -> Option<IpAddr> {
    let octets: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
    Some(IpAddr::V4(Ipv4Addr::from(octets)))
}

const fn unreachable(reporter: IpAddr, reason: UnreachableReason) -> Outcome {
    Outcome::Unreachable(IcmpError { reporter, reason })
}

fn parse_echo_reply(message: &[u8], from: IpAddr, identifier: u16) -> Option<IcmpMessage> {
    let is_own = is_same_socket(u16_at(message, 4)?, identifier);
    let cookie = cookie_of(message);
    is_own.then_some(IcmpMessage::EchoReply { number: u16_at(message, 6)?, from, cookie })
}

const fn is_same_socket(identifier: u16, own: u16) -> bool {
    identifier & IDENTIFIER_MASK == own & IDENTIFIER_MASK
}

/// Returns the cookie of an echo request or of its reply.
fn cookie_of(message: &[u8]) -> Option<[u8; COOKIE]> {
    message.get(ICMP_HEADER..ICMP_HEADER + COOKIE)?.try_into().ok()
}

/// Parses the payload of an undeliverable ICMP packet.
fn parse_request_error(
    payload: &[u8],
    request_type: u8,
    outcome: Outcome,
    identifier: u16,
) -> Option<IcmpMessage> {
    let is_own =
        *payload.first()? == request_type && is_same_socket(u16_at(payload, 4)?, identifier);
    let cookie = cookie_of(payload);
    is_own.then_some(IcmpMessage::RequestError { number: u16_at(payload, 6)?, cookie, outcome })
}

/// Parses the payload of an undeliverable UDP packet. A packet that is too large is no sign of a
/// closed port.
fn parse_datagram_error(payload: &[u8], to: IpAddr, outcome: Outcome) -> Option<IcmpMessage> {
    match outcome {
        Outcome::Unreachable(error) => {
            Some(IcmpMessage::DatagramError { to, port: u16_at(payload, 2)?, error })
        }
        _ => None,
    }
}
