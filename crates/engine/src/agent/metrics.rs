//! The metrics of an agent.

use libprocess::limits::Limit;
use overlay_types::addr::OverlayName;
use overlay_types::address_usage::{AddressCount, OverlayCounts};
use overlay_types::container_network::NetworkKind;

use super::view::{Condition, Counters, OverlayTally, ProbeTally};
use crate::metrics::{Catalogue, Family, Kind, Metric, Series, network_label, with_host_counters};

/// The values that the metrics of an agent are read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metrics {
    /// The condition of the agent.
    pub status: Condition,
    /// The overlays, counted by status.
    pub overlays: OverlayTally,
    /// Agents in the table of peers; 0 without a table.
    pub peers: u64,
    /// Peers that the agent left out, as a whole or in part, because of a fault.
    pub peers_left_out: u64,
    /// Peers that get packets without encapsulation.
    pub peers_direct: u64,
    /// Peers that get packets through the tunnel.
    pub peers_vxlan: u64,
    /// The peers by the outcomes of their probes.
    pub probes: ProbeTally,
    /// Halves of subnets without a free address for a container.
    pub full_halves: u64,
    /// Further halves of which at most a tenth of the addresses is free.
    pub nearly_full_halves: u64,
    /// Whether the current master has authenticated.
    pub is_master_authenticated: bool,
    /// Events since the start.
    pub counters: Counters,
}

impl Metrics {
    fn is_in(&self, status: Condition) -> u64 {
        u64::from(self.status == status)
    }
}

const STATUS: &str = "1 for the state that the agent is in.";
const LOSS: &str = "Peers by the number of their last 8 probes that were not answered.";
const OVERLAYS: &str = "Assigned overlays, by their status.";

/// The metrics up to the comment have the names and the meaning of the C++ module.
pub(super) const CATALOGUE: Catalogue<Metrics> = Catalogue {
    mesos_prefix: "overlay/slave/",
    prometheus_prefix: "mesos_overlay_agent",
    metrics: with_host_counters!(
        [
            Metric::gauge(
                "registering",
                "1 while the master has not acknowledged what the agent reported.",
                |metrics| {
                    metrics.is_in(Condition::Registering)
                        | metrics.is_in(Condition::Detached)
                        | metrics.is_in(Condition::Failed)
                },
            ),
            Metric::gauge(
                "overlay_config_failed",
                "1 while an overlay has failed and its quick attempts are used up.",
                |metrics| u64::from(metrics.overlays.has_given_up),
            ),
            Metric::gauge("overlays_without_subnets", "Overlays without IPv4.", |metrics| {
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
                "UpdateAgentOverlaysMessages that contradict themselves or exceed the limits.",
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
                "AgentRegisteredAcknowledgements that the agent did not expect.",
                |metrics| metrics.counters.agent_registered_acknowledgements_dropped,
            ),
            // The C++ module does not have the following metrics.
            Metric::gauge_of("status/ok", "status", STATUS, |metrics| metrics.is_in(Condition::Ok)),
            Metric::gauge_of("status/degraded", "status", STATUS, |metrics| {
                metrics.is_in(Condition::Degraded)
            }),
            Metric::gauge_of("status/registering", "status", STATUS, |metrics| {
                metrics.is_in(Condition::Registering)
            }),
            Metric::gauge_of("status/detached", "status", STATUS, |metrics| {
                metrics.is_in(Condition::Detached)
            }),
            Metric::gauge_of("status/failed", "status", STATUS, |metrics| {
                metrics.is_in(Condition::Failed)
            }),
            Metric::gauge_of("overlays/ok", "state", OVERLAYS, |metrics| metrics.overlays.ok),
            Metric::gauge_of("overlays/failed", "state", OVERLAYS, |metrics| metrics
                .overlays
                .failed),
            Metric::gauge_of("overlays/configuring", "state", OVERLAYS, |metrics| {
                metrics.overlays.configuring
            }),
            Metric::process_restarts("Restarts of the agent after it stopped by itself.",),
            Metric::counter(
                "connections_lost",
                "Connections to the master that ended or were refused.",
                |metrics| metrics.counters.connections_lost,
            ),
            Metric::gauge(
                "master_authenticated",
                "1 while the master is authenticated; 0 without a credential.",
                |metrics| u64::from(metrics.is_master_authenticated),
            ),
            Metric::counter(
                "unauthentic_messages_refused",
                "Messages refused: not authenticated, forged, changed, repeated or too late.",
                |metrics| metrics.counters.unauthentic_messages_refused,
            ),
            Metric::counter(
                "malformed_messages",
                "Messages that could not be decoded.",
                |metrics| metrics.counters.malformed_messages,
            ),
            Metric::counter(
                "unexpected_messages",
                "Messages that are for a master, or from a process other than the master.",
                |metrics| metrics.counters.unexpected_messages,
            ),
            Metric::counter(
                "request_peers_messages_sent",
                "RequestPeersMessages sent.",
                |metrics| { metrics.counters.request_peers_messages_sent }
            ),
            Metric::counter(
                "update_peers_messages_received",
                "UpdatePeersMessages received.",
                |metrics| metrics.counters.update_peers_messages_received,
            ),
            Metric::counter(
                "update_peers_messages_dropped",
                "UpdatePeersMessages that were older than the table of peers, or did not match it.",
                |metrics| metrics.counters.update_peers_messages_dropped,
            ),
            Metric::counter(
                "registration_problems_messages_received",
                "RegistrationProblemsMessages received.",
                |metrics| metrics.counters.registration_problems_messages_received,
            ),
            Metric::gauge(
                "peers",
                "Agents in the table of peers, including this agent.",
                |metrics| { metrics.peers }
            ),
            Metric::gauge(
                "peers_left_out",
                "Peers left out because of a fault, as a whole or in part.",
                |metrics| metrics.peers_left_out,
            ),
            Metric::gauge(
                "peers_direct",
                "Peers that get packets without encapsulation.",
                |metrics| metrics.peers_direct,
            ),
            Metric::gauge("peers_vxlan", "Peers that get packets through the tunnel.", |metrics| {
                metrics.peers_vxlan
            },),
            Metric::counter(
                "dataplane_changes",
                "Devices, addresses, neighbors, FDB entries, routes and rule sets changed.",
                |metrics| metrics.counters.dataplane_changes,
            ),
            Metric::counter(
                "dataplane_repairs",
                "Repairs of objects that another process changed.",
                |metrics| metrics.counters.dataplane_repairs,
            ),
            Metric::counter(
                "dataplane_failures",
                "Attempts to program the dataplane that failed, as a whole or in part.",
                |metrics| metrics.counters.dataplane_failures,
            ),
            Metric::counter(
                "container_network_repairs",
                "CNI configurations and Docker networks that another process removed or changed.",
                |metrics| metrics.counters.container_network_repairs,
            ),
            Metric::gauge(
                "container_halves_full",
                "Halves of subnets without a free address for a container.",
                |metrics| metrics.full_halves,
            ),
            Metric::gauge(
                "container_halves_nearly_full",
                "Halves of subnets of which at most a tenth of the addresses is free.",
                |metrics| metrics.nearly_full_halves,
            ),
            Metric::counter(
                "leases_released",
                "Leases of host-local whose containers are gone, which the agent released.",
                |metrics| metrics.counters.leases_released,
            ),
            Metric::host_counter(
                "dataplane_restarts",
                "Restarts of the thread that programs the network of the host, after a panic.",
                |host| host.dataplane_restarts,
            ),
            Metric::counter(
                "probe_packets_sent",
                "Echo requests sent to peers through the tunnel.",
                |metrics| metrics.counters.probe_packets_sent,
            ),
            Metric::counter(
                "probe_packets_lost",
                "Echo requests to peers that were not answered.",
                |metrics| metrics.counters.probe_packets_lost,
            ),
            Metric::counter(
                "probe_path_packets_sent",
                "Echo requests to addresses of peers that have answered before.",
                |metrics| metrics.counters.probe_path_packets_sent,
            ),
            Metric::counter(
                "probe_path_packets_lost",
                "Echo requests to addresses of peers that have answered before, and did not now.",
                |metrics| metrics.counters.probe_path_packets_lost,
            ),
            Metric::counter(
                "peer_failures_messages_sent",
                "PeerFailuresMessages sent, after the peers that do not answer changed.",
                |metrics| metrics.counters.peer_failures_messages_sent,
            ),
            Metric::gauge(
                "probe_peers_reached",
                "Peers that answer echo requests through the tunnel.",
                |metrics| metrics.probes.reached,
            ),
            Metric::gauge(
                "probe_peers_unreachable",
                "Peers that do not answer echo requests, as a whole or in part.",
                |metrics| metrics.probes.unreachable,
            ),
            Metric::gauge(
                "probe_peers_large_lost",
                "Peers that answer small echo requests only, because of an MTU.",
                |metrics| metrics.probes.large_lost,
            ),
            Metric::gauge_of("probe_peers_by_loss/0", "lost_of_8", LOSS, |metrics| {
                metrics.probes.by_loss[0]
            }),
            Metric::gauge_of("probe_peers_by_loss/1", "lost_of_8", LOSS, |metrics| {
                metrics.probes.by_loss[1]
            }),
            Metric::gauge_of("probe_peers_by_loss/2", "lost_of_8", LOSS, |metrics| {
                metrics.probes.by_loss[2]
            }),
            Metric::gauge_of("probe_peers_by_loss/3", "lost_of_8", LOSS, |metrics| {
                metrics.probes.by_loss[3]
            }),
            Metric::gauge_of("probe_peers_by_loss/4", "lost_of_8", LOSS, |metrics| {
                metrics.probes.by_loss[4]
            }),
            Metric::gauge_of("probe_peers_by_loss/5", "lost_of_8", LOSS, |metrics| {
                metrics.probes.by_loss[5]
            }),
            Metric::gauge_of("probe_peers_by_loss/6", "lost_of_8", LOSS, |metrics| {
                metrics.probes.by_loss[6]
            }),
            Metric::gauge_of("probe_peers_by_loss/7", "lost_of_8", LOSS, |metrics| {
                metrics.probes.by_loss[7]
            }),
            Metric::gauge_of("probe_peers_by_loss/8", "lost_of_8", LOSS, |metrics| {
                metrics.probes.by_loss[8]
            }),
            Metric::seconds(
                "probe_round_trip_seconds",
                "Mean round-trip time to the peers through the tunnel.",
                |metrics| metrics.probes.round_trip_microseconds,
            ),
        ],
        []
    ),
};

/// Returns the usage of the addresses of containers.
pub(super) fn addresses(counts: &OverlayCounts) -> Vec<Family> {
    let halves =
        || counts.iter().flat_map(|(name, counts)| counts.known().map(move |it| (name, it)));
    let family = |name, help, value: fn(AddressCount) -> u32| {
        let series = |(overlay, (kind, count)): (&OverlayName, (NetworkKind, AddressCount))| {
            let labels = vec![("overlay", overlay.to_string()), ("network", network_label(kind))];
            Series { labels, value: value(count).into() }
        };
        Family { name, kind: Kind::Gauge, help, series: halves().map(series).collect() }
    };
    if halves().next().is_none() {
        return Vec::new();
    }
    vec![
        family(
            "container_addresses_used",
            "IPv4 addresses of containers: leases of host-local, or containers at Docker's bridge.",
            |count| count.used,
        ),
        family(
            "container_addresses_free",
            "IPv4 addresses that this host has left for containers.",
            |count| count.free,
        ),
    ]
}
