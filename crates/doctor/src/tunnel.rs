//! Observes the overlays in the kernel, and derives the desired state from the known assignments.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use overlay_config::{AgentConfig, ForwardingKind};
use overlay_linux::dataplane::{self, Dataplane, DataplaneError, PathProblems, Problem};
use overlay_linux::firewall::foreign;
use overlay_linux::source::{own_address, source_towards};
use overlay_types::addr::{DeviceName, InterfaceAddress, Mac, Subnet};
use overlay_types::protocol::{AgentInfo, State, Vxlan};
use overlay_types::tunnel::{
    Desired, DirectPeer, DirectRouting, HostAddress, OverlaySubnets, Peer, VxlanDevice, collisions,
};

use super::observation::{DesiredSource, TunnelState};

/// Observes the kernel and compares it with the assignments of `info`, or else of `master`.
///
/// # Errors
/// When a netlink request fails.
pub(crate) fn observe(
    config: &AgentConfig,
    info: Option<&AgentInfo>,
    master: Option<&State>,
) -> Result<TunnelState, DataplaneError> {
    let mut dataplane = Dataplane::open()?;
    dataplane.set_tracked(config.dataplane.forwarding == ForwardingKind::Tracked);
    let (routes, addresses) = dataplane.host_routes_and_addresses()?;
    let existing = dataplane.observe(&Desired::default())?;
    let info = info
        .filter(|info| !info.overlays.is_empty())
        .or_else(|| master.and_then(|state| agent_with_address(state, &addresses)));
    let (mut desired, source) = match info {
        Some(info) => {
            let options = config.registered_options();
            let mut desired =
                Desired::for_assignments(info.ip, &options, None, info.overlays.iter(), None);
            desired.peers = master.map(|state| peers(state, info.ip, &existing, &desired));
            (desired, DesiredSource::Assignments)
        }
        None => without_assignments(config, master, &existing),
    };
    if config.dataplane.direct_routing {
        desired.direct = Some(direct_routing(&desired));
    }
    let observed = dataplane.observe(&desired)?;
    set_direct_paths(&mut desired, &observed);
    set_containers_mtu(config, &mut desired, &observed);
    let mut plan = dataplane::plan(&desired, &observed);
    let shared = Arc::new(desired);
    let PathProblems { problems, of_containers, possible_causes } =
        dataplane.path_problems(&shared)?;
    let desired = Arc::unwrap_or_clone(shared);
    let of_containers = of_containers.into_iter().map(Problem::Interference);
    // Missing objects are the cause of wrong ways.
    let is_complete = plan.operations.is_empty();
    let is_cause = |problem: &Problem| is_complete || !matches!(problem, Problem::Detour(_));
    plan.problems.extend(problems.into_iter().filter(is_cause).chain(of_containers));
    let collisions = match source {
        DesiredSource::Assignments | DesiredSource::MasterNetwork => {
            collisions(&desired, &routes, &addresses)
        }
        DesiredSource::Kernel | DesiredSource::Defaults => Vec::new(),
    };
    let unroutable = unroutable(&observed);
    let uplinks = foreign::underlay_devices(&desired);
    Ok(TunnelState {
        desired,
        source,
        observed,
        plan,
        possible_causes,
        collisions,
        addresses,
        uplinks,
        unroutable,
    })
}

/// Returns the device that the agent of this host can use for direct routing.
fn direct_routing(desired: &Desired) -> DirectRouting {
    let own = desired.vxlan_devices.first().map(|local| local.underlay);
    let link = own.and_then(|own| dataplane::direct_link(own).ok()?.ok());
    DirectRouting { link }
}

/// Takes the paths that the kernel has as those that are desired: the agent chooses a path by its
/// probes, and both paths are right. The check `paths` shows what the agent says about them.
fn set_direct_paths(desired: &mut Desired, observed: &dataplane::Observed) {
    let Some(link) = desired.direct.as_ref().and_then(|direct| direct.link.clone()) else {
        return;
    };
    let gateways: BTreeSet<IpAddr> = observed
        .state
        .routes
        .values()
        .filter_map(|hop| match hop {
            dataplane::Hop::Direct { gateway, .. } => Some(*gateway),
            _ => None,
        })
        .collect();
    for (agent, peer) in desired.peers.iter_mut().flatten() {
        peer.direct =
            gateways.contains(agent).then_some(DirectPeer { mac: link.mac, is_used: true });
    }
}

/// Returns the agent in the master's state that has an address of this host.
fn agent_with_address<'a>(state: &'a State, addresses: &[HostAddress]) -> Option<&'a AgentInfo> {
    let is_own = |ip| addresses.iter().any(|own| own.address.address() == IpAddr::V4(ip));
    state.agents.iter().map(AsRef::as_ref).find(|agent: &&AgentInfo| is_own(agent.ip))
}

/// Returns the other agents from the master's state. The state does not contain the underlay
/// addresses of tunnels over IPv6. The kernel's forwarding entries have them.
fn peers(
    state: &State,
    own: Ipv4Addr,
    existing: &dataplane::Observed,
    desired: &Desired,
) -> BTreeMap<IpAddr, Peer> {
    let is_v6 = desired.vxlan_devices.first().is_some_and(|local| local.underlay.is_ipv6());
    let forward = |mac: Mac| {
        existing.state.devices.values().find_map(|device| device.forwards.get(&mac).copied())
    };
    let mut peers = BTreeMap::new();
    for agent in state.agents.iter().filter(|agent| agent.ip != own) {
        let Some(first) = agent.overlays.first() else { continue };
        let v4 = |address: IpAddr| if let IpAddr::V4(ip) = address { Some(ip) } else { None };
        let v6 = |address: IpAddr| if let IpAddr::V6(ip) = address { Some(ip) } else { None };
        let mut peer = Peer {
            ip: v4(first.vtep.ip.address()),
            ip6: first.vtep.ip6.and_then(|ip6| v6(ip6.address())),
            mac: first.vtep.mac,
            subnets: Vec::new(),
            direct: None,
        };
        for overlay in &agent.overlays {
            let subnets = [overlay.subnet, overlay.subnet6].into_iter().flatten();
            peer.subnets.extend(subnets.map(|subnet| (overlay.name().clone(), subnet)));
        }
        let underlay = if is_v6 { forward(peer.mac) } else { Some(IpAddr::V4(agent.ip)) };
        peers.extend(underlay.map(|underlay| (underlay, peer)));
    }
    peers
}

/// Derives the desired state without assignments: the existing devices, or else the device that an
/// agent would create.
fn without_assignments(
    config: &AgentConfig,
    master: Option<&State>,
    existing: &dataplane::Observed,
) -> (Desired, DesiredSource) {
    if !existing.state.devices.is_empty() {
        let vxlan_devices = existing_devices(config, existing);
        return (Desired { vxlan_devices, ..Desired::default() }, DesiredSource::Kernel);
    }
    let local = default_device(config, master);
    match master {
        Some(state) => (from_network(local, state), DesiredSource::MasterNetwork),
        None => {
            let desired = Desired { vxlan_devices: vec![local], ..Desired::default() };
            (desired, DesiredSource::Defaults)
        }
    }
}

/// Returns the configured underlay address, or else the source address of the default route.
fn underlay(config: &AgentConfig) -> Option<IpAddr> {
    let configured = config.dataplane.underlay.map(IpAddr::V6);
    configured.or_else(|| own_address(None).ok().map(IpAddr::V4))
}

/// Sets the MTU of the containers, which follows from that of the underlay unless it is configured.
fn set_containers_mtu(config: &AgentConfig, desired: &mut Desired, observed: &dataplane::Observed) {
    for local in &mut desired.vxlan_devices {
        let underlay = observed.underlays.get(&local.underlay).map(|underlay| underlay.mtu);
        let containers = config.options.containers_mtu(underlay, local.mtu);
        local.containers_mtu = containers.filter(|_| config.options.allocate_subnet);
    }
}

/// Describes the existing devices as desired devices.
fn existing_devices(config: &AgentConfig, existing: &dataplane::Observed) -> Vec<VxlanDevice> {
    let underlay = underlay(config);
    let local = |(name, device): (&DeviceName, &dataplane::Device)| {
        let link = &device.link;
        let address = |is_v4: bool| {
            device.addresses.iter().find(|own| own.address().is_ipv4() == is_v4).copied()
        };
        Some(VxlanDevice {
            device: name.clone(),
            vni: link.identity.vni,
            port: link.identity.port,
            mac: link.mac,
            underlay: link.underlay.or(underlay)?,
            mtu: Some(link.mtu),
            containers_mtu: None,
            ip: address(true),
            ip6: address(false),
        })
    };
    existing.state.devices.iter().filter_map(local).collect()
}

/// Returns the device that an agent would create. The VTEP addresses are not set.
fn default_device(config: &AgentConfig, master: Option<&State>) -> VxlanDevice {
    let vxlan = master.map_or_else(Vxlan::default, |state| state.network.vxlan.clone());
    VxlanDevice {
        device: vxlan.device,
        vni: vxlan.vni,
        port: vxlan.port,
        mac: Mac::from([0x70, 0xb3, 0xd5, 0, 0, 1]),
        underlay: underlay(config).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        mtu: None,
        containers_mtu: None,
        ip: None,
        ip6: None,
    }
}

/// Adds the VTEP subnets and overlays of the master's network to the default device.
fn from_network(mut local: VxlanDevice, state: &State) -> Desired {
    let network = &state.network;
    let vxlan = &network.vxlan;
    let first = |subnet: &Subnet| InterfaceAddress::within(subnet, subnet.first());
    local.mtu = network.vtep_mtu;
    local.ip = first(&network.vtep_subnet);
    local.ip6 = network.vtep_subnet6.as_ref().and_then(first);
    let enabled = network.overlays.iter().filter(|overlay| overlay.enabled);
    let spaces = enabled.map(|overlay| OverlaySubnets {
        overlay: overlay.name.clone(),
        device: match overlay.vni.filter(|vni| *vni != vxlan.vni) {
            Some(vni) => DeviceName::vtep(vni),
            None => vxlan.device.clone(),
        },
        whole: [overlay.range, overlay.range6]
            .into_iter()
            .flatten()
            .map(|range| range.subnet)
            .collect(),
        own: Vec::new(),
        bridges: Vec::new(),
    });
    let spaces = spaces.collect();
    Desired { vxlan_devices: vec![local], spaces, ..Desired::default() }
}

/// Returns the peers to which the kernel has no route. No packet is sent.
fn unroutable(observed: &dataplane::Observed) -> Vec<(IpAddr, String)> {
    let mut unroutable = BTreeMap::new();
    for device in observed.state.devices.values() {
        for peer in device.forwards.values() {
            let to = SocketAddr::new(*peer, device.link.identity.port);
            if let Err(error) = source_towards(device.link.underlay, to) {
                unroutable.insert(*peer, error.to_string());
            }
        }
    }
    unroutable.into_iter().collect()
}
