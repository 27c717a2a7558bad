//! What another configuration does to the agents of a running master: found out on a copy, so that
//! to look at it and to do it are the same.

use std::net::Ipv4Addr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::recovery::{Adopted, Recovered};
use super::registry::{Moment, Outcome, Registry};
use crate::addr::Upid;
use crate::protocol::{AgentOptions, AgentRecord, Assignment, Network, Overlay};

/// What another configuration does, or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Effect {
    /// Whether the master takes it.
    pub accepted: bool,
    /// How it differs, one sentence each.
    pub changes: Vec<String>,
    /// Why it is refused, one sentence for each agent or overlay concerned.
    pub problems: Vec<String>,
    /// What needs an operator all the same, one sentence each.
    pub warnings: Vec<String>,
    /// The agents that get something else than they have.
    pub agents: Vec<AgentEffect>,
}

/// What another configuration does to one agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentEffect {
    /// The agent.
    pub ip: Ipv4Addr,
    /// Whether it is told at once. Who was not heard since this master leads is told when it
    /// registers; what it gets then depends on who registers before.
    pub at_once: bool,
    /// The addresses that differ. None, if only something else does, such as an MTU.
    pub addresses: Vec<AddressEffect>,
}

/// Addresses before and after.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressEffect {
    /// `vtep` or the name of the overlay.
    pub of: String,
    /// What the agent has.
    pub before: Vec<String>,
    /// What it will have.
    pub after: Vec<String>,
}

/// A preview of another network, away from the state machine: on a copy of what it needs.
#[derive(Debug, Clone)]
pub struct PreviewJob {
    registry: Registry,
    network: Arc<Network>,
    moment: Moment,
}

impl PreviewJob {
    pub(super) fn new(registry: &Registry, network: Network, moment: Moment) -> Self {
        Self { registry: registry.clone(), network: Arc::new(network), moment }
    }

    /// What the network would do. It takes about 10 µs for each agent.
    #[must_use]
    pub fn run(self) -> Effect {
        let Self { registry, network, moment } = self;
        Trial::of(&registry, network, moment).foresee(&registry, moment)
    }
}

impl PartialEq for PreviewJob {
    /// Two previews are the same if they are of the same network and the same version.
    fn eq(&self, other: &Self) -> bool {
        self.network == other.network && self.moment.version == other.moment.version
    }
}

impl Eq for PreviewJob {}

/// A registry of another network, and what came of making it.
pub(super) struct Trial {
    pub(super) registry: Registry,
    pub(super) adopted: Vec<Adopted>,
    /// What the agents that are in contact get.
    pub(super) outcomes: Vec<(Ipv4Addr, Outcome)>,
    /// To whom there is something to tell.
    pub(super) told: Vec<Upid>,
    pub(super) effect: Effect,
}

impl Trial {
    /// What becomes of `before` in `network`.
    pub(super) fn of(before: &Registry, network: Arc<Network>, moment: Moment) -> Self {
        let changes = differences(&before.network, &network);
        let Recovered { registry, adopted } = before.rebuilt(network, moment.version);
        let known = before.doubts();
        let doubts = registry.doubts();
        let new = doubts.into_iter().filter(|(doubt, _)| !known.contains_key(doubt));
        let problems: Vec<String> = new.map(|(_, sentence)| sentence).collect();
        let effect =
            Effect { accepted: problems.is_empty(), changes, problems, ..Effect::default() };
        let mut trial = Self { registry, adopted, outcomes: Vec::new(), told: Vec::new(), effect };
        let agents: Vec<Ipv4Addr> = before.agents.keys().copied().collect();
        let is_heard = |ip: &Ipv4Addr| before.contacts.contains_key(ip);
        for ip in agents.iter().copied().filter(is_heard) {
            if let Some(outcome) = trial.registry.complete_again(ip, moment) {
                trial.outcomes.push((ip, outcome));
            }
        }
        let shortages: Vec<String> = before.shortages().collect();
        let new = trial.registry.shortages().filter(|sentence| !shortages.contains(sentence));
        trial.effect.warnings = new.collect();
        let known = before.subnets_containing_agents();
        let over_agents = trial.registry.subnets_containing_agents().into_iter();
        trial.effect.warnings.extend(over_agents.filter(|sentence| !known.contains(sentence)));
        for ip in agents.into_iter().filter(is_heard) {
            let contact = before.contacts.get(&ip);
            if let Some(effect) = effect_on(ip, before, &trial.registry, true) {
                trial.effect.agents.push(effect);
                trial.told.extend(contact.map(|contact| contact.upid.clone()));
            }
        }
        trial
    }

    /// The same with those who will be told later, in the order of their addresses. The registry is
    /// of no use then: they were not asked.
    pub(super) fn foresee(mut self, before: &Registry, moment: Moment) -> Effect {
        let later = before.agents.keys().filter(|ip| !before.contacts.contains_key(ip));
        for ip in later {
            self.registry.complete_again(*ip, moment);
            self.effect.agents.extend(effect_on(*ip, before, &self.registry, false));
        }
        self.effect.agents.sort_by_key(|agent| agent.ip);
        self.effect
    }
}

impl Registry {
    /// Gives an agent what it lacks of what it asked for last.
    fn complete_again(&mut self, ip: Ipv4Addr, moment: Moment) -> Option<Outcome> {
        let AgentRecord { allocate_subnet, mesos_bridge, docker_bridge, underlay, .. } =
            self.agents.get(&ip)?.record;
        let options = AgentOptions {
            allocate_subnet,
            mesos_bridge,
            docker_bridge,
            underlay,
            // The rest is the agent's own affair.
            ..AgentOptions::default()
        };
        self.register(ip, &options, moment).ok()
    }
}

fn effect_on(
    ip: Ipv4Addr,
    before: &Registry,
    after: &Registry,
    at_once: bool,
) -> Option<AgentEffect> {
    let (old, _) = before.assignments(ip)?;
    let new = after.assignments(ip).map(|(new, _)| new).unwrap_or_default();
    if old == new {
        return None;
    }
    let vteps = |list: &[Assignment]| {
        let vtep = list.first().map(|one| &one.vtep);
        let ip = vtep.map(|vtep| vtep.ip.address().to_string());
        let ip6 = vtep.and_then(|vtep| vtep.ip6).map(|ip6| ip6.address().to_string());
        ip.into_iter().chain(ip6).collect::<Vec<_>>()
    };
    let mut addresses = Vec::new();
    let mut compare = |of: &str, before: Vec<String>, after: Vec<String>| {
        if before != after {
            addresses.push(AddressEffect { of: of.to_owned(), before, after });
        }
    };
    // Without an overlay it is told of no VTEP, and has it all the same.
    if !old.is_empty() && !new.is_empty() {
        compare("vtep", vteps(&old), vteps(&new));
    }
    let subnets = |list: &[Assignment], name: &str| {
        let one = list.iter().find(|one| one.name().as_str() == name);
        let subnets = one.into_iter().flat_map(|one| one.subnet.into_iter().chain(one.subnet6));
        subnets.map(|subnet| subnet.to_string()).collect::<Vec<_>>()
    };
    let mut names: Vec<&str> = new.iter().map(|one| one.name().as_str()).collect();
    names.extend(
        old.iter()
            .map(|one| one.name().as_str())
            .filter(|name| !new.iter().any(|one| one.name().as_str() == *name)),
    );
    for name in names {
        compare(name, subnets(&old, name), subnets(&new, name));
    }
    Some(AgentEffect { ip, at_once, addresses })
}

/// How `new` differs from `old`, one sentence each.
pub(super) fn differences(old: &Network, new: &Network) -> Vec<String> {
    let mut sentences = Vec::new();
    let mut compare = |what: &str, old: Option<String>, new: Option<String>| {
        if old != new {
            sentences.push(match (old, new) {
                (Some(old), Some(new)) => format!("{what} is {new} instead of {old}"),
                (Some(old), None) => format!("{what} is removed; it was {old}"),
                (_, new) => format!("{what} is added: {}", new.unwrap_or_default()),
            });
        }
    };
    let text = |value: Option<&dyn ToString>| value.map(ToString::to_string);
    compare("vtep_subnet", text(Some(&old.vtep_subnet)), text(Some(&new.vtep_subnet)));
    let subnet6 = |network: &Network| network.vtep_subnet6.map(|subnet| subnet.to_string());
    compare("vtep_subnet6", subnet6(old), subnet6(new));
    compare("vtep_mac_oui", text(Some(&old.vtep_mac_oui)), text(Some(&new.vtep_mac_oui)));
    let mtu = |network: &Network| network.vtep_mtu.map(|mtu| mtu.to_string());
    compare("vtep_mtu", mtu(old), mtu(new));
    compare("vtep_vni", text(Some(&old.vxlan.vni)), text(Some(&new.vxlan.vni)));
    compare("vtep_name", text(Some(&old.vxlan.device)), text(Some(&new.vxlan.device)));
    compare("vtep_port", text(Some(&old.vxlan.port)), text(Some(&new.vxlan.port)));
    let find = |network: &Network, name: &str| -> Option<Overlay> {
        network.overlays.iter().find(|overlay| overlay.name.as_str() == name).cloned()
    };
    for overlay in &new.overlays {
        let name = overlay.name.as_str();
        let ranges = |overlay: &Overlay| {
            [overlay.range, overlay.range6]
                .map(|range| range.map(|range| format!("{} in /{}", range.subnet, range.prefix)))
        };
        let Some(before) = find(old, name) else {
            let ranges: Vec<String> = ranges(overlay).into_iter().flatten().collect();
            compare(&format!("overlay {name}"), None, Some(ranges.join(" and ")));
            continue;
        };
        let ([v4, v6], [new_v4, new_v6]) = (ranges(&before), ranges(overlay));
        compare(&format!("overlay {name}: subnet"), v4, new_v4);
        compare(&format!("overlay {name}: subnet6"), v6, new_v6);
        let vni = |overlay: &Overlay| overlay.vni.map(|vni| vni.to_string());
        compare(&format!("overlay {name}: vni"), vni(&before), vni(overlay));
        let state = |overlay: &Overlay| {
            Some(if overlay.enabled { "enabled" } else { "disabled" }.to_owned())
        };
        compare(&format!("overlay {name}"), state(&before), state(overlay));
    }
    let removed = old.overlays.iter().filter(|overlay| find(new, overlay.name.as_str()).is_none());
    let names: Vec<String> =
        removed.map(|overlay| format!("overlay {} is removed", overlay.name)).collect();
    sentences.extend(names);
    let order = |network: &Network, other: &Network| {
        let names = network.overlays.iter().map(|overlay| overlay.name.clone());
        names.filter(|name| find(other, name.as_str()).is_some()).collect::<Vec<_>>()
    };
    if order(old, new) != order(new, old) {
        sentences.push("the overlays have another order".to_owned());
    }
    sentences
}
