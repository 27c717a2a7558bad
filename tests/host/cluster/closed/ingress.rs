//! The key `overlay_ingress`, gateways, and a restart of the agent while a host outside sends
//! packets.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;

use super::lab::{Rules, STRANGER, prepare_host};
use super::packets::{Mark, Shape, VxlanPacket, send_datagram};
use super::probe::Verdict::{self, Drop, Pass};
use super::probe::{Action, Row, differences};
use crate::cluster::Cluster;
use crate::cluster::container::Container;
use crate::hosts::Underlay;
use crate::namespace::Namespace;
use crate::traffic::{on_drop, sleep};

/// Address of the container on host 1, which all rows have as target.
const CONTAINER: &str = "192.168.0.2";

/// The first two hosts have containers. Host 3 is a gateway without subnets.
fn start(rules: Rules) -> Cluster {
    let mut cluster = Cluster::new(Underlay::V4);
    let stranger = &cluster.namespace;
    stranger.run(&format!("ip addr add {STRANGER}/24 dev eth0"));
    stranger.run("ip route add 192.168.0.0/24 via 10.0.0.1");
    for number in 1..=3 {
        let host = cluster.add_host(number);
        host.config["firewall"] = json!(rules.key());
        if number == 3 {
            host.config["network_config"] = json!({ "allocate_subnet": false });
        }
        prepare_host(host);
    }
    cluster.start_agents();
    wait_until_ok(&cluster);
    cluster
}

/// Waits until the agents have programmed all peers. The gateway has no subnets.
fn wait_until_ok(cluster: &Cluster) {
    for host in &cluster.hosts {
        cluster.wait_for(&format!("agent {} is ok", host.number), || {
            let health = host.health();
            health["status"] == "ok"
                && health["dataplane"]["status"] == "ok"
                && health["dataplane"]["peers"] == 3
        });
    }
}

fn restart(cluster: &mut Cluster, number: u8) {
    let host = cluster.host_mut(number);
    host.agent.take().expect("a running process").kill();
    host.start_agent();
    wait_until_ok(cluster);
}

/// Returns the rows. `ingress` is the verdict on strangers, and `of_others` is the verdict on inner
/// sources of other agents.
fn rows<'a>(
    cluster: &'a Cluster,
    container: &'a Namespace,
    ingress: Verdict,
    of_others: Verdict,
) -> Vec<Row<'a>> {
    let host = |number| cluster.host(number).namespace();
    let by_vxlan = |number: u8, source: &str, what: &str, expected| {
        let name = if number == 3 { "gateway" } else { "known agent" };
        let outer = Ipv4Addr::new(10, 0, 0, number);
        let packet = VxlanPacket::new(1, (source, CONTAINER), Shape::Plain);
        let action = Action::vxlan((host(number), outer), container, packet);
        Row::new(format!("{name}, inner source {source}"), what, expected, action)
    };
    let to = CONTAINER.parse().expect("a valid address");
    let stranger = Action::datagram(&cluster.namespace, container, to);
    vec![
        Row::new("stranger by route", "container", ingress, stranger),
        by_vxlan(3, "8.8.8.8", "external", Pass),
        by_vxlan(3, STRANGER, "external", Pass),
        by_vxlan(3, "44.128.0.3", "own VTEP", Pass),
        by_vxlan(3, "192.168.1.2", "other agent's subnet", of_others),
        by_vxlan(3, "44.128.0.2", "other agent's VTEP", of_others),
        by_vxlan(3, "192.168.77.2", "unallocated", Drop),
        // iptables cannot compare the outer source, so with a gateway every known agent may send
        // external sources.
        by_vxlan(2, "8.8.8.8", "external", if of_others == Pass { Pass } else { ingress }),
        by_vxlan(2, "192.168.1.2", "own subnet", Pass),
    ]
}

/// Sends datagrams by route, and forged VXLAN packets, from the stranger to the container while
/// `act` runs. Returns the number of datagrams that arrive.
fn count_intrusions_during(
    stranger: &Namespace,
    container: &Namespace,
    act: impl FnOnce(),
) -> usize {
    const PORT: u16 = 19_000;
    let receiver = container.inside(|| UdpSocket::bind(("0.0.0.0", PORT)).expect("a free port"));
    receiver.set_nonblocking(true).expect("a socket option");
    let mark = Mark { tag: *b"intruder", port: PORT, source_port: 39_000 };
    let packet = VxlanPacket::new(1, ("192.168.1.2", CONTAINER), Shape::Plain);
    let outer = STRANGER.parse().expect("a valid address");
    let to = SocketAddr::new(packet.inner_target, PORT);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let send = || {
            stranger.inside(|| {
                while !is_over.load(Ordering::Relaxed) {
                    send_datagram(to, &mark.tag);
                    packet.send_raw(outer, &mark);
                    sleep(Duration::from_millis(1));
                }
            });
        };
        std::thread::Builder::new().spawn_scoped(scope, send).expect("a thread");
        let over = on_drop(|| is_over.store(true, Ordering::Relaxed));
        act();
        drop(over);
    });
    let mut buffer = [0; 64];
    std::iter::from_fn(|| receiver.recv(&mut buffer).ok()).count()
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn overlay_ingress_and_gateways_decide_about_external_sources() {
    let mut different = Vec::new();
    for rules in [Rules::Nftables, Rules::IptablesNft] {
        // With iptables, an agent may use the sources of other agents, but no unallocated sources.
        let of_others = if rules == Rules::Nftables { Drop } else { Pass };
        let mut cluster = start(rules);
        let container = Container::for_mesos(cluster.host(1), "vxlan-1");
        assert_eq!(container.address().to_string(), CONTAINER);
        let container = container.namespace;
        let closed = rows(&cluster, &container, Drop, of_others);
        different.extend(differences(closed.iter(), rules.name(), |row| row.expected));
        drop(closed);

        // The rules of the killed agent stay until the next agent has made its rules.
        let stranger = Namespace::of_path(cluster.namespace.path());
        let intrusions = count_intrusions_during(&stranger, &container, || {
            restart(&mut cluster, 1);
        });
        if intrusions > 0 {
            different.push(format!("{}: {intrusions} packets during a restart", rules.name()));
        }
        let closed = rows(&cluster, &container, Drop, of_others);
        let label = format!("{}, restarted", rules.name());
        different.extend(differences(closed.iter(), &label, |row| row.expected));
        drop(closed);

        cluster.host_mut(1).config["overlay_ingress"] = json!("open");
        restart(&mut cluster, 1);
        let open = rows(&cluster, &container, Pass, of_others);
        let label = format!("{}, ingress open", rules.name());
        different.extend(differences(open.iter(), &label, |row| row.expected));
    }
    assert!(different.is_empty(), "{} rows differ:\n{}", different.len(), different.join("\n"));
}
