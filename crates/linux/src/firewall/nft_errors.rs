//! Writes the chains that check ICMP errors.
//!
//! An error contains the beginning of the packet that it is about. The kernel changes the path MTU
//! to the destination of that packet, also of a tunnel, without a check of the error's sender. The
//! host that sends an error has received that packet, so its destination is behind the device from
//! which the error comes. Offsets in bits from the ICMP header: 64, and then the IP header with the
//! destination after 128 bits (IPv4) or 192 bits (IPv6).

use overlay_types::addr::Family;

use super::nft_chains::{FAMILIES, chain, mask};
use super::nftables::{hex, suffix};
use super::ruleset::Layout;

/// The devices from which an error comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// The bridges of the overlays.
    Bridges,
    /// The tunnels.
    Tunnels,
    /// All other devices.
    Others,
}

impl Origin {
    const fn name(self) -> &'static str {
        match self {
            Self::Bridges => "bridge",
            Self::Tunnels => "tunnel",
            Self::Others => "other",
        }
    }
}

/// Returns the rules that check the errors.
pub(super) fn rules(origin: Origin) -> [String; 2] {
    let name = origin.name();
    [
        // Numbers, since nft reads the names of protocols from `/etc/protocols`.
        format!("meta l4proto 1 jump errors_{name}4"),
        format!("meta l4proto 58 jump errors_{name}6"),
    ]
}

/// Writes the chains that [`rules`] jump to.
pub(super) fn write(body: &mut String, layout: &Layout, origin: Origin) {
    for family in FAMILIES {
        let name = format!("{}{}", origin.name(), suffix(family));
        chain(body, &format!("embedded_{name}"), embedded(layout, origin, family));
        let types: &[_] = match family {
            Family::V4 => &[
                "icmp type destination-unreachable",
                "icmp type source-quench",
                "icmp type time-exceeded",
                "icmp type parameter-problem",
            ],
            Family::V6 => &["icmpv6 type < 128"],
        };
        let rules = types.iter().map(|kind| format!("{kind} goto embedded_{name}"));
        chain(body, &format!("errors_{name}"), rules);
    }
}

/// Returns the rules for the destination of the packet inside of an error.
fn embedded(layout: &Layout, origin: Origin, family: Family) -> Vec<String> {
    let destination = |prefix| {
        let destination = match family {
            Family::V4 => "@th,192,32",
            Family::V6 => "@th,256,128",
        };
        match mask(family, prefix) {
            Some(mask) => format!("{destination} & {}", hex(mask)),
            None => destination.to_owned(),
        }
    };
    let internal = layout
        .internal(family)
        .into_iter()
        .map(|subnet| format!("{} == {}", destination(subnet.prefix()), hex(subnet.first())));
    match origin {
        Origin::Bridges => {
            let own = layout.bridge_subnets(family).into_iter().map(|(bridge, subnet)| {
                let first = hex(subnet.first());
                format!("iifname \"{bridge}\" {} == {first} return", destination(subnet.prefix()))
            });
            own.chain(["counter drop".to_owned()]).collect()
        }
        Origin::Tunnels => {
            let returned = internal.map(|subnet| format!("{subnet} return"));
            returned.chain(["counter drop".to_owned()]).collect()
        }
        Origin::Others => internal.map(|subnet| format!("{subnet} counter drop")).collect(),
    }
}
