//! Records of the store, to bytes and back.

use std::collections::BTreeSet;

use prost::Message as _;

use super::convert::{ConvertError, subnet, text, value};
use super::decode;
use super::mesos::modules::overlay::record as pb;
use super::mesos::modules::overlay::record::history_entry::Event;
use crate::addr::Family;
use crate::protocol::{
    Addresses, AgentRecord, HistoryEntry, HistoryEvent, OverlayRecord, Record, ReleasedRecord,
};

/// The bytes of `record`.
#[must_use]
pub fn encode_record(record: &Record) -> Vec<u8> {
    let message = match record {
        Record::Agent(agent) => pb::AgentRecord {
            vtep_ip: Some(text(agent.vtep_ip)),
            vtep_ip6: agent.vtep_ip6.map(text),
            overlays: agent.overlays.iter().map(overlay_to_pb).collect(),
            allocate_subnet: Some(agent.allocate_subnet),
            mesos_bridge: Some(agent.mesos_bridge),
            docker_bridge: Some(agent.docker_bridge),
            released_at: None,
            underlay: agent.underlay.map(text),
        },
        Record::Released(released) => pb::AgentRecord {
            vtep_ip: released.vtep_ip.map(text),
            vtep_ip6: released.vtep_ip6.map(text),
            overlays: released.overlays.iter().map(overlay_to_pb).collect(),
            released_at: Some(released.at),
            ..pb::AgentRecord::default()
        },
    };
    message.encode_to_vec()
}

/// The bytes of one entry. Those of several, one behind the other, are what [`decode_history`]
/// takes: so an entry is added without reading what is there.
#[must_use]
pub fn encode_history(entry: &HistoryEntry) -> Vec<u8> {
    let HistoryEntry { at, version, agent, event, addresses, reason } = entry;
    let event = match event {
        HistoryEvent::Other => Event::Other,
        HistoryEvent::Assigned => Event::Assigned,
        HistoryEvent::Returned => Event::Returned,
        HistoryEvent::Released => Event::Released,
        HistoryEvent::Renamed => Event::Renamed,
        HistoryEvent::Configured => Event::Configured,
    };
    let entry = pb::HistoryEntry {
        at: Some(*at),
        version: Some(*version),
        agent: agent.map(text),
        event: Some(event.into()),
        vtep_ip: addresses.vtep_ip.map(text),
        vtep_ip6: addresses.vtep_ip6.map(text),
        overlays: addresses.overlays.iter().map(overlay_to_pb).collect(),
        reason: Some(reason.clone()),
    };
    pb::HistorySegment { entries: vec![entry] }.encode_to_vec()
}

/// The entries in `bytes`, the earliest first.
///
/// # Errors
/// When the bytes are malformed or a field is unusable.
pub fn decode_history(bytes: &[u8]) -> Result<Vec<HistoryEntry>, ConvertError> {
    let segment: pb::HistorySegment = decode(bytes)?;
    let entries = segment.entries.iter().enumerate().map(|(index, entry)| {
        entry_from_pb(entry).map_err(|error| error.within(format_args!("entries[{index}]")))
    });
    entries.collect()
}

fn entry_from_pb(pb: &pb::HistoryEntry) -> Result<HistoryEntry, ConvertError> {
    let vtep_ip6 = pb.vtep_ip6.as_deref().map(|ip6| value("vtep_ip6", ip6)).transpose()?;
    Ok(HistoryEntry {
        at: pb.at(),
        version: pb.version(),
        agent: pb.agent.as_deref().map(|ip| value("agent", ip)).transpose()?,
        event: match pb.event() {
            Event::Other => HistoryEvent::Other,
            Event::Assigned => HistoryEvent::Assigned,
            Event::Returned => HistoryEvent::Returned,
            Event::Released => HistoryEvent::Released,
            Event::Renamed => HistoryEvent::Renamed,
            Event::Configured => HistoryEvent::Configured,
        },
        addresses: Addresses {
            vtep_ip: pb.vtep_ip.as_deref().map(|ip| value("vtep_ip", ip)).transpose()?,
            vtep_ip6,
            overlays: overlays_from_pb(&pb.overlays)?,
        },
        reason: pb.reason().to_owned(),
    })
}

/// The record in `bytes`.
///
/// # Errors
/// When the bytes are malformed, a required field is missing or a field is unusable.
pub fn decode_record(bytes: &[u8]) -> Result<Record, ConvertError> {
    let record: pb::AgentRecord = decode(bytes)?;
    let overlays = overlays_from_pb(&record.overlays)?;
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
        underlay: record.underlay.as_deref().map(|ip6| value("underlay", ip6)).transpose()?,
    }))
}

fn overlay_to_pb(overlay: &OverlayRecord) -> pb::OverlayRecord {
    pb::OverlayRecord {
        name: Some(text(&overlay.name)),
        subnet: overlay.subnet.map(text),
        subnet6: overlay.subnet6.map(text),
    }
}

fn overlays_from_pb(list: &[pb::OverlayRecord]) -> Result<Vec<OverlayRecord>, ConvertError> {
    let overlays = list.iter().enumerate().map(|(index, overlay)| {
        overlay_from_pb(overlay).map_err(|error| error.within(format_args!("overlays[{index}]")))
    });
    overlays.collect()
}

fn overlay_from_pb(pb: &pb::OverlayRecord) -> Result<OverlayRecord, ConvertError> {
    Ok(OverlayRecord {
        name: value("name", pb.name())?,
        subnet: subnet("subnet", pb.subnet.as_deref(), Family::V4)?,
        subnet6: subnet("subnet6", pb.subnet6.as_deref(), Family::V6)?,
    })
}
