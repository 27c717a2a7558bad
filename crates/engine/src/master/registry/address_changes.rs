//! The addresses of an agent that differ between two registries.

use std::net::Ipv4Addr;

use overlay_types::protocol::Assignment;

use super::super::effect::{AddressEffect, AgentEffect};
use super::{Registry, plain_assignments};

impl Registry {
    /// Returns how the assignments of the agent differ in the registry `after`, or `None` if they
    /// are equal.
    pub(in crate::master) fn effect_on(
        &self,
        ip: Ipv4Addr,
        after: &Self,
        at_once: bool,
    ) -> Option<AgentEffect> {
        let old = plain_assignments(self.agents.active(ip)?);
        let new = after.agents.active(ip).map(plain_assignments).unwrap_or_default();
        if old == new {
            return None;
        }
        Some(AgentEffect { ip, at_once, addresses: differing_addresses(&old, &new) })
    }
}

/// Returns the addresses that differ between two lists of assignments of one agent.
fn differing_addresses(old: &[Assignment], new: &[Assignment]) -> Vec<AddressEffect> {
    let vteps = |list: &[Assignment]| {
        let vtep = list.first().map(|assignment| &assignment.vtep);
        let ip = vtep.map(|vtep| vtep.ip.address().to_string());
        let ip6 = vtep.and_then(|vtep| vtep.ip6).map(|ip6| ip6.address().to_string());
        ip.into_iter().chain(ip6).collect::<Vec<_>>()
    };
    let mut addresses = Vec::new();
    let mut compare = |of: &str, before: Vec<String>, after: Vec<String>| {
        if before != after {
            addresses.push(AddressEffect { of: of.to_owned(), before, after });
        }
    };
    // An agent without an overlay keeps its VTEP, which is in no assignment.
    if !old.is_empty() && !new.is_empty() {
        compare("vtep", vteps(old), vteps(new));
    }
    let subnets = |list: &[Assignment], name: &str| {
        let one = list.iter().find(|one| one.name().as_str() == name);
        let subnets = one.into_iter().flat_map(|one| one.subnet.into_iter().chain(one.subnet6));
        subnets.map(|subnet| subnet.to_string()).collect::<Vec<_>>()
    };
    let mut names: Vec<&str> = new.iter().map(|one| one.name().as_str()).collect();
    let removed = old.iter().map(|one| one.name().as_str());
    names.extend(removed.filter(|name| !new.iter().any(|one| one.name().as_str() == *name)));
    for name in names {
        compare(name, subnets(old, name), subnets(new, name));
    }
    addresses
}
