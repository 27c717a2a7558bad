//! The VTEP subnets of a network.

use overlay_types::addr::{Family, Subnet};
use overlay_types::protocol::limits::{
    LimitError, VTEP_PREFIX_MAX, VTEP_PREFIX_MIN, VTEP_PREFIX6_MAX, check_vtep_subnet,
};

use super::document::{Document, Node, Object};
use super::overlay::refuse_unusable;

/// The VTEP subnets, each with the node that it was read from.
pub(super) type VtepSubnets<'a> = Vec<(Node<'a>, Subnet)>;

/// Reads `vtep_subnet` and `vtep_subnet6`.
pub(super) fn read<'a>(document: &mut Document<'a>, object: &Object<'a>) -> VtepSubnets<'a> {
    let remedy = "write the IPv4 space of the VTEPs, such as \"198.19.0.0/16\"";
    let mut vteps = Vec::new();
    if let Some(node) = document.require(object, "vtep_subnet", remedy) {
        let subnet = read_vtep_subnet(document, &node, Family::V4, "198.19.0.0/16");
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
    let subnet = document.read_subnet(node, family, example)?;
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
