//! The matrix of sources and targets, for every backend of the rules. At last the same rows run
//! without the rules, and each attack has to pass: so every drop before was a drop of the rules.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use rustix::process::Signal;
use serde_json::json;

use super::attacks;
use super::lab::{Lab, Rules, STRANGER, masquerade_docker0};
use super::packets::{Shape, VxlanPacket, send_forged};
use super::probe::Verdict::{Drop, Pass};
use super::probe::{Action, Row, Verdict, differences};
use crate::namespace::{Namespace, succeed};

/// The address of the master, which runs on host 2.
const MASTER: &str = "10.0.0.100:5050";
/// A port without a service: the host answers with a reset.
const SERVICE: u16 = 8080;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn ipv4(text: &str) -> Ipv4Addr {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn socket(text: &str) -> SocketAddr {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn connect<'a>(from: &'a Namespace, to: &str) -> Action<'a> {
    Action::Connect { from, source: None, to: socket(to) }
}

/// A container sends a VXLAN packet by UDP to `underlay`. Masquerade gives the packet the address
/// of the container's host, which is a known agent.
fn vxlan_of_container<'a>(
    (from, to): (&'a Namespace, &'a Namespace),
    (host, underlay): (u8, &str),
    inner: (&str, &str),
) -> Action<'a> {
    let packet = VxlanPacket::new(host, inner, Shape::Plain);
    let underlay = ipv4(underlay);
    Action::Datagram { from, to, send: Box::new(move |mark| packet.send_by_socket(underlay, mark)) }
}

fn forged<'a>(
    (from, to): (&'a Namespace, &'a Namespace),
    (source, target): (&str, &str),
) -> Action<'a> {
    let (source, target) = (ip(source), ip(target));
    Action::Datagram { from, to, send: Box::new(move |mark| send_forged(source, target, mark)) }
}

/// Rows of the containers of host 1 to the control ports, the VXLAN port and services.
fn container_rows(lab: &Lab) -> Vec<Row<'_>> {
    let kinds = [
        ("a1", "container of overlay a, Mesos half", "192.168.0.1"),
        ("d1", "container of overlay a, Docker half", "192.168.0.129"),
        ("b1", "container of overlay b", "192.168.128.1"),
        ("x1", "container of docker0", "172.17.0.1"),
    ];
    let b = [lab.container("b1"), lab.container("b2")];
    kinds
        .into_iter()
        .flat_map(|(name, source, gateway)| {
            let from = lab.container(name);
            let row = |target: &str, expected, action| Row::new(source, target, expected, action);
            let to_b2 = ("192.168.128.2", "192.168.129.2");
            let to_b1 = ("192.168.129.2", "192.168.128.2");
            [
                row("own agent port, underlay address", Drop, connect(from, "10.0.0.1:5051")),
                row(
                    "own agent port, gateway address",
                    Drop,
                    connect(from, &format!("{gateway}:5051")),
                ),
                row("agent port of host 2", Drop, connect(from, "10.0.0.2:5051")),
                row("program master", Drop, connect(from, MASTER)),
                row("Mesos master", Pass, connect(from, &format!("{STRANGER}:5050"))),
                row("service of own host", Pass, connect(from, &format!("10.0.0.1:{SERVICE}"))),
                row("service of host 2", Pass, connect(from, &format!("10.0.0.2:{SERVICE}"))),
                row(
                    "VXLAN port of host 2, inner to b2",
                    Drop,
                    vxlan_of_container((from, b[1]), (2, "10.0.0.2"), to_b2),
                ),
                row(
                    "VXLAN port of own host, inner to b1",
                    Drop,
                    vxlan_of_container((from, b[0]), (1, "10.0.0.1"), to_b1),
                ),
            ]
        })
        .collect()
}

/// Rows of containers of the master's host, and of targets at VTEP addresses.
fn master_and_tunnel_rows(lab: &Lab) -> Vec<Row<'_>> {
    let mut rows = Vec::new();
    for (name, source, gateway) in [
        ("a2", "container a on the master's host", "192.168.1.1"),
        ("x2", "container of docker0, master's host", "172.17.0.1"),
    ] {
        let from = lab.container(name);
        let row = |target: &str, to: &str| Row::new(source, target, Drop, connect(from, to));
        rows.push(row("program master", MASTER));
        rows.push(row("program master, agent's address", "10.0.0.2:5050"));
        rows.push(row("program master, gateway address", &format!("{gateway}:5050")));
        rows.push(row("agent port of host 1", "10.0.0.1:5051"));
    }
    let (a1, a2) = (lab.container("a1"), lab.container("a2"));
    let tunnel = |target: &str, expected, from, to| {
        Row::new("container a of another host", target, expected, connect(from, to))
    };
    rows.push(tunnel("agent port by VTEP address", Drop, a2, "44.128.0.1:5051"));
    rows.push(tunnel("program master by VTEP address", Drop, a1, "44.128.0.2:5050"));
    rows.push(tunnel("service by VTEP address", Pass, a1, "44.128.0.2:8080"));
    let action = vxlan_of_container(
        (a1, lab.container("b2")),
        (2, "44.128.0.2"),
        ("192.168.128.2", "192.168.129.2"),
    );
    rows.push(Row::new("container a of another host", "VXLAN port by VTEP address", Drop, action));
    rows
}

/// Rows of containers that forge their source address.
fn forged_source_rows(lab: &Lab) -> Vec<Row<'_>> {
    let mut rows = Vec::new();
    for (name, forged_source) in [
        ("a1", "192.168.1.200"),
        ("a1", "192.168.0.200"),
        ("a1", "10.0.0.3"),
        ("a1", "8.8.8.8"),
        ("d1", "192.168.0.2"),
        ("b1", "192.168.0.2"),
    ] {
        let from = lab.container(name);
        let source = format!("container {name} forges {forged_source}");
        let targets = [
            ("container a2", lab.container("a2"), "192.168.1.2"),
            ("own host", lab.host(1), "10.0.0.1"),
        ];
        for (target, to, address) in targets {
            let action = forged((from, to), (forged_source, address));
            rows.push(Row::new(&source, target, Drop, action));
        }
    }
    let row = |source: &str, expected, from, to, addresses| {
        let target = format!("container {to}");
        let action = forged((lab.container(from), lab.container(to)), addresses);
        Row::new(source, target, expected, action)
    };
    let to_d2 = "fd01:b:0:0:1:8000::c8";
    rows.push(row(
        "container d1 forges IPv6 of host 3",
        Drop,
        "d1",
        "d2",
        ("fd01:b:0:0:2:8000::c8", to_d2),
    ));
    rows.push(row(
        "container d1 by raw socket, IPv6",
        Pass,
        "d1",
        "d2",
        ("fd01:b::8000:0:c8", to_d2),
    ));
    rows.push(row("container a1 by raw socket", Pass, "a1", "a2", ("192.168.0.2", "192.168.1.2")));
    rows
}

/// Rows to containers, without forged packets.
fn reachability_rows(lab: &Lab) -> Vec<Row<'_>> {
    let container = |name| lab.container(name);
    let (a1, d1, b1, x1) = (container("a1"), container("d1"), container("b1"), container("x1"));
    let (h1, h2, stranger) = (lab.host(1), lab.host(2), lab.stranger());
    let row = |source: &str, target: &str, expected, from, to: &str| {
        Row::new(source, target, expected, connect(from, to))
    };
    let source = Some(ip("10.0.0.1"));
    let by_underlay = Action::Connect { from: h1, source, to: socket("192.168.1.2:7000") };
    vec![
        row("container a1", "a2", Pass, a1, "192.168.1.2:7000"),
        row("container a1", "d2", Pass, a1, "192.168.1.200:7000"),
        row("container a1", "d1, same host", Pass, a1, "192.168.0.200:7000"),
        row("container d1", "a1, same host", Pass, d1, "192.168.0.2:7000"),
        row("container d1, IPv6", "d2", Pass, d1, "[fd01:b:0:0:1:8000::c8]:7000"),
        row("container b1", "b2", Pass, b1, "192.168.129.2:7000"),
        row("container a1", "b2 (isolated)", Drop, a1, "192.168.129.2:7000").about_isolation(),
        row("container a1", "b1, same host (isolated)", Drop, a1, "192.168.128.2:7000")
            .about_isolation(),
        row("container d1", "b1, same host (isolated)", Drop, d1, "192.168.128.2:7000")
            .about_isolation(),
        row("container b1", "d2 (isolated)", Drop, b1, "192.168.1.200:7000").about_isolation(),
        row("container of docker0", "a1, same host", Drop, x1, "192.168.0.2:7000"),
        row("container of docker0", "d1, same host", Drop, x1, "192.168.0.200:7000"),
        row("container of docker0", "a2", Drop, x1, "192.168.1.2:7000"),
        row("host 1", "own container a1", Pass, h1, "192.168.0.2:7000"),
        row("host 1", "container b2", Pass, h1, "192.168.129.2:7000"),
        row("host 2", "container d1", Pass, h2, "192.168.0.200:7000"),
        Row::new("host 1 by underlay address", "container a2", Pass, by_underlay),
        row("host 1", "agent port of host 2", Pass, h1, "10.0.0.2:5051"),
        row("host 1", "program master", Pass, h1, MASTER),
        row("stranger", "agent port of host 1", Pass, stranger, "10.0.0.1:5051"),
        row("stranger by route", "a1", Drop, stranger, "192.168.0.2:7000"),
        row("stranger by route", "d1", Drop, stranger, "192.168.0.200:7000"),
        row("stranger by route", "a2 through host 1", Drop, stranger, "192.168.1.2:7000"),
        row("stranger by route, IPv6", "d1", Drop, stranger, "[fd01:b::8000:0:c8]:7000"),
    ]
}

/// Rows of VXLAN packets from the stranger and from a known agent with forged inner sources.
/// `of_others` is the verdict on inner sources of other agents.
fn vxlan_rows(lab: &Lab, of_others: Verdict) -> Vec<Row<'_>> {
    let plain = |source, target, from_own| (source, target, from_own, Shape::Plain);
    let (a1, b1, d1) = ("192.168.0.2", "192.168.128.2", "fd01:b::8000:0:c8");
    let packets = [
        (plain("192.168.2.2", a1, "own subnet"), Pass),
        (plain("44.128.0.3", a1, "own VTEP"), Pass),
        (plain("10.0.0.3", a1, "own underlay"), Pass),
        (plain("192.168.1.2", a1, "other agent's subnet"), of_others),
        (plain("44.128.0.2", a1, "other agent's VTEP"), of_others),
        (plain("10.0.0.2", a1, "other agent's underlay"), of_others),
        (plain("192.168.77.2", a1, "unallocated"), Drop),
        (plain("192.168.0.200", a1, "target's own subnet"), Drop),
        (plain(STRANGER, a1, "external"), Drop),
        (plain("8.8.8.8", a1, "external"), Drop),
        (plain("192.168.129.2", b1, "other agent's subnet b"), of_others),
        (plain("192.168.130.2", b1, "own subnet b"), Pass),
        (plain("fd01:b:0:0:2::2", d1, "own subnet"), Pass),
        (plain("fd01:b:0:0:1::2", d1, "other agent's subnet"), of_others),
        (plain("2001:db8::2", d1, "external"), Drop),
        (("192.168.1.2", a1, "forged, VLAN tag", Shape::VlanTag), of_others),
        // The offsets of the inner header are shifted, so nftables drops all frames with a tag.
        (("192.168.2.2", a1, "own, VLAN tag", Shape::VlanTag), of_others),
        (("192.168.2.2", a1, "own, fragments", Shape::Fragments), Pass),
        (("192.168.1.2", a1, "forged, fragments", Shape::Fragments), of_others),
        (("192.168.2.2", a1, "own, IPv4 options", Shape::Options), Pass),
        (("192.168.1.2", a1, "forged, IPv4 options", Shape::Options), of_others),
    ];
    let (known, stranger) = (lab.host(3), lab.stranger());
    let send =
        |from, outer, to, packet| Action::vxlan((from, ipv4(outer)), lab.container(to), packet);
    let name_of = |target| {
        if target == a1 {
            "a1"
        } else if target == b1 {
            "b1"
        } else {
            "d1"
        }
    };
    let mut rows = Vec::new();
    for ((source, target, what, shape), expected) in packets {
        let packet = VxlanPacket::new(1, (source, target), shape);
        let name = name_of(target);
        let action = send(known, "10.0.0.3", name, packet);
        let source = format!("known agent, inner source {source}");
        rows.push(Row::new(source, format!("{name}: {what}"), expected, action));
    }
    let packet = VxlanPacket::new(1, ("192.168.2.2", b1), Shape::Plain);
    let action = send(known, "10.0.0.3", "b1", packet);
    let row = Row::new("known agent, inner source 192.168.2.2", "b1 (isolated)", Drop, action);
    rows.push(row.about_isolation());
    let packet = VxlanPacket::new(1, ("192.168.2.2", a1), Shape::Plain);
    let action = send(stranger, STRANGER, "a1", packet);
    rows.push(Row::new("stranger by VXLAN", "a1", Drop, action));
    rows
}

fn rows(lab: &Lab, rules: Rules) -> Vec<Row<'_>> {
    let of_others = if rules == Rules::Nftables { Drop } else { Pass };
    let mut rows = container_rows(lab);
    rows.extend(master_and_tunnel_rows(lab));
    rows.extend(forged_source_rows(lab));
    rows.extend(reachability_rows(lab));
    rows.extend(vxlan_rows(lab, of_others));
    rows.extend(attacks::rows(lab));
    for row in &mut rows {
        // The route that makes unallocated addresses unreachable drops the packet too.
        if row.source.contains("192.168.77.2") {
            row.control = Drop;
        }
    }
    rows
}

/// Removes all rules of all hosts, and stops the agents, which would repair them. Masquerade stays:
/// without it the containers do not reach other networks.
fn remove_rules(lab: &Lab) {
    const REMOVE: &str = "\
        nft flush ruleset
        for program in iptables-legacy ip6tables-legacy; do
            for table in mangle filter nat; do
                $program -t $table -F; $program -t $table -X
            done
        done
        nft -f - <<END
        table ip control {
            chain post {
                type nat hook postrouting priority 99
                oifname eth0 ip saddr 192.168.0.0/16 masquerade
                oifname != docker0 ip saddr 172.17.0.0/16 masquerade
            }
        }
END";
    for host in &lab.cluster.hosts {
        host.agent.as_ref().expect("a running agent").signal(Signal::STOP);
        succeed(host.namespace().command("sh").args(["-ec", REMOVE]));
    }
}

/// Inserts a rule that accepts all forwarded packets before those of the agent, and waits until the
/// agent has moved its jump before the rule.
fn accept_everything_first(lab: &Lab) {
    let host = lab.host(1);
    host.run("iptables -t mangle -I FORWARD -j ACCEPT");
    lab.cluster.wait_for("the agent's jump is the first rule", || {
        let rules = host.run("iptables -t mangle -S FORWARD");
        rules.lines().nth(1) == Some("-A FORWARD -j MESOS-OVERLAY")
    });
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn closed_overlays_matrix() {
    let mut different = Vec::new();
    for rules in [Rules::Nftables, Rules::IptablesNft, Rules::IptablesLegacy] {
        let config = json!({ "isolate_overlays": true });
        // Docker makes no rules, so that every drop is a drop of the agent's rules.
        let mut lab = Lab::new(rules, r#"{ "iptables": false }"#, &config).with_all_containers();
        for number in [1, 2] {
            masquerade_docker0(lab.host(number));
        }
        attacks::prepare(&lab);
        if rules == Rules::IptablesNft {
            accept_everything_first(&lab);
        }
        let name = rules.name();
        let heads = ["source", "target", "backend", "expected", "seen"];
        eprintln!("{:46} {:46} {:24} {} {}", heads[0], heads[1], heads[2], heads[3], heads[4]);
        different.extend(differences(rows(&lab, rules).iter(), name, |row| row.expected));
        lab.restart_with("isolate_overlays", &json!(false));
        let label = format!("{name}, not isolated");
        let open = rows(&lab, rules);
        let about_isolation = open.iter().filter(|row| row.is_about_isolation);
        different.extend(differences(about_isolation, &label, |_| Pass));
        remove_rules(&lab);
        let label = format!("{name}, rules removed");
        different.extend(differences(open.iter(), &label, |row| row.control));
    }
    assert!(different.is_empty(), "{} rows differ:\n{}", different.len(), different.join("\n"));
}
