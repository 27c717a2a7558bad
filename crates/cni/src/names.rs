//! Names and MACs that follow from an attachment. So DEL finds the port without the namespace, and
//! an address that is used again has the same MAC.

use std::fmt::Write as _;
use std::net::IpAddr;

use overlay_types::addr::{DeviceName, InterfaceAddress, Mac, OverlayName};
use sha2::{Digest as _, Sha256};

use crate::error::{ErrorCode, PluginError};
use crate::request::Attachment;

/// The names of the ports begin as those of other container networks: NetworkManager and
/// systemd-networkd leave such devices alone.
const PORT_PREFIX: &str = "veth";
/// Number of hexadecimal digits after the prefix: the kernel accepts 15 bytes. The names that
/// bridge makes have 8.
const PORT_DIGITS: usize = 11;
/// Longest alias of a device, in bytes (`IFALIASZ`, with the final zero).
const ALIAS_MAX: usize = 255;

/// The port of an attachment at the bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortNames {
    /// The device of the host.
    pub device: DeviceName,
    /// The MAC of the device of the host. It is higher than the MACs of other devices, so a bridge
    /// without an own MAC does not take it.
    pub mac: Mac,
    /// The alias of the device of the host, for operators.
    pub alias: String,
}

impl PortNames {
    /// Derives the names of an attachment to a network.
    ///
    /// # Errors
    /// Never: the name has only letters and digits.
    pub fn new(network: &OverlayName, attachment: &Attachment) -> Result<Self, PluginError> {
        let (container, interface) = (&attachment.container, &attachment.interface);
        let parts = [network.as_str(), container.as_str(), interface.as_str()];
        let digest = Sha256::digest(parts.join("\0").as_bytes());
        let mut device = PORT_PREFIX.to_owned();
        for byte in digest.iter().take(PORT_DIGITS.div_ceil(2)) {
            let _ = write!(device, "{byte:02x}");
        }
        device.truncate(PORT_PREFIX.len() + PORT_DIGITS);
        let device = device
            .parse::<DeviceName>()
            .map_err(|error| PluginError::new(ErrorCode::Io, format!("name the port: {error}")))?;
        let [.., a, b, c, d, e] = digest[..] else {
            return Err(PluginError::new(ErrorCode::Io, "the digest has no bytes"));
        };
        let mut alias = format!("cni {network} {interface} {container}");
        alias.truncate(ALIAS_MAX);
        Ok(Self { device, mac: Mac::from([0xfe, a, b, c, d, e]), alias })
    }
}

/// Returns the MAC of a container. The first address decides: an IPv4 address, or one of IPv6 whose
/// last 32 bits are unique in its subnet.
#[must_use]
pub fn container_mac(address: IpAddr) -> Mac {
    mac(0x4d, address)
}

/// Returns the MAC of a bridge. It stays the same when the bridge is made again.
#[must_use]
pub fn bridge_mac(gateway: &InterfaceAddress) -> Mac {
    mac(0x4e, gateway.address())
}

fn mac(kind: u8, address: IpAddr) -> Mac {
    // Locally administered addresses of single hosts.
    let (first, [a, b, c, d]) = match address {
        IpAddr::V4(address) => (0x02, address.octets()),
        IpAddr::V6(address) => {
            let [.., a, b, c, d] = address.octets();
            (0x06, [a, b, c, d])
        }
    };
    Mac::from([first, kind, a, b, c, d])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(network: &str, container: &str, interface: &str) -> PortNames {
        let attachment = Attachment::new(container, interface).unwrap();
        PortNames::new(&network.parse().unwrap(), &attachment).unwrap()
    }

    #[test]
    fn names_follow_from_attachment() {
        let found = names("vxlan-1", "c1", "eth0");
        assert_eq!(found, names("vxlan-1", "c1", "eth0"));
        assert_eq!(found.device.as_str().len(), 15);
        assert!(found.device.as_str().starts_with("veth"));
        assert_eq!(found.alias, "cni vxlan-1 eth0 c1");
        assert!(found.mac.is_unicast() && found.mac.octets()[0] == 0xfe);
        for other in [
            names("vxlan-2", "c1", "eth0"),
            names("vxlan-1", "c2", "eth0"),
            names("vxlan-1", "c1", "eth1"),
        ] {
            assert_ne!((&other.device, other.mac), (&found.device, found.mac));
        }
        assert_eq!(names("vxlan-1", &"c".repeat(256), "eth0").alias.len(), ALIAS_MAX);
    }

    #[test]
    fn mac_follows_from_address() {
        let mac = |address: &str| container_mac(address.parse().unwrap()).to_string();
        assert_eq!(mac("192.168.0.2"), "02:4d:c0:a8:00:02");
        assert_eq!(mac("fd01:b::102:304"), "06:4d:01:02:03:04");
        let gateway = "192.168.0.1/25".parse().unwrap();
        assert_eq!(bridge_mac(&gateway).to_string(), "02:4e:c0:a8:00:01");
    }
}
