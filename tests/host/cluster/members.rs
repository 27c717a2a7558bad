//! Agents that come, go, come back, and return with another address.

use super::container::Container;
use super::reach::assert_all_answer;
use super::{Cluster, Host};
use crate::hosts::Underlay;
use crate::traffic::{Stream, reaches};

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
