//! The VTEP addresses of one family of a cluster, one for each agent.

use std::fmt;
use std::marker::PhantomData;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use overlay_types::addr::{Family, Subnet};

use super::pool::{Layout, Pool};

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
#[derive(Debug, Clone, Copy)]
pub struct VtepLayout<A> {
    subnet: Subnet,
    family: PhantomData<A>,
}

/// The VTEP addresses of one family.
pub type VtepPool<A> = Pool<VtepLayout<A>>;

impl<A: VtepAddress> Layout for VtepLayout<A> {
    type Item = A;

    fn capacity(&self) -> u128 {
        let no_hosts = match A::FAMILY {
            Family::V4 => 2,
            Family::V6 => 1,
        };
        if self.subnet.family() == A::FAMILY {
            self.subnet.count(A::FAMILY.bits()).saturating_sub(no_hosts)
        } else {
            0
        }
    }

    fn item(&self, slot: u128) -> Option<A> {
        A::of(self.subnet.address_at(slot + FIRST_HOST)?)
    }

    fn slot(&self, address: A) -> Option<u128> {
        self.subnet.offset_of(address.into())?.checked_sub(FIRST_HOST)
    }

    fn slots_within(&self, subnet: &Subnet) -> Option<(u128, u128)> {
        if subnet.covers(&self.subnet) {
            return Some(0).zip(self.capacity().checked_sub(1));
        }
        let first = self.subnet.offset_of(subnet.first())?.saturating_sub(FIRST_HOST);
        let last = self.subnet.offset_of(subnet.last())?.checked_sub(FIRST_HOST)?;
        Some((first, last))
    }

    fn description(&self) -> String {
        format!("the VTEP subnet {}", self.subnet)
    }

    fn foreign_reason(&self) -> String {
        format!("no host address of the VTEP subnet {}", self.subnet)
    }
}

impl<A: VtepAddress> Pool<VtepLayout<A>> {
    /// Returns a pool of all host addresses of `subnet`, at most `u128::MAX`, all unused. The pool
    /// is empty if `subnet` belongs to the other family or is too small.
    #[must_use]
    pub fn new(subnet: Subnet) -> Self {
        Self::with_layout(VtepLayout { subnet, family: PhantomData })
    }

    /// Returns the VTEP subnet.
    #[must_use]
    pub const fn subnet(&self) -> Subnet {
        self.layout.subnet
    }
}
