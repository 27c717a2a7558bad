//! Plans the operations between the observed and the desired state. No other code decides about
//! changes in the kernel. Pure.
//!
//! The order disturbs traffic least: first the devices, then new and changed entries, and last the
//! removal of stale entries.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use itertools::{EitherOrBoth, Itertools as _};
use overlay_types::addr::{DeviceName, Family, InterfaceAddress, Mtu, Subnet, Vni};
use overlay_types::advice::Command;
use overlay_types::tunnel::{
    Desired, FaultScope, OverlayBridge, OverlaySubnets, Peer, PeerFault, VxlanDevice,
    validate_peers,
};
use rustix::io::Errno;

use super::direct::DirectUnderlay;
use super::interference::Interference;
use super::mtu::{self, MtuProblem, is_carried};
use super::path::{Detour, RouteResult};
use super::state::{
    BridgeState, Device, Hop, Identity, Link, LostBridge, Operation, RouteKey, State,
};
use super::underlay::Underlay;
use super::vrf::VrfMember;

/// Metric of our IPv6 routes to peers. The kernel replaces the metric 0 by this metric.
const METRIC_V6: u32 = 1024;
/// Metric of the unreachable routes that keep packets to unallocated overlay addresses on the host.
/// Other programs use lower metrics, so their routes to the same subnet win.
pub const METRIC_UNALLOCATED: u32 = 65_000;

/// The observed state of the kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// The managed objects: those with our mark, and VXLAN devices that match a desired device by
    /// name, identity and MAC.
    pub state: State,
    /// Unmanaged devices that have the name of a desired device, with their kind.
    pub name_conflicts: BTreeMap<DeviceName, String>,
    /// Unmanaged VXLAN devices, with their VNI and UDP port.
    pub foreign_vxlans: Vec<(String, Vni, u16)>,
    /// The paths to the peers, by this host's address in the underlay.
    pub underlays: BTreeMap<IpAddr, Underlay>,
    /// The addresses in the underlay that no device has.
    pub missing_underlays: BTreeSet<IpAddr>,
    /// A peer without a route for each address in the underlay, and the error of the kernel.
    pub unroutable: BTreeMap<IpAddr, (IpAddr, Errno)>,
    /// Indices of the devices that have the underlay addresses or lead to the peers.
    pub underlay_indices: Vec<u32>,
    /// IPv4 addresses of other programs on bridges of the CNI plugin, listed before the gateway.
    pub foreign_addresses: Vec<(DeviceName, InterfaceAddress)>,
    /// The ports of the bridges of the overlays with their MTU.
    pub ports: BTreeMap<DeviceName, Vec<(String, Mtu)>>,
    /// Whether and where packets can go to peers without encapsulation. `None` if direct routing is
    /// off.
    pub direct: Option<DirectUnderlay>,
    /// The devices that have the underlay addresses and belong to a VRF.
    pub underlay_vrfs: BTreeMap<IpAddr, VrfMember>,
}

impl Observed {
    /// Returns whether the kernel already has all desired devices and overlays. Addresses, peers
    /// and settings may differ.
    #[must_use]
    pub fn includes_overlays(&self, desired: &Desired) -> bool {
        let has_device = |local: &VxlanDevice| {
            let device = self.state.devices.get(&local.device);
            device.is_some_and(|device| {
                (device.link.identity.vni, device.link.identity.port) == (local.vni, local.port)
            })
        };
        let has_route = |&subnet: &Subnet| {
            self.state.routes.contains_key(&RouteKey { subnet, metric: METRIC_UNALLOCATED })
        };
        desired.vxlan_devices.iter().all(has_device)
            && desired.spaces.iter().flat_map(|space| &space.whole).all(has_route)
    }
}

/// The operations to apply, and the parts of the desired state that are impossible.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// The operations, in order.
    pub operations: Vec<Operation>,
    /// The parts that are left out, and why.
    pub problems: Vec<Problem>,
}

/// A reason why a part of the desired state is impossible.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// An unmanaged device has the name of a desired device.
    #[error(
        "device {device} is a foreign {kind} device, so it is left alone: see {show}, and let its \
         owner rename or remove it",
        show = Command::show_device(.device.as_str())
    )]
    NameTaken {
        /// The device name.
        device: DeviceName,
        /// Kind of the unmanaged device.
        kind: String,
    },
    /// The kernel allows only one VXLAN device with the same VNI and UDP port.
    #[error(
        "device {device} cannot have VNI {vni} on UDP port {port}, which VXLAN device {other} has: \
         let the owner of {other} remove it, or set another VNI or port on all agents"
    )]
    VniTaken {
        /// Our device.
        device: DeviceName,
        /// The VNI.
        vni: Vni,
        /// The UDP port.
        port: u16,
        /// The device that has both.
        other: String,
    },
    /// Packets of full size do not fit.
    #[error("{0}")]
    Mtu(MtuProblem),
    /// The kernel has no route to a peer.
    #[error(
        "packets from {underlay} to agent {agent} {}: see {}, and restore the route to it or the \
         default route",
        RouteResult::Dropped(*.errno),
        Command::show_route_to(*agent)
    )]
    Unroutable {
        /// The peer, of possibly several.
        agent: IpAddr,
        /// This host's address in the underlay.
        underlay: IpAddr,
        /// The error of the kernel.
        errno: Errno,
    },
    /// The CNI plugin adds no container to a bridge whose first address is not the gateway's.
    #[error(
        "bridge {bridge} has the address {address} before its own {gateway}, so the CNI plugin adds \
         no container to it: find the owner of {address}; if nothing uses it, run {command}",
        command = Command::remove_foreign_address(bridge, *address)
    )]
    ForeignAddress {
        /// The bridge.
        bridge: DeviceName,
        /// The address of another program.
        address: InterfaceAddress,
        /// The address that containers use as gateway.
        gateway: InterfaceAddress,
    },
    /// The device with the underlay address belongs to a VRF. The device is programmed anyway.
    #[error(
        "VXLAN packets do not leave from {underlay}: {member}, whose routes they do not use: set \
         'underlay' to an address outside of the VRF; if nothing else uses the VRF through {}, run \
         {}, instead",
        .member.device,
        Command::release_underlay_from_vrf(&.member.device)
    )]
    UnderlayInVrf {
        /// Our device.
        device: DeviceName,
        /// This host's address in the underlay.
        underlay: IpAddr,
        /// The device that has the address.
        member: VrfMember,
    },
    /// The kernel leads packets of containers elsewhere.
    #[error("{0}")]
    Detour(Box<Detour>),
    /// An object of another program drops packets of the overlays.
    #[error("{0}")]
    Interference(Interference),
    /// A peer, or a part of it, is left out.
    #[error("agent {agent}: {fault}")]
    Peer {
        /// The peer.
        agent: IpAddr,
        /// The reason.
        fault: PeerFault,
    },
}

impl Plan {
    /// Returns whether the plan has every peer completely. Otherwise the removal of one peer may
    /// resolve the conflict of another peer.
    #[must_use]
    pub fn includes_every_peer(&self) -> bool {
        !self.problems.iter().any(|problem| matches!(problem, Problem::Peer { .. }))
    }
}

impl From<Detour> for Problem {
    fn from(detour: Detour) -> Self {
        Self::Detour(Box::new(detour))
    }
}

impl Problem {
    /// The object that the problem affects.
    #[must_use]
    pub fn scope(&self) -> FaultScope {
        match self {
            Self::NameTaken { device, .. }
            | Self::VniTaken { device, .. }
            | Self::UnderlayInVrf { device, .. } => FaultScope::Device(device.clone()),
            Self::ForeignAddress { bridge, .. } => FaultScope::Device(bridge.clone()),
            Self::Mtu(problem) => problem.scope(),
            Self::Detour(detour) => FaultScope::Subnet(detour.subnet),
            Self::Interference(interference) => interference.scope.clone(),
            Self::Unroutable { agent, .. } | Self::Peer { agent, .. } => FaultScope::Agent(*agent),
        }
    }
}

/// The peers that are programmed, and the faults of the others.
pub(super) type ValidPeers = (BTreeMap<IpAddr, Peer>, Vec<(IpAddr, PeerFault)>);

/// Returns the desired state of the kernel, and the parts of `desired` that are impossible.
pub(super) fn target(desired: &Desired, observed: &Observed) -> (State, Vec<Problem>) {
    target_of(desired, &validate_peers(desired), observed)
}

fn target_of(
    desired: &Desired,
    (peers, faults): &ValidPeers,
    observed: &Observed,
) -> (State, Vec<Problem>) {
    let mut problems = Vec::new();
    // Bridges are never removed.
    let mut state = State {
        bridges: observed.state.bridges.clone(),
        lost_bridges: observed.state.lost_bridges.clone(),
        ..State::default()
    };
    for (index, local) in desired.vxlan_devices.iter().enumerate() {
        match target_link(local, observed) {
            Ok(link) => {
                let found = mtu::problems(local, link.mtu, desired, observed);
                problems.extend(found.into_iter().map(Problem::Mtu));
                problems.extend(check_underlay_vrf(local, observed));
                let has_ipv6 = link.has_ipv6;
                let mut device = Device::bare(link);
                let addresses = local.addresses();
                device.addresses.extend(addresses.filter(|own| is_carried(own.family(), has_ipv6)));
                add_peers(&mut device, local, desired, peers, index == 0);
                if desired.peers.is_none() {
                    keep_peers(&mut device, observed.state.devices.get(&local.device));
                }
                state.devices.insert(local.device.clone(), device);
            }
            Err(problem) => problems.push(*problem),
        }
    }
    for space in &desired.spaces {
        add_routes(&mut state, space, desired, peers, observed);
        if desired.peers.is_none() {
            keep_routes(&mut state, space, &observed.state);
        }
        add_bridges(&mut state, space, desired, observed);
    }
    problems.extend(foreign_addresses(desired, observed));
    let unroutable = observed.unroutable.iter().map(|(underlay, (agent, errno))| {
        Problem::Unroutable { agent: *agent, underlay: *underlay, errno: *errno }
    });
    problems.extend(unroutable);
    let of_peer = |(agent, fault): &(IpAddr, PeerFault)| Problem::Peer {
        agent: *agent,
        fault: fault.clone(),
    };
    problems.extend(faults.iter().map(of_peer));
    (state, problems)
}

fn target_link(local: &VxlanDevice, observed: &Observed) -> Result<Link, Box<Problem>> {
    let device = local.device.clone();
    if let Some(kind) = observed.name_conflicts.get(&device) {
        return Err(Box::new(Problem::NameTaken { device, kind: kind.clone() }));
    }
    let (vni, port) = (local.vni, local.port);
    let other = observed
        .foreign_vxlans
        .iter()
        .find(|(_, other_vni, other_port)| (*other_vni, *other_port) == (vni, port));
    if let Some((other, ..)) = other {
        let other = other.clone();
        return Err(Box::new(Problem::VniTaken { device, vni, port, other }));
    }
    let family = if local.underlay.is_ipv4() { Family::V4 } else { Family::V6 };
    let mtu =
        mtu::target_mtu(local, observed).map_err(|problem| Box::new(Problem::Mtu(problem)))?;
    let has_ipv6 = local.ip6.is_some() && mtu::carries_ipv6(local, mtu, observed);
    let carried = local.addresses().map(|address| address.family());
    let identity = Identity { vni, port, family };
    let existing = observed.state.devices.get(&device).map(|device| &device.link);
    let existing = existing.filter(|link| link.identity == identity);
    Ok(Link {
        identity,
        mac: local.mac,
        mtu,
        underlay: Some(local.underlay),
        is_learning: false,
        has_checksum: existing.is_none_or(|link| link.has_checksum),
        is_up: true,
        is_marked: true,
        has_ipv6,
        has_loose_rp_filter: true,
        forwarding: families(carried.filter(|family| is_carried(*family, has_ipv6))),
        is_port: false,
    })
}

/// Returns the families that the host forwards: IPv4 always, since the C++ modules enable it for
/// every overlay.
fn families(families: impl Iterator<Item = Family>) -> BTreeSet<Family> {
    families.chain([Family::V4]).collect()
}

/// Returns a problem if the device with the underlay address belongs to a VRF.
fn check_underlay_vrf(local: &VxlanDevice, observed: &Observed) -> Option<Problem> {
    let member = observed.underlay_vrfs.get(&local.underlay)?.clone();
    Some(Problem::UnderlayInVrf { device: local.device.clone(), underlay: local.underlay, member })
}

/// Adds the peers with a subnet in an overlay of the device. The first device gets all peers.
fn add_peers(
    device: &mut Device,
    local: &VxlanDevice,
    desired: &Desired,
    peers: &BTreeMap<IpAddr, Peer>,
    is_first: bool,
) {
    let spaces = desired.spaces.iter().filter(|space| space.device == local.device);
    let overlays: Vec<_> = spaces.map(|space| &space.overlay).collect();
    let is_own = |peer: &Peer| peer.subnets.iter().any(|(overlay, _)| overlays.contains(&overlay));
    let has_ipv6 = device.link.has_ipv6;
    // Collections of all entries at once are built faster than entry by entry.
    let peers = || peers.iter().filter(|(_, peer)| is_first || is_own(peer));
    let neighbors = peers().flat_map(|(_, peer)| {
        let addresses = peer.addresses().filter(|to| to.is_ipv4() || has_ipv6);
        addresses.map(|address| (address, peer.mac))
    });
    device.neighbors = neighbors.collect();
    device.forwards = peers().map(|(&agent, peer)| (peer.mac, agent)).collect();
}

/// Adds the unreachable routes of an overlay, and the routes to its peers.
fn add_routes(
    state: &mut State,
    space: &OverlaySubnets,
    desired: &Desired,
    peers: &BTreeMap<IpAddr, Peer>,
    observed: &Observed,
) {
    let unallocated = |subnet| RouteKey { subnet, metric: METRIC_UNALLOCATED };
    let whole = space.whole.iter().map(|&subnet| (unallocated(subnet), Hop::Unreachable));
    state.routes.extend(whole);
    let Some(device) = state.devices.get(&space.device) else { return };
    let has_ipv6 = device.link.has_ipv6;
    let mut routes = Vec::with_capacity(peers.len());
    for (agent, peer) in peers {
        for (_, subnet) in peer.subnets.iter().filter(|(overlay, _)| *overlay == space.overlay) {
            let Some(gateway) = peer.gateway(subnet) else { continue };
            if !is_carried(subnet.family(), has_ipv6) {
                continue;
            }
            let metric = if gateway.is_ipv4() { 0 } else { METRIC_V6 };
            let direct = direct_hop(desired, observed, *agent, peer, subnet);
            let hop = direct.unwrap_or_else(|| Hop::Via {
                device: space.device.clone(),
                gateway,
                is_onlink: true,
            });
            routes.push((RouteKey { subnet: *subnet, metric }, hop));
        }
    }
    state.routes.append(&mut routes.into_iter().collect());
}

/// Returns the hop of packets that leave without encapsulation. `None` if they take the tunnel: the
/// device may have changed since the agent chose it.
fn direct_hop(
    desired: &Desired,
    observed: &Observed,
    agent: IpAddr,
    peer: &Peer,
    subnet: &Subnet,
) -> Option<Hop> {
    let link = desired.direct_link_to(peer, subnet)?;
    if observed.direct.as_ref()?.link.as_ref().ok()? != link {
        return None;
    }
    let source = desired.vxlan_devices.first()?.ip?.address();
    Some(Hop::Direct { device: link.device.clone(), gateway: agent, source })
}

/// Adds the bridges of an overlay that exist or that another program removed. Each has the gateway
/// addresses of its containers, and no stale address.
fn add_bridges(state: &mut State, space: &OverlaySubnets, desired: &Desired, observed: &Observed) {
    let local = desired.vxlan_devices.iter().find(|local| local.device == space.device);
    let containers_mtu = local.and_then(|local| local.containers_mtu);
    for bridge in &space.bridges {
        let lost = || observed.state.lost_bridges.get(&bridge.device).map(LostBridge::bare);
        let Some(seen) = observed.state.bridges.get(&bridge.device).cloned().or_else(lost) else {
            continue;
        };
        let has_gateway6 = bridge.gateways.iter().any(|gateway| gateway.family() == Family::V6);
        let ports = observed.ports.get(&bridge.device);
        let mtu = mtu::bridge_mtu(containers_mtu, seen.mtu, ports, has_gateway6);
        // Below the least MTU of IPv6 the kernel removes IPv6 from the bridge.
        let has_room6 = mtu.bytes() >= Mtu::MIN_IPV6;
        let carried = bridge.gateways.iter().map(InterfaceAddress::family);
        let families = families(carried.filter(|family| is_carried(*family, has_room6)));
        let desired = BridgeState {
            is_up: true,
            mtu,
            addresses: seen
                .addresses
                .iter()
                .filter(|address| !is_stale(address, space, bridge))
                .chain(&bridge.gateways)
                .filter(|address| is_carried(address.family(), has_room6))
                .copied()
                .collect(),
            has_ipv6: has_room6 && (seen.has_ipv6 || families.contains(&Family::V6)),
            forwarding: (&families | &seen.forwarding)
                .into_iter()
                .filter(|family| is_carried(*family, has_room6))
                .collect(),
            detached: BTreeSet::new(),
            has_vlan_filtering: false,
        };
        state.lost_bridges.remove(&bridge.device);
        state.bridges.insert(bridge.device.clone(), desired);
    }
}

/// Returns the addresses of other programs that keep the CNI plugin from adding containers.
fn foreign_addresses(desired: &Desired, observed: &Observed) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (bridge, address) in &observed.foreign_addresses {
        let own = desired.bridges().find(|own| own.device == *bridge);
        let mut gateways = own.into_iter().flat_map(|own| &own.gateways);
        if let Some(gateway) = gateways.find(|gateway| gateway.family() == address.family()) {
            let (bridge, address, gateway) = (bridge.clone(), *address, *gateway);
            problems.push(Problem::ForeignAddress { bridge, address, gateway });
        }
    }
    problems
}

/// Returns whether an address of a bridge is one of an earlier assignment. With an address in a
/// subnet that is not its own, the host would keep packets for that subnet, which may belong to
/// another agent or to the other bridge now. With the gateway's address in a subnet of another
/// length, the CNI plugin refuses to add containers.
fn is_stale(address: &InterfaceAddress, space: &OverlaySubnets, bridge: &OverlayBridge) -> bool {
    let is_in = |subnets: &[Subnet]| subnets.iter().any(|it| it.contains(address.address()));
    let mut others = space.bridges.iter().filter(|other| other.device != bridge.device);
    let is_foreign = !is_in(&bridge.subnets)
        && (!is_in(&space.own) || others.any(|other| is_in(&other.subnets)));
    let has_other_length = bridge.gateways.iter().any(|gateway| {
        gateway.address() == address.address() && gateway.prefix() != address.prefix()
    });
    is_foreign || has_other_length
}

/// Keeps the observed peers of a device while the master has not sent the list of peers.
fn keep_peers(device: &mut Device, observed: Option<&Device>) {
    if let Some(observed) = observed {
        let has_room6 = has_room_for_ipv6(device);
        let neighbors = observed.neighbors.iter().filter(|(to, _)| to.is_ipv4() || has_room6);
        device.neighbors = neighbors.map(|(to, mac)| (*to, *mac)).collect();
        device.forwards.clone_from(&observed.forwards);
    }
}

/// Returns whether the kernel keeps IPv6 entries of the device. It removes them below the minimum
/// MTU of IPv6. An assignment without IPv6 is no reason to remove entries of peers.
fn has_room_for_ipv6(device: &Device) -> bool {
    device.link.mtu.bytes() >= Mtu::MIN_IPV6
}

/// Keeps the observed routes to peers while the master has not sent the list of peers.
fn keep_routes(state: &mut State, space: &OverlaySubnets, observed: &State) {
    let device = state.devices.get(&space.device);
    let has_room6 = device.is_none_or(has_room_for_ipv6);
    let is_kept = |(key, hop): &(&RouteKey, &Hop)| {
        is_carried(key.subnet.family(), has_room6)
            && match hop {
                Hop::Via { device, .. } => *device == space.device,
                Hop::Direct { .. } => true,
                Hop::Unreachable | Hop::Elsewhere => false,
            }
            && space.whole.iter().any(|whole| whole.covers(&key.subnet))
    };
    let kept: Vec<_> = observed.routes.iter().filter(is_kept).collect();
    state.routes.extend(kept.into_iter().map(|(key, hop)| (*key, hop.clone())));
}

/// Plans the operations that change the observed state into the desired state.
#[must_use]
pub fn plan(desired: &Desired, observed: &Observed) -> Plan {
    plan_of(desired, &validate_peers(desired), observed)
}

/// Plans the operations of [`plan`] with the valid peers of `desired`.
pub(super) fn plan_of(desired: &Desired, peers: &ValidPeers, observed: &Observed) -> Plan {
    let (target, problems) = target_of(desired, peers, observed);
    Plan { operations: difference(&target, &observed.state), problems }
}

/// Plans the operations that change `current` into `target`.
pub(super) fn difference(target: &State, current: &State) -> Vec<Operation> {
    let mut steps = Steps { current: Cow::Borrowed(current), operations: Vec::new() };
    steps.remove_devices(target);
    for (name, desired) in &target.devices {
        steps.repair_link(name, &desired.link);
        steps.repair_addresses(name, &desired.addresses);
        steps.add_entries(name, desired);
    }
    for (name, desired) in &target.bridges {
        steps.repair_bridge(name, desired);
    }
    steps.repair_routes(target);
    for (name, desired) in &target.devices {
        steps.remove_entries(name, desired);
    }
    steps.operations
}

/// The operations so far, and the state after them.
struct Steps<'a> {
    /// Copied at the first operation: the state of thousands of peers is large.
    current: Cow<'a, State>,
    operations: Vec<Operation>,
}

impl Steps<'_> {
    fn push(&mut self, operation: Operation) {
        self.current.to_mut().perform(&operation);
        self.operations.push(operation);
    }

    /// Removes devices that are not desired, and devices with a wrong identity.
    fn remove_devices(&mut self, target: &State) {
        let is_stale = |(name, device): &(&DeviceName, &Device)| {
            let desired = target.devices.get(*name);
            desired.is_none_or(|desired| desired.link.identity != device.link.identity)
        };
        let stale: Vec<_> = self.current.devices.iter().filter(is_stale).collect();
        let stale: Vec<_> = stale.into_iter().map(|(name, _)| name.clone()).collect();
        for name in stale {
            self.push(Operation::RemoveDevice(name));
        }
    }

    fn repair_link(&mut self, name: &DeviceName, desired: &Link) {
        let device = || name.clone();
        if !self.current.devices.contains_key(name) {
            self.push(Operation::AddDevice(device(), desired.clone()));
        }
        let Some(link) = self.current.devices.get(name).map(|device| device.link.clone()) else {
            return;
        };
        let changes = [
            (!link.is_marked, Operation::Mark(device())),
            (link.is_learning, Operation::StopLearning(device())),
            (link.mac != desired.mac, Operation::SetMac(device(), desired.mac)),
            (link.mtu != desired.mtu, Operation::SetMtu(device(), desired.mtu)),
            (desired.has_ipv6 && !link.has_ipv6, Operation::EnableIpv6(device())),
            (
                desired.has_loose_rp_filter && !link.has_loose_rp_filter,
                Operation::SetLooseRpFilter(device()),
            ),
            (link.is_port, Operation::Release(device())),
            (!link.is_up, Operation::SetUp(device())),
        ];
        let forwarding = missing_forwarding(name, &link.forwarding, &desired.forwarding);
        if let Some(underlay) = desired.underlay.filter(|ip| link.underlay != Some(*ip)) {
            self.push(Operation::SetUnderlay(device(), underlay));
        }
        for (is_needed, operation) in changes {
            if is_needed {
                self.push(operation);
            }
        }
        forwarding.into_iter().for_each(|operation| self.push(operation));
    }

    /// Repairs a bridge that exists, or adds it again. The kernel removes the IPv6 addresses of a device that is set
    /// down, so the addresses come last.
    fn repair_bridge(&mut self, name: &DeviceName, desired: &BridgeState) {
        let device = || name.clone();
        if let Some(lost) = self.current.lost_bridges.get(name).cloned() {
            self.push(Operation::AddBridge(device(), lost));
        }
        let Some(current) = self.current.bridges.get(name).cloned() else { return };
        if current.mtu != desired.mtu {
            self.push(Operation::SetMtu(device(), desired.mtu));
        }
        if desired.has_ipv6 && !current.has_ipv6 {
            self.push(Operation::EnableIpv6(device()));
        }
        for operation in missing_forwarding(name, &current.forwarding, &desired.forwarding) {
            self.push(operation);
        }
        if current.has_vlan_filtering && !desired.has_vlan_filtering {
            self.push(Operation::DisableVlanFiltering(device()));
        }
        if desired.is_up && !current.is_up {
            self.push(Operation::SetUp(device()));
        }
        for port in current.detached.difference(&desired.detached) {
            self.push(Operation::AttachPort(device(), port.clone()));
        }
        self.repair_addresses(name, &desired.addresses);
    }

    /// Removes stale addresses, and then adds missing addresses. With an address, the kernel also
    /// removes secondary addresses and routes. The plan restores these.
    fn repair_addresses(&mut self, name: &DeviceName, desired: &BTreeSet<InterfaceAddress>) {
        for address in &self.current.addresses(name) - desired {
            self.push(Operation::RemoveAddress(name.clone(), address));
        }
        for address in desired - &self.current.addresses(name) {
            self.push(Operation::AddAddress(name.clone(), address));
        }
    }

    fn add_entries(&mut self, name: &DeviceName, desired: &Device) {
        let current = &self.current.devices[name];
        let mut changes = Vec::new();
        for (ip, mac) in missing(&desired.neighbors, &current.neighbors) {
            changes.push(Operation::SetNeighbor(name.clone(), *ip, *mac));
        }
        for (mac, agent) in missing(&desired.forwards, &current.forwards) {
            changes.push(Operation::SetForward(name.clone(), *mac, *agent));
        }
        changes.into_iter().for_each(|change| self.push(change));
    }

    fn repair_routes(&mut self, target: &State) {
        let mut changes = Vec::new();
        for (key, hop) in missing(&target.routes, &self.current.routes) {
            changes.push(if self.current.routes.contains_key(key) {
                Operation::ChangeRoute(*key, hop.clone())
            } else {
                Operation::AddRoute(*key, hop.clone())
            });
        }
        for (key, hop) in stale(&self.current.routes, &target.routes) {
            changes.push(Operation::RemoveRoute(*key, hop.clone()));
        }
        changes.into_iter().for_each(|change| self.push(change));
    }

    fn remove_entries(&mut self, name: &DeviceName, desired: &Device) {
        let current = &self.current.devices[name];
        let mut changes = Vec::new();
        for (mac, agent) in stale(&current.forwards, &desired.forwards) {
            changes.push(Operation::RemoveForward(name.clone(), *mac, *agent));
        }
        for (ip, _) in stale(&current.neighbors, &desired.neighbors) {
            changes.push(Operation::RemoveNeighbor(name.clone(), *ip));
        }
        changes.into_iter().for_each(|change| self.push(change));
    }
}

/// Returns the entries of `desired` that `current` does not have, or has with another value. Both are
/// sorted and nearly equal, so one pass over both costs less than a search for each entry.
fn missing<'a, K: Ord, V: PartialEq>(
    desired: &'a BTreeMap<K, V>,
    current: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, &'a V)> {
    let pairs = desired.iter().merge_join_by(current, |(one, _), (other, _)| one.cmp(other));
    pairs.filter_map(|pair| match pair {
        EitherOrBoth::Both((_, desired), (_, current)) if desired == current => None,
        EitherOrBoth::Both(entry, _) | EitherOrBoth::Left(entry) => Some(entry),
        EitherOrBoth::Right(_) => None,
    })
}

/// Returns the entries of `current` whose keys `desired` does not have.
fn stale<'a, K: Ord, V>(
    current: &'a BTreeMap<K, V>,
    desired: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, &'a V)> {
    let pairs = current.iter().merge_join_by(desired, |(one, _), (other, _)| one.cmp(other));
    pairs.filter_map(EitherOrBoth::just_left)
}

/// Returns the operations that enable the missing families of forwarding.
fn missing_forwarding(
    name: &DeviceName,
    current: &BTreeSet<Family>,
    desired: &BTreeSet<Family>,
) -> Vec<Operation> {
    let missing = desired.difference(current);
    missing.map(|family| Operation::EnableForwarding(name.clone(), *family)).collect()
}
