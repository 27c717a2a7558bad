//! The subnets of one family of one overlay, one for each agent.

use super::Allocated;
use super::free_set::{FreeSet, SlotError, Vacancy};
use crate::addr::Subnet;
use crate::protocol::AddressRange;

/// Most subnets that are noted as freed at one time.
const RETIRED_MAX: u128 = 1 << 16;

/// The subnets of equal length that a range is cut into. The first and the last are as good as the
/// others: the host addresses of a subnet are used inside of it only.
#[derive(Debug, Clone)]
pub struct SubnetPool {
    range: AddressRange,
    slots: FreeSet,
}

/// Why a subnet cannot be reserved or freed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubnetPoolError {
    /// It is none of the pool's subnets: it lies outside, or has another length.
    #[error("{subnet} is none of the /{} subnets of {}", range.prefix, range.subnet)]
    Foreign {
        /// The subnet.
        subnet: Subnet,
        /// What the pool is cut from.
        range: AddressRange,
    },
    /// It was to be reserved, and somebody has it.
    #[error("{subnet} of {} is already in use", range.subnet)]
    InUse {
        /// The subnet.
        subnet: Subnet,
        /// What the pool is cut from.
        range: AddressRange,
    },
    /// It was to be freed, and nobody has it.
    #[error("{subnet} of {} is not in use", range.subnet)]
    NotInUse {
        /// The subnet.
        subnet: Subnet,
        /// What the pool is cut from.
        range: AddressRange,
    },
}

impl SubnetPool {
    /// All subnets of `range`, never used. None, if its prefix is shorter than its subnet's or
    /// longer than an address; at most `u128::MAX`.
    #[must_use]
    pub fn new(range: AddressRange) -> Self {
        Self { range, slots: FreeSet::new(range.subnet.count(range.prefix)) }
    }

    /// Takes what [`Self::peek`] shows; `None` if the pool is exhausted.
    pub fn allocate(&mut self) -> Option<Allocated<Subnet>> {
        let vacancy = self.slots.allocate()?;
        self.allocated(vacancy)
    }

    /// Takes `subnet`, be it never used or freed.
    ///
    /// # Errors
    /// When `subnet` is none of this pool's, or in use. The pool is as it was then.
    pub fn reserve(&mut self, subnet: Subnet) -> Result<(), SubnetPoolError> {
        let slot = self.slot_of(subnet)?;
        self.slots.reserve(slot).map_err(|error| self.error(error, subnet))
    }

    /// Gives `subnet` back at `now`, in seconds since 1970.
    ///
    /// # Errors
    /// When `subnet` is none of this pool's, or not in use. The pool is as it was then.
    pub fn free(&mut self, subnet: Subnet, now: u64) -> Result<(), SubnetPoolError> {
        let slot = self.slot_of(subnet)?;
        self.slots.free(slot, now).map_err(|error| self.error(error, subnet))
    }

    /// The subnet whose turn it is: the lowest never used one, and when there is none, the one
    /// freed longest ago. `None` if the pool is exhausted.
    #[must_use]
    pub fn peek(&self) -> Option<Allocated<Subnet>> {
        self.allocated(self.slots.peek()?)
    }

    /// Whether `subnet` is one of the pool's and free.
    #[must_use]
    pub fn is_free(&self, subnet: Subnet) -> bool {
        self.slot_of(subnet).is_ok_and(|slot| self.slots.is_free(slot) == Ok(true))
    }

    /// Whether `subnet` is one of the pool's and in use.
    #[must_use]
    pub fn is_taken(&self, subnet: Subnet) -> bool {
        self.slot_of(subnet).is_ok_and(|slot| self.slots.is_free(slot) == Ok(false))
    }

    /// Gives nobody what is free and has an address of `subnet`, which may have any length.
    pub fn withhold(&mut self, subnet: &Subnet) {
        if let Some((first, last)) = self.slots_within(subnet) {
            self.slots.withhold(first, last);
        }
    }

    /// Treats what was never used and has an address of `subnet`, which may have any length, as
    /// freed at `now`, in seconds since 1970. If that is too much to note one by one, it is
    /// withheld.
    pub fn retire(&mut self, subnet: &Subnet, now: u64) {
        match self.slots_within(subnet) {
            Some((first, last)) if last - first < RETIRED_MAX => {
                self.slots.retire(first, last, now);
            }
            Some((first, last)) => self.slots.withhold(first, last),
            None => {}
        }
    }

    /// Gives nobody what `agents` agents of whom nothing is known may have, if subnets were given
    /// lowest first.
    pub fn withhold_gaps(&mut self, agents: u128) {
        self.slots.withhold_gaps(agents);
    }

    /// The first and the last slot that has an address of `subnet`.
    fn slots_within(&self, subnet: &Subnet) -> Option<(u128, u128)> {
        let AddressRange { subnet: whole, prefix } = self.range;
        let last = self.capacity().checked_sub(1)?;
        if subnet.covers(&whole) {
            return Some((0, last));
        }
        let slot = |address| whole.index_of(&Subnet::containing(address, prefix)?);
        slot(subnet.first()).zip(slot(subnet.last()))
    }

    /// What the pool is cut from, and how.
    #[must_use]
    pub const fn range(&self) -> AddressRange {
        self.range
    }

    /// How many agents fit: the number of subnets.
    #[must_use]
    pub const fn capacity(&self) -> u128 {
        self.slots.capacity()
    }

    /// How many subnets are in use.
    #[must_use]
    pub const fn in_use(&self) -> u128 {
        self.slots.in_use()
    }

    /// How many subnets are free.
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
