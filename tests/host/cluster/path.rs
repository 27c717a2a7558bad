//! Faults of other programs between a container and its peers: the agent cannot repair them, so it
//! names the cause within a second and reports the overlay as failed until the cause is gone.

use std::fmt::Write as _;

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use rustix::process::Signal;

use super::Cluster;
use super::container::Container;
use crate::hosts::Underlay;
use crate::traffic::{can_ping, now, sleep, time_limit};

/// A fault: the commands that cause it, the commands that remove it, and the parts of the reason
/// that the master shows.
struct Fault {
    cause: &'static str,
    removal: &'static str,
    reason: &'static [&'static str],
}

const FAULTS: [Fault; 5] = [
    Fault {
        cause: "ip route add default via 10.0.0.2 dev eth0 table 100 && \
                ip rule add priority 100 from 192.168.0.0/17 lookup 100",
        removal: "ip rule delete priority 100 && ip route flush table 100",
        reason: &[
            "packets of containers from m-vxlan-1 to 192.168.1.0/24 leave through eth0 (routing \
             table 100) instead of leaving through vtep1024: policy rule '100: from 192.168.0.0/17 lookup 100' \
             is in the way",
            "'ip rule add priority 99 to 192.168.0.0/17 lookup main'",
        ],
    },
    Fault {
        cause: "ip rule add priority 50 iif m-vxlan-1 prohibit",
        removal: "ip rule delete priority 50",
        reason: &["are refused by a prohibit route", "'50: from all iif m-vxlan-1 prohibit'"],
    },
    Fault {
        cause: "ip rule add priority 60 to 192.168.0.0/25 iif vtep1024 blackhole",
        removal: "ip rule delete priority 60",
        reason: &[
            "from vtep1024 to 192.168.0.0/25 are dropped by a blackhole route",
            "'60: from all to 192.168.0.0/25 iif vtep1024 blackhole'",
        ],
    },
    Fault {
        cause: "ip route delete 192.168.0.0/25 dev m-vxlan-1",
        removal: "ip route add 192.168.0.0/25 dev m-vxlan-1 proto kernel scope link src 192.168.0.1",
        reason: &[
            "packets of containers from vtep1024 to 192.168.0.0/25 are dropped without a route",
            "no policy rule is the cause",
        ],
    },
    Fault {
        cause: "ip route add 192.168.0.0/26 dev eth0",
        removal: "ip route delete 192.168.0.0/26 dev eth0",
        reason: &["from vtep1024 to 192.168.0.0/25 leave through eth0 (routing table 254)"],
    },
];

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn cause_of_dead_path_is_named_until_it_is_gone() {
    let cluster = Cluster::started(2, Underlay::V4);
    let containers = [1, 2].map(|number| Container::for_mesos(cluster.host(number), "vxlan-1"));
    let is_alive = || can_ping(&containers[0].namespace, containers[1].address(), 16);
    let host = cluster.host(1);
    let shell = |script| drop(host.namespace().succeed("sh", &["-c", script]));
    let mut table = String::new();
    for Fault { cause, removal, reason } in FAULTS {
        assert!(is_alive(), "before: {cause}");
        let start = now();
        shell(cause);
        cluster.wait_for_status(1, "vxlan-1", |status| {
            reason.iter().all(|part| status.contains(part))
        });
        let named = start.elapsed();
        assert!(!is_alive(), "the path is alive with: {cause}");
        shell(removal);
        let start = now();
        cluster.wait_for_status(1, "vxlan-1", |status| status == "STATUS_OK");
        let (named, gone) = (named.as_millis(), start.elapsed().as_millis());
        let _ = writeln!(table, "{named:>6} ms named, {gone:>6} ms until ok  {cause}");
    }
    eprintln!("{table}");
    assert!(is_alive());
}

/// A flow of a container to a host that is no agent.
struct Flow {
    sender: UdpSocket,
    receiver: UdpSocket,
}

impl Flow {
    fn new(from: &Container, cluster: &Cluster) -> Self {
        let receiver = cluster.namespace.inside(|| UdpSocket::bind("10.0.0.100:7000"));
        let receiver = receiver.expect("a free port");
        receiver.set_read_timeout(Some(Duration::from_millis(200))).expect("a valid timeout");
        let sender = from.namespace.inside(|| UdpSocket::bind("0.0.0.0:7001"));
        let sender = sender.expect("a free port");
        sender.connect(("10.0.0.100", 7000)).expect("a route");
        Self { sender, receiver }
    }

    /// Sends a packet. Returns its source at the receiver.
    fn source(&self) -> Option<IpAddr> {
        self.sender.send(b"flow").expect("the packet is sent");
        match self.receiver.recv_from(&mut [0; 16]) {
            Ok((_, from)) => Some(SocketAddr::ip(&from)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Sends a packet per second until one has the address of the host. Returns the time.
fn time_until_masqueraded(flow: &Flow, cluster: &Cluster) -> Duration {
    let start = now();
    while flow.source() != Some(Underlay::V4.address(1)) {
        let limit = time_limit(Duration::from_secs(60));
        assert!(start.elapsed() < limit, "{}", cluster.logs());
        sleep(Duration::from_secs(1));
    }
    start.elapsed()
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn flow_older_than_rules_is_masqueraded() {
    let mut cluster = Cluster::started(1, Underlay::V4);
    let container = Container::for_mesos(cluster.host(1), "vxlan-1");
    let flow = Flow::new(&container, &cluster);
    // Another program tracks connections.
    let begin_without_rules = |cluster: &Cluster| {
        let namespace = cluster.host(1).namespace();
        namespace.run("nft flush ruleset");
        namespace.run("nft add table ip other");
        namespace.run("nft add chain ip other c { type filter hook forward priority 0 ; }");
        namespace.run("nft add rule ip other c ct state new accept");
        assert_eq!(flow.source(), Some(container.address()), "without rules");
    };
    let signal = |cluster: &Cluster, signal| {
        cluster.host(1).agent.as_ref().expect("a running agent").signal(signal);
    };
    signal(&cluster, Signal::STOP);
    begin_without_rules(&cluster);
    signal(&cluster, Signal::CONT);
    let elapsed = time_until_masqueraded(&flow, &cluster);
    eprintln!("{:>6} ms  a flow that began after a foreign flush", elapsed.as_millis());
    // The first rules of an agent.
    assert!(cluster.host_mut(1).agent.take().expect("a running agent").stop());
    begin_without_rules(&cluster);
    cluster.host_mut(1).start_agent();
    let elapsed = time_until_masqueraded(&flow, &cluster);
    eprintln!("{:>6} ms  a flow that began before the agent", elapsed.as_millis());
}
