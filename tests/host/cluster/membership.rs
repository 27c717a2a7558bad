//! Agents that register, leave, return, and return with another address.

use std::time::Duration;

use super::container::Container;
use super::reachability::assert_all_reachable;
use super::{Cluster, Host};
use crate::hosts::Underlay;
use crate::traffic::{Stream, can_ping, now};

/// Lists the kernel and firewall entries of a host for its peers.
fn list_peer_entries(host: &Host) -> String {
    let lines = [
        "bridge fdb show dev vtep1024",
        "ip neigh show dev vtep1024",
        "ip route show proto 109",
        "ip -6 route show proto 109",
        "nft list table inet mesos_overlay",
    ];
    lines.iter().map(|line| host.namespace().run(line)).collect()
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn joining_and_leaving_agents_disturb_no_peer() {
    let mut cluster = Cluster::started(2, Underlay::V4);
    let mut containers = cluster.add_containers();
    let (first, second) = (containers.remove(0), containers.remove(0));
    let stream = Stream::new(&first.namespace, &second.namespace, second.address());
    let before = list_peer_entries(cluster.host(1));
    let (sent, lost) = stream.measure_loss_during(|| {
        cluster.add_host(3).start_agent();
        cluster.wait_until_ok();
        let third = Container::for_mesos(cluster.host(3), "vxlan-1");
        assert!(can_ping(&first.namespace, third.address(), 1000), "{}", cluster.logs());

        // The third agent stops and is forgotten. Its peers remove its entries, and drop its
        // packets.
        assert!(cluster.host_mut(3).agent.take().expect("a running agent").stop());
        assert!(
            can_ping(&first.namespace, third.address(), 1000),
            "a stopped agent removed its dataplane"
        );
        cluster.run_subcommand(&["forget", "--force", "10.0.0.3"]);
        cluster.wait_for("the entries of the third agent are removed", || {
            list_peer_entries(cluster.host(1)) == before
        });
        assert!(!can_ping(&third.namespace, first.address(), 16));

        // The third agent returns with its old addresses, and its container is reachable again.
        cluster.host_mut(3).start_agent();
        cluster.wait_until_ok();
        assert!(can_ping(&third.namespace, first.address(), 1000), "{}", cluster.logs());
        third.leave(cluster.host(3), "vxlan-1");
    });
    eprintln!("{lost} of {sent} datagrams were lost");
    assert!(sent > 1000 && lost == 0, "{lost} of {sent}\n{}", cluster.logs());
}

/// A command that runs on a host again and again. Dropping this value stops the command.
struct RepeatedCommand(std::process::Child);

impl RepeatedCommand {
    fn new(host: &Host, lines: &str) -> Self {
        let mut command = host.namespace().command("sh");
        command.args(["-c", &format!("while :; do {lines}; sleep 0.02; done")]);
        Self(command.spawn().expect("a shell"))
    }
}

impl Drop for RepeatedCommand {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Foreign changes trigger early repairs. Such a repair must not skip updates from the master.
#[test]
#[ignore = "needs root and packages: tests/run host"]
fn new_agent_is_programmed_despite_foreign_changes() {
    let mut cluster = Cluster::started(2, Underlay::V4);
    let knows = |cluster: &Cluster, line: &str, address: &str| {
        cluster.host(1).namespace().run(line).contains(address)
    };
    let fdb = "bridge fdb show dev vtep1024";
    let set = "nft list set inet mesos_overlay agents4";

    let stray = "dev vtep1024 lladdr 02:00:00:00:00:77 nud permanent";
    let lines =
        format!("ip neigh replace 44.128.77.7 {stray}; ip neigh del 44.128.77.7 dev vtep1024");
    let repeated = RepeatedCommand::new(cluster.host(1), &lines);
    cluster.add_host(3).start_agent();
    cluster.wait_for("the FDB has the new agent", || knows(&cluster, fdb, "dst 10.0.0.3 "));
    assert!(
        knows(&cluster, set, "10.0.0.3"),
        "the FDB has an agent that the firewall rules lack\n{}",
        cluster.logs()
    );
    drop(repeated);

    let lines = "nft add table ip stray; nft delete table ip stray";
    let repeated = RepeatedCommand::new(cluster.host(1), lines);
    cluster.add_host(4).start_agent();
    cluster.wait_for("the firewall accepts the new agent", || knows(&cluster, set, "10.0.0.4"));
    let start = now();
    cluster.wait_for("the FDB has the new agent", || knows(&cluster, fdb, "dst 10.0.0.4 "));
    // This is half of the interval of periodic verification.
    assert!(start.elapsed() < Duration::from_secs(5), "{}", cluster.logs());
    drop(repeated);
    cluster.wait_until_ok();
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn agent_with_changed_address_is_new_agent() {
    let mut cluster = Cluster::started(3, Underlay::V4);
    let mut containers = cluster.add_containers();
    let old = containers.pop().expect("the container of the third host");
    let old_address = old.address();
    assert!(can_ping(&containers[0].namespace, old_address, 16));

    // The host is drained, and gets another address.
    let host = cluster.host_mut(3);
    assert!(host.agent.take().expect("a running agent").stop());
    old.leave(host, "vxlan-1");
    host.namespace().run("ip link delete m-vxlan-1");
    host.namespace().run("ip addr flush dev eth0");
    host.number = 33;
    Underlay::V4.add_address(host.namespace(), 33);
    host.start_agent();
    cluster.wait_for_status(33, "vxlan-1", |status| status == "STATUS_OK");
    cluster.run_subcommand(&["forget", "--force", "10.0.0.3"]);
    cluster.wait_until_ok();

    let new = Container::for_mesos(cluster.host(33), "vxlan-1");
    assert_ne!(new.address(), old_address, "the new agent got the old address");
    containers.push(new);
    assert_all_reachable(&cluster, &containers);
    for number in [1, 2] {
        let shown = list_peer_entries(cluster.host(number));
        assert!(shown.contains("10.0.0.33") && !shown.contains("10.0.0.3 "), "{shown}");
        assert!(!shown.contains("44.128.0.3 "), "{shown}");
    }
    let own = cluster.host(33).namespace().run("ip addr show vtep1024");
    assert!(own.contains("44.128.0.4/16") && !own.contains("44.128.0.3/16"), "{own}");
}
