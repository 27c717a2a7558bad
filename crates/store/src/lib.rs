//! Durable state of the overlay master.
//!
//! A store maps keys to bytes and has an epoch. [`Store::load`] begins a new epoch. From then on
//! the store refuses every [`Store::commit`] of an earlier epoch, so that a demoted master cannot
//! write (fencing). One commit is one durable write, however many changes it carries: the master
//! puts all pending changes into the next commit (group commit).
//!
//! An [`Archive`] is a state that can be read without beginning an epoch, and replaced as a whole.
//! Backups use it, and migrations from one store to another.
//!
//! The module `conformance` is the test suite that every store passes. Other crates get it with the
//! feature `conformance`.

#[cfg(any(test, feature = "conformance"))]
#[doc(hidden)]
pub mod conformance;
mod file;
mod identity;
mod key;
mod log_directory;
mod memory;
mod replicated_log;
mod state_format;
mod zookeeper;

pub use file::FileStore;
pub use identity::FileId;
pub use log_directory::LogDirectory;
pub use memory::MemoryStore;
pub use replicated_log::{Log, ReplicatedLogStore};
pub use state_format::{ImportedState, encode_cpp_state, parse_state};
pub use zookeeper::ZooKeeperStore;
#[doc(hidden)]
pub use zookeeper::roundtrip_znode;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use overlay_types::protocol::HistoryEntry;
use overlay_types::state::{
    Counts, Epoch, Key, LoadedPart, LoadedState, RecordChange, StoreError, UnreadableRecord,
    Version,
};
use overlay_wire::{decode_history, decode_record, encode_history, encode_record};

/// One change of the state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Stores these bytes under this key and replaces the former bytes.
    Put(Key, Vec<u8>),
    /// Removes the key. A key that does not exist is no error.
    Delete(Key),
}

/// Everything that a store holds at the start of an epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// The epoch that has begun.
    pub epoch: Epoch,
    /// Version of the last commit.
    pub version: Version,
    /// All records in the order of their keys. A record of a later version of this program, whose
    /// key this version cannot read, stays in the store and is not listed.
    pub records: Vec<(Key, Vec<u8>)>,
}

/// A durable state with one writer at a time. Calls block, so the master calls a store on a
/// separate thread.
pub trait Store: Send {
    /// Reads all records and begins a new epoch, which ends all earlier epochs. The epoch is
    /// durable when this function returns. The version is that of the last commit.
    ///
    /// # Errors
    /// When the state cannot be read or the epoch cannot be written. The caller may try again, with
    /// this handle or another handle.
    fn load(&mut self) -> Result<Loaded, StoreError>;

    /// Applies all `changes` in order, or none of them, and returns when they are durable. Returns
    /// the new version, which is one more than the last version even for an empty list.
    ///
    /// # Errors
    /// [`StoreError::EpochEnded`] if `epoch` is not the latest epoch: nothing was written. After any
    /// other error the changes may or may not be durable. Only a new [`Store::load`] shows which is
    /// the case, and this handle may refuse every commit until then.
    fn commit(&mut self, epoch: Epoch, changes: &[Change]) -> Result<Version, StoreError>;

    /// Checks, without a write, that the state still is what this handle loaded and committed. The
    /// check is cheap, so that a master without commits repeats it every few seconds.
    ///
    /// # Errors
    /// When the state is lost, for example because its file was replaced. Then a commit would fail
    /// too, and this handle may refuse every commit until the next [`Self::load`].
    fn check(&mut self) -> Result<(), StoreError> {
        Ok(())
    }

    /// Returns a counter that grows while an operation makes progress, for a store whose operations
    /// may take longer than a hanging store is tolerated.
    fn activity(&self) -> Option<Arc<AtomicU64>> {
        None
    }

    /// Loads the state and decodes its records. See [`Self::load`].
    ///
    /// # Errors
    /// As [`Self::load`]. A record that cannot be decoded is no error: the state holds the reason.
    fn load_records(&mut self) -> Result<LoadedState, StoreError> {
        self.load().map(Loaded::decode)
    }

    /// Encodes and commits changes of records. See [`Self::commit`].
    ///
    /// # Errors
    /// As [`Self::commit`].
    fn commit_records(
        &mut self,
        epoch: Epoch,
        changes: &[RecordChange],
    ) -> Result<Version, StoreError> {
        let changes: Vec<Change> = changes.iter().map(Change::encode).collect();
        self.commit(epoch, &changes)
    }
}

impl Change {
    /// Encodes a change of a record.
    #[must_use]
    pub fn encode(change: &RecordChange) -> Self {
        match change {
            RecordChange::PutAgent(ip, record) => Self::Put(Key::Agent(*ip), encode_record(record)),
            RecordChange::PutHistory(number, entries) => {
                Self::Put(Key::History(*number), encode_entries(entries))
            }
            RecordChange::Delete(key) => Self::Delete(*key),
        }
    }
}

fn encode_entries(entries: &[HistoryEntry]) -> Vec<u8> {
    entries.iter().flat_map(encode_history).collect()
}

impl Loaded {
    /// Decodes all records.
    #[must_use]
    pub fn decode(self) -> LoadedState {
        let Self { epoch, version, records } = self;
        let mut state = LoadedState { epoch, version, agents: Vec::new(), history: Vec::new() };
        for (key, bytes) in records {
            match key {
                Key::Agent(ip) => {
                    let record = decode_record(&bytes);
                    let record = record.map_err(|error| UnreadableRecord(error.to_string()));
                    state.agents.push((ip, record));
                }
                Key::History(number) => {
                    let entries = decode_history(&bytes);
                    let is_lossless =
                        entries.as_ref().is_ok_and(|entries| encode_entries(entries) == bytes);
                    let entries = entries.map_err(|error| UnreadableRecord(error.to_string()));
                    state.history.push(LoadedPart { number, entries, is_lossless });
                }
            }
        }
        state
    }
}

/// The content of a store, read without beginning an epoch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Epoch and version of the state.
    pub counts: Counts,
    /// All records in the order of their keys.
    pub records: Vec<(Key, Vec<u8>)>,
    /// Records of a later version of this program: the name in the store, and the bytes.
    pub unknown: Vec<(String, Vec<u8>)>,
    /// Warnings for the operator, one sentence each.
    pub warnings: Vec<String>,
}

impl Snapshot {
    /// Whether the state holds no record.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.records.is_empty() && self.unknown.is_empty()
    }
}

/// The purpose of a new epoch.
#[derive(Debug, Clone, Copy)]
enum EpochPurpose {
    /// A master loads the state.
    Load,
    /// An import replaces the state. Epoch and version continue from the higher counts of the two
    /// states. Counts that no state can have reached begin again at 0.
    Replace(Counts),
}

impl EpochPurpose {
    /// Returns the counts of the epoch that begins where a store has `counts`.
    ///
    /// # Errors
    /// When no state can have reached a count, or a count allows no further epoch and commit. A
    /// master with such counts could store nothing, so it could serve no agent.
    fn next_counts(self, counts: Counts) -> Result<Counts, String> {
        let Counts { epoch, version } = match self {
            Self::Load => counts,
            Self::Replace(former) => {
                let (counts, _) = counts.corrected();
                Counts {
                    epoch: counts.epoch.max(former.epoch),
                    version: counts.version.max(former.version),
                }
            }
        };
        Counts { epoch, version }.check_up_to(Counts::MAX - 1)?;
        Ok(Counts { epoch: epoch + 1, version })
    }
}

/// Appends the remedy to `reason`, which says why a count is refused. `store_uri` is the name of
/// the store for `mesos-overlay export`.
fn with_counts_remedy(reason: &str, store_uri: &str) -> String {
    format!(
        "{reason}: the state is damaged, or a foreign process wrote it: restore a copy of the \
         state; or stop all masters and reset the counts: `mesos-overlay export --from {store_uri} \
         --output state.json`, then `mesos-overlay import state.json --to {store_uri} --replace`"
    )
}

/// Largest state in bytes that is read from servers to which foreign clients may write. The records
/// of 200,000 agents are smaller, and the memory of a host is larger.
const STATE_BYTES_MAX: usize = 1 << 30;

/// The result of [`Archive::replace`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replacement {
    /// The version of the new state.
    pub version: Version,
    /// The path of the former state, if the store kept it.
    pub kept: Option<PathBuf>,
}

/// A state that can be read without beginning an epoch, and replaced as a whole.
pub trait Archive {
    /// Reads a consistent snapshot of the state and changes nothing: no epoch begins, and the
    /// leading master keeps its leadership. Returns `None` if there is no state. Creates no state.
    ///
    /// # Errors
    /// When the state cannot be read.
    fn read_snapshot(&mut self) -> Result<Option<Snapshot>, StoreError>;

    /// Replaces all records that this version can read with `records`, all or nothing. After an
    /// interruption the store holds the former state, the new state, or a state that no master
    /// loads. Missing parts of the store are created. The leading master is demoted.
    ///
    /// `former` are the counts of the state that the records come from. Epoch and version continue
    /// from the higher counts of the two states. So the messages of the next master are the latest
    /// for agents that received messages from masters of either state.
    ///
    /// # Errors
    /// When the state cannot be read or written.
    fn replace(
        &mut self,
        records: &[(Key, Vec<u8>)],
        former: Counts,
    ) -> Result<Replacement, StoreError>;
}

/// Replaces all `loaded` records with `records` in one commit.
fn replace_by_commit(
    store: &mut dyn Store,
    loaded: &Loaded,
    records: &[(Key, Vec<u8>)],
) -> Result<Replacement, StoreError> {
    let version = store.commit(loaded.epoch, &replacing_changes(&loaded.records, records))?;
    Ok(Replacement { version, kept: None })
}

/// Returns the changes that replace the records `old` with the records `new`.
fn replacing_changes(old: &[(Key, Vec<u8>)], new: &[(Key, Vec<u8>)]) -> Vec<Change> {
    let new_keys: HashSet<Key> = new.iter().map(|(key, _)| *key).collect();
    let removed = old.iter().map(|(key, _)| *key).filter(|key| !new_keys.contains(key));
    let puts = new.iter().map(|(key, bytes)| Change::Put(*key, bytes.clone()));
    removed.map(Change::Delete).chain(puts).collect()
}

/// Returns the name of a record whose key this version cannot read: the key in hexadecimal.
fn hex_name(key: &[u8]) -> String {
    key.iter().map(|byte| format!("{byte:02x}")).collect()
}
