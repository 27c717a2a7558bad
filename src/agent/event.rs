//! What happens to the agent.

use std::fmt;
use std::net::SocketAddrV4;

use super::NetworkKind;
use super::command::Scope;
use crate::addr::{OverlayName, Upid};
use crate::protocol::{Message, MessageKind, RequestId};
use crate::tunnel::{Collision, Fault};

/// Something that happened. The runtime makes them out of what its adapters report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The moment of [`next_timeout`](crate::machine::Machine::next_timeout) has come.
    Timeout,
    /// The detector found the leading master, or that there is none.
    Detected(Option<SocketAddrV4>),
    /// The linked connection to this address has ended or could not be made.
    Exited(SocketAddrV4),
    /// A message that is well-formed; nothing else is known about it.
    Message {
        /// Who says to have sent it.
        from: Upid,
        /// What it says.
        message: Message,
    },
    /// A message that could not be understood.
    Malformed {
        /// Who says to have sent it.
        from: Upid,
        /// Its name, as it came.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A message that is not for an agent, or not from its master. It was not decoded.
    Ignored {
        /// Who says to have sent it.
        from: Upid,
        /// Which message.
        kind: MessageKind,
    },
    /// The answer to [`super::Command::Apply`].
    Applied {
        /// The number of the attempt, from the command.
        attempt: u64,
        /// The overlay, from the command.
        overlay: OverlayName,
        /// Which of its networks.
        kind: NetworkKind,
        /// Nothing if the network is now as wanted, or why it is not.
        result: Result<(), String>,
    },
    /// The answer to [`super::Command::Inspect`].
    Inspected {
        /// The number of the attempt, from the command.
        attempt: u64,
        /// What collides, or why that could not be found out.
        result: Result<Vec<Collision>, String>,
    },
    /// The answer to [`super::Command::Program`].
    Programmed {
        /// The number of the attempt, from the command.
        attempt: u64,
        /// What was done, and what could not be.
        result: Programmed,
    },
    /// Somebody changed something in the host's network that may be ours.
    Drifted(Scope),
    /// The answer to [`super::Command::RetainDocker`]: what is still there, a sentence each; or why
    /// it could not be found out.
    Removed(Result<Vec<String>, String>),
    /// Somebody asks over HTTP and waits for the [`super::Command::Reply`] of the same id.
    Request(RequestId, Request),
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout => f.write_str("timeout"),
            Self::Detected(Some(address)) => write!(f, "detected master {address}"),
            Self::Detected(None) => f.write_str("detected no master"),
            Self::Exited(address) => write!(f, "connection to {address} ended"),
            Self::Message { from, message } => write!(f, "{message} from {from}"),
            Self::Ignored { from, kind } => write!(f, "ignored {kind} from {from}"),
            Self::Malformed { from, name, reason } => {
                write!(f, "malformed {} from {from}: {reason}", name.escape_debug())
            }
            Self::Applied { attempt, overlay, kind, result } => {
                let result = result.as_ref().map_or_else(String::as_str, |()| "done");
                write!(f, "attempt {attempt}, {kind} of {overlay}: {result}")
            }
            Self::Inspected { attempt, result: Ok(collisions) } => {
                write!(f, "attempt {attempt}, inspected: {} collisions", collisions.len())
            }
            Self::Inspected { attempt, result: Err(reason) } => {
                write!(f, "attempt {attempt}, not inspected: {reason}")
            }
            Self::Programmed { attempt, result: Programmed { changes, faults, .. } } => {
                let faults = faults.len();
                write!(f, "attempt {attempt}, programmed: {changes} changes, {faults} faults")
            }
            Self::Drifted(scope) => write!(f, "drifted: {scope:?}"),
            Self::Removed(Ok(kept)) => write!(f, "removed but for {} docker networks", kept.len()),
            Self::Removed(Err(reason)) => write!(f, "no docker networks removed: {reason}"),
            Self::Request(id, request) => write!(f, "request {}: {request:?}", id.0),
        }
    }
}

/// What came of programming the host's network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Programmed {
    /// How many things were changed.
    pub changes: u64,
    /// The first few of them, in words.
    pub examples: Vec<String>,
    /// What is not as it is wanted.
    pub faults: Vec<Fault>,
}

impl Programmed {
    /// How many changes are told in words.
    pub const EXAMPLES: usize = 3;

    /// What was changed, in a line.
    #[must_use]
    pub fn summary(&self) -> String {
        let told = self.examples.join(", ");
        match self.changes.saturating_sub(self.examples.len() as u64) {
            0 => told,
            more => format!("{told}, and {more} more"),
        }
    }
}

/// What is asked over HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// The agent's share of every overlay.
    Overlay,
    /// How the agent is.
    Health,
    /// The numbers by which it is watched.
    Metrics,
}
