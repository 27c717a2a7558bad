//! Agents and masters that crash and are started again, under traffic.

use super::Cluster;
use crate::engine::pause;
use crate::hosts::Underlay;
use crate::namespace::succeed;
use crate::program::PROGRAM;
use crate::traffic::Stream;

#[test]
#[ignore = "host"]
fn agents_and_masters_are_started_again_under_traffic_without_a_lost_packet() {
    let mut cluster = Cluster::started(3, Underlay::V4);
    let containers = cluster.containers();
    let [first, second, third] = &containers[..] else { panic!("a container on each") };
    let index = |cluster: &Cluster| cluster.host(1).namespace().run("ip -o link show vtep1024");
    let before = index(&cluster);
    let there = Stream::new(&first.namespace, &second.namespace, second.address());
    let back = Stream::new(&third.namespace, &first.namespace, first.address());
    let mut lost = (0, 0);
    let lost_there = there.lost_while(|| {
        lost = back.lost_while(|| {
            for number in [1, 2, 3] {
                let agent = cluster.host_mut(number).agent.take().expect("it runs");
                if number == 3 {
                    assert!(agent.stop(), "{}", cluster.logs());
                } else {
                    agent.kill();
                }
                cluster.host_mut(number).start_agent();
                cluster.wait_until_ok();
            }
            cluster.master.take().expect("it runs").kill();
            cluster.start_master();
            cluster.wait_until_ok();
            // Everything at once; the agents are back first, and find nobody to tell them.
            cluster.master.take().expect("it runs").kill();
            for host in &mut cluster.hosts {
                host.agent.take().expect("it runs").kill();
                host.start_agent();
            }
            for _ in 0..20 {
                pause();
            }
            cluster.start_master();
            cluster.wait_until_ok();
        });
    });
    for (sent, lost) in [lost_there, lost] {
        eprintln!("{lost} of {sent} datagrams were lost");
        assert!(sent > 1000 && lost == 0, "{lost} of {sent}\n{}", cluster.logs());
    }
    assert_eq!(index(&cluster), before, "the device is the same");
}

#[test]
#[ignore = "host"]
fn a_master_that_moves_to_another_store_is_believed_at_once() {
    let mut cluster = Cluster::started(2, Underlay::V4);
    // A store that counted from one on would be behind what the agents have heard.
    cluster.master.take().expect("it runs").kill();
    cluster.start_master();
    cluster.wait_until_ok();
    assert!(cluster.master.take().expect("it runs").stop());
    let path = |name: &str| cluster.folder.path().join(name).display().to_string();
    let (work, state) = (path("work"), path("state.json"));
    let run = |arguments: &[&str]| succeed(cluster.namespace.command(PROGRAM).args(arguments));
    run(&["export", "--from", "file", "--work-dir", &work, "-o", &state]);
    std::fs::remove_dir_all(&work).expect("it is there");
    run(&["import", &state, "--to", "file", "--work-dir", &work]);
    cluster.start_master();
    cluster.add(3).start_agent();
    cluster.wait_until_ok();
    for number in [1, 2] {
        let health = cluster.host(number).health();
        let dropped = &health["counters"]["update_peers_messages_dropped"];
        assert_eq!(dropped, 0, "{health}\n{}", cluster.logs());
    }
}
