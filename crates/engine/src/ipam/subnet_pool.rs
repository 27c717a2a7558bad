//! The subnets of one family of one overlay, one for each agent.

use overlay_types::addr::Subnet;
use overlay_types::protocol::AddressRange;

use super::Allocated;
use super::free_set::{FreeSet, SlotError, Vacancy};

/// The most subnets that one call of [`SubnetPool::retire`] marks as freed.
const RETIRED_MAX: u128 = 1 << 16;

/// The subnets of equal length of a range, including the first and the last subnet.
#[derive(Debug, Clone)]
pub struct SubnetPool {
    range: AddressRange,
    slots: FreeSet,
}

/// Why a subnet cannot be reserved or freed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubnetPoolError {
    /// The subnet is not in the pool: it lies outside, or has another length.
    #[error("{subnet} is none of the /{} subnets of {}", range.prefix, range.subnet)]
    Foreign {
        /// The subnet.
        subnet: Subnet,
        /// The range of the pool.
        range: AddressRange,
    },
    /// The subnet was to be reserved and is in use.
    #[error("{subnet} of {} is already in use", range.subnet)]
    InUse {
        /// The subnet.
        subnet: Subnet,
        /// The range of the pool.
        range: AddressRange,
    },
    /// The subnet was to be freed and is not in use.
    #[error("{subnet} of {} is not in use", range.subnet)]
    NotInUse {
        /// The subnet.
        subnet: Subnet,
        /// The range of the pool.
        range: AddressRange,
    },
}

impl SubnetPool {
    /// Returns a pool of all subnets of `range`, at most `u128::MAX`, all unused. The pool is empty
    /// if the prefix is shorter than that of the range or longer than an address.
    #[must_use]
    pub fn new(range: AddressRange) -> Self {
        Self { range, slots: FreeSet::new(range.subnet.count(range.prefix)) }
    }

    /// Allocates the subnet that [`Self::peek`] returns, or `None` if the pool is exhausted.
    pub fn allocate(&mut self) -> Option<Allocated<Subnet>> {
        let vacancy = self.slots.allocate()?;
        self.allocated(vacancy)
    }

    /// Reserves `subnet`, which may be unused or freed.
    ///
    /// # Errors
    /// Returns an error if `subnet` is not in the pool, or is in use. The pool is unchanged then.
    pub fn reserve(&mut self, subnet: Subnet) -> Result<(), SubnetPoolError> {
        let slot = self.slot_of(subnet)?;
        self.slots.reserve(slot).map_err(|error| self.error(error, subnet))
    }

    /// Frees `subnet` at `now`, in seconds since 1970.
    ///
    /// # Errors
    /// Returns an error if `subnet` is not in the pool, or is not in use. The pool is unchanged
    /// then.
    pub fn free(&mut self, subnet: Subnet, now: u64) -> Result<(), SubnetPoolError> {
        let slot = self.slot_of(subnet)?;
        self.slots.free(slot, now).map_err(|error| self.error(error, subnet))
    }

    /// Returns the next subnet: the lowest unused subnet, or if no subnet is unused, the subnet
    /// that was freed longest ago. `None` if the pool is exhausted.
    #[must_use]
    pub fn peek(&self) -> Option<Allocated<Subnet>> {
        self.allocated(self.slots.peek()?)
    }

    /// Returns whether `subnet` is in the pool and free.
    #[must_use]
    pub fn is_free(&self, subnet: Subnet) -> bool {
        self.slot_of(subnet).is_ok_and(|slot| self.slots.is_free(slot) == Ok(true))
    }

    /// Returns whether `subnet` is in the pool and in use.
    #[must_use]
    pub fn is_taken(&self, subnet: Subnet) -> bool {
        self.slot_of(subnet).is_ok_and(|slot| self.slots.is_free(slot) == Ok(false))
    }

    /// Reserves every free subnet that overlaps `subnet`, which may have any length.
    pub fn reserve_overlaps(&mut self, subnet: &Subnet) {
        if let Some((first, last)) = self.slots_within(subnet) {
            self.slots.reserve_range(first, last);
        }
    }

    /// Marks every unused subnet that overlaps `subnet` as freed at `now`, in seconds since 1970.
    /// `subnet` may have any length. If it overlaps more than 65,536 subnets, the free subnets are
    /// reserved instead.
    pub fn retire(&mut self, subnet: &Subnet, now: u64) {
        match self.slots_within(subnet) {
            Some((first, last)) if last - first < RETIRED_MAX => {
                self.slots.retire(first, last, now);
            }
            Some((first, last)) => self.slots.reserve_range(first, last),
            None => {}
        }
    }

    /// Reserves the subnets that `agents` agents with unreadable records may have, since subnets
    /// are allocated lowest first.
    pub fn reserve_gaps(&mut self, agents: u128) {
        self.slots.reserve_gaps(agents);
    }

    /// Returns the first and the last slot that overlap `subnet`.
    fn slots_within(&self, subnet: &Subnet) -> Option<(u128, u128)> {
        let AddressRange { subnet: whole, prefix } = self.range;
        let last = self.capacity().checked_sub(1)?;
        if subnet.covers(&whole) {
            return Some((0, last));
        }
        let slot = |address| whole.index_of(&Subnet::containing(address, prefix)?);
        slot(subnet.first()).zip(slot(subnet.last()))
    }

    /// Returns the range of the pool.
    #[must_use]
    pub const fn range(&self) -> AddressRange {
        self.range
    }

    /// Returns the number of subnets, which is the number of agents that fit.
    #[must_use]
    pub const fn capacity(&self) -> u128 {
        self.slots.capacity()
    }

    /// Returns the number of subnets in use.
    #[must_use]
    pub const fn in_use(&self) -> u128 {
        self.slots.in_use()
    }

    /// Returns the number of free subnets.
    #[must_use]
    pub const fn available(&self) -> u128 {
        self.capacity() - self.in_use()
    }

    fn allocated(&self, vacancy: Vacancy) -> Option<Allocated<Subnet>> {
        let item = self.range.subnet.nth(self.range.prefix, vacancy.slot)?;
        Some(Allocated { item, freed_at: vacancy.freed_at })
    }

    fn slot_of(&self, subnet: Subnet) -> Result<u128, SubnetPoolError> {
        Some(subnet)
            .filter(|subnet| subnet.prefix() == self.range.prefix)
            .and_then(|subnet| self.range.subnet.index_of(&subnet))
            .ok_or(SubnetPoolError::Foreign { subnet, range: self.range })
    }

    const fn error(&self, error: SlotError, subnet: Subnet) -> SubnetPoolError {
        let range = self.range;
        match error {
            SlotError::Missing => SubnetPoolError::Foreign { subnet, range },
            SlotError::InUse => SubnetPoolError::InUse { subnet, range },
            SlotError::Free => SubnetPoolError::NotInUse { subnet, range },
        }
    }
}
