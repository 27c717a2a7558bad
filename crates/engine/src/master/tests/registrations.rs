//! Registrations, reports, and the metrics of a master.

use super::*;

#[test]
fn assignments_wait_for_their_commit() {
    let mut world = World::new(network());
    world.register(1);
    assert_eq!(world.sent[0].2, Version(1), "the update waits for the first commit");
    let (_, when) = world.request(Request::State);
    assert_eq!(when, Version(1), "the reply with the state waits for the same commit");
    world.store();
    assert_eq!(world.version, Version(1));
    assert_eq!(world.request(Request::State).1, Version(1));
    // A repeated registration changes nothing, and is not stored.
    world.register(1);
    assert_eq!(world.sent[1].2, Version(1));
    assert_eq!(world.writing, None);
}

#[test]
fn registrations_during_commit_share_next_commit() {
    let mut world = World::new(network());
    for agent in 1..=50 {
        world.register(agent);
    }
    assert_eq!(
        world.writing.as_ref().unwrap().len(),
        2,
        "the record of the agent, and its history"
    );
    let waits: BTreeSet<Version> = world.sent[1..].iter().map(|(_, _, when)| *when).collect();
    assert_eq!(waits, BTreeSet::from([Version(2)]));
    world.store();
    assert_eq!(world.health().counters.commits, 2);
    assert_eq!(world.agents().len(), 50);
}

#[test]
fn repeated_request_while_store_hangs_is_answered_once() {
    let mut world = World::new(network());
    world.register(1);
    for _ in 0..100 {
        world.register(1);
        world.register(2);
    }
    assert_eq!(world.sent.len(), 2, "the held back messages do not pile up");
    // The assignments have changed now.
    let mesos_only = AgentOptions { docker_bridge: false, ..AgentOptions::default() };
    assert!(world.register_with(2, mesos_only).is_some());
    world.store();
    assert!(world.register(1).is_some(), "a stored assignment is sent again");
}

#[test]
fn agent_keeps_addresses_across_restarts() {
    let mut world = World::new(network());
    let first: Vec<_> = (1..=5).map(|agent| world.register(agent).unwrap()).collect();
    world.store();
    let mut world = world.restart(network());
    for agent in (1..=5).rev() {
        assert_eq!(world.register(agent).unwrap(), first[usize::from(agent) - 1]);
    }
    assert_eq!(world.writing, None, "without a change there is no commit");
}

#[test]
fn report_with_endless_reason_is_cut() {
    let mut world = World::new(network());
    let overlays = world.register(1).unwrap();
    world.store();
    world.message(1, report(&overlays, &Status::Failed("x".repeat(1_000_000))));
    let [start, end] = [256, 753].map(|count| "x".repeat(count));
    let cut = Some(Status::Failed(format!("{start}… (cut) {end}… (cut)")));
    assert_eq!(world.statuses(1), [cut.clone(), cut]);
}

#[test]
fn report_is_shown_and_acknowledged() {
    let mut world = World::new(network());
    let overlays = world.register(1).unwrap();
    world.store();
    assert_eq!(world.statuses(1), [None, None]);
    let failed = Status::Failed("docker: not\nrunning\u{202e}".to_owned());
    world.message(1, report(&overlays, &failed));
    let shown = Some(Status::Failed(r"docker: not\nrunning\u{202e}".to_owned()));
    assert_eq!(world.statuses(1), [shown.clone(), shown]);
    assert_eq!(world.health().agents, AgentTally { total: 1, failed: 1, ..AgentTally::default() });
    assert_eq!(
        world.health().problems,
        ["1 agent with a failed overlay: see the state for the reasons"]
    );
    assert_eq!(world.sent[1].1, Message::AgentRegisteredAcknowledgement);

    world.message(1, report(&overlays, &Status::Ok));
    world.message(1, report(&overlays, &Status::Ok));
    assert_eq!(world.sent.len(), 4, "a duplicate is acknowledged like the first");
    assert_eq!(world.health().status, Condition::Ok);
    // A registration keeps the reported statuses.
    world.register(1);
    assert_eq!(world.statuses(1), [Some(Status::Ok), Some(Status::Ok)]);
}

#[test]
fn acknowledgement_waits_for_record() {
    let mut world = World::new(network());
    let overlays = world.register(1).unwrap();
    world.message(1, report(&overlays, &Status::Ok));
    assert_eq!(world.sent[1].2, Version(1));
}

#[test]
fn unexpected_reports_are_counted() {
    let mut world = World::new(network());
    // A report of an agent that is not registered.
    let mut others = World::new(small("44.128.0.0/16", "20.0.0.0/8"));
    let foreign = others.register(7).unwrap();
    world.message(7, report(&foreign, &Status::Ok));
    assert_eq!(world.sent, []);
    assert_eq!(world.health().counters.agent_registered_messages_dropped, 1);

    // A report of an overlay that does not exist: the other overlays are noted.
    let mut overlays = world.register(1).unwrap();
    world.store();
    overlays.extend(foreign);
    world.message(1, report(&overlays, &Status::Ok));
    assert_eq!(world.health().counters.unknown_overlays_reported, 1);
    assert_eq!(world.statuses(1), [Some(Status::Ok), Some(Status::Ok)]);

    // A report with other addresses: an outdated report must not look like a success.
    let mut outdated = overlays[0].clone();
    outdated.subnet = Some("192.168.99.0/24".parse().unwrap());
    world.message(1, report(&[outdated], &Status::Ok));
    assert_eq!(world.health().counters.outdated_overlays_reported, 1);
    assert_eq!(
        world.statuses(1)[0].as_ref().unwrap().to_string(),
        "failed: the agent still uses 192.168.99.0/24, VTEP 44.128.0.1, and was assigned \
         192.168.0.0/24, VTEP 44.128.0.1: restart it"
    );

    // Messages that only a master sends, and malformed messages.
    world.message(1, Message::AgentRegisteredAcknowledgement);
    world.message(
        1,
        Message::UpdateAgentOverlays { overlays: Vec::new(), master: MasterKind::Other },
    );
    let malformed =
        Event::Malformed { from: upid(1), name: "x".to_owned(), reason: "y".to_owned() };
    world.handle(malformed);
    let counters = world.health().counters;
    assert_eq!((counters.unexpected_messages, counters.malformed_messages), (2, 1));
}

#[test]
fn options_select_assignments_and_may_change() {
    let mut world = World::new(network());
    let gateway = AgentOptions { allocate_subnet: false, ..AgentOptions::default() };
    let overlays = world.register_with(1, gateway).unwrap();
    assert_eq!(overlays.len(), 2);
    assert!(overlays.iter().all(|one| one.subnet.is_none() && one.subnet6.is_none()));
    assert!(overlays.iter().all(|one| one.mesos_bridge.is_none() && one.docker_bridge.is_none()));

    let mesos_only = AgentOptions { docker_bridge: false, ..AgentOptions::default() };
    let overlays = world.register_with(1, mesos_only).unwrap();
    assert_eq!(subnets(&overlays), ["192.168.0.0/24", "192.168.128.0/24"]);
    assert!(overlays.iter().all(|one| one.mesos_bridge.is_some() && one.docker_bridge.is_none()));

    let both = world.register(1).unwrap();
    assert_eq!(subnets(&both), subnets(&overlays));
    let docker = both[1].docker_bridge.as_ref().unwrap();
    assert_eq!(docker.subnet.unwrap().to_string(), "192.168.128.128/25");
    assert_eq!(docker.subnet6.unwrap().to_string(), "fd01:b::8000:0:0/81");
    assert_eq!(docker.name.as_str(), "d-vxlan-2");
}

#[test]
fn added_overlay_is_assigned_at_next_registration() {
    let mut world = World::new(small("44.128.0.0/16", "20.0.0.0/8"));
    world.register(1);
    world.store();
    let mut wider = small("44.128.0.0/16", "20.0.0.0/8");
    wider.overlays.insert(0, overlay("new", "21.0.0.0/8"));
    let mut world = world.restart(wider);
    assert_eq!(subnets(&world.register(1).unwrap()), ["21.0.0.0/24", "20.0.0.0/24"]);
}

#[test]
fn disabled_overlay_is_not_sent_and_is_kept() {
    let mut world = World::new(network());
    world.register(1);
    let second = world.register(2).unwrap();
    world.store();
    let mut disabled = network();
    disabled.overlays[0].enabled = false;
    let mut world = world.restart(disabled);
    assert_eq!(subnets(&world.register(2).unwrap()), ["192.168.128.0/24".replace("128", "129")]);
    world.register(3);
    world.store();
    let mut world = world.restart(network());
    assert_eq!(world.register(2).unwrap(), second);
    assert_eq!(subnets(&world.register(3).unwrap())[0], "192.168.2.0/24");
}

#[test]
fn failed_commit_reloads_state_and_sends_nothing() {
    let mut world = World::new(network());
    let first = world.register(1).unwrap();
    world.store();
    world.message(1, report(&first, &Status::Ok));
    world.register(2);
    world.writing = None;
    let failed = StoreError::Failed {
        store: "file:/var/lib/x".to_owned(),
        action: "commit",
        reason: "no space left on device".to_owned(),
    };
    let dropped = ["internal/register_agent_messages_dropped"];
    assert_eq!(world.metrics(dropped), [0]);
    world.handle(Event::Committed(Err(failed)));
    assert_eq!(world.metrics(dropped), [1], "agent 2 is not answered, agent 1 was");
    assert_eq!(world.abandoned, ["the state could not be written: ask again"]);
    let health = world.health();
    assert_eq!(health.status, Condition::Failed);
    assert_eq!(health.problems, ["file:/var/lib/x: commit: no space left on device"]);
    let unavailable = Reply::Unavailable(health.problems[0].clone());
    assert_eq!(world.request(Request::State).0, unavailable);
    assert_eq!(world.request(Request::DeleteAgents(vec![ip(1)])).0, unavailable);

    // Registrations in between are answered when the state is loaded.
    assert_eq!(world.register(3), None);
    assert_eq!(world.register(3), None);
    let loads = world.loads;
    world.now.elapsed = world.master.next_timeout().unwrap();
    world.handle(Event::Timeout);
    assert_eq!((world.loads, world.master.next_timeout()), (loads + 1, None));
    let before = world.sent.len();
    world.load();
    assert_eq!(world.sent.len(), before + 1, "one answer to both registrations");
    // The first agent does not notice the failure, and does not report again.
    let statuses = |world: &mut World| {
        let agents = world.state().agents.clone();
        let first = agents.iter().find(|agent| agent.ip == ip(1)).unwrap().overlays.clone();
        first.into_iter().map(|overlay| overlay.status).collect::<Vec<_>>()
    };
    assert_eq!(statuses(&mut world), [Some(Status::Ok), Some(Status::Ok)]);
    world.store();
    assert_eq!(world.agents(), [ip(1), ip(3)]);
    assert_eq!(subnets(&world.register(2).unwrap())[0], "192.168.2.0/24");
}

#[test]
fn metrics_follow_state() {
    const STATE: [&str; 6] =
        ["recovering", "status/ok", "status/degraded", "agents/ok", "agents/unreported", "version"];
    let small = small("44.128.0.0/29", "192.168.0.0/23");
    let mut world = World::restored(small.clone(), BTreeMap::new(), Version(0));
    assert_eq!(world.metrics(STATE), [1, 0, 0, 0, 0, 0]);
    world.load();
    assert_eq!(world.metrics(STATE), [0, 1, 0, 0, 0, 0]);
    let mut reported = world.register(1).unwrap();
    world.store();
    assert_eq!(world.metrics(STATE), [0, 1, 0, 0, 1, 1]);
    reported[0].status = Some(Status::Ok);
    world.message(1, Message::AgentRegistered(reported));
    world.register(2);
    assert_eq!(world.metrics(STATE), [0, 1, 0, 1, 1, 1]);
    world.register(3);
    assert_eq!(world.metrics(["status/degraded", "subnet_allocation_failures"]), [1, 1]);

    let Reply::Metrics(snapshot) = world.request(Request::Metrics(Vec::new())).0 else {
        panic!("no metrics");
    };
    assert_eq!(snapshot.metrics, world.master.metrics());
    let pools: Vec<String> = snapshot
        .configured
        .iter()
        .filter(|family| family.name.starts_with("pool_"))
        .flat_map(|family| family.series.iter().map(|series| (family.name, series)))
        .map(|(name, series)| {
            format!("{name} {} {} {}", series.labels[0].1, series.labels[1].1, series.value)
        })
        .collect();
    assert_eq!(
        pools,
        [
            "pool_in_use vtep 44.128.0.0/29 3",
            "pool_in_use net 192.168.0.0/23 2",
            "pool_free vtep 44.128.0.0/29 3",
            "pool_free net 192.168.0.0/23 0",
            "pool_capacity vtep 44.128.0.0/29 6",
            "pool_capacity net 192.168.0.0/23 2",
        ]
    );
}

#[test]
fn ignored_messages_are_counted_by_kind() {
    let mut world = World::new(network());
    let from = upid(9);
    assert!(world.master.accepts(&from, MessageKind::RegisterAgent));
    assert!(!world.master.accepts(&from, MessageKind::AgentRegistered));
    for kind in MessageKind::ALL {
        if !world.master.accepts(&from, kind) {
            world.handle(Event::Ignored { from: from.clone(), kind });
        }
    }
    let counters = world.health().counters;
    assert_eq!(counters.agent_registered_messages_dropped, 1);
    assert_eq!(counters.request_peers_messages_dropped, 1);
    assert_eq!(counters.unexpected_messages, 5);
    world.register(9).unwrap();
    assert!(world.master.accepts(&from, MessageKind::AgentRegistered));
    assert!(world.master.accepts(&from, MessageKind::RequestPeers));
    assert!(!world.master.accepts(&from, MessageKind::UpdatePeers));
}
