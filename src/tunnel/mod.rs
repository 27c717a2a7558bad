//! What packets between agents need: this host's VXLAN devices, the address space of every overlay,
//! and the peers. The dataplane programs the kernel with it and the firewall makes its rules of it;
//! the agent decides it. So it lives here, below all of them, and is plain data.

mod collision;
mod fault;
mod peer;

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::addr::{DeviceName, InterfaceAddress, Mac, Mtu, OverlayName, Subnet, Vni};

pub use collision::{Claimant, Collision, HostAddress, HostRoute, Obstacle, collisions};
pub use fault::{Fault, Part};
pub use peer::{LeftOutPeer, Peer, PeerFault, checked_peers};

/// The UDP port of dcos-net, and so the default: an agent of either kind hears the other.
pub const PORT_DEFAULT: u16 = 64000;

/// Everything that a host needs to reach the containers of its peers. The default is nothing: a
/// host that is in no overlay.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    /// Our ends of the tunnels: one that all overlays share, or one for each VNI. The first carries
    /// every peer, the others the peers that have a subnet in one of their overlays.
    pub locals: Vec<Local>,
    /// The overlays of this agent.
    pub spaces: Vec<Space>,
    /// The other agents, by their address in the underlay. `None` as long as they are not known:
    /// what there is of them stays as it is.
    pub peers: Option<BTreeMap<IpAddr, Peer>>,
    /// The other agents that are not in `peers`, since they claim the address of one that is, or of
    /// this host. Nothing is programmed for them; their faults are reported.
    pub left_out: Vec<LeftOutPeer>,
}

/// One VXLAN device of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Local {
    /// Its name.
    pub device: DeviceName,
    /// VXLAN network identifier.
    pub vni: Vni,
    /// UDP port, on every agent the same.
    pub port: u16,
    /// MAC address, unique among all agents.
    pub mac: Mac,
    /// This host's own address, from which its packets leave. Its family is that of the underlay.
    pub underlay: IpAddr,
    /// MTU, or as much as the underlay has room for.
    pub mtu: Option<Mtu>,
    /// MTU of the containers, whose packets it is to carry whole.
    pub containers_mtu: Option<Mtu>,
    /// IPv4 address.
    pub ip: Option<InterfaceAddress>,
    /// IPv6 address.
    pub ip6: Option<InterfaceAddress>,
}

impl Local {
    /// Bytes that VXLAN puts around a packet.
    #[must_use]
    pub const fn overhead(&self) -> u32 {
        overhead(self.underlay)
    }

    /// Both addresses.
    pub fn addresses(&self) -> impl Iterator<Item = InterfaceAddress> {
        self.ip.into_iter().chain(self.ip6)
    }
}

/// Bytes that VXLAN puts around a packet in the family of an `underlay`: the outer IP header, UDP,
/// VXLAN, the inner Ethernet header (RFC 7348, section 5).
#[must_use]
pub const fn overhead(underlay: IpAddr) -> u32 {
    const UDP_VXLAN_ETHERNET: u32 = 8 + 8 + 14;
    match underlay {
        IpAddr::V4(_) => 20 + UDP_VXLAN_ETHERNET,
        IpAddr::V6(_) => 40 + UDP_VXLAN_ETHERNET,
    }
}

/// The address space of an overlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Space {
    /// The overlay.
    pub overlay: OverlayName,
    /// The device that carries it.
    pub device: DeviceName,
    /// The whole space, one subnet for each family.
    pub whole: Vec<Subnet>,
    /// What this agent has of it.
    pub own: Vec<Subnet>,
}

impl Desired {
    /// The space of an overlay.
    #[must_use]
    pub fn space(&self, overlay: &OverlayName) -> Option<&Space> {
        self.spaces.iter().find(|space| space.overlay == *overlay)
    }
}
