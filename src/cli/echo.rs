//! Echo requests with a chosen source and size, never cut in pieces, many at once but paced; and
//! what comes back of them: answers and how long they took, and what routers and hosts say against
//! them. It also hears what is said against the tunnels' own packets, which tells a closed port
//! from a silent one. All of it is in the network namespace of the calling thread, and needs no
//! `ping`.

use std::collections::{BTreeMap, BTreeSet};
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

/// The header of an echo request.
const ICMP_HEADER: usize = 8;
const V4_HEADER: usize = 20;
const V6_HEADER: usize = 40;
/// How many are sent before there is a pause, in which answers are taken: the answers of a burst
/// fit the receive buffer of a socket.
const BURST: usize = 64;
const PAUSE: Duration = Duration::from_millis(10);
/// Larger than any packet.
const BUFFER: usize = 65_536;
const UDP: u8 = 17;

/// What is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Echo {
    pub(super) from: IpAddr,
    pub(super) to: IpAddr,
    /// Of the whole packet, its IP header included.
    pub(super) size: u32,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// How long the answer took.
    Answered(Duration),
    Silent,
    Refused(Refusal),
    /// It does not fit a link; its MTU, if that is told.
    TooBig(Option<u32>),
    /// The system's word.
    NotSent(String),
}

impl Outcome {
    pub(super) const fn is_answered(&self) -> bool {
        matches!(self, Self::Answered(_))
    }

    /// Whether there may still be an answer.
    const fn is_open(&self) -> bool {
        matches!(self, Self::Silent | Self::Refused(_))
    }
}

/// What somebody said against a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) by: IpAddr,
    pub(super) why: Unreachable,
}

/// Why a packet got no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unreachable {
    /// There is no route.
    Network,
    /// The host does not answer in its own network.
    Host,
    /// Nobody has the port.
    Port,
    /// A firewall does not want it.
    Prohibited,
}

/// What became of all that was sent.
#[derive(Debug, Default)]
pub(super) struct Round {
    pub(super) outcomes: Vec<Outcome>,
    /// What was said against UDP packets of ours, by their destination and port.
    pub(super) datagrams: BTreeMap<(IpAddr, u16), Refusal>,
}

/// Requests by their numbers: which of them, and when it was sent.
type Sent = BTreeMap<u16, (usize, Instant)>;

/// A message that came back.
#[derive(Debug, PartialEq, Eq)]
enum Heard {
    Reply { number: u16, by: IpAddr },
    Against { number: u16, outcome: Outcome },
    Datagram { to: IpAddr, port: u16, refusal: Refusal },
}

/// Sockets, one for each address that packets are sent from.
pub(super) struct Prober {
    sockets: BTreeMap<IpAddr, OwnedFd>,
    identifier: u16,
    next_number: u16,
    buffer: Vec<u8>,
}

#[expect(clippy::disallowed_methods, reason = "a probe waits for answers, and cli reads the clock")]
fn now() -> Instant {
    Instant::now()
}

impl Prober {
    /// For packets from each of `sources`; those that this host has not are left out, and what is
    /// sent from them is told as not sent.
    ///
    /// # Errors
    /// When there are no raw sockets to be had.
    pub(super) fn open(sources: &BTreeSet<IpAddr>) -> io::Result<Self> {
        let mut sockets = BTreeMap::new();
        for source in sources {
            let socket = open(*source)?;
            match bind(&socket, &SocketAddr::new(*source, 0)) {
                Ok(()) => drop(sockets.insert(*source, socket)),
                Err(Errno::ADDRNOTAVAIL) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let identifier = fastrand::u16(..);
        Ok(Self { sockets, identifier, next_number: 0, buffer: vec![0; BUFFER] })
    }

    /// Sends all of `echoes`, those without an answer up to `tries` times with a `wait` after each.
    pub(super) fn round(&mut self, echoes: &[Echo], tries: u32, wait: Duration) -> Round {
        let mut round = Round { outcomes: vec![Outcome::Silent; echoes.len()], ..Round::default() };
        let mut sent = Sent::new();
        for _ in 0..tries {
            let open: Vec<usize> =
                (0..echoes.len()).filter(|index| round.outcomes[*index].is_open()).collect();
            for (count, index) in open.iter().enumerate() {
                let number = self.next_number;
                self.next_number = number.wrapping_add(1);
                sent.insert(number, (*index, now()));
                if let Err(outcome) = self.send(&echoes[*index], number) {
                    round.outcomes[*index] = outcome;
                }
                if count % BURST == BURST - 1 {
                    self.listen(echoes, &sent, &mut round, PAUSE);
                }
            }
            if !open.is_empty() {
                self.listen(echoes, &sent, &mut round, wait);
            }
        }
        round
    }

    fn send(&self, echo: &Echo, number: u16) -> Result<(), Outcome> {
        let not_sent = |error: Errno| match error {
            Errno::MSGSIZE => Outcome::TooBig(None),
            error => Outcome::NotSent(io::Error::from(error).to_string()),
        };
        let socket = self.sockets.get(&echo.from);
        let socket = socket
            .ok_or_else(|| Outcome::NotSent(format!("this host has no address {}", echo.from)))?;
        let packet = request(echo, self.identifier, number);
        let to = SocketAddr::new(echo.to, 0);
        sendto(socket, &packet, SendFlags::DONTWAIT, &to).map(drop).map_err(not_sent)
    }

    /// Takes what comes until nothing more can or the time is up.
    fn listen(&mut self, echoes: &[Echo], sent: &Sent, round: &mut Round, wait: Duration) {
        let end = now() + wait;
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
                    log::warn!("wait for answers: {error}");
                    return;
                }
            }
            for heard in self.receive() {
                note(heard, echoes, sent, round);
            }
        }
    }

    /// All that is there.
    fn receive(&mut self) -> Vec<Heard> {
        let mut all = Vec::new();
        for (own, socket) in &self.sockets {
            loop {
                match recvfrom(socket, &mut self.buffer[..], RecvFlags::DONTWAIT) {
                    Ok((_, length, from)) => {
                        let from = from.and_then(|from| SocketAddr::try_from(from).ok());
                        let bytes = &self.buffer[..length.min(BUFFER)];
                        all.extend(match (own, from) {
                            (IpAddr::V4(_), _) => read_v4(bytes, self.identifier),
                            (IpAddr::V6(_), Some(from)) => {
                                read_v6(bytes, from.ip(), self.identifier)
                            }
                            (IpAddr::V6(_), None) => None,
                        });
                    }
                    Err(Errno::INTR) => {}
                    // The rest is what earlier packets left behind: an error is read once.
                    Err(Errno::AGAIN) => break,
                    Err(_) => {}
                }
            }
        }
        all
    }
}

fn open(source: IpAddr) -> io::Result<OwnedFd> {
    let (family, protocol) = match source {
        IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP),
        IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6),
    };
    let socket = socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, Some(protocol))?;
    // What the kernel remembers of paths says how they were, and it is how they are that is asked.
    match source {
        IpAddr::V4(_) => set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::PROBE)?,
        IpAddr::V6(_) => set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::PROBE)?,
    }
    Ok(socket)
}

fn note(heard: Heard, echoes: &[Echo], sent: &Sent, round: &mut Round) {
    match heard {
        Heard::Reply { number, by } => {
            if let Some((index, at)) = sent.get(&number)
                && echoes[*index].to == by
                && !round.outcomes[*index].is_answered()
            {
                round.outcomes[*index] = Outcome::Answered(now().duration_since(*at));
            }
        }
        Heard::Against { number, outcome } => {
            if let Some((index, _)) = sent.get(&number)
                && !round.outcomes[*index].is_answered()
            {
                round.outcomes[*index] = outcome;
            }
        }
        Heard::Datagram { to, port, refusal } => {
            round.datagrams.insert((to, port), refusal);
        }
    }
}

/// An echo request without its IP header. The kernel fills in the checksum of IPv6.
fn request(echo: &Echo, identifier: u16, number: u16) -> Vec<u8> {
    let header = if echo.to.is_ipv4() { V4_HEADER } else { V6_HEADER };
    let length = usize::try_from(echo.size).unwrap_or(BUFFER).saturating_sub(header);
    let mut packet: Vec<u8> = vec![if echo.to.is_ipv4() { 8 } else { 128 }, 0, 0, 0];
    packet.extend(identifier.to_be_bytes());
    packet.extend(number.to_be_bytes());
    packet.resize(length.max(ICMP_HEADER), 0x5a);
    if echo.to.is_ipv4() {
        let sum = checksum(&packet).to_be_bytes();
        packet[2..4].copy_from_slice(&sum);
    }
    packet
}

/// The internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    #[expect(clippy::cast_possible_truncation, reason = "the carry is folded in above")]
    let sum = sum as u16;
    !sum
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// A message with its IP header, as a raw socket of IPv4 gives it.
fn read_v4(bytes: &[u8], identifier: u16) -> Option<Heard> {
    let header = |bytes: &[u8]| Some(usize::from(bytes.first()? & 0xf) * 4);
    let address = |bytes: &[u8], at: usize| {
        let octets: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
        Some(IpAddr::V4(Ipv4Addr::from(octets)))
    };
    let by = address(bytes, 12)?;
    let message = bytes.get(header(bytes)?..)?;
    let (kind, code) = (*message.first()?, *message.get(1)?);
    if kind == 0 {
        let is_ours = word(message, 4)? == identifier;
        return is_ours.then_some(Heard::Reply { number: word(message, 6)?, by });
    }
    if kind != 3 {
        return None;
    }
    let outcome = match code {
        4 => Outcome::TooBig(word(message, 6).map(u32::from).filter(|mtu| *mtu > 0)),
        0 | 5 | 6 | 11 => Outcome::Refused(Refusal { by, why: Unreachable::Network }),
        1 | 7 | 8 | 12 => Outcome::Refused(Refusal { by, why: Unreachable::Host }),
        2 | 3 => Outcome::Refused(Refusal { by, why: Unreachable::Port }),
        _ => Outcome::Refused(Refusal { by, why: Unreachable::Prohibited }),
    };
    let inner = message.get(ICMP_HEADER..)?;
    let to = address(inner, 16)?;
    let (protocol, rest) = (*inner.get(9)?, inner.get(header(inner)?..)?);
    against((protocol, 1, 8), rest, to, outcome, identifier)
}

/// A message without its IP header, as a raw socket of IPv6 gives it.
fn read_v6(message: &[u8], by: IpAddr, identifier: u16) -> Option<Heard> {
    let (kind, code) = (*message.first()?, *message.get(1)?);
    if kind == 129 {
        let is_ours = word(message, 4)? == identifier;
        return is_ours.then_some(Heard::Reply { number: word(message, 6)?, by });
    }
    let outcome = match (kind, code) {
        (2, _) => {
            let mtu: [u8; 4] = message.get(4..8)?.try_into().ok()?;
            Outcome::TooBig(Some(u32::from_be_bytes(mtu)))
        }
        (1, 0) => Outcome::Refused(Refusal { by, why: Unreachable::Network }),
        (1, 3) => Outcome::Refused(Refusal { by, why: Unreachable::Host }),
        (1, 4) => Outcome::Refused(Refusal { by, why: Unreachable::Port }),
        (1, _) => Outcome::Refused(Refusal { by, why: Unreachable::Prohibited }),
        _ => return None,
    };
    let inner = message.get(ICMP_HEADER..)?;
    let octets: [u8; 16] = inner.get(24..40)?.try_into().ok()?;
    let to = IpAddr::V6(Ipv6Addr::from(octets));
    against((*inner.get(6)?, 58, 128), inner.get(V6_HEADER..)?, to, outcome, identifier)
}

/// What was said against a packet, of which `rest` is what follows its IP header.
fn against(
    (protocol, icmp, request): (u8, u8, u8),
    rest: &[u8],
    to: IpAddr,
    outcome: Outcome,
    identifier: u16,
) -> Option<Heard> {
    if protocol == icmp {
        let is_ours = *rest.first()? == request && word(rest, 4)? == identifier;
        return is_ours.then_some(Heard::Against { number: word(rest, 6)?, outcome });
    }
    match outcome {
        Outcome::Refused(refusal) if protocol == UDP => {
            Some(Heard::Datagram { to, port: word(rest, 2)?, refusal })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn echo(to: &str, size: u32) -> Echo {
        let to: IpAddr = to.parse().unwrap();
        Echo { from: to, to, size }
    }

    /// An IPv4 header around a message.
    fn packet(protocol: u8, from: [u8; 4], to: [u8; 4], message: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0];
        packet.extend(from);
        packet.extend(to);
        packet.extend(message);
        packet
    }

    #[test]
    fn a_request_has_the_size_that_was_asked_for_and_a_checksum() {
        let bytes = request(&echo("10.0.0.2", 1450), 0x1234, 7);
        assert_eq!(bytes.len(), 1430);
        assert_eq!((bytes[0], &bytes[4..8]), (8, &[0x12, 0x34, 0, 7][..]));
        assert_eq!(checksum(&bytes), 0, "with its checksum all of it sums up to nothing");
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), 0x220d);
        assert_eq!(checksum(&[0xff; 3]), 0x00ff);
        assert_eq!(request(&echo("fd00::2", 1430), 1, 1).len(), 1390);
        assert_eq!(request(&echo("fd00::2", 1), 1, 1).len(), ICMP_HEADER);
    }

    #[test]
    fn answers_are_told_from_those_of_others() {
        let reply = [0, 0, 0, 0, 0x12, 0x34, 0, 7];
        let bytes = packet(1, [10, 0, 0, 2], [10, 0, 0, 1], &reply);
        let by = "10.0.0.2".parse().unwrap();
        assert_eq!(read_v4(&bytes, 0x1234), Some(Heard::Reply { number: 7, by }));
        assert_eq!(read_v4(&bytes, 0x1235), None);
        let mut with_options = bytes.clone();
        with_options[0] = 0x46;
        with_options.splice(20..20, [0; 4]);
        assert_eq!(read_v4(&with_options, 0x1234), Some(Heard::Reply { number: 7, by }));
        let request = request(&echo("10.0.0.1", 84), 0x1234, 7);
        let bytes_of_request = packet(1, [10, 0, 0, 2], [10, 0, 0, 1], &request);
        assert_eq!(read_v4(&bytes_of_request, 0x1234), None, "a request is no answer");
        let by = "fd00::2".parse().unwrap();
        let reply = [129, 0, 0, 0, 0x12, 0x34, 0, 7];
        assert_eq!(read_v6(&reply, by, 0x1234), Some(Heard::Reply { number: 7, by }));
        for length in 0..bytes.len() {
            assert_eq!(read_v4(&bytes[..length], 0x1234), None);
        }
    }

    #[test]
    fn the_first_answer_of_the_one_that_was_asked_counts() {
        let echoes = [echo("10.0.0.2", 84)];
        let mut round = Round { outcomes: vec![Outcome::Silent], ..Round::default() };
        let sent = Sent::from([(7, (0, now()))]);
        let mut hear = |number, by: &str| {
            note(Heard::Reply { number, by: by.parse().unwrap() }, &echoes, &sent, &mut round);
            round.outcomes[0].clone()
        };
        assert_eq!(hear(8, "10.0.0.2"), Outcome::Silent);
        assert_eq!(hear(7, "10.0.0.3"), Outcome::Silent);
        let first = hear(7, "10.0.0.2");
        assert!(first.is_answered(), "{first:?}");
        assert_eq!(hear(7, "10.0.0.2"), first, "how long it took stays");
    }

    #[test]
    fn what_is_said_against_a_request_names_its_number() {
        let sent = packet(1, [10, 0, 0, 1], [10, 0, 0, 2], &[8, 0, 0, 0, 0x12, 0x34, 0, 9]);
        let said = |code, mtu: u8| {
            let mut message = vec![3, code, 0, 0, 0, 0, 5, mtu];
            message.extend(&sent);
            let bytes = packet(1, [10, 0, 0, 9], [10, 0, 0, 1], &message);
            match read_v4(&bytes, 0x1234) {
                Some(Heard::Against { number: 9, outcome }) => outcome,
                other => panic!("{other:?}"),
            }
        };
        let by = "10.0.0.9".parse().unwrap();
        assert_eq!(said(1, 0), Outcome::Refused(Refusal { by, why: Unreachable::Host }));
        assert_eq!(said(0, 0), Outcome::Refused(Refusal { by, why: Unreachable::Network }));
        assert_eq!(said(13, 0), Outcome::Refused(Refusal { by, why: Unreachable::Prohibited }));
        assert_eq!(said(4, 0x78), Outcome::TooBig(Some(1400)));
    }

    #[test]
    fn what_is_said_against_a_packet_of_the_tunnel_names_its_port() {
        let port = 64_000_u16.to_be_bytes();
        let sent = packet(17, [10, 0, 0, 1], [10, 0, 0, 2], &[1, 2, port[0], port[1], 0, 0, 0, 0]);
        let mut message = vec![3, 3, 0, 0, 0, 0, 0, 0];
        message.extend(sent);
        let by = IpAddr::from([10, 0, 0, 2]);
        let refusal = Refusal { by, why: Unreachable::Port };
        assert_eq!(
            read_v4(&packet(1, [10, 0, 0, 2], [10, 0, 0, 1], &message), 1),
            Some(Heard::Datagram { to: by, port: 64_000, refusal })
        );
        let mut message = vec![1, 4, 0, 0, 0, 0, 0, 0, 0x60, 0, 0, 0, 0, 16, 17, 64];
        let (from, to): (Ipv6Addr, Ipv6Addr) =
            ("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap());
        message.extend(from.octets().into_iter().chain(to.octets()));
        message.extend([1, 2, port[0], port[1], 0, 0, 0, 0]);
        let to = IpAddr::V6(to);
        let refusal = Refusal { by: to, why: Unreachable::Port };
        let heard = Heard::Datagram { to, port: 64_000, refusal };
        assert_eq!(read_v6(&message, to, 1), Some(heard));
    }
}
