//! One overlay of the network file.

use overlay_types::addr::{Family, OverlayName, Subnet, Vni};
use overlay_types::protocol::limits::{
    LimitError, agent_prefix_max, check_agent_prefix, check_overlay_subnet, check_space,
};
use overlay_types::protocol::{AddressRange, Overlay};

use super::document::{Document, Node, Object};
use super::keys::OVERLAY;

/// Maximum IPv6 prefix of an agent's subnet whose halves can hold a container. In a /126, the first
/// address is the anycast address of routers and the second belongs to the gateway.
pub(super) const PREFIX6_USEFUL: u8 = 125;

/// An overlay as far as it could be read.
#[derive(Debug)]
pub(super) struct OverlayDraft<'a> {
    /// The object of the overlay.
    pub(super) node: Node<'a>,
    pub(super) name: Option<(Node<'a>, OverlayName)>,
    /// At most one range per family.
    pub(super) ranges: Vec<DraftRange<'a>>,
    pub(super) vni: Option<(Node<'a>, Vni)>,
    pub(super) enabled: bool,
}

/// The address range of an overlay in one family, with the nodes that it was read from.
#[derive(Debug)]
pub(super) struct DraftRange<'a> {
    pub(super) node: Node<'a>,
    pub(super) subnet: Subnet,
    pub(super) prefix: Option<(Node<'a>, u8)>,
}

impl OverlayDraft<'_> {
    /// Returns the overlay, or `None` if a part was refused.
    pub(super) fn overlay(&self) -> Option<Overlay> {
        let (_, name) = self.name.as_ref()?;
        Some(Overlay {
            name: name.clone(),
            range: self.range(Family::V4),
            range6: self.range(Family::V6),
            vni: self.vni.as_ref().map(|(_, vni)| *vni),
            enabled: self.enabled,
        })
    }

    fn range(&self, family: Family) -> Option<AddressRange> {
        let range = self.ranges.iter().find(|range| range.subnet.family() == family)?;
        let (_, prefix) = range.prefix.as_ref()?;
        Some(AddressRange { subnet: range.subnet, prefix: *prefix })
    }

    /// Returns the quoted name for messages, or the path if the name could not be read.
    pub(super) fn label(&self) -> String {
        match &self.name {
            Some((_, name)) => format!("'{name}'"),
            None => self.node.path.clone(),
        }
    }
}

/// Reads the overlay at `node`.
pub(super) fn read<'a>(document: &mut Document<'a>, node: &Node<'a>) -> Option<OverlayDraft<'a>> {
    let object = document.read_object(node, &OVERLAY)?;
    let name = document
        .require(&object, "name", "write the name of the network, such as \"vxlan-1\"")
        .and_then(|node| document.parse_string(&node, "vxlan-1").map(|name| (node, name)));
    let ranges = [Family::V4, Family::V6]
        .into_iter()
        .filter_map(|family| read_range(document, &object, family))
        .collect();
    let given = ["subnet", "prefix", "subnet6", "prefix6"];
    if given.iter().all(|key| object.value(key).is_none()) {
        document.refuse(
            node,
            "has no address space: write 'subnet' and 'prefix', or 'subnet6' and 'prefix6', or all",
        );
    }
    let vni = object.value("vni");
    let vni = vni.and_then(|node| document.read_vni(&node).map(|vni| (node, vni)));
    let enabled = document.read_boolean_or(&object, "enabled", true);
    Some(OverlayDraft { node: node.clone(), name, ranges, vni, enabled })
}

fn read_range<'a>(
    document: &mut Document<'a>,
    object: &Object<'a>,
    family: Family,
) -> Option<DraftRange<'a>> {
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
    let subnet = document.read_subnet(&node, family, example)?;
    if !refuse_unusable(document, &node, &subnet, example) {
        return None;
    }
    if let Err(error) = check_overlay_subnet(&subnet) {
        let longest = agent_prefix_max(family);
        document.refuse(&node, format_args!("{error}: write a length of at most {longest}"));
        return Some(DraftRange { node, subnet, prefix: None });
    }
    let prefix = prefix.and_then(|prefix| {
        let length = read_prefix(document, &prefix, &subnet)?;
        Some((prefix, length))
    });
    Some(DraftRange { node, subnet, prefix })
}

fn read_prefix<'a>(document: &mut Document<'a>, node: &Node<'a>, subnet: &Subnet) -> Option<u8> {
    let expected = format!("{} to {}", subnet.prefix(), agent_prefix_max(subnet.family()));
    let number = document.read_integer(node, &expected)?;
    match check_agent_prefix(number, subnet) {
        Ok(length) => return Some(length),
        Err(error @ LimitError::PrefixTooLong { .. }) => {
            document.refuse(node, format_args!("{error}; write {expected}"));
        }
        Err(error) => document.refuse(node, format_args!("{error}: write {expected}")),
    }
    None
}

/// Refuses `subnet` if no overlay or VTEP can use it. Returns whether `subnet` is usable.
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
