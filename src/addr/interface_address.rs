//! An address with the length of the subnet that it lives in, as an interface has it:
//! `44.128.0.1/16`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

use super::{Family, Subnet};

/// An address and the length of its subnet.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InterfaceAddress(IpNet);

impl InterfaceAddress {
    /// `address` as a host of `subnet`; `None` if it lies outside.
    #[must_use]
    pub fn within(subnet: &Subnet, address: IpAddr) -> Option<Self> {
        if !subnet.contains(address) {
            return None;
        }
        IpNet::new(address, subnet.prefix()).ok().map(Self)
    }

    /// The address alone.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.0.addr()
    }

    /// Length of the subnet that it lives in.
    #[must_use]
    pub fn prefix(&self) -> u8 {
        self.0.prefix_len()
    }

    /// The family of the address.
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

/// Why a text is no interface address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no interface address: write address/length, as in 44.128.0.1/16")]
pub struct InterfaceAddressError(String);

impl FromStr for InterfaceAddress {
    type Err = InterfaceAddressError;

    fn from_str(text: &str) -> Result<Self, InterfaceAddressError> {
        text.parse().map(Self).map_err(|_| InterfaceAddressError(text.to_owned()))
    }
}
