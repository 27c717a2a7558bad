//! Finds which addresses of an agent's host belong to other agents by now.

use std::net::{IpAddr, Ipv4Addr};

use overlay_types::addr::Subnet;
use overlay_types::protocol::{HeldAddresses, Reassigned};
use overlay_types::state::Version;

use super::super::gate::Gated;
use super::Registry;
use super::agents::ActiveAgent;

impl Registry {
    /// Returns the held subnets with addresses that the durable state assigns to other agents than
    /// the agent at `ip`. Names an address only if its assignment is durable already: an agent
    /// removes the named addresses, and a commit under way may fail.
    ///
    /// Searches all agents, so it is only for agents that are refused. Overlapping subnets take
    /// time, and the length of [`HeldAddresses`] bounds their number.
    pub(in crate::master) fn reassigned(
        &self,
        ip: Ipv4Addr,
        held: &HeldAddresses,
        durable: Version,
    ) -> Gated<Vec<Reassigned>> {
        let mut remaining = held.subnets().to_vec();
        let mut ranges = merged_ranges(&remaining);
        let mut found = Vec::new();
        let others = self.agents.iter_active().filter(|(agent, _)| *agent != ip);
        for (agent, subnet, valid_from) in
            others.flat_map(|(ip, agent)| exclusive(agent).map(move |(subnet, v)| (ip, subnet, v)))
        {
            if valid_from > durable || !overlaps(&ranges, &subnet) {
                continue;
            }
            let (hit, rest): (Vec<Subnet>, Vec<Subnet>) =
                remaining.into_iter().partition(|held| held.overlaps(&subnet));
            let reassigned = |subnet| Gated::new(Reassigned { subnet, agent }, valid_from);
            found.extend(hit.into_iter().map(reassigned));
            remaining = rest;
            ranges = merged_ranges(&remaining);
            if remaining.is_empty() {
                break;
            }
        }
        found.into_iter().collect()
    }
}

/// Returns the addresses that are assigned to an agent, each with the version that makes it
/// exclusive.
fn exclusive(agent: &ActiveAgent) -> impl Iterator<Item = (Subnet, Version)> {
    let valid_from = &agent.valid_from;
    let vtep = (IpAddr::V4(agent.record.vtep_ip), Some(valid_from.vtep_ip));
    let vtep6 = agent.record.vtep_ip6.filter(|_| !agent.is_vtep_ip6_unserved());
    let vtep6 = vtep6.map(|vtep6| (IpAddr::V6(vtep6), valid_from.vtep_ip6));
    let vteps = [Some(vtep), vtep6].into_iter().flatten();
    let vteps = vteps.filter_map(|(vtep, version)| Some((single(vtep)?, version?)));
    let assigned = agent.info.overlays.iter();
    let subnets = assigned.flat_map(|overlay| overlay.subnet.into_iter().chain(overlay.subnet6));
    vteps.chain(subnets.filter_map(|subnet| Some((subnet, valid_from.of_subnet(subnet)?))))
}

/// Returns the subnet with only this address.
fn single(address: IpAddr) -> Option<Subnet> {
    Subnet::containing(address, if address.is_ipv4() { 32 } else { 128 })
}

/// Returns the ranges of addresses in sorted subnets, without overlaps.
fn merged_ranges(subnets: &[Subnet]) -> Vec<(IpAddr, IpAddr)> {
    let mut ranges: Vec<(IpAddr, IpAddr)> = Vec::with_capacity(subnets.len());
    for subnet in subnets {
        match ranges.last_mut() {
            Some((_, last)) if subnet.first() <= *last => *last = subnet.last().max(*last),
            _ => ranges.push((subnet.first(), subnet.last())),
        }
    }
    ranges
}

fn overlaps(ranges: &[(IpAddr, IpAddr)], subnet: &Subnet) -> bool {
    let before = ranges.partition_point(|(first, _)| *first <= subnet.last());
    before.checked_sub(1).is_some_and(|index| ranges[index].1 >= subnet.first())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_ranges_find_overlaps_of_both_families() {
        let held = ["10.1.0.0/24", "10.1.0.0/25", "10.1.0.128/25", "10.3.0.0/24", "fd00::/64"];
        let held = HeldAddresses::new(held.map(|text| text.parse().unwrap()));
        let ranges = merged_ranges(held.subnets());
        assert_eq!(ranges.len(), 3);
        for (subnet, expected) in [
            ("10.0.0.0/8", true),
            ("10.1.0.200/32", true),
            ("10.2.0.0/24", false),
            ("10.3.0.0/32", true),
            ("10.4.0.0/24", false),
            ("fd00::7/128", true),
            ("::a01:0/120", false),
        ] {
            assert_eq!(overlaps(&ranges, &subnet.parse().unwrap()), expected, "{subnet}");
        }
        assert!(!overlaps(&[], &"0.0.0.0/0".parse().unwrap()));
    }
}
