//! The peers that an agent does not reach, as its probes found.

use std::fmt;
use std::net::Ipv4Addr;

/// Why an agent does not reach a peer, as far as the agent can know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PeerFailureCause {
    /// Nothing comes back from the host of the peer.
    NoAnswer,
    /// The VTEPs reach each other, but the packets of containers do not get through.
    ContainersCutOff,
    /// The VTEP of the peer answers, but not its bridge of an overlay.
    OverlayLost,
    /// IPv4 works, IPv6 does not.
    Ipv6Lost,
    /// Only packets of full size are lost.
    LargeLost,
    /// The host of the agent does not send the packets. Agents do not report this cause, which says
    /// nothing about the peer.
    NotSent,
}

impl PeerFailureCause {
    /// All causes, in the order of their numbers in messages.
    pub const ALL: [Self; 6] = [
        Self::NoAnswer,
        Self::ContainersCutOff,
        Self::OverlayLost,
        Self::Ipv6Lost,
        Self::LargeLost,
        Self::NotSent,
    ];

    /// Returns the name in health and state.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoAnswer => "no answer",
            Self::ContainersCutOff => "containers cut off",
            Self::OverlayLost => "overlay lost",
            Self::Ipv6Lost => "ipv6 lost",
            Self::LargeLost => "large packets lost",
            Self::NotSent => "not sent",
        }
    }

    /// Returns the cause with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|cause| cause.name() == name)
    }
}

impl fmt::Display for PeerFailureCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A peer that an agent does not reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerFailure {
    /// The identity of the peer.
    pub agent: Ipv4Addr,
    /// The likely cause.
    pub cause: PeerFailureCause,
    /// The time of the first failed probe, in seconds since 1970 by the clock of the agent.
    pub since: u64,
    /// Unanswered visits of the last 8, when the agent reported. A visit with any answer counts as
    /// answered.
    pub lost: u32,
    /// The smoothed round-trip time in microseconds, unless the peer has never answered.
    pub round_trip: Option<u64>,
}

/// The peers that an agent does not reach. Each report replaces the former report of the agent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerFailures {
    /// The first peers, by their identity.
    pub peers: Vec<PeerFailure>,
    /// The number of all peers that the agent does not reach.
    pub total: u32,
}

impl PeerFailures {
    /// Maximum number of named peers.
    pub const MAX: usize = 64;
}
