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

/// Which message, before its content is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are those of `Message`")]
pub enum MessageKind {
    RegisterAgent,
    UpdateAgentOverlays,
    AgentRegistered,
    AgentRegisteredAcknowledgement,
    RequestPeers,
    UpdatePeers,
}

impl MessageKind {
    /// Every kind, in the order in which they are sent.
    pub const ALL: [Self; 6] = [
        Self::RegisterAgent,
        Self::UpdateAgentOverlays,
        Self::AgentRegistered,
        Self::AgentRegisteredAcknowledgement,
        Self::RequestPeers,
        Self::UpdatePeers,
    ];

    /// Full name of its protobuf message, under which libprocess sends it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::RegisterAgent => "mesos.modules.overlay.internal.RegisterAgentMessage",
            Self::UpdateAgentOverlays => {
                "mesos.modules.overlay.internal.UpdateAgentOverlaysMessage"
            }
            Self::AgentRegistered => "mesos.modules.overlay.internal.AgentRegisteredMessage",
            Self::AgentRegisteredAcknowledgement => {
                "mesos.modules.overlay.internal.AgentRegisteredAcknowledgement"
            }
            Self::RequestPeers => "mesos.modules.overlay.internal.RequestPeersMessage",
            Self::UpdatePeers => "mesos.modules.overlay.internal.UpdatePeersMessage",
        }
    }

    /// Longest body that a message of this kind can need, in bytes, with room for the fields of
    /// later versions. An overlay of an assignment has about 500 bytes, and in a report the reason
    /// of a failure besides.
    #[must_use]
    pub const fn body_max(self) -> usize {
        match self {
            Self::RegisterAgent | Self::AgentRegisteredAcknowledgement | Self::RequestPeers => {
                4 * 1024
            }
            Self::UpdateAgentOverlays => 256 * 1024,
            Self::AgentRegistered => 512 * 1024,
            Self::UpdatePeers => PeersUpdate::BYTES_MAX,
        }
    }
}

impl fmt::Display for MessageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name();
        f.write_str(name.rsplit_once('.').map_or(name, |(_, short)| short))
    }
}

impl Message {
    /// Which message it is.
    #[must_use]
    pub const fn kind(&self) -> MessageKind {
        match self {
            Self::RegisterAgent(_) => MessageKind::RegisterAgent,
            Self::UpdateAgentOverlays(_) => MessageKind::UpdateAgentOverlays,
            Self::AgentRegistered(_) => MessageKind::AgentRegistered,
            Self::AgentRegisteredAcknowledgement => MessageKind::AgentRegisteredAcknowledgement,
            Self::RequestPeers(_) => MessageKind::RequestPeers,
            Self::UpdatePeers(_) => MessageKind::UpdatePeers,
        }
    }
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
