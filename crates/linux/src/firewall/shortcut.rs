//! Forwards segments of TCP connections between containers of different agents at the ingress hook,
//! past the routing and the chains of the host, in an nftables table of the family `netdev`.
//!
//! The first segments of a connection, with the flag SYN, take the ordinary path, as do all packets
//! of other protocols. So the rules of this host, also those of other programs, decide about every
//! new connection, a missing container is reported by an ICMP error, and probes see what new
//! connections see. A segment without a connection is answered with a reset by its receiver.
//!
//! A segment takes the shortcut only if the ordinary path would forward it unchanged:
//! * from a bridge, if its source is a container of the bridge and its destination is in the same
//!   overlay, in the subnet of a peer, and conntrack does not translate it;
//! * from a tunnel, if its source is in an overlay, and its destination is a container of the same
//!   overlay. The input chain has compared this source with the sender of the VXLAN packet;
//! * with direct routing, from the device in the underlay, if its source is in a subnet of the peer
//!   that announced the MAC of the sender, and its destination is a container of the same overlay.
//!
//! The statement `fwd` decrements the TTL and does not fragment. So a bridge has no shortcut while
//! one of its ports has a larger MTU than the tunnel.
//!
//! The table is no protection: without it, all packets take the ordinary path. It is made after the
//! devices, since its chains belong to existing devices.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;

use overlay_types::addr::{DeviceName, Family, InterfaceAddress, Mac, Subnet};
use overlay_types::repetition::Repetitions;
use overlay_types::tunnel::{
    Desired, DirectLink, OverlayBridge, OverlaySubnets, Peer, validate_peers,
};

use super::Outcome;
use super::command::{FirewallError, Tools};
use super::elements::ListedElements;
use super::listing::Listing;
use super::nft_chains::{FAMILIES, chain, masked};
use super::nft_untracked::ORDINARY_PATH_PRIORITY;
use super::nftables::{address, keyword, suffix, write_fixed_set, write_set};
use super::ruleset::of_family;
use super::table;

/// The table of the shortcut.
pub(super) const TABLE: &str = "netdev mesos_overlay";

/// The beginning of the names of the maps from subnets of peers to their VTEPs.
const VIA: &str = "via";
/// The beginning of the names of the maps from subnets of peers to the underlay addresses of those
/// that get packets without encapsulation.
const DIRECT: &str = "direct";
/// The beginning of the names of the sets of sources that peers may have without encapsulation.
const SENDER: &str = "sender";

/// The devices of the overlays that exist.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ShortcutLinks {
    /// The VXLAN devices.
    pub tunnels: BTreeMap<DeviceName, TunnelLink>,
    /// The indices of the bridges whose ports have no larger MTU than the tunnel.
    pub bridges: BTreeMap<DeviceName, u32>,
    /// The device in the underlay for direct routing, with its index.
    pub direct: Option<(DeviceName, u32)>,
}

/// A VXLAN device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TunnelLink {
    /// Its index.
    pub index: u32,
    /// Whether it carries IPv6.
    pub has_ipv6: bool,
}

/// The rules of the shortcut.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ShortcutRules {
    tunnels: Vec<Tunnel>,
    /// Addresses in the subnets of the containers that no container has.
    reserved: BTreeSet<IpAddr>,
    /// The device in the underlay for direct routing, with its index.
    direct: Option<(DeviceName, u32)>,
    entries: Arc<BTreeSet<Entry>>,
    /// Families and lengths of the subnets of the peers.
    prefixes: BTreeSet<(Family, u8)>,
}

/// An element of a map or set that follows the peers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Entry {
    /// A subnet that is reached through a tunnel.
    Via { subnet: Subnet, vtep: IpAddr },
    /// A subnet that is reached without encapsulation.
    Direct { subnet: Subnet, agent: IpAddr },
    /// A subnet whose packets a peer may send without encapsulation.
    Sender { subnet: Subnet, mac: Mac },
}

impl Entry {
    /// Returns the entries of a peer. A direct path through another device than `direct` has no
    /// shortcut.
    fn of_peer(
        desired: &Desired,
        direct: Option<&(DeviceName, u32)>,
        agent: IpAddr,
        peer: &Peer,
    ) -> Vec<Self> {
        let is_usable = |link: &DirectLink| direct.is_some_and(|(name, _)| *name == link.device);
        let mut entries = Vec::new();
        for subnet in peer.subnets.iter().map(|(_, subnet)| *subnet) {
            match (desired.direct_link_to(peer, &subnet), peer.gateway(&subnet)) {
                (Some(link), _) if is_usable(link) => {
                    entries.push(Self::Direct { subnet, agent });
                }
                (None, Some(vtep)) => entries.push(Self::Via { subnet, vtep }),
                (Some(_), _) | (None, None) => {}
            }
            if let Some(offer) = peer.direct
                && direct.is_some()
                && subnet.family() == Family::V4
            {
                entries.push(Self::Sender { subnet, mac: offer.mac });
            }
        }
        entries
    }

    const fn subnet(&self) -> Subnet {
        match self {
            Self::Via { subnet, .. }
            | Self::Direct { subnet, .. }
            | Self::Sender { subnet, .. } => *subnet,
        }
    }

    /// Returns the name of the map or set.
    fn set(&self) -> String {
        let beginning = match self {
            Self::Via { .. } => VIA,
            Self::Direct { .. } => DIRECT,
            Self::Sender { .. } => SENDER,
        };
        entry_set(beginning, self.subnet().family(), self.subnet().prefix())
    }

    /// Returns the element as nft lists it.
    fn text(&self) -> String {
        match self {
            Self::Via { subnet, vtep: to } | Self::Direct { subnet, agent: to } => {
                format!("{} : {to}", subnet.first())
            }
            Self::Sender { subnet, mac } => format!("{mac} . {}", subnet.first()),
        }
    }
}

fn entry_set(beginning: &str, family: Family, prefix: u8) -> String {
    format!("{beginning}{}_{prefix}", suffix(family))
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
    pub(super) fn new(desired: &Desired, links: &ShortcutLinks) -> Self {
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
        Self { tunnels, reserved, direct, entries: Arc::new(entries), prefixes }
    }

    /// Returns whether no bridge has a shortcut.
    fn is_empty(&self) -> bool {
        self.tunnels.is_empty() || self.entries.is_empty()
    }

    /// Returns whether only elements of the maps differ.
    fn has_layout_of(&self, other: &Self) -> bool {
        (&self.tunnels, &self.reserved, &self.direct, &self.prefixes)
            == (&other.tunnels, &other.reserved, &other.direct, &other.prefixes)
    }

    fn bridges(&self) -> impl Iterator<Item = (usize, &Bridge)> {
        self.tunnels.iter().flat_map(|tunnel| &tunnel.bridges).enumerate()
    }

    /// Returns the input of nft that replaces the table.
    pub(super) fn script(&self) -> String {
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
        for (number, tunnel) in self.tunnels.iter().enumerate() {
            self.chains(&mut body, number, tunnel);
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

    /// Writes the base chains of a tunnel and of its bridges.
    fn chains(&self, body: &mut String, number: usize, tunnel: &Tunnel) {
        for (number, bridge) in self.bridges().filter(|(_, own)| tunnel.bridges.contains(own)) {
            let rules = bridge
                .within
                .iter()
                .flat_map(|(own, space)| self.rules_of_bridge(tunnel, *own, *space));
            let base = base(&bridge.device);
            chain(body, &format!("bridge{number}"), [base].into_iter().chain(rules));
        }
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
        let condition = format!(
            "{} {ip} saddr {own} {ip} daddr {space} {reserved}\
             meta priority != {ORDINARY_PATH_PRIORITY}",
            segment(family)
        );
        let rule = |(prefix, beginning, device): (u8, &str, &DeviceName)| {
            let to = masked(family, "daddr", prefix);
            let map = entry_set(beginning, family, prefix);
            format!("{condition} fwd {ip} to {to} map @{map} device \"{device}\"")
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
                        "ip daddr {own} ip saddr {space} {} {reserved}ether saddr . {} @{} \
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
                "{} {reserved}{} . {} vmap @{}",
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
    fn listed(&self) -> ListedElements {
        let mut listed = ListedElements::new();
        for entry in &*self.entries {
            listed.entry(entry.set()).or_default().insert(entry.text());
        }
        listed
    }

    /// Returns the input of nft that changes the elements of the maps and sets.
    pub(super) fn changes_since(&self, before: &Self) -> String {
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
        let index = *links.bridges.get(&bridge.device)?;
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

fn base(device: &DeviceName) -> String {
    format!("type filter hook ingress device \"{device}\" priority 0; policy accept;")
}

/// Returns the conditions on a segment: it is for this host's MAC, has no IP options, its TTL does not
/// end here, and it has no SYN. A fragment has no flags. Masks and comparisons of equality are the
/// cheapest expressions of nftables.
fn segment(family: Family) -> String {
    let header = match family {
        // Version 4 and five words.
        Family::V4 => "@nh,0,8 0x45 ip ttl & 0xfe != 0",
        Family::V6 => "ip6 hoplimit & 0xfe != 0",
    };
    format!("meta pkttype host {header} tcp flags & syn == 0")
}

/// Returns whether the elements of a map or set follow the peers.
pub(super) fn is_dynamic(set: &str) -> bool {
    [VIA, DIRECT, SENDER].iter().any(|beginning| set.starts_with(beginning))
}

/// The table on this host.
#[derive(Debug, Default)]
pub(super) struct Shortcut {
    /// `None` until the table was made or removed.
    applied: Option<Applied>,
    /// Whether the table could not be made.
    has_failed: bool,
    repetitions: Repetitions,
}

#[derive(Debug, Default)]
struct Applied {
    rules: ShortcutRules,
    /// The table without the elements of the maps, as listed after it was made.
    rest: String,
    /// The generation of the nftables rules at which the table matched last.
    generation: Option<u32>,
}

impl Shortcut {
    /// Returns whether the host has the table.
    pub(super) fn is_active(&self) -> bool {
        self.applied.as_ref().is_some_and(|applied| !applied.rules.is_empty())
    }

    /// Notes that other programs changed rules, or that the table was removed.
    pub(super) fn forget(&mut self) {
        self.applied = None;
    }

    /// Notes that other programs may have changed the table.
    pub(super) const fn note_event(&mut self) {
        if let Some(applied) = &mut self.applied {
            applied.generation = None;
        }
    }

    /// Makes the table if it differs from the rules. With `verifies` the existing table is compared.
    /// After a failure the table is removed, since an outdated one would lead segments to former
    /// peers. The next verification tries again.
    pub(super) fn apply(
        &mut self,
        tools: &dyn Tools,
        rules: ShortcutRules,
        verifies: bool,
    ) -> Outcome {
        if self.has_failed && !verifies {
            return Outcome::Unchanged;
        }
        match self.try_apply(tools, rules, verifies) {
            Ok(outcome) => {
                self.has_failed = false;
                self.repetitions.clear();
                outcome
            }
            Err(error) => {
                let removal = table::remove_shortcut(tools);
                // An outdated table that stays is removed or replaced by the next job.
                (self.has_failed, self.applied) = (removal.is_ok(), None);
                self.log_failure(&error, removal.err().as_ref());
                Outcome::Unchanged
            }
        }
    }

    fn log_failure(&mut self, error: &FirewallError, removal: Option<&FirewallError>) {
        let consequence = match removal {
            None => {
                "TCP segments between containers take the path through all chains of this host \
                     until the next verification makes the shortcut again"
                    .to_owned()
            }
            Some(error) => format!(
                "nftables table {TABLE} may be outdated and lead TCP segments to former peers until \
                 its removal succeeds: {error}"
            ),
        };
        let problem = format!("make the shortcut for TCP segments: {error}; {consequence}");
        if let Some(repetition) = self.repetitions.note(&problem) {
            log::warn!("{problem}{repetition}");
        }
    }

    fn try_apply(
        &mut self,
        tools: &dyn Tools,
        rules: ShortcutRules,
        verifies: bool,
    ) -> Result<Outcome, FirewallError> {
        let is_repaired = match &mut self.applied {
            Some(applied) if applied.rules.has_layout_of(&rules) && !rules.is_empty() => {
                if !verifies || applied.is_on_host(tools)? {
                    return applied.change(tools, rules);
                }
                true
            }
            Some(applied) if applied.rules.is_empty() && rules.is_empty() => {
                return Ok(Outcome::Unchanged);
            }
            _ => false,
        };
        self.applied = None;
        if rules.is_empty() {
            let is_removed = table::remove_shortcut(tools)?;
            self.applied = Some(Applied::default());
            return Ok(if is_removed { Outcome::Made } else { Outcome::Unchanged });
        }
        tools.run("nft", &["-f", "-"], &rules.script())?;
        let generation = tools.generation();
        let rest = list(tools)?.rest;
        self.applied = Some(Applied { rules, rest, generation });
        Ok(if is_repaired { Outcome::Repaired } else { Outcome::Made })
    }
}

impl Applied {
    /// Returns whether the host has the table as it was made.
    fn is_on_host(&mut self, tools: &dyn Tools) -> Result<bool, FirewallError> {
        let generation = tools.generation();
        if generation.is_some() && generation == self.generation {
            return Ok(true);
        }
        let Listing { rest, elements } = list(tools)?;
        let is_same = rest == self.rest && elements == self.rules.listed();
        self.generation = generation.filter(|_| is_same);
        Ok(is_same)
    }

    /// Changes the elements of the maps.
    fn change(
        &mut self,
        tools: &dyn Tools,
        rules: ShortcutRules,
    ) -> Result<Outcome, FirewallError> {
        let changes = rules.changes_since(&self.rules);
        if changes.is_empty() {
            return Ok(Outcome::Unchanged);
        }
        tools.run("nft", &["-f", "-"], &changes)?;
        (self.rules, self.generation) = (rules, None);
        Ok(Outcome::Made)
    }
}

fn list(tools: &dyn Tools) -> Result<Listing, FirewallError> {
    let mut listing = Listing::default();
    listing.add_table(&table::list_shortcut(tools)?);
    Ok(listing)
}
