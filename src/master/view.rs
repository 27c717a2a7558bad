//! What the master shows of itself: its counters and its health.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::protocol::{AgentInfo, Refused, Status};

/// How often things happened since the start. The names are those of the C++ module's metrics,
/// without their prefix `overlay/master/`; those below the line are ours.
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

/// What state the master is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Condition {
    /// All is well.
    Ok,
    /// It serves, but something needs an operator: see the problems.
    Degraded,
    /// Another master leads; this one serves nothing, and is ready to lead.
    Standby,
    /// It is reading its state and serves nothing yet.
    Recovering,
    /// It cannot read or write its state; it tries again by itself.
    Failed,
}

impl Condition {
    /// The status while a standing warning lasts: `ok` becomes `degraded`, a worse status stays.
    #[must_use]
    pub const fn degraded(self) -> Self {
        match self {
            Self::Ok => Self::Degraded,
            other => other,
        }
    }
}

/// How the master is: `/overlay-master/health`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Health {
    /// In one word.
    pub status: Condition,
    /// What needs an operator, one sentence each.
    pub problems: Vec<String>,
    /// Leaders of this state so far; 0 before the state was read.
    pub epoch: u64,
    /// Version of the state that is durable.
    pub version: u64,
    /// The agents by what they said last.
    pub agents: AgentTally,
    /// What agents are told of each other.
    pub peers: PeersTally,
    /// How full every address space is.
    pub pools: Vec<PoolUsage>,
    /// What happened since the start.
    pub counters: Counters,
    /// What did not reach the machine. Whoever runs it fills it in.
    pub refused: Refused,
}

/// Agents by what they said last. An agent with one failed overlay counts as failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct AgentTally {
    /// All agents that have addresses.
    pub total: usize,
    /// All their overlays are ready.
    pub ok: usize,
    /// Some overlay failed.
    pub failed: usize,
    /// Have not said anything of some overlay since the master started.
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

/// The table of what agents are told of each other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct PeersTally {
    /// Its version, within the epoch.
    pub version: u64,
    /// The agents in it.
    pub agents: usize,
    /// The agents that want to be told of it.
    pub subscribers: usize,
}

/// How full an address space is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PoolUsage {
    /// `vtep` or the name of the overlay.
    pub name: String,
    /// The space.
    pub subnet: String,
    /// How many agents have something of it.
    pub in_use: u128,
    /// How many agents it is enough for.
    pub capacity: u128,
}

/// What becomes of an agent that is to be forgotten.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fate {
    /// The agent.
    pub ip: Ipv4Addr,
    /// Address of its VTEP, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vtep_ip: Option<String>,
    /// Its subnets of all overlays and both families.
    pub subnets: Vec<String>,
    /// What becomes of it.
    pub result: Verdict,
    /// How long ago it was heard, if it was since this master leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heard_seconds_ago: Option<u64>,
    /// Why it was not served, if it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set_aside: Option<String>,
}

impl Fate {
    /// That of an agent which the master does not know.
    #[must_use]
    pub const fn unknown(ip: Ipv4Addr) -> Self {
        Self {
            ip,
            vtep_ip: None,
            subnets: Vec::new(),
            result: Verdict::NotKnown,
            heard_seconds_ago: None,
            set_aside: None,
        }
    }
}

/// What becomes of an agent that is to be forgotten, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Its addresses are free.
    Deleted,
    /// They would be.
    WouldBeDeleted,
    /// The master does not know it.
    NotKnown,
    /// It is running, and keeps them.
    Running,
    /// The master leads not long enough to know whether it is running: it keeps them.
    MayBeRunning,
    /// A master with the C++ modules said yes, and still has it.
    NotDeleted,
}
