//! Hosts with faults: the agent reports each fault on the affected overlays, also at the master,
//! and all other overlays and hosts keep working.

use std::collections::BTreeMap;
use std::net::UdpSocket;

use serde_json::json;

use super::Cluster;
use super::container::Container;
use crate::hosts::Underlay;
use crate::namespace::require_root_and_files;
use crate::traffic::can_ping;

const SETPRIV: &str = "/usr/bin/setpriv";

/// The host without a fault, and the hosts with a fault each.
const HEALTHY: u8 = 1;
const PORT_TAKEN: u8 = 2;
const NAME_TAKEN: u8 = 3;
const NO_NET_ADMIN: u8 = 4;
const NO_FIREWALL: u8 = 5;
const SMALL_MTU: u8 = 6;

/// The reported reason of each fault.
const REASONS: [(u8, &str); 5] = [
    (
        PORT_TAKEN,
        "add device vtep1024 with VNI 1024 on UDP port 64000: address already in use: find the \
         owner of UDP port 64000 with 'ss -ulpn sport = :64000', or set another port on all agents",
    ),
    (
        NAME_TAKEN,
        "device vtep1024 is a foreign bridge device, so it is left alone: see 'ip -d link show \
         vtep1024', and let its owner rename or remove it",
    ),
    (NO_NET_ADMIN, "peration not permitted: run the agent as root, or give it CAP_NET_ADMIN"),
    (
        NO_FIREWALL,
        "firewall: program 'nft' not found: install nftables, or iptables and ipset, or set \
         firewall to none",
    ),
    (
        SMALL_MTU,
        "device vtep1024 has an MTU of 1250, and the containers have one of 1420: set \
         network_config.overlay_mtu to 1250 or less, or remove it, or raise the MTU of the device \
         with 10.0.0.6 to 1470",
    ),
];

/// Starts an agent through a wrapper command, which execs the program.
fn start_with_wrapper(cluster: &mut Cluster, number: u8, wrapper: &[&str]) {
    let host = cluster.host_mut(number);
    host.wrapper = wrapper.iter().map(|&word| word.to_owned()).collect();
    host.start_agent();
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn host_faults_are_reported_and_affect_no_other_host() {
    require_root_and_files(&[SETPRIV]);
    let mut cluster = Cluster::new(Underlay::V4);
    for number in HEALTHY..=SMALL_MTU {
        cluster.add_host(number).config["verify_interval"] = json!("1s");
    }
    let namespace = |number| cluster.host(number).namespace();
    let socket = namespace(PORT_TAKEN).inside(|| UdpSocket::bind("0.0.0.0:64000"));
    let socket = socket.expect("a free port");
    namespace(NAME_TAKEN).run("ip link add vtep1024 type bridge");
    namespace(SMALL_MTU).run("ip link set eth0 mtu 1300");
    cluster.host_mut(SMALL_MTU).config["network_config"]["overlay_mtu"] = json!(1420);
    for number in [HEALTHY, PORT_TAKEN, NAME_TAKEN, SMALL_MTU] {
        cluster.host_mut(number).start_agent();
    }
    let wrapper = [SETPRIV, "--bounding-set", "-net_admin", "--inh-caps", "-net_admin"];
    start_with_wrapper(&mut cluster, NO_NET_ADMIN, &wrapper);
    // In a mount namespace without nft, iptables and ipset.
    let hide = "mount -t tmpfs tmpfs /usr/sbin && exec \"$@\"";
    let wrapper = ["unshare", "--mount", "sh", "-c", hide, "sh"];
    start_with_wrapper(&mut cluster, NO_FIREWALL, &wrapper);

    cluster.wait_for_status(HEALTHY, "vxlan-1", |status| status == "STATUS_OK");
    for (number, reason) in REASONS {
        for overlay in ["vxlan-1", "vxlan-2"] {
            cluster.wait_for_status(number, overlay, |status| status.contains(reason));
        }
        eprintln!("{number}: {}", cluster.status(number, "vxlan-1"));
    }
    // Hosts without firewall rules have no container networks: containers would pose as the host.
    for number in [NO_NET_ADMIN, NO_FIREWALL] {
        let status = cluster.status(number, "vxlan-1");
        assert!(
            status.ends_with("its containers get no network without firewall rules"),
            "{status}"
        );
        assert!(!cluster.host(number).daemon.path("cni/vxlan-1.conf").exists(), "{number}");
    }
    // All other hosts have the bridges of their containers. Containers reach each other on hosts
    // that have a tunnel.
    let with_rules = [HEALTHY, PORT_TAKEN, NAME_TAKEN, SMALL_MTU];
    let containers: BTreeMap<_, _> = with_rules
        .map(|number| (number, Container::for_mesos(cluster.host(number), "vxlan-1")))
        .into();
    for container in containers.values() {
        let gateway = format!("192.168.{}.1", subnet_number(container));
        assert!(container.namespace.can_reach(&gateway), "{}", cluster.logs());
    }
    let reach_each_other = |number: u8, size| {
        let (one, other) = (&containers[&HEALTHY], &containers[&number]);
        cluster.wait_for("the containers reach each other", || {
            can_ping(&one.namespace, other.address(), size)
                && can_ping(&other.namespace, one.address(), size)
        });
    };
    // Without rules the tunnel would accept packets of every host, so the host has no tunnel.
    let devices = cluster.host(NO_FIREWALL).namespace().run("ip -br link show");
    assert!(!devices.contains("vtep1024"), "{devices}");
    cluster.host(SMALL_MTU).namespace().run("ip link set eth0 mtu 1400");
    cluster.wait_for_status(SMALL_MTU, "vxlan-1", |status| {
        status
            .starts_with("device vtep1024 has an MTU of 1350, and the containers have one of 1420")
    });
    reach_each_other(SMALL_MTU, 1000);

    // A repaired host works without a restart of its agent.
    drop(socket);
    cluster.host(NAME_TAKEN).namespace().run("ip link delete vtep1024");
    cluster.host(SMALL_MTU).namespace().run("ip link set eth0 mtu 1500");
    for number in [PORT_TAKEN, NAME_TAKEN, SMALL_MTU] {
        cluster.wait_for_status(number, "vxlan-1", |status| status == "STATUS_OK");
        reach_each_other(number, 1392);
    }
}

/// Returns the third octet of a container's address, which numbers the overlay's subnets.
fn subnet_number(container: &Container) -> u8 {
    match container.address() {
        std::net::IpAddr::V4(address) => address.octets()[2],
        std::net::IpAddr::V6(_) => 0,
    }
}
