//! The desired tunnel state of a host: VXLAN devices, the subnets of every overlay, and the peers.
//! The agent computes it, the dataplane programs the kernel with it, and the firewall derives its
//! rules from it. All three share these types.

mod collision;
mod desired;
mod direct;
mod fault;
mod mtu;
mod offload;
mod peer;
mod probe;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};

use crate::addr::{DeviceName, InterfaceAddress, Mac, Mtu, OverlayName, Subnet, Vni};
pub use collision::{Collision, HostAddress, HostObject, HostRoute, SubnetOwner, collisions};
pub use direct::{DirectCheck, DirectLink, DirectPeer, DirectReport, DirectRouting};
pub use fault::{Fault, FaultScope};
pub use mtu::{ContainersMtu, UNDERLAY_MIN, UNDERLAY_MIN_IPV6, UnderlayMtu};
pub use offload::{Offload, OffloadRound, OffloadVerdict, SegmentForm, SegmentTally};
pub use peer::{ExcludedPeer, Peer, PeerFault, has_possible_addresses, validate_peers};
pub use probe::{
    PORT_SUBNET_MIN, ProbeOutcome, ProbePacket, ProbeReport, ProbeSource, port_candidate,
};

/// Default UDP port of VXLAN. dcos-net uses the same port, so both agents can share a cluster.
pub const PORT_DEFAULT: u16 = 64000;

/// The desired tunnel state of a host. The default is the state of a host without overlays.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    /// VXLAN devices: one for all overlays without their own VNI, and one for each other VNI. The
    /// first device carries every peer. The other devices carry the peers that have a subnet in one
    /// of their overlays.
    pub vxlan_devices: Vec<VxlanDevice>,
    /// Subnets of the overlays of this agent.
    pub spaces: Vec<OverlaySubnets>,
    /// Other agents by their underlay address. `None` until the master has sent the peers: then the
    /// peers in the kernel are kept.
    pub peers: Option<BTreeMap<IpAddr, Peer>>,
    /// Whether VXLAN packets of every sender are accepted while `peers` is `None`, because the
    /// master sends no peers: a C++ master never does. Otherwise the senders of the existing rules
    /// stay.
    pub accepts_every_sender: bool,
    /// Other agents that are not in `peers`, because they claim the address of a peer or of this
    /// host. They are not programmed; their faults are reported.
    pub excluded_peers: Vec<ExcludedPeer>,
    /// Addresses under which the other agents are registered with the master. The underlay
    /// addresses in `peers` differ from them if the underlay is IPv6.
    pub agents: BTreeSet<Ipv4Addr>,
    /// Addresses of the masters that are no Mesos processes: containers need no connection to them.
    pub masters: BTreeSet<SocketAddrV4>,
    /// Whether the VXLAN devices compute checksums in software, because the hardware does it wrong.
    /// Large packets are then divided in software as well.
    pub disables_checksum_offload: bool,
    /// Direct routing. `None` if all packets to peers take the tunnels.
    pub direct: Option<DirectRouting>,
}

/// One VXLAN device of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VxlanDevice {
    /// Name of the device.
    pub device: DeviceName,
    /// VXLAN network identifier.
    pub vni: Vni,
    /// UDP port, the same on every agent.
    pub port: u16,
    /// MAC address, unique among all agents.
    pub mac: Mac,
    /// Source address of tunnel packets. Its family is the family of the underlay.
    pub underlay: IpAddr,
    /// MTU; without a value, the largest MTU that the underlay supports.
    pub mtu: Option<Mtu>,
    /// MTU of the containers, which the device must carry without fragmentation. `None` without
    /// containers, and until the MTU of the underlay is known.
    pub containers_mtu: Option<ContainersMtu>,
    /// IPv4 address.
    pub ip: Option<InterfaceAddress>,
    /// IPv6 address.
    pub ip6: Option<InterfaceAddress>,
}

impl VxlanDevice {
    /// Returns the number of bytes that VXLAN adds to a packet.
    #[must_use]
    pub const fn overhead(&self) -> u32 {
        overhead(self.underlay)
    }

    /// Returns the IPv4 and the IPv6 address.
    pub fn addresses(&self) -> impl Iterator<Item = InterfaceAddress> {
        self.ip.into_iter().chain(self.ip6)
    }
}

/// Returns the number of bytes that VXLAN adds to a packet for the family of `underlay`: the outer
/// IP header, UDP, VXLAN, and the inner Ethernet header (RFC 7348, section 5).
#[must_use]
pub const fn overhead(underlay: IpAddr) -> u32 {
    const UDP_VXLAN_ETHERNET: u32 = 8 + 8 + 14;
    match underlay {
        IpAddr::V4(_) => 20 + UDP_VXLAN_ETHERNET,
        IpAddr::V6(_) => 40 + UDP_VXLAN_ETHERNET,
    }
}

/// The subnets of an overlay on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverlaySubnets {
    /// The overlay.
    pub overlay: OverlayName,
    /// VXLAN device that carries the overlay.
    pub device: DeviceName,
    /// Subnets of the overlay, one for each family.
    pub whole: Vec<Subnet>,
    /// Subnets of this agent.
    pub own: Vec<Subnet>,
    /// Bridges of the overlay on this host, one for each containerizer.
    pub bridges: Vec<OverlayBridge>,
}

/// A bridge of an overlay, with its part of the subnets of the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverlayBridge {
    /// Name of the bridge.
    pub device: DeviceName,
    /// Subnets of its containers, one for each family.
    pub subnets: Vec<Subnet>,
    /// Addresses of the bridge itself, which its containers use as gateway. A bridge of the CNI
    /// plugin has none of IPv6, since the CNI configuration has IPv4 only.
    pub gateways: Vec<InterfaceAddress>,
}

impl Desired {
    /// Returns the bridges of all overlays.
    pub fn bridges(&self) -> impl Iterator<Item = &OverlayBridge> {
        self.spaces.iter().flat_map(|space| &space.bridges)
    }

    /// Returns the subnets of an overlay.
    #[must_use]
    pub fn space(&self, overlay: &OverlayName) -> Option<&OverlaySubnets> {
        self.spaces.iter().find(|space| space.overlay == *overlay)
    }
}
