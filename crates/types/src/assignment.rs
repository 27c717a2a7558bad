//! Builds the assignments of an agent from its stored record: the VTEP, and for each overlay the
//! subnets and their halves for the two bridges.

use crate::addr::{InterfaceAddress, Mac};
use crate::protocol::{AgentRecord, Assignment, Bridge, Network, Overlay, Status, Vtep};

/// Builds the assignments of all overlays of `network`. Skips an overlay if the agent requested a
/// subnet and has none.
#[must_use]
pub fn build_assignments(network: &Network, record: &AgentRecord) -> Vec<Assignment> {
    let Some(vtep) = build_vtep(network, record) else { return Vec::new() };
    let overlays = network.overlays.iter();
    overlays.filter_map(|overlay| build_assignment(overlay, record, &vtep)).collect()
}

/// Builds the VTEP of an agent. Returns `None` if its address is outside the VTEP subnet.
pub fn build_vtep(network: &Network, record: &AgentRecord) -> Option<Vtep> {
    let ip6 = record.vtep_ip6.zip(network.vtep_subnet6);
    Some(Vtep {
        vni: network.vxlan.vni,
        device: network.vxlan.device.clone(),
        port: network.vxlan.port,
        ip: InterfaceAddress::within(&network.vtep_subnet, record.vtep_ip.into())?,
        ip6: ip6.and_then(|(ip6, subnet)| InterfaceAddress::within(&subnet, ip6.into())),
        mac: Mac::for_vtep(network.vtep_mac_oui, record.vtep_ip),
        mtu: network.vtep_mtu,
    })
}

/// Builds an assignment without addresses whose status is failed with `reason`.
pub fn failed_assignment(overlay: &Overlay, vtep: &Vtep, reason: String) -> Assignment {
    Assignment {
        overlay: overlay.clone(),
        subnet: None,
        subnet6: None,
        mesos_bridge: None,
        docker_bridge: None,
        vtep: vtep.for_overlay(overlay),
        status: Some(Status::Failed(reason)),
    }
}

/// Builds the assignment of `overlay`. Returns `None` if the agent requested a subnet and has none.
pub fn build_assignment(
    overlay: &Overlay,
    record: &AgentRecord,
    vtep: &Vtep,
) -> Option<Assignment> {
    let allocated = record.overlays.iter().find(|allocated| allocated.name == overlay.name);
    let subnet =
        allocated.and_then(|allocated| allocated.subnet).filter(|_| overlay.range.is_some());
    let subnet6 =
        allocated.and_then(|allocated| allocated.subnet6).filter(|_| overlay.range6.is_some());
    if record.allocate_subnet && subnet.is_none() && subnet6.is_none() {
        return None;
    }
    let halves = subnet.and_then(|subnet| subnet.halves());
    let halves6 = subnet6.and_then(|subnet6| subnet6.halves());
    let mesos_bridge = Bridge {
        name: overlay.name.mesos_bridge(),
        subnet: halves.map(|(lower, _)| lower),
        subnet6: halves6.map(|(lower, _)| lower),
    };
    let docker_bridge = Bridge {
        name: overlay.name.docker_bridge(),
        subnet: halves.map(|(_, upper)| upper),
        subnet6: halves6.map(|(_, upper)| upper),
    };
    Some(Assignment {
        overlay: overlay.clone(),
        subnet,
        subnet6,
        mesos_bridge: (record.allocate_subnet && record.mesos_bridge).then_some(mesos_bridge),
        docker_bridge: (record.allocate_subnet && record.docker_bridge).then_some(docker_bridge),
        vtep: vtep.for_overlay(overlay),
        status: None,
    })
}
