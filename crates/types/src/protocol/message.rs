//! The messages between agent and master.

use std::fmt;
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::Duration;

use super::{
    Assignment, AuthenticateAgent, AuthenticationChallenge, HeldAddresses, PeerFailures,
    PeerTableVersion, PeersRequest, PeersUpdate, RegistrationProblems,
};
use crate::addr::{Mac, Mtu};

/// What a master says of itself in the assignments that it sends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MasterKind {
    /// The master says nothing, as a C++ module. It sends no peers.
    #[default]
    Other,
    /// A module of this project in a Mesos process. It sends the table of peers.
    Module,
    /// A program of its own, which also sends the table of peers. Containers need no connection to
    /// it.
    Program,
}

impl MasterKind {
    /// Returns whether the master sends the table of peers.
    #[must_use]
    pub const fn sends_peers(self) -> bool {
        matches!(self, Self::Module | Self::Program)
    }
}

/// A message between agent and master. The variants are in the order of a registration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Agent to master: requests an assignment.
    RegisterAgent(AgentOptions),
    /// Master to agent: carries the assignments.
    UpdateAgentOverlays {
        /// The assignments of the agent.
        overlays: Vec<Assignment>,
        /// What the master says of itself.
        master: MasterKind,
    },
    /// Agent to master: reports the status of the assignments.
    AgentRegistered(Vec<Assignment>),
    /// Master to agent: acknowledges the report.
    AgentRegisteredAcknowledgement,
    /// Agent to master: subscribes to peer updates. The agent sends the request after its
    /// registration, renews it at an interval, and repeats it when an update does not apply.
    RequestPeers(PeersRequest),
    /// Master to agent: a snapshot of the peer table, or a delta. Thousands of agents get the same
    /// update, so the content is shared.
    UpdatePeers(Arc<PeersUpdate>),
    /// Agent to master: the addresses that the host of the agent uses. Follows each registration,
    /// and requests the problems of the registration.
    HeldAddresses(HeldAddresses),
    /// Master to agent: why the agent is not served, or not as a whole. Sent only to agents that
    /// sent their held addresses.
    RegistrationProblems(RegistrationProblems),
    /// Agent to master: the peers that the agent does not reach. Sent after a change, and again to
    /// a new master.
    PeerFailures(PeerFailures),
    /// Agent to master: requests a session. Precedes the registration of an agent with a credential.
    AuthenticateAgent(AuthenticateAgent),
    /// Master to agent: begins a session, or refuses it.
    AuthenticationChallenge(AuthenticationChallenge),
}

/// The kind of a message, known before the content is decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the variants are documented at `Message`")]
pub enum MessageKind {
    RegisterAgent,
    UpdateAgentOverlays,
    AgentRegistered,
    AgentRegisteredAcknowledgement,
    RequestPeers,
    UpdatePeers,
    HeldAddresses,
    RegistrationProblems,
    PeerFailures,
    AuthenticateAgent,
    AuthenticationChallenge,
}

impl MessageKind {
    /// All kinds, in the order of [`Message`].
    pub const ALL: [Self; 11] = [
        Self::RegisterAgent,
        Self::UpdateAgentOverlays,
        Self::AgentRegistered,
        Self::AgentRegisteredAcknowledgement,
        Self::RequestPeers,
        Self::UpdatePeers,
        Self::HeldAddresses,
        Self::RegistrationProblems,
        Self::PeerFailures,
        Self::AuthenticateAgent,
        Self::AuthenticationChallenge,
    ];

    /// Returns the full name of the protobuf message, which is the message name in libprocess.
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
            Self::HeldAddresses => "mesos.modules.overlay.internal.HeldAddressesMessage",
            Self::RegistrationProblems => {
                "mesos.modules.overlay.internal.RegistrationProblemsMessage"
            }
            Self::PeerFailures => "mesos.modules.overlay.internal.PeerFailuresMessage",
            Self::AuthenticateAgent => "mesos.modules.overlay.internal.AuthenticateAgentMessage",
            Self::AuthenticationChallenge => {
                "mesos.modules.overlay.internal.AuthenticationChallengeMessage"
            }
        }
    }

    /// Returns the maximum length of the body without its seal in bytes. It includes space for fields
    /// of later versions. An assignment of one overlay has about 500 bytes. A report also contains failure
    /// reasons.
    #[must_use]
    pub const fn body_max(self) -> usize {
        match self {
            Self::RegisterAgent | Self::AgentRegisteredAcknowledgement | Self::RequestPeers => {
                4 * 1024
            }
            Self::UpdateAgentOverlays => 256 * 1024,
            Self::AgentRegistered => 512 * 1024,
            Self::UpdatePeers => PeersUpdate::BYTES_MAX,
            // At most 24 bytes for each subnet.
            Self::HeldAddresses => 16 * 1024,
            Self::RegistrationProblems => 256 * 1024,
            // At most 48 bytes for each peer.
            Self::PeerFailures => 4 * 1024,
            Self::AuthenticateAgent | Self::AuthenticationChallenge => 1024,
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
    /// Returns the kind of the message.
    #[must_use]
    pub const fn kind(&self) -> MessageKind {
        match self {
            Self::RegisterAgent(_) => MessageKind::RegisterAgent,
            Self::UpdateAgentOverlays { .. } => MessageKind::UpdateAgentOverlays,
            Self::AgentRegistered(_) => MessageKind::AgentRegistered,
            Self::AgentRegisteredAcknowledgement => MessageKind::AgentRegisteredAcknowledgement,
            Self::RequestPeers(_) => MessageKind::RequestPeers,
            Self::UpdatePeers(_) => MessageKind::UpdatePeers,
            Self::HeldAddresses(_) => MessageKind::HeldAddresses,
            Self::RegistrationProblems(_) => MessageKind::RegistrationProblems,
            Self::PeerFailures(_) => MessageKind::PeerFailures,
            Self::AuthenticateAgent(_) => MessageKind::AuthenticateAgent,
            Self::AuthenticationChallenge(_) => MessageKind::AuthenticationChallenge,
        }
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RegisterAgent(_) => f.write_str("RegisterAgentMessage"),
            Self::UpdateAgentOverlays { overlays, .. } => {
                write!(f, "UpdateAgentOverlaysMessage of {} overlays", overlays.len())
            }
            Self::AgentRegistered(overlays) => {
                write!(f, "AgentRegisteredMessage of {} overlays", overlays.len())
            }
            Self::AgentRegisteredAcknowledgement => f.write_str("AgentRegisteredAcknowledgement"),
            Self::RequestPeers(PeersRequest { have, .. }) => {
                let PeerTableVersion { epoch, version, .. } = have;
                write!(f, "RequestPeersMessage with version {epoch}.{version}")
            }
            Self::UpdatePeers(update) => {
                let PeersUpdate { epoch, version, base, changed, removed, .. } = &**update;
                let form = if base.is_some() { "delta" } else { "snapshot" };
                let (changed, removed) = (changed.len(), removed.len());
                write!(
                    f,
                    "UpdatePeersMessage of version {epoch}.{version}: {form}, {changed} changed \
                     and {removed} removed agents"
                )
            }
            Self::HeldAddresses(held) => {
                write!(f, "HeldAddressesMessage with {} subnets", held.subnets().len())
            }
            Self::PeerFailures(failures) => {
                write!(f, "PeerFailuresMessage of {} peers", failures.total)
            }
            Self::AuthenticateAgent(request) => {
                write!(f, "AuthenticateAgentMessage of principal '{}'", request.principal)
            }
            Self::AuthenticationChallenge(challenge) => match challenge.answer {
                Ok(nonce) => {
                    write!(f, "AuthenticationChallengeMessage for session {}", nonce.session)
                }
                Err(reason) => write!(f, "AuthenticationChallengeMessage: refused: {reason:?}"),
            },
            Self::RegistrationProblems(problems) => {
                let RegistrationProblems { is_refused, reasons, reassigned, .. } = problems;
                let result = if *is_refused { "refused" } else { "accepted" };
                let (reasons, reassigned) = (reasons.len(), reassigned.len());
                write!(
                    f,
                    "RegistrationProblemsMessage: {result}, {reasons} reasons, {reassigned} \
                     reassigned subnets"
                )
            }
        }
    }
}

/// Options of an agent: `network_config` of the agent's configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AgentOptions {
    /// Whether the agent gets a subnet of each overlay. Without subnets the host only routes.
    pub allocate_subnet: bool,
    /// Whether the MesosContainerizer gets one half of each subnet.
    pub mesos_bridge: bool,
    /// Whether the DockerContainerizer gets one half of each subnet.
    pub docker_bridge: bool,
    /// MTU of the containers. Without a value it follows from the MTU of the underlay.
    pub overlay_mtu: Option<Mtu>,
    /// Timeout of an external command such as `docker`.
    pub command_timeout: Duration,
    /// Whether Docker networks get IPv6.
    pub enable_ipv6: bool,
    /// IPv6 underlay address. Without one, peers send tunnel packets to the agent's IPv4 address.
    pub underlay: Option<Ipv6Addr>,
    /// MAC address of the device that has the underlay address, if the agent accepts packets of
    /// containers without encapsulation there.
    pub direct_mac: Option<Mac>,
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
            overlay_mtu: None,
            command_timeout: Self::COMMAND_TIMEOUT_DEFAULT,
            enable_ipv6: true,
            underlay: None,
            direct_mac: None,
        }
    }
}
