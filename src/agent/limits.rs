//! Whether what a master assigns is within the limits of a network. The master may be broken or
//! hostile, or a C++ module: what it sends makes devices, routes and files on this host, so it is
//! held to what a configuration is held to.

use std::collections::BTreeSet;

use crate::addr::{Family, InterfaceAddress, OverlayName, Subnet};
use crate::protocol::limits::{
    OVERLAYS_MAX, agent_prefix_max, check_agent_prefix, check_overlay_subnet, check_vtep_subnet,
};
use crate::protocol::{Assignment, Bridge};

/// What an agent does with an assignment.
#[derive(Debug)]
pub(super) enum Verdict {
    /// It is used.
    Accept(Assignment),
    /// It is beyond the limits, for this reason. What the agent has of the overlay stays in use.
    Keep(OverlayName, String),
    /// It is beyond the limits, for this reason, and nothing of it is used.
    Refuse(Assignment, String),
}

/// Checks a message as a whole.
///
/// # Errors
/// When nothing of it can be used: a sentence for the operator.
pub(super) fn check_message(assignments: &[Assignment]) -> Result<(), String> {
    let count = assignments.len();
    if count > OVERLAYS_MAX {
        return Err(format!("it has {count} overlays, and a network has at most {OVERLAYS_MAX}"));
    }
    let mut names: BTreeSet<&OverlayName> = BTreeSet::new();
    match assignments.iter().find(|one| !names.insert(one.name())) {
        Some(twice) => Err(format!("overlay {} is in it twice", twice.name())),
        None => Ok(()),
    }
}

/// Decides for each assignment of a message whether it is used. The first of two that contradict
/// each other is. `in_use` is what the agent uses of an overlay: it stays where the new assignment
/// is beyond the limits, unless that contradicts what the master assigns within them.
pub(super) fn judge<'a>(
    assignments: Vec<Assignment>,
    in_use: impl Fn(&OverlayName) -> Option<&'a Assignment>,
) -> Vec<Verdict> {
    let mut used: Vec<Assignment> = Vec::with_capacity(assignments.len());
    let mut checked = Vec::with_capacity(assignments.len());
    for assignment in assignments {
        let result = check(&assignment).and_then(|()| check_beside(&assignment, &used));
        if result.is_ok() {
            used.push(assignment.clone());
        }
        checked.push((assignment, result));
    }
    let verdict = |(assignment, result): (Assignment, Result<(), String>)| {
        let Err(reason) = result else { return Verdict::Accept(assignment) };
        let reason = format!(
            "the master's assignment is beyond the limits of a network: {reason}: correct the \
             master's network configuration"
        );
        let kept = in_use(assignment.name()).filter(|kept| check_beside(kept, &used).is_ok());
        match kept {
            Some(kept) => {
                used.push(kept.clone());
                Verdict::Keep(assignment.overlay.name, reason)
            }
            None => Verdict::Refuse(assignment, reason),
        }
    };
    checked.into_iter().map(verdict).collect()
}

/// Checks an assignment by itself.
fn check(assignment: &Assignment) -> Result<(), String> {
    let Assignment { overlay, subnet, subnet6, mesos_bridge, docker_bridge, vtep, .. } = assignment;
    if overlay.range.is_none() && overlay.range6.is_none() {
        return Err("the overlay has no address space".to_owned());
    }
    for (family, own) in [(Family::V4, subnet), (Family::V6, subnet6)] {
        let range = overlay.range_of(family);
        if let Some(range) = range {
            let text = |error: crate::protocol::limits::LimitError| error.to_string();
            check_overlay_subnet(&range.subnet).map_err(text)?;
            check_agent_prefix(range.prefix.into(), &range.subnet).map_err(text)?;
        }
        if let Some(own) = own {
            check_subnet(own, range.map(|range| range.subnet))?;
        }
    }
    let bridges = [
        ("mesos_bridge", mesos_bridge, assignment.name().mesos_bridge()),
        ("docker_bridge", docker_bridge, assignment.name().docker_bridge()),
    ];
    for (key, bridge, name) in bridges {
        let Some(bridge) = bridge else { continue };
        if bridge.name != name {
            return Err(format!("{key} is '{}' instead of '{name}'", bridge.name));
        }
        check_bridge(key, bridge, assignment)?;
    }
    if let (Some(mesos), Some(docker)) = (mesos_bridge, docker_bridge)
        && let Some((one, other)) = overlap(bridge_subnets(mesos), bridge_subnets(docker))
    {
        return Err(format!("'{one}' of mesos_bridge overlaps '{other}' of docker_bridge"));
    }
    if !vtep.device.is_vtep_name() {
        return Err(format!("VXLAN device '{}' does not begin with 'vtep'", vtep.device));
    }
    if !vtep.mac.is_unicast() {
        return Err(format!("VTEP MAC address {} is that of no single host", vtep.mac));
    }
    for address in [Some(vtep.ip), vtep.ip6].into_iter().flatten() {
        check_vtep(address)?;
    }
    match overlap(spaces(assignment), vtep_subnets(assignment)) {
        Some((space, vteps)) => Err(format!("'{space}' overlaps VTEP subnet '{vteps}'")),
        None => Ok(()),
    }
}

/// Checks the agent's subnet of an overlay that has `space` of the same family.
fn check_subnet(own: &Subnet, space: Option<Subnet>) -> Result<(), String> {
    let Some(space) = space.filter(|space| space.covers(own)) else {
        let space = space.map_or_else(|| "none".to_owned(), |space| format!("'{space}'"));
        return Err(format!("'{own}' of this agent is outside of the overlay's space, {space}"));
    };
    let longest = agent_prefix_max(space.family());
    if own.prefix() > longest {
        return Err(format!("'{own}' of this agent has no halves that hold a container"));
    }
    Ok(())
}

fn check_bridge(key: &str, bridge: &Bridge, assignment: &Assignment) -> Result<(), String> {
    for (half, own) in [(bridge.subnet, assignment.subnet), (bridge.subnet6, assignment.subnet6)] {
        let Some(half) = half else { continue };
        if !own.is_some_and(|own| own.covers(&half)) {
            return Err(format!("'{half}' of {key} is outside of the subnet of this agent"));
        }
        if half.prefix() > agent_prefix_max(half.family()) + 1 {
            return Err(format!("'{half}' of {key} holds no container"));
        }
    }
    Ok(())
}

fn check_vtep(address: InterfaceAddress) -> Result<(), String> {
    let Some(subnet) = Subnet::containing(address.address(), address.prefix()) else {
        return Err(format!("VTEP address {address} is in no subnet"));
    };
    check_vtep_subnet(&subnet).map_err(|error| format!("VTEP subnet {error}"))?;
    if !subnet.has_host(address.address()) {
        return Err(format!("VTEP address {address} is that of no host"));
    }
    Ok(())
}

/// Checks an assignment beside those that are used already.
fn check_beside(assignment: &Assignment, used: &[Assignment]) -> Result<(), String> {
    let vtep = &assignment.vtep;
    for other in used {
        let name = other.name();
        if assignment.name().clashes_with(name) {
            return Err(format!("its name differs from '{name}' in case only"));
        }
        if let Some((one, theirs)) = overlap(spaces(assignment), spaces(other)) {
            return Err(format!("'{one}' overlaps '{theirs}' of overlay {name}"));
        }
        let its = &other.vtep;
        if (vtep.ip, vtep.ip6, vtep.mac) != (its.ip, its.ip6, its.mac) {
            return Err(format!("its VTEP has other addresses than that of overlay {name}"));
        }
        if vtep.device == its.device && vtep != its {
            return Err(format!("device {} is another one of overlay {name}", vtep.device));
        }
        if vtep.device != its.device && vtep.vni == its.vni {
            let (vni, device) = (its.vni, &its.device);
            return Err(format!("VNI {vni} is that of device {device} of overlay {name}"));
        }
    }
    // All overlays share one VTEP, so `check` has compared this overlay with every VTEP subnet.
    Ok(())
}

fn spaces(assignment: &Assignment) -> impl Iterator<Item = Subnet> + Clone {
    let ranges = [assignment.overlay.range, assignment.overlay.range6];
    ranges.into_iter().flatten().map(|range| range.subnet)
}

fn vtep_subnets(assignment: &Assignment) -> impl Iterator<Item = Subnet> + Clone {
    let addresses = [Some(assignment.vtep.ip), assignment.vtep.ip6].into_iter().flatten();
    addresses.filter_map(|own| Subnet::containing(own.address(), own.prefix()))
}

fn bridge_subnets(bridge: &Bridge) -> impl Iterator<Item = Subnet> + Clone {
    bridge.subnet.into_iter().chain(bridge.subnet6)
}

/// The first two of both that overlap.
fn overlap(
    some: impl Iterator<Item = Subnet>,
    others: impl Iterator<Item = Subnet> + Clone,
) -> Option<(Subnet, Subnet)> {
    some.into_iter().find_map(|one| {
        let other = others.clone().find(|other| other.overlaps(&one));
        other.map(|other| (one, other))
    })
}
