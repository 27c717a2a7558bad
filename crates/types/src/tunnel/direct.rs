//! Direct routing: packets of containers go to a peer on the same L2 segment without encapsulation.
//!
//! A peer that allows it announces the MAC of its device in the underlay, and accepts packets with
//! and without encapsulation from every peer that announces one. So each host decides alone how it
//! sends, and a pair of hosts need not change its path at the same moment.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::Desired;
use crate::addr::{DeviceName, Family, Mac, Subnet};

/// Direct routing of this host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DirectRouting {
    /// The device in the underlay. `None` until it is known, and if it cannot be used.
    pub link: Option<DirectLink>,
}

/// The device of this host that has its underlay address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectLink {
    /// Name of the device.
    pub device: DeviceName,
    /// Its MAC, which this host announces.
    pub mac: Mac,
}

/// What a peer offers for direct routing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirectPeer {
    /// MAC of the peer's device in the underlay. Packets of the peer's containers are accepted from
    /// it.
    pub mac: Mac,
    /// Whether packets to the peer leave without encapsulation.
    pub is_used: bool,
}

/// What the kernel says about direct routing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectReport {
    /// The device in the underlay, or why this host cannot route directly.
    pub link: Result<DirectLink, String>,
    /// The peers that offer direct routing.
    pub peers: BTreeMap<IpAddr, DirectCheck>,
}

/// Whether packets can go to a peer directly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectCheck {
    /// The MAC that the peer announced at the time of the check.
    pub mac: Mac,
    /// Why packets cannot go there directly. `None` if they can.
    pub obstacle: Option<String>,
}

impl Desired {
    /// Returns the device through which packets to this subnet of a peer leave without
    /// encapsulation. `None` if they take the tunnel: IPv6 always does, since a host that forwards
    /// IPv6 from its underlay accepts no router advertisements there.
    #[must_use]
    pub fn direct_link_to(&self, peer: &super::Peer, subnet: &Subnet) -> Option<&DirectLink> {
        let is_used = peer.direct.is_some_and(|direct| direct.is_used);
        let link = self.direct.as_ref()?.link.as_ref()?;
        (is_used && subnet.family() == Family::V4).then_some(link)
    }
}
