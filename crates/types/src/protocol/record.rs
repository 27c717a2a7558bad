//! The stored records of agents.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::Principal;
use crate::addr::{Mac, OverlayName, Subnet};

/// The record stored under the address of an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// The agent has allocations.
    Agent(AgentRecord),
    /// The agent was deleted and its addresses were released.
    Released(ReleasedRecord),
}

/// The allocations and options of one agent. Reported statuses are not stored: after a restart of
/// the master, the agent reports them again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentRecord {
    /// IPv4 address of the VTEP.
    pub vtep_ip: Ipv4Addr,
    /// IPv6 address of the VTEP.
    pub vtep_ip6: Option<Ipv6Addr>,
    /// Subnets in the order of allocation.
    pub overlays: Vec<OverlayRecord>,
    /// Last requested option: whether the agent gets subnets.
    pub allocate_subnet: bool,
    /// Last requested option: whether the MesosContainerizer gets one half of each subnet.
    pub mesos_bridge: bool,
    /// Last requested option: whether the DockerContainerizer gets one half of each subnet.
    pub docker_bridge: bool,
    /// Last reported IPv6 underlay address, if any.
    pub underlay: Option<Ipv6Addr>,
    /// Last reported MAC address for direct routing, if any.
    pub direct_mac: Option<Mac>,
    /// The principal with which the agent last authenticated. From then on, only authenticated
    /// messages of the agent are accepted, until it is released.
    pub authenticated: Option<Principal>,
}

/// The addresses of a deleted agent that were not allocated again. They are allocated to another
/// agent only if no other addresses are left, the earliest released first. If the agent registers
/// again before that, it gets its addresses back. The containers of an agent that was deleted by
/// mistake therefore keep their addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReleasedRecord {
    /// Time of the deletion, in seconds since 1970.
    pub at: u64,
    /// IPv4 address of the VTEP.
    pub vtep_ip: Option<Ipv4Addr>,
    /// IPv6 address of the VTEP.
    pub vtep_ip6: Option<Ipv6Addr>,
    /// Subnets.
    pub overlays: Vec<OverlayRecord>,
}

impl ReleasedRecord {
    /// Whether the record contains no address.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.vtep_ip.is_none() && self.vtep_ip6.is_none() && self.overlays.is_empty()
    }
}

/// Addresses that an agent got or lost.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Addresses {
    /// IPv4 address of the VTEP.
    pub vtep_ip: Option<Ipv4Addr>,
    /// IPv6 address of the VTEP.
    pub vtep_ip6: Option<Ipv6Addr>,
    /// Subnets.
    pub overlays: Vec<OverlayRecord>,
}

impl Addresses {
    /// Returns the addresses of `now` in whose place `before` has no address. An address that
    /// replaces another address is not included.
    #[must_use]
    pub fn gained(before: Option<&AgentRecord>, now: &AgentRecord) -> Self {
        let former_overlays = before.map(|before| before.overlays.as_slice()).unwrap_or_default();
        let overlays = now.overlays.iter().map(|overlay| {
            let former = former_overlays.iter().find(|former| former.name == overlay.name);
            OverlayRecord {
                name: overlay.name.clone(),
                subnet: overlay
                    .subnet
                    .filter(|_| former.is_none_or(|former| former.subnet.is_none())),
                subnet6: overlay
                    .subnet6
                    .filter(|_| former.is_none_or(|former| former.subnet6.is_none())),
            }
        });
        Self {
            vtep_ip: before.is_none().then_some(now.vtep_ip),
            vtep_ip6: now
                .vtep_ip6
                .filter(|_| before.is_none_or(|before| before.vtep_ip6.is_none())),
            overlays: overlays.filter(|overlay| !overlay.is_empty()).collect(),
        }
    }

    /// Splits the addresses into those that `former` has, and the rest.
    #[must_use]
    pub fn partition(self, former: &Self) -> (Self, Self) {
        let had = |subnet: Subnet, name: &OverlayName| {
            let mut overlays = former.overlays.iter().filter(|overlay| overlay.name == *name);
            overlays.any(|overlay| overlay.subnets().any(|had| had == subnet))
        };
        let part = |is_former: bool| {
            let overlays = self.overlays.iter().map(|OverlayRecord { name, subnet, subnet6 }| {
                let is_of_part = |subnet: &Subnet| had(*subnet, name) == is_former;
                let (subnet, subnet6) = (subnet.filter(is_of_part), subnet6.filter(is_of_part));
                OverlayRecord { name: name.clone(), subnet, subnet6 }
            });
            Self {
                vtep_ip: self.vtep_ip.filter(|ip| (former.vtep_ip == Some(*ip)) == is_former),
                vtep_ip6: self.vtep_ip6.filter(|ip| (former.vtep_ip6 == Some(*ip)) == is_former),
                overlays: overlays.filter(|overlay| !overlay.is_empty()).collect(),
            }
        };
        (part(true), part(false))
    }

    /// Whether there is no address.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.vtep_ip.is_none() && self.vtep_ip6.is_none() && self.overlays.is_empty()
    }
}

impl From<ReleasedRecord> for Addresses {
    fn from(record: ReleasedRecord) -> Self {
        let ReleasedRecord { at: _, vtep_ip, vtep_ip6, overlays } = record;
        Self { vtep_ip, vtep_ip6, overlays }
    }
}

/// The allocations of an agent in one overlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverlayRecord {
    /// The overlay.
    pub name: OverlayName,
    /// IPv4 subnet.
    pub subnet: Option<Subnet>,
    /// IPv6 subnet.
    pub subnet6: Option<Subnet>,
}

impl OverlayRecord {
    /// Returns the subnets of both families.
    pub fn subnets(&self) -> impl Iterator<Item = Subnet> + use<> {
        self.subnet.into_iter().chain(self.subnet6)
    }

    /// Whether the record contains no subnet.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.subnet.is_none() && self.subnet6.is_none()
    }
}
