//! Devices of the overlays that another program has put into a VRF (virtual routing and forwarding).
//!
//! A VRF is a device with a routing table of its own. Packets that enter the host through a member of
//! the VRF use only this table, which has no routes of the overlays.

use std::fmt;
use std::net::IpAddr;

use overlay_types::addr::InterfaceAddress;
use overlay_types::tunnel::Desired;

use super::message::{attributes, u32_at};
use super::observe::{HostLink, Indices, read_sysctl};
use super::plan::Observed;
use super::uapi::IFLA_VRF_TABLE;

/// Kind of a VRF in the kernel.
pub(super) const VRF_KIND: &str = "vrf";
/// With the value 1, the sockets of the tunnels also receive packets of devices in a VRF.
const UDP_L3MDEV_ACCEPT: &str = "/proc/sys/net/ipv4/udp_l3mdev_accept";

/// A device that belongs to a VRF.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VrfMember {
    /// The device.
    pub device: String,
    /// The VRF.
    pub vrf: String,
    /// Routing table of the VRF.
    pub table: u32,
}

impl fmt::Display for VrfMember {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { device, vrf, table } = self;
        write!(f, "{device} belongs to VRF {vrf} (routing table {table})")
    }
}

/// Returns the routing table in the attributes of a VRF.
pub(super) fn vrf_table(data: &[u8]) -> Option<u32> {
    let mut attributes = attributes(data, 0);
    attributes.find(|(kind, _)| *kind == IFLA_VRF_TABLE).and_then(|(_, value)| u32_at(value, 0))
}

/// Records the bridges, the VXLAN devices and the devices with underlay addresses that belong to a
/// VRF. If the host's setting gives packets of VRFs to all sockets, the routes between the VRF and
/// the main table may be complete, so the underlay is not recorded. Missing routes to the peers are a
/// consequence of the VRF, and are no longer recorded.
pub(super) fn add_vrf_members(
    links: &[HostLink],
    addresses: &[(u32, InterfaceAddress)],
    desired: &Desired,
    observed: &mut Observed,
    indices: &mut Indices,
) {
    let devices = || desired.vxlan_devices.iter().map(|local| &local.device);
    let bridges = || desired.bridges().map(|bridge| &bridge.device);
    let has_underlays_apart = read_sysctl(UDP_L3MDEV_ACCEPT) != Some(1);
    for link in links {
        let Some(member) = membership(link, links) else { continue };
        if let Some(name) = devices().chain(bridges()).find(|name| name.as_str() == link.name) {
            indices.vrf_members.insert(name.clone(), member.clone());
        }
        let is_underlay =
            |ip: &IpAddr| desired.vxlan_devices.iter().any(|local| local.underlay == *ip);
        let own = addresses.iter().filter(|(index, _)| *index == link.index);
        for ip in own.map(|(_, address)| address.address()).filter(is_underlay) {
            // The routes to the peers are in the table of the VRF.
            observed.unroutable.remove(&ip);
            if has_underlays_apart {
                observed.underlay_vrfs.insert(ip, member.clone());
            }
        }
    }
}

/// Returns the VRF that a device belongs to.
pub(super) fn membership(link: &HostLink, links: &[HostLink]) -> Option<VrfMember> {
    let master = links.iter().find(|vrf| Some(vrf.index) == link.master)?;
    let table = master.vrf_table?;
    Some(VrfMember { device: link.name.clone(), vrf: master.name.clone(), table })
}
