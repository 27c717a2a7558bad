//! The settings of an agent.

use std::time::Duration;

use overlay_config::{AgentConfig, DataplaneKind};
use overlay_types::protocol::{AgentCredential, AgentOptions, AuthenticationMode};
use overlay_types::tunnel::DirectLink;

use super::tunnel::TunnelSettings;

/// The settings of an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The options that the agent registers with.
    pub options: AgentOptions,
    /// Number of quick attempts at a network. Later attempts follow at `verify_interval`.
    pub max_configuration_attempts: u32,
    /// Interval of the verification of a ready network.
    pub verify_interval: Duration,
    /// Whether the agent removes Docker networks that are no longer assigned, if it configures Docker
    /// networks at all. Agents that share a Docker engine must not.
    pub removes_docker_networks: bool,
    /// What the agent does with the network of its host.
    pub tunnel: TunnelSettings,
    /// Number of peers that are probed per second. 0 switches the probes off.
    pub probe_rate: u32,
    /// Whether the agent tests the offloads of its tunnels, and switches broken ones off.
    pub repair_offloads: bool,
    /// Whether packets to peers on the same L2 segment leave without encapsulation.
    pub direct_routing: bool,
    /// The device that the agent announces for direct routing until its dataplane reports one. With
    /// it, a restarted agent does not withdraw its announcement for a moment.
    pub direct_link: Option<DirectLink>,
    /// How the agent authenticates its master. `None` without a credential.
    pub authentication: Option<AuthenticationSettings>,
}

/// How an agent authenticates its master.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthenticationSettings {
    /// The credential.
    pub credential: AgentCredential,
    /// What happens to messages of a master that does not authenticate.
    pub mode: AuthenticationMode,
    /// Whether a master has authenticated before. From then on, an unauthenticated master is not
    /// accepted.
    pub was_authenticated: bool,
}

impl Settings {
    /// Returns whether the Docker networks of the host belong to this agent. An agent without
    /// subnets may share the host with another agent, as on the masters of DC/OS. The Docker
    /// networks belong to the other agent.
    #[must_use]
    pub const fn manages_docker(&self) -> bool {
        self.options.docker_bridge && self.options.allocate_subnet && self.removes_docker_networks
    }
}

impl From<&AgentConfig> for Settings {
    /// Converts the configuration of the only agent on a host.
    fn from(config: &AgentConfig) -> Self {
        Self {
            options: config.registered_options(),
            max_configuration_attempts: config.max_configuration_attempts,
            verify_interval: config.verify_interval,
            removes_docker_networks: true,
            tunnel: TunnelSettings {
                programs: config.dataplane.kind == DataplaneKind::Vxlan,
                refuses_collisions: config.dataplane.refuse_collisions,
            },
            probe_rate: config.dataplane.probe_rate,
            repair_offloads: config.dataplane.repair_offloads,
            // The runtime reads the file of the credential.
            authentication: None,
            direct_routing: config.dataplane.direct_routing
                && config.dataplane.kind == DataplaneKind::Vxlan,
            direct_link: None,
        }
    }
}
