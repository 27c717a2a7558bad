//! The commands of the master for its runtime.

use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv4Addr;
use std::sync::Arc;

use overlay_types::addr::Upid;
use overlay_types::protocol::{AuthenticateAgent, Message, RequestId, SharedSecrets, State};
use overlay_types::state::{Epoch, RecordChange, Version};
use overlay_types::text::pluralize;

use super::effect::{Effect, PreviewJob};
use super::encoded_update::EncodedUpdate;
use super::history::HistoryView;
use super::metrics::Metrics;
use super::view::{Health, ReleaseResult};
use crate::metrics::Snapshot;

/// A command to the runtime, which runs it with its adapters and makes no decision of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Load the state and begin an epoch. No other job of the store is under way.
    Load,
    /// Abandon all pending sends: their version will never be durable, or this master lost
    /// leadership. Messages are dropped, since agents repeat theirs. Requests are answered with
    /// [`Reply::Unavailable`] and this reason.
    Abandon(String),
    /// Drop the pending messages to these agents and about them, and remove them from pending
    /// states. The agents were released, so the addresses in the messages are no longer allocated
    /// to them.
    Withdraw(BTreeSet<Ipv4Addr>),
    /// Write these changes. No other job of the store is under way.
    Commit {
        /// The epoch that the load began.
        epoch: Epoch,
        /// All changes since the previous commit, for one durable write.
        changes: Vec<RecordChange>,
    },
    /// Send a message once `when` is durable.
    Send {
        /// The receiver.
        to: Upid,
        /// The message.
        message: Message,
        /// The version that must be durable first.
        when: Version,
    },
    /// Send a peer update to these agents once `when` is durable. All receivers get the same bytes.
    SendPeers {
        /// The receivers.
        to: Vec<Upid>,
        /// The update.
        update: EncodedUpdate,
        /// The version that must be durable first.
        when: Version,
    },
    /// Send a challenge to an agent, in answer to its request for a session.
    Challenge {
        /// The agent.
        to: Upid,
        /// The request.
        request: AuthenticateAgent,
    },
    /// Authenticate agents with these secrets from now on. `None` without credentials.
    SetSecrets(Option<Arc<SharedSecrets>>),
    /// Link to an agent: [`super::Event::Exited`] with its address is sent when the link cannot be
    /// opened, or ends. A second link to an agent has no effect.
    Link(Upid),
    /// Read the configuration again. The result is [`super::Event::ConfigRead`] with this id.
    ReadConfig(RequestId),
    /// Compute the effect of another network. The result is [`super::Event::Previewed`] with this
    /// id. The job takes long, so it has to run on a thread of its own.
    Preview {
        /// The request.
        id: RequestId,
        /// The job.
        job: Box<PreviewJob>,
    },
    /// Answer a request once `when` is durable.
    Reply {
        /// The request.
        id: RequestId,
        /// The answer.
        reply: Reply,
        /// The version that must be durable first.
        when: Version,
    },
}

impl Command {
    /// Returns the command that answers a request at once. Only for replies without allocated
    /// addresses.
    pub(super) const fn immediate_reply(id: RequestId, reply: Reply) -> Self {
        Self::Reply { id, reply, when: Version(0) }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Load => f.write_str("load"),
            Self::Abandon(reason) => write!(f, "abandon pending sends: {reason}"),
            Self::Withdraw(agents) => {
                let agents = pluralize(agents.len(), "released agent");
                write!(f, "withdraw pending messages to {agents}")
            }
            Self::Commit { epoch, changes } => {
                write!(f, "commit {} in epoch {}", pluralize(changes.len(), "change"), epoch.0)
            }
            Self::Send { to, message, when } => {
                write!(f, "send {message} to {to} when version {} is durable", when.0)
            }
            Self::SendPeers { to, update, when } => {
                let (message, agents) = (update.message(), pluralize(to.len(), "agent"));
                write!(f, "send {message} to {agents} when version {} is durable", when.0)
            }
            Self::Challenge { to, request } => {
                write!(f, "challenge principal '{}' of {to}", request.principal)
            }
            Self::SetSecrets(_) => f.write_str("set the secrets of the agents"),
            Self::Link(to) => write!(f, "link {to}"),
            Self::ReadConfig(id) => write!(f, "read the configuration for request {}", id.0),
            Self::Preview { id, .. } => write!(f, "preview for request {}", id.0),
            Self::Reply { id, when, .. } => {
                write!(f, "reply to request {} when version {} is durable", id.0, when.0)
            }
        }
    }
}

/// The answer to a [`super::Request`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// The whole cluster: to [`super::Request::State`], and to [`super::Request::DeleteAgents`]
    /// after the release.
    State(State),
    /// To [`super::Request::Forget`]: the result for each agent.
    ReleaseResults(Vec<ReleaseResult>),
    /// To [`super::Request::History`].
    History(HistoryView),
    /// To [`super::Request::Reload`] and [`super::Request::Preview`].
    Effect(Box<Effect>),
    /// To [`super::Request::Reload`]: every problem of a configuration that was not applied.
    Misconfigured(Vec<String>),
    /// To [`super::Request::Health`].
    Health(Box<Health>),
    /// To [`super::Request::Metrics`].
    Metrics(Box<Snapshot<Metrics>>),
    /// Why the request cannot be answered now: the state is not loaded, or was lost while the
    /// request waited.
    Unavailable(String),
}
