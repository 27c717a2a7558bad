//! What the agent shows of itself: its counters and its health.

use serde::Serialize;

use crate::protocol::Refused;

/// How often things happened since the start. The names are those of the C++ module's metrics,
/// without their prefix `overlay/slave/`; those below the line are ours.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the names say it, and are the ones that operators see")]
pub struct Counters {
    pub register_agent_messages_sent: u64,
    pub update_agent_overlays_messages_received: u64,
    pub update_agent_overlays_messages_dropped: u64,
    pub agent_registered_messages_sent: u64,
    pub agent_registered_messages_dropped: u64,
    pub agent_registered_acknowledgements_received: u64,
    pub agent_registered_acknowledgements_dropped: u64,
    pub overlay_config_failures: u64,
    pub docker_cmd_failures: u64,
    // ----
    pub malformed_messages: u64,
    pub unexpected_messages: u64,
    pub connections_lost: u64,
    pub request_peers_messages_sent: u64,
    pub update_peers_messages_received: u64,
    pub update_peers_messages_dropped: u64,
    pub dataplane_changes: u64,
    pub dataplane_repairs: u64,
    pub dataplane_failures: u64,
}

/// What state the agent is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Condition {
    /// Registered, and every overlay is ready.
    Ok,
    /// Registered, but some overlay is not ready.
    Degraded,
    /// It knows a master that has not acknowledged it yet.
    Registering,
    /// It knows no master.
    Detached,
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

/// How the agent is: `/overlay-agent/health`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Health {
    /// In one word.
    pub status: Condition,
    /// What needs an operator, one sentence each.
    pub problems: Vec<String>,
    /// The process that it registers with.
    pub master: Option<String>,
    /// Its container networks.
    pub networks: Vec<NetworkHealth>,
    /// The packets' way to other agents, if this one has to do with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dataplane: Option<TunnelHealth>,
    /// What happened since the start.
    pub counters: Counters,
    /// What did not reach the machine. Whoever runs it fills it in.
    pub refused: Refused,
}

/// How the overlays are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OverlayTally {
    /// Ready for containers.
    pub ok: u64,
    /// Not usable.
    pub failed: u64,
    /// Some network of it is being tried for the first time.
    pub configuring: u64,
    /// Without IPv4, whatever became of them.
    pub without_subnet: u64,
    /// Whether one has failed for as long as it is tried quickly, or cannot be tried at all.
    pub has_given_up: bool,
}

/// How one container network is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NetworkHealth {
    /// The overlay.
    pub overlay: String,
    /// `cni network` or `docker network`.
    pub network: String,
    /// `configuring`, `ok`, or `failed: ` and the reason.
    pub status: String,
    /// Attempts since it was last found ready.
    pub attempts: u32,
    /// Seconds until it is tried or verified again.
    pub next_attempt_seconds: Option<u64>,
}

/// How the packets' way to other agents is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TunnelHealth {
    /// `external`, `configuring`, `ok`, or `failed: ` and how many of the problems.
    pub status: String,
    /// How many agents the master told of, this one among them; nothing if it did not.
    pub peers: Option<usize>,
    /// How often something was repaired that somebody else had changed.
    pub repairs: u64,
    /// What was repaired last.
    pub last_repair: Option<String>,
    /// And when, in seconds since 1970.
    pub last_repair_unix: Option<u64>,
}
