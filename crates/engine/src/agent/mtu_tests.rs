//! Tests of the MTU of the containers.

use overlay_types::addr::Mtu;
use overlay_types::container_network::ContainerNetwork;
use overlay_types::protocol::AgentOptions;
use overlay_types::tunnel::{ContainersMtu, UnderlayMtu};

use super::tests::{NOTHING, REPORT, World, assignment};
use super::tunnel_tests::firewall;
use super::*;

const CNI: &str = "attempt 1: cni network of vxlan-1";

fn mtu(bytes: u32) -> Mtu {
    Mtu::new(bytes).unwrap()
}

fn programmed(underlay: Option<(u32, bool)>) -> Programmed {
    Programmed {
        firewall: Some(firewall(false)),
        underlay_mtu: underlay.map(|(bytes, is_routed)| UnderlayMtu { mtu: mtu(bytes), is_routed }),
        ..Programmed::default()
    }
}

/// Returns an agent whose first program job runs.
fn programming(options: AgentOptions) -> World {
    let options = AgentOptions { docker_bridge: false, ..options };
    let tunnel = TunnelSettings { programs: true, refuses_collisions: true };
    let mut world = World::with_tunnel(options, tunnel);
    world.detect();
    world.assign_from_program(vec![assignment("vxlan-1", 1)]);
    world.finish_inspection(1, Vec::new());
    world
}

/// Ends a program job, and returns the MTU of the container networks that are configured then.
fn applied_mtus(world: &mut World, attempt: u64, underlay: (u32, bool)) -> Vec<u32> {
    let event = Event::Programmed { attempt, result: programmed(Some(underlay)) };
    world.agent.handle(world.now, event);
    let commands = std::iter::from_fn(|| world.agent.poll_command());
    let networks = commands.filter_map(|command| match command {
        Command::Apply { network: ContainerNetwork::Cni(network), .. } => Some(network.mtu.bytes()),
        _ => None,
    });
    networks.collect()
}

fn programmed_mtu(world: &World) -> Option<ContainersMtu> {
    world.agent.tunnel.programmed().unwrap().vxlan_devices[0].containers_mtu
}

#[test]
fn containers_get_mtu_of_underlay_less_80() {
    for (underlay, expected) in [(1500, 1420), (9000, 8920), (1460, 1380), (576, 496)] {
        let mut world = programming(AgentOptions::default());
        assert_eq!(applied_mtus(&mut world, 2, (underlay, true)), [expected]);
        assert_eq!(programmed_mtu(&world), None, "the MTU was unknown");
        world.finish_program_with(3, programmed(Some((underlay, true))));
        assert_eq!(programmed_mtu(&world), Some(ContainersMtu::Derived(mtu(expected))));
    }
}

#[test]
fn configured_mtu_is_kept() {
    let options = AgentOptions { overlay_mtu: Some(mtu(1300)), ..AgentOptions::default() };
    let mut world = programming(options);
    assert_eq!(applied_mtus(&mut world, 2, (9000, false)), [1300]);
    assert_eq!(programmed_mtu(&world), Some(ContainersMtu::Configured(mtu(1300))));
    world.finish_attempt(1, NetworkKind::Cni, Ok(()));
    let attempt = world.next_program();
    assert_eq!(applied_mtus(&mut world, attempt, (1400, true)), [0; 0]);
}

#[test]
fn changed_underlay_changes_networks_and_tunnel() {
    let mut world = programming(AgentOptions::default());
    assert_eq!(applied_mtus(&mut world, 2, (1500, true)), [1420]);
    world.finish_attempt(1, NetworkKind::Cni, Ok(()));
    world.finish_program_with(3, programmed(Some((1500, true))));
    world.handle(Event::Drifted(Scope::Kernel));
    let attempt = world.next_program();
    assert_eq!(applied_mtus(&mut world, attempt, (1400, true)), [1320]);
    world.finish_program_with(attempt + 1, programmed(Some((1400, true))));
    assert_eq!(programmed_mtu(&world), Some(ContainersMtu::Derived(mtu(1320))));
    // An underlay that is gone changes nothing.
    world.handle(Event::Drifted(Scope::Kernel));
    let attempt = world.next_program();
    world.finish_program_with(attempt, programmed(None));
    assert_eq!(world.agent.overlays.underlay_mtu(), Some(mtu(1400)));
}

#[test]
fn first_networks_wait_for_routes_to_peers() {
    let mut world = programming(AgentOptions::default());
    assert_eq!(applied_mtus(&mut world, 2, (9000, false)), [0; 0]);
    // The MTU of the own device is known, that of the routes to the peers follows.
    world.finish_program_with(3, programmed(Some((9000, false))));
    let commands = world.update_peers(1, &[1, 2]);
    assert_eq!(commands, ["attempt 4: program the change for 1 overlays, 2 peers"]);
    assert_eq!(applied_mtus(&mut world, 4, (1400, true)), [1320]);
}

#[test]
fn first_networks_do_not_wait_long_for_peers() {
    let mut world = programming(AgentOptions::default());
    assert_eq!(applied_mtus(&mut world, 2, (1500, false)), [0; 0]);
    let start = world.now.elapsed;
    world.finish_program_with(3, programmed(Some((1500, false))));
    while !world.advance().iter().any(|command| command == CNI) {
        assert!(world.now.elapsed - start < Duration::from_secs(4), "the network is configured");
    }
}

#[test]
fn kept_mtu_is_named_and_overlay_stays_ok() {
    let mut world = programming(AgentOptions::default());
    applied_mtus(&mut world, 2, (1500, true));
    let note = "docker network vxlan-1 keeps an MTU of 1400".to_owned();
    let applied = |attempt, note| Event::Applied {
        attempt,
        overlay: "vxlan-1".parse().unwrap(),
        kind: NetworkKind::Cni,
        details: NetworkDetails { note, plugin: Some("bridge") },
        result: Ok(()),
    };
    assert_eq!(world.handle(applied(1, Some(note.clone()))), [REPORT]);
    assert_eq!(world.acknowledge(), NOTHING);
    let container_problems = vec!["1 container with an MTU of 1400".to_owned()];
    let result = Programmed {
        container_problems: container_problems.clone(),
        ..programmed(Some((1500, true)))
    };
    world.finish_program_with(3, result);
    let health = world.health();
    assert_eq!(health.status, Condition::Degraded);
    assert_eq!(health.problems, [container_problems[0].clone(), note]);
    assert_eq!(health.networks[0].status, "ok");
    assert_eq!(health.networks[0].plugin, Some("bridge"));
}

#[test]
fn external_tunnels_follow_device_of_agent() {
    let options = AgentOptions { docker_bridge: false, ..AgentOptions::default() };
    let tunnel = TunnelSettings { programs: false, refuses_collisions: true };
    let mut world = World::with_tunnel(options, tunnel);
    world.detect();
    world.assign_from_program(vec![assignment("vxlan-1", 1)]);
    let underlay_mtu = Some(UnderlayMtu { mtu: mtu(1460), is_routed: false });
    let event = Event::Inspected { attempt: 1, underlay_mtu, result: Ok(Vec::new()) };
    world.agent.handle(world.now, event);
    let mut commands = std::iter::from_fn(|| world.agent.poll_command());
    let network = commands.find_map(|command| match command {
        Command::Apply { network: ContainerNetwork::Cni(network), .. } => Some(network.mtu),
        _ => None,
    });
    assert_eq!(network, Some(mtu(1380)));
}
