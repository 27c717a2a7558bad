//! After all faults, the master and every agent show the same state of the agent, and the host has
//! exactly the networks of this state.

use std::time::Duration;

use overlay_types::container_network::{ContainerNetwork, NetworkKind};
use overlay_types::protocol::Status;

use super::healing::has_conflict;
use super::{Fact, Healed, HealedAgent, Invariant};
use crate::ledger::Ledger;

pub(crate) struct ViewsAgree;

fn check_host(agent: &HealedAgent) -> Result<(), String> {
    let ip = agent.info.ip;
    for assignment in &agent.info.overlays {
        let networks =
            ContainerNetwork::from_assignment(assignment, &agent.options, None).unwrap_or_default();
        let mut missing = networks.iter().filter(|network| !agent.networks.contains(network));
        if let Some(network) = missing.next()
            && assignment.status == Some(Status::Ok)
        {
            return Err(format!(
                "{ip} reports a network as ready that its host does not have: {network:?}"
            ));
        }
    }
    let is_assigned = |network: &&ContainerNetwork| {
        agent.info.overlays.iter().any(|overlay| overlay.name() == network.name())
    };
    let left = agent.networks.iter().filter(|network| network.kind() == NetworkKind::Cni);
    match left.into_iter().find(|network| !is_assigned(network)) {
        Some(network) => Err(format!("{ip} still has a network that is not assigned: {network:?}")),
        None => Ok(()),
    }
}

fn check_agent(healed: &Healed, agent: &HealedAgent) -> Result<(), String> {
    let ip = agent.info.ip;
    if has_conflict(&healed.health, ip) {
        return Ok(());
    }
    let shown = healed.state.agents.iter().find(|shown| shown.ip == ip);
    let Some(shown) = shown else {
        // The agent has no addresses: it is refused, or another invariant finds the violation.
        return Ok(());
    };
    if shown.overlays != agent.info.overlays {
        return Err(format!(
            "{ip} shows {:?}, and the master {:?}",
            agent.info.overlays, shown.overlays
        ));
    }
    check_host(agent)
}

impl Invariant for ViewsAgree {
    fn name(&self) -> &'static str {
        "master and agents agree"
    }

    fn observe(&mut self, _: Duration, fact: &Fact<'_>, _: &Ledger) -> Result<(), String> {
        match fact {
            Fact::Healed(healed) => {
                healed.agents.iter().try_for_each(|agent| check_agent(healed, agent))
            }
            _ => Ok(()),
        }
    }
}
