//! The checked network configuration of a cluster.

use crate::addr::{DeviceName, Family, Mtu, Oui, OverlayName, Subnet, Vni};
use crate::tunnel::PORT_DEFAULT;

/// All overlays of a cluster and the address space of their VTEPs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// IPv4 VTEP subnet. At most a /8, because MACs contain the low 24 bits of an address.
    pub vtep_subnet: Subnet,
    /// IPv6 VTEP subnet.
    pub vtep_subnet6: Option<Subnet>,
    /// Upper half of the MAC of every VTEP.
    pub vtep_mac_oui: Oui,
    /// MTU of the VXLAN device. Without a value the agent chooses the MTU.
    pub vtep_mtu: Option<Mtu>,
    /// VXLAN device of the overlays without their own VNI.
    pub vxlan: Vxlan,
    /// Overlays in the order of the configuration. Names are unique.
    pub overlays: Vec<Overlay>,
}

/// The VXLAN device of every agent. The default matches dcos-net.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vxlan {
    /// VXLAN network identifier.
    pub vni: Vni,
    /// Name of the device.
    pub device: DeviceName,
    /// UDP port. Devices of overlays with their own VNI use the same port.
    pub port: u16,
}

impl Vxlan {
    /// Creates a device for `vni` with the default name and port.
    #[must_use]
    pub fn with_vni(vni: Vni) -> Self {
        Self { vni, device: DeviceName::vtep(vni), port: PORT_DEFAULT }
    }
}

impl Default for Vxlan {
    fn default() -> Self {
        Self::with_vni(Vni::DEFAULT)
    }
}

/// One overlay network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlay {
    /// Name, unique in the cluster.
    pub name: OverlayName,
    /// IPv4 address range. An overlay has at least one range.
    pub range: Option<AddressRange>,
    /// IPv6 address range.
    pub range6: Option<AddressRange>,
    /// VNI, if the overlay has its own VXLAN device. Without one it uses the device of the network.
    pub vni: Option<Vni>,
    /// Whether the overlay is assigned to agents. A disabled overlay keeps its allocations.
    pub enabled: bool,
}

impl Overlay {
    /// Returns the address range of one family.
    #[must_use]
    pub const fn range_of(&self, family: Family) -> Option<&AddressRange> {
        match family {
            Family::V4 => self.range.as_ref(),
            Family::V6 => self.range6.as_ref(),
        }
    }
}

/// The subnet of an overlay in one family, and the prefix length of each agent's subnet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressRange {
    /// Subnet of the overlay.
    pub subnet: Subnet,
    /// Prefix length of an agent's subnet: not shorter than `subnet`, and splittable into halves.
    pub prefix: u8,
}
