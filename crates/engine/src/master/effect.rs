//! The effect of another configuration on the agents of a running master. The effect is computed on
//! a copy of the registry, so that a preview and a reload have the same effect.

use std::net::Ipv4Addr;
use std::sync::Arc;

use overlay_types::addr::Upid;
use overlay_types::protocol::{Network, Overlay};
use overlay_types::text::truncate_list;
use serde::{Deserialize, Serialize};

use super::registry::{AdoptedAgent, ChangeContext, Recovered, Registration, Registry};

/// The effect of another configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Effect {
    /// Whether the master accepts the configuration.
    pub accepted: bool,
    /// A sentence for each difference.
    pub changes: Vec<String>,
    /// Why the configuration is refused: a sentence for each agent or overlay concerned.
    pub problems: Vec<String>,
    /// A sentence for everything else that needs an operator.
    pub warnings: Vec<String>,
    /// The agents whose assignments change.
    pub agents: Vec<AgentEffect>,
}

/// The effect of another configuration on one agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentEffect {
    /// The agent.
    pub ip: Ipv4Addr,
    /// Whether the master sends the assignments at once. An agent that was not seen since the
    /// election gets its assignments when it registers. Its addresses then depend on the agents
    /// that register before it.
    pub at_once: bool,
    /// The addresses that differ. Empty if only something else differs, such as an MTU.
    pub addresses: Vec<AddressEffect>,
}

/// Addresses before and after.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressEffect {
    /// `vtep` or the name of the overlay.
    pub of: String,
    /// The addresses that the agent has.
    pub before: Vec<String>,
    /// The addresses that the agent will have.
    pub after: Vec<String>,
}

/// The job of a preview, which runs outside of the state machine on a copy of the registry.
#[derive(Debug, Clone)]
pub struct PreviewJob {
    registry: Registry,
    network: Arc<Network>,
    context: ChangeContext,
}

impl PreviewJob {
    pub(super) fn new(registry: &Registry, network: Network, context: ChangeContext) -> Self {
        Self { registry: registry.clone(), network: Arc::new(network), context }
    }

    /// Computes the effect of the network. The computation takes about 10 µs for each agent.
    #[must_use]
    pub fn run(self) -> Effect {
        let Self { registry, network, context } = self;
        ReconfigurationPlan::new(&registry, network, context).preview(&registry, context)
    }
}

impl PartialEq for PreviewJob {
    /// Returns whether both jobs preview the same network for the same version.
    fn eq(&self, other: &Self) -> bool {
        self.network == other.network && self.context.next == other.context.next
    }
}

impl Eq for PreviewJob {}

/// The registry for another network, and the steps that lead to it.
pub(super) struct ReconfigurationPlan {
    pub(super) registry: Registry,
    pub(super) adopted: Vec<AdoptedAgent>,
    /// The registrations of the agents that were seen since the election.
    pub(super) registrations: Vec<(Ipv4Addr, Registration)>,
    /// The agents whose assignments are sent at once.
    pub(super) updated: Vec<Upid>,
    pub(super) effect: Effect,
}

impl ReconfigurationPlan {
    /// Computes the change from the registry `before` to `network`.
    pub(super) fn new(before: &Registry, network: Arc<Network>, context: ChangeContext) -> Self {
        let changes = differences(before.network(), &network);
        let Recovered { registry, adopted } = before.rebuilt(network, context);
        let known = before.conflicts();
        let conflicts = registry.conflicts();
        let new = conflicts.into_iter().filter(|(conflict, _)| !known.contains_key(conflict));
        let problems: Vec<String> = new.map(|(_, sentence)| sentence).collect();
        let accepted = problems.is_empty();
        let effect = Effect { accepted, changes, problems, ..Effect::default() };
        let (registrations, updated) = (Vec::new(), Vec::new());
        let mut plan = Self { registry, adopted, registrations, updated, effect };
        let seen: Vec<(Ipv4Addr, &Upid)> =
            before.active_agents().filter_map(|ip| Some((ip, before.contact(ip)?))).collect();
        for (ip, _) in &seen {
            if let Some(registration) = plan.registry.register_again(*ip, context) {
                plan.registrations.push((*ip, registration));
            }
        }
        let shortages: Vec<String> = before.shortages().collect();
        let new = plan.registry.shortages().filter(|sentence| !shortages.contains(sentence));
        plan.effect.warnings = new.collect();
        let known = before.subnets_containing_agents();
        let over_agents = plan.registry.subnets_containing_agents().into_iter();
        plan.effect.warnings.extend(over_agents.filter(|sentence| !known.contains(sentence)));
        for (ip, upid) in seen {
            if let Some(effect) = before.effect_on(ip, &plan.registry, true) {
                plan.effect.agents.push(effect);
                plan.updated.push(upid.clone());
            }
        }
        plan
    }

    /// Returns the effect, including the agents that register later, in the order of their IPs.
    /// Consumes the plan, since these agents have not registered yet.
    pub(super) fn preview(mut self, before: &Registry, context: ChangeContext) -> Effect {
        for ip in before.active_agents().filter(|ip| before.contact(*ip).is_none()) {
            self.registry.register_again(ip, context);
            self.effect.agents.extend(before.effect_on(ip, &self.registry, false));
        }
        self.effect.agents.sort_by_key(|agent| agent.ip);
        self.effect
    }
}

/// Returns a sentence for each difference of `new` from `old`.
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

/// Logs a line for each of the first few problems: every agent may have one.
pub(super) fn log_refused(problems: &[String]) {
    let (few, more) = truncate_list(problems);
    for problem in few {
        log::error!("refused another configuration: {problem}");
    }
    if more > 0 {
        log::error!(
            "refused another configuration: {more} more problems: see the answer to reload"
        );
    }
}
