//! The MTU of a device, within what the kernel takes.

use std::fmt;

/// An MTU in bytes, 68 to 65535: RFC 791 demands 68 of every link and the kernel's bridges and
/// VXLAN devices take no more than 65535.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mtu(u32);

impl Mtu {
    /// What the C++ modules give containers by default: room for VXLAN in 1500, and for GCE's 1460.
    pub const OVERLAY_DEFAULT: Self = Self(1420);
    /// The least that carries IPv4 (RFC 791).
    pub const MIN: u32 = 68;
    /// The least that carries IPv6 (RFC 8200, section 5); below it the kernel drops IPv6 from a
    /// device.
    pub const MIN_IPV6: u32 = 1280;
    /// The most that the kernel takes for a bridge or a VXLAN device.
    pub const MAX: u32 = 65535;

    /// `bytes` as an MTU.
    ///
    /// # Errors
    /// When the kernel would refuse it.
    pub const fn new(bytes: u32) -> Result<Self, MtuError> {
        if bytes < Self::MIN || bytes > Self::MAX { Err(MtuError(bytes)) } else { Ok(Self(bytes)) }
    }

    /// The MTU in bytes.
    #[must_use]
    pub const fn bytes(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Mtu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// An MTU that the kernel would refuse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0} is outside what the kernel takes: write {min} to {max}",
    min = Mtu::MIN,
    max = Mtu::MAX
)]
pub struct MtuError(u32);
