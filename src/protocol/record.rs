//! What a store keeps of an agent.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::addr::{OverlayName, Subnet};

/// Everything that was promised to one agent. What the agent reports is not in it: after a restart of
/// the master only the agent knows.
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
    /// When it was deleted, in seconds since 1970. Its addresses are free then, and given to others only
    /// when nothing else is left; until then it gets them back if it returns.
    pub released_at: Option<u64>,
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
