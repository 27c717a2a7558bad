//! Address ranges that are unwise in a network.

use overlay_types::addr::Subnet;

/// Ranges that are not routed in the Internet (the registries of RFC 6890). An overlay in them
/// hides no public host.
const PRIVATE: [&str; 6] =
    ["10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16", "198.18.0.0/15", "fc00::/7"];

/// The VTEP range of DC/OS and of the C++ modules' example. It belongs to amateur radio, but a
/// warning in every cluster would teach operators to ignore warnings.
const DCOS_VTEPS: &str = "44.128.0.0/16";

/// The default range of the bridge of a Docker engine.
const DOCKER_DEFAULT: &str = "172.17.0.0/16";

/// Whether `subnet` may contain addresses of Internet hosts.
pub(super) fn is_public(subnet: &Subnet) -> bool {
    !PRIVATE.iter().any(|range| is_within(subnet, range))
}

/// Whether `subnet` is inside the VTEP range of DC/OS.
pub(super) fn is_dcos_vtep_range(subnet: &Subnet) -> bool {
    is_within(subnet, DCOS_VTEPS)
}

/// Returns the default range of Docker's bridge if the range overlaps `subnet`.
pub(super) fn overlapping_docker_default(subnet: &Subnet) -> Option<Subnet> {
    DOCKER_DEFAULT.parse().ok().filter(|range: &Subnet| range.overlaps(subnet))
}

fn is_within(subnet: &Subnet, range: &str) -> bool {
    range.parse().is_ok_and(|range: Subnet| range.covers(subnet))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_parse_as_subnets() {
        for range in PRIVATE.into_iter().chain([DCOS_VTEPS, DOCKER_DEFAULT]) {
            assert!(range.parse::<Subnet>().is_ok(), "{range}");
        }
    }
}
