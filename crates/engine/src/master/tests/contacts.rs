//! When agents were last seen, which agents are stale, and agents with one IP.

use std::net::SocketAddrV4;

use overlay_types::protocol::{AgentContact, HeldAddresses};

use super::*;

const START: u64 = 1_700_000_000;
const NONE: [Ipv4Addr; 0] = [];

impl World {
    /// Lets time pass. Timeouts are handled when they are due.
    fn pass_seconds(&mut self, seconds: u64) {
        let end = self.now.elapsed + Duration::from_secs(seconds);
        while let Some(due) = self.master.next_timeout().filter(|due| *due <= end) {
            self.set_time(due.max(self.now.elapsed));
            self.handle(Event::Timeout);
        }
        self.set_time(end);
    }

    fn set_time(&mut self, elapsed: Duration) {
        self.now = Now { elapsed, unix: START + elapsed.as_secs() };
    }

    fn request_peers(&mut self, agent: u8) {
        self.message(agent, Message::RequestPeers(PeersRequest::default()));
    }

    fn register_from(&mut self, address: SocketAddrV4) {
        let message = Message::RegisterAgent(AgentOptions::default());
        self.handle(Event::Message { from: agent_upid(address), message });
    }

    fn stale(&mut self) -> Vec<Ipv4Addr> {
        let contacts = self.state().contacts.into_iter();
        let stale: Vec<Ipv4Addr> =
            contacts.filter(|(_, contact)| contact.is_stale).map(|(ip, _)| ip).collect();
        assert_eq!(self.health().agents.stale, stale.len());
        stale
    }
}

/// Returns a world with an agent whose overlays are all ready, and that requests its peers.
fn world_with_ready_agent() -> World {
    let mut world = World::new(network());
    let overlays = world.register(1).unwrap();
    world.store();
    world.message(1, report(&overlays, &Status::Ok));
    world.request_peers(1);
    world
}

#[test]
fn agent_with_dead_host_becomes_stale_and_returns() {
    let mut world = world_with_ready_agent();
    assert_eq!(world.metrics(["agents/ok", "agents/stale", "status/ok"]), [1, 0, 1]);
    for _ in 0..20 {
        world.pass_seconds(60);
        world.request_peers(1);
    }
    world.pass_seconds(194);
    assert_eq!(world.stale(), NONE);
    world.pass_seconds(1);
    assert_eq!(world.stale(), [ip(1)]);
    let health = world.health();
    assert_eq!(health.status, Condition::Degraded);
    assert_eq!(
        health.problems,
        [
            "1 agent is stale: 10.0.0.1 (last seen 2023-11-14T22:33:20Z): start it again, or release \
          its addresses with `mesos-overlay forget`"
        ]
    );
    let expected = [0, 1, 1, START + 1200];
    let names =
        ["agents/ok", "agents/stale", "status/degraded", "oldest_contact_timestamp_seconds"];
    assert_eq!(world.metrics(names), expected);
    let contact = AgentContact { last_seen: Some(START + 1200), is_stale: true, version: None };
    assert_eq!(world.state().contacts[&ip(1)], contact);
    assert_eq!(world.links, [], "the agent requests its peers: no link is needed");
    world.request_peers(1);
    assert_eq!((world.stale(), world.health().status), (vec![], Condition::Ok));
    assert_eq!(world.metrics(["agents/ok"]), [1], "its last report counts again");
}

#[test]
fn silent_agent_with_open_link_is_never_stale() {
    let mut world = World::new(network());
    world.register(1);
    world.store();
    world.pass_seconds(86_400);
    assert_eq!(world.links, [upid(1)], "one link, without further messages");
    assert_eq!(world.stale(), NONE);
    // The link ends: the agent has time to return.
    world.handle(Event::Exited(upid(1).address));
    world.pass_seconds(194);
    world.register(1);
    world.pass_seconds(86_400);
    assert_eq!(world.stale(), NONE);
}

#[test]
fn silent_agent_whose_link_ends_becomes_stale() {
    let mut world = World::new(network());
    world.register(1);
    world.store();
    world.pass_seconds(1000);
    world.handle(Event::Exited(upid(1).address));
    world.pass_seconds(195);
    assert_eq!(world.links.len(), 2, "the master tries again before it calls the agent stale");
    assert_eq!(world.stale(), NONE);
    world.handle(Event::Exited(upid(1).address));
    assert_eq!(world.stale(), [ip(1)]);
    // The attempts continue: the agent may have been unreachable only.
    world.pass_seconds(195);
    assert_eq!(world.links.len(), 3);
    world.handle(Event::Exited(upid(1).address));
    world.pass_seconds(195 + 150);
    assert_eq!((world.links.len(), world.stale()), (4, vec![]), "the last link is open");
}

#[test]
fn exits_of_other_processes_change_nothing() {
    let mut world = World::new(network());
    world.register(1);
    world.store();
    for address in ["10.0.0.1:5052", "10.0.0.9:5051", "10.0.0.1:5051"] {
        world.handle(Event::Exited(address.parse().unwrap()));
    }
    world.pass_seconds(194);
    assert_eq!((world.stale(), world.links.len()), (vec![], 0));
}

#[test]
fn agent_that_stops_its_requests_is_judged_by_link() {
    let mut world = world_with_ready_agent();
    world.pass_seconds(30);
    // It was started again with the dataplane `external`.
    world.register(1);
    world.pass_seconds(86_400);
    assert_eq!((world.links.len(), world.stale()), (1, vec![]));
}

#[test]
fn new_leader_gives_unseen_agents_time() {
    let mut world = World::new(network());
    world.register(1);
    world.register(2);
    world.store();
    let mut world = world.restart(network());
    assert_eq!(world.state().contacts, BTreeMap::new());
    world.pass_seconds(190);
    world.register(1);
    world.pass_seconds(4);
    assert_eq!(world.stale(), NONE);
    world.pass_seconds(1);
    assert_eq!(world.stale(), [ip(2)]);
    assert_eq!(
        world.health().problems,
        [
            "1 agent is stale: 10.0.0.2 (not seen since the election): start it again, or release its \
          addresses with `mesos-overlay forget`"
        ]
    );
    world.delete(2);
    world.store();
    assert_eq!((world.stale(), world.health().status), (vec![], Condition::Ok));
    world.register(2);
    assert_eq!(world.stale(), NONE);
}

#[test]
fn store_failure_keeps_contacts_and_gives_time() {
    let mut world = World::new(network());
    world.register(1);
    world.store();
    world.pass_seconds(86_400);
    assert_eq!((world.links.len(), world.stale()), (1, vec![]));
    world.register(2);
    world.writing = None;
    let failed = StoreError::Failed { store: "s".into(), action: "commit", reason: "full".into() };
    world.handle(Event::Committed(Err(failed)));
    world.pass_seconds(1000);
    world.load();
    let contact = AgentContact { last_seen: Some(START), is_stale: false, version: None };
    assert_eq!(world.state().contacts, BTreeMap::from([(ip(1), contact)]));
    world.pass_seconds(86_400);
    assert_eq!(world.links, [upid(1)], "the link is still open");
    assert_eq!(world.stale(), NONE, "the agent does not notice the failure and stays silent");
}

#[test]
fn master_that_was_stopped_calls_no_agent_stale() {
    let mut world = world_with_ready_agent();
    world.set_time(Duration::from_secs(10_000));
    world.handle(Event::Timeout);
    assert_eq!(world.stale(), NONE);
    world.pass_seconds(195);
    assert_eq!(world.stale(), [ip(1)]);
}

#[test]
fn reload_keeps_stale_agents() {
    let mut world = world_with_ready_agent();
    world.pass_seconds(200);
    let mut wider = network();
    wider.overlays.push(overlay("new", "10.128.0.0/16"));
    assert!(world.reload(wider).accepted);
    assert_eq!(world.stale(), [ip(1)]);
    assert_eq!(world.metrics(["agents/ok", "agents/stale"]), [0, 1]);
}

#[test]
fn many_silent_agents_are_linked_in_slices() {
    let mut world = World::new(network());
    (1..=200).for_each(|agent| drop(world.register(agent)));
    world.store();
    world.set_time(Duration::from_secs(195));
    let mut most = 0;
    while world.master.next_timeout().is_some_and(|due| due <= world.now.elapsed) {
        let before = world.links.len();
        world.handle(Event::Timeout);
        most = most.max(world.links.len() - before);
    }
    assert_eq!((world.links.len(), most), (200, 50));
}

#[test]
fn process_with_other_name_takes_no_agents_place() {
    let mut world = world_with_ready_agent();
    let other = Upid { id: "other".to_owned(), address: "10.0.0.1:6000".parse().unwrap() };
    assert!(!world.master.accepts(&other, MessageKind::RegisterAgent));
    let sent = world.sent.len();
    let messages = [Message::RegisterAgent(AgentOptions::default()), report(&[], &Status::Ok)];
    for message in messages {
        world.handle(Event::Message { from: other.clone(), message });
    }
    // The name is that of agents, and the port is not that of the agent.
    let second = agent_upid("10.0.0.1:6000".parse().unwrap());
    world.handle(Event::Message { from: second, message: report(&[], &Status::Ok) });
    assert_eq!(world.sent.len(), sent, "nothing is sent to these processes");
    assert!(world.master.accepts(&upid(1), MessageKind::RequestPeers), "the agent stays known");
    assert_eq!(world.metrics(["internal/register_agent_messages_dropped"]), [1]);
}

const SHARED: &str = "agents 10.0.0.1:5051 and 10.0.0.1:5052 run at one IP and share one \
                      allocation: stop one of them, or start it with another address in \
                      --advertise";

#[test]
fn second_agent_at_one_ip_is_reported_while_first_runs() {
    let mut world = world_with_ready_agent();
    world.register_from("10.0.0.1:5052".parse().unwrap());
    assert_eq!(world.health().problems, [""; 0], "the first agent may have ended");
    world.pass_seconds(149);
    assert_eq!(world.health().problems, [""; 0]);
    assert_eq!(world.links, [upid(1)]);
    world.pass_seconds(1);
    assert_eq!(world.health().problems, [SHARED], "the link to the first agent is open");
    assert_eq!(world.health().status, Condition::Degraded);
    world.handle(Event::Exited(upid(1).address));
    assert_eq!(world.health().problems, [""; 0]);
}

#[test]
fn message_of_first_agent_proves_that_both_run() {
    let mut world = world_with_ready_agent();
    world.register_from("10.0.0.1:5052".parse().unwrap());
    world.request_peers(1);
    assert_eq!(world.health().problems, [SHARED]);
    let mut world = world_with_ready_agent();
    world.register_from("10.0.0.1:5052".parse().unwrap());
    world.handle(Event::Ignored { from: upid(1), kind: MessageKind::RequestPeers });
    assert_eq!(world.health().problems, [SHARED]);
    world.delete(1);
    assert_eq!(world.health().problems, [""; 0]);
}

#[test]
fn agent_that_moved_to_another_port_is_no_second_agent() {
    let mut world = world_with_ready_agent();
    for port in [5052, 5051, 5052] {
        let before = world.state().contacts.len();
        world.register_from(SocketAddrV4::new(ip(1), port));
        let former = world.master.next_timeout();
        assert_eq!(former, Some(Duration::ZERO), "the link to the former process is due");
        world.pass_seconds(0);
        let linked = world.links.pop().unwrap();
        world.handle(Event::Exited(linked.address));
        world.pass_seconds(100);
        assert_eq!((world.health().problems, before), (Vec::new(), 1));
    }
}

#[test]
fn refused_registration_of_other_process_keeps_agent() {
    let mut world = world_with_ready_agent();
    let underlay = Some("fd00::5".parse().unwrap());
    let options = AgentOptions { underlay, ..AgentOptions::default() };
    world.register_with(2, options).unwrap();
    world.store();
    world.pass_seconds(100);
    let before = world.state().contacts[&ip(1)];
    let other = agent_upid("10.0.0.1:6000".parse().unwrap());
    for message in [
        Message::RegisterAgent(options),
        report(&[], &Status::Ok),
        Message::RequestPeers(PeersRequest::default()),
        Message::HeldAddresses(HeldAddresses::default()),
    ] {
        world.handle(Event::Message { from: other.clone(), message });
    }
    assert_eq!(world.state().contacts[&ip(1)], before, "another process was seen, not the agent");
    assert!(world.master.accepts(&upid(1), MessageKind::AgentRegistered));
    assert_eq!(world.metrics(["agents/ok"]), [1]);
    world.pass_seconds(95);
    assert_eq!(world.stale(), [ip(1)]);
    // The agent was started again with another port and other options.
    world.handle(Event::Message { from: other, message: Message::RegisterAgent(options) });
    assert_eq!(world.stale(), NONE);
}

#[test]
fn master_after_unnoticed_restart_does_not_know_silent_agents() {
    let mut world = World::new(network());
    (1..=3).for_each(|agent| drop(world.register(agent)));
    world.store();
    let mut world = World::restored(network(), world.records, world.version);
    world.master = world.master.after_restart();
    world.load();
    world.register(1);
    world.pass_seconds(194);
    assert_eq!(world.health().problems, [""; 0]);
    world.pass_seconds(86_400);
    assert_eq!(world.stale(), NONE);
    let health = world.health();
    assert_eq!(health.status, Condition::Degraded);
    assert_eq!(
        health.problems,
        [
            "it is not known whether 2 agents run: 10.0.0.2, 10.0.0.3: no message was received since \
          this master restarted after a defect: restart mesos-master, and every running agent \
          registers again"
        ]
    );
    assert_eq!((health.agents.unreported, health.agents.stale), (3, 0));
    let agents = vec![ip(2)];
    let forget = Forget { agents, force: false, dry_run: false };
    let (reply, _) = world.request(Request::Forget(forget));
    let Reply::ReleaseResults(results) = reply else { panic!("{reply:?}") };
    assert_eq!(results[0].result, ReleaseOutcome::MayBeRunning);
    world.register(2);
    world.request_peers(3);
    assert_eq!(world.health().problems, [""; 0]);
    // Every agent that runs registers with the next leader.
    let mut world = world.restart(network());
    world.pass_seconds(195);
    assert_eq!(world.stale(), [ip(1), ip(2), ip(3)]);
}

#[test]
fn last_seen_is_never_after_the_present() {
    let mut world = World::new(network());
    world.register(1);
    world.store();
    world.pass_seconds(100);
    world.register(2);
    world.store();
    // The clock of the host was an hour ahead.
    world.now.unix -= 3600;
    world.handle(Event::Timeout);
    let seen = |world: &mut World, agent| world.state().contacts[&ip(agent)].last_seen.unwrap();
    assert_eq!(seen(&mut world, 2), world.now.unix);
    assert_eq!(seen(&mut world, 1), world.now.unix - 100);
    assert_eq!(world.metrics(["oldest_contact_timestamp_seconds"]), [world.now.unix - 100]);
    // Set forward, the clock changes nothing: the host may have been suspended.
    world.now.unix += 7200;
    world.register(2);
    assert_eq!(seen(&mut world, 2), world.now.unix);
    assert_eq!(seen(&mut world, 1), START);
}

#[test]
fn end_of_open_link_gives_time_also_after_messages() {
    let mut world = World::new(network());
    world.register(1);
    world.store();
    world.pass_seconds(1000);
    assert_eq!(world.links, [upid(1)]);
    world.register(1);
    world.pass_seconds(1000);
    assert_eq!(world.links, [upid(1)], "the link is still open, and is not opened again");
    world.register(1);
    world.pass_seconds(190);
    // The link ends shortly before the agent would be called silent: it starts again.
    world.handle(Event::Exited(upid(1).address));
    world.pass_seconds(190);
    assert_eq!((world.stale(), world.links.len()), (vec![], 1));
    // The agent registers while the master opens the link. The end of the attempt is no news.
    world.pass_seconds(5);
    assert_eq!(world.links.len(), 2);
    world.register(1);
    world.handle(Event::Exited(upid(1).address));
    assert_eq!(world.stale(), NONE);
}

#[test]
fn link_that_ends_while_state_is_read_is_noticed() {
    let mut world = World::new(network());
    world.register(1);
    world.store();
    world.pass_seconds(1000);
    world.register(2);
    world.writing = None;
    let failed = StoreError::Failed { store: "s".into(), action: "commit", reason: "full".into() };
    world.handle(Event::Committed(Err(failed)));
    world.handle(Event::Exited(upid(1).address));
    world.load();
    world.pass_seconds(195);
    assert_eq!(world.links.len(), 2, "the master links again");
    world.handle(Event::Exited(upid(1).address));
    assert_eq!(world.stale(), [ip(1)]);
}

#[test]
fn agents_with_other_ports_are_linked_in_slices() {
    let mut world = World::new(network());
    (1..=200).for_each(|agent| drop(world.register(agent)));
    world.store();
    for agent in 1..=200 {
        world.register_from(SocketAddrV4::new(ip(agent), 5052));
    }
    let mut most = 0;
    while world.master.next_timeout().is_some_and(|due| due <= world.now.elapsed) {
        let before = world.links.len();
        world.handle(Event::Timeout);
        most = most.max(world.links.len() - before);
    }
    assert_eq!((world.links.len(), most), (200, 50));
    // A process that toggles its port causes one link.
    let before = world.links.len();
    for port in 6000..6100 {
        world.register_from(SocketAddrV4::new(ip(1), port));
    }
    world.pass_seconds(0);
    assert_eq!(world.links.len() - before, 1);
}

#[test]
fn agent_without_requests_misses_three_registrations() {
    let mut world = World::new(network());
    for agent in [1, 2] {
        world.register(agent);
        world.store();
    }
    // Agent 1 is a mesos-overlay with the dataplane `external`, agent 2 has the C++ module.
    let follow = |world: &mut World| {
        let (from, kind) = (upid(1), MessageKind::HeldAddresses);
        world.handle(Event::Ignored { from, kind });
    };
    follow(&mut world);
    for _ in 0..10 {
        world.pass_seconds(15 * 60);
        world.register(1);
        follow(&mut world);
    }
    assert_eq!(world.links, [upid(1), upid(2)]);
    // The hosts lose their power: the links stay open.
    world.pass_seconds(46 * 60 - 1);
    assert_eq!(world.stale(), NONE);
    world.pass_seconds(1);
    assert_eq!(world.stale(), [ip(1)], "nothing is known about agent 2");
    world.register(1);
    follow(&mut world);
    assert_eq!(world.stale(), NONE);
    world.pass_seconds(46 * 60);
    assert_eq!(world.stale(), [ip(1)]);
    // A C++ module takes its place, at the same address.
    world.register(1);
    world.pass_seconds(86_400);
    assert_eq!(world.stale(), NONE);
}

/// Returns the series of the families with this prefix, as `NAME LABEL VALUE`.
fn series(world: &mut World, agents: Vec<Ipv4Addr>, prefix: &str) -> Vec<String> {
    let Reply::Metrics(snapshot) = world.request(Request::Metrics(agents)).0 else {
        panic!("no metrics");
    };
    let families = snapshot.configured.iter().filter(|family| family.name.starts_with(prefix));
    let series = families.flat_map(|family| {
        family.series.iter().map(|series| {
            let label = series.labels.first().map_or("", |(_, value)| value);
            format!("{} {label} {}", family.name, series.value)
        })
    });
    series.collect()
}

#[test]
fn silent_agents_are_counted_by_silence() {
    let mut world = World::new(network());
    for agent in [1, 2, 3] {
        world.register(agent);
        world.store();
    }
    let silent = |world: &mut World| series(world, Vec::new(), "agents_");
    let expected = |counts: [u64; 4], unseen: u64| {
        let names = ["300", "3600", "86400", "604800"];
        let silent =
            names.iter().zip(counts).map(|(name, count)| format!("agents_silent {name} {count}"));
        silent.chain([format!("agents_unseen  {unseen}")]).collect::<Vec<_>>()
    };
    assert_eq!(silent(&mut world), expected([0; 4], 0));
    world.pass_seconds(200);
    world.request_peers(1);
    world.pass_seconds(101);
    assert_eq!(silent(&mut world), expected([2, 0, 0, 0], 0));
    world.pass_seconds(3600);
    world.request_peers(2);
    assert_eq!(silent(&mut world), expected([2, 2, 0, 0], 0));
    world.pass_seconds(7 * 86_400);
    assert_eq!(silent(&mut world), expected([3, 3, 3, 2], 0));
    let mut world = world.restart(network());
    assert_eq!(silent(&mut world), expected([0; 4], 3));
}

#[test]
fn requested_agents_have_series() {
    let mut world = World::new(network());
    world.register(1);
    world.store();
    world.pass_seconds(20_000);
    assert_eq!(series(&mut world, Vec::new(), "agent_"), [""; 0]);
    assert_eq!(
        series(&mut world, vec![ip(1), ip(9)], "agent_"),
        [
            "agent_known 10.0.0.1 1".to_owned(),
            "agent_known 10.0.0.9 0".to_owned(),
            "agent_stale 10.0.0.1 0".to_owned(),
            "agent_stale 10.0.0.9 0".to_owned(),
            format!("agent_last_seen_timestamp_seconds 10.0.0.1 {START}"),
            "agent_last_seen_timestamp_seconds 10.0.0.9 0".to_owned(),
        ]
    );
}
