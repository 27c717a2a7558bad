//! Records of the store, to bytes and back.

use prost::Message as _;

use super::convert::{ConvertError, subnet, text, value};
use super::decode;
use super::mesos::modules::overlay::record as pb;
use crate::addr::Family;
use crate::protocol::{AgentRecord, OverlayRecord};

/// The bytes of `record`.
#[must_use]
pub fn encode_record(record: &AgentRecord) -> Vec<u8> {
    let overlay = |overlay: &OverlayRecord| pb::OverlayRecord {
        name: Some(text(&overlay.name)),
        subnet: overlay.subnet.map(text),
        subnet6: overlay.subnet6.map(text),
    };
    let message = pb::AgentRecord {
        vtep_ip: Some(text(record.vtep_ip)),
        vtep_ip6: record.vtep_ip6.map(text),
        overlays: record.overlays.iter().map(overlay).collect(),
        allocate_subnet: Some(record.allocate_subnet),
        mesos_bridge: Some(record.mesos_bridge),
        docker_bridge: Some(record.docker_bridge),
        released_at: record.released_at,
    };
    message.encode_to_vec()
}

/// The record in `bytes`.
///
/// # Errors
/// When the bytes are malformed, a required field is missing or a field is unusable.
pub fn decode_record(bytes: &[u8]) -> Result<AgentRecord, ConvertError> {
    let record: pb::AgentRecord = decode(bytes)?;
    let overlays = record.overlays.iter().enumerate().map(|(index, overlay)| {
        overlay_from_pb(overlay).map_err(|error| error.within(format_args!("overlays[{index}]")))
    });
    Ok(AgentRecord {
        vtep_ip: value("vtep_ip", record.vtep_ip())?,
        vtep_ip6: record.vtep_ip6.as_deref().map(|ip6| value("vtep_ip6", ip6)).transpose()?,
        overlays: overlays.collect::<Result<_, _>>()?,
        allocate_subnet: record.allocate_subnet(),
        mesos_bridge: record.mesos_bridge(),
        docker_bridge: record.docker_bridge(),
        released_at: record.released_at,
    })
}

fn overlay_from_pb(pb: &pb::OverlayRecord) -> Result<OverlayRecord, ConvertError> {
    Ok(OverlayRecord {
        name: value("name", pb.name())?,
        subnet: subnet("subnet", pb.subnet.as_deref(), Family::V4)?,
        subnet6: subnet("subnet6", pb.subnet6.as_deref(), Family::V6)?,
    })
}
