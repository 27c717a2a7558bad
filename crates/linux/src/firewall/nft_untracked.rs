//! Writes the rules that keep packets between containers of different agents, and the VXLAN packets
//! between the agents, out of connection tracking. Tracking costs two lookups for each packet on
//! each host, and each connection an entry in the tables of both hosts.
//!
//! The decision precedes conntrack (priority -300, that of `raw`), so it depends on addresses only.
//! A packet is not tracked if it goes from a container of this host to the overlay's other agents,
//! or from the tunnel to a container of this host. A packet to an address of the host itself is
//! tracked: it may go to a published port.
//!
//! The reply to a packet whose destination was translated has to be tracked too, since conntrack
//! translates it back. If both ends are in the overlays, the reply would look like any other packet
//! between containers. So such a connection also gets an address of this host as its source (chain
//! `translated`), which its replies have as destination.

use std::collections::BTreeSet;

use overlay_types::addr::{Family, Subnet};

use super::nft_chains::{FAMILIES, base, chain, masked};
use super::nftables::{by_prefix, keyword, suffix};
use super::ruleset::{Layout, Senders};

/// The chain for packets that arrive.
pub(super) const CHAIN: &str = "untracked";
/// The chain for packets of this host.
pub(super) const OUTPUT_CHAIN: &str = "untracked_output";

/// Switches off the tracking of a packet that arrives, and ends its way through the chain.
const UNTRACKED: &str = "notrack accept";

/// Writes the chains that switch off the tracking of packets.
pub(super) fn write(body: &mut String, layout: &Layout) {
    if !layout.is_untracked {
        return;
    }
    let mut input = vec![base("filter", "prerouting", "-300")];
    let mut output = vec![base("filter", "output", "-300")];
    if layout.senders != Senders::Any {
        let outer = layout.underlay();
        let (ip, agents) = (keyword(outer), format!("@agents{}", suffix(outer)));
        for port in &layout.ports {
            // The port first: most packets of containers fail this comparison, which is cheap.
            input.push(format!("udp dport {port} {ip} saddr {agents} {UNTRACKED}"));
            output.push(format!("udp dport {port} {ip} daddr {agents} notrack"));
        }
    }
    for family in FAMILIES {
        input.extend(from_containers(layout, family));
        input.extend(from_tunnels(layout, family));
    }
    chain(body, CHAIN, input);
    chain(body, OUTPUT_CHAIN, output);
}

/// Returns rules for packets from containers of this host to the overlays' other agents. The rules
/// for both directions have the same conditions: conntrack takes a reply without its request for
/// invalid. They name no device, since the chain `forward` drops packets of other devices with such
/// a source.
fn from_containers(layout: &Layout, family: Family) -> Vec<String> {
    let elsewhere = local(layout, family, "daddr", "!= ").collect::<Vec<_>>().join(" ");
    rules_between(layout, family, ["saddr", "daddr"], &elsewhere)
}

/// Returns rules for packets from the overlays' other agents to containers of this host.
fn from_tunnels(layout: &Layout, family: Family) -> Vec<String> {
    let mut conditions: Vec<_> = local(layout, family, "saddr", "!= ").collect();
    if layout.gateways(family).len() > 0 {
        conditions.push(format!("{} daddr != @bridges{}", keyword(family), suffix(family)));
    }
    rules_between(layout, family, ["daddr", "saddr"], &conditions.join(" "))
}

/// Returns rules for packets whose address `own` is that of a container of this host, and whose
/// address `other` is in an overlay.
fn rules_between(
    layout: &Layout,
    family: Family,
    [own, other]: [&'static str; 2],
    conditions: &str,
) -> Vec<String> {
    let mut rules = Vec::new();
    for own in local(layout, family, own, "") {
        let spaces = spaces(layout, family, other);
        rules.extend(spaces.map(|other| format!("{own} {other} {conditions} {UNTRACKED}")));
    }
    rules
}

/// Returns the rules of the chain for connections whose destination was translated. Connections
/// between containers of this host keep their source.
pub(super) fn translated(layout: &Layout) -> Vec<String> {
    let mut rules = Vec::new();
    for family in FAMILIES {
        for from in local(layout, family, "saddr", "") {
            let to = local(layout, family, "daddr", "");
            rules.extend(to.map(|to| format!("{from} {to} return")));
        }
        for from in spaces(layout, family, "saddr") {
            let to = spaces(layout, family, "daddr");
            rules.extend(to.map(|to| format!("{from} {to} masquerade")));
        }
    }
    rules
}

/// Returns conditions that an address is, or with the operator `!= ` is not, of this host's subnets:
/// one for each length of the subnets.
fn local(
    layout: &Layout,
    family: Family,
    address: &'static str,
    operator: &'static str,
) -> impl Iterator<Item = String> {
    conditions(layout.own(family), family, address, operator, "local")
}

/// Returns conditions that an address is in an overlay.
fn spaces(layout: &Layout, family: Family, address: &'static str) -> impl Iterator<Item = String> {
    conditions(layout.spaces(family), family, address, "", "spaces")
}

/// A comparison with a single subnet takes less time than a lookup in a set.
fn conditions(
    subnets: BTreeSet<Subnet>,
    family: Family,
    address: &'static str,
    operator: &'static str,
    set: &'static str,
) -> impl Iterator<Item = String> {
    by_prefix(subnets).map(move |(prefix, subnets)| match &*subnets {
        [subnet] => format!("{} {address} {operator}{subnet}", keyword(family)),
        _ => {
            let address = masked(family, address, prefix);
            format!("{address} {operator}@{set}{}_{prefix}", suffix(family))
        }
    })
}
