//! What the agent wants done.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use super::{ContainerNetwork, Health, Metrics};
use crate::addr::{OverlayName, Upid};
use crate::metrics::Snapshot;
use crate::protocol::{AgentInfo, Message, RequestId};
use crate::tunnel::Desired;

/// How far to look at what there is before it is changed. What is wanted is brought about in any
/// case, where nobody looks on the word of the last look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Not at all: only what is wanted has changed.
    Change,
    /// At the kernel's devices, routes and what belongs to them.
    Kernel,
    /// At the rules of the firewall.
    Firewall,
    /// At everything.
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

    /// Whether the kernel is looked at.
    #[must_use]
    pub const fn has_kernel(self) -> bool {
        matches!(self, Self::Kernel | Self::Everything)
    }

    /// Whether the rules of the firewall are looked at.
    #[must_use]
    pub const fn has_firewall(self) -> bool {
        matches!(self, Self::Firewall | Self::Everything)
    }

    /// Both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Change, scope) | (scope, Self::Change) => scope,
            (Self::Kernel, Self::Kernel) => Self::Kernel,
            (Self::Firewall, Self::Firewall) => Self::Firewall,
            _ => Self::Everything,
        }
    }
}

/// Something to do. The runtime does it with its adapters and takes no decision of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Look again who leads: the master that we knew does not answer.
    Detect,
    /// Keep a connection to this process and tell when it ends.
    Link(Upid),
    /// Send a message.
    Send {
        /// To whom.
        to: Upid,
        /// What.
        message: Message,
    },
    /// Make this container network as it is described; nothing is to be done if it is.
    Apply {
        /// Number of the attempt, to be named in the answer.
        attempt: u64,
        /// What to make.
        network: ContainerNetwork,
    },
    /// Find out which of these claims collide with what the host has already.
    Inspect {
        /// Number of the attempt, to be named in the answer.
        attempt: u64,
        /// What the assignments ask for.
        claims: Arc<Desired>,
    },
    /// Bring the host's network to this state.
    Program {
        /// Number of the attempt, to be named in the answer.
        attempt: u64,
        /// What is wanted.
        desired: Arc<Desired>,
        /// How far to look.
        scope: Scope,
    },
    /// Remove the CNI configurations that are ours and not of these overlays.
    RetainCni(BTreeSet<OverlayName>),
    /// Remove the Docker networks that are ours, not of these overlays, and of no container: for
    /// [`super::Event::Removed`].
    RetainDocker(BTreeSet<OverlayName>),
    /// Answer a request.
    Reply {
        /// Which request.
        id: RequestId,
        /// The answer.
        reply: Reply,
    },
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Detect => f.write_str("detect the master"),
            Self::Link(to) => write!(f, "link {to}"),
            Self::Send { to, message } => write!(f, "send {message} to {to}"),
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
            Self::RetainCni(names) => write!(f, "retain {} cni configurations", names.len()),
            Self::RetainDocker(names) => write!(f, "retain {} docker networks", names.len()),
            Self::Reply { id, .. } => write!(f, "reply to request {}", id.0),
        }
    }
}

/// The answer to a [`super::Request`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// To [`super::Request::Overlay`].
    Overlay(AgentInfo),
    /// To [`super::Request::Health`].
    Health(Box<Health>),
    /// To [`super::Request::Metrics`].
    Metrics(Box<Snapshot<Metrics>>),
}
