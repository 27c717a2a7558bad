//! Couples a shared store with the election of masters. The store may detect a new leader before
//! the election does: the master with the latest epoch has the state.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use overlay_store::{Change, Loaded, Store};
use overlay_types::state::{Epoch, StoreError, Version};
use overlay_zookeeper::detector::Withdrawal;

/// Number of consecutive failures after which another master shall try. One failure is normal when
/// a server of ZooKeeper restarts.
const FAILURES_MAX: u32 = 3;

/// A store that withdraws the candidacy of this master when another master has begun a later epoch,
/// or when this master repeatedly fails to use the state.
///
/// Without the withdrawal, a master could wait forever. A former leader that notices its demotion
/// late may begin an epoch and fence this master. This master is still the first of the election,
/// so the election reports no change. A leader with wrong credentials would prevent every other
/// master from leading.
#[derive(Debug)]
pub struct ElectionAwareStore<S> {
    store: S,
    withdrawal: Withdrawal,
    /// Number of consecutive failures.
    failures: u32,
}

impl<S: Store> ElectionAwareStore<S> {
    /// Wraps `store`. Uses `withdrawal` when another master has the state.
    pub const fn new(store: S, withdrawal: Withdrawal) -> Self {
        Self { store, withdrawal, failures: 0 }
    }

    fn withdraw_on_failure<T>(&mut self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        self.failures = match &result {
            Ok(_) => 0,
            Err(StoreError::EpochEnded { .. }) => FAILURES_MAX,
            Err(_) => self.failures + 1,
        };
        if self.failures >= FAILURES_MAX {
            self.failures = 0;
            self.withdrawal.withdraw();
        }
        result
    }
}

impl<S: Store> Store for ElectionAwareStore<S> {
    fn load(&mut self) -> Result<Loaded, StoreError> {
        let result = self.store.load();
        self.withdraw_on_failure(result)
    }

    fn commit(&mut self, epoch: Epoch, changes: &[Change]) -> Result<Version, StoreError> {
        let result = self.store.commit(epoch, changes);
        self.withdraw_on_failure(result)
    }

    fn activity(&self) -> Option<Arc<AtomicU64>> {
        self.store.activity()
    }

    fn check(&mut self) -> Result<(), StoreError> {
        // A check that succeeds does not end a row of failures.
        match self.store.check() {
            Ok(()) => Ok(()),
            failed => self.withdraw_on_failure(failed),
        }
    }
}
