//! The managed part of the kernel's state, observed or desired, and a model of the kernel's
//! reaction to each operation.
//!
//! The kernel removes more than an operation asks for. The plan follows this model, so it restores
//! those objects in the same run. `docs/dataplane.md` has the table.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use overlay_types::addr::{DeviceName, Family, InterfaceAddress, Mac, Mtu, Subnet, Vni};
use overlay_types::tunnel::FaultScope;

/// The managed part of the kernel's state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// Our VXLAN devices.
    pub devices: BTreeMap<DeviceName, Device>,
    /// The routes with our protocol number.
    pub routes: BTreeMap<RouteKey, Hop>,
    /// The bridges of the overlays that exist. The CNI plugin and Docker make and remove them.
    pub bridges: BTreeMap<DeviceName, BridgeState>,
    /// The bridges of the overlays that another program removed from their containers.
    pub lost_bridges: BTreeMap<DeviceName, LostBridge>,
}

/// What the packets of containers need of a bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BridgeState {
    /// Whether it is up.
    pub is_up: bool,
    /// Its MTU.
    pub mtu: Mtu,
    /// Its addresses in the subnets of the overlays. The containers use the first address of their
    /// subnet as gateway.
    pub addresses: BTreeSet<InterfaceAddress>,
    /// Whether IPv6 is enabled.
    pub has_ipv6: bool,
    /// The families that the host forwards from the bridge.
    pub forwarding: BTreeSet<Family>,
    /// The ports of containers that another program detached.
    pub detached: BTreeSet<Port>,
    /// Whether it separates VLANs. Ports and bridge may then be in different VLANs, or in none.
    pub has_vlan_filtering: bool,
}

/// A bridge that another program removed, and whose containers exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LostBridge {
    /// Its MAC. The containers have it as the MAC of their gateway.
    pub mac: Option<Mac>,
    /// Its MTU.
    pub mtu: Mtu,
    /// The ports of its containers.
    pub ports: BTreeSet<Port>,
}

/// The port of a container at a bridge.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    /// Its index. The kernel gives the index to no other device until its numbers wrap.
    pub index: u32,
    /// Its name.
    pub name: String,
}

/// A VXLAN device and its entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// The device itself.
    pub link: Link,
    /// Its addresses, without those that the kernel assigns itself.
    pub addresses: BTreeSet<InterfaceAddress>,
    /// The permanent neighbors: VTEP addresses and their MACs.
    pub neighbors: BTreeMap<IpAddr, Mac>,
    /// The FDB entries: MACs and the underlay address of each MAC's agent.
    pub forwards: BTreeMap<Mac, IpAddr>,
}

/// A VXLAN device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The properties that never change.
    pub identity: Identity,
    /// Its MAC.
    pub mac: Mac,
    /// Its MTU.
    pub mtu: Mtu,
    /// Source address of the encapsulated packets.
    pub underlay: Option<IpAddr>,
    /// Whether the device learns FDB entries from packets. Learning must be off: with learning, the
    /// device drops packets that a peer sends from an address that is not in its FDB entry.
    pub is_learning: bool,
    /// Whether the outer UDP header has a checksum. The kernel cannot change it, so an existing
    /// device keeps its own.
    pub has_checksum: bool,
    /// Whether it is up.
    pub is_up: bool,
    /// Whether it has our mark.
    pub is_marked: bool,
    /// Whether IPv6 is enabled. The plan enables it only if the device has an IPv6 address.
    pub has_ipv6: bool,
    /// Whether `rp_filter` is 2: the device accepts packets if the route back uses another device.
    pub has_loose_rp_filter: bool,
    /// The families that the host forwards from the device.
    pub forwarding: BTreeSet<Family>,
    /// Whether it is a port of a bridge, or of another device that takes its packets.
    pub is_port: bool,
}

/// The properties of a VXLAN device that the kernel cannot change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// VXLAN network identifier.
    pub vni: Vni,
    /// UDP port.
    pub port: u16,
    /// Address family of the underlay.
    pub family: Family,
}

/// The properties by which the kernel distinguishes routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteKey {
    /// The destination.
    pub subnet: Subnet,
    /// The metric. The kernel prefers the lower one.
    pub metric: u32,
}

/// The target of a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hop {
    /// A peer.
    Via {
        /// The VXLAN device.
        device: DeviceName,
        /// The VTEP address of the peer.
        gateway: IpAddr,
        /// Whether the kernel uses the gateway without a route to it.
        is_onlink: bool,
    },
    /// A peer on the same L2 segment, without a tunnel.
    Direct {
        /// The device in the underlay.
        device: DeviceName,
        /// The underlay address of the peer. The kernel uses it without a route to it.
        gateway: IpAddr,
        /// Source of the packets of this host: its VTEP address, which the peer accepts from it.
        source: IpAddr,
    },
    /// No host. The sender gets an ICMP error.
    Unreachable,
    /// A target that our routes never have.
    Elsewhere,
}

/// One change of the kernel's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Add a device that is up.
    AddDevice(DeviceName, Link),
    /// Remove a device.
    RemoveDevice(DeviceName),
    /// Add a bridge again that another program removed.
    AddBridge(DeviceName, LostBridge),
    /// Attach a port to a bridge again.
    AttachPort(DeviceName, Port),
    /// Set the alias that marks a device as managed.
    Mark(DeviceName),
    /// Set the source address of encapsulated packets.
    SetUnderlay(DeviceName, IpAddr),
    /// Disable the learning of FDB entries.
    StopLearning(DeviceName),
    /// Set the MAC.
    SetMac(DeviceName, Mac),
    /// Set the MTU.
    SetMtu(DeviceName, Mtu),
    /// Enable IPv6 on a device.
    EnableIpv6(DeviceName),
    /// Set `rp_filter` to 2: accept packets if the route back uses another device.
    SetLooseRpFilter(DeviceName),
    /// Let the host forward packets of a family from a device.
    EnableForwarding(DeviceName, Family),
    /// Compute the checksums of a device in software: the hardware does it wrong.
    DisableChecksumOffload(DeviceName),
    /// Take a device out of the bridge or other device that takes its packets.
    Release(DeviceName),
    /// Let a bridge forward between all its ports.
    DisableVlanFiltering(DeviceName),
    /// Set a device up.
    SetUp(DeviceName),
    /// Add an address.
    AddAddress(DeviceName, InterfaceAddress),
    /// Remove an address.
    RemoveAddress(DeviceName, InterfaceAddress),
    /// Set the MAC of a VTEP address.
    SetNeighbor(DeviceName, IpAddr, Mac),
    /// Remove the neighbor entry of a VTEP address.
    RemoveNeighbor(DeviceName, IpAddr),
    /// Set the FDB entry of a MAC.
    SetForward(DeviceName, Mac, IpAddr),
    /// Remove the FDB entry of a MAC.
    RemoveForward(DeviceName, Mac, IpAddr),
    /// Add a route that does not exist.
    AddRoute(RouteKey, Hop),
    /// Change the target of a managed route.
    ChangeRoute(RouteKey, Hop),
    /// Remove a managed route.
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
            Self::Direct { device, gateway, .. } => write!(f, "directly to {gateway} on {device}"),
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
            Self::AddBridge(device, _) => write!(f, "add bridge {device} again"),
            Self::AttachPort(device, port) => {
                write!(f, "attach port {} to bridge {device} again", port.name)
            }
            Self::Mark(device) => write!(f, "mark device {device}"),
            Self::SetUnderlay(device, ip) => write!(f, "send from {ip} on device {device}"),
            Self::StopLearning(device) => write!(f, "stop device {device} from learning"),
            Self::SetMac(device, mac) => write!(f, "set MAC {mac} of device {device}"),
            Self::SetMtu(device, mtu) => write!(f, "set MTU {mtu} of device {device}"),
            Self::EnableIpv6(device) => write!(f, "enable IPv6 on device {device}"),
            Self::SetLooseRpFilter(device) => write!(f, "set rp_filter 2 of device {device}"),
            Self::EnableForwarding(device, family) => {
                write!(f, "enable {family} forwarding from device {device}")
            }
            Self::DisableChecksumOffload(device) => {
                write!(f, "switch off the checksum offload of device {device}")
            }
            Self::Release(device) => {
                write!(f, "take device {device} out of the device that it was a port of")
            }
            Self::DisableVlanFiltering(device) => {
                write!(f, "disable VLAN filtering of bridge {device}")
            }
            Self::SetUp(device) => write!(f, "set device {device} up"),
            Self::AddAddress(device, ip) => write!(f, "add address {ip} on device {device}"),
            Self::RemoveAddress(device, ip) => write!(f, "remove address {ip} of device {device}"),
            Self::SetNeighbor(device, ip, mac) => {
                write!(f, "set neighbor {ip} to {mac} on device {device}")
            }
            Self::RemoveNeighbor(device, ip) => write!(f, "remove neighbor {ip} on {device}"),
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
    /// Returns the device that the operation adds or requires.
    #[must_use]
    pub const fn device(&self) -> Option<&DeviceName> {
        match self {
            Self::AddDevice(device, _)
            | Self::RemoveDevice(device)
            | Self::AddBridge(device, _)
            | Self::AttachPort(device, _)
            | Self::Mark(device)
            | Self::SetUnderlay(device, _)
            | Self::StopLearning(device)
            | Self::SetMac(device, _)
            | Self::SetMtu(device, _)
            | Self::EnableIpv6(device)
            | Self::SetLooseRpFilter(device)
            | Self::EnableForwarding(device, _)
            | Self::DisableChecksumOffload(device)
            | Self::Release(device)
            | Self::DisableVlanFiltering(device)
            | Self::SetUp(device)
            | Self::AddAddress(device, _)
            | Self::RemoveAddress(device, _)
            | Self::SetNeighbor(device, ..)
            | Self::RemoveNeighbor(device, _)
            | Self::SetForward(device, ..)
            | Self::RemoveForward(device, ..)
            | Self::AddRoute(_, Hop::Via { device, .. } | Hop::Direct { device, .. })
            | Self::ChangeRoute(_, Hop::Via { device, .. } | Hop::Direct { device, .. }) => {
                Some(device)
            }
            Self::AddRoute(..) | Self::ChangeRoute(..) | Self::RemoveRoute(..) => None,
        }
    }

    /// Returns the object that a failure of this operation affects.
    #[must_use]
    pub fn scope(&self) -> FaultScope {
        match self {
            Self::SetForward(_, _, agent) | Self::RemoveForward(_, _, agent) => {
                FaultScope::Agent(*agent)
            }
            Self::AddRoute(key, _) | Self::ChangeRoute(key, _) | Self::RemoveRoute(key, _) => {
                FaultScope::Subnet(key.subnet)
            }
            on_device => on_device.device().cloned().map_or(FaultScope::Host, FaultScope::Device),
        }
    }
}

impl Device {
    /// Creates a device without entries.
    #[must_use]
    pub const fn bare(link: Link) -> Self {
        Self {
            link,
            addresses: BTreeSet::new(),
            neighbors: BTreeMap::new(),
            forwards: BTreeMap::new(),
        }
    }
}

impl State {
    /// Changes this state as the kernel does when it accepts `operation`.
    pub fn perform(&mut self, operation: &Operation) {
        match operation {
            // A new device has no alias, even if the request sets an alias. Its settings are the
            // host's defaults: IPv6 may be disabled, and `rp_filter` may be strict.
            Operation::AddDevice(device, link) => {
                let bare = Link { is_marked: false, has_ipv6: false, ..link.clone() };
                let link = Link { has_loose_rp_filter: false, is_port: false, ..bare };
                let link = Link { forwarding: BTreeSet::new(), ..link };
                self.devices.insert(device.clone(), Device::bare(link));
            }
            Operation::RemoveDevice(device) => {
                let removed = self.devices.remove(device);
                let addresses = removed.map(|device| device.addresses).unwrap_or_default();
                self.routes.retain(|_, hop| {
                    !hop.is_on(device) && !addresses.iter().any(|it| hop.has_source(it))
                });
            }
            Operation::AddBridge(device, lost) => {
                self.lost_bridges.remove(device);
                let detached = lost.ports.clone();
                self.bridges.insert(device.clone(), BridgeState { detached, ..lost.bare() });
            }
            Operation::RemoveAddress(device, address) => self.remove_address(device, address),
            Operation::SetMtu(device, mtu) => self.set_mtu(device, *mtu),
            Operation::AddRoute(key, hop) | Operation::ChangeRoute(key, hop) => {
                self.routes.insert(*key, hop.clone());
            }
            Operation::RemoveRoute(key, _) => {
                self.routes.remove(key);
            }
            on_device => {
                let Some(name) = on_device.device() else { return };
                if let Some(device) = self.devices.get_mut(name) {
                    device.perform(on_device);
                } else if let Some(bridge) = self.bridges.get_mut(name) {
                    bridge.perform(on_device);
                }
            }
        }
    }

    /// Sets the MTU of a device or bridge. The kernel removes IPv6 from a device whose MTU is below
    /// the least of IPv6.
    fn set_mtu(&mut self, name: &DeviceName, mtu: Mtu) {
        let has_room6 = mtu.bytes() >= Mtu::MIN_IPV6;
        if let Some(device) = self.devices.get_mut(name) {
            device.link.mtu = mtu;
            if !has_room6 {
                device.link.has_ipv6 = false;
                device.link.forwarding.remove(&Family::V6);
                device.addresses.retain(|address| address.family() == Family::V4);
                device.neighbors.retain(|to, _| to.is_ipv4());
                self.routes
                    .retain(|key, hop| key.subnet.family() == Family::V4 || !hop.is_on(name));
            }
        } else if let Some(bridge) = self.bridges.get_mut(name) {
            bridge.mtu = mtu;
            if !has_room6 {
                bridge.has_ipv6 = false;
                bridge.forwarding.remove(&Family::V6);
                bridge.addresses.retain(|address| address.family() == Family::V4);
            }
        }
    }

    /// Returns the addresses of a device or bridge.
    #[must_use]
    pub fn addresses(&self, name: &DeviceName) -> BTreeSet<InterfaceAddress> {
        let device = self.devices.get(name).map(|device| &device.addresses);
        let bridge = self.bridges.get(name).map(|bridge| &bridge.addresses);
        device.or(bridge).cloned().unwrap_or_default()
    }

    /// Removes an address. With an IPv4 address the kernel also removes the secondary addresses of
    /// the same subnet. With the last IPv4 address it also removes the device's IPv4 routes.
    fn remove_address(&mut self, name: &DeviceName, address: &InterfaceAddress) {
        let addresses = match (self.devices.get_mut(name), self.bridges.get_mut(name)) {
            (Some(device), _) => &mut device.addresses,
            (None, Some(bridge)) => &mut bridge.addresses,
            (None, None) => return,
        };
        addresses.remove(address);
        if address.family() == Family::V6 {
            return;
        }
        let before = addresses.clone();
        let subnet = Subnet::containing(address.address(), address.prefix());
        addresses.retain(|other| {
            subnet.is_none_or(|subnet| {
                other.prefix() != subnet.prefix() || !subnet.contains(other.address())
            })
        });
        let removed: Vec<_> = before.difference(addresses).chain([address]).copied().collect();
        let is_last = !addresses.iter().any(|other| other.family() == Family::V4);
        self.routes.retain(|_, hop| !removed.iter().any(|address| hop.has_source(address)));
        if is_last {
            self.routes.retain(|key, hop| key.subnet.family() == Family::V6 || !hop.is_on(name));
        }
    }
}

impl BridgeState {
    fn perform(&mut self, operation: &Operation) {
        match operation {
            Operation::EnableIpv6(_) => self.has_ipv6 = true,
            Operation::EnableForwarding(_, family) => {
                self.forwarding.insert(*family);
            }
            Operation::SetUp(_) => self.is_up = true,
            Operation::AttachPort(_, port) => {
                self.detached.remove(port);
            }
            Operation::DisableVlanFiltering(_) => self.has_vlan_filtering = false,
            Operation::AddAddress(_, address) => {
                self.addresses.insert(*address);
            }
            _ => {}
        }
    }
}

impl LostBridge {
    /// Returns the state of the bridge when it was added again: down, without settings and ports.
    #[must_use]
    pub const fn bare(&self) -> BridgeState {
        BridgeState {
            is_up: false,
            mtu: self.mtu,
            addresses: BTreeSet::new(),
            has_ipv6: false,
            forwarding: BTreeSet::new(),
            detached: BTreeSet::new(),
            has_vlan_filtering: false,
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
            // The kernel flushes the neighbor tables, even if the MAC stays.
            Operation::SetMac(_, mac) => {
                link.mac = *mac;
                self.neighbors.clear();
            }
            Operation::EnableIpv6(_) => link.has_ipv6 = true,
            Operation::SetLooseRpFilter(_) => link.has_loose_rp_filter = true,
            Operation::EnableForwarding(_, family) => {
                link.forwarding.insert(*family);
            }
            Operation::SetUp(_) => link.is_up = true,
            Operation::Release(_) => link.is_port = false,
            Operation::AddAddress(_, address) => {
                self.addresses.insert(*address);
            }
            Operation::SetNeighbor(_, ip, mac) => {
                self.neighbors.insert(*ip, *mac);
            }
            Operation::RemoveNeighbor(_, ip) => {
                self.neighbors.remove(ip);
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
    /// Returns whether the route uses this device.
    #[must_use]
    pub fn is_on(&self, name: &DeviceName) -> bool {
        matches!(self, Self::Via { device, .. } | Self::Direct { device, .. } if device == name)
    }

    /// Returns whether the route has this source. The kernel removes such a route with the address.
    fn has_source(&self, address: &InterfaceAddress) -> bool {
        matches!(self, Self::Direct { source, .. } if *source == address.address())
    }
}
