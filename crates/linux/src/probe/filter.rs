//! The filter of a raw ICMP socket: a program of the classic BPF that accepts the replies to own
//! requests, and errors about own packets.

use socket2::SockFilter;

/// Operations, from `linux/bpf_common.h`.
pub(super) const LOAD_X: u16 = 0x01;
/// Sets X to the length of the IPv4 header at an offset.
pub(super) const LOAD_X_HEADER: u16 = 0xb1;
pub(super) const LOAD_BYTE: u16 = 0x50;
pub(super) const LOAD_HALF: u16 = 0x48;
const LOAD_WORD: u16 = 0x40;
pub(super) const JUMP_EQUAL: u16 = 0x15;
pub(super) const AND: u16 = 0x54;
pub(super) const RETURN: u16 = 0x06;
/// The bits of the identifier that distinguish the sockets. The other bits differ between rounds.
pub(super) const IDENTIFIER_MASK: u16 = 0xff00;
/// Length of an accepted packet.
pub(super) const WHOLE: u32 = 0x4_0000;
/// Offsets of the identifier and of the payload in an echo request or reply.
const IDENTIFIER: u32 = 4;
const PAYLOAD: u32 = 8;
const UDP: u32 = 17;

/// What differs between the IP versions.
struct Family {
    reply: u32,
    errors: [u32; 2],
    /// Offsets in an error: of the protocol of the packet that it concerns, and of the payload of
    /// that packet. Own packets have no IP options.
    protocol_offset: u32,
    packet_payload: u32,
    icmp: u32,
}

const V4: Family =
    Family { reply: 0, errors: [3, 3], protocol_offset: 8 + 9, packet_payload: 8 + 20, icmp: 1 };
const V6: Family =
    Family { reply: 129, errors: [1, 2], protocol_offset: 8 + 6, packet_payload: 8 + 40, icmp: 58 };

/// Returns the program for requests with this identifier, and with this word at the begin of their
/// payload. `takes_datagrams` accepts errors about UDP packets. A load beyond the end of the packet
/// drops it.
pub(super) fn program(
    is_ipv4: bool,
    identifier: u16,
    word: u32,
    takes_datagrams: bool,
) -> [SockFilter; 18] {
    instructions(is_ipv4, identifier, word, takes_datagrams)
        .map(|(code, jt, jf, k)| SockFilter::new(code, jt, jf, k))
}

fn instructions(
    is_ipv4: bool,
    identifier: u16,
    word: u32,
    takes_datagrams: bool,
) -> [(u16, u8, u8, u32); 18] {
    let Family { reply, errors, protocol_offset, packet_payload, icmp } =
        if is_ipv4 { V4 } else { V6 };
    let identifier = u32::from(identifier & IDENTIFIER_MASK);
    let mask = u32::from(IDENTIFIER_MASK);
    // A raw socket of IPv4 receives the IP header, one of IPv6 does not.
    let begin = if is_ipv4 { (LOAD_X_HEADER, 0, 0, 0) } else { (LOAD_X, 0, 0, 0) };
    // A jump skips so many instructions. Number 16 drops the packet, number 17 accepts it.
    [
        begin,
        (LOAD_BYTE, 0, 0, 0),
        (JUMP_EQUAL, 2, 0, reply),
        (JUMP_EQUAL, 6, 0, errors[0]),
        (JUMP_EQUAL, 5, 11, errors[1]),
        // 5: a reply.
        (LOAD_HALF, 0, 0, IDENTIFIER),
        (AND, 0, 0, mask),
        (JUMP_EQUAL, 0, 8, identifier),
        (LOAD_WORD, 0, 0, PAYLOAD),
        (JUMP_EQUAL, 7, 6, word),
        // 10: an error.
        (LOAD_BYTE, 0, 0, protocol_offset),
        (JUMP_EQUAL, if takes_datagrams { 5 } else { 4 }, 0, UDP),
        (JUMP_EQUAL, 0, 3, icmp),
        (LOAD_HALF, 0, 0, packet_payload + IDENTIFIER),
        (AND, 0, 0, mask),
        (JUMP_EQUAL, 1, 0, identifier),
        (RETURN, 0, 0, 0),
        (RETURN, 0, 0, WHOLE),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the program as the kernel does.
    fn accepts(program: &[(u16, u8, u8, u32)], packet: &[u8]) -> bool {
        let (mut a, mut x, mut at) = (0_u32, 0_usize, 0);
        loop {
            let (code, jt, jf, k) = program[at];
            let load = |length: usize| {
                let start = x + k as usize;
                let bytes = packet.get(start..start + length)?;
                Some(bytes.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte)))
            };
            let loaded = match code {
                LOAD_BYTE => load(1),
                LOAD_HALF => load(2),
                LOAD_WORD => load(4),
                _ => Some(a),
            };
            let Some(loaded) = loaded else { return false };
            a = loaded;
            at += 1;
            match code {
                LOAD_X => x = k as usize,
                AND => a &= k,
                LOAD_X_HEADER => x = usize::from(packet[k as usize] & 0xf) * 4,
                JUMP_EQUAL => at += usize::from(if a == k { jt } else { jf }),
                RETURN => return k > 0,
                _ => {}
            }
        }
    }

    const ID: [u8; 2] = [0x12, 0x34];
    const WORD: u32 = 0x0102_0304;

    fn echo(kind: u8, id: [u8; 2], word: u32) -> Vec<u8> {
        [&[kind, 0, 0, 0][..], &id, &[0, 7], &word.to_be_bytes(), &[0; 20]].concat()
    }

    fn v4(protocol: u8, message: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol];
        packet.resize(20, 0);
        packet.extend(message);
        packet
    }

    fn v6(protocol: u8, message: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0, 0, 0, protocol, 64];
        packet.resize(40, 0);
        packet.extend(message);
        packet
    }

    fn error(kind: u8, packet: &[u8]) -> Vec<u8> {
        [&[kind, 0, 0, 0, 0, 0, 0, 0][..], packet].concat()
    }

    #[test]
    fn only_own_replies_and_errors_about_own_packets_pass() {
        let (later, other) = ([0x12, 0x35], [0x13, 0x34]);
        for (takes_datagrams, id, datagram) in
            [(false, ID, false), (true, later, true), (true, other, true)]
        {
            let v4_program = instructions(true, 0x1234, WORD, takes_datagrams);
            let v6_program = instructions(false, 0x1234, WORD, takes_datagrams);
            let is_own = id[0] == ID[0];
            let v4_passes = |message: &[u8]| accepts(&v4_program, &v4(1, message));
            let v6_passes = |message: &[u8]| accepts(&v6_program, message);
            assert_eq!(v4_passes(&echo(0, id, WORD)), is_own);
            assert_eq!(v6_passes(&echo(129, id, WORD)), is_own);
            assert!(!v4_passes(&echo(0, id, WORD + 1)) && !v6_passes(&echo(129, id, 0)));
            assert!(!v4_passes(&echo(8, ID, WORD)), "a request of another host");
            assert!(!v6_passes(&echo(128, ID, WORD)) && !v6_passes(&echo(135, ID, WORD)));
            // Eight bytes of the payload are enough.
            let (request, request6) =
                (v4(1, &echo(8, id, WORD)[..8]), v6(58, &echo(128, id, 0)[..8]));
            assert_eq!(v4_passes(&error(3, &request)), is_own);
            assert_eq!(v6_passes(&error(1, &request6)), is_own);
            assert_eq!(v6_passes(&error(2, &request6)), is_own);
            assert!(!v4_passes(&error(11, &request)) && !v6_passes(&error(3, &request6)));
            assert_eq!(v4_passes(&error(3, &v4(17, &[0; 8]))), datagram);
            assert_eq!(v6_passes(&error(1, &v6(17, &[0; 8]))), datagram);
            assert!(
                !v4_passes(&error(3, &v4(6, &[0; 8]))) && !v4_passes(&[0]) && !v6_passes(&[129])
            );
        }
    }
}
