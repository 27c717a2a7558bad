//! Agents that come, go, come back, and return with another address.

use std::time::Duration;

use super::container::Container;
use super::reach::assert_all_answer;
use super::{Cluster, Host};
use crate::hosts::Underlay;
use crate::traffic::{Stream, now, reaches};

/// All that a host has programmed for others, and what its firewall knows of them.
fn programmed(host: &Host) -> String {
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
#[ignore = "host"]
fn agents_come_and_go_and_the_others_do_not_notice() {
    let mut cluster = Cluster::started(2, Underlay::V4);
    let mut containers = cluster.containers();
    let (first, second) = (containers.remove(0), containers.remove(0));
    let stream = Stream::new(&first.namespace, &second.namespace, second.address());
    let before = programmed(cluster.host(1));
    let (sent, lost) = stream.lost_while(|| {
        cluster.add(3).start_agent();
        cluster.wait_until_ok();
        let third = Container::of_mesos(cluster.host(3), "vxlan-1");
        assert!(reaches(&first.namespace, third.address(), 1000), "{}", cluster.logs());

        // It ends, and is forgotten: nothing is left of it, and it is not listened to.
        assert!(cluster.host_mut(3).agent.take().expect("it runs").stop());
        assert!(reaches(&first.namespace, third.address(), 1000), "what is programmed stays");
        cluster.ask(&["forget", "--force", "10.0.0.3"]);
        cluster.wait_for("nothing is left of it", || programmed(cluster.host(1)) == before);
        assert!(!reaches(&third.namespace, first.address(), 16));

        // It comes back with what it had, and its containers with it.
        cluster.host_mut(3).start_agent();
        cluster.wait_until_ok();
        assert!(reaches(&third.namespace, first.address(), 1000), "{}", cluster.logs());
        third.leave(cluster.host(3), "vxlan-1");
    });
    eprintln!("{lost} of {sent} datagrams were lost");
    assert!(sent > 1000 && lost == 0, "{lost} of {sent}\n{}", cluster.logs());
}

/// Something that somebody does on a host again and again, until it is dropped.
struct Unrest(std::process::Child);

impl Unrest {
    fn new(host: &Host, lines: &str) -> Self {
        let mut command = host.namespace().command("sh");
        command.args(["-c", &format!("while :; do {lines}; sleep 0.02; done")]);
        Self(command.spawn().expect("there is a shell"))
    }
}

impl Drop for Unrest {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What others change is looked at soon, which has to leave out nothing of what the master tells.
#[test]
#[ignore = "host"]
fn an_agent_that_comes_while_others_are_at_work_is_reached_at_once() {
    let mut cluster = Cluster::started(2, Underlay::V4);
    let knows = |cluster: &Cluster, line: &str, address: &str| {
        cluster.host(1).namespace().run(line).contains(address)
    };
    let fdb = "bridge fdb show dev vtep1024";
    let set = "nft list set inet mesos_overlay agents4";

    let stray = "dev vtep1024 lladdr 02:00:00:00:00:77 nud permanent";
    let lines =
        format!("ip neigh replace 44.128.77.7 {stray}; ip neigh del 44.128.77.7 dev vtep1024");
    let unrest = Unrest::new(cluster.host(1), &lines);
    cluster.add(3).start_agent();
    cluster.wait_for("it is in the kernel", || knows(&cluster, fdb, "dst 10.0.0.3 "));
    assert!(knows(&cluster, set, "10.0.0.3"), "the rules are made first\n{}", cluster.logs());
    drop(unrest);

    let lines = "nft add table ip stray; nft delete table ip stray";
    let unrest = Unrest::new(cluster.host(1), lines);
    cluster.add(4).start_agent();
    cluster.wait_for("the rules let it in", || knows(&cluster, set, "10.0.0.4"));
    let start = now();
    cluster.wait_for("it is in the kernel", || knows(&cluster, fdb, "dst 10.0.0.4 "));
    // Half of the time after which it is looked at anyway.
    assert!(start.elapsed() < Duration::from_secs(5), "{}", cluster.logs());
    drop(unrest);
    cluster.wait_until_ok();
}

#[test]
#[ignore = "host"]
fn an_agent_that_returns_with_another_address_is_another_agent() {
    let mut cluster = Cluster::started(3, Underlay::V4);
    let mut containers = cluster.containers();
    let old = containers.pop().expect("that of the third");
    let old_address = old.address();
    assert!(reaches(&containers[0].namespace, old_address, 16));

    // The host moves: it is drained, and gets another address.
    let host = cluster.host_mut(3);
    assert!(host.agent.take().expect("it runs").stop());
    old.leave(host, "vxlan-1");
    host.namespace().run("ip link delete m-vxlan-1");
    host.namespace().run("ip addr flush dev eth0");
    host.number = 33;
    Underlay::V4.assign(host.namespace(), 33);
    host.start_agent();
    cluster.wait_for_status(33, "vxlan-1", |status| status == "STATUS_OK");
    cluster.ask(&["forget", "--force", "10.0.0.3"]);
    cluster.wait_until_ok();

    let new = Container::of_mesos(cluster.host(33), "vxlan-1");
    assert_ne!(new.address(), old_address, "it is another agent");
    containers.push(new);
    assert_all_answer(&cluster, &containers);
    for number in [1, 2] {
        let shown = programmed(cluster.host(number));
        assert!(shown.contains("10.0.0.33") && !shown.contains("10.0.0.3 "), "{shown}");
        assert!(!shown.contains("44.128.0.3 "), "{shown}");
    }
    let own = cluster.host(33).namespace().run("ip addr show vtep1024");
    assert!(own.contains("44.128.0.4/16") && !own.contains("44.128.0.3/16"), "{own}");
}
