//! The limits of a network. A configuration is held to them, and so is what a master sends: it may
//! be broken or hostile, or a C++ master whose configuration nobody has checked.
//!
//! An error says what is wrong. What to do depends on where it is found, and is said there.

use crate::addr::{Family, Subnet, reserved_range};

/// Most overlays of a cluster. Each is two bridges and a Docker network on every agent and a route
/// to every other agent: 128 of them among 8,000 agents are a million routes in each kernel.
pub const OVERLAYS_MAX: usize = 128;
/// Widest VTEP subnet in IPv4: the MAC of a VTEP ends in the low 24 bits of its address.
pub const VTEP_PREFIX_MIN: u8 = 8;
/// Smallest VTEP subnet in IPv4: one of two agents.
pub const VTEP_PREFIX_MAX: u8 = 30;
/// Smallest VTEP subnet in IPv6: the first address is the routers' anycast address, so a /127 has
/// one.
pub const VTEP_PREFIX6_MAX: u8 = 126;
/// Longest subnet of an agent in IPv4. Each half of it is a bridge's subnet, and the least that
/// holds a container is a /30: network, gateway, container, broadcast; CNI's host-local and Docker
/// refuse less.
pub const AGENT_PREFIX_MAX: u8 = 29;
/// Longest subnet of an agent in IPv6: the longest that has halves. The address plan is exact up to
/// there, so it is not refused, though the halves of anything longer than a /125 hold no container.
pub const AGENT_PREFIX6_MAX: u8 = 127;

/// Why address space is beyond the limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// The kernel does not route there.
    #[error("'{subnet}' overlaps the {what} range {range}")]
    Reserved {
        /// The space.
        subnet: Subnet,
        /// The range.
        range: Subnet,
        /// What the range is.
        what: &'static str,
    },
    /// Two VTEPs could have one MAC.
    #[error("'{0}' is too wide: MACs follow from the low 24 bits of VTEP addresses")]
    VtepsTooWide(Subnet),
    /// No tunnel has two ends there.
    #[error("'{0}' has no room for two VTEPs")]
    NoTwoVteps(Subnet),
    /// The space of an overlay is less than what one agent needs.
    #[error("'{0}' is too small for agents")]
    TooSmall(Subnet),
    /// The subnet of an agent would be wider than the overlay.
    #[error("{prefix} is shorter than the overlay's '{subnet}'")]
    PrefixTooShort {
        /// The length of an agent's subnet.
        prefix: u64,
        /// The space of the overlay.
        subnet: Subnet,
    },
    /// The subnet of an agent cannot be used in halves.
    #[error("{prefix} is too long: {}", halves_need(*.family))]
    PrefixTooLong {
        /// The length of an agent's subnet.
        prefix: u64,
        /// The family of the overlay's space.
        family: Family,
    },
}

const fn halves_need(family: Family) -> &'static str {
    match family {
        Family::V4 => {
            "half of an agent's subnet has to hold network, gateway, container and broadcast address"
        }
        Family::V6 => "an agent's subnet is split in two",
    }
}

/// The longest subnet of an agent.
#[must_use]
pub const fn agent_prefix_max(family: Family) -> u8 {
    match family {
        Family::V4 => AGENT_PREFIX_MAX,
        Family::V6 => AGENT_PREFIX6_MAX,
    }
}

/// How many VTEPs find room in `subnet`: its first address is the network's, in IPv4 the last one
/// is the broadcast address.
#[must_use]
pub fn vteps_in(subnet: &Subnet) -> u128 {
    let addresses = subnet.count(subnet.family().bits());
    addresses.saturating_sub(if subnet.family() == Family::V4 { 2 } else { 1 })
}

/// Checks that hosts can have addresses of `subnet` at all.
///
/// # Errors
/// When the kernel does not route to part of it.
pub fn check_space(subnet: &Subnet) -> Result<(), LimitError> {
    match reserved_range(subnet) {
        Some((range, what)) => Err(LimitError::Reserved { subnet: *subnet, range, what }),
        None => Ok(()),
    }
}

/// Checks that `subnet` can be the space of the VTEPs.
///
/// # Errors
/// When it is reserved, too wide, or too small.
pub fn check_vtep_subnet(subnet: &Subnet) -> Result<(), LimitError> {
    check_space(subnet)?;
    if subnet.family() == Family::V4 && subnet.prefix() < VTEP_PREFIX_MIN {
        return Err(LimitError::VtepsTooWide(*subnet));
    }
    if vteps_in(subnet) < 2 { Err(LimitError::NoTwoVteps(*subnet)) } else { Ok(()) }
}

/// Checks that `subnet` can be the whole space of an overlay.
///
/// # Errors
/// When it is reserved, or no agent finds room in it.
pub fn check_overlay_subnet(subnet: &Subnet) -> Result<(), LimitError> {
    check_space(subnet)?;
    if subnet.prefix() > agent_prefix_max(subnet.family()) {
        return Err(LimitError::TooSmall(*subnet));
    }
    Ok(())
}

/// Checks that agents can get subnets of this length of an overlay that has `subnet`.
///
/// # Errors
/// When they would be wider than the overlay, or too small for two bridges.
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
