//! Records that have the same addresses under other overlays or with other prefixes.

use overlay_types::protocol::OverlayRecord;

use super::recovery::*;
use super::*;

fn renamed() -> Network {
    let mut network = plain();
    network.overlays[0].name = "other".parse().unwrap();
    network
}

fn is_unserved(world: &mut World, agent: u8) -> bool {
    world.register(agent).is_some_and(|overlays| overlays.is_empty())
}

#[test]
fn subnet_of_quarantined_agent_is_not_adopted_by_later_agent() {
    let contested = || vec![overlay_record("net", "20.0.0.0/24")];
    let records = [(1, stored("44.129.0.1", contested())), (2, stored("44.128.0.2", contested()))];
    let mut world = load_records(plain(), records);
    assert!(is_unserved(&mut world, 2));
    assert!(world.reload(renamed()).accepted);
    world.store();
    assert_eq!(allocated(&mut world, 2), ["44.128.0.2", "20.0.1.0/24"]);
    world.store();
    assert_eq!(world.health().problems.len(), 2, "{:?}", world.health().problems);
    let mut world = world.restart(renamed());
    assert_eq!(allocated(&mut world, 2), ["44.128.0.2", "20.0.1.0/24"]);
    // The record of agent 2 has the subnet still, and agent 2 has no place for it.
    world.delete(1);
    world.store();
    assert_eq!(allocated(&mut world, 3)[1], "20.0.2.0/24");
}

#[test]
fn renamed_overlay_stays_with_first_agent() {
    let records = [
        (1, stored("44.128.0.1", vec![overlay_record("net", "20.0.0.0/24")])),
        (2, stored("44.128.0.2", vec![overlay_record("other", "20.0.0.0/24")])),
    ];
    let mut world = load_records(plain(), records.clone());
    let problem = "agent 10.0.0.2 is not served its allocation: overlay other: the record of \
                   agent 10.0.0.1 has addresses of 20.0.0.0/24: fix the configuration or delete \
                   the agent";
    assert_eq!(world.health().problems, [problem]);
    assert_eq!(allocated(&mut world, 1)[1], "20.0.0.0/24");
    assert!(world.reload(renamed()).accepted);
    world.store();
    assert_eq!(allocated(&mut world, 1)[1], "20.0.0.0/24");
    assert!(is_unserved(&mut world, 2));
    assert_eq!(world.health().problems, [problem]);

    // An agent that was given another subnet would lose that subnet: its record has no place.
    let mut world = load_records(plain(), records);
    assert_eq!(allocated(&mut world, 2)[1], "20.0.1.0/24");
    world.store();
    let effect = world.reload(renamed());
    let loss = "agent 10.0.0.2 is not served its allocation: overlay net: the agent cannot have \
                20.0.1.0/24 of overlay other, since its record has 20.0.0.0/24 there: fix the \
                configuration or delete the agent";
    assert_eq!((effect.accepted, effect.problems), (false, vec![loss.to_owned()]));
    assert_eq!(allocated(&mut world, 2)[1], "20.0.1.0/24", "it goes on");
}

#[test]
fn peers_are_sent_when_unserved_part_needs_no_commit() {
    let overlays =
        vec![overlay_record("other", "20.0.0.0/24"), overlay_record("net", "20.0.1.0/24")];
    let mut world = load_records(renamed(), [(1, stored("44.128.0.1", overlays))]);
    let gateway = AgentOptions { allocate_subnet: false, ..AgentOptions::default() };
    world.register_with(3, gateway);
    world.store();
    assert_eq!(world.health().problems.len(), 1, "{:?}", world.health().problems);

    let mut world = world.restart(renamed());
    world.register_with(3, gateway);
    world.message(3, Message::RequestPeers(PeersRequest::default()));
    world.now.elapsed += Duration::from_secs(1);
    world.handle(Event::Timeout);
    let (_, update, when) = world.peer_updates.last().expect("the peers are sent");
    let update = update.content();
    assert!(update.changed.contains_key(&ip(1)), "{update:?}");
    assert!(*when <= world.version, "no commit makes {when:?} durable");
}

#[test]
fn reload_that_makes_records_overlap_is_refused() {
    let records = [
        (1, stored("44.128.0.1", vec![overlay_record("one", "21.0.0.0/24")])),
        (2, stored("44.128.0.2", vec![overlay_record("two", "21.0.0.0/24")])),
    ];
    let mut world = load_records(plain(), records);
    assert_eq!(world.health().problems, [""; 0], "neither overlay is configured");
    for name in ["one", "two", "three"] {
        let mut network = plain();
        network.overlays.push(overlay(name, "21.0.0.0/16"));
        let effect = world.reload(network);
        assert!(!effect.accepted);
        assert_eq!(effect.problems.len(), 1, "{:?}", effect.problems);
        assert!(effect.problems[0].starts_with("agent 10.0.0.2 "), "{:?}", effect.problems);
    }
}

#[test]
fn subnet_that_covers_part_of_earlier_record_is_unserved() {
    let records = [
        (1, stored("44.128.0.1", vec![overlay_record("net", "20.0.0.0/25")])),
        (2, stored("44.128.0.2", vec![overlay_record("net", "20.0.0.0/24")])),
    ];
    let mut world = load_records(plain(), records);
    assert!(is_unserved(&mut world, 1) && is_unserved(&mut world, 2));
    assert_eq!(
        world.health().problems,
        [
            "agent 10.0.0.1 is not served its allocation: overlay net: 20.0.0.0/25 is none of \
             the /24 subnets of 20.0.0.0/16: fix the configuration or delete the agent",
            "agent 10.0.0.2 is not served its allocation: overlay net: the record of agent \
             10.0.0.1 has addresses of 20.0.0.0/24: fix the configuration or delete the agent",
        ]
    );
    assert_eq!(allocated(&mut world, 3)[1], "20.0.1.0/24");
    world.store();
    let before = world.version;
    world.delete(1);
    assert_eq!(allocated(&mut world, 2)[1], "20.0.0.0/24");
    assert_eq!(valid_from(&world, 2), before.next(), "the release is under way");
    assert_eq!(world.health().problems, [""; 0]);
}

#[test]
fn released_subnet_of_other_record_is_not_reallocated() {
    let two = || small("44.128.0.0/24", "20.0.0.0/23");
    let records = || {
        [
            (1, stored("44.128.0.1", vec![overlay_record("net", "20.0.0.0/24")])),
            (2, stored("44.128.0.2", vec![overlay_record("other", "20.0.0.0/24")])),
        ]
    };
    let mut world = load_records(two(), records());
    assert_eq!(allocated(&mut world, 2)[1], "20.0.1.0/24");
    world.store();
    world.delete(1);
    world.store();
    assert!(is_unserved(&mut world, 3), "agent 2 has the one, and its record has the other");

    // An agent that has got nothing else is served its subnet when the release is durable.
    let mut world = load_records(two(), records());
    world.delete(1);
    assert_eq!(allocated(&mut world, 2)[1], "20.0.0.0/24");
    assert_eq!(valid_from(&world, 2), Version(10));
}

#[derive(Debug, Clone)]
enum Change {
    Register(u8),
    Delete(u8),
    Reload(usize),
    Restart(usize),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => (1..6_u8).prop_map(Change::Register),
        1 => (1..6_u8).prop_map(Change::Delete),
        2 => (0..6_usize).prop_map(Change::Reload),
        1 => (0..6_usize).prop_map(Change::Restart),
    ]
}

fn network(number: usize) -> Network {
    let overlays = |list: &[(&str, &str, u8)]| {
        let overlays = list.iter().map(|(name, subnet, prefix)| {
            let mut overlay = overlay(name, subnet);
            overlay.range = range(subnet, *prefix);
            overlay
        });
        let overlays = overlays.collect();
        Network { overlays, ..small("44.128.0.0/24", "20.0.0.0/22") }
    };
    match number {
        0 => overlays(&[("a", "20.0.0.0/22", 24)]),
        1 => overlays(&[("b", "20.0.0.0/22", 24)]),
        2 => overlays(&[("a", "20.0.0.0/22", 25)]),
        3 => overlays(&[("a", "20.0.0.0/23", 24), ("b", "20.0.2.0/23", 25)]),
        4 => overlays(&[("b", "20.0.0.0/23", 24), ("c", "20.0.2.0/23", 24)]),
        _ => overlays(&[("c", "21.0.0.0/22", 24)]),
    }
}

fn any_overlay_record() -> impl Strategy<Value = OverlayRecord> {
    (prop::sample::select(vec!["a", "b", "c"]), 23..26_u8, 0..8_u128).prop_map(
        |(name, prefix, index)| {
            let range: Subnet = "20.0.0.0/22".parse().unwrap();
            let index = index % range.count(prefix);
            let subnet = range.nth(prefix, index);
            OverlayRecord { name: name.parse().unwrap(), subnet, subnet6: None }
        },
    )
}

fn records() -> impl Strategy<Value = Vec<(u8, u8, Vec<OverlayRecord>)>> {
    let overlays = prop::collection::vec(any_overlay_record(), 0..3).prop_map(|mut overlays| {
        overlays.sort_by(|one, other| one.name.cmp(&other.name));
        overlays.dedup_by(|one, other| one.name == other.name);
        overlays
    });
    prop::collection::vec((0..5_u8, overlays), 4).prop_map(|agents| {
        (1..).zip(agents).map(|(agent, (vtep, overlays))| (agent, vtep, overlays)).collect()
    })
}

/// Returns the subnets in the stored record of an agent, as far as it was not released.
fn stored_subnets(record: &StoredRecord) -> Vec<Subnet> {
    match record {
        StoredRecord::Agent(Ok(Record::Agent(record))) => {
            record.overlays.iter().flat_map(OverlayRecord::subnets).collect()
        }
        _ => Vec::new(),
    }
}

/// Returns the subnets that are served, with their agents.
fn served(world: &mut World) -> Vec<(Ipv4Addr, Subnet)> {
    let agents = world.state().agents;
    let all =
        agents.iter().flat_map(|agent| agent.overlays.iter().map(|one| (agent.ip, one.subnet)));
    all.filter_map(|(ip, subnet)| Some((ip, subnet?))).collect()
}

/// Asserts that agents are still served the subnets that the network has for an agent.
fn check_kept(
    world: &mut World,
    network: &Network,
    before: &[(Ipv4Addr, Subnet)],
) -> Result<(), TestCaseError> {
    let now = served(world);
    for (ip, subnet) in before {
        let mut ranges = network.overlays.iter().filter_map(|overlay| overlay.range);
        let is_possible =
            ranges.any(|range| range.prefix == subnet.prefix() && range.subnet.covers(subnet));
        prop_assert!(!is_possible || now.contains(&(*ip, *subnet)), "{ip} has lost {subnet}");
    }
    Ok(())
}

/// Asserts that every served subnet is stored for its agent, and that no record of an earlier
/// agent and no allocation has an address of it.
fn check(world: &mut World) -> Result<(), TestCaseError> {
    let served = served(world);
    for (ip, subnet) in &served {
        let own = stored_subnets(&world.records[&Key::Agent(*ip)]);
        prop_assert!(own.contains(subnet), "{ip} is served {subnet}, which is not stored");
        let others = served.iter().filter(|(other, _)| other != ip);
        for (other, theirs) in others {
            prop_assert!(!theirs.overlaps(subnet), "{ip} and {other} are served {subnet}");
        }
        for (key, record) in &world.records {
            let Key::Agent(other) = key else { continue };
            let has = stored_subnets(record).iter().any(|had| had.overlaps(subnet));
            prop_assert!(other >= ip || !has, "{ip} is served {subnet} of {other}");
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn served_subnets_belong_to_first_record(
        records in records(),
        first in 0..6_usize,
        changes in prop::collection::vec(change(), 1..20),
    ) {
        let records = records.into_iter().map(|(agent, vtep, overlays)| {
            // Now and then another agent has the VTEP, or it is outside.
            let vtep = match vtep {
                0 => "44.129.0.1".to_owned(),
                1 => "44.128.0.1".to_owned(),
                _ => format!("44.128.0.{agent}"),
            };
            (Key::Agent(ip(agent)), stored(&vtep, overlays))
        });
        let mut world = World::restored(network(first), records.collect(), Version(9));
        world.load();
        let mut current = first;
        world.store();
        check(&mut world)?;
        for change in changes {
            // A registration must not get what any record has.
            let before: Vec<(Key, Vec<Subnet>)> = world
                .records
                .iter()
                .map(|(key, record)| (*key, stored_subnets(record)))
                .collect();
            match change {
                Change::Register(agent) => {
                    world.register(agent);
                    world.store();
                    let key = Key::Agent(ip(agent));
                    let now = world.records.get(&key).map(stored_subnets).unwrap_or_default();
                    let had = before.iter().find(|(other, _)| *other == key);
                    let had = had.map(|(_, had)| had.clone()).unwrap_or_default();
                    for subnet in now.iter().filter(|subnet| !had.contains(subnet)) {
                        for (other, theirs) in &before {
                            prop_assert!(
                                *other == key || !theirs.iter().any(|it| it.overlaps(subnet)),
                                "{key} is given {subnet} of {other}"
                            );
                        }
                    }
                }
                Change::Delete(agent) => world.delete(agent),
                Change::Reload(number) => {
                    let before = served(&mut world);
                    if world.reload(network(number)).accepted {
                        current = number;
                        check_kept(&mut world, &network(number), &before)?;
                    }
                }
                Change::Restart(number) => {
                    world = world.restart(network(number));
                    current = number;
                }
            }
            world.store();
            check(&mut world)?;
        }
        // The next master that reads the records serves the same subnets.
        let served = world.state().agents;
        let mut world = world.restart(network(current));
        world.store();
        let again = world.state().agents;
        for (one, other) in served.iter().zip(&again) {
            prop_assert_eq!(subnets(&one.overlays), subnets(&other.overlays), "{}", one.ip);
        }
    }
}
