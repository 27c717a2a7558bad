//! Messages about peers that nobody should believe: from strangers, and from a master that has gone
//! mad. An agent takes of them what can be true, names the rest, and its host is not cut off.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use mesos_network_overlay::addr::Vni;
use mesos_network_overlay::protocol::{
    AddressRange, Assignment, Message, PeerInfo, PeersUpdate, digest_of,
};
use mesos_network_overlay::tunnel::Peer;
use mesos_network_overlay::wire::{decode_agent, encode_message, parse_json};
use serde_json::Value;

use super::{Cluster, MASTER_AT};
use crate::hosts::{Underlay, plug};
use crate::namespace::Namespace;
use crate::traffic::reaches;

/// An agent at `ip` with this VTEP, MAC, and subnet of the first overlay.
type Claim = ([u8; 4], [u8; 4], &'static str, &'static str);
const HONEST: Claim = ([10, 0, 0, 2], [44, 128, 0, 2], "70:b3:d5:80:00:02", "192.168.1.0/24");
/// What each of them claims, and what is said of it.
const HOSTILE: [(Claim, &str); 7] = [
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
        "agent 10.0.0.62: its subnet 10.0.0.0/25 is not one of overlay vxlan-1: see the overlay's \
         subnet at the master",
    ),
    (
        ([10, 0, 0, 63], [44, 128, 0, 63], "71:b3:d5:80:00:63", "192.168.63.0/24"),
        "agent 10.0.0.63: its MAC address 71:b3:d5:80:00:63 is that of no single host: set another \
         vtep_mac_oui",
    ),
    (
        ([10, 0, 0, 64], [10, 0, 0, 100], "70:b3:d5:80:00:64", "192.168.64.0/24"),
        "agent 10.0.0.64: its VTEP address 10.0.0.100 is not one of the VTEP subnet: see the \
         master's vtep_subnet",
    ),
    (
        ([127, 0, 0, 9], [44, 128, 0, 65], "70:b3:d5:80:00:65", "192.168.65.0/24"),
        "agent 127.0.0.9: its address 127.0.0.9 is that of no host: see under which address it \
         registers",
    ),
    (
        ([192, 168, 3, 3], [44, 128, 0, 66], "70:b3:d5:80:00:66", "192.168.66.0/24"),
        "agent 192.168.3.3: its address 192.168.3.3 lies inside of 192.168.0.0/17 of the overlays: \
         give the overlay another subnet",
    ),
];

fn table(version: u64) -> Vec<u8> {
    let info = |(ip, vtep, mac, subnet): Claim| {
        let ip = Ipv4Addr::from(ip);
        let peer = Peer {
            ip: Some(vtep.into()),
            ip6: None,
            mac: mac.parse().expect("it is a MAC"),
            subnets: vec![(
                "vxlan-1".parse().expect("it is a name"),
                subnet.parse().expect("it is a subnet"),
            )],
        };
        (ip, PeerInfo { underlay: ip.into(), peer })
    };
    let claims = HOSTILE.iter().map(|(claim, _)| *claim).chain([HONEST]);
    let changed: BTreeMap<_, _> = claims.map(info).collect();
    let digests = changed.iter().map(|(ip, info)| digest_of(*ip, info));
    let digest = digests.fold(0, u64::wrapping_add);
    let removed = BTreeSet::new();
    let update = PeersUpdate { epoch: 1, version, digest, base: None, changed, removed };
    encode_message(&Message::UpdatePeers(Arc::new(update))).1
}

/// Sends `body` to an agent, as a message about peers of the process at `from`, and returns the
/// answer.
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
        let mut stream = TcpStream::connect(to).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("it is a socket");
        stream
            .write_all(head.as_bytes())
            .and_then(|()| stream.write_all(body))
            .expect("it is taken");
        let mut answer = [0; 512];
        let count = stream.read(&mut answer).unwrap_or(0);
        String::from_utf8_lossy(&answer[..count]).into_owned()
    })
}

#[test]
#[ignore = "host"]
fn of_a_hostile_message_about_peers_only_what_can_be_true_is_believed() {
    let cluster = Cluster::started(2, Underlay::V4);
    let containers = cluster.containers();
    let host = cluster.host(1);
    let agent = Underlay::V4.address(1);
    let routes = || host.namespace().run("ip route show");
    let count = |name: &str| host.health()["counters"][name].as_u64().unwrap_or_default();
    let before = routes();
    let master = format!("overlay-master@{MASTER_AT}");

    // From a stranger who says so, and from one who says that it is the master.
    let stranger = Namespace::new();
    plug(&cluster.switch, &stranger, 50, Underlay::V4);
    let honest = "overlay-master@10.0.0.50:5050";
    assert!(send(&stranger, agent, honest, &table(1000)).contains(" 202 "));
    cluster.wait_for("it is counted", || count("unexpected_messages") == 1);
    assert!(!send(&stranger, agent, &master, &table(1000)).contains(" 202 "));
    // No message at all.
    assert!(send(&cluster.namespace, agent, &master, b"\xffno message").contains(" 202 "));
    cluster.wait_for("it is counted", || count("malformed_messages") == 1);
    assert_eq!(routes(), before);
    assert_eq!(host.health()["status"], "ok", "{}", cluster.logs());

    // From the master's own address.
    assert!(send(&cluster.namespace, agent, &master, &table(1000)).contains(" 202 "));
    cluster.wait_for_status(1, "vxlan-1", |status| {
        status.starts_with("agent 10.0.0.6") && status.ends_with("see the agent's health")
    });
    let problems = host.health()["problems"].to_string();
    for (_, reason) in HOSTILE {
        assert!(problems.contains(reason), "{reason}\n{problems}");
    }
    let status = cluster.status(1, "vxlan-2");
    assert_eq!(status, "STATUS_OK", "nothing was said of this one");
    let after = routes();
    let surplus: Vec<_> = after.lines().filter(|line| !before.contains(line)).collect();
    assert!(surplus.is_empty(), "{surplus:#?}");
    for (one, other) in [(0, 1), (1, 0)] {
        let address = containers[other].address();
        assert!(reaches(&containers[one].namespace, address, 1392), "{}", cluster.logs());
    }
    assert!(reaches(host.namespace(), Underlay::V4.address(100), 16), "nor is it cut off");
}

/// What the master assigned to the first agent, as the agent shows it.
fn assigned(cluster: &Cluster) -> Vec<Assignment> {
    let shown = Value::Object(
        [
            ("ip".to_owned(), Underlay::V4.address(1).to_string().into()),
            ("overlays".to_owned(), cluster.overlays(1).into()),
        ]
        .into_iter()
        .collect(),
    );
    let shown = parse_json(shown.to_string().as_bytes()).expect("it is an agent");
    decode_agent(&shown).expect("it is an agent").overlays
}

/// An assignment of a kind that no configuration has, under another name and in other space.
fn other(like: &Assignment, name: &str, number: u8) -> Assignment {
    let mut other = like.clone();
    let subnet = |text: String| Some(text.parse().expect("it is a subnet"));
    other.overlay.name = name.parse().expect("it is a name");
    let space = format!("172.20.{number}.0/24").parse().expect("it is a subnet");
    other.overlay.range = Some(AddressRange { subnet: space, prefix: 24 });
    other.subnet = Some(space);
    let name = &other.overlay.name;
    let (mesos, docker) = (name.mesos_bridge(), name.docker_bridge());
    for (bridge, name, half) in [
        (&mut other.mesos_bridge, mesos, subnet(format!("172.20.{number}.0/25"))),
        (&mut other.docker_bridge, docker, subnet(format!("172.20.{number}.128/25"))),
    ] {
        let Some(bridge) = bridge else { continue };
        (bridge.name, bridge.subnet) = (name, half);
    }
    other
}

#[test]
#[ignore = "host"]
fn hostile_assignments_make_no_device_and_containers_go_on() {
    let cluster = Cluster::started(2, Underlay::V4);
    let containers = cluster.containers();
    let host = cluster.host(1);
    let agent = Underlay::V4.address(1);
    let master = format!("overlay-master@{MASTER_AT}");
    let honest = assigned(&cluster);
    let like = honest.first().expect("something is assigned");
    let devices = || {
        let shown = host.namespace().run("ip -br link show");
        let names = shown.lines().filter_map(|line| line.split_whitespace().next());
        names.map(str::to_owned).collect::<BTreeSet<_>>()
    };
    let routes = || host.namespace().run("ip route show");
    let before = (devices(), routes());
    let update = |assignments: Vec<Assignment>| {
        let (_, body) = encode_message(&Message::UpdateAgentOverlays(assignments));
        let message = ("UpdateAgentOverlaysMessage", &*body);
        assert!(send_message(&cluster.namespace, agent, &master, message).contains(" 202 "));
    };

    // More than a network has: nothing of it is used.
    let many = (0..500).map(|number| other(like, &format!("o{number}"), 0));
    update(many.collect());
    let refused = "overlays: has more than 128 entries: what is configured stays";
    cluster.wait_for("it is refused", || host.health()["problems"].to_string().contains(refused));
    assert_eq!((devices(), routes()), before);

    // Each has something that would cut the host off, or touch a device of the host.
    let device = |name: &str| name.parse().expect("it is the name of a device");
    let mut eth0 = other(like, "eth", 1);
    eth0.mesos_bridge.as_mut().expect("it is assigned").name = device("eth0");
    let mut lo = other(like, "lo", 2);
    (lo.vtep.device, lo.vtep.vni) = (device("lo"), Vni::new(7).expect("it is a VNI"));
    let mut loopback = other(like, "loopback", 3);
    loopback.overlay.range =
        Some(AddressRange { subnet: "127.0.0.0/8".parse().expect("it is a subnet"), prefix: 24 });
    let bad = [eth0, lo, loopback];
    update(honest.iter().cloned().chain(bad.clone()).collect());
    for assignment in bad {
        let name = assignment.name();
        let reason = format!("{name}: the master's assignment is beyond the limits of a network: ");
        cluster.wait_for("it is named", || host.health()["problems"].to_string().contains(&reason));
    }
    cluster.wait_for_status(1, "vxlan-1", |status| status == "STATUS_OK");
    assert_eq!((devices(), routes()), before);
    for (one, other) in [(0, 1), (1, 0)] {
        let address = containers[other].address();
        assert!(reaches(&containers[one].namespace, address, 1392), "{}", cluster.logs());
    }
}
