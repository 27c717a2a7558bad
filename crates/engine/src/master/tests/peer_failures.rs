//! Tests of the reports about peers that agents do not reach.

use overlay_types::protocol::{Message, MessageKind, PeerFailure, PeerFailureCause, PeerFailures};

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
    problems.filter(|problem| problem.contains("answer probes")).collect()
}

#[test]
fn unreached_peer_is_in_state_and_health_until_the_next_report() {
    let mut world = cluster(3);
    assert!(world.state().peer_failures.is_empty());
    world.message(1, failures(&[2], PeerFailureCause::LargeLost));
    assert_eq!(world.state().peer_failures[&ip(1)].peers[0].agent, ip(2));
    let expected = "agent 10.0.0.2 does not answer probes (large packets lost) of 1 agent: \
                    10.0.0.1: others have not found that: see the network between them, or run \
                    'mesos-overlay doctor --probe' on one of them";
    assert_eq!(probe_problems(&mut world), [expected]);
    world.message(1, failures(&[], PeerFailureCause::NoAnswer));
    assert!(world.state().peer_failures.is_empty());
    assert!(probe_problems(&mut world).is_empty());
}

#[test]
fn peer_that_no_agent_reaches_is_named_once() {
    let mut world = cluster(3);
    for reporter in [1, 2] {
        world.message(reporter, failures(&[3], PeerFailureCause::NoAnswer));
    }
    let expected = "agent 10.0.0.3 does not answer probes (no answer) of 2 agents: 10.0.0.1, \
                    10.0.0.2: no agent reaches it: see whether its host is up, and delete the \
                    agent if it is gone";
    assert_eq!(probe_problems(&mut world), [expected]);
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
