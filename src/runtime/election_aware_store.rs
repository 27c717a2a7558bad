//! Couples a shared store with the election of masters. The store may detect a new leader before
//! the election does: the master with the latest epoch has the state.

use overlay_store::{Change, Loaded, Store};
use overlay_types::state::{Epoch, StoreError, Version};
use overlay_zookeeper::detector::Withdrawal;

/// A store that withdraws the candidacy of this master when another master has begun a later epoch.
///
/// Without the withdrawal, a master could wait forever. A former leader that notices its demotion
/// late may begin an epoch and fence this master. This master is still the first of the election,
/// so the election reports no change.
#[derive(Debug)]
pub struct ElectionAwareStore<S> {
    store: S,
    withdrawal: Withdrawal,
}

impl<S: Store> ElectionAwareStore<S> {
    /// Wraps `store`. Uses `withdrawal` when another master has the state.
    pub const fn new(store: S, withdrawal: Withdrawal) -> Self {
        Self { store, withdrawal }
    }

    fn withdraw_if_fenced<T>(&self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        if matches!(result, Err(StoreError::EpochEnded { .. })) {
            self.withdrawal.withdraw();
        }
        result
    }
}

impl<S: Store> Store for ElectionAwareStore<S> {
    fn load(&mut self) -> Result<Loaded, StoreError> {
        let result = self.store.load();
        self.withdraw_if_fenced(result)
    }

    fn commit(&mut self, epoch: Epoch, changes: &[Change]) -> Result<Version, StoreError> {
        let result = self.store.commit(epoch, changes);
        self.withdraw_if_fenced(result)
    }

    fn check(&mut self) -> Result<(), StoreError> {
        let result = self.store.check();
        self.withdraw_if_fenced(result)
    }
}
