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
use overlay_types::tunnel::{Desired, OverlayBridge, OverlaySubnets};
use rustix::io::Errno;
use rustix::net::netdevice;

use super::error::describe;
use super::message::{Batch, Message, address, attributes, family_of, text, u32_at};
use super::observe::Indices;
use super::socket::Netlink;
use super::uapi::{
    FRA_DST, FRA_FWMARK, FRA_IIFNAME, FRA_OIFNAME, FRA_PRIORITY, FRA_SRC, FRA_TABLE, NLM_F_REQUEST,
    RT_TABLE_MAIN, RTA_DST, RTA_IIF, RTA_OIF, RTA_SRC, RTA_TABLE, RTM_F_LOOKUP_TABLE, RTM_GETROUTE,
    RTM_GETRULE,
};

/// Number of peers of each overlay whose containers are looked up.
const PEERS_MAX: usize = 4;
/// Priorities of the rules that every host has: tables `local`, `main` and `default`.
const DEFAULT_PRIORITIES: [u32; 3] = [0, 32_766, 32_767];
/// Number of rules that a problem names.
const RULES_MAX: usize = 3;

/// A packet of a container, and the device that it must leave through.
struct Probe<'a> {
    from: &'a DeviceName,
    to: &'a DeviceName,
    source: IpAddr,
    destination: IpAddr,
    /// The destination's subnet.
    subnet: Subnet,
}

/// A difference between the way of a container's packets and the right way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Detour {
    /// The device that the packets enter through.
    pub from: DeviceName,
    /// The device that the packets must leave through.
    pub to: DeviceName,
    /// The destination.
    pub subnet: Subnet,
    /// What the kernel does with the packets.
    pub found: Way,
    /// The policy rules that may be the cause, as `ip rule` prints them.
    pub rules: Vec<String>,
    /// Priority of the first of these rules.
    pub first_priority: Option<u32>,
}

/// What the kernel does with packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
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
    indices: &Indices,
    bridges: &BTreeSet<DeviceName>,
) -> io::Result<Vec<Detour>> {
    let mut found = Vec::new();
    for probe in desired.spaces.iter().flat_map(|space| probes(desired, space, bridges)) {
        let (Some(from), Some(to)) = (indices.get(probe.from), indices.get(probe.to)) else {
            continue;
        };
        let way = match route_of(netlink, &probe, from)? {
            Ok((device, _)) if device == Some(to) => continue,
            Ok((index, table)) => {
                let name = |index| netdevice::index_to_name(netlink.borrowed(), index).ok();
                Way::Through { device: index.and_then(name), table }
            }
            Err(errno) => Way::Dropped(errno),
        };
        // The detour of another peer has the same cause.
        let is_known =
            |other: &Detour| (&other.from, &other.to, &other.found) == (probe.from, probe.to, &way);
        if !found.iter().any(is_known) {
            found.push(Detour {
                from: probe.from.clone(),
                to: probe.to.clone(),
                subnet: probe.subnet,
                found: way,
                rules: Vec::new(),
                first_priority: None,
            });
        }
    }
    for detour in &mut found {
        detour.add_rules(&rules(netlink, detour.subnet.family())?);
    }
    Ok(found)
}

/// Returns the packets between each bridge of an overlay and a few peers, in both directions.
fn probes<'a>(
    desired: &'a Desired,
    space: &'a OverlaySubnets,
    bridges: &BTreeSet<DeviceName>,
) -> Vec<Probe<'a>> {
    let peers = desired.peers.iter().flat_map(BTreeMap::values);
    let subnets = peers.flat_map(|peer| &peer.subnets);
    let subnets = subnets.filter(|(overlay, _)| *overlay == space.overlay);
    let mut probes = Vec::new();
    for family in [Family::V4, Family::V6] {
        let of_family = subnets.clone().filter(|(_, subnet)| subnet.family() == family);
        for (_, peer) in of_family.take(PEERS_MAX) {
            for bridge in space.bridges.iter().filter(|bridge| bridges.contains(&bridge.device)) {
                probes.extend(probes_of(space, bridge, *peer));
            }
        }
    }
    probes
}

/// Returns the packets between a bridge and the subnet of a peer. The second host address is that
/// of a container.
fn probes_of<'a>(
    space: &'a OverlaySubnets,
    bridge: &'a OverlayBridge,
    peer: Subnet,
) -> impl Iterator<Item = Probe<'a>> {
    let gateway = bridge.gateways.iter().find(|gateway| gateway.family() == peer.family());
    let own = gateway.and_then(|gateway| Subnet::containing(gateway.address(), gateway.prefix()));
    let ends = own.and_then(|own| Some((own, own.address_at(2)?, peer.address_at(2)?)));
    ends.into_iter().flat_map(move |(own, here, there)| {
        let (bridge, tunnel) = (&bridge.device, &space.device);
        [
            Probe { from: bridge, to: tunnel, source: here, destination: there, subnet: peer },
            Probe { from: tunnel, to: bridge, source: there, destination: here, subnet: own },
        ]
    })
}

/// Returns the device and the table of the route that the kernel selects, or why it drops the
/// packet.
fn route_of(
    netlink: &mut Netlink,
    probe: &Probe<'_>,
    from: u32,
) -> io::Result<Result<(Option<u32>, u32), Errno>> {
    let is_v4 = probe.destination.is_ipv4();
    let bits = if is_v4 { Family::V4 } else { Family::V6 }.bits();
    let mut header = [0; 12];
    (header[0], header[1], header[2]) = (family_of(probe.destination), bits, bits);
    // The answer for IPv6 always has the table, and the kernel refuses the flag.
    let flags = if is_v4 { RTM_F_LOOKUP_TABLE } else { 0 };
    header[8..].copy_from_slice(&flags.to_ne_bytes());
    let mut request = Batch::default();
    request.begin(RTM_GETROUTE, NLM_F_REQUEST, &header);
    request.address(RTA_DST, probe.destination);
    request.address(RTA_SRC, probe.source);
    request.attribute(RTA_IIF, &from.to_ne_bytes());
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

/// A policy rule that is not one of the default rules.
struct Rule {
    priority: u32,
    table: u32,
    text: String,
}

/// Lists the policy rules of a family that not every host has.
fn rules(netlink: &mut Netlink, family: Family) -> io::Result<Vec<Rule>> {
    let any: IpAddr = match family {
        Family::V4 => [0; 4].into(),
        Family::V6 => [0; 16].into(),
    };
    let mut header = [0; 12];
    header[0] = family_of(any);
    let read = |rules: &mut Vec<_>, message: Message<'_>| {
        rules.extend(rule(message.body).filter(|_| message.body.first() == Some(&header[0])));
    };
    netlink.dump(RTM_GETRULE, &header, |_| {}, read, Vec::new)
}

fn rule(body: &[u8]) -> Option<Rule> {
    /// Actions of a rule, from `linux/fib_rules.h`.
    const ACTIONS: [(u8, &str); 3] = [(6, "blackhole"), (7, "unreachable"), (8, "prohibit")];
    let [_, to_length, from_length, _, table, _, _, action] = *body.get(..8)? else { return None };
    let (mut priority, mut table) = (0, u32::from(table));
    let (mut from, mut conditions) = ("all".to_owned(), Vec::new());
    for (kind, value) in attributes(body, 12) {
        let ip = || address(value).map_or_else(String::new, |ip| ip.to_string());
        match kind {
            FRA_PRIORITY => priority = u32_at(value, 0)?,
            FRA_TABLE => table = u32_at(value, 0)?,
            FRA_SRC => from = format!("{}/{from_length}", ip()),
            FRA_DST => conditions.push(format!(" to {}/{to_length}", ip())),
            FRA_IIFNAME => conditions.push(format!(" iif {}", text(value))),
            FRA_OIFNAME => conditions.push(format!(" oif {}", text(value))),
            FRA_FWMARK => conditions.push(format!(" fwmark {:#x}", u32_at(value, 0)?)),
            _ => {}
        }
    }
    // `ip rule` prints the destination before the devices.
    conditions.sort_by_key(|condition| !condition.starts_with(" to"));
    let conditions = conditions.concat();
    if DEFAULT_PRIORITIES.contains(&priority) {
        return None;
    }
    let action = match ACTIONS.iter().find(|(number, _)| *number == action) {
        Some((_, name)) => (*name).to_owned(),
        None => format!("lookup {table}"),
    };
    Some(Rule { priority, table, text: format!("{priority}: from {from}{conditions} {action}") })
}

impl Detour {
    /// Adds the rules that may be the cause: those with the table of the found route, or all rules
    /// if the packets are dropped.
    fn add_rules(&mut self, rules: &[Rule]) {
        let is_suspect = |rule: &&Rule| match self.found {
            Way::Through { table, .. } => rule.table == table,
            Way::Dropped(_) => true,
        };
        let suspects: Vec<_> = rules.iter().filter(is_suspect).collect();
        self.first_priority = suspects.iter().map(|rule| rule.priority).min();
        self.rules = suspects.iter().take(RULES_MAX).map(|rule| rule.text.clone()).collect();
    }
}

impl fmt::Display for Detour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to, subnet, found, rules, first_priority } = self;
        write!(
            f,
            "packets of containers from {from} to {subnet} {found} instead of leaving through {to}"
        )?;
        let program = if subnet.family() == Family::V6 { "ip -6" } else { "ip" };
        match first_priority {
            Some(priority) => {
                let before = priority.saturating_sub(1).max(1);
                write!(
                    f,
                    ": policy rule '{}' is in the way: remove the rule, or let the overlay pass \
                     it with '{program} rule add priority {before} to {subnet} lookup main'",
                    rules.join("', '")
                )
            }
            None => write!(
                f,
                ": see '{program} route get ADDRESS from SOURCE iif {from}' and '{program} route \
                 show table all {subnet}'"
            ),
        }
    }
}

impl fmt::Display for Way {
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
            Self::Dropped(Errno::INVAL) => {
                f.write_str("are dropped by a blackhole route or for their addresses")
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

    fn detour(found: Way) -> Detour {
        Detour {
            from: "m-vxlan-1".parse().unwrap(),
            to: "vtep1024".parse().unwrap(),
            subnet: "192.168.2.0/24".parse().unwrap(),
            found,
            rules: Vec::new(),
            first_priority: None,
        }
    }

    #[test]
    fn detour_names_rule_of_its_table() {
        let rule = |priority, table| Rule {
            priority,
            table,
            text: format!("{priority}: from all lookup {table}"),
        };
        let rules = [rule(100, 7), rule(50, 8)];
        let mut through = detour(Way::Through { device: Some("eth0".to_owned()), table: 7 });
        through.add_rules(&rules);
        assert_eq!(
            through.to_string(),
            "packets of containers from m-vxlan-1 to 192.168.2.0/24 leave through eth0 (routing \
             table 7) instead of leaving through vtep1024: policy rule '100: from all lookup 7' is in the way: \
             remove the rule, or let the overlay pass it with 'ip rule add priority 99 to \
             192.168.2.0/24 lookup main'"
        );
        let mut dropped = detour(Way::Dropped(Errno::HOSTUNREACH));
        dropped.add_rules(&rules);
        assert_eq!(dropped.first_priority, Some(50));
    }
}
