//! Pings from this process, in the network namespace of the calling thread: ICMP echo requests of a
//! given size that nobody on the way may cut in pieces. Needs no `ping`, but root (`CAP_NET_RAW`).

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::sockopt::{self, Ipv4PathMtuDiscovery, Timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect, ipproto, recv, send,
    socket_with,
};

/// Headers of a ping: IPv4 without options, and ICMP.
const IP_HEADER: usize = 20;
const ICMP_HEADER: usize = 8;
/// ICMP: an echo request, and the answer to it.
const REQUEST: u8 = 8;
const ANSWER: u8 = 0;
/// Room for the largest packet that there is.
const PACKET_MAX: usize = 65_535;
/// Least time to wait that the kernel takes for one; none would be for ever.
const MOMENT: Duration = Duration::from_millis(1);

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum PingError {
    /// Nothing came.
    #[error("no answer within {0:?}")]
    NoAnswer(Duration),
    /// The kernel could not send it, or was told that it cannot arrive.
    #[error("{}", sentence(.0))]
    Refused(io::Error),
}

/// Pings `to` once with a packet of `length` bytes, headers of IP and ICMP among them, and returns
/// how long the answer took. Blocks.
///
/// # Errors
/// See [`PingError`].
#[expect(clippy::disallowed_methods, reason = "a ping measures time")]
pub(super) fn ping(to: Ipv4Addr, length: usize, patience: Duration) -> Result<Duration, PingError> {
    let refused = |error: Errno| PingError::Refused(error.into());
    let socket = socket_with(
        AddressFamily::INET,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(ipproto::ICMP),
    )
    .map_err(refused)?;
    sockopt::set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::DO).map_err(refused)?;
    // Connected, it takes packets of the other side only, and hears why none arrives there.
    connect(&socket, &SocketAddrV4::new(to, 0)).map_err(refused)?;
    let tag = fastrand::u32(..).to_be_bytes();
    let request = echo_request(tag, length);
    let start = Instant::now();
    send(&socket, &request, SendFlags::empty()).map_err(refused)?;
    let mut packet = vec![0; PACKET_MAX];
    loop {
        let left = patience.saturating_sub(start.elapsed());
        if left.is_zero() {
            return Err(PingError::NoAnswer(patience));
        }
        let wait = Some(left.max(MOMENT));
        sockopt::set_socket_timeout(&socket, Timeout::Recv, wait).map_err(refused)?;
        match recv(&socket, packet.as_mut_slice(), RecvFlags::empty()) {
            Ok((got, _)) if is_answer(&packet[..got], &request) => return Ok(start.elapsed()),
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => return Err(refused(error)),
        }
    }
}

fn sentence(error: &io::Error) -> String {
    match Errno::from_io_error(error) {
        Some(Errno::MSGSIZE) => "it is larger than what passes on the way".to_owned(),
        Some(Errno::HOSTUNREACH) => "the host is unreachable".to_owned(),
        _ => error.to_string(),
    }
}

/// `tag` is the identifier and the number, by which the answer is known.
fn echo_request(tag: [u8; 4], length: usize) -> Vec<u8> {
    let mut request = vec![REQUEST, 0, 0, 0];
    request.extend(tag);
    let content = length.saturating_sub(IP_HEADER + ICMP_HEADER);
    request.extend((0..=u8::MAX).cycle().take(content));
    let sum = checksum(&request);
    request[2..4].copy_from_slice(&sum.to_be_bytes());
    request
}

/// Whether a packet, with its IP header, is the answer to this request, byte for byte.
fn is_answer(packet: &[u8], request: &[u8]) -> bool {
    let header = packet.first().map_or(0, |first| usize::from(first & 0xf) * 4);
    let answer = packet.get(header..).unwrap_or_default();
    answer.first() == Some(&ANSWER) && answer.get(4..) == request.get(4..)
}

/// That of RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|word| {
        let low = word.get(1).copied().unwrap_or(0);
        u32::from(u16::from_be_bytes([word[0], low]))
    });
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    !u16::try_from(folded).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_the_length_and_the_checksum_that_it_should_have() {
        let request = echo_request([1, 2, 3, 4], 1420);
        assert_eq!(request.len() + IP_HEADER, 1420);
        // Over a whole message with its checksum the sum is nothing.
        assert_eq!(checksum(&request), 0);
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), 0x220d);
        assert_eq!(checksum(&[0xff; 3]), 0x00ff);
    }

    #[test]
    fn only_the_answer_to_the_request_is_one() {
        let request = echo_request([1, 2, 3, 4], 84);
        let answer = |header: usize, message: &[u8]| {
            let mut packet = vec![0; header];
            packet[0] = 0x40 | u8::try_from(header / 4).unwrap();
            packet.extend(message);
            packet
        };
        let mut echo = request.clone();
        echo[0] = ANSWER;
        assert!(is_answer(&answer(20, &echo), &request));
        assert!(is_answer(&answer(24, &echo), &request), "with options in the IP header");
        assert!(!is_answer(&answer(20, &request), &request), "a request itself");
        assert!(!is_answer(&answer(20, &echo[..echo.len() - 1]), &request), "cut off");
        assert!(!is_answer(&answer(20, &echo_request([1, 2, 3, 5], 84)), &request), "of another");
        assert!(!is_answer(&[], &request) && !is_answer(&[0x4f; 10], &request));
    }
}
