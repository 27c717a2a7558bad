//! The metrics of a master.

use super::view::{AgentTally, Condition, Counters, PeersTally, PoolUsage};
use crate::limits::Limit;
use crate::metrics::{Catalogue, Family, Kind, Metric, Series};

/// The values of the metrics: the same number of values for a cluster of any size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metrics {
    /// The status of the master.
    pub status: Condition,
    /// The number of leaders of the state so far; 0 before the state was read.
    pub epoch: u64,
    /// Version of the state that is durable.
    pub version: u64,
    /// The agents by their last report.
    pub agents: AgentTally,
    /// The table of peers.
    pub peers: PeersTally,
    /// The counters since the start.
    pub counters: Counters,
}

impl Metrics {
    fn is(&self, status: Condition) -> u64 {
        u64::from(self.status == status)
    }
}

const STATUS: &str = "1 for the state that the master is in.";
const AGENTS: &str = "Agents that have addresses, by what they said last.";

/// The first part has the names and the meaning of the C++ module.
pub(super) const CATALOGUE: Catalogue<Metrics> = Catalogue {
    mesos_prefix: "overlay/master/",
    prometheus_prefix: "mesos_overlay_master",
    metrics: &[
        Metric::gauge(
            "recovering",
            "1 while the master cannot serve, since its state is not read.",
            |metrics| metrics.is(Condition::Recovering) | metrics.is(Condition::Failed),
        ),
        Metric::host_counter(
            "process_restarts",
            "How often the master was started again because it had stopped by itself.",
            |host| host.process_restarts,
        ),
        Metric::counter(
            "ip_allocation_failures",
            "Registrations that got nothing, since no VTEP address was left.",
            |metrics| metrics.counters.ip_allocation_failures,
        ),
        Metric::counter(
            "ip6_allocation_failures",
            "Registrations without an IPv6 VTEP address, since none was left.",
            |metrics| metrics.counters.ip6_allocation_failures,
        ),
        Metric::counter(
            "subnet_allocation_failures",
            "Shares that were not allocated, since an overlay had no IPv4 subnet left.",
            |metrics| metrics.counters.subnet_allocation_failures,
        ),
        Metric::counter(
            "subnet6_allocation_failures",
            "Shares that were not allocated, since an overlay had no IPv6 subnet left.",
            |metrics| metrics.counters.subnet6_allocation_failures,
        ),
        // Bridges are halves of a subnet, and the configuration leaves no subnet without halves.
        Metric::counter(
            "bridge_allocation_failures",
            "Bridges that could not be allocated: never, and here for those who watch it.",
            |_| 0,
        ),
        Metric::counter(
            "internal/register_agent_messages_received",
            "RegisterAgentMessages received.",
            |metrics| metrics.counters.register_agent_messages_received,
        ),
        Metric::counter(
            "internal/register_agent_messages_dropped",
            "RegisterAgentMessages that were not answered.",
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
        // ---- ours
        Metric::gauge_of("status/ok", "status", STATUS, |metrics| metrics.is(Condition::Ok)),
        Metric::gauge_of("status/degraded", "status", STATUS, |metrics| {
            metrics.is(Condition::Degraded)
        }),
        Metric::gauge_of("status/standby", "status", STATUS, |metrics| {
            metrics.is(Condition::Standby)
        }),
        Metric::gauge_of("status/recovering", "status", STATUS, |metrics| {
            metrics.is(Condition::Recovering)
        }),
        Metric::gauge_of("status/failed", "status", STATUS, |metrics| {
            metrics.is(Condition::Failed)
        }),
        Metric::gauge_of("agents/ok", "state", AGENTS, |metrics| metrics.agents.ok as u64),
        Metric::gauge_of("agents/failed", "state", AGENTS, |metrics| metrics.agents.failed as u64),
        Metric::gauge_of("agents/unreported", "state", AGENTS, |metrics| {
            metrics.agents.unreported as u64
        }),
        Metric::gauge(
            "epoch",
            "How many masters have led this state; 0 before it was read.",
            |metrics| metrics.epoch,
        ),
        Metric::gauge("version", "Version of the state that is durable.", |metrics| {
            metrics.version
        }),
        Metric::gauge(
            "peers",
            "Agents in the table of peers that agents are told of.",
            |metrics| metrics.peers.agents as u64,
        ),
        Metric::gauge(
            "peers_subscribers",
            "Agents that want to be told of their peers.",
            |metrics| metrics.peers.subscribers as u64,
        ),
        Metric::counter(
            "internal/request_peers_messages_received",
            "RequestPeersMessages received.",
            |metrics| metrics.counters.request_peers_messages_received,
        ),
        Metric::counter(
            "internal/request_peers_messages_dropped",
            "RequestPeersMessages of agents that are not registered here.",
            |metrics| metrics.counters.request_peers_messages_dropped,
        ),
        Metric::counter(
            "internal/update_peers_messages_sent",
            "UpdatePeersMessages sent, or held back until the state is durable.",
            |metrics| metrics.counters.update_peers_messages_sent,
        ),
        Metric::counter(
            "internal/update_peers_bytes_sent",
            "Bytes of these messages.",
            |metrics| metrics.counters.update_peers_bytes_sent,
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
            "Messages that could not be understood.",
            |metrics| metrics.counters.malformed_messages,
        ),
        Metric::counter("unexpected_messages", "Messages that are meant for agents.", |metrics| {
            metrics.counters.unexpected_messages
        }),
        Metric::counter(
            "unknown_overlays_reported",
            "Overlays in reports of agents that were not assigned them.",
            |metrics| metrics.counters.unknown_overlays_reported,
        ),
        Metric::counter(
            "outdated_overlays_reported",
            "Overlays in reports whose addresses are not those that were assigned.",
            |metrics| metrics.counters.outdated_overlays_reported,
        ),
        Metric::counter(
            "registrations_refused",
            "Registrations refused for an underlay address that cannot be the agent's own.",
            |metrics| metrics.counters.registrations_refused,
        ),
        Metric::counter(
            "early_reuses",
            "Addresses given to another agent before they had rested for reuse_after.",
            |metrics| metrics.counters.early_reuses,
        ),
        Metric::host_counter("refused", "What was refused before it became a message.", |host| {
            host.refused
        }),
        Metric::limit(Limit::Connections),
        Metric::limit(Limit::ConnectionsPerAddress),
        Metric::limit(Limit::HttpConnections),
        Metric::limit(Limit::HttpConnectionsPerAddress),
        Metric::limit(Limit::RequestBytes),
        Metric::limit(Limit::RequestBytesPerAddress),
        Metric::limit(Limit::ResponseBytes),
        Metric::limit(Limit::ResponseBytesPerAddress),
        Metric::limit(Limit::Requests),
        Metric::limit(Limit::RequestsPerAddress),
        Metric::limit(Limit::MessagesPerSecond),
        Metric::limit(Limit::MessagesPerSecondPerAddress),
        Metric::limit(Limit::RegistrationsPerSecond),
        Metric::limit(Limit::RegistrationsPerSecondPerAddress),
        Metric::limit(Limit::UnsentBytes),
        Metric::limit(Limit::UnsentBytesPerAddress),
        Metric::limit(Limit::Connects),
        Metric::limit(Limit::ConnectsPerAddress),
        Metric::limit(Limit::RequestTimeout),
        Metric::limit(Limit::WriteTimeout),
        Metric::limit(Limit::HttpIdleTimeout),
        Metric::host_counter(
            "log_lines_left_out",
            "Lines of the log that this process left out, since they came too often.",
            |host| host.log_lines_left_out,
        ),
    ],
};

/// Returns the usage of the address pools.
pub(super) fn pools(usage: &[PoolUsage]) -> Vec<Family> {
    let family = |name, help, value: fn(&PoolUsage) -> u128| {
        let series = |pool: &PoolUsage| Series {
            labels: vec![("pool", pool.name.clone()), ("subnet", pool.subnet.clone())],
            // Of IPv6 there may be more than any counter holds, and more than anybody uses.
            value: u64::try_from(value(pool)).unwrap_or(u64::MAX),
        };
        Family { name, kind: Kind::Gauge, help, series: usage.iter().map(series).collect() }
    };
    vec![
        family("pool_in_use", "How many agents have something of an address space.", |pool| {
            pool.in_use
        }),
        family("pool_capacity", "How many agents an address space is enough for.", |pool| {
            pool.capacity
        }),
    ]
}
