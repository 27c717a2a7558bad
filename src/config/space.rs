//! Which address space a network may use at all, and which it had better not.

use crate::addr::{Family, Subnet};

/// Ranges that no network of hosts can use: the kernel does not route to them.
const UNUSABLE: [(&str, &str); 9] = [
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

/// Ranges that are not routed in the Internet (the registries of RFC 6890), so that nobody's hosts
/// are hidden by an overlay there.
const PRIVATE: [&str; 6] =
    ["10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16", "198.18.0.0/15", "fc00::/7"];

/// The VTEP space of the documented example and of DC/OS, although it belongs to radio amateurs: a
/// warning in every cluster would only teach people not to read warnings.
const DOCUMENTED_VTEPS: &str = "44.128.0.0/16";

/// What every Docker engine gives its own bridge.
const DOCKER_DEFAULT: &str = "172.17.0.0/16";

/// The unusable range that `subnet` overlaps, and what it is.
pub(super) fn unusable(subnet: &Subnet) -> Option<(Subnet, &'static str)> {
    UNUSABLE
        .iter()
        .filter_map(|&(range, what)| Some((range.parse::<Subnet>().ok()?, what)))
        .find(|(range, _)| range.overlaps(subnet))
}

/// Whether hosts of the Internet may have addresses of `subnet`.
pub(super) fn is_public(subnet: &Subnet) -> bool {
    !PRIVATE.iter().any(|range| is_within(subnet, range))
}

/// Whether `subnet` is part of the VTEP space that everybody has.
pub(super) fn is_documented_for_vteps(subnet: &Subnet) -> bool {
    is_within(subnet, DOCUMENTED_VTEPS)
}

/// The pool of Docker's own bridge, if it overlaps `subnet`.
pub(super) fn docker_default(subnet: &Subnet) -> Option<Subnet> {
    DOCKER_DEFAULT.parse().ok().filter(|range: &Subnet| range.overlaps(subnet))
}

/// How many VTEPs find room in `subnet`: its first address is the network's, in IPv4 the last one
/// is the broadcast address.
pub(super) fn vteps_in(subnet: &Subnet) -> u128 {
    let addresses = subnet.count(subnet.family().bits());
    addresses.saturating_sub(if subnet.family() == Family::V4 { 2 } else { 1 })
}

fn is_within(subnet: &Subnet, range: &str) -> bool {
    range.parse().is_ok_and(|range: Subnet| range.covers(subnet))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_range_here_is_a_subnet() {
        let ranges = UNUSABLE.iter().map(|(range, _)| *range).chain(PRIVATE);
        for range in ranges.chain([DOCUMENTED_VTEPS, DOCKER_DEFAULT]) {
            assert!(range.parse::<Subnet>().is_ok(), "{range}");
        }
    }
}
