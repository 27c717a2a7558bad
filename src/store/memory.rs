//! A state that lasts as long as the process: for tests, for the demo, and for whoever asks for it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{
    Archive, Begin, Change, Counts, Epoch, Key, Loaded, Replaced, Snapshot, Store, StoreError,
    Version, replace_by_commit,
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

    fn begin(&self, begin: Begin) -> Result<Loaded, StoreError> {
        let mut state = self.state.lock();
        let former = state.counts();
        let begun = former.begun(begin).map_err(|reason| self.failed("load", reason))?;
        let repeats = Mutation::RepeatEpoch.is_on() && former.epoch > 0;
        state.epoch = if repeats { former.epoch } else { begun.epoch };
        state.version = begun.version;
        Ok(Loaded {
            epoch: Epoch(state.epoch),
            version: Version(state.version),
            records: state.records.iter().map(|(key, bytes)| (*key, bytes.clone())).collect(),
        })
    }

    fn failed(&self, action: &'static str, reason: String) -> StoreError {
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
        self.begin(Begin::Load)
    }

    fn commit(&mut self, epoch: Epoch, changes: &[Change]) -> Result<Version, StoreError> {
        let mut state = self.state.lock();
        if epoch.0 != state.epoch && !Mutation::IgnoreEpoch.is_on() {
            return Err(StoreError::Deposed { store: self.to_string(), epoch: epoch.0 });
        }
        let version = Version(state.version).next();
        let counts = Counts { version: version.0, ..state.counts() };
        counts.check().map_err(|reason| self.failed("commit", reason))?;
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
    fn look(&mut self) -> Result<Option<Snapshot>, StoreError> {
        let state = self.state.lock();
        let is_there = state.epoch > 0;
        let (counts, doubt) = state.counts().corrected();
        let doubts = doubt.into_iter().collect();
        let records = state.records.iter().map(|(key, bytes)| (*key, bytes.clone())).collect();
        Ok(is_there.then(|| Snapshot { counts, records, doubts, ..Snapshot::default() }))
    }

    fn replace(
        &mut self,
        records: &[(Key, Vec<u8>)],
        former: Counts,
    ) -> Result<Replaced, StoreError> {
        let loaded = self.begin(Begin::Replace(former))?;
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
            let (archive, forged) = (store.clone(), store.clone());
            Subject {
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
