//! Errors of the dataplane: operations that the kernel refuses, and their reports.

use std::net::UdpSocket;
use std::sync::Arc;

use overlay_linux::dataplane::{Dataplane, Report};
use overlay_types::tunnel::Desired;
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

use crate::hosts::{Hosts, Underlay};

fn messages(report: &Report) -> Vec<String> {
    let failures = report.failures.iter().map(ToString::to_string);
    failures.chain(report.problems.iter().map(ToString::to_string)).collect()
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn refused_operation_is_reported_with_remedy() {
    let hosts = Hosts::new(2, Underlay::V4);
    let host = &hosts.hosts[0];
    let desired = hosts.desired(host);
    let add = "add device vtep1024 with VNI 1024 on UDP port 64000";

    let socket = host.namespace.inside(|| UdpSocket::bind("0.0.0.0:64000").expect("a free port"));
    assert_eq!(
        messages(&host.verify(&desired)),
        [format!(
            "{add}: address already in use: find the owner of UDP port 64000 with 'ss -ulpn sport \
             = :64000', or set another port on all agents"
        )]
    );
    drop(socket);

    host.namespace.run("ip link add vtep1024 type bridge");
    assert_eq!(
        messages(&host.verify(&desired)),
        ["device vtep1024 is a foreign bridge device, so it is left alone: see 'ip -d \
             link show vtep1024', and let its owner rename or remove it"]
    );
    host.namespace.run("ip link delete vtep1024");

    host.namespace.run("ip link add other type vxlan id 1024 dstport 64000");
    assert_eq!(
        messages(&host.verify(&desired)),
        ["device vtep1024 cannot have VNI 1024 on UDP port 64000, which VXLAN device other has: \
             let the owner of other remove it, or set another VNI or port on all agents"]
    );
    host.namespace.run("ip link delete other");

    host.namespace.run("ip route add 192.168.2.0/24 via 10.0.0.2");
    assert_eq!(
        messages(&host.verify(&desired)),
        ["add route to 192.168.2.0/24 metric 0 via 44.128.0.2 on vtep1024: file exists: the \
             new route conflicts with a route through eth0, which this host may need: see 'ip \
             route show table all 192.168.2.0/24', and give the overlay another subnet, or let the \
             owner of that route move it"]
    );
    host.namespace.run("ip route delete 192.168.2.0/24");
    let report = host.verify(&desired);
    assert!(report.is_complete(), "{report:?}");
}

/// Verifies without CAP_NET_ADMIN. The capability is dropped for the current thread only.
fn verify_without_net_admin(desired: &Desired) -> Report {
    let mut own = capabilities(None).expect("capabilities of the thread");
    own = CapabilitySets { effective: own.effective & !CapabilitySet::NET_ADMIN, ..own };
    set_capabilities(None, own).expect("permission to drop a capability");
    let mut dataplane = Dataplane::open().expect("a netlink socket");
    dataplane.verify(&Arc::new(desired.clone())).expect("kernel state is readable")
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn verify_without_net_admin_reports_and_changes_nothing() {
    let hosts = Hosts::new(2, Underlay::V4);
    let host = &hosts.hosts[0];
    let desired = hosts.desired(host);
    let before = host.dump();
    let report = host.namespace.inside(|| verify_without_net_admin(&desired));
    assert_eq!(
        messages(&report)[0],
        "add device vtep1024 with VNI 1024 on UDP port 64000: operation not permitted: run the \
         agent as root, or give it CAP_NET_ADMIN"
    );
    assert_eq!(before, host.dump());
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn collisions_with_host_routes_are_found() {
    let hosts = Hosts::new(2, Underlay::V4);
    let host = &hosts.hosts[0];
    let found = || {
        let found = host.namespace.inside(|| {
            let mut dataplane = Dataplane::open().expect("a netlink socket");
            dataplane.collisions(&hosts.desired(host)).expect("kernel state is readable")
        });
        let found: Vec<_> = found.iter().map(|collision| collision.object.to_string()).collect();
        found
    };
    host.namespace.run("ip route add default via 10.0.0.2");
    host.namespace.run("ip route add 192.0.0.0/8 via 10.0.0.2");
    assert_eq!(found(), [""; 0]);
    // The objects of the dataplane itself are no collisions.
    hosts.program();
    assert_eq!(found(), [""; 0]);
    for line in [
        "ip addr add 192.168.77.1/24 dev eth0",
        "ip addr add 192.168.78.1/24 dev lo noprefixroute",
        "ip route add 44.128.9.0/24 nexthop via 10.0.0.2 nexthop via 10.0.0.3",
        "ip route add unreachable 192.168.79.0/24",
        "ip -6 route add fd01:b:0:0:ff::/80 via fd01:b:0:0:1::9",
    ] {
        host.namespace.run(line);
    }
    assert_eq!(
        found(),
        [
            "address 192.168.78.1/24 on device lo",
            "route '192.168.77.0/24 dev eth0'",
            "route '44.128.9.0/24 via 10.0.0.2 dev eth0'",
        ]
    );
    host.namespace.run("ip -6 addr add fd00::1/64 dev eth0 nodad");
    host.namespace.run("ip -6 route add fd01:b:0:0:fe::/80 via fd00::2");
    let with_v6 = found();
    assert_eq!(with_v6[2], "route 'fd01:b:0:0:fe::/80 via fd00::2 dev eth0'", "{with_v6:?}");
}
