//! What the firewall is to do, from what the dataplane is to do: pure, and in the words of no
//! program. [`super::nftables`] and [`super::iptables`] write it in theirs.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::addr::{DeviceName, Family, OverlayName, Subnet};
use crate::tunnel::{Desired, checked_peers};

/// What an operator can choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Whether packets that leave the overlays get this host's address as their sender. Without it
    /// the network outside needs routes to the overlays.
    pub masquerade: bool,
    /// Whether VXLAN packets are taken only from agents that the master names.
    pub known_agents_only: bool,
    /// Whether the containers of one overlay reach those of another. They do with the C++ modules.
    pub isolate: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { masquerade: true, known_agents_only: true, isolate: false }
    }
}

/// The rules for a host. The default is none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// The space of every overlay.
    pub spaces: BTreeMap<OverlayName, BTreeSet<Subnet>>,
    /// Our VXLAN devices.
    pub devices: BTreeSet<DeviceName>,
    /// Their UDP ports.
    pub ports: BTreeSet<u16>,
    /// From whom VXLAN packets are taken; `None` is anybody.
    pub agents: Option<BTreeSet<IpAddr>>,
    /// Whether it is not known yet who belongs to the cluster: whom the rules name already, if
    /// there are any, stay named, and `agents` is for where there are none.
    pub keeps_agents: bool,
    /// See [`Options::masquerade`].
    pub masquerade: bool,
    /// See [`Options::isolate`].
    pub isolate: bool,
}

/// Agents that came and went.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct AgentNews {
    pub(super) came: Vec<IpAddr>,
    pub(super) gone: Vec<IpAddr>,
}

impl AgentNews {
    pub(super) const fn is_empty(&self) -> bool {
        self.came.is_empty() && self.gone.is_empty()
    }
}

impl Ruleset {
    /// The rules for what is wanted of the dataplane.
    #[must_use]
    pub fn new(desired: &Desired, options: Options) -> Self {
        if desired.locals.is_empty() {
            return Self::default();
        }
        let mut spaces: BTreeMap<OverlayName, BTreeSet<Subnet>> = BTreeMap::new();
        for space in &desired.spaces {
            spaces.entry(space.overlay.clone()).or_default().extend(&space.whole);
        }
        // Nobody is shut out, or let in, before it is known who belongs to the cluster.
        let known = desired.peers.as_ref().filter(|_| options.known_agents_only);
        // A peer that cannot be as the master says, such as one at a container's address, is not
        // let in any more than it is reached.
        let agents = known.map(|_| checked_peers(desired).0.into_keys().collect());
        Self {
            spaces,
            devices: desired.locals.iter().map(|local| local.device.clone()).collect(),
            ports: desired.locals.iter().map(|local| local.port).collect(),
            agents,
            keeps_agents: options.known_agents_only && desired.peers.is_none(),
            masquerade: options.masquerade,
            isolate: options.isolate,
        }
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.devices.is_empty()
    }

    /// All subnets of a family, those of one overlay or of all.
    pub(super) fn subnets(&self, family: Family, overlay: Option<&OverlayName>) -> Vec<Subnet> {
        let is_meant = |name: &OverlayName| overlay.is_none_or(|overlay| overlay == name);
        let spaces = self.spaces.iter().filter(|(name, _)| is_meant(name));
        let subnets = spaces.flat_map(|(_, subnets)| subnets.iter().copied());
        subnets.filter(|subnet| subnet.family() == family).collect()
    }

    /// The agents of a family.
    pub(super) fn agents(&self, family: Family) -> Vec<IpAddr> {
        let agents = self.agents.iter().flatten().copied();
        agents.filter(|agent| agent.is_ipv4() == (family == Family::V4)).collect()
    }

    /// What the sets of agents have to contain.
    pub(super) fn listed_agents(&self) -> BTreeSet<IpAddr> {
        self.agents.clone().unwrap_or_default()
    }

    /// Who came and went since `before`, if nothing else is another.
    pub(super) fn agents_since(&self, before: &Self) -> Option<AgentNews> {
        let none = BTreeSet::new();
        let (new, old) = match (&self.agents, &before.agents) {
            (Some(new), Some(old)) => (new, old),
            // Everybody is let in, as before.
            (None, None) if !self.keeps_agents => (&none, &none),
            _ => return None,
        };
        let is_same = self.spaces == before.spaces
            && self.devices == before.devices
            && self.ports == before.ports
            && (self.masquerade, self.isolate) == (before.masquerade, before.isolate);
        is_same.then(|| AgentNews {
            came: new.difference(old).copied().collect(),
            gone: old.difference(new).copied().collect(),
        })
    }
}
