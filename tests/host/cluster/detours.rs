//! Policy rules that lead packets elsewhere: they stay named while the host changes otherwise, the
//! advised command lets the whole overlay pass, and the rules of VPN programs are no cause.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use super::Cluster;
use super::container::Container;
use crate::hosts::Underlay;
use crate::traffic::{can_ping, now, sleep};

/// Leads all packets of containers to another host.
const DETOUR: &str = "ip route add default via 10.0.0.2 dev eth0 table 100 && \
                      ip rule add priority 100 from 192.168.0.0/17 lookup 100";
const NAMED: &str = "policy rule '100: from 192.168.0.0/17 lookup 100' is in the way";

/// Rules of wg-quick with all addresses in the VPN, and rules of Tailscale.
const VPN_RULES: &str = "\
    ip link add wg0 type bridge && ip link set wg0 up &&
    ip route add default dev wg0 table 51820 &&
    ip rule add priority 32765 not fwmark 0xca6c table 51820 &&
    ip rule add priority 32764 table main suppress_prefixlength 0 &&
    ip route add 100.64.0.0/10 dev wg0 table 52 &&
    ip rule add priority 5210 fwmark 0x80000/0xff0000 lookup main &&
    ip rule add priority 5230 fwmark 0x80000/0xff0000 lookup default &&
    ip rule add priority 5250 fwmark 0x80000/0xff0000 unreachable &&
    ip rule add priority 5270 lookup 52";

/// Runs a script on a host.
fn shell(cluster: &Cluster, number: u8, script: &str) {
    cluster.host(number).namespace().succeed("sh", &["-c", script]);
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn detour_stays_named_while_host_and_cluster_change() {
    let mut cluster = Cluster::started(2, Underlay::V4);
    let _containers = cluster.add_containers();
    shell(&cluster, 1, DETOUR);
    cluster.wait_for_status(1, "vxlan-1", |status| status.contains(NAMED));
    let assert_named = |cluster: &Cluster, change: &str| {
        let health = cluster.host(1).health();
        let status = cluster.status(1, "vxlan-1");
        let is_named = health["problems"].to_string().contains("is in the way");
        assert!(is_named && status.contains(NAMED), "{change}: {status} {health}");
    };
    for number in 0..6 {
        shell(&cluster, 1, &format!("nft add table inet other{number}"));
        for _ in 0..4 {
            sleep(Duration::from_millis(200));
            assert_named(&cluster, "a table of nftables");
        }
    }
    cluster.add_host(3).start_agent();
    cluster.wait_for("the new peer is programmed", || {
        assert_named(&cluster, "a new peer");
        cluster.host(1).has_fdb_entries(2)
    });
    sleep(Duration::from_millis(500));
    assert_named(&cluster, "a new peer");
    shell(&cluster, 1, "ip rule delete priority 100");
    let start = now();
    cluster.wait_for_status(1, "vxlan-1", |status| status == "STATUS_OK");
    eprintln!("{} ms until ok", start.elapsed().as_millis());
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn advised_command_lets_all_peers_pass() {
    const AGENTS: u8 = 7;
    let cluster = Cluster::started(AGENTS, Underlay::V4);
    let containers = cluster.add_containers();
    let reached = || {
        let peers = containers[1..].iter();
        peers.filter(|peer| can_ping(&containers[0].namespace, peer.address(), 16)).count()
    };
    assert_eq!(reached(), 6);
    shell(&cluster, 1, DETOUR);
    let start = now();
    cluster.wait_for_status(1, "vxlan-1", |status| status.contains(NAMED));
    eprintln!("{} ms until named", start.elapsed().as_millis());
    assert_eq!(reached(), 0);
    let status = cluster.status(1, "vxlan-1");
    let (_, command) = status.split_once("let the overlay pass it with '").expect("a command");
    let (command, _) = command.split_once('\'').expect("the end of the command");
    shell(&cluster, 1, command);
    let start = now();
    cluster.wait_for_status(1, "vxlan-1", |status| status == "STATUS_OK");
    eprintln!("{} ms until ok after '{command}'", start.elapsed().as_millis());
    assert_eq!(reached(), 6);
    // Other packets of containers still follow the rule.
    let shown =
        cluster.host(1).namespace().run("ip route get 198.51.100.1 from 192.168.0.2 iif m-vxlan-1");
    assert!(shown.contains("via 10.0.0.2"), "{shown}");
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn policy_rules_of_vpn_are_no_cause() {
    let cluster = Cluster::started(2, Underlay::V4);
    let containers = cluster.add_containers();
    shell(&cluster, 1, VPN_RULES);
    let is_alive = || can_ping(&containers[0].namespace, containers[1].address(), 16);
    for _ in 0..10 {
        sleep(Duration::from_millis(200));
        assert_eq!(cluster.status(1, "vxlan-1"), "STATUS_OK");
    }
    assert!(is_alive());
    let route = "192.168.0.0/25 dev m-vxlan-1";
    shell(&cluster, 1, &format!("ip route delete {route}"));
    let start = now();
    cluster.wait_for_status(1, "vxlan-1", |status| status.contains("no policy rule is the cause"));
    eprintln!("{} ms until named", start.elapsed().as_millis());
    let status = cluster.status(1, "vxlan-1");
    for rule in ["32764", "32765", "5210", "5250", "5270", "remove"] {
        assert!(!status.contains(rule), "{status}");
    }
    shell(&cluster, 1, &format!("ip route add {route} proto kernel scope link src 192.168.0.1"));
    cluster.wait_for_status(1, "vxlan-1", |status| status == "STATUS_OK");
    assert!(is_alive());
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn restarted_agent_keeps_flows_to_outside() {
    let mut cluster = Cluster::started(1, Underlay::V4);
    let container = Container::for_mesos(cluster.host(1), "vxlan-1");
    let host = cluster.host(1);
    // A flow between the container and its own host is not masqueraded.
    let flows = |cluster: &Cluster| {
        let address = container.address().to_string();
        let shown = cluster.host(1).namespace().run("conntrack -L -o id");
        let of_container = shown.lines().filter(|line| line.contains(&format!("src={address} ")));
        let id = |line: &str| line.split("id=").nth(1).map(str::to_owned);
        of_container.filter_map(id).collect::<Vec<_>>()
    };
    let gateway = "192.168.0.1".parse().expect("an address");
    assert!(can_ping(&container.namespace, gateway, 16));
    let listener = host.namespace().inside(|| TcpListener::bind("192.168.0.1:7100"));
    let listener = listener.expect("a free port");
    let stream = container.namespace.inside(|| TcpStream::connect("192.168.0.1:7100"));
    let mut stream = stream.expect("a connection");
    let (mut accepted, _) = listener.accept().expect("a connection");
    let before = flows(&cluster);
    assert!(!before.is_empty(), "no tracked flow");
    cluster.host_mut(1).agent.take().expect("a running agent").kill();
    cluster.host_mut(1).start_agent();
    cluster.wait_until_ok();
    let after = flows(&cluster);
    assert!(before.iter().all(|id| after.contains(id)), "{before:?} {after:?}");
    accepted.write_all(b"push").expect("the flow is alive");
    let mut pushed = [0; 4];
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a valid timeout");
    stream.read_exact(&mut pushed).expect("the flow is alive");
    eprintln!("{} flows kept", before.len());
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn uplink_rules_are_judged_with_underlay_address_on_loopback() {
    let cluster = Cluster::started(2, Underlay::V4);
    let containers = cluster.add_containers();
    let is_alive = || can_ping(&containers[0].namespace, containers[1].address(), 16);
    // The prefix of the second address differs: the kernel would delete the address of the same
    // prefix, and its route, together with the first.
    shell(
        &cluster,
        1,
        "ip address add 10.0.0.51/25 dev eth0 && ip address add 10.0.0.1/32 dev lo && \
         ip address delete 10.0.0.1/24 dev eth0",
    );
    cluster.wait_for("the path is alive with the address on lo", is_alive);
    let rules = |accepted: &str| {
        let script = format!(
            "nft 'add table inet site
            add chain inet site in {{ type filter hook input priority 0; policy drop; }}
            flush chain inet site in
            add rule inet site in meta l4proto icmp accept
            add rule inet site in {accepted} accept'"
        );
        shell(&cluster, 1, &script);
    };
    rules("iifname { eth0, eth1, lo }");
    for _ in 0..10 {
        sleep(Duration::from_millis(200));
        assert_eq!(cluster.status(1, "vxlan-1"), "STATUS_OK", "{}", cluster.logs());
    }
    assert!(is_alive());
    shell(&cluster, 1, "nft delete table inet site");
    rules("meta l4proto { tcp, icmp }");
    shell(&cluster, 1, "nft add rule inet site in iifname lo accept");
    let start = now();
    cluster.wait_for_status(1, "vxlan-1", |status| status.contains("the policy of chain in"));
    eprintln!("{} ms until the real drop is named", start.elapsed().as_millis());
    assert!(!is_alive());
}
