//! An IPv4 or IPv6 subnet without host bits, and the arithmetic of the address plan.
//!
//! One type serves both families. All arithmetic uses `u128`, so a carry across a byte boundary is
//! correct. The C++ modules lose this carry for IPv6.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Returns the number of bits of an address: 32 or 128.
    #[must_use]
    pub const fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// A subnet in CIDR form whose host bits are zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subnet(IpNet);

impl Subnet {
    /// Returns the subnet with prefix length `prefix` that contains `address`, without host bits.
    /// Returns `None` if `prefix` is longer than an address.
    #[must_use]
    pub fn containing(address: IpAddr, prefix: u8) -> Option<Self> {
        IpNet::new(address, prefix).ok().map(|net| Self(net.trunc()))
    }

    /// Returns the address family.
    #[must_use]
    pub const fn family(&self) -> Family {
        match self.0 {
            IpNet::V4(_) => Family::V4,
            IpNet::V6(_) => Family::V6,
        }
    }

    /// Returns the prefix length in bits.
    #[must_use]
    pub const fn prefix(&self) -> u8 {
        match self.0 {
            IpNet::V4(net) => net.prefix_len(),
            IpNet::V6(net) => net.prefix_len(),
        }
    }

    /// Returns the first address: all host bits are zero.
    #[must_use]
    pub const fn first(&self) -> IpAddr {
        match self.0 {
            IpNet::V4(net) => IpAddr::V4(net.addr()),
            IpNet::V6(net) => IpAddr::V6(net.addr()),
        }
    }

    /// Returns the last address: all host bits are one. In IPv4 this is the broadcast address.
    #[must_use]
    pub fn last(&self) -> IpAddr {
        self.0.broadcast()
    }

    /// Whether `address` is in this subnet.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address)
    }

    /// Whether a host of this subnet can have `address`. The first address is the network address
    /// or the anycast address of the routers, and the last one is the broadcast address of IPv4. In
    /// a subnet of two addresses both belong to hosts (RFC 3021).
    #[must_use]
    pub fn has_host(&self, address: IpAddr) -> bool {
        let is_wide = self.prefix() + 1 < self.family().bits();
        let is_edge = address == self.first() || (address.is_ipv4() && address == self.last());
        self.contains(address) && !(is_wide && is_edge)
    }

    /// Whether every address of `other` is in this subnet.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self.0.contains(&other.0)
    }

    /// Whether the two subnets have an address in common.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.covers(other) || other.covers(self)
    }

    /// Returns the offset of `address` from the first address, or `None` if it is outside.
    #[must_use]
    pub fn offset_of(&self, address: IpAddr) -> Option<u128> {
        self.contains(address).then(|| number(address) - number(self.first()))
    }

    /// Returns the address at `offset` from the first address, or `None` if it is outside.
    #[must_use]
    pub fn address_at(&self, offset: u128) -> Option<IpAddr> {
        let sum = number(self.first()).checked_add(offset)?;
        let address = address(self.family(), sum)?;
        self.contains(address).then_some(address)
    }

    /// Returns the number of subnets with prefix length `prefix` in this subnet. The number is 0 if
    /// `prefix` is shorter than this subnet's prefix or longer than an address, and `u128::MAX`
    /// instead of 2^128.
    #[must_use]
    pub const fn count(&self, prefix: u8) -> u128 {
        if prefix < self.prefix() || prefix > self.family().bits() {
            return 0;
        }
        match 1_u128.checked_shl((prefix - self.prefix()) as u32) {
            Some(count) => count,
            None => u128::MAX,
        }
    }

    /// Returns the subnet with prefix length `prefix` at `index`, or `None` past the last subnet.
    #[must_use]
    pub fn nth(&self, prefix: u8, index: u128) -> Option<Self> {
        if index >= self.count(prefix) {
            return None;
        }
        let shift = u32::from(self.family().bits() - prefix);
        // Index 0 of a /0 would shift by all bits. Every other index fits: `count` bounds it.
        let offset = index.checked_shl(shift).unwrap_or(0);
        let address = address(self.family(), number(self.first()) + offset)?;
        Self::containing(address, prefix)
    }

    /// Returns the index of `inner` among the subnets of its length; the inverse of [`Self::nth`].
    #[must_use]
    pub fn index_of(&self, inner: &Self) -> Option<u128> {
        if !self.covers(inner) {
            return None;
        }
        let offset = number(inner.first()) - number(self.first());
        let shift = u32::from(self.family().bits() - inner.prefix());
        Some(offset.checked_shr(shift).unwrap_or(0))
    }

    /// Returns the lower and the upper half, or `None` for a single address.
    #[must_use]
    pub fn halves(&self) -> Option<(Self, Self)> {
        let prefix = self.prefix() + 1;
        Some((self.nth(prefix, 0)?, self.nth(prefix, 1)?))
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

fn address(family: Family, number: u128) -> Option<IpAddr> {
    match family {
        Family::V4 => u32::try_from(number).ok().map(|bits| Ipv4Addr::from(bits).into()),
        Family::V6 => Some(Ipv6Addr::from(number).into()),
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Why a text is not a subnet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubnetError {
    /// The text is not in CIDR notation.
    #[error("'{0}' is no subnet: write address/length, as in 192.168.0.0/17 or fd01:b::/64")]
    Malformed(String),
    /// The address has host bits set.
    #[error("'{given}' has host bits set: write {network}")]
    HostBits {
        /// The given text.
        given: String,
        /// The subnet that contains the given address.
        network: Subnet,
    },
}

impl FromStr for Subnet {
    type Err = SubnetError;

    fn from_str(text: &str) -> Result<Self, SubnetError> {
        let parsed = match text.parse::<Ipv4Net>() {
            Ok(net) => IpNet::V4(net),
            Err(_) => match text.parse::<Ipv6Net>() {
                Ok(net) => IpNet::V6(net),
                Err(_) => return Err(SubnetError::Malformed(text.to_owned())),
            },
        };
        let network = Self(parsed.trunc());
        if network.0 == parsed {
            Ok(network)
        } else {
            Err(SubnetError::HostBits { given: text.to_owned(), network })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(text: &str) -> Subnet {
        text.parse().unwrap()
    }

    #[test]
    fn parse_host_bits_error_names_network() {
        let error = "192.168.0.1/17".parse::<Subnet>().unwrap_err();
        assert_eq!(error.to_string(), "'192.168.0.1/17' has host bits set: write 192.168.0.0/17");
    }

    #[test]
    fn parse_malformed_text_is_refused() {
        for text in ["", "10.0.0.0", "10.0.0.0/33", "10.0.0/8", "fd00::/129", "a/8", "1.2.3.4/-1"] {
            assert!(
                matches!(text.parse::<Subnet>(), Err(SubnetError::Malformed(_))),
                "{text} was accepted"
            );
        }
    }

    #[test]
    fn nth_carries_across_bytes_and_index_of_inverts() {
        let cases = [
            ("192.168.0.0/17", 24, 127, "192.168.127.0/24"),
            ("9.0.0.0/8", 24, 65535, "9.255.255.0/24"),
            ("fd01:b::/64", 80, 256, "fd01:b:0:0:100::/80"),
            ("fd01:b::/64", 81, 3, "fd01:b::1:8000:0:0/81"),
            ("fd01:b::/64", 127, 1, "fd01:b::2/127"),
            ("::/0", 128, 5, "::5/128"),
        ];
        for (outer, prefix, index, expected) in cases {
            let nth = subnet(outer).nth(prefix, index).unwrap();
            assert_eq!(nth.to_string(), expected);
            assert_eq!(subnet(outer).index_of(&nth), Some(index));
        }
    }

    #[test]
    fn nth_past_last_subnet_is_none() {
        assert_eq!(subnet("192.168.0.0/17").count(24), 128);
        assert_eq!(subnet("192.168.0.0/17").nth(24, 128), None);
        assert_eq!(subnet("192.168.0.0/17").nth(16, 0), None);
        assert_eq!(subnet("192.168.0.0/17").nth(33, 0), None);
        assert_eq!(subnet("255.255.255.0/24").nth(32, 255), Some(subnet("255.255.255.255/32")));
        assert_eq!(subnet("0.0.0.0/0").nth(0, 0), Some(subnet("0.0.0.0/0")));
    }

    #[test]
    fn halves_match_recorded_traffic() {
        let (lower, upper) = subnet("fd01:b::/80").halves().unwrap();
        assert_eq!(lower.to_string(), "fd01:b::/81");
        assert_eq!(upper.to_string(), "fd01:b::8000:0:0/81");
        assert_eq!(subnet("10.0.0.1/32").halves(), None);
    }

    #[test]
    fn offset_of_and_address_at_are_inverse() {
        let vteps = subnet("44.128.0.0/16");
        let address = vteps.address_at(257).unwrap();
        assert_eq!(address.to_string(), "44.128.1.1");
        assert_eq!(vteps.offset_of(address), Some(257));
        assert_eq!(vteps.address_at(65536), None);
        assert_eq!(vteps.offset_of("44.129.0.0".parse().unwrap()), None);
    }
}
