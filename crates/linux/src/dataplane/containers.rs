//! Finds the containers of this host by their ports: a port leads to the network namespace of a
//! container, whose addresses the kernel shows without entering it.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use overlay_types::addr::{DeviceName, Mac};
use overlay_types::tunnel::{Desired, OverlayBridge};

use super::message::{address, attributes, u16_at, u32_at};
use super::observe::{HostLink, links, mac};
use super::socket::Netlink;
use super::state::Port;
use super::uapi::{
    AF_INET, AF_INET6, IFA_ADDRESS, IFA_LOCAL, IFA_TARGET_NETNSID, IFLA_ADDRESS,
    IFLA_TARGET_NETNSID, NDA_DST, NUD_REACHABLE, RTM_GETADDR, RTM_GETLINK, RTM_GETNEIGH,
};
use crate::probe::is_probe_port;

/// Kind of a port of a container.
const VETH_KIND: &str = "veth";

/// The ports of the containers of a host, and their addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerPorts {
    /// The names of the bridges, once for each port.
    pub at_bridges: Vec<String>,
    /// Whether a port is at no bridge.
    pub has_detached: bool,
    /// The addresses in the namespaces of the ports. `None` without a request, or if they
    /// cannot be read: the kernel is older than 4.20, or a container has just ended.
    pub addresses: Option<BTreeSet<IpAddr>>,
    /// The ports with the addresses at their other ends. Empty without `addresses`.
    pub endpoints: Vec<ContainerEndpoint>,
}

/// An address of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerEndpoint {
    /// The address.
    pub address: IpAddr,
    /// The device of the host that leads to it.
    pub port: String,
    /// The bridge of the device, or another device that it belongs to.
    pub bridge: Option<String>,
}

impl ContainerPorts {
    /// Counts the ports at a bridge.
    #[must_use]
    pub fn count_at(&self, bridge: &str) -> usize {
        self.at_bridges.iter().filter(|name| *name == bridge).count()
    }
}

/// Returns the ports of containers, without the ports of the probes. Reads the addresses only on
/// request.
pub(super) fn container_ports(
    netlink: &mut Netlink,
    with_addresses: bool,
) -> io::Result<ContainerPorts> {
    let links = links(netlink)?;
    let mut found = ContainerPorts::default();
    let mut namespaces: BTreeMap<u32, Vec<(&HostLink, Option<&HostLink>)>> = BTreeMap::new();
    let is_port = |link: &&HostLink| link.kind == VETH_KIND && !is_probe_port(&link.name);
    for port in links.iter().filter(is_port) {
        let Some(namespace) = port.namespace else { continue };
        let bridge = port.master.and_then(|master| links.iter().find(|link| link.index == master));
        namespaces.entry(namespace).or_default().push((port, bridge));
        match bridge {
            Some(bridge) => found.at_bridges.push(bridge.name.clone()),
            None => found.has_detached = true,
        }
    }
    if !with_addresses {
        return Ok(found);
    }
    let (mut addresses, mut endpoints) = (BTreeSet::new(), Vec::new());
    for (namespace, ports) in namespaces {
        match addresses_in(netlink, namespace) {
            Ok(Some(found)) => {
                for (port, bridge) in ports {
                    let own = found.iter().filter(|(index, _)| Some(*index) == port.peer);
                    endpoints.extend(own.map(|&(_, address)| ContainerEndpoint {
                        address,
                        port: port.name.clone(),
                        bridge: bridge.map(|bridge| bridge.name.clone()),
                    }));
                }
                addresses.extend(found.into_iter().map(|(_, address)| address));
            }
            Ok(None) => return Ok(found),
            Err(error) => {
                log::debug!("read the addresses of a container: {error}");
                return Ok(found);
            }
        }
    }
    Ok(ContainerPorts { addresses: Some(addresses), endpoints, ..found })
}

/// Returns the IPv4 addresses that were reachable at devices within the last seconds, with the names
/// of the devices.
pub(super) fn reachable_neighbors(netlink: &mut Netlink) -> io::Result<Vec<(IpAddr, String)>> {
    let links = links(netlink)?;
    let mut header = [0; 12];
    header[0] = AF_INET;
    let found = netlink.dump(
        RTM_GETNEIGH,
        &header,
        |_| {},
        |neighbors: &mut Vec<(u32, IpAddr)>, message| {
            let is_reachable =
                u16_at(message.body, 8).is_some_and(|state| state & NUD_REACHABLE != 0);
            if is_reachable {
                let mut values = attributes(message.body, 12);
                let to = values.find_map(|(kind, value)| (kind == NDA_DST).then(|| address(value)));
                neighbors.extend(u32_at(message.body, 4).zip(to.flatten()));
            }
        },
        Vec::new,
    )?;
    let name = |index| links.iter().find(|link| link.index == index).map(|link| link.name.clone());
    Ok(found.into_iter().filter_map(|(index, ip)| Some((ip, name(index)?))).collect())
}

/// Returns the ports that belong at the bridges of overlays, and are at no bridge: their containers
/// have an address of the bridge's subnet. Another program removed the bridge or detached the port.
pub(super) fn stray_ports(
    netlink: &mut Netlink,
    links: &[HostLink],
    desired: &Desired,
) -> BTreeMap<DeviceName, BTreeSet<Port>> {
    let mut strays: BTreeMap<DeviceName, BTreeSet<Port>> = BTreeMap::new();
    if desired.bridges().next().is_none() {
        return strays;
    }
    let is_detached = |link: &&HostLink| {
        link.kind == VETH_KIND && link.master.is_none() && !is_probe_port(&link.name)
    };
    for port in links.iter().filter(is_detached) {
        let (Some(namespace), Some(peer)) = (port.namespace, port.peer) else { continue };
        // Kernels before 4.20 do not answer, and a container may have just ended.
        let Ok(Some(addresses)) = addresses_in(netlink, namespace) else { continue };
        let is_of = |bridge: &&OverlayBridge| {
            let mut own = addresses.iter().filter(|(index, _)| *index == peer);
            own.any(|(_, address)| bridge.subnets.iter().any(|subnet| subnet.contains(*address)))
        };
        if let Some(bridge) = desired.bridges().find(is_of) {
            let port = Port { index: port.index, name: port.name.clone() };
            strays.entry(bridge.device.clone()).or_default().insert(port);
        }
    }
    strays
}

/// Returns the MACs of all devices in another network namespace. `None` if the kernel ignores the
/// namespace in the request.
pub(super) fn macs_in(netlink: &mut Netlink, namespace: u32) -> io::Result<Option<BTreeSet<Mac>>> {
    let is_answered = Cell::new(true);
    let found = netlink.dump(
        RTM_GETLINK,
        &[0; 16],
        |batch| batch.attribute(IFLA_TARGET_NETNSID, &namespace.to_ne_bytes()),
        |found: &mut BTreeSet<Mac>, message| {
            let mut of = None;
            for (kind, value) in attributes(message.body, 16) {
                match kind {
                    IFLA_ADDRESS => found.extend(mac(value)),
                    IFLA_TARGET_NETNSID => of = u32_at(value, 0),
                    _ => {}
                }
            }
            is_answered.set(is_answered.get() && of == Some(namespace));
        },
        BTreeSet::new,
    )?;
    Ok(is_answered.get().then_some(found))
}

/// Returns the addresses in another network namespace, with the index of their device. `None` if the
/// kernel ignores the namespace in the request.
fn addresses_in(netlink: &mut Netlink, namespace: u32) -> io::Result<Option<Vec<(u32, IpAddr)>>> {
    let mut all = Vec::new();
    for family in [AF_INET, AF_INET6] {
        let mut header = [0; 8];
        header[0] = family;
        let is_answered = Cell::new(true);
        let found = netlink.dump(
            RTM_GETADDR,
            &header,
            |batch| batch.attribute(IFA_TARGET_NETNSID, &namespace.to_ne_bytes()),
            |addresses: &mut Vec<(u32, IpAddr)>, message| {
                let (mut own, mut of) = (None, None);
                for (kind, value) in attributes(message.body, 8) {
                    match kind {
                        IFA_LOCAL => own = address(value),
                        IFA_ADDRESS => own = own.or_else(|| address(value)),
                        IFA_TARGET_NETNSID => of = u32_at(value, 0),
                        _ => {}
                    }
                }
                is_answered.set(is_answered.get() && of == Some(namespace));
                addresses.extend(u32_at(message.body, 4).zip(own));
            },
            Vec::new,
        )?;
        if !is_answered.get() {
            return Ok(None);
        }
        all.extend(found);
    }
    Ok(Some(all))
}
