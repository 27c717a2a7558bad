//! Direct routing: packets of containers between agents on one L2 segment leave without
//! encapsulation, no other host can forge them, and the tunnel takes over when the path dies.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use serde_json::{Value, json};

use super::container::{Container, ping_sizes};
use super::{Cluster, Host};
use crate::forwarding::{COUNTERS, count};
use crate::hosts::{Underlay, connect_to_switch};
use crate::namespace::{Namespace, run};
use crate::process::PROGRAM;
use crate::traffic::{can_ping, now, time_limit, transfer};

/// Port of the receiver of forged packets.
const PORT: u16 = 7200;

/// Starts a cluster in which the first `direct` agents have `direct_routing` on.
fn cluster(count: u8, direct: u8) -> Cluster {
    let mut cluster = Cluster::new(Underlay::V4);
    for number in 1..=count {
        let host = cluster.add_host(number);
        // A namespace inherits the settings of the machine.
        host.namespace().run("sysctl -qw net.ipv4.conf.all.rp_filter=0");
        host.namespace().run("sysctl -qw net.ipv4.conf.eth0.rp_filter=0");
        if number <= direct {
            host.config["direct_routing"] = json!("auto");
        }
    }
    cluster.start_agents();
    cluster.wait_until_ok();
    cluster
}

/// Returns the health of direct routing of an agent.
fn paths(host: &Host) -> Value {
    host.health()["dataplane"]["direct_routing"].clone()
}

/// Returns why packets to a peer take the tunnel, or an empty text if they do not.
fn reason(host: &Host, peer: &str) -> String {
    let paths = paths(host);
    let mut peers = paths["vxlan"].as_array().into_iter().flatten();
    let found = peers.find(|found| found["agent"] == peer);
    found.and_then(|found| found["reason"].as_str()).unwrap_or_default().to_owned()
}

fn wait_until_direct(cluster: &Cluster, number: u8, peers: &[&str]) {
    let name = format!("direct paths of agent {number} to {peers:?}");
    cluster.wait_for(&name, || paths(cluster.host(number))["direct"] == json!(peers));
}

fn wait_until_tunnel(cluster: &Cluster, number: u8, peer: &str, part: &str) {
    let name = format!("agent {number} uses the tunnel to {peer} since: {part}");
    cluster.wait_for(&name, || reason(cluster.host(number), peer).contains(part));
}

/// Starts two agents that route directly, with a container each.
fn direct_pair() -> (Cluster, Vec<Container>) {
    let cluster = cluster(2, 2);
    let containers = cluster.add_containers();
    wait_until_direct(&cluster, 1, &["10.0.0.2"]);
    wait_until_direct(&cluster, 2, &["10.0.0.1"]);
    (cluster, containers)
}

/// Counts the VXLAN packets that arrive with a container's source inside.
fn count_tunneled(host: &Host, source: IpAddr) {
    let IpAddr::V4(source) = source else { panic!("an IPv6 address") };
    let table = format!(
        "table ip count {{ chain c {{ type filter hook prerouting priority -400; \
         udp dport 64000 @th,336,32 {:#x} counter; }}; }}",
        u32::from(source)
    );
    host.namespace().succeed("nft", &[&table]);
}

fn tunneled(host: &Host) -> String {
    let listing = host.namespace().run("nft list table ip count");
    let count = listing.split("packets ").nth(1).and_then(|rest| rest.split(' ').next());
    count.expect("a counter").to_owned()
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn packets_of_agents_with_direct_routing_bypass_the_tunnel() {
    let cluster = cluster(3, 2);
    let containers = cluster.add_containers();
    wait_until_direct(&cluster, 1, &["10.0.0.2"]);
    wait_until_direct(&cluster, 2, &["10.0.0.1"]);
    wait_until_tunnel(&cluster, 1, "10.0.0.3", "the agent does not offer direct routing");
    assert_eq!(paths(cluster.host(3)), Value::Null);
    let route = cluster.host(1).namespace().run("ip route show 192.168.1.0/24");
    assert!(route.starts_with("192.168.1.0/24 via 10.0.0.2 dev eth0 proto 109 "), "{route}");
    assert!(route.contains(" src 44.128."), "{route}");
    for (from, to) in [(0, 1), (1, 0)] {
        let (from, to) = (&containers[from], &containers[to]);
        let host = &cluster.hosts[usize::from(to.name.starts_with('2'))];
        count_tunneled(host, from.address());
        for size in ping_sizes(&to.address()) {
            assert!(can_ping(&from.namespace, to.address(), size), "{}", cluster.logs());
        }
        transfer(&from.namespace, &to.namespace, to.address(), 1 << 20);
        assert_eq!(tunneled(host), "0");
    }
    segments_take_the_shortcut(&cluster, &containers);
    // The host itself, with the address of its VTEP.
    assert!(can_ping(cluster.host(1).namespace(), containers[1].address(), 16));
    count_tunneled(cluster.host(3), containers[0].address());
    for (from, to) in [(0, 2), (2, 0), (1, 2)] {
        assert!(can_ping(&containers[from].namespace, containers[to].address(), 16));
    }
    assert_ne!(tunneled(cluster.host(3)), "0", "the counter counts");
    let metrics = cluster
        .host(1)
        .namespace()
        .run("/bin/busybox wget -q -O - http://10.0.0.1:5051/overlay-agent/metrics");
    assert!(metrics.contains("peers_direct 1\n"), "{metrics}");
    assert!(metrics.contains("peers_vxlan 1\n"), "{metrics}");
    let mut doctor = cluster.host(1).namespace().command(PROGRAM);
    let config = cluster.host(1).write_config();
    doctor.args(["doctor", "--config", &config, "--agent", "10.0.0.1:5051"]);
    doctor.args(["--master", super::MASTER_ADDRESS]);
    let shown = String::from_utf8_lossy(&run(&mut doctor, "").stdout).into_owned();
    assert!(shown.contains("1 peer by direct routing, 1 peer through the tunnel"), "{shown}");
    assert!(shown.contains("packets to agent 10.0.0.3 take the tunnel: the agent does not offer"));
    assert!(shown.contains("the kernel matches the desired state"), "{shown}");
}

/// Transfers data between the containers of hosts 1 and 2, whose forward chains see no segments.
fn segments_take_the_shortcut(cluster: &Cluster, containers: &[Container]) {
    let hosts = [1, 2].map(|number| cluster.host(number).namespace());
    for host in hosts {
        let has_hook = || host.run("nft list table netdev mesos_overlay").contains("chain port");
        cluster.wait_for("the hook of the container", has_hook);
        host.succeed("nft", &[COUNTERS]);
    }
    for (from, to) in [(0, 1), (1, 0)] {
        let (from, to) = (&containers[from], &containers[to]);
        transfer(&from.namespace, &to.namespace, to.address(), 1 << 20);
    }
    for host in hosts {
        assert_eq!([count(host, "syn"), count(host, "segments")], [4, 0]);
    }
}

/// Sends datagrams to the container of host 1 with a source address that `host` does not have.
fn forge(host: &Namespace, source: &str, to: IpAddr) {
    host.run(&format!("ip addr add {source}/32 dev lo"));
    let source: Ipv4Addr = source.parse().expect("an IPv4 address");
    host.inside(|| {
        let socket = UdpSocket::bind((source, 0)).expect("an address of this host");
        for _ in 0..3 {
            socket.send_to(b"forged", (to, PORT)).expect("a route");
        }
    });
    host.run(&format!("ip addr del {source}/32 dev lo"));
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn forged_direct_packets_are_dropped() {
    let (cluster, containers) = direct_pair();
    let to = containers[0].address();
    let receiver = containers[0]
        .namespace
        .inside(|| UdpSocket::bind(SocketAddr::new(to, PORT)).expect("a free port"));
    receiver.set_read_timeout(Some(Duration::from_secs(1))).expect("a timeout");
    let received = || {
        let mut buffer = [0; 16];
        let mut count = 0;
        while receiver.recv(&mut buffer).is_ok() {
            count += 1;
        }
        count
    };
    let peer = cluster.host(2).namespace();
    forge(peer, "192.168.1.77", to);
    assert_eq!(received(), 3, "the peer's MAC and a source in its subnet\n{}", cluster.logs());
    forge(peer, "192.168.2.77", to);
    assert_eq!(received(), 0, "the peer's MAC and a source outside of its subnets");
    let stranger = Namespace::new();
    connect_to_switch(&cluster.switch, &stranger, 50, Underlay::V4);
    stranger.run("ip route add 192.168.0.0/24 via 10.0.0.1 dev eth0");
    forge(&stranger, "192.168.1.77", to);
    assert_eq!(received(), 0, "another MAC and a source in the peer's subnet");
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn dead_direct_path_falls_back_to_the_tunnel() {
    let (cluster, containers) = direct_pair();
    let is_alive = || can_ping(&containers[0].namespace, containers[1].address(), 16);
    assert!(is_alive());
    // A switch that checks sources: it drops packets whose source is not that of a host.
    let hosts = [1, 2].map(|number| cluster.host(number).namespace());
    let filter = "table ip test { chain c { type filter hook prerouting priority -400; \
                  iifname eth0 ip saddr != 10.0.0.0/8 drop; }; }";
    for host in hosts {
        host.succeed("nft", &[filter]);
    }
    let start = now();
    assert!(!is_alive(), "the direct path is dead");
    wait_until_tunnel(&cluster, 1, "10.0.0.2", "direct path lost: probes were not answered");
    cluster.wait_for("traffic takes the tunnel", is_alive);
    assert!(start.elapsed() < time_limit(Duration::from_secs(30)), "{:?}", start.elapsed());
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn hosts_that_cannot_route_directly_use_the_tunnel() {
    let (cluster, containers) = direct_pair();
    let is_alive = || can_ping(&containers[0].namespace, containers[1].address(), 16);
    let host = cluster.host(1).namespace();
    // A peer behind a router.
    host.run("ip route add 10.0.0.2/32 via 10.0.0.100 dev eth0");
    wait_until_tunnel(&cluster, 1, "10.0.0.2", "the route to 10.0.0.2/32 leads elsewhere");
    let route = host.run("ip route show 192.168.1.0/24");
    assert!(route.contains(" dev vtep1024 "), "{route}");
    host.run("ip route del 10.0.0.2/32");
    wait_until_direct(&cluster, 1, &["10.0.0.2"]);
    // A strict reverse path filter would drop packets while the routes of the two hosts differ.
    host.run("sysctl -qw net.ipv4.conf.eth0.rp_filter=1");
    wait_until_tunnel(&cluster, 1, "10.0.0.2", "the reverse path filter of eth0 is strict");
    wait_until_tunnel(&cluster, 2, "10.0.0.1", "the agent does not offer direct routing");
    assert!(is_alive());
    host.run("sysctl -qw net.ipv4.conf.eth0.rp_filter=2");
    wait_until_direct(&cluster, 1, &["10.0.0.2"]);
    wait_until_direct(&cluster, 2, &["10.0.0.1"]);
    assert!(is_alive());
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn restart_of_agent_with_direct_routing_loses_no_packet() {
    let mut cluster = cluster(2, 2);
    let containers = cluster.add_containers();
    wait_until_direct(&cluster, 1, &["10.0.0.2"]);
    wait_until_direct(&cluster, 2, &["10.0.0.1"]);
    let (from, to) = (&containers[0], &containers[1]);
    let stream = crate::traffic::Stream::new(&from.namespace, &to.namespace, to.address());
    let (sent, lost) = stream.measure_loss_during(|| {
        cluster.host_mut(1).agent = None;
        cluster.host_mut(1).start_agent();
        wait_until_direct(&cluster, 1, &["10.0.0.2"]);
    });
    assert!(sent > 1000 && lost == 0, "{lost} of {sent} datagrams lost\n{}", cluster.logs());
}
