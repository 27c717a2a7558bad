//! Finds objects of other programs in the way of the packets of the overlays, besides wrong routes
//! (see [`super::path`]) and rules of a firewall (see `firewall::foreign`).
//!
//! An object that certainly drops packets is a fault. An object that may drop packets, such as a BPF
//! program, is named only if probes fail: most hosts have such objects, and packets pass them.

mod ipsec;
mod ports;
mod routes;
mod settings;
#[cfg(test)]
mod tests;
mod traffic_control;

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::IpAddr;

use overlay_types::addr::{DeviceName, Subnet};
use overlay_types::advice::Command;
use overlay_types::tunnel::{Desired, FaultScope, OverlayBridge, Peer};

pub(super) use self::ports::Ports;
use super::observe::{HostLink, Indices};
use super::socket::Netlink;

/// An object of another program that drops, or may drop, packets of the overlays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interference {
    /// The object that is affected.
    pub scope: FaultScope,
    /// The cause and what it does to packets.
    pub cause: String,
    /// How to let the packets pass.
    pub remedy: Remedy,
    /// What it does to packets.
    pub impact: Impact,
    /// Whether packets have no route because of it.
    pub removes_routes: bool,
}

/// What an object of another program does to packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Impact {
    /// It may drop packets. Packets pass such objects on most hosts.
    Possible,
    /// It drops the packets of single containers. The other containers of the overlay are reached.
    SomeContainers,
    /// It drops packets of the overlays.
    Overlays,
}

/// How to let the packets pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remedy {
    /// Run this command.
    Run(Command),
    /// What to do if no command is safe.
    Advice(String),
}

impl fmt::Display for Interference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.remedy {
            Remedy::Run(command) => write!(f, "{}: run {command}", self.cause),
            Remedy::Advice(advice) => write!(f, "{}: {advice}", self.cause),
        }
    }
}

/// What is known of the host and of the overlays.
struct InspectionContext<'a> {
    desired: &'a Desired,
    /// The peers that are programmed.
    peers: &'a BTreeMap<IpAddr, Peer>,
    indices: &'a Indices,
    /// The bridges of the overlays that exist and are not new.
    bridges: &'a BTreeSet<DeviceName>,
    /// The subnets of the peers by their first address, with the peer. Built for the first route
    /// that may be a part of one.
    owners: OnceCell<BTreeMap<IpAddr, (Subnet, IpAddr)>>,
    /// Whether packets between containers of different agents are tracked.
    is_tracked: bool,
}

/// A device that packets of the overlays pass.
struct PathDevice<'a> {
    link: &'a HostLink,
    scope: FaultScope,
}

impl<'a> InspectionContext<'a> {
    fn link(&self, index: u32) -> Option<&'a HostLink> {
        self.indices.links.iter().find(|link| link.index == index)
    }

    /// Returns the devices that have an address of this host in the underlay.
    fn underlay_links(&self, underlay: IpAddr) -> impl Iterator<Item = &'a HostLink> {
        let indices = self.indices.underlays.get(&underlay).into_iter().flatten();
        indices.filter_map(|index| self.link(*index))
    }

    /// Returns the existing bridges of the overlays, with their devices.
    fn bridges(&self) -> impl Iterator<Item = (&'a OverlayBridge, &'a HostLink)> {
        let existing =
            self.desired.bridges().filter(|bridge| self.bridges.contains(&bridge.device));
        existing.filter_map(|bridge| {
            let index = self.indices.bridges.get(&bridge.device)?;
            Some((bridge, self.link(*index)?))
        })
    }

    /// Returns the devices that packets of the overlays pass: tunnels, bridges and the underlay.
    fn devices(&self) -> Vec<PathDevice<'a>> {
        let mut devices = Vec::new();
        let mut known = BTreeSet::new();
        for local in &self.desired.vxlan_devices {
            let tunnel = self.indices.vxlan.get(&local.device);
            let tunnel = tunnel.and_then(|index| self.link(*index));
            for link in tunnel.into_iter().chain(self.underlay_links(local.underlay)) {
                if known.insert(link.index) {
                    devices
                        .push(PathDevice { link, scope: FaultScope::Device(local.device.clone()) });
                }
            }
        }
        let bridges = self.bridges();
        devices.extend(bridges.map(|(bridge, link)| PathDevice { link, scope: scope_of(bridge) }));
        devices
    }
}

/// Returns the scope of a fault of a bridge.
fn scope_of(bridge: &OverlayBridge) -> FaultScope {
    let subnet: Option<&Subnet> = bridge.subnets.first();
    subnet.map_or(FaultScope::Host, |subnet| FaultScope::Subnet(*subnet))
}

/// Returns the objects of other programs in the way of the packets of the overlays. `ports` are the
/// ports of the bridges at the last observation.
pub(super) fn interferences(
    netlink: &mut Netlink,
    desired: &Desired,
    peers: &BTreeMap<IpAddr, Peer>,
    indices: &Indices,
    bridges: &BTreeSet<DeviceName>,
    ports: &mut Ports,
    is_tracked: bool,
) -> io::Result<Vec<Interference>> {
    if desired.vxlan_devices.is_empty() {
        return Ok(Vec::new());
    }
    let owners = OnceCell::new();
    let context = InspectionContext { desired, peers, indices, bridges, owners, is_tracked };
    let mut found = ports.observe(&context);
    found.extend(ports::devices_with_master(&context));
    found.extend(traffic_control::find(netlink, &context)?);
    found.extend(routes::find(netlink, &context)?);
    found.extend(settings::find(netlink, &context)?);
    found.extend(ipsec::find(&context)?);
    Ok(found)
}
