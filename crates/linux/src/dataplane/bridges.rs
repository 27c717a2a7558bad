//! Remembers the bridges of the overlays with the ports of their containers, since the kernel forgets
//! them when another program removes a bridge or detaches a port.

use std::collections::{BTreeMap, BTreeSet};

use overlay_types::addr::{DeviceName, Mac, Mtu};
use overlay_types::tunnel::Desired;

use super::observe::{BRIDGE_KIND, HostLink};
use super::state::{LostBridge, Port, State};

/// The bridges of the overlays, as they were observed last.
#[derive(Debug, Default)]
pub(super) struct BridgeMemory {
    bridges: BTreeMap<DeviceName, KnownBridge>,
    /// The bridges that another program removed or replaced since the last call of
    /// [`Self::take_gone`].
    gone: BTreeSet<DeviceName>,
}

#[derive(Debug)]
struct KnownBridge {
    /// `None` after another program removed the bridge.
    index: Option<u32>,
    mac: Option<Mac>,
    mtu: Mtu,
    ports: BTreeSet<Port>,
}

impl BridgeMemory {
    /// Compares the devices of the host with the memory, and adds detached ports and lost bridges to
    /// `state`. `strays` are the ports at no bridge whose containers show where they belong.
    pub(super) fn update(
        &mut self,
        links: &[HostLink],
        mut strays: BTreeMap<DeviceName, BTreeSet<Port>>,
        desired: &Desired,
        state: &mut State,
    ) {
        let mut before = std::mem::take(&mut self.bridges);
        for bridge in desired.bridges() {
            let name = &bridge.device;
            let known = before.remove(name);
            let known_ports = known.iter().flat_map(|known| &known.ports);
            let mut detached = strays.remove(name).unwrap_or_default();
            detached.extend(known_ports.filter(|port| is_detached(links, port)).cloned());
            let is_bridge =
                |link: &&HostLink| link.kind == BRIDGE_KIND && link.name == name.as_str();
            if let Some(link) = links.iter().find(is_bridge) {
                if known.is_some_and(|known| known.index.is_some_and(|it| it != link.index)) {
                    self.gone.insert(name.clone());
                }
                if let Some(bridge) = state.bridges.get_mut(name) {
                    bridge.detached.clone_from(&detached);
                }
                self.bridges
                    .extend(KnownBridge::new(link, links, detached).map(|it| (name.clone(), it)));
            } else {
                if known.as_ref().is_some_and(|known| known.index.is_some()) {
                    self.gone.insert(name.clone());
                }
                let (mac, mtu) = match known {
                    Some(KnownBridge { mac, mtu, .. }) => (mac, Some(mtu)),
                    None => (None, mtu_of(links, &detached)),
                };
                if let Some(mtu) = mtu.filter(|_| !detached.is_empty()) {
                    let lost = LostBridge { mac, mtu, ports: detached.clone() };
                    state.lost_bridges.insert(name.clone(), lost);
                    let known = KnownBridge { index: None, mac, mtu, ports: detached };
                    self.bridges.insert(name.clone(), known);
                }
            }
        }
    }

    /// Notes that a lost bridge was added again.
    pub(super) fn note_added(&mut self, name: &DeviceName, index: u32) {
        if let Some(known) = self.bridges.get_mut(name) {
            known.index = Some(index);
            self.gone.remove(name);
        }
    }

    /// Returns the bridges that another program removed or replaced since the last call.
    pub(super) fn take_gone(&mut self) -> BTreeSet<DeviceName> {
        std::mem::take(&mut self.gone)
    }
}

impl KnownBridge {
    fn new(link: &HostLink, links: &[HostLink], mut ports: BTreeSet<Port>) -> Option<Self> {
        let attached = links.iter().filter(|port| port.master == Some(link.index));
        let attached = attached.filter(|port| port.leads_to_container());
        ports.extend(attached.map(|port| Port { index: port.index, name: port.name.clone() }));
        Some(Self { index: Some(link.index), mac: link.mac, mtu: Mtu::new(link.mtu).ok()?, ports })
    }
}

/// Returns the MTU of one of the ports: that of their bridge was not lower.
fn mtu_of(links: &[HostLink], ports: &BTreeSet<Port>) -> Option<Mtu> {
    let first = ports.first()?;
    let link = links.iter().find(|link| link.index == first.index)?;
    Mtu::new(link.mtu).ok()
}

/// Returns whether a port exists and is at no bridge.
fn is_detached(links: &[HostLink], port: &Port) -> bool {
    let mut links = links.iter();
    let link = links.find(|link| link.index == port.index && link.name == port.name);
    link.is_some_and(|link| link.master.is_none())
}

#[cfg(test)]
mod tests {
    use overlay_types::tunnel::{OverlayBridge, OverlaySubnets};

    use super::super::state::BridgeState;
    use super::*;

    fn link(index: u32, name: &str, master: Option<u32>) -> HostLink {
        let kind = if name.starts_with("m-") { BRIDGE_KIND } else { "veth" };
        HostLink {
            index,
            name: name.to_owned(),
            is_loopback: false,
            master,
            namespace: (kind == "veth").then_some(index),
            peer: None,
            is_up: true,
            is_ethernet: true,
            mac: None,
            mtu: 1420,
            alias: String::new(),
            flags: 1,
            has_vlan_filtering: false,
            port_state: None,
            xdp: None,
            kind: kind.to_owned(),
            vxlan: None,
            vrf_table: None,
        }
    }

    fn desired() -> Desired {
        let bridge = OverlayBridge {
            device: "m-vxlan-1".parse().unwrap(),
            subnets: Vec::new(),
            gateways: Vec::new(),
        };
        let space = OverlaySubnets {
            overlay: "vxlan-1".parse().unwrap(),
            device: "vtep1024".parse().unwrap(),
            whole: Vec::new(),
            own: Vec::new(),
            bridges: vec![bridge],
        };
        Desired { spaces: vec![space], ..Desired::default() }
    }

    /// Returns the lost ports, the detached ports, and whether the bridge is gone.
    fn update(memory: &mut BridgeMemory, links: &[HostLink]) -> (Vec<u32>, Vec<u32>, bool) {
        update_with(memory, links, &[])
    }

    fn update_with(
        memory: &mut BridgeMemory,
        links: &[HostLink],
        strays: &[&str],
    ) -> (Vec<u32>, Vec<u32>, bool) {
        let name: DeviceName = "m-vxlan-1".parse().unwrap();
        let mtu = Mtu::new(1420).unwrap();
        let bare = LostBridge { mac: None, mtu, ports: BTreeSet::new() }.bare();
        let mut state = State { bridges: [(name.clone(), bare)].into(), ..State::default() };
        let port = |link: &HostLink| Port { index: link.index, name: link.name.clone() };
        let strays = links.iter().filter(|link| strays.contains(&link.name.as_str())).map(port);
        memory.update(links, [(name.clone(), strays.collect())].into(), &desired(), &mut state);
        let indices = |ports: &BTreeSet<Port>| ports.iter().map(|port| port.index).collect();
        let lost = state.lost_bridges.get(&name).map(|lost| indices(&lost.ports));
        let BridgeState { detached, .. } = &state.bridges[&name];
        (lost.unwrap_or_default(), indices(detached), memory.take_gone().contains(&name))
    }

    #[test]
    fn removed_bridge_is_lost_while_its_ports_exist() {
        let mut memory = BridgeMemory::default();
        let bridge = link(1, "m-vxlan-1", None);
        let probe = link(4, "mo-probe0", Some(1));
        let at_bridge = [bridge, link(2, "veth2", Some(1)), link(3, "veth3", Some(1)), probe];
        assert_eq!(update(&mut memory, &at_bridge), (vec![], vec![], false));
        let orphans = [link(2, "veth2", None), link(4, "mo-probe0", None)];
        assert_eq!(update(&mut memory, &orphans), (vec![2], vec![], true));
        assert_eq!(update(&mut memory, &orphans), (vec![2], vec![], false), "reported once");
        memory.note_added(&"m-vxlan-1".parse().unwrap(), 9);
        let again = [link(9, "m-vxlan-1", None), link(2, "veth2", None)];
        assert_eq!(update(&mut memory, &again), (vec![], vec![2], false));
        // A port that another program attached elsewhere is not ours any more.
        let moved = [link(9, "m-vxlan-1", None), link(2, "veth2", Some(7))];
        assert_eq!(update(&mut memory, &moved), (vec![], vec![], false));
        assert_eq!(update(&mut memory, &[link(2, "veth2", None)]), (vec![], vec![], true));
        assert_eq!(update(&mut memory, &[link(2, "veth2", None)]), (vec![], vec![], false));
    }

    #[test]
    fn replaced_bridge_is_gone_and_reused_index_is_another_port() {
        let mut memory = BridgeMemory::default();
        let links = [link(1, "m-vxlan-1", None), link(2, "veth2", Some(1))];
        update(&mut memory, &links);
        let replaced = [link(5, "m-vxlan-1", None), link(2, "veth7", None)];
        assert_eq!(update(&mut memory, &replaced), (vec![], vec![], true));
    }

    #[test]
    fn port_of_container_with_address_of_bridge_needs_no_memory() {
        let mut memory = BridgeMemory::default();
        let links = [link(2, "veth2", None), link(3, "veth3", None)];
        // The bridge was removed before the agent started, so nobody waits for it.
        assert_eq!(update_with(&mut memory, &links, &["veth2"]), (vec![2], vec![], false));
        let bridge = link(9, "m-vxlan-1", None);
        let links = [bridge, link(2, "veth2", Some(9)), link(3, "veth3", None)];
        assert_eq!(update_with(&mut memory, &links, &["veth3"]), (vec![], vec![3], false));
    }
}
