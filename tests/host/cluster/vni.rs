//! Reload of a running cluster with a VNI for a single overlay, and with another UDP port.

use std::fs;

use super::container::Container;
use super::reachability::assert_all_reachable;
use super::{Cluster, Host, NETWORK};
use crate::hosts::Underlay;

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn overlay_gets_own_vni_while_containers_run() {
    let cluster = Cluster::started(3, Underlay::V4);
    let mut containers = cluster.add_containers();
    let second = cluster.hosts.iter().map(|host| Container::for_mesos(host, "vxlan-2"));
    containers.extend(second);

    let changed_network = NETWORK
        .replace("\"overlays\": [", "\"vtep_port\": 4789, \"overlays\": [")
        .replace("\"192.168.128.0/17\",", "\"192.168.128.0/17\", \"vni\": 2048,");
    let file = cluster.dir.path().join("network.json");
    fs::write(&file, changed_network).expect("a network file");
    let output = cluster.run_subcommand(&["reload"]);
    assert!(output.contains("vtep_port is 4789 instead of 64000"), "{output}");
    assert!(output.contains("overlay vxlan-2: vni is added: 2048"), "{output}");
    let devices = |host: &Host| host.namespace().run("ip -d link show type vxlan");
    // The agent programs routes last.
    let routes = |host: &Host, device: &str| {
        let shown = host.namespace().run("ip route show proto 109");
        shown.lines().filter(|line| line.contains(&format!("dev {device} "))).count()
    };
    for host in &cluster.hosts {
        cluster.wait_for("the second device exists", || {
            let shown = devices(host);
            ["vtep1024", "vtep2048", "vxlan id 2048"].iter().all(|text| shown.contains(text))
                && shown.matches("dstport 4789").count() == 2
                && (routes(host, "vtep1024"), routes(host, "vtep2048")) == (2, 2)
        });
    }
    cluster.wait_until_ok();
    assert_all_reachable(&cluster, &containers);
    let shown = cluster.host(1).namespace().run("ip route show proto 109");
    assert!(shown.contains("192.168.1.0/24 via 44.128.0.2 dev vtep1024 "), "{shown}");
    assert!(shown.contains("192.168.129.0/24 via 44.128.0.2 dev vtep2048 "), "{shown}");

    // Return to a single VNI.
    fs::write(&file, NETWORK).expect("a network file");
    cluster.run_subcommand(&["reload"]);
    for host in &cluster.hosts {
        cluster.wait_for("the second device is gone", || {
            let shown = devices(host);
            !shown.contains("vtep2048")
                && shown.contains("dstport 64000")
                && routes(host, "vtep1024") == 4
        });
    }
    cluster.wait_until_ok();
    assert_all_reachable(&cluster, &containers);
}
