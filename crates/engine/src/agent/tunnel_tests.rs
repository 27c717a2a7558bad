//! Tests of the inspection and the programming of the host's network.

use std::collections::BTreeSet;

use overlay_types::addr::Mac;
use overlay_types::container_network::NetworkKind;
use overlay_types::protocol::{
    AgentOptions, Assignment, MasterKind, PeerInfo, PeerTableVersion, PeersUpdate, peer_digest,
};
use overlay_types::tunnel::{
    Collision, Desired, DirectCheck, DirectLink, DirectPeer, DirectReport, Fault, FaultScope,
    HostObject, HostRoute, Peer, PeerFault, SubnetOwner, validate_peers,
};

use super::health::EVERY_SENDER_PROBLEM;
use super::tests::{MASTER, NOTHING, REPORT, World, assignment};
use super::*;

const SECOND: Duration = Duration::from_secs(1);
const INSPECT: &str = "attempt 1: inspect for 1 overlays";
const ASK: &str = "send RequestPeersMessage with version 0.0 to overlay-master@10.0.0.1:5050";

fn world() -> World {
    let options = AgentOptions { docker_bridge: false, ..AgentOptions::default() };
    let tunnel = TunnelSettings { programs: true, refuses_collisions: true };
    World::with_tunnel(options, tunnel)
}

impl World {
    pub(super) fn finish_inspection(
        &mut self,
        attempt: u64,
        collisions: Vec<Collision>,
    ) -> Vec<String> {
        self.handle(Event::Inspected { attempt, underlay_mtu: None, result: Ok(collisions) })
    }

    fn finish_program(&mut self, attempt: u64, changes: u64, faults: Vec<Fault>) -> Vec<String> {
        let examples = (0..changes.min(1)).map(|_| "add route".to_owned()).collect();
        self.finish_program_with(
            attempt,
            Programmed {
                changes,
                examples,
                faults,
                firewall: Some(firewall(false)),
                ..Programmed::default()
            },
        )
    }

    pub(super) fn finish_program_with(&mut self, attempt: u64, result: Programmed) -> Vec<String> {
        self.handle(Event::Programmed { attempt, result })
    }

    /// Ends the jobs that run, and those that follow at once.
    fn finish_jobs(&mut self) {
        for attempt in 3..60 {
            self.finish_program(attempt, 0, Vec::new());
        }
    }

    /// Assigns as a master that sends peers later.
    pub(super) fn assign_from_program(&mut self, overlays: Vec<Assignment>) -> Vec<String> {
        self.message(MASTER, Message::UpdateAgentOverlays { overlays, master: MasterKind::Program })
    }

    /// Registers the agent with an inspected and programmed overlay, without peers.
    fn set_up_tunnel(&mut self) {
        self.set_up_tunnel_with(firewall(false));
    }

    fn set_up_tunnel_with(&mut self, firewall: FirewallState) {
        self.detect();
        assert_eq!(
            self.assign_from_program(vec![assignment("vxlan-1", 1)]),
            ["retain 1 cni configurations", ASK, INSPECT]
        );
        assert_eq!(
            self.finish_inspection(1, Vec::new()),
            ["attempt 2: program everything for 1 overlays"]
        );
        let result = Programmed { changes: 9, firewall: Some(firewall), ..Programmed::default() };
        assert_eq!(
            self.finish_program_with(2, result),
            ["attempt 1: cni network of vxlan-1"],
            "the rules come first"
        );
        assert_eq!(self.finish_attempt(1, NetworkKind::Cni, Ok(())), [REPORT]);
        assert_eq!(self.acknowledge(), NOTHING);
        assert_eq!(self.health().status, Condition::Ok);
        assert_eq!(self.health().dataplane.unwrap().status, "ok");
    }

    /// Ends a program job without a change.
    pub(super) fn finish_program_unchanged(&mut self, attempt: u64) -> Vec<String> {
        self.finish_program(attempt, 0, Vec::new())
    }

    /// Advances to the next program job, and returns its attempt. Inspections before it find no
    /// collision.
    pub(super) fn next_program(&mut self) -> u64 {
        let mut commands = self.advance();
        loop {
            let number = |command: &String| {
                command.split([' ', ':']).nth(1).and_then(|number| number.parse().ok())
            };
            let find =
                |word| commands.iter().find(|command| command.contains(word)).and_then(number);
            if let Some(attempt) = find(": program ") {
                return attempt;
            }
            commands = match find(": inspect ") {
                Some(attempt) => self.finish_inspection(attempt, Vec::new()),
                None => self.advance(),
            };
        }
    }

    pub(super) fn update_peers(&mut self, version: u64, numbers: &[u8]) -> Vec<String> {
        self.message(MASTER, Message::UpdatePeers(std::sync::Arc::new(table(version, numbers))))
    }
}

pub(super) fn firewall(keeps_agents: bool) -> FirewallState {
    FirewallState {
        backend: "nftables",
        inner_check: Some("pair"),
        keeps_agents,
        forwarding: "tracked",
    }
}

fn table(version: u64, numbers: &[u8]) -> PeersUpdate {
    let info = |number: &u8| {
        let ip = Ipv4Addr::new(10, 0, 0, *number);
        let subnet = format!("192.168.{number}.0/24").parse().unwrap();
        let peer = Peer {
            ip: Some([44, 128, 0, *number].into()),
            ip6: None,
            mac: format!("70:b3:d5:80:00:{number:02x}").parse().unwrap(),
            subnets: vec![("vxlan-1".parse().unwrap(), subnet)],
            direct: None,
        };
        (ip, PeerInfo { underlay: ip.into(), peer })
    };
    let changed: std::collections::BTreeMap<_, _> = numbers.iter().map(info).collect();
    let digest =
        changed.iter().fold(0, |sum: u64, (ip, it)| sum.wrapping_add(peer_digest(*ip, it)));
    PeersUpdate { epoch: 1, version, digest, base: None, changed, removed: BTreeSet::new() }
}

fn collision() -> Collision {
    Collision {
        owner: SubnetOwner::Overlay("vxlan-1".parse().unwrap()),
        subnet: "192.168.0.0/16".parse().unwrap(),
        object: HostObject::Route(HostRoute {
            subnet: "192.168.7.0/24".parse().unwrap(),
            device: Some("eth0".to_owned()),
            gateway: None,
            is_ours: false,
        }),
        is_programmed: false,
    }
}

#[test]
fn agent_inspects_programs_and_reports() {
    let mut world = world();
    world.set_up_tunnel();
    assert_eq!(
        world.update_peers(1, &[1, 2, 5]),
        ["attempt 3: program the change for 1 overlays, 2 peers"]
    );
    assert_eq!(world.finish_program(3, 6, Vec::new()), NOTHING);
    assert_eq!(world.health().dataplane.unwrap().peers, Some(3));
    assert_eq!(world.update_peers(2, &[1, 2, 5]), NOTHING, "the snapshot is repeated");
    assert_eq!(world.metrics(["dataplane_changes", "dataplane_repairs", "peers"]), [15, 0, 3]);
}

#[test]
fn events_before_assignment_change_nothing() {
    let mut world = world();
    world.detect();
    assert_eq!(world.update_peers(1, &[1, 2, 5]), NOTHING);
    assert_eq!(world.handle(Event::Drifted(Scope::Kernel)), NOTHING);
}

#[test]
fn changes_during_program_job_are_combined() {
    let mut world = world();
    world.set_up_tunnel();
    assert_eq!(
        world.update_peers(1, &[1, 5]),
        ["attempt 3: program the change for 1 overlays, 1 peers"]
    );
    assert_eq!(world.update_peers(2, &[1, 2, 5]), NOTHING);
    assert_eq!(world.update_peers(3, &[1, 2, 3, 5]), NOTHING);
    assert_eq!(
        world.finish_program(3, 3, Vec::new()),
        ["attempt 4: program the change for 1 overlays, 3 peers"]
    );
}

#[test]
fn colliding_overlay_is_refused_until_collision_ends() {
    let mut world = world();
    world.detect();
    world.assign_from_program(vec![assignment("vxlan-1", 1)]);
    assert_eq!(
        world.finish_inspection(1, vec![collision()]),
        [REPORT, "attempt 2: program everything for 0 overlays"]
    );
    let reason = "subnet 192.168.0.0/16 of overlay vxlan-1 collides with the host's route \
                  '192.168.7.0/24 dev eth0': give the overlay another subnet at the master, or \
                  give this host another address";
    let status = world.info().overlays[0].status.clone();
    assert_eq!(status, Some(overlay_types::protocol::Status::Failed(reason.to_owned())));
    assert_eq!(world.finish_program(2, 0, Vec::new()), NOTHING);
    assert_eq!(world.acknowledge(), NOTHING);
    assert_eq!(world.health().status, Condition::Degraded);
    // The operator removes the collision.
    let commands = loop {
        let commands = world.advance();
        if commands.iter().any(|command| command.contains("inspect")) {
            break commands;
        }
    };
    assert_eq!(commands, ["attempt 3: inspect for 1 overlays"]);
    assert_eq!(
        world.finish_inspection(3, Vec::new()),
        ["attempt 4: program everything for 1 overlays"]
    );
}

#[test]
fn network_waits_for_firewall_rules() {
    let mut world = world();
    world.detect();
    world.assign_from_program(vec![assignment("vxlan-1", 1)]);
    world.finish_inspection(1, Vec::new());
    let fault = Fault::of_host("firewall: program 'nft' not found");
    let failed = Programmed { faults: vec![fault.clone()], ..Programmed::default() };
    assert_eq!(world.finish_program_with(2, failed.clone()), [REPORT], "no network is attempted");
    world.acknowledge();
    assert_eq!(world.health().dataplane.unwrap().firewall, None);
    let status = world.info().overlays[0].status.clone();
    let reason = format!("{}; its containers get no network without firewall rules", fault.reason);
    assert_eq!(status, Some(overlay_types::protocol::Status::Failed(reason)));
    // The rules are made, and another fault of the host remains.
    let attempt = world.next_program();
    let commands = world.finish_program(attempt, 1, vec![Fault::of_host("no device")]);
    assert_eq!(commands.last().map(String::as_str), Some("attempt 1: cni network of vxlan-1"));
    world.finish_attempt(1, NetworkKind::Cni, Ok(()));
    let dataplane = world.health().dataplane.unwrap();
    assert_eq!((dataplane.firewall, dataplane.inner_check), (Some("nftables"), Some("pair")));
    // A failure of later rules keeps the network and its verification.
    let attempt = world.next_program();
    world.finish_program_with(attempt, failed);
    world.acknowledge();
    let is_verified = |command: &String| command == "attempt 2: cni network of vxlan-1";
    while !world.advance().iter().any(is_verified) {
        for attempt in attempt..attempt + 20 {
            world.finish_inspection(attempt, Vec::new());
            world.finish_program(attempt, 0, Vec::new());
        }
    }
}

#[test]
fn late_collision_keeps_overlay() {
    let mut world = world();
    world.set_up_tunnel();
    while !world.advance().iter().any(|command| command.contains("inspect")) {}
    assert_eq!(
        world.finish_inspection(3, vec![collision()]),
        ["attempt 4: program everything for 1 overlays"]
    );
    assert_eq!(world.finish_program(4, 0, Vec::new()), NOTHING);
    let health = world.health();
    assert_eq!(health.status, Condition::Degraded);
    assert!(health.problems[0].contains("route '192.168.7.0/24 dev eth0'"), "{health:?}");
}

#[test]
fn overlay_in_use_before_restart_is_kept() {
    let mut world = world();
    world.detect();
    world.assign(vec![assignment("vxlan-1", 1)]);
    let late = Collision { is_programmed: true, ..collision() };
    assert_eq!(
        world.finish_inspection(1, vec![late.clone()]),
        ["attempt 2: program everything for 1 overlays"]
    );
    assert_eq!(world.finish_program(2, 0, Vec::new()), ["attempt 1: cni network of vxlan-1"]);
    assert_eq!(world.finish_attempt(1, NetworkKind::Cni, Ok(())), [REPORT]);
    world.acknowledge();
    let health = world.health();
    assert_eq!(health.status, Condition::Degraded);
    assert!(health.problems[0].contains("route '192.168.7.0/24 dev eth0'"), "{health:?}");
    // A collision that is not late refuses the overlay, even beside a late collision.
    let mut world = self::world();
    world.detect();
    world.assign(vec![assignment("vxlan-1", 1)]);
    assert_eq!(
        world.finish_inspection(1, vec![late, collision()]),
        [REPORT, "attempt 2: program everything for 0 overlays"]
    );
}

#[test]
fn failed_inspection_is_reported_and_retried() {
    let mut world = world();
    world.detect();
    world.assign(vec![assignment("vxlan-1", 1)]);
    let fails = |attempt| Event::Inspected {
        attempt,
        underlay_mtu: None,
        result: Err("no buffers".to_owned()),
    };
    assert_eq!(world.handle(fails(1)), [REPORT], "nothing is programmed");
    let status = world.info().overlays[0].status.clone();
    assert_eq!(status, Some(overlay_types::protocol::Status::Failed("no buffers".to_owned())));
    world.acknowledge();
    let start = world.now.elapsed;
    while !world.advance().iter().any(|command| command.contains("attempt 2: inspect")) {}
    assert!(world.now.elapsed - start <= 2 * SECOND);
    assert_eq!(
        world.finish_inspection(2, Vec::new()),
        ["attempt 3: program everything for 1 overlays"]
    );
}

#[test]
fn drift_is_repaired_with_growing_interval() {
    let mut world = world();
    world.set_up_tunnel();
    let mut intervals = Vec::new();
    for _ in 0..40 {
        let start = world.now.elapsed;
        assert_eq!(world.handle(Event::Drifted(Scope::Kernel)), NOTHING);
        let attempt = world.next_program();
        intervals.push((world.now.elapsed - start).as_millis());
        assert_eq!(world.finish_program(attempt, 1, Vec::new()), NOTHING);
    }
    assert_eq!(intervals[..4], [20, 200, 200, 200], "quick repairs");
    assert!(intervals[..16].iter().all(|interval| *interval <= 200), "{intervals:?}");
    assert!(
        intervals[30..].iter().all(|interval| *interval > 5000),
        "consecutive repairs: {intervals:?}"
    );
    // The kernel also reports the agent's own changes. An observation without drift is no repair.
    world.handle(Event::Drifted(Scope::Kernel));
    let attempt = world.next_program();
    assert_eq!(world.finish_program(attempt, 0, Vec::new()), NOTHING);
    assert_eq!(world.metrics(["dataplane_repairs"]), [40]);
    assert_eq!(world.health().dataplane.unwrap().last_repair.as_deref(), Some("add route"));
}

#[test]
fn drift_beside_fault_is_repaired_with_growing_interval() {
    let mut world = world();
    world.set_up_tunnel();
    let fault = || Fault {
        scope: FaultScope::Device("vtep1024".parse().unwrap()),
        reason: "dropped by a rule of another program".to_owned(),
    };
    world.handle(Event::Drifted(Scope::Kernel));
    let attempt = world.next_program();
    world.finish_program(attempt, 0, vec![fault()]);
    let mut intervals = Vec::new();
    for _ in 0..40 {
        let start = world.now.elapsed;
        world.handle(Event::Drifted(Scope::Kernel));
        let attempt = world.next_program();
        intervals.push((world.now.elapsed - start).as_millis());
        world.finish_program(attempt, 1, vec![fault()]);
    }
    // Verifications after a fault shorten some intervals.
    assert!(intervals.iter().all(|interval| *interval >= 150), "{intervals:?}");
    assert!(intervals[30..].iter().all(|interval| *interval >= 1000), "{intervals:?}");
    assert_eq!(world.metrics(["dataplane_repairs"]), [40]);
    // The end of the fault completes the state.
    world.handle(Event::Drifted(Scope::Kernel));
    let attempt = world.next_program();
    world.finish_program(attempt, 1, Vec::new());
    assert_eq!(world.metrics(["dataplane_repairs"]), [40]);
}

#[test]
fn observations_without_drift_are_paced_by_their_duration() {
    let mut world = world();
    world.set_up_tunnel();
    let mut intervals = Vec::new();
    for _ in 0..40 {
        let start = world.now.elapsed;
        world.handle(Event::Drifted(Scope::Kernel));
        let attempt = world.next_program();
        intervals.push((world.now.elapsed - start).as_millis());
        world.now.elapsed += Duration::from_millis(30);
        world.finish_program_unchanged(attempt);
    }
    assert_eq!(intervals[..4], [20, 500, 500, 500]);
    // A verification shortens some intervals.
    assert!(intervals[30..].iter().all(|interval| *interval >= 2000), "{intervals:?}");
    // After the storm a single event is handled at once.
    world.now.elapsed += SECOND * 5;
    let start = world.now.elapsed;
    world.handle(Event::Drifted(Scope::Kernel));
    let attempt = world.next_program();
    assert_eq!(world.now.elapsed - start, Duration::from_millis(20));
    world.finish_program_unchanged(attempt);
}

#[test]
fn kernel_and_firewall_drift_are_combined() {
    let mut world = world();
    world.set_up_tunnel();
    world.handle(Event::Drifted(Scope::Kernel));
    world.handle(Event::Drifted(Scope::Firewall));
    assert_eq!(world.advance(), ["attempt 3: program everything for 1 overlays"]);
}

#[test]
fn fault_fails_affected_overlays_and_is_retried() {
    let mut world = world();
    world.set_up_tunnel();
    world.update_peers(1, &[1, 2, 5]);
    let scope = FaultScope::Subnet("192.168.2.0/24".parse().unwrap());
    let fault = Fault { scope, reason: "add route: refused: remove it".to_owned() };
    let other =
        Fault { scope: FaultScope::Device("vtep9".parse().unwrap()), reason: "no".to_owned() };
    assert_eq!(world.finish_program(3, 3, vec![fault.clone(), other]), [REPORT]);
    let failed = overlay_types::protocol::Status::Failed(fault.reason);
    assert_eq!(world.info().overlays[0].status, Some(failed));
    assert_eq!(world.health().problems.len(), 3, "the overlay and both faults");
    let start = world.now.elapsed;
    assert_eq!(world.advance(), ["attempt 4: inspect for 1 overlays"]);
    assert!(world.now.elapsed - start <= SECOND);
    assert_eq!(world.acknowledge(), NOTHING);
    assert_eq!(
        world.finish_inspection(4, Vec::new()),
        ["attempt 5: program everything for 1 overlays, 2 peers"]
    );
    assert_eq!(world.finish_program(5, 1, Vec::new()), [REPORT], "the fault is fixed");
    assert_eq!(world.info().overlays[0].status, Some(overlay_types::protocol::Status::Ok));
}

#[test]
fn hostile_peer_fails_only_own_overlays() {
    let agents = Desired::for_assignments(
        Ipv4Addr::new(10, 0, 0, 5),
        &world().agent.settings.options,
        None,
        [assignment("vxlan-1", 5)].iter(),
        Some(std::collections::BTreeMap::from([(
            "192.168.9.9".parse().unwrap(),
            table(1, &[9]).changed.remove(&Ipv4Addr::new(10, 0, 0, 9)).unwrap().peer,
        )])),
    );
    let (peers, faults) = validate_peers(&agents);
    assert!(peers.is_empty());
    assert!(matches!(faults[..], [(_, PeerFault::InsideOverlay(..))]), "{faults:?}");
    assert!(
        agents.is_overlay_affected(&"vxlan-1".parse().unwrap(), &FaultScope::Agent(faults[0].0))
    );
    assert!(
        !agents.is_overlay_affected(&"vxlan-2".parse().unwrap(), &FaultScope::Agent(faults[0].0))
    );
}

#[test]
fn master_without_peers_is_reported() {
    let mut world = world();
    world.set_up_tunnel();
    world.assign(vec![assignment("vxlan-1", 1)]);
    world.acknowledge();
    for _ in 0..4 {
        while !world.advance().iter().any(|command| command.contains("RequestPeers")) {
            // The other jobs end, so that time advances.
            for attempt in 3..20 {
                world.finish_inspection(attempt, Vec::new());
                world.finish_program(attempt, 0, Vec::new());
            }
        }
    }
    let health = world.health();
    assert!(health.problems.iter().any(|it| it.contains("sends no peers")), "{health:?}");
}

/// Returns the desired state that the event programs.
fn desired_after(world: &mut World, event: Event) -> Option<std::sync::Arc<Desired>> {
    world.agent.handle(world.now, event);
    let mut commands = std::iter::from_fn(|| world.agent.poll_command());
    commands.find_map(|command| match command {
        Command::Program { desired, .. } => Some(desired),
        _ => None,
    })
}

#[test]
fn master_without_peers_opens_vxlan_until_it_sends_them() {
    let mut world = world();
    world.set_up_tunnel();
    world.assign(vec![assignment("vxlan-1", 1)]);
    world.acknowledge();
    while !world.agent.accepts_every_sender {
        world.advance();
        world.finish_jobs();
    }
    world.finish_jobs();
    assert_eq!(world.metrics(["request_peers_messages_sent"]), [4], "closed until then");
    let health = world.health();
    assert_eq!(health.status, Condition::Degraded);
    assert!(health.problems.iter().any(|it| it == EVERY_SENDER_PROBLEM), "{health:?}");
    let next: SocketAddrV4 = "10.0.0.9:5050".parse().unwrap();
    world.handle(Event::Detected(Some(next)));
    let problems = world.health().problems;
    assert!(problems.iter().any(|it| it == EVERY_SENDER_PROBLEM), "a new master closes nothing");
    let message = Message::UpdatePeers(std::sync::Arc::new(table(1, &[1, 2, 5])));
    let from = "overlay-master@10.0.0.9:5050".parse().unwrap();
    let desired = desired_after(&mut world, Event::Message { from, message }).unwrap();
    assert!(!desired.accepts_every_sender && desired.peers.is_some());
    assert_eq!(desired.agents, [1, 2].map(|last| Ipv4Addr::new(10, 0, 0, last)).into());
}

/// Lets the master answer no request for peers, and checks that the agent accepts no unknown sender.
fn assert_closed_without_answers(world: &mut World, firewall: Option<&FirewallState>) {
    world.acknowledge();
    while world.metrics(["request_peers_messages_sent"])[0] < 7 {
        world.advance();
        for attempt in 3..60 {
            world.finish_inspection(attempt, Vec::new());
            let firewall = firewall.cloned();
            world.finish_program_with(attempt, Programmed { firewall, ..Programmed::default() });
        }
        assert!(!world.agent.accepts_every_sender);
    }
    assert_eq!(world.health().status, Condition::Degraded);
}

#[test]
fn master_of_this_project_without_answers_opens_nothing() {
    for master in [MasterKind::Program, MasterKind::Module] {
        let mut world = world();
        world.set_up_tunnel();
        let overlays = vec![assignment("vxlan-1", 1)];
        world.message(MASTER, Message::UpdateAgentOverlays { overlays, master });
        assert_closed_without_answers(&mut world, Some(&firewall(false)));
        let problems = world.health().problems;
        assert!(problems[0].contains("does not answer requests for the table"), "{problems:?}");
    }
}

#[test]
fn host_with_former_peers_stays_closed_without_answers() {
    let mut world = world();
    world.set_up_tunnel_with(firewall(true));
    world.assign(vec![assignment("vxlan-1", 1)]);
    assert_closed_without_answers(&mut world, Some(&firewall(true)));
    let problems = world.health().problems;
    assert!(problems.iter().any(|it| it.contains("from the former peers only")), "{problems:?}");
}

#[test]
fn host_whose_rules_are_unknown_stays_closed_without_answers() {
    let mut world = world();
    world.set_up_tunnel_with(firewall(true));
    world.assign(vec![assignment("vxlan-1", 1)]);
    assert_closed_without_answers(&mut world, None);
}

#[test]
fn master_programs_are_desired_before_first_job_and_on_standby() {
    let mut world = world();
    world.detect();
    let at = |last: u8| SocketAddrV4::new([10, 0, 0, last].into(), 5050);
    let elected = |last: &[u8]| {
        Event::FoundMasters(FoundMasters::Elected(last.iter().map(|last| at(*last)).collect()))
    };
    assert_eq!(world.handle(elected(&[1])), NOTHING);
    let overlays = vec![assignment("vxlan-1", 1)];
    world.assign_from_program(overlays);
    let inspected = Event::Inspected { attempt: 1, underlay_mtu: None, result: Ok(Vec::new()) };
    let desired = desired_after(&mut world, inspected).unwrap();
    assert_eq!(desired.masters, [at(1)].into());
    world.finish_program(2, 1, Vec::new());
    assert_eq!(
        world.handle(elected(&[1, 2])),
        ["attempt 3: program the change for 1 overlays"],
        "a change of the masters changes the rules only"
    );
    world.finish_program(3, 1, Vec::new());
    assert_eq!(world.handle(elected(&[2, 1])), NOTHING);
}

#[test]
fn job_that_hangs_is_a_problem_until_it_ends() {
    let mut world = world();
    world.set_up_tunnel();
    world.update_peers(1, &[1, 5]);
    let began = world.now.elapsed;
    while world.now.elapsed < began + 120 * SECOND {
        assert!(world.agent.tunnel.overdue_problem(world.now).is_none());
        world.advance();
    }
    world.now.elapsed = began + 125 * SECOND;
    world.handle(Event::Timeout);
    let health = world.health();
    assert_eq!(health.status, Condition::Degraded);
    let expected = "the dataplane job has run for 125 s: see which program locks the rules of the \
                    firewall, and whether the kernel answers";
    assert_eq!(health.problems[0], expected);
    world.finish_program(3, 1, Vec::new());
    assert!(!world.health().problems.iter().any(|it| it == expected));
}

#[test]
fn external_dataplane_still_refuses_collisions() {
    let options = AgentOptions { docker_bridge: false, ..AgentOptions::default() };
    let mut world =
        World::with_tunnel(options, TunnelSettings { programs: false, refuses_collisions: true });
    world.detect();
    assert_eq!(
        world.assign(vec![assignment("vxlan-1", 1)]),
        ["retain 1 cni configurations", INSPECT]
    );
    assert_eq!(world.finish_inspection(1, Vec::new()), ["attempt 1: cni network of vxlan-1"]);
    assert_eq!(world.finish_attempt(1, NetworkKind::Cni, Ok(())), [REPORT]);
    assert_eq!(world.health().dataplane.unwrap().status, "external");
}

#[test]
fn request_to_new_master_has_current_digest() {
    let mut world = world();
    world.set_up_tunnel();
    world.update_peers(7, &[1, 2, 5]);
    world.finish_program(3, 3, Vec::new());
    let other: SocketAddrV4 = "10.0.0.9:5050".parse().unwrap();
    world.handle(Event::Detected(Some(other)));
    while !world.advance().iter().any(|command| command.contains("RegisterAgent")) {}
    let assigned = vec![assignment("vxlan-1", 1)];
    let from = "overlay-master@10.0.0.9:5050";
    world.agent.handle(
        world.now,
        Event::Message {
            from: from.parse().unwrap(),
            message: Message::UpdateAgentOverlays { overlays: assigned, master: MasterKind::Other },
        },
    );
    let sent: Vec<_> = std::iter::from_fn(|| world.agent.poll_command()).collect();
    let digest = table(7, &[1, 2, 5]).digest;
    let have = PeerTableVersion { epoch: 1, version: 7, digest };
    let (form, version) = (UpdateForm::Compact, ProgramVersion::current());
    let have = Message::RequestPeers(PeersRequest { have, form, version, ..Default::default() });
    let to: Upid = from.parse().unwrap();
    assert!(sent.contains(&Command::Send { to, message: have }), "{sent:?}");
}

#[test]
fn allowed_collisions_skip_inspection() {
    let options = AgentOptions { docker_bridge: false, ..AgentOptions::default() };
    let tunnel = TunnelSettings { programs: true, refuses_collisions: false };
    let mut world = World::with_tunnel(options, tunnel);
    world.detect();
    assert_eq!(
        world.assign_from_program(vec![assignment("vxlan-1", 1)]),
        ["retain 1 cni configurations", ASK, "attempt 1: program everything for 1 overlays"]
    );
    assert_eq!(world.finish_program(1, 9, Vec::new()), ["attempt 1: cni network of vxlan-1"]);
    assert_eq!(world.finish_attempt(1, NetworkKind::Cni, Ok(())), [REPORT]);
    assert_eq!(world.acknowledge(), NOTHING);
    // Another process may have changed the network during the job.
    while !world.advance().iter().any(|it| it == "attempt 2: program everything for 1 overlays") {}
    assert_eq!(world.now.elapsed.as_secs(), 10);
    assert_eq!(world.finish_program(2, 0, Vec::new()), NOTHING);
    let verified = world.now.elapsed;
    // Unmanaged firewall rules change often.
    assert_eq!(world.handle(Event::Drifted(Scope::Firewall)), NOTHING);
    assert_eq!(world.advance(), ["attempt 3: program the firewall for 1 overlays"]);
    assert_eq!((world.now.elapsed - verified).as_millis(), 500);
    assert_eq!(world.finish_program(3, 0, Vec::new()), NOTHING);
    while !world.advance().iter().any(|it| it == "attempt 4: program everything for 1 overlays") {}
    assert_eq!((world.now.elapsed - verified).as_secs(), 60);
}

#[test]
fn overlay_with_own_vni_has_own_device() {
    let mut world = world();
    world.detect();
    let mut own = assignment("vxlan-2", 2);
    let vni = overlay_types::addr::Vni::new(7).unwrap();
    (own.vtep.vni, own.vtep.device, own.vtep.port) = (vni, "vtep7".parse().unwrap(), 4789);
    let overlays = vec![assignment("vxlan-1", 1), own];
    let message = Message::UpdateAgentOverlays { overlays, master: MasterKind::Other };
    world.agent.handle(world.now, Event::Message { from: MASTER.parse().unwrap(), message });
    let claims =
        std::iter::from_fn(|| world.agent.poll_command()).find_map(|command| match command {
            Command::Inspect { claims, .. } => Some(claims),
            _ => None,
        });
    let claims = claims.expect("the host is inspected");
    let vxlan_devices = claims.vxlan_devices.iter();
    let vxlan_devices: Vec<_> =
        vxlan_devices.map(|it| format!("{} {} {}", it.device, it.vni, it.port)).collect();
    assert_eq!(vxlan_devices, ["vtep1024 1024 64000", "vtep7 7 4789"]);
    let carried = claims.spaces.iter().map(|space| format!("{} {}", space.overlay, space.device));
    assert_eq!(carried.collect::<Vec<_>>(), ["vxlan-1 vtep1024", "vxlan-2 vtep7"]);
}

#[test]
fn duplicate_peer_underlay_keeps_first_and_names_second() {
    let options = AgentOptions {
        docker_bridge: false,
        underlay: "fd00::5".parse().ok(),
        ..AgentOptions::default()
    };
    let tunnel = TunnelSettings { programs: true, refuses_collisions: true };
    let mut world = World::with_tunnel(options, tunnel);
    world.set_up_tunnel();
    let mut update = table(1, &[2, 3, 4, 5]);
    let underlays = [(2, "fd00::9"), (3, "fd00::9"), (4, "fd00::5"), (5, "fd00::5")];
    for (number, underlay) in underlays {
        let info = update.changed.get_mut(&Ipv4Addr::new(10, 0, 0, number)).unwrap();
        info.underlay = underlay.parse().unwrap();
    }
    let digests = update.changed.iter().map(|(ip, info)| peer_digest(*ip, info));
    update.digest = digests.fold(0, u64::wrapping_add);
    let message = Message::UpdatePeers(std::sync::Arc::new(update));
    world.agent.handle(world.now, Event::Message { from: MASTER.parse().unwrap(), message });
    let desired = std::iter::from_fn(|| world.agent.poll_command()).find_map(|it| match it {
        Command::Program { desired, .. } => Some(desired),
        _ => None,
    });
    let (peers, faults) = validate_peers(&desired.expect("the peers are programmed"));
    let peers: Vec<_> = peers.iter().map(|(at, peer)| format!("{at} {}", peer.mac)).collect();
    assert_eq!(peers, ["fd00::9 70:b3:d5:80:00:02"]);
    let faults = faults.iter().map(|(agent, fault)| {
        let scope = FaultScope::Agent(*agent);
        Fault { scope, reason: format!("agent {agent}: {fault}") }
    });
    let report = world.finish_program(3, 3, faults.collect());
    assert_eq!(report, [REPORT], "the overlay has failed");
    let remedy =
        "set another underlay on one of the two agents, or delete one of them at the master";
    let expected = [(3, "fd00::9", 2), (4, "fd00::5", 5)].map(|(agent, at, other)| {
        format!(
            "agent 10.0.0.{agent}: its underlay address {at} belongs to agent 10.0.0.{other}: \
             {remedy}"
        )
    });
    let problems = world.health().problems;
    assert_eq!(problems[1..], expected);
    assert_eq!(
        problems[0],
        format!("vxlan-1: {}; and 1 more: see the agent's health", expected[0])
    );
    assert_eq!(world.health().dataplane.unwrap().status, "failed: 2 problems");
    assert_eq!(world.metrics(["peers_left_out"]), [2]);
}

#[test]
fn peer_faults_are_named_up_to_limit() {
    let mut world = world();
    world.set_up_tunnel();
    world.update_peers(1, &[2, 5]);
    let fault = |number: u32| Fault {
        scope: FaultScope::Agent(Ipv4Addr::from(number).into()),
        reason: format!("agent {number}: wrong"),
    };
    world.finish_program(3, 0, (0..1000).map(fault).collect());
    let problems = world.health().problems;
    assert_eq!(problems.len(), 1 + 64 + 1, "the overlay, peers, and the rest of them");
    let rest =
        "936 more problems with peers: 'mesos-overlay doctor --master MASTER' names them all";
    assert_eq!(problems.last().map(String::as_str), Some(rest));
    assert_eq!(world.metrics(["peers_left_out"]), [1000]);
}

#[test]
fn lost_probes_verify_everything_at_most_twice_a_minute() {
    const VERIFY: &str = "attempt 3: program everything for 1 overlays";
    const LOSS_INTERVAL: Duration = Duration::from_secs(30);
    let mut world = world();
    world.set_up_tunnel();
    let lose = |world: &mut World| {
        let now = world.now;
        world.agent.tunnel.handle_loss(now);
        world.handle(Event::Timeout)
    };
    assert_eq!(lose(&mut world), [VERIFY]);
    world.finish_program_unchanged(3);
    let first = world.now.elapsed;
    // The verification after the first changes.
    let attempt = world.next_program();
    world.finish_program_unchanged(attempt);
    assert!(world.now.elapsed < first + LOSS_INTERVAL);
    for _ in 0..2 {
        assert_eq!(lose(&mut world), NOTHING);
    }
    world.next_program();
    assert_eq!(world.now.elapsed, first + LOSS_INTERVAL);
}

/// Returns a table in which the agents offer direct routing.
fn direct_table(version: u64, numbers: &[u8]) -> PeersUpdate {
    let mut update = table(version, numbers);
    for (number, info) in numbers.iter().zip(update.changed.values_mut()) {
        info.peer.direct = Some(DirectPeer { mac: direct_mac(*number), is_used: false });
    }
    let digests = update.changed.iter().map(|(ip, info)| peer_digest(*ip, info));
    update.digest = digests.fold(0, u64::wrapping_add);
    update
}

fn direct_mac(number: u8) -> Mac {
    Mac::from([2, 0, 0, 0, 0, number])
}

/// Returns the result of a job that found the peer 10.0.0.2 reachable without encapsulation.
fn direct_result() -> Programmed {
    let link = DirectLink { device: "eth0".parse().unwrap(), mac: direct_mac(5) };
    let check = DirectCheck { mac: direct_mac(2), obstacle: None };
    let peers = [([10, 0, 0, 2].into(), check)].into();
    let direct = Some(DirectReport { link: Ok(link), peers });
    Programmed { direct, firewall: Some(firewall(false)), ..Programmed::default() }
}

#[test]
fn direct_path_is_used_after_both_announcements() {
    let mut world = world();
    world.agent.direct = Direct::new(true, None);
    world.agent.probes.learn_gateway(world.now, [10, 0, 0, 2].into(), [192, 168, 2, 1].into());
    world.set_up_tunnel();
    world.message(MASTER, Message::UpdatePeers(std::sync::Arc::new(direct_table(1, &[2, 3, 5]))));
    let commands = world.finish_program_with(3, direct_result());
    let register = format!("send RegisterAgentMessage to {MASTER}");
    assert!(commands.contains(&register), "the agent announces its device: {commands:?}");
    assert_eq!(world.metrics(["peers_direct", "peers_vxlan"]), [0, 2]);
    world.finish_program_with(4, direct_result());
    assert_eq!(world.metrics(["peers_direct", "peers_vxlan"]), [0, 2], "the peer learns of it");
    world.now.elapsed += 5 * SECOND;
    world.handle(Event::Timeout);
    for attempt in 5..10 {
        world.finish_program_with(attempt, direct_result());
    }
    assert_eq!(world.metrics(["peers_direct", "peers_vxlan"]), [1, 1]);
    let direct = world.health().dataplane.unwrap().direct_routing.unwrap();
    assert_eq!((direct.direct, direct.device), (vec!["10.0.0.2".to_owned()], Some("eth0".into())));
    assert_eq!(direct.vxlan[0].reason, "the path is not checked yet");
    // The peer withdraws its offer.
    world.update_peers(2, &[2, 3, 5]);
    for attempt in 6..30 {
        world.finish_program_with(attempt, direct_result());
    }
    assert_eq!(world.metrics(["peers_direct", "peers_vxlan"]), [0, 2]);
}
