//! After all faults, every agent is healthy or has a reported reason that still holds.

use std::net::Ipv4Addr;
use std::time::Duration;

use overlay_engine::agent::Condition;
use overlay_engine::master::{Condition as MasterCondition, Health};
use overlay_types::protocol::Status;

use super::{Fact, HEALS, Healed, HealedAgent, Invariant};
use crate::host::SIMULATED;
use crate::ledger::Ledger;

pub(crate) struct Healing;

/// Returns whether the list of problems is cut: a report may be in the missing part.
fn is_cut(health: &Health) -> bool {
    health.problems.last().is_some_and(|last| last.starts_with('…'))
}

/// Returns whether the master reports that this pool is exhausted, as far as the list goes.
fn is_exhausted(health: &Health, pool: &str) -> bool {
    let names = |problem: &String| problem.starts_with(pool) && problem.contains("is exhausted");
    is_cut(health) || health.problems.iter().any(names)
}

/// Returns whether the master reports a conflict of the agent, as far as the list goes.
pub(crate) fn has_conflict(health: &Health, ip: Ipv4Addr) -> bool {
    let names = format!("agent {ip} ");
    is_cut(health) || health.problems.iter().any(|problem| problem.starts_with(&names))
}

fn check_agent(healed: &Healed, agent: &HealedAgent) -> Result<(), String> {
    let HealedAgent { info, health, .. } = agent;
    let ip = info.ip;
    if has_conflict(&healed.health, ip) {
        return Ok(());
    }
    let is_served = healed.state.agents.iter().any(|served| served.ip == ip);
    match health.status {
        Condition::Ok | Condition::Degraded => {}
        Condition::Registering | Condition::Failed
            if !is_served && is_exhausted(&healed.health, "the VTEP subnet") =>
        {
            return Ok(());
        }
        Condition::Registering | Condition::Detached | Condition::Failed => {
            return Err(format!("{ip} is {:?}: {:?}", health.status, healed.health.problems));
        }
    }
    if let Some(problem) = health.problems.iter().find(|problem| problem.contains(SIMULATED)) {
        return Err(format!("{ip} still reports: {problem}"));
    }
    for assignment in &info.overlays {
        match &assignment.status {
            Some(Status::Ok) => {}
            Some(Status::Failed(_)) => {}
            other => return Err(format!("{ip}: overlay {} is {other:?}", assignment.name())),
        }
    }
    let enabled = healed.state.network.overlays.iter().filter(|overlay| overlay.enabled);
    for overlay in enabled {
        let is_assigned = info.overlays.iter().any(|had| *had.name() == overlay.name);
        let pool = format!("overlay {}", overlay.name);
        if !is_assigned && agent.options.allocate_subnet && !is_exhausted(&healed.health, &pool) {
            return Err(format!(
                "{ip} is not assigned overlay {}, without a reported reason",
                overlay.name
            ));
        }
    }
    Ok(())
}

impl Invariant for Healing {
    fn name(&self) -> &'static str {
        HEALS
    }

    fn observe(&mut self, _: Duration, fact: &Fact<'_>, _: &Ledger) -> Result<(), String> {
        let Fact::Healed(healed) = fact else {
            return Ok(());
        };
        let status = healed.health.status;
        if !matches!(status, MasterCondition::Ok | MasterCondition::Degraded) {
            return Err(format!("the master is {status:?}: {:?}", healed.health.problems));
        }
        healed.agents.iter().try_for_each(|agent| check_agent(healed, agent))
    }
}
