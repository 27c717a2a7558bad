//! Tests of an agent that the master refuses, and of an agent whose host loses its address.

use overlay_types::addr::Subnet;
use overlay_types::protocol::{
    AgentOptions, HeldAddresses, Reassigned, RegistrationProblems, Status,
};

use super::tests::{MASTER, NOTHING, REPORT, SECOND, World, assignment};
use super::*;
use overlay_types::container_network::NetworkKind;

const NO_VTEP: &str = "no VTEP address is left in 44.128.0.0/29: widen vtep_subnet";
const REFUSED: &str = "master 10.0.0.1:5050 refuses this agent: no VTEP address is left in 44.128.0.0/29: widen \
     vtep_subnet";

fn subnet(text: &str) -> Subnet {
    text.parse().unwrap()
}

/// Returns a refusal in which another agent has these subnets.
fn refusal(reassigned: &[&str]) -> RegistrationProblems {
    let agent = Ipv4Addr::new(10, 0, 0, 9);
    let reassigned = reassigned.iter().map(|text| Reassigned { subnet: subnet(text), agent });
    RegistrationProblems {
        is_refused: true,
        reasons: vec![NO_VTEP.to_owned()],
        reassigned: reassigned.collect(),
        registration: 0,
    }
}

impl World {
    /// Refuses the last registration.
    fn refuse(&mut self, problems: RegistrationProblems) -> Vec<String> {
        let problems = RegistrationProblems { registration: self.registration, ..problems };
        self.message(MASTER, Message::RegistrationProblems(problems))
    }

    fn find(&mut self, kind: NetworkKind, networks: &[(&str, &str)]) {
        let networks =
            networks.iter().map(|(overlay, text)| (overlay.parse().unwrap(), vec![subnet(text)]));
        let event = Event::FoundNetworks { kind, networks: Ok(networks.collect()) };
        assert_eq!(self.handle(event), NOTHING);
    }

    /// Returns the held addresses of the next registration.
    fn held_at_registration(&mut self) -> HeldAddresses {
        loop {
            self.now.elapsed = self.agent.next_timeout().unwrap();
            self.agent.handle(self.now, Event::Timeout);
            while let Some(command) = self.agent.poll_command() {
                if let Command::Send { message: Message::HeldAddresses(held), .. } = command {
                    self.registration = held.registration();
                    return HeldAddresses::new(held.subnets().iter().copied());
                }
            }
        }
    }
}

#[test]
fn refused_agent_reports_reason_and_keeps_everything() {
    let mut world = World::new();
    world.find(NetworkKind::Cni, &[("vxlan-1", "192.168.3.0/25")]);
    world.detect();
    assert_eq!(world.refuse(refusal(&[])), NOTHING);
    let health = world.health();
    assert_eq!(health.status, Condition::Failed);
    assert_eq!(health.problems, [REFUSED]);
    assert_eq!(health.counters.registration_problems_messages_received, 1);
    assert_eq!(world.metrics(["status/failed", "registering"]), [1, 1]);
    // It retries, and an answer of the master counts as one.
    for _ in 0..8 {
        world.held_at_registration();
        world.refuse(refusal(&[]));
    }
    assert_eq!(world.health().problems, [REFUSED]);
    // The master serves it.
    assert_eq!(world.assign(vec![assignment("vxlan-1", 1)]).len(), 2);
    assert_eq!(world.finish_attempt(1, NetworkKind::Cni, Ok(())), [REPORT]);
    world.acknowledge();
    assert_eq!((world.health().status, world.health().problems.len()), (Condition::Ok, 0));
}

#[test]
fn registration_carries_found_networks_and_then_assignments() {
    let mut world = World::new();
    world.find(NetworkKind::Cni, &[("vxlan-1", "192.168.3.0/25")]);
    world.handle(Event::FoundVteps(vec!["44.128.0.3".parse().unwrap()]));
    let address = MASTER.parse::<Upid>().unwrap().address;
    world.handle(Event::Detected(Some(address)));
    let expected = ["44.128.0.3/32", "192.168.3.0/25"].map(subnet);
    assert_eq!(world.held_at_registration(), HeldAddresses::new(expected));
    world.assign(vec![assignment("vxlan-1", 1)]);
    // A list that was requested before the assignment is outdated.
    world.find(NetworkKind::Cni, &[("vxlan-1", "192.168.3.0/25")]);
    world.finish_attempt(1, NetworkKind::Cni, Ok(()));
    world.acknowledge();
    let assigned = world.info().overlays.remove(0);
    let vtep = format!("{}/32", assigned.vtep.ip.address());
    let expected = [assigned.subnet.unwrap(), subnet(&vtep)];
    assert_eq!(world.held_at_registration(), HeldAddresses::new(expected));
}

#[test]
fn found_network_of_other_agent_is_removed_alone() {
    let mut world = World::with(AgentOptions::default());
    let cni = [("vxlan-1", "192.168.3.0/25"), ("vxlan-2", "192.168.131.0/25")];
    world.find(NetworkKind::Cni, &cni);
    world.find(NetworkKind::Docker, &[("vxlan-1", "192.168.3.128/25")]);
    world.detect();
    let commands = world.refuse(refusal(&["192.168.3.0/25", "192.168.3.128/25", "10.9.0.0/24"]));
    assert_eq!(commands, ["remove 1 cni configurations", "remove 1 docker networks"]);
    let problem = "overlay vxlan-1: agent 10.0.0.9 has 192.168.3.0/25 by now, so this agent removes \
                   its container networks there: stop the containers that still use 192.168.3.0/25 \
                   on this host";
    assert_eq!(world.health().problems, [REFUSED, problem]);
    // The directory could not be written.
    let failure = "remove /cni/vxlan-1.conf: read-only file system".to_owned();
    world.handle(Event::CniRemoved(vec![failure.clone()]));
    assert_eq!(world.health().problems, [REFUSED, problem, failure.as_str()]);
    world.handle(Event::CniRemoved(Vec::new()));
    world.find(NetworkKind::Cni, &cni[1..]);
    world.handle(Event::Removed(Ok(Vec::new())));
    world.find(NetworkKind::Docker, &[]);
    let held = world.held_at_registration();
    assert_eq!(held, HeldAddresses::new([subnet("192.168.131.0/25")]));
    assert_eq!(world.refuse(refusal(&[])), NOTHING);
}

#[test]
fn assigned_overlay_of_other_agent_is_removed_and_failed() {
    let mut world = World::new();
    world.register();
    let second = assignment("vxlan-2", 2);
    world.assign(vec![assignment("vxlan-1", 1), second.clone()]);
    world.finish_attempt_at("vxlan-2", 2, NetworkKind::Cni, Ok(()));
    world.acknowledge();
    world.held_at_registration();
    let lost = second.subnet.unwrap().to_string();
    assert_eq!(world.refuse(refusal(&[&lost])), ["remove 1 cni configurations"]);
    let statuses: Vec<_> = world.info().overlays.into_iter().map(|one| one.status).collect();
    assert_eq!(statuses[0], Some(Status::Ok));
    assert!(matches!(&statuses[1], Some(Status::Failed(reason)) if reason.contains("10.0.0.9")));
    // The network is not verified any more, which would create it again.
    for _ in 0..20 {
        let commands = world.advance();
        assert!(commands.iter().all(|one| !one.contains("cni network of vxlan-2")), "{commands:?}");
    }
    for attempt in 3..10 {
        world.finish_attempt_at("vxlan-1", attempt, NetworkKind::Cni, Ok(()));
        world.finish_attempt_at("vxlan-2", attempt, NetworkKind::Cni, Ok(()));
    }
    // The master assigns it again.
    let commands = world.assign(vec![assignment("vxlan-1", 1), second]);
    assert!(commands.iter().any(|one| one.ends_with("cni network of vxlan-2")), "{commands:?}");
}

/// Returns the result of a job without changes.
fn with_rules() -> Programmed {
    let (backend, inner_check) = ("nftables", Some("pair"));
    let firewall =
        FirewallState { backend, inner_check, keeps_agents: false, forwarding: "tracked" };
    Programmed { firewall: Some(firewall), ..Programmed::default() }
}

#[test]
fn assigned_vtep_of_other_agent_stops_only_tunnels() {
    let tunnel = TunnelSettings { programs: true, refuses_collisions: false };
    let options = AgentOptions { docker_bridge: false, ..AgentOptions::default() };
    let mut world = World::with_tunnel(options, tunnel);
    world.detect();
    world.assign(vec![assignment("vxlan-1", 1)]);
    let assigned = world.info().overlays.remove(0);
    world.handle(Event::Programmed { attempt: 1, result: with_rules() });
    world.handle(Event::Programmed { attempt: 2, result: with_rules() });
    world.finish_attempt(1, NetworkKind::Cni, Ok(()));
    world.acknowledge();
    world.held_at_registration();
    let vtep = format!("{}/32", assigned.vtep.ip.address());
    let mut commands = world.refuse(refusal(&[&vtep]));
    for attempt in 2..10 {
        let result = with_rules();
        commands.extend(world.handle(Event::Programmed { attempt, result }));
    }
    let is_empty = |one: &String| one.contains("program everything for 0 overlays");
    assert!(commands.iter().any(is_empty), "{commands:?}");
    assert!(commands.iter().all(|one| !one.contains("cni")), "{commands:?}");
    let problems = world.health().problems;
    assert!(problems[1].contains("has the VTEP address"), "{problems:?}");
}

#[test]
fn found_vtep_of_other_agent_stops_tunnels() {
    let tunnel = TunnelSettings { programs: true, refuses_collisions: true };
    let mut world = World::with_tunnel(AgentOptions::default(), tunnel);
    world.handle(Event::FoundVteps(vec!["44.128.0.3".parse().unwrap()]));
    world.detect();
    assert_eq!(world.refuse(refusal(&["192.168.3.0/25"])), NOTHING, "it does not hold this");
    world.held_at_registration();
    let commands = world.refuse(refusal(&["44.128.0.3/32"]));
    assert_eq!(commands, ["attempt 1: program everything for 0 overlays"]);
    let problems = world.health().problems;
    assert!(problems[1].contains("agent 10.0.0.9 has the VTEP address 44.128.0.3"), "{problems:?}");
}

#[test]
fn refusal_of_stranger_or_earlier_registration_changes_nothing() {
    let mut world = World::new();
    world.find(NetworkKind::Cni, &[("vxlan-1", "192.168.3.0/25")]);
    world.detect();
    let message = Message::RegistrationProblems(refusal(&["192.168.3.0/25"]));
    assert_eq!(world.message("overlay-master@10.66.6.6:5050", message.clone()), NOTHING);
    assert_eq!(world.health().status, Condition::Registering);
    assert_eq!(world.health().counters.unexpected_messages, 1);
    let mut world = World::new();
    world.register();
    assert_eq!(world.message(MASTER, message), NOTHING);
    assert_eq!(world.health().status, Condition::Ok);
}

#[test]
fn refusal_of_registration_before_assignment_changes_nothing() {
    let mut world = World::new();
    world.detect();
    let before = world.registration;
    // The answer to the first registration is under way for a long time.
    world.held_at_registration();
    let second = assignment("vxlan-1", 1);
    let assigned = second.subnet.unwrap().to_string();
    world.assign(vec![second]);
    world.finish_attempt(1, NetworkKind::Cni, Ok(()));
    world.acknowledge();
    world.held_at_registration();
    let refuse = |world: &mut World, registration| {
        let refused = RegistrationProblems { registration, ..refusal(&[&assigned]) };
        world.message(MASTER, Message::RegistrationProblems(refused))
    };
    for registration in [before, before + 1, world.registration + 1, 0] {
        assert_eq!(refuse(&mut world, registration), NOTHING, "{registration}");
        assert_eq!(world.health().problems, [""; 0]);
    }
    let last = world.registration;
    assert_eq!(refuse(&mut world, last), ["remove 1 cni configurations"]);
    assert_eq!(refuse(&mut world, last), NOTHING, "a repeated message");
}

#[test]
fn restarted_agent_ignores_refusal_of_its_earlier_process() {
    let numbers = |seed| {
        let agent = Agent::new(Ipv4Addr::LOCALHOST, World::new().agent.settings, seed);
        let mut world = World { agent, ..World::new() };
        world.detect();
        world.registration
    };
    assert_ne!(numbers(1), numbers(2));
}

#[test]
fn removal_is_limited_to_named_subnets() {
    let mut world = World::with(AgentOptions::default());
    world.find(NetworkKind::Docker, &[("vxlan-1", "192.168.3.128/25")]);
    world.find(NetworkKind::Cni, &[("vxlan-1", "192.168.3.0/25"), ("vxlan-2", "192.168.9.0/25")]);
    world.detect();
    let named = ["192.168.3.0/25", "192.168.3.128/25"];
    let refused = RegistrationProblems { registration: world.registration, ..refusal(&named) };
    let from = MASTER.parse().unwrap();
    let message = Message::RegistrationProblems(refused);
    world.agent.handle(world.now, Event::Message { from, message });
    let networks =
        |text: &str| FoundNetworks::from([("vxlan-1".parse().unwrap(), vec![subnet(text)])]);
    // An assignment may replace a network before the removal, so the removal checks its subnet.
    assert_eq!(world.agent.poll_command(), Some(Command::RemoveCni(networks(named[0]))));
    assert_eq!(world.agent.poll_command(), Some(Command::RemoveDocker(networks(named[1]))));
    let has = |had: &str, named: &str| has_named_subnet(&[subnet(had)], &[subnet(named)]);
    assert!(has("192.168.3.0/25", "192.168.3.0/25"));
    assert!(has("192.168.3.0/25", "192.168.3.0/24"), "a half of an assigned subnet");
    assert!(!has("192.168.3.0/25", "192.168.3.0/26"), "containers may use the rest");
    assert!(!has("192.168.4.0/25", "192.168.3.0/25"));
}

#[test]
fn partly_served_agent_is_degraded_until_served() {
    let mut world = World::new();
    world.register();
    let reason = "the agent gets no subnet of overlay vxlan-2: its IPv4 space is exhausted";
    let reasons = vec![reason.to_owned()];
    let problems =
        RegistrationProblems { is_refused: false, reasons, ..RegistrationProblems::default() };
    assert_eq!(world.refuse(problems), NOTHING);
    let health = world.health();
    assert_eq!(health.status, Condition::Degraded);
    let expected = format!("master 10.0.0.1:5050 does not serve all overlays: {reason}");
    assert_eq!(health.problems, [expected]);
    world.assign(vec![assignment("vxlan-1", 1)]);
    world.acknowledge();
    assert_eq!(world.health().status, Condition::Ok);
}

#[test]
fn unlisted_networks_are_listed_again_while_refused() {
    let mut world = World::new();
    let networks = Err("read directory /cni: permission denied".to_owned());
    world.handle(Event::FoundNetworks { kind: NetworkKind::Cni, networks });
    world.detect();
    assert_eq!(world.health().problems, [""; 0]);
    assert_eq!(world.refuse(refusal(&[])), ["find the container networks"]);
    let unlisted =
        "cannot list the cni networks of this host: read directory /cni: permission denied";
    assert_eq!(world.health().problems, [REFUSED, unlisted]);
    world.held_at_registration();
    world.find(NetworkKind::Cni, &[]);
    assert_eq!(world.refuse(refusal(&[])), NOTHING);
}

#[test]
fn failed_cni_removal_is_reported_and_repeated() {
    let mut world = World::new();
    world.register();
    let failure = "read directory /cni: permission denied".to_owned();
    world.handle(Event::CniRemoved(vec![failure.clone()]));
    assert_eq!(world.health().status, Condition::Degraded);
    assert_eq!(world.health().problems, [failure]);
    world.now.elapsed += 60 * SECOND;
    let commands = world.handle(Event::Timeout);
    assert!(commands.contains(&"retain 1 cni configurations".to_owned()), "{commands:?}");
    world.handle(Event::CniRemoved(Vec::new()));
    assert_eq!(world.health().status, Condition::Ok);
}

#[test]
fn lost_address_is_first_problem_and_registers_when_back() {
    let options = AgentOptions { docker_bridge: false, ..AgentOptions::default() };
    let tunnel = TunnelSettings { programs: true, refuses_collisions: false };
    let mut world = World::with_tunnel(options, tunnel);
    world.detect();
    let problem = "the host has no address 10.0.0.5".to_owned();
    world.handle(Event::OwnAddress(Some(problem.clone())));
    for _ in 0..40 {
        world.advance();
    }
    let health = world.health();
    // No advice about the master, whose answers cannot arrive.
    assert_eq!((health.status, health.problems), (Condition::Failed, vec![problem]));
    let commands = world.handle(Event::OwnAddress(None));
    assert!(commands[1].starts_with("send RegisterAgentMessage"), "{commands:?}");
    assert_eq!(world.health().status, Condition::Registering);
}
