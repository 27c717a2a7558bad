//! Tests of the reports about peers that agents do not reach.

use overlay_types::protocol::{
    Message, MessageKind, PeerFailure, PeerFailureCause, PeerFailures, PeersRequest,
};

use super::*;

fn failures(peers: &[u8], cause: PeerFailureCause) -> Message {
    let peers: Vec<PeerFailure> = peers
        .iter()
        .map(|peer| PeerFailure {
            agent: ip(*peer),
            cause,
            since: 1_700_000_000,
            lost: 8,
            round_trip: None,
        })
        .collect();
    let total = u32::try_from(peers.len()).unwrap();
    Message::PeerFailures(PeerFailures { peers, total })
}

fn cluster(count: u8) -> World {
    let mut world = World::new(small("44.128.0.0/24", "192.168.0.0/16"));
    for number in 1..=count {
        world.register(number);
        world.store();
    }
    world
}

fn probe_problems(world: &mut World) -> Vec<String> {
    let problems = world.health().problems.into_iter();
    problems.filter(|problem| problem.contains(" fails probes (")).collect()
}

#[test]
fn unreached_peer_is_in_state_and_health_until_the_next_report() {
    let mut world = cluster(3);
    assert!(world.state().peer_failures.is_empty());
    world.message(1, failures(&[2], PeerFailureCause::LargeLost));
    assert_eq!(world.state().peer_failures[&ip(1)].peers[0].agent, ip(2));
    let expected = "agent 10.0.0.2 fails probes (large packets lost) of 1 agent: \
                    10.0.0.1: no other agent reports that so far: see the network between the two, \
                    or run 'mesos-overlay doctor --probe' on one of them";
    assert_eq!(probe_problems(&mut world), [expected]);
    world.message(1, failures(&[], PeerFailureCause::NoAnswer));
    assert!(world.state().peer_failures.is_empty());
    assert!(probe_problems(&mut world).is_empty());
}

#[test]
fn repeated_entries_of_a_report_count_once() {
    let mut world = cluster(5);
    // Agent 1 is reported by two agents, agent 5 by one agent that repeats itself.
    for reporter in [2, 3] {
        world.message(reporter, failures(&[1], PeerFailureCause::LargeLost));
    }
    let Message::PeerFailures(mut report) = failures(&[5; 64], PeerFailureCause::NoAnswer) else {
        panic!("another message")
    };
    report.peers[1].cause = PeerFailureCause::LargeLost;
    world.message(4, Message::PeerFailures(report));
    let state = world.state();
    let entries = &state.peer_failures[&ip(4)].peers;
    assert_eq!(entries.len(), 1);
    assert_eq!((entries[0].agent, entries[0].cause), (ip(5), PeerFailureCause::NoAnswer));
    let problems = probe_problems(&mut world);
    assert_eq!(problems.len(), 2, "{problems:?}");
    let most = "agent 10.0.0.1 fails probes (large packets lost) of 2 agents: ";
    assert!(problems[0].starts_with(most), "{problems:?}");
    let repeated = "agent 10.0.0.5 fails probes (no answer) of 1 agent: 10.0.0.4: no \
                    other agent reports that so far";
    assert!(problems[1].starts_with(repeated), "{problems:?}");
}

#[test]
fn entry_about_reporter_itself_is_dropped() {
    let mut world = cluster(3);
    world.message(1, failures(&[1, 2, 1], PeerFailureCause::NoAnswer));
    let agents: Vec<_> =
        world.state().peer_failures[&ip(1)].peers.iter().map(|failure| failure.agent).collect();
    assert_eq!(agents, [ip(2)]);
    world.message(1, failures(&[1], PeerFailureCause::NoAnswer));
    assert!(world.state().peer_failures.is_empty());
}

#[test]
fn peer_that_no_agent_reaches_is_named_once() {
    let mut world = cluster(3);
    for reporter in [1, 2] {
        world.message(reporter, failures(&[3], PeerFailureCause::NoAnswer));
    }
    let expected = "agent 10.0.0.3 fails probes (no answer) of 2 agents: 10.0.0.1, \
                    10.0.0.2: several agents report that: see whether its host is up, and what \
                    drops packets of the tunnel there: run 'mesos-overlay doctor --probe' on it";
    assert_eq!(probe_problems(&mut world), [expected]);
}

/// Two hosts of five die. The others cannot all report, and the master still knows that the hosts
/// are down, since it gets no messages of them.
#[test]
fn several_dead_hosts_are_known_as_dead() {
    let mut world = cluster(5);
    let requests = |world: &mut World, agents: &[u8]| {
        for agent in agents {
            world.message(*agent, Message::RequestPeers(PeersRequest::default()));
        }
    };
    requests(&mut world, &[1, 2, 3, 4, 5]);
    world.message(1, failures(&[4, 5], PeerFailureCause::NoAnswer));
    assert!(probe_problems(&mut world)[0].contains("no other agent reports that so far"));
    world.now.elapsed += Duration::from_secs(50);
    requests(&mut world, &[1, 2, 3]);
    world.message(2, failures(&[4, 5], PeerFailureCause::NoAnswer));
    world.message(3, failures(&[4], PeerFailureCause::NoAnswer));
    world.now.elapsed += Duration::from_secs(30);
    let problems = probe_problems(&mut world);
    let expected = "the master gets no messages of it either: see whether its host is up, and \
                    delete the agent if it is gone";
    assert_eq!(problems.len(), 2);
    assert!(problems[0].starts_with("agent 10.0.0.4 fails probes (no answer) of 3"));
    assert!(problems.iter().all(|problem| problem.ends_with(expected)), "{problems:?}");
    // The agent of the host answers the master again, so its tunnel is broken.
    requests(&mut world, &[4]);
    assert!(probe_problems(&mut world)[0].contains("several agents report that"));
}

#[test]
fn broken_agent_hides_no_other_and_is_named_alone() {
    let mut world = cluster(20);
    // All agents lose the last one, and the last one loses all.
    for reporter in 1..20 {
        world.message(reporter, failures(&[20], PeerFailureCause::NoAnswer));
    }
    let all: Vec<u8> = (1..20).collect();
    world.message(20, failures(&all, PeerFailureCause::NoAnswer));
    let problems = probe_problems(&mut world);
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].starts_with("agent 10.0.0.20 fails probes"), "{problems:?}");
}

#[test]
fn reports_of_a_partition_are_bounded_in_the_state() {
    let mut world = cluster(200);
    let all: Vec<u8> = (1..=64).collect();
    for reporter in 65..=200 {
        world.message(reporter, failures(&all, PeerFailureCause::NoAnswer));
    }
    let shown = world.state().peer_failures;
    let pairs: usize = shown.values().map(|failures| failures.peers.len()).sum();
    assert!(pairs <= 4096, "{pairs} of {}", 136 * 64);
    assert!(shown.values().all(|failures| failures.total == 64 && !failures.peers.is_empty()));
}

#[test]
fn report_ends_with_its_reporter_and_with_its_peer() {
    let mut world = cluster(3);
    world.message(1, failures(&[3], PeerFailureCause::NoAnswer));
    world.message(2, failures(&[1], PeerFailureCause::NoAnswer));
    world.delete(1);
    world.store();
    assert!(world.state().peer_failures.is_empty());
    assert!(probe_problems(&mut world).is_empty());
}

#[test]
fn report_of_unknown_agents_is_not_kept() {
    let mut world = cluster(2);
    assert!(!world.master.accepts(&upid(9), MessageKind::PeerFailures));
    assert!(world.master.accepts(&upid(1), MessageKind::PeerFailures));
    world.message(9, failures(&[1], PeerFailureCause::NoAnswer));
    // Neither a peer that the master does not know nor the agent itself.
    world.message(1, failures(&[1, 77], PeerFailureCause::NoAnswer));
    assert!(world.state().peer_failures.is_empty());
}

#[test]
fn store_failure_keeps_reports() {
    let mut world = cluster(2);
    world.message(1, failures(&[2], PeerFailureCause::NoAnswer));
    world.register(3);
    world.writing = None;
    let failed = StoreError::Failed { store: "s".into(), action: "commit", reason: "full".into() };
    world.handle(Event::Committed(Err(failed)));
    world.now.elapsed += Duration::from_secs(60);
    world.handle(Event::Timeout);
    world.load();
    assert_eq!(world.state().peer_failures[&ip(1)].peers[0].agent, ip(2));
}
