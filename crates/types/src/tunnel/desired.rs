//! The desired state of the host's network, computed from the assignments.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use super::{Desired, OverlayBridge, OverlaySubnets, Peer, VxlanDevice};
use crate::addr::{InterfaceAddress, Mtu, Subnet};
use crate::protocol::{AgentOptions, Assignment, Vtep};

impl Desired {
    /// Computes the desired network state of the host of the agent at `ip`. `underlay_mtu` is the
    /// MTU of the underlay, if it is known.
    #[must_use]
    pub fn for_assignments<'a>(
        ip: Ipv4Addr,
        options: &AgentOptions,
        underlay_mtu: Option<Mtu>,
        assignments: impl Iterator<Item = &'a Assignment>,
        peers: Option<BTreeMap<IpAddr, Peer>>,
    ) -> Self {
        let mut desired = Self { peers, ..Self::default() };
        for assignment in assignments {
            let Vtep { device, .. } = &assignment.vtep;
            if !desired.vxlan_devices.iter().any(|known| known.device == *device) {
                let local = vxlan_device(ip, options, underlay_mtu, &assignment.vtep);
                desired.vxlan_devices.push(local);
            }
            let ranges = [assignment.overlay.range, assignment.overlay.range6];
            desired.spaces.push(OverlaySubnets {
                overlay: assignment.name().clone(),
                device: device.clone(),
                whole: ranges.into_iter().flatten().map(|range| range.subnet).collect(),
                own: [assignment.subnet, assignment.subnet6].into_iter().flatten().collect(),
                bridges: bridges(assignment).collect(),
            });
        }
        desired
    }
}

/// Returns the bridges of the containerizers that the agent manages.
fn bridges(assignment: &Assignment) -> impl Iterator<Item = OverlayBridge> {
    let mesos = assignment.mesos_bridge.iter().map(|bridge| (bridge, None));
    let docker = assignment.docker_bridge.iter().map(|bridge| (bridge, bridge.subnet6));
    mesos.chain(docker).map(|(bridge, subnet6)| OverlayBridge {
        device: bridge.name.clone(),
        subnets: [bridge.subnet, bridge.subnet6].into_iter().flatten().collect(),
        gateways: [bridge.subnet, subnet6].into_iter().flatten().filter_map(gateway).collect(),
    })
}

/// Returns the first host address of a subnet, which the CNI plugin `bridge` (with `isGateway`) and
/// Docker assign to the bridge.
fn gateway(subnet: Subnet) -> Option<InterfaceAddress> {
    InterfaceAddress::within(&subnet, subnet.address_at(1)?)
}

fn vxlan_device(
    ip: Ipv4Addr,
    options: &AgentOptions,
    underlay_mtu: Option<Mtu>,
    vtep: &Vtep,
) -> VxlanDevice {
    let containers_mtu = options.containers_mtu(underlay_mtu, vtep.mtu);
    VxlanDevice {
        device: vtep.device.clone(),
        vni: vtep.vni,
        port: vtep.port,
        mac: vtep.mac,
        underlay: options.underlay.map_or(IpAddr::V4(ip), IpAddr::V6),
        mtu: vtep.mtu,
        containers_mtu: containers_mtu.filter(|_| options.allocate_subnet),
        ip: Some(vtep.ip),
        ip6: vtep.ip6,
    }
}
