//! The desired state of the firewall, derived from the desired state of the dataplane. Pure, and
//! independent of the backend: [`super::nftables`] and [`super::iptables`] write the rules.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use overlay_types::addr::{DeviceName, Family, InterfaceAddress, OverlayName, Subnet};
use overlay_types::tunnel::{Desired, VxlanDevice};

use super::InnerCheck;
use super::elements::{ElementChanges, Elements, SetName};

/// Docker's default bridge. Docker masquerades packets of its containers, so they get the address
/// of this host too.
const DOCKER_BRIDGE: &str = "docker0";

/// The operator's options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Whether packets that leave the overlays are masqueraded with this host's address. Without
    /// masquerade, other networks need routes to the overlays.
    pub masquerade: bool,
    /// Whether VXLAN packets are accepted only from agents in the master's list of peers, and only
    /// with sources of the sending agent.
    pub known_agents_only: bool,
    /// Whether the overlays are isolated from each other. The C++ modules do not isolate them.
    pub isolate: bool,
    /// Whether hosts outside of the overlays may open flows to containers without a published port.
    pub ingress: Ingress,
    /// How packets between containers of this host and of other agents are forwarded.
    pub forwarding: Forwarding,
    /// TCP ports that are closed to containers: on this host, and on the hosts of the other agents.
    /// Empty in a Mesos process: executors and schedulers in containers need its port.
    pub control_ports: BTreeSet<u16>,
    /// Further TCP ports that are closed to containers, on this host only, such as that of a
    /// master. On another host the port may belong to a process that containers need.
    pub local_ports: BTreeSet<u16>,
}

/// What happens to a new flow from outside of the overlays to a container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Ingress {
    /// The flow passes, as with the C++ modules.
    Open,
    /// The flow is dropped, unless it goes to a published port or comes from this host.
    #[default]
    Closed,
}

/// How packets between containers of this host and those of other agents pass the kernel. The later
/// ways need nftables and cost less. Where a way is not possible, the one before it is used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Forwarding {
    /// Through all chains of the host, with connection tracking.
    Tracked,
    /// Through all chains of the host, without connection tracking. The VXLAN packets between the
    /// agents are not tracked either.
    Untracked,
    /// Without connection tracking. Segments of TCP connections are also forwarded at the ingress
    /// hook, past the chains of the host: see [`super::shortcut`]. The first segments of a
    /// connection, and all other packets, pass the chains.
    #[default]
    Shortcut,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            masquerade: true,
            known_agents_only: true,
            isolate: false,
            ingress: Ingress::Closed,
            forwarding: Forwarding::default(),
            control_ports: BTreeSet::new(),
            local_ports: BTreeSet::new(),
        }
    }
}

/// Which VXLAN packets are accepted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Senders {
    /// Packets of every sender.
    #[default]
    Any,
    /// Packets of the agents with any inner source: the sources of the agents are unknown.
    Agents,
    /// Packets of the agents whose inner sources belong to the agents: see [`InnerCheck`].
    Sources,
}

/// A bridge, one of its subnets, and a subnet of its overlay.
pub(super) type Within<'a> = (&'a DeviceName, Subnet, Subnet);

/// The part of the rules that does not change with the peers and the masters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Layout {
    /// The subnets of every overlay.
    pub(super) spaces: BTreeMap<OverlayName, BTreeSet<Subnet>>,
    /// The bridges of the overlays on this host, with the subnets of their containers.
    pub(super) bridges: BTreeMap<DeviceName, BTreeSet<Subnet>>,
    /// The subnets of this host, one of each overlay and family.
    own: BTreeSet<Subnet>,
    /// Bridges, each with one of its subnets and a subnet of its overlay of the same family.
    pub(super) within: BTreeSet<(DeviceName, Subnet, Subnet)>,
    /// The managed VXLAN devices.
    pub(super) devices: BTreeSet<DeviceName>,
    /// The UDP ports of these devices.
    pub(super) ports: BTreeSet<u16>,
    /// The subnets of the VTEPs.
    pub(super) vteps: BTreeSet<Subnet>,
    /// Whether the underlay of this host is IPv6. All peers have the same family.
    pub(super) has_ipv6_underlay: bool,
    pub(super) senders: Senders,
    /// Families and prefix lengths of the subnets and addresses of all agents.
    pub(super) prefixes: BTreeSet<(Family, u8)>,
    /// The device from which packets of peers are accepted without encapsulation.
    pub(super) direct: Option<DeviceName>,
    /// See [`Options::masquerade`].
    pub(super) masquerade: bool,
    /// See [`Options::isolate`].
    pub(super) isolate: bool,
    /// See [`Options::ingress`].
    pub(super) ingress: Ingress,
    /// Whether packets between containers of different agents are not tracked. Rules without
    /// conntrack do not enable it for a rule about translated connections either.
    pub(super) is_untracked: bool,
    /// Addresses of the bridges themselves.
    pub(super) gateways: BTreeSet<IpAddr>,
    /// See [`Options::control_ports`].
    pub(super) control_ports: BTreeSet<u16>,
    /// See [`Options::local_ports`].
    pub(super) local_ports: BTreeSet<u16>,
}

/// The rules of a host. The default has no rules.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ruleset {
    pub(super) layout: Layout,
    /// The elements of the sets. They are shared, since thousands of peers have tens of thousands.
    pub(super) elements: Arc<Elements>,
    /// Whether the elements of the existing rules are kept, because the master has not sent the
    /// list of peers. Then the rules accept no VXLAN packet if there are no existing rules.
    pub(super) keeps_elements: bool,
}

impl Ruleset {
    /// Returns the rules for a desired state of the dataplane.
    #[must_use]
    pub fn new(desired: &Desired, options: &Options) -> Self {
        if desired.vxlan_devices.is_empty() {
            return Self::default();
        }
        let elements = Elements::new(desired, options);
        Self {
            layout: Layout::new(desired, options, &elements),
            elements: Arc::new(elements),
            keeps_elements: options.known_agents_only && desired.peers.is_none(),
        }
    }

    /// Returns whether the host needs no rules.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.layout.devices.is_empty()
    }

    /// Returns whether packets of other networks may come through the tunnel.
    pub(super) fn accepts_external(&self) -> bool {
        let has_gateway = self.elements.names().any(|set| set == SetName::Gateways);
        self.layout.ingress == Ingress::Open || has_gateway
    }

    /// Returns the changes of the elements since `before`, or `None` if anything else changed.
    /// Whether packets of other networks are accepted is an element for [`InnerCheck::Pair`], and a
    /// rule for [`InnerCheck::Membership`].
    pub(super) fn changes_since(&self, before: &Self, check: InnerCheck) -> Option<ElementChanges> {
        let is_same = self.layout == before.layout
            && !self.keeps_elements
            && (check == InnerCheck::Pair || self.accepts_external() == before.accepts_external());
        is_same.then(|| self.elements.changes_since(&before.elements))
    }
}

impl Layout {
    fn new(desired: &Desired, options: &Options, elements: &Elements) -> Self {
        let mut spaces: BTreeMap<OverlayName, BTreeSet<Subnet>> = BTreeMap::new();
        let mut bridges: BTreeMap<DeviceName, BTreeSet<Subnet>> = BTreeMap::new();
        for space in &desired.spaces {
            spaces.entry(space.overlay.clone()).or_default().extend(&space.whole);
            for bridge in &space.bridges {
                bridges.entry(bridge.device.clone()).or_default().extend(&bridge.subnets);
            }
        }
        let within = desired.spaces.iter().flat_map(|space| {
            let bridges = space.bridges.iter();
            let own = bridges.flat_map(|bridge| {
                bridge.subnets.iter().map(move |subnet| (bridge.device.clone(), *subnet))
            });
            own.flat_map(|(bridge, subnet)| {
                let whole = of_family(space.whole.iter(), subnet.family());
                whole.map(move |whole| (bridge.clone(), subnet, whole))
            })
        });
        let within = within.collect();
        let devices = &desired.vxlan_devices;
        let addresses = devices.iter().flat_map(VxlanDevice::addresses);
        // In an overlay, the subnets of all agents have the same length.
        let own = desired.spaces.iter().flat_map(|space| &space.own);
        let peers = elements.names().filter_map(|set| match set {
            SetName::Inner(family, prefix) => Some((family, prefix)),
            SetName::Direct(prefix) => Some((Family::V4, prefix)),
            _ => None,
        });
        let hosts = [Family::V4, Family::V6].map(|family| (family, family.bits()));
        Self {
            spaces,
            bridges,
            own: own.clone().copied().collect(),
            within,
            devices: devices.iter().map(|device| device.device.clone()).collect(),
            ports: devices.iter().map(|device| device.port).collect(),
            vteps: addresses
                .filter_map(|vtep| Subnet::containing(vtep.address(), vtep.prefix()))
                .collect(),
            has_ipv6_underlay: devices.iter().any(|device| device.underlay.is_ipv6()),
            senders: if options.known_agents_only { Senders::Sources } else { Senders::Any },
            prefixes: own
                .map(|subnet| (subnet.family(), subnet.prefix()))
                .chain(peers)
                .chain(hosts)
                .collect(),
            direct: desired
                .direct
                .as_ref()
                .and_then(|direct| direct.link.as_ref())
                .map(|link| link.device.clone()),
            masquerade: options.masquerade,
            isolate: options.isolate,
            ingress: options.ingress,
            is_untracked: options.forwarding >= Forwarding::Untracked
                && (options.masquerade || options.ingress == Ingress::Closed),
            gateways: desired
                .bridges()
                .flat_map(|bridge| &bridge.gateways)
                .map(InterfaceAddress::address)
                .collect(),
            control_ports: options.control_ports.clone(),
            local_ports: options.local_ports.clone(),
        }
    }

    /// Returns the family of the underlay.
    pub(super) const fn underlay(&self) -> Family {
        if self.has_ipv6_underlay { Family::V6 } else { Family::V4 }
    }

    /// Returns the lengths of the IPv4 subnets from which packets are accepted without
    /// encapsulation.
    pub(super) fn direct_prefixes(&self) -> impl Iterator<Item = u8> {
        let prefixes = self.direct.iter().flat_map(|_| &self.prefixes);
        prefixes.filter(|(family, _)| *family == Family::V4).map(|(_, prefix)| *prefix)
    }

    /// Returns the subnets of all overlays of a family.
    pub(super) fn spaces(&self, family: Family) -> BTreeSet<Subnet> {
        of_family(self.spaces.values().flatten(), family).collect()
    }

    /// Returns the subnets of the overlays and of the VTEPs. A packet that a gateway forwards from
    /// another network has no source in them.
    pub(super) fn internal(&self, family: Family) -> BTreeSet<Subnet> {
        of_family(self.spaces.values().flatten().chain(&self.vteps), family).collect()
    }

    /// Returns the subnets of the bridges of a family, with the bridges.
    pub(super) fn bridge_subnets(&self, family: Family) -> Vec<(&DeviceName, Subnet)> {
        let bridges = self.bridges.iter();
        let subnets = bridges.flat_map(|(bridge, subnets)| {
            of_family(subnets.iter(), family).map(move |subnet| (bridge, subnet))
        });
        subnets.collect()
    }

    /// Returns the subnets of this host, in which those of its bridges are.
    pub(super) fn own(&self, family: Family) -> BTreeSet<Subnet> {
        of_family(self.own.iter(), family).collect()
    }

    /// Returns the addresses of the bridges of a family.
    pub(super) fn gateways(&self, family: Family) -> impl ExactSizeIterator<Item = IpAddr> {
        let gateways = self.gateways.iter().copied();
        let gateways: Vec<_> =
            gateways.filter(|gateway| gateway.is_ipv4() == (family == Family::V4)).collect();
        gateways.into_iter()
    }

    /// Returns the elements of [`Self::within`] of a family, by the lengths of both subnets.
    pub(super) fn within(&self, family: Family) -> BTreeMap<(u8, u8), Vec<Within<'_>>> {
        let mut by_prefix: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (bridge, own, space) in self.within.iter().filter(|(_, own, _)| own.family() == family)
        {
            let prefixes = (own.prefix(), space.prefix());
            by_prefix.entry(prefixes).or_default().push((bridge, *own, *space));
        }
        by_prefix
    }

    /// Returns Docker's default bridge, unless it is a bridge of an overlay.
    pub(super) fn docker_bridge(&self) -> Option<&'static str> {
        let is_ours = self.bridges.keys().any(|bridge| bridge.as_str() == DOCKER_BRIDGE);
        (!is_ours).then_some(DOCKER_BRIDGE)
    }
}

/// Returns the subnets of a family.
pub(super) fn of_family<'a>(
    subnets: impl Iterator<Item = &'a Subnet>,
    family: Family,
) -> impl Iterator<Item = Subnet> {
    subnets.copied().filter(move |subnet| subnet.family() == family)
}
