//! Reserved address ranges, and special addresses that no single host can have.

use std::net::{IpAddr, Ipv4Addr};

use super::Subnet;

/// Ranges that the kernel does not route to.
const RESERVED: [(&str, &str); 9] = [
    ("0.0.0.0/8", "unspecified"),
    ("127.0.0.0/8", "loopback"),
    ("169.254.0.0/16", "link-local"),
    ("224.0.0.0/4", "multicast"),
    ("::/128", "unspecified"),
    ("::1/128", "loopback"),
    ("::ffff:0.0.0.0/96", "IPv4-mapped"),
    ("fe80::/10", "link-local"),
    ("ff00::/8", "multicast"),
];

/// Returns the reserved range that `subnet` overlaps, and the purpose of that range.
#[must_use]
pub fn reserved_range(subnet: &Subnet) -> Option<(Subnet, &'static str)> {
    RESERVED
        .iter()
        .filter_map(|&(range, purpose)| Some((range.parse::<Subnet>().ok()?, purpose)))
        .find(|(range, _)| range.overlaps(subnet))
}

/// Returns the kind of a special address, with its article. Returns `None` for a unicast address
/// that other hosts can send to. IPv4 link-local addresses count as unicast: they need no scope.
#[must_use]
pub fn special_address(address: IpAddr) -> Option<&'static str> {
    let is_unspecified = match address {
        IpAddr::V4(ip) => ip.octets()[0] == 0,
        IpAddr::V6(ip) => ip.is_unspecified(),
    };
    if is_unspecified {
        return Some("an unspecified");
    }
    if address.is_loopback() {
        return Some("a loopback");
    }
    if address.is_multicast() {
        return Some("a multicast");
    }
    match address {
        IpAddr::V4(ip) => (ip == Ipv4Addr::BROADCAST).then_some("a broadcast"),
        // A socket treats this address as IPv4, and a comparison of addresses does not.
        IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some() => Some("an IPv4-mapped"),
        // Hosts can only send to this address if they know the device.
        IpAddr::V6(ip) if ip.is_unicast_link_local() => Some("a link-local"),
        // Deprecated by RFC 4291, section 2.5.5.1, and never routed.
        IpAddr::V6(ip) => (ip.segments()[..6] == [0; 6]).then_some("an IPv4-compatible"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_ranges_are_subnets() {
        for (range, _) in RESERVED {
            assert!(range.parse::<Subnet>().is_ok(), "{range}");
        }
    }

    #[test]
    fn special_address_returns_kind() {
        let cases = [
            ("0.0.0.0", "an unspecified"),
            ("0.1.2.3", "an unspecified"),
            ("127.0.0.1", "a loopback"),
            ("224.0.0.1", "a multicast"),
            ("255.255.255.255", "a broadcast"),
            ("::", "an unspecified"),
            ("::1", "a loopback"),
            ("ff02::1", "a multicast"),
            ("::ffff:10.0.0.1", "an IPv4-mapped"),
            ("::10.0.0.1", "an IPv4-compatible"),
            ("fe80::1", "a link-local"),
            ("febf::1", "a link-local"),
        ];
        for (address, expected) in cases {
            assert_eq!(special_address(address.parse().unwrap()), Some(expected), "{address}");
        }
        for address in ["10.0.0.1", "169.254.1.1", "fd00::1", "2001:db8::1", "64:ff9b::a00:1"] {
            assert_eq!(special_address(address.parse().unwrap()), None, "{address}");
        }
    }
}
