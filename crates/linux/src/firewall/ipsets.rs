//! Writes the ipsets of the iptables backend.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddrV4};

use overlay_types::addr::{Family, Subnet};

use super::elements::{Element, ElementChanges, Elements, ListedElements, SetName};
use super::ruleset::Ruleset;

/// Suffix of the temporary set that is filled and then swapped in.
const TEMPORARY_SUFFIX: &str = "-new";
/// Name of the set with the addresses under which other agents are registered with the master.
pub(super) const HOSTS: &str = "mesos-overlay-hosts";
/// Name of the set with the masters whose ports are closed to containers.
pub(super) const MASTERS: &str = "mesos-overlay-masters";

/// All sets, each with its type, its family and its maximum number of elements.
pub(super) const SETS: [(&str, &str, Family, u32); 6] = [
    (agents(Family::V4), "hash:ip", Family::V4, 1 << 20),
    (agents(Family::V6), "hash:ip", Family::V6, 1 << 20),
    (inner(Family::V4), "hash:net", Family::V4, 1 << 22),
    (inner(Family::V6), "hash:net", Family::V6, 1 << 22),
    (HOSTS, "hash:ip", Family::V4, 1 << 20),
    (MASTERS, "hash:ip,port", Family::V4, 1 << 16),
];

/// Returns the name of the set with the underlay addresses of the peers.
pub(super) const fn agents(family: Family) -> &'static str {
    match family {
        Family::V4 => "mesos-overlay-4",
        Family::V6 => "mesos-overlay-6",
    }
}

/// Returns the name of the set with the sources of the packets inside of the tunnel.
pub(super) const fn inner(family: Family) -> &'static str {
    match family {
        Family::V4 => "mesos-overlay-inner-4",
        Family::V6 => "mesos-overlay-inner-6",
    }
}

/// Returns whether a set has the sources of the packets inside of the tunnel.
pub(super) fn is_inner(set: &str) -> bool {
    [Family::V4, Family::V6].map(inner).contains(&set)
}

/// Returns whether a set is ours. A crash may leave a temporary set behind.
pub(super) fn is_own(name: &str) -> bool {
    SETS.iter().any(|(set, ..)| {
        let suffix = name.strip_prefix(set);
        suffix.is_some_and(|suffix| suffix.is_empty() || suffix == TEMPORARY_SUFFIX)
    })
}

/// Returns all sets as input of `ipset restore`. A temporary set is filled and then swapped in, so
/// that the change of each set is atomic.
pub(super) fn script(elements: &ListedElements) -> String {
    let mut text = String::new();
    for (set, kind, family, max) in SETS {
        let family = if family == Family::V4 { "inet" } else { "inet6" };
        let temporary = format!("{set}{TEMPORARY_SUFFIX}");
        for name in [set, &temporary] {
            let _ = writeln!(text, "create -exist {name} {kind} family {family} maxelem {max}");
        }
        let _ = writeln!(text, "flush {temporary}");
        for element in elements.get(set).unwrap_or(&BTreeSet::new()) {
            let _ = writeln!(text, "add -exist {temporary} {element}");
        }
        let _ = write!(text, "swap {set} {temporary}\ndestroy {temporary}\n");
    }
    text
}

/// Returns the changes of elements as input of `ipset restore`. A set has a subnet without its
/// agent, so the sets stay the same if an agent only gets another underlay address.
pub(super) fn changes(changes: &ElementChanges, before: &Elements, after: &Elements) -> String {
    let mut text = String::new();
    for (verb, changed, others) in
        [("add", &changes.added, before), ("del", &changes.removed, after)]
    {
        let mut unchanged = common_subnets(changed, others);
        for (set, element) in changed {
            let is_unchanged =
                matches!(element, Element::Inner { subnet, .. } if !unchanged.insert(*subnet));
            if let Some(name) = set_name(*set, element).filter(|_| !is_unchanged) {
                let _ = writeln!(text, "{verb} {name} {}", element_text(element));
            }
        }
    }
    text
}

/// Returns the subnets of the elements that are in `others` too.
fn common_subnets(changed: &[(SetName, Element)], others: &Elements) -> BTreeSet<Subnet> {
    let subnet = |element: Element| match element {
        Element::Inner { subnet, .. } => Some(subnet),
        _ => None,
    };
    let changed: BTreeSet<_> = changed.iter().filter_map(|(_, element)| subnet(*element)).collect();
    let others = others.iter().filter_map(|(_, element)| subnet(element));
    others.filter(|subnet| changed.contains(subnet)).collect()
}

/// Returns the elements of the rules as ipset lists them.
pub(super) fn listed(rules: &Ruleset) -> ListedElements {
    let mut listed = ListedElements::new();
    for (set, element) in rules.elements.iter() {
        if let Some(name) = set_name(set, &element) {
            listed.entry(name.to_owned()).or_default().insert(element_text(&element));
        }
    }
    listed
}

/// Returns a listed element in the form in which the agent writes it, or `None` for an element that
/// the agent never writes.
pub(super) fn normalize(element: &str) -> Option<String> {
    // ipset lists the number of the protocol on a host without /etc/protocols.
    if let Some((address, port)) = element.split_once(',') {
        let (protocol, port) = port.split_once(':').unwrap_or(("tcp", port));
        let socket = SocketAddrV4::new(address.parse().ok()?, port.parse().ok()?);
        return match protocol {
            "tcp" | "6" => Some(element_text(&Element::Socket(socket))),
            "udp" | "17" => Some(element_text(&Element::Tunnel(socket))),
            _ => None,
        };
    }
    let address = element.parse::<IpAddr>().ok().map(|address| address.to_string());
    address.or_else(|| element.parse::<Subnet>().ok().map(|subnet| subnet.to_string()))
}

/// Returns the set of an element. No rule needs the set of gateways.
fn set_name(set: SetName, element: &Element) -> Option<&'static str> {
    match (set, element) {
        (SetName::Agents, Element::Address(IpAddr::V4(_))) => Some(agents(Family::V4)),
        (SetName::Agents, Element::Address(IpAddr::V6(_))) => Some(agents(Family::V6)),
        (SetName::Inner(family, _), _) => Some(inner(family)),
        (SetName::Hosts, _) => Some(HOSTS),
        (SetName::Masters, _) => Some(MASTERS),
        // Without a set of pairs of a MAC and a subnet, this backend accepts no such packets.
        (SetName::Agents | SetName::Gateways | SetName::Direct(_), _) => None,
    }
}

fn element_text(element: &Element) -> String {
    match element {
        Element::Address(address) => address.to_string(),
        Element::Inner { subnet, .. } | Element::Direct { subnet, .. }
            if subnet.prefix() == subnet.family().bits() =>
        {
            subnet.first().to_string()
        }
        Element::Inner { subnet, .. } | Element::Direct { subnet, .. } => subnet.to_string(),
        // The protocol is TCP if none is given. A name needs /etc/protocols.
        Element::Socket(socket) => format!("{},{}", socket.ip(), socket.port()),
        Element::Tunnel(socket) => format!("{},17:{}", socket.ip(), socket.port()),
    }
}
