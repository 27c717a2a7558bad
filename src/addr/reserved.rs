//! Address space that no network of hosts can use, and addresses that no single host has.

use std::net::{IpAddr, Ipv4Addr};

use super::Subnet;

/// Ranges that no network of hosts can use: the kernel does not route to them.
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

/// The reserved range that `subnet` overlaps, and what it is.
#[must_use]
pub fn reserved_range(subnet: &Subnet) -> Option<(Subnet, &'static str)> {
    RESERVED
        .iter()
        .filter_map(|&(range, what)| Some((range.parse::<Subnet>().ok()?, what)))
        .find(|(range, _)| range.overlaps(subnet))
}

/// What `address` is, with its article, if it is not an address of one ordinary host that other
/// hosts can send to. IPv4 link-local addresses are such addresses: they need no scope.
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
        // A socket takes it for an IPv4 address, and a comparison of addresses does not.
        IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some() => Some("an IPv4-mapped"),
        // Without the name of a device nobody can send to it.
        IpAddr::V6(ip) if ip.is_unicast_link_local() => Some("a link-local"),
        // Deprecated by RFC 4291, section 2.5.5.1, and routed nowhere.
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
    fn special_address_of_no_single_host_is_named() {
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
