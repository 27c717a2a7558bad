//! Writes the iptables chains that check ICMP errors. [`super::nft_errors`] explains the check. The
//! match `u32` compares the destination of the packet inside of an error.

use overlay_types::addr::{Family, Subnet};

use super::iptables::Table;

/// Chain that drops errors.
const ERRORS: &str = "MESOS-OVERLAY-ERR";
/// Chain for errors from tunnels.
const FROM_TUNNEL: &str = "MESOS-OVERLAY-TER";
/// Chain for errors from other devices than bridges and tunnels.
const FROM_OTHER: &str = "MESOS-OVERLAY-OER";
/// Beginning of the names of the chains for errors from one bridge; a number follows.
const FROM_BRIDGE: &str = "MESOS-OVERLAY-E";

/// Returns whether a chain checks errors.
pub(super) fn is_own_chain(name: &str) -> bool {
    let number = name.strip_prefix(FROM_BRIDGE).unwrap_or_default();
    let is_numbered = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    is_numbered || [ERRORS, FROM_TUNNEL, FROM_OTHER].contains(&name)
}

/// Removes the check from a table, for a kernel without the match `u32`.
pub(super) fn remove(table: &mut Table) {
    table.chains.retain(|chain| !is_own_chain(&chain.name));
    for chain in &mut table.chains {
        chain.rules.retain(|rule| !rule.rsplit(' ').next().is_some_and(is_own_chain));
    }
}

/// Returns the rule that checks errors from a bridge.
pub(super) fn from_bridge(family: Family, number: usize) -> String {
    format!("-p {} -j {FROM_BRIDGE}{number}", protocol(family))
}

/// Returns the rule that checks errors from a tunnel.
pub(super) fn from_tunnel(family: Family) -> String {
    format!("-p {} -j {FROM_TUNNEL}", protocol(family))
}

/// Returns the rule that checks errors from other devices.
pub(super) fn from_other(family: Family) -> String {
    format!("-p {} -j {FROM_OTHER}", protocol(family))
}

/// Writes the chain for a bridge with these subnets.
pub(super) fn write_bridge(mangle: &mut Table, number: usize, subnets: &[Subnet]) {
    let mut rules: Vec<_> =
        subnets.iter().map(|own| format!("{} -j RETURN", about(*own))).collect();
    rules.push(format!("-g {ERRORS}"));
    mangle.add(format!("{FROM_BRIDGE}{number}"), rules);
}

/// Writes the other chains. `internal` are the subnets of the overlays and of the VTEPs.
pub(super) fn write(mangle: &mut Table, family: Family, internal: &[Subnet]) {
    let rules = |target: &str| -> Vec<_> {
        internal.iter().map(|subnet| format!("{} {target}", about(*subnet))).collect()
    };
    let mut from_tunnel = rules("-j RETURN");
    from_tunnel.push(format!("-g {ERRORS}"));
    mangle.add(FROM_TUNNEL, from_tunnel);
    mangle.add(FROM_OTHER, rules(&format!("-g {ERRORS}")));
    let types: &[u8] = match family {
        Family::V4 => &[3, 4, 11, 12],
        Family::V6 => &[1, 2, 3, 4],
    };
    let option = if family == Family::V4 { "icmp-type" } else { "icmpv6-type" };
    let protocol = protocol(family);
    let drops = types.iter().map(|kind| format!("-p {protocol} --{option} {kind} -j DROP"));
    mangle.add(ERRORS, drops.collect());
}

/// Returns the name of ICMP.
pub(super) const fn protocol(family: Family) -> &'static str {
    match family {
        Family::V4 => "icmp",
        Family::V6 => "ipv6-icmp",
    }
}

/// Returns the condition that the destination of the packet inside is in a subnet. The condition on
/// IPv6 holds only without extension headers, which would move the offsets.
fn about(subnet: Subnet) -> String {
    let bits = u32::from(subnet.family().bits());
    let (shift, first, is_ipv4) = match subnet.first() {
        std::net::IpAddr::V4(first) => (96, u128::from(u32::from(first)) << 96, true),
        std::net::IpAddr::V6(first) => (0, u128::from(first), false),
    };
    let length = u32::from(subnet.prefix());
    let mask = u128::MAX.checked_shl(bits - length + shift).unwrap_or_default();
    let word = |value: u128, index: u32| (value >> (96 - 32 * index)) & 0xffff_ffff;
    let condition = if is_ipv4 {
        format!("0>>22&0x3C@24&{:#x}={:#x}", word(mask, 0), word(first, 0))
    } else {
        let words = (0..4).filter(|index| word(mask, *index) != 0).map(|index| {
            format!("&&{}&{:#x}={:#x}", 72 + 4 * index, word(mask, index), word(first, index))
        });
        format!("4&0xFF00=0x3A00{}", words.collect::<String>())
    };
    format!("-m u32 --u32 \"{condition}\"")
}
