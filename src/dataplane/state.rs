//! What of the kernel is ours, as it is or as it should be, and what the kernel does with an
//! operation. The kernel takes more away than it is asked to: so the plan, which follows these
//! rules, can give it back in the same go. `docs/dataplane.md` has the table.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use crate::addr::{DeviceName, Family, InterfaceAddress, Mac, Mtu, Subnet, Vni};
use crate::tunnel::Part;

/// Our part of the kernel's state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// Our VXLAN devices.
    pub devices: BTreeMap<DeviceName, Device>,
    /// The routes with our protocol number.
    pub routes: BTreeMap<RouteKey, Hop>,
}

/// A VXLAN device, and what is on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// The device itself.
    pub link: Link,
    /// Its addresses, without those that the kernel gave it.
    pub addresses: BTreeSet<InterfaceAddress>,
    /// The permanent neighbours: VTEP addresses and their MAC.
    pub neighbours: BTreeMap<IpAddr, Mac>,
    /// The forwarding entries: MACs and the agent behind each.
    pub forwards: BTreeMap<Mac, IpAddr>,
}

/// A VXLAN device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// What it is made with and keeps.
    pub identity: Identity,
    /// Its MAC.
    pub mac: Mac,
    /// Its MTU.
    pub mtu: Mtu,
    /// From where packets leave.
    pub underlay: Option<IpAddr>,
    /// Whether it learns from what arrives. It must not: then it drops what a peer with several
    /// addresses sends from another than the registered one.
    pub is_learning: bool,
    /// Whether it is up.
    pub is_up: bool,
    /// Whether it bears our mark.
    pub is_marked: bool,
    /// Whether it takes IPv6. The plan asks for it only where the device has an IPv6 address.
    pub has_ipv6: bool,
    /// Whether it takes packets whose way back is another device.
    pub is_loose: bool,
}

/// What of a VXLAN device the kernel does not change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Network identifier.
    pub vni: Vni,
    /// UDP port.
    pub port: u16,
    /// Family of the underlay.
    pub family: Family,
}

/// What tells two routes apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteKey {
    /// Where to.
    pub subnet: Subnet,
    /// Its metric; the lower one is taken.
    pub metric: u32,
}

/// Where a route leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hop {
    /// To a peer.
    Via {
        /// The VXLAN device.
        device: DeviceName,
        /// The VTEP address of the peer.
        gateway: IpAddr,
        /// Whether the gateway is taken as it is, without asking for a route to it.
        is_onlink: bool,
    },
    /// Nowhere, and the sender is told.
    Unreachable,
    /// Where no route of ours leads.
    Elsewhere,
}

/// One change of the kernel's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Make a device that is up.
    AddDevice(DeviceName, Link),
    /// Remove a device.
    RemoveDevice(DeviceName),
    /// Mark a device as ours.
    Mark(DeviceName),
    /// Let packets leave from an address.
    SetUnderlay(DeviceName, IpAddr),
    /// Let it no longer learn.
    StopLearning(DeviceName),
    /// Change the MAC.
    SetMac(DeviceName, Mac),
    /// Change the MTU.
    SetMtu(DeviceName, Mtu),
    /// Let the device take IPv6.
    EnableIpv6(DeviceName),
    /// Let it take packets whose way back is another device.
    Loosen(DeviceName),
    /// Switch the device on.
    SetUp(DeviceName),
    /// Give it an address.
    AddAddress(DeviceName, InterfaceAddress),
    /// Take an address away.
    RemoveAddress(DeviceName, InterfaceAddress),
    /// Say which MAC a VTEP has.
    SetNeighbour(DeviceName, IpAddr, Mac),
    /// Forget a VTEP.
    RemoveNeighbour(DeviceName, IpAddr),
    /// Say behind which agent a MAC is.
    SetForward(DeviceName, Mac, IpAddr),
    /// Forget a MAC.
    RemoveForward(DeviceName, Mac, IpAddr),
    /// Add a route where there is none.
    AddRoute(RouteKey, Hop),
    /// Let a route of ours lead elsewhere.
    ChangeRoute(RouteKey, Hop),
    /// Remove a route of ours.
    RemoveRoute(RouteKey, Hop),
}

impl fmt::Display for RouteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} metric {}", self.subnet, self.metric)
    }
}

impl fmt::Display for Hop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Via { device, gateway, .. } => write!(f, "via {gateway} on {device}"),
            Self::Unreachable => f.write_str("unreachable"),
            Self::Elsewhere => f.write_str("elsewhere"),
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddDevice(device, link) => {
                let Identity { vni, port, .. } = link.identity;
                write!(f, "add device {device} with VNI {vni} on UDP port {port}")
            }
            Self::RemoveDevice(device) => write!(f, "remove device {device}"),
            Self::Mark(device) => write!(f, "mark device {device}"),
            Self::SetUnderlay(device, ip) => write!(f, "send from {ip} on device {device}"),
            Self::StopLearning(device) => write!(f, "stop device {device} from learning"),
            Self::SetMac(device, mac) => write!(f, "set MAC {mac} of device {device}"),
            Self::SetMtu(device, mtu) => write!(f, "set MTU {mtu} of device {device}"),
            Self::EnableIpv6(device) => write!(f, "enable IPv6 on device {device}"),
            Self::Loosen(device) => write!(f, "set rp_filter 2 of device {device}"),
            Self::SetUp(device) => write!(f, "set device {device} up"),
            Self::AddAddress(device, ip) => write!(f, "add address {ip} on device {device}"),
            Self::RemoveAddress(device, ip) => write!(f, "remove address {ip} of device {device}"),
            Self::SetNeighbour(device, ip, mac) => {
                write!(f, "set neighbour {ip} to {mac} on device {device}")
            }
            Self::RemoveNeighbour(device, ip) => write!(f, "remove neighbour {ip} on {device}"),
            Self::SetForward(device, mac, agent) => {
                write!(f, "forward {mac} to {agent} on device {device}")
            }
            Self::RemoveForward(device, mac, agent) => {
                write!(f, "remove forwarding of {mac} to {agent} on device {device}")
            }
            Self::AddRoute(key, hop) => write!(f, "add route to {key} {hop}"),
            Self::ChangeRoute(key, hop) => write!(f, "change route to {key} {hop}"),
            Self::RemoveRoute(key, hop) => write!(f, "remove route to {key} {hop}"),
        }
    }
}

impl Operation {
    /// The device that it makes, or that has to be there for it.
    #[must_use]
    pub const fn device(&self) -> Option<&DeviceName> {
        match self {
            Self::AddDevice(device, _)
            | Self::RemoveDevice(device)
            | Self::Mark(device)
            | Self::SetUnderlay(device, _)
            | Self::StopLearning(device)
            | Self::SetMac(device, _)
            | Self::SetMtu(device, _)
            | Self::EnableIpv6(device)
            | Self::Loosen(device)
            | Self::SetUp(device)
            | Self::AddAddress(device, _)
            | Self::RemoveAddress(device, _)
            | Self::SetNeighbour(device, ..)
            | Self::RemoveNeighbour(device, _)
            | Self::SetForward(device, ..)
            | Self::RemoveForward(device, ..)
            | Self::AddRoute(_, Hop::Via { device, .. })
            | Self::ChangeRoute(_, Hop::Via { device, .. }) => Some(device),
            Self::AddRoute(..) | Self::ChangeRoute(..) | Self::RemoveRoute(..) => None,
        }
    }

    /// What it is about.
    #[must_use]
    pub fn part(&self) -> Part {
        match self {
            Self::SetForward(_, _, agent) | Self::RemoveForward(_, _, agent) => Part::Agent(*agent),
            Self::AddRoute(key, _) | Self::ChangeRoute(key, _) | Self::RemoveRoute(key, _) => {
                Part::Subnet(key.subnet)
            }
            of_device => of_device.device().cloned().map_or(Part::Host, Part::Device),
        }
    }
}

impl Device {
    /// A device with nothing on it.
    #[must_use]
    pub const fn bare(link: Link) -> Self {
        Self {
            link,
            addresses: BTreeSet::new(),
            neighbours: BTreeMap::new(),
            forwards: BTreeMap::new(),
        }
    }
}

impl State {
    /// What the kernel does with `operation`, if it does it.
    pub fn perform(&mut self, operation: &Operation) {
        match operation {
            // What is new has no alias yet, whatever was asked for, and the host's defaults, which
            // may be without IPv6 and strict.
            Operation::AddDevice(device, link) => {
                let bare = Link { is_marked: false, has_ipv6: false, ..link.clone() };
                let link = Link { is_loose: false, ..bare };
                self.devices.insert(device.clone(), Device::bare(link));
            }
            Operation::RemoveDevice(device) => {
                self.devices.remove(device);
                self.routes.retain(|_, hop| !hop.is_on(device));
            }
            Operation::RemoveAddress(device, address) => self.remove_address(device, address),
            Operation::AddRoute(key, hop) | Operation::ChangeRoute(key, hop) => {
                self.routes.insert(*key, hop.clone());
            }
            Operation::RemoveRoute(key, _) => {
                self.routes.remove(key);
            }
            of_device => {
                let device = of_device.device().and_then(|name| self.devices.get_mut(name));
                if let Some(device) = device {
                    device.perform(of_device);
                }
            }
        }
    }

    /// With an IPv4 address go the others of its subnet, which the kernel counts as its
    /// secondaries; with the last one go the IPv4 routes of the device.
    fn remove_address(&mut self, name: &DeviceName, address: &InterfaceAddress) {
        let Some(device) = self.devices.get_mut(name) else { return };
        device.addresses.remove(address);
        if address.family() == Family::V6 {
            return;
        }
        let subnet = Subnet::containing(address.address(), address.prefix());
        device.addresses.retain(|other| {
            subnet.is_none_or(|subnet| {
                other.prefix() != subnet.prefix() || !subnet.contains(other.address())
            })
        });
        if !device.addresses.iter().any(|other| other.family() == Family::V4) {
            self.routes.retain(|key, hop| key.subnet.family() == Family::V6 || !hop.is_on(name));
        }
    }
}

impl Device {
    fn perform(&mut self, operation: &Operation) {
        let link = &mut self.link;
        match operation {
            Operation::Mark(_) => link.is_marked = true,
            Operation::SetUnderlay(_, ip) => link.underlay = Some(*ip),
            Operation::StopLearning(_) => link.is_learning = false,
            // Even the same MAC empties the neighbour tables.
            Operation::SetMac(_, mac) => {
                link.mac = *mac;
                self.neighbours.clear();
            }
            Operation::SetMtu(_, mtu) => link.mtu = *mtu,
            Operation::EnableIpv6(_) => link.has_ipv6 = true,
            Operation::Loosen(_) => link.is_loose = true,
            Operation::SetUp(_) => link.is_up = true,
            Operation::AddAddress(_, address) => {
                self.addresses.insert(*address);
            }
            Operation::SetNeighbour(_, ip, mac) => {
                self.neighbours.insert(*ip, *mac);
            }
            Operation::RemoveNeighbour(_, ip) => {
                self.neighbours.remove(ip);
            }
            Operation::SetForward(_, mac, agent) => {
                self.forwards.insert(*mac, *agent);
            }
            Operation::RemoveForward(_, mac, _) => {
                self.forwards.remove(mac);
            }
            _ => {}
        }
    }
}

impl Hop {
    /// Whether it leads through a device.
    #[must_use]
    pub fn is_on(&self, name: &DeviceName) -> bool {
        matches!(self, Self::Via { device, .. } if device == name)
    }
}
