//! Records of the store, to bytes and back.

use std::collections::BTreeSet;

use prost::Message as _;

use super::convert::{ConvertError, subnet, text, value};
use super::decode;
use super::mesos::modules::overlay::record as pb;
use crate::addr::Family;
use crate::protocol::{AgentRecord, OverlayRecord, Record, ReleasedRecord};

/// The bytes of `record`.
#[must_use]
pub fn encode_record(record: &Record) -> Vec<u8> {
    let overlay = |overlay: &OverlayRecord| pb::OverlayRecord {
        name: Some(text(&overlay.name)),
        subnet: overlay.subnet.map(text),
        subnet6: overlay.subnet6.map(text),
    };
    let message = match record {
        Record::Agent(agent) => pb::AgentRecord {
            vtep_ip: Some(text(agent.vtep_ip)),
            vtep_ip6: agent.vtep_ip6.map(text),
            overlays: agent.overlays.iter().map(overlay).collect(),
            allocate_subnet: Some(agent.allocate_subnet),
            mesos_bridge: Some(agent.mesos_bridge),
            docker_bridge: Some(agent.docker_bridge),
            released_at: None,
        },
        Record::Released(released) => pb::AgentRecord {
            vtep_ip: released.vtep_ip.map(text),
            vtep_ip6: released.vtep_ip6.map(text),
            overlays: released.overlays.iter().map(overlay).collect(),
            released_at: Some(released.at),
            ..pb::AgentRecord::default()
        },
    };
    message.encode_to_vec()
}

/// The record in `bytes`.
///
/// # Errors
/// When the bytes are malformed, a required field is missing or a field is unusable.
pub fn decode_record(bytes: &[u8]) -> Result<Record, ConvertError> {
    let record: pb::AgentRecord = decode(bytes)?;
    let overlays = record.overlays.iter().enumerate().map(|(index, overlay)| {
        overlay_from_pb(overlay).map_err(|error| error.within(format_args!("overlays[{index}]")))
    });
    let overlays = overlays.collect::<Result<Vec<OverlayRecord>, _>>()?;
    let mut names = BTreeSet::new();
    if let Some(index) = overlays.iter().position(|overlay| !names.insert(&overlay.name)) {
        let error = ConvertError::field("name", "is there twice");
        return Err(error.within(format_args!("overlays[{index}]")));
    }
    let vtep_ip = record.vtep_ip.as_deref().map(|ip| value("vtep_ip", ip)).transpose()?;
    let vtep_ip6 = record.vtep_ip6.as_deref().map(|ip6| value("vtep_ip6", ip6)).transpose()?;
    if let Some(at) = record.released_at {
        return Ok(Record::Released(ReleasedRecord { at, vtep_ip, vtep_ip6, overlays }));
    }
    Ok(Record::Agent(AgentRecord {
        vtep_ip: vtep_ip.ok_or_else(|| ConvertError::field("vtep_ip", "is missing"))?,
        vtep_ip6,
        overlays,
        allocate_subnet: record.allocate_subnet(),
        mesos_bridge: record.mesos_bridge(),
        docker_bridge: record.docker_bridge(),
    }))
}

fn overlay_from_pb(pb: &pb::OverlayRecord) -> Result<OverlayRecord, ConvertError> {
    Ok(OverlayRecord {
        name: value("name", pb.name())?,
        subnet: subnet("subnet", pb.subnet.as_deref(), Family::V4)?,
        subnet6: subnet("subnet6", pb.subnet6.as_deref(), Family::V6)?,
    })
}
