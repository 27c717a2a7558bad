//! The counters and the health of the master.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::protocol::{AgentInfo, Refused, Status};

/// The counters since the start. The names are those of the C++ module's metrics without their
/// prefix `overlay/master/`. The C++ module does not have those below the line.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the names say it, and are the ones that operators see")]
pub struct Counters {
    pub register_agent_messages_received: u64,
    pub register_agent_messages_dropped: u64,
    pub update_agent_overlays_messages_sent: u64,
    pub agent_registered_messages_received: u64,
    pub agent_registered_messages_dropped: u64,
    pub agent_registered_acknowledgements_sent: u64,
    pub ip_allocation_failures: u64,
    pub ip6_allocation_failures: u64,
    pub subnet_allocation_failures: u64,
    pub subnet6_allocation_failures: u64,
    // ----
    pub request_peers_messages_received: u64,
    pub request_peers_messages_dropped: u64,
    pub update_peers_messages_sent: u64,
    pub update_peers_bytes_sent: u64,
    pub malformed_messages: u64,
    pub unexpected_messages: u64,
    pub unknown_overlays_reported: u64,
    pub outdated_overlays_reported: u64,
    pub registrations_refused: u64,
    pub early_reuses: u64,
    pub commits: u64,
    pub store_failures: u64,
}

/// The status of the master.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Condition {
    /// The master serves, and has no problem.
    Ok,
    /// The master serves, and a problem needs an operator.
    Degraded,
    /// This master does not lead. It serves nothing, and is ready to lead.
    Standby,
    /// The master is reading its state and serves nothing yet.
    Recovering,
    /// The master cannot read or write its state. It tries again by itself.
    Failed,
}

impl Condition {
    /// Returns the status while a standing warning lasts: `ok` becomes `degraded`, a worse status
    /// stays.
    #[must_use]
    pub const fn degraded(self) -> Self {
        match self {
            Self::Ok => Self::Degraded,
            other => other,
        }
    }
}

/// The health of the master: `/overlay-master/health`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Health {
    /// The status in one word.
    pub status: Condition,
    /// A sentence for each problem that needs an operator.
    pub problems: Vec<String>,
    /// Leaders of this state so far; 0 before the state was read.
    pub epoch: u64,
    /// Version of the state that is durable.
    pub version: u64,
    /// The agents by their last report.
    pub agents: AgentTally,
    /// The table of peers.
    pub peers: PeersTally,
    /// How full every address space is.
    pub pools: Vec<PoolUsage>,
    /// The counters since the start.
    pub counters: Counters,
    /// What was refused before it reached the state machine. The runtime fills it in.
    pub refused: Refused,
}

/// The agents by their last report. An agent with one failed overlay counts as failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct AgentTally {
    /// All agents that have addresses.
    pub total: usize,
    /// All their overlays are ready.
    pub ok: usize,
    /// Some overlay failed.
    pub failed: usize,
    /// Some overlay was not reported since the master started.
    pub unreported: usize,
}

impl AgentTally {
    pub(super) fn add(&mut self, info: &AgentInfo) {
        self.total += 1;
        *self.slot(info) += 1;
    }

    pub(super) fn remove(&mut self, info: &AgentInfo) {
        self.total -= 1;
        *self.slot(info) -= 1;
    }

    fn slot(&mut self, info: &AgentInfo) -> &mut usize {
        let has = |wanted: fn(&Option<Status>) -> bool| {
            info.overlays.iter().any(|overlay| wanted(&overlay.status))
        };
        if has(|status| matches!(status, Some(Status::Failed(_)))) {
            &mut self.failed
        } else if has(|status| !matches!(status, Some(Status::Ok))) {
            &mut self.unreported
        } else {
            &mut self.ok
        }
    }
}

/// The table of peers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct PeersTally {
    /// The version of the table within the epoch.
    pub version: u64,
    /// The agents in the table.
    pub agents: usize,
    /// The agents that are sent the changes of the table.
    pub subscribers: usize,
}

/// How full an address space is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PoolUsage {
    /// `vtep` or the name of the overlay.
    pub name: String,
    /// The space.
    pub subnet: String,
    /// How many agents have an allocation.
    pub in_use: u128,
    /// The number of agents for which the space is enough.
    pub capacity: u128,
}

/// The result of the request to release an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseResult {
    /// The agent.
    pub ip: Ipv4Addr,
    /// The address of its VTEP, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vtep_ip: Option<String>,
    /// Its subnets of all overlays and both families.
    pub subnets: Vec<String>,
    /// Whether the agent is released, and if not, why.
    pub result: ReleaseOutcome,
    /// How long ago the agent was last seen, if it was since this master leads.
    #[serde(rename = "heard_seconds_ago", default, skip_serializing_if = "Option::is_none")]
    pub last_seen_seconds_ago: Option<u64>,
    /// Why the record of the agent is quarantined, if it is.
    #[serde(rename = "set_aside", default, skip_serializing_if = "Option::is_none")]
    pub quarantined: Option<String>,
}

impl ReleaseResult {
    /// Returns the result for an agent that the master does not know.
    #[must_use]
    pub const fn unknown(ip: Ipv4Addr) -> Self {
        Self {
            ip,
            vtep_ip: None,
            subnets: Vec::new(),
            result: ReleaseOutcome::NotKnown,
            last_seen_seconds_ago: None,
            quarantined: None,
        }
    }
}

/// Whether an agent is released.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReleaseOutcome {
    /// The addresses of the agent are released.
    Deleted,
    /// The addresses would be released without the dry run.
    WouldBeDeleted,
    /// The master does not know the agent.
    NotKnown,
    /// The agent is running, and keeps its addresses.
    Running,
    /// The master does not lead long enough to know whether the agent is running. The agent keeps
    /// its addresses.
    MayBeRunning,
    /// A master with the C++ modules accepted the request, and still has the agent.
    NotDeleted,
}
