//! Devices that lost their bridge, or whose packets another device takes.

use std::collections::BTreeMap;

use overlay_types::advice::Command;
use overlay_types::tunnel::{FaultScope, VxlanDevice};

use super::super::observe::{BRIDGE_KIND, HostLink, read_sysctl};
use super::super::uapi::{IFF_LOWER_UP, IFF_UP};
use super::{Impact, InspectionContext, Interference, Remedy, scope_of};
use crate::probe::is_probe_port;

/// States of a port that forwards no packets and will not do so by itself, from
/// `linux/if_bridge.h`: disabled and blocking.
const CLOSED_STATES: [u8; 2] = [0, 4];
/// Kinds of devices that take all packets of their ports.
const TAKING_KINDS: [&str; 2] = [BRIDGE_KIND, "openvswitch"];

/// The ports of the bridges of the overlays at earlier observations, by their index.
#[derive(Debug, Default)]
pub(in super::super) struct Ports(BTreeMap<u32, Port>);

#[derive(Debug)]
struct Port {
    name: String,
    /// Name of the bridge.
    bridge: String,
}

impl Ports {
    /// Returns the index of each known port with the index of its bridge.
    pub(in super::super) fn indices(
        &self,
        bridges: &BTreeMap<overlay_types::addr::DeviceName, u32>,
    ) -> BTreeMap<u32, u32> {
        let bridge = |port: &Port| {
            bridges.iter().find(|(name, _)| name.as_str() == port.bridge).map(|(_, index)| *index)
        };
        self.0.iter().filter_map(|(index, port)| Some((*index, bridge(port)?))).collect()
    }

    /// Records the current ports, and returns the known ports that carry no packets. A new port is
    /// left out, since its maker may not have finished it.
    pub(super) fn observe(&mut self, context: &InspectionContext<'_>) -> Vec<Interference> {
        let links: BTreeMap<u32, _> =
            context.indices.links.iter().map(|link| (link.index, link)).collect();
        self.0.retain(|index, port| links.get(index).is_some_and(|link| link.name == port.name));
        let mut found = Vec::new();
        for (bridge, bridge_link) in context.bridges() {
            let known = self.0.values().zip(self.0.keys());
            let known = known.filter(|(port, _)| port.bridge == bridge.device.as_str());
            let (mut lost, mut closed) = (Vec::new(), Vec::new());
            for link in known.filter_map(|(_, index)| links.get(index)) {
                // A port of no bridge is attached again.
                if link.master.is_some_and(|master| master != bridge_link.index) {
                    lost.push(link.name.as_str());
                } else if link.master.is_some() && is_closed(link.flags, link.port_state) {
                    closed.push((link.name.as_str(), link.flags & IFF_UP != 0));
                }
            }
            let name = &bridge.device;
            found.extend(lost.first().map(|port| Interference {
                scope: scope_of(bridge),
                cause: format!(
                    "another program took {} out of bridge {name}: the container behind it is cut \
                     off",
                    with_others(port, lost.len())
                ),
                remedy: Remedy::Run(Command::return_port(port, name)),
                impact: Impact::SomeContainers,
                removes_routes: false,
            }));
            found.extend(closed.first().map(|(port, is_up)| {
                let others = with_others(port, closed.len());
                let (cause, command) = if *is_up {
                    ("forwards no packets", Command::forward_from_port(port))
                } else {
                    ("is down", Command::set_port_up(port))
                };
                Interference {
                    scope: scope_of(bridge),
                    cause: format!(
                        "port {others} of bridge {name} {cause}: the container behind it is cut off"
                    ),
                    remedy: Remedy::Run(command),
                    impact: Impact::SomeContainers,
                    removes_routes: false,
                }
            }));
            for link in links.values().filter(|link| link.master == Some(bridge_link.index)) {
                if !is_probe_port(&link.name) {
                    let port = Port { name: link.name.clone(), bridge: name.to_string() };
                    self.0.insert(link.index, port);
                }
            }
        }
        found
    }
}

const fn has(flags: u32, flag: u32) -> bool {
    flags & flag != 0
}

/// Returns whether a port is down, or is up and connected and forwards no packets.
fn is_closed(flags: u32, state: Option<u8>) -> bool {
    let is_blocked = state.is_some_and(|state| CLOSED_STATES.contains(&state));
    !has(flags, IFF_UP) || (has(flags, IFF_LOWER_UP) && is_blocked)
}

/// Names the first of several devices, and the number of the others.
fn with_others(first: &str, count: usize) -> String {
    match count {
        0 | 1 => first.to_owned(),
        count => format!("{first} (and {} more)", count - 1),
    }
}

/// Returns the devices with an underlay address whose packets another device takes.
pub(super) fn devices_with_master(context: &InspectionContext<'_>) -> Vec<Interference> {
    let mut found = Vec::new();
    for local in &context.desired.vxlan_devices {
        let owners: Vec<_> = context.underlay_links(local.underlay).collect();
        for link in &owners {
            let master = link.master.and_then(|index| context.link(index));
            if let Some(master) = master.filter(|master| takes_packets(master)) {
                let mut taken = device_with_master(local, link, master);
                // The packets may arrive at another device with the address.
                if owners.len() > 1 {
                    taken.impact = Impact::Possible;
                }
                found.push(taken);
            }
        }
    }
    found
}

fn takes_packets(master: &HostLink) -> bool {
    TAKING_KINDS.contains(&master.kind.as_str())
}

/// Describes a device with an underlay address whose packets `master` takes.
fn device_with_master(local: &VxlanDevice, link: &HostLink, master: &HostLink) -> Interference {
    let (name, kind, own) = (&master.name, &master.kind, local.underlay);
    // A bridge that is up passes packets to the host, unless the route back to their source, which
    // leads through the port, is required to lead through the bridge.
    let is_down = !has(master.flags, IFF_UP);
    let is_strict = own.is_ipv4() && has_strict_rp_filter(name);
    let effect = match (is_down, is_strict) {
        (true, _) => ", which is down: this host gets none of its packets",
        (_, true) => ", whose strict rp_filter drops its packets",
        _ => ", which takes its packets",
    };
    let port = &link.name;
    Interference {
        scope: FaultScope::Device(local.device.clone()),
        cause: format!(
            "{port} has the agent's address {own}, and is a port of {kind} {name}{effect}"
        ),
        remedy: Remedy::Advice(format!(
            "move the address to {name}, or let the owner of {name} release {port}"
        )),
        impact: if is_down || is_strict { Impact::Overlays } else { Impact::Possible },
        removes_routes: false,
    }
}

/// Returns whether a device accepts packets only if the route back leads through it. The kernel uses
/// the greater value of both settings.
fn has_strict_rp_filter(device: &str) -> bool {
    const STRICT: u32 = 1;
    let setting = |name: &str| read_sysctl(&format!("/proc/sys/net/ipv4/conf/{name}/rp_filter"));
    setting("all").max(setting(device)) == Some(STRICT)
}
