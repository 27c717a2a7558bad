//! Tests of assignments that exceed the limits of a network.

use overlay_types::addr::{DeviceName, OverlayName, Subnet};
use overlay_types::container_network::NetworkKind;
use overlay_types::protocol::{AddressRange, AgentOptions, Assignment, Status};

use super::tests::{MASTER, NOTHING, REPORT, World, assignment};
use super::*;

const BEYOND: &str = "the master's assignment is beyond the limits of a network: ";

fn world() -> World {
    let options = AgentOptions { docker_bridge: false, ..AgentOptions::default() };
    World::with_tunnel(options, TunnelSettings { programs: true, refuses_collisions: false })
}

fn subnet(text: &str) -> Option<Subnet> {
    Some(text.parse().unwrap())
}

fn range(text: &str, prefix: u8) -> Option<AddressRange> {
    subnet(text).map(|subnet| AddressRange { subnet, prefix })
}

fn device(name: &str) -> DeviceName {
    name.parse().unwrap()
}

/// Returns an assignment with another overlay subnet and another subnet of the agent.
fn moved(overlay: &str, prefix: u8, own: &str) -> Assignment {
    let mut moved = assignment("vxlan-1", 1);
    moved.overlay.range = range(overlay, prefix);
    moved.subnet = subnet(own);
    let halves = moved.subnet.and_then(|own| own.halves());
    for (bridge, half) in [
        (&mut moved.mesos_bridge, halves.map(|(lower, _)| lower)),
        (&mut moved.docker_bridge, halves.map(|(_, upper)| upper)),
    ] {
        bridge.as_mut().unwrap().subnet = half;
    }
    moved
}

/// Returns the status of each overlay, without the common parts of the reasons.
fn statuses(world: &mut World) -> Vec<String> {
    let status = |assignment: &Assignment| match &assignment.status {
        Some(Status::Failed(reason)) => {
            let reason = reason.strip_prefix(BEYOND).unwrap_or(reason);
            let remedy = ": correct the master's network configuration";
            reason.strip_suffix(remedy).unwrap_or(reason).to_owned()
        }
        Some(other) => other.to_string(),
        None => String::new(),
    };
    world.info().overlays.iter().map(status).collect()
}

type Change = fn(&mut Assignment);

/// Asserts that the agent refuses an assignment with each of these changes.
fn assert_rejected(cases: &[(Change, &str)]) {
    for (change, reason) in cases {
        let mut world = world();
        world.detect();
        let mut bad = assignment("vxlan-1", 1);
        change(&mut bad);
        let commands = world.assign(vec![bad]);
        assert_eq!(statuses(&mut world), [*reason]);
        let programs = "attempt 1: program everything for 0 overlays".to_owned();
        assert!(commands.contains(&programs), "{commands:?}");
        assert!(!commands.iter().any(|command| command.contains("network of")), "{commands:?}");
        assert!(commands.contains(&REPORT.to_owned()), "no report: {commands:?}");
        let problems = world.health().problems;
        assert!(problems[0].starts_with(&format!("vxlan-1: {BEYOND}{reason}")), "{problems:?}");
    }
}

#[test]
fn address_space_beyond_limits_is_refused() {
    assert_rejected(&[
        (
            |it| *it = moved("127.0.0.0/8", 24, "127.0.1.0/24"),
            "'127.0.0.0/8' overlaps the loopback range 127.0.0.0/8",
        ),
        (
            |it| *it = moved("169.254.0.0/16", 24, "169.254.1.0/24"),
            "'169.254.0.0/16' overlaps the link-local range 169.254.0.0/16",
        ),
        (
            |it| *it = moved("224.0.0.0/4", 24, "224.0.1.0/24"),
            "'224.0.0.0/4' overlaps the multicast range 224.0.0.0/4",
        ),
        (
            |it| *it = moved("0.0.0.0/0", 24, "10.0.1.0/24"),
            "'0.0.0.0/0' overlaps the unspecified range 0.0.0.0/8",
        ),
        (
            |it| *it = moved("192.168.0.0/30", 30, "192.168.0.0/30"),
            "'192.168.0.0/30' is too small for agents",
        ),
        (
            |it| it.overlay.range = range("192.168.0.0/16", 30),
            "30 is too long: half of an agent's subnet has to hold network, gateway, container and \
             broadcast address",
        ),
        (|it| it.overlay.range = None, "the overlay has no address space"),
        (
            |it| it.overlay.range6 = range("fe80::/64", 80),
            "'fe80::/64' overlaps the link-local range fe80::/10",
        ),
        (
            |it| *it = moved("192.168.0.0/17", 24, "192.168.128.0/24"),
            "'192.168.128.0/24' of this agent is outside of the overlay's space, '192.168.0.0/17'",
        ),
        (
            |it| it.subnet6 = subnet("fd01:b::/80"),
            "'fd01:b::/80' of this agent is outside of the overlay's space, none",
        ),
        (
            |it| *it = moved("192.168.0.0/16", 29, "192.168.0.0/30"),
            "'192.168.0.0/30' of this agent has no halves that hold a container",
        ),
    ]);
}

#[test]
fn bridge_or_vtep_beyond_limits_is_refused() {
    assert_rejected(&[
        (
            |it| it.mesos_bridge.as_mut().unwrap().name = device("eth0"),
            "mesos_bridge is 'eth0' instead of 'm-vxlan-1'",
        ),
        (
            |it| it.docker_bridge.as_mut().unwrap().name = device("m-vxlan-1"),
            "docker_bridge is 'm-vxlan-1' instead of 'd-vxlan-1'",
        ),
        (
            |it| it.mesos_bridge.as_mut().unwrap().subnet = subnet("10.0.0.0/25"),
            "'10.0.0.0/25' of mesos_bridge is outside of the subnet of this agent",
        ),
        (
            |it| it.docker_bridge.as_mut().unwrap().subnet = subnet("192.168.1.0/25"),
            "'192.168.1.0/25' of mesos_bridge overlaps '192.168.1.0/25' of docker_bridge",
        ),
        (
            |it| it.mesos_bridge.as_mut().unwrap().subnet = subnet("192.168.1.0/31"),
            "'192.168.1.0/31' of mesos_bridge holds no container",
        ),
        (|it| it.vtep.device = device("eth0"), "VXLAN device 'eth0' does not begin with 'vtep'"),
        (
            |it| it.vtep.device = device("m-vxlan-1"),
            "VXLAN device 'm-vxlan-1' does not begin with 'vtep'",
        ),
        (
            |it| it.vtep.mac = "71:b3:d5:80:00:01".parse().unwrap(),
            "VTEP MAC address 71:b3:d5:80:00:01 is no unicast address",
        ),
        (
            |it| it.vtep.ip = "44.128.0.1/7".parse().unwrap(),
            "VTEP subnet '44.0.0.0/7' is too wide: MACs follow from the low 24 bits of VTEP addresses",
        ),
        (
            |it| it.vtep.ip = "44.128.0.0/16".parse().unwrap(),
            "VTEP address 44.128.0.0/16 is no host address",
        ),
        (
            |it| it.vtep.ip = "192.168.9.1/24".parse().unwrap(),
            "'192.168.0.0/16' overlaps VTEP subnet '192.168.9.0/24'",
        ),
    ]);
}

#[test]
fn contradictory_assignments_are_refused_after_first() {
    let cases: [(Change, &str); 5] = [
        (
            |it| it.vtep.mac = "70:b3:d5:80:00:02".parse().unwrap(),
            "the addresses of its VTEP differ from those of overlay vxlan-1",
        ),
        (
            |it| it.vtep.ip = "44.129.0.1/16".parse().unwrap(),
            "the addresses of its VTEP differ from those of overlay vxlan-1",
        ),
        (
            |it| it.vtep.vni = overlay_types::addr::Vni::new(7).unwrap(),
            "device vtep1024 differs from device vtep1024 of overlay vxlan-1",
        ),
        (
            |it| it.vtep.device = device("vtep7"),
            "VNI 1024 belongs to device vtep1024 of overlay vxlan-1",
        ),
        (
            |it| it.overlay.name = "VXLAN-1".parse().unwrap(),
            "its name differs from 'vxlan-1' in case only",
        ),
    ];
    for (change, reason) in cases {
        let mut world = world();
        world.detect();
        let mut second = assignment("vxlan-2", 2);
        change(&mut second);
        let name = second.name().clone();
        for (bridge, bridge_name) in [
            (&mut second.mesos_bridge, name.mesos_bridge()),
            (&mut second.docker_bridge, name.docker_bridge()),
        ] {
            bridge.as_mut().unwrap().name = bridge_name;
        }
        world.assign(vec![assignment("vxlan-1", 1), second]);
        assert_eq!(statuses(&mut world), ["configuring", reason]);
    }
}

#[test]
fn overlapping_overlay_is_refused() {
    let mut world = world();
    world.detect();
    let mut second = moved("192.168.0.0/17", 24, "192.168.2.0/24");
    let name: OverlayName = "other".parse().unwrap();
    second.mesos_bridge.as_mut().unwrap().name = name.mesos_bridge();
    second.docker_bridge.as_mut().unwrap().name = name.docker_bridge();
    second.overlay.name = name;
    world.assign(vec![assignment("vxlan-1", 1), second]);
    let reason = "'192.168.0.0/17' overlaps '192.168.0.0/16' of overlay vxlan-1";
    assert_eq!(statuses(&mut world), ["configuring", reason]);
}

#[test]
fn refused_assignment_keeps_previous_overlay() {
    let mut world = world();
    world.detect();
    world.assign(vec![assignment("vxlan-1", 1)]);
    world.finish_program_unchanged(1);
    world.finish_attempt(1, NetworkKind::Cni, Ok(()));
    world.acknowledge();
    assert_eq!(world.health().status, Condition::Ok);

    let bad = moved("127.0.0.0/8", 24, "127.0.1.0/24");
    let commands = world.assign(vec![bad.clone()]);
    let ask = "send RequestPeersMessage with version 0.0 to overlay-master@10.0.0.1:5050";
    assert_eq!(commands, ["retain 1 cni configurations", REPORT, ask], "nothing is programmed");
    let reason = "'127.0.0.0/8' overlaps the loopback range 127.0.0.0/8";
    assert_eq!(statuses(&mut world), [reason]);
    assert_eq!(
        world.info().overlays[0].subnet,
        subnet("192.168.1.0/24"),
        "the previous subnet stays"
    );
    world.acknowledge();
    assert_eq!(world.health().status, Condition::Degraded);
    // The verification of the network continues.
    while !world.advance().contains(&"attempt 2: cni network of vxlan-1".to_owned()) {}

    // A valid assignment takes precedence over the previous overlay.
    let mut other = assignment("vxlan-1", 1);
    other.overlay.name = "other".parse().unwrap();
    for bridge in [&mut other.mesos_bridge, &mut other.docker_bridge] {
        let bridge = bridge.as_mut().unwrap();
        bridge.name = device(&bridge.name.as_str().replace("vxlan-1", "other"));
    }
    world.assign(vec![bad, other]);
    assert_eq!(statuses(&mut world), [reason, "configuring"]);
    assert_eq!(
        world.info().overlays[0].subnet,
        subnet("127.0.1.0/24"),
        "the previous subnet is not used"
    );

    // The master is corrected.
    world.assign(vec![assignment("vxlan-1", 1)]);
    assert_eq!(statuses(&mut world), ["configuring"]);
}

#[test]
fn corrected_assignment_is_configured() {
    let mut world = world();
    world.detect();
    let mut bad = assignment("vxlan-1", 1);
    bad.mesos_bridge.as_mut().unwrap().name = device("eth0");
    world.assign(vec![bad.clone()]);
    world.finish_program_unchanged(1);
    assert_eq!(world.assign(vec![bad])[..1], [REPORT.to_owned()], "the assignment is repeated");
    world.assign(vec![assignment("vxlan-1", 1)]);
    let commands = world.finish_program_unchanged(2);
    assert!(commands.contains(&"attempt 1: cni network of vxlan-1".to_owned()), "{commands:?}");
    assert_eq!(statuses(&mut world), ["configuring"]);
}

#[test]
fn message_with_too_many_overlays_is_refused() {
    let mut world = world();
    world.detect();
    world.assign(vec![assignment("vxlan-1", 1)]);
    world.finish_program_unchanged(1);
    world.finish_attempt(1, NetworkKind::Cni, Ok(()));
    world.acknowledge();
    let many = |count: u32| {
        let named = |number: u32| {
            let mut assignment = assignment("vxlan-1", 1);
            assignment.overlay.name = format!("o{number}").parse().unwrap();
            assignment
        };
        (0..count).map(named).collect::<Vec<_>>()
    };
    assert_eq!(world.assign(many(2000)), NOTHING);
    let problem = |reason: &str| {
        format!(
            "refused the assignment of master {MASTER}: {reason}: the present configuration stays; \
             correct the master's network configuration"
        )
    };
    let count = problem("it has 2000 overlays, and a network has at most 128");
    assert_eq!(world.health().problems, [count]);
    assert_eq!(world.health().status, Condition::Degraded);
    let malformed = Event::Malformed {
        from: MASTER.parse().unwrap(),
        name: MessageKind::UpdateAgentOverlays.name().to_owned(),
        reason: "overlays: has more than 128 entries".to_owned(),
    };
    assert_eq!(world.handle(malformed), NOTHING);
    assert_eq!(world.health().problems, [problem("overlays: has more than 128 entries")]);
    let twice = vec![assignment("vxlan-2", 2), assignment("vxlan-2", 2)];
    assert_eq!(world.assign(twice), NOTHING);
    assert_eq!(world.health().problems, [problem("it names overlay vxlan-2 twice")]);
    assert_eq!(world.metrics(["internal/update_agent_overlays_messages_dropped"]), [3]);
    assert_eq!(statuses(&mut world), ["ok"], "the current configuration stays");
    world.assign(vec![assignment("vxlan-1", 1)]);
    assert_eq!(world.health().problems, [""; 0]);
    // The limit is 128 overlays.
    world.assign(many(128));
    assert_eq!(world.info().overlays.len(), 128);
}
