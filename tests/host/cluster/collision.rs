//! An assignment that collides with what a host has already, and a host that is not cut off.

use serde_json::json;

use super::container::Container;
use super::{Cluster, NETWORK};
use crate::hosts::Underlay;
use crate::traffic::reaches;

#[test]
#[ignore = "host"]
fn an_overlay_that_collides_with_a_host_is_refused_by_it_and_cuts_nobody_off() {
    // The third overlay lies over the network of the hosts.
    let network = NETWORK.replace(
        "\"overlays\": [",
        "\"overlays\": [ { \"name\": \"vxlan-3\", \"subnet\": \"10.0.0.0/20\", \"prefix\": 24 },",
    );
    let mut cluster = Cluster::with_network(Underlay::V4, &network);
    // Somebody is behind a router, at addresses of the first overlay.
    let behind = "192.168.5.1".parse().expect("it is an address");
    cluster.namespace.run("ip addr add 192.168.5.1/32 dev lo");
    for number in [1, 2] {
        let host = cluster.add(number);
        host.config["verify_interval"] = json!("1s");
    }
    let route = "192.168.5.0/24 via 10.0.0.100";
    let host = cluster.host(2);
    host.namespace().run(&format!("ip route add {route}"));
    assert!(reaches(host.namespace(), behind, 16));
    cluster.start_agents();

    let refused = |overlay: &str, subnet: &str, route: &str, remedy: &str| {
        format!(
            "subnet {subnet} of overlay {overlay} collides with the host's route '{route} dev \
             eth0': give the overlay another subnet at the master, or {remedy}"
        )
    };
    let underlay =
        refused("vxlan-3", "10.0.0.0/20", "10.0.0.0/24", "give this host another address");
    let routed = refused(
        "vxlan-1",
        "192.168.0.0/17",
        route,
        "remove the route with 'ip route delete 192.168.5.0/24'",
    );
    for number in [1, 2] {
        cluster.wait_for_status(number, "vxlan-3", |status| status == underlay);
        cluster.wait_for_status(number, "vxlan-2", |status| status == "STATUS_OK");
    }
    cluster.wait_for_status(1, "vxlan-1", |status| status == "STATUS_OK");
    cluster.wait_for_status(2, "vxlan-1", |status| status == routed);
    cluster.wait_for("they know of each other", || {
        cluster.hosts.iter().all(|host| host.is_programmed(1))
    });

    // The host is as it was, and has nothing of what it refused; the rest of it works.
    let host = cluster.host(2);
    assert!(reaches(host.namespace(), behind, 16), "{}", cluster.logs());
    assert!(!host.engine.path("cni/vxlan-1.conf").exists());
    assert!(!host.engine.path("cni/vxlan-3.conf").exists());
    let routes = host.namespace().run("ip route show proto 109");
    assert!(!routes.contains("192.168.0.0") && !routes.contains("10.0."), "{routes}");
    let of = |number| Container::of_mesos(cluster.host(number), "vxlan-2");
    let (one, two) = (of(1), of(2));
    cluster.wait_for("their containers reach each other", || {
        reaches(&one.namespace, two.address(), 1392) && reaches(&two.namespace, one.address(), 1392)
    });

    // The operator follows the advice.
    host.namespace().run("ip route delete 192.168.5.0/24");
    cluster.wait_for_status(2, "vxlan-1", |status| status == "STATUS_OK");
    let of = |number| Container::of_mesos(cluster.host(number), "vxlan-1");
    let (one, two) = (of(1), of(2));
    cluster.wait_for("their containers reach each other", || {
        reaches(&one.namespace, two.address(), 1392)
    });
}
