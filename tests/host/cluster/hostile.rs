//! False messages to an agent: from foreign senders, and from a faulty master. The agent applies
//! valid entries only and reports the rest, and its host stays reachable.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use overlay_types::addr::Vni;
use overlay_types::protocol::{
    AddressRange, Assignment, MasterKind, Message, PeerInfo, PeersUpdate, peer_digest,
};
use overlay_types::tunnel::Peer;
use overlay_wire::{decode_agent, encode_message, parse_json};
use serde_json::Value;

use super::container::Container;
use super::{Cluster, MASTER_ADDRESS};
use crate::hosts::{Underlay, connect_to_switch};
use crate::namespace::Namespace;
use crate::traffic::can_ping;

/// A claimed agent: IP address, VTEP address, MAC, and subnet of the first overlay.
type Claim = ([u8; 4], [u8; 4], &'static str, &'static str);
const HONEST_CLAIM: Claim = ([10, 0, 0, 2], [44, 128, 0, 2], "70:b3:d5:80:00:02", "192.168.1.0/24");
/// False claims, each with the problem that the agent reports.
const HOSTILE_CLAIMS: [(Claim, &str); 7] = [
    (
        ([10, 0, 0, 60], [44, 128, 0, 1], "70:b3:d5:80:00:60", "192.168.60.0/24"),
        "agent 10.0.0.60: its VTEP address 44.128.0.1 belongs to agent 10.0.0.1: delete one of the \
         two agents at the master",
    ),
    (
        ([10, 0, 0, 61], [44, 128, 0, 61], "70:b3:d5:80:00:61", "192.168.0.128/25"),
        "agent 10.0.0.61: its subnet 192.168.0.128/25 overlaps 192.168.0.0/24 of agent 10.0.0.1: \
         delete one of the two agents",
    ),
    (
        ([10, 0, 0, 62], [44, 128, 0, 62], "70:b3:d5:80:00:62", "10.0.0.0/25"),
        "agent 10.0.0.62: its subnet 10.0.0.0/25 is outside overlay vxlan-1: check the overlay's \
         subnet at the master",
    ),
    (
        ([10, 0, 0, 63], [44, 128, 0, 63], "71:b3:d5:80:00:63", "192.168.63.0/24"),
        "agent 10.0.0.63: its MAC address 71:b3:d5:80:00:63 is not unicast: set another \
         vtep_mac_oui",
    ),
    (
        ([10, 0, 0, 64], [10, 0, 0, 100], "70:b3:d5:80:00:64", "192.168.64.0/24"),
        "agent 10.0.0.64: its VTEP address 10.0.0.100 is no host address of the VTEP subnet: check \
         vtep_subnet at the master",
    ),
    (
        ([127, 0, 0, 9], [44, 128, 0, 65], "70:b3:d5:80:00:65", "192.168.65.0/24"),
        "agent 127.0.0.9: its address 127.0.0.9 is not a host address: check the address that \
         the agent advertises",
    ),
    (
        ([192, 168, 3, 3], [44, 128, 0, 66], "70:b3:d5:80:00:66", "192.168.66.0/24"),
        "agent 192.168.3.3: its address 192.168.3.3 lies inside of 192.168.0.0/17 of the overlays: \
         give the overlay another subnet",
    ),
];

fn peers_message(version: u64) -> Vec<u8> {
    let info = |(ip, vtep, mac, subnet): Claim| {
        let ip = Ipv4Addr::from(ip);
        let peer = Peer {
            ip: Some(vtep.into()),
            ip6: None,
            mac: mac.parse().expect("a valid MAC"),
            subnets: vec![(
                "vxlan-1".parse().expect("a valid overlay name"),
                subnet.parse().expect("a valid subnet"),
            )],
            direct: None,
        };
        (ip, PeerInfo { underlay: ip.into(), peer })
    };
    let claims = HOSTILE_CLAIMS.iter().map(|(claim, _)| *claim).chain([HONEST_CLAIM]);
    let changed: BTreeMap<_, _> = claims.map(info).collect();
    let digests = changed.iter().map(|(ip, info)| peer_digest(*ip, info));
    let digest = digests.fold(0, u64::wrapping_add);
    let removed = BTreeSet::new();
    let update = PeersUpdate { epoch: 1, version, digest, base: None, changed, removed };
    encode_message(&Message::UpdatePeers(Arc::new(update))).1
}

/// Sends `body` to an agent as an UpdatePeersMessage of the process `from`. Returns the answer.
fn send(sender: &Namespace, agent: IpAddr, from: &str, body: &[u8]) -> String {
    send_message(sender, agent, from, ("UpdatePeersMessage", body))
}

fn send_message(
    sender: &Namespace,
    agent: IpAddr,
    from: &str,
    (name, body): (&str, &[u8]),
) -> String {
    let to = SocketAddr::new(agent, 5051);
    let head = format!(
        "POST /overlay-agent/mesos.modules.overlay.internal.{name} HTTP/1.1\r\n\
         User-Agent: libprocess/{from}\r\nLibprocess-From: {from}\r\nConnection: Keep-Alive\r\n\
         Host: {to}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    sender.inside(|| {
        let mut stream = TcpStream::connect(to).expect("a connection to the agent");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a socket timeout");
        stream
            .write_all(head.as_bytes())
            .and_then(|()| stream.write_all(body))
            .expect("a sent request");
        let mut answer = [0; 512];
        let count = stream.read(&mut answer).unwrap_or(0);
        String::from_utf8_lossy(&answer[..count]).into_owned()
    })
}

fn assert_two_containers_reach_each_other(cluster: &Cluster, containers: &[Container]) {
    let [first, second] = containers else { panic!("two containers") };
    for (from, to) in [(first, second), (second, first)] {
        assert!(can_ping(&from.namespace, to.address(), 1392), "{}", cluster.logs());
    }
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn hostile_peers_message_applies_only_valid_entries() {
    let cluster = Cluster::started(2, Underlay::V4);
    let containers = cluster.add_containers();
    let host = cluster.host(1);
    let agent = Underlay::V4.address(1);
    let routes = || host.namespace().run("ip route show");
    let count = |name: &str| host.health()["counters"][name].as_u64().unwrap_or_default();
    let before = routes();
    let master = format!("overlay-master@{MASTER_ADDRESS}");

    // A foreign sender first sends with its own address, and then with the master's address.
    let foreign_sender = Namespace::new();
    connect_to_switch(&cluster.switch, &foreign_sender, 50, Underlay::V4);
    let honest = "overlay-master@10.0.0.50:5050";
    assert!(send(&foreign_sender, agent, honest, &peers_message(1000)).contains(" 202 "));
    cluster.wait_for("the message is counted", || count("unexpected_messages") == 1);
    assert!(!send(&foreign_sender, agent, &master, &peers_message(1000)).contains(" 202 "));
    // A body that is no protobuf message.
    assert!(send(&cluster.namespace, agent, &master, b"\xffno message").contains(" 202 "));
    cluster.wait_for("the message is counted", || count("malformed_messages") == 1);
    assert_eq!(routes(), before);
    assert_eq!(host.health()["status"], "ok", "{}", cluster.logs());

    // The same message, sent from the master's host.
    assert!(send(&cluster.namespace, agent, &master, &peers_message(1000)).contains(" 202 "));
    cluster.wait_for_status(1, "vxlan-1", |status| {
        status.starts_with("agent 10.0.0.6") && status.ends_with("see the agent's health")
    });
    let problems = host.health()["problems"].to_string();
    for (_, reason) in HOSTILE_CLAIMS {
        assert!(problems.contains(reason), "{reason}\n{problems}");
    }
    let status = cluster.status(1, "vxlan-2");
    assert_eq!(status, "STATUS_OK", "a false claim affected the other overlay");
    let after = routes();
    let surplus: Vec<_> = after.lines().filter(|line| !before.contains(line)).collect();
    assert!(surplus.is_empty(), "{surplus:#?}");
    assert_two_containers_reach_each_other(&cluster, &containers);
    assert!(
        can_ping(host.namespace(), Underlay::V4.address(100), 16),
        "the agent's host lost the master"
    );
}

/// Returns the assignments of the first agent.
fn assignments_of_first_agent(cluster: &Cluster) -> Vec<Assignment> {
    let shown = Value::Object(
        [
            ("ip".to_owned(), Underlay::V4.address(1).to_string().into()),
            ("overlays".to_owned(), cluster.overlays(1).into()),
        ]
        .into_iter()
        .collect(),
    );
    let shown = parse_json(shown.to_string().as_bytes()).expect("a valid agent");
    decode_agent(&shown).expect("a valid agent").overlays
}

/// Copies an assignment to another overlay name and other subnets.
fn copy_assignment(original: &Assignment, name: &str, number: u8) -> Assignment {
    let mut copy = original.clone();
    let subnet = |text: String| Some(text.parse().expect("a valid subnet"));
    copy.overlay.name = name.parse().expect("a valid overlay name");
    let space = format!("172.20.{number}.0/24").parse().expect("a valid subnet");
    copy.overlay.range = Some(AddressRange { subnet: space, prefix: 24 });
    copy.subnet = Some(space);
    let name = &copy.overlay.name;
    let (mesos, docker) = (name.mesos_bridge(), name.docker_bridge());
    for (bridge, name, half) in [
        (&mut copy.mesos_bridge, mesos, subnet(format!("172.20.{number}.0/25"))),
        (&mut copy.docker_bridge, docker, subnet(format!("172.20.{number}.128/25"))),
    ] {
        let Some(bridge) = bridge else { continue };
        (bridge.name, bridge.subnet) = (name, half);
    }
    copy
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn hostile_assignments_create_no_device() {
    let cluster = Cluster::started(2, Underlay::V4);
    let containers = cluster.add_containers();
    let host = cluster.host(1);
    let agent = Underlay::V4.address(1);
    let master = format!("overlay-master@{MASTER_ADDRESS}");
    let honest = assignments_of_first_agent(&cluster);
    let original = honest.first().expect("an assignment");
    let devices = || {
        let shown = host.namespace().run("ip -br link show");
        let names = shown.lines().filter_map(|line| line.split_whitespace().next());
        names.map(str::to_owned).collect::<BTreeSet<_>>()
    };
    let routes = || host.namespace().run("ip route show");
    let before = (devices(), routes());
    let update = |assignments: Vec<Assignment>| {
        let (_, body) = encode_message(&Message::UpdateAgentOverlays {
            overlays: assignments,
            master: MasterKind::Other,
        });
        let message = ("UpdateAgentOverlaysMessage", &*body);
        assert!(send_message(&cluster.namespace, agent, &master, message).contains(" 202 "));
    };

    // More overlays than a network may have: the agent applies none of them.
    let many = (0..500).map(|number| copy_assignment(original, &format!("o{number}"), 0));
    update(many.collect());
    let refused = "overlays: has more than 128 entries: the present configuration stays";
    cluster.wait_for("the assignment is refused", || {
        host.health()["problems"].to_string().contains(refused)
    });
    assert_eq!((devices(), routes()), before);

    // Each assignment would cut the host off, or change a foreign device.
    let device = |name: &str| name.parse().expect("a valid device name");
    let mut eth0 = copy_assignment(original, "eth", 1);
    eth0.mesos_bridge.as_mut().expect("an assigned bridge").name = device("eth0");
    let mut lo = copy_assignment(original, "lo", 2);
    (lo.vtep.device, lo.vtep.vni) = (device("lo"), Vni::new(7).expect("a valid VNI"));
    let mut loopback = copy_assignment(original, "loopback", 3);
    loopback.overlay.range =
        Some(AddressRange { subnet: "127.0.0.0/8".parse().expect("a valid subnet"), prefix: 24 });
    let bad = [eth0, lo, loopback];
    update(honest.iter().cloned().chain(bad.clone()).collect());
    for assignment in bad {
        let name = assignment.name();
        let reason = format!("{name}: the master's assignment is beyond the limits of a network: ");
        cluster.wait_for("health names the overlay", || {
            host.health()["problems"].to_string().contains(&reason)
        });
    }
    cluster.wait_for_status(1, "vxlan-1", |status| status == "STATUS_OK");
    assert_eq!((devices(), routes()), before);
    assert_two_containers_reach_each_other(&cluster, &containers);
}
