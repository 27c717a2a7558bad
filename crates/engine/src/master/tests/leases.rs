//! The release of agents that are gone, and the history of addresses.

use overlay_types::protocol::{Author, HistoryEntry, HistoryEvent, MasterKind};

use super::*;

impl World {
    fn forget(&mut self, agents: &[u8], force: bool, dry_run: bool) -> Vec<ReleaseResult> {
        let agents = agents.iter().map(|&agent| ip(agent)).collect();
        let forget = Forget { agents, force, dry_run };
        match self.request(Request::Forget(forget)) {
            (Reply::ReleaseResults(results), when) => {
                let is_durable = self.writing.is_none();
                assert_eq!(when, if is_durable { self.version } else { self.version.next() });
                results
            }
            other => panic!("{other:?} instead of the results"),
        }
    }

    fn history(&mut self, agent: Option<u8>) -> Vec<HistoryEntry> {
        match self.request(Request::History(agent.map(ip))).0 {
            Reply::History(history) => history.entries().0,
            other => panic!("{other:?} instead of the history"),
        }
    }

    fn advance(&mut self, seconds: u64) {
        self.now.elapsed += Duration::from_secs(seconds);
        self.now.unix += seconds;
    }
}

fn verdicts(results: &[ReleaseResult]) -> Vec<(u8, ReleaseOutcome, Option<u64>)> {
    let verdict = |result: &ReleaseResult| {
        (result.ip.octets()[3], result.result, result.last_seen_seconds_ago)
    };
    results.iter().map(verdict).collect()
}

#[test]
fn history_names_client_of_delete_and_reload() {
    let mut world = World::new(network());
    world.register(1);
    world.store();
    let author =
        Author { principal: Some("ops".to_owned()), client: Some("10.0.0.9:40000".to_owned()) };
    let by = |request| Request::By(author.clone(), Box::new(request));
    world.request(by(Request::DeleteAgents(vec![ip(1)])));
    world.store();
    world.register(1);
    world.store();
    let mut renamed = network();
    renamed.overlays[0].name = "renamed".parse().unwrap();
    let id = RequestId(7);
    world.handle(Event::Request(id, by(Request::Reload)));
    let reuse_after = Duration::ZERO;
    let settings = Settings {
        network: Arc::new(renamed),
        reuse_after,
        kind: MasterKind::Module,
        authentication: None,
    };
    world.handle(Event::ConfigRead(id, Ok(settings)));
    world.store();
    world.register(2);
    let authors: Vec<_> =
        world.history(None).into_iter().map(|entry| (entry.event, entry.author)).collect();
    let nobody = Author::default;
    assert_eq!(
        authors,
        [
            (HistoryEvent::Assigned, nobody()),
            (HistoryEvent::Released, author.clone()),
            (HistoryEvent::Returned, nobody()),
            (HistoryEvent::Renamed, author.clone()),
            (HistoryEvent::Configured, author.clone()),
            (HistoryEvent::Assigned, nobody()),
        ]
    );
}

#[test]
fn forget_running_agent_needs_force() {
    let mut world = World::new(network());
    let overlays = world.register(1).unwrap();
    world.store();
    world.advance(29 * 60);
    assert_eq!(
        world.forget(&[1, 9], false, false),
        [
            ReleaseResult {
                vtep_ip: Some("44.128.0.1".to_owned()),
                subnets: ["192.168.0.0/24", "192.168.128.0/24", "fd01:b::/80"]
                    .map(str::to_owned)
                    .into(),
                result: ReleaseOutcome::Running,
                last_seen_seconds_ago: Some(29 * 60),
                ..ReleaseResult::unknown(ip(1))
            },
            ReleaseResult::unknown(ip(9)),
        ]
    );
    assert_eq!(world.state().agents.len(), 1);
    // A report counts as much as a registration.
    world.message(1, report(&overlays, &Status::Ok));
    world.advance(29 * 60);
    let running = (1, ReleaseOutcome::Running, Some(29 * 60));
    assert_eq!(verdicts(&world.forget(&[1], false, true)), [running]);
    world.advance(60);
    let gone = Some(30 * 60);
    assert_eq!(
        verdicts(&world.forget(&[1], false, true)),
        [(1, ReleaseOutcome::WouldBeDeleted, gone)]
    );
    assert_eq!(world.writing, None, "no request has changed the state");
    assert_eq!(verdicts(&world.forget(&[1], false, false)), [(1, ReleaseOutcome::Deleted, gone)]);
    world.store();
    assert_eq!(world.state().agents.len(), 0);

    world.register(2);
    world.store();
    let forced = [(2, ReleaseOutcome::WouldBeDeleted, Some(0))];
    assert_eq!(verdicts(&world.forget(&[2], true, true)), forced);
    world.advance(7);
    assert_eq!(verdicts(&world.forget(&[2], true, false)), [(2, ReleaseOutcome::Deleted, Some(7))]);
    world.store();
    // The master does not know whether the agent was running.
    let forced = world.history(Some(2)).pop().unwrap();
    assert_eq!(forced.reason, "released by force, 7 s after it was last seen");
    let unforced = world.history(Some(1)).pop().unwrap();
    assert_eq!(unforced.reason, "it was forgotten");
}

#[test]
fn forget_soon_after_election_keeps_unseen_agents() {
    let mut world = World::new(network());
    world.register(1);
    world.store();
    let mut world = world.restart(network());
    assert_eq!(
        verdicts(&world.forget(&[1], false, true)),
        [(1, ReleaseOutcome::MayBeRunning, None)]
    );
    assert_eq!(
        verdicts(&world.forget(&[1], true, true)),
        [(1, ReleaseOutcome::WouldBeDeleted, None)]
    );
    world.advance(120);
    assert_eq!(
        verdicts(&world.forget(&[1], false, true)),
        [(1, ReleaseOutcome::WouldBeDeleted, None)]
    );
    let mut world = world.restart(network());
    assert_eq!(verdicts(&world.forget(&[1], true, false)), [(1, ReleaseOutcome::Deleted, None)]);
    world.store();
    let forced = world.history(Some(1)).pop().unwrap();
    assert_eq!(forced.reason, "released by force, before this master has seen it");
}

#[test]
fn quarantined_agent_that_registers_is_running() {
    let mut world = World::new(network());
    world.register(1);
    world.store();
    let moved = Network { vtep_subnet: "44.129.0.0/16".parse().unwrap(), ..network() };
    let mut world = world.restart(moved);
    world.advance(1000);
    world.register(1);
    let results = world.forget(&[1], false, false);
    assert_eq!(verdicts(&results), [(1, ReleaseOutcome::Running, Some(0))]);
    let reason = "44.128.0.1 is no host address of the VTEP subnet 44.129.0.0/16";
    assert_eq!(results[0].quarantined.as_deref(), Some(reason));
    assert_eq!(verdicts(&world.forget(&[1], true, false)), [(1, ReleaseOutcome::Deleted, Some(0))]);
    assert!(world.register(1).is_some());
}

#[test]
fn delete_form_of_cpp_modules_always_releases() {
    let mut world = World::new(network());
    world.register(1);
    world.store();
    world.delete(1);
    assert_eq!(world.state().agents.len(), 0, "the C++ form never refuses");
}

#[test]
fn history_lists_addresses_times_and_reasons() {
    let mut world = World::new(network());
    world.register(1);
    world.store();
    world.advance(10);
    world.delete(1);
    world.store();
    world.advance(10);
    world.register(1);
    // These registrations change no address.
    world.register(1);
    world.register_with(1, AgentOptions { docker_bridge: false, ..AgentOptions::default() });
    world.store();
    let mut renamed = network();
    renamed.overlays[0].name = "renamed".parse().unwrap();
    world.reload(renamed.clone());
    world.store();
    let shown: Vec<String> = world
        .history(None)
        .iter()
        .map(|HistoryEntry { at, version, agent, event, addresses, reason, .. }| {
            let agent = agent.map_or("-".to_owned(), |ip| ip.to_string());
            let names = addresses.overlays.iter().flat_map(|overlay| {
                overlay.subnets().map(|subnet| format!("{} {subnet}", overlay.name))
            });
            let vteps = addresses.vtep_ip.map(|ip| ip.to_string());
            let vteps = vteps.into_iter().chain(addresses.vtep_ip6.map(|ip| ip.to_string()));
            let all: Vec<String> = vteps.chain(names).collect();
            let at = at - 1_700_000_000;
            format!("{at} {version} {agent} {event}: {}: {reason}", all.join(", "))
        })
        .collect();
    let all = "44.128.0.1, fd01:a::1, vxlan-1 192.168.0.0/24, vxlan-2 192.168.128.0/24, vxlan-2 \
               fd01:b::/80";
    assert_eq!(
        shown,
        [
            format!("0 1 10.0.0.1 assigned: {all}: it registered"),
            format!("10 2 10.0.0.1 released: {all}: it was deleted over HTTP"),
            format!("20 3 10.0.0.1 returned: {all}: it registered"),
            "20 5 10.0.0.1 renamed: renamed 192.168.0.0/24: the configuration has another name for \
             the overlay"
                .to_owned(),
            "20 5 - configured: : overlay renamed is added: 192.168.0.0/17 in /24; overlay vxlan-1 \
             is removed"
                .to_owned(),
        ]
    );
    let before = world.history(Some(1));
    assert_eq!(before.len(), 4);
    let mut world = world.restart(renamed);
    assert_eq!(world.history(Some(1)), before, "the history survives a restart");
    assert_eq!(world.history(Some(2)), []);
    world.advance(1000);
    world.forget(&[1], false, false);
    let last = world.history(None).pop().unwrap();
    assert_eq!((last.event, last.reason.as_str()), (HistoryEvent::Released, "it was forgotten"));
    assert_eq!(last.version, world.version.0 + 1, "the entry is in the commit of the change");
}
