//! Packets of hostile senders, built byte by byte: the kernel would not send them itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};

use rustix::net::{AddressFamily, SendFlags, SocketType, ipproto, sendto, socket};

pub(super) const VXLAN_PORT: u16 = 64_000;
const VNI: u32 = 1024;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const VLAN: u16 = 0x8100;
/// Flag "more fragments" of an IPv4 header.
const MORE_FRAGMENTS: u16 = 0x2000;

/// The marks of a probe, by which the receiver recognizes its own datagrams.
#[derive(Clone, Copy)]
pub(super) struct Mark {
    /// The content of the datagram.
    pub(super) tag: [u8; 8],
    /// The destination port.
    pub(super) port: u16,
    /// The source port, which separates the probes in the connection tracking.
    pub(super) source_port: u16,
}

/// The form of a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    Plain,
    /// The inner frame has a VLAN tag with ID 0, which the kernel strips.
    VlanTag,
    /// The outer packet is sent in two fragments.
    Fragments,
    /// The inner IPv4 header has options.
    Options,
}

/// A VXLAN packet with a datagram for a container.
#[derive(Clone, Copy)]
pub(super) struct VxlanPacket {
    /// The number of the agent whose VTEP gets the packet.
    pub(super) host: u8,
    pub(super) inner_source: IpAddr,
    pub(super) inner_target: IpAddr,
    pub(super) shape: Shape,
}

impl VxlanPacket {
    /// Creates a packet to the VTEP of an agent. The addresses are the inner source and target.
    pub(super) fn new(host: u8, (source, target): (&str, &str), shape: Shape) -> Self {
        let address = |text: &str| text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
        Self { host, inner_source: address(source), inner_target: address(target), shape }
    }

    /// Sends the packet with the underlay address `outer_source` from a raw socket.
    pub(super) fn send_raw(&self, outer_source: Ipv4Addr, mark: &Mark) {
        let to = Ipv4Addr::new(10, 0, 0, self.host);
        let payload = udp((mark.source_port, VXLAN_PORT), &self.payload(mark));
        if self.shape != Shape::Fragments {
            return send(&ipv4(outer_source, to, &payload, &[], 0), to.into());
        }
        // The offset of a fragment counts 8 bytes.
        let (first, second) = payload.split_at(24);
        send(&ipv4(outer_source, to, first, &[], MORE_FRAGMENTS), to.into());
        send(&ipv4(outer_source, to, second, &[], 24 / 8), to.into());
    }

    /// Sends the packet as a process without privileges does: by an ordinary UDP socket.
    pub(super) fn send_by_socket(&self, to: Ipv4Addr, mark: &Mark) {
        send_datagram((to, VXLAN_PORT).into(), &self.payload(mark));
    }

    /// Returns the VXLAN header with the inner frame.
    pub(super) fn payload(&self, mark: &Mark) -> Vec<u8> {
        let datagram = udp((mark.source_port, mark.port), &mark.tag);
        let (ethertype, packet) = match (self.inner_source, self.inner_target) {
            (IpAddr::V4(source), IpAddr::V4(target)) => {
                let no_operation = [1, 1, 1, 0];
                let options = if self.shape == Shape::Options { &no_operation[..] } else { &[] };
                (IPV4, ipv4(source, target, &datagram, options, 0))
            }
            (IpAddr::V6(source), IpAddr::V6(target)) => (IPV6, ipv6(source, target, datagram)),
            _ => panic!("inner addresses of two families"),
        };
        let mac = |host| [0x70, 0xb3, 0xd5, 0x80, 0, host];
        let mut frame = [mac(self.host), mac(99)].concat();
        if self.shape == Shape::VlanTag {
            frame.extend([VLAN.to_be_bytes(), [0, 0]].concat());
        }
        frame.extend(ethertype.to_be_bytes());
        frame.extend(packet);
        let header = [0x0800_0000_u32.to_be_bytes(), (VNI << 8).to_be_bytes()].concat();
        [header, frame].concat()
    }
}

/// Sends a datagram with a forged source address.
pub(super) fn send_forged(source: IpAddr, target: IpAddr, mark: &Mark) {
    let datagram = udp((mark.source_port, mark.port), &mark.tag);
    let packet = match (source, target) {
        (IpAddr::V4(source), IpAddr::V4(target)) => ipv4(source, target, &datagram, &[], 0),
        (IpAddr::V6(source), IpAddr::V6(target)) => ipv6(source, target, datagram),
        _ => panic!("addresses of two families"),
    };
    send(&packet, target);
}

/// Sends an ICMP error that a packet needs fragments of 552 bytes. `about` are the sender and the
/// receiver of the packet.
pub(super) fn send_fragmentation_needed(
    source: Ipv4Addr,
    target: Ipv4Addr,
    ((sender, sender_port), (receiver, receiver_port)): ((Ipv4Addr, u16), (Ipv4Addr, u16)),
) {
    // The kernel checks the identifier of an error about a tunnel.
    let content = [0x0800_0000_u32.to_be_bytes(), (VNI << 8).to_be_bytes()].concat();
    let about = ipv4(sender, receiver, &udp((sender_port, receiver_port), &content), &[], 0);
    let [high, low] = 552_u16.to_be_bytes();
    let mut error = [&[3, 4, 0, 0, 0, 0, high, low], &about[..]].concat();
    let sum = checksum(&error);
    error[2..4].copy_from_slice(&sum);
    send(&ipv4_of(ICMP, source, target, &error, &[], 0), target.into());
}

/// Sends a router advertisement with a prefix to all hosts behind a device.
pub(super) fn send_router_advertisement(device: u32) {
    let (source, all): (Ipv6Addr, Ipv6Addr) =
        (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x66), Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1));
    let prefix: Ipv6Addr = "2001:db8:666::".parse().expect("a valid address");
    let lifetime = 3600_u32.to_be_bytes();
    let mut advertisement = vec![134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0, 3, 4, 64, 0xc0];
    advertisement.extend([lifetime, lifetime, [0; 4]].concat());
    advertisement.extend(prefix.octets());
    let packet = ipv6_of((ICMPV6, 255), source, all, advertisement, 2);
    let socket = socket(AddressFamily::INET6, SocketType::RAW, Some(ipproto::RAW));
    let to = SocketAddrV6::new(all, 0, 0, device);
    let _ = sendto(socket.expect("a raw socket"), &packet, SendFlags::empty(), &to);
}

/// Sends a datagram from the address that the kernel chooses.
pub(super) fn send_datagram(to: SocketAddr, body: &[u8]) {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    // The kernel refuses the send if it has no route. The receiver then gets nothing.
    let _ = UdpSocket::bind(any).expect("a free port").send_to(body, to);
}

fn send(packet: &[u8], to: IpAddr) {
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket(family, SocketType::RAW, Some(ipproto::RAW)).expect("a raw socket");
    let _ = sendto(&socket, packet, SendFlags::empty(), &SocketAddr::new(to, 0));
}

fn bytes_of_length(length: usize) -> [u8; 2] {
    u16::try_from(length).expect("a small packet").to_be_bytes()
}

/// Returns a datagram without a checksum, which IPv4 permits.
fn udp((source, target): (u16, u16), body: &[u8]) -> Vec<u8> {
    let ports = [source.to_be_bytes(), target.to_be_bytes()].concat();
    [&ports[..], &bytes_of_length(8 + body.len()), &[0, 0], body].concat()
}

fn ipv4(source: Ipv4Addr, target: Ipv4Addr, body: &[u8], options: &[u8], part: u16) -> Vec<u8> {
    ipv4_of(UDP, source, target, body, options, part)
}

fn ipv4_of(
    protocol: u8,
    source: Ipv4Addr,
    target: Ipv4Addr,
    body: &[u8],
    options: &[u8],
    part: u16,
) -> Vec<u8> {
    let header = 20 + options.len();
    let words = u8::try_from(header / 4).expect("a short header");
    let mut packet = vec![0x40 | words, 0];
    packet.extend(bytes_of_length(header + body.len()));
    // All fragments of a packet need the same ID. Probes use different source ports.
    let id = if part == 0 { 0x1234_u16 } else { 0x4321 };
    packet.extend([id.to_be_bytes(), part.to_be_bytes()].concat());
    packet.extend([64, protocol, 0, 0]);
    packet.extend([source.octets(), target.octets()].concat());
    packet.extend(options);
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum);
    packet.extend(body);
    packet
}

/// Returns an IPv6 packet with the datagram, and adds the checksum, which IPv6 requires.
fn ipv6(source: Ipv6Addr, target: Ipv6Addr, datagram: Vec<u8>) -> Vec<u8> {
    ipv6_of((UDP, 64), source, target, datagram, 6)
}

/// Returns an IPv6 packet with this protocol, hop limit, and place of the checksum.
fn ipv6_of(
    (protocol, hops): (u8, u8),
    source: Ipv6Addr,
    target: Ipv6Addr,
    mut body: Vec<u8>,
    sum: usize,
) -> Vec<u8> {
    let addresses = [source.octets(), target.octets()].concat();
    let length = bytes_of_length(body.len());
    let pseudo = [&addresses[..], &[0, 0], &length, &[0, 0, 0, protocol], &body].concat();
    body[sum..sum + 2].copy_from_slice(&checksum(&pseudo));
    [&[0x60, 0, 0, 0], &length[..], &[protocol, hops], &addresses, &body].concat()
}

/// Returns the Internet checksum.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let word =
        |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or_default());
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    u16::try_from(0xffff - sum).expect("16 bits").to_be_bytes()
}
