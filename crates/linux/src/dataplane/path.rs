//! Asks the kernel how it routes packets of containers, since the right routes in the main table
//! are not enough: a policy rule, another table, a reverse path filter or a missing connected route
//! leads packets elsewhere (`ip route get`).
//!
//! A rule applies to many addresses, so a few peers of each overlay are enough.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr};

use overlay_types::addr::{DeviceName, Family, Subnet};
use overlay_types::advice::Command;
use overlay_types::tunnel::{Desired, OverlayBridge, OverlaySubnets, Peer};
use rustix::io::Errno;
use rustix::net::netdevice;

use super::error::describe;
use super::message::{Batch, attributes, family_of, u32_at};
use super::observe::Indices;
use super::policy_rules::{LOOPBACK, Packet, Rule, TableRoute, decider, routes_to, rules};
use super::socket::Netlink;
use super::uapi::{
    NLM_F_REQUEST, RT_TABLE_MAIN, RTA_DST, RTA_IIF, RTA_MARK, RTA_OIF, RTA_SRC, RTA_TABLE,
    RTM_F_LOOKUP_TABLE, RTM_GETROUTE,
};
use super::vrf::VrfMember;

/// Number of peers of each overlay whose containers are looked up. They are spread over all peers.
pub(super) const PEERS_MAX: usize = 4;

/// A packet of a container, and the device that it must leave through.
pub(super) struct RouteSample<'a> {
    pub(super) from: &'a DeviceName,
    pub(super) to: &'a DeviceName,
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    /// The destination's subnet.
    pub(super) subnet: Subnet,
    /// The overlay's part that contains both subnets.
    pub(super) whole: Subnet,
}

/// A packet whose route is looked up.
pub(super) struct Lookup {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    /// The device that the packet enters through. `None` for a packet of this host.
    pub(super) input: Option<u32>,
    /// The mark of the packet.
    pub(super) mark: u32,
}

/// A difference between the path of a container's packets and the right path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Detour {
    /// The device that the packets enter through.
    pub from: DeviceName,
    /// The device that the packets must leave through.
    pub to: DeviceName,
    /// An address of a container from which the packets come.
    pub source: IpAddr,
    /// An address of a container to which the packets go.
    pub destination: IpAddr,
    /// The destination.
    pub subnet: Subnet,
    /// All addresses of the overlay, in the family of the destination.
    pub whole: Subnet,
    /// What the kernel does with the packets.
    pub found: RouteResult,
    /// The policy rule that decides about the packets, unless it is one that every host has.
    pub rule: Option<Box<PolicyRule>>,
    /// The device of the two that belongs to a VRF, which is the cause then.
    pub vrf_member: Option<Box<VrfMember>>,
}

/// A policy rule of another program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyRule {
    /// Its priority.
    pub priority: u32,
    /// The rule as `ip rule` prints it.
    pub text: String,
}

/// What the kernel does with packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RouteResult {
    /// The packets leave through a device, or arrive at the host if there is none.
    Through {
        /// The device.
        device: Option<String>,
        /// The routing table that decides.
        table: u32,
    },
    /// The packets are dropped.
    Dropped(Errno),
}

/// Returns the detours of the packets between `bridges` of this host and a few peers.
pub(super) fn detours(
    netlink: &mut Netlink,
    desired: &Desired,
    peers: &BTreeMap<IpAddr, Peer>,
    indices: &Indices,
    bridges: &BTreeSet<DeviceName>,
) -> io::Result<Vec<Detour>> {
    let mut found: Vec<(Detour, RouteSample<'_>)> = Vec::new();
    let samples = |space| route_samples(desired, peers, space, bridges);
    for sample in desired.spaces.iter().flat_map(samples) {
        let (Some(from), Some(to)) = (indices.get(sample.from), indices.get(sample.to)) else {
            continue;
        };
        let RouteSample { source, destination, .. } = sample;
        let lookup = Lookup { source, destination, input: Some(from), mark: 0 };
        let result = match route_of(netlink, &lookup)? {
            Ok((device, _)) if device == Some(to) => continue,
            Ok((index, table)) => {
                let name = |index| netdevice::index_to_name(netlink.borrowed(), index).ok();
                RouteResult::Through { device: index.and_then(name), table }
            }
            Err(errno) => RouteResult::Dropped(errno),
        };
        // The detour of another peer has the same cause.
        let is_known = |(other, _): &(Detour, _)| {
            (&other.from, &other.to, &other.found) == (sample.from, sample.to, &result)
        };
        if !found.iter().any(is_known) {
            let mut detour = Detour::new(&sample, result);
            let mut devices = [sample.from, sample.to].into_iter();
            detour.vrf_member = devices.find_map(|device| indices.vrf_member(device));
            found.push((detour, sample));
        }
    }
    add_rules(netlink, &mut found)?;
    Ok(found.into_iter().map(|(detour, _)| detour).collect())
}

/// Adds the policy rules that cause the detours.
fn add_rules(netlink: &mut Netlink, found: &mut [(Detour, RouteSample<'_>)]) -> io::Result<()> {
    for family in [Family::V4, Family::V6] {
        let of_family = found.iter_mut().filter(|(_, sample)| sample.subnet.family() == family);
        let mut of_family: Vec<_> = of_family.collect();
        if of_family.is_empty() {
            continue;
        }
        let ends = of_family.iter().flat_map(|(_, sample)| [sample.source, sample.destination]);
        let ends: Vec<_> = ends.collect();
        let rules = rules(netlink, family)?;
        let routes = routes_to(netlink, family, &ends)?;
        for (detour, sample) in &mut of_family {
            if detour.vrf_member.is_none() {
                detour.rule = cause(&rules, &routes, sample, &detour.found).map(Box::new);
            }
        }
    }
    Ok(())
}

/// Returns the policy rule that decides about a packet.
fn cause(
    rules: &[Rule],
    routes: &[TableRoute],
    sample: &RouteSample<'_>,
    found: &RouteResult,
) -> Option<PolicyRule> {
    let RouteSample { from, source, destination, .. } = *sample;
    let packet = match found {
        // The reverse path filter looks up the path back.
        RouteResult::Dropped(Errno::XDEV) => {
            Packet { input: LOOPBACK, source: destination, destination: source }
        }
        _ => Packet { input: from.as_str(), source, destination },
    };
    let table = match found {
        RouteResult::Through { table, .. } => Some(*table),
        RouteResult::Dropped(_) => None,
    };
    let rule = decider(rules, routes, packet, table)?;
    Some(PolicyRule { priority: rule.priority, text: rule.text.clone() })
}

/// Returns the packets between each bridge of an overlay and a few peers, in both directions.
pub(super) fn route_samples<'a>(
    desired: &'a Desired,
    peers: &BTreeMap<IpAddr, Peer>,
    space: &'a OverlaySubnets,
    bridges: &BTreeSet<DeviceName>,
) -> Vec<RouteSample<'a>> {
    let subnets = peers.values().flat_map(|peer| {
        let direct = |subnet| desired.direct_link_to(peer, subnet).map(|link| &link.device);
        peer.subnets.iter().map(move |(overlay, subnet)| (overlay, subnet, direct(subnet)))
    });
    let subnets = subnets.filter(|(overlay, ..)| **overlay == space.overlay);
    let mut samples = Vec::new();
    for family in [Family::V4, Family::V6] {
        let of_family = subnets.clone().filter(|(_, subnet, _)| subnet.family() == family);
        let of_family: Vec<_> = of_family.map(|(_, subnet, direct)| (*subnet, direct)).collect();
        for (peer, direct) in spread(&of_family, PEERS_MAX) {
            let device = direct.unwrap_or(&space.device);
            for bridge in space.bridges.iter().filter(|bridge| bridges.contains(&bridge.device)) {
                samples.extend(samples_of(space, bridge, device, peer));
            }
        }
    }
    samples
}

/// Returns at most `max` items: the first, the last, and some in between at equal distances.
pub(super) fn spread<T: Copy>(items: &[T], max: usize) -> impl Iterator<Item = T> {
    let count = items.len().min(max);
    let last = count.saturating_sub(1).max(1);
    (0..count).map(move |number| items[number * (items.len() - 1) / last])
}

/// Returns the packets between a bridge and the subnet of a peer behind `device`. The second host
/// address is that of a container.
fn samples_of<'a>(
    space: &'a OverlaySubnets,
    bridge: &'a OverlayBridge,
    device: &'a DeviceName,
    peer: Subnet,
) -> impl Iterator<Item = RouteSample<'a>> {
    let gateway = bridge.gateways.iter().find(|gateway| gateway.family() == peer.family());
    let own = gateway.and_then(|gateway| Subnet::containing(gateway.address(), gateway.prefix()));
    let ends = own.and_then(|own| Some((own, own.address_at(2)?, peer.address_at(2)?)));
    ends.into_iter().flat_map(move |(own, here, there)| {
        let bridge = &bridge.device;
        let whole = |subnet: Subnet| {
            space.whole.iter().copied().find(|whole| whole.covers(&subnet)).unwrap_or(subnet)
        };
        let sample = |from, to, source, destination, subnet| {
            let whole = whole(subnet);
            RouteSample { from, to, source, destination, subnet, whole }
        };
        [sample(bridge, device, here, there, peer), sample(device, bridge, there, here, own)]
    })
}

/// Returns the device and the table of the route that the kernel selects, or why it drops the
/// packet.
pub(super) fn route_of(
    netlink: &mut Netlink,
    lookup: &Lookup,
) -> io::Result<Result<(Option<u32>, u32), Errno>> {
    let is_v4 = lookup.destination.is_ipv4();
    let bits = if is_v4 { Family::V4 } else { Family::V6 }.bits();
    let mut header = [0; 12];
    (header[0], header[1], header[2]) = (family_of(lookup.destination), bits, bits);
    // The answer for IPv6 always has the table, and the kernel refuses the flag.
    let flags = if is_v4 { RTM_F_LOOKUP_TABLE } else { 0 };
    header[8..].copy_from_slice(&flags.to_ne_bytes());
    let mut request = Batch::default();
    request.begin(RTM_GETROUTE, NLM_F_REQUEST, &header);
    request.address(RTA_DST, lookup.destination);
    request.address(RTA_SRC, lookup.source);
    if let Some(input) = lookup.input {
        request.attribute(RTA_IIF, &input.to_ne_bytes());
    }
    if lookup.mark != 0 {
        request.attribute(RTA_MARK, &lookup.mark.to_ne_bytes());
    }
    netlink.ask(&mut request, |answer| {
        let table = answer.body.get(4).copied().unwrap_or(RT_TABLE_MAIN);
        let (mut index, mut table) = (None, u32::from(table));
        for (kind, value) in attributes(answer.body, 12) {
            match kind {
                RTA_OIF => index = u32_at(value, 0),
                RTA_TABLE => table = u32_at(value, 0).unwrap_or(table),
                _ => {}
            }
        }
        (index, table)
    })
}

/// Returns the device that leads to the rest of the world, if there is one.
pub(super) fn outside(netlink: &mut Netlink) -> io::Result<Option<u32>> {
    /// An address for documentation (RFC 5737). No packet is sent to it.
    const OUTSIDE: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1));
    let mut header = [0; 12];
    (header[0], header[1]) = (family_of(OUTSIDE), Family::V4.bits());
    let mut request = Batch::default();
    request.begin(RTM_GETROUTE, NLM_F_REQUEST, &header);
    request.address(RTA_DST, OUTSIDE);
    let found = netlink.ask(&mut request, |answer| {
        let mut found = attributes(answer.body, 12).filter(|(kind, _)| *kind == RTA_OIF);
        found.next().and_then(|(_, index)| u32_at(index, 0))
    })?;
    Ok(found.ok().flatten())
}

impl Detour {
    fn new(sample: &RouteSample<'_>, found: RouteResult) -> Self {
        let RouteSample { from, to, source, destination, subnet, whole } = *sample;
        let (from, to) = (from.clone(), to.clone());
        Self { from, to, source, destination, subnet, whole, found, rule: None, vrf_member: None }
    }

    /// Returns the command that leads the packets of the overlay past the policy rule. The command
    /// concerns no other packets. No rule can precede a rule of priority 0.
    #[must_use]
    pub fn command(&self) -> Option<Command> {
        Command::skip_policy_rules(self.whole, self.rule.as_ref()?.priority)
    }
}

impl fmt::Display for Detour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to, source, destination, subnet, found, rule, vrf_member, .. } = self;
        write!(
            f,
            "packets of containers from {from} to {subnet} {found} instead of leaving through {to}"
        )?;
        if let Some(member) = vrf_member {
            let command = Command::release_device(&member.device);
            return write!(f, ": {member}: remove it from the VRF with {command}");
        }
        match (rule, self.command()) {
            (Some(rule), Some(command)) => write!(
                f,
                ": policy rule '{}' is in the way: let the overlay pass it with {command}",
                rule.text
            ),
            (Some(rule), None) => write!(
                f,
                ": policy rule '{}' is in the way: let its program use a priority above 0, since \
                 no rule can precede it",
                rule.text
            ),
            (None, _) => write!(
                f,
                ": no policy rule is the cause: see {} and {}",
                Command::show_route_of_forwarded(*destination, *source, from),
                Command::show_routes(*subnet)
            ),
        }
    }
}

impl fmt::Display for RouteResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Through { device: Some(device), table } => {
                write!(f, "leave through {device} (routing table {table})")
            }
            Self::Through { device: None, table } => {
                write!(f, "stay on this host (routing table {table})")
            }
            Self::Dropped(Errno::XDEV) => f.write_str("are dropped by the reverse path filter"),
            Self::Dropped(Errno::ACCESS) => f.write_str("are refused by a prohibit route"),
            // The kernel calls addresses that it accepts from no device martian.
            Self::Dropped(Errno::INVAL) => {
                f.write_str("are dropped by a blackhole route or as martian packets")
            }
            Self::Dropped(Errno::HOSTUNREACH | Errno::NETUNREACH) => {
                f.write_str("are dropped without a route")
            }
            Self::Dropped(errno) => write!(f, "are dropped ({})", describe(&(*errno).into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detour(found: RouteResult, rule: Option<(u32, &str)>) -> Detour {
        let rule =
            rule.map(|(priority, text)| Box::new(PolicyRule { priority, text: text.to_owned() }));
        Detour {
            from: "m-vxlan-1".parse().unwrap(),
            to: "vtep1024".parse().unwrap(),
            source: "192.168.1.2".parse().unwrap(),
            destination: "192.168.2.2".parse().unwrap(),
            subnet: "192.168.2.0/24".parse().unwrap(),
            whole: "192.168.0.0/17".parse().unwrap(),
            found,
            rule,
            vrf_member: None,
        }
    }

    fn through(table: u32) -> RouteResult {
        RouteResult::Through { device: Some("eth0".to_owned()), table }
    }

    #[test]
    fn detour_names_vrf_instead_of_rules() {
        let mut dropped = detour(RouteResult::Dropped(Errno::HOSTUNREACH), None);
        dropped.vrf_member = Some(Box::new(VrfMember {
            device: "m-vxlan-1".to_owned(),
            vrf: "blue".to_owned(),
            table: 10,
        }));
        assert_eq!(
            dropped.to_string(),
            "packets of containers from m-vxlan-1 to 192.168.2.0/24 are dropped without a route \
             instead of leaving through vtep1024: m-vxlan-1 belongs to VRF blue (routing table \
             10): remove it from the VRF with 'ip link set m-vxlan-1 nomaster'"
        );
    }

    #[test]
    fn command_for_detour_covers_whole_overlay() {
        assert_eq!(
            detour(through(7), Some((100, "100: from all lookup 7"))).to_string(),
            "packets of containers from m-vxlan-1 to 192.168.2.0/24 leave through eth0 (routing \
             table 7) instead of leaving through vtep1024: policy rule '100: from all lookup 7' is \
             in the way: let the overlay pass it with 'ip rule add priority 99 to 192.168.0.0/17 \
             lookup main', which concerns packets to 192.168.0.0/17 only"
        );
    }

    #[test]
    fn rule_that_none_can_precede_has_no_command() {
        let first = detour(through(7), Some((0, "0: from all lookup 7")));
        assert_eq!(first.command(), None);
        assert!(first.to_string().contains("a priority above 0"), "{first}");
        let second = detour(through(7), Some((1, "1: from all lookup 7")));
        let command = "ip rule add priority 0 to 192.168.0.0/17 lookup main";
        assert_eq!(second.command().as_ref().map(Command::text), Some(command));
    }

    #[test]
    fn detour_without_rule_advises_no_change() {
        let text = detour(RouteResult::Dropped(Errno::HOSTUNREACH), None).to_string();
        assert!(text.contains("are dropped without a route"), "{text}");
        assert!(!text.contains("rule add"), "{text}");
        let show = "see 'ip route get 192.168.2.2 from 192.168.1.2 iif m-vxlan-1' and 'ip route show \
                    table all 192.168.2.0/24'";
        assert!(text.ends_with(show), "{text}");
    }

    #[test]
    fn looked_up_peers_are_spread() {
        let all: Vec<_> = (0..10).collect();
        assert_eq!(spread(&all, 4).collect::<Vec<_>>(), [0, 3, 6, 9]);
        assert_eq!(spread(&all[..3], 4).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(spread(&all[..1], 4).collect::<Vec<_>>(), [0]);
        assert_eq!(spread(&all[..0], 4).count(), 0);
    }
}
