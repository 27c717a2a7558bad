//! Reports that omit or repeat overlays, agents without overlays, and repeated refusals.

use overlay_types::protocol::HistoryEvent;

use super::*;

fn failed(reason: &str) -> Option<Status> {
    Some(Status::Failed(reason.to_owned()))
}

#[test]
fn omitted_overlay_is_not_ok() {
    let mut world = World::new(network());
    let overlays = world.register(1).unwrap();
    world.store();
    world.message(1, report(&overlays[..1], &Status::Ok));
    assert_eq!(world.statuses(1), [Some(Status::Ok), None], "the second is not reported yet");
    assert_eq!(world.metrics(["agents/ok", "agents/unreported"]), [0, 1]);
    world.message(1, report(&overlays, &Status::Ok));
    assert_eq!(world.metrics(["agents/ok"]), [1]);
    world.message(1, report(&overlays[1..], &Status::Ok));
    let omitted = "the last report of the agent omits this overlay: see its log, or restart it";
    assert_eq!(world.statuses(1), [failed(omitted), Some(Status::Ok)]);
    assert_eq!(world.metrics(["agents/ok", "agents/failed"]), [0, 1]);
    assert_eq!(world.health().status, Condition::Degraded);
    world.message(1, Message::AgentRegistered(Vec::new()));
    assert_eq!(world.statuses(1), [failed(omitted), failed(omitted)]);
    world.message(1, report(&overlays, &Status::Ok));
    assert_eq!(world.metrics(["agents/ok", "status/ok"]), [1, 1]);
}

#[test]
fn repeated_overlay_is_not_ok() {
    let mut world = World::new(network());
    let overlays = world.register(1).unwrap();
    world.store();
    let bad = Assignment { status: failed("no bridge"), ..overlays[0].clone() };
    let good = |one: &Assignment| Assignment { status: Some(Status::Ok), ..one.clone() };
    let repeated = vec![bad, good(&overlays[0]), good(&overlays[1])];
    world.message(1, Message::AgentRegistered(repeated));
    let reason = "the agent reports this overlay more than once: restart it";
    assert_eq!(world.statuses(1), [failed(reason), Some(Status::Ok)]);
}

#[test]
fn reported_overlay_without_status_or_with_old_subnet_is_not_ok() {
    let mut world = World::new(network());
    let overlays = world.register(1).unwrap();
    world.store();
    let mut old = overlays.clone();
    old[0].subnet = Some("192.168.99.0/24".parse().unwrap());
    old[0].status = Some(Status::Ok);
    world.message(1, Message::AgentRegistered(old));
    assert!(matches!(world.statuses(1)[..], [Some(Status::Failed(_)), None]));
    assert_eq!(world.metrics(["agents/ok", "agents/failed"]), [0, 1]);
}

#[test]
fn agent_without_any_subnet_is_not_ok() {
    let mut world = World::new(small("44.128.0.0/29", "20.0.0.0/24"));
    let overlays = world.register(1).unwrap();
    assert_eq!(world.register(2), Some(Vec::new()), "no subnet is left");
    world.store();
    world.message(1, report(&overlays, &Status::Ok));
    world.message(2, Message::AgentRegistered(Vec::new()));
    let tally = AgentTally { total: 2, ok: 1, unassigned: 1, ..AgentTally::default() };
    assert_eq!(world.health().agents, tally);
    assert_eq!(world.metrics(["agents/ok", "agents/unassigned"]), [1, 1]);
}

#[test]
fn report_of_failed_commit_is_not_shown_afterwards() {
    let mut world = World::new(network());
    let overlays = world.register(1).unwrap();
    // The agent cannot know these addresses: they are in no durable version.
    world.message(1, report(&overlays, &Status::Ok));
    world.writing = None;
    let error = StoreError::Failed { store: "s".into(), action: "commit", reason: "full".into() };
    world.handle(Event::Committed(Err(error)));
    world.load();
    assert_eq!(world.state().agents, []);
    world.register(2);
    assert_eq!(world.statuses(2), [None, None]);
}

#[test]
fn history_tells_returned_from_new_addresses() {
    let mut world = World::new(small("44.128.0.0/29", "20.0.0.0/23"));
    world.register(1);
    world.store();
    world.delete(1);
    world.store();
    // The overlay is new to the agent, and its VTEP and subnet are its own again.
    let mut two = small("44.128.0.0/29", "20.0.0.0/23");
    two.overlays.push(overlay("new", "21.0.0.0/16"));
    assert!(world.reload(two).accepted);
    world.store();
    world.register(1);
    world.store();
    let Reply::History(history) = world.request(Request::History(Some(ip(1)))).0 else {
        panic!("no history")
    };
    let shown: Vec<(HistoryEvent, Option<Ipv4Addr>, Vec<String>)> = history.entries().0[2..]
        .iter()
        .map(|entry| {
            let names = entry.addresses.overlays.iter();
            let subnets = names.flat_map(|one| one.subnets().map(|subnet| subnet.to_string()));
            (entry.event, entry.addresses.vtep_ip, subnets.collect())
        })
        .collect();
    let vtep = Some(Ipv4Addr::new(44, 128, 0, 1));
    assert_eq!(
        shown,
        [
            (HistoryEvent::Returned, vtep, vec!["20.0.0.0/24".to_owned()]),
            (HistoryEvent::Assigned, None, vec!["21.0.0.0/24".to_owned()]),
        ]
    );
}
