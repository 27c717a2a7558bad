//! The counters and the health of the agent.

use std::net::IpAddr;

use overlay_types::protocol::{AuthenticationMode, RejectedMessages};
use serde::Serialize;

use crate::metrics::LogTally;
use crate::state_machine::Degrade;

/// Events since the start. The counters above the comment have the names of the C++ module's
/// metrics, without the prefix `overlay/slave/`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the names are those of the metrics, which have a help text")]
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
    // The C++ module does not have the following counters.
    pub malformed_messages: u64,
    pub unexpected_messages: u64,
    pub connections_lost: u64,
    pub request_peers_messages_sent: u64,
    pub update_peers_messages_received: u64,
    pub update_peers_messages_dropped: u64,
    pub registration_problems_messages_received: u64,
    pub dataplane_changes: u64,
    pub dataplane_repairs: u64,
    pub dataplane_failures: u64,
    pub container_network_repairs: u64,
    pub leases_released: u64,
    pub probe_packets_sent: u64,
    pub probe_packets_lost: u64,
    pub probe_path_packets_sent: u64,
    pub probe_path_packets_lost: u64,
    pub peer_failures_messages_sent: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub unauthentic_messages_refused: u64,
}

/// The condition of the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Condition {
    /// Registered, and every overlay is ready.
    Ok,
    /// Registered, but some overlay is not ready.
    Degraded,
    /// A master is known, but has not acknowledged the agent yet.
    Registering,
    /// No master is known.
    Detached,
    /// The agent cannot find its master, the master refuses the agent, or the host has lost the
    /// agent's address: an operator must act.
    Failed,
}

impl Degrade for Condition {
    const OK: Self = Self::Ok;
    const DEGRADED: Self = Self::Degraded;

    /// An agent that is registered serves its containers without the election.
    fn failed(self) -> Self {
        match self {
            Self::Ok | Self::Degraded => Self::Degraded,
            Self::Registering | Self::Detached | Self::Failed => Self::Failed,
        }
    }
}

/// The health of the agent: `/overlay-agent/health`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Health {
    /// The condition.
    pub status: Condition,
    /// Problems that need an operator, one sentence each.
    pub problems: Vec<String>,
    /// What the first problems are about, in the same order. The runtime adds problems without a
    /// source.
    pub sources: Vec<ProblemSource>,
    /// The process with which the agent registers.
    pub master: Option<String>,
    /// The container networks.
    pub networks: Vec<NetworkHealth>,
    /// The tunnels to other agents, if the agent programs them or checks for collisions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dataplane: Option<TunnelHealth>,
    /// The probes of the peers, if the agent has programmed its tunnels and sends probes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probes: Option<ProbeHealth>,
    /// The authentication of the master, if the agent has a credential.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authentication: Option<AuthenticationHealth>,
    /// Events since the start.
    pub counters: Counters,
    /// Messages refused before they reached the state machine. The runtime sets them.
    pub refused: RejectedMessages,
    /// Counts of omitted and dropped log lines. The runtime sets them.
    pub log: LogTally,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
const fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// The authentication of the master.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AuthenticationHealth {
    /// What happens to messages of a master that does not authenticate.
    pub mode: AuthenticationMode,
    /// The principal of the agent.
    pub principal: String,
    /// Whether the current master has authenticated.
    #[serde(rename = "master_authenticated")]
    pub is_master_authenticated: bool,
    /// Whether a master has authenticated before, so that no other master is accepted.
    #[serde(rename = "master_was_authenticated")]
    pub was_master_authenticated: bool,
}

/// What a problem of the health is about.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ProblemSource {
    /// The parts of the agent with the problem: `address`, `master`, `assignment`, `collision`,
    /// `tunnel`, `cni network`, `docker network`, `probes` or `peers`.
    pub parts: Vec<&'static str>,
    /// The overlay, if the problem concerns one overlay.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overlay: Option<String>,
}

impl ProblemSource {
    pub(super) fn of(part: &'static str) -> Self {
        Self { parts: vec![part], overlay: None }
    }
}

/// The overlays, counted by status.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OverlayTally {
    /// Ready for containers.
    pub ok: u64,
    /// Not usable.
    pub failed: u64,
    /// A network of the overlay is being configured for the first time.
    pub configuring: u64,
    /// Without IPv4, in any status.
    pub without_subnet: u64,
    /// Whether an overlay has used up its quick attempts, or cannot be configured at all.
    pub has_given_up: bool,
}

/// The health of one container network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NetworkHealth {
    /// The overlay.
    pub overlay: String,
    /// `cni network` or `docker network`.
    pub network: String,
    /// `configuring`, `ok`, or `failed: ` and the reason.
    pub status: String,
    /// The CNI plugin that the configuration of a CNI network names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plugin: Option<&'static str>,
    /// Attempts since the network was last ready.
    pub attempts: u32,
    /// Seconds until the next attempt or verification.
    pub next_attempt_seconds: Option<u64>,
}

/// The health of the tunnels to other agents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TunnelHealth {
    /// `external`, `configuring`, `ok`, or `failed: ` and the number of problems.
    pub status: String,
    /// Agents in the table of peers, including this agent; `None` without a table.
    pub peers: Option<usize>,
    /// The program of the firewall rules: `nftables`, `iptables` or `none`; `None` before the first
    /// rules.
    pub firewall: Option<&'static str>,
    /// How the source of a packet inside of the tunnel is checked: `pair` or `membership`; `None`
    /// without a check.
    pub inner_check: Option<&'static str>,
    /// How packets between containers of different agents pass this host: `tracked`, `untracked` or
    /// `shortcut`; `None` before the first rules.
    pub forwarding: Option<&'static str>,
    /// The paths to the peers, if direct routing is on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direct_routing: Option<DirectHealth>,
    /// Repairs of objects that another process changed.
    pub repairs: u64,
    /// The last repair.
    pub last_repair: Option<String>,
    /// The time of the last repair, in seconds since 1970.
    pub last_repair_unix: Option<u64>,
    /// The offloads that the agent has switched off, or why it cannot test them. The key is missing
    /// if all is well, and without `repair_offloads`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offloads: Option<String>,
}

/// The paths of packets to the peers, if direct routing is on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DirectHealth {
    /// The device in the underlay that sends and receives packets without encapsulation.
    pub device: Option<String>,
    /// Its MAC, which the agent announces to its peers.
    pub mac: Option<String>,
    /// Why this host cannot route directly.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// The underlay addresses of the peers that get packets without encapsulation.
    pub direct: Vec<String>,
    /// The peers that get packets through the tunnel.
    pub vxlan: Vec<VxlanPeerHealth>,
}

/// A peer that gets packets through the tunnel although direct routing is on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VxlanPeerHealth {
    /// The underlay address of the peer.
    pub agent: String,
    /// Why the packets take the tunnel.
    pub reason: String,
}

/// The peers, counted by the outcomes of their probes. A peer that was not probed yet counts as
/// nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct ProbeTally {
    /// Peers that answer.
    pub reached: u64,
    /// Peers that do not answer, as a whole or in part.
    pub unreachable: u64,
    /// Peers that answer small packets only.
    pub large_lost: u64,
    /// Mean of the smoothed round-trip times of all peers.
    pub round_trip_microseconds: u64,
    /// Peers by the number of unanswered visits of their last 8.
    #[serde(skip)]
    pub by_loss: [u64; 9],
}

/// The health of the paths to other agents, as probes found it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProbeHealth {
    /// `off`, `ok` or `degraded`.
    pub status: String,
    /// Why no probe can be sent, or why some do not take the path of containers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// The overlays whose probes begin at a port of their bridge, as the packets of containers.
    /// The probes of the others begin at the VTEP.
    pub bridged_overlays: Vec<String>,
    /// The peers by outcome.
    #[serde(flatten)]
    pub tally: ProbeTally,
    /// The first peers whose probes fail.
    pub failing: Vec<PeerProbeHealth>,
}

/// The probes of all peers: `/overlay-agent/probes`. Peers are named by their identity, under which
/// the master knows them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ProbeDetails {
    /// `off`, `ok` or `degraded`, as in the health. `none` before there are peers.
    pub status: String,
    /// Why no probe can be sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// All peers.
    pub peers: u64,
    /// The peers that answer all probes.
    pub ok: u64,
    /// The peers that answer, but did not at one of the last 8 visits.
    pub lossy: u64,
    /// The peers whose probes fail, as a whole or in part.
    pub failing: u64,
    /// The peers that were not probed yet.
    pub unknown: u64,
    /// The smoothed round-trip times. `None` before the first reply.
    pub round_trip_microseconds: Option<RoundTrips>,
    /// The failing peers, and then the lossy ones, up to the limit of the request.
    pub named: Vec<NamedPeer>,
}

/// The round-trip times of the peers of an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct RoundTrips {
    /// That of the nearest peer.
    pub min: u64,
    /// The median of the peers.
    pub median: u64,
    /// That of the farthest peer.
    pub max: u64,
}

/// A peer that does not answer all probes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NamedPeer {
    /// The identity of the peer, or its underlay address if the identity is unknown.
    pub agent: IpAddr,
    /// The likely cause. `None` if the peer is lossy only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<&'static str>,
    /// Unanswered visits of the last 8.
    pub lost: u32,
}

/// The health of the path to a peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PeerProbeHealth {
    /// The underlay address of the peer.
    pub agent: String,
    /// The likely cause.
    pub cause: String,
    /// The failure, its likely cause and the remedy, in a sentence.
    pub problem: String,
    /// The time of the first failed probe, in seconds since 1970.
    pub since_unix: Option<u64>,
    /// The time of the last answer, in seconds since 1970.
    pub last_success_unix: Option<u64>,
    /// Unanswered probes of the last 8.
    pub lost: u32,
    /// The shortest round-trip time.
    pub round_trip_min_microseconds: Option<u64>,
    /// The smoothed round-trip time.
    pub round_trip_microseconds: Option<u64>,
}
