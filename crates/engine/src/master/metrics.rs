//! The metrics of a master.

use std::time::Duration;

use libprocess::limits::Limit;
use overlay_types::addr::OverlayName;
use overlay_types::container_network::NetworkKind;

use super::registry::{HalvesTally, RequestedAgent};
use super::view::{AgentTally, AuthenticationTally, Condition, Counters, PeersTally, PoolUsage};
use crate::metrics::{Catalogue, Family, Kind, Metric, Series, network_label, with_host_counters};

/// The values that the metrics of a master are read from. Their number does not depend on the size
/// of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metrics {
    /// The condition of the master.
    pub status: Condition,
    /// The epoch: how many masters have led this state; 0 before the state is loaded.
    pub epoch: u64,
    /// The durable version of the state.
    pub version: u64,
    /// The agents, counted by their last report.
    pub agents: AgentTally,
    /// The agents, counted by their authentication.
    pub authentication: AuthenticationTally,
    /// When the agent that is silent for the longest time was last seen, in seconds since 1970; 0
    /// if no agent was seen since the election.
    pub oldest_contact: u64,
    /// The table of peers and its subscribers.
    pub peers: PeersTally,
    /// Halves of subnets of agents without a free address for a container.
    pub full_halves: u64,
    /// Further halves of which at most a tenth of the addresses is free.
    pub nearly_full_halves: u64,
    /// Events since the start.
    pub counters: Counters,
}

impl Metrics {
    fn is_in(&self, status: Condition) -> u64 {
        u64::from(self.status == status)
    }
}

const STATUS: &str = "1 for the state that the master is in.";
const AGENTS: &str = "Agents that have addresses, by their last report.";

/// The metrics up to the comment have the names and the meaning of the C++ module.
pub(super) const CATALOGUE: Catalogue<Metrics> = Catalogue {
    mesos_prefix: "overlay/master/",
    prometheus_prefix: "mesos_overlay_master",
    metrics: with_host_counters!(
        [
            Metric::gauge(
                "recovering",
                "1 while the master cannot serve, since its state is not loaded.",
                |metrics| metrics.is_in(Condition::Recovering) | metrics.is_in(Condition::Failed),
            ),
            Metric::process_restarts("Restarts of the master after it stopped by itself.",),
            Metric::counter(
                "ip_allocation_failures",
                "Registrations refused, since no VTEP address was left.",
                |metrics| metrics.counters.ip_allocation_failures,
            ),
            Metric::counter(
                "ip6_allocation_failures",
                "Registrations without an IPv6 VTEP address, since none was left.",
                |metrics| metrics.counters.ip6_allocation_failures,
            ),
            Metric::counter(
                "subnet_allocation_failures",
                "Allocations that failed, since an overlay had no IPv4 subnet left.",
                |metrics| metrics.counters.subnet_allocation_failures,
            ),
            Metric::counter(
                "subnet6_allocation_failures",
                "Allocations that failed, since an overlay had no IPv6 subnet left.",
                |metrics| metrics.counters.subnet6_allocation_failures,
            ),
            // Bridges are halves of a subnet, and the configuration allows no subnet without
            // halves.
            Metric::counter(
                "bridge_allocation_failures",
                "Bridges that could not be allocated. Always 0; kept for existing dashboards.",
                |_| 0,
            ),
            Metric::counter(
                "internal/register_agent_messages_received",
                "RegisterAgentMessages received.",
                |metrics| metrics.counters.register_agent_messages_received,
            ),
            Metric::counter(
                "internal/register_agent_messages_dropped",
                "RegisterAgentMessages that the master did not answer.",
                |metrics| metrics.counters.register_agent_messages_dropped,
            ),
            Metric::counter(
                "internal/update_agent_overlays_messages_sent",
                "UpdateAgentOverlaysMessages sent, or held back until the state is durable.",
                |metrics| metrics.counters.update_agent_overlays_messages_sent,
            ),
            Metric::counter(
                "internal/agent_registered_messages_received",
                "AgentRegisteredMessages received.",
                |metrics| metrics.counters.agent_registered_messages_received,
            ),
            Metric::counter(
                "internal/agent_registered_messages_dropped",
                "AgentRegisteredMessages of agents that are not registered.",
                |metrics| metrics.counters.agent_registered_messages_dropped,
            ),
            Metric::counter(
                "internal/agent_registered_acknowledgements_sent",
                "AgentRegisteredAcknowledgements sent.",
                |metrics| metrics.counters.agent_registered_acknowledgements_sent,
            ),
            // The C++ module does not have the following metrics.
            Metric::gauge_of("status/ok", "status", STATUS, |metrics| metrics.is_in(Condition::Ok)),
            Metric::gauge_of("status/degraded", "status", STATUS, |metrics| {
                metrics.is_in(Condition::Degraded)
            }),
            Metric::gauge_of("status/standby", "status", STATUS, |metrics| {
                metrics.is_in(Condition::Standby)
            }),
            Metric::gauge_of("status/recovering", "status", STATUS, |metrics| {
                metrics.is_in(Condition::Recovering)
            }),
            Metric::gauge_of("status/failed", "status", STATUS, |metrics| {
                metrics.is_in(Condition::Failed)
            }),
            Metric::gauge_of("agents/ok", "state", AGENTS, |metrics| metrics.agents.ok as u64),
            Metric::gauge_of("agents/failed", "state", AGENTS, |metrics| metrics.agents.failed
                as u64),
            Metric::gauge_of("agents/unreported", "state", AGENTS, |metrics| {
                metrics.agents.unreported as u64
            }),
            Metric::gauge_of("agents/unassigned", "state", AGENTS, |metrics| {
                metrics.agents.unassigned as u64
            }),
            Metric::gauge_of("agents/stale", "state", AGENTS, |metrics| metrics.agents.stale
                as u64),
            Metric::gauge(
                "agents_authenticated",
                "Agents that have authenticated, and are accepted only authenticated from then on.",
                |metrics| metrics.authentication.authenticated as u64,
            ),
            Metric::gauge(
                "agents_unauthenticated",
                "Agents that have addresses, and have never authenticated.",
                |metrics| metrics.authentication.unauthenticated as u64,
            ),
            Metric::gauge(
                "agents_refused_unauthentic",
                "Senders whose last message was refused, since it was not authentic.",
                |metrics| metrics.authentication.refused as u64,
            ),
            Metric::gauge(
                "oldest_contact_timestamp_seconds",
                "When the agent that is silent for the longest time was last seen; 0 without one.",
                |metrics| metrics.oldest_contact,
            ),
            Metric::gauge(
                "epoch",
                "Masters that have led this state; 0 before the state is loaded.",
                |metrics| metrics.epoch,
            ),
            Metric::gauge("version", "Durable version of the state.", |metrics| {
                metrics.version
            }),
            Metric::gauge(
                "peers",
                "Agents in the table of peers that the master sends.",
                |metrics| metrics.peers.agents as u64,
            ),
            Metric::gauge(
                "peers_subscribers",
                "Agents that are subscribed to the table of peers.",
                |metrics| metrics.peers.subscribers as u64,
            ),
            Metric::gauge(
                "peers_plain_subscribers",
                "Subscribed agents of former versions, which get the table without compression.",
                |metrics| metrics.peers.plain_subscribers as u64,
            ),
            Metric::counter(
                "internal/request_peers_messages_received",
                "RequestPeersMessages received.",
                |metrics| metrics.counters.request_peers_messages_received,
            ),
            Metric::counter(
                "internal/request_peers_messages_dropped",
                "RequestPeersMessages of agents that are not registered.",
                |metrics| metrics.counters.request_peers_messages_dropped,
            ),
            Metric::counter(
                "internal/update_peers_messages_sent",
                "UpdatePeersMessages sent, or held back until the state is durable.",
                |metrics| metrics.counters.update_peers_messages_sent,
            ),
            Metric::counter(
                "internal/update_peers_bytes_sent",
                "Bytes of the UpdatePeersMessages, as they were sent.",
                |metrics| metrics.counters.update_peers_bytes_sent,
            ),
            Metric::counter(
                "internal/update_peers_messages_encoded",
                "Different UpdatePeersMessages that were encoded. All agents that miss the same \
                 changes get the same bytes.",
                |metrics| metrics.counters.update_peers_messages_encoded,
            ),
            Metric::counter(
                "internal/registration_problems_messages_sent",
                "RegistrationProblemsMessages sent to agents that are not served as a whole.",
                |metrics| metrics.counters.registration_problems_messages_sent,
            ),
            Metric::counter(
                "internal/peer_failures_messages_received",
                "PeerFailuresMessages received.",
                |metrics| metrics.counters.peer_failures_messages_received,
            ),
            Metric::counter(
                "internal/authenticate_agent_messages_received",
                "AuthenticateAgentMessages received.",
                |metrics| metrics.counters.authenticate_agent_messages_received,
            ),
            Metric::counter(
                "unauthenticated_messages_accepted",
                "Messages accepted without authentication, although the master has credentials.",
                |metrics| metrics.counters.unauthenticated_messages_accepted,
            ),
            Metric::counter(
                "unauthentic_messages_refused",
                "Messages refused: not authenticated, forged, changed, repeated or too late.",
                |metrics| metrics.counters.unauthentic_messages_refused,
            ),
            Metric::counter("commits", "Durable writes of the state.", |metrics| {
                metrics.counters.commits
            }),
            Metric::counter(
                "store_failures",
                "Reads and writes of the state that failed.",
                |metrics| metrics.counters.store_failures,
            ),
            Metric::counter(
                "malformed_messages",
                "Messages that could not be decoded.",
                |metrics| metrics.counters.malformed_messages,
            ),
            Metric::counter("unexpected_messages", "Messages that are for agents.", |metrics| {
                metrics.counters.unexpected_messages
            }),
            Metric::counter(
                "unknown_overlays_reported",
                "Reported overlays that were not assigned to the agent.",
                |metrics| metrics.counters.unknown_overlays_reported,
            ),
            Metric::counter(
                "outdated_overlays_reported",
                "Reported overlays whose addresses differ from the assigned addresses.",
                |metrics| metrics.counters.outdated_overlays_reported,
            ),
            Metric::counter(
                "registrations_refused",
                "Registrations refused for an underlay address that cannot be the agent's own.",
                |metrics| metrics.counters.registrations_refused,
            ),
            Metric::gauge(
                "container_halves_full",
                "Halves of subnets of agents, without a free address for a container.",
                |metrics| metrics.full_halves,
            ),
            Metric::gauge(
                "container_halves_nearly_full",
                "Halves of subnets of agents, of which at most a tenth of the addresses is free.",
                |metrics| metrics.nearly_full_halves,
            ),
            Metric::counter(
                "early_reuses",
                "Addresses allocated to another agent before their cooldown (reuse_after) ended.",
                |metrics| metrics.counters.early_reuses,
            ),
        ],
        [Limit::RegistrationsPerSecond, Limit::RegistrationsPerSecondPerAddress]
    ),
};

/// The silences by which agents are counted. A running agent of the program is silent for a minute
/// at most.
pub(super) const SILENCES: [Duration; 4] = [
    Duration::from_mins(5),
    Duration::from_hours(1),
    Duration::from_hours(24),
    Duration::from_hours(7 * 24),
];

/// Returns the numbers of agents by their silence.
pub(super) fn silent_agents(silent: &[u64; SILENCES.len()], unseen: u64) -> Vec<Family> {
    let series = SILENCES.iter().zip(silent).map(|(silence, agents)| Series {
        labels: vec![("longer_than_seconds", silence.as_secs().to_string())],
        value: *agents,
    });
    vec![
        Family {
            name: "agents_silent",
            kind: Kind::Gauge,
            help: "Agents without a message for longer than so many seconds. Agents of the C++ \
                   modules are silent while they run.",
            series: series.collect(),
        },
        Family {
            name: "agents_unseen",
            kind: Kind::Gauge,
            help: "Agents that sent no message since the election of this master.",
            series: vec![Series { labels: Vec::new(), value: unseen }],
        },
    ]
}

/// Returns the usage of the addresses of containers, summed over all agents.
pub(super) fn halves<'a>(
    tallies: impl Iterator<Item = (&'a OverlayName, NetworkKind, &'a HalvesTally)>,
) -> Vec<Family> {
    let tallies: Vec<_> = tallies.collect();
    if tallies.is_empty() {
        return Vec::new();
    }
    let family = |name, help, value: fn(&HalvesTally) -> u64| {
        let series = |(overlay, kind, tally): &(&OverlayName, NetworkKind, &HalvesTally)| Series {
            labels: vec![("overlay", overlay.to_string()), ("network", network_label(*kind))],
            value: value(tally),
        };
        Family { name, kind: Kind::Gauge, help, series: tallies.iter().map(series).collect() }
    };
    vec![
        family(
            "container_addresses_used",
            "IPv4 addresses that containers have, as all agents report.",
            |tally| tally.used,
        ),
        family(
            "container_addresses_free",
            "IPv4 addresses that agents have left for containers.",
            |tally| tally.free,
        ),
        family(
            "container_addresses_max_percent",
            "Used addresses of the agent that has the fewest left, in percent of all.",
            HalvesTally::max_percent,
        ),
    ]
}

/// Returns the metrics of single agents, which a request names.
pub(super) fn agents(agents: &[RequestedAgent]) -> Vec<Family> {
    if agents.is_empty() {
        return Vec::new();
    }
    let family = |name, help, value: fn(&RequestedAgent) -> u64| {
        let series = |agent: &RequestedAgent| Series {
            labels: vec![("agent", agent.ip.to_string())],
            value: value(agent),
        };
        Family { name, kind: Kind::Gauge, help, series: agents.iter().map(series).collect() }
    };
    vec![
        family("agent_known", "1 if the requested agent has addresses.", |agent| {
            u64::from(agent.is_known)
        }),
        family("agent_stale", "1 if the requested agent is stale.", |agent| {
            u64::from(agent.is_stale)
        }),
        family(
            "agent_last_seen_timestamp_seconds",
            "When the requested agent was last seen; 0 if not since the election of this master.",
            |agent| agent.last_seen_unix.unwrap_or_default(),
        ),
    ]
}

/// Returns the usage of the address pools.
pub(super) fn pools(usage: &[PoolUsage]) -> Vec<Family> {
    let family = |name, help, value: fn(&PoolUsage) -> u128| {
        let series = |pool: &PoolUsage| Series {
            labels: vec![("pool", pool.name.clone()), ("subnet", pool.subnet.clone())],
            // An IPv6 pool may have more addresses than a u64 can count.
            value: u64::try_from(value(pool)).unwrap_or(u64::MAX),
        };
        Family { name, kind: Kind::Gauge, help, series: usage.iter().map(series).collect() }
    };
    vec![
        family("pool_in_use", "Allocations from an address pool, one for each agent.", |pool| {
            pool.in_use
        }),
        family(
            "pool_free",
            "Agents that an address pool can still serve. Addresses in their cooldown count.",
            |pool| pool.capacity.saturating_sub(pool.in_use),
        ),
        family("pool_capacity", "Agents for which an address pool is large enough.", |pool| {
            pool.capacity
        }),
    ]
}
