//! The messages between agent and master.

use std::fmt;
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::Duration;

use super::{Assignment, PeersHave, PeersUpdate};
use crate::addr::Mtu;

/// A message between agent and master, in the order in which they are sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Agent to master: give me my share.
    RegisterAgent(AgentOptions),
    /// Master to agent: this is your share.
    UpdateAgentOverlays(Vec<Assignment>),
    /// Agent to master: this is what became of it.
    AgentRegistered(Vec<Assignment>),
    /// Master to agent: noted.
    AgentRegisteredAcknowledgement,
    /// Agent to master: tell me of my peers. Sent when it is registered, again and again so that
    /// the master does not forget it, and at once when an update does not fit.
    RequestPeers(PeersHave),
    /// Master to agent: these are your peers, or what has changed of them. Shared, since thousands
    /// of agents are told the same.
    UpdatePeers(Arc<PeersUpdate>),
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RegisterAgent(_) => f.write_str("RegisterAgentMessage"),
            Self::UpdateAgentOverlays(overlays) => {
                write!(f, "UpdateAgentOverlaysMessage of {} overlays", overlays.len())
            }
            Self::AgentRegistered(overlays) => {
                write!(f, "AgentRegisteredMessage of {} overlays", overlays.len())
            }
            Self::AgentRegisteredAcknowledgement => f.write_str("AgentRegisteredAcknowledgement"),
            Self::RequestPeers(PeersHave { epoch, version, .. }) => {
                write!(f, "RequestPeersMessage with version {epoch}.{version}")
            }
            Self::UpdatePeers(update) => {
                let PeersUpdate { epoch, version, base, changed, removed, .. } = &**update;
                let what = if base.is_some() { "changes" } else { "whole table" };
                let (changed, removed) = (changed.len(), removed.len());
                write!(
                    f,
                    "UpdatePeersMessage of version {epoch}.{version}: {what}, {changed} agents and \
                     {removed} gone"
                )
            }
        }
    }
}

/// What an agent wants of the overlays: `network_config` of the agent's configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AgentOptions {
    /// Whether it gets a subnet of each overlay. Without one it is a mere gateway, as on masters.
    pub allocate_subnet: bool,
    /// Whether its MesosContainerizer gets half of the subnet.
    pub mesos_bridge: bool,
    /// Whether its DockerContainerizer gets half of the subnet.
    pub docker_bridge: bool,
    /// MTU of its containers.
    pub overlay_mtu: Mtu,
    /// Longest time that one external command, such as `docker`, may take.
    pub command_timeout: Duration,
    /// Whether its Docker networks get IPv6.
    pub enable_ipv6: bool,
    /// Where its tunnels run, if over IPv6: peers send there. Otherwise to its own IPv4 address.
    pub underlay: Option<Ipv6Addr>,
}

impl AgentOptions {
    /// Default of `command_timeout`.
    pub const COMMAND_TIMEOUT_DEFAULT: Duration = Duration::from_secs(15);
}

impl Default for AgentOptions {
    fn default() -> Self {
        Self {
            allocate_subnet: true,
            mesos_bridge: true,
            docker_bridge: true,
            overlay_mtu: Mtu::OVERLAY_DEFAULT,
            command_timeout: Self::COMMAND_TIMEOUT_DEFAULT,
            enable_ipv6: true,
            underlay: None,
        }
    }
}
