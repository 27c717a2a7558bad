//! The subnets of one family of one overlay, one for each agent.

use overlay_types::addr::Subnet;
use overlay_types::protocol::AddressRange;

use super::pool::{Layout, Pool};

/// The most subnets that one call of [`SubnetPool::retire`] marks as freed.
const RETIRED_MAX: u128 = 1 << 16;

/// The subnets of equal length of a range, including the first and the last subnet.
#[derive(Debug, Clone, Copy)]
pub struct SubnetLayout(AddressRange);

/// The subnets of one family of one overlay.
pub type SubnetPool = Pool<SubnetLayout>;

impl Layout for SubnetLayout {
    type Item = Subnet;

    fn capacity(&self) -> u128 {
        self.0.subnet.count(self.0.prefix)
    }

    fn item(&self, slot: u128) -> Option<Subnet> {
        self.0.subnet.nth(self.0.prefix, slot)
    }

    fn slot(&self, subnet: Subnet) -> Option<u128> {
        Some(subnet)
            .filter(|subnet| subnet.prefix() == self.0.prefix)
            .and_then(|subnet| self.0.subnet.index_of(&subnet))
    }

    fn slots_within(&self, subnet: &Subnet) -> Option<(u128, u128)> {
        let AddressRange { subnet: whole, prefix } = self.0;
        let last = self.capacity().checked_sub(1)?;
        if subnet.covers(&whole) {
            return Some((0, last));
        }
        let slot = |address| whole.index_of(&Subnet::containing(address, prefix)?);
        slot(subnet.first()).zip(slot(subnet.last()))
    }

    fn description(&self) -> String {
        self.0.subnet.to_string()
    }

    fn foreign_reason(&self) -> String {
        format!("none of the /{} subnets of {}", self.0.prefix, self.0.subnet)
    }
}

impl Pool<SubnetLayout> {
    /// Returns a pool of all subnets of `range`, at most `u128::MAX`, all unused. The pool is empty
    /// if the prefix is shorter than that of the range or longer than an address.
    #[must_use]
    pub fn new(range: AddressRange) -> Self {
        Self::with_layout(SubnetLayout(range))
    }

    /// Marks every unused subnet that overlaps `subnet` as freed at `now`, in seconds since 1970.
    /// `subnet` may have any length. If it overlaps more than 65,536 subnets, the free subnets are
    /// reserved instead.
    pub fn retire(&mut self, subnet: &Subnet, now: u64) {
        match self.layout.slots_within(subnet) {
            Some((first, last)) if last - first < RETIRED_MAX => {
                self.slots.retire(first, last, now);
            }
            Some((first, last)) => self.slots.reserve_range(first, last),
            None => {}
        }
    }

    /// Returns the range of the pool.
    #[must_use]
    pub const fn range(&self) -> AddressRange {
        self.layout.0
    }
}
