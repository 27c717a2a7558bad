//! A VRF that takes a device of the overlays or of the underlay. The machine's kernel may lack VRFs,
//! so `tests/run kernels` runs these tests on kernels that have them.

use super::Cluster;
use super::container::Container;
use crate::hosts::{Hosts, Underlay};
use crate::traffic::{can_ping, now};

/// Starts two agents with a container each, and adds a VRF to the first host.
fn cluster_with_vrf() -> (Cluster, [Container; 2]) {
    let cluster = Cluster::started(2, Underlay::V4);
    let containers = [1, 2].map(|number| Container::for_mesos(cluster.host(number), "vxlan-1"));
    let host = cluster.host(1).namespace();
    host.run("ip link add blue type vrf table 10");
    host.run("ip link set blue up");
    // As the kernel's documentation advises: the other tables are not asked.
    host.run("ip route add table 10 unreachable default metric 4278198272");
    (cluster, containers)
}

#[test]
#[ignore = "needs root, packages and a kernel with VRFs: tests/run kernels"]
fn vrf_of_bridge_is_named_until_device_leaves() {
    const REASON: &str = "m-vxlan-1 belongs to VRF blue (routing table 10): remove it from the VRF \
                          with 'ip link set m-vxlan-1 nomaster'";
    let (cluster, containers) = cluster_with_vrf();
    let is_alive = || can_ping(&containers[0].namespace, containers[1].address(), 16);
    let host = cluster.host(1).namespace();
    assert!(is_alive(), "before: {}", cluster.logs());
    let start = now();
    host.run("ip link set m-vxlan-1 master blue");
    cluster.wait_for_status(1, "vxlan-1", |status| status.contains(REASON));
    let named = start.elapsed().as_millis();
    assert!(!is_alive(), "the path is alive with the bridge in the VRF");
    let start = now();
    host.run("ip link set m-vxlan-1 nomaster");
    cluster.wait_for_status(1, "vxlan-1", |status| status == "STATUS_OK");
    eprintln!("{named:>6} ms named, {:>6} ms until ok", start.elapsed().as_millis());
    cluster.wait_for("the path is alive", is_alive);
}

/// The agent takes its VXLAN device out of every device that it is a port of.
#[test]
#[ignore = "needs root, packages and a kernel with VRFs: tests/run kernels"]
fn vrf_of_tunnel_is_repaired() {
    let (cluster, containers) = cluster_with_vrf();
    let host = cluster.host(1).namespace();
    let start = now();
    host.run("ip link set vtep1024 master blue");
    let is_member = || host.run("ip -o link show vtep1024").contains(" master blue ");
    cluster.wait_for("the device leaves the VRF", || !is_member());
    let is_alive = || can_ping(&containers[0].namespace, containers[1].address(), 16);
    cluster.wait_for("the path is alive", is_alive);
    eprintln!("{:>6} ms until the path is alive", start.elapsed().as_millis());
    cluster.wait_for_status(1, "vxlan-1", |status| status == "STATUS_OK");
    assert!(!is_member(), "{}", cluster.logs());
}

#[test]
#[ignore = "needs root, packages and a kernel with VRFs: tests/run kernels"]
fn vrf_of_underlay_is_named_until_device_leaves() {
    let hosts = Hosts::new(2, Underlay::V4);
    hosts.program();
    let (host, desired) = (&hosts.hosts[0], hosts.desired(&hosts.hosts[0]));
    let faults =
        || -> Vec<String> { host.verify(&desired).faults().map(|fault| fault.reason).collect() };
    let is_alive = || host.container_can_ping(&hosts.hosts[1].address().to_string(), 16);
    host.namespace.run("ip link add mgmt type vrf table 20");
    host.namespace.run("ip link set mgmt up");
    host.namespace.run("ip link set eth0 master mgmt");
    let text = "VXLAN packets do not leave from 10.0.0.1: eth0 belongs to VRF mgmt (routing table 20), \
                whose routes they do not use: set 'underlay' to an address outside of the VRF; if \
                nothing else uses the VRF through eth0, run 'ip link set eth0 nomaster', which ends \
                the traffic of the VRF through the device, instead";
    assert_eq!(faults(), [text]);
    assert!(!is_alive());
    host.namespace.run("ip link set eth0 nomaster");
    assert_eq!(faults(), [""; 0]);
    assert!(is_alive());
    // Sockets of the host receive packets of the VRF: the operator has connected the two.
    host.namespace.run("ip link set eth0 master mgmt");
    host.namespace.run("sysctl -qw net.ipv4.udp_l3mdev_accept=1");
    assert_eq!(faults(), [""; 0]);
}
