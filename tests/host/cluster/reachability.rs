//! Reachability: every container pings every other container, of Mesos and of Docker, over IPv4 and
//! IPv6, with small and full-size packets, and sends data by TCP. Containers reach hosts too.
//! Unallocated addresses are unreachable.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::json;

use super::container::{Container, ping_sizes};
use super::{Cluster, Host};
use crate::hosts::Underlay;
use crate::namespace::{BUSYBOX, Namespace};
use crate::traffic::{can_ping, transfer};

/// The source of pings: a container, or a host.
struct Sender<'a> {
    name: String,
    namespace: &'a Namespace,
    families: [bool; 2],
}

impl<'a> Sender<'a> {
    fn from_container(container: &'a Container) -> Self {
        let has = |is_v4| container.addresses.iter().any(|address| address.is_ipv4() == is_v4);
        let (name, namespace) = (container.name.clone(), &container.namespace);
        Self { name, namespace, families: [has(true), has(false)] }
    }

    fn from_host(host: &'a Host) -> Self {
        let name = format!("{} host", host.number);
        Self { name, namespace: host.namespace(), families: [true, true] }
    }
}

impl Sender<'_> {
    /// Pings each target with small and full-size packets. Returns a line per answer. The pings run
    /// one after another: every ping process receives the answers to all, and its buffer holds only
    /// a few.
    fn ping<'b>(&self, targets: impl Iterator<Item = &'b IpAddr>) -> BTreeSet<String> {
        let ping = |(target, size): (&IpAddr, u32)| {
            let answer = format!("echo {target} with {size} bytes");
            format!("{BUSYBOX} ping -c 1 -W 2 -s {size} {target} >/dev/null && {answer}\n")
        };
        let each = targets.flat_map(|target| ping_sizes(target).map(|size| (target, size)));
        let script: String = each.map(ping).chain(["true\n".to_owned()]).collect();
        let answers = self.namespace.succeed("sh", &["-c", &script]);
        answers.lines().map(str::to_owned).collect()
    }
}

/// Pings every address from every sender, and prints the matrix: a column per address. Fails if a
/// ping has no answer.
pub(super) fn assert_all_reachable(cluster: &Cluster, containers: &[Container]) {
    let hosts = cluster.hosts.iter().map(Sender::from_host);
    let senders: Vec<_> = containers.iter().map(Sender::from_container).chain(hosts).collect();
    let vteps = cluster.hosts.iter().map(|host| cluster.vtep(host.number));
    let targets: Vec<IpAddr> =
        containers.iter().flat_map(|to| to.addresses.iter().copied()).chain(vteps).collect();
    let mut lost = Vec::new();
    // Packets before this test, such as answers to probes, met a device with another MTU.
    let count_fragments = || -> Vec<String> {
        let count =
            |sender: &Sender<'_>| sender.namespace.run("nstat -asz IpFragCreates Ip6FragCreates");
        senders.iter().map(count).collect()
    };
    let fragments = count_fragments();
    for (index, target) in targets.iter().enumerate() {
        eprintln!("{:>24}{} {target}", "", "| ".repeat(index));
    }
    for sender in &senders {
        let is_pinged = |target: &IpAddr| sender.families[usize::from(target.is_ipv6())];
        let answers = sender.ping(targets.iter().filter(|target| is_pinged(target)));
        let mut row = String::new();
        for target in &targets {
            let missing = ping_sizes(target).map(|size| format!("{target} with {size} bytes"));
            let missing = missing.into_iter().filter(|ping| !answers.contains(ping));
            let missing: Vec<_> = missing.filter(|_| is_pinged(target)).collect();
            row += match missing[..] {
                _ if !is_pinged(target) => "- ",
                [] => "o ",
                _ => "X ",
            };
            lost.extend(missing.into_iter().map(|ping| format!("{} to {ping}", sender.name)));
        }
        eprintln!("{:>24}{row}", format!("{}  ", sender.name));
    }
    assert!(lost.is_empty(), "{lost:#?}\n{}", cluster.logs());
    assert_eq!(count_fragments(), fragments, "packets were fragmented");
}

/// Sends a megabyte by TCP from every container to every other container.
fn transfer_between_all(containers: &[Container]) {
    for (index, to) in containers.iter().enumerate() {
        for (_, from) in containers.iter().enumerate().filter(|(from, _)| *from != index) {
            for address in to.addresses.iter().filter(|address| from.has_family_of(address)) {
                transfer(&from.namespace, &to.namespace, *address, 1_000_000);
            }
        }
    }
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn mesos_and_docker_containers_reach_each_other() {
    let mut cluster = Cluster::new(Underlay::V4);
    for number in 1..=3 {
        cluster.add_host(number);
    }
    for host in &mut cluster.hosts[..2] {
        host.config["network_config"] = json!({});
        host.daemon.start();
        host.daemon.import_image();
    }
    cluster.start_agents();
    cluster.wait_until_ok();
    let mut containers: Vec<_> =
        cluster.hosts.iter().map(|host| Container::for_mesos(host, "vxlan-1")).collect();
    for host in &cluster.hosts[..2] {
        containers.push(Container::for_docker(host, "vxlan-1"));
        containers.push(Container::for_docker(host, "vxlan-2"));
    }
    containers.push(Container::for_mesos(cluster.host(3), "vxlan-2"));
    let families = |container: &Container| container.addresses.len();
    assert_eq!(containers.iter().map(families).collect::<Vec<_>>(), [1, 1, 1, 2, 1, 2, 1, 1]);
    assert_all_reachable(&cluster, &containers);
    transfer_between_all(&containers);
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn tunnels_over_ipv6_connect_containers() {
    let cluster = Cluster::started(3, Underlay::V6);
    let containers = cluster.add_containers();
    let shown = cluster.host(1).namespace().run("bridge fdb show dev vtep1024");
    assert!(shown.contains(" dst fd00:10::2 ") && !shown.contains(" dst 10."), "{shown}");
    let shown = cluster.host(1).namespace().run("ip link show vtep1024");
    assert!(shown.contains(" mtu 1430 "), "{shown}");
    assert_all_reachable(&cluster, &containers);
    transfer_between_all(&containers);
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn unallocated_addresses_ignore_default_route() {
    let mut cluster = Cluster::new(Underlay::V4);
    // The router behind the default route answers for outside addresses, and also for unallocated
    // addresses of the overlays.
    let router = &cluster.switch;
    router.enable_ipv6();
    Underlay::V4.add_address_to(router, 254, "br0");
    Underlay::V6.add_address_to(router, 254, "br0");
    let outside: [IpAddr; 2] =
        ["198.51.100.7", "2001:db8::7"].map(|text| text.parse().expect("a valid address"));
    let inside: [IpAddr; 3] = ["192.168.77.7", "192.168.200.7", "fd01:b:0:0:77::7"]
        .map(|text| text.parse().expect("a valid address"));
    for address in outside.iter().chain(&inside) {
        let nodad = if address.is_ipv6() { "nodad" } else { "" };
        router.run(&format!("ip addr add {address} dev lo {nodad}"));
    }
    let host = cluster.add_host(1);
    Underlay::V6.add_address(host.namespace(), 1);
    host.namespace().run("ip route add default via 10.0.0.254");
    host.namespace().run("ip -6 route add default via fd00:10::fe");
    host.start_agent();
    cluster.wait_until_ok();
    let host = cluster.host(1);
    let container = Container::for_mesos(host, "vxlan-1");
    for address in outside {
        assert!(can_ping(host.namespace(), address, 16), "{address}");
    }
    assert!(can_ping(&container.namespace, outside[0], 16), "masqueraded packets of a container");
    for address in inside {
        assert!(!can_ping(host.namespace(), address, 16), "{address}");
    }
    for address in &inside[..2] {
        assert!(!can_ping(&container.namespace, *address, 16), "{address}");
    }
}
