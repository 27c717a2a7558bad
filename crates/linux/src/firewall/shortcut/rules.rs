//! The text of the table.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;

use overlay_types::addr::{DeviceName, Family, InterfaceAddress, Subnet};
use overlay_types::tunnel::{Desired, OverlayBridge, OverlaySubnets, validate_peers};

use super::super::elements::ListedElements;
use super::super::nft_chains::{FAMILIES, chain, masked};
use super::super::nftables::{address, keyword, suffix, write_fixed_set, write_set};
use super::super::ruleset::of_family;
use super::super::table;
use super::entry::{DIRECT, Entry, SENDER, VIA, entry_set};
use super::port::PortHook;
use super::{BridgeLink, ShortcutLinks, TABLE, TunnelLink};

/// The rules of the shortcut.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in super::super) struct ShortcutRules {
    tunnels: Vec<Tunnel>,
    /// Addresses in the subnets of the containers that no container has.
    reserved: BTreeSet<IpAddr>,
    /// The device in the underlay for direct routing, with its index.
    direct: Option<(DeviceName, u32)>,
    /// The elements of the maps and sets that follow the peers.
    pub(super) entries: Arc<BTreeSet<Entry>>,
    /// Families and lengths of the subnets of the peers.
    prefixes: BTreeSet<(Family, u8)>,
    /// The hooks at the ports of the containers.
    pub(super) ports: BTreeSet<PortHook>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Tunnel {
    device: DeviceName,
    /// Rules contain the index of a device, and the kernel forgets a chain with its device. So a
    /// device that was replaced needs other rules.
    link: TunnelLink,
    bridges: Vec<Bridge>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Bridge {
    device: DeviceName,
    index: u32,
    /// The subnets of its containers, each with a subnet of its overlay.
    within: BTreeSet<(Subnet, Subnet)>,
}

/// A bridge with its number, one of its subnets, and a subnet of its overlay.
type Within<'a> = (usize, &'a Bridge, Subnet, Subnet);

impl ShortcutRules {
    /// Returns the rules for a desired state with a list of peers.
    pub(in super::super) fn new(desired: &Desired, links: &ShortcutLinks) -> Self {
        let tunnels = links.tunnels.iter().map(|(device, link)| {
            let spaces = desired.spaces.iter().filter(|space| space.device == *device);
            let bridges = spaces.flat_map(|space| {
                space.bridges.iter().filter_map(|bridge| Bridge::new(space, bridge, *link, links))
            });
            Tunnel { device: device.clone(), link: *link, bridges: bridges.collect() }
        });
        let tunnels: Vec<_> = tunnels.filter(|tunnel| !tunnel.bridges.is_empty()).collect();
        if tunnels.is_empty() {
            return Self::default();
        }
        let (peers, _) = validate_peers(desired);
        let direct = links.direct.clone().filter(|_| desired.direct.is_some());
        let entries = peers.iter();
        let entries = entries
            .flat_map(|(agent, peer)| Entry::of_peer(desired, direct.as_ref(), *agent, peer));
        let entries: BTreeSet<_> = entries.collect();
        let subnets = entries.iter().map(Entry::subnet);
        let prefixes = subnets.map(|subnet| (subnet.family(), subnet.prefix())).collect();
        let gateways = desired.bridges().flat_map(|bridge| &bridge.gateways);
        let ends = desired.bridges().flat_map(|bridge| &bridge.subnets);
        let ends = ends.flat_map(|subnet| [subnet.first(), subnet.last()]);
        let reserved = gateways.map(InterfaceAddress::address).chain(ends).collect();
        let ports = BTreeSet::new();
        let mut rules =
            Self { tunnels, reserved, direct, entries: Arc::new(entries), prefixes, ports };
        rules.ports = rules.ports_of(links);
        rules
    }

    /// Returns the hooks at the ports of the bridges.
    pub(super) fn ports_of(&self, links: &ShortcutLinks) -> BTreeSet<PortHook> {
        let ports = self.bridges().flat_map(|(number, bridge)| {
            let link = links.bridges.get(&bridge.device).filter(|link| link.index == bridge.index);
            link.into_iter().flat_map(move |link| {
                link.ports.iter().map(move |(device, index)| PortHook {
                    index: *index,
                    device: device.clone(),
                    bridge: number,
                    mac: link.mac,
                })
            })
        });
        ports.collect()
    }

    /// Returns whether no bridge has a shortcut.
    pub(super) fn is_empty(&self) -> bool {
        self.tunnels.is_empty() || self.entries.is_empty()
    }

    /// Returns whether only elements of the maps, and ports, differ.
    pub(super) fn has_layout_of(&self, other: &Self) -> bool {
        (&self.tunnels, &self.reserved, &self.direct, &self.prefixes)
            == (&other.tunnels, &other.reserved, &other.direct, &other.prefixes)
    }

    fn bridges(&self) -> impl Iterator<Item = (usize, &Bridge)> {
        self.tunnels.iter().flat_map(|tunnel| &tunnel.bridges).enumerate()
    }

    /// Returns the input of nft that replaces the table, without the hooks at the ports.
    pub(in super::super) fn script(&self) -> String {
        let mut body = String::new();
        let elements = self.listed();
        for family in FAMILIES {
            self.sets(&mut body, family, &elements);
        }
        for (number, bridge) in self.bridges() {
            let to = |ip| format!("fwd {ip} to {ip} daddr device \"{}\"", bridge.device);
            chain(&mut body, &format!("to{number}"), FAMILIES.map(|family| to(keyword(family))));
        }
        for family in FAMILIES {
            self.verdict_maps(&mut body, family);
        }
        for tunnel in &self.tunnels {
            for (number, bridge) in self.bridges().filter(|(_, own)| tunnel.bridges.contains(own)) {
                let within = bridge.within.iter();
                let rules =
                    within.flat_map(|(own, space)| self.rules_of_bridge(tunnel, *own, *space));
                chain(&mut body, &format!("from{number}"), rules);
            }
        }
        for (number, tunnel) in self.tunnels.iter().enumerate() {
            self.chain_of_tunnel(&mut body, number, tunnel);
        }
        if let Some((device, _)) = &self.direct {
            chain(
                &mut body,
                "underlay",
                [base(device)].into_iter().chain(self.rules_of_underlay()),
            );
        }
        format!("{}table {TABLE} {{\n{body}}}\n", table::removal(TABLE))
    }

    fn sets(&self, body: &mut String, family: Family, elements: &ListedElements) {
        let (kind, suffix) = (address(family), suffix(family));
        let reserved = self.reserved.iter().filter(|ip| ip.is_ipv4() == (family == Family::V4));
        let reserved: Vec<_> = reserved.collect();
        if !reserved.is_empty() {
            write_fixed_set(body, &format!("reserved{suffix}"), kind, reserved.into_iter());
        }
        for prefix in self.prefixes(family) {
            let mut write = |beginning, kind: &str| {
                let set = entry_set(beginning, family, prefix);
                let elements = elements.get(&set).into_iter().flatten();
                write_set(body, &set, &format!("type {kind}"), elements);
            };
            write(VIA, &format!("{kind} : {kind}"));
            if self.has_direct(family) {
                write(DIRECT, &format!("{kind} : {kind}"));
                write(SENDER, &format!("ether_addr . {kind}"));
            }
        }
    }

    fn prefixes(&self, family: Family) -> impl Iterator<Item = u8> {
        self.prefixes.iter().filter(move |(of, _)| *of == family).map(|(_, prefix)| *prefix)
    }

    /// Returns whether packets of a family may leave and arrive without encapsulation.
    fn has_direct(&self, family: Family) -> bool {
        family == Family::V4 && self.direct.is_some()
    }

    /// Writes the maps from the ends of a packet to the chain of the bridge of its destination.
    fn verdict_maps(&self, body: &mut String, family: Family) {
        for (prefixes, elements) in self.within(family) {
            let elements = elements.iter().map(|(number, _, own, space)| {
                format!("{} . {} : goto to{number}", space.first(), own.first())
            });
            let kind = address(family);
            let kind = format!("type {kind} . {kind} : verdict");
            write_set(body, &set_name("to", family, prefixes), &kind, elements.collect::<Vec<_>>());
        }
    }

    /// Writes the base chain of a tunnel.
    fn chain_of_tunnel(&self, body: &mut String, number: usize, tunnel: &Tunnel) {
        let families = FAMILIES.into_iter();
        let families = families.filter(|family| *family == Family::V4 || tunnel.link.has_ipv6);
        let rules = families.flat_map(|family| self.rules_of_tunnel(family));
        let base = base(&tunnel.device);
        chain(body, &format!("tunnel{number}"), [base].into_iter().chain(rules));
    }

    /// Returns the rules for segments from containers in `own` to the peers in `space`, one for each
    /// path and length of the subnets of peers.
    fn rules_of_bridge(&self, tunnel: &Tunnel, own: Subnet, space: Subnet) -> Vec<String> {
        let family = own.family();
        let ip = keyword(family);
        let reserved = self.is_container(family, "saddr");
        let condition =
            format!("{} {ip} saddr {own} {ip} daddr {space} {reserved}", segment(family));
        let rule = |(prefix, beginning, device): (u8, &str, &DeviceName)| {
            let to = masked(family, "daddr", prefix);
            let map = entry_set(beginning, family, prefix);
            format!("{condition}fwd {ip} to {to} map @{map} device \"{device}\"")
        };
        let direct = self.direct.iter().filter(|_| self.has_direct(family));
        let paths = |prefix| {
            let direct = direct.clone().map(move |(device, _)| (prefix, DIRECT, device));
            direct.chain([(prefix, VIA, &tunnel.device)])
        };
        self.prefixes(family).flat_map(paths).map(rule).collect()
    }

    /// Returns the rules for segments without encapsulation to containers. Few packets of the device
    /// are for containers, so their destination comes first.
    fn rules_of_underlay(&self) -> Vec<String> {
        let family = Family::V4;
        let reserved = self.is_container(family, "daddr");
        let mut rules = Vec::new();
        for (number, bridge) in self.bridges() {
            for (own, space) in bridge.within.iter().filter(|(own, _)| own.family() == family) {
                rules.extend(self.prefixes(family).map(|prefix| {
                    format!(
                        "ip daddr {own} ip saddr {space} {TO_HOST} {} {reserved}ether saddr . {} @{} \
                         goto to{number}",
                        segment(family),
                        masked(family, "saddr", prefix),
                        entry_set(SENDER, family, prefix),
                    )
                }));
            }
        }
        rules
    }

    /// Returns the rules for segments from a tunnel to containers.
    fn rules_of_tunnel(&self, family: Family) -> Vec<String> {
        let reserved = self.is_container(family, "daddr");
        let rule = |(own, space)| {
            format!(
                "{TO_HOST} {} {reserved}{} . {} vmap @{}",
                segment(family),
                masked(family, "saddr", space),
                masked(family, "daddr", own),
                set_name("to", family, (own, space)),
            )
        };
        self.within(family).into_keys().map(rule).collect()
    }

    /// Returns the condition that a container may have an address in a subnet of containers.
    fn is_container(&self, family: Family, end: &str) -> String {
        match self.has_reserved(family) {
            true => format!("{} {end} != @reserved{} ", keyword(family), suffix(family)),
            false => String::new(),
        }
    }

    fn has_reserved(&self, family: Family) -> bool {
        self.reserved.iter().any(|ip| ip.is_ipv4() == (family == Family::V4))
    }

    /// Returns the subnets of the containers with those of their overlays, by the lengths of both,
    /// each with its bridge and the number of the bridge.
    fn within(&self, family: Family) -> BTreeMap<(u8, u8), Vec<Within<'_>>> {
        let mut by_prefix: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (number, bridge) in self.bridges() {
            let within = bridge.within.iter().filter(|(own, _)| own.family() == family);
            for (own, space) in within {
                let prefixes = (own.prefix(), space.prefix());
                by_prefix.entry(prefixes).or_default().push((number, bridge, *own, *space));
            }
        }
        by_prefix
    }

    /// Returns the elements of the maps and sets as nft lists them.
    pub(super) fn listed(&self) -> ListedElements {
        let mut listed = ListedElements::new();
        for entry in &*self.entries {
            listed.entry(entry.set()).or_default().insert(entry.text());
        }
        listed
    }

    /// Returns the input of nft that changes the elements of the maps and sets.
    pub(in super::super) fn changes_since(&self, before: &Self) -> String {
        let mut text = String::new();
        let mut write = |verb, entry: &Entry| {
            let (set, element) = (entry.set(), entry.text());
            let _ = writeln!(text, "{verb} element {TABLE} {set} {{ {element} }}");
        };
        before.entries.difference(&self.entries).for_each(|entry| write("delete", entry));
        self.entries.difference(&before.entries).for_each(|entry| write("add", entry));
        text
    }
}

impl Bridge {
    /// Returns the bridge, if it exists and has containers of a family that the tunnel carries.
    fn new(
        space: &OverlaySubnets,
        bridge: &OverlayBridge,
        tunnel: TunnelLink,
        links: &ShortcutLinks,
    ) -> Option<Self> {
        let BridgeLink { index, .. } = *links.bridges.get(&bridge.device)?;
        let carried =
            bridge.subnets.iter().filter(|own| own.family() == Family::V4 || tunnel.has_ipv6);
        let within = carried.flat_map(|own| {
            of_family(space.whole.iter(), own.family()).map(move |whole| (*own, whole))
        });
        let within: BTreeSet<_> = within.collect();
        (!within.is_empty()).then(|| Self { device: bridge.device.clone(), index, within })
    }
}

/// Returns the name of a set for subnets of these lengths.
fn set_name(name: &str, family: Family, (own, space): (u8, u8)) -> String {
    format!("{name}{}_{own}_{space}", suffix(family))
}

/// Returns the specification of a chain at the ingress hook of a device.
pub(super) fn base(device: &DeviceName) -> String {
    format!("type filter hook ingress device \"{device}\" priority 0; policy accept;")
}

/// The condition that a frame is for this host's MAC.
const TO_HOST: &str = "meta pkttype host";

/// Returns the conditions on a segment: it has no IP options, its TTL does not end here, and it has no
/// SYN. A fragment has no flags. Masks and comparisons of equality are the cheapest expressions of
/// nftables.
fn segment(family: Family) -> String {
    let header = match family {
        // Version 4 and five words.
        Family::V4 => "@nh,0,8 0x45 ip ttl & 0xfe != 0",
        Family::V6 => "ip6 hoplimit & 0xfe != 0",
    };
    format!("{header} tcp flags & syn == 0")
}
