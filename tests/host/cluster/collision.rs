//! Overlays that collide with routes of a host: a new overlay is refused and the host stays
//! reachable, and an overlay that is in use is kept.

use serde_json::json;

use super::container::Container;
use super::{Cluster, NETWORK};
use crate::hosts::Underlay;
use crate::traffic::can_ping;

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn colliding_overlay_is_refused_and_host_keeps_routes() {
    // The third overlay overlaps the network of the hosts.
    let network = NETWORK.replace(
        "\"overlays\": [",
        "\"overlays\": [ { \"name\": \"vxlan-3\", \"subnet\": \"10.0.0.0/20\", \"prefix\": 24 },",
    );
    let mut cluster = Cluster::with_network(Underlay::V4, &network);
    // A router leads to another host, which has an address of the first overlay.
    let routed_address = "192.168.5.1".parse().expect("a valid address");
    cluster.namespace.run("ip addr add 192.168.5.1/32 dev lo");
    for number in [1, 2] {
        let host = cluster.add_host(number);
        host.config["verify_interval"] = json!("1s");
    }
    let route = "192.168.5.0/24 via 10.0.0.100";
    let host = cluster.host(2);
    host.namespace().run(&format!("ip route add {route}"));
    assert!(can_ping(host.namespace(), routed_address, 16));
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
        "give the network behind the gateway another subnet",
    );
    for number in [1, 2] {
        cluster.wait_for_status(number, "vxlan-3", |status| status == underlay);
        cluster.wait_for_status(number, "vxlan-2", |status| status == "STATUS_OK");
    }
    cluster.wait_for_status(1, "vxlan-1", |status| status == "STATUS_OK");
    cluster.wait_for_status(2, "vxlan-1", |status| status == routed);
    cluster.wait_for("both agents know each other", || {
        cluster.hosts.iter().all(|host| host.has_fdb_entries(1))
    });

    // The host keeps its routes, and has no objects of the refused overlays. The other overlay
    // works.
    let host = cluster.host(2);
    assert!(can_ping(host.namespace(), routed_address, 16), "{}", cluster.logs());
    assert!(!host.daemon.path("cni/vxlan-1.conf").exists());
    assert!(!host.daemon.path("cni/vxlan-3.conf").exists());
    let routes = host.namespace().run("ip route show proto 109");
    assert!(!routes.contains("192.168.0.0") && !routes.contains("10.0."), "{routes}");
    let container = |number| Container::for_mesos(cluster.host(number), "vxlan-2");
    let (one, two) = (container(1), container(2));
    cluster.wait_for("the containers reach each other", || {
        can_ping(&one.namespace, two.address(), 1392)
            && can_ping(&two.namespace, one.address(), 1392)
    });

    // The network behind the gateway moves.
    host.namespace().run("ip route delete 192.168.5.0/24");
    cluster.wait_for_status(2, "vxlan-1", |status| status == "STATUS_OK");
    let container = |number| Container::for_mesos(cluster.host(number), "vxlan-1");
    let (one, two) = (container(1), container(2));
    cluster.wait_for("the containers reach each other", || {
        can_ping(&one.namespace, two.address(), 1392)
    });
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn used_overlay_with_later_collision_survives_restart() {
    let mut cluster = Cluster::started(2, Underlay::V4);
    let containers = cluster.add_containers();
    let reach_each_other = || {
        let (one, two) = (&containers[0], &containers[1]);
        can_ping(&one.namespace, two.address(), 1392)
            && can_ping(&two.namespace, one.address(), 1392)
    };
    cluster.wait_for("the containers reach each other", reach_each_other);
    // Add collisions with the IPv4 and IPv6 subnets of the overlay, and with the VTEP subnet.
    let namespace = cluster.host(2).namespace();
    for route in ["192.168.77.0/24 via 10.0.0.100", "44.128.77.0/24 via 10.0.0.100"] {
        namespace.run(&format!("ip route add {route}"));
    }
    namespace.run("ip link add other type bridge");
    namespace.run("ip link set other up");
    namespace.run("ip -6 route add fd01:b::ff:0:0:0/80 dev other");
    let dump = |cluster: &Cluster| {
        let namespace = cluster.host(2).namespace();
        namespace.run("ip route show proto 109") + &namespace.run("ip -6 route show proto 109")
    };
    let before = dump(&cluster);
    cluster.host_mut(2).agent = None;
    cluster.host_mut(2).start_agent();
    cluster.wait_for("health reports the collision and a complete dataplane", || {
        let health = cluster.host(2).health();
        let problems = health["problems"].as_array().cloned().unwrap_or_default();
        let is_reported = |text: &str| {
            problems.iter().any(|problem| problem.as_str().is_some_and(|it| it.contains(text)))
        };
        health["dataplane"]["status"] == "ok"
            && is_reported("subnet 192.168.0.0/17 of overlay vxlan-1 collides")
    });
    cluster.wait_for_status(2, "vxlan-1", |status| status == "STATUS_OK");
    assert_eq!(before, dump(&cluster), "{}", cluster.logs());
    assert!(reach_each_other(), "{}", cluster.logs());
}
