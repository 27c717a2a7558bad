//! A store that several masters want, and an election that decides which of them has it. The store
//! may know first: who began a later epoch has it, whatever the election said last.

use crate::detector::Withdrawal;
use crate::store::{Change, Epoch, Loaded, Store, StoreError, Version};

/// A store that has this master stand for election anew when another one has taken over.
///
/// Without that a master could wait for ever: deposed by one that was late to notice that it leads
/// no more, and still the first of the election, which so has nothing new to say.
#[derive(Debug)]
pub struct Contested<S> {
    store: S,
    withdrawal: Withdrawal,
}

impl<S: Store> Contested<S> {
    /// `store`, whose loss is told by `withdrawal`.
    pub const fn new(store: S, withdrawal: Withdrawal) -> Self {
        Self { store, withdrawal }
    }

    fn tell<T>(&self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        if matches!(result, Err(StoreError::Deposed { .. })) {
            self.withdrawal.withdraw();
        }
        result
    }
}

impl<S: Store> Store for Contested<S> {
    fn load(&mut self) -> Result<Loaded, StoreError> {
        let result = self.store.load();
        self.tell(result)
    }

    fn commit(&mut self, epoch: Epoch, changes: &[Change]) -> Result<Version, StoreError> {
        let result = self.store.commit(epoch, changes);
        self.tell(result)
    }
}
