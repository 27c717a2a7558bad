//! The elements of the maps and sets that follow the peers.

use std::net::IpAddr;

use overlay_types::addr::{DeviceName, Family, Mac, Subnet};
use overlay_types::tunnel::{Desired, DirectLink, Peer};

use super::super::nftables::suffix;

/// The beginning of the names of the maps from subnets of peers to their VTEPs.
pub(super) const VIA: &str = "via";
/// The beginning of the names of the maps from subnets of peers to the underlay addresses of those
/// that get packets without encapsulation.
pub(super) const DIRECT: &str = "direct";
/// The beginning of the names of the sets of sources that peers may have without encapsulation.
pub(super) const SENDER: &str = "sender";

/// An element of a map or set that follows the peers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Entry {
    /// A subnet that is reached through a tunnel.
    Via { subnet: Subnet, vtep: IpAddr },
    /// A subnet that is reached without encapsulation.
    Direct { subnet: Subnet, agent: IpAddr },
    /// A subnet whose packets a peer may send without encapsulation.
    Sender { subnet: Subnet, mac: Mac },
}

impl Entry {
    /// Returns the entries of a peer. A direct path through another device than `direct` has no
    /// shortcut.
    pub(super) fn of_peer(
        desired: &Desired,
        direct: Option<&(DeviceName, u32)>,
        agent: IpAddr,
        peer: &Peer,
    ) -> Vec<Self> {
        let is_usable = |link: &DirectLink| direct.is_some_and(|(name, _)| *name == link.device);
        let mut entries = Vec::new();
        for subnet in peer.subnets.iter().map(|(_, subnet)| *subnet) {
            match (desired.direct_link_to(peer, &subnet), peer.gateway(&subnet)) {
                (Some(link), _) if is_usable(link) => {
                    entries.push(Self::Direct { subnet, agent });
                }
                (None, Some(vtep)) => entries.push(Self::Via { subnet, vtep }),
                (Some(_), _) | (None, None) => {}
            }
            if let Some(offer) = peer.direct
                && direct.is_some()
                && subnet.family() == Family::V4
            {
                entries.push(Self::Sender { subnet, mac: offer.mac });
            }
        }
        entries
    }

    pub(super) const fn subnet(&self) -> Subnet {
        match self {
            Self::Via { subnet, .. }
            | Self::Direct { subnet, .. }
            | Self::Sender { subnet, .. } => *subnet,
        }
    }

    /// Returns the name of the map or set.
    pub(super) fn set(&self) -> String {
        let beginning = match self {
            Self::Via { .. } => VIA,
            Self::Direct { .. } => DIRECT,
            Self::Sender { .. } => SENDER,
        };
        entry_set(beginning, self.subnet().family(), self.subnet().prefix())
    }

    /// Returns the element as nft lists it.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Via { subnet, vtep: to } | Self::Direct { subnet, agent: to } => {
                format!("{} : {to}", subnet.first())
            }
            Self::Sender { subnet, mac } => format!("{mac} . {}", subnet.first()),
        }
    }
}

/// Returns the name of a map or set for subnets of a family and length.
pub(super) fn entry_set(beginning: &str, family: Family, prefix: u8) -> String {
    format!("{beginning}{}_{prefix}", suffix(family))
}

/// Returns whether the elements of a map or set follow the peers.
pub(in super::super) fn is_dynamic(set: &str) -> bool {
    [VIA, DIRECT, SENDER].iter().any(|beginning| set.starts_with(beginning))
}
