//! Tests the offloads of a tunnel: sends the same segments with and without work for the hardware,
//! and counts the answers.
//!
//! The segments are TCP packets with SYN and data, to a port without a listener. The peer's kernel
//! verifies the checksum of such a segment before it answers with a reset, whose acknowledgement
//! number names the segment. So a peer needs no service for the test, it answers each packet with
//! a smaller one, and nobody can make it send more. SYN keeps the receiver from merging segments,
//! and makes each of them valid for connection tracking.
//!
//! A packet socket on the VXLAN device sends the packets as the kernel gets them from containers:
//! the header of virtio says which work is offloaded. No setting of the host changes.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{LinkAddr, SetSockOpt as _, bind};
use overlay_types::addr::{DeviceName, Mac};
use overlay_types::tunnel::{
    Desired, OffloadRound, OffloadVerdict, SegmentForm, SegmentTally, port_candidate,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, eth, recv, send, socket_with,
};
use socket2::{SockFilter, SockRef};

use super::echo::{checksum, now};
use super::filter::{AND, JUMP_EQUAL, LOAD_BYTE, LOAD_HALF, LOAD_X, LOAD_X_HEADER, RETURN, WHOLE};

/// The option with which packets of the socket begin with the header of virtio.
#[derive(Debug, Clone, Copy)]
struct VirtioHeader;

nix::setsockopt_impl!(
    VirtioHeader,
    libc::SOL_PACKET,
    libc::PACKET_VNET_HDR,
    bool,
    nix::sys::socket::sockopt::SetBool
);

/// The port that the segments go to, `discard`. Nothing listens there, and an answer of a listener
/// would be as good.
const PORT: u16 = 9;
/// Number of segments in a large packet.
const SEGMENTS_PER_PACKET: u32 = 16;
/// Number of segments without an answer on the way. It bounds the bursts of all forms alike.
const WINDOW: u32 = 64;
/// Time without any answer after which the segments on the way count as lost.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(250);
/// Number of windows without any answer after which the rest of a form is not sent.
const SILENT_WINDOWS: u32 = 2;
/// Longest duration of a form in a round.
const FORM_MAX: Duration = Duration::from_millis(1500);
/// Number of segments that show whether an address answers.
const TRIAL_SEGMENTS: u32 = 8;
/// Number of ports from which the segments come, one for each form, round and trial.
const PORTS: u16 = 32;
/// Number of segments and of rounds of a test with few packets.
const FEW_SEGMENTS: u32 = 16;
const FEW_ROUNDS: usize = 2;
/// Length of a segment if the MTU of the containers is not known: that of the overlays.
const SIZE_DEFAULT: u32 = 1420;
const BUFFER: usize = 256;
const RECEIVE_BUFFER: usize = 1024 * 1024;

/// Lengths of the headers in bytes.
const VIRTIO: usize = 10;
const ETHERNET: u16 = 14;
const IP: u16 = 20;
const TCP: u16 = 20;
const HEADERS: u16 = ETHERNET + IP + TCP;
/// `VIRTIO_NET_HDR_F_NEEDS_CSUM` and `VIRTIO_NET_HDR_GSO_TCPV4` of `linux/virtio_net.h`.
const NEEDS_CHECKSUM: u8 = 1;
const TCP_SEGMENTS: u8 = 1;
/// The offset of the checksum in a TCP header.
const TCP_CHECKSUM: u16 = 16;
const TCP_PROTOCOL: u8 = 6;
const FLAG_SYN: u8 = 2;

/// The path of the segments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OffloadPath {
    /// The VXLAN device.
    pub device: DeviceName,
    /// The source: the IPv4 address of the device.
    pub from: Ipv4Addr,
    /// The peer's MAC.
    pub mac: Mac,
    /// Addresses of the peer, of which the first one that answers gets the segments: its VTEP, and
    /// the possible ports of its probes, which its own firewall does not protect.
    pub to: Vec<Ipv4Addr>,
    /// Length of a segment with its IP header, in bytes.
    pub size: u32,
}

impl OffloadPath {
    /// Returns the path to a peer of the desired state, by its underlay address. `None` if the
    /// peer or this host has no VTEP of IPv4.
    #[must_use]
    pub fn to_peer(desired: &Desired, peer: IpAddr) -> Option<Self> {
        let local = desired.vxlan_devices.first()?;
        let peer = desired.peers.as_ref()?.get(&peer)?;
        let IpAddr::V4(from) = local.ip?.address() else { return None };
        let ports = peer.subnets.iter().filter_map(|(_, subnet)| match port_candidate(subnet) {
            Some(IpAddr::V4(port)) => Some(port),
            _ => None,
        });
        Some(Self {
            device: local.device.clone(),
            from,
            mac: peer.mac,
            to: peer.ip.into_iter().chain(ports).collect(),
            size: local.containers_mtu.map_or(SIZE_DEFAULT, |mtu| mtu.mtu().bytes()),
        })
    }
}

/// Tests the offloads to a peer with few packets.
///
/// # Errors
/// When the test is not possible, with the reason.
pub fn test_peer(desired: &Desired, peer: IpAddr) -> Result<OffloadVerdict, String> {
    let Some(path) = OffloadPath::to_peer(desired, peer) else {
        return Ok(OffloadVerdict::NoAnswer);
    };
    let rounds = test_offloads(&path, FEW_SEGMENTS, FEW_ROUNDS);
    let device = &path.device;
    match rounds {
        Ok(rounds) => Ok(OffloadVerdict::of(&rounds)),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            Err(format!("open a packet socket: {error}: give the agent CAP_NET_RAW"))
        }
        Err(error) => Err(format!("send packets on device {device}: {error}")),
    }
}

/// Sends `rounds` rounds of `segments` segments in each form, one after the other. Returns no round
/// if none of the addresses answers. Takes at most 1.5 seconds for each form of a round.
///
/// # Errors
/// When packet sockets are forbidden, the device is missing, or the kernel refuses the packets.
pub fn test_offloads(
    path: &OffloadPath,
    segments: u32,
    rounds: usize,
) -> io::Result<Vec<OffloadRound>> {
    let mut sender = Sender::open(path)?;
    for to in path.to.iter().take(usize::from(PORTS / 4)) {
        sender.to = *to;
        let trial = sender.transfer(SegmentForm::Complete, TRIAL_SEGMENTS)?;
        if trial.answered * 2 < trial.sent {
            continue;
        }
        let mut results = Vec::new();
        for _ in 0..rounds {
            let mut round = OffloadRound::default();
            for form in SegmentForm::ALL {
                *round.of(form) = sender.transfer(form, segments)?;
            }
            results.push(round);
        }
        return Ok(results);
    }
    Ok(Vec::new())
}

/// Sends segments and receives the answers.
struct Sender {
    socket: OwnedFd,
    path: OffloadPath,
    own_mac: [u8; 6],
    to: Ipv4Addr,
    /// The first of [`PORTS`] ports, and the number of the used ones.
    first_port: u16,
    used_ports: u16,
}

impl Sender {
    fn open(path: &OffloadPath) -> io::Result<Self> {
        let link = link_address(path.device.as_str())?;
        let own_mac = link.addr().unwrap_or_default();
        // Ports of the dynamic range, of which the first is a multiple of their number.
        let first_port = fastrand::u16(0x8000..0xe000) & !(PORTS - 1);
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, flags, Some(eth::IP))?;
        let program = filter(first_port).map(|(code, jt, jf, k)| SockFilter::new(code, jt, jf, k));
        SockRef::from(&socket).attach_filter(&program)?;
        SockRef::from(&socket).set_recv_buffer_size(RECEIVE_BUFFER)?;
        VirtioHeader.set(&socket, &true)?;
        bind(socket.as_raw_fd(), &link)?;
        let to = Ipv4Addr::UNSPECIFIED;
        Ok(Self { socket, path: path.clone(), own_mac, to, first_port, used_ports: 0 })
    }

    /// Sends segments of a form, as many at once as the window permits.
    fn transfer(&mut self, form: SegmentForm, segments: u32) -> io::Result<SegmentTally> {
        let port = self.first_port + self.used_ports % PORTS;
        self.used_ports += 1;
        let mut flow = Flow::new(port, self.payload(), segments);
        flow.per_packet = match form {
            SegmentForm::Segmentation => SEGMENTS_PER_PACKET,
            SegmentForm::Complete | SegmentForm::Checksum => 1,
        };
        let start = now();
        let (mut last_answer, mut silent) = (start, 0);
        while now() < start + FORM_MAX {
            while let Some((first, count)) = flow.next_packet() {
                if !self.send(&flow.packet(self, form, first, count))? {
                    break;
                }
                flow.sent += count;
                flow.pending += count;
            }
            match self.receive(&mut flow)? {
                0 if flow.sent == segments => break,
                0 => {
                    silent += 1;
                    if flow.answered_count == 0 && silent >= SILENT_WINDOWS {
                        break;
                    }
                    flow.pending = 0;
                }
                _ => last_answer = now(),
            }
            if flow.answered_count == segments {
                break;
            }
        }
        let size = u64::from(flow.payload) + u64::from(IP + TCP);
        Ok(SegmentTally {
            sent: flow.sent,
            answered: flow.answered_count,
            bytes: u64::from(flow.sent) * size,
            duration: last_answer - start,
        })
    }

    /// Returns the bytes of data in a segment.
    fn payload(&self) -> u16 {
        let size = self.path.size.saturating_sub(u32::from(IP + TCP));
        // The packet of all segments has to fit into the length of an IP packet.
        let max = u32::from(u16::MAX - IP - TCP) / SEGMENTS_PER_PACKET;
        u16::try_from(size.clamp(1, max)).unwrap_or(1)
    }

    /// Sends a packet. Returns whether it was sent: a full queue is no error.
    fn send(&self, packet: &[u8]) -> io::Result<bool> {
        match send(&self.socket, packet, SendFlags::DONTWAIT) {
            Ok(_) => Ok(true),
            Err(Errno::AGAIN | Errno::NOBUFS | Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for answers, and records all that have arrived. Returns their number.
    fn receive(&self, flow: &mut Flow) -> io::Result<u32> {
        let end = now() + ANSWER_TIMEOUT;
        let mut count = 0;
        let mut buffer = [0; BUFFER];
        while count == 0 {
            let left = end.saturating_duration_since(now());
            if left.is_zero() {
                break;
            }
            let timeout = Timespec::try_from(left).ok();
            match poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            loop {
                match recv(&self.socket, &mut buffer, RecvFlags::DONTWAIT) {
                    Ok((_, length)) => {
                        let packet = buffer.get(VIRTIO..length.min(BUFFER)).unwrap_or_default();
                        count += u32::from(flow.record(packet, self.to));
                    }
                    Err(Errno::INTR) => {}
                    Err(Errno::AGAIN) => break,
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(count)
    }
}

/// The segments of one form, from a port of their own.
struct Flow {
    port: u16,
    /// The sequence number of the first segment.
    sequence: u32,
    /// Bytes of data in a segment.
    payload: u16,
    answered: Vec<bool>,
    answered_count: u32,
    sent: u32,
    /// Number of segments on the way.
    pending: u32,
    /// Number of segments in a packet.
    per_packet: u32,
}

impl Flow {
    fn new(port: u16, payload: u16, segments: u32) -> Self {
        let answered = vec![false; segments as usize];
        let sequence = fastrand::u32(..);
        Self {
            port,
            sequence,
            payload,
            answered,
            answered_count: 0,
            sent: 0,
            pending: 0,
            per_packet: 1,
        }
    }

    /// Returns the first segment of the next packet and their number, if the window has room.
    fn next_packet(&self) -> Option<(u32, u32)> {
        let rest = u32::try_from(self.answered.len()).unwrap_or(u32::MAX) - self.sent;
        let count = rest.min(self.per_packet);
        (count > 0 && self.pending + count <= WINDOW).then_some((self.sent, count))
    }

    /// Encodes a packet with the headers of virtio and Ethernet.
    fn packet(&self, sender: &Sender, form: SegmentForm, first: u32, count: u32) -> Vec<u8> {
        let data = usize::from(self.payload) * count as usize;
        let mut packet = self.virtio_header(form, count);
        packet.reserve(usize::from(HEADERS) + data);
        packet.extend(sender.path.mac.octets());
        packet.extend(sender.own_mac);
        packet.extend(0x0800_u16.to_be_bytes());
        let length = u16::try_from(usize::from(IP + TCP) + data).unwrap_or(u16::MAX);
        let mut ip = vec![0x45, 0];
        ip.extend(length.to_be_bytes());
        // Without an identifier, and never fragmented.
        ip.extend([0, 0, 0x40, 0, 64, TCP_PROTOCOL, 0, 0]);
        ip.extend(sender.path.from.octets());
        ip.extend(sender.to.octets());
        let sum = checksum(&ip).to_be_bytes();
        ip[10..12].copy_from_slice(&sum);
        packet.extend(ip);
        packet.extend(self.segment(sender, form, first, data));
        packet
    }

    /// Encodes the offloaded work as a `struct virtio_net_hdr`, in the byte order of this machine.
    fn virtio_header(&self, form: SegmentForm, count: u32) -> Vec<u8> {
        let start = ETHERNET + IP;
        let (flags, kind, headers, size, start, offset) = match form {
            SegmentForm::Complete => (0, 0, 0, 0, 0, 0),
            SegmentForm::Segmentation if count > 1 => {
                (NEEDS_CHECKSUM, TCP_SEGMENTS, HEADERS, self.payload, start, TCP_CHECKSUM)
            }
            _ => (NEEDS_CHECKSUM, 0, 0, 0, start, TCP_CHECKSUM),
        };
        let mut header = vec![flags, kind];
        for field in [headers, size, start, offset] {
            header.extend(field.to_ne_bytes());
        }
        header
    }

    /// Encodes the TCP header and the data. If the checksum is left to the hardware, its field has
    /// the sum of the addresses, the protocol and the length.
    fn segment(&self, sender: &Sender, form: SegmentForm, first: u32, data: usize) -> Vec<u8> {
        let mut segment = Vec::with_capacity(usize::from(TCP) + data);
        segment.extend(self.port.to_be_bytes());
        segment.extend(PORT.to_be_bytes());
        segment.extend(self.sequence_of(first).to_be_bytes());
        segment.extend([0, 0, 0, 0, 5 << 4, FLAG_SYN, 0xff, 0xff, 0, 0, 0, 0]);
        segment.resize(usize::from(TCP) + data, 0x5a);
        let length = u16::try_from(segment.len()).unwrap_or(u16::MAX);
        let mut summed = [sender.path.from.octets(), sender.to.octets()].concat();
        summed.extend([0, TCP_PROTOCOL]);
        summed.extend(length.to_be_bytes());
        let sum = if form == SegmentForm::Complete {
            summed.extend(&segment);
            checksum(&summed)
        } else {
            !checksum(&summed)
        };
        let at = usize::from(TCP_CHECKSUM);
        segment[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        segment
    }

    fn sequence_of(&self, segment: u32) -> u32 {
        self.sequence.wrapping_add(segment.wrapping_mul(self.payload.into()))
    }

    /// Records an answer of the peer. Returns whether it is the first answer to a segment.
    fn record(&mut self, packet: &[u8], from: Ipv4Addr) -> bool {
        let Some(segment) = self.answered_segment(packet, from) else { return false };
        let acknowledged = self.acknowledged_with(segment as usize);
        let Some(answered) = self.answered.get_mut(acknowledged) else { return false };
        let count = answered.iter().filter(|answered| !**answered).count();
        answered.fill(true);
        let count = u32::try_from(count).unwrap_or_default();
        self.answered_count += count;
        self.pending = self.pending.saturating_sub(count);
        count > 0
    }

    /// Returns the segments whose arrival the answer to a segment shows. Between virtual devices a
    /// packet may arrive undivided: its only answer acknowledges the last of its segments. Divided
    /// segments are answered in their order.
    fn acknowledged_with(&self, segment: usize) -> std::ops::Range<usize> {
        let per_packet = self.per_packet as usize;
        let first = segment - segment % per_packet;
        let end = self.answered.len().min(first + per_packet);
        let is_first_answer =
            self.answered.get(first..end).is_some_and(|packet| !packet.contains(&true));
        let from = if segment + 1 == end && is_first_answer { first } else { segment };
        from..segment + 1
    }

    /// Returns the segment that a packet acknowledges: the reset of a closed port acknowledges the
    /// data, the answer of a listener SYN only.
    fn answered_segment(&self, packet: &[u8], from: Ipv4Addr) -> Option<u32> {
        const ACK: u8 = 0x10;
        const RST: u8 = 4;
        let ip = packet.get(usize::from(ETHERNET)..)?;
        let tcp = ip.get(usize::from(ip.first()? & 0xf) * 4..)?;
        let is_own = ip.get(12..16)? == from.octets() && tcp.get(2..4)? == self.port.to_be_bytes();
        let flags = *tcp.get(13)?;
        if !is_own || flags & ACK == 0 {
            return None;
        }
        let acknowledged = u32::from_be_bytes(tcp.get(8..12)?.try_into().ok()?);
        let data = if flags & RST == 0 { 0 } else { self.payload.into() };
        let offset = acknowledged.wrapping_sub(1 + data).wrapping_sub(self.sequence);
        let payload = u32::from(self.payload);
        (offset % payload == 0).then_some(offset / payload)
    }
}

/// Returns the address of a device for packet sockets.
fn link_address(device: &str) -> io::Result<LinkAddr> {
    let mut interfaces = getifaddrs()?.filter(|interface| interface.interface_name == device);
    let link = interfaces.find_map(|interface| interface.address?.as_link_addr().copied());
    link.ok_or_else(|| io::Error::new(ErrorKind::NotFound, format!("there is no device {device}")))
}

/// Returns the filter that passes TCP packets to the own ports.
fn filter(first_port: u16) -> [(u16, u8, u8, u32); 9] {
    let mask = u32::from(!(PORTS - 1));
    // A jump skips so many instructions. Number 7 drops the packet, number 8 accepts it.
    [
        (LOAD_X, 0, 0, 0),
        (LOAD_BYTE, 0, 0, u32::from(ETHERNET) + 9),
        (JUMP_EQUAL, 0, 4, TCP_PROTOCOL.into()),
        (LOAD_X_HEADER, 0, 0, u32::from(ETHERNET)),
        (LOAD_HALF, 0, 0, u32::from(ETHERNET) + 2),
        (AND, 0, 0, mask),
        (JUMP_EQUAL, 1, 0, first_port.into()),
        (RETURN, 0, 0, 0),
        (RETURN, 0, 0, WHOLE),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the packet of Ethernet with which a host answers.
    fn answer(from: [u8; 4], to_port: u16, flags: u8, acknowledged: u32) -> Vec<u8> {
        let mut packet = vec![0; HEADERS.into()];
        let (ip, tcp) = (usize::from(ETHERNET), usize::from(ETHERNET + IP));
        packet[ip] = 0x45;
        packet[ip + 12..ip + 16].copy_from_slice(&from);
        packet[tcp + 2..tcp + 4].copy_from_slice(&to_port.to_be_bytes());
        packet[tcp + 8..tcp + 12].copy_from_slice(&acknowledged.to_be_bytes());
        packet[tcp + 13] = flags;
        packet
    }

    #[test]
    fn undivided_packet_is_answered_once() {
        let peer = Ipv4Addr::new(44, 128, 0, 2);
        let mut flow = Flow::new(40_000, 1000, 40);
        flow.per_packet = 16;
        let reset = |flow: &mut Flow, segment: u32| {
            let acknowledged = flow.sequence_of(segment).wrapping_add(1001);
            flow.record(&answer(peer.octets(), 40_000, 0x14, acknowledged), peer)
        };
        assert!(reset(&mut flow, 15));
        assert_eq!(flow.answered_count, 16);
        // The second packet arrives divided, and loses a segment.
        for segment in (16..32).filter(|segment| *segment != 20) {
            assert!(reset(&mut flow, segment));
        }
        assert_eq!(flow.answered_count, 31);
        assert!(!reset(&mut flow, 31));
        // The last packet has fewer segments.
        assert!(reset(&mut flow, 39));
        assert_eq!(flow.answered_count, 39);
    }

    #[test]
    fn each_segment_has_its_own_answer() {
        let peer = Ipv4Addr::new(44, 128, 0, 2);
        let mut flow = Flow::new(40_000, 1000, 20);
        flow.sequence = u32::MAX - 1500;
        let reset = |segment: u32| flow.sequence_of(segment).wrapping_add(1001);
        let (first, third) = (reset(0), reset(2));
        let listener = flow.sequence_of(19).wrapping_add(1);
        let answered = |flow: &mut Flow, from, port, flags, acknowledged| {
            flow.record(&answer(from, port, flags, acknowledged), peer)
        };
        let own = peer.octets();
        assert!(answered(&mut flow, own, 40_000, 0x14, first));
        assert!(answered(&mut flow, own, 40_000, 0x14, third), "the number wraps");
        assert!(answered(&mut flow, own, 40_000, 0x12, listener));
        assert!(!answered(&mut flow, own, 40_000, 0x14, first), "a repetition");
        assert!(!answered(&mut flow, own, 40_000, 0x14, first.wrapping_add(20 * 1000)));
        assert!(!answered(&mut flow, own, 40_000, 0x14, third.wrapping_add(1)));
        assert!(!answered(&mut flow, own, 40_001, 0x14, third.wrapping_add(1000)));
        assert!(!answered(&mut flow, [44, 128, 0, 3], 40_000, 0x14, third.wrapping_add(1000)));
        assert!(!flow.record(&[0x45; 20], peer));
        assert_eq!(flow.answered_count, 3);
    }

    #[test]
    fn large_packet_fits_into_the_window() {
        let mut flow = Flow::new(40_000, 1000, 100);
        flow.per_packet = SEGMENTS_PER_PACKET;
        assert_eq!(flow.next_packet(), Some((0, SEGMENTS_PER_PACKET)));
        (flow.sent, flow.pending) = (96, WINDOW - 4);
        assert_eq!(flow.next_packet(), Some((96, 4)));
        flow.pending = WINDOW;
        assert_eq!(flow.next_packet(), None);
    }
}
