//! The desired state of the firewall, derived from the desired state of the dataplane. Pure, and
//! independent of the backend: [`super::nftables`] and [`super::iptables`] write the rules.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use overlay_types::addr::{DeviceName, Family, OverlayName, Subnet};
use overlay_types::tunnel::{Desired, validate_peers};

/// The operator's options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Whether packets that leave the overlays are masqueraded with this host's address. Without
    /// masquerade, other networks need routes to the overlays.
    pub masquerade: bool,
    /// Whether VXLAN packets are accepted only from agents in the master's list of peers.
    pub known_agents_only: bool,
    /// Whether the overlays are isolated from each other. The C++ modules do not isolate them.
    pub isolate: bool,
    /// Whether hosts outside of the overlays may open flows to containers without a published port.
    pub ingress: Ingress,
    /// TCP ports of our program on this host, and of the agents on other hosts, that containers do
    /// not reach. Empty in a Mesos process: executors and schedulers in containers need its port.
    pub control_ports: BTreeSet<u16>,
}

/// What happens to a new flow from outside of the overlays to a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ingress {
    /// The flow passes, as with the C++ modules.
    Open,
    /// The flow is dropped, unless it goes to a published port or comes from this host.
    Closed,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            masquerade: true,
            known_agents_only: true,
            isolate: false,
            ingress: Ingress::Closed,
            control_ports: BTreeSet::new(),
        }
    }
}

/// The rules of a host. The default has no rules.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// The subnets of every overlay.
    pub spaces: BTreeMap<OverlayName, BTreeSet<Subnet>>,
    /// Our VXLAN devices.
    pub devices: BTreeSet<DeviceName>,
    /// Their UDP ports.
    pub ports: BTreeSet<u16>,
    /// The accepted senders of VXLAN packets. `None` accepts every sender.
    pub agents: Option<BTreeSet<IpAddr>>,
    /// Whether the agents of the existing rules are kept, because the master has not sent the list
    /// of peers. `agents` applies only if there are no existing rules.
    pub keeps_agents: bool,
    /// See [`Options::masquerade`].
    pub masquerade: bool,
    /// See [`Options::isolate`].
    pub isolate: bool,
}

/// The difference between two sets of agents.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct AgentChanges {
    pub(super) added: Vec<IpAddr>,
    pub(super) removed: Vec<IpAddr>,
}

impl AgentChanges {
    pub(super) const fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty()
    }
}

impl Ruleset {
    /// Returns the rules for a desired state of the dataplane.
    #[must_use]
    pub fn new(desired: &Desired, options: &Options) -> Self {
        if desired.vxlan_devices.is_empty() {
            return Self::default();
        }
        let mut spaces: BTreeMap<OverlayName, BTreeSet<Subnet>> = BTreeMap::new();
        for space in &desired.spaces {
            spaces.entry(space.overlay.clone()).or_default().extend(&space.whole);
        }
        // Without the list of peers no sender is blocked or admitted.
        let known = desired.peers.as_ref().filter(|_| options.known_agents_only);
        // An invalid peer, such as one with a container's address, is not programmed, and its
        // packets are not accepted either.
        let agents = known.map(|_| validate_peers(desired).0.into_keys().collect());
        Self {
            spaces,
            devices: desired.vxlan_devices.iter().map(|local| local.device.clone()).collect(),
            ports: desired.vxlan_devices.iter().map(|local| local.port).collect(),
            agents,
            keeps_agents: options.known_agents_only && desired.peers.is_none(),
            masquerade: options.masquerade,
            isolate: options.isolate,
        }
    }

    /// Returns whether the host needs no rules.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.devices.is_empty()
    }

    /// Returns the subnets of a family, of one overlay or of all.
    pub(super) fn subnets(&self, family: Family, overlay: Option<&OverlayName>) -> Vec<Subnet> {
        let is_selected = |name: &OverlayName| overlay.is_none_or(|overlay| overlay == name);
        let spaces = self.spaces.iter().filter(|(name, _)| is_selected(name));
        let subnets = spaces.flat_map(|(_, subnets)| subnets.iter().copied());
        subnets.filter(|subnet| subnet.family() == family).collect()
    }

    /// Returns the agents of a family.
    pub(super) fn agents(&self, family: Family) -> Vec<IpAddr> {
        let agents = self.agents.iter().flatten().copied();
        agents.filter(|agent| agent.is_ipv4() == (family == Family::V4)).collect()
    }

    /// Returns the desired content of the sets of agents.
    pub(super) fn listed_agents(&self) -> BTreeSet<IpAddr> {
        self.agents.clone().unwrap_or_default()
    }

    /// Returns the changes of the agents since `before`. Returns `None` if anything else changed.
    pub(super) fn agent_changes_since(&self, before: &Self) -> Option<AgentChanges> {
        let none = BTreeSet::new();
        let (new, old) = match (&self.agents, &before.agents) {
            (Some(new), Some(old)) => (new, old),
            // Every sender is accepted, as before.
            (None, None) if !self.keeps_agents => (&none, &none),
            _ => return None,
        };
        let is_same = self.spaces == before.spaces
            && self.devices == before.devices
            && self.ports == before.ports
            && (self.masquerade, self.isolate) == (before.masquerade, before.isolate);
        is_same.then(|| AgentChanges {
            added: new.difference(old).copied().collect(),
            removed: old.difference(new).copied().collect(),
        })
    }
}
