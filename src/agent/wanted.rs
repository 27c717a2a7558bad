//! What the assignments ask of the host's network, in the words of [`crate::tunnel`].

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use super::Settings;
use crate::protocol::{Assignment, Vtep};
use crate::tunnel::{Desired, Local, Peer, Space};

/// What `assignments` ask of the host of the agent at `ip`.
#[must_use]
pub fn desired<'a>(
    ip: Ipv4Addr,
    settings: &Settings,
    assignments: impl Iterator<Item = &'a Assignment>,
    peers: Option<BTreeMap<IpAddr, Peer>>,
) -> Desired {
    let mut desired = Desired { peers, ..Desired::default() };
    for assignment in assignments {
        let Vtep { device, .. } = &assignment.vtep;
        if !desired.locals.iter().any(|local| local.device == *device) {
            desired.locals.push(local(ip, settings, &assignment.vtep));
        }
        let ranges = [assignment.overlay.range, assignment.overlay.range6];
        desired.spaces.push(Space {
            overlay: assignment.name().clone(),
            device: device.clone(),
            whole: ranges.into_iter().flatten().map(|range| range.subnet).collect(),
            own: [assignment.subnet, assignment.subnet6].into_iter().flatten().collect(),
        });
    }
    desired
}

fn local(ip: Ipv4Addr, settings: &Settings, vtep: &Vtep) -> Local {
    let options = &settings.options;
    Local {
        device: vtep.device.clone(),
        vni: vtep.vni,
        port: vtep.port,
        mac: vtep.mac,
        underlay: options.underlay.map_or(IpAddr::V4(ip), IpAddr::V6),
        mtu: vtep.mtu,
        containers_mtu: options.allocate_subnet.then_some(options.overlay_mtu),
        ip: Some(vtep.ip),
        ip6: vtep.ip6,
    }
}
