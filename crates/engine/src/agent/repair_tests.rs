//! Tests of what follows from changes by other processes: container networks that were removed,
//! leases, and warnings.

use overlay_types::container_network::NetworkKind;
use overlay_types::protocol::AgentOptions;

use super::tests::{MASTER, World, assignment};
use super::*;

/// Returns an agent with a tunnel whose CNI and Docker networks are ready, at the time of its next
/// program job, and the number of that job.
fn world() -> (World, u64) {
    let options = AgentOptions { docker_bridge: true, ..AgentOptions::default() };
    let tunnel = TunnelSettings { programs: true, refuses_collisions: false };
    let mut world = World::with_tunnel(options, tunnel);
    world.detect();
    world.assign(vec![assignment("vxlan-1", 1)]);
    let firewall = FirewallState {
        backend: "nftables",
        inner_check: Some("pair"),
        keeps_agents: false,
        forwarding: "tracked",
    };
    let result = Programmed { firewall: Some(firewall), ..Programmed::default() };
    world.handle(Event::Programmed { attempt: 1, result });
    world.finish_attempt(1, NetworkKind::Cni, Ok(()));
    world.finish_attempt(2, NetworkKind::Docker, Ok(()));
    world.handle(Event::Removed(Ok(Vec::new())));
    world.message(MASTER, Message::AgentRegisteredAcknowledgement);
    let attempt = world.next_program();
    (world, attempt)
}

#[test]
fn docker_network_of_removed_bridge_is_verified_at_once() {
    let (mut world, attempt) = world();
    let gone = |name: &str| Programmed {
        gone_bridges: [name.parse().unwrap()].into(),
        ..Programmed::default()
    };
    // The CNI plugin makes its bridges itself.
    assert_eq!(world.handle(Event::Programmed { attempt, result: gone("m-vxlan-1") }), [""; 0]);
    world.handle(Event::Drifted(Scope::Kernel));
    let attempt = world.next_program();
    assert_eq!(
        world.handle(Event::Programmed { attempt, result: gone("d-vxlan-1") }),
        ["attempt 3: docker network of vxlan-1"]
    );
}

#[test]
fn only_networks_that_were_ready_count_as_repaired() {
    let (mut world, _) = world();
    let remade = |kind| Event::Remade { overlay: "vxlan-1".parse().unwrap(), kind };
    world.handle(remade(NetworkKind::Docker));
    world.handle(remade(NetworkKind::Cni));
    world.handle(Event::Remade { overlay: "other".parse().unwrap(), kind: NetworkKind::Cni });
    assert_eq!(world.health().counters.container_network_repairs, 2);
    let mut new = World::new();
    new.detect();
    new.assign(vec![assignment("vxlan-1", 1)]);
    new.handle(remade(NetworkKind::Cni));
    assert_eq!(new.health().counters.container_network_repairs, 0, "the first attempt");
}

#[test]
fn warnings_degrade_until_a_job_finds_none() {
    let (mut world, attempt) = world();
    let warning = "overlay vxlan-1: the range is nearly full".to_owned();
    let warnings = Some(vec![warning.clone()]);
    let result = Programmed { warnings, leases_released: 3, ..Programmed::default() };
    world.handle(Event::Programmed { attempt, result });
    let health = world.health();
    assert_eq!(health.status, Condition::Degraded);
    assert!(health.problems.contains(&warning), "{health:?}");
    assert_eq!(health.counters.leases_released, 3);
    assert_eq!(health.dataplane.unwrap().status, "ok", "the tunnel works");
    // A job that did not look for warnings keeps them.
    world.handle(Event::Drifted(Scope::Kernel));
    let attempt = world.next_program();
    world.handle(Event::Programmed { attempt, result: Programmed::default() });
    assert!(world.health().problems.contains(&warning));
    world.handle(Event::Drifted(Scope::Everything));
    let attempt = world.next_program();
    let result = Programmed { warnings: Some(Vec::new()), ..Programmed::default() };
    world.handle(Event::Programmed { attempt, result });
    assert!(!world.health().problems.contains(&warning));
}
