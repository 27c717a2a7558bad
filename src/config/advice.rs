//! Warnings: what is legal in a network but what its operator will regret.

use super::document::{Document, Node};
use super::network::Vteps;
use super::overlay::{Draft, PREFIX6_USEFUL, Space};
use super::space::{docker_default, is_documented_for_vteps, is_public};
use crate::addr::{Family, Mtu, Subnet};
use crate::protocol::limits::vteps_in;

/// What VXLAN adds to a packet: outer Ethernet, IPv4, UDP and VXLAN headers.
pub(super) const VXLAN_OVERHEAD: u32 = 50;
/// MTU of Ethernet, as most networks have it.
pub(super) const ETHERNET_MTU: u32 = 1500;

/// On the VTEP subnets.
pub(super) fn on_vteps(document: &mut Document<'_>, vteps: &Vteps<'_>, drafts: &[Draft<'_>]) {
    for (node, subnet) in vteps {
        if !is_documented_for_vteps(subnet) {
            warn_of_public(document, node, subnet);
        }
        warn_of_docker(document, node, subnet);
    }
    let Some((node, subnet)) = vteps.first() else {
        return;
    };
    let agents = vteps_in(subnet);
    // In IPv6 every overlay has more room than any VTEP subnet of IPv4: nothing to tell.
    let spaces = enabled(drafts).filter(|(_, space)| space.subnet.family() == Family::V4);
    let least = spaces.filter_map(|(_, space)| agents_in(space)).min();
    if let Some(least) = least.filter(|&least| least > agents) {
        document.warn(
            node,
            format_args!(
                "'{subnet}' has room for {agents} agents, every overlay for {least} or more: its \
                 addresses run out first"
            ),
        );
    }
    for (node, subnet6) in vteps.iter().filter(|(_, subnet6)| vteps_in(subnet6) < agents) {
        let agents6 = vteps_in(subnet6);
        document.warn(
            node,
            format_args!(
                "'{subnet6}' has room for {agents6} agents, '{subnet}' for {agents}: its addresses \
                 run out first"
            ),
        );
    }
}

/// On the MTU of the VXLAN device.
pub(super) fn on_vtep_mtu(
    document: &mut Document<'_>,
    mtu: Option<&(Node<'_>, Mtu)>,
    vteps: &Vteps<'_>,
    drafts: &[Draft<'_>],
) {
    let Some((node, mtu)) = mtu else {
        return;
    };
    let underlay = mtu.bytes() + VXLAN_OVERHEAD;
    if underlay > ETHERNET_MTU {
        document.warn(
            node,
            format_args!("{mtu} needs an MTU of {underlay} in the network between the agents"),
        );
    }
    if *mtu < Mtu::OVERLAY_DEFAULT {
        let default = Mtu::OVERLAY_DEFAULT;
        document.warn(
            node,
            format_args!(
                "{mtu} is less than the {default} that containers have by default: set \
                 'overlay_mtu' of the agents to at most {mtu}"
            ),
        );
    }
    let mut subnets = vteps.iter().map(|(_, subnet)| *subnet);
    let mut spaces = enabled(drafts).map(|(_, space)| space.subnet);
    let is_v6 = |subnet: Subnet| subnet.family() == Family::V6;
    if mtu.bytes() < Mtu::MIN_IPV6 && (subnets.any(is_v6) || spaces.any(is_v6)) {
        let least = Mtu::MIN_IPV6;
        document.warn(node, format_args!("{mtu} carries no IPv6: write at least {least}"));
    }
}

/// On the overlays.
pub(super) fn on_overlays(document: &mut Document<'_>, vteps: &Vteps<'_>, drafts: &[Draft<'_>]) {
    if let Some(first) = drafts.first().filter(|_| drafts.iter().all(|draft| !draft.enabled)) {
        document.warn(&first.node, "is disabled like all overlays: agents get no network");
    }
    for draft in drafts {
        for space in &draft.spaces {
            warn_of_public(document, &space.node, &space.subnet);
            warn_of_docker(document, &space.node, &space.subnet);
            warn_of_prefix(document, space);
        }
    }
    warn_of_small_overlays(document, vteps, drafts);
}

fn warn_of_prefix(document: &mut Document<'_>, space: &Space<'_>) {
    let Some((node, prefix)) = &space.prefix else {
        return;
    };
    let subnet = space.subnet;
    if *prefix == subnet.prefix() {
        let message = format!("{prefix} gives all of '{subnet}' to the first agent: write more");
        document.warn(node, message);
    }
    if subnet.family() == Family::V6 && *prefix > PREFIX6_USEFUL {
        document.warn(
            node,
            format_args!(
                "{prefix} leaves no address for a container in half of an agent's subnet: write \
                 at most {PREFIX6_USEFUL}"
            ),
        );
    }
}

/// The size of a cluster is that of its largest IPv4 overlay, as far as there are VTEPs: in IPv6
/// there is always plenty, so it counts only where there is no IPv4.
fn warn_of_small_overlays(document: &mut Document<'_>, vteps: &Vteps<'_>, drafts: &[Draft<'_>]) {
    let largest = |family| {
        let of_family = enabled(drafts).filter(|(_, space)| space.subnet.family() == family);
        of_family.filter_map(|(draft, space)| Some((agents_in(space)?, draft))).max_by_key(|x| x.0)
    };
    let Some((largest, whose)) = largest(Family::V4).or_else(|| largest(Family::V6)) else {
        return;
    };
    let wanted = vteps.iter().map(|(_, subnet)| vteps_in(subnet)).min().unwrap_or(0).min(largest);
    for (_, space) in enabled(drafts) {
        if let Some(agents) = agents_in(space).filter(|&agents| agents < wanted) {
            let (subnet, whose) = (space.subnet, whose.label());
            document.warn(
                &space.node,
                format_args!(
                    "'{subnet}' has room for {agents} agents, {whose} for {largest}: later agents \
                     get no subnet of it"
                ),
            );
        }
    }
}

fn warn_of_docker(document: &mut Document<'_>, node: &Node<'_>, subnet: &Subnet) {
    if let Some(pool) = docker_default(subnet) {
        document.warn(
            node,
            format_args!(
                "'{subnet}' overlaps {pool}, which Docker gives its own bridge by default: write other \
                 space, or set 'bip' of Docker"
            ),
        );
    }
}

fn warn_of_public(document: &mut Document<'_>, node: &Node<'_>, subnet: &Subnet) {
    if is_public(subnet) {
        let private = match subnet.family() {
            Family::V4 => "10.0.0.0/8",
            Family::V6 => "fc00::/7",
        };
        document.warn(
            node,
            format_args!(
                "'{subnet}' is public space: hosts of its owner cannot be reached from here; write \
                 private space, as in {private}"
            ),
        );
    }
}

fn enabled<'d, 'a>(
    drafts: &'d [Draft<'a>],
) -> impl Iterator<Item = (&'d Draft<'a>, &'d Space<'a>)> {
    let enabled = drafts.iter().filter(|draft| draft.enabled);
    enabled.flat_map(|draft| draft.spaces.iter().map(move |space| (draft, space)))
}

/// How many agents get a subnet of `space`.
fn agents_in(space: &Space<'_>) -> Option<u128> {
    space.prefix.as_ref().map(|(_, prefix)| space.subnet.count(*prefix))
}
