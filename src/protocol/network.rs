//! The network of a cluster, as configured and checked.

use crate::addr::{DeviceName, Family, Mtu, Oui, OverlayName, Subnet, Vni};
use crate::tunnel::PORT_DEFAULT;

/// All overlays of a cluster and the address space of their VTEPs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// IPv4 addresses of VTEPs; at most a /8, since MACs follow from the low 24 bits.
    pub vtep_subnet: Subnet,
    /// IPv6 addresses of VTEPs, where there are any.
    pub vtep_subnet6: Option<Subnet>,
    /// Upper half of the MAC of every VTEP.
    pub vtep_mac_oui: Oui,
    /// MTU of the VXLAN device; the agent's choice where it is not given.
    pub vtep_mtu: Option<Mtu>,
    /// What carries the overlays that have no VNI of their own.
    pub vxlan: Vxlan,
    /// In the order of the configuration; names are unique.
    pub overlays: Vec<Overlay>,
}

/// A VXLAN device as it is on every agent. The default is that of dcos-net.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vxlan {
    /// VXLAN network identifier.
    pub vni: Vni,
    /// Its name.
    pub device: DeviceName,
    /// UDP port, also of the devices of overlays with a VNI of their own.
    pub port: u16,
}

impl Vxlan {
    /// The device of `vni` as it is called where nobody says otherwise.
    #[must_use]
    pub fn of(vni: Vni) -> Self {
        Self { vni, device: DeviceName::vtep(vni), port: PORT_DEFAULT }
    }
}

impl Default for Vxlan {
    fn default() -> Self {
        Self::of(Vni::DEFAULT)
    }
}

/// One overlay network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlay {
    /// Unique within the cluster.
    pub name: OverlayName,
    /// Its IPv4 space. At least one family is there.
    pub range: Option<AddressRange>,
    /// Its IPv6 space.
    pub range6: Option<AddressRange>,
    /// Its own VNI, and so a VXLAN device of its own; `None`: that of the network.
    pub vni: Option<Vni>,
    /// A disabled overlay keeps what agents have of it, and nobody is told of it.
    pub enabled: bool,
}

impl Overlay {
    /// The space of one family.
    #[must_use]
    pub const fn range_of(&self, family: Family) -> Option<&AddressRange> {
        match family {
            Family::V4 => self.range.as_ref(),
            Family::V6 => self.range6.as_ref(),
        }
    }
}

/// The space of an overlay in one family, and the length of the subnet that each agent gets of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressRange {
    /// The whole space.
    pub subnet: Subnet,
    /// Length of an agent's subnet: at least that of `subnet`, and short enough to be split in two.
    pub prefix: u8,
}
