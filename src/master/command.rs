//! What the master wants done.

use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv4Addr;

use super::effect::{Effect, PreviewJob};
use super::history::HistoryView;
use super::metrics::Metrics;
use super::view::{Fate, Health};
use crate::addr::Upid;
use crate::metrics::Snapshot;
use crate::protocol::{Message, RequestId, State};
use crate::store::{Change, Epoch, Version};

/// Something to do. The runtime does it with its adapters and takes no decision of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Read the store and begin an epoch. There is one at a time, and no commit beside it.
    Load,
    /// Give up all that is held back, for the version that it waits for will not come, or is no
    /// longer this master's to speak of: messages are dropped, since agents ask again, and requests
    /// are answered with [`Reply::Unavailable`] and this reason.
    Abandon(String),
    /// Give up the messages that are held back for these agents, and no others: they were deleted,
    /// so what they were to be told is no longer theirs.
    Withdraw(BTreeSet<Ipv4Addr>),
    /// Write these changes. There is one at a time.
    Commit {
        /// The epoch that the load began.
        epoch: Epoch,
        /// All changes that waited: one durable write for all of them.
        changes: Vec<Change>,
    },
    /// Send a message once `when` is durable, so that nothing is promised before it is stored.
    Send {
        /// To whom.
        to: Upid,
        /// What.
        message: Message,
        /// The version that must be durable first.
        when: Version,
    },
    /// Send a message to many, once `when` is durable. All get the same bytes.
    Broadcast {
        /// To whom.
        to: Vec<Upid>,
        /// What.
        message: Message,
        /// The version that must be durable first.
        when: Version,
    },
    /// Read the configuration again: for [`super::Event::Reread`] of the same id.
    Reread(RequestId),
    /// Find out what another network would do: for [`super::Event::Previewed`] of the same id. It
    /// takes long, so it is to be run where nothing waits for it.
    Preview {
        /// Which request.
        id: RequestId,
        /// The work.
        job: Box<PreviewJob>,
    },
    /// Answer a request once `when` is durable.
    Reply {
        /// Which request.
        id: RequestId,
        /// The answer.
        reply: Reply,
        /// The version that must be durable first.
        when: Version,
    },
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Load => f.write_str("load"),
            Self::Abandon(reason) => write!(f, "abandon what is held back: {reason}"),
            Self::Withdraw(agents) => {
                write!(f, "withdraw what is held back for {} deleted agents", agents.len())
            }
            Self::Commit { epoch, changes } => {
                write!(f, "commit {} changes in epoch {}", changes.len(), epoch.0)
            }
            Self::Send { to, message, when } => {
                write!(f, "send {message} to {to} when version {} is durable", when.0)
            }
            Self::Broadcast { to, message, when } => {
                let count = to.len();
                write!(f, "send {message} to {count} agents when version {} is durable", when.0)
            }
            Self::Reread(id) => write!(f, "read the configuration for request {}", id.0),
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
    /// The whole cluster: to [`super::Request::State`] and, when done, to
    /// [`super::Request::DeleteAgents`].
    State(State),
    /// To [`super::Request::Forget`]: what became of each agent.
    Fates(Vec<Fate>),
    /// To [`super::Request::History`].
    History(HistoryView),
    /// To [`super::Request::Reload`] and [`super::Request::Preview`].
    Effect(Box<Effect>),
    /// To [`super::Request::Reload`]: every problem of the configuration, of which nothing was
    /// taken over.
    Misconfigured(Vec<String>),
    /// To [`super::Request::Health`].
    Health(Box<Health>),
    /// To [`super::Request::Metrics`].
    Metrics(Box<Snapshot<Metrics>>),
    /// Not now, and why: the state is not there, or was lost while the request waited.
    Unavailable(String),
}
