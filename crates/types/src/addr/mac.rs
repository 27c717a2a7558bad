//! MAC addresses of VTEPs. The upper half is configured. The lower half follows from the IPv4
//! address of the VTEP: the store need not keep the MAC, and an operator can compute it.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// A MAC address. `Display` writes lower case, like stout.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac([u8; 6]);

impl Mac {
    /// Returns the MAC of the VTEP at `ip`: the OUI, then the low 24 bits of `ip`. The MAC is
    /// unique if all VTEPs are in one /8.
    #[must_use]
    pub const fn for_vtep(oui: Oui, ip: Ipv4Addr) -> Self {
        let [first, second, third] = oui.0;
        let [_, b, c, d] = ip.octets();
        Self([first, second, third, b, c, d])
    }

    /// Whether the MAC is the address of a single host. Group addresses are not, and neither are
    /// all zeros: in an FDB entry the kernel takes them as the default destination.
    #[must_use]
    pub fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }

    /// Returns the six bytes in transmission order.
    #[must_use]
    pub const fn octets(self) -> [u8; 6] {
        self.0
    }
}

impl From<[u8; 6]> for Mac {
    fn from(octets: [u8; 6]) -> Self {
        Self(octets)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not a MAC address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no MAC address: write six bytes in hexadecimal, as in 70:b3:d5:80:00:01")]
pub struct MacError(String);

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            *octet = parts
                .next()
                .filter(|part| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit()))
                .and_then(|part| u8::from_str_radix(part, 16).ok())
                .ok_or_else(|| MacError(text.to_owned()))?;
        }
        if parts.next().is_some() {
            return Err(MacError(text.to_owned()));
        }
        Ok(Self(octets))
    }
}

/// The upper 24 bits of the MAC of every VTEP; a unicast OUI. The configuration writes it as a full
/// MAC address whose lower half is zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Oui([u8; 3]);

impl fmt::Display for Oui {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c] = self.0;
        write!(f, "{a:02X}:{b:02X}:{c:02X}:00:00:00")
    }
}

impl fmt::Debug for Oui {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is not an OUI for VTEPs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OuiError {
    /// The text is not a MAC address.
    #[error("'{0}' is no MAC address: write six bytes in hexadecimal, as in 70:B3:D5:00:00:00")]
    Malformed(String),
    /// The lower half is not zero.
    #[error("'{given}' has its lower half set: write {oui}, the rest follows from the VTEP IP")]
    LowerHalf {
        /// The given text.
        given: String,
        /// The OUI in the given text.
        oui: Oui,
    },
    /// The group bit is set (IEEE 802).
    #[error(
        "'{given}' is a multicast address: the first byte must be even, as in 70:B3:D5:00:00:00"
    )]
    Multicast {
        /// The given text.
        given: String,
    },
}

impl FromStr for Oui {
    type Err = OuiError;

    fn from_str(text: &str) -> Result<Self, OuiError> {
        let mac: Mac = text.parse().map_err(|_| OuiError::Malformed(text.to_owned()))?;
        let [a, b, c, lower @ ..] = mac.octets();
        let oui = Self([a, b, c]);
        if a & 1 == 1 {
            return Err(OuiError::Multicast { given: text.to_owned() });
        }
        if lower != [0; 3] {
            return Err(OuiError::LowerHalf { given: text.to_owned(), oui });
        }
        Ok(oui)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vtep_mac_matches_recorded_traffic() {
        let oui = "70:B3:D5:00:00:00".parse().unwrap();
        let mac = Mac::for_vtep(oui, Ipv4Addr::new(44, 128, 0, 1));
        assert_eq!(mac.to_string(), "70:b3:d5:80:00:01");
        assert_eq!("70:b3:d5:80:00:01".parse(), Ok(mac));
    }

    #[test]
    fn bad_oui_is_refused_with_remedy() {
        let message = |text: &str| text.parse::<Oui>().unwrap_err().to_string();
        assert_eq!(
            message("71:B3:D5:00:00:00"),
            "'71:B3:D5:00:00:00' is a multicast address: the first byte must be even, as in \
             70:B3:D5:00:00:00"
        );
        assert_eq!(
            message("70:B3:D5:00:00:01"),
            "'70:B3:D5:00:00:01' has its lower half set: write 70:B3:D5:00:00:00, the rest follows \
             from the VTEP IP"
        );
        for text in ["", "70:B3:D5", "70:B3:D5:0:0:0", "70-B3-D5-00-00-00", "+0:B3:D5:00:00:00"] {
            assert!(message(text).contains("is no MAC address"), "{text} was accepted");
        }
    }
}
