//! Tests of underlay addresses that an agent cannot have: refused registrations, reported problems,
//! and their end.

use overlay_types::addr::agent_upid;
use overlay_types::protocol::{AgentRecord, PeersRequest, Record};

use super::*;

impl World {
    /// Registers the agent with an underlay address. Returns whether it is sent assignments.
    fn register_at(&mut self, agent: u8, underlay: &str) -> bool {
        let underlay = Some(underlay.parse().unwrap());
        self.register_with(agent, AgentOptions { underlay, ..AgentOptions::default() }).is_some()
    }

    /// Returns the underlay addresses that peers are sent, by the last byte of the agents.
    fn sent_underlays(&mut self) -> Vec<(u8, String)> {
        self.store();
        self.peer_updates.clear();
        let asker = ip(200);
        if self.register(200).is_none() {
            panic!("{asker} is not registered");
        }
        self.store();
        self.message(200, Message::RequestPeers(PeersRequest::default()));
        for _ in 0..2 {
            self.now.elapsed += Duration::from_secs(1);
            self.handle(Event::Timeout);
        }
        let (_, update, _) = self.peer_updates.last().expect("the peers are sent");
        let update = update.content();
        assert_eq!(update.base, None);
        let others = update.changed.iter().filter(|(ip, _)| **ip != asker);
        others.map(|(ip, info)| (ip.octets()[3], info.underlay.to_string())).collect()
    }

    fn problems(&mut self) -> Vec<String> {
        self.health().problems
    }
}

fn at(agent: u8, underlay: &str) -> (u8, String) {
    (agent, underlay.to_owned())
}

/// Returns the problem of a registration that was refused because `holder` has the address.
fn refused(agent: u8, underlay: &str, holder: u8) -> String {
    let (agent, holder) = (ip(agent), ip(holder));
    format!(
        "refused the registration of agent {agent}: its underlay address {underlay} belongs to agent \
         {holder}: set another 'underlay' on one of the two agents, or delete agent {holder} if it \
         is gone"
    )
}

/// Returns stored records of agents with these numbers and underlay addresses.
fn records(agents: &[(u8, &str)]) -> BTreeMap<Key, StoredRecord> {
    let record = |(agent, underlay): &(u8, &str)| {
        let record = AgentRecord {
            vtep_ip: Ipv4Addr::new(44, 128, 0, *agent),
            vtep_ip6: None,
            overlays: Vec::new(),
            allocate_subnet: true,
            mesos_bridge: true,
            docker_bridge: true,
            underlay: underlay.parse().ok(),
            direct_mac: None,
            authenticated: None,
        };
        (Key::Agent(ip(*agent)), StoredRecord::Agent(Ok(Record::Agent(record))))
    };
    agents.iter().map(record).collect()
}

#[test]
fn duplicate_underlay_is_refused_until_holder_leaves_it() {
    let mut world = World::new(network());
    assert!(world.register_at(2, "fd00::9"));
    assert!(!world.register_at(1, "fd00::9"), "agent 2 registered first");
    assert_eq!(world.problems(), [refused(1, "fd00::9", 2)]);
    assert_eq!(world.metrics(["registrations_refused"]), [1]);
    assert_eq!(world.sent_underlays(), [at(2, "fd00::9")]);
    assert!(world.register_at(2, "fd00::9"), "the holder registers again");
    assert!(!world.register_at(1, "fd00::9"));

    // The holder moves: the address is free.
    assert!(world.register_at(2, "fd00::2"));
    assert_eq!(world.problems(), [""; 0]);
    assert!(world.register_at(1, "fd00::9"));
    assert_eq!(world.sent_underlays(), [at(1, "fd00::9"), at(2, "fd00::2")]);

    // The second agent moves.
    assert!(!world.register_at(3, "fd00::2"));
    assert_eq!(world.problems(), [refused(3, "fd00::2", 2)]);
    assert!(world.register_at(3, "fd00::3"));
    assert_eq!(world.problems(), [""; 0]);

    // The holder is released.
    assert!(!world.register_at(4, "fd00::2"));
    world.delete(2);
    assert_eq!(world.problems(), [""; 0]);
    assert!(world.register_at(4, "fd00::2"));

    // The second agent is released, though it never was registered.
    assert!(!world.register_at(5, "fd00::2"));
    world.delete(5);
    assert_eq!(world.problems(), [""; 0]);
    assert!(!world.register_at(5, "fd00::2"));
    let forget = |dry_run| Request::Forget(Forget { agents: vec![ip(5)], force: false, dry_run });
    world.request(forget(true));
    assert_eq!(world.problems(), [refused(5, "fd00::2", 4)]);
    world.request(forget(false));
    assert_eq!(world.problems(), [""; 0]);
}

#[test]
fn known_agent_with_taken_underlay_keeps_record() {
    let mut world = World::new(network());
    assert!(world.register_at(1, "fd00::1"));
    assert!(world.register_at(2, "fd00::2"));
    let before = world.sent_underlays();
    let records = world.records.clone();
    assert!(!world.register_at(1, "fd00::2"));
    assert_eq!(world.problems(), [refused(1, "fd00::2", 2)]);
    assert_eq!(world.sent_underlays(), before);
    world.store();
    assert_eq!(world.records.get(&Key::Agent(ip(1))), records.get(&Key::Agent(ip(1))));
    // The agent registers with its own address again.
    assert!(world.register_at(1, "fd00::1"));
    assert_eq!(world.problems(), [""; 0]);
}

#[test]
fn refused_registration_survives_reload_not_failover() {
    let mut world = World::new(network());
    assert!(world.register_at(1, "fd00::9"));
    assert!(!world.register_at(2, "fd00::9"));
    let mut other = network();
    other.overlays.reverse();
    assert!(world.reload(other).accepted);
    assert_eq!(world.problems(), [refused(2, "fd00::9", 1)]);
    world.store();
    // The next master loads the holder, and learns of the other agent when it registers.
    let mut world = world.restart(network());
    assert_eq!(world.problems(), [""; 0]);
    assert!(!world.register_at(2, "fd00::9"));
    assert_eq!(world.problems(), [refused(2, "fd00::9", 1)]);
    assert!(world.register_at(1, "fd00::9"));
}

#[test]
fn waiting_registrations_are_checked_against_state() {
    let mut world = World::restored(network(), records(&[(9, "fd00::9")]), Version(9));
    for (agent, underlay) in [(1, "fd00::9"), (2, "fd00::2"), (3, "fd00::2")] {
        assert!(!world.register_at(agent, underlay), "the state is not loaded");
    }
    world.load();
    assert_eq!(world.problems(), [refused(1, "fd00::9", 9), refused(3, "fd00::2", 2)]);
    assert_eq!(world.sent_underlays(), [at(2, "fd00::2"), at(9, "fd00::9")]);
}

#[test]
fn stored_duplicate_underlay_is_served_for_lowest_agent() {
    let stored = records(&[(3, "fd00::9"), (5, "fd00::9"), (7, "fd00::9"), (8, "fd00::8")]);
    let mut world = World::restored(network(), stored, Version(9));
    world.load();
    let sentence = |agent: u8, holder: u8| {
        refused(agent, "fd00::9", holder).replace(
            &format!("refused the registration of agent {}", ip(agent)),
            &format!("agent {} is not served to its peers", ip(agent)),
        )
    };
    assert_eq!(world.problems(), [sentence(5, 3), sentence(7, 3)]);
    assert_eq!(world.sent_underlays(), [at(3, "fd00::9"), at(8, "fd00::8")]);
    assert!(world.register_at(3, "fd00::9"));
    assert!(!world.register_at(5, "fd00::9"));
    assert_eq!(world.problems(), [sentence(5, 3), sentence(7, 3)], "the conflict is reported once");

    // The first agent moves, so the next agent has the address. The first agent does not get it
    // back.
    assert!(world.register_at(3, "fd00::3"));
    assert_eq!(world.problems(), [sentence(7, 5)]);
    assert!(!world.register_at(3, "fd00::9"));
    assert_eq!(world.problems(), [sentence(7, 5), refused(3, "fd00::9", 5)]);
    world.store();
    assert!(world.register_at(3, "fd00::3"));
    assert_eq!(world.sent_underlays(), [at(3, "fd00::3"), at(5, "fd00::9"), at(8, "fd00::8")]);

    // A reload has the same problems, and is not refused because of earlier ones.
    let mut other = network();
    other.overlays.reverse();
    assert!(world.reload(other).accepted);
    assert_eq!(world.problems(), [sentence(7, 5)]);
    world.delete(5);
    assert_eq!(world.problems(), [""; 0]);
    assert_eq!(world.sent_underlays(), [at(3, "fd00::3"), at(7, "fd00::9"), at(8, "fd00::8")]);
}

#[test]
fn underlay_of_quarantined_record_is_reserved() {
    // Both records have the same VTEP address: the second record is quarantined.
    let mut stored = records(&[(1, "fd00::1"), (2, "fd00::2")]);
    let twice = records(&[(1, "fd00::2")]).remove(&Key::Agent(ip(1))).unwrap();
    stored.insert(Key::Agent(ip(2)), twice);
    let mut world = World::restored(network(), stored, Version(9));
    world.load();
    assert!(!world.register_at(3, "fd00::2"));
    assert!(world.problems().contains(&refused(3, "fd00::2", 2)));
    world.delete(2);
    assert!(world.register_at(3, "fd00::2"));
    assert_eq!(world.problems(), [""; 0]);
}

#[test]
fn underlay_of_no_host_or_inside_overlay_is_refused() {
    let cases = [
        ("fe80::1", "fe80::1 is a link-local address"),
        ("::ffff:10.0.0.2", "::ffff:10.0.0.2 is an IPv4-mapped address"),
        ("fd01:a::77", "fd01:a::77 lies inside of fd01:a::/64 of vtep_subnet6"),
        ("fd01:b::77", "fd01:b::77 lies inside of fd01:b::/64 of overlay vxlan-2"),
    ];
    let mut world = World::new(network());
    for (underlay, expected) in cases {
        assert!(!world.register_at(1, underlay), "{underlay}");
        let problems = world.problems();
        assert!(problems.len() == 1 && problems[0].contains(expected), "{problems:?}");
        // Stored records are checked in the same way.
        let mut found = World::restored(network(), records(&[(1, underlay)]), Version(9));
        found.load();
        let problems = found.problems();
        assert!(problems.len() == 1 && problems[0].contains(expected), "{problems:?}");
        assert_eq!(found.sent_underlays(), []);
    }
    assert!(world.register_at(1, "fd00::1"));
    assert_eq!(world.problems(), [""; 0]);
    assert_eq!(world.metrics(["registrations_refused"]), [4]);
}

#[test]
fn overlay_containing_agents_is_reported() {
    let over = |name: &str, agents: &str| {
        format!(
            "10.0.0.0/24 of overlay {name} contains agent {agents}: these hosts refuse it, and \
             other hosts do not reach them: set another subnet"
        )
    };
    let mut world = World::new(small("44.128.0.0/16", "10.0.0.0/24"));
    assert!(world.register(1).is_some());
    assert_eq!(world.problems(), [over("net", "10.0.0.1")]);

    let plain = || small("44.128.0.0/16", "20.0.0.0/16");
    let mut world = World::new(plain());
    for agent in 1..=3 {
        world.register(agent);
    }
    world.store();
    let mut wider = plain();
    wider.overlays.push(overlay("new", "10.0.0.0/24"));
    let sentence = over("new", "10.0.0.1 and 2 more");
    assert_eq!(world.preview(wider.clone()).warnings.last(), Some(&sentence));
    let effect = world.reload(wider.clone());
    assert!(effect.accepted, "hosts refuse only this overlay");
    assert!(world.problems().contains(&sentence), "{:?}", world.problems());
    wider.overlays[1].enabled = false;
    world.reload(wider);
    assert_eq!(world.problems(), [""; 0]);
}

#[test]
fn refused_registrations_are_reported_up_to_limit() {
    let mut world = World::new(network());
    assert!(world.register_at(1, "fd00::9"));
    let options = AgentOptions { underlay: "fd00::9".parse().ok(), ..AgentOptions::default() };
    for number in 0..1500 {
        let ip = Ipv4Addr::from(u32::from(Ipv4Addr::new(11, 0, 0, 0)) + number);
        let from = agent_upid(std::net::SocketAddrV4::new(ip, 5051));
        world.handle(Event::Message { from, message: Message::RegisterAgent(options) });
    }
    assert_eq!(world.metrics(["registrations_refused"]), [1500]);
    let problems = world.problems();
    assert_eq!(problems.len(), 101);
    assert_eq!(problems[100], "… and 900 more problems: fix those above first");
    assert_eq!(world.agents().len(), 0, "refused registrations are not stored");
    world.delete(1);
    assert_eq!(world.problems(), [""; 0]);
}

proptest! {
    /// For every sequence of steps: peers are sent no two agents with one underlay address.
    #[test]
    fn peers_have_distinct_underlays(
        steps in prop::collection::vec((1_u8..6, 0_u8..5, 0_u8..10), 1..60),
        at_start in prop::collection::vec((1_u8..6, 1_u8..4), 0..5),
    ) {
        let at_start: Vec<_> = at_start
            .into_iter()
            .map(|(agent, address)| (agent, format!("fd00::{address}")))
            .collect();
        let at_start: Vec<_> =
            at_start.iter().map(|(agent, address)| (*agent, address.as_str())).collect();
        let mut world = World::restored(network(), records(&at_start), Version(9));
        world.load();
        for (agent, address, action) in steps {
            match action {
                0 => world.delete(agent),
                1 => drop(world.reload(network())),
                2 => world = { world.store(); world.restart(network()) },
                _ if address == 0 => drop(world.register(agent)),
                _ => drop(world.register_at(agent, &format!("fd00::{address}"))),
            }
            let sent = world.sent_underlays();
            let addresses: BTreeSet<&String> = sent.iter().map(|(_, address)| address).collect();
            prop_assert_eq!(addresses.len(), sent.len(), "{:?}", sent);
            // Every agent that is not sent is reported.
            let state = world.state();
            let known = state.agents.iter().map(|agent| agent.ip.octets()[3]);
            let problems = world.problems();
            let is_hidden = |agent: &u8| *agent < 200 && !sent.iter().any(|(it, _)| it == agent);
            for hidden in known.filter(is_hidden) {
                let sentence = format!("agent {} is not served to its peers", ip(hidden));
                prop_assert!(problems.iter().any(|it| it.starts_with(&sentence)), "{:?}", problems);
            }
        }
    }
}
