//! The numbers of addresses of containers, as the agents report them. They are in no record: each
//! agent sends them again within a minute.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use overlay_types::addr::{OverlayName, Subnet};
use overlay_types::address_usage::{
    AddressCount, FillLevel, HalfCounts, OverlayCounts, container_capacity,
};
use overlay_types::container_network::NetworkKind;
use overlay_types::protocol::Bridge;

use super::Registry;

/// The reported numbers of all agents, and their sums. The sums are kept, so that a scrape does not
/// visit every agent.
#[derive(Debug, Clone, Default)]
pub(super) struct AddressCounts {
    by_agent: BTreeMap<Ipv4Addr, OverlayCounts>,
    sums: BTreeMap<(OverlayName, NetworkKind), HalvesTally>,
}

/// The halves of one overlay and containerizer on all agents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::master) struct HalvesTally {
    /// The addresses of all halves.
    pub(in crate::master) used: u64,
    pub(in crate::master) free: u64,
    /// The halves without a free address, and those with few.
    pub(in crate::master) full: u64,
    pub(in crate::master) nearly_full: u64,
    /// Number of halves by the percentage of their used addresses.
    by_percent: [u32; 101],
}

impl HalvesTally {
    const EMPTY: Self = Self { used: 0, free: 0, full: 0, nearly_full: 0, by_percent: [0; 101] };

    /// Returns the percentage of used addresses of the fullest half.
    pub(in crate::master) fn max_percent(&self) -> u64 {
        self.by_percent.iter().rposition(|halves| *halves > 0).unwrap_or_default() as u64
    }

    fn is_empty(&self) -> bool {
        self.by_percent.iter().all(|halves| *halves == 0)
    }

    fn add(&mut self, count: AddressCount) {
        self.used += u64::from(count.used);
        self.free += u64::from(count.free);
        *self.halves_of(count) += 1;
        if let Some(halves) = self.level_of(count) {
            *halves += 1;
        }
    }

    fn remove(&mut self, count: AddressCount) {
        self.used -= u64::from(count.used);
        self.free -= u64::from(count.free);
        *self.halves_of(count) -= 1;
        if let Some(halves) = self.level_of(count) {
            *halves -= 1;
        }
    }

    /// Returns the number of halves that are as full as this one. A half with many free addresses is
    /// in no such number.
    fn level_of(&mut self, count: AddressCount) -> Option<&mut u64> {
        match count.level() {
            FillLevel::Full => Some(&mut self.full),
            FillLevel::NearlyFull => Some(&mut self.nearly_full),
            FillLevel::Ample => None,
        }
    }

    fn halves_of(&mut self, count: AddressCount) -> &mut u32 {
        let percent = usize::try_from(count.percent()).unwrap_or(usize::MAX);
        &mut self.by_percent[percent.min(100)]
    }
}

impl AddressCounts {
    fn set(&mut self, ip: Ipv4Addr, counts: OverlayCounts) {
        self.remove(ip);
        for (name, halves) in &counts {
            for (kind, count) in halves.known() {
                let key = (name.clone(), kind);
                self.sums.entry(key).or_insert(HalvesTally::EMPTY).add(count);
            }
        }
        if !counts.is_empty() {
            self.by_agent.insert(ip, counts);
        }
    }

    fn remove(&mut self, ip: Ipv4Addr) {
        for (name, halves) in self.by_agent.remove(&ip).unwrap_or_default() {
            for (kind, count) in halves.known() {
                let key = (name.clone(), kind);
                if let Some(sum) = self.sums.get_mut(&key) {
                    sum.remove(count);
                    if sum.is_empty() {
                        self.sums.remove(&key);
                    }
                }
            }
        }
    }
}

impl Registry {
    /// Replaces the numbers that an agent reports. A number that its half cannot have is dropped: the
    /// sender may be broken or hostile.
    pub(in crate::master) fn record_address_counts(
        &mut self,
        ip: Ipv4Addr,
        mut counts: OverlayCounts,
    ) {
        let Some(agent) = self.agents.active(ip) else { return self.forget_address_counts(ip) };
        counts.retain(|name, halves| {
            let assigned = agent.info.overlays.iter().find(|overlay| overlay.name() == name);
            let Some(assigned) = assigned else { return false };
            halves.mesos =
                halves.mesos.filter(|count| fits(assigned.mesos_bridge.as_ref(), *count));
            halves.docker =
                halves.docker.filter(|count| fits(assigned.docker_bridge.as_ref(), *count));
            *halves != HalfCounts::default()
        });
        self.address_counts.set(ip, counts);
    }

    /// Forgets the numbers of an agent that does not report any more.
    pub(super) fn forget_address_counts(&mut self, ip: Ipv4Addr) {
        self.address_counts.remove(ip);
    }

    /// Returns the numbers of all agents, for the state.
    pub(super) fn shown_address_counts(&self) -> BTreeMap<Ipv4Addr, OverlayCounts> {
        self.address_counts.by_agent.clone()
    }

    /// Returns the sums of the halves of all agents.
    pub(in crate::master) fn halves_tallies(
        &self,
    ) -> impl Iterator<Item = (&OverlayName, NetworkKind, &HalvesTally)> {
        self.address_counts.sums.iter().map(|((name, kind), tally)| (name, *kind, tally))
    }
}

/// Returns whether the half behind a bridge has so many addresses.
fn fits(bridge: Option<&Bridge>, count: AddressCount) -> bool {
    let capacity = |subnet: Subnet| container_capacity(&subnet);
    let all = u128::from(count.used) + u128::from(count.free);
    bridge.and_then(|bridge| bridge.subnet).is_some_and(|subnet| all <= capacity(subnet))
}
