//! From what an agent was promised to what it is told: its tunnel end, and its share of each
//! overlay in two halves.

use crate::addr::{InterfaceAddress, Mac};
use crate::protocol::{AgentRecord, Assignment, Bridge, Network, Overlay, Status, Vtep};

/// What an agent with this record has of `network`: overlays of which it lacks a subnet that it
/// wants are left out.
#[must_use]
pub fn assignments(network: &Network, record: &AgentRecord) -> Vec<Assignment> {
    let Some(vtep) = vtep(network, record) else { return Vec::new() };
    network.overlays.iter().filter_map(|overlay| assignment(overlay, record, &vtep)).collect()
}

/// The tunnel end of the agent with this record; `None` if its address is not of this network.
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

/// What is shown of a share that is not served.
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

/// The share of `overlay` of the agent with this record; `None` if it wants a subnet and has none.
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
