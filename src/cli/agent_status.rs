//! The condition of the agents of a master, from its state and its health.

use std::fmt;
use std::net::Ipv4Addr;
use std::sync::Arc;

use clap::ValueEnum;
use overlay_types::protocol::{AgentContact, AgentInfo, State, Status};
use serde::Serialize;

use super::http_client::Health;
use super::process::pluralize;

/// The condition of an agent, the worst first. An agent with a failed overlay has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(super) enum AgentStatus {
    Failed,
    /// The master has not seen the agent for too long. Its last report does not count.
    Stale,
    Unreported,
    /// No overlay is assigned.
    Unassigned,
    Ok,
}

impl AgentStatus {
    /// Returns the condition of an agent of `state`. `health` is that of its master.
    pub(super) fn of(agent: &AgentInfo, state: &State, health: Option<&Health>) -> Self {
        let mut statuses = agent.overlays.iter().map(|overlay| &overlay.status);
        if quarantine_reason(health, agent.ip).is_some() {
            Self::Failed
        } else if contact_of(state, agent.ip).is_stale {
            Self::Stale
        } else if agent.overlays.is_empty() {
            Self::Unassigned
        } else if statuses.clone().any(|status| matches!(status, Some(Status::Failed(_)))) {
            Self::Failed
        } else if statuses.any(|status| !matches!(status, Some(Status::Ok))) {
            Self::Unreported
        } else {
            Self::Ok
        }
    }
}

/// The number of agents in each condition.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct AgentCounts {
    pub(super) total: usize,
    pub(super) ok: usize,
    pub(super) failed: usize,
    pub(super) unreported: usize,
    pub(super) unassigned: usize,
    pub(super) stale: usize,
}

impl AgentCounts {
    /// Counts the agents of `state`. `health` is that of its master.
    pub(super) fn of(state: &State, health: Option<&Health>) -> Self {
        let mut counts = Self::default();
        for agent in &state.agents {
            counts.total += 1;
            *match AgentStatus::of(agent, state, health) {
                AgentStatus::Ok => &mut counts.ok,
                AgentStatus::Failed => &mut counts.failed,
                AgentStatus::Unreported => &mut counts.unreported,
                AgentStatus::Unassigned => &mut counts.unassigned,
                AgentStatus::Stale => &mut counts.stale,
            } += 1;
        }
        counts
    }
}

/// Writes text such as `3 agents: 2 ok, 1 failed, 0 unreported`.
impl fmt::Display for AgentCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { total, ok, failed, unreported, unassigned, stale } = *self;
        let agents = pluralize(total as u128, "agent");
        write!(f, "{agents}: {ok} ok, {failed} failed, {unreported} unreported")?;
        for (count, name) in [(unassigned, "without overlay"), (stale, "stale")] {
            if count > 0 {
                write!(f, ", {count} {name}")?;
            }
        }
        Ok(())
    }
}

/// Returns why the master does not serve this agent.
pub(super) fn quarantine_reason(health: Option<&Health>, ip: Ipv4Addr) -> Option<&str> {
    health.and_then(|health| health.quarantine_reason(ip))
}

/// Returns when the master has last seen an agent.
pub(super) fn contact_of(state: &State, ip: Ipv4Addr) -> AgentContact {
    state.contacts.get(&ip).copied().unwrap_or_default()
}

/// Returns the agents of `state` in the order of their addresses.
pub(super) fn agents_by_address(state: &State) -> Vec<&Arc<AgentInfo>> {
    let mut agents: Vec<_> = state.agents.iter().collect();
    agents.sort_by_key(|agent| agent.ip);
    agents
}
