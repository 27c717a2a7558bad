//! Tests of the answers to agents that are not served, or not as a whole.

use overlay_types::protocol::{
    AgentRecord, HeldAddresses, OverlayRecord, Reassigned, Record, RegistrationProblems,
};

use super::*;

impl World {
    /// Sends the held addresses of an agent. Returns the answer and the version that it waits for.
    fn hold(&mut self, agent: u8, held: &[&str]) -> Option<(RegistrationProblems, Version)> {
        let before = self.sent.len();
        let held = HeldAddresses::new(held.iter().map(|text| text.parse().unwrap()));
        let from = upid(agent);
        let kind = MessageKind::HeldAddresses;
        if self.master.accepts(&from, kind) {
            self.message(agent, Message::HeldAddresses(held));
        } else {
            self.handle(Event::Ignored { from, kind });
        }
        let (to, message, when) = self.sent.get(before)?;
        assert_eq!(*to, upid(agent));
        match message {
            Message::RegistrationProblems(problems) => Some((problems.clone(), *when)),
            other => panic!("{other} instead of the problems"),
        }
    }

    fn release_all(&mut self, agents: &[u8]) {
        let ips = agents.iter().map(|agent| ip(*agent)).collect();
        self.request(Request::DeleteAgents(ips));
    }
}

fn reassigned(subnet: &str, agent: u8) -> Reassigned {
    Reassigned { subnet: subnet.parse().unwrap(), agent: ip(agent) }
}

const NO_VTEP: &str =
    "no VTEP address is left in 44.128.0.0/29: widen vtep_subnet or delete dead agents";

/// Returns a master whose six VTEP addresses belong to the agents 2 to 7. The agent 1 was released,
/// and another agent got its addresses.
fn exhausted() -> World {
    let mut world = World::new(small("44.128.0.0/29", "192.168.0.0/20"));
    for agent in 1..=6 {
        world.register(agent).unwrap();
    }
    world.store();
    world.delete(1);
    world.store();
    world.register(7).unwrap();
    world
}

#[test]
fn refused_agent_is_sent_reason_and_durable_holders() {
    let mut world = exhausted();
    // Agent 1 had the first VTEP and subnet. Agent 7 got the VTEP, and a subnet of its own.
    let held = ["44.128.0.1/32", "192.168.0.0/25", "192.168.1.0/25", "10.9.0.0/24"];
    assert_eq!(world.register(1), None);
    let (problems, when) = world.hold(1, &held).unwrap();
    assert!(problems.is_refused);
    assert_eq!(problems.reasons, [NO_VTEP]);
    // The commit that gives the VTEP to agent 7 is under way and may fail.
    assert_eq!(problems.reassigned, [reassigned("192.168.1.0/25", 2)]);
    assert!(when <= world.version);
    world.store();
    assert_eq!(world.register(1), None);
    let (problems, when) = world.hold(1, &held).unwrap();
    let expected = [reassigned("44.128.0.1/32", 7), reassigned("192.168.1.0/25", 2)];
    assert_eq!(problems.reassigned, expected);
    assert!(when <= world.version);
    assert_eq!(world.metrics(["internal/registration_problems_messages_sent"]), [2]);
}

#[test]
fn released_holder_is_not_named() {
    let mut world = exhausted();
    world.store();
    assert_eq!(world.register(1), None);
    world.delete(7);
    let named = world.hold(1, &["44.128.0.1/32"]).unwrap().0.reassigned;
    assert_eq!(named, [], "the release is not durable, and is certain enough to keep the address");
}

#[test]
fn served_agent_gets_no_answer() {
    let mut world = World::new(small("44.128.0.0/29", "192.168.0.0/20"));
    world.register(1).unwrap();
    assert_eq!(world.hold(1, &["192.168.0.0/24"]), None);
    assert_eq!(world.hold(9, &["192.168.0.0/24"]), None, "it has not registered");
    assert_eq!(world.health().counters.unexpected_messages, 0);
}

#[test]
fn other_process_of_refused_agent_gets_no_answer() {
    let mut world = exhausted();
    assert_eq!(world.register(1), None);
    let other = agent_upid(std::net::SocketAddrV4::new(ip(1), 5052));
    assert!(world.master.accepts(&upid(1), MessageKind::HeldAddresses));
    assert!(!world.master.accepts(&other, MessageKind::HeldAddresses));
}

#[test]
fn agent_with_shortage_is_sent_reason_after_assignment() {
    let mut world = World::new(small("44.128.0.0/28", "192.168.0.0/24"));
    world.register(1).unwrap();
    world.store();
    assert_eq!(world.register(2).map(|overlays| overlays.len()), Some(0));
    let (problems, when) = world.hold(2, &["192.168.0.0/24"]).unwrap();
    let reason = "the agent gets no subnet of overlay net: its IPv4 space is exhausted: widen it or \
                  delete dead agents";
    let expected = RegistrationProblems {
        is_refused: false,
        reasons: vec![reason.to_owned()],
        ..RegistrationProblems::default()
    };
    assert_eq!((problems, when), (expected, Version(2)), "with the assignment of the agent");
    // While the store hangs, the agent repeats itself and is answered once.
    world.register(2);
    assert_eq!(world.hold(2, &[]), None);
    world.store();
    world.register(2);
    assert!(world.hold(2, &[]).is_some());
    // The shortage ends.
    world.release_all(&[1]);
    world.store();
    assert_eq!(world.register(2).map(|overlays| overlays.len()), Some(1));
    assert_eq!(world.hold(2, &[]), None);
}

#[test]
fn answer_has_number_of_registration() {
    let mut world = exhausted();
    assert_eq!(world.register(1), None);
    for number in [7, u64::MAX] {
        let held = HeldAddresses::default().with_registration(number);
        world.message(1, Message::HeldAddresses(held));
        let Some((_, Message::RegistrationProblems(problems), _)) = world.sent.last() else {
            panic!("no answer")
        };
        assert_eq!(problems.registration, number);
    }
}

#[test]
fn registration_before_recovery_is_sent_its_problems() {
    let mut world = exhausted();
    world.store();
    let mut world =
        World::restored(small("44.128.0.0/29", "192.168.0.0/20"), world.records, world.version);
    assert_eq!(world.register(1), None);
    assert!(world.master.accepts(&upid(1), MessageKind::HeldAddresses));
    assert!(!world.master.accepts(&upid(2), MessageKind::HeldAddresses), "it did not register");
    let held = || HeldAddresses::default().with_registration(7);
    world.message(1, Message::HeldAddresses(held()));
    world.message(2, Message::HeldAddresses(held()));
    world.load();
    let problems = world.sent.iter().filter_map(|(to, message, _)| match message {
        Message::RegistrationProblems(problems) => Some((to, problems)),
        _ => None,
    });
    let reasons = vec![NO_VTEP.to_owned()];
    let registration = 7;
    let expected =
        RegistrationProblems { is_refused: true, reasons, registration, ..Default::default() };
    assert_eq!(problems.collect::<Vec<_>>(), [(&upid(1), &expected)]);
}

#[test]
fn reload_repeats_problems_after_new_assignment() {
    let mut world = World::new(small("44.128.0.0/28", "192.168.0.0/24"));
    world.register(1).unwrap();
    world.store();
    world.register(2);
    world.store();
    let mut wider = small("44.128.0.0/28", "192.168.0.0/24");
    wider.overlays.push(overlay("new", "10.128.0.0/16"));
    assert!(world.reload(wider).accepted);
    world.store();
    let last: Vec<&Message> = world
        .sent
        .iter()
        .filter(|(to, ..)| *to == upid(2))
        .map(|(_, message, _)| message)
        .collect();
    let [
        ..,
        Message::UpdateAgentOverlays { overlays, .. },
        Message::RegistrationProblems(problems),
    ] = &last[..]
    else {
        panic!("{last:?}")
    };
    assert_eq!((overlays.len(), problems.reasons.len()), (1, 1));
    assert!(problems.reasons[0].contains("no subnet of overlay net"), "{problems:?}");
    let mut to_first = world.sent.iter().rev().filter(|(to, ..)| *to == upid(1));
    let (_, last, _) = to_first.next().unwrap();
    assert_eq!(last.kind(), MessageKind::UpdateAgentOverlays, "it has no problem");
}

fn record(vtep: u8, subnet: &str) -> StoredRecord {
    StoredRecord::Agent(Ok(Record::Agent(AgentRecord {
        vtep_ip: Ipv4Addr::new(44, 128, 0, vtep),
        vtep_ip6: None,
        overlays: vec![OverlayRecord {
            name: "net".parse().unwrap(),
            subnet: Some(subnet.parse().unwrap()),
            subnet6: None,
        }],
        allocate_subnet: true,
        mesos_bridge: true,
        docker_bridge: true,
        underlay: None,
        direct_mac: None,
        authenticated: None,
    })))
}

#[test]
fn quarantined_agent_is_sent_reason_and_first_holder() {
    let records = [(1, record(1, "192.168.0.0/24")), (2, record(1, "192.168.0.0/24"))];
    let records = records.map(|(agent, record)| (Key::Agent(ip(agent)), record));
    let network = small("44.128.0.0/28", "192.168.0.0/20");
    let mut world = World::restored(network, records.into(), Version(9));
    world.load();
    assert_eq!(world.register(2), None);
    let (problems, when) = world.hold(2, &["44.128.0.1/32", "192.168.0.0/24"]).unwrap();
    assert!(problems.is_refused);
    let reason = "44.128.0.1 of the VTEP subnet 44.128.0.0/28 is already in use: fix the master's \
                  configuration or delete the agent";
    assert_eq!(problems.reasons, [reason]);
    let expected = [reassigned("44.128.0.1/32", 1), reassigned("192.168.0.0/24", 1)];
    assert_eq!((problems.reassigned, when), (expected.to_vec(), Version(9)));
}

#[test]
fn contested_overlay_is_sent_as_reason() {
    let records = [(1, record(1, "192.168.0.0/24")), (2, record(2, "192.168.0.0/24"))];
    let records = records.map(|(agent, record)| (Key::Agent(ip(agent)), record));
    let network = small("44.128.0.0/28", "192.168.0.0/20");
    let mut world = World::restored(network, records.into(), Version(9));
    world.load();
    assert_eq!(world.register(2).map(|overlays| overlays.len()), Some(0));
    let (problems, _) = world.hold(2, &["192.168.0.0/24"]).unwrap();
    assert!(!problems.is_refused && problems.reassigned.is_empty());
    assert_eq!(
        problems.reasons,
        ["agent 10.0.0.2 is not served its allocation: overlay net: 192.168.0.0/24 of \
          192.168.0.0/20 is already in use: fix the configuration or delete the agent"]
    );
}

#[test]
fn refused_underlay_is_sent_as_reason() {
    let mut world = World::new(network());
    let underlay = Some("fd00::5".parse().unwrap());
    let options = AgentOptions { underlay, ..AgentOptions::default() };
    world.register_with(1, options).unwrap();
    world.store();
    assert_eq!(world.register_with(2, options), None);
    let (problems, _) = world.hold(2, &[]).unwrap();
    assert!(problems.is_refused);
    assert!(problems.reasons[0].contains("fd00::5 belongs to agent 10.0.0.1"), "{problems:?}");
}

mod log {
    use super::super::super::registration_problems::ProblematicAgents;
    use super::*;

    #[test]
    fn repeated_cause_is_logged_at_powers_of_two() {
        let mut agents = ProblematicAgents::default();
        let mut logged = Vec::new();
        for _ in 0..9 {
            let lines = agents.replace(&upid(1), true, vec!["no address".to_owned()]);
            logged.extend(lines.into_iter().map(|(_, count)| count));
            // The agent alternates between two reasons.
            agents.replace(&upid(1), true, vec!["a conflict".to_owned()]);
        }
        assert_eq!(logged, [1, 2, 4, 8]);
    }

    #[test]
    fn agents_and_causes_are_bounded() {
        let mut agents = ProblematicAgents::default();
        for number in 0..2000_u32 {
            agents.replace(&upid(1), true, vec![number.to_string()]);
            assert!(agents.cause_count(ip(1)) <= 10, "the causes of one agent are bounded");
        }
        assert_eq!(agents.get(&upid(1)).unwrap().reasons, ["1999"]);
        let mut logged = 0;
        for number in 0..20_000_u32 {
            let ip = Ipv4Addr::from(0x0b00_0000 + number);
            let upid = agent_upid(std::net::SocketAddrV4::new(ip, 5051));
            logged += agents.replace(&upid, true, vec!["no address".to_owned()]).len();
        }
        assert!(logged < 10_020, "{logged} lines");
    }
}
