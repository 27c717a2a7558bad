//! Probes: echo requests to a peer that take the path of the packets of containers.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use crate::addr::{OverlayName, Subnet};

/// Number of addresses of the smallest subnet of which the probes take one. In a smaller one the
/// containers would miss it.
pub const PORT_SUBNET_MIN: u128 = 16;

/// Returns the first address that a peer with this subnet leases for its port of the probes.
#[must_use]
pub fn port_candidate(subnet: &Subnet) -> Option<IpAddr> {
    let (mesos, _) = subnet.halves()?;
    let last = mesos.offset_of(mesos.last())?;
    // Smaller subnets have no port.
    mesos.address_at(last.checked_sub(1).filter(|_| last >= PORT_SUBNET_MIN - 1)?)
}

/// Where the packet of a probe comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeSource {
    /// A port of the bridge of this overlay, as the packets of its containers. If the host has no
    /// such port, the packet comes from the VTEP.
    Containers(OverlayName),
    /// The VTEP of this host.
    Vtep,
}

/// An echo request. It is never fragmented.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbePacket {
    /// Where the packet comes from.
    pub source: ProbeSource,
    /// The destination: an address of a peer in the overlay or in the VTEP subnet.
    pub to: IpAddr,
    /// Length in bytes, IP header included.
    pub size: u32,
}

/// The outcome of an echo request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeOutcome {
    /// A reply arrived after this round-trip time.
    Replied(Duration),
    /// Neither a reply nor an ICMP error arrived.
    NoReply,
    /// Another host reported that it has no route to the destination, or that the destination does
    /// not exist in its network; or the destination itself refused the packet.
    Unreachable,
    /// A firewall or a route of another host refused the packet. That says nothing about the
    /// destination.
    Refused,
    /// The packet exceeds the MTU of a link, which the reporting router may name.
    TooBig(Option<u32>),
    /// This host did not send the packet, with the reason.
    NotSent(String),
}

impl ProbeOutcome {
    /// Returns whether a reply arrived.
    #[must_use]
    pub const fn has_reply(&self) -> bool {
        matches!(self, Self::Replied(_))
    }
}

/// The outcomes of a batch of echo requests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProbeReport {
    /// One outcome for each packet, in order.
    pub outcomes: Vec<ProbeOutcome>,
    /// Destinations of earlier batches that another host reported as missing after the batch. A host
    /// reports a missing container when its ARP requests have failed, after three seconds.
    pub missing: BTreeSet<IpAddr>,
    /// The overlays whose packets left through a port of their bridge.
    pub bridged: BTreeSet<OverlayName>,
    /// Why packets of an overlay did not leave through its bridge, although the bridge exists.
    pub limitation: Option<String>,
}
