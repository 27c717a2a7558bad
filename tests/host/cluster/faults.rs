//! Hosts on which something is in the way: it is said on the overlays concerned, at the master too,
//! and everything else works on, there and everywhere.

use std::net::UdpSocket;

use serde_json::json;

use super::Cluster;
use super::container::Container;
use crate::hosts::Underlay;
use crate::namespace::demand;
use crate::program::{PROGRAM, Running};
use crate::traffic::reaches;

const SETPRIV: &str = "/usr/bin/setpriv";

/// The host that is in order, and what is in the way on the others.
const GOOD: u8 = 1;
const PORT_TAKEN: u8 = 2;
const NAME_TAKEN: u8 = 3;
const POWERLESS: u8 = 4;
const NO_FIREWALL: u8 = 5;
const NARROW: u8 = 6;

/// How it is said.
const REASONS: [(u8, &str); 5] = [
    (
        PORT_TAKEN,
        "add device vtep1024 with VNI 1024 on UDP port 64000: address already in use: see who has \
         UDP port 64000 with 'ss -ulpn sport = :64000', or set another port on all agents",
    ),
    (
        NAME_TAKEN,
        "device vtep1024 is a bridge device that is not ours, so it is left alone: remove it with \
         'ip link delete vtep1024' or rename it",
    ),
    (POWERLESS, "peration not permitted: run the agent as root, or give it CAP_NET_ADMIN"),
    (
        NO_FIREWALL,
        "firewall: program 'nft' not found: install nftables, or iptables and ipset, or set \
         firewall to none",
    ),
    (
        NARROW,
        "device vtep1024 would have an MTU of 1250, and needs 1280: raise the MTU of the device \
         with 10.0.0.6 to 1330",
    ),
];

impl Cluster {
    /// Runs an agent by words before it, those of a command that becomes it.
    fn start_by(&mut self, number: u8, words: &[&str]) {
        let host = self.host_mut(number);
        let config = host.write_config();
        let mut command = host.namespace().command("env");
        command.args(words);
        let listen = format!("{}:5051", Underlay::V4.address(number));
        command.args([PROGRAM, "agent", "--config", &config, "--listen", &listen]);
        host.agent = Some(Running::spawn(command, &host.engine.path("agent.log")));
    }
}

#[test]
#[ignore = "host"]
fn what_is_in_the_way_on_a_host_is_said_at_the_master_and_disturbs_nobody_else() {
    demand(&[SETPRIV]);
    let mut cluster = Cluster::new(Underlay::V4);
    for number in GOOD..=NARROW {
        cluster.add(number).config["verify_interval"] = json!("1s");
    }
    let namespace = |number| cluster.host(number).namespace();
    let taken = namespace(PORT_TAKEN).inside(|| UdpSocket::bind("0.0.0.0:64000"));
    let taken = taken.expect("it is free");
    namespace(NAME_TAKEN).run("ip link add vtep1024 type bridge");
    namespace(NARROW).run("ip link set eth0 mtu 1300");
    for number in [GOOD, PORT_TAKEN, NAME_TAKEN, NARROW] {
        cluster.host_mut(number).start_agent();
    }
    let powerless = [SETPRIV, "--bounding-set", "-net_admin", "--inh-caps", "-net_admin"];
    cluster.start_by(POWERLESS, &powerless);
    // In a view of the files in which there are no nft, iptables and ipset.
    let hide = "mount -t tmpfs tmpfs /usr/sbin && exec \"$@\"";
    cluster.start_by(NO_FIREWALL, &["unshare", "--mount", "sh", "-c", hide, "sh"]);

    cluster.wait_for_status(GOOD, "vxlan-1", |status| status == "STATUS_OK");
    for (number, reason) in REASONS {
        for overlay in ["vxlan-1", "vxlan-2"] {
            cluster.wait_for_status(number, overlay, |status| status.contains(reason));
        }
        eprintln!("{number}: {}", cluster.status(number, "vxlan-1"));
    }
    // Each has the networks of its containers all the same, and the others reach those that have a
    // tunnel.
    let containers: Vec<_> =
        cluster.hosts.iter().map(|host| Container::of_mesos(host, "vxlan-1")).collect();
    for host in &cluster.hosts {
        let container = &containers[usize::from(host.number - 1)];
        let gateway = format!("192.168.{}.1", subnet(container));
        assert!(container.namespace.can_reach(&gateway), "{}", cluster.logs());
    }
    let reach_each_other = |number: u8, size| {
        let (one, other) = (&containers[0], &containers[usize::from(number - 1)]);
        cluster.wait_for("their containers reach each other", || {
            reaches(&one.namespace, other.address(), size)
                && reaches(&other.namespace, one.address(), size)
        });
    };
    reach_each_other(NO_FIREWALL, 1392);
    cluster.host(NARROW).namespace().run("ip link set eth0 mtu 1400");
    cluster.wait_for_status(NARROW, "vxlan-1", |status| {
        status
            .starts_with("device vtep1024 has an MTU of 1350, and the containers have one of 1420")
    });
    reach_each_other(NARROW, 1000);

    // What is mended works without a restart.
    drop(taken);
    cluster.host(NAME_TAKEN).namespace().run("ip link delete vtep1024");
    cluster.host(NARROW).namespace().run("ip link set eth0 mtu 1500");
    for number in [PORT_TAKEN, NAME_TAKEN, NARROW] {
        cluster.wait_for_status(number, "vxlan-1", |status| status == "STATUS_OK");
        reach_each_other(number, 1392);
    }
}

/// Which of the subnets of its overlay a container is in.
fn subnet(container: &Container) -> u8 {
    match container.address() {
        std::net::IpAddr::V4(address) => address.octets()[2],
        std::net::IpAddr::V6(_) => 0,
    }
}
