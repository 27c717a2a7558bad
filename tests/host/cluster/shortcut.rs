//! The shortcut for TCP segments follows the containers that start and end.

use super::Cluster;
use super::container::Container;
use crate::forwarding::{COUNTERS, count};
use crate::hosts::Underlay;
use crate::traffic::transfer;

/// Number of bytes of a transfer: many segments.
const BYTES: usize = 1 << 20;

/// Returns the number of ports with a hook.
fn hook_count(cluster: &Cluster, number: u8) -> usize {
    let listing = cluster.host(number).namespace().run("nft list ruleset");
    listing.matches("chain port").count()
}

fn wait_for_hooks(cluster: &Cluster, number: u8, expected: usize) {
    let name = format!("hooks of {expected} containers of agent {number}");
    cluster.wait_for(&name, || hook_count(cluster, number) == expected);
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn shortcut_follows_containers() {
    let mut cluster = Cluster::new(Underlay::V4);
    for number in [1, 2] {
        cluster.add_host(number);
    }
    cluster.start_agents();
    cluster.wait_until_ok();
    let start = |number| Container::for_mesos(cluster.host(number), "vxlan-1");
    // The first container of an overlay makes the bridge, which the agent verifies.
    let (one, two) = (start(1), start(2));
    wait_for_hooks(&cluster, 1, 1);
    wait_for_hooks(&cluster, 2, 1);
    // The kernel gives a bridge the lowest MAC of its ports, unless it is set. A container keeps a
    // former MAC for a while, and the ordinary path drops its packets then.
    for number in [1, 2] {
        let host = cluster.host(number).namespace();
        let shown = host.run("ip -o link show m-vxlan-1");
        let mac = shown.split_whitespace().skip_while(|word| *word != "link/ether").nth(1);
        host.run(&format!("ip link set m-vxlan-1 address {}", mac.expect("a MAC")));
    }
    let status = |number| cluster.host(number).health()["dataplane"].clone();
    let before = status(1);
    let other = start(1);
    wait_for_hooks(&cluster, 1, 2);
    for number in [1, 2] {
        cluster.host(number).namespace().succeed("nft", &[COUNTERS]);
    }
    for (from, to) in [(&one, &two), (&two, &one), (&other, &two), (&two, &other)] {
        transfer(&from.namespace, &to.namespace, to.address(), BYTES);
    }
    for number in [1, 2] {
        let host = cluster.host(number).namespace();
        assert_eq!([count(host, "syn"), count(host, "segments")], [8, 0], "{}", cluster.logs());
    }
    other.leave(cluster.host(1), "vxlan-1");
    wait_for_hooks(&cluster, 1, 1);
    transfer(&one.namespace, &two.namespace, two.address(), BYTES);
    let after = status(1);
    assert_eq!(after["forwarding"], "shortcut");
    assert_eq!(after["repairs"], before["repairs"], "a container is no damage: {after}");
}
