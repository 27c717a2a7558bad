//! Couples a shared store with the election of masters. The store may detect a new leader before
//! the election does: the master with the latest epoch has the state.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use overlay_store::{Change, Loaded, Store};
use overlay_types::state::{Epoch, StoreError, Version};
use overlay_zookeeper::detector::{Lease, Withdrawal};

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
    lease: Lease,
    /// Number of consecutive failures.
    failures: u32,
}

impl<S: Store + fmt::Display> ElectionAwareStore<S> {
    /// Wraps `store`. Uses `withdrawal` when another master has the state. Refuses every operation
    /// after the end of `lease`.
    pub const fn new(store: S, withdrawal: Withdrawal, lease: Lease) -> Self {
        Self { store, withdrawal, lease, failures: 0 }
    }

    /// Refuses an operation of a former leader. A process that was suspended would otherwise begin
    /// an epoch, and so demote the next leader.
    fn check_lease(&self, action: &'static str) -> Result<(), StoreError> {
        if self.lease.lasts() {
            return Ok(());
        }
        let reason = "this master no longer leads".to_owned();
        Err(StoreError::Failed { store: self.store.to_string(), action, reason })
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

impl<S: Store + fmt::Display> Store for ElectionAwareStore<S> {
    fn load(&mut self) -> Result<Loaded, StoreError> {
        self.check_lease("load")?;
        let result = self.store.load();
        self.withdraw_on_failure(result)
    }

    fn commit(&mut self, epoch: Epoch, changes: &[Change]) -> Result<Version, StoreError> {
        self.check_lease("commit")?;
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

#[cfg(test)]
mod tests {
    use overlay_store::MemoryStore;
    use overlay_types::warnings::Warnings;
    use overlay_zookeeper::detector::{Contender, ElectionWarnings};
    use tokio::time::{Duration, Instant};

    use super::*;

    #[test]
    fn store_is_used_during_the_lease_only() {
        let unreachable = "zk://127.0.0.1:1/overlay".parse().unwrap();
        let watched = ElectionWarnings { state: Vec::new(), warnings: Warnings::new() };
        let election = (unreachable, Duration::from_secs(1));
        let own = "127.0.0.1:5050".parse().unwrap();
        let contender = Contender::start(election, own, watched, None).unwrap();
        let lease = Lease::new();
        let mut store =
            ElectionAwareStore::new(MemoryStore::new(), contender.withdrawal(), lease.clone());
        let error = store.load().unwrap_err().to_string();
        assert_eq!(error, "memory: load: this master no longer leads");
        lease.begin(Instant::now() + Duration::from_secs(60));
        let epoch = store.load().unwrap().epoch;
        assert_eq!(store.commit(epoch, &[]), Ok(Version(1)));
        lease.end();
        let error = store.commit(epoch, &[]).unwrap_err().to_string();
        assert_eq!(error, "memory: commit: this master no longer leads");
    }
}
