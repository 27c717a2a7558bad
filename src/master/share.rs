//! Makes the assignments of an agent from its record: the VTEP, and the subnet of each overlay in
//! two halves.

use crate::addr::{InterfaceAddress, Mac};
use crate::protocol::{AgentRecord, Assignment, Bridge, Network, Overlay, Status, Vtep};

/// Returns the assignments of an agent with this record. An overlay is left out if the agent needs
/// a subnet of it and has none.
#[must_use]
pub fn assignments(network: &Network, record: &AgentRecord) -> Vec<Assignment> {
    let Some(vtep) = vtep(network, record) else { return Vec::new() };
    network.overlays.iter().filter_map(|overlay| assignment(overlay, record, &vtep)).collect()
}

/// Returns the VTEP of the agent with this record, or `None` if its address is not of this network.
pub(super) fn vtep(network: &Network, record: &AgentRecord) -> Option<Vtep> {
    let ip6 = record.vtep_ip6.zip(network.vtep_subnet6);
    Some(Vtep {
        vni: network.vxlan.vni,
        device: network.vxlan.device.clone(),
        port: network.vxlan.port,
        ip: InterfaceAddress::within(&network.vtep_subnet, record.vtep_ip.into())?,
        ip6: ip6.and_then(|(ip6, subnet)| InterfaceAddress::within(&subnet, ip6.into())),
        mac: Mac::of_vtep(network.vtep_mac_oui, record.vtep_ip),
        mtu: network.vtep_mtu,
    })
}

/// Returns what the state shows of an overlay that is not served to the agent.
pub(super) fn unserved(overlay: &Overlay, vtep: &Vtep, reason: String) -> Assignment {
    Assignment {
        overlay: overlay.clone(),
        subnet: None,
        subnet6: None,
        mesos_bridge: None,
        docker_bridge: None,
        vtep: vtep.carrying(overlay),
        status: Some(Status::Failed(reason)),
    }
}

/// Returns the assignment of `overlay`, or `None` if the agent needs a subnet and has none.
pub(super) fn assignment(
    overlay: &Overlay,
    record: &AgentRecord,
    vtep: &Vtep,
) -> Option<Assignment> {
    let had = record.overlays.iter().find(|had| had.name == overlay.name);
    let subnet = had.and_then(|had| had.subnet).filter(|_| overlay.range.is_some());
    let subnet6 = had.and_then(|had| had.subnet6).filter(|_| overlay.range6.is_some());
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
        vtep: vtep.carrying(overlay),
        status: None,
    })
}
