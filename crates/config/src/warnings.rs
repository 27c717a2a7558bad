//! Warnings about settings of a network that are legal but unwise.

use overlay_types::addr::{Family, Mtu, Subnet};
use overlay_types::protocol::limits::vteps_in;

use super::address_ranges::{is_dcos_vtep_range, is_public, overlapping_docker_default};
use super::document::{Document, Node};
use super::overlay::{DraftRange, OverlayDraft, PREFIX6_USEFUL};
use super::vtep_subnets::VtepSubnets;

/// Bytes that VXLAN adds to a packet: outer Ethernet, IPv4, UDP and VXLAN headers.
pub(super) const VXLAN_OVERHEAD: u32 = 50;
/// Default MTU of Ethernet.
pub(super) const ETHERNET_MTU: u32 = 1500;

/// Warns about the VTEP subnets.
pub(super) fn warn_about_vteps(
    document: &mut Document<'_>,
    vteps: &VtepSubnets<'_>,
    drafts: &[OverlayDraft<'_>],
) {
    for (node, subnet) in vteps {
        if !is_dcos_vtep_range(subnet) {
            warn_about_public_space(document, node, subnet);
        }
        warn_about_docker_bridge(document, node, subnet);
    }
    let Some((node, subnet)) = vteps.first() else {
        return;
    };
    let agents = vteps_in(subnet);
    // Every IPv6 range serves more agents than any IPv4 VTEP subnet, so only IPv4 is compared.
    let ranges = enabled_ranges(drafts).filter(|(_, range)| range.subnet.family() == Family::V4);
    let least = ranges.filter_map(|(_, range)| agents_in(range)).min();
    if let Some(least) = least.filter(|&least| least > agents) {
        document.warn(
            node,
            format_args!(
                "'{subnet}' has room for {agents} agents, every overlay for {least} or more: VTEP \
                 addresses run out first"
            ),
        );
    }
    for (node, subnet6) in vteps.iter().filter(|(_, subnet6)| vteps_in(subnet6) < agents) {
        let agents6 = vteps_in(subnet6);
        document.warn(
            node,
            format_args!(
                "'{subnet6}' has room for {agents6} agents, '{subnet}' for {agents}: IPv6 VTEP \
                 addresses run out first"
            ),
        );
    }
}

/// Warns about the MTU of the VXLAN device.
pub(super) fn warn_about_vtep_mtu(
    document: &mut Document<'_>,
    mtu: Option<&(Node<'_>, Mtu)>,
    vteps: &VtepSubnets<'_>,
    drafts: &[OverlayDraft<'_>],
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
                "{mtu} is less than the {default} that containers of C++ agents have: set \
                 'overlay_mtu' of such agents to at most {mtu}"
            ),
        );
    }
    let mut subnets = vteps.iter().map(|(_, subnet)| *subnet);
    let mut ranges = enabled_ranges(drafts).map(|(_, range)| range.subnet);
    let is_v6 = |subnet: Subnet| subnet.family() == Family::V6;
    if mtu.bytes() < Mtu::MIN_IPV6 && (subnets.any(is_v6) || ranges.any(is_v6)) {
        let least = Mtu::MIN_IPV6;
        document.warn(node, format_args!("{mtu} carries no IPv6: write at least {least}"));
    }
}

/// Warns about the overlays.
pub(super) fn warn_about_overlays(
    document: &mut Document<'_>,
    vteps: &VtepSubnets<'_>,
    drafts: &[OverlayDraft<'_>],
) {
    if let Some(first) = drafts.first().filter(|_| drafts.iter().all(|draft| !draft.enabled)) {
        document.warn(&first.node, "is disabled like all overlays: agents get no network");
    }
    for draft in drafts {
        for range in &draft.ranges {
            warn_about_public_space(document, &range.node, &range.subnet);
            warn_about_docker_bridge(document, &range.node, &range.subnet);
            warn_about_prefix(document, range);
        }
    }
    warn_about_small_overlays(document, vteps, drafts);
}

fn warn_about_prefix(document: &mut Document<'_>, range: &DraftRange<'_>) {
    let Some((node, prefix)) = &range.prefix else {
        return;
    };
    let subnet = range.subnet;
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

/// Warns about ranges that serve fewer agents than the cluster can have.
///
/// The largest IPv4 overlay and the VTEP subnets determine the size of a cluster. IPv6 ranges are
/// always large, so they determine the size only if no overlay has IPv4.
fn warn_about_small_overlays(
    document: &mut Document<'_>,
    vteps: &VtepSubnets<'_>,
    drafts: &[OverlayDraft<'_>],
) {
    let largest = largest_overlay(drafts, Family::V4);
    let Some((largest, owner)) = largest.or_else(|| largest_overlay(drafts, Family::V6)) else {
        return;
    };
    let vtep_count = vteps.iter().map(|(_, subnet)| vteps_in(subnet)).min().unwrap_or(0);
    let cluster_size = vtep_count.min(largest);
    for (_, range) in enabled_ranges(drafts) {
        if let Some(agents) = agents_in(range).filter(|&agents| agents < cluster_size) {
            let (subnet, owner) = (range.subnet, owner.label());
            document.warn(
                &range.node,
                format_args!(
                    "'{subnet}' has room for {agents} agents, {owner} for {largest}: later agents \
                     get no subnet of it"
                ),
            );
        }
    }
}

/// Returns the overlay that serves the most agents in `family`, and the number of these agents.
fn largest_overlay<'d, 'a>(
    drafts: &'d [OverlayDraft<'a>],
    family: Family,
) -> Option<(u128, &'d OverlayDraft<'a>)> {
    let of_family = enabled_ranges(drafts).filter(|(_, range)| range.subnet.family() == family);
    of_family
        .filter_map(|(draft, range)| Some((agents_in(range)?, draft)))
        .max_by_key(|(agents, _)| *agents)
}

fn warn_about_docker_bridge(document: &mut Document<'_>, node: &Node<'_>, subnet: &Subnet) {
    if let Some(pool) = overlapping_docker_default(subnet) {
        document.warn(
            node,
            format_args!(
                "'{subnet}' overlaps {pool}, which Docker gives its own bridge by default: write \
                 other space, or set 'bip' of Docker"
            ),
        );
    }
}

fn warn_about_public_space(document: &mut Document<'_>, node: &Node<'_>, subnet: &Subnet) {
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

fn enabled_ranges<'d, 'a>(
    drafts: &'d [OverlayDraft<'a>],
) -> impl Iterator<Item = (&'d OverlayDraft<'a>, &'d DraftRange<'a>)> {
    let enabled = drafts.iter().filter(|draft| draft.enabled);
    enabled.flat_map(|draft| draft.ranges.iter().map(move |range| (draft, range)))
}

/// Returns how many agents can get a subnet of `range`.
fn agents_in(range: &DraftRange<'_>) -> Option<u128> {
    range.prefix.as_ref().map(|(_, prefix)| range.subnet.count(*prefix))
}
