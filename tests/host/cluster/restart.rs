//! Restarts of agents and masters during traffic.

use super::Cluster;
use crate::docker_daemon::sleep_poll_interval;
use crate::hosts::Underlay;
use crate::namespace::succeed;
use crate::process::PROGRAM;
use crate::traffic::Stream;

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn agent_and_master_restarts_lose_no_packet() {
    let mut cluster = Cluster::started(3, Underlay::V4);
    let containers = cluster.add_containers();
    let [first, second, third] = &containers[..] else { panic!("a container on each") };
    let index = |cluster: &Cluster| cluster.host(1).namespace().run("ip -o link show vtep1024");
    let before = index(&cluster);
    let forward = Stream::new(&first.namespace, &second.namespace, second.address());
    let backward = Stream::new(&third.namespace, &first.namespace, first.address());
    let mut backward_loss = (0, 0);
    let forward_loss = forward.measure_loss_during(|| {
        backward_loss = backward.measure_loss_during(|| {
            for number in [1, 2, 3] {
                let agent = cluster.host_mut(number).agent.take().expect("a running process");
                if number == 3 {
                    assert!(agent.stop(), "{}", cluster.logs());
                } else {
                    agent.kill();
                }
                cluster.host_mut(number).start_agent();
                cluster.wait_until_ok();
            }
            cluster.master.take().expect("a running process").kill();
            cluster.start_master();
            cluster.wait_until_ok();
            // All processes restart. The agents start first, and find no master.
            cluster.master.take().expect("a running process").kill();
            for host in &mut cluster.hosts {
                host.agent.take().expect("a running process").kill();
                host.start_agent();
            }
            for _ in 0..20 {
                sleep_poll_interval();
            }
            cluster.start_master();
            cluster.wait_until_ok();
        });
    });
    for (sent, lost) in [forward_loss, backward_loss] {
        eprintln!("{lost} of {sent} datagrams were lost");
        assert!(sent > 1000 && lost == 0, "{lost} of {sent}\n{}", cluster.logs());
    }
    assert_eq!(index(&cluster), before, "a restart replaced the VXLAN device");
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn master_with_imported_state_is_accepted_at_once() {
    let mut cluster = Cluster::started(2, Underlay::V4);
    // Raise the epoch first: a new store that starts with epoch 1 would be behind the agents.
    cluster.master.take().expect("a running process").kill();
    cluster.start_master();
    cluster.wait_until_ok();
    assert!(cluster.master.take().expect("a running process").stop());
    let path = |name: &str| cluster.dir.path().join(name).display().to_string();
    let (work, state) = (path("work"), path("state.json"));
    let run = |arguments: &[&str]| succeed(cluster.namespace.command(PROGRAM).args(arguments));
    run(&["export", "--from", "file", "--work-dir", &work, "--output", &state]);
    std::fs::remove_dir_all(&work).expect("an existing directory");
    run(&["import", &state, "--to", "file", "--work-dir", &work]);
    cluster.start_master();
    cluster.add_host(3).start_agent();
    cluster.wait_until_ok();
    for number in [1, 2] {
        let health = cluster.host(number).health();
        let dropped = &health["counters"]["update_peers_messages_dropped"];
        assert_eq!(dropped, 0, "{health}\n{}", cluster.logs());
    }
}
