//! Writes the rules as one managed nftables table. One transaction replaces the whole table, so
//! that every packet meets either all old or all new rules. Foreign tables are not changed.
//! [`super::nft_chains`] writes the chains.
//!
//! All sets are plain hash sets, and a subnet is an element with the masked address. A packet that
//! is in a chain while the table is replaced does not find the elements of interval sets and of
//! verdict maps any more: with them, packets leaked and were lost at every replacement (Linux
//! 6.18).
//!
//! The input of nft is text: not every nft reads JSON, and text is easier to read in a test.

use std::collections::BTreeSet;
use std::fmt::{Display, Write as _};
use std::net::IpAddr;

use overlay_types::addr::{Family, Subnet};

use super::InnerCheck;
use super::elements::{Element, ElementChanges, ListedElements, SetName};
use super::nft_chains;
use super::ruleset::{Layout, Ruleset, Senders};
use super::table;

/// Our table.
pub(super) const TABLE: &str = "inet mesos_overlay";

/// A small table with every feature of our rules that the kernel or nft may not support, except
/// that of [`PAIR_PROBE`].
pub(super) const PROBE: &str = "table inet mesos_overlay_probe {
    set own { type ifname . ipv4_addr; elements = { \"lo\" . 127.0.0.0 }; }
    set spaces { type ipv4_addr; elements = { 127.0.0.0 }; }
    set ports { type ipv4_addr . inet_service; }
    set within { type ifname . ipv6_addr . ipv6_addr; size 1; elements = { \"lo\" . ::1 . ::1 }; }
    chain errors { icmpv6 type < 128 @th,256,128 & 0xffff0000000000000000000000000000 == 0 counter drop; }
    chain stranger { ct state established,related accept; ct status dnat accept; counter drop; }
    chain input {
        type filter hook input priority -10; policy accept;
        iifname . ip saddr & 255.0.0.0 @own counter accept
        iifname . ip6 saddr & ffff:: . ip6 daddr & ffff:: @within fib saddr type != local accept
        meta l4proto 58 jump errors
        icmp type redirect @th,192,32 & 0xffffff80 == 0xc0a80100 counter drop
        ip daddr . tcp dport @ports counter drop
        ip daddr & 255.0.0.0 @spaces goto stranger
    }
    chain postrouting { type nat hook postrouting priority 99; oifname != lo masquerade; }
}
";

/// A small table that compares the source of a packet inside of the tunnel with its sender.
pub(super) const PAIR_PROBE: &str = "table inet mesos_overlay_probe {
    set inner4 { typeof ip saddr . @th,336,32; elements = { 10.0.0.2 . 0xc0a80200 }; }
    set inner6 { typeof ip6 saddr . @th,304,128; elements = { fd00::2 . 0xfd01000b }; }
    chain input {
        type filter hook input priority -10; policy accept;
        ip saddr . @th,336,32 & 0xffffff00 @inner4 accept
        ip6 saddr . @th,304,128 & 0xffffffffffffffffffff000000000000 @inner6 accept
        @th,224,16 0x0800 @th,336,32 & 0xffff8000 == 0xc0a80000 counter drop
    }
}
";

/// Returns the input of `nft -f -` that replaces the table.
pub(super) fn script(layout: &Layout, check: InnerCheck, elements: &ListedElements) -> String {
    let mut body = String::new();
    static_sets(&mut body, layout);
    for set in dynamic_sets(layout) {
        let name = set_name(layout, check, set);
        let none = BTreeSet::new();
        let elements = elements.get(&name).unwrap_or(&none);
        write_set(&mut body, &name, &set_type(layout, check, set), elements);
    }
    let has_gateways = elements.contains_key(&set_name(layout, check, SetName::Gateways));
    nft_chains::write(&mut body, layout, check, has_gateways);
    format!("{}table {TABLE} {{\n{body}}}\n", table::removal(TABLE))
}

/// Returns the input of nft that changes elements, in one transaction.
pub(super) fn changes(layout: &Layout, check: InnerCheck, changes: &ElementChanges) -> String {
    let mut text = String::new();
    for (verb, changed) in [("add", &changes.added), ("delete", &changes.removed)] {
        for set in changed.chunk_by(|(one, _), (other, _)| one == other) {
            let Some((name, _)) = set.first() else { continue };
            let name = set_name(layout, check, *name);
            let elements = list(set.iter().map(|(_, element)| element_text(check, element)));
            let _ = writeln!(text, "{verb} element {TABLE} {name} {{ {elements} }}");
        }
    }
    text
}

/// Returns the elements of the rules as nft lists them.
pub(super) fn listed(rules: &Ruleset, check: InnerCheck) -> ListedElements {
    let mut listed = ListedElements::new();
    for (set, element) in rules.elements.iter() {
        let name = set_name(&rules.layout, check, set);
        listed.entry(name).or_default().insert(element_text(check, &element));
    }
    listed
}

/// Returns whether a set is dynamic: its elements follow the peers and the masters.
pub(super) fn is_dynamic(set: &str) -> bool {
    ["agents", "hosts", "gateways", "inner", "members", "direct", "masters"]
        .iter()
        .any(|beginning| set.starts_with(beginning))
}

/// Returns the family and the length of the subnets in a set of sources, from its name.
pub(super) fn inner_prefix(set: &str, check: InnerCheck) -> Option<(Family, u8)> {
    let (family, prefix) = set.strip_prefix(inner_name(check))?.split_once('_')?;
    let family = [Family::V4, Family::V6].into_iter().find(|known| suffix(*known) == family)?;
    prefix.parse().ok().filter(|prefix| *prefix <= family.bits()).map(|prefix| (family, prefix))
}

/// Returns the name of a set with dynamic elements.
pub(super) fn set_name(layout: &Layout, check: InnerCheck, set: SetName) -> String {
    let outer = suffix(layout.underlay());
    match set {
        SetName::Agents => format!("agents{outer}"),
        SetName::Hosts => "hosts4".to_owned(),
        SetName::Gateways => format!("gateways{outer}"),
        SetName::Inner(family, prefix) => {
            format!("{}{}_{prefix}", inner_name(check), suffix(family))
        }
        SetName::Direct(prefix) => nft_chains::direct_set(prefix),
        SetName::Masters => "masters4".to_owned(),
    }
}

const fn inner_name(check: InnerCheck) -> &'static str {
    match check {
        InnerCheck::Pair => "inner",
        InnerCheck::Membership => "members",
    }
}

/// Returns nft's type of a set with dynamic elements.
fn set_type(layout: &Layout, check: InnerCheck, set: SetName) -> String {
    match set {
        SetName::Agents | SetName::Gateways => format!("type {}", address(layout.underlay())),
        SetName::Hosts => "type ipv4_addr".to_owned(),
        SetName::Inner(family, _) if check == InnerCheck::Pair => {
            let outer = keyword(layout.underlay());
            format!("typeof {outer} saddr . {}", nft_chains::inner_source(family))
        }
        SetName::Inner(family, _) => format!("type {}", address(family)),
        SetName::Direct(_) => "type ether_addr . ipv4_addr".to_owned(),
        SetName::Masters => "type ipv4_addr . inet_service".to_owned(),
    }
}

/// Returns the dynamic sets of a layout.
pub(super) fn dynamic_sets(layout: &Layout) -> Vec<SetName> {
    let mut sets = Vec::new();
    if layout.senders != Senders::Any {
        sets.push(SetName::Agents);
    }
    sets.push(SetName::Hosts);
    if layout.senders == Senders::Sources {
        sets.push(SetName::Gateways);
        sets.extend(
            layout.prefixes.iter().map(|(family, prefix)| SetName::Inner(*family, *prefix)),
        );
    }
    sets.extend(layout.direct_prefixes().map(SetName::Direct));
    sets.push(SetName::Masters);
    sets
}

/// Returns an element as nft lists it: hexadecimal numbers have no leading zeros.
fn element_text(check: InnerCheck, element: &Element) -> String {
    match element {
        Element::Address(address) => address.to_string(),
        Element::Inner { outer, subnet } if check == InnerCheck::Pair => {
            format!("{outer} . {}", hex(subnet.first()))
        }
        Element::Inner { subnet, .. } => subnet.first().to_string(),
        Element::Direct { mac, subnet } => format!("{mac} . {}", subnet.first()),
        Element::Socket(socket) | Element::Tunnel(socket) => {
            format!("{} . {}", socket.ip(), socket.port())
        }
    }
}

/// Writes the sets whose elements belong to the layout.
fn static_sets(body: &mut String, layout: &Layout) {
    for family in [Family::V4, Family::V6] {
        let kind = address(family);
        for (prefix, subnets) in by_prefix(layout.spaces(family)) {
            let name = format!("spaces{}_{prefix}", suffix(family));
            write_fixed_set(body, &name, kind, subnets.iter().map(Subnet::first));
            if layout.isolate {
                // Each overlay has one subnet of a family.
                let pairs = subnets.iter().map(|subnet| {
                    let first = subnet.first();
                    format!("{first} . {first}")
                });
                let name = format!("pairs{}_{prefix}", suffix(family));
                write_fixed_set(body, &name, &format!("{kind} . {kind}"), pairs);
            }
        }
    }
    if !layout.bridges.is_empty() {
        let bridges = || layout.bridges.keys().map(|bridge| format!("\"{bridge}\""));
        write_fixed_set(body, "bridges", "ifname", bridges());
        let pairs = bridges().map(|bridge| format!("{bridge} . {bridge}"));
        write_fixed_set(body, "same_bridge", "ifname . ifname", pairs);
    }
    for family in [Family::V4, Family::V6] {
        let subnets = layout.bridge_subnets(family);
        for prefix in prefixes(subnets.iter().map(|(_, subnet)| *subnet)) {
            let own = subnets.iter().filter(|(_, subnet)| subnet.prefix() == prefix);
            let own: Vec<_> =
                own.map(|(bridge, subnet)| format!("\"{bridge}\" . {}", subnet.first())).collect();
            let name = format!("own{}_{prefix}", suffix(family));
            write_fixed_set(body, &name, &format!("ifname . {}", address(family)), own.into_iter());
        }
        for ((own, space), elements) in layout.within(family) {
            let elements = elements.iter().map(|(bridge, own, space)| {
                format!("\"{bridge}\" . {} . {}", own.first(), space.first())
            });
            let name = format!("within{}_{own}_{space}", suffix(family));
            let kind = address(family);
            write_fixed_set(body, &name, &format!("ifname . {kind} . {kind}"), elements);
        }
    }
    if layout.is_untracked {
        for family in [Family::V4, Family::V6] {
            for (prefix, subnets) in by_prefix(layout.own(family)) {
                let name = format!("local{}_{prefix}", suffix(family));
                write_fixed_set(body, &name, address(family), subnets.iter().map(Subnet::first));
            }
            let gateways = layout.gateways(family);
            if gateways.len() > 0 {
                let name = format!("bridges{}", suffix(family));
                write_fixed_set(body, &name, address(family), gateways);
            }
        }
    }
    if !layout.control_ports.is_empty() {
        write_set(body, "control_ports", "type inet_service", &layout.control_ports);
    }
    if !layout.local_ports.is_empty() {
        write_set(body, "local_ports", "type inet_service", &layout.local_ports);
    }
}

/// Writes a set whose elements never change. With a size, the kernel uses a hash table that it does
/// not have to resize, in which a lookup takes less time.
pub(super) fn write_fixed_set<T: Display>(
    body: &mut String,
    name: &str,
    kind: &str,
    elements: impl ExactSizeIterator<Item = T>,
) {
    let size = elements.len();
    write_set(body, name, &format!("type {kind}\n\t\tsize {size}"), elements);
}

pub(super) fn write_set<T: Display>(
    body: &mut String,
    name: &str,
    kind: &str,
    elements: impl IntoIterator<Item = T>,
) {
    // The type of a map has the types of its keys and of its values.
    let object = if kind.contains(" : ") { "map" } else { "set" };
    let _ = write!(body, "\t{object} {name} {{\n\t\t{kind}\n");
    let elements = list(elements);
    if !elements.is_empty() {
        let _ = writeln!(body, "\t\telements = {{ {elements} }}");
    }
    body.push_str("\t}\n");
}

fn list<T: Display>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}

/// Returns the subnets of each length.
pub(super) fn by_prefix(subnets: BTreeSet<Subnet>) -> impl Iterator<Item = (u8, Vec<Subnet>)> {
    let lengths = prefixes(subnets.iter().copied());
    lengths.into_iter().map(move |prefix| {
        let subnets = subnets.iter().copied().filter(|subnet| subnet.prefix() == prefix);
        (prefix, subnets.collect())
    })
}

/// Returns the lengths of subnets.
pub(super) fn prefixes(subnets: impl Iterator<Item = Subnet>) -> BTreeSet<u8> {
    subnets.map(|subnet| subnet.prefix()).collect()
}

/// Returns nft's keyword of a family.
pub(super) const fn keyword(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

/// Returns the suffix of our sets and chains of a family.
pub(super) const fn suffix(family: Family) -> &'static str {
    match family {
        Family::V4 => "4",
        Family::V6 => "6",
    }
}

/// Returns nft's type of an address.
pub(super) const fn address(family: Family) -> &'static str {
    match family {
        Family::V4 => "ipv4_addr",
        Family::V6 => "ipv6_addr",
    }
}

/// Returns an address as a number.
pub(super) fn hex(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => format!("{:#x}", u32::from(address)),
        IpAddr::V6(address) => format!("{:#x}", u128::from(address)),
    }
}
