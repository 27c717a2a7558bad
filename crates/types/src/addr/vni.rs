//! VXLAN network identifiers.

use std::fmt;

/// A VXLAN network identifier, 24 bits (RFC 7348, section 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vni(u32);

impl Vni {
    /// The VNI that the C++ modules use for all overlays.
    pub const DEFAULT: Self = Self(1024);

    /// Creates a VNI.
    ///
    /// # Errors
    /// If `number` needs more than 24 bits.
    pub const fn new(number: u32) -> Result<Self, VniError> {
        if number >> 24 == 0 { Ok(Self(number)) } else { Err(VniError(number)) }
    }

    /// Returns the number.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The number needs more than 24 bits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0} is no VXLAN network identifier: write 0 to 16777215")]
pub struct VniError(u32);
