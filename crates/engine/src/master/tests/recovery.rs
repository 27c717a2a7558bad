//! Tests of invalid and conflicting records in the store: which agents are served, which problems
//! are reported, and that no agent gets an address that another agent may use.

use overlay_types::protocol::{AgentRecord, OverlayRecord, PeersRequest, Record, ReleasedRecord};

use super::*;

pub(super) fn overlay_record(name: &str, subnet: &str) -> OverlayRecord {
    let subnet = Some(subnet.parse().unwrap());
    OverlayRecord { name: name.parse().unwrap(), subnet, subnet6: None }
}

pub(super) fn record(vtep_ip: &str, overlays: Vec<OverlayRecord>) -> AgentRecord {
    AgentRecord {
        vtep_ip: vtep_ip.parse().unwrap(),
        vtep_ip6: None,
        overlays,
        allocate_subnet: true,
        mesos_bridge: true,
        docker_bridge: true,
        underlay: None,
        direct_mac: None,
        authenticated: None,
    }
}

/// Returns a network with one overlay of 256 subnets.
pub(super) fn plain() -> Network {
    small("44.128.0.0/24", "20.0.0.0/16")
}

/// Returns a master that loaded these records.
pub(super) fn load_records<const N: usize>(
    network: Network,
    records: [(u8, StoredRecord); N],
) -> World {
    let records = records.map(|(agent, bytes)| (Key::Agent(ip(agent)), bytes));
    let mut world = World::restored(network, BTreeMap::from(records), Version(9));
    world.load();
    assert_eq!(world.writing, None, "the records stay unchanged in the store");
    world
}

pub(super) fn stored(vtep_ip: &str, overlays: Vec<OverlayRecord>) -> StoredRecord {
    StoredRecord::Agent(Ok(Record::Agent(record(vtep_ip, overlays))))
}

/// Registers an agent, and returns its VTEP address and subnets.
pub(super) fn allocated(world: &mut World, agent: u8) -> Vec<String> {
    let overlays = world.register(agent).expect("the agent is served");
    let vtep = overlays.iter().take(1).map(|one| one.vtep.ip.address().to_string());
    vtep.chain(subnets(&overlays)).collect()
}

#[test]
fn unreadable_record_is_reported_and_gap_reserved() {
    let reasons = ["invalid wire type value: 7", "vtep_ip: is missing"];
    for reason in reasons {
        let unreadable = StoredRecord::Agent(Err(UnreadableRecord(reason.to_owned())));
        let first = stored("44.128.0.1", vec![overlay_record("net", "20.0.0.0/24")]);
        let third = stored("44.128.0.3", vec![overlay_record("net", "20.0.2.0/24")]);
        let mut world = load_records(plain(), [(1, first), (2, unreadable), (3, third)]);
        let problems = world.health().problems;
        assert_eq!(problems.len(), 1, "{problems:?}");
        let (before, after) = (
            "agent 10.0.0.2 is not served: its record is unreadable: ",
            ": addresses that it may have are not allocated until the agent is deleted",
        );
        let shown = problems[0].strip_prefix(before).and_then(|text| text.strip_suffix(after));
        let shown = shown.unwrap_or_else(|| panic!("{}", problems[0]));
        assert!(shown.contains(reason), "{shown} does not contain {reason}");
        assert_eq!(world.register(2), None);
        // The unreadable record may have the addresses of the gap, or the next unused addresses.
        assert_eq!(allocated(&mut world, 4), ["44.128.0.5", "20.0.4.0/24"]);
        world.delete(2);
        assert_eq!(world.health().problems, [""; 0]);
        assert_eq!(allocated(&mut world, 5), ["44.128.0.2", "20.0.1.0/24"]);
    }
}

#[test]
fn vtep_of_two_agents_is_served_to_first() {
    let same = |subnet: &str| stored("44.128.0.1", vec![overlay_record("net", subnet)]);
    let records = [(1, same("20.0.0.0/24")), (2, same("20.0.1.0/24"))];
    let mut world = load_records(plain(), records);
    assert_eq!(allocated(&mut world, 1), ["44.128.0.1", "20.0.0.0/24"]);
    assert_eq!(world.register(2), None);
    assert_eq!(
        world.health().problems,
        [
            "agent 10.0.0.2 is not served: 44.128.0.1 of the VTEP subnet 44.128.0.0/24 is already in \
          use: fix the configuration or delete the agent"
        ]
    );
    assert_eq!(
        allocated(&mut world, 3),
        ["44.128.0.2", "20.0.2.0/24"],
        "its subnet stays reserved"
    );
    // The release of the first agent ends the conflict.
    world.delete(1);
    assert_eq!(world.health().problems, [""; 0]);
    assert_eq!(allocated(&mut world, 2), ["44.128.0.1", "20.0.1.0/24"]);
}

#[test]
fn vtep_outside_subnet_is_quarantined() {
    for vtep in ["44.128.1.7", "44.128.0.0", "44.128.0.255"] {
        let bytes = stored(vtep, vec![overlay_record("net", "20.0.0.0/24")]);
        let mut world = load_records(plain(), [(1, bytes)]);
        assert_eq!(world.register(1), None);
        let sentence = format!(
            "agent 10.0.0.1 is not served: {vtep} is no host address of the VTEP subnet \
             44.128.0.0/24: fix the configuration or delete the agent"
        );
        assert_eq!(world.health().problems, [sentence]);
        assert_eq!(allocated(&mut world, 2), ["44.128.0.1", "20.0.1.0/24"]);
    }
}

#[test]
fn conflicting_vtep_ip6_is_not_replaced() {
    let with = |vtep6: &str, vtep: &str, subnet: &str| {
        let record = record(vtep, vec![overlay_record("vxlan-1", subnet)]);
        let vtep_ip6 = Some(vtep6.parse().unwrap());
        StoredRecord::Agent(Ok(Record::Agent(AgentRecord { vtep_ip6, ..record })))
    };
    let records = [
        (1, with("fd01:a::1", "44.128.0.1", "192.168.0.0/24")),
        (2, with("fd01:a::1", "44.128.0.2", "192.168.1.0/24")),
        (3, with("fd01:ffff::1", "44.128.0.3", "192.168.2.0/24")),
    ];
    let mut world = load_records(network(), records);
    let mut vtep6 = |agent| world.register(agent).unwrap()[0].vtep.ip6.map(|ip6| ip6.to_string());
    assert_eq!(vtep6(1).as_deref(), Some("fd01:a::1/64"));
    assert_eq!(vtep6(2), None);
    assert_eq!(vtep6(3), None);
    assert_eq!(vtep6(4).as_deref(), Some("fd01:a::2/64"));
    assert_eq!(
        world.health().problems,
        [
            "agent 10.0.0.2 is not served its IPv6 VTEP address: fd01:a::1 of the VTEP subnet \
             fd01:a::/64 is already in use: fix the configuration or delete the agent",
            "agent 10.0.0.3 is not served its IPv6 VTEP address: fd01:ffff::1 is no host address \
             of the VTEP subnet fd01:a::/64: fix the configuration or delete the agent",
        ]
    );
    world.delete(2);
    world.store();
    assert_eq!(allocated(&mut world, 2)[0], "44.128.0.2", "its other addresses are kept");
}

#[test]
fn subnet_of_two_agents_is_served_to_first() {
    let same = |vtep: &str| stored(vtep, vec![overlay_record("net", "20.0.0.0/24")]);
    let mut world = load_records(plain(), [(1, same("44.128.0.1")), (2, same("44.128.0.2"))]);
    assert_eq!(world.register(2), Some(Vec::new()), "the agent gets no other subnet");
    let reason = "overlay net: 20.0.0.0/24 of 20.0.0.0/16 is already in use";
    assert_eq!(
        world.health().problems,
        [format!(
            "agent 10.0.0.2 is not served its allocation: {reason}: fix the configuration or delete \
             the agent"
        )]
    );
    let shown = format!("failed: the master does not serve this allocation: {reason}");
    assert_eq!(world.statuses(2)[0].as_ref().unwrap().to_string(), shown);
    assert_eq!(allocated(&mut world, 3), ["44.128.0.3", "20.0.1.0/24"]);
    world.delete(1);
    assert_eq!(world.health().problems, [""; 0]);
    assert_eq!(allocated(&mut world, 2), ["44.128.0.2", "20.0.0.0/24"]);
}

#[test]
fn subnet_of_other_length_is_reserved_whole() {
    // A longer prefix, a shorter prefix, a subnet wider than the range, and a subnet outside of it.
    let cases = [
        ("20.0.1.64/26", "20.0.2.0/24"),
        ("20.0.0.0/23", "20.0.2.0/24"),
        ("20.0.0.0/8", ""),
        ("21.0.0.0/24", "20.0.1.0/24"),
    ];
    for (odd, next) in cases {
        let records = [(1, stored("44.128.0.1", vec![overlay_record("net", odd)]))];
        let mut world = load_records(plain(), records);
        assert_eq!(world.register(1), Some(Vec::new()));
        assert_eq!(
            world.health().problems,
            [format!(
                "agent 10.0.0.1 is not served its allocation: overlay net: {odd} is none of the /24 \
                 subnets of 20.0.0.0/16: fix the configuration or delete the agent"
            )]
        );
        if odd == "20.0.1.64/26" || odd == "21.0.0.0/24" {
            assert_eq!(allocated(&mut world, 2)[1], "20.0.0.0/24");
        }
        assert_eq!(allocated(&mut world, 3).get(1).map_or("", String::as_str), next, "{odd}");
        // After the release the subnet is reused late, like every released subnet.
        world.delete(1);
        assert_eq!(world.health().problems.len(), usize::from(next.is_empty()));
        let free = ["20.0.0.0/24", "20.0.1.0/24", "20.0.2.0/24", "20.0.3.0/24"];
        let given = allocated(&mut world, 4);
        assert!(free.contains(&given[1].as_str()) || odd == "20.0.0.0/8", "{odd}: {given:?}");
    }
}

#[test]
fn subnets_of_removed_overlay_are_reserved() {
    let had = vec![overlay_record("old", "20.0.0.0/25"), overlay_record("older", "20.0.1.0/24")];
    let records = [(1, stored("44.128.0.1", had))];
    let records = records.map(|(agent, bytes)| (Key::Agent(ip(agent)), bytes));
    let mut world = World::restored(plain(), BTreeMap::from(records), Version(9));
    world.load();
    // A subnet of the right length is adopted by the other overlay.
    assert_eq!(world.health().problems, [""; 0]);
    world.store();
    assert_eq!(allocated(&mut world, 1), ["44.128.0.1", "20.0.1.0/24"]);
    assert_eq!(allocated(&mut world, 2), ["44.128.0.2", "20.0.2.0/24"]);
    world.delete(1);
    world.store();
    assert_eq!(
        allocated(&mut world, 1),
        ["44.128.0.1", "20.0.1.0/24"],
        "the returning agent gets its subnet back"
    );
}

#[test]
fn released_address_of_another_record_stays_taken() {
    let released = Record::Released(ReleasedRecord {
        at: 1_700_000_000,
        vtep_ip: Some("44.128.0.2".parse().unwrap()),
        vtep_ip6: None,
        overlays: vec![overlay_record("net", "20.0.1.0/24"), overlay_record("gone", "20.9.0.0/24")],
    });
    let living = stored("44.128.0.2", vec![overlay_record("net", "20.0.0.0/24")]);
    let mut world = load_records(plain(), [(1, StoredRecord::Agent(Ok(released))), (2, living)]);
    assert_eq!(world.health().problems, [""; 0]);
    assert_eq!(allocated(&mut world, 2), ["44.128.0.2", "20.0.0.0/24"]);
    assert_eq!(allocated(&mut world, 3), ["44.128.0.1", "20.0.2.0/24"]);
    assert_eq!(allocated(&mut world, 1), ["44.128.0.3", "20.0.1.0/24"]);
}

#[test]
fn released_subnet_with_other_prefix_is_reused_last() {
    let released = Record::Released(ReleasedRecord {
        at: 1_700_000_000,
        vtep_ip: Some("44.128.0.1".parse().unwrap()),
        vtep_ip6: None,
        overlays: vec![overlay_record("net", "20.0.0.0/25"), overlay_record("gone", "20.0.2.0/23")],
    });
    let mut world = load_records(
        small("44.128.0.0/24", "20.0.0.0/22"),
        [(1, StoredRecord::Agent(Ok(released)))],
    );
    assert_eq!(allocated(&mut world, 2), ["44.128.0.2", "20.0.1.0/24"]);
    assert_eq!(allocated(&mut world, 3)[1], "20.0.0.0/24");
    assert_eq!(world.health().counters.early_reuses, 1);
}

#[test]
fn record_of_impossible_agent_is_quarantined() {
    let addresses = ["0.0.0.0", "224.0.0.1", "255.255.255.255"];
    let keys = addresses.map(|text| Key::Agent(text.parse().unwrap()));
    let numbers = [1, 2, 3];
    let record = |n: u8| {
        stored(&format!("44.128.0.{n}"), vec![overlay_record("net", &format!("20.0.{n}.0/24"))])
    };
    let records = keys.into_iter().zip(numbers.map(record)).collect();
    let mut world = World::restored(plain(), records, Version(9));
    world.load();
    let sentence = |text| {
        format!(
            "agent {text} is not served: no agent can have this address: fix the configuration or \
             delete the agent"
        )
    };
    assert_eq!(world.health().problems, addresses.map(sentence));
    assert!(world.state().agents.iter().all(|agent| agent.overlays.is_empty()), "not served");
    // The addresses of the records are reserved.
    assert_eq!(allocated(&mut world, 9), ["44.128.0.4", "20.0.0.0/24"]);
    assert_eq!(allocated(&mut world, 8), ["44.128.0.5", "20.0.4.0/24"]);
    for text in addresses {
        world.request(Request::DeleteAgents(vec![text.parse().unwrap()]));
    }
    assert_eq!(world.health().problems, [""; 0]);
}

#[test]
fn impossible_release_time_is_reported_and_reused_last() {
    let released = |at, n: u8| {
        StoredRecord::Agent(Ok(Record::Released(ReleasedRecord {
            at,
            vtep_ip: Some(format!("44.128.0.{n}").parse().unwrap()),
            vtep_ip6: None,
            overlays: vec![overlay_record("net", &format!("10.0.{n}.0/24"))],
        })))
    };
    let records = [(1, released(u64::MAX, 1)), (2, released(1_700_000_000, 2))];
    let mut world = load_records(small("44.128.0.0/24", "10.0.0.0/22"), records);
    let problem = "agent 10.0.0.1 was released at 18446744073709551615 s after 1970, which no clock \
                   can have shown: its addresses are reused last: export the state, put the true \
                   time in the place of 'at', and import it";
    assert_eq!(world.health().problems, [problem]);
    assert_eq!(allocated(&mut world, 11)[1], "10.0.0.0/24");
    assert_eq!(allocated(&mut world, 12)[1], "10.0.3.0/24");
    assert_eq!(allocated(&mut world, 13)[1], "10.0.2.0/24");
    assert_eq!(
        allocated(&mut world, 14)[1],
        "10.0.1.0/24",
        "the impossible time does not overflow"
    );
}

/// The version that the last message to an agent waits for.
pub(super) fn valid_from(world: &World, agent: u8) -> Version {
    let sent = world.sent.iter().rev().find(|(to, ..)| *to == upid(agent));
    sent.expect("a message to the agent").2
}

pub(super) fn failed_commit() -> Event {
    Event::Committed(Err(StoreError::Failed {
        store: "file:/x".to_owned(),
        action: "commit",
        reason: "no space".to_owned(),
    }))
}

/// Fails the commit under way, and loads the state again.
pub(super) fn fail_and_reload(world: &mut World) {
    world.writing = None;
    world.handle(failed_commit());
    world.now.elapsed = world.master.next_timeout().unwrap();
    world.handle(Event::Timeout);
    world.load();
}

mod contested_address {
    use super::*;

    fn same_vtep() -> World {
        let same = |subnet: &str| stored("44.128.0.1", vec![overlay_record("net", subnet)]);
        load_records(plain(), [(1, same("20.0.0.0/24")), (2, same("20.0.1.0/24"))])
    }

    #[test]
    fn vtep_is_sent_after_durable_release() {
        let mut world = same_vtep();
        world.register(1);
        assert_eq!(valid_from(&world, 1), Version(9), "the first agent has it already");
        world.delete(1);
        assert!(world.register(2).is_some());
        assert_eq!(valid_from(&world, 2), Version(10), "the release is under way");
        world.store();
        world.register(2);
        assert_eq!(valid_from(&world, 2), Version(10), "the message waits for no new version");
    }

    #[test]
    fn subnet_is_sent_after_durable_release() {
        let same = |vtep: &str| stored(vtep, vec![overlay_record("net", "20.0.0.0/24")]);
        let mut world = load_records(plain(), [(1, same("44.128.0.1")), (2, same("44.128.0.2"))]);
        assert_eq!(world.register(2), Some(Vec::new()));
        assert_eq!(valid_from(&world, 2), Version(9), "none of its addresses is contested");
        world.delete(1);
        assert_eq!(subnets(&world.register(2).unwrap()), ["20.0.0.0/24"]);
        assert_eq!(valid_from(&world, 2), Version(10));
    }

    #[test]
    fn vtep_ip6_is_sent_after_durable_release() {
        let same = |number: u8| {
            let vtep = format!("44.128.0.{number}");
            let subnet = format!("192.168.{number}.0/24");
            let vtep_ip6 = Some("fd01:a::1".parse().unwrap());
            let record =
                AgentRecord { vtep_ip6, ..record(&vtep, vec![overlay_record("vxlan-1", &subnet)]) };
            StoredRecord::Agent(Ok(Record::Agent(record)))
        };
        let records = [(1, same(1)), (2, same(2))];
        let records = records.map(|(agent, bytes)| (Key::Agent(ip(agent)), bytes));
        let mut world = World::restored(network(), BTreeMap::from(records), Version(9));
        world.load();
        world.register(2);
        world.store();
        let before = world.version;
        world.delete(1);
        assert!(world.register(2).unwrap()[0].vtep.ip6.is_some());
        assert_eq!(valid_from(&world, 2), before.next());
    }

    #[test]
    fn failed_release_leaves_address_to_first_agent() {
        let mut world = same_vtep();
        world.delete(1);
        assert!(world.register(2).is_some());
        fail_and_reload(&mut world);
        assert_eq!(world.abandoned.len(), 1, "the message to agent 2 is dropped");
        assert_eq!(world.register(2), None);
        assert!(world.register(1).is_some());
        assert_eq!(valid_from(&world, 1), Version(9));
    }

    #[test]
    fn pending_message_is_withdrawn_at_release() {
        let mut world = same_vtep();
        world.delete(1);
        world.register(2);
        world.delete(2);
        assert_eq!(world.withdrawn, BTreeSet::from([ip(2)]));
    }

    #[test]
    fn quarantined_address_is_not_served_to_later_agent() {
        // Agent 2 is quarantined because of agent 1, and still owns the subnet before agent 3. If
        // agent 3 got the subnet, agent 2 would take it away after the release of agent 1.
        let records = [
            (1, stored("44.128.0.1", vec![overlay_record("net", "20.0.1.0/24")])),
            (2, stored("44.128.0.1", vec![overlay_record("net", "20.0.2.0/24")])),
            (3, stored("44.128.0.3", vec![overlay_record("net", "20.0.2.0/24")])),
        ];
        let mut world = load_records(plain(), records);
        assert_eq!(world.register(3), Some(Vec::new()));
        world.delete(1);
        world.store();
        assert_eq!(subnets(&world.register(2).unwrap()), ["20.0.2.0/24"]);
        assert_eq!(world.register(3), Some(Vec::new()));
        world.delete(2);
        assert_eq!(subnets(&world.register(3).unwrap()), ["20.0.2.0/24"]);
        assert_eq!(valid_from(&world, 3), world.version.next());
    }

    #[test]
    fn reconfigured_overlay_is_sent_after_durable_release() {
        let mut two = plain();
        two.overlays.push(overlay("other", "21.0.0.0/16"));
        let same = |vtep: &str| stored(vtep, vec![overlay_record("other", "21.0.7.0/24")]);
        let mut world = load_records(plain(), [(1, same("44.128.0.1")), (2, same("44.128.0.2"))]);
        world.register(2);
        world.store();
        let before = world.version;
        world.delete(1);
        assert!(world.reload(two).accepted);
        let (to, message, when) = world.sent.last().expect("the change is sent at once");
        let Message::UpdateAgentOverlays { overlays, .. } = message else { panic!("{message}") };
        assert_eq!(
            (to, subnets(overlays)),
            (&upid(2), vec!["20.0.0.0/24".into(), "21.0.7.0/24".into()])
        );
        assert_eq!(*when, before.next());
    }

    #[test]
    fn underlay_reaches_peers_after_durable_release() {
        let with = |number: u8| {
            let vtep = format!("44.128.0.{number}");
            let underlay = Some("fd00::9".parse().unwrap());
            let record = AgentRecord { underlay, ..record(&vtep, Vec::new()) };
            StoredRecord::Agent(Ok(Record::Agent(record)))
        };
        let mut world = load_records(plain(), [(1, with(1)), (2, with(2))]);
        let underlay = Some("fd00::9".parse().unwrap());
        let gateway = AgentOptions { allocate_subnet: false, ..AgentOptions::default() };
        world.register_with(1, AgentOptions { underlay, ..gateway });
        world.register_with(3, gateway);
        world.store();
        let before = world.version;
        world.message(3, Message::RequestPeers(PeersRequest::default()));
        world.delete(1);
        world.now.elapsed += Duration::from_secs(1);
        world.handle(Event::Timeout);
        let (_, update, when) = world.peer_updates.last().expect("the peers are sent");
        let update = update.content();
        assert!(update.changed.contains_key(&ip(2)) && !update.changed.contains_key(&ip(1)));
        assert_eq!(*when, before.next());
    }
}

#[test]
fn preview_waits_until_state_is_durable() {
    let mut world = World::new(plain());
    world.register(1);
    let (reply, when) = world.request(Request::Preview(Box::new(plain())));
    assert!(matches!(reply, Reply::Effect(_)));
    assert_eq!(when, Version(1));
    // A preview that ends after the loss of the state is not answered with its effect.
    world.writing = None;
    world.handle(failed_commit());
    world.handle(Event::Previewed(RequestId(1), Box::default()));
    let reply = Reply::Unavailable("file:/x: commit: no space".to_owned());
    assert_eq!(world.replies.pop(), Some((reply, Version(0))));
}
