//! Assignments of overlays to agents, and their status.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::sync::Arc;

use super::{Network, Overlay, PeerFailures, Principal, ProgramVersion};
use crate::addr::{DeviceName, InterfaceAddress, Mac, Mtu, OverlayName, Subnet, Vni};
use crate::address_usage::OverlayCounts;
use crate::escape::{CUT, bounded_line};

/// The VTEP of an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vtep {
    /// VXLAN network identifier.
    pub vni: Vni,
    /// Name of the VXLAN device.
    pub device: DeviceName,
    /// UDP port of the VXLAN device.
    pub port: u16,
    /// IPv4 address, with the prefix length of the VTEP subnet.
    pub ip: InterfaceAddress,
    /// IPv6 address, if the cluster has an IPv6 VTEP subnet.
    pub ip6: Option<InterfaceAddress>,
    /// MAC address.
    pub mac: Mac,
    /// MTU of the device, if the master sets one.
    pub mtu: Option<Mtu>,
}

impl Vtep {
    /// Returns the VTEP for `overlay`. An overlay with its own VNI has its own device.
    #[must_use]
    pub fn for_overlay(&self, overlay: &Overlay) -> Self {
        match overlay.vni.filter(|vni| *vni != self.vni) {
            Some(vni) => Self { vni, device: DeviceName::vtep(vni), ..self.clone() },
            None => self.clone(),
        }
    }
}

/// The bridge of one containerizer. Each subnet is one half of the agent's subnet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bridge {
    /// Device name, `m-NAME` or `d-NAME`.
    pub name: DeviceName,
    /// IPv4 subnet.
    pub subnet: Option<Subnet>,
    /// IPv6 subnet.
    pub subnet6: Option<Subnet>,
}

/// The assignment of one overlay to one agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// The overlay.
    pub overlay: Overlay,
    /// IPv4 subnet of the agent, if the overlay has IPv4 and the agent requested a subnet.
    pub subnet: Option<Subnet>,
    /// IPv6 subnet of the agent, if the overlay has IPv6 and the agent requested a subnet.
    pub subnet6: Option<Subnet>,
    /// Bridge of the MesosContainerizer, if the agent requested the bridge.
    pub mesos_bridge: Option<Bridge>,
    /// Bridge of the DockerContainerizer, if the agent requested the bridge.
    pub docker_bridge: Option<Bridge>,
    /// VTEP of the agent. Its addresses and MAC are the same in all overlays.
    pub vtep: Vtep,
    /// Status reported by the agent; `None` before the first report.
    pub status: Option<Status>,
}

impl Assignment {
    /// Returns the name of the overlay.
    #[must_use]
    pub const fn name(&self) -> &OverlayName {
        &self.overlay.name
    }

    /// Whether both assignments have the same subnets and the same IPv4 address of the VTEP.
    #[must_use]
    pub fn has_same_addresses(&self, other: &Self) -> bool {
        self.subnet == other.subnet
            && self.subnet6 == other.subnet6
            && self.vtep.ip.address() == other.vtep.ip.address()
    }
}

/// Status of an overlay on an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// The agent configures the overlay.
    Configuring,
    /// The overlay is ready for containers.
    Ok,
    /// The overlay is unusable, with the reason.
    Failed(String),
}

impl Status {
    /// Longest stored reason in characters. Every message of the agent fits.
    const REASON_MAX: usize = 1024;

    /// Longest reason of which the end is looked for, in characters.
    const LOOKED_AT_MAX: usize = 16 << 10;

    /// Escapes and shortens the reason, because the sender may be broken or hostile. The result is
    /// one line of visible characters. A long reason loses its middle: the beginning names the
    /// object, and the end the remedy.
    #[must_use]
    pub fn sanitized(self) -> Self {
        match self {
            Self::Failed(reason) => {
                let line = bounded_line(&reason, Self::LOOKED_AT_MAX);
                let count = line.chars().count();
                if count <= Self::REASON_MAX {
                    return Self::Failed(line);
                }
                let head = Self::REASON_MAX / 4;
                let tail = Self::REASON_MAX - head - CUT.chars().count() - 1;
                let start: String = line.chars().take(head).collect();
                let end: String = line.chars().skip(count - tail).collect();
                Self::Failed(format!("{start}{CUT} {end}"))
            }
            other => other,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Configuring => f.write_str("configuring"),
            Self::Ok => f.write_str("ok"),
            Self::Failed(reason) => write!(f, "failed: {reason}"),
        }
    }
}

/// An agent and its assignments: the content of `/overlay-agent/overlay`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentInfo {
    /// Address of the agent, which is also its identity.
    pub ip: Ipv4Addr,
    /// Assignments in the order of the master's configuration.
    pub overlays: Vec<Assignment>,
    /// How often the agent tried to configure its overlays. `None` in reports of the master.
    pub configuration_attempts: Option<u32>,
}

/// The state of the cluster: the content of `/overlay-master/state`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// The configured network.
    pub network: Arc<Network>,
    /// Agents in the order of their addresses.
    pub agents: Vec<Arc<AgentInfo>>,
    /// When agents were last seen. Empty in the state of a master with the C++ module.
    pub contacts: BTreeMap<Ipv4Addr, AgentContact>,
    /// The peers that agents do not reach. An agent that reaches all of them has no entry.
    pub peer_failures: BTreeMap<Ipv4Addr, PeerFailures>,
    /// The numbers of addresses of containers, of the agents that have reported them.
    pub address_counts: BTreeMap<Ipv4Addr, OverlayCounts>,
    /// The principals of the agents that have authenticated.
    pub principals: BTreeMap<Ipv4Addr, Principal>,
}

/// When a master has last seen an agent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AgentContact {
    /// Seconds since 1970; `None` if the agent was not seen since the election of the master.
    pub last_seen: Option<u64>,
    /// Whether the agent was not seen for too long.
    pub is_stale: bool,
    /// The version of the agent; `None` if the agent has not sent it since the election.
    pub version: Option<ProgramVersion>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_reason_keeps_object_and_remedy() {
        let reason = format!("packets are dropped by {}: run 'command'", "é".repeat(5000));
        let Status::Failed(shown) = Status::Failed(reason).sanitized() else { panic!("failed") };
        assert_eq!(shown.chars().count(), 1024);
        assert!(shown.starts_with("packets are dropped by é"), "{shown}");
        assert!(shown.ends_with("é: run 'command'"), "{shown}");
        let short = Status::Failed("é".repeat(1024));
        assert_eq!(short.clone().sanitized(), short);
    }
}
