//! The network of a cluster: the VTEPs, the overlays, and what must not overlap.

use super::advice;
use super::document::{Document, Node, Object};
use super::overlay::{self, Draft, refuse_unusable};
use super::vxlan;
use crate::addr::{Family, Oui, OverlayName, Subnet};
use crate::protocol::Network;
use crate::protocol::limits::{
    LimitError, OVERLAYS_MAX, VTEP_PREFIX_MAX, VTEP_PREFIX_MIN, VTEP_PREFIX6_MAX, check_vtep_subnet,
};

/// The VTEP subnets and where they were written.
pub(super) type Vteps<'a> = Vec<(Node<'a>, Subnet)>;

/// Reads the network in `object`.
pub(super) fn read<'a>(document: &mut Document<'a>, object: &Object<'a>) -> Option<Network> {
    let vteps = read_vteps(document, object);
    let oui: Option<Oui> = document
        .required(
            object,
            "vtep_mac_oui",
            "write the upper half of MACs, such as \"70:B3:D5:00:00:00\"",
        )
        .and_then(|node| document.parsed(&node, "70:B3:D5:00:00:00"));
    let vtep_mtu = object.value("vtep_mtu");
    let vtep_mtu = vtep_mtu.and_then(|node| document.mtu(&node).map(|mtu| (node, mtu)));
    let (drafts, are_too_many) = read_overlays(document, object);
    let vxlan = vxlan::read(document, object, &drafts);
    if !are_too_many {
        refuse_same_names(document, &drafts);
        refuse_overlaps(document, &drafts, &vteps);
    }
    advice::on_vteps(document, &vteps, &drafts);
    advice::on_vtep_mtu(document, vtep_mtu.as_ref(), &vteps, &drafts);
    advice::on_overlays(document, &vteps, &drafts);
    let vteps_of =
        |family| vteps.iter().map(|(_, subnet)| *subnet).find(|subnet| subnet.family() == family);
    Some(Network {
        vtep_subnet: vteps_of(Family::V4)?,
        vtep_subnet6: vteps_of(Family::V6),
        vtep_mac_oui: oui?,
        vtep_mtu: vtep_mtu.map(|(_, mtu)| mtu),
        vxlan: vxlan?,
        overlays: drafts.iter().map(Draft::overlay).collect::<Option<_>>()?,
    })
}

fn read_vteps<'a>(document: &mut Document<'a>, object: &Object<'a>) -> Vteps<'a> {
    let remedy = "write the IPv4 space of the VTEPs, such as \"44.128.0.0/16\"";
    let mut vteps = Vec::new();
    if let Some(node) = document.required(object, "vtep_subnet", remedy) {
        let subnet = read_vtep_subnet(document, &node, Family::V4, "44.128.0.0/16");
        vteps.extend(subnet.map(|subnet| (node, subnet)));
    }
    if let Some(node) = object.value("vtep_subnet6") {
        let subnet = read_vtep_subnet(document, &node, Family::V6, "fd01:a::/64");
        vteps.extend(subnet.map(|subnet| (node, subnet)));
    }
    vteps
}

fn read_vtep_subnet<'a>(
    document: &mut Document<'a>,
    node: &Node<'a>,
    family: Family,
    example: &str,
) -> Option<Subnet> {
    let subnet = document.subnet(node, family, example)?;
    if !refuse_unusable(document, node, &subnet, example) {
        return None;
    }
    let expected = match family {
        Family::V4 => format!("{VTEP_PREFIX_MIN} to {VTEP_PREFIX_MAX}"),
        Family::V6 => format!("at most {VTEP_PREFIX6_MAX}"),
    };
    match check_vtep_subnet(&subnet) {
        Ok(()) => {}
        Err(error @ LimitError::VtepsTooWide(_)) => {
            document.refuse(node, format_args!("{error}; write a length of {expected}"));
        }
        Err(error) => document.refuse(node, format_args!("{error}: write a length of {expected}")),
    }
    Some(subnet)
}

/// The overlays, and whether there were more than can be read.
fn read_overlays<'a>(document: &mut Document<'a>, object: &Object<'a>) -> (Vec<Draft<'a>>, bool) {
    let remedy = "write the list of overlay networks, each with name, subnet and prefix";
    let Some(node) = document.required(object, "overlays", remedy) else {
        return (Vec::new(), false);
    };
    let Some(list) = document.list(&node) else {
        return (Vec::new(), false);
    };
    if list.is_empty() {
        document
            .refuse(&node, "is empty: write at least one overlay, with name, subnet and prefix");
    }
    let are_too_many = list.len() > OVERLAYS_MAX;
    if are_too_many {
        let message = format!("has {} overlays: write at most {OVERLAYS_MAX}", list.len());
        document.refuse(&node, message);
    }
    // What is beyond the limit is refused as a whole.
    let list = list.iter().take(OVERLAYS_MAX);
    (list.filter_map(|node| overlay::read(document, node)).collect(), are_too_many)
}

fn refuse_same_names(document: &mut Document<'_>, drafts: &[Draft<'_>]) {
    let named: Vec<(&Node<'_>, &OverlayName, &str)> = drafts
        .iter()
        .filter_map(|draft| {
            draft.name.as_ref().map(|(node, name)| (node, name, draft.node.path.as_str()))
        })
        .collect();
    for (index, &(node, name, _)) in named.iter().enumerate() {
        let is_same = |other: &OverlayName| other.clashes_with(name);
        let Some(&(_, other, path)) = named[..index].iter().find(|(_, other, _)| is_same(other))
        else {
            continue;
        };
        let message = if other == name {
            format!("'{name}' is the name of {path} already: write another")
        } else {
            format!(
                "'{name}' differs from '{other}' of {path} in case only, and iptables chains are \
                 named in upper case: write another"
            )
        };
        document.refuse(node, message);
    }
}

fn refuse_overlaps(document: &mut Document<'_>, drafts: &[Draft<'_>], vteps: &Vteps<'_>) {
    for (index, draft) in drafts.iter().enumerate() {
        for space in &draft.spaces {
            let subnet = space.subnet;
            let message = |other: &Subnet, whose: &str| {
                let label = draft.label();
                format!(
                    "'{subnet}' of {label} overlaps '{other}' of {whose}: write space of its own"
                )
            };
            for (node, vteps) in vteps.iter().filter(|(_, vteps)| vteps.overlaps(&subnet)) {
                let key = node.path.rsplit('.').next().unwrap_or(&node.path);
                document.refuse(&space.node, message(vteps, key));
            }
            for other in &drafts[..index] {
                for theirs in other.spaces.iter().filter(|other| other.subnet.overlaps(&subnet)) {
                    document.refuse(&space.node, message(&theirs.subnet, &other.label()));
                }
            }
        }
    }
}
