//! Peers, and the validation of their addresses. The data of a master may be wrong or hostile. A
//! peer that would disconnect the host or take the packets of another peer is excluded with a
//! reason. The other peers stay in use.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Desired, DirectPeer};
use crate::addr::{Mac, OverlayName, Subnet, special_address};
use crate::mutation::Mutation;

/// Another agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// IPv4 address of the VTEP.
    pub ip: Option<Ipv4Addr>,
    /// IPv6 address of the VTEP.
    pub ip6: Option<Ipv6Addr>,
    /// MAC address of the VTEP.
    pub mac: Mac,
    /// Subnets with their overlays.
    pub subnets: Vec<(OverlayName, Subnet)>,
    /// What the peer offers for direct routing. `None` if it accepts VXLAN packets only.
    pub direct: Option<DirectPeer>,
}

impl Peer {
    /// Returns the VTEP address that is the gateway of `subnet`.
    #[must_use]
    pub fn gateway(&self, subnet: &Subnet) -> Option<IpAddr> {
        match subnet.first() {
            IpAddr::V4(_) => self.ip.map(IpAddr::V4),
            IpAddr::V6(_) => self.ip6.map(IpAddr::V6),
        }
    }

    /// Returns the IPv4 and the IPv6 address of the VTEP.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.ip.map(IpAddr::V4).into_iter().chain(self.ip6.map(IpAddr::V6))
    }
}

/// A peer that the agent excluded before validation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExcludedPeer {
    /// Identity of the peer.
    pub agent: Ipv4Addr,
    /// Overlays in which the peer has subnets.
    pub overlays: BTreeSet<OverlayName>,
    /// Reason of the exclusion.
    pub fault: PeerFault,
}

/// Why a peer or one of its subnets is invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerFault {
    /// The underlay address is not a unicast address.
    #[error("its address {0} is not a host address: check the address that the agent advertises")]
    NoHost(IpAddr),
    /// Another agent has the same underlay address.
    #[error(
        "its underlay address {underlay} belongs to agent {other}: set another underlay on one of \
         the two agents, or delete one of them at the master"
    )]
    UnderlayTaken {
        /// The underlay address.
        underlay: IpAddr,
        /// The agent that has the address.
        other: Ipv4Addr,
    },
    /// The underlay of this host has another address family.
    #[error(
        "its address {0} and this host's underlay differ in address family: register both agents \
         with the same family"
    )]
    OtherFamily(IpAddr),
    /// The underlay address is inside an overlay: tunnel packets would enter the tunnel again.
    #[error("its address {0} lies inside of {1} of the overlays: give the overlay another subnet")]
    InsideOverlay(IpAddr, Subnet),
    /// The MAC address is not unicast.
    #[error("its MAC address {0} is not unicast: set another vtep_mac_oui")]
    GroupMac(Mac),
    /// The VTEP address is not a host address of the VTEP subnet.
    #[error(
        "its VTEP address {0} is no host address of the VTEP subnet: check vtep_subnet at the \
         master"
    )]
    ImpossibleVtep(IpAddr),
    /// Another agent or this agent has the same VTEP address or MAC.
    #[error("its {what} belongs to agent {other}: delete one of the two agents at the master")]
    Taken {
        /// The address or MAC, with its kind.
        what: String,
        /// The agent that has the address or MAC.
        other: IpAddr,
    },
    /// The subnet is outside its overlay.
    #[error("its subnet {0} is outside overlay {1}: check the overlay's subnet at the master")]
    Outside(Subnet, OverlayName),
    /// The subnet overlaps a subnet of another agent.
    #[error("its subnet {subnet} overlaps {taken} of agent {other}: delete one of the two agents")]
    Overlap {
        /// The subnet.
        subnet: Subnet,
        /// The overlapping subnet.
        taken: Subnet,
        /// The agent that has the overlapping subnet.
        other: IpAddr,
    },
    /// The agent has more than one subnet of this overlay and family.
    #[error("its subnet {0} is its second in overlay {1}: check the agent in the master's state")]
    SecondSubnet(Subnet, OverlayName),
    /// The VTEP has no address that could be the gateway of the subnet.
    #[error("its subnet {0} is IPv6 and its VTEP has no IPv6 address: set vtep_subnet6")]
    NoGateway(Subnet),
}

/// Returns the valid peers, and the faults of the others. An agent with an invalid address is
/// excluded. An invalid subnet is excluded alone. Subnets of overlays that this agent does not have
/// are ignored.
#[must_use]
pub fn validate_peers(desired: &Desired) -> (BTreeMap<IpAddr, Peer>, Vec<(IpAddr, PeerFault)>) {
    let mut owners = AddressOwners::of_this_agent(desired);
    let mut peers = BTreeMap::new();
    let excluded_peers = desired.excluded_peers.iter();
    let mut faults: Vec<_> =
        excluded_peers.map(|peer| (IpAddr::V4(peer.agent), peer.fault.clone())).collect();
    for (&agent, peer) in desired.peers.iter().flatten() {
        if desired.vxlan_devices.iter().any(|local| local.underlay == agent) {
            continue;
        }
        if let Some(fault) =
            address_fault(desired, agent, peer).or_else(|| owners.claim(agent, peer))
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
                .any(|(name, other)| name == overlay && other.family() == subnet.family())
            {
                Some(PeerFault::SecondSubnet(*subnet, overlay.clone()))
            } else {
                owners.claim_subnet(agent, *subnet)
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

/// Returns whether the addresses of a peer are possible, independently of other peers. The others
/// are not programmed.
#[must_use]
pub fn has_possible_addresses(desired: &Desired, agent: IpAddr, peer: &Peer) -> bool {
    address_fault(desired, agent, peer).is_none()
}

/// Checks the addresses of a peer independently of other peers.
fn address_fault(desired: &Desired, agent: IpAddr, peer: &Peer) -> Option<PeerFault> {
    if special_address(agent).is_some() {
        return Some(PeerFault::NoHost(agent));
    }
    let first = desired.vxlan_devices.first()?;
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

/// The owners of addresses. If several agents claim an address, the agent with the lowest address
/// owns it, so all agents compute the same result.
#[derive(Default)]
struct AddressOwners {
    vteps: BTreeMap<IpAddr, IpAddr>,
    macs: BTreeMap<Mac, IpAddr>,
    subnets: BTreeMap<Subnet, IpAddr>,
}

impl AddressOwners {
    fn of_this_agent(desired: &Desired) -> Self {
        let mut owners = Self::default();
        let Some(own) = desired.vxlan_devices.first().map(|local| local.underlay) else {
            return owners;
        };
        for local in &desired.vxlan_devices {
            owners.vteps.extend(local.addresses().map(|address| (address.address(), own)));
            owners.macs.insert(local.mac, own);
        }
        for space in &desired.spaces {
            owners.subnets.extend(space.own.iter().map(|subnet| (*subnet, own)));
        }
        owners
    }

    /// Records the VTEP addresses and the MAC of a peer. If another agent owns one of them, returns
    /// the fault and records nothing.
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

    /// Records a subnet of a peer. Returns the fault if the subnet overlaps a recorded subnet.
    /// Recorded subnets never overlap, so only the adjacent subnets are compared.
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
