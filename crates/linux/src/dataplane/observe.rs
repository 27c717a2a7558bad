//! Reads the managed objects and conflicting objects from the kernel. The requests contain filters
//! that older kernels ignore, so all answers are filtered here again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::{fs, io};

use overlay_types::addr::{DeviceName, Family, InterfaceAddress, Mac, Mtu, Subnet, Vni};
use overlay_types::tunnel::{Desired, HostAddress, HostRoute, VxlanDevice};
use rustix::io::Errno;

use super::bridges::BridgeMemory;
use super::containers::stray_ports;
use super::direct;
use super::message::{Batch, Message, address, attributes, family_of, text, u16_at, u32_at};
use super::plan::Observed;
use super::socket::Netlink;
use super::state::{BridgeState, Device, Hop, Identity, Link, RouteKey};
use super::uapi::{
    AF_BRIDGE, AF_INET, AF_INET6, AF_UNSPEC, ARPHRD_ETHER, IFA_ADDRESS, IFA_LOCAL, IFF_LOOPBACK,
    IFF_NOARP, IFF_UP, IFLA_ADDRESS, IFLA_BR_VLAN_FILTERING, IFLA_BRPORT_STATE, IFLA_EXT_MASK,
    IFLA_IFALIAS, IFLA_IFNAME, IFLA_INFO_DATA, IFLA_INFO_KIND, IFLA_INFO_SLAVE_DATA,
    IFLA_INFO_SLAVE_KIND, IFLA_LINK, IFLA_LINK_NETNSID, IFLA_LINKINFO, IFLA_MASTER, IFLA_MTU,
    IFLA_VXLAN_ID, IFLA_VXLAN_LEARNING, IFLA_VXLAN_LOCAL, IFLA_VXLAN_LOCAL6, IFLA_VXLAN_PORT,
    IFLA_VXLAN_UDP_CSUM, IFLA_XDP, IFLA_XDP_HW_PROG_ID, IFLA_XDP_PROG_ID, NDA_DST, NDA_IFINDEX,
    NDA_LLADDR, NLM_F_REQUEST, NTF_SELF, NUD_PERMANENT, RT_SCOPE_UNIVERSE, RT_TABLE_MAIN, RTA_DST,
    RTA_GATEWAY, RTA_MULTIPATH, RTA_OIF, RTA_PREFSRC, RTA_PRIORITY, RTA_TABLE, RTA_VIA,
    RTEXT_FILTER_SKIP_STATS, RTM_F_CLONED, RTM_GETADDR, RTM_GETLINK, RTM_GETNEIGH, RTM_GETROUTE,
    RTN_BLACKHOLE, RTN_PROHIBIT, RTN_UNICAST, RTN_UNREACHABLE, RTNH_F_ONLINK,
};
use super::underlay::{self, RoutingSnapshot};
use super::vrf::{VRF_KIND, VrfMember, add_vrf_members, vrf_table};
use super::{MARK, PROTOCOL};
use crate::probe::is_probe_port;

/// Indices of the devices that operations change.
#[derive(Debug, Default)]
pub(super) struct Indices {
    /// Our VXLAN devices.
    pub(super) vxlan: BTreeMap<DeviceName, u32>,
    /// The bridges of the overlays.
    pub(super) bridges: BTreeMap<DeviceName, u32>,
    /// All bridges of the host.
    pub(super) all_bridges: BTreeSet<u32>,
    /// Our VXLAN devices and the bridges of the overlays that belong to a VRF.
    pub(super) vrf_members: BTreeMap<DeviceName, VrfMember>,
    /// The devices that have the underlay addresses. Several devices may have the same address.
    pub(super) underlays: BTreeMap<IpAddr, BTreeSet<u32>>,
    /// The device through which packets go to peers without encapsulation.
    pub(super) direct: Option<(DeviceName, u32)>,
    /// All devices of the host.
    pub(super) links: Vec<HostLink>,
    /// The routes of other programs without a destination.
    pub(super) dead_ends: Vec<Route>,
}

impl Indices {
    /// Returns the VRF that a device of the overlays belongs to.
    pub(super) fn vrf_member(&self, device: &DeviceName) -> Option<Box<VrfMember>> {
        self.vrf_members.get(device).cloned().map(Box::new)
    }

    pub(super) fn get(&self, device: &DeviceName) -> Option<u32> {
        let own = self.vxlan.get(device).or_else(|| self.bridges.get(device)).copied();
        own.or_else(|| self.direct.iter().find(|(name, _)| name == device).map(|(_, index)| *index))
    }
}

/// Kind of a bridge in the kernel.
pub(super) const BRIDGE_KIND: &str = "bridge";

/// A bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bridge {
    /// Its name.
    pub name: String,
    /// The devices that are its ports. A container's port has its other end in the container.
    pub ports: Vec<String>,
    pub(super) index: u32,
}

/// A device of the host.
#[derive(Debug)]
pub(super) struct HostLink {
    pub(super) index: u32,
    pub(super) name: String,
    /// Whether it leads to this host.
    pub(super) is_loopback: bool,
    /// Index of the bridge or VRF that the device belongs to, or of another device that takes its
    /// packets.
    pub(super) master: Option<u32>,
    /// The flags of the device.
    pub(super) flags: u32,
    /// Number of the network namespace that the device leads to, if that is another one.
    pub(super) namespace: Option<u32>,
    /// Index of the other end of a veth pair, in its namespace.
    pub(super) peer: Option<u32>,
    pub(super) is_up: bool,
    /// Whether its frames are those of Ethernet.
    pub(super) is_ethernet: bool,
    pub(super) mac: Option<Mac>,
    pub(super) mtu: u32,
    pub(super) alias: String,
    pub(super) kind: String,
    /// The routing table, if the device is a VRF.
    pub(super) vrf_table: Option<u32>,
    pub(super) vxlan: Option<Vxlan>,
    /// Whether the bridge separates VLANs.
    pub(super) has_vlan_filtering: bool,
    /// The state of a port of a bridge in the spanning tree.
    pub(super) port_state: Option<u8>,
    /// The XDP program of the device.
    pub(super) xdp: Option<u32>,
}

#[derive(Debug, Default)]
pub(super) struct Vxlan {
    vni: u32,
    port: u16,
    local: Option<IpAddr>,
    is_learning: bool,
    has_checksum: bool,
}

/// Reads the observed state and the indices of our devices.
pub(super) fn observe(
    netlink: &mut Netlink,
    desired: &Desired,
    memory: &mut BridgeMemory,
) -> io::Result<(Observed, Indices)> {
    let links = links(netlink)?;
    let addresses = addresses(netlink)?;
    let mut observed = Observed::default();
    let mut indices = Indices::default();
    for link in &links {
        classify(link, desired, &mut observed, &mut indices);
    }
    // One dump of all routes costs less than one of the own and one of the others.
    let mut all_routes = Vec::new();
    for family in [AF_INET, AF_INET6] {
        all_routes.extend(routes(netlink, family)?);
    }
    let (own, foreign): (Vec<_>, Vec<_>) =
        all_routes.into_iter().partition(|route| route.protocol == PROTOCOL);
    let host = RoutingSnapshot { links: &links, addresses: &addresses, routes: &foreign };
    underlay::observe(netlink, &host, desired, &mut observed)?;
    if desired.direct.is_some() {
        let (direct, index) = direct::observe(netlink, &host, desired)?;
        observed.direct = Some(direct);
        indices.direct = index;
    }
    indices.dead_ends = foreign.into_iter().filter(Route::is_dead_end).collect();
    observed.state.routes = by_key(own.into_iter().map(|route| (route.key, route.hop(&indices))));
    add_bridges(&links, &addresses, desired, &mut observed, &mut indices);
    let strays = stray_ports(netlink, &links, desired);
    memory.update(&links, strays, desired, &mut observed.state);
    add_vrf_members(&links, &addresses, desired, &mut observed, &mut indices);
    for (index, address) in &addresses {
        let own = address.address();
        if desired.vxlan_devices.iter().any(|local| local.underlay == own) {
            indices.underlays.entry(own).or_default().insert(*index);
        }
    }
    for (name, &index) in &indices.vxlan {
        let Some(device) = observed.state.devices.get_mut(name) else { continue };
        let own = addresses.iter().filter(|(owner, _)| *owner == index);
        device.addresses.extend(own.map(|(_, address)| *address));
        // A collection of all entries at once is built faster than entry by entry.
        let mut all_neighbors = neighbors(netlink, AF_INET, index)?;
        all_neighbors.append(&mut neighbors(netlink, AF_INET6, index)?);
        device.neighbors = all_neighbors.into_iter().collect();
        device.forwards = forwards(netlink, index)?;
    }
    indices.links = links;
    Ok((observed, indices))
}

/// Returns our routes by their keys, which are distinct. A second route with the same key is foreign,
/// so the entry is recorded as wrong.
fn by_key(routes: impl Iterator<Item = (RouteKey, Hop)>) -> BTreeMap<RouteKey, Hop> {
    let mut routes: Vec<_> = routes.collect();
    routes.sort_by_key(|(key, _)| *key);
    routes.dedup_by(|(second, _), (first, hop)| {
        let is_second = second == first;
        if is_second {
            *hop = Hop::Elsewhere;
        }
        is_second
    });
    routes.into_iter().collect()
}

/// Reads the underlay only.
pub(super) fn observe_underlay(netlink: &mut Netlink, desired: &Desired) -> io::Result<Observed> {
    let (links, addresses) = (links(netlink)?, addresses(netlink)?);
    let mut observed = Observed::default();
    let host = RoutingSnapshot { links: &links, addresses: &addresses, routes: &[] };
    underlay::observe(netlink, &host, desired, &mut observed)?;
    Ok(observed)
}

/// Returns the unicast routes of the main table, our routes, and the host's addresses.
pub(super) fn host_routes_and_addresses(
    netlink: &mut Netlink,
) -> io::Result<(Vec<HostRoute>, Vec<HostAddress>)> {
    let names: BTreeMap<u32, String> =
        links(netlink)?.into_iter().map(|link| (link.index, link.name)).collect();
    let mut found = Vec::new();
    for family in [AF_INET, AF_INET6] {
        let routes = routes(netlink, family)?;
        found.extend(routes.into_iter().filter(Route::is_of_host).map(|route| HostRoute {
            subnet: route.key.subnet,
            device: route.index.and_then(|index| names.get(&index).cloned()),
            gateway: route.gateway,
            is_ours: route.protocol == PROTOCOL,
        }));
    }
    let named =
        |(index, address)| Some(HostAddress { address, device: names.get(&index).cloned()? });
    Ok((found, addresses(netlink)?.into_iter().filter_map(named).collect()))
}

/// Records a device of the host as managed, as unmanaged with a conflicting name, or as a foreign
/// VXLAN device.
fn classify(link: &HostLink, desired: &Desired, observed: &mut Observed, indices: &mut Indices) {
    let local = desired.vxlan_devices.iter().find(|local| local.device.as_str() == link.name);
    let own = link.vxlan.as_ref().and_then(|vxlan| managed_device(link, vxlan, local));
    if let Some((name, device)) = own {
        indices.vxlan.insert(name.clone(), link.index);
        observed.state.devices.insert(name, device);
        return;
    }
    if let Some(local) = local {
        let kind = if link.kind.is_empty() { "physical" } else { &link.kind };
        observed.name_conflicts.insert(local.device.clone(), kind.to_owned());
    }
    if let Some(vxlan) = &link.vxlan
        && let Ok(vni) = Vni::new(vxlan.vni)
    {
        observed.foreign_vxlans.push((link.name.clone(), vni, vxlan.port));
    }
}

/// Records the bridges of the overlays.
fn add_bridges(
    links: &[HostLink],
    addresses: &[(u32, InterfaceAddress)],
    desired: &Desired,
    observed: &mut Observed,
    indices: &mut Indices,
) {
    let names: BTreeMap<_, _> =
        desired.bridges().map(|bridge| (bridge.device.as_str(), bridge)).collect();
    // The unreachable routes show the overlays of an earlier assignment.
    let former = observed.state.routes.iter().filter(|(_, hop)| **hop == Hop::Unreachable);
    let mut spaces: Vec<Subnet> = former.map(|(key, _)| key.subnet).collect();
    spaces.extend(desired.spaces.iter().flat_map(|space| &space.whole));
    let is_in_overlay =
        |address: &InterfaceAddress| spaces.iter().any(|whole| whole.contains(address.address()));
    for link in links.iter().filter(|link| link.kind == BRIDGE_KIND) {
        indices.all_bridges.insert(link.index);
        let (Some(bridge), Ok(mtu)) = (names.get(link.name.as_str()), Mtu::new(link.mtu)) else {
            continue;
        };
        let all = addresses.iter().filter(|(owner, _)| *owner == link.index);
        let all: Vec<_> = all.map(|(_, address)| *address).collect();
        if is_of_cni_plugin(&bridge.device) {
            let before = all.iter().take_while(|address| !bridge.gateways.contains(address));
            let foreign =
                before.filter(|address| address.family() == Family::V4 && !is_in_overlay(address));
            let foreign = foreign.map(|address| (bridge.device.clone(), *address));
            observed.foreign_addresses.extend(foreign);
        }
        let own = all.into_iter().filter(is_in_overlay);
        let state = BridgeState {
            is_up: link.is_up,
            mtu,
            addresses: own.collect(),
            has_ipv6: read_sysctl(&disable_ipv6_setting(&bridge.device)) == Some(0),
            forwarding: forwarding(&bridge.device),
            detached: BTreeSet::new(),
            has_vlan_filtering: link.has_vlan_filtering,
        };
        // The port of the probes follows the containers.
        let ports = links
            .iter()
            .filter(|port| port.master == Some(link.index) && !is_probe_port(&port.name));
        let ports = ports.filter_map(|port| Some((port.name.clone(), Mtu::new(port.mtu).ok()?)));
        observed.ports.insert(bridge.device.clone(), ports.collect());
        indices.bridges.insert(bridge.device.clone(), link.index);
        observed.state.bridges.insert(bridge.device.clone(), state);
    }
}

/// Returns whether the CNI plugin adds containers to a bridge.
fn is_of_cni_plugin(bridge: &DeviceName) -> bool {
    bridge.as_str().starts_with("m-")
}

/// Returns the families that the host forwards from a device.
fn forwarding(device: &DeviceName) -> BTreeSet<Family> {
    let families = [Family::V4, Family::V6].into_iter();
    families.filter(|family| read_sysctl(&forwarding_setting(device, *family)) == Some(1)).collect()
}

/// Returns the device if it is managed: it has our mark, or its name, VNI, port and MAC match the
/// desired device, as after an upgrade from dcos-net.
fn managed_device(
    link: &HostLink,
    vxlan: &Vxlan,
    local: Option<&VxlanDevice>,
) -> Option<(DeviceName, Device)> {
    let name: DeviceName = link.name.parse().ok()?;
    let is_marked = link.alias == MARK;
    let is_v6 = vxlan.local.is_some_and(|local| local.is_ipv6());
    let identity = Identity {
        vni: Vni::new(vxlan.vni).ok()?,
        port: vxlan.port,
        family: if is_v6 { Family::V6 } else { Family::V4 },
    };
    let is_adopted = local.is_some_and(|local| {
        (local.vni, local.port, Some(local.mac)) == (identity.vni, identity.port, link.mac)
    });
    if !is_marked && !is_adopted {
        return None;
    }
    let link = Link {
        identity,
        mac: link.mac?,
        mtu: Mtu::new(link.mtu).ok()?,
        underlay: vxlan.local,
        is_learning: vxlan.is_learning,
        // A tunnel over IPv6 has a checksum, unless two other attributes switch it off.
        has_checksum: vxlan.has_checksum || is_v6,
        is_up: link.is_up,
        is_marked,
        has_ipv6: read_sysctl(&disable_ipv6_setting(&name)) == Some(0),
        has_loose_rp_filter: read_sysctl(&rp_filter_setting(&name)) == Some(2),
        forwarding: forwarding(&name),
        is_port: link.master.is_some(),
    };
    Some((name, Device::bare(link)))
}

/// Returns the path of the setting that disables IPv6 on a device. The namespace is that of the
/// calling thread. The kernel removes the setting with the device, so it is never restored.
pub(super) fn disable_ipv6_setting(device: &DeviceName) -> String {
    format!("/proc/sys/net/ipv6/conf/{device}/disable_ipv6")
}

/// Returns the path of the reverse path filter of a device; see [`disable_ipv6_setting`].
pub(super) fn rp_filter_setting(device: &DeviceName) -> String {
    format!("/proc/sys/net/ipv4/conf/{device}/rp_filter")
}

/// Returns the path of the setting that lets the host forward packets from a device; see
/// [`disable_ipv6_setting`].
pub(super) fn forwarding_setting(device: &DeviceName, family: Family) -> String {
    let family = match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    };
    format!("/proc/sys/net/{family}/conf/{device}/forwarding")
}

pub(super) fn read_sysctl(path: &str) -> Option<u32> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Lists the bridges of the host with their ports.
pub(super) fn bridges(netlink: &mut Netlink) -> io::Result<Vec<Bridge>> {
    let links = links(netlink)?;
    let mut ports: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for link in &links {
        // The port of our probes is no container.
        if let Some(master) = link.master.filter(|_| !is_probe_port(&link.name)) {
            ports.entry(master).or_default().push(link.name.clone());
        }
    }
    let bridges = links.into_iter().filter(|link| link.kind == BRIDGE_KIND);
    let bridges = bridges.map(|link| Bridge {
        ports: ports.remove(&link.index).unwrap_or_default(),
        name: link.name,
        index: link.index,
    });
    Ok(bridges.collect())
}

/// Lists the devices of the host.
pub(super) fn links(netlink: &mut Netlink) -> io::Result<Vec<HostLink>> {
    let mut header = [0; 16];
    header[0] = AF_UNSPEC;
    netlink.dump(
        RTM_GETLINK,
        &header,
        |batch| batch.attribute(IFLA_EXT_MASK, &RTEXT_FILTER_SKIP_STATS.to_ne_bytes()),
        |links: &mut Vec<HostLink>, message| links.extend(link(message)),
        Vec::new,
    )
}

/// Reads one link by its name. `None` if it does not exist.
pub(super) fn link_named(netlink: &mut Netlink, name: &DeviceName) -> io::Result<Option<HostLink>> {
    let mut request = Batch::default();
    request.begin(RTM_GETLINK, NLM_F_REQUEST, &[0; 16]);
    request.text(IFLA_IFNAME, name.as_str());
    request.attribute(IFLA_EXT_MASK, &RTEXT_FILTER_SKIP_STATS.to_ne_bytes());
    match netlink.ask(&mut request, link)? {
        Ok(found) => Ok(found),
        Err(Errno::NODEV) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

fn link(message: Message<'_>) -> Option<HostLink> {
    let flags = u32_at(message.body, 8)?;
    let mut link = HostLink {
        index: u32_at(message.body, 4)?,
        name: String::new(),
        master: None,
        namespace: None,
        peer: None,
        is_loopback: flags & IFF_LOOPBACK != 0,
        flags,
        is_up: flags & IFF_UP != 0,
        is_ethernet: u16_at(message.body, 2) == Some(ARPHRD_ETHER) && flags & IFF_NOARP == 0,
        mac: None,
        mtu: 0,
        alias: String::new(),
        kind: String::new(),
        vxlan: None,
        vrf_table: None,
        has_vlan_filtering: false,
        port_state: None,
        xdp: None,
    };
    for (kind, value) in attributes(message.body, 16) {
        match kind {
            IFLA_IFNAME => link.name = text(value),
            IFLA_ADDRESS => link.mac = mac(value),
            IFLA_MTU => link.mtu = u32_at(value, 0)?,
            IFLA_IFALIAS => link.alias = text(value),
            IFLA_MASTER => link.master = u32_at(value, 0),
            IFLA_LINK => link.peer = u32_at(value, 0),
            IFLA_LINK_NETNSID => link.namespace = u32_at(value, 0),
            IFLA_LINKINFO => link.read_info(value),
            IFLA_XDP => {
                let programs = IFLA_XDP_PROG_ID..=IFLA_XDP_HW_PROG_ID;
                let mut attributes = attributes(value, 0);
                let program = attributes.find(|(kind, _)| programs.contains(kind));
                link.xdp = program.and_then(|(_, value)| u32_at(value, 0));
            }
            _ => {}
        }
    }
    Some(link)
}

impl HostLink {
    /// Returns whether a port of a bridge is that of a container: it leads to another namespace. That
    /// of the probes follows the containers.
    pub(super) fn leads_to_container(&self) -> bool {
        self.namespace.is_some() && !is_probe_port(&self.name)
    }

    /// Reads what depends on the kind of the device and of its master.
    fn read_info(&mut self, value: &[u8]) {
        self.has_vlan_filtering = has_vlan_filtering(value);
        let mut is_bridge_port = false;
        for (kind, value) in attributes(value, 0) {
            match kind {
                IFLA_INFO_KIND => self.kind = text(value),
                IFLA_INFO_DATA if self.kind == "vxlan" => self.vxlan = Some(vxlan(value)),
                IFLA_INFO_DATA if self.kind == VRF_KIND => self.vrf_table = vrf_table(value),
                IFLA_INFO_SLAVE_KIND => is_bridge_port = text(value) == BRIDGE_KIND,
                IFLA_INFO_SLAVE_DATA if is_bridge_port => {
                    let mut attributes = attributes(value, 0);
                    let state = attributes.find(|(kind, _)| *kind == IFLA_BRPORT_STATE);
                    self.port_state = state.and_then(|(_, value)| value.first().copied());
                }
                _ => {}
            }
        }
    }
}

/// Returns whether the information about a device is that of a bridge that separates VLANs.
pub(super) fn has_vlan_filtering(info: &[u8]) -> bool {
    let mut is_bridge = false;
    attributes(info, 0).any(|(kind, value)| match kind {
        IFLA_INFO_KIND => {
            is_bridge = text(value) == BRIDGE_KIND;
            false
        }
        IFLA_INFO_DATA if is_bridge => {
            attributes(value, 0).any(|(kind, value)| kind == IFLA_BR_VLAN_FILTERING && value != [0])
        }
        _ => false,
    })
}

fn vxlan(value: &[u8]) -> Vxlan {
    let mut vxlan = Vxlan::default();
    for (kind, value) in attributes(value, 0) {
        match kind {
            IFLA_VXLAN_ID => vxlan.vni = u32_at(value, 0).unwrap_or(0),
            IFLA_VXLAN_PORT => vxlan.port = u16_at(value, 0).map_or(0, u16::from_be),
            IFLA_VXLAN_LOCAL | IFLA_VXLAN_LOCAL6 => vxlan.local = address(value),
            IFLA_VXLAN_LEARNING => vxlan.is_learning = value.first() == Some(&1),
            IFLA_VXLAN_UDP_CSUM => vxlan.has_checksum = value.first() == Some(&1),
            _ => {}
        }
    }
    vxlan
}

/// Lists all addresses of global scope, with the index of their device.
pub(super) fn addresses(netlink: &mut Netlink) -> io::Result<Vec<(u32, InterfaceAddress)>> {
    netlink.dump(
        RTM_GETADDR,
        &[0; 8],
        |_| {},
        |addresses: &mut Vec<_>, message| addresses.extend(global_address(message.body)),
        Vec::new,
    )
}

fn global_address(body: &[u8]) -> Option<(u32, InterfaceAddress)> {
    let (prefix, scope) = (*body.get(1)?, *body.get(3)?);
    let mut own = None;
    for (kind, value) in attributes(body, 8) {
        // On a point-to-point link IFA_ADDRESS is the address of the other end.
        if kind == IFA_LOCAL || (kind == IFA_ADDRESS && own.is_none()) {
            own = address(value);
        }
    }
    let subnet = Subnet::containing(own?, prefix)?;
    let address = InterfaceAddress::within(&subnet, own?)?;
    (scope == RT_SCOPE_UNIVERSE).then_some((u32_at(body, 4)?, address))
}

/// Lists the permanent entries of a neighbor table or of the FDB. `read` gets the address, the MAC
/// and the flags of an entry.
fn entries<T>(
    netlink: &mut Netlink,
    family: u8,
    index: u32,
    read: impl Fn(Option<IpAddr>, Option<Mac>, u8) -> Option<T>,
) -> io::Result<Vec<T>> {
    let mut header = [0; 12];
    header[0] = family;
    netlink.dump(
        RTM_GETNEIGH,
        &header,
        |batch| batch.attribute(NDA_IFINDEX, &index.to_ne_bytes()),
        |entries: &mut Vec<_>, message| {
            let is_on_device = u32_at(message.body, 4) == Some(index);
            let is_permanent =
                u16_at(message.body, 8).is_some_and(|state| state & NUD_PERMANENT != 0);
            if message.body.first() != Some(&family) || !is_on_device || !is_permanent {
                return;
            }
            let (mut destination, mut own_mac) = (None, None);
            for (kind, value) in attributes(message.body, 12) {
                match kind {
                    NDA_DST => destination = address(value),
                    NDA_LLADDR => own_mac = mac(value),
                    _ => {}
                }
            }
            let flags = message.body.get(10).copied().unwrap_or(0);
            entries.extend(read(destination, own_mac, flags));
        },
        Vec::new,
    )
}

pub(super) fn neighbors(
    netlink: &mut Netlink,
    family: u8,
    index: u32,
) -> io::Result<Vec<(IpAddr, Mac)>> {
    let entries = entries(netlink, family, index, |ip, mac, _| Some((ip?, mac?)))?;
    // In some versions the kernel's own multicast entries are permanent.
    Ok(entries.into_iter().filter(|(ip, _)| !ip.is_multicast()).collect())
}

/// Lists the FDB entries of unicast MACs. The entries that flood packets are foreign.
fn forwards(netlink: &mut Netlink, index: u32) -> io::Result<BTreeMap<Mac, IpAddr>> {
    let read = |ip, mac: Option<Mac>, flags: u8| {
        let mac = mac.filter(|mac| mac.octets() != [0; 6] && mac.octets()[0] & 1 == 0)?;
        (flags & NTF_SELF != 0).then_some((mac, ip?))
    };
    Ok(entries(netlink, AF_BRIDGE, index, read)?.into_iter().collect())
}

pub(super) fn mac(value: &[u8]) -> Option<Mac> {
    <[u8; 6]>::try_from(value).ok().map(Mac::from)
}

/// A route of the main table.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) key: RouteKey,
    pub(super) protocol: u8,
    pub(super) index: Option<u32>,
    pub(super) gateway: Option<IpAddr>,
    /// The source of the packets of this host.
    source: Option<IpAddr>,
    pub(super) kind: u8,
    flags: u32,
}

impl Route {
    /// Creates a unicast route of another program.
    #[cfg(test)]
    pub(super) const fn to(subnet: Subnet) -> Self {
        let key = RouteKey { subnet, metric: 0 };
        Self {
            key,
            protocol: 0,
            index: None,
            gateway: None,
            source: None,
            kind: RTN_UNICAST,
            flags: 0,
        }
    }

    /// Returns whether the route is a unicast route of the host or one of our routes, and not an
    /// entry of the kernel's route cache.
    fn is_of_host(&self) -> bool {
        let is_ours = self.protocol == PROTOCOL;
        (self.kind == RTN_UNICAST || is_ours) && self.flags & RTM_F_CLONED == 0
    }

    /// Returns whether the kernel drops the packets of the route.
    fn is_dead_end(&self) -> bool {
        matches!(self.kind, RTN_BLACKHOLE | RTN_UNREACHABLE | RTN_PROHIBIT)
    }

    fn hop(&self, indices: &Indices) -> Hop {
        let device = indices.vxlan.iter().find(|(_, index)| Some(**index) == self.index);
        match (self.kind, device, self.gateway) {
            (RTN_UNREACHABLE, ..) => Hop::Unreachable,
            (RTN_UNICAST, Some((device, _)), Some(gateway)) => Hop::Via {
                device: device.clone(),
                gateway,
                is_onlink: self.flags & RTNH_F_ONLINK != 0,
            },
            (RTN_UNICAST, None, Some(gateway)) => {
                let direct = indices.direct.iter().find(|(_, index)| Some(*index) == self.index);
                let direct = direct.zip(self.source).filter(|_| self.flags & RTNH_F_ONLINK != 0);
                direct.map_or(Hop::Elsewhere, |((device, _), source)| Hop::Direct {
                    device: device.clone(),
                    gateway,
                    source,
                })
            }
            _ => Hop::Elsewhere,
        }
    }
}

/// Lists the routes of the main table.
pub(super) fn routes(netlink: &mut Netlink, family: u8) -> io::Result<Vec<Route>> {
    let mut header = [0; 12];
    (header[0], header[4]) = (family, RT_TABLE_MAIN);
    netlink.dump(
        RTM_GETROUTE,
        &header,
        |batch| batch.attribute(RTA_TABLE, &u32::from(RT_TABLE_MAIN).to_ne_bytes()),
        |routes: &mut Vec<_>, message| {
            let is_of_family = message.body.first() == Some(&family);
            routes.extend(route(message.body).filter(|_| is_of_family));
        },
        Vec::new,
    )
}

/// Parses the route of a message. Returns `None` for a route of another table or with a TOS.
pub(super) fn route(body: &[u8]) -> Option<Route> {
    let [family, prefix, _, tos, table, protocol, _, kind] = *body.get(..8)? else { return None };
    let any = match family {
        AF_INET => IpAddr::from([0; 4]),
        AF_INET6 => IpAddr::from([0; 16]),
        _ => return None,
    };
    let (mut to, mut metric, mut index, mut gateway) = (any, 0, None, None);
    let mut source = None;
    // The header field has 8 bits only. The attribute has the full table number.
    let mut full_table = u32::from(table);
    for (attribute, value) in attributes(body, 12) {
        match attribute {
            RTA_DST => to = address(value).filter(|to| family_of(*to) == family)?,
            RTA_PRIORITY => metric = u32_at(value, 0)?,
            RTA_OIF => index = u32_at(value, 0),
            RTA_GATEWAY => gateway = address(value),
            RTA_PREFSRC => source = address(value),
            RTA_VIA => gateway = value.get(2..).and_then(address),
            // Only the first next hop of a multipath route is read.
            RTA_MULTIPATH => {
                index = u32_at(value, 4);
                let hop = value.get(..usize::from(u16_at(value, 0)?)).unwrap_or_default();
                let mut attributes = attributes(hop, 8);
                gateway = attributes.find_map(|(kind, value)| match kind {
                    RTA_GATEWAY => address(value),
                    RTA_VIA => value.get(2..).and_then(address),
                    _ => None,
                });
            }
            RTA_TABLE => full_table = u32_at(value, 0)?,
            _ => {}
        }
    }
    if full_table != u32::from(RT_TABLE_MAIN) || tos != 0 {
        return None;
    }
    let key = RouteKey { subnet: Subnet::containing(to, prefix)?, metric };
    Some(Route { key, protocol, index, gateway, source, kind, flags: u32_at(body, 8)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_route_with_the_same_key_is_recorded_as_wrong() {
        let key = |subnet: &str| RouteKey { subnet: subnet.parse().unwrap(), metric: 0 };
        let (one, other) = (key("192.0.2.0/25"), key("192.0.2.128/25"));
        let routes = [other, one, other].map(|key| (key, Hop::Unreachable));
        let expected = [(one, Hop::Unreachable), (other, Hop::Elsewhere)];
        assert_eq!(by_key(routes.into_iter()), BTreeMap::from(expected));
    }
}
