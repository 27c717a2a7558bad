//! An interface address: an IP address with the prefix length of its subnet, `44.128.0.1/16`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

use super::{Family, Subnet};

/// An IP address and the prefix length of its subnet.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InterfaceAddress(IpNet);

impl InterfaceAddress {
    /// Returns `address` with the prefix length of `subnet`, or `None` if it is outside `subnet`.
    #[must_use]
    pub fn within(subnet: &Subnet, address: IpAddr) -> Option<Self> {
        if !subnet.contains(address) {
            return None;
        }
        IpNet::new(address, subnet.prefix()).ok().map(Self)
    }

    /// Returns the address without the prefix length.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.0.addr()
    }

    /// Returns the prefix length of the subnet.
    #[must_use]
    pub fn prefix(&self) -> u8 {
        self.0.prefix_len()
    }

    /// Returns the address family.
    #[must_use]
    pub const fn family(&self) -> Family {
        match self.0 {
            IpNet::V4(_) => Family::V4,
            IpNet::V6(_) => Family::V6,
        }
    }
}

impl fmt::Display for InterfaceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for InterfaceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The text is not an interface address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no interface address: write address/length, as in 44.128.0.1/16")]
pub struct InterfaceAddressError(String);

impl FromStr for InterfaceAddress {
    type Err = InterfaceAddressError;

    fn from_str(text: &str) -> Result<Self, InterfaceAddressError> {
        text.parse().map(Self).map_err(|_| InterfaceAddressError(text.to_owned()))
    }
}
