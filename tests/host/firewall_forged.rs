//! VXLAN packets of a hostile agent: forged sources inside of the tunnel, frames that shift the
//! inner header, and packets during a replacement of the rules.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use overlay_linux::firewall::{Backend, Firewall, Options, Ruleset};
use overlay_types::addr::Mac;
use overlay_types::tunnel::{Desired, PORT_DEFAULT};
use rustix::net::sockopt::set_socket_recv_buffer_size_force;

use crate::hosts::{Host, Hosts, Underlay};
use crate::namespace::require_root_and_files;
use crate::traffic::{on_drop, sleep, time_factor};

const BACKENDS: [Backend; 2] = [Backend::Nftables, Backend::Iptables];

/// Port of the receiver in the container.
const PORT: u16 = 7100;
/// Types of Ethernet frames.
const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const VLAN: u16 = 0x8100;
const IPV6: u16 = 0x86dd;

/// Three hosts with programmed dataplanes: the first has rules, the third is hostile.
struct AttackedHosts {
    hosts: Hosts,
    firewall: Firewall,
}

/// A packet inside of the tunnel, to the container of the first host.
#[derive(Clone)]
struct Inner {
    source: IpAddr,
    /// Type of the frame, and bytes between the frame's header and the packet.
    frame: (u16, &'static [u8]),
    /// Options of the IPv4 header.
    options: &'static [u8],
    data: Vec<u8>,
}

impl Inner {
    fn from(source: &str) -> Self {
        let source: IpAddr = source.parse().expect("a valid address");
        let kind = if source.is_ipv4() { IPV4 } else { IPV6 };
        Self { source, frame: (kind, &[]), options: &[], data: b"forged".to_vec() }
    }

    /// Adds a VLAN tag with the identifier 0, which the kernel removes.
    fn with_vlan_tag(self) -> Self {
        Self { frame: (VLAN, &[0, 0, 0x08, 0x00]), ..self }
    }

    fn with_options(self) -> Self {
        Self { options: &[1, 1, 1, 0], ..self }
    }

    /// Adds data, so that the underlay needs fragments.
    fn with_data(self) -> Self {
        Self { data: vec![b'x'; 1300], ..self }
    }

    /// Returns the payload of the VXLAN packet.
    fn encode(&self, to: IpAddr, mac: Mac) -> Vec<u8> {
        let packet = match (self.source, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => self.ipv4(from, to),
            (IpAddr::V6(from), IpAddr::V6(to)) => self.ipv6(from, to),
            _ => panic!("addresses of two families"),
        };
        let (kind, before) = self.frame;
        vxlan(mac, kind, &[before, &packet].concat())
    }

    fn udp(&self) -> Vec<u8> {
        let length = u16::try_from(8 + self.data.len()).expect("a short datagram");
        let mut datagram = Vec::new();
        for number in [9, PORT, length, 0] {
            datagram.extend(number.to_be_bytes());
        }
        datagram.extend(&self.data);
        datagram
    }

    fn ipv4(&self, from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
        let udp = self.udp();
        let words = u8::try_from(5 + self.options.len() / 4).expect("few options");
        let length = u16::try_from(usize::from(words) * 4 + udp.len()).expect("a short packet");
        let [high, low] = length.to_be_bytes();
        let mut header = vec![0x40 | words, 0, high, low, 0, 7, 0, 0, 64, 17, 0, 0];
        header.extend(from.octets());
        header.extend(to.octets());
        header.extend(self.options);
        let sum = checksum(&header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        [header, udp].concat()
    }

    fn ipv6(&self, from: Ipv6Addr, to: Ipv6Addr) -> Vec<u8> {
        let mut udp = self.udp();
        let length = u16::try_from(udp.len()).expect("a short packet").to_be_bytes();
        let addresses = [from.octets(), to.octets()].concat();
        let pseudo = [&addresses[..], &[0, 0], &length, &[0, 0, 0, 17], &udp].concat();
        udp[6..8].copy_from_slice(&checksum(&pseudo).to_be_bytes());
        [&[0x60, 0, 0, 0, length[0], length[1], 17, 64], &addresses[..], &udp].concat()
    }
}

/// Returns the checksum of RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words =
        bytes.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("16 bits")
}

/// Returns a VXLAN header with the default identifier, and a frame to `mac`.
fn vxlan(mac: Mac, kind: u16, content: &[u8]) -> Vec<u8> {
    let header = [8, 0, 0, 0, 0, 4, 0, 0];
    let sender = [2, 0, 0, 0, 0, 3];
    [&header[..], &mac.octets(), &sender, &kind.to_be_bytes(), content].concat()
}

impl AttackedHosts {
    fn new(backend: Backend, underlay: Underlay) -> Self {
        require_root_and_files(&["/usr/sbin/nft", "/usr/sbin/iptables", "/usr/sbin/ipset"]);
        let hosts = Hosts::new(3, underlay);
        hosts.program();
        // Smaller packets need fragments.
        hosts.hosts[2].namespace.run("ip link set eth0 mtu 1280");
        // The kernel drops packets of networks without a route (rp_filter).
        hosts.hosts[0].namespace.run("ip route add 10.9.0.0/24 dev eth0");
        Self { hosts, firewall: Firewall::new(backend) }
    }

    fn target(&self) -> &Host {
        &self.hosts.hosts[0]
    }

    fn desired(&self) -> Desired {
        self.hosts.desired(self.target())
    }

    fn verify(&mut self, rules: &Ruleset) {
        let (target, firewall) = (&self.hosts.hosts[0], &mut self.firewall);
        let verified = target.namespace.inside(|| firewall.verify(rules));
        verified.unwrap_or_else(|error| panic!("{error}"));
    }

    fn container_address(&self, is_ipv4: bool) -> IpAddr {
        let target = self.target();
        if is_ipv4 { target.address().into() } else { target.address6().into() }
    }

    /// Returns a socket of the hostile agent that sends to the tunnel's port of the target.
    fn sender(&self) -> UdpSocket {
        let [from, to] = [3, 1].map(|number| self.hosts.underlay.address(number));
        self.hosts.hosts[2].namespace.inside(|| {
            let socket = UdpSocket::bind(SocketAddr::new(from, 0)).expect("a free port");
            socket.connect(SocketAddr::new(to, PORT_DEFAULT)).expect("a route");
            socket
        })
    }

    fn receiver(&self, address: IpAddr) -> UdpSocket {
        // A child process of another test may hold the former socket until it starts its program.
        let bind = || loop {
            match UdpSocket::bind(SocketAddr::new(address, PORT)) {
                Err(error) if error.kind() == ErrorKind::AddrInUse => {
                    sleep(Duration::from_millis(1));
                }
                bound => return bound.expect("a free port"),
            }
        };
        let socket = self.target().container.inside(bind);
        socket.set_read_timeout(Some(Duration::from_millis(400))).expect("a socket timeout");
        socket
    }

    fn payload(&self, inner: &Inner) -> Vec<u8> {
        let mac = self.desired().vxlan_devices[0].mac;
        inner.encode(self.container_address(inner.source.is_ipv4()), mac)
    }

    /// Returns whether the container receives the packet.
    fn arrives(&self, inner: &Inner) -> bool {
        let receiver = self.receiver(self.container_address(inner.source.is_ipv4()));
        self.sender().send(&self.payload(inner)).expect("a route");
        receiver.recv(&mut [0; 2000]).is_ok_and(|count| count == inner.data.len())
    }

    /// Returns whether the target learns a neighbor from an ARP request through the tunnel.
    fn learns_neighbor(&self) -> bool {
        let target = self.desired();
        let mac = target.vxlan_devices[0].mac;
        let (from, to) = ([44, 128, 0, 99], [44, 128, 0, 1]);
        let request = [&[0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 3][..], &from, &[0; 6], &to];
        self.sender().send(&vxlan(mac, ARP, &request.concat())).expect("a route");
        sleep(Duration::from_millis(200));
        let neighbors = self.target().namespace.run("ip neigh show dev vtep1024");
        self.target().namespace.run("ip neigh flush dev vtep1024 nud stale");
        neighbors.contains("44.128.0.99")
    }
}

/// Returns packets of the third agent, each with its name and whether it arrives with nftables and
/// with iptables.
fn packets() -> Vec<(&'static str, Inner, bool, bool)> {
    let own = || Inner::from("192.168.3.2");
    let other = || Inner::from("192.168.2.2");
    vec![
        ("own subnet", own(), true, true),
        ("own VTEP", Inner::from("44.128.0.3"), true, true),
        ("own subnet in fragments", own().with_data(), true, true),
        ("own subnet, IPv6", Inner::from("fd01:b:0:0:3::2"), true, true),
        ("subnet of another agent", other(), false, true),
        ("VTEP of another agent", Inner::from("44.128.0.2"), false, true),
        ("subnet of another agent, IPv6", Inner::from("fd01:b:0:0:2::2"), false, true),
        ("subnet of another agent in fragments", other().with_data(), false, true),
        ("subnet of another agent with IPv4 options", other().with_options(), false, true),
        ("subnet of another agent with a VLAN tag", other().with_vlan_tag(), false, true),
        ("own subnet with a VLAN tag", own().with_vlan_tag(), false, true),
        ("unallocated VTEP", Inner::from("44.128.0.77"), false, false),
        (
            "unallocated VTEP with a VLAN tag",
            Inner::from("44.128.0.77").with_vlan_tag(),
            false,
            false,
        ),
        ("external", Inner::from("10.9.0.9"), false, false),
        ("external, IPv6", Inner::from("2001:db8::2"), false, false),
    ]
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn forged_packets_in_tunnel_are_dropped() {
    for (backend, underlay) in [
        (Backend::Nftables, Underlay::V4),
        (Backend::Nftables, Underlay::V6),
        (Backend::Iptables, Underlay::V4),
    ] {
        let mut setup = AttackedHosts::new(backend, underlay);
        for (name, packet, ..) in packets() {
            assert!(setup.arrives(&packet), "without rules: {name}");
        }
        assert!(setup.learns_neighbor(), "without rules");
        let rules = Ruleset::new(&setup.desired(), &Options::default());
        setup.verify(&rules);
        for (name, packet, nft, iptables) in packets() {
            let expected = if backend == Backend::Nftables { nft } else { iptables };
            assert_eq!(setup.arrives(&packet), expected, "{backend:?} {underlay:?} {name}");
        }
        // The chains of iptables do not see ARP.
        assert_eq!(setup.learns_neighbor(), backend == Backend::Iptables);
    }
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn gateway_sends_packets_of_other_networks() {
    for backend in BACKENDS {
        let mut setup = AttackedHosts::new(backend, Underlay::V4);
        let mut desired = setup.desired();
        let peers = desired.peers.as_mut().expect("peers");
        peers.get_mut(&Underlay::V4.address(3)).expect("the third host").subnets.clear();
        setup.verify(&Ruleset::new(&desired, &Options::default()));
        assert!(setup.arrives(&Inner::from("10.9.0.9")), "{backend:?}");
        for source in ["192.168.77.2", "44.128.0.77"] {
            assert!(!setup.arrives(&Inner::from(source)), "{backend:?} {source}");
        }
    }
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn replacement_of_rules_leaks_no_packet() {
    // The receive buffer holds the packets of a few seconds.
    let factor = time_factor().min(5) as usize;
    for (backend, count) in [(Backend::Nftables, 50), (Backend::Iptables, 15)] {
        let count = count / factor;
        let mut setup = AttackedHosts::new(backend, Underlay::V4);
        let desired = setup.desired();
        let rules = [true, false].map(|masquerade| {
            Ruleset::new(&desired, &Options { masquerade, ..Options::default() })
        });
        setup.verify(&rules[0]);
        let forged = if backend == Backend::Nftables { "192.168.2.2" } else { "44.128.0.77" };
        let forged = setup.payload(&Inner::from(forged));
        let own = Inner { data: b"own".to_vec(), ..Inner::from("192.168.3.2") };
        let own = setup.payload(&own);
        let (sender, receiver) = (setup.sender(), setup.receiver(setup.container_address(true)));
        set_socket_recv_buffer_size_force(&receiver, 16 << 20).expect("permission");
        let is_over = AtomicBool::new(false);
        let (sent, received) = std::thread::scope(|scope| {
            let send = || {
                let mut sent = 0_u32;
                while !is_over.load(Ordering::Relaxed) {
                    sent += u32::from(sender.send(&own).is_ok());
                    sender.send(&forged).expect("a route");
                    sleep(Duration::from_micros(100));
                }
                sent
            };
            let spawn = |send| std::thread::Builder::new().spawn_scoped(scope, send);
            let sending = spawn(send).expect("a thread");
            let over = on_drop(|| is_over.store(true, Ordering::Relaxed));
            for number in 0..count {
                setup.verify(&rules[(number + 1) % 2]);
            }
            drop(over);
            let sent = sending.join().expect("thread does not panic");
            let mut received = 0_u32;
            let mut buffer = [0; 16];
            while let Ok(length) = receiver.recv(&mut buffer) {
                assert_eq!(&buffer[..length], b"own", "{backend:?}");
                received += 1;
            }
            (sent, received)
        });
        println!("{backend:?}: {received} of {sent} packets arrived");
        assert!(sent > 1000 && received + sent / 100 >= sent, "{backend:?}: {received} of {sent}");
    }
}
