//! Encodes and decodes the records of the store.

use std::collections::BTreeSet;

use overlay_types::addr::Family;
use overlay_types::protocol::{
    Addresses, AgentRecord, Author, HistoryEntry, HistoryEvent, OverlayRecord, Record,
    ReleasedRecord,
};
use prost::Message as _;

use super::error::ConvertError;
use super::field::{convert_list, parse_field, parse_optional, parse_subnet, to_text};
use super::mesos::modules::overlay::record as pb;
use super::mesos::modules::overlay::record::history_entry::Event;
use super::message::decode;

/// Encodes a record.
#[must_use]
pub fn encode_record(record: &Record) -> Vec<u8> {
    let message = match record {
        Record::Agent(agent) => pb::AgentRecord {
            vtep_ip: Some(to_text(agent.vtep_ip)),
            vtep_ip6: agent.vtep_ip6.map(to_text),
            overlays: agent.overlays.iter().map(overlay_to_pb).collect(),
            allocate_subnet: Some(agent.allocate_subnet),
            mesos_bridge: Some(agent.mesos_bridge),
            docker_bridge: Some(agent.docker_bridge),
            released_at: None,
            underlay: agent.underlay.map(to_text),
            direct_mac: agent.direct_mac.map(to_text),
            authenticated: agent.authenticated.as_ref().map(|name| name.as_str().to_owned()),
        },
        Record::Released(released) => pb::AgentRecord {
            vtep_ip: released.vtep_ip.map(to_text),
            vtep_ip6: released.vtep_ip6.map(to_text),
            overlays: released.overlays.iter().map(overlay_to_pb).collect(),
            released_at: Some(released.at),
            ..pb::AgentRecord::default()
        },
    };
    message.encode_to_vec()
}

/// Encodes one entry of the history. The concatenated bytes of several entries are valid input for
/// [`decode_history`].
#[must_use]
pub fn encode_history(entry: &HistoryEntry) -> Vec<u8> {
    let HistoryEntry { at, version, agent, event, addresses, reason, author } = entry;
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
        agent: agent.map(to_text),
        event: Some(event.into()),
        vtep_ip: addresses.vtep_ip.map(to_text),
        vtep_ip6: addresses.vtep_ip6.map(to_text),
        overlays: addresses.overlays.iter().map(overlay_to_pb).collect(),
        reason: Some(reason.clone()),
        principal: author.principal.clone(),
        client: author.client.clone(),
    };
    pb::HistorySegment { entries: vec![entry] }.encode_to_vec()
}

/// Decodes the entries of the history, the earliest first.
///
/// # Errors
/// If the bytes are malformed or a field is unusable.
pub fn decode_history(bytes: &[u8]) -> Result<Vec<HistoryEntry>, ConvertError> {
    let segment: pb::HistorySegment = decode(bytes)?;
    convert_list("entries", &segment.entries, entry_from_pb)
}

fn entry_from_pb(pb: &pb::HistoryEntry) -> Result<HistoryEntry, ConvertError> {
    let vtep_ip6 = parse_optional("vtep_ip6", pb.vtep_ip6.as_deref())?;
    Ok(HistoryEntry {
        at: pb.at(),
        version: pb.version(),
        agent: parse_optional("agent", pb.agent.as_deref())?,
        event: match pb.event() {
            Event::Other => HistoryEvent::Other,
            Event::Assigned => HistoryEvent::Assigned,
            Event::Returned => HistoryEvent::Returned,
            Event::Released => HistoryEvent::Released,
            Event::Renamed => HistoryEvent::Renamed,
            Event::Configured => HistoryEvent::Configured,
        },
        addresses: Addresses {
            vtep_ip: parse_optional("vtep_ip", pb.vtep_ip.as_deref())?,
            vtep_ip6,
            overlays: overlays_from_pb(&pb.overlays)?,
        },
        reason: pb.reason().to_owned(),
        author: Author { principal: pb.principal.clone(), client: pb.client.clone() },
    })
}

/// Decodes a record.
///
/// # Errors
/// If the bytes are malformed, a required field is missing or a field is unusable.
pub fn decode_record(bytes: &[u8]) -> Result<Record, ConvertError> {
    let record: pb::AgentRecord = decode(bytes)?;
    let overlays = overlays_from_pb(&record.overlays)?;
    let mut names = BTreeSet::new();
    if let Some(index) = overlays.iter().position(|overlay| !names.insert(&overlay.name)) {
        let error = ConvertError::field("name", "appears twice");
        return Err(error.within(format_args!("overlays[{index}]")));
    }
    let vtep_ip = parse_optional("vtep_ip", record.vtep_ip.as_deref())?;
    let vtep_ip6 = parse_optional("vtep_ip6", record.vtep_ip6.as_deref())?;
    if let Some(at) = record.released_at {
        return Ok(Record::Released(ReleasedRecord { at, vtep_ip, vtep_ip6, overlays }));
    }
    Ok(Record::Agent(AgentRecord {
        vtep_ip: vtep_ip.ok_or_else(|| ConvertError::missing("vtep_ip"))?,
        vtep_ip6,
        overlays,
        allocate_subnet: record.allocate_subnet(),
        mesos_bridge: record.mesos_bridge(),
        docker_bridge: record.docker_bridge(),
        underlay: parse_optional("underlay", record.underlay.as_deref())?,
        direct_mac: parse_optional("direct_mac", record.direct_mac.as_deref())?,
        authenticated: parse_optional("authenticated", record.authenticated.as_deref())?,
    }))
}

fn overlay_to_pb(overlay: &OverlayRecord) -> pb::OverlayRecord {
    pb::OverlayRecord {
        name: Some(to_text(&overlay.name)),
        subnet: overlay.subnet.map(to_text),
        subnet6: overlay.subnet6.map(to_text),
    }
}

fn overlays_from_pb(list: &[pb::OverlayRecord]) -> Result<Vec<OverlayRecord>, ConvertError> {
    convert_list("overlays", list, overlay_from_pb)
}

fn overlay_from_pb(pb: &pb::OverlayRecord) -> Result<OverlayRecord, ConvertError> {
    Ok(OverlayRecord {
        name: parse_field("name", pb.name())?,
        subnet: parse_subnet("subnet", pb.subnet.as_deref(), Family::V4)?,
        subnet6: parse_subnet("subnet6", pb.subnet6.as_deref(), Family::V6)?,
    })
}
