//! Pools of subnets and VTEP addresses.
//!
//! A pool allocates the lowest unused address, and if no address is unused, the address that was
//! freed longest ago. So an address is reused as late as possible: other agents may still have
//! routes to the agent that had it. Every operation costs O(log n) in the number of allocated or
//! freed addresses, never in the size of the pool.
//!
//! An allocation cannot be undone. An agent needs several addresses at once (a VTEP address of each
//! family, a subnet of each family and overlay), and one of the pools may be exhausted. So the
//! caller asks all pools with `peek`, which changes nothing, and calls `allocate` only if none is
//! exhausted. `allocate` returns what `peek` returned.

mod free_set;
mod pool;
mod subnet_pool;
mod vtep_pool;

#[cfg(test)]
mod tests;

use std::time::Duration;

pub use pool::{Layout, Pool, PoolError};
pub use subnet_pool::{SubnetLayout, SubnetPool};
pub use vtep_pool::{VtepAddress, VtepLayout, VtepPool};

/// An address or a subnet that a pool allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allocated<T> {
    /// The subnet or the address.
    pub item: T,
    /// When the item was freed last, in seconds since 1970; `None` if it was never used.
    pub freed_at: Option<u64>,
}

impl<T> Allocated<T> {
    /// Returns whether the item was freed less than `reuse_after` before `now`, in seconds since
    /// 1970. The pool then had no item that was freed earlier. If the clock was set back, the
    /// elapsed time counts as 0.
    #[must_use]
    pub const fn is_reused_early(&self, now: u64, reuse_after: Duration) -> bool {
        match self.freed_at {
            Some(freed_at) => now.saturating_sub(freed_at) < reuse_after.as_secs(),
            None => false,
        }
    }
}
