//! A state that lasts as long as the process: for tests, for the demo, and for whoever asks for it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{
    Archive, Change, Counts, Epoch, Key, Loaded, Replaced, Snapshot, Store, StoreError, Version,
    replace_by_commit,
};
use crate::mutation::Mutation;

/// A state in memory. Clones are handles on the same state, so that masters can contend for it in a
/// test as they do for a shared store.
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
    /// A state that was never written.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn begin(&self, former: Counts) -> Loaded {
        let mut state = self.state.lock();
        state.epoch = state.epoch.max(former.epoch);
        state.version = state.version.max(former.version);
        state.epoch += u64::from(!Mutation::EpochRepeats.is_on() || state.epoch == 0);
        Loaded {
            epoch: Epoch(state.epoch),
            version: Version(state.version),
            records: state.records.iter().map(|(key, bytes)| (*key, bytes.clone())).collect(),
        }
    }
}

impl Store for MemoryStore {
    fn load(&mut self) -> Result<Loaded, StoreError> {
        Ok(self.begin(Counts::default()))
    }

    fn commit(&mut self, epoch: Epoch, changes: &[Change]) -> Result<Version, StoreError> {
        let mut state = self.state.lock();
        if epoch.0 != state.epoch && !Mutation::ForgetTheEpoch.is_on() {
            return Err(StoreError::Deposed { store: self.to_string(), epoch: epoch.0 });
        }
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
        state.version += 1;
        Ok(Version(state.version))
    }
}

impl Archive for MemoryStore {
    fn look(&mut self) -> Result<Option<Snapshot>, StoreError> {
        let state = self.state.lock();
        let counts = Counts { epoch: state.epoch, version: state.version };
        let records = state.records.iter().map(|(key, bytes)| (*key, bytes.clone())).collect();
        Ok((counts.epoch > 0).then(|| Snapshot { counts, records, ..Snapshot::default() }))
    }

    fn replace(
        &mut self,
        records: &[(Key, Vec<u8>)],
        former: Counts,
    ) -> Result<Replaced, StoreError> {
        let loaded = self.begin(former);
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
    use crate::store::conformance::{self, Subject};

    #[test]
    fn it_conforms() {
        conformance::check(&|| {
            let store = MemoryStore::new();
            let archive = store.clone();
            Subject {
                open: Box::new(move || Box::new(store.clone())),
                archive: Some(Box::new(move || Box::new(archive.clone()))),
                is_shared: true,
            }
        });
    }
}
