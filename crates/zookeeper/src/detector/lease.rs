//! The lease of a leading master. A master checks its lease before it acts as the leader: a process
//! that was suspended continues at any point, before the election detects the end of the lease.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::Instant;

/// The lease of this master. Clones share it.
#[derive(Debug, Clone)]
pub struct Lease(Arc<watch::Sender<Option<Instant>>>);

impl Default for Lease {
    fn default() -> Self {
        Self::new()
    }
}

impl Lease {
    /// Creates the lease of a master that does not lead.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(watch::channel(None).0))
    }

    /// Returns whether this master leads, and its lease lasts. A lease that is found to have ended
    /// is not renewed: the election then begins a new candidacy.
    #[must_use]
    pub fn lasts(&self) -> bool {
        let mut lasts = false;
        self.0.send_if_modified(|end| {
            *end = end.filter(|end| Instant::now() < *end);
            lasts = end.is_some();
            false
        });
        lasts
    }

    /// Begins a lease that lasts until `end`.
    pub fn begin(&self, end: Instant) {
        self.0.send_replace(Some(end));
    }

    /// Extends the lease until `end`. Returns false if it has ended.
    pub(super) fn renew(&self, end: Instant) -> bool {
        let mut lasts = false;
        self.0.send_if_modified(|current| {
            *current = current.filter(|current| Instant::now() < *current).map(|_| end);
            lasts = current.is_some();
            false
        });
        lasts
    }

    /// Ends the lease.
    pub fn end(&self) {
        self.0.send_replace(None);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn ended_lease_is_not_renewed() {
        let lease = Lease::new();
        let later = Instant::now() + Duration::from_secs(60);
        assert!(!lease.lasts() && !lease.renew(later), "nothing began");
        lease.begin(later);
        assert!(lease.renew(later) && lease.lasts());
        lease.begin(Instant::now());
        assert!(!lease.renew(later), "the renewal comes too late");
        lease.begin(Instant::now());
        assert!(!lease.lasts());
        assert!(!lease.renew(later), "the end was seen");
        lease.begin(later);
        lease.end();
        assert!(!lease.lasts());
    }
}
