//! The numbers of addresses of containers that agents report.

use overlay_types::address_usage::{AddressCount, HalfCounts, OverlayCounts};
use overlay_types::protocol::{Message, PeersRequest};

use super::*;

/// A cluster whose overlay gives each agent a /24: a half has 125 addresses for containers.
fn cluster(count: u8) -> World {
    let mut world = World::new(small("44.128.0.0/24", "192.168.0.0/16"));
    for number in 1..=count {
        world.register(number);
        world.store();
    }
    world
}

fn overlay(world: &mut World) -> OverlayName {
    world.state().agents[0].overlays[0].name().clone()
}

fn report(world: &mut World, agent: u8, counts: OverlayCounts) {
    let request = PeersRequest { address_counts: counts, ..PeersRequest::default() };
    world.message(agent, Message::RequestPeers(request));
}

fn counts(world: &mut World, mesos: (u32, u32), docker: Option<(u32, u32)>) -> OverlayCounts {
    let count = |(used, free)| AddressCount { used, free };
    let halves = HalfCounts { mesos: Some(count(mesos)), docker: docker.map(count) };
    [(overlay(world), halves)].into()
}

#[test]
fn reported_counts_are_in_state_and_metrics_and_in_no_commit() {
    let mut world = cluster(3);
    let full = counts(&mut world, (125, 0), Some((113, 12)));
    let few = counts(&mut world, (3, 122), None);
    let version = world.health().version;
    report(&mut world, 1, full.clone());
    report(&mut world, 2, few.clone());
    world.store();
    assert_eq!(world.health().version, version, "the counts are volatile");
    assert_eq!(world.state().address_counts, [(ip(1), full), (ip(2), few)].into());
    let names = ["container_halves_full", "container_halves_nearly_full"];
    assert_eq!(world.metrics(names), [1, 1]);
    // Each report replaces the former one of its agent.
    report(&mut world, 1, OverlayCounts::new());
    assert_eq!(world.state().address_counts.len(), 1);
    assert_eq!(world.metrics(names), [0, 0]);
}

#[test]
fn counts_that_a_half_cannot_have_are_dropped() {
    let mut world = cluster(1);
    for forged in [(126, 0), (1, 125), (u32::MAX, u32::MAX), (0, u32::MAX)] {
        let mut forged = counts(&mut world, forged, None);
        let halves = HalfCounts { mesos: Some(AddressCount { used: 125, free: 0 }), docker: None };
        forged.insert("unassigned".parse().unwrap(), halves);
        report(&mut world, 1, forged);
        assert!(world.state().address_counts.is_empty());
    }
    assert_eq!(world.metrics(["container_halves_full"]), [0]);
    // The other half of the report counts.
    let half_forged = counts(&mut world, (126, 0), Some((1, 124)));
    report(&mut world, 1, half_forged);
    let shown = world.state().address_counts[&ip(1)].values().next().copied().unwrap();
    assert_eq!(shown.mesos.or(shown.docker), Some(AddressCount { used: 1, free: 124 }));
}

#[test]
fn counts_of_released_agent_are_forgotten() {
    let mut world = cluster(2);
    let full = counts(&mut world, (125, 0), Some((125, 0)));
    report(&mut world, 1, full.clone());
    report(&mut world, 2, full);
    assert_eq!(world.metrics(["container_halves_full"]), [4]);
    world.delete(1);
    world.store();
    assert_eq!(world.metrics(["container_halves_full"]), [2]);
    assert!(!world.state().address_counts.contains_key(&ip(1)));
}
