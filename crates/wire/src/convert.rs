//! Converts between the protobuf types and the types of [`overlay_types::protocol`].
//!
//! This is the only check of received values: an unusable name, subnet or address is refused with
//! the path of its field.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use overlay_types::addr::{DeviceName, Family, InterfaceAddress, Mac, Mtu, Vni, special_address};
use overlay_types::address_usage::{AddressCount, HalfCounts, OverlayCounts};
use overlay_types::protocol::{
    AddressRange, AgentContact, AgentInfo, AgentOptions, Assignment, Bridge, Network, Overlay,
    PeerFailure, PeerFailureCause, PeerFailures, Principal, State, Status, Vtep, Vxlan,
};
use overlay_types::tunnel::PORT_DEFAULT;

use super::error::ConvertError;
use super::field::{convert_list, parse_field, parse_optional, parse_subnet, to_text};
use super::mesos::modules::overlay as pb;
use super::mesos::modules::overlay::agent_overlay_info::State as PbState;
use super::mesos::modules::overlay::agent_overlay_info::state::Status as PbStatus;
use super::mesos::modules::overlay::internal;

pub(super) fn options_to_pb(options: &AgentOptions) -> internal::AgentNetworkConfig {
    let defaults = AgentOptions::default();
    let timeout = u32::try_from(options.command_timeout.as_millis()).unwrap_or(u32::MAX);
    internal::AgentNetworkConfig {
        allocate_subnet: Some(options.allocate_subnet),
        mesos_bridge: Some(options.mesos_bridge),
        docker_bridge: Some(options.docker_bridge),
        overlay_mtu: options.overlay_mtu.map(Mtu::bytes),
        command_timeout: (options.command_timeout != defaults.command_timeout).then_some(timeout),
        enable_ipv6: (options.enable_ipv6 != defaults.enable_ipv6).then_some(options.enable_ipv6),
        underlay: options.underlay.map(to_text),
        direct_mac: options.direct_mac.map(to_text),
    }
}

pub(super) fn options_from_pb(
    pb: &internal::AgentNetworkConfig,
) -> Result<AgentOptions, ConvertError> {
    Ok(AgentOptions {
        allocate_subnet: pb.allocate_subnet(),
        mesos_bridge: pb.mesos_bridge(),
        docker_bridge: pb.docker_bridge(),
        overlay_mtu: mtu_from_pb(pb.overlay_mtu, "overlay_mtu")?,
        command_timeout: Duration::from_millis(pb.command_timeout().into()),
        enable_ipv6: pb.enable_ipv6(),
        underlay: pb.underlay.as_deref().map(parse_underlay).transpose()?,
        direct_mac: check_direct_mac(parse_optional("direct_mac", pb.direct_mac.as_deref())?)?,
    })
}

/// Checks the MAC address of a device that accepts packets without encapsulation. A group address
/// would be that of every host.
pub(super) fn check_direct_mac(mac: Option<Mac>) -> Result<Option<Mac>, ConvertError> {
    match mac.filter(|mac| !mac.is_unicast()) {
        Some(group) => Err(ConvertError::field("direct_mac", format!("{group} is not unicast"))),
        None => Ok(mac),
    }
}

/// Parses the IPv6 address to which peers send tunnel packets. It must be the address of a single
/// host. The master checks that no other agent uses the address.
fn parse_underlay(text: &str) -> Result<Ipv6Addr, ConvertError> {
    let address: Ipv6Addr = parse_field("underlay", text)?;
    match special_address(address.into()) {
        Some(kind) => Err(ConvertError::field("underlay", format!("{address} is {kind} address"))),
        None => Ok(address),
    }
}

pub(super) fn assignment_to_pb(assignment: &Assignment) -> pb::AgentOverlayInfo {
    pb::AgentOverlayInfo {
        info: Some(overlay_to_pb(&assignment.overlay)),
        subnet: assignment.subnet.map(to_text),
        mesos_bridge: assignment.mesos_bridge.as_ref().map(bridge_to_pb),
        docker_bridge: assignment.docker_bridge.as_ref().map(bridge_to_pb),
        backend: Some(pb::BackendInfo { vxlan: Some(vtep_to_pb(&assignment.vtep)) }),
        state: assignment.status.as_ref().map(status_to_pb),
        subnet6: assignment.subnet6.map(to_text),
    }
}

pub(super) fn assignments_from_pb(
    list: &[pb::AgentOverlayInfo],
) -> Result<Vec<Assignment>, ConvertError> {
    convert_list("overlays", list, assignment_from_pb)
}

fn assignment_from_pb(pb: &pb::AgentOverlayInfo) -> Result<Assignment, ConvertError> {
    let info = pb.info.as_ref().ok_or_else(|| ConvertError::missing("info"))?;
    let vxlan = pb.backend.as_ref().and_then(|backend| backend.vxlan.as_ref());
    let vxlan = vxlan.ok_or_else(|| ConvertError::missing("backend.vxlan"))?;
    Ok(Assignment {
        overlay: overlay_from_pb(info).map_err(|error| error.within("info"))?,
        subnet: parse_subnet("subnet", pb.subnet.as_deref(), Family::V4)?,
        subnet6: parse_subnet("subnet6", pb.subnet6.as_deref(), Family::V6)?,
        mesos_bridge: optional_bridge_from_pb("mesos_bridge", pb.mesos_bridge.as_ref())?,
        docker_bridge: optional_bridge_from_pb("docker_bridge", pb.docker_bridge.as_ref())?,
        vtep: vtep_from_pb(vxlan).map_err(|error| error.within("backend.vxlan"))?,
        status: pb.state.as_ref().and_then(status_from_pb),
    })
}

fn overlay_to_pb(overlay: &Overlay) -> pb::OverlayInfo {
    pb::OverlayInfo {
        name: Some(to_text(&overlay.name)),
        subnet: overlay.range.map(|range| to_text(range.subnet)),
        prefix: overlay.range.map(|range| range.prefix.into()),
        subnet6: overlay.range6.map(|range| to_text(range.subnet)),
        prefix6: overlay.range6.map(|range| range.prefix.into()),
        // The C++ master leaves the field unset if the overlay is enabled.
        enabled: (!overlay.enabled).then_some(false),
        vni: overlay.vni.map(Vni::number),
    }
}

fn overlay_from_pb(pb: &pb::OverlayInfo) -> Result<Overlay, ConvertError> {
    Ok(Overlay {
        name: parse_field("name", pb.name())?,
        range: parse_range("subnet", pb.subnet.as_deref(), "prefix", pb.prefix, Family::V4)?,
        range6: parse_range("subnet6", pb.subnet6.as_deref(), "prefix6", pb.prefix6, Family::V6)?,
        vni: pb.vni.map(|number| vni_from_pb("vni", number)).transpose()?,
        enabled: pb.enabled(),
    })
}

fn parse_range(
    subnet_field: &str,
    subnet_text: Option<&str>,
    prefix_field: &str,
    prefix: Option<u32>,
    family: Family,
) -> Result<Option<AddressRange>, ConvertError> {
    let Some(subnet) = parse_subnet(subnet_field, subnet_text, family)? else {
        return Ok(None);
    };
    let prefix = prefix.ok_or_else(|| ConvertError::missing(prefix_field))?;
    u8::try_from(prefix)
        .ok()
        .filter(|&prefix| prefix >= subnet.prefix() && prefix < family.bits())
        .map(|prefix| Some(AddressRange { subnet, prefix }))
        .ok_or_else(|| {
            let reason = format!("an agent's subnet in {subnet} cannot be a /{prefix}");
            ConvertError::field(prefix_field, reason)
        })
}

fn bridge_to_pb(bridge: &Bridge) -> pb::BridgeInfo {
    pb::BridgeInfo {
        name: Some(to_text(&bridge.name)),
        ip: bridge.subnet.map(to_text),
        ip6: bridge.subnet6.map(to_text),
        addresses: None,
    }
}

fn optional_bridge_from_pb(
    field: &str,
    pb: Option<&pb::BridgeInfo>,
) -> Result<Option<Bridge>, ConvertError> {
    pb.map(bridge_from_pb).transpose().map_err(|error| error.within(field))
}

fn bridge_from_pb(pb: &pb::BridgeInfo) -> Result<Bridge, ConvertError> {
    Ok(Bridge {
        name: parse_field("name", pb.name())?,
        subnet: parse_subnet("ip", pb.ip.as_deref(), Family::V4)?,
        subnet6: parse_subnet("ip6", pb.ip6.as_deref(), Family::V6)?,
    })
}

fn vtep_to_pb(vtep: &Vtep) -> pb::VxLanInfo {
    pb::VxLanInfo {
        vni: Some(vtep.vni.number()),
        vtep_name: Some(to_text(&vtep.device)),
        vtep_ip: Some(to_text(vtep.ip)),
        vtep_mac: Some(to_text(vtep.mac)),
        vtep_ip6: vtep.ip6.map(to_text),
        vtep_mtu: vtep.mtu.map(Mtu::bytes),
        vtep_port: port_to_pb(vtep.port),
    }
}

fn vtep_from_pb(pb: &pb::VxLanInfo) -> Result<Vtep, ConvertError> {
    Ok(Vtep {
        vni: vni_from_pb("vni", pb.vni())?,
        device: parse_field("vtep_name", pb.vtep_name())?,
        port: port_from_pb(pb.vtep_port)?,
        ip: parse_address("vtep_ip", pb.vtep_ip(), Family::V4)?,
        ip6: pb
            .vtep_ip6
            .as_deref()
            .map(|ip6| parse_address("vtep_ip6", ip6, Family::V6))
            .transpose()?,
        mac: parse_field("vtep_mac", pb.vtep_mac())?,
        mtu: mtu_from_pb(pb.vtep_mtu, "vtep_mtu")?,
    })
}

fn parse_address(
    field: &str,
    text: &str,
    family: Family,
) -> Result<InterfaceAddress, ConvertError> {
    let address: InterfaceAddress = parse_field(field, text)?;
    if address.family() == family {
        Ok(address)
    } else {
        Err(ConvertError::field(field, format!("'{text}' is no {family} address")))
    }
}

fn mtu_from_pb(bytes: Option<u32>, field: &'static str) -> Result<Option<Mtu>, ConvertError> {
    bytes.map(Mtu::new).transpose().map_err(|error| ConvertError::field(field, error))
}

fn vni_from_pb(field: &str, number: u32) -> Result<Vni, ConvertError> {
    Vni::new(number).map_err(|error| ConvertError::field(field, error))
}

/// The C++ modules have no such field, so the default port is left unset.
fn port_to_pb(port: u16) -> Option<u32> {
    (port != PORT_DEFAULT).then_some(port.into())
}

fn port_from_pb(number: Option<u32>) -> Result<u16, ConvertError> {
    let Some(number) = number else { return Ok(PORT_DEFAULT) };
    let port = u16::try_from(number).ok().filter(|port| *port != 0);
    port.ok_or_else(|| ConvertError::field("vtep_port", format!("{number} is no UDP port")))
}

fn status_to_pb(status: &Status) -> PbState {
    let (status, error) = match status {
        Status::Configuring => (PbStatus::Configuring, None),
        Status::Ok => (PbStatus::Ok, None),
        Status::Failed(reason) => (PbStatus::Failed, Some(truncate_reason(reason).to_owned())),
    };
    PbState { status: Some(status.into()), error }
}

fn status_from_pb(pb: &PbState) -> Option<Status> {
    match pb.status() {
        PbStatus::Invalid => None,
        PbStatus::Configuring => Some(Status::Configuring),
        PbStatus::Ok => Some(Status::Ok),
        PbStatus::Failed => Some(Status::Failed(truncate_reason(pb.error()).to_owned())),
    }
}

/// Truncates the reason of a failure to the length that is sent and kept. A report with the maximum
/// number of overlays stays below the maximum length of a message.
fn truncate_reason(reason: &str) -> &str {
    const REASON_BYTES_MAX: usize = 2048;
    &reason[..reason.floor_char_boundary(REASON_BYTES_MAX)]
}

/// Converts a state into the protobuf of `/overlay-master/state`.
#[must_use]
pub fn encode_state(state: &State) -> pb::State {
    pb::State {
        network: Some(encode_network(&state.network)),
        agents: state.agents.iter().map(|agent| encode_agent_of(state, agent)).collect(),
        authenticated: state.principals.iter().map(authenticated_to_pb).collect(),
    }
}

fn authenticated_to_pb((ip, principal): (&Ipv4Addr, &Principal)) -> pb::AuthenticatedAgent {
    pb::AuthenticatedAgent {
        ip: Some(to_text(*ip)),
        principal: Some(principal.as_str().to_owned()),
    }
}

/// Converts an agent of a state, with the time at which its master has last seen it.
fn encode_agent_of(state: &State, agent: &AgentInfo) -> pb::AgentInfo {
    let contact = state.contacts.get(&agent.ip).copied().unwrap_or_default();
    let failures = state.peer_failures.get(&agent.ip);
    pb::AgentInfo {
        last_seen: contact.last_seen,
        stale: contact.is_stale.then_some(true),
        version: contact.version.map(to_text),
        unreached_peers: failures.map(unreached_to_pb).unwrap_or_default(),
        unreached_peers_total: failures.map(|failures| failures.total),
        ..encode_counted_agent(agent, state.address_counts.get(&agent.ip))
    }
}

/// Converts the protobuf of `/overlay-master/state` into a state.
///
/// # Errors
/// If a field is unusable.
pub fn decode_state(state: &pb::State) -> Result<State, ConvertError> {
    let network = state.network.as_ref();
    let network = network.ok_or_else(|| ConvertError::missing("network"))?;
    let agents = convert_list("agents", &state.agents, |agent| decode_agent(agent).map(Arc::new))?;
    let contacts =
        agents.iter().zip(&state.agents).map(|(agent, pb)| (agent.ip, decode_contact(pb)));
    Ok(State {
        network: Arc::new(network_from_pb(network).map_err(|error| error.within("network"))?),
        contacts: contacts.filter(|(_, contact)| *contact != AgentContact::default()).collect(),
        peer_failures: agents
            .iter()
            .zip(&state.agents)
            .filter_map(|(agent, pb)| Some((agent.ip, decode_peer_failures(pb)?)))
            .collect(),
        address_counts: agents
            .iter()
            .zip(&state.agents)
            .map(|(agent, pb)| (agent.ip, decode_counts(pb)))
            .filter(|(_, counts)| !counts.is_empty())
            .collect(),
        principals: state
            .authenticated
            .iter()
            .filter_map(|pb| Some((pb.ip().parse().ok()?, pb.principal().parse().ok()?)))
            .collect(),
        agents,
    })
}

/// Returns when a master has last seen an agent of `/overlay-master/state`.
#[must_use]
pub fn decode_contact(agent: &pb::AgentInfo) -> AgentContact {
    let version = agent.version().parse().ok();
    AgentContact { last_seen: agent.last_seen, is_stale: agent.stale(), version }
}

/// Returns the peers that an agent of `/overlay-master/state` does not reach; `None` without any.
#[must_use]
pub fn decode_peer_failures(agent: &pb::AgentInfo) -> Option<PeerFailures> {
    let peers = agent.unreached_peers.iter().take(PeerFailures::MAX).filter_map(|peer| {
        Some(PeerFailure {
            agent: peer.ip().parse().ok()?,
            cause: PeerFailureCause::from_name(peer.cause()).unwrap_or(PeerFailureCause::NoAnswer),
            since: peer.since(),
            lost: peer.lost(),
            round_trip: peer.round_trip_microseconds,
        })
    });
    let total = agent.unreached_peers_total?;
    Some(PeerFailures { peers: peers.collect(), total })
}

fn unreached_to_pb(failures: &PeerFailures) -> Vec<pb::UnreachedPeer> {
    let peers = failures.peers.iter().map(|failure| pb::UnreachedPeer {
        ip: Some(to_text(failure.agent)),
        cause: Some(to_text(failure.cause)),
        since: Some(failure.since),
        lost: Some(failure.lost),
        round_trip_microseconds: failure.round_trip,
    });
    peers.collect()
}

/// Converts an agent into the protobuf of `/overlay-agent/overlay`.
#[must_use]
pub fn encode_agent(agent: &AgentInfo) -> pb::AgentInfo {
    pb::AgentInfo {
        ip: Some(to_text(agent.ip)),
        overlays: agent.overlays.iter().map(assignment_to_pb).collect(),
        configuration_attempts: agent.configuration_attempts,
        last_seen: None,
        stale: None,
        unreached_peers: Vec::new(),
        unreached_peers_total: None,
        version: None,
    }
}

/// Converts an agent with the numbers of addresses of its halves, as far as they are known.
#[must_use]
pub fn encode_counted_agent(agent: &AgentInfo, counts: Option<&OverlayCounts>) -> pb::AgentInfo {
    let mut pb = encode_agent(agent);
    for (assignment, pb) in agent.overlays.iter().zip(&mut pb.overlays) {
        let Some(counts) = counts.and_then(|counts| counts.get(assignment.name())) else {
            continue;
        };
        for (bridge, count) in
            [(&mut pb.mesos_bridge, counts.mesos), (&mut pb.docker_bridge, counts.docker)]
        {
            if let Some(bridge) = bridge {
                bridge.addresses = count.map(count_to_pb);
            }
        }
    }
    pb
}

const fn count_to_pb(count: AddressCount) -> pb::AddressCount {
    pb::AddressCount { used: Some(count.used), free: Some(count.free) }
}

/// Returns the numbers of addresses of the halves of an agent, by overlay.
#[must_use]
pub fn decode_counts(agent: &pb::AgentInfo) -> OverlayCounts {
    let count = |bridge: Option<&pb::BridgeInfo>| {
        let count = bridge?.addresses.as_ref()?;
        Some(AddressCount { used: count.used?, free: count.free? })
    };
    let overlays = agent.overlays.iter().filter_map(|overlay| {
        let name = overlay.info.as_ref()?.name().parse().ok()?;
        let mesos = count(overlay.mesos_bridge.as_ref());
        let counts = HalfCounts { mesos, docker: count(overlay.docker_bridge.as_ref()) };
        (counts != HalfCounts::default()).then_some((name, counts))
    });
    overlays.collect()
}

/// Converts the protobuf of `/overlay-agent/overlay` into an agent.
///
/// # Errors
/// If a field is unusable.
pub fn decode_agent(agent: &pb::AgentInfo) -> Result<AgentInfo, ConvertError> {
    Ok(AgentInfo {
        ip: parse_field("ip", agent.ip())?,
        overlays: assignments_from_pb(&agent.overlays)?,
        configuration_attempts: agent.configuration_attempts,
    })
}

pub(super) fn encode_network(network: &Network) -> pb::NetworkConfig {
    let Vxlan { vni, device, port } = &network.vxlan;
    pb::NetworkConfig {
        vtep_subnet: Some(to_text(network.vtep_subnet)),
        vtep_mac_oui: Some(to_text(network.vtep_mac_oui)),
        overlays: network.overlays.iter().map(overlay_to_pb).collect(),
        vtep_subnet6: network.vtep_subnet6.map(to_text),
        vtep_mtu: network.vtep_mtu.map(Mtu::bytes),
        vtep_vni: (*vni != Vni::DEFAULT).then_some(vni.number()),
        vtep_name: (*device != DeviceName::vtep(*vni)).then(|| to_text(device)),
        vtep_port: port_to_pb(*port),
    }
}

fn network_from_pb(pb: &pb::NetworkConfig) -> Result<Network, ConvertError> {
    let vtep_subnet = parse_subnet("vtep_subnet", Some(pb.vtep_subnet()), Family::V4)?;
    let mut vxlan = match pb.vtep_vni {
        Some(number) => Vxlan::with_vni(vni_from_pb("vtep_vni", number)?),
        None => Vxlan::default(),
    };
    if let Some(name) = &pb.vtep_name {
        vxlan.device = parse_field("vtep_name", name)?;
    }
    vxlan.port = port_from_pb(pb.vtep_port)?;
    Ok(Network {
        vxlan,
        vtep_subnet: vtep_subnet.ok_or_else(|| ConvertError::missing("vtep_subnet"))?,
        vtep_subnet6: parse_subnet("vtep_subnet6", pb.vtep_subnet6.as_deref(), Family::V6)?,
        vtep_mac_oui: parse_field("vtep_mac_oui", pb.vtep_mac_oui())?,
        vtep_mtu: mtu_from_pb(pb.vtep_mtu, "vtep_mtu")?,
        overlays: convert_list("overlays", &pb.overlays, overlay_from_pb)?,
    })
}
