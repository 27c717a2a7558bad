//! Messages about peers that nobody should believe: from strangers, and from a master that has gone
//! mad. An agent takes of them what can be true, names the rest, and its host is not cut off.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use mesos_network_overlay::protocol::{Message, PeerInfo, PeersUpdate, digest_of};
use mesos_network_overlay::tunnel::Peer;
use mesos_network_overlay::wire::encode_message;

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

/// Sends `body` to an agent, as a message of the process at `from`, and returns the answer.
fn send(sender: &Namespace, agent: IpAddr, from: &str, body: &[u8]) -> String {
    let to = SocketAddr::new(agent, 5051);
    let head = format!(
        "POST /overlay-agent/mesos.modules.overlay.internal.UpdatePeersMessage HTTP/1.1\r\n\
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
