//! A store in memory, which ends with the process: for tests, and for operators who configure the
//! store `memory`.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use overlay_types::mutation::Mutation;
use overlay_types::state::{Counts, Epoch, Key, StoreError, Version};
use parking_lot::Mutex;

use crate::{
    Archive, Change, EpochPurpose, Loaded, Replacement, Snapshot, Store, replace_by_commit,
};

/// A store in memory. Clones are handles on one state, so that masters in a test can contend for
/// the state as they do for a shared store.
#[derive(Debug, Clone, Default)]
pub struct MemoryStore {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    epoch: u64,
    version: u64,
    records: BTreeMap<Key, Vec<u8>>,
}

impl MemoryStore {
    /// Creates an empty state.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn begin_epoch(&self, purpose: EpochPurpose) -> Result<Loaded, StoreError> {
        let mut state = self.state.lock();
        let former = state.counts();
        let begun =
            purpose.next_counts(former).map_err(|reason| self.store_error("load", reason))?;
        let repeats_epoch = Mutation::RepeatEpoch.is_on() && former.epoch > 0;
        state.epoch = if repeats_epoch { former.epoch } else { begun.epoch };
        state.version = begun.version;
        Ok(Loaded {
            epoch: Epoch(state.epoch),
            version: Version(state.version),
            records: state.records.iter().map(|(key, bytes)| (*key, bytes.clone())).collect(),
        })
    }

    fn store_error(&self, action: &'static str, reason: String) -> StoreError {
        StoreError::Failed { store: self.to_string(), action, reason }
    }
}

impl State {
    const fn counts(&self) -> Counts {
        Counts { epoch: self.epoch, version: self.version }
    }
}

impl Store for MemoryStore {
    fn load(&mut self) -> Result<Loaded, StoreError> {
        self.begin_epoch(EpochPurpose::Load)
    }

    fn commit(&mut self, epoch: Epoch, changes: &[Change]) -> Result<Version, StoreError> {
        let mut state = self.state.lock();
        if epoch.0 != state.epoch && !Mutation::IgnoreEpoch.is_on() {
            return Err(StoreError::EpochEnded { store: self.to_string(), epoch: epoch.0 });
        }
        let version = Version(state.version).next();
        let counts = Counts { version: version.0, ..state.counts() };
        counts.check().map_err(|reason| self.store_error("commit", reason))?;
        for change in changes {
            match change {
                Change::Put(key, bytes) => {
                    state.records.insert(*key, bytes.clone());
                }
                Change::Delete(key) => {
                    state.records.remove(key);
                }
            }
        }
        state.version = version.0;
        Ok(version)
    }
}

impl Archive for MemoryStore {
    fn read_snapshot(&mut self) -> Result<Option<Snapshot>, StoreError> {
        let state = self.state.lock();
        let exists = state.epoch > 0;
        let (counts, warning) = state.counts().corrected();
        let warnings = warning.into_iter().collect();
        let records = state.records.iter().map(|(key, bytes)| (*key, bytes.clone())).collect();
        Ok(exists.then(|| Snapshot { counts, records, warnings, ..Snapshot::default() }))
    }

    fn replace(
        &mut self,
        records: &[(Key, Vec<u8>)],
        former: Counts,
    ) -> Result<Replacement, StoreError> {
        let loaded = self.begin_epoch(EpochPurpose::Replace(former))?;
        replace_by_commit(self, &loaded, records)
    }
}

impl fmt::Display for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("memory")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::{self, StoreFixture};

    #[test]
    fn memory_store_passes_conformance_suite() {
        conformance::check(&|| {
            let store = MemoryStore::new();
            let (archive, forged) = (store.clone(), store.clone());
            StoreFixture {
                open: Box::new(move || Box::new(store.clone())),
                archive: Some(Box::new(move || Box::new(archive.clone()))),
                forge: Box::new(move |counts| {
                    let mut state = forged.state.lock();
                    (state.epoch, state.version) = (counts.epoch, counts.version);
                }),
                is_shared: true,
            }
        });
    }
}
