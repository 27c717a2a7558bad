//! Another agent, and whether what is said of it can be true. What a master sends may be wrong or
//! hostile: a peer that would cut the host off, or take the packets of another, is left out with
//! the reason, and all others go on.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Desired;
use crate::addr::{Mac, OverlayName, Subnet, special_address};
use crate::mutation::Mutation;

/// Another agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// IPv4 address of its VTEP.
    pub ip: Option<Ipv4Addr>,
    /// IPv6 address of its VTEP.
    pub ip6: Option<Ipv6Addr>,
    /// MAC address of its VTEP.
    pub mac: Mac,
    /// Its subnets, each with its overlay.
    pub subnets: Vec<(OverlayName, Subnet)>,
}

impl Peer {
    /// The address of its VTEP behind which a subnet of the same family is.
    #[must_use]
    pub fn gateway(&self, subnet: &Subnet) -> Option<IpAddr> {
        match subnet.first() {
            IpAddr::V4(_) => self.ip.map(IpAddr::V4),
            IpAddr::V6(_) => self.ip6.map(IpAddr::V6),
        }
    }

    /// Both addresses of its VTEP.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.ip.map(IpAddr::V4).into_iter().chain(self.ip6.map(IpAddr::V6))
    }
}

/// A peer that is not among the others, since the agent found before that it cannot be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOutPeer {
    /// The identity of the peer.
    pub agent: Ipv4Addr,
    /// The overlays in which it has subnets.
    pub overlays: BTreeSet<OverlayName>,
    /// Why it is left out.
    pub fault: PeerFault,
}

/// Why a peer, or one of its subnets, cannot be as it is said to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerFault {
    /// No packet can be sent there.
    #[error("its address {0} is that of no host: see under which address it registers")]
    NoHost(IpAddr),
    /// Two agents, or this one and another, are at one address of the underlay.
    #[error(
        "its underlay address {underlay} belongs to agent {other}: set another underlay on one of \
         the two agents, or delete one of them at the master"
    )]
    UnderlayTaken {
        /// The address.
        underlay: IpAddr,
        /// Who has it.
        other: Ipv4Addr,
    },
    /// The underlay of this host has the other family.
    #[error(
        "its address {0} has another family than this host's underlay: let both register by the \
         same family"
    )]
    OtherFamily(IpAddr),
    /// Packets to the peer would go through the tunnel to the peer.
    #[error("its address {0} lies inside of {1} of the overlays: give the overlay another subnet")]
    InsideOverlay(IpAddr, Subnet),
    /// A MAC address that is none of one host.
    #[error("its MAC address {0} is that of no single host: set another vtep_mac_oui")]
    GroupMac(Mac),
    /// A VTEP address outside of the VTEP subnet, or none of a host.
    #[error("its VTEP address {0} is not one of the VTEP subnet: see the master's vtep_subnet")]
    ImpossibleVtep(IpAddr),
    /// Another agent, or this one, has the address or the MAC of its VTEP.
    #[error("its {what} belongs to agent {other}: delete one of the two agents at the master")]
    Taken {
        /// The address or MAC.
        what: String,
        /// Who has it.
        other: IpAddr,
    },
    /// A subnet outside of its overlay.
    #[error("its subnet {0} is not one of overlay {1}: see the overlay's subnet at the master")]
    Outside(Subnet, OverlayName),
    /// Two agents, or this one and another, have the same addresses.
    #[error("its subnet {subnet} overlaps {taken} of agent {other}: delete one of the two agents")]
    Overlap {
        /// The subnet.
        subnet: Subnet,
        /// What it overlaps.
        taken: Subnet,
        /// Whose.
        other: IpAddr,
    },
    /// More subnets of an overlay than an agent gets.
    #[error("its subnet {0} is its second of overlay {1}: see the agent in the master's state")]
    SecondSubnet(Subnet, OverlayName),
    /// A subnet whose gateway is missing.
    #[error("its subnet {0} is IPv6 and its VTEP has no IPv6 address: set vtep_subnet6")]
    NoGateway(Subnet),
}

/// The peers as far as they can be true, and what is wrong with the rest. An agent with a wrong
/// address is left out as a whole, of one with a wrong subnet that subnet is. Overlays that this
/// agent does not have are passed over.
#[must_use]
pub fn checked_peers(desired: &Desired) -> (BTreeMap<IpAddr, Peer>, Vec<(IpAddr, PeerFault)>) {
    let mut claims = Claims::of_own(desired);
    let mut peers = BTreeMap::new();
    let left_out = desired.left_out.iter();
    let mut faults: Vec<_> =
        left_out.map(|peer| (IpAddr::V4(peer.agent), peer.fault.clone())).collect();
    for (&agent, peer) in desired.peers.iter().flatten() {
        if desired.locals.iter().any(|local| local.underlay == agent) {
            continue;
        }
        if let Some(fault) = host_fault(desired, agent, peer).or_else(|| claims.claim(agent, peer))
        {
            faults.push((agent, fault));
            continue;
        }
        let mut subnets: Vec<(OverlayName, Subnet)> = Vec::with_capacity(peer.subnets.len());
        for (overlay, subnet) in &peer.subnets {
            let Some(space) = desired.space(overlay) else { continue };
            let fault = if !space.whole.iter().any(|whole| whole.covers(subnet)) {
                Some(PeerFault::Outside(*subnet, overlay.clone()))
            } else if peer.gateway(subnet).is_none() {
                Some(PeerFault::NoGateway(*subnet))
            } else if subnets
                .iter()
                .any(|(name, had)| name == overlay && had.family() == subnet.family())
            {
                Some(PeerFault::SecondSubnet(*subnet, overlay.clone()))
            } else {
                claims.claim_subnet(agent, *subnet)
            };
            match fault {
                Some(fault) => faults.push((agent, fault)),
                None => subnets.push((overlay.clone(), *subnet)),
            }
        }
        peers.insert(agent, Peer { subnets, ..peer.clone() });
    }
    (peers, faults)
}

/// What is wrong with a peer by itself.
fn host_fault(desired: &Desired, agent: IpAddr, peer: &Peer) -> Option<PeerFault> {
    if special_address(agent).is_some() {
        return Some(PeerFault::NoHost(agent));
    }
    let first = desired.locals.first()?;
    if first.underlay.is_ipv4() != agent.is_ipv4() {
        return Some(PeerFault::OtherFamily(agent));
    }
    let vteps =
        || first.addresses().filter_map(|own| Subnet::containing(own.address(), own.prefix()));
    let spaces = || desired.spaces.iter().flat_map(|space| space.whole.iter().copied());
    if let Some(space) = spaces().chain(vteps()).find(|space| space.contains(agent)) {
        return Some(PeerFault::InsideOverlay(agent, space));
    }
    if !peer.mac.is_unicast() {
        return Some(PeerFault::GroupMac(peer.mac));
    }
    let is_impossible = |address: &IpAddr| !vteps().any(|subnet| subnet.has_host(*address));
    peer.addresses().find(is_impossible).map(PeerFault::ImpossibleVtep)
}

/// Who has what. The first to claim has it, in the order of the agents' addresses, so that all
/// agents come to the same result.
#[derive(Default)]
struct Claims {
    vteps: BTreeMap<IpAddr, IpAddr>,
    macs: BTreeMap<Mac, IpAddr>,
    subnets: BTreeMap<Subnet, IpAddr>,
}

impl Claims {
    fn of_own(desired: &Desired) -> Self {
        let mut claims = Self::default();
        let Some(own) = desired.locals.first().map(|local| local.underlay) else { return claims };
        for local in &desired.locals {
            claims.vteps.extend(local.addresses().map(|address| (address.address(), own)));
            claims.macs.insert(local.mac, own);
        }
        for space in &desired.spaces {
            claims.subnets.extend(space.own.iter().map(|subnet| (*subnet, own)));
        }
        claims
    }

    fn claim(&mut self, agent: IpAddr, peer: &Peer) -> Option<PeerFault> {
        if Mutation::AcceptConflictingPeers.is_on() {
            return None;
        }
        let taken = |what: String, other: IpAddr| PeerFault::Taken { what, other };
        if let Some(&other) = self.macs.get(&peer.mac) {
            return Some(taken(format!("MAC address {}", peer.mac), other));
        }
        for address in peer.addresses() {
            if let Some(&other) = self.vteps.get(&address) {
                return Some(taken(format!("VTEP address {address}"), other));
            }
        }
        self.macs.insert(peer.mac, agent);
        self.vteps.extend(peer.addresses().map(|address| (address, agent)));
        None
    }

    /// Claimed subnets never overlap, so that only the neighbours in their order need be looked at.
    fn claim_subnet(&mut self, agent: IpAddr, subnet: Subnet) -> Option<PeerFault> {
        let before = self.subnets.range(..=subnet).next_back();
        let after = self.subnets.range(subnet..).next();
        let overlap = before.into_iter().chain(after).find(|(taken, _)| taken.overlaps(&subnet));
        if let Some((&taken, &other)) = overlap {
            return Some(PeerFault::Overlap { subnet, taken, other });
        }
        self.subnets.insert(subnet, agent);
        None
    }
}
