//! A VXLAN network identifier for an overlay alone, and another port, given to a running cluster.

use std::fs;

use super::container::Container;
use super::reach::assert_all_answer;
use super::{Cluster, Host, NETWORK};
use crate::hosts::Underlay;

#[test]
#[ignore = "host"]
fn an_overlay_gets_a_vni_of_its_own_while_containers_run() {
    let cluster = Cluster::started(3, Underlay::V4);
    let mut containers = cluster.containers();
    let second = cluster.hosts.iter().map(|host| Container::of_mesos(host, "vxlan-2"));
    containers.extend(second);

    let own = NETWORK
        .replace("\"overlays\": [", "\"vtep_port\": 4789, \"overlays\": [")
        .replace("\"192.168.128.0/17\",", "\"192.168.128.0/17\", \"vni\": 2048,");
    let file = cluster.folder.path().join("network.json");
    fs::write(&file, own).expect("a network file");
    let said = cluster.ask(&["reload"]);
    assert!(said.contains("vtep_port is 4789 instead of 64000"), "{said}");
    assert!(said.contains("overlay vxlan-2: vni is added: 2048"), "{said}");
    let devices = |host: &Host| host.namespace().run("ip -d link show type vxlan");
    // Routes are what comes last.
    let routes = |host: &Host, device: &str| {
        let shown = host.namespace().run("ip route show proto 109");
        shown.lines().filter(|line| line.contains(&format!("dev {device} "))).count()
    };
    for host in &cluster.hosts {
        cluster.wait_for("the second device is there", || {
            let shown = devices(host);
            ["vtep1024", "vtep2048", "vxlan id 2048"].iter().all(|it| shown.contains(it))
                && shown.matches("dstport 4789").count() == 2
                && (routes(host, "vtep1024"), routes(host, "vtep2048")) == (2, 2)
        });
    }
    cluster.wait_until_ok();
    assert_all_answer(&cluster, &containers);
    let shown = cluster.host(1).namespace().run("ip route show proto 109");
    assert!(shown.contains("192.168.1.0/24 via 44.128.0.2 dev vtep1024 onlink"), "{shown}");
    assert!(shown.contains("192.168.129.0/24 via 44.128.0.2 dev vtep2048 onlink"), "{shown}");

    // And back.
    fs::write(&file, NETWORK).expect("a network file");
    cluster.ask(&["reload"]);
    for host in &cluster.hosts {
        cluster.wait_for("the second device is gone", || {
            let shown = devices(host);
            !shown.contains("vtep2048")
                && shown.contains("dstport 64000")
                && routes(host, "vtep1024") == 4
        });
    }
    cluster.wait_until_ok();
    assert_all_answer(&cluster, &containers);
}
