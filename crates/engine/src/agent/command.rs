//! The commands of the agent.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use overlay_types::addr::{OverlayName, Upid};
use overlay_types::address_usage::OverlayCounts;
use overlay_types::container_network::ContainerNetwork;
use overlay_types::protocol::{AgentInfo, AuthenticationChallenge, Message, RequestId};
use overlay_types::tunnel::{Desired, ProbePacket};

use super::{AddressDetails, FoundNetworks, Health, Metrics, ProbeDetails};
use crate::metrics::Snapshot;

/// The part of the observed state to read before the desired state is applied.
///
/// The desired state is always applied as a whole. Parts outside the scope are assumed to match the
/// last observation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Nothing: only the desired state has changed.
    Change,
    /// The devices, addresses, routes, neighbors and FDB entries of the kernel.
    Kernel,
    /// The rules of the firewall.
    Firewall,
    /// Kernel and firewall.
    Everything,
}

impl Scope {
    const fn name(self) -> &'static str {
        match self {
            Self::Change => "the change",
            Self::Kernel => "the kernel",
            Self::Firewall => "the firewall",
            Self::Everything => "everything",
        }
    }

    /// Returns whether the scope includes the kernel.
    #[must_use]
    pub const fn has_kernel(self) -> bool {
        matches!(self, Self::Kernel | Self::Everything)
    }

    /// Returns whether the scope includes the firewall.
    #[must_use]
    pub const fn has_firewall(self) -> bool {
        matches!(self, Self::Firewall | Self::Everything)
    }

    /// Returns the smallest scope that includes both.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        match (self, other) {
            (Self::Change, scope) | (scope, Self::Change) => scope,
            (Self::Kernel, Self::Kernel) => Self::Kernel,
            (Self::Firewall, Self::Firewall) => Self::Firewall,
            _ => Self::Everything,
        }
    }
}

/// A command to the runtime, which runs it with its adapters and makes no decision of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Detect the leading master again: the current master does not answer.
    Detect,
    /// Keep a connection to this process, and report its end.
    Link(Upid),
    /// Send a message.
    Send {
        /// The receiver.
        to: Upid,
        /// The message.
        message: Message,
    },
    /// Handle the answer of the master to a request for a session, and send what it allows.
    ReceiveChallenge {
        /// The master.
        from: Upid,
        /// The answer.
        challenge: AuthenticationChallenge,
    },
    /// Store that a master has authenticated: this agent accepts only such masters from now on.
    RememberAuthentication,
    /// Configure this container network. Changes nothing if the network is as described.
    Apply {
        /// Number of the attempt, for the result.
        attempt: u64,
        /// The desired network.
        network: ContainerNetwork,
    },
    /// Find collisions between these claims and the addresses and routes of the host.
    Inspect {
        /// Number of the attempt, for the result.
        attempt: u64,
        /// The desired state of all valid assignments.
        claims: Arc<Desired>,
    },
    /// Apply the desired state to the host's network.
    Program {
        /// Number of the attempt, for the result.
        attempt: u64,
        /// The desired state.
        desired: Arc<Desired>,
        /// The state to observe first.
        scope: Scope,
    },
    /// Send echo requests to peers. The result is [`super::Event::Probed`].
    Probe {
        /// Number of the attempt, for the result.
        attempt: u64,
        /// The programmed state, with the bridges and the VTEPs of this host.
        desired: Arc<Desired>,
        /// The echo requests.
        packets: Vec<ProbePacket>,
    },
    /// Send packets to a peer with and without work for the hardware. The result is
    /// [`super::Event::OffloadsTested`].
    TestOffloads {
        /// Number of the attempt, for the result.
        attempt: u64,
        /// The programmed state, with the VTEPs of this host and of the peer.
        desired: Arc<Desired>,
        /// The underlay address of the peer.
        peer: IpAddr,
    },
    /// Count the addresses that containers use. The result is [`super::Event::AddressesCounted`].
    CountAddresses {
        /// Number of the attempt, for the result.
        attempt: u64,
        /// The programmed state, with the bridges of this host.
        desired: Arc<Desired>,
        /// Whether to ask Docker for the names of its containers, which the counts do not need.
        with_names: bool,
    },
    /// Remove managed CNI configurations, except those of these overlays. The result is
    /// [`super::Event::CniRemoved`].
    RetainCni(BTreeSet<OverlayName>),
    /// Remove managed Docker networks without containers, except those of these overlays. The
    /// result is [`super::Event::Removed`].
    RetainDocker(BTreeSet<OverlayName>),
    /// Remove the managed CNI configurations of these overlays, if they still have these subnets:
    /// see [`super::has_named_subnet`]. The results are [`super::Event::CniRemoved`], and
    /// [`super::Event::FoundNetworks`] with those that remain.
    RemoveCni(FoundNetworks),
    /// Remove the managed Docker networks of these overlays, if they still have these subnets and
    /// have no containers. The results are [`super::Event::Removed`], and
    /// [`super::Event::FoundNetworks`] with those that remain.
    RemoveDocker(FoundNetworks),
    /// List the managed container networks again. The results are
    /// [`super::Event::FoundNetworks`].
    FindNetworks,
    /// Answer a request.
    Reply {
        /// The request.
        id: RequestId,
        /// The reply.
        reply: Reply,
    },
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Detect => f.write_str("detect the master"),
            Self::Link(to) => write!(f, "link {to}"),
            Self::Send { to, message } => write!(f, "send {message} to {to}"),
            Self::ReceiveChallenge { from, .. } => write!(f, "handle the challenge of {from}"),
            Self::RememberAuthentication => f.write_str("store that a master has authenticated"),
            Self::Apply { attempt, network } => {
                write!(f, "attempt {attempt}: {} of {}", network.kind(), network.name())
            }
            Self::Inspect { attempt, claims } => {
                write!(f, "attempt {attempt}: inspect for {} overlays", claims.spaces.len())
            }
            Self::Program { attempt, desired, scope } => {
                let (spaces, scope) = (desired.spaces.len(), scope.name());
                match &desired.peers {
                    Some(peers) => write!(
                        f,
                        "attempt {attempt}: program {scope} for {spaces} overlays, {} peers",
                        peers.len()
                    ),
                    None => write!(f, "attempt {attempt}: program {scope} for {spaces} overlays"),
                }
            }
            Self::TestOffloads { attempt, peer, .. } => {
                write!(f, "test {attempt}: offloads to {peer}")
            }
            Self::Probe { attempt, packets, .. } => {
                write!(f, "probe {attempt}: send {} echo requests", packets.len())
            }
            Self::CountAddresses { attempt, desired, .. } => {
                write!(f, "count {attempt}: addresses of {} overlays", desired.spaces.len())
            }
            Self::RetainCni(names) => write!(f, "retain {} cni configurations", names.len()),
            Self::RetainDocker(names) => write!(f, "retain {} docker networks", names.len()),
            Self::RemoveCni(names) => write!(f, "remove {} cni configurations", names.len()),
            Self::RemoveDocker(names) => write!(f, "remove {} docker networks", names.len()),
            Self::FindNetworks => f.write_str("find the container networks"),
            Self::Reply { id, .. } => write!(f, "reply to request {}", id.0),
        }
    }
}

/// The reply to a [`super::Request`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// To [`super::Request::Overlay`], with the numbers of addresses of the halves.
    Overlay(AgentInfo, OverlayCounts),
    /// To [`super::Request::Health`].
    Health(Box<Health>),
    /// To [`super::Request::Probes`].
    Probes(Box<ProbeDetails>),
    /// To [`super::Request::Addresses`].
    Addresses(Box<AddressDetails>),
    /// To [`super::Request::Metrics`].
    Metrics(Box<Snapshot<Metrics>>),
}
