//! An assignment that collides with what a host has already, and a host that is not cut off; and
//! one that came first, and is not taken away.

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

#[test]
#[ignore = "host"]
fn an_overlay_in_use_that_collides_later_survives_a_restart_of_its_agent() {
    let mut cluster = Cluster::started(2, Underlay::V4);
    let containers = cluster.containers();
    let reach_each_other = || {
        let (one, two) = (&containers[0], &containers[1]);
        reaches(&one.namespace, two.address(), 1392) && reaches(&two.namespace, one.address(), 1392)
    };
    cluster.wait_for("the containers reach each other", reach_each_other);
    // In both families of the overlay, and over the VTEPs.
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
    cluster.wait_for("the agent says what collides, and that all is programmed", || {
        let health = cluster.host(2).health();
        let problems = health["problems"].as_array().cloned().unwrap_or_default();
        let is_told =
            |what: &str| problems.iter().any(|it| it.as_str().is_some_and(|it| it.contains(what)));
        health["dataplane"]["status"] == "ok"
            && is_told("subnet 192.168.0.0/17 of overlay vxlan-1 collides")
    });
    cluster.wait_for_status(2, "vxlan-1", |status| status == "STATUS_OK");
    assert_eq!(before, dump(&cluster), "{}", cluster.logs());
    assert!(reach_each_other(), "{}", cluster.logs());
}
