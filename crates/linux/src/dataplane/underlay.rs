//! Finds the routes to the peers, and the MTU of the underlay: the least on the path to a peer. The
//! kernel may have the address of this host on several devices, or send through yet another one.
//! A route may have an MTU of its own.
//!
//! A route leads to many peers, so one peer of each route is looked up.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use netlink_sys::protocols::NETLINK_ROUTE;
use overlay_types::addr::{Family, InterfaceAddress, Mtu, Subnet};
use overlay_types::tunnel::{Desired, Peer, has_possible_addresses};
use rustix::io::Errno;
use rustix::net::netdevice;

use super::PROTOCOL;
use super::message::{Batch, attributes, family_of, u16_at, u32_at};
use super::observe::{HostLink, Route};
use super::path::{PEERS_MAX, spread};
use super::plan::Observed;
use super::socket::Netlink;
use super::uapi::{
    NLM_F_REQUEST, RTA_DST, RTA_METRICS, RTA_MULTIPATH, RTA_OIF, RTA_SRC, RTAX_MTU,
    RTM_F_FIB_MATCH, RTM_GETROUTE, RTN_UNICAST, RTNH_F_DEAD,
};

/// Number of peers that are looked up. More routes to peers are rare.
const LOOKUPS_MAX: usize = 32;
/// Number of nested routes that are passed in the search for a peer of a route.
const NESTED_MAX: usize = 64;

/// The path to the peers, as far as it determines the MTU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Underlay {
    /// The device with the least MTU.
    pub device: String,
    /// The least MTU.
    pub mtu: Mtu,
    /// A peer whose route has this MTU. `None` if the device has it.
    pub limited_route: Option<IpAddr>,
    /// Whether the device is that of the routes to the peers. Otherwise it has the address of this
    /// host.
    pub is_routed: bool,
    /// Further devices that have the address of this host.
    pub others: Vec<String>,
}

/// The kernel's devices, addresses and routes.
pub(super) struct RoutingSnapshot<'a> {
    pub(super) links: &'a [HostLink],
    pub(super) addresses: &'a [(u32, InterfaceAddress)],
    /// The routes of the main table, without those of the dataplane.
    pub(super) routes: &'a [Route],
}

/// A next hop of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct NextHop {
    index: u32,
    /// MTU of the route.
    mtu: Option<u32>,
}

/// Records the underlay of each desired device, and the problems with it.
pub(super) fn observe(
    netlink: &mut Netlink,
    host: &RoutingSnapshot<'_>,
    desired: &Desired,
    observed: &mut Observed,
) -> io::Result<()> {
    let locals: BTreeSet<IpAddr> =
        desired.vxlan_devices.iter().map(|local| local.underlay).collect();
    for own in locals {
        let owners = host.owners(own);
        observed.underlay_indices.extend(owners.iter().map(|(link, _)| link.index));
        if owners.is_empty() {
            // The host has every address of 127.0.0.0/8, and only one of them on a device.
            if !own.is_loopback() {
                observed.missing_underlays.insert(own);
            }
            continue;
        }
        let mut best: Option<Underlay> = None;
        for peer in sample(desired, host.routes, own.is_ipv4()) {
            let hops = match next_hops(netlink, own, peer)? {
                Ok(hops) => hops,
                Err(errno) => {
                    observed.unroutable.entry(own).or_insert((peer, errno));
                    continue;
                }
            };
            for hop in hops {
                let Some(underlay) = host.underlay_through(desired, hop, peer) else { continue };
                observed.underlay_indices.push(hop.index);
                if best.as_ref().is_none_or(|best| underlay.mtu < best.mtu) {
                    best = Some(underlay);
                }
            }
        }
        let best = match best {
            Some(best) => Some(best),
            None => connected(netlink, host, &owners)?,
        };
        if let Some(mut best) = best {
            let names = owners.iter().map(|(link, _)| &link.name);
            best.others = names.filter(|name| **name != best.device).cloned().collect();
            observed.underlays.insert(own, best);
        }
    }
    observed.underlay_indices.sort_unstable();
    observed.underlay_indices.dedup();
    Ok(())
}

impl<'a> RoutingSnapshot<'a> {
    /// Returns the devices that have an address.
    pub(super) fn owners(&self, own: IpAddr) -> Vec<(&'a HostLink, InterfaceAddress)> {
        let owners = self.addresses.iter().filter(|(_, address)| address.address() == own);
        owners.filter_map(|(index, address)| Some((self.link(*index)?, *address))).collect()
    }

    fn link(&self, index: u32) -> Option<&'a HostLink> {
        self.links.iter().find(|link| link.index == index)
    }

    /// Returns the underlay if all packets take this hop. A hop through a VXLAN device of the agent
    /// or to this host is none.
    fn underlay_through(&self, desired: &Desired, hop: NextHop, peer: IpAddr) -> Option<Underlay> {
        let link = self.link(hop.index)?;
        let is_own = desired.vxlan_devices.iter().any(|own| own.device.as_str() == link.name);
        if is_own || link.is_loopback {
            return None;
        }
        let limit = hop.mtu.filter(|mtu| *mtu < link.mtu);
        Some(Underlay {
            device: link.name.clone(),
            mtu: Mtu::new(limit.unwrap_or(link.mtu).min(Mtu::MAX)).ok()?,
            limited_route: limit.map(|_| peer),
            is_routed: true,
            others: Vec::new(),
        })
    }
}

/// Returns the underlay of a host without a route to a peer: the device with the address of this
/// host. Of several devices it is the one that leads to the subnet of the address, or else the one
/// with the least MTU.
fn connected(
    netlink: &mut Netlink,
    host: &RoutingSnapshot<'_>,
    owners: &[(&HostLink, InterfaceAddress)],
) -> io::Result<Option<Underlay>> {
    let mut chosen = owners.iter().map(|(link, _)| *link).min_by_key(|link| link.mtu);
    if let [(_, address), _, ..] = owners
        && let Some(neighbor) = neighbor(address)
        && let Ok(hops) = next_hops(netlink, address.address(), neighbor)?
    {
        let of_owner = |hop: &NextHop| owners.iter().any(|(link, _)| link.index == hop.index);
        let index = hops.iter().find(|hop| of_owner(hop)).map(|hop| hop.index);
        chosen = index.and_then(|index| host.link(index)).or(chosen);
    }
    Ok(chosen.and_then(|link| {
        Some(Underlay {
            device: link.name.clone(),
            mtu: Mtu::new(link.mtu.min(Mtu::MAX)).ok()?,
            limited_route: None,
            is_routed: false,
            others: Vec::new(),
        })
    }))
}

/// Returns another address in the subnet of an address.
fn neighbor(address: &InterfaceAddress) -> Option<IpAddr> {
    let subnet = Subnet::containing(address.address(), address.prefix())?;
    [1, 2].into_iter().filter_map(|at| subnet.address_at(at)).find(|at| *at != address.address())
}

/// Returns a few peers, so that each route to a peer leads to one of them. Peers whose addresses are
/// impossible, such as those of a faulty master, are left out.
fn sample(desired: &Desired, routes: &[Route], is_v4: bool) -> BTreeSet<IpAddr> {
    let Some(peers) = &desired.peers else { return BTreeSet::new() };
    let (any, family): (IpAddr, _) =
        if is_v4 { ([0; 4].into(), Family::V4) } else { ([0; 16].into(), Family::V6) };
    let foreign = routes.iter().filter(|route| route.protocol != PROTOCOL);
    let subnets = foreign.map(|route| route.key.subnet);
    // Without a default route, some peers may have no route.
    let subnets = subnets.filter(|subnet| subnet.family() == family);
    let subnets: BTreeSet<Subnet> = subnets.chain(Subnet::containing(any, 0)).collect();
    let prefixes: BTreeSet<u8> = subnets.iter().map(Subnet::prefix).collect();
    let is_possible = |(agent, peer): &(&IpAddr, &Peer)| {
        agent.is_ipv4() == is_v4 && has_possible_addresses(desired, **agent, peer)
    };
    // Policy rules may lead to routes that the main table does not show.
    let ends = [peers.iter().find(is_possible), peers.iter().rev().find(is_possible)];
    let mut sample: BTreeSet<IpAddr> =
        ends.into_iter().flatten().map(|(agent, _)| *agent).collect();
    for subnet in &subnets {
        if sample.len() >= LOOKUPS_MAX {
            break;
        }
        sample.extend(first_peer(peers, subnet, &subnets, &prefixes));
    }
    sample.retain(|agent| peers.get_key_value(agent).is_some_and(|entry| is_possible(&entry)));
    sample
}

/// Returns the first peer in a subnet that no other subnet inside of it contains.
fn first_peer(
    peers: &BTreeMap<IpAddr, Peer>,
    subnet: &Subnet,
    subnets: &BTreeSet<Subnet>,
    prefixes: &BTreeSet<u8>,
) -> Option<IpAddr> {
    let mut from = subnet.first();
    for _ in 0..NESTED_MAX {
        let (peer, _) = peers.range(from..=subnet.last()).next()?;
        let inner = prefixes
            .range(subnet.prefix() + 1..)
            .filter_map(|prefix| Subnet::containing(*peer, *prefix))
            .find(|inner| subnets.contains(inner));
        let Some(inner) = inner else { return Some(*peer) };
        from = next_address(inner.last()).filter(|next| *next <= subnet.last())?;
    }
    None
}

fn next_address(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(ip) => ip.to_bits().checked_add(1).map(|bits| IpAddr::V4(bits.into())),
        IpAddr::V6(ip) => ip.to_bits().checked_add(1).map(|bits| IpAddr::V6(bits.into())),
    }
}

/// Returns the next hops of the packets from `own` to `to`. The route is asked for without the path
/// MTU that ICMP errors may have lowered: kernels before 4.13 ignore the flag for it.
fn next_hops(
    netlink: &mut Netlink,
    own: IpAddr,
    to: IpAddr,
) -> io::Result<Result<Vec<NextHop>, Errno>> {
    let bits = if to.is_ipv4() { Family::V4 } else { Family::V6 }.bits();
    let mut header = [0; 12];
    (header[0], header[1], header[2]) = (family_of(to), bits, bits);
    header[8..].copy_from_slice(&RTM_F_FIB_MATCH.to_ne_bytes());
    let mut request = Batch::default();
    request.begin(RTM_GETROUTE, NLM_F_REQUEST, &header);
    request.address(RTA_DST, to);
    request.address(RTA_SRC, own);
    netlink.ask(&mut request, |answer| hops_of(answer.body))
}

/// Returns for each underlay address the device through which this host reaches a few peers.
/// Addresses whose peers are reached through several devices are absent.
///
/// # Errors
/// When the kernel refuses a netlink socket, or does not answer.
pub fn uplinks_to_peers(desired: &Desired) -> io::Result<BTreeMap<IpAddr, String>> {
    let mut netlink = Netlink::open(NETLINK_ROUTE)?;
    let own: BTreeSet<_> = desired.vxlan_devices.iter().map(|local| local.underlay).collect();
    let peers = desired.peers.iter().flat_map(BTreeMap::keys).copied();
    let peers: Vec<_> = peers.filter(|peer| !own.contains(peer)).collect();
    let mut uplinks = BTreeMap::new();
    for underlay in own {
        let is_v4 = underlay.is_ipv4();
        let of_family: Vec<_> =
            peers.iter().copied().filter(|peer| peer.is_ipv4() == is_v4).collect();
        let mut indices = BTreeSet::new();
        for peer in spread(&of_family, PEERS_MAX) {
            let hops = next_hops(&mut netlink, underlay, peer)?.unwrap_or_default();
            indices.extend(hops.iter().map(|hop| hop.index));
        }
        if let (1, Some(index)) = (indices.len(), indices.first())
            && let Ok(name) = netdevice::index_to_name(netlink.borrowed(), *index)
        {
            uplinks.insert(underlay, name);
        }
    }
    Ok(uplinks)
}

/// Parses the next hops of a unicast route.
fn hops_of(body: &[u8]) -> Vec<NextHop> {
    if body.get(7) != Some(&RTN_UNICAST) {
        return Vec::new();
    }
    let (mut mtu, mut indices) = (None, Vec::new());
    for (kind, value) in attributes(body, 12) {
        match kind {
            RTA_OIF => indices.extend(u32_at(value, 0)),
            RTA_METRICS => {
                let mut metrics = attributes(value, 0).filter(|(kind, _)| *kind == RTAX_MTU);
                mtu = metrics.next().and_then(|(_, value)| u32_at(value, 0)).filter(|mtu| *mtu > 0);
            }
            RTA_MULTIPATH => indices.extend(multipath_indices(value)),
            _ => {}
        }
    }
    indices.into_iter().map(|index| NextHop { index, mtu }).collect()
}

/// Returns the devices of the next hops of a multipath route (`struct rtnexthop`).
fn multipath_indices(mut rest: &[u8]) -> Vec<u32> {
    let mut indices = Vec::new();
    while let (Some(length), Some(&flags), Some(index)) =
        (u16_at(rest, 0), rest.get(2), u32_at(rest, 4))
    {
        if flags & RTNH_F_DEAD == 0 {
            indices.push(index);
        }
        let next = usize::from(length).next_multiple_of(4);
        match rest.get(next..) {
            Some(following) if next > 0 => rest = following,
            _ => break,
        }
    }
    indices
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sample_has_one_peer_of_each_route() {
        let peer = Peer {
            ip: None,
            ip6: None,
            mac: [0x70, 0, 0, 0, 0, 1].into(),
            subnets: vec![],
            direct: None,
        };
        let peers: BTreeMap<IpAddr, Peer> = (0..4_u8)
            .flat_map(|third| (1..=250).map(move |last| IpAddr::from([10, 0, third, last])))
            // An address that no agent has.
            .chain([IpAddr::from([255; 4])])
            .map(|address| (address, peer.clone()))
            .collect();
        let desired = Desired { peers: Some(peers), ..Desired::default() };
        let route = |subnet: &str| Route::to(subnet.parse().unwrap());
        let sampled = |routes: &[Route]| {
            let sample = sample(&desired, routes, true);
            sample.into_iter().map(|peer| peer.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(sampled(&[route("0.0.0.0/0")]), ["10.0.0.1", "10.0.3.250"]);
        let routes = ["0.0.0.0/0", "10.0.0.0/24", "10.0.2.0/24", "10.0.2.7/32", "10.9.0.0/16"];
        assert_eq!(
            sampled(&routes.map(route)),
            ["10.0.0.1", "10.0.1.1", "10.0.2.1", "10.0.2.7", "10.0.3.250"]
        );
        // No route leads to the peers in 10.0.1.0/24 and 10.0.3.0/24.
        let routes = ["10.0.0.0/24", "10.0.2.0/24"];
        assert_eq!(sampled(&routes.map(route)), ["10.0.0.1", "10.0.1.1", "10.0.2.1", "10.0.3.250"]);
        let many: Vec<Route> = (1..=250).map(|last| route(&format!("10.0.1.{last}/32"))).collect();
        assert_eq!(sampled(&many).len(), LOOKUPS_MAX);
    }

    #[test]
    fn hops_of_multipath_route_have_mtu_of_route() {
        let mut body = vec![2, 32, 32, 0, 254, 3, 0, RTN_UNICAST, 0, 0, 0, 0];
        let mut attribute = |kind: u16, value: &[u8]| {
            body.extend(u16::try_from(value.len() + 4).unwrap().to_ne_bytes());
            body.extend(kind.to_ne_bytes());
            body.extend(value);
        };
        let mtu = [&8_u16.to_ne_bytes()[..], &RTAX_MTU.to_ne_bytes(), &1400_u32.to_ne_bytes()];
        attribute(RTA_METRICS, &mtu.concat());
        let hop = |flags: u8, index: u32| {
            [&8_u16.to_ne_bytes()[..], &[flags, 0], &index.to_ne_bytes()].concat()
        };
        attribute(RTA_MULTIPATH, &[hop(0, 3), hop(RTNH_F_DEAD, 4), hop(0, 5)].concat());
        let expected = [3, 5].map(|index| NextHop { index, mtu: Some(1400) });
        assert_eq!(hops_of(&body), expected);
        assert_eq!(hops_of(&body[..7]), []);
        assert_eq!(multipath_indices(&[0; 8]), [0]);
    }
}
