//! Direct routing: whether packets can go to a peer without encapsulation.
//!
//! The device with the underlay address has to be an Ethernet device from which the host forwards
//! IPv4 packets, without a strict reverse path filter: the routes of the two hosts of a pair may
//! differ for a while, and the filter would drop the packets that arrive without encapsulation then.
//! A peer has to be in the subnet of the underlay address, without a gateway, and the MAC that the
//! kernel resolved for it has to be the one that the peer announced. A router that answers for other
//! hosts (proxy ARP) has another one.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use netlink_sys::protocols::NETLINK_ROUTE;
use overlay_types::addr::{DeviceName, Family, Mac, Subnet};
use overlay_types::advice::Command;
use overlay_types::tunnel::{Desired, DirectCheck, DirectLink, DirectReport};

use super::message::{address, attributes, u16_at, u32_at};
use super::observe::{
    HostLink, addresses, forwarding_setting, links, mac, read_sysctl, rp_filter_setting,
};
use super::socket::Netlink;
use super::uapi::{
    AF_INET, NDA_DST, NDA_IFINDEX, NDA_LLADDR, NUD_RESOLVED, RTM_GETNEIGH, RTN_UNICAST,
};
use super::underlay::RoutingSnapshot;

/// What the kernel says about direct routing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectUnderlay {
    /// The device with the underlay address, or why this host cannot route directly.
    pub link: Result<DirectLink, String>,
    /// The subnet of the underlay address.
    pub subnet: Option<Subnet>,
    /// The parts of the subnet that another route leads elsewhere.
    pub detours: BTreeSet<Subnet>,
    /// The MACs of the peers that the kernel resolved.
    pub neighbors: BTreeMap<IpAddr, Mac>,
}

impl DirectUnderlay {
    fn unusable(reason: String) -> Self {
        Self {
            link: Err(reason),
            subnet: None,
            detours: BTreeSet::new(),
            neighbors: BTreeMap::new(),
        }
    }

    /// Adds the MACs of earlier observations to those that the kernel knows now.
    pub(super) fn remember(&mut self, resolved: &mut BTreeMap<IpAddr, Mac>, desired: &Desired) {
        let Some(peers) = &desired.peers else { return };
        let has_offer = |agent: &IpAddr| peers.get(agent).is_some_and(|peer| peer.direct.is_some());
        self.neighbors.retain(|agent, _| has_offer(agent));
        resolved.retain(|agent, _| has_offer(agent));
        resolved.append(&mut self.neighbors);
        self.neighbors.clone_from(resolved);
    }

    /// Checks the peers that offer direct routing.
    #[must_use]
    pub fn report(&self, desired: &Desired) -> DirectReport {
        let peers = desired.peers.iter().flatten();
        let offers = peers.filter_map(|(agent, peer)| Some((*agent, peer.direct?.mac)));
        let check =
            |(agent, mac)| (agent, DirectCheck { mac, obstacle: self.obstacle(agent, mac) });
        DirectReport { link: self.link.clone(), peers: offers.map(check).collect() }
    }

    /// Returns why packets cannot go directly to the agent that announced `mac`.
    fn obstacle(&self, agent: IpAddr, mac: Mac) -> Option<String> {
        if let Err(reason) = &self.link {
            return Some(reason.clone());
        }
        if !self.subnet.is_some_and(|subnet| subnet.contains(agent)) {
            return Some("it is in another subnet of the underlay".to_owned());
        }
        if let Some(detour) = self.detours.iter().find(|detour| detour.contains(agent)) {
            return Some(format!("the route to {detour} leads elsewhere"));
        }
        match self.neighbors.get(&agent) {
            None => Some("its MAC address is not resolved yet".to_owned()),
            Some(found) if *found != mac => Some(format!(
                "its address has the MAC address {found} here instead of {mac}, which it announces"
            )),
            Some(_) => None,
        }
    }
}

/// Reads what direct routing needs, and the index of the device.
pub(super) fn observe(
    netlink: &mut Netlink,
    host: &RoutingSnapshot<'_>,
    desired: &Desired,
) -> io::Result<(DirectUnderlay, Option<(DeviceName, u32)>)> {
    let Some(own) = desired.vxlan_devices.first().map(|local| local.underlay) else {
        return Ok((DirectUnderlay::unusable("this host has no overlays".to_owned()), None));
    };
    let owners = host.owners(own);
    let [(link, address)] = owners[..] else {
        let reason = format!("{} devices of this host have the address {own}", owners.len());
        return Ok((DirectUnderlay::unusable(reason), None));
    };
    let found = match usable_link(link, own) {
        Ok(found) => found,
        Err(reason) => return Ok((DirectUnderlay::unusable(reason), None)),
    };
    let index = Some((found.device.clone(), link.index));
    let subnet = Subnet::containing(own, address.prefix());
    let leads_elsewhere = |route: &&super::observe::Route| {
        let is_direct =
            route.kind == RTN_UNICAST && route.gateway.is_none() && route.index == Some(link.index);
        !is_direct
            && subnet.is_some_and(|subnet| {
                subnet.covers(&route.key.subnet) && subnet != route.key.subnet
            })
    };
    let detours = host.routes.iter().filter(leads_elsewhere).map(|route| route.key.subnet);
    let neighbors = resolved_neighbors(netlink, link.index)?;
    let direct = DirectUnderlay { link: Ok(found), subnet, detours: detours.collect(), neighbors };
    Ok((direct, index))
}

/// Returns the device if packets can leave and arrive through it without encapsulation.
fn usable_link(link: &HostLink, own: IpAddr) -> Result<DirectLink, String> {
    /// Value of `rp_filter` of the strict filter.
    const STRICT: u32 = 1;
    let name = &link.name;
    if own.is_ipv6() {
        return Err(format!("the underlay address {own} is IPv6"));
    }
    let device: DeviceName =
        name.parse().map_err(|_| format!("the name of device {name} is too unusual"))?;
    let mac = link.mac.filter(|mac| link.is_ethernet && mac.is_unicast());
    let Some(mac) = mac else { return Err(format!("device {name} is no Ethernet device")) };
    if !link.is_up {
        return Err(format!("device {name} is down"));
    }
    if link.master.is_some() {
        return Err(format!("device {name} is part of another device"));
    }
    if read_sysctl(&forwarding_setting(&device, Family::V4)) != Some(1) {
        return Err(format!(
            "this host forwards no packets from {name}: run {}",
            Command::forward_from_uplink(name)
        ));
    }
    // The kernel uses the larger of the two values.
    let all = read_sysctl("/proc/sys/net/ipv4/conf/all/rp_filter").unwrap_or(0);
    let of_device = read_sysctl(&rp_filter_setting(&device)).unwrap_or(0);
    if all.max(of_device) == STRICT {
        return Err(format!(
            "the reverse path filter of {name} is strict: set net.ipv4.conf.{name}.rp_filter to 2"
        ));
    }
    Ok(DirectLink { device, mac })
}

/// Returns the device that this host can announce for direct routing at its address `own`, or why it
/// cannot. Needs no privilege.
///
/// # Errors
/// When the kernel does not answer.
pub fn direct_link(own: IpAddr) -> io::Result<Result<DirectLink, String>> {
    let mut netlink = Netlink::open(NETLINK_ROUTE)?;
    let (links, addresses) = (links(&mut netlink)?, addresses(&mut netlink)?);
    let host = RoutingSnapshot { links: &links, addresses: &addresses, routes: &[] };
    Ok(match host.owners(own)[..] {
        [(link, _)] => usable_link(link, own),
        _ => Err(format!("no single device of this host has the address {own}")),
    })
}

/// Lists the IPv4 neighbors of a device whose MAC the kernel knows.
fn resolved_neighbors(netlink: &mut Netlink, index: u32) -> io::Result<BTreeMap<IpAddr, Mac>> {
    let mut header = [0; 12];
    header[0] = AF_INET;
    netlink.dump(
        RTM_GETNEIGH,
        &header,
        |batch| batch.attribute(NDA_IFINDEX, &index.to_ne_bytes()),
        |neighbors: &mut BTreeMap<IpAddr, Mac>, message| {
            let is_resolved =
                u16_at(message.body, 8).is_some_and(|state| state & NUD_RESOLVED != 0);
            if u32_at(message.body, 4) != Some(index) || !is_resolved {
                return;
            }
            let (mut to, mut found) = (None, None);
            for (kind, value) in attributes(message.body, 12) {
                match kind {
                    NDA_DST => to = address(value),
                    NDA_LLADDR => found = mac(value),
                    _ => {}
                }
            }
            neighbors.extend(to.zip(found));
        },
        BTreeMap::new,
    )
}
