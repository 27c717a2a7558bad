//! Who has which subnet and which VTEP address: the arithmetic of the address plan, and nothing
//! else.
//!
//! A pool hands out what was never used first, lowest first, and then what was freed longest ago,
//! so that an address comes back as late as possible: other agents may still have routes to its
//! former holder. Every operation costs O(log n) in what was taken or freed, never in the size of
//! the pool.
//!
//! Nothing here is undone. An agent needs several things at once (a VTEP address of each family, a
//! subnet of each family and overlay), and one of the pools may be exhausted: whoever allocates
//! asks all of them with `peek`, which changes nothing, and calls `allocate` only if all have said
//! yes. It gives what `peek` gave.

mod free_set;
mod subnet_pool;
mod vtep_pool;

#[cfg(test)]
mod tests;

use std::time::Duration;

pub use subnet_pool::{SubnetPool, SubnetPoolError};
pub use vtep_pool::{VtepAddress, VtepPool, VtepPoolError};

/// What a pool gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allocated<T> {
    /// The subnet or the address.
    pub item: T,
    /// When its former holder gave it back, in seconds since 1970; `None` if it never had one.
    pub freed_at: Option<u64>,
}

impl<T> Allocated<T> {
    /// Whether at `now`, in seconds since 1970, its former holder gave it back less than
    /// `reuse_after` ago: the pool had nothing better. A clock that was set back counts as no time
    /// having passed.
    #[must_use]
    pub const fn is_reused_early(&self, now: u64, reuse_after: Duration) -> bool {
        match self.freed_at {
            Some(freed_at) => now.saturating_sub(freed_at) < reuse_after.as_secs(),
            None => false,
        }
    }
}
