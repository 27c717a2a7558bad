//! Where the master keeps what it promised.
//!
//! A store maps keys to bytes and knows an epoch. [`Store::load`] begins a new epoch: from then on
//! a [`Store::commit`] of any earlier one is refused, so that a master that was deposed cannot
//! write. One commit is one durable write, however many changes it carries: the master puts all
//! that waits into the next one (group commit).
//!
//! What a store must do beyond its types is [`conformance`], which every one of them passes.

#[doc(hidden)]
pub mod conformance;
mod file;
mod memory;
mod replicated_log;
mod zookeeper;

pub use file::FileStore;
pub use memory::MemoryStore;
pub use replicated_log::{Log, ReplicatedLogStore};
pub use zookeeper::ZooKeeperStore;
#[doc(hidden)]
pub use zookeeper::reread_znode;

use std::fmt;
use std::net::Ipv4Addr;

/// Counts the leaders of a state. A later leader has a greater epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

/// Counts the commits of a state, over all epochs. The state that was never written has version 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u64);

impl Version {
    /// The version after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// What a record is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// The agent with this address.
    Agent(Ipv4Addr),
    /// A part of the history; later parts have greater numbers.
    History(u64),
}

/// First byte of the key of an agent; the four bytes of its address follow, so that the order of
/// the bytes is that of the keys.
const AGENT_KEY: u8 = 1;
/// The same of a part of the history; the eight bytes of its number follow.
const HISTORY_KEY: u8 = 2;

impl Key {
    /// The key as stores write it.
    fn to_bytes(self) -> Vec<u8> {
        match self {
            Self::Agent(ip) => {
                let [a, b, c, d] = ip.octets();
                vec![AGENT_KEY, a, b, c, d]
            }
            Self::History(number) => [&[HISTORY_KEY][..], &number.to_be_bytes()].concat(),
        }
    }

    /// The inverse of [`Key::to_bytes`]; `None` for a key of a later version of this program.
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        match *bytes {
            [AGENT_KEY, a, b, c, d] => Some(Self::Agent([a, b, c, d].into())),
            [HISTORY_KEY, ref number @ ..] => {
                Some(Self::History(u64::from_be_bytes(number.try_into().ok()?)))
            }
            _ => None,
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agent(ip) => write!(f, "agent {ip}"),
            Self::History(number) => write!(f, "part {number} of the history"),
        }
    }
}

/// One change of the state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Keep these bytes under this key, instead of what was there.
    Put(Key, Vec<u8>),
    /// Forget the key. Nothing happens if it is not there.
    Delete(Key),
}

/// Everything that a store holds at the start of an epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// The epoch that has begun.
    pub epoch: Epoch,
    /// Version of the last commit.
    pub version: Version,
    /// All records in the order of their keys. A record whose key the store cannot read, as one of
    /// a later version of this program, is kept in the store, and is not here.
    pub records: Vec<(Key, Vec<u8>)>,
}

/// A durable state with one writer at a time. Calls block; they are made on a thread of their own.
pub trait Store: Send {
    /// Reads everything and begins a new epoch, which ends all earlier ones. The epoch is durable
    /// when this returns; the version is that of the last commit, since nothing was changed.
    ///
    /// # Errors
    /// When the state cannot be read or the epoch cannot be written. It may be tried again, on this
    /// handle or another.
    fn load(&mut self) -> Result<Loaded, StoreError>;

    /// Applies all of `changes` or none, in their order, and returns when they are durable, with
    /// the version that they made: one more than the last, even if there was nothing to change.
    ///
    /// # Errors
    /// [`StoreError::Deposed`] if `epoch` is not the latest; nothing was written then. After any
    /// other error the changes may or may not be durable: only a new [`Store::load`] tells, and
    /// this handle may refuse every commit until then.
    fn commit(&mut self, epoch: Epoch, changes: &[Change]) -> Result<Version, StoreError>;
}

/// Why a store did not do as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Another master has begun a later epoch.
    #[error("{store}: another master has taken over: epoch {epoch} has ended")]
    Deposed {
        /// Which store, as the operator named it.
        store: String,
        /// The epoch of the write.
        epoch: u64,
    },
    /// The state cannot be read or written.
    #[error("{store}: {action}: {reason}")]
    Failed {
        /// Which store, as the operator named it.
        store: String,
        /// What was attempted.
        action: &'static str,
        /// Why it failed and what to do.
        reason: String,
    },
}
