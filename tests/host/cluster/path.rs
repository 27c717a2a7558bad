//! Faults of other programs between a container and its peers: the agent cannot repair them, so it
//! names the cause within a second and reports the overlay as failed until the cause is gone.

use std::fmt::Write as _;

use super::Cluster;
use super::container::Container;
use crate::hosts::Underlay;
use crate::traffic::{can_ping, now};

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
            "'ip rule add priority 99 to 192.168.1.0/24 lookup main'",
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
