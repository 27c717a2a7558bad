//! Names of overlays and of network devices.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::Vni;

/// Prefix of the bridge for the MesosContainerizer.
pub const MESOS_BRIDGE_PREFIX: &str = "m-";
/// Prefix of the bridge for the DockerContainerizer.
pub const DOCKER_BRIDGE_PREFIX: &str = "d-";

/// Prefix of the names of VXLAN devices.
pub const VTEP_PREFIX: &str = "vtep";

/// Longest device name in bytes: `IFNAMSIZ` of `linux/if.h` is 16, including the final zero byte.
const DEVICE_NAME_MAX: usize = 15;
/// Longest overlay name: the names of its bridges also contain a prefix.
const OVERLAY_NAME_MAX: usize = DEVICE_NAME_MAX - MESOS_BRIDGE_PREFIX.len();
/// Names of networks that every Docker engine or Mesos predefines.
const RESERVED: [&str; 4] = ["host", "bridge", "default", "none"];

/// Name of an overlay network. The Docker network, the CNI network and the CNI file have the same
/// name. Two bridges have this name with a prefix. So the name must be valid in all these places.
/// Clones share the text, because every subnet of every agent refers to a name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OverlayName(Arc<str>);

impl OverlayName {
    /// Returns the name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether one network cannot contain both names. Names that differ only in case conflict: the
    /// port mapper names its iptables chain after the bridge, in upper case.
    #[must_use]
    pub fn clashes_with(&self, other: &Self) -> bool {
        self.as_str().eq_ignore_ascii_case(other.as_str())
    }

    /// Returns the name of the bridge for the MesosContainerizer, `m-NAME`.
    #[must_use]
    pub fn mesos_bridge(&self) -> DeviceName {
        DeviceName(format!("{MESOS_BRIDGE_PREFIX}{}", self.0).into())
    }

    /// Returns the name of the bridge for the DockerContainerizer, `d-NAME`.
    #[must_use]
    pub fn docker_bridge(&self) -> DeviceName {
        DeviceName(format!("{DOCKER_BRIDGE_PREFIX}{}", self.0).into())
    }
}

impl fmt::Display for OverlayName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for OverlayName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// Why a text is not a valid overlay name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OverlayNameError {
    /// The text is empty.
    #[error("is empty: write 1 to {OVERLAY_NAME_MAX} characters")]
    Empty,
    /// The names of the bridges would exceed the limit of the kernel.
    #[error(
        "'{0}' is {len} bytes long: write at most {OVERLAY_NAME_MAX}, since the bridge m-NAME is a \
         network device",
        len = .0.len()
    )]
    TooLong(String),
    /// Docker or Mesos predefines a network with this name.
    #[error(
        "'{0}' is reserved by Docker and Mesos: write another name than {list}",
        list = RESERVED.join(", ")
    )]
    Reserved(String),
    /// Docker, the kernel or a file system rejects a character.
    #[error(
        "'{name}' contains {character:?}: write letters, digits, '_', '.' and '-', the first a \
         letter or a digit",
        name = .0.escape_debug(), character = .1
    )]
    Character(String, char),
}

impl FromStr for OverlayName {
    type Err = OverlayNameError;

    fn from_str(text: &str) -> Result<Self, OverlayNameError> {
        let Some(first) = text.chars().next() else {
            return Err(OverlayNameError::Empty);
        };
        // Docker's rule for names (moby, `RestrictedNameChars`), which is stricter than the
        // kernel's.
        let is_allowed = |letter: char| letter.is_ascii_alphanumeric() || "_.-".contains(letter);
        let bad = if first.is_ascii_alphanumeric() {
            text.chars().find(|&letter| !is_allowed(letter))
        } else {
            Some(first)
        };
        if let Some(character) = bad {
            return Err(OverlayNameError::Character(text.to_owned(), character));
        }
        if RESERVED.contains(&text) {
            return Err(OverlayNameError::Reserved(text.to_owned()));
        }
        if text.len() > OVERLAY_NAME_MAX {
            return Err(OverlayNameError::TooLong(text.to_owned()));
        }
        Ok(Self(text.into()))
    }
}

/// Name of a network device. The kernel accepts it (`dev_valid_name`), and its characters are safe
/// in a path and on a command line. Clones share the text, because every route refers to a device.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceName(Arc<str>);

impl DeviceName {
    /// Returns the name of the VXLAN device for a VNI: `vtep1024`, as in the C++ modules and
    /// dcos-net.
    #[must_use]
    pub fn vtep(vni: Vni) -> Self {
        Self(format!("{VTEP_PREFIX}{vni}").into())
    }

    /// Whether a managed VXLAN device may have this name. NetworkManager and systemd-networkd
    /// ignore such devices, and no bridge, `lo` or host interface has such a name.
    #[must_use]
    pub fn is_vtep_name(&self) -> bool {
        self.0.starts_with(VTEP_PREFIX)
    }

    /// Returns the name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// The text is not a valid name of a network device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{name}' cannot name a network device: write 1 to {DEVICE_NAME_MAX} letters, digits, '_', \
     '.' and '-', the first a letter or a digit",
    name = .0.escape_debug()
)]
pub struct DeviceNameError(String);

impl FromStr for DeviceName {
    type Err = DeviceNameError;

    fn from_str(text: &str) -> Result<Self, DeviceNameError> {
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        let starts_well = text.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric);
        if starts_well && text.len() <= DEVICE_NAME_MAX && text.bytes().all(is_allowed) {
            Ok(Self(text.into()))
        } else {
            Err(DeviceNameError(text.to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlay_name_over_13_characters_is_refused() {
        let name: OverlayName = "vxlan-1234567".parse().unwrap();
        assert_eq!(name.mesos_bridge().as_str(), "m-vxlan-1234567");
        assert_eq!(name.mesos_bridge().as_str().parse(), Ok(name.mesos_bridge()));
        assert_eq!(
            "vxlan-12345678".parse::<OverlayName>().unwrap_err().to_string(),
            "'vxlan-12345678' is 14 bytes long: write at most 13, since the bridge m-NAME is a \
             network device"
        );
    }

    #[test]
    fn overlay_name_with_unsafe_or_reserved_text_is_refused() {
        for text in ["a b", "a/b", "..", ".a", "-a", "a:b", "a\nb", "über", "a;rm", "a$b"] {
            assert!(
                matches!(text.parse::<OverlayName>(), Err(OverlayNameError::Character(..))),
                "{text:?} was accepted"
            );
            assert!(text.parse::<DeviceName>().is_err(), "{text:?} was accepted as a device");
        }
        for text in RESERVED {
            assert_eq!(
                text.parse::<OverlayName>(),
                Err(OverlayNameError::Reserved(text.to_owned()))
            );
        }
        assert_eq!("".parse::<OverlayName>(), Err(OverlayNameError::Empty));
    }
}
