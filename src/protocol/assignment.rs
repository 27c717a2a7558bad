//! An agent's share of the overlays, and what became of it.

use std::fmt;
use std::net::Ipv4Addr;
use std::sync::Arc;

use super::{Network, Overlay};
use crate::addr::{DeviceName, InterfaceAddress, Mac, Mtu, OverlayName, Subnet, Vni};
use crate::escape::bounded_line;

/// The tunnel end of an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vtep {
    /// VXLAN network identifier.
    pub vni: Vni,
    /// The VXLAN device.
    pub device: DeviceName,
    /// Its UDP port.
    pub port: u16,
    /// IPv4 address, with the length of the VTEP subnet.
    pub ip: InterfaceAddress,
    /// IPv6 address, where the cluster has a VTEP subnet of IPv6.
    pub ip6: Option<InterfaceAddress>,
    /// MAC address.
    pub mac: Mac,
    /// MTU of the device, where the master sets one.
    pub mtu: Option<Mtu>,
}

impl Vtep {
    /// The same where it carries `overlay`: one with a VNI of its own has a device of its own.
    #[must_use]
    pub fn carrying(&self, overlay: &Overlay) -> Self {
        match overlay.vni.filter(|vni| *vni != self.vni) {
            Some(vni) => Self { vni, device: DeviceName::vtep(vni), ..self.clone() },
            None => self.clone(),
        }
    }
}

/// The bridge of one containerizer: its subnets are one half of the agent's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bridge {
    /// Device name, `m-NAME` or `d-NAME`.
    pub name: DeviceName,
    /// IPv4 half.
    pub subnet: Option<Subnet>,
    /// IPv6 half.
    pub subnet6: Option<Subnet>,
}

/// One agent's share of one overlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// The overlay.
    pub overlay: Overlay,
    /// The agent's IPv4 subnet, where the overlay has IPv4 and the agent asked for a subnet.
    pub subnet: Option<Subnet>,
    /// The agent's IPv6 subnet, likewise.
    pub subnet6: Option<Subnet>,
    /// The MesosContainerizer's half, where the agent asked for it.
    pub mesos_bridge: Option<Bridge>,
    /// The DockerContainerizer's half, where the agent asked for it.
    pub docker_bridge: Option<Bridge>,
    /// The agent's tunnel end: in all its overlays the same addresses and MAC.
    pub vtep: Vtep,
    /// What the agent said about it; `None` until it has.
    pub status: Option<Status>,
}

impl Assignment {
    /// Name of the overlay.
    #[must_use]
    pub const fn name(&self) -> &OverlayName {
        &self.overlay.name
    }

    /// Whether both promise the same addresses, whatever their status and the rest of the overlay.
    #[must_use]
    pub fn has_addresses_of(&self, other: &Self) -> bool {
        self.subnet == other.subnet
            && self.subnet6 == other.subnet6
            && self.vtep.ip.address() == other.vtep.ip.address()
    }
}

/// What became of an overlay on an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// Being configured.
    Configuring,
    /// Ready for containers.
    Ok,
    /// Not usable, and why.
    Failed(String),
}

impl Status {
    /// Longest reason that is kept, in characters: enough for every sentence of ours.
    const REASON_MAX: usize = 1024;

    /// Returns the same status with a reason that can be shown: one line of visible characters, and
    /// not endless. Whoever sends a status may be broken or hostile.
    #[must_use]
    pub fn sanitized(self) -> Self {
        match self {
            Self::Failed(reason) => Self::Failed(bounded_line(&reason, Self::REASON_MAX)),
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

/// An agent and its share of every overlay: what `/overlay-agent/overlay` shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentInfo {
    /// Its address, which is also its identity.
    pub ip: Ipv4Addr,
    /// In the order of the master's configuration.
    pub overlays: Vec<Assignment>,
    /// How often the agent tried to configure its overlays; only the agent tells.
    pub configuration_attempts: Option<u32>,
}

/// The whole cluster: what `/overlay-master/state` shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// As configured.
    pub network: Arc<Network>,
    /// In the order of their addresses.
    pub agents: Vec<Arc<AgentInfo>>,
}
