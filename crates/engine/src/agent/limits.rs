//! Checks assignments against the limits of a network. The master may be broken or hostile, or a C++
//! module. An assignment creates devices, routes and files on this host, so it has to meet the same
//! limits as a configuration.

use std::collections::BTreeSet;

use overlay_types::addr::{Family, InterfaceAddress, OverlayName, Subnet};
use overlay_types::protocol::limits::{
    OVERLAYS_MAX, agent_prefix_max, check_agent_prefix, check_overlay_subnet, check_vtep_subnet,
};
use overlay_types::protocol::{Assignment, Bridge};

/// The result of the check of an assignment.
#[derive(Debug)]
pub(super) enum Verdict {
    /// The agent uses the assignment.
    Accept(Assignment),
    /// The assignment exceeds a limit, for this reason. The previous assignment of the overlay stays
    /// in use.
    Keep(OverlayName, String),
    /// The assignment exceeds a limit, for this reason, and the agent does not use it.
    Refuse(Assignment, String),
}

impl Verdict {
    /// Returns the name of the overlay.
    pub(super) const fn overlay(&self) -> &OverlayName {
        match self {
            Self::Accept(assignment) | Self::Refuse(assignment, _) => assignment.name(),
            Self::Keep(overlay, _) => overlay,
        }
    }
}

/// Checks a message as a whole.
///
/// # Errors
/// Returns a sentence for the operator if the agent cannot use any part of the message.
pub(super) fn check_message(assignments: &[Assignment]) -> Result<(), String> {
    let count = assignments.len();
    if count > OVERLAYS_MAX {
        return Err(format!("it has {count} overlays, and a network has at most {OVERLAYS_MAX}"));
    }
    let mut names: BTreeSet<&OverlayName> = BTreeSet::new();
    match assignments.iter().find(|assignment| !names.insert(assignment.name())) {
        Some(duplicate) => Err(format!("it names overlay {} twice", duplicate.name())),
        None => Ok(()),
    }
}

/// Checks each assignment of a message. If two assignments contradict each other, the first is
/// accepted.
///
/// `in_use` returns the assignment of an overlay that the agent uses. It stays in use if the new
/// assignment exceeds a limit, unless it contradicts an accepted assignment.
pub(super) fn check_assignments<'a>(
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
    // The second pass starts after all assignments are checked: a previous assignment must not
    // displace a valid assignment that comes later in the message.
    let mut verdicts = Vec::with_capacity(checked.len());
    for (assignment, result) in checked {
        verdicts.push(match result {
            Ok(()) => Verdict::Accept(assignment),
            Err(reason) => verdict_on_invalid(assignment, &reason, &in_use, &mut used),
        });
    }
    verdicts
}

/// Decides whether the previous assignment stays in use, and adds it to `used` in that case.
fn verdict_on_invalid<'a>(
    assignment: Assignment,
    reason: &str,
    in_use: impl Fn(&OverlayName) -> Option<&'a Assignment>,
    used: &mut Vec<Assignment>,
) -> Verdict {
    let reason = format!(
        "the master's assignment is beyond the limits of a network: {reason}: correct the \
         master's network configuration"
    );
    match in_use(assignment.name()).filter(|previous| check_beside(previous, used).is_ok()) {
        Some(previous) => {
            used.push(previous.clone());
            Verdict::Keep(assignment.overlay.name, reason)
        }
        None => Verdict::Refuse(assignment, reason),
    }
}

/// Checks an assignment on its own.
fn check(assignment: &Assignment) -> Result<(), String> {
    let Assignment { overlay, subnet, subnet6, mesos_bridge, docker_bridge, vtep, .. } = assignment;
    if overlay.range.is_none() && overlay.range6.is_none() {
        return Err("the overlay has no address space".to_owned());
    }
    for (family, own) in [(Family::V4, subnet), (Family::V6, subnet6)] {
        let range = overlay.range_of(family);
        if let Some(range) = range {
            check_overlay_subnet(&range.subnet).map_err(|error| error.to_string())?;
            check_agent_prefix(range.prefix.into(), &range.subnet)
                .map_err(|error| error.to_string())?;
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
        && let Some((of_mesos, of_docker)) = overlap(bridge_subnets(mesos), bridge_subnets(docker))
    {
        return Err(format!(
            "'{of_mesos}' of mesos_bridge overlaps '{of_docker}' of docker_bridge"
        ));
    }
    if !vtep.device.is_vtep_name() {
        return Err(format!("VXLAN device '{}' does not begin with 'vtep'", vtep.device));
    }
    if !vtep.mac.is_unicast() {
        return Err(format!("VTEP MAC address {} is no unicast address", vtep.mac));
    }
    for address in [Some(vtep.ip), vtep.ip6].into_iter().flatten() {
        check_vtep(address)?;
    }
    match overlap(overlay_subnets(assignment), vtep_subnets(assignment)) {
        Some((overlay, vteps)) => Err(format!("'{overlay}' overlaps VTEP subnet '{vteps}'")),
        None => Ok(()),
    }
}

/// Checks the agent's subnet against the subnet of the overlay, if the overlay has one of that
/// family.
fn check_subnet(own: &Subnet, overlay: Option<Subnet>) -> Result<(), String> {
    let Some(overlay) = overlay.filter(|overlay| overlay.covers(own)) else {
        let overlay = overlay.map_or_else(|| "none".to_owned(), |overlay| format!("'{overlay}'"));
        return Err(format!("'{own}' of this agent is outside of the overlay's space, {overlay}"));
    };
    if own.prefix() > agent_prefix_max(overlay.family()) {
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
        return Err(format!("VTEP address {address} is no host address"));
    }
    Ok(())
}

/// Checks that an assignment does not contradict the assignments in use.
fn check_beside(assignment: &Assignment, in_use: &[Assignment]) -> Result<(), String> {
    let vtep = &assignment.vtep;
    for used in in_use {
        let (name, used_vtep) = (used.name(), &used.vtep);
        if assignment.name().clashes_with(name) {
            return Err(format!("its name differs from '{name}' in case only"));
        }
        if let Some((own, taken)) = overlap(overlay_subnets(assignment), overlay_subnets(used)) {
            return Err(format!("'{own}' overlaps '{taken}' of overlay {name}"));
        }
        if (vtep.ip, vtep.ip6, vtep.mac) != (used_vtep.ip, used_vtep.ip6, used_vtep.mac) {
            return Err(format!("the addresses of its VTEP differ from those of overlay {name}"));
        }
        if vtep.device == used_vtep.device && vtep != used_vtep {
            let device = &vtep.device;
            return Err(format!("device {device} differs from device {device} of overlay {name}"));
        }
        if vtep.device != used_vtep.device && vtep.vni == used_vtep.vni {
            let (vni, device) = (used_vtep.vni, &used_vtep.device);
            return Err(format!("VNI {vni} belongs to device {device} of overlay {name}"));
        }
    }
    // All overlays share one VTEP, so `check` has compared this overlay with every VTEP subnet.
    Ok(())
}

fn overlay_subnets(assignment: &Assignment) -> impl Iterator<Item = Subnet> + Clone {
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

/// Returns the first pair that overlaps.
fn overlap(
    left: impl Iterator<Item = Subnet>,
    right: impl Iterator<Item = Subnet> + Clone,
) -> Option<(Subnet, Subnet)> {
    for left in left {
        if let Some(right) = right.clone().find(|right| right.overlaps(&left)) {
            return Some((left, right));
        }
    }
    None
}
