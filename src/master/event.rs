//! What happens to the master.

use std::fmt;
use std::net::Ipv4Addr;

use super::Settings;
use super::effect::Effect;
use crate::addr::Upid;
use crate::protocol::{Message, MessageKind, Network, RequestId};
use crate::store::{Loaded, StoreError, Version};

/// Something that happened. The runtime makes them out of what its adapters report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The moment of [`next_timeout`](crate::machine::Machine::next_timeout) has come.
    Timeout,
    /// Whether this master leads, says the election: when that has changed, and for a master that
    /// waits for it also when it is said again.
    Leading(bool),
    /// The answer to [`super::Command::Load`].
    Loaded(Result<Loaded, StoreError>),
    /// The answer to [`super::Command::Commit`].
    Committed(Result<Version, StoreError>),
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
    /// A message that is not for a master, or that only a registered agent may send. It was not
    /// decoded.
    Ignored {
        /// Who says to have sent it.
        from: Upid,
        /// Which message.
        kind: MessageKind,
    },
    /// Another configuration of the network.
    Reload(Network),
    /// The answer to [`super::Command::Reread`]: the settings, or every problem of the
    /// configuration.
    Reread(RequestId, Result<Settings, Vec<String>>),
    /// The answer to [`super::Command::Preview`].
    Previewed(RequestId, Box<Effect>),
    /// Somebody asks over HTTP and waits for the [`super::Command::Reply`] of the same id.
    Request(RequestId, Request),
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout => f.write_str("timeout"),
            Self::Leading(true) => f.write_str("elected"),
            Self::Leading(false) => f.write_str("not elected"),
            Self::Loaded(Ok(loaded)) => {
                write!(f, "loaded {} records of version {}", loaded.records.len(), loaded.version.0)
            }
            Self::Loaded(Err(error)) => write!(f, "not loaded: {error}"),
            Self::Committed(Ok(version)) => write!(f, "committed version {}", version.0),
            Self::Committed(Err(error)) => write!(f, "not committed: {error}"),
            Self::Message { from, message } => write!(f, "{message} from {from}"),
            Self::Malformed { from, name, reason } => {
                write!(f, "malformed {} from {from}: {reason}", name.escape_debug())
            }
            Self::Ignored { from, kind } => write!(f, "ignored {kind} from {from}"),
            Self::Previewed(id, effect) => {
                write!(f, "previewed for request {}: {} agents change", id.0, effect.agents.len())
            }
            Self::Reload(network) => {
                write!(f, "another configuration, of {} overlays", network.overlays.len())
            }
            Self::Reread(id, Ok(settings)) => {
                let count = settings.network.overlays.len();
                write!(f, "read the configuration for request {}: {count} overlays", id.0)
            }
            Self::Reread(id, Err(problems)) => {
                let count = problems.len();
                write!(f, "read the configuration for request {}: {count} problems", id.0)
            }
            Self::Request(id, Request::Preview(network)) => {
                write!(f, "request {}: preview {} overlays", id.0, network.overlays.len())
            }
            Self::Request(id, request) => write!(f, "request {}: {request:?}", id.0),
        }
    }
}

/// What is asked over HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// The whole cluster.
    State,
    /// How the master is.
    Health,
    /// The numbers by which it is watched.
    Metrics,
    /// Free the addresses of these agents, be they running or not, as the C++ modules do.
    DeleteAgents(Vec<Ipv4Addr>),
    /// Free the addresses of agents that are gone.
    Forget(Forget),
    /// Who had which addresses when: all of it, or of one agent.
    History(Option<Ipv4Addr>),
    /// Read the configuration again, and take it over.
    Reload,
    /// What another network would do.
    Preview(Box<Network>),
}

/// Which agents to forget.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forget {
    /// Their addresses.
    pub agents: Vec<Ipv4Addr>,
    /// Also those that are running.
    pub force: bool,
    /// Only say what would become of them.
    pub dry_run: bool,
}
