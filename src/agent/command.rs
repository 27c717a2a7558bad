//! What the agent wants done.

use std::collections::BTreeSet;
use std::fmt;

use super::{ContainerNetwork, Health, Metrics};
use crate::addr::{OverlayName, Upid};
use crate::metrics::Snapshot;
use crate::protocol::{AgentInfo, Message, RequestId};

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
