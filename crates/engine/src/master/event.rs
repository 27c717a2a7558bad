//! The events of the master.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};

use overlay_types::addr::Upid;
use overlay_types::protocol::{
    AuthenticityFault, Author, Leader, Message, MessageKind, Network, Principal, RequestId,
    SharedSecrets,
};
use overlay_types::state::{LoadedState, StoreError, Version};

use super::Settings;
use super::effect::Effect;

/// An event. The runtime creates events from the reports of its adapters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The time of [`next_timeout`](crate::state_machine::StateMachine::next_timeout) has come.
    Timeout,
    /// The result of the election: whether this master leads. Sent at every change. The runtime may
    /// repeat the result to a standby master.
    Leading(bool),
    /// The leading master, or that none is known. Sent at every change to a master with an
    /// election.
    LeaderChanged(Option<Leader>),
    /// The result of [`super::Command::Load`].
    Loaded(Result<LoadedState, StoreError>),
    /// The result of [`super::Command::Commit`].
    Committed(Result<Version, StoreError>),
    /// The store has lost the state between two commits, for example because its file was replaced.
    StoreLost(StoreError),
    /// A well-formed message. Its sender and content are not verified.
    Message {
        /// The sender that the message names.
        from: Upid,
        /// The message.
        message: Message,
    },
    /// A well-formed message with the seal of an agent. Its content is not verified.
    Authenticated {
        /// The sender.
        from: Upid,
        /// The principal of the sender.
        principal: Principal,
        /// The message.
        message: Message,
    },
    /// A message that is not authentic. The runtime did not decode it.
    Unauthentic {
        /// The sender that the message names.
        from: Upid,
        /// The kind of the message.
        kind: MessageKind,
        /// Why the message is refused.
        fault: AuthenticityFault,
    },
    /// A message that could not be decoded.
    Malformed {
        /// The sender that the message names.
        from: Upid,
        /// The name of the message, as received.
        name: String,
        /// Why the message could not be decoded.
        reason: String,
    },
    /// A message that is not for a master, or that only a registered agent may send. The runtime
    /// did not decode it.
    Ignored {
        /// The sender that the message names.
        from: Upid,
        /// The kind of the message.
        kind: MessageKind,
    },
    /// The file of the agents' credentials has another content.
    SecretsChanged(SharedSecrets),
    /// The link to this address has ended, or could not be opened.
    Exited(SocketAddrV4),
    /// Another configuration of the network.
    Reload(Network),
    /// The result of [`super::Command::ReadConfig`]: the settings, or every problem of the
    /// configuration.
    ConfigRead(RequestId, Result<Settings, Vec<String>>),
    /// The result of [`super::Command::Preview`].
    Previewed(RequestId, Box<Effect>),
    /// A request over HTTP. The client waits for the [`super::Command::Reply`] with this id.
    Request(RequestId, Request),
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout => f.write_str("timeout"),
            Self::Leading(true) => f.write_str("elected"),
            Self::Leading(false) => f.write_str("not elected"),
            Self::LeaderChanged(Some(leader)) => write!(f, "the leading master is {leader}"),
            Self::LeaderChanged(None) => f.write_str("no leading master is known"),
            Self::Loaded(Ok(loaded)) => {
                let records = loaded.agents.len() + loaded.history.len();
                write!(f, "loaded {records} records of version {}", loaded.version.0)
            }
            Self::Loaded(Err(error)) => write!(f, "not loaded: {error}"),
            Self::Committed(Ok(version)) => write!(f, "committed version {}", version.0),
            Self::Committed(Err(error)) => write!(f, "not committed: {error}"),
            Self::StoreLost(error) => write!(f, "state lost: {error}"),
            Self::Message { from, message } => write!(f, "{message} from {from}"),
            Self::Authenticated { from, principal, message } => {
                write!(f, "{message} from {from}, principal '{principal}'")
            }
            Self::Unauthentic { from, kind, fault } => {
                write!(f, "refused {kind} from {from}: {fault}")
            }
            Self::Malformed { from, name, reason } => {
                write!(f, "malformed {} from {from}: {reason}", name.escape_debug())
            }
            Self::Ignored { from, kind } => write!(f, "ignored {kind} from {from}"),
            Self::Previewed(id, effect) => {
                write!(f, "previewed for request {}: {} agents change", id.0, effect.agents.len())
            }
            Self::SecretsChanged(_) => f.write_str("the credentials of the agents have changed"),
            Self::Exited(address) => write!(f, "link to {address} ended"),
            Self::Reload(network) => {
                write!(f, "another configuration, of {} overlays", network.overlays.len())
            }
            Self::ConfigRead(id, Ok(settings)) => {
                let count = settings.network.overlays.len();
                write!(f, "read the configuration for request {}: {count} overlays", id.0)
            }
            Self::ConfigRead(id, Err(problems)) => {
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

/// A request over HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// The whole cluster.
    State,
    /// The health of the master.
    Health,
    /// The metrics, with those of single agents.
    Metrics(Vec<Ipv4Addr>),
    /// Release the addresses of these agents, even of running agents, as the C++ modules do.
    DeleteAgents(Vec<Ipv4Addr>),
    /// Release the addresses of agents that are gone.
    Forget(Forget),
    /// The history of all addresses, or of the addresses of one agent.
    History(Option<Ipv4Addr>),
    /// Read the configuration again, and apply it.
    Reload,
    /// The effect of another network.
    Preview(Box<Network>),
    /// A request of a known client, which the history names.
    By(Author, Box<Self>),
}

impl Request {
    /// Returns the client, if it is known, and the request.
    pub(super) fn split_author(self) -> (Author, Self) {
        match self {
            Self::By(author, request) => (author, *request),
            request => (Author::default(), request),
        }
    }
}

/// A request to release agents that are gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forget {
    /// The agents by their IPs.
    pub agents: Vec<Ipv4Addr>,
    /// Whether running agents are released as well.
    pub force: bool,
    /// Whether to return the results without a release.
    pub dry_run: bool,
}
