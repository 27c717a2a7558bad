//! The MTU of a network device.

use std::fmt;

/// An MTU in bytes, 68 to 65535. RFC 791 requires 68 of every link. The kernel accepts at most
/// 65535 for bridges and VXLAN devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mtu(u32);

impl Mtu {
    /// Default container MTU of the C++ modules, and of an agent that does not know the MTU of its
    /// underlay. With the headers of VXLAN (50 bytes over IPv4, 70 over IPv6) a packet fits in an
    /// underlay MTU of 1500, but not in 1460, the MTU of GCE.
    pub const OVERLAY_DEFAULT: Self = Self(1420);
    /// Minimum MTU for IPv4 (RFC 791).
    pub const MIN: u32 = 68;
    /// Minimum MTU for IPv6 (RFC 8200, section 5). Below it the kernel removes IPv6 from a device.
    pub const MIN_IPV6: u32 = 1280;
    /// Maximum MTU of a bridge or a VXLAN device.
    pub const MAX: u32 = 65535;

    /// Creates an MTU of `bytes`.
    ///
    /// # Errors
    /// If `bytes` is outside [`Self::MIN`] to [`Self::MAX`].
    pub const fn new(bytes: u32) -> Result<Self, MtuError> {
        if bytes < Self::MIN || bytes > Self::MAX { Err(MtuError(bytes)) } else { Ok(Self(bytes)) }
    }

    /// Returns the MTU in bytes.
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

/// The kernel would reject an MTU of this size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0} is outside the kernel's range: write {min} to {max}",
    min = Mtu::MIN,
    max = Mtu::MAX
)]
pub struct MtuError(u32);
