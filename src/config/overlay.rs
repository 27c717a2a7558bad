//! One overlay of the network file.

use super::document::{Document, Node, Object};
use super::keys::OVERLAY;
use crate::addr::{Family, OverlayName, Subnet, Vni};
use crate::protocol::limits::{
    LimitError, agent_prefix_max, check_agent_prefix, check_overlay_subnet, check_space,
};
use crate::protocol::{AddressRange, Overlay};

/// Longest subnet of an agent in IPv6 whose halves hold a container: of a /126 the first address is
/// the routers' anycast address, the second the gateway's.
pub(super) const PREFIX6_USEFUL: u8 = 125;

/// What could be read of an overlay.
#[derive(Debug)]
pub(super) struct Draft<'a> {
    /// The whole object.
    pub(super) node: Node<'a>,
    pub(super) name: Option<(Node<'a>, OverlayName)>,
    /// At most one per family.
    pub(super) spaces: Vec<Space<'a>>,
    pub(super) vni: Option<(Node<'a>, Vni)>,
    pub(super) enabled: bool,
}

/// The space of an overlay in one family, and where it was written.
#[derive(Debug)]
pub(super) struct Space<'a> {
    pub(super) node: Node<'a>,
    pub(super) subnet: Subnet,
    pub(super) prefix: Option<(Node<'a>, u8)>,
}

impl Draft<'_> {
    /// The overlay; `None` if something of it is missing, which was refused then.
    pub(super) fn overlay(&self) -> Option<Overlay> {
        let (_, name) = self.name.as_ref()?;
        let range = |family| {
            let space = self.spaces.iter().find(|space| space.subnet.family() == family)?;
            let (_, prefix) = space.prefix.as_ref()?;
            Some(AddressRange { subnet: space.subnet, prefix: *prefix })
        };
        Some(Overlay {
            name: name.clone(),
            range: range(Family::V4),
            range6: range(Family::V6),
            vni: self.vni.as_ref().map(|(_, vni)| *vni),
            enabled: self.enabled,
        })
    }

    /// How to call it in a sentence.
    pub(super) fn label(&self) -> String {
        match &self.name {
            Some((_, name)) => format!("'{name}'"),
            None => self.node.path.clone(),
        }
    }
}

/// Reads the overlay at `node`.
pub(super) fn read<'a>(document: &mut Document<'a>, node: &Node<'a>) -> Option<Draft<'a>> {
    let object = document.read_object(node, &OVERLAY)?;
    let name = document
        .required(&object, "name", "write the name of the network, such as \"vxlan-1\"")
        .and_then(|node| document.parsed(&node, "vxlan-1").map(|name| (node, name)));
    let spaces = [Family::V4, Family::V6]
        .into_iter()
        .filter_map(|family| read_space(document, &object, family))
        .collect();
    let given = ["subnet", "prefix", "subnet6", "prefix6"];
    if given.iter().all(|key| object.value(key).is_none()) {
        document.refuse(
            node,
            "has no address space: write 'subnet' and 'prefix', or 'subnet6' and 'prefix6', or all",
        );
    }
    let vni = object.value("vni");
    let vni = vni.and_then(|node| document.vni(&node).map(|vni| (node, vni)));
    let enabled = object.value("enabled").and_then(|node| document.boolean(&node)).unwrap_or(true);
    Some(Draft { node: node.clone(), name, spaces, vni, enabled })
}

fn read_space<'a>(
    document: &mut Document<'a>,
    object: &Object<'a>,
    family: Family,
) -> Option<Space<'a>> {
    let (subnet_key, prefix_key, example, example_prefix) = match family {
        Family::V4 => ("subnet", "prefix", "192.168.0.0/17", 24),
        Family::V6 => ("subnet6", "prefix6", "fd01:b::/64", 80),
    };
    let prefix = object.value(prefix_key);
    let Some(node) = object.value(subnet_key) else {
        if let Some(prefix) = prefix {
            let remedy = format!("write '{subnet_key}' too, such as \"{example}\"");
            document.refuse(&prefix, format_args!("is given without '{subnet_key}': {remedy}"));
        }
        return None;
    };
    if prefix.is_none() {
        let remedy = format!("write the length of each agent's subnet, such as {example_prefix}");
        document.refuse_missing(object, prefix_key, &remedy);
    }
    let subnet = document.subnet(&node, family, example)?;
    if !refuse_unusable(document, &node, &subnet, example) {
        return None;
    }
    if let Err(error) = check_overlay_subnet(&subnet) {
        let longest = agent_prefix_max(family);
        document.refuse(&node, format_args!("{error}: write a length of at most {longest}"));
        return Some(Space { node, subnet, prefix: None });
    }
    let prefix = prefix.and_then(|prefix| {
        let length = read_prefix(document, &prefix, &subnet)?;
        Some((prefix, length))
    });
    Some(Space { node, subnet, prefix })
}

fn read_prefix<'a>(document: &mut Document<'a>, node: &Node<'a>, subnet: &Subnet) -> Option<u8> {
    let expected = format!("{} to {}", subnet.prefix(), agent_prefix_max(subnet.family()));
    let number = document.whole(node, &expected)?;
    match check_agent_prefix(number, subnet) {
        Ok(length) => return Some(length),
        Err(error @ LimitError::PrefixTooLong { .. }) => {
            document.refuse(node, format_args!("{error}; write {expected}"));
        }
        Err(error) => document.refuse(node, format_args!("{error}: write {expected}")),
    }
    None
}

/// Whether `subnet` can be used at all; refused if not.
pub(super) fn refuse_unusable(
    document: &mut Document<'_>,
    node: &Node<'_>,
    subnet: &Subnet,
    example: &str,
) -> bool {
    let Err(error) = check_space(subnet) else {
        return true;
    };
    document.refuse(node, format_args!("{error}: write other space, such as \"{example}\""));
    false
}
