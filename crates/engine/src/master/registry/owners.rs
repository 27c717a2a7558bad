//! Which agent has an address exclusively. The index makes a search by address independent of the
//! number of agents: an agent that is refused asks for the holders of its addresses.

use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;

use overlay_types::addr::{Family, Subnet};
use overlay_types::state::Version;
use rangemap::RangeInclusiveMap;

use super::agents::ActiveAgent;

/// The exclusive addresses of all active agents. No two agents have one address.
#[derive(Debug, Clone, Default)]
pub(super) struct Owners {
    v4: RangeInclusiveMap<u128, Ipv4Addr>,
    v6: RangeInclusiveMap<u128, Ipv4Addr>,
}

impl Owners {
    pub(super) fn insert(&mut self, ip: Ipv4Addr, agent: &ActiveAgent) {
        for (subnet, _) in agent.exclusive() {
            self.map_mut(subnet.family()).insert(range(&subnet), ip);
        }
    }

    pub(super) fn remove(&mut self, agent: &ActiveAgent) {
        for (subnet, _) in agent.exclusive() {
            self.map_mut(subnet.family()).remove(range(&subnet));
        }
    }

    /// Returns the agents that have addresses of the subnet.
    pub(super) fn of(&self, subnet: &Subnet) -> impl Iterator<Item = Ipv4Addr> {
        let map = match subnet.family() {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        };
        map.overlapping(range(subnet)).map(|(_, ip)| *ip)
    }

    const fn map_mut(&mut self, family: Family) -> &mut RangeInclusiveMap<u128, Ipv4Addr> {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }
}

impl ActiveAgent {
    /// Returns the addresses that are assigned to the agent, each with the version that makes it
    /// exclusive. The address of a VTEP is a subnet of one address.
    pub(super) fn exclusive(&self) -> impl Iterator<Item = (Subnet, Version)> {
        let valid_from = &self.valid_from;
        let vtep = (IpAddr::V4(self.record.vtep_ip), Some(valid_from.vtep_ip));
        let vtep6 = self.record.vtep_ip6.filter(|_| !self.is_vtep_ip6_unserved());
        let vtep6 = vtep6.map(|vtep6| (IpAddr::V6(vtep6), valid_from.vtep_ip6));
        let vteps = [Some(vtep), vtep6].into_iter().flatten();
        let vteps = vteps.filter_map(|(vtep, version)| Some((single(vtep)?, version?)));
        let assigned = self.info.overlays.iter();
        let subnets = assigned.flat_map(|one| one.subnet.into_iter().chain(one.subnet6));
        vteps.chain(subnets.filter_map(|subnet| Some((subnet, valid_from.of_subnet(subnet)?))))
    }
}

/// Returns the subnet with only this address.
fn single(address: IpAddr) -> Option<Subnet> {
    Subnet::containing(address, if address.is_ipv4() { 32 } else { 128 })
}

pub(super) fn range(subnet: &Subnet) -> RangeInclusive<u128> {
    let bits = |address| match address {
        IpAddr::V4(v4) => u128::from(Ipv4Addr::to_bits(v4)),
        IpAddr::V6(v6) => v6.to_bits(),
    };
    bits(subnet.first())..=bits(subnet.last())
}
