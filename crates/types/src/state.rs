//! The stored state of a master as typed records. The engine changes the records, and the stores
//! encode them.

use std::fmt;
use std::net::Ipv4Addr;
use std::sync::Arc;

use crate::protocol::{HistoryEntry, Record};

/// Number of a leader term. A later leader has a greater epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

/// Number of commits of a state in all epochs. A state without a commit has version 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u64);

impl Version {
    /// Returns the next version.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// The key of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// The agent with this address.
    Agent(Ipv4Addr),
    /// A part of the history. Later parts have greater numbers.
    History(u64),
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agent(ip) => write!(f, "agent {ip}"),
            Self::History(number) => write!(f, "part {number} of the history"),
        }
    }
}

/// A change of one record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordChange {
    /// Replaces the record of an agent.
    PutAgent(Ipv4Addr, Record),
    /// Replaces a part of the history.
    PutHistory(u64, Arc<[HistoryEntry]>),
    /// Deletes a record. A missing record is not an error.
    Delete(Key),
}

impl RecordChange {
    /// Returns the key of the changed record.
    #[must_use]
    pub const fn key(&self) -> Key {
        match self {
            Self::PutAgent(ip, _) => Key::Agent(*ip),
            Self::PutHistory(number, _) => Key::History(*number),
            Self::Delete(key) => *key,
        }
    }
}

/// The reason why this version cannot decode a stored record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UnreadableRecord(pub String);

/// Everything that a store holds at the start of an epoch, decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadedState {
    /// The new epoch.
    pub epoch: Epoch,
    /// Version of the last commit.
    pub version: Version,
    /// The records of agents, in the order of their addresses.
    pub agents: Vec<(Ipv4Addr, Result<Record, UnreadableRecord>)>,
    /// The parts of the history, in the order of their numbers.
    pub history: Vec<LoadedPart>,
}

/// A part of the history, as the store has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadedPart {
    /// The number of the part.
    pub number: u64,
    /// The entries, the earliest first.
    pub entries: Result<Vec<HistoryEntry>, UnreadableRecord>,
    /// Whether the entries, encoded again, are the stored bytes. If not, a later version wrote fields
    /// that this version does not know, and rewriting the part would lose them.
    pub is_lossless: bool,
}

/// The counters of a state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// The epoch of the last leader.
    pub epoch: u64,
    /// Version of the last commit.
    pub version: u64,
}

impl Counts {
    /// Highest count that a store accepts. At 10,000 commits per second a state reaches this count
    /// after 890 years, so a higher count is damaged or forged. The maximum is below 2⁵³, the limit
    /// of exact integers in JSON, and far below `u64::MAX`, so that increments cannot overflow.
    pub const MAX: u64 = 1 << 48;

    /// Checks that no counter exceeds [`Self::MAX`].
    ///
    /// # Errors
    /// With a message for the operator that names the counter.
    pub fn check(self) -> Result<(), String> {
        self.check_up_to(Self::MAX)
    }

    /// Checks the counters of an imported file. They may use half of the range, so that the
    /// store can increment them for a long time.
    ///
    /// # Errors
    /// With a message for the operator that names the counter and the remedy.
    pub fn check_imported(self) -> Result<(), String> {
        let remedy = "write the number from a backup, or 0 to restart the count";
        self.check_up_to(Self::MAX / 2).map_err(|reason| format!("{reason}: {remedy}"))
    }

    /// Checks that no counter exceeds `max`.
    ///
    /// # Errors
    /// With a message for the operator that names the counter.
    pub fn check_up_to(self, max: u64) -> Result<(), String> {
        for (counter, count) in [("epoch", self.epoch), ("version", self.version)] {
            if count > max {
                return Err(format!("impossible {counter} {count}"));
            }
        }
        Ok(())
    }

    /// Replaces each impossible count with 0. Returns the result, and a warning if a count was
    /// replaced.
    #[must_use]
    pub fn corrected(self) -> (Self, Option<String>) {
        let correct = |count| if count < Self::MAX { count } else { 0 };
        let counts = Self { epoch: correct(self.epoch), version: correct(self.version) };
        let warning = self.check_up_to(Self::MAX - 1).err();
        (counts, warning.map(|reason| format!("{reason}: the count restarts at 0")))
    }
}

/// Why an operation of a store failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Another master started a later epoch.
    #[error("{store}: another master has taken over: epoch {epoch} has ended")]
    EpochEnded {
        /// The store, as in the configuration.
        store: String,
        /// The epoch of the write.
        epoch: u64,
    },
    /// The state cannot be read or written.
    #[error("{store}: {action}: {reason}")]
    Failed {
        /// The store, as in the configuration.
        store: String,
        /// The attempted operation.
        action: &'static str,
        /// The reason and the remedy.
        reason: String,
    },
}
