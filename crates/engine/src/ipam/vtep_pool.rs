//! The VTEP addresses of one family of a cluster, one for each agent.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use overlay_types::addr::{Family, Subnet};

use super::Allocated;
use super::free_set::{FreeSet, SlotError, Vacancy};

/// The offset of slot 0 from the first address of the subnet. The first address is no host address:
/// it is the network address in IPv4, and the subnet-router anycast address in IPv6 (RFC 4291,
/// 2.6.1).
const FIRST_HOST: u128 = 1;

/// An address of one family. A pool of IPv4 addresses returns IPv4 addresses.
pub trait VtepAddress: Copy + Eq + fmt::Debug + fmt::Display + Into<IpAddr> {
    /// The family.
    const FAMILY: Family;

    /// Returns `ip` as an address of this family, or `None` if it belongs to the other family.
    fn of(ip: IpAddr) -> Option<Self>;
}

impl VtepAddress for Ipv4Addr {
    const FAMILY: Family = Family::V4;

    fn of(ip: IpAddr) -> Option<Self> {
        match ip {
            IpAddr::V4(ip) => Some(ip),
            IpAddr::V6(_) => None,
        }
    }
}

impl VtepAddress for Ipv6Addr {
    const FAMILY: Family = Family::V6;

    fn of(ip: IpAddr) -> Option<Self> {
        match ip {
            IpAddr::V4(_) => None,
            IpAddr::V6(ip) => Some(ip),
        }
    }
}

/// The host addresses of the VTEP subnet. For IPv4 these are all addresses except the network and
/// the broadcast address, for IPv6 all addresses except the subnet-router anycast address.
#[derive(Debug, Clone)]
pub struct VtepPool<A> {
    subnet: Subnet,
    slots: FreeSet,
    family: std::marker::PhantomData<A>,
}

/// Why an address cannot be reserved or freed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VtepPoolError {
    /// The address is no host address of the VTEP subnet.
    #[error("{address} is no host address of the VTEP subnet {subnet}")]
    Foreign {
        /// The address.
        address: IpAddr,
        /// The VTEP subnet.
        subnet: Subnet,
    },
    /// The address was to be reserved and is in use.
    #[error("{address} of the VTEP subnet {subnet} is already in use")]
    InUse {
        /// The address.
        address: IpAddr,
        /// The VTEP subnet.
        subnet: Subnet,
    },
    /// The address was to be freed and is not in use.
    #[error("{address} of the VTEP subnet {subnet} is not in use")]
    NotInUse {
        /// The address.
        address: IpAddr,
        /// The VTEP subnet.
        subnet: Subnet,
    },
}

impl<A: VtepAddress> VtepPool<A> {
    /// Returns a pool of all host addresses of `subnet`, at most `u128::MAX`, all unused. The pool
    /// is empty if `subnet` belongs to the other family or is too small.
    #[must_use]
    pub fn new(subnet: Subnet) -> Self {
        let no_hosts = match A::FAMILY {
            Family::V4 => 2,
            Family::V6 => 1,
        };
        let capacity = if subnet.family() == A::FAMILY {
            subnet.count(A::FAMILY.bits()).saturating_sub(no_hosts)
        } else {
            0
        };
        Self { subnet, slots: FreeSet::new(capacity), family: std::marker::PhantomData }
    }

    /// Allocates the address that [`Self::peek`] returns, or `None` if the pool is exhausted.
    pub fn allocate(&mut self) -> Option<Allocated<A>> {
        let vacancy = self.slots.allocate()?;
        self.allocated(vacancy)
    }

    /// Reserves `address`, which may be unused or freed.
    ///
    /// # Errors
    /// Returns an error if `address` is not in the pool, or is in use. The pool is unchanged then.
    pub fn reserve(&mut self, address: A) -> Result<(), VtepPoolError> {
        let slot = self.slot_of(address)?;
        self.slots.reserve(slot).map_err(|error| self.error(error, address))
    }

    /// Frees `address` at `now`, in seconds since 1970.
    ///
    /// # Errors
    /// Returns an error if `address` is not in the pool, or is not in use. The pool is unchanged
    /// then.
    pub fn free(&mut self, address: A, now: u64) -> Result<(), VtepPoolError> {
        let slot = self.slot_of(address)?;
        self.slots.free(slot, now).map_err(|error| self.error(error, address))
    }

    /// Returns the next address: the lowest unused address, or if no address is unused, the address
    /// that was freed longest ago. `None` if the pool is exhausted.
    #[must_use]
    pub fn peek(&self) -> Option<Allocated<A>> {
        self.allocated(self.slots.peek()?)
    }

    /// Returns whether `address` is in the pool and in use.
    pub fn is_taken(&self, address: A) -> bool {
        self.slot_of(address).is_ok_and(|slot| self.slots.is_free(slot) == Ok(false))
    }

    /// Reserves the free addresses of `subnet`, which may have any length.
    pub fn reserve_overlaps(&mut self, subnet: &Subnet) {
        let last = self.capacity().checked_sub(1);
        let slots = if subnet.covers(&self.subnet) {
            Some(0).zip(last)
        } else {
            let offset = |address| self.subnet.offset_of(address);
            let first = offset(subnet.first()).map(|first| first.saturating_sub(FIRST_HOST));
            first.zip(offset(subnet.last()).and_then(|last| last.checked_sub(FIRST_HOST)))
        };
        if let Some((first, last)) = slots {
            self.slots.reserve_range(first, last);
        }
    }

    /// Reserves the addresses that `agents` agents with unreadable records may have, since
    /// addresses are allocated lowest first.
    pub fn reserve_gaps(&mut self, agents: u128) {
        self.slots.reserve_gaps(agents);
    }

    /// Returns the VTEP subnet.
    #[must_use]
    pub const fn subnet(&self) -> Subnet {
        self.subnet
    }

    /// Returns the number of host addresses, which is the number of agents that fit.
    #[must_use]
    pub const fn capacity(&self) -> u128 {
        self.slots.capacity()
    }

    /// Returns the number of addresses in use.
    #[must_use]
    pub const fn in_use(&self) -> u128 {
        self.slots.in_use()
    }

    /// Returns the number of free addresses.
    #[must_use]
    pub const fn available(&self) -> u128 {
        self.capacity() - self.in_use()
    }

    fn allocated(&self, vacancy: Vacancy) -> Option<Allocated<A>> {
        let item = A::of(self.subnet.address_at(vacancy.slot + FIRST_HOST)?)?;
        Some(Allocated { item, freed_at: vacancy.freed_at })
    }

    fn slot_of(&self, address: A) -> Result<u128, VtepPoolError> {
        self.subnet
            .offset_of(address.into())
            .and_then(|offset| offset.checked_sub(FIRST_HOST))
            .ok_or_else(|| self.error(SlotError::Missing, address))
    }

    fn error(&self, error: SlotError, address: A) -> VtepPoolError {
        let (subnet, address) = (self.subnet, address.into());
        match error {
            SlotError::Missing => VtepPoolError::Foreign { address, subnet },
            SlotError::InUse => VtepPoolError::InUse { address, subnet },
            SlotError::Free => VtepPoolError::NotInUse { address, subnet },
        }
    }
}
