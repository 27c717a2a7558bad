//! The limits of a network. They apply to a configuration and to the messages of a master, because
//! a master may be broken or hostile, or be a C++ master that does not check its configuration.
//!
//! An error describes the problem. The caller adds the remedy, which depends on the source.

use crate::addr::{Family, Subnet, reserved_range};

/// Maximum number of overlays of a cluster. Each overlay needs two bridges and a Docker network on
/// every agent, and a route to every other agent: 128 overlays and 8,000 agents are a million
/// routes in each kernel.
pub const OVERLAYS_MAX: usize = 128;
/// Shortest prefix of the IPv4 VTEP subnet: the MAC of a VTEP contains 24 bits of its address.
pub const VTEP_PREFIX_MIN: u8 = 8;
/// Longest prefix of the IPv4 VTEP subnet: a /30 has addresses for two agents.
pub const VTEP_PREFIX_MAX: u8 = 30;
/// Longest prefix of the IPv6 VTEP subnet. The first address is the anycast address of the routers,
/// so a /127 has an address for only one VTEP.
pub const VTEP_PREFIX6_MAX: u8 = 126;
/// Longest prefix of an agent's IPv4 subnet. Each half is the subnet of a bridge. The smallest
/// subnet for a container is a /30: network, gateway, container and broadcast address. CNI's
/// host-local and Docker reject a longer prefix.
pub const AGENT_PREFIX_MAX: u8 = 29;
/// Longest prefix of an agent's IPv6 subnet: the longest prefix that has halves. The halves of a
/// prefix longer than /125 have no address for a container, but the address plan accepts them.
pub const AGENT_PREFIX6_MAX: u8 = 127;

/// Why an address range exceeds the limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// The kernel does not route to a part of the subnet.
    #[error("'{subnet}' overlaps the {what} range {range}")]
    Reserved {
        /// The subnet.
        subnet: Subnet,
        /// The reserved range.
        range: Subnet,
        /// The purpose of the range.
        what: &'static str,
    },
    /// Two VTEPs could have the same MAC.
    #[error("'{0}' is too wide: MACs follow from the low 24 bits of VTEP addresses")]
    VtepsTooWide(Subnet),
    /// The subnet has addresses for fewer than two VTEPs.
    #[error("'{0}' has no room for two VTEPs")]
    NoTwoVteps(Subnet),
    /// The subnet of an overlay is smaller than the subnet of an agent.
    #[error("'{0}' is too small for agents")]
    TooSmall(Subnet),
    /// The subnet of an agent would be larger than the subnet of the overlay.
    #[error("{prefix} is shorter than the overlay's '{subnet}'")]
    PrefixTooShort {
        /// The prefix length of an agent's subnet.
        prefix: u64,
        /// The subnet of the overlay.
        subnet: Subnet,
    },
    /// The halves of an agent's subnet would be unusable.
    #[error("{prefix} is too long: {}", prefix_requirement(*.family))]
    PrefixTooLong {
        /// The prefix length of an agent's subnet.
        prefix: u64,
        /// The address family of the overlay.
        family: Family,
    },
}

const fn prefix_requirement(family: Family) -> &'static str {
    match family {
        Family::V4 => {
            "half of an agent's subnet has to hold network, gateway, container and broadcast address"
        }
        Family::V6 => "an agent's subnet is split in two",
    }
}

/// Returns the longest prefix of an agent's subnet.
#[must_use]
pub const fn agent_prefix_max(family: Family) -> u8 {
    match family {
        Family::V4 => AGENT_PREFIX_MAX,
        Family::V6 => AGENT_PREFIX6_MAX,
    }
}

/// Returns the number of VTEPs that fit in `subnet`. The first address is the network address, and
/// the last address of an IPv4 subnet is the broadcast address.
#[must_use]
pub fn vteps_in(subnet: &Subnet) -> u128 {
    let addresses = subnet.count(subnet.family().bits());
    addresses.saturating_sub(if subnet.family() == Family::V4 { 2 } else { 1 })
}

/// Checks that hosts can use the addresses of `subnet`.
///
/// # Errors
/// If the subnet overlaps a reserved range.
pub fn check_space(subnet: &Subnet) -> Result<(), LimitError> {
    match reserved_range(subnet) {
        Some((range, what)) => Err(LimitError::Reserved { subnet: *subnet, range, what }),
        None => Ok(()),
    }
}

/// Checks that `subnet` can be the VTEP subnet.
///
/// # Errors
/// If the subnet is reserved, too large, or too small.
pub fn check_vtep_subnet(subnet: &Subnet) -> Result<(), LimitError> {
    check_space(subnet)?;
    if subnet.family() == Family::V4 && subnet.prefix() < VTEP_PREFIX_MIN {
        return Err(LimitError::VtepsTooWide(*subnet));
    }
    if vteps_in(subnet) < 2 { Err(LimitError::NoTwoVteps(*subnet)) } else { Ok(()) }
}

/// Checks that `subnet` can be the subnet of an overlay.
///
/// # Errors
/// If the subnet is reserved, or is smaller than the subnet of an agent.
pub fn check_overlay_subnet(subnet: &Subnet) -> Result<(), LimitError> {
    check_space(subnet)?;
    if subnet.prefix() > agent_prefix_max(subnet.family()) {
        return Err(LimitError::TooSmall(*subnet));
    }
    Ok(())
}

/// Checks that an overlay with `subnet` can allocate subnets with this prefix length to agents.
///
/// # Errors
/// If such a subnet is larger than the overlay, or too small for two bridges.
pub fn check_agent_prefix(prefix: u64, subnet: &Subnet) -> Result<u8, LimitError> {
    let family = subnet.family();
    match u8::try_from(prefix) {
        Ok(length) if length < subnet.prefix() => {
            Err(LimitError::PrefixTooShort { prefix, subnet: *subnet })
        }
        Ok(length) if length <= agent_prefix_max(family) => Ok(length),
        _ => Err(LimitError::PrefixTooLong { prefix, family }),
    }
}
