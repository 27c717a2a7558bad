//! A pool of items of one kind: subnets of an overlay, or addresses of VTEPs.

use std::fmt::Display;

use overlay_types::addr::Subnet;

use super::Allocated;
use super::free_set::{FreeSet, SlotError, Vacancy};

/// How a pool numbers its items. Slot 0 is the lowest item.
pub trait Layout {
    /// A subnet or an address.
    type Item: Copy + Display;

    /// Returns the number of items, at most `u128::MAX`.
    fn capacity(&self) -> u128;

    /// Returns the item of a slot, or `None` beyond the capacity.
    fn item(&self, slot: u128) -> Option<Self::Item>;

    /// Returns the slot of an item, or `None` if the item is not in the pool.
    fn slot(&self, item: Self::Item) -> Option<u128>;

    /// Returns the first and the last slot that overlap `subnet`, or `None` if none does.
    fn slots_within(&self, subnet: &Subnet) -> Option<(u128, u128)>;

    /// Describes the pool in messages: `{item} of {description} is already in use`.
    fn description(&self) -> String;

    /// Describes why an item is not in the pool: `{item} is {reason}`.
    fn foreign_reason(&self) -> String;
}

/// The items of a layout, each unused, in use, or freed.
#[derive(Debug, Clone)]
pub struct Pool<L> {
    pub(super) layout: L,
    pub(super) slots: FreeSet,
}

/// Why an item cannot be reserved or freed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// The item is not in the pool.
    #[error("{item} is {reason}")]
    Foreign {
        /// The item.
        item: String,
        /// Why the item is not in the pool.
        reason: String,
    },
    /// The item was to be reserved and is in use.
    #[error("{item} of {pool} is already in use")]
    InUse {
        /// The item.
        item: String,
        /// The pool.
        pool: String,
    },
    /// The item was to be freed and is not in use.
    #[error("{item} of {pool} is not in use")]
    NotInUse {
        /// The item.
        item: String,
        /// The pool.
        pool: String,
    },
}

impl<L: Layout> Pool<L> {
    pub(super) fn with_layout(layout: L) -> Self {
        Self { slots: FreeSet::new(layout.capacity()), layout }
    }

    /// Allocates the item that [`Self::peek`] returns, or `None` if the pool is exhausted.
    pub fn allocate(&mut self) -> Option<Allocated<L::Item>> {
        let vacancy = self.slots.allocate()?;
        self.allocated(vacancy)
    }

    /// Reserves `item`, which may be unused or freed.
    ///
    /// # Errors
    /// Returns an error if `item` is not in the pool, or is in use. The pool is unchanged then.
    pub fn reserve(&mut self, item: L::Item) -> Result<(), PoolError> {
        let slot = self.slot_of(item)?;
        self.slots.reserve(slot).map_err(|error| self.error(error, item))
    }

    /// Frees `item` at `now`, in seconds since 1970.
    ///
    /// # Errors
    /// Returns an error if `item` is not in the pool, or is not in use. The pool is unchanged then.
    pub fn free(&mut self, item: L::Item, now: u64) -> Result<(), PoolError> {
        let slot = self.slot_of(item)?;
        self.slots.free(slot, now).map_err(|error| self.error(error, item))
    }

    /// Returns the next item: the lowest unused item, or if no item is unused, the item that was
    /// freed longest ago. `None` if the pool is exhausted.
    #[must_use]
    pub fn peek(&self) -> Option<Allocated<L::Item>> {
        self.allocated(self.slots.peek()?)
    }

    /// Returns whether `item` is in the pool and free.
    #[must_use]
    pub fn is_free(&self, item: L::Item) -> bool {
        self.layout.slot(item).is_some_and(|slot| self.slots.is_free(slot) == Ok(true))
    }

    /// Returns whether `item` is in the pool and in use.
    #[must_use]
    pub fn is_taken(&self, item: L::Item) -> bool {
        self.layout.slot(item).is_some_and(|slot| self.slots.is_free(slot) == Ok(false))
    }

    /// Reserves every free item that overlaps `subnet`, which may have any length.
    pub fn reserve_overlaps(&mut self, subnet: &Subnet) {
        if let Some((first, last)) = self.layout.slots_within(subnet) {
            self.slots.reserve_range(first, last);
        }
    }

    /// Reserves the items that `agents` agents with unreadable records may have, since items are
    /// allocated lowest first.
    pub fn reserve_gaps(&mut self, agents: u128) {
        self.slots.reserve_gaps(agents);
    }

    /// Returns the number of items, which is the number of agents that fit.
    #[must_use]
    pub const fn capacity(&self) -> u128 {
        self.slots.capacity()
    }

    /// Returns the number of items in use.
    #[must_use]
    pub const fn in_use(&self) -> u128 {
        self.slots.in_use()
    }

    /// Returns the number of free items.
    #[must_use]
    pub const fn available(&self) -> u128 {
        self.capacity() - self.in_use()
    }

    fn allocated(&self, vacancy: Vacancy) -> Option<Allocated<L::Item>> {
        let item = self.layout.item(vacancy.slot)?;
        Some(Allocated { item, freed_at: vacancy.freed_at })
    }

    fn slot_of(&self, item: L::Item) -> Result<u128, PoolError> {
        self.layout.slot(item).ok_or_else(|| self.error(SlotError::Missing, item))
    }

    fn error(&self, error: SlotError, item: L::Item) -> PoolError {
        let item = item.to_string();
        match error {
            SlotError::Missing => PoolError::Foreign { item, reason: self.layout.foreign_reason() },
            SlotError::InUse => PoolError::InUse { item, pool: self.layout.description() },
            SlotError::Free => PoolError::NotInUse { item, pool: self.layout.description() },
        }
    }
}
