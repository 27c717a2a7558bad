//! Rows of attacks that use what the rules have to accept: established flows, ICMP errors, and this
//! host as a router.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::time::Duration;

use super::lab::{Lab, STRANGER};
use super::packets::{
    Mark, Shape, VXLAN_PORT, VxlanPacket, send_forged, send_fragmentation_needed,
    send_router_advertisement,
};
use super::probe::Verdict::Drop;
use super::probe::{Action, Row};
use crate::namespace::{Namespace, succeed};
use crate::traffic::sleep;

/// UDP port of host 1 that is published for container a1.
const PUBLISHED: u16 = 9999;
/// Address of host 2 that the stranger reaches through host 1.
const BEHIND_HOST_1: &str = "10.66.0.2";
const DELAY: Duration = Duration::from_millis(30);

fn ipv4(text: &str) -> Ipv4Addr {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// Publishes a port, adds a route through host 1, and lets a bridge accept router advertisements.
pub(super) fn prepare(lab: &Lab) {
    let [host1, host2] = [1, 2].map(|number| lab.host(number));
    let publish = format!(
        "add table ip published
         add chain ip published pre {{ type nat hook prerouting priority -100 ; }}
         add rule ip published pre udp dport {PUBLISHED} dnat to 192.168.0.2"
    );
    publish.lines().for_each(|line| drop(succeed(host1.command("nft").arg(line.trim()))));
    host2.run(&format!("ip addr replace {BEHIND_HOST_1}/32 dev lo"));
    host1.run(&format!("ip route replace {BEHIND_HOST_1} via 10.0.0.2"));
    lab.stranger().run(&format!("ip route replace {BEHIND_HOST_1} via 10.0.0.1"));
    host1.run("sysctl -qw net.ipv6.conf.d-vxlan-1.accept_ra=2");
}

/// Container a1 answers a client of its published port. The client has the port of the tunnels, and
/// the address of an agent: the answer is a VXLAN packet with the address of host 1.
fn vxlan_in_established_flow(lab: &Lab) -> Action<'_> {
    let (host2, client) = (lab.host(2), ipv4("10.0.0.2"));
    let packet = VxlanPacket::new(2, ("192.168.128.2", "192.168.129.2"), Shape::Plain);
    let send = move |mark: &Mark| {
        let ports = Mark { port: PUBLISHED, source_port: VXLAN_PORT, ..*mark };
        host2.inside(|| send_forged(client.into(), ip("10.0.0.1"), &ports));
        sleep(DELAY);
        let socket = UdpSocket::bind(("0.0.0.0", PUBLISHED)).expect("a free port");
        let _ = socket.send_to(&packet.payload(mark), (client, VXLAN_PORT));
    };
    let (from, to) = (lab.container("a1"), lab.container("b2"));
    Action::Datagram { from, to, send: Box::new(send) }
}

/// The stranger sends a datagram of a flow between a1 and a2.
fn injection(lab: &Lab) -> Action<'_> {
    let (a1, addresses) = (lab.container("a1"), [ip("192.168.0.2"), ip("192.168.1.2")]);
    let send = move |mark: &Mark| {
        let back = Mark { port: mark.source_port, source_port: mark.port, ..*mark };
        a1.inside(|| send_forged(addresses[0], addresses[1], &back));
        sleep(DELAY);
        send_forged(addresses[1], addresses[0], mark);
    };
    Action::Datagram { from: lab.stranger(), to: a1, send: Box::new(send) }
}

fn forged<'a>(from: &'a Namespace, to: &'a Namespace, addresses: (&str, &str)) -> Action<'a> {
    let (source, target) = (ip(addresses.0), ip(addresses.1));
    Action::Datagram { from, to, send: Box::new(move |mark| send_forged(source, target, mark)) }
}

/// Returns whether the path MTU to an address is the one of the forged errors.
fn has_low_mtu(namespace: &Namespace, to: &str) -> bool {
    namespace.run(&format!("ip route get {to}")).contains("mtu 552")
}

/// Container a1 sends an ICMP error about the tunnel from `host` to `peer`, to an address of the
/// host.
fn error_about_tunnel<'a>(
    lab: &'a Lab,
    (host, number): (&'static str, u8),
    to: &'static str,
    peer: &'static str,
) -> Action<'a> {
    let (from, victim) = (lab.container("a1"), lab.host(number));
    let act = move || {
        let about = ((ipv4(host), 45_678), (ipv4(peer), VXLAN_PORT));
        from.inside(|| send_fragmentation_needed(ipv4("192.168.0.2"), ipv4(to), about));
    };
    Action::Change { act: Box::new(act), has_effect: Box::new(move || has_low_mtu(victim, peer)) }
}

/// The stranger sends an ICMP error about a flow from a1 to a2.
fn error_about_flow(lab: &Lab) -> Action<'_> {
    let (a1, stranger, addresses) =
        (lab.container("a1"), lab.stranger(), [ipv4("192.168.0.2"), ipv4("192.168.1.2")]);
    let act = move || {
        let socket = a1.inside(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("a free port");
            socket.connect((addresses[1], 53)).expect("a route");
            let _ = socket.send(b"query");
            socket
        });
        sleep(DELAY);
        let port = socket.local_addr().expect("a bound socket").port();
        let about = ((addresses[0], port), (addresses[1], 53));
        stranger.inside(|| send_fragmentation_needed(ipv4(STRANGER), addresses[0], about));
        sleep(DELAY);
    };
    let has_effect = move || has_low_mtu(a1, "192.168.1.2");
    Action::Change { act: Box::new(act), has_effect: Box::new(has_effect) }
}

fn router_advertisement(lab: &Lab) -> Action<'_> {
    let (from, host) = (lab.container("d1"), lab.host(1));
    let link = from.run("ip -o link show eth0");
    let (index, _) = link.split_once(':').expect("an index");
    let index = index.trim().parse().expect("a number");
    let act = move || from.inside(|| send_router_advertisement(index));
    let has_effect = || host.run("ip -6 route show").contains("2001:db8:666:");
    Action::Change { act: Box::new(act), has_effect: Box::new(has_effect) }
}

/// Returns the rows. Without the rules each attack passes.
pub(super) fn rows(lab: &Lab) -> Vec<Row<'_>> {
    let (h1, known, stranger) = (lab.host(1), lab.host(3), lab.stranger());
    let [a1, d1, d2, x1] = ["a1", "d1", "d2", "x1"].map(|name| lab.container(name));
    let row = |source: &str, target: &str, action| Row::new(source, target, Drop, action);
    let through_host_1 = |target: &str, to| {
        let packet = VxlanPacket::new(1, ("192.168.2.2", target), Shape::Plain);
        Action::vxlan((known, ipv4("10.0.0.3")), to, packet)
    };
    let (gateway6, host6) = ("fd01:b::8000:0:1", "fd00:10::1");
    let (of_a2, of_a2_6) = ("192.168.1.2", "fd01:b:0:0:1::2");
    vec![
        row(
            "container a1, established flow",
            "VXLAN port of host 2, inner to b2",
            vxlan_in_established_flow(lab),
        ),
        row("known agent through host 1", "host outside", through_host_1(STRANGER, stranger)),
        row("known agent through host 1", "container x1", through_host_1("172.17.0.200", x1)),
        row("stranger in a flow with a2", "a1", injection(lab)),
        row(
            "stranger with the address of a1",
            "host 2 through host 1",
            forged(stranger, lab.host(2), ("192.168.0.2", BEHIND_HOST_1)),
        ),
        row("stranger with the address of a2", "host 1", forged(stranger, h1, (of_a2, "10.0.0.1"))),
        row(
            "stranger with a VTEP address",
            "host 1",
            forged(stranger, h1, ("44.128.0.2", "10.0.0.1")),
        ),
        row(
            "stranger with an address of a2, IPv6",
            "host 1",
            forged(stranger, h1, (of_a2_6, host6)),
        ),
        row("stranger, ICMP error about a2", "a1", error_about_flow(lab)),
        row(
            "container a1, ICMP error about the tunnel",
            "own host",
            error_about_tunnel(lab, ("10.0.0.1", 1), "10.0.0.1", "10.0.0.2"),
        ),
        row(
            "container a1, ICMP error about the tunnel",
            "host 2 by its gateway address",
            error_about_tunnel(lab, ("10.0.0.2", 2), "192.168.1.1", "10.0.0.3"),
        ),
        row(
            "container a1, ICMP error about the tunnel",
            "host 3 by its address",
            error_about_tunnel(lab, ("10.0.0.3", 3), "10.0.0.3", STRANGER),
        ),
        row(
            "container d1 forges its gateway, IPv6",
            "d2",
            forged(d1, d2, (gateway6, "fd01:b:0:0:1:8000::c8")),
        ),
        row("container d1 forges its gateway, IPv6", "own host", forged(d1, h1, (gateway6, host6))),
        row("container d1, router advertisement", "own host", router_advertisement(lab)),
        row(
            "container a1, link-local source",
            "own host",
            forged(a1, h1, ("169.254.7.7", "10.0.0.1")),
        ),
    ]
}
