//! The elements of the sets that follow the peers and the masters, while the other rules stay
//! unchanged. A change of one peer changes a few elements, independent of the number of peers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddrV4};

use overlay_types::addr::{Family, Mac, Subnet};
use overlay_types::tunnel::{Desired, Peer, validate_peers};

use super::ruleset::Options;

/// A set of elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum SetName {
    /// Underlay addresses of the peers: the accepted senders of VXLAN packets. Where the inner
    /// source is compared with the sender, these sets decide only about sources outside of the
    /// overlays, and a restarted agent recognizes by them that the rules knew peers.
    Agents,
    /// Addresses under which the other agents are registered with the master.
    Hosts,
    /// Underlay addresses of the peers without a subnet. They forward packets from other networks.
    Gateways,
    /// Accepted sources of the packets inside of the tunnel, for subnets of one family and length.
    Inner(Family, u8),
    /// Accepted sources of IPv4 packets without encapsulation, for subnets of one length.
    Direct(u8),
    /// Ports of masters, and of the tunnels of their hosts, that are closed to containers.
    Masters,
}

/// An element of a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Element {
    Address(IpAddr),
    /// A subnet of a peer, or one of its addresses as a subnet.
    Inner {
        /// Underlay address of the peer.
        outer: IpAddr,
        subnet: Subnet,
    },
    /// A subnet of a peer, or the address of its VTEP as a subnet.
    Direct {
        /// MAC of the peer's device in the underlay.
        mac: Mac,
        subnet: Subnet,
    },
    /// A TCP port.
    Socket(SocketAddrV4),
    /// A UDP port of a tunnel.
    Tunnel(SocketAddrV4),
}

/// The elements of all sets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Elements(BTreeMap<SetName, BTreeSet<Element>>);

/// The elements of the sets as a program lists them, by the program's name of the set. Sets without
/// elements are missing.
pub(super) type ListedElements = BTreeMap<String, BTreeSet<String>>;

/// The difference between the elements of two rulesets.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ElementChanges {
    pub(super) added: Vec<(SetName, Element)>,
    pub(super) removed: Vec<(SetName, Element)>,
}

impl ElementChanges {
    pub(super) const fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty()
    }
}

impl Elements {
    /// Returns the elements for a desired state. An invalid peer, such as one with a container's
    /// address, is not programmed, and its packets are not accepted either.
    pub(super) fn new(desired: &Desired, options: &Options) -> Self {
        let mut elements = Self::default();
        let has_direct = desired.direct.as_ref().is_some_and(|direct| direct.link.is_some());
        let needs_peers = options.known_agents_only || has_direct;
        let valid = needs_peers.then(|| validate_peers(desired).0);
        for (outer, peer) in valid.into_iter().flatten() {
            if has_direct {
                elements.insert_direct(&peer);
            }
            if !options.known_agents_only {
                continue;
            }
            elements.insert(SetName::Agents, Element::Address(outer));
            // The validation removes invalid subnets. A peer whose subnets are all invalid is no
            // gateway, so the subnets that the master sent decide.
            let sent = desired.peers.as_ref().and_then(|peers| peers.get(&outer));
            if sent.is_some_and(|peer| peer.subnets.is_empty()) {
                elements.insert(SetName::Gateways, Element::Address(outer));
            }
            elements.insert_inner(outer, &peer);
        }
        for &host in &desired.agents {
            elements.insert(SetName::Hosts, Element::Address(host.into()));
        }
        for &master in &desired.masters {
            elements.insert(SetName::Masters, Element::Socket(master));
            // The host of a master may have an agent with another address.
            for device in &desired.vxlan_devices {
                let tunnel = SocketAddrV4::new(*master.ip(), device.port);
                elements.insert(SetName::Masters, Element::Tunnel(tunnel));
            }
        }
        elements
    }

    /// Adds the sources of the packets that the peer sends through the tunnel. These include its
    /// underlay address, which the peer's kernel uses if it chooses no other source, as with
    /// dcos-net.
    fn insert_inner(&mut self, outer: IpAddr, peer: &Peer) {
        let host = |address: IpAddr| {
            let prefix = if address.is_ipv4() { Family::V4.bits() } else { Family::V6.bits() };
            Subnet::containing(address, prefix)
        };
        let addresses = peer.addresses().chain([outer]).filter_map(host);
        for subnet in peer.subnets.iter().map(|(_, subnet)| *subnet).chain(addresses) {
            let set = SetName::Inner(subnet.family(), subnet.prefix());
            self.insert(set, Element::Inner { outer, subnet });
        }
    }

    /// Adds the sources of the packets that the peer sends without encapsulation. A packet of its
    /// host has the address of its VTEP.
    fn insert_direct(&mut self, peer: &Peer) {
        let Some(direct) = peer.direct else { return };
        let vtep = peer.ip.and_then(|ip| Subnet::containing(ip.into(), Family::V4.bits()));
        let subnets = peer.subnets.iter().map(|(_, subnet)| *subnet).chain(vtep);
        for subnet in subnets.filter(|subnet| subnet.family() == Family::V4) {
            let element = Element::Direct { mac: direct.mac, subnet };
            self.insert(SetName::Direct(subnet.prefix()), element);
        }
    }

    fn insert(&mut self, set: SetName, element: Element) {
        self.0.entry(set).or_default().insert(element);
    }

    /// Returns the names of the sets with elements.
    pub(super) fn names(&self) -> impl Iterator<Item = SetName> {
        self.0.keys().copied()
    }

    /// Returns all elements with their sets.
    pub(super) fn iter(&self) -> impl Iterator<Item = (SetName, Element)> {
        self.0.iter().flat_map(|(set, elements)| elements.iter().map(|element| (*set, *element)))
    }

    /// Returns the changes since `before`.
    pub(super) fn changes_since(&self, before: &Self) -> ElementChanges {
        ElementChanges { added: self.difference(before), removed: before.difference(self) }
    }

    fn difference(&self, other: &Self) -> Vec<(SetName, Element)> {
        let none = BTreeSet::new();
        let sets = self.0.iter();
        let differences = sets.flat_map(|(set, elements)| {
            let other = other.0.get(set).unwrap_or(&none);
            elements.difference(other).map(|element| (*set, *element))
        });
        differences.collect()
    }
}
