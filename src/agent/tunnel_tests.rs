//! The agent and the network of its host: what is inspected and programmed, and when.

use std::collections::BTreeSet;

use super::tests::{MASTER, NOTHING, REPORT, World, assignment};
use super::*;
use crate::protocol::{PeerInfo, PeersHave, digest_of};
use crate::tunnel::{
    Claimant, Collision, Fault, HostRoute, Obstacle, Part, Peer, PeerFault, checked_peers,
};

const SECOND: Duration = Duration::from_secs(1);
const INSPECT: &str = "attempt 1: inspect for 1 overlays";
const ASK: &str = "send RequestPeersMessage with version 0.0 to overlay-master@10.0.0.1:5050";

fn world() -> World {
    let options = AgentOptions { docker_bridge: false, ..AgentOptions::default() };
    let tunnel = TunnelSettings { programs: true, refuses_collisions: true };
    World::with_tunnel(options, tunnel)
}

impl World {
    fn inspected(&mut self, attempt: u64, collisions: Vec<Collision>) -> Vec<String> {
        self.after(Event::Inspected { attempt, result: Ok(collisions) })
    }

    fn programmed(&mut self, attempt: u64, changes: u64, faults: Vec<Fault>) -> Vec<String> {
        let examples = (0..changes.min(1)).map(|_| "add route".to_owned()).collect();
        self.after(Event::Programmed { attempt, result: Programmed { changes, examples, faults } })
    }

    /// Assigned, inspected and programmed, but not told of peers.
    fn is_programmed(&mut self) {
        self.detect();
        assert_eq!(
            self.update(vec![assignment("vxlan-1", 1)]),
            ["retain 1 cni configurations", ASK, INSPECT]
        );
        assert_eq!(
            self.inspected(1, Vec::new()),
            ["attempt 2: program everything for 1 overlays", "attempt 1: cni network of vxlan-1"]
        );
        assert_eq!(self.applied(1, NetworkKind::Cni, Ok(())), NOTHING, "it is not all yet");
        assert_eq!(self.programmed(2, 9, Vec::new()), [REPORT]);
        assert_eq!(self.acknowledge(), NOTHING);
        assert_eq!(self.health().status, Condition::Ok);
        assert_eq!(self.health().dataplane.unwrap().status, "ok");
    }

    /// The host is as it is wanted.
    pub(super) fn programmed_well(&mut self, attempt: u64) -> Vec<String> {
        self.programmed(attempt, 0, Vec::new())
    }

    /// Waits until something is programmed, and says which attempt that is. What is looked at
    /// before is in order.
    fn programs(&mut self) -> u64 {
        let mut commands = self.sleep();
        loop {
            let number = |it: &String| it.split([' ', ':']).nth(1).and_then(|it| it.parse().ok());
            let find = |word| commands.iter().find(|it| it.contains(word)).and_then(number);
            if let Some(attempt) = find(": program ") {
                return attempt;
            }
            commands = match find(": inspect ") {
                Some(attempt) => self.inspected(attempt, Vec::new()),
                None => self.sleep(),
            };
        }
    }

    fn told(&mut self, version: u64, numbers: &[u8]) -> Vec<String> {
        self.message(MASTER, Message::UpdatePeers(std::sync::Arc::new(table(version, numbers))))
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
        };
        (ip, PeerInfo { underlay: ip.into(), peer })
    };
    let changed: std::collections::BTreeMap<_, _> = numbers.iter().map(info).collect();
    let digest = changed.iter().fold(0, |sum: u64, (ip, it)| sum.wrapping_add(digest_of(*ip, it)));
    PeersUpdate { epoch: 1, version, digest, base: None, changed, removed: BTreeSet::new() }
}

fn collision() -> Collision {
    Collision {
        claimant: Claimant::Overlay("vxlan-1".parse().unwrap()),
        subnet: "192.168.0.0/16".parse().unwrap(),
        obstacle: Obstacle::Route(HostRoute {
            subnet: "192.168.7.0/24".parse().unwrap(),
            device: Some("eth0".to_owned()),
            gateway: None,
            is_ours: false,
        }),
        is_late: false,
    }
}

#[test]
fn an_agent_inspects_programs_and_reports() {
    let mut world = world();
    world.is_programmed();
    assert_eq!(
        world.told(1, &[1, 2, 5]),
        ["attempt 3: program the change for 1 overlays, 2 peers"]
    );
    assert_eq!(world.programmed(3, 6, Vec::new()), NOTHING);
    assert_eq!(world.health().dataplane.unwrap().peers, Some(3));
    assert_eq!(world.told(2, &[1, 2, 5]), NOTHING, "the same again");
    assert_eq!(world.metrics(["dataplane_changes", "dataplane_repairs", "peers"]), [15, 0, 3]);
}

#[test]
fn nothing_is_touched_before_the_master_has_assigned() {
    let mut world = world();
    world.detect();
    assert_eq!(world.told(1, &[1, 2, 5]), NOTHING);
    assert_eq!(world.after(Event::Drifted(Scope::Kernel)), NOTHING);
}

#[test]
fn what_changes_while_the_host_is_programmed_is_done_after_it_at_once() {
    let mut world = world();
    world.is_programmed();
    assert_eq!(world.told(1, &[1, 5]), ["attempt 3: program the change for 1 overlays, 1 peers"]);
    assert_eq!(world.told(2, &[1, 2, 5]), NOTHING);
    assert_eq!(world.told(3, &[1, 2, 3, 5]), NOTHING);
    assert_eq!(
        world.programmed(3, 3, Vec::new()),
        ["attempt 4: program the change for 1 overlays, 3 peers"]
    );
}

#[test]
fn an_overlay_that_collides_with_the_host_is_refused_and_nothing_of_it_is_made() {
    let mut world = world();
    world.detect();
    world.update(vec![assignment("vxlan-1", 1)]);
    assert_eq!(
        world.inspected(1, vec![collision()]),
        [REPORT, "attempt 2: program everything for 0 overlays"]
    );
    let reason = "subnet 192.168.0.0/16 of overlay vxlan-1 collides with the host's route \
                  '192.168.7.0/24 dev eth0': give the overlay another subnet at the master, or \
                  give this host another address";
    let status = world.info().overlays[0].status.clone();
    assert_eq!(status, Some(crate::protocol::Status::Failed(reason.to_owned())));
    assert_eq!(world.programmed(2, 0, Vec::new()), NOTHING);
    assert_eq!(world.acknowledge(), NOTHING);
    assert_eq!(world.health().status, Condition::Degraded);
    // The operator has mended it.
    let commands = loop {
        let commands = world.sleep();
        if commands.iter().any(|command| command.contains("inspect")) {
            break commands;
        }
    };
    assert_eq!(commands, ["attempt 3: inspect for 1 overlays"]);
    assert_eq!(
        world.inspected(3, Vec::new()),
        ["attempt 4: program everything for 1 overlays", "attempt 1: cni network of vxlan-1"]
    );
}

#[test]
fn a_collision_that_comes_later_takes_nothing_away() {
    let mut world = world();
    world.is_programmed();
    while !world.sleep().iter().any(|command| command.contains("inspect")) {}
    assert_eq!(
        world.inspected(3, vec![collision()]),
        ["attempt 4: program everything for 1 overlays"]
    );
    assert_eq!(world.programmed(4, 0, Vec::new()), NOTHING);
    let health = world.health();
    assert_eq!(health.status, Condition::Degraded);
    assert!(health.problems[0].contains("route '192.168.7.0/24 dev eth0'"), "{health:?}");
}

#[test]
fn an_overlay_that_was_in_use_before_a_restart_stays_so() {
    let mut world = world();
    world.detect();
    world.update(vec![assignment("vxlan-1", 1)]);
    let late = Collision { is_late: true, ..collision() };
    assert_eq!(
        world.inspected(1, vec![late.clone()]),
        ["attempt 2: program everything for 1 overlays", "attempt 1: cni network of vxlan-1"]
    );
    assert_eq!(world.applied(1, NetworkKind::Cni, Ok(())), NOTHING);
    assert_eq!(world.programmed(2, 0, Vec::new()), [REPORT]);
    world.acknowledge();
    let health = world.health();
    assert_eq!(health.status, Condition::Degraded);
    assert!(health.problems[0].contains("route '192.168.7.0/24 dev eth0'"), "{health:?}");
    // What was not programmed counts, whatever else is.
    let mut world = self::world();
    world.detect();
    world.update(vec![assignment("vxlan-1", 1)]);
    assert_eq!(
        world.inspected(1, vec![late, collision()]),
        [REPORT, "attempt 2: program everything for 0 overlays"]
    );
}

#[test]
fn what_cannot_be_looked_at_is_not_touched_and_is_tried_again() {
    let mut world = world();
    world.detect();
    world.update(vec![assignment("vxlan-1", 1)]);
    let fails = |attempt| Event::Inspected { attempt, result: Err("no buffers".to_owned()) };
    assert_eq!(world.after(fails(1)), [REPORT], "nothing is programmed");
    let status = world.info().overlays[0].status.clone();
    assert_eq!(status, Some(crate::protocol::Status::Failed("no buffers".to_owned())));
    world.acknowledge();
    let start = world.now.elapsed;
    while !world.sleep().iter().any(|command| command.contains("attempt 2: inspect")) {}
    assert!(world.now.elapsed - start <= 2 * SECOND);
    assert_eq!(
        world.inspected(2, Vec::new()),
        ["attempt 3: program everything for 1 overlays", "attempt 1: cni network of vxlan-1"]
    );
}

#[test]
fn drift_is_repaired_soon_and_counted_and_a_fight_slows_down() {
    let mut world = world();
    world.is_programmed();
    let mut pauses = Vec::new();
    for _ in 0..40 {
        let start = world.now.elapsed;
        assert_eq!(world.after(Event::Drifted(Scope::Kernel)), NOTHING);
        let attempt = world.programs();
        pauses.push((world.now.elapsed - start).as_millis());
        assert_eq!(world.programmed(attempt, 1, Vec::new()), NOTHING);
    }
    assert_eq!(pauses[..4], [20, 200, 200, 200], "one thing after the other");
    assert!(pauses[..16].iter().all(|pause| *pause <= 200), "{pauses:?}");
    assert!(pauses[30..].iter().all(|pause| *pause > 5000), "whoever does not stop: {pauses:?}");
    // Its own changes are heard as well: looking finds nothing, and that is no repair.
    world.after(Event::Drifted(Scope::Kernel));
    let attempt = world.programs();
    assert_eq!(world.programmed(attempt, 0, Vec::new()), NOTHING);
    assert_eq!(world.metrics(["dataplane_repairs"]), [40]);
    assert_eq!(world.health().dataplane.unwrap().last_repair.as_deref(), Some("add route"));
}

#[test]
fn both_kinds_of_drift_are_looked_at_together() {
    let mut world = world();
    world.is_programmed();
    world.after(Event::Drifted(Scope::Kernel));
    world.after(Event::Drifted(Scope::Firewall));
    assert_eq!(world.sleep(), ["attempt 3: program everything for 1 overlays"]);
}

#[test]
fn what_fails_is_in_the_status_of_the_overlays_concerned_and_is_tried_again() {
    let mut world = world();
    world.is_programmed();
    world.told(1, &[1, 2, 5]);
    let part = Part::Subnet("192.168.2.0/24".parse().unwrap());
    let fault = Fault { part, reason: "add route: refused: remove it".to_owned() };
    let other = Fault { part: Part::Device("vtep9".parse().unwrap()), reason: "no".to_owned() };
    assert_eq!(world.programmed(3, 3, vec![fault.clone(), other]), [REPORT]);
    let failed = crate::protocol::Status::Failed(fault.reason);
    assert_eq!(world.info().overlays[0].status, Some(failed));
    assert_eq!(world.health().problems.len(), 3, "the overlay and both faults");
    let start = world.now.elapsed;
    assert_eq!(world.sleep(), ["attempt 4: inspect for 1 overlays"]);
    assert!(world.now.elapsed - start <= SECOND);
    assert_eq!(world.acknowledge(), NOTHING);
    assert_eq!(
        world.inspected(4, Vec::new()),
        ["attempt 5: program everything for 1 overlays, 2 peers"]
    );
    assert_eq!(world.programmed(5, 1, Vec::new()), [REPORT], "mended");
    assert_eq!(world.info().overlays[0].status, Some(crate::protocol::Status::Ok));
}

#[test]
fn a_hostile_peer_is_a_fault_of_its_overlays_only() {
    let agents = desired(
        Ipv4Addr::new(10, 0, 0, 5),
        &world().agent.settings,
        [assignment("vxlan-1", 5)].iter(),
        Some(std::collections::BTreeMap::from([(
            "192.168.9.9".parse().unwrap(),
            table(1, &[9]).changed.remove(&Ipv4Addr::new(10, 0, 0, 9)).unwrap().peer,
        )])),
    );
    let (peers, faults) = checked_peers(&agents);
    assert!(peers.is_empty());
    assert!(matches!(faults[..], [(_, PeerFault::InsideOverlay(..))]), "{faults:?}");
    assert!(agents.is_hit(&"vxlan-1".parse().unwrap(), &Part::Agent(faults[0].0)));
    assert!(!agents.is_hit(&"vxlan-2".parse().unwrap(), &Part::Agent(faults[0].0)));
}

#[test]
fn a_master_that_tells_of_no_peers_is_named() {
    let mut world = world();
    world.is_programmed();
    for _ in 0..4 {
        while !world.sleep().iter().any(|command| command.contains("RequestPeers")) {
            // What is due besides has its answer, so that time goes on.
            for attempt in 3..20 {
                world.inspected(attempt, Vec::new());
                world.programmed(attempt, 0, Vec::new());
            }
        }
    }
    let health = world.health();
    assert!(health.problems.iter().any(|it| it.contains("does not tell")), "{health:?}");
}

#[test]
fn an_agent_without_a_tunnel_of_its_own_still_refuses_collisions() {
    let options = AgentOptions { docker_bridge: false, ..AgentOptions::default() };
    let mut world =
        World::with_tunnel(options, TunnelSettings { programs: false, refuses_collisions: true });
    world.detect();
    assert_eq!(
        world.update(vec![assignment("vxlan-1", 1)]),
        ["retain 1 cni configurations", INSPECT]
    );
    assert_eq!(world.inspected(1, Vec::new()), ["attempt 1: cni network of vxlan-1"]);
    assert_eq!(world.applied(1, NetworkKind::Cni, Ok(())), [REPORT]);
    assert_eq!(world.health().dataplane.unwrap().status, "external");
}

#[test]
fn another_master_is_asked_with_what_the_agent_has() {
    let mut world = world();
    world.is_programmed();
    world.told(7, &[1, 2, 5]);
    world.programmed(3, 3, Vec::new());
    let other: SocketAddrV4 = "10.0.0.9:5050".parse().unwrap();
    world.after(Event::Detected(Some(other)));
    while !world.sleep().iter().any(|command| command.contains("RegisterAgent")) {}
    let assigned = vec![assignment("vxlan-1", 1)];
    let from = "overlay-master@10.0.0.9:5050";
    world.agent.handle(
        world.now,
        Event::Message {
            from: from.parse().unwrap(),
            message: Message::UpdateAgentOverlays(assigned),
        },
    );
    let sent: Vec<_> = std::iter::from_fn(|| world.agent.poll_command()).collect();
    let digest = table(7, &[1, 2, 5]).digest;
    let have = Message::RequestPeers(PeersHave { epoch: 1, version: 7, digest });
    let to: Upid = from.parse().unwrap();
    assert!(sent.contains(&Command::Send { to, message: have }), "{sent:?}");
}

#[test]
fn where_collisions_are_allowed_nobody_inspects() {
    let options = AgentOptions { docker_bridge: false, ..AgentOptions::default() };
    let tunnel = TunnelSettings { programs: true, refuses_collisions: false };
    let mut world = World::with_tunnel(options, tunnel);
    world.detect();
    assert_eq!(
        world.update(vec![assignment("vxlan-1", 1)]),
        [
            "retain 1 cni configurations",
            ASK,
            "attempt 1: program everything for 1 overlays",
            "attempt 1: cni network of vxlan-1"
        ]
    );
    assert_eq!(world.applied(1, NetworkKind::Cni, Ok(())), NOTHING);
    assert_eq!(world.programmed(1, 9, Vec::new()), [REPORT]);
    assert_eq!(world.acknowledge(), NOTHING);
    // Others may have changed something while we did.
    while !world.sleep().iter().any(|it| it == "attempt 2: program everything for 1 overlays") {}
    assert_eq!(world.now.elapsed.as_secs(), 10);
    assert_eq!(world.programmed(2, 0, Vec::new()), NOTHING);
    let verified = world.now.elapsed;
    // Rules that are not ours are changed all the time.
    assert_eq!(world.after(Event::Drifted(Scope::Firewall)), NOTHING);
    assert_eq!(world.sleep(), ["attempt 3: program the firewall for 1 overlays"]);
    assert_eq!((world.now.elapsed - verified).as_millis(), 500);
    assert_eq!(world.programmed(3, 0, Vec::new()), NOTHING);
    while !world.sleep().iter().any(|it| it == "attempt 4: program everything for 1 overlays") {}
    assert_eq!((world.now.elapsed - verified).as_secs(), 60);
}

#[test]
fn overlays_with_a_vni_of_their_own_are_on_devices_of_their_own() {
    let mut world = world();
    world.detect();
    let mut own = assignment("vxlan-2", 2);
    let vni = crate::addr::Vni::new(7).unwrap();
    (own.vtep.vni, own.vtep.device, own.vtep.port) = (vni, "vtep7".parse().unwrap(), 4789);
    let overlays = vec![assignment("vxlan-1", 1), own];
    let message = Message::UpdateAgentOverlays(overlays);
    world.agent.handle(world.now, Event::Message { from: MASTER.parse().unwrap(), message });
    let claims =
        std::iter::from_fn(|| world.agent.poll_command()).find_map(|command| match command {
            Command::Inspect { claims, .. } => Some(claims),
            _ => None,
        });
    let claims = claims.expect("the host is looked at");
    let locals = claims.locals.iter();
    let locals: Vec<_> = locals.map(|it| format!("{} {} {}", it.device, it.vni, it.port)).collect();
    assert_eq!(locals, ["vtep1024 1024 64000", "vtep7 7 4789"]);
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
    world.is_programmed();
    let mut update = table(1, &[2, 3, 4, 5]);
    let underlays = [(2, "fd00::9"), (3, "fd00::9"), (4, "fd00::5"), (5, "fd00::5")];
    for (number, underlay) in underlays {
        let info = update.changed.get_mut(&Ipv4Addr::new(10, 0, 0, number)).unwrap();
        info.underlay = underlay.parse().unwrap();
    }
    let digests = update.changed.iter().map(|(ip, info)| digest_of(*ip, info));
    update.digest = digests.fold(0, u64::wrapping_add);
    let message = Message::UpdatePeers(std::sync::Arc::new(update));
    world.agent.handle(world.now, Event::Message { from: MASTER.parse().unwrap(), message });
    let desired = std::iter::from_fn(|| world.agent.poll_command()).find_map(|it| match it {
        Command::Program { desired, .. } => Some(desired),
        _ => None,
    });
    let (peers, faults) = checked_peers(&desired.expect("it is programmed"));
    let peers: Vec<_> = peers.iter().map(|(at, peer)| format!("{at} {}", peer.mac)).collect();
    assert_eq!(peers, ["fd00::9 70:b3:d5:80:00:02"]);
    let faults = faults.iter().map(|(agent, fault)| {
        let part = Part::Agent(*agent);
        Fault { part, reason: format!("agent {agent}: {fault}") }
    });
    let report = world.programmed(3, 3, faults.collect());
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
fn faults_of_many_peers_are_named_up_to_a_limit() {
    let mut world = world();
    world.is_programmed();
    world.told(1, &[2, 5]);
    let fault = |number: u32| Fault {
        part: Part::Agent(Ipv4Addr::from(number).into()),
        reason: format!("agent {number}: wrong"),
    };
    world.programmed(3, 0, (0..1000).map(fault).collect());
    let problems = world.health().problems;
    assert_eq!(problems.len(), 1 + 64 + 1, "the overlay, peers, and the rest of them");
    let rest =
        "936 more problems with peers: 'mesos-overlay doctor --master MASTER' names them all";
    assert_eq!(problems.last().map(String::as_str), Some(rest));
    assert_eq!(world.metrics(["peers_left_out"]), [1000]);
}
