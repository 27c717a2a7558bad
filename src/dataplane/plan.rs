//! From what is wanted and what there is to the operations between them: nothing else decides what
//! is changed in the kernel. Pure. The order is that of least harm: first what everything hangs on,
//! then what is new or different, last what is no longer wanted.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::state::{Device, Hop, Identity, Link, Operation, RouteKey, State};
use crate::addr::{DeviceName, Family, Mtu, Vni};
use crate::tunnel::{Desired, Local, Part, Peer, PeerFault, Space, checked_peers};

/// Metric of our routes to peers in IPv6, where 0 means this number.
pub(super) const METRIC_V6: u32 = 1024;
/// Metric of the routes that keep unallocated addresses of an overlay inside: worse than what
/// anybody else gives the same subnet.
pub const METRIC_UNALLOCATED: u32 = 65_000;
/// MTU of a device where the underlay's is not known: that of Ethernet less what VXLAN takes.
const MTU_UNKNOWN: u32 = 1500;
/// Least MTU of a device with IPv4: every host takes packets of 576 bytes (RFC 791).
const MTU_LEAST_V4: u32 = 576;

/// What there is in the kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// What is ours: marked, or a VXLAN device with the name and the identity of a wanted one.
    pub state: State,
    /// Devices with a wanted name that are not ours, and of which kind.
    pub taken: BTreeMap<DeviceName, String>,
    /// VXLAN devices of others.
    pub others: Vec<(String, Vni, u16)>,
    /// MTU of the device that has a wanted underlay address.
    pub underlay_mtus: BTreeMap<IpAddr, Mtu>,
    /// Indices of those devices.
    pub underlay_indices: Vec<u32>,
}

/// What is to be done, and what cannot be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// In this order.
    pub operations: Vec<Operation>,
    /// What is left out, and why.
    pub problems: Vec<Problem>,
}

/// What stands in the way of a wanted state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// A device of somebody else has the name of ours.
    #[error(
        "device {device} is a {kind} device that is not ours, so it is left alone: remove it with \
         'ip link delete {device}' or rename it"
    )]
    NameTaken {
        /// The name.
        device: DeviceName,
        /// What kind of device has it.
        kind: String,
    },
    /// The kernel has room for one VXLAN device with a VNI on a port.
    #[error(
        "device {device} cannot have VNI {vni} on UDP port {port}, which VXLAN device {other} has: \
         remove {other}, or set another VNI or port on all agents"
    )]
    VniTaken {
        /// Our device.
        device: DeviceName,
        /// The VNI.
        vni: Vni,
        /// The UDP port.
        port: u16,
        /// Who has both.
        other: String,
    },
    /// There is no room for packets.
    #[error(
        "device {device} would have an MTU of {mtu}, and needs {least}: raise the MTU of the device \
         with {underlay} to {}",
        .least + .overhead
    )]
    MtuTooSmall {
        /// Our device.
        device: DeviceName,
        /// What there is room for.
        mtu: u32,
        /// What is needed.
        least: u32,
        /// What VXLAN takes.
        overhead: u32,
        /// This host's address in the underlay.
        underlay: IpAddr,
    },
    /// The device is made, and large packets of the containers do not fit.
    #[error(
        "device {device} has an MTU of {mtu}, and the containers have one of {containers}: set \
         network_config.overlay_mtu to {mtu} or less, or raise the MTU of the device with \
         {underlay} to {}",
        .containers.bytes() + .overhead
    )]
    ContainersDoNotFit {
        /// Our device.
        device: DeviceName,
        /// Its MTU.
        mtu: Mtu,
        /// That of the containers.
        containers: Mtu,
        /// What VXLAN takes.
        overhead: u32,
        /// This host's address in the underlay.
        underlay: IpAddr,
    },
    /// A peer, or a part of it, is left out.
    #[error("agent {agent}: {fault}")]
    Peer {
        /// The peer.
        agent: IpAddr,
        /// Why.
        fault: PeerFault,
    },
}

impl Plan {
    /// Whether every peer gets what it needs. Otherwise one that goes may make room for another.
    #[must_use]
    pub fn leaves_out_no_peer(&self) -> bool {
        !self.problems.iter().any(|problem| matches!(problem, Problem::Peer { .. }))
    }
}

impl Problem {
    /// What it is about.
    #[must_use]
    pub fn part(&self) -> Part {
        match self {
            Self::NameTaken { device, .. }
            | Self::VniTaken { device, .. }
            | Self::MtuTooSmall { device, .. }
            | Self::ContainersDoNotFit { device, .. } => Part::Device(device.clone()),
            Self::Peer { agent, .. } => Part::Agent(*agent),
        }
    }
}

/// What there should be, and what stands in the way.
#[must_use]
pub fn target(desired: &Desired, observed: &Observed) -> (State, Vec<Problem>) {
    let (peers, faults) = checked_peers(desired);
    let mut problems = Vec::new();
    let mut state = State::default();
    for (index, local) in desired.locals.iter().enumerate() {
        match target_link(local, observed) {
            Ok(link) => {
                problems.extend(too_large(local, link.mtu));
                let mut device = Device::bare(link);
                device.addresses.extend(local.addresses());
                add_peers(&mut device, local, desired, &peers, index == 0);
                if desired.peers.is_none() {
                    keep_peers(&mut device, observed.state.devices.get(&local.device));
                }
                state.devices.insert(local.device.clone(), device);
            }
            Err(problem) => problems.push(problem),
        }
    }
    for space in &desired.spaces {
        add_routes(&mut state, space, &peers);
        if desired.peers.is_none() {
            keep_routes(&mut state, space, &observed.state);
        }
    }
    problems.extend(faults.into_iter().map(|(agent, fault)| Problem::Peer { agent, fault }));
    (state, problems)
}

fn target_link(local: &Local, observed: &Observed) -> Result<Link, Problem> {
    let device = local.device.clone();
    if let Some(kind) = observed.taken.get(&device) {
        return Err(Problem::NameTaken { device, kind: kind.clone() });
    }
    let (vni, port) = (local.vni, local.port);
    let other = observed.others.iter().find(|(_, its, its_port)| (*its, *its_port) == (vni, port));
    if let Some((other, ..)) = other {
        return Err(Problem::VniTaken { device, vni, port, other: other.clone() });
    }
    let family = if local.underlay.is_ipv4() { Family::V4 } else { Family::V6 };
    Ok(Link {
        identity: Identity { vni, port, family },
        mac: local.mac,
        mtu: target_mtu(local, observed)?,
        underlay: Some(local.underlay),
        is_learning: false,
        is_up: true,
        is_marked: true,
        has_ipv6: local.ip6.is_some(),
        is_loose: true,
    })
}

fn target_mtu(local: &Local, observed: &Observed) -> Result<Mtu, Problem> {
    let least = if local.ip6.is_some() { Mtu::MIN_IPV6 } else { MTU_LEAST_V4 };
    let overhead = local.overhead();
    let room = observed.underlay_mtus.get(&local.underlay).map_or(MTU_UNKNOWN, |mtu| mtu.bytes());
    let mtu = local.mtu.map_or_else(|| room.saturating_sub(overhead), Mtu::bytes);
    Mtu::new(mtu).ok().filter(|mtu| mtu.bytes() >= least).ok_or_else(|| Problem::MtuTooSmall {
        device: local.device.clone(),
        mtu,
        least,
        overhead,
        underlay: local.underlay,
    })
}

/// Containers whose packets do not fit a device.
fn too_large(local: &Local, mtu: Mtu) -> Option<Problem> {
    let containers = local.containers_mtu.filter(|containers| *containers > mtu)?;
    let (device, underlay) = (local.device.clone(), local.underlay);
    let overhead = local.overhead();
    Some(Problem::ContainersDoNotFit { device, mtu, containers, overhead, underlay })
}

fn add_peers(
    device: &mut Device,
    local: &Local,
    desired: &Desired,
    peers: &BTreeMap<IpAddr, Peer>,
    is_first: bool,
) {
    let on_device = |space: &&Space| space.device == local.device;
    let spaces: Vec<_> = desired.spaces.iter().filter(on_device).collect();
    for (&agent, peer) in peers {
        let has_subnet = || {
            peer.subnets.iter().any(|(name, _)| spaces.iter().any(|space| space.overlay == *name))
        };
        if is_first || has_subnet() {
            device.neighbours.extend(peer.addresses().map(|address| (address, peer.mac)));
            device.forwards.insert(peer.mac, agent);
        }
    }
}

fn add_routes(state: &mut State, space: &Space, peers: &BTreeMap<IpAddr, Peer>) {
    let unallocated = |subnet| RouteKey { subnet, metric: METRIC_UNALLOCATED };
    let whole = space.whole.iter().map(|&subnet| (unallocated(subnet), Hop::Unreachable));
    state.routes.extend(whole);
    if !state.devices.contains_key(&space.device) {
        return;
    }
    for peer in peers.values() {
        for (_, subnet) in peer.subnets.iter().filter(|(overlay, _)| *overlay == space.overlay) {
            let Some(gateway) = peer.gateway(subnet) else { continue };
            let metric = if gateway.is_ipv4() { 0 } else { METRIC_V6 };
            let hop = Hop::Via { device: space.device.clone(), gateway, is_onlink: true };
            state.routes.insert(RouteKey { subnet: *subnet, metric }, hop);
        }
    }
}

/// What there is of peers on a device, while nobody knows which of them are wanted.
fn keep_peers(device: &mut Device, observed: Option<&Device>) {
    if let Some(observed) = observed {
        device.neighbours.clone_from(&observed.neighbours);
        device.forwards.clone_from(&observed.forwards);
    }
}

/// Likewise the routes to them.
fn keep_routes(state: &mut State, space: &Space, observed: &State) {
    let is_kept = |(key, hop): &(&RouteKey, &Hop)| {
        matches!(hop, Hop::Via { device, .. } if *device == space.device)
            && space.whole.iter().any(|whole| whole.covers(&key.subnet))
    };
    let kept: Vec<_> = observed.routes.iter().filter(is_kept).collect();
    state.routes.extend(kept.into_iter().map(|(key, hop)| (*key, hop.clone())));
}

/// The operations after which what there is is what is wanted.
#[must_use]
pub fn plan(desired: &Desired, observed: &Observed) -> Plan {
    let (target, problems) = target(desired, observed);
    Plan { operations: difference(&target, observed.state.clone()), problems }
}

/// The operations that lead from `current` to `target`.
pub(super) fn difference(target: &State, current: State) -> Vec<Operation> {
    let mut steps = Steps { current, operations: Vec::new() };
    steps.remove_devices(target);
    for (name, wanted) in &target.devices {
        steps.mend_link(name, &wanted.link);
        steps.mend_addresses(name, wanted);
        steps.add_entries(name, wanted);
    }
    steps.mend_routes(target);
    for (name, wanted) in &target.devices {
        steps.remove_entries(name, wanted);
    }
    steps.operations
}

/// The operations so far, and what there is after them.
struct Steps {
    current: State,
    operations: Vec<Operation>,
}

impl Steps {
    fn push(&mut self, operation: Operation) {
        self.current.perform(&operation);
        self.operations.push(operation);
    }

    fn remove_devices(&mut self, target: &State) {
        let is_unfit = |(name, device): &(&DeviceName, &Device)| {
            let wanted = target.devices.get(*name);
            wanted.is_none_or(|wanted| wanted.link.identity != device.link.identity)
        };
        let unfit: Vec<_> = self.current.devices.iter().filter(is_unfit).collect();
        let unfit: Vec<_> = unfit.into_iter().map(|(name, _)| name.clone()).collect();
        for name in unfit {
            self.push(Operation::RemoveDevice(name));
        }
    }

    fn mend_link(&mut self, name: &DeviceName, wanted: &Link) {
        let device = || name.clone();
        if !self.current.devices.contains_key(name) {
            self.push(Operation::AddDevice(device(), wanted.clone()));
        }
        let Some(link) = self.current.devices.get(name).map(|device| device.link.clone()) else {
            return;
        };
        let changes = [
            (!link.is_marked, Operation::Mark(device())),
            (link.is_learning, Operation::StopLearning(device())),
            (link.mac != wanted.mac, Operation::SetMac(device(), wanted.mac)),
            (link.mtu != wanted.mtu, Operation::SetMtu(device(), wanted.mtu)),
            (wanted.has_ipv6 && !link.has_ipv6, Operation::EnableIpv6(device())),
            (wanted.is_loose && !link.is_loose, Operation::Loosen(device())),
            (!link.is_up, Operation::SetUp(device())),
        ];
        if let Some(underlay) = wanted.underlay.filter(|ip| link.underlay != Some(*ip)) {
            self.push(Operation::SetUnderlay(device(), underlay));
        }
        for (is_needed, operation) in changes {
            if is_needed {
                self.push(operation);
            }
        }
    }

    /// Those that must go, go first: what the kernel takes away with them is given back then.
    fn mend_addresses(&mut self, name: &DeviceName, wanted: &Device) {
        let addresses = |steps: &Self| steps.current.devices[name].addresses.clone();
        for address in &addresses(self) - &wanted.addresses {
            self.push(Operation::RemoveAddress(name.clone(), address));
        }
        for address in &wanted.addresses - &addresses(self) {
            self.push(Operation::AddAddress(name.clone(), address));
        }
    }

    fn add_entries(&mut self, name: &DeviceName, wanted: &Device) {
        let current = &self.current.devices[name];
        let mut changes = Vec::new();
        for (ip, mac) in &wanted.neighbours {
            if current.neighbours.get(ip) != Some(mac) {
                changes.push(Operation::SetNeighbour(name.clone(), *ip, *mac));
            }
        }
        for (mac, agent) in &wanted.forwards {
            if current.forwards.get(mac) != Some(agent) {
                changes.push(Operation::SetForward(name.clone(), *mac, *agent));
            }
        }
        changes.into_iter().for_each(|change| self.push(change));
    }

    fn mend_routes(&mut self, target: &State) {
        let mut changes = Vec::new();
        for (key, hop) in &target.routes {
            match self.current.routes.get(key) {
                Some(current) if current == hop => {}
                Some(_) => changes.push(Operation::ChangeRoute(*key, hop.clone())),
                None => changes.push(Operation::AddRoute(*key, hop.clone())),
            }
        }
        for (key, hop) in &self.current.routes {
            if !target.routes.contains_key(key) {
                changes.push(Operation::RemoveRoute(*key, hop.clone()));
            }
        }
        changes.into_iter().for_each(|change| self.push(change));
    }

    fn remove_entries(&mut self, name: &DeviceName, wanted: &Device) {
        let current = &self.current.devices[name];
        let mut changes = Vec::new();
        for (mac, agent) in &current.forwards {
            if !wanted.forwards.contains_key(mac) {
                changes.push(Operation::RemoveForward(name.clone(), *mac, *agent));
            }
        }
        for ip in current.neighbours.keys() {
            if !wanted.neighbours.contains_key(ip) {
                changes.push(Operation::RemoveNeighbour(name.clone(), *ip));
            }
        }
        changes.into_iter().for_each(|change| self.push(change));
    }
}
