//! The address pools of a network, and the released agent that had each free address last.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use overlay_types::addr::{Family, OverlayName, Subnet};
use overlay_types::protocol::Network;

use super::super::view::PoolUsage;
use crate::ipam::{Allocated, SubnetPool, VtepPool};

/// A VTEP address or a subnet of one agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Address {
    /// The address of a VTEP.
    Vtep(IpAddr),
    /// A subnet of an overlay. Overlays do not overlap, so the subnet implies the overlay.
    Subnet(Subnet),
}

/// All pools of a network.
#[derive(Debug, Clone)]
pub(super) struct AddressPools {
    vteps: VtepPool<Ipv4Addr>,
    vteps6: Option<VtepPool<Ipv6Addr>>,
    overlays: HashMap<OverlayName, OverlayPools>,
    /// The released agent that had each free address last, as far as it is known.
    former_agents: HashMap<Address, Ipv4Addr>,
}

#[derive(Debug, Clone)]
struct OverlayPools {
    v4: Option<SubnetPool>,
    v6: Option<SubnetPool>,
}

impl OverlayPools {
    const fn of(&mut self, family: Family) -> Option<&mut SubnetPool> {
        match family {
            Family::V4 => self.v4.as_mut(),
            Family::V6 => self.v6.as_mut(),
        }
    }
}

/// The subnets of an overlay that were allocated to an agent.
#[derive(Debug, Default)]
pub(super) struct Subnets {
    pub(super) v4: Option<Allocated<Subnet>>,
    pub(super) v6: Option<Allocated<Subnet>>,
}

impl AddressPools {
    pub(super) fn new(network: &Network) -> Self {
        let overlays = network.overlays.iter().map(|overlay| {
            let v4 = overlay.range.map(SubnetPool::new);
            let v6 = overlay.range6.map(SubnetPool::new);
            (overlay.name.clone(), OverlayPools { v4, v6 })
        });
        Self {
            vteps: VtepPool::new(network.vtep_subnet),
            vteps6: network.vtep_subnet6.map(VtepPool::new),
            overlays: overlays.collect(),
            former_agents: HashMap::new(),
        }
    }

    /// Returns whether the network has IPv6 addresses for VTEPs.
    pub(super) const fn has_vteps6(&self) -> bool {
        self.vteps6.is_some()
    }

    pub(super) fn allocate_vtep(&mut self) -> Option<Allocated<Ipv4Addr>> {
        self.vteps.allocate()
    }

    pub(super) fn allocate_vtep6(&mut self) -> Option<Allocated<Ipv6Addr>> {
        self.vteps6.as_mut()?.allocate()
    }

    /// Allocates a subnet of each needed family that the overlay has. If one family is exhausted,
    /// allocates no subnet of the other family.
    ///
    /// # Errors
    /// Returns the exhausted family.
    pub(super) fn allocate_subnets(
        &mut self,
        overlay: &OverlayName,
        needs_v4: bool,
        needs_v6: bool,
    ) -> Result<Subnets, Family> {
        let Some(pools) = self.overlays.get_mut(overlay) else {
            return Ok(Subnets::default());
        };
        let v4 = pools.v4.as_mut().filter(|_| needs_v4);
        let v6 = pools.v6.as_mut().filter(|_| needs_v6);
        if v4.as_ref().is_some_and(|pool| pool.peek().is_none()) {
            return Err(Family::V4);
        }
        if v6.as_ref().is_some_and(|pool| pool.peek().is_none()) {
            return Err(Family::V6);
        }
        Ok(Subnets { v4: v4.and_then(SubnetPool::allocate), v6: v6.and_then(SubnetPool::allocate) })
    }

    /// Reserves a subnet of an agent's record.
    ///
    /// # Errors
    /// Returns a sentence for the operator if the configuration does not cover the subnet, or
    /// another agent has the subnet.
    pub(super) fn reserve(&mut self, overlay: &OverlayName, subnet: Subnet) -> Result<(), String> {
        let family = subnet.family();
        let pool = self.overlays.get_mut(overlay).and_then(|pools| pools.of(family));
        let pool = pool.ok_or_else(|| format!("overlay {overlay} has no {family}"))?;
        pool.reserve(subnet).map_err(|error| format!("overlay {overlay}: {error}"))
    }

    /// Reserves the VTEP address of an agent's record.
    ///
    /// # Errors
    /// Returns a sentence for the operator in the cases of [`Self::reserve`].
    pub(super) fn reserve_vtep(&mut self, ip: IpAddr) -> Result<(), String> {
        match (ip, &mut self.vteps6) {
            (IpAddr::V4(ip), _) => self.vteps.reserve(ip).map_err(|error| error.to_string()),
            (IpAddr::V6(ip), Some(vteps6)) => vteps6.reserve(ip).map_err(|error| error.to_string()),
            (IpAddr::V6(ip), None) => Err(format!("{ip}: the network has no vtep_subnet6")),
        }
    }

    /// Returns the overlay in which `subnet` is a free subnet of one agent.
    pub(super) fn overlay_with_free(&self, subnet: Subnet) -> Option<&OverlayName> {
        let has_free = |pools: &OverlayPools| {
            pools.v4.iter().chain(&pools.v6).any(|pool| pool.is_free(subnet))
        };
        self.overlays.iter().find(|(_, pools)| has_free(pools)).map(|(name, _)| name)
    }

    /// Returns whether `subnet` is a subnet of this overlay and in use.
    pub(super) fn is_taken(&self, overlay: &OverlayName, subnet: Subnet) -> bool {
        let pools = self.overlays.get(overlay);
        let mut both = pools.into_iter().flat_map(|pools| pools.v4.iter().chain(&pools.v6));
        both.any(|pool| pool.is_taken(subnet))
    }

    /// Returns whether `ip` is a VTEP address of the network and in use.
    pub(super) fn is_vtep_taken(&self, ip: IpAddr) -> bool {
        match (ip, &self.vteps6) {
            (IpAddr::V4(ip), _) => self.vteps.is_taken(ip),
            (IpAddr::V6(ip), Some(vteps6)) => vteps6.is_taken(ip),
            (IpAddr::V6(_), None) => false,
        }
    }

    /// Returns whether the overlay is configured with subnets of this family.
    pub(super) fn has(&self, overlay: &OverlayName, family: Family) -> bool {
        self.overlays.get(overlay).is_some_and(|pools| match family {
            Family::V4 => pools.v4.is_some(),
            Family::V6 => pools.v6.is_some(),
        })
    }

    /// Returns whether any pool overlaps `subnet`.
    pub(super) fn overlaps(&self, subnet: &Subnet) -> bool {
        let mut overlays =
            self.overlays.values().flat_map(|pools| pools.v4.iter().chain(&pools.v6));
        subnet.overlaps(&self.vteps.subnet())
            || self.vteps6.as_ref().is_some_and(|pool| subnet.overlaps(&pool.subnet()))
            || overlays.any(|pool| subnet.overlaps(&pool.range().subnet))
    }

    /// Reserves the free addresses and subnets of all pools that overlap `subnet`.
    pub(super) fn reserve_overlaps(&mut self, subnet: &Subnet) {
        self.vteps.reserve_overlaps(subnet);
        self.vteps6.iter_mut().for_each(|pool| pool.reserve_overlaps(subnet));
        self.subnet_pools().for_each(|pool| pool.reserve_overlaps(subnet));
    }

    /// Marks the unused subnets that overlap `subnet` as freed at `at`, so that they are used last.
    pub(super) fn retire(&mut self, subnet: &Subnet, at: u64) {
        self.subnet_pools().for_each(|pool| pool.retire(subnet, at));
    }

    /// Reserves the addresses that `agents` agents with unreadable records may have.
    pub(super) fn reserve_gaps(&mut self, agents: u128) {
        self.vteps.reserve_gaps(agents);
        self.vteps6.iter_mut().for_each(|pool| pool.reserve_gaps(agents));
        self.subnet_pools().for_each(|pool| pool.reserve_gaps(agents));
    }

    fn subnet_pools(&mut self) -> impl Iterator<Item = &mut SubnetPool> {
        self.overlays.values_mut().flat_map(|pools| pools.v4.iter_mut().chain(&mut pools.v6))
    }

    /// Frees a subnet, which `agent` had until `at`.
    pub(super) fn free(&mut self, overlay: &OverlayName, subnet: Subnet, agent: Ipv4Addr, at: u64) {
        let pool = self.overlays.get_mut(overlay).and_then(|pools| pools.of(subnet.family()));
        if pool.is_some_and(|pool| pool.free(subnet, at).is_ok()) {
            self.former_agents.insert(Address::Subnet(subnet), agent);
        }
    }

    /// Frees a VTEP address, which `agent` had until `at`.
    pub(super) fn free_vtep(&mut self, ip: IpAddr, agent: Ipv4Addr, at: u64) {
        let is_freed = match (ip, &mut self.vteps6) {
            (IpAddr::V4(ip), _) => self.vteps.free(ip, at).is_ok(),
            (IpAddr::V6(ip), Some(vteps6)) => vteps6.free(ip, at).is_ok(),
            (IpAddr::V6(_), None) => false,
        };
        if is_freed {
            self.former_agents.insert(Address::Vtep(ip), agent);
        }
    }

    /// Returns whether `address` is free, and `agent` is the last agent that had it.
    pub(super) fn is_released_by(&self, address: Address, agent: Ipv4Addr) -> bool {
        self.former_agents.get(&address) == Some(&agent)
    }

    /// Removes and returns the released agent that had `address`, because the address is allocated
    /// again.
    pub(super) fn remove_former_agent(&mut self, address: Address) -> Option<Ipv4Addr> {
        self.former_agents.remove(&address)
    }

    /// Returns the usage of every pool: first the VTEPs, then the overlays in the order of
    /// `network`.
    pub(super) fn usage(&self, network: &Network) -> Vec<PoolUsage> {
        let usage = |name: &str, subnet: Subnet, in_use, capacity| PoolUsage {
            name: name.to_owned(),
            subnet: subnet.to_string(),
            in_use,
            capacity,
        };
        let mut all = Vec::new();
        all.push(usage("vtep", self.vteps.subnet(), self.vteps.in_use(), self.vteps.capacity()));
        if let Some(pool) = &self.vteps6 {
            all.push(usage("vtep", pool.subnet(), pool.in_use(), pool.capacity()));
        }
        for overlay in &network.overlays {
            let pools = self.overlays.get(&overlay.name);
            let both = pools.into_iter().flat_map(|pools| [&pools.v4, &pools.v6]);
            for pool in both.flatten() {
                let subnet = pool.range().subnet;
                all.push(usage(overlay.name.as_str(), subnet, pool.in_use(), pool.capacity()));
            }
        }
        all
    }
}
