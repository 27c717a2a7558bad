//! The counters and the health of the master.

use std::net::Ipv4Addr;

use overlay_types::protocol::{AgentInfo, AuthenticationMode, Leader, RejectedMessages, Status};
use serde::{Deserialize, Serialize};

use crate::metrics::LogTally;
use crate::state_machine::Degrade;

/// Events since the start. The counters above the comment have the names of the C++ module's
/// metrics, without the prefix `overlay/master/`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the names are those of the metrics, which have a help text")]
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
    // The C++ module does not have the following counters.
    pub request_peers_messages_received: u64,
    pub request_peers_messages_dropped: u64,
    pub update_peers_messages_sent: u64,
    pub update_peers_bytes_sent: u64,
    pub update_peers_messages_encoded: u64,
    pub registration_problems_messages_sent: u64,
    pub peer_failures_messages_received: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub authenticate_agent_messages_received: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub unauthenticated_messages_accepted: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub unauthentic_messages_refused: u64,
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
    /// This master does not lead. It serves no agents, and is ready to lead.
    Standby,
    /// The master is loading its state, and serves no agents yet.
    Recovering,
    /// The master cannot read or write its state, or cannot take part in the election. It retries
    /// by itself.
    Failed,
}

impl Degrade for Condition {
    const OK: Self = Self::Ok;
    const DEGRADED: Self = Self::Degraded;

    fn failed(self) -> Self {
        Self::Failed
    }
}

/// The health of the master: `/overlay-master/health`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Health {
    /// The status in one word.
    pub status: Condition,
    /// A sentence for each problem that needs an operator.
    pub problems: Vec<String>,
    /// The leading master, if this master is on standby and knows the leader.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leader: Option<Leader>,
    /// How many masters have led this state; 0 before the state is loaded.
    pub epoch: u64,
    /// The durable version of the state.
    pub version: u64,
    /// The agents, counted by their last report.
    pub agents: AgentTally,
    /// The table of peers.
    pub peers: PeersTally,
    /// The usage of every address pool.
    pub pools: Vec<PoolUsage>,
    /// The authentication of the agents. `None` without credentials, if no agent has authenticated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authentication: Option<AuthenticationView>,
    /// Events since the start.
    pub counters: Counters,
    /// Messages refused before they reached the state machine. The runtime fills them in.
    pub refused: RejectedMessages,
    /// Counts of omitted and dropped log lines. The runtime sets them.
    pub log: LogTally,
}

/// The agents, counted by their last report. An agent with one failed overlay counts as failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct AgentTally {
    /// All agents that have addresses.
    pub total: usize,
    /// Agents whose overlays are all ready.
    pub ok: usize,
    /// Agents with a failed overlay.
    pub failed: usize,
    /// Agents without a failed overlay, and with an overlay of which this master has no report.
    pub unreported: usize,
    /// Agents to which no overlay is assigned.
    pub unassigned: usize,
    /// Agents that were not seen for too long. Their reports do not count.
    pub stale: usize,
    /// Agents that have authenticated. They also count above.
    #[serde(skip)]
    pub authenticated: usize,
}

impl AgentTally {
    pub(super) fn add(&mut self, info: &AgentInfo, is_stale: bool) {
        self.total += 1;
        *self.slot(info, is_stale) += 1;
    }

    pub(super) fn remove(&mut self, info: &AgentInfo, is_stale: bool) {
        self.total -= 1;
        *self.slot(info, is_stale) -= 1;
    }

    fn slot(&mut self, info: &AgentInfo, is_stale: bool) -> &mut usize {
        let has = |is_match: fn(&Option<Status>) -> bool| {
            info.overlays.iter().any(|overlay| is_match(&overlay.status))
        };
        if is_stale {
            &mut self.stale
        } else if info.overlays.is_empty() {
            &mut self.unassigned
        } else if has(|status| matches!(status, Some(Status::Failed(_)))) {
            &mut self.failed
        } else if has(|status| !matches!(status, Some(Status::Ok))) {
            &mut self.unreported
        } else {
            &mut self.ok
        }
    }
}

/// The agents, counted by their authentication.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct AuthenticationTally {
    /// Agents that have authenticated, and are not accepted unauthenticated any more.
    pub authenticated: usize,
    /// Agents that have addresses, and have never authenticated.
    pub unauthenticated: usize,
    /// Senders whose last message was refused.
    pub refused: usize,
}

/// The authentication of the agents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AuthenticationView {
    /// What happens to messages that are not authenticated. `None` if the master has no credentials.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<AuthenticationMode>,
    /// The number of agents.
    #[serde(flatten)]
    pub tally: AuthenticationTally,
    /// The first agents that have never authenticated.
    pub unauthenticated_agents: Vec<Ipv4Addr>,
}

impl AuthenticationView {
    /// The most agents that are listed. The state shows all of them.
    pub const AGENTS_MAX: usize = 100;
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
const fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// The table of peers and its subscribers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct PeersTally {
    /// The version of the table within the epoch.
    pub version: u64,
    /// The agents in the table.
    pub agents: usize,
    /// The agents that are subscribed to the table.
    pub subscribers: usize,
    /// The subscribers that get the plain form, since their version knows no other.
    #[serde(skip)]
    pub plain_subscribers: usize,
}

/// The usage of an address pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PoolUsage {
    /// `vtep` or the name of the overlay.
    pub name: String,
    /// The subnet that the pool allocates from.
    pub subnet: String,
    /// The number of allocations.
    pub in_use: u128,
    /// The number of agents for which the pool is large enough.
    pub capacity: u128,
}

/// The result of a request to release an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseResult {
    /// The agent.
    pub ip: Ipv4Addr,
    /// The VTEP address of the agent, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vtep_ip: Option<String>,
    /// The subnets of the agent, of all overlays and both families.
    pub subnets: Vec<String>,
    /// Whether the agent is released, or why not.
    pub result: ReleaseOutcome,
    /// How long ago the agent was last seen, if it was seen since the election.
    #[serde(rename = "heard_seconds_ago", default, skip_serializing_if = "Option::is_none")]
    pub last_seen_seconds_ago: Option<u64>,
    /// Why the record of the agent is quarantined; `None` if it is not.
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
    /// The master was elected too recently to know whether the agent is running. The agent keeps
    /// its addresses.
    MayBeRunning,
    /// A master with the C++ modules accepted the request, and still has the agent.
    NotDeleted,
}
