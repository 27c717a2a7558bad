//! Limits the number of entries of the repeated fields of a message.
//!
//! The check runs before any entry is decoded: an empty entry takes two bytes on the wire and
//! hundreds of bytes in memory.

use overlay_types::protocol::limits::OVERLAYS_MAX;
use overlay_types::protocol::{
    HeldAddresses, MessageKind, PeerFailures, PeersRequest, PeersUpdate, RegistrationProblems,
};
use prost::DecodeError;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use super::error::ConvertError;

/// A repeated field with messages or byte strings.
#[derive(Debug)]
pub(super) struct RepeatedField {
    name: &'static str,
    number: u32,
    /// Maximum number of entries.
    max: usize,
    /// Length of the shortest valid entry in bytes.
    entry_min: usize,
    /// The repeated fields of each entry.
    nested: &'static [Self],
}

const OVERLAYS: RepeatedField =
    RepeatedField { name: "overlays", number: 1, max: OVERLAYS_MAX, entry_min: 0, nested: &[] };

/// An IPv4 and an IPv6 subnet of each overlay.
const SUBNETS: RepeatedField =
    RepeatedField { name: "subnets", number: 6, max: 2 * OVERLAYS_MAX, entry_min: 4, nested: &[] };

const PEERS: [RepeatedField; 3] = [
    RepeatedField { name: "overlays", number: 5, max: OVERLAYS_MAX, entry_min: 0, nested: &[] },
    RepeatedField {
        name: "peers",
        number: 6,
        max: PeersUpdate::PEERS_MAX,
        // An IPv4 address and a MAC address, each with its key and length.
        entry_min: 14,
        nested: &[SUBNETS],
    },
    RepeatedField {
        name: "removed",
        number: 7,
        max: PeersUpdate::PEERS_MAX,
        entry_min: 0,
        nested: &[],
    },
];

/// The lists of a compact update. The packed identities are no messages: see [`check_identities`].
const COMPACT_PEERS: [RepeatedField; 3] = [
    RepeatedField { number: 1, ..OVERLAYS },
    RepeatedField {
        name: "peers",
        number: 3,
        // A MAC address with its key and length.
        entry_min: 8,
        max: PeersUpdate::PEERS_MAX,
        nested: &[SUBNETS],
    },
    RepeatedField {
        name: "removed",
        number: 4,
        max: PeersUpdate::PEERS_MAX,
        entry_min: 0,
        nested: &[],
    },
];

/// An IPv4 address of 4 bytes and a prefix, each with its key, and the length of the address.
const SUBNET_MIN: usize = 8;

const HELD: RepeatedField = RepeatedField {
    name: "subnets",
    number: 1,
    max: HeldAddresses::MAX,
    entry_min: SUBNET_MIN,
    nested: &[],
};

const PROBLEMS: [RepeatedField; 2] = [
    RepeatedField {
        name: "reasons",
        number: 2,
        max: RegistrationProblems::REASONS_MAX,
        entry_min: 1,
        nested: &[],
    },
    RepeatedField {
        name: "reassigned",
        number: 3,
        max: HeldAddresses::MAX,
        // The subnet with its key and length, and the IPv4 address of the agent.
        entry_min: SUBNET_MIN + 8,
        nested: &[],
    },
];

const FAILURES: RepeatedField = RepeatedField {
    name: "peers",
    number: 1,
    max: PeerFailures::MAX,
    // The IPv4 address with its key and length.
    entry_min: 6,
    nested: &[],
};

const COUNTS: RepeatedField = RepeatedField {
    name: "addresses",
    number: 6,
    max: PeersRequest::COUNTS_MAX,
    // The name with its key and length.
    entry_min: 3,
    nested: &[],
};

/// Returns the repeated fields of a message.
const fn repeated_fields(kind: MessageKind) -> &'static [RepeatedField] {
    match kind {
        MessageKind::UpdateAgentOverlays | MessageKind::AgentRegistered => &[OVERLAYS],
        MessageKind::UpdatePeers => &PEERS,
        MessageKind::HeldAddresses => &[HELD],
        MessageKind::RegistrationProblems => &PROBLEMS,
        MessageKind::PeerFailures => &[FAILURES],
        MessageKind::RequestPeers => &[COUNTS],
        MessageKind::RegisterAgent
        | MessageKind::AgentRegisteredAcknowledgement
        | MessageKind::AuthenticateAgent
        | MessageKind::AuthenticationChallenge => &[],
    }
}

/// Why a message must not be decoded.
#[derive(Debug)]
pub(super) enum BoundError {
    /// The bytes are not a protobuf message.
    Malformed(DecodeError),
    /// A repeated field has too many entries, or an entry that is too short.
    Field(ConvertError),
}

impl From<ConvertError> for BoundError {
    fn from(error: ConvertError) -> Self {
        Self::Field(error)
    }
}

impl From<DecodeError> for BoundError {
    fn from(error: DecodeError) -> Self {
        Self::Malformed(error)
    }
}

/// Counts the entries of the repeated fields of a message without decoding the entries.
///
/// # Errors
/// If a field has too many entries or an entry that is too short, or if the bytes are malformed.
pub(super) fn check(kind: MessageKind, bytes: &[u8]) -> Result<(), BoundError> {
    check_fields(repeated_fields(kind), bytes)
}

/// Checks the decompressed bytes of a compact peer update, as [`check`] does.
///
/// # Errors
/// As [`check`], with the name of the field.
pub(super) fn check_compact_peers(bytes: &[u8]) -> Result<(), ConvertError> {
    let checked = check_identities(bytes).and_then(|()| check_fields(&COMPACT_PEERS, bytes));
    checked.map_err(|error| match error {
        BoundError::Malformed(error) => ConvertError::field("compact", error),
        BoundError::Field(error) => error.within("compact"),
    })
}

/// Number of the field with the identities of the peers of a compact update.
const IDENTITIES: u32 = 2;

/// Checks the number of identities of a compact update. A packed number has one byte on the wire and
/// four in memory.
fn check_identities(mut bytes: &[u8]) -> Result<(), BoundError> {
    let mut count = 0;
    while !bytes.is_empty() {
        let (number, wire_type) = decode_key(&mut bytes)?;
        let before = bytes;
        skip_field(wire_type, number, &mut bytes, DecodeContext::default())?;
        if number == IDENTITIES {
            // The last byte of a number has no continuation bit. The length of the field counts too.
            let field = &before[..before.len() - bytes.len()];
            count += field.iter().filter(|byte| **byte < 0x80).count();
        }
        if count > PeersUpdate::PEERS_MAX + 1 {
            let reason = format!("has more than {} entries", PeersUpdate::PEERS_MAX);
            return Err(ConvertError::field("ips", reason).into());
        }
    }
    Ok(())
}

fn check_fields(fields: &[RepeatedField], mut bytes: &[u8]) -> Result<(), BoundError> {
    let mut counts = [0_usize; 4];
    while !bytes.is_empty() {
        let (number, wire_type) = decode_key(&mut bytes)?;
        let index = fields.iter().position(|field| field.number == number);
        let Some(index) = index.filter(|_| wire_type == WireType::LengthDelimited) else {
            skip_field(wire_type, number, &mut bytes, DecodeContext::default())?;
            continue;
        };
        let length = decode_varint(&mut bytes)?;
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let Some((entry, rest)) = bytes.split_at_checked(length) else {
            // Decoding fails later, and prost describes the truncated entry.
            return Ok(());
        };
        bytes = rest;
        let (field, count) = (&fields[index], &mut counts[index]);
        check_entry(field, *count, entry)?;
        *count += 1;
    }
    Ok(())
}

fn check_entry(field: &RepeatedField, index: usize, entry: &[u8]) -> Result<(), BoundError> {
    let RepeatedField { name, max, entry_min, nested, .. } = field;
    if index >= *max {
        return Err(ConvertError::field(name, format!("has more than {max} entries")).into());
    }
    if entry.len() < *entry_min {
        let reason = format!("entry {index} has {} bytes, at least {entry_min}", entry.len());
        return Err(ConvertError::field(name, reason).into());
    }
    if nested.is_empty() {
        return Ok(());
    }
    check_fields(nested, entry).map_err(|error| match error {
        BoundError::Field(error) => {
            BoundError::Field(error.within(format_args!("{name}[{index}]")))
        }
        malformed @ BoundError::Malformed(_) => malformed,
    })
}

#[cfg(test)]
mod tests {
    use super::super::protocol::decode_message;
    use super::*;

    fn reason(kind: MessageKind, bytes: &[u8]) -> String {
        decode_message(kind.name(), bytes).unwrap_err().to_string()
    }

    #[test]
    fn too_many_empty_entries_are_refused_before_decoding() {
        let most = OVERLAYS_MAX;
        for kind in [MessageKind::AgentRegistered, MessageKind::UpdateAgentOverlays] {
            let text = reason(kind, &b"\x0a\x00".repeat(most + 1));
            assert_eq!(text, "overlays: has more than 128 entries");
            let text = reason(kind, &b"\x0a\x00".repeat(most));
            assert!(text.contains("missing required"), "{text}");
        }
        let peers = MessageKind::UpdatePeers;
        assert_eq!(
            reason(peers, &b"\x32\x00".repeat(10)),
            "peers: entry 0 has 0 bytes, at least 14"
        );
        let removed = b"\x3a\x00".repeat(PeersUpdate::PEERS_MAX + 1);
        assert_eq!(reason(peers, &removed), "removed: has more than 200000 entries");
    }

    #[test]
    fn nested_entries_are_counted() {
        let mut peer = b"\x0a\x04\x0a\x00\x00\x01\x2a\x06\x02\x00\x00\x00\x00\x01".to_vec();
        peer.extend(b"\x32\x04\x08\x00\x18\x18".repeat(2 * OVERLAYS_MAX + 1));
        let mut update = vec![0x32];
        prost::encoding::encode_varint(peer.len() as u64, &mut update);
        update.extend(peer);
        let text = reason(MessageKind::UpdatePeers, &update);
        assert_eq!(text, "peers[0].subnets: has more than 256 entries");
    }

    #[test]
    fn unknown_fields_and_wrong_wire_types_are_skipped() {
        // Field 1 as a number, the unknown field 99 as bytes, and a truncated entry.
        let bytes = b"\x08\x01\x9a\x06\x01x\x0a\x05ab";
        assert!(check(MessageKind::AgentRegistered, bytes).is_ok());
        assert!(reason(MessageKind::AgentRegistered, bytes).starts_with("malformed "));
    }
}
