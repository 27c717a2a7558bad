//! Which addresses agents get, give back and get again.

use super::*;

#[test]
fn register_without_free_vtep_is_refused() {
    // Two hosts in a /30.
    let mut world = World::new(small("44.128.0.0/30", "20.0.0.0/8"));
    assert!(world.register(1).is_some() && world.register(2).is_some());
    assert_eq!(world.register(3), None);
    let health = world.health();
    assert_eq!(health.counters.ip_allocation_failures, 1);
    assert_eq!(
        health.problems,
        ["the VTEP subnet is exhausted: 1 agent did not get any: widen it or delete dead agents"]
    );
    world.delete(1);
    assert!(world.register(3).is_some(), "the VTEP of the deleted agent is free");
    assert_eq!(world.health().problems, [""; 0]);
}

#[test]
fn shortage_ends_with_option_or_release() {
    let mut tight = small("44.128.0.0/30", "20.0.0.0/24");
    tight.vtep_subnet6 = Some("fd01:a::/127".parse().unwrap());
    let mut world = World::new(tight);
    for agent in 1..=3 {
        world.register(agent);
    }
    let shortage = |pool: &str| {
        format!("{pool} is exhausted: 1 agent did not get any: widen it or delete dead agents")
    };
    assert_eq!(
        world.health().problems,
        ["overlay net (IPv4)", "the IPv6 VTEP subnet", "the VTEP subnet"].map(shortage)
    );
    let gateway = AgentOptions { allocate_subnet: false, ..AgentOptions::default() };
    world.register_with(2, gateway);
    world.delete(3);
    assert_eq!(world.health().problems, ["the IPv6 VTEP subnet"].map(shortage));
}

#[test]
fn exhausted_family_leaks_no_subnet_of_other_family() {
    let mut two = network();
    // IPv6 is enough for two agents, IPv4 for 128.
    two.overlays[1].range6 = range("fd01:b::/79", 80);
    let mut world = World::new(two);
    for agent in 1..=3 {
        world.register(agent);
    }
    world.store();
    let third = world.register(3).unwrap();
    assert_eq!(subnets(&third), ["192.168.2.0/24"], "the agent gets a subnet of the other overlay");
    let usage = world.health().pools;
    let vxlan2: Vec<u128> =
        usage.iter().filter(|pool| pool.name == "vxlan-2").map(|pool| pool.in_use).collect();
    assert_eq!(vxlan2, [2, 2], "no IPv4 subnet is lost");
    assert_eq!(world.health().counters.subnet6_allocation_failures, 2);
    assert_eq!(
        world.health().problems,
        ["overlay vxlan-2 (IPv6) is exhausted: 1 agent did not get any: widen it or delete dead \
          agents"]
    );
}

#[test]
fn returning_agent_gets_addresses_back() {
    let mut world = World::new(network());
    world.register(1);
    let second = world.register(2).unwrap();
    world.store();
    world.delete(2);
    world.store();
    assert_eq!(world.state().agents.len(), 1);
    // A new agent gets unused addresses, before and after a restart of the master.
    assert_eq!(subnets(&world.register(3).unwrap())[0], "192.168.2.0/24");
    world.store();
    let mut world = world.restart(network());
    assert_eq!(subnets(&world.register(4).unwrap())[0], "192.168.3.0/24");
    assert_eq!(world.register(2).unwrap(), second);
}

#[test]
fn returning_agent_keeps_subnets_of_unconfigured_overlay() {
    let part = || small("44.128.0.0/16", "20.0.0.0/23");
    let other = overlay("other", "20.1.0.0/23");
    let whole = || Network { overlays: vec![part().overlays[0].clone(), other.clone()], ..part() };
    let mut world = World::new(whole());
    let first = world.register(1).unwrap();
    world.delete(1);
    world.store();
    let mut world = world.restart(part());
    assert_eq!(subnets(&world.register(1).unwrap()), subnets(&first[..1]));
    world.store();
    let mut world = world.restart(whole());
    assert_eq!(subnets(&world.register(2).unwrap()), ["20.0.1.0/24", "20.1.1.0/24"]);
    assert_eq!(world.register(1).unwrap(), first);
}

#[test]
fn returning_agent_gets_nothing_outside_narrowed_overlay() {
    let mut world = World::new(small("44.128.0.0/16", "20.0.0.0/22"));
    for agent in 1..=3 {
        world.register(agent);
    }
    world.store();
    world.delete(2);
    world.store();
    world.delete(3);
    world.store();
    // No registered agent has an address outside of the narrowed overlay.
    let mut world = world.restart(small("44.128.0.0/16", "20.0.0.0/23"));
    assert_eq!(subnets(&world.register(3).unwrap()), ["20.0.1.0/24"]);
    world.store();
    assert_eq!(world.health().problems, [""; 0]);
    let mut world = world.restart(small("44.128.0.0/16", "20.0.0.0/23"));
    assert_eq!(world.health().problems, [""; 0]);
    assert_eq!(subnets(&world.register(3).unwrap()), ["20.0.1.0/24"]);
}

#[test]
fn unconfigured_subnet_allocated_to_another_is_dropped() {
    let two = |prefix: u8| {
        let plain = small("44.128.0.0/16", "20.0.0.0/24");
        let (kept, mut cut) = (overlay("kept", "20.1.0.0/23"), plain.overlays[0].clone());
        cut.range = cut.range.map(|range| AddressRange { prefix, ..range });
        Network { overlays: vec![kept, cut], ..plain }
    };
    let mut world = World::new(two(24));
    world.register(1);
    world.delete(1);
    world.store();
    let mut world = world.restart(two(25));
    assert_eq!(subnets(&world.register(2).unwrap())[1], "20.0.0.0/25");
    world.store();
    let none = Network { overlays: vec![overlay("kept", "20.1.0.0/23")], ..two(24) };
    let mut world = world.restart(none);
    world.register(1);
    world.store();
    let StoredRecord::Agent(Ok(Record::Agent(record))) = &world.records[&Key::Agent(ip(1))] else {
        panic!("no record of an agent")
    };
    assert_eq!(record.overlays.len(), 1, "{record:?}");
}

#[test]
fn release_withdraws_unstored_assignments() {
    let mut world = World::new(small("44.128.0.0/30", "20.0.0.0/23"));
    world.register(1);
    world.store();
    world.delete(1);
    assert_eq!(world.withdrawn, BTreeSet::new(), "the stored assignments are not withdrawn");
    world.store();
    // The agent is released before its record is durable, and the next agent gets the last
    // addresses.
    let first = world.register(2).unwrap();
    world.register(3);
    world.delete(3);
    world.delete(9);
    assert_eq!(world.withdrawn, BTreeSet::from([ip(3)]));
    let fourth = world.register(4).unwrap();
    assert_ne!(subnets(&fourth), subnets(&first));
    // A returning agent is sent its assignments again.
    world.delete(4);
    assert_eq!(world.withdrawn, BTreeSet::from([ip(3), ip(4)]));
    assert_eq!(world.register(4), Some(fourth));
}

#[test]
fn released_addresses_are_reused_last_oldest_first() {
    // Four subnets.
    let mut world = World::new(small("44.128.0.0/16", "20.0.0.0/22"));
    for agent in 1..=3 {
        world.register(agent);
    }
    for agent in [2, 1] {
        world.now.unix += 10;
        world.delete(agent);
    }
    world.store();
    assert_eq!(subnets(&world.register(4).unwrap()), ["20.0.3.0/24"], "the unused subnet");
    world.store();
    let mut world = world.restart(small("44.128.0.0/16", "20.0.0.0/22"));
    world.now.unix += 3600;
    assert_eq!(
        subnets(&world.register(5).unwrap()),
        ["20.0.1.0/24"],
        "the subnet that was freed first"
    );
    assert_eq!(world.health().counters.early_reuses, 1, "3590 seconds are not an hour");
    assert_eq!(subnets(&world.register(6).unwrap()), ["20.0.0.0/24"]);
    assert_eq!(subnets(&world.register(7).unwrap()), [""; 0], "no subnet is left");
    // An agent that returns too late gets its former VTEP, and no subnet.
    let late = world.register(2).unwrap();
    assert_eq!(late, []);
}

#[test]
fn reused_address_is_removed_from_released_record() {
    let mut world = World::new(small("44.128.0.0/30", "20.0.0.0/23"));
    world.register(1);
    world.register(2);
    world.delete(1);
    world.store();
    world.register(3);
    world.store();
    assert_eq!(world.agents(), [ip(2), ip(3)]);
    assert_eq!(world.register(1), None);
}

#[test]
fn conflicting_records_are_quarantined() {
    let mut world = World::new(network());
    for agent in 1..=3 {
        world.register(agent);
    }
    world.store();
    let first = world.records[&Key::Agent(ip(1))].clone();
    world.records.insert(Key::Agent(ip(2)), first);
    world.records.insert(
        Key::Agent(ip(4)),
        StoredRecord::Agent(Err(UnreadableRecord("garbage".to_owned()))),
    );
    let mut world = world.restart(network());
    let shown: Vec<usize> = world.state().agents.iter().map(|agent| agent.overlays.len()).collect();
    assert_eq!(shown, [2, 0, 2, 0], "quarantined agents are shown without overlays");
    assert_eq!(world.register(2), None);
    assert_eq!(world.register(4), None);
    assert!(world.register(1).is_some() && world.register(3).is_some());
    let health = world.health();
    assert_eq!(health.status, Condition::Degraded);
    assert_eq!(health.problems.len(), 2, "{:?}", health.problems);
    assert!(
        health.problems[0].starts_with("agent 10.0.0.2 is not served: "),
        "{:?}",
        health.problems
    );
    assert!(health.problems[1].contains("its record is unreadable: "), "{:?}", health.problems);
    assert_eq!(world.writing, None, "the records stay unchanged in the store");
    // The operator releases the agent.
    world.delete(2);
    assert!(world.register(2).is_some());
    assert_eq!(world.health().problems.len(), 1);
}

#[test]
fn subnet_outside_configuration_is_kept_and_reported() {
    let mut world = World::new(network());
    let before = world.register(1).unwrap();
    world.register(2);
    world.store();
    let mut moved = network();
    moved.overlays[0] = overlay("vxlan-1", "20.0.0.0/8");
    moved.overlays.remove(1);
    let mut world = world.restart(moved);
    assert_eq!(subnets(&world.register(1).unwrap()), [""; 0]);
    assert_eq!(subnets(&world.register(3).unwrap()), ["20.0.0.0/24"]);
    assert_eq!(world.health().problems.len(), 2, "{:?}", world.health().problems);
    world.store();
    let mut world = world.restart(network());
    assert_eq!(world.register(1).unwrap(), before, "the subnet is served again");
}

#[test]
fn addresses_of_quarantined_record_stay_reserved() {
    let mut world = World::new(network());
    let before = world.register(1).unwrap();
    world.store();
    // The operator moves the VTEP subnet: no agent can be served. Its containers keep running.
    let moved = || Network { vtep_subnet: "44.129.0.0/16".parse().unwrap(), ..network() };
    let mut world = world.restart(moved());
    assert_eq!(world.register(1), None);
    let other = world.register(2).unwrap();
    assert_eq!(subnets(&other), ["192.168.1.0/24", "192.168.129.0/24"]);
    world.store();
    let mut repaired = World::restored(network(), world.records.clone(), world.version);
    repaired.load();
    assert_eq!(repaired.register(1).unwrap(), before);

    // Alternatively the operator releases the agent.
    world.delete(1);
    let in_use: Vec<u128> = world.health().pools.iter().map(|pool| pool.in_use).collect();
    assert_eq!(in_use, [1; 5], "the allocations of the other agent");
    assert_eq!(subnets(&world.register(1).unwrap()), subnets(&before), "its released addresses");
}

#[test]
fn release_partly_conflicting_overlay_leaks_nothing() {
    let mut world = World::new(network());
    world.register(1);
    world.store();
    let mut moved = network();
    moved.overlays[1].range6 = range("fd01:c::/64", 80);
    let mut world = world.restart(moved);
    assert_eq!(world.health().problems.len(), 1);
    world.delete(1);
    let in_use: Vec<u128> = world.health().pools.iter().map(|pool| pool.in_use).collect();
    assert_eq!(in_use, [0; 5]);
}

/// A step of a random cluster.
#[derive(Debug, Clone)]
enum Step {
    Register(u8, bool),
    Delete(u8),
    Store,
    Fail,
    Restart,
}

/// The addresses that were sent to an agent: its VTEP, and its subnet of each overlay.
type SentAddresses = (String, BTreeMap<OverlayName, Subnet>);

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1_u8..12, any::<bool>()).prop_map(|(agent, subnet)| Step::Register(agent, subnet)),
        2 => (1_u8..12).prop_map(Step::Delete),
        3 => Just(Step::Store),
        1 => Just(Step::Fail),
        1 => Just(Step::Restart),
    ]
}

proptest! {
    /// For every sequence of steps: sent addresses are stored, no two agents have the same, and the
    /// addresses of an agent change only after its release.
    #[test]
    fn sent_assignments_are_stored_and_distinct(steps in prop::collection::vec(step(), 1..60)) {
        // Eight subnets and six VTEPs for eleven agents.
        let tight = || small("44.128.0.0/29", "20.0.0.0/21");
        let mut world = World::new(tight());
        let mut addresses_by_agent: BTreeMap<Ipv4Addr, SentAddresses> = BTreeMap::new();
        for step in steps {
            world.now.unix += 1;
            match step {
                Step::Register(agent, allocate_subnet) => {
                    let options = AgentOptions { allocate_subnet, ..AgentOptions::default() };
                    world.register_with(agent, options);
                }
                Step::Delete(agent) => {
                    addresses_by_agent.remove(&ip(agent));
                    world.sent.retain(|(to, ..)| *to != upid(agent));
                    let request = Request::DeleteAgents(vec![ip(agent)]);
                    world.handle(Event::Request(RequestId(1), request));
                    // A release that fails later leaves the agent unchanged.
                    world.store();
                }
                Step::Store => world.store(),
                Step::Fail => {
                    if world.writing.take().is_some() {
                        let demoted = StoreError::EpochEnded { store: "test".to_owned(), epoch: 1 };
                        world.handle(Event::Committed(Err(demoted)));
                    }
                    world.sent.retain(|(_, _, when)| *when <= world.version);
                    world.now.elapsed += Duration::from_secs(60);
                    world.handle(Event::Timeout);
                    world.load();
                }
                Step::Restart => {
                    let sent = std::mem::take(&mut world.sent);
                    let durable = sent.into_iter().filter(|(_, _, when)| *when <= world.version);
                    let sent: Vec<_> = durable.collect();
                    world = world.restart(tight());
                    world.sent = sent;
                }
            }
            // The messages that are sent now.
            let version = world.version;
            for (to, message, _) in world.sent.extract_if(.., |(_, _, when)| *when <= version) {
                let Message::UpdateAgentOverlays { overlays, .. } = message else { continue };
                let known = addresses_by_agent.entry(*to.address.ip()).or_default();
                for one in overlays {
                    let vtep = one.vtep.ip.to_string();
                    let is_kept = known.0.is_empty() || known.0 == vtep;
                    prop_assert!(is_kept, "{to}: {} became {vtep}", known.0);
                    known.0 = vtep;
                    if let Some(subnet) = one.subnet {
                        let before = known.1.insert(one.name().clone(), subnet);
                        prop_assert!(before.is_none_or(|before| before == subnet));
                    }
                }
            }
            let vteps = addresses_by_agent.values().map(|known| &known.0);
            let vteps: Vec<&String> = vteps.filter(|vtep| !vtep.is_empty()).collect();
            prop_assert_eq!(vteps.iter().collect::<BTreeSet<_>>().len(), vteps.len());
            let subnets: Vec<&Subnet> =
                addresses_by_agent.values().flat_map(|known| known.1.values()).collect();
            prop_assert_eq!(subnets.iter().collect::<BTreeSet<_>>().len(), subnets.len());
        }
        // The store has the sent addresses.
        let mut world = world.restart(tight());
        let state = world.state();
        for (ip, known) in addresses_by_agent.iter().filter(|(_, known)| !known.0.is_empty()) {
            let agent = state.agents.iter().find(|agent| agent.ip == *ip).unwrap();
            for (name, subnet) in &known.1 {
                let one = agent.overlays.iter().find(|one| one.name() == name).unwrap();
                prop_assert_eq!(one.subnet, Some(*subnet));
                prop_assert_eq!(one.vtep.ip.to_string(), known.0.clone());
            }
        }
    }
}
