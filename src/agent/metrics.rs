//! The numbers by which operators watch an agent.

use super::view::{Condition, Counters, OverlayTally};
use crate::limits::Limit;
use crate::metrics::{Catalogue, Metric};

/// What the numbers of an agent are read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metrics {
    /// What state it is in.
    pub status: Condition,
    /// Its overlays.
    pub overlays: OverlayTally,
    /// Agents that the master told of; 0 if it did not.
    pub peers: u64,
    /// Peers that cannot be as the master tells of them, as a whole or in part.
    pub peers_left_out: u64,
    /// What happened since the start.
    pub counters: Counters,
}

impl Metrics {
    fn is(&self, status: Condition) -> u64 {
        u64::from(self.status == status)
    }
}

const STATUS: &str = "1 for the state that the agent is in.";
const OVERLAYS: &str = "Overlays that the agent was assigned, by what became of them.";

/// The first part has the names and the meaning of the C++ module.
pub(super) const CATALOGUE: Catalogue<Metrics> = Catalogue {
    mesos_prefix: "overlay/slave/",
    prometheus_prefix: "mesos_overlay_agent",
    metrics: &[
        Metric::gauge(
            "registering",
            "1 while the master has not acknowledged what the agent reported.",
            |metrics| metrics.is(Condition::Registering) | metrics.is(Condition::Detached),
        ),
        Metric::gauge(
            "overlay_config_failed",
            "1 while an overlay has failed and its quick attempts are used up.",
            |metrics| u64::from(metrics.overlays.has_given_up),
        ),
        Metric::gauge("overlays_without_subnets", "Overlays that have no IPv4.", |metrics| {
            metrics.overlays.without_subnet
        }),
        Metric::counter(
            "overlay_config_failures",
            "Attempts at a container network that failed.",
            |metrics| metrics.counters.overlay_config_failures,
        ),
        Metric::counter(
            "docker_cmd_failures",
            "Attempts at a Docker network that failed.",
            |metrics| metrics.counters.docker_cmd_failures,
        ),
        Metric::counter(
            "internal/register_agent_messages_sent",
            "RegisterAgentMessages sent.",
            |metrics| metrics.counters.register_agent_messages_sent,
        ),
        Metric::counter(
            "internal/update_agent_overlays_messages_received",
            "UpdateAgentOverlaysMessages received.",
            |metrics| metrics.counters.update_agent_overlays_messages_received,
        ),
        Metric::counter(
            "internal/update_agent_overlays_messages_dropped",
            "UpdateAgentOverlaysMessages that contradict themselves or are beyond the limits.",
            |metrics| metrics.counters.update_agent_overlays_messages_dropped,
        ),
        Metric::counter(
            "internal/agent_registered_messages_sent",
            "AgentRegisteredMessages sent.",
            |metrics| metrics.counters.agent_registered_messages_sent,
        ),
        Metric::counter(
            "internal/agent_registered_messages_dropped",
            "AgentRegisteredMessages not sent, since the agent had to register first.",
            |metrics| metrics.counters.agent_registered_messages_dropped,
        ),
        Metric::counter(
            "internal/agent_registered_acknowledgements_received",
            "AgentRegisteredAcknowledgements received.",
            |metrics| metrics.counters.agent_registered_acknowledgements_received,
        ),
        Metric::counter(
            "internal/agent_registered_acknowledgements_dropped",
            "AgentRegisteredAcknowledgements that nothing waited for.",
            |metrics| metrics.counters.agent_registered_acknowledgements_dropped,
        ),
        // ---- ours
        Metric::gauge_of("status/ok", "status", STATUS, |metrics| metrics.is(Condition::Ok)),
        Metric::gauge_of("status/degraded", "status", STATUS, |metrics| {
            metrics.is(Condition::Degraded)
        }),
        Metric::gauge_of("status/registering", "status", STATUS, |metrics| {
            metrics.is(Condition::Registering)
        }),
        Metric::gauge_of("status/detached", "status", STATUS, |metrics| {
            metrics.is(Condition::Detached)
        }),
        Metric::gauge_of("overlays/ok", "state", OVERLAYS, |metrics| metrics.overlays.ok),
        Metric::gauge_of("overlays/failed", "state", OVERLAYS, |metrics| metrics.overlays.failed),
        Metric::gauge_of("overlays/configuring", "state", OVERLAYS, |metrics| {
            metrics.overlays.configuring
        }),
        Metric::host_counter(
            "process_restarts",
            "How often the agent was started again because it had stopped by itself.",
            |host| host.process_restarts,
        ),
        Metric::counter(
            "connections_lost",
            "Connections to the master that ended or were refused.",
            |metrics| metrics.counters.connections_lost,
        ),
        Metric::counter(
            "malformed_messages",
            "Messages that could not be understood.",
            |metrics| metrics.counters.malformed_messages,
        ),
        Metric::counter(
            "unexpected_messages",
            "Messages of others than the master, or meant for one.",
            |metrics| metrics.counters.unexpected_messages,
        ),
        Metric::counter("request_peers_messages_sent", "RequestPeersMessages sent.", |metrics| {
            metrics.counters.request_peers_messages_sent
        }),
        Metric::counter(
            "update_peers_messages_received",
            "UpdatePeersMessages received.",
            |metrics| metrics.counters.update_peers_messages_received,
        ),
        Metric::counter(
            "update_peers_messages_dropped",
            "UpdatePeersMessages that were older than what the agent has, or did not fit it.",
            |metrics| metrics.counters.update_peers_messages_dropped,
        ),
        Metric::gauge("peers", "Agents that the master told of, this one among them.", |metrics| {
            metrics.peers
        }),
        Metric::gauge(
            "peers_left_out",
            "Peers that cannot be as the master tells of them, as a whole or in part.",
            |metrics| metrics.peers_left_out,
        ),
        Metric::counter(
            "dataplane_changes",
            "Devices, addresses, neighbours, forwarding entries, routes and sets of rules changed.",
            |metrics| metrics.counters.dataplane_changes,
        ),
        Metric::counter(
            "dataplane_repairs",
            "How often something was repaired that somebody else had changed.",
            |metrics| metrics.counters.dataplane_repairs,
        ),
        Metric::counter(
            "dataplane_failures",
            "How often something could not be programmed as it is wanted.",
            |metrics| metrics.counters.dataplane_failures,
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
