//! What a store keeps of an agent.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::addr::{OverlayName, Subnet};

/// What is kept under the address of an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// The agent has these addresses.
    Agent(AgentRecord),
    /// The agent was deleted.
    Released(ReleasedRecord),
}

/// Everything that was promised to one agent. What the agent reports is not in it: after a restart
/// of the master only the agent knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentRecord {
    /// Address of its VTEP.
    pub vtep_ip: Ipv4Addr,
    /// IPv6 address of its VTEP.
    pub vtep_ip6: Option<Ipv6Addr>,
    /// Its subnets, in the order in which they were allocated.
    pub overlays: Vec<OverlayRecord>,
    /// What it asked for last: whether it gets subnets.
    pub allocate_subnet: bool,
    /// What it asked for last: whether its MesosContainerizer gets half of each subnet.
    pub mesos_bridge: bool,
    /// What it asked for last: whether its DockerContainerizer gets half of each subnet.
    pub docker_bridge: bool,
    /// What it said last: where its tunnels run, if over IPv6.
    pub underlay: Option<Ipv6Addr>,
}

/// What a deleted agent had and nobody has been given since. These addresses are given to others
/// only when no others are left, those freed longest ago first, and the agent gets them back if it
/// returns before: so its containers, should it have been deleted by mistake, keep theirs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReleasedRecord {
    /// When it was deleted, in seconds since 1970.
    pub at: u64,
    /// Address of its VTEP.
    pub vtep_ip: Option<Ipv4Addr>,
    /// IPv6 address of its VTEP.
    pub vtep_ip6: Option<Ipv6Addr>,
    /// Its subnets.
    pub overlays: Vec<OverlayRecord>,
}

impl ReleasedRecord {
    /// Whether nothing is left that could be given back.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.vtep_ip.is_none() && self.vtep_ip6.is_none() && self.overlays.is_empty()
    }
}

/// Addresses that an agent got or lost.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Addresses {
    /// That of its VTEP.
    pub vtep_ip: Option<Ipv4Addr>,
    /// The IPv6 address of its VTEP.
    pub vtep_ip6: Option<Ipv6Addr>,
    /// Its subnets.
    pub overlays: Vec<OverlayRecord>,
}

impl Addresses {
    /// What `now` has and `before` had not.
    #[must_use]
    pub fn gained(before: Option<&AgentRecord>, now: &AgentRecord) -> Self {
        let had = |name: &OverlayName| {
            let overlays = before.map(|before| before.overlays.as_slice()).unwrap_or_default();
            overlays.iter().find(|overlay| overlay.name == *name)
        };
        let overlays = now.overlays.iter().map(|overlay| {
            let had = had(&overlay.name);
            OverlayRecord {
                name: overlay.name.clone(),
                subnet: overlay.subnet.filter(|_| had.is_none_or(|had| had.subnet.is_none())),
                subnet6: overlay.subnet6.filter(|_| had.is_none_or(|had| had.subnet6.is_none())),
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

    /// Whether there is none.
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

/// What was promised to an agent of one overlay.
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
    /// Its subnets, of both families.
    pub fn subnets(&self) -> impl Iterator<Item = Subnet> + use<> {
        self.subnet.into_iter().chain(self.subnet6)
    }

    /// Whether there is no subnet in it.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.subnet.is_none() && self.subnet6.is_none()
    }
}
