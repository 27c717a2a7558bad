//! The network of a cluster: the VTEP subnets, the overlays, and the check that they do not
//! overlap.

use overlay_types::addr::{Family, Oui, OverlayName, Subnet};
use overlay_types::protocol::Network;
use overlay_types::protocol::limits::OVERLAYS_MAX;

use super::document::{Document, Node, Object};
use super::overlay::{self, DraftRange, OverlayDraft};
use super::vtep_subnets::{self, VtepSubnets};
use super::{vxlan, warnings};

/// Reads the network from `object`.
pub(super) fn read<'a>(document: &mut Document<'a>, object: &Object<'a>) -> Option<Network> {
    let vteps = vtep_subnets::read(document, object);
    let oui: Option<Oui> = document
        .require(
            object,
            "vtep_mac_oui",
            "write the upper half of MACs, such as \"70:B3:D5:00:00:00\"",
        )
        .and_then(|node| document.parse_string(&node, "70:B3:D5:00:00:00"));
    let vtep_mtu = object.value("vtep_mtu");
    let vtep_mtu = vtep_mtu.and_then(|node| document.read_mtu(&node).map(|mtu| (node, mtu)));
    let OverlayList { drafts, is_too_long } = read_overlays(document, object);
    let vxlan = vxlan::read(document, object, &drafts);
    if !is_too_long {
        refuse_duplicate_names(document, &drafts);
        refuse_overlaps(document, &drafts, &vteps);
    }
    warnings::warn_about_vteps(document, &vteps, &drafts);
    warnings::warn_about_vtep_mtu(document, vtep_mtu.as_ref(), &vteps, &drafts);
    warnings::warn_about_overlays(document, &vteps, &drafts);
    let subnet_of =
        |family| vteps.iter().map(|(_, subnet)| *subnet).find(|subnet| subnet.family() == family);
    Some(Network {
        vtep_subnet: subnet_of(Family::V4)?,
        vtep_subnet6: subnet_of(Family::V6),
        vtep_mac_oui: oui?,
        vtep_mtu: vtep_mtu.map(|(_, mtu)| mtu),
        vxlan: vxlan?,
        overlays: drafts.iter().map(OverlayDraft::overlay).collect::<Option<_>>()?,
    })
}

/// The overlays that could be read.
#[derive(Default)]
struct OverlayList<'a> {
    drafts: Vec<OverlayDraft<'a>>,
    /// Whether the list exceeds [`OVERLAYS_MAX`]. Then the excess overlays are not read.
    is_too_long: bool,
}

fn read_overlays<'a>(document: &mut Document<'a>, object: &Object<'a>) -> OverlayList<'a> {
    let remedy = "write the list of overlay networks, each with name, subnet and prefix";
    let Some(node) = document.require(object, "overlays", remedy) else {
        return OverlayList::default();
    };
    let Some(list) = document.read_list(&node) else {
        return OverlayList::default();
    };
    if list.is_empty() {
        document
            .refuse(&node, "is empty: write at least one overlay, with name, subnet and prefix");
    }
    let is_too_long = list.len() > OVERLAYS_MAX;
    if is_too_long {
        let message = format!("has {} overlays: write at most {OVERLAYS_MAX}", list.len());
        document.refuse(&node, message);
    }
    let list = list.iter().take(OVERLAYS_MAX);
    let drafts = list.filter_map(|node| overlay::read(document, node)).collect();
    OverlayList { drafts, is_too_long }
}

fn refuse_duplicate_names(document: &mut Document<'_>, drafts: &[OverlayDraft<'_>]) {
    let named: Vec<(&Node<'_>, &OverlayName, &str)> = drafts
        .iter()
        .filter_map(|draft| {
            draft.name.as_ref().map(|(node, name)| (node, name, draft.node.path.as_str()))
        })
        .collect();
    for (index, &(node, name, _)) in named.iter().enumerate() {
        let clashes = |other: &OverlayName| other.clashes_with(name);
        let Some(&(_, other, path)) = named[..index].iter().find(|(_, other, _)| clashes(other))
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

fn refuse_overlaps(
    document: &mut Document<'_>,
    drafts: &[OverlayDraft<'_>],
    vteps: &VtepSubnets<'_>,
) {
    for (index, draft) in drafts.iter().enumerate() {
        for range in &draft.ranges {
            let subnet = range.subnet;
            for (node, vtep_subnet) in vteps.iter().filter(|(_, vtep)| vtep.overlaps(&subnet)) {
                let key = node.path.rsplit('.').next().unwrap_or(&node.path);
                refuse_overlap(document, (draft, range), vtep_subnet, key);
            }
            for other in &drafts[..index] {
                for overlapped in other.ranges.iter().filter(|range| range.subnet.overlaps(&subnet))
                {
                    refuse_overlap(document, (draft, range), &overlapped.subnet, &other.label());
                }
            }
        }
    }
}

/// Refuses a range of an overlay that overlaps the subnet `other` of `owner`.
fn refuse_overlap(
    document: &mut Document<'_>,
    (draft, range): (&OverlayDraft<'_>, &DraftRange<'_>),
    other: &Subnet,
    owner: &str,
) {
    let (subnet, label) = (range.subnet, draft.label());
    document.refuse(
        &range.node,
        format_args!(
            "'{subnet}' of {label} overlaps '{other}' of {owner}: write a separate subnet"
        ),
    );
}
