//! Settings, flags and neighbor entries that keep packets from containers and peers.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use overlay_types::addr::Mac;
use overlay_types::advice::Command;
use overlay_types::tunnel::{FaultScope, VxlanDevice};

use super::super::containers::macs_in;
use super::super::message::{Message, attributes, u32_at};
use super::super::observe::{mac, neighbors, read_sysctl};
use super::super::socket::Netlink;
use super::super::uapi::{
    AF_BRIDGE, AF_INET, AF_INET6, IFF_NOARP, NDA_LLADDR, NDA_MASTER, RTM_GETNEIGH,
};
use super::{Impact, InspectionContext, Interference, Remedy, scope_of};

/// The value of `arp_ignore` with which the host answers no ARP request.
const IGNORE_ALL: u32 = 8;
/// Share of the table of flows, in percent, from which new flows are dropped soon or already.
const FLOWS_PERCENT: u64 = 98;

pub(super) fn find(
    netlink: &mut Netlink,
    context: &InspectionContext<'_>,
) -> io::Result<Vec<Interference>> {
    let mut found = answers_to_arp(context);
    found.extend(full_table_of_flows(
        read_sysctl("/proc/sys/net/netfilter/nf_conntrack_count"),
        read_sysctl("/proc/sys/net/netfilter/nf_conntrack_max"),
        context.is_tracked,
    ));
    for (bridge, link) in context.bridges() {
        found.extend(static_neighbors(netlink, context, bridge, link.index)?);
    }
    found.extend(static_peers(netlink, context)?);
    Ok(found)
}

/// Returns the bridges that answer no ARP request for the gateway of their containers.
fn answers_to_arp(context: &InspectionContext<'_>) -> Vec<Interference> {
    let mut found = Vec::new();
    for (bridge, link) in context.bridges() {
        let name = &bridge.device;
        if link.flags & IFF_NOARP != 0 {
            found.push(Interference {
                scope: scope_of(bridge),
                cause: format!(
                    "bridge {name} has the flag NOARP, so containers do not find their gateway"
                ),
                remedy: Remedy::Run(Command::enable_arp(name)),
                impact: Impact::Overlays,
                removes_routes: false,
            });
        }
        // The kernel uses the greater value of both.
        for device in ["all", name.as_str()] {
            let path = format!("/proc/sys/net/ipv4/conf/{device}/arp_ignore");
            if read_sysctl(&path) != Some(IGNORE_ALL) {
                continue;
            }
            found.push(Interference {
                scope: scope_of(bridge),
                cause: format!(
                    "net.ipv4.conf.{device}.arp_ignore is 8, so {name} answers no ARP requests and \
                     containers do not find their gateway"
                ),
                remedy: Remedy::Run(Command::answer_arp(device)),
                impact: Impact::Overlays,
                removes_routes: false,
            });
            break;
        }
    }
    found
}

/// Returns the interference of a full or nearly full table of flows. The kernel drops the first
/// packet of every further tracked flow once the table is full. If packets between containers of
/// different agents are not tracked, only containers that reach other hosts are cut off.
pub(super) fn full_table_of_flows(
    count: Option<u32>,
    max: Option<u32>,
    is_tracked: bool,
) -> Option<Interference> {
    let (count, max) = (count?, max.filter(|max| *max > 0)?);
    let percent = u64::from(count) * 100 / u64::from(max);
    (percent >= FLOWS_PERCENT).then(|| Interference {
        scope: FaultScope::Host,
        cause: format!(
            "the table of tracked flows is {percent} % full ({count} of {max}): the kernel drops \
             the packets of new flows when it is full"
        ),
        remedy: Remedy::Run(Command::raise_conntrack_max(u64::from(max) * 2)),
        impact: match is_tracked && count >= max {
            true => Impact::Overlays,
            false => Impact::SomeContainers,
        },
        removes_routes: false,
    })
}

/// Returns the first permanent neighbor entry of a bridge whose MAC is behind no port. The bridge
/// forgets the MAC of a container that is silent for minutes, so the containers are asked too.
fn static_neighbors(
    netlink: &mut Netlink,
    context: &InspectionContext<'_>,
    bridge: &overlay_types::tunnel::OverlayBridge,
    index: u32,
) -> io::Result<Option<Interference>> {
    let mut entries = Vec::new();
    for family in [AF_INET, AF_INET6] {
        entries.extend(neighbors(netlink, family, index)?);
    }
    entries.retain(|(ip, _)| bridge.subnets.iter().any(|subnet| subnet.contains(*ip)));
    if entries.is_empty() {
        return Ok(None);
    }
    let known = macs_behind(netlink, index)?;
    entries.retain(|(_, mac)| !known.contains(mac));
    if entries.is_empty() {
        return Ok(None);
    }
    let in_containers = macs_of_ports(netlink, context, index);
    let is_certain = in_containers.is_some();
    let in_containers = in_containers.unwrap_or_default();
    let wrong = entries.into_iter().find(|(_, mac)| !in_containers.contains(mac));
    let name = &bridge.device;
    Ok(wrong.map(|(ip, mac)| Interference {
        scope: scope_of(bridge),
        cause: format!(
            "a permanent neighbor entry of {name} leads packets to container {ip} to {mac}, which \
             {} behind no port",
            if is_certain { "is" } else { "may be" }
        ),
        remedy: Remedy::Run(Command::remove_foreign_neighbor(ip, name.as_str())),
        impact: if is_certain { Impact::SomeContainers } else { Impact::Possible },
        removes_routes: false,
    }))
}

/// Returns the MACs in the namespaces behind the ports of a bridge. `None` if they are unknown for a
/// port: it leads to a virtual machine, the kernel is older than 4.20, or the container has just
/// ended.
fn macs_of_ports(
    netlink: &mut Netlink,
    context: &InspectionContext<'_>,
    bridge: u32,
) -> Option<BTreeSet<Mac>> {
    let ports = context.indices.links.iter().filter(|link| link.master == Some(bridge));
    let mut found = BTreeSet::new();
    for port in ports {
        found.append(&mut macs_in(netlink, port.namespace?).ok()??);
    }
    Some(found)
}

/// Returns the MACs that a bridge knows.
fn macs_behind(netlink: &mut Netlink, bridge: u32) -> io::Result<BTreeSet<Mac>> {
    let mut header = [0; 12];
    header[0] = AF_BRIDGE;
    netlink.dump(
        RTM_GETNEIGH,
        &header,
        |batch| batch.attribute(NDA_MASTER, &bridge.to_ne_bytes()),
        |found: &mut BTreeSet<Mac>, message: Message<'_>| {
            let mut master = None;
            let mut own = None;
            for (kind, value) in attributes(message.body, 12) {
                match kind {
                    NDA_LLADDR => own = mac(value),
                    NDA_MASTER => master = u32_at(value, 0),
                    _ => {}
                }
            }
            found.extend(own.filter(|_| master == Some(bridge)));
        },
        BTreeSet::new,
    )
}

/// Returns the first permanent neighbor entry of a peer in the underlay. The entry may be right.
fn static_peers(
    netlink: &mut Netlink,
    context: &InspectionContext<'_>,
) -> io::Result<Option<Interference>> {
    for local in &context.desired.vxlan_devices {
        let family = if local.underlay.is_ipv4() { AF_INET } else { AF_INET6 };
        for link in context.underlay_links(local.underlay) {
            let mut entries = neighbors(netlink, family, link.index)?.into_iter();
            if let Some((agent, mac)) = entries.find(|(ip, _)| context.peers.contains_key(ip)) {
                return Ok(Some(static_peer(local, &link.name, agent, mac)));
            }
        }
    }
    Ok(None)
}

fn static_peer(local: &VxlanDevice, name: &str, agent: IpAddr, mac: Mac) -> Interference {
    Interference {
        scope: FaultScope::Device(local.device.clone()),
        cause: format!(
            "a permanent neighbor entry of {name} leads packets to agent {agent} to {mac}, which \
             may be another host"
        ),
        remedy: Remedy::Run(Command::remove_foreign_neighbor(agent, name)),
        impact: Impact::Possible,
        removes_routes: false,
    }
}
