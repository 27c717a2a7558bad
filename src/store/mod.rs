//! Where the master keeps what it promised.
//!
//! A store maps keys to bytes and knows an epoch. [`Store::load`] begins a new epoch: from then on
//! a [`Store::commit`] of any earlier one is refused, so that a master that was deposed cannot
//! write. One commit is one durable write, however many changes it carries: the master puts all
//! that waits into the next one (group commit).
//!
//! Besides, a state can be looked at without taking it from whoever leads, and be put in the place
//! of another as a whole: [`Archive`], for backups and for the way from one store to another.
//!
//! What a store must do beyond its types is [`conformance`], which every one of them passes.

#[doc(hidden)]
pub mod conformance;
mod file;
mod form;
mod log_directory;
mod memory;
mod replicated_log;
mod zookeeper;

pub use file::FileStore;
pub use form::{Content, read_form, write_cpp_form};
pub use log_directory::LogDirectory;
pub use memory::MemoryStore;
pub use replicated_log::{Log, ReplicatedLogStore};
pub use zookeeper::ZooKeeperStore;
#[doc(hidden)]
pub use zookeeper::reread_znode;

use std::collections::HashSet;
use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;

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
        Self(self.0.saturating_add(1))
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

/// What a store holds, seen without taking it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// How far it has counted.
    pub counts: Counts,
    /// All records in the order of their keys.
    pub records: Vec<(Key, Vec<u8>)>,
    /// What a later version of this program keeps: the name that the store has for it, and bytes.
    pub unknown: Vec<(String, Vec<u8>)>,
    /// What an operator has to know of it, a sentence each.
    pub doubts: Vec<String>,
}

impl Snapshot {
    /// Whether there is nothing in it that could get lost.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.records.is_empty() && self.unknown.is_empty()
    }
}

/// How far a state has counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// The epoch of whoever has led last.
    pub epoch: u64,
    /// Version of the last commit.
    pub version: u64,
}

impl Counts {
    /// The highest count that a store accepts. 10,000 commits in every second reach it after 890
    /// years, so a higher one was damaged or forged. It is below 2⁵³, up to which every reader of
    /// JSON is exact, and far from the end of the type, so that counting on cannot overflow.
    pub const MAX: u64 = 1 << 48;

    /// Refuses a count that no state can have reached.
    ///
    /// # Errors
    /// With a sentence about it.
    pub fn check(self) -> Result<(), String> {
        self.check_up_to(Self::MAX)
    }

    /// Refuses a count of a file that is to be imported. No more than half of the range is
    /// accepted, so that the store that counts on from there does not come to its end.
    ///
    /// # Errors
    /// With a sentence about it.
    pub fn check_imported(self) -> Result<(), String> {
        let remedy = "put that of a backup in its place, or 0, from which it is counted anew";
        self.check_up_to(Self::MAX / 2).map_err(|reason| format!("{reason}: {remedy}"))
    }

    fn check_up_to(self, max: u64) -> Result<(), String> {
        for (what, count) in [("epoch", self.epoch), ("version", self.version)] {
            if count > max {
                return Err(format!("no state has come to {what} {count}"));
            }
        }
        Ok(())
    }

    /// Returns the counts with 0 in the place of each that cannot have been reached, and a sentence
    /// if there was one.
    pub(crate) fn corrected(self) -> (Self, Option<String>) {
        let correct = |count| if count < Self::MAX { count } else { 0 };
        let counts = Self { epoch: correct(self.epoch), version: correct(self.version) };
        let warning = self.check_up_to(Self::MAX - 1).err();
        (counts, warning.map(|reason| format!("{reason}: it is counted anew from 0")))
    }

    /// Returns the counts of the epoch that `begin` begins where a store says `self`.
    ///
    /// # Errors
    /// When a count cannot have been reached, or leaves no room for another epoch and commit: a
    /// master that goes on from there could store nothing, and so serve nobody.
    fn begun(self, begin: Begin) -> Result<Self, String> {
        let (epoch, version) = match begin {
            Begin::Load => (self.epoch, self.version),
            Begin::Replace(former) => {
                let (counts, _) = self.corrected();
                (counts.epoch.max(former.epoch), counts.version.max(former.version))
            }
        };
        Self { epoch, version }.check_up_to(Self::MAX - 1)?;
        Ok(Self { epoch: epoch + 1, version })
    }
}

/// How an epoch begins.
#[derive(Debug, Clone, Copy)]
enum Begin {
    /// A master takes the state as it is.
    Load,
    /// Another state is put in its place, and is counted on from where either had come to. Counts
    /// that cannot have been reached begin anew.
    Replace(Counts),
}

/// Adds to `reason`, why counts are refused, what an operator can do. `place` is how `export` names
/// the store.
fn explain_counts(reason: &str, place: &str) -> String {
    format!(
        "{reason}: it is damaged, or somebody else has written it: put a copy of the state back; or \
         stop all masters and have it counted anew: `mesos-overlay export --from {place} -o \
         state.json`, then `mesos-overlay import state.json --to {place} --replace`"
    )
}

/// The most bytes of a state that are read from servers which others may write to: more than the
/// records of 200,000 agents, and less than a host has memory.
const STATE_BYTES_MAX: usize = 1 << 30;

/// What came of [`Archive::replace`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replaced {
    /// The version of the new state.
    pub version: Version,
    /// Where the former one is, if it was set aside.
    pub kept: Option<PathBuf>,
}

/// A state that can be looked at, and be put in the place of another.
pub trait Archive {
    /// Reads everything, as it was at one moment, and leaves everything as it is: no epoch begins,
    /// and whoever leads goes on. `None` where there is no state, which is not made.
    ///
    /// # Errors
    /// When the state cannot be read.
    fn look(&mut self) -> Result<Option<Snapshot>, StoreError>;

    /// Puts `records` in the place of all that this version can read, as a whole or not at all:
    /// whoever is interrupted leaves the former state, the new one, or one that no master takes.
    /// What is missing is made. Whoever led before leads no more.
    ///
    /// Epochs and versions are counted on from `former`, those of the state that the records are
    /// from, where they were further there than here: so what the next master tells is the latest
    /// for agents that have heard masters of either.
    ///
    /// # Errors
    /// When the state cannot be read or written.
    fn replace(
        &mut self,
        records: &[(Key, Vec<u8>)],
        former: Counts,
    ) -> Result<Replaced, StoreError>;
}

/// Puts `records` in the place of all that was `loaded`, by one commit.
fn replace_by_commit(
    store: &mut dyn Store,
    loaded: &Loaded,
    records: &[(Key, Vec<u8>)],
) -> Result<Replaced, StoreError> {
    let version = store.commit(loaded.epoch, &replacement(&loaded.records, records))?;
    Ok(Replaced { version, kept: None })
}

/// The changes that make `new` of `old`.
fn replacement(old: &[(Key, Vec<u8>)], new: &[(Key, Vec<u8>)]) -> Vec<Change> {
    let stays: HashSet<Key> = new.iter().map(|(key, _)| *key).collect();
    let gone = old.iter().map(|(key, _)| *key).filter(|key| !stays.contains(key));
    let puts = new.iter().map(|(key, bytes)| Change::Put(*key, bytes.clone()));
    gone.map(Change::Delete).chain(puts).collect()
}

/// A key that this version cannot read, as text.
fn unknown_name(key: &[u8]) -> String {
    key.iter().map(|byte| format!("{byte:02x}")).collect()
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
