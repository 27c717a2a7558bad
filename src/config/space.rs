//! Which address space a network had better not use.

use crate::addr::Subnet;

/// Ranges that are not routed in the Internet (the registries of RFC 6890), so that nobody's hosts
/// are hidden by an overlay there.
const PRIVATE: [&str; 6] =
    ["10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16", "198.18.0.0/15", "fc00::/7"];

/// The VTEP space of the documented example and of DC/OS, although it belongs to radio amateurs: a
/// warning in every cluster would only teach people not to read warnings.
const DOCUMENTED_VTEPS: &str = "44.128.0.0/16";

/// What every Docker engine gives its own bridge.
const DOCKER_DEFAULT: &str = "172.17.0.0/16";

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

fn is_within(subnet: &Subnet, range: &str) -> bool {
    range.parse().is_ok_and(|range: Subnet| range.covers(subnet))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_range_here_is_a_subnet() {
        for range in PRIVATE.into_iter().chain([DOCUMENTED_VTEPS, DOCKER_DEFAULT]) {
            assert!(range.parse::<Subnet>().is_ok(), "{range}");
        }
    }
}
