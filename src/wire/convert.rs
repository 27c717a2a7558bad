//! Between the protobuf types and the words of [`crate::protocol`]. Whatever comes in is checked
//! here once: a name, subnet or address that could not be used is refused with the path of its
//! field.

use std::fmt::Display;
use std::net::Ipv6Addr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use super::bounds::{self, BoundError};
use super::mesos::modules::overlay as pb;
use super::mesos::modules::overlay::agent_overlay_info::State as PbState;
use super::mesos::modules::overlay::agent_overlay_info::state::Status as PbStatus;
use super::mesos::modules::overlay::internal;
use super::message::{DecodeError, decode};
use super::peers;
use crate::addr::{DeviceName, Family, InterfaceAddress, Mtu, Subnet, Vni, special_address};
use crate::escape::bounded_args;
use crate::protocol::{
    AddressRange, AgentInfo, AgentOptions, Assignment, Bridge, Message, MessageKind, Network,
    Overlay, State, Status, Vtep, Vxlan,
};
use crate::tunnel::PORT_DEFAULT;

/// Why bytes are not a message that we can act on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConvertError {
    /// No protobuf of the type that its name says.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// No message of the overlay modules.
    #[error("unknown message '{}'", .0.escape_debug())]
    UnknownMessage(String),
    /// The body is longer than the message can be.
    #[error("malformed {name}: has {length} bytes, and at most {most} are taken")]
    TooLong {
        /// Full name of the message.
        name: &'static str,
        /// Its length.
        length: usize,
        /// The longest that it may have.
        most: usize,
    },
    /// A field holds what cannot be used.
    #[error("{field}: {reason}")]
    Field {
        /// Dotted path of the field.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// Longest reason that is told, in characters: enough for every sentence of ours.
const REASON_MAX: usize = 400;

impl ConvertError {
    /// Reasons quote what came, and strangers choose that: it must not end the line of a log and
    /// begin another, nor fill it.
    pub(super) fn field(field: &str, reason: impl Display) -> Self {
        let reason = bounded_args(format_args!("{reason}"), REASON_MAX);
        Self::Field { field: field.to_owned(), reason }
    }

    pub(super) fn within(self, step: impl Display) -> Self {
        match self {
            Self::Field { field, reason } => {
                Self::Field { field: format!("{step}.{field}"), reason }
            }
            other => other,
        }
    }
}

/// The message of this name, if it is one of the overlay modules.
#[must_use]
pub fn kind_of(name: &str) -> Option<MessageKind> {
    MessageKind::ALL.into_iter().find(|kind| kind.name() == name)
}

/// The names of all messages that [`decode_message`] knows.
pub const MESSAGE_NAMES: [&str; 6] = [
    MessageKind::RegisterAgent.name(),
    MessageKind::UpdateAgentOverlays.name(),
    MessageKind::AgentRegistered.name(),
    MessageKind::AgentRegisteredAcknowledgement.name(),
    MessageKind::RequestPeers.name(),
    MessageKind::UpdatePeers.name(),
];

/// The name under which libprocess sends `message`, and its bytes.
#[must_use]
pub fn encode_message(message: &Message) -> (&'static str, Vec<u8>) {
    fn named<M: super::Message>(message: &M) -> (&'static str, Vec<u8>) {
        (M::NAME, message.encode_to_vec())
    }
    let all = |overlays: &[Assignment]| overlays.iter().map(assignment_to_pb).collect();
    match message {
        Message::RegisterAgent(options) => {
            named(&internal::RegisterAgentMessage { network_config: Some(options_to_pb(options)) })
        }
        Message::UpdateAgentOverlays(overlays) => {
            named(&internal::UpdateAgentOverlaysMessage { overlays: all(overlays) })
        }
        Message::AgentRegistered(overlays) => {
            named(&internal::AgentRegisteredMessage { overlays: all(overlays) })
        }
        Message::AgentRegisteredAcknowledgement => {
            named(&internal::AgentRegisteredAcknowledgement {})
        }
        Message::RequestPeers(have) => (message.kind().name(), peers::encode_request(*have)),
        Message::UpdatePeers(update) => (message.kind().name(), peers::encode_update(update)),
    }
}

/// The message called `name` with body `bytes`. Decoding allocates at most a small multiple of the
/// length of `bytes`.
///
/// # Errors
/// When the name is unknown, the body is longer than the message can be, the bytes are malformed, a
/// repeated field has too many entries, a required field is missing or a field is unusable.
pub fn decode_message(name: &str, bytes: &[u8]) -> Result<Message, ConvertError> {
    let Some(kind) = kind_of(name) else {
        return Err(ConvertError::UnknownMessage(name.chars().take(80).collect()));
    };
    let (name, most) = (kind.name(), kind.body_max());
    if bytes.len() > most {
        return Err(ConvertError::TooLong { name, length: bytes.len(), most });
    }
    bounds::check(kind, bytes).map_err(|error| match error {
        BoundError::Malformed(error) => {
            DecodeError::Malformed { name, reason: error.to_string() }.into()
        }
        BoundError::Field(error) => error,
    })?;
    match kind {
        MessageKind::RegisterAgent => {
            let message: internal::RegisterAgentMessage = decode(bytes)?;
            let options = message.network_config.unwrap_or_default();
            let options = options_from_pb(&options);
            options.map(Message::RegisterAgent).map_err(|error| error.within("network_config"))
        }
        MessageKind::UpdateAgentOverlays => {
            let message: internal::UpdateAgentOverlaysMessage = decode(bytes)?;
            assignments_from_pb(&message.overlays).map(Message::UpdateAgentOverlays)
        }
        MessageKind::AgentRegistered => {
            let message: internal::AgentRegisteredMessage = decode(bytes)?;
            assignments_from_pb(&message.overlays).map(Message::AgentRegistered)
        }
        MessageKind::AgentRegisteredAcknowledgement => {
            decode::<internal::AgentRegisteredAcknowledgement>(bytes)?;
            Ok(Message::AgentRegisteredAcknowledgement)
        }
        MessageKind::RequestPeers => peers::decode_request(bytes).map(Message::RequestPeers),
        MessageKind::UpdatePeers => peers::decode_update(bytes).map(Message::UpdatePeers),
    }
}

fn options_to_pb(options: &AgentOptions) -> internal::AgentNetworkConfig {
    let defaults = AgentOptions::default();
    let timeout = u32::try_from(options.command_timeout.as_millis()).unwrap_or(u32::MAX);
    internal::AgentNetworkConfig {
        allocate_subnet: Some(options.allocate_subnet),
        mesos_bridge: Some(options.mesos_bridge),
        docker_bridge: Some(options.docker_bridge),
        overlay_mtu: Some(options.overlay_mtu.bytes()),
        command_timeout: (options.command_timeout != defaults.command_timeout).then_some(timeout),
        enable_ipv6: (options.enable_ipv6 != defaults.enable_ipv6).then_some(options.enable_ipv6),
        underlay: options.underlay.map(text),
    }
}

fn options_from_pb(pb: &internal::AgentNetworkConfig) -> Result<AgentOptions, ConvertError> {
    Ok(AgentOptions {
        allocate_subnet: pb.allocate_subnet(),
        mesos_bridge: pb.mesos_bridge(),
        docker_bridge: pb.docker_bridge(),
        overlay_mtu: Mtu::new(pb.overlay_mtu())
            .map_err(|error| ConvertError::field("overlay_mtu", error))?,
        command_timeout: Duration::from_millis(pb.command_timeout().into()),
        enable_ipv6: pb.enable_ipv6(),
        underlay: pb.underlay.as_deref().map(underlay).transpose()?,
    })
}

/// Where tunnels run over IPv6: an address of one host. Whether it is another agent's, the master
/// knows.
fn underlay(given: &str) -> Result<Ipv6Addr, ConvertError> {
    let address: Ipv6Addr = value("underlay", given)?;
    match special_address(address.into()) {
        Some(kind) => Err(ConvertError::field("underlay", format!("{address} is {kind} address"))),
        None => Ok(address),
    }
}

fn assignment_to_pb(assignment: &Assignment) -> pb::AgentOverlayInfo {
    pb::AgentOverlayInfo {
        info: Some(overlay_to_pb(&assignment.overlay)),
        subnet: assignment.subnet.map(text),
        mesos_bridge: assignment.mesos_bridge.as_ref().map(bridge_to_pb),
        docker_bridge: assignment.docker_bridge.as_ref().map(bridge_to_pb),
        backend: Some(pb::BackendInfo { vxlan: Some(vtep_to_pb(&assignment.vtep)) }),
        state: assignment.status.as_ref().map(status_to_pb),
        subnet6: assignment.subnet6.map(text),
    }
}

fn assignments_from_pb(list: &[pb::AgentOverlayInfo]) -> Result<Vec<Assignment>, ConvertError> {
    list.iter()
        .enumerate()
        .map(|(index, one)| {
            assignment_from_pb(one).map_err(|error| error.within(format_args!("overlays[{index}]")))
        })
        .collect()
}

fn assignment_from_pb(pb: &pb::AgentOverlayInfo) -> Result<Assignment, ConvertError> {
    let info = pb.info.as_ref().ok_or_else(|| ConvertError::field("info", "is missing"))?;
    let vxlan = pb.backend.as_ref().and_then(|backend| backend.vxlan.as_ref());
    let vxlan = vxlan.ok_or_else(|| ConvertError::field("backend.vxlan", "is missing"))?;
    let bridge = |bridge: Option<&pb::BridgeInfo>, step: &'static str| {
        bridge.map(bridge_from_pb).transpose().map_err(|error| error.within(step))
    };
    Ok(Assignment {
        overlay: overlay_from_pb(info).map_err(|error| error.within("info"))?,
        subnet: subnet("subnet", pb.subnet.as_deref(), Family::V4)?,
        subnet6: subnet("subnet6", pb.subnet6.as_deref(), Family::V6)?,
        mesos_bridge: bridge(pb.mesos_bridge.as_ref(), "mesos_bridge")?,
        docker_bridge: bridge(pb.docker_bridge.as_ref(), "docker_bridge")?,
        vtep: vtep_from_pb(vxlan).map_err(|error| error.within("backend.vxlan"))?,
        status: pb.state.as_ref().and_then(status_from_pb),
    })
}

fn overlay_to_pb(overlay: &Overlay) -> pb::OverlayInfo {
    pb::OverlayInfo {
        name: Some(text(&overlay.name)),
        subnet: overlay.range.map(|range| text(range.subnet)),
        prefix: overlay.range.map(|range| range.prefix.into()),
        subnet6: overlay.range6.map(|range| text(range.subnet)),
        prefix6: overlay.range6.map(|range| range.prefix.into()),
        // The C++ master leaves it unset where it is true.
        enabled: (!overlay.enabled).then_some(false),
        vni: overlay.vni.map(Vni::number),
    }
}

fn overlay_from_pb(pb: &pb::OverlayInfo) -> Result<Overlay, ConvertError> {
    Ok(Overlay {
        name: value("name", pb.name())?,
        range: range("subnet", pb.subnet.as_deref(), "prefix", pb.prefix, Family::V4)?,
        range6: range("subnet6", pb.subnet6.as_deref(), "prefix6", pb.prefix6, Family::V6)?,
        vni: pb.vni.map(|number| vni("vni", number)).transpose()?,
        enabled: pb.enabled(),
    })
}

fn range(
    subnet_field: &str,
    subnet_text: Option<&str>,
    prefix_field: &str,
    prefix: Option<u32>,
    family: Family,
) -> Result<Option<AddressRange>, ConvertError> {
    let Some(subnet) = subnet(subnet_field, subnet_text, family)? else {
        return Ok(None);
    };
    let prefix = prefix.ok_or_else(|| ConvertError::field(prefix_field, "is missing"))?;
    u8::try_from(prefix)
        .ok()
        .filter(|&prefix| prefix >= subnet.prefix() && prefix < family.bits())
        .map(|prefix| Some(AddressRange { subnet, prefix }))
        .ok_or_else(|| {
            let reason = format!("/{prefix} is no length of a subnet of {subnet} with two halves");
            ConvertError::field(prefix_field, reason)
        })
}

fn bridge_to_pb(bridge: &Bridge) -> pb::BridgeInfo {
    pb::BridgeInfo {
        name: Some(text(&bridge.name)),
        ip: bridge.subnet.map(text),
        ip6: bridge.subnet6.map(text),
    }
}

fn bridge_from_pb(pb: &pb::BridgeInfo) -> Result<Bridge, ConvertError> {
    Ok(Bridge {
        name: value("name", pb.name())?,
        subnet: subnet("ip", pb.ip.as_deref(), Family::V4)?,
        subnet6: subnet("ip6", pb.ip6.as_deref(), Family::V6)?,
    })
}

fn vtep_to_pb(vtep: &Vtep) -> pb::VxLanInfo {
    pb::VxLanInfo {
        vni: Some(vtep.vni.number()),
        vtep_name: Some(text(&vtep.device)),
        vtep_ip: Some(text(vtep.ip)),
        vtep_mac: Some(text(vtep.mac)),
        vtep_ip6: vtep.ip6.map(text),
        vtep_mtu: vtep.mtu.map(Mtu::bytes),
        vtep_port: port_to_pb(vtep.port),
    }
}

fn vtep_from_pb(pb: &pb::VxLanInfo) -> Result<Vtep, ConvertError> {
    let address = |field: &'static str, given: &str, family: Family| {
        let address: InterfaceAddress = value(field, given)?;
        if address.family() == family {
            Ok(address)
        } else {
            Err(ConvertError::field(field, format!("'{given}' is no {family} address")))
        }
    };
    Ok(Vtep {
        vni: vni("vni", pb.vni())?,
        device: value("vtep_name", pb.vtep_name())?,
        port: port(pb.vtep_port)?,
        ip: address("vtep_ip", pb.vtep_ip(), Family::V4)?,
        ip6: pb.vtep_ip6.as_deref().map(|ip6| address("vtep_ip6", ip6, Family::V6)).transpose()?,
        mac: value("vtep_mac", pb.vtep_mac())?,
        mtu: pb
            .vtep_mtu
            .map(Mtu::new)
            .transpose()
            .map_err(|error| ConvertError::field("vtep_mtu", error))?,
    })
}

fn vni(field: &str, number: u32) -> Result<Vni, ConvertError> {
    Vni::new(number).map_err(|error| ConvertError::field(field, error))
}

/// What everybody takes for granted is not said.
fn port_to_pb(port: u16) -> Option<u32> {
    (port != PORT_DEFAULT).then_some(port.into())
}

fn port(number: Option<u32>) -> Result<u16, ConvertError> {
    let Some(number) = number else { return Ok(PORT_DEFAULT) };
    let port = u16::try_from(number).ok().filter(|port| *port != 0);
    port.ok_or_else(|| ConvertError::field("vtep_port", format!("{number} is no UDP port")))
}

fn status_to_pb(status: &Status) -> PbState {
    let (status, error) = match status {
        Status::Configuring => (PbStatus::Configuring, None),
        Status::Ok => (PbStatus::Ok, None),
        Status::Failed(reason) => (PbStatus::Failed, Some(bounded(reason).to_owned())),
    };
    PbState { status: Some(status.into()), error }
}

fn status_from_pb(pb: &PbState) -> Option<Status> {
    match pb.status() {
        PbStatus::Invalid => None,
        PbStatus::Configuring => Some(Status::Configuring),
        PbStatus::Ok => Some(Status::Ok),
        PbStatus::Failed => Some(Status::Failed(bounded(pb.error()).to_owned())),
    }
}

/// As much of the reason of a failure as is sent and kept: with the most overlays, less than a
/// report may have.
fn bounded(reason: &str) -> &str {
    const REASON_BYTES_MAX: usize = 2048;
    &reason[..reason.floor_char_boundary(REASON_BYTES_MAX)]
}

/// The protobuf of `/overlay-master/state`.
#[must_use]
pub fn encode_state(state: &State) -> pb::State {
    pb::State {
        network: Some(encode_network(&state.network)),
        agents: state.agents.iter().map(|agent| encode_agent(agent)).collect(),
    }
}

/// The inverse of [`encode_state`].
///
/// # Errors
/// When a field is unusable.
pub fn decode_state(state: &pb::State) -> Result<State, ConvertError> {
    let network = state.network.as_ref();
    let network = network.ok_or_else(|| ConvertError::field("network", "is missing"))?;
    let agents = state.agents.iter().enumerate().map(|(index, agent)| {
        decode_agent(agent)
            .map(Arc::new)
            .map_err(|error| error.within(format_args!("agents[{index}]")))
    });
    Ok(State {
        network: Arc::new(network_from_pb(network).map_err(|error| error.within("network"))?),
        agents: agents.collect::<Result<_, _>>()?,
    })
}

/// The protobuf of `/overlay-agent/overlay`.
#[must_use]
pub fn encode_agent(agent: &AgentInfo) -> pb::AgentInfo {
    pb::AgentInfo {
        ip: Some(text(agent.ip)),
        overlays: agent.overlays.iter().map(assignment_to_pb).collect(),
        configuration_attempts: agent.configuration_attempts,
    }
}

/// The inverse of [`encode_agent`].
///
/// # Errors
/// When a field is unusable.
pub fn decode_agent(agent: &pb::AgentInfo) -> Result<AgentInfo, ConvertError> {
    Ok(AgentInfo {
        ip: value("ip", agent.ip())?,
        overlays: assignments_from_pb(&agent.overlays)?,
        configuration_attempts: agent.configuration_attempts,
    })
}

pub(super) fn encode_network(network: &Network) -> pb::NetworkConfig {
    let Vxlan { vni, device, port } = &network.vxlan;
    pb::NetworkConfig {
        vtep_subnet: Some(text(network.vtep_subnet)),
        vtep_mac_oui: Some(text(network.vtep_mac_oui)),
        overlays: network.overlays.iter().map(overlay_to_pb).collect(),
        vtep_subnet6: network.vtep_subnet6.map(text),
        vtep_mtu: network.vtep_mtu.map(Mtu::bytes),
        vtep_vni: (*vni != Vni::DEFAULT).then_some(vni.number()),
        vtep_name: (*device != DeviceName::vtep(*vni)).then(|| text(device)),
        vtep_port: port_to_pb(*port),
    }
}

fn network_from_pb(pb: &pb::NetworkConfig) -> Result<Network, ConvertError> {
    let vtep_subnet = subnet("vtep_subnet", Some(pb.vtep_subnet()), Family::V4)?;
    let overlays = pb.overlays.iter().enumerate().map(|(index, overlay)| {
        overlay_from_pb(overlay).map_err(|error| error.within(format_args!("overlays[{index}]")))
    });
    let mut vxlan = match pb.vtep_vni {
        Some(number) => Vxlan::of(vni("vtep_vni", number)?),
        None => Vxlan::default(),
    };
    if let Some(name) = &pb.vtep_name {
        vxlan.device = value("vtep_name", name)?;
    }
    vxlan.port = port(pb.vtep_port)?;
    Ok(Network {
        vxlan,
        vtep_subnet: vtep_subnet.ok_or_else(|| ConvertError::field("vtep_subnet", "is missing"))?,
        vtep_subnet6: subnet("vtep_subnet6", pb.vtep_subnet6.as_deref(), Family::V6)?,
        vtep_mac_oui: value("vtep_mac_oui", pb.vtep_mac_oui())?,
        vtep_mtu: pb
            .vtep_mtu
            .map(Mtu::new)
            .transpose()
            .map_err(|error| ConvertError::field("vtep_mtu", error))?,
        overlays: overlays.collect::<Result<_, _>>()?,
    })
}

pub(super) fn text(value: impl ToString) -> String {
    value.to_string()
}

pub(super) fn value<T: FromStr<Err: Display>>(field: &str, given: &str) -> Result<T, ConvertError> {
    given.parse().map_err(|error| ConvertError::field(field, error))
}

pub(super) fn subnet(
    field: &str,
    given: Option<&str>,
    family: Family,
) -> Result<Option<Subnet>, ConvertError> {
    let Some(given) = given else {
        return Ok(None);
    };
    let subnet: Subnet = value(field, given)?;
    if subnet.family() == family {
        Ok(Some(subnet))
    } else {
        Err(ConvertError::field(field, format!("'{given}' is no {family} subnet")))
    }
}
