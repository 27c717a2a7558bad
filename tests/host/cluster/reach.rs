//! Who reaches whom: every container every other, on either half, in both families, by ping with
//! packets of full size and by TCP; hosts and containers of others; and nobody what is not there.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::json;

use super::container::{Container, sizes};
use super::{Cluster, Host};
use crate::hosts::Underlay;
use crate::namespace::{BUSYBOX, Namespace};
use crate::traffic::{reaches, transfer};

/// Somebody who sends: a container, or a host.
struct Sender<'a> {
    name: String,
    namespace: &'a Namespace,
    families: [bool; 2],
}

impl<'a> Sender<'a> {
    fn of_container(container: &'a Container) -> Self {
        let has = |is_v4| container.addresses.iter().any(|address| address.is_ipv4() == is_v4);
        let (name, namespace) = (container.name.clone(), &container.namespace);
        Self { name, namespace, families: [has(true), has(false)] }
    }

    fn of_host(host: &'a Host) -> Self {
        let name = format!("{} host", host.number);
        Self { name, namespace: host.namespace(), families: [true, true] }
    }
}

impl Sender<'_> {
    /// Pings each, small and with full size, and returns what was answered, a line each. One after
    /// the other: every ping hears the answers to all, and has room for a few.
    fn ping<'b>(&self, targets: impl Iterator<Item = &'b IpAddr>) -> BTreeSet<String> {
        let ping = |(target, size): (&IpAddr, u32)| {
            let answer = format!("echo {target} with {size} bytes");
            format!("{BUSYBOX} ping -c 1 -W 2 -s {size} {target} >/dev/null && {answer}\n")
        };
        let each = targets.flat_map(|target| sizes(target).map(|size| (target, size)));
        let script: String = each.map(ping).chain(["true\n".to_owned()]).collect();
        let answers = self.namespace.succeed("sh", &["-c", &script]);
        answers.lines().map(str::to_owned).collect()
    }
}

/// Pings all from all and prints the matrix: a column for each address. Fails if one is not
/// answered.
pub(super) fn assert_all_answer(cluster: &Cluster, containers: &[Container]) {
    let hosts = cluster.hosts.iter().map(Sender::of_host);
    let senders: Vec<_> = containers.iter().map(Sender::of_container).chain(hosts).collect();
    let vteps = cluster.hosts.iter().map(|host| cluster.vtep(host.number));
    let targets: Vec<IpAddr> =
        containers.iter().flat_map(|to| to.addresses.iter().copied()).chain(vteps).collect();
    let mut lost = Vec::new();
    for (index, target) in targets.iter().enumerate() {
        eprintln!("{:>24}{} {target}", "", "| ".repeat(index));
    }
    for sender in &senders {
        let is_asked = |target: &IpAddr| sender.families[usize::from(target.is_ipv6())];
        let answers = sender.ping(targets.iter().filter(|target| is_asked(target)));
        let mut row = String::new();
        for target in &targets {
            let missing = sizes(target).map(|size| format!("{target} with {size} bytes"));
            let missing = missing.into_iter().filter(|it| !answers.contains(it));
            let missing: Vec<_> = missing.filter(|_| is_asked(target)).collect();
            row += match missing[..] {
                _ if !is_asked(target) => "- ",
                [] => "o ",
                _ => "X ",
            };
            lost.extend(missing.into_iter().map(|it| format!("{} to {it}", sender.name)));
        }
        eprintln!("{:>24}{row}", format!("{}  ", sender.name));
    }
    assert!(lost.is_empty(), "{lost:#?}\n{}", cluster.logs());
    for namespace in senders.iter().map(|sender| sender.namespace) {
        let counts = namespace.run("nstat -asz IpFragCreates Ip6FragCreates");
        let is_zero = |line: &str| line.starts_with('#') || line.contains(" 0 ");
        assert!(counts.lines().all(is_zero), "packets were cut in pieces: {counts}");
    }
}

/// A megabyte from every container to every other one.
fn transfer_between_all(containers: &[Container]) {
    for (index, to) in containers.iter().enumerate() {
        for (_, from) in containers.iter().enumerate().filter(|(from, _)| *from != index) {
            for address in to.addresses.iter().filter(|address| from.has(address)) {
                transfer(&from.namespace, &to.namespace, *address, 1_000_000);
            }
        }
    }
}

#[test]
#[ignore = "host"]
fn containers_of_mesos_and_of_two_dockers_reach_each_other_on_three_hosts() {
    let mut cluster = Cluster::new(Underlay::V4);
    for number in 1..=3 {
        cluster.add(number);
    }
    for host in &mut cluster.hosts[..2] {
        host.config["network_config"] = json!({});
        host.engine.bring_up();
        host.engine.import_image();
    }
    cluster.start_agents();
    cluster.wait_until_ok();
    let mut containers: Vec<_> =
        cluster.hosts.iter().map(|host| Container::of_mesos(host, "vxlan-1")).collect();
    for host in &cluster.hosts[..2] {
        containers.push(Container::of_docker(host, "vxlan-1"));
        containers.push(Container::of_docker(host, "vxlan-2"));
    }
    containers.push(Container::of_mesos(cluster.host(3), "vxlan-2"));
    let families = |container: &Container| container.addresses.len();
    assert_eq!(containers.iter().map(families).collect::<Vec<_>>(), [1, 1, 1, 2, 1, 2, 1, 1]);
    assert_all_answer(&cluster, &containers);
    transfer_between_all(&containers);
}

#[test]
#[ignore = "host"]
fn tunnels_run_over_ipv6_as_well() {
    let cluster = Cluster::started(3, Underlay::V6);
    let containers = cluster.containers();
    let shown = cluster.host(1).namespace().run("bridge fdb show dev vtep1024");
    assert!(shown.contains(" dst fd00:10::2 ") && !shown.contains(" dst 10."), "{shown}");
    let shown = cluster.host(1).namespace().run("ip link show vtep1024");
    assert!(shown.contains(" mtu 1430 "), "{shown}");
    assert_all_answer(&cluster, &containers);
    transfer_between_all(&containers);
}

#[test]
#[ignore = "host"]
fn addresses_that_nobody_has_do_not_follow_the_default_route() {
    let mut cluster = Cluster::new(Underlay::V4);
    // The default route leads to a router that would answer for all the world, and for what nobody
    // has of the overlays too.
    let router = &cluster.switch;
    router.enable_ipv6();
    Underlay::V4.assign_to(router, 254, "br0");
    Underlay::V6.assign_to(router, 254, "br0");
    let outside: [IpAddr; 2] =
        ["198.51.100.7", "2001:db8::7"].map(|text| text.parse().expect("it is an address"));
    let inside: [IpAddr; 3] = ["192.168.77.7", "192.168.200.7", "fd01:b:0:0:77::7"]
        .map(|text| text.parse().expect("it is an address"));
    for address in outside.iter().chain(&inside) {
        let nodad = if address.is_ipv6() { "nodad" } else { "" };
        router.run(&format!("ip addr add {address} dev lo {nodad}"));
    }
    let host = cluster.add(1);
    Underlay::V6.assign(host.namespace(), 1);
    host.namespace().run("ip route add default via 10.0.0.254");
    host.namespace().run("ip -6 route add default via fd00:10::fe");
    host.start_agent();
    cluster.wait_until_ok();
    let host = cluster.host(1);
    let container = Container::of_mesos(host, "vxlan-1");
    for address in outside {
        assert!(reaches(host.namespace(), address, 16), "{address}");
    }
    assert!(reaches(&container.namespace, outside[0], 16), "as the host, which is masqueraded");
    for address in inside {
        assert!(!reaches(host.namespace(), address, 16), "{address}");
    }
    for address in &inside[..2] {
        assert!(!reaches(&container.namespace, *address, 16), "{address}");
    }
}
