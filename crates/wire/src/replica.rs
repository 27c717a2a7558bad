//! The records that a replica of the Mesos replicated log has on disk. Decodes the value of the log
//! and encodes a log with one value.
//!
//! A single replica cannot know what a majority has agreed on:
//!
//! * A *learned* position is agreed on: a leader confirmed the agreement to this replica.
//! * A position that is only accepted may be agreed on. The next leader that reaches this replica
//!   completes the agreement. So the position counts, with a warning.
//! * A position after the last value that is not even accepted may hold a later value. Then this
//!   replica is refused.

use std::collections::BTreeMap;

use prost::Message as _;

use super::mesos::modules::overlay::replica as pb;
use super::mesos::modules::overlay::replica::action::Type as ActionType;
use super::mesos::modules::overlay::replica::metadata::Status;
use super::mesos::modules::overlay::replica::operation::Type as OperationType;
use super::mesos::modules::overlay::replica::record::Type as RecordType;

/// The name of the state of an overlay master in the log.
const NAME: &[u8] = b"network-state";

/// The key of the metadata, which belongs to no position.
const METADATA_KEY: &[u8] = b"0000000000";

/// The largest number whose key has ten digits. Larger numbers have a letter and 20 digits.
const SHORT_KEY_MAX: u64 = 9_999_999_999;

/// The remedy for a replica that may miss agreed values.
const USE_LAST_LEADER: &str = "use the directory of the master that led last, or start \
                       that master once, which completes its log, and stop it";

/// The value of a log, as one replica knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Replica {
    /// The last value, or `None` if no value was ever written.
    pub value: Option<Vec<u8>>,
    /// The position of the value, if the replica accepted the value but did not learn that a
    /// majority accepted it.
    pub unlearned_at: Option<u64>,
}

/// Why the records of a replica are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplicaError {
    /// A record is not a record of a replica.
    #[error(
        "record {key}: {reason}: the record is damaged, or this is not a replicated log of Mesos"
    )]
    Damaged {
        /// The key, as text.
        key: String,
        /// The fault of the record.
        reason: String,
    },
    /// The replica does not vote, so it may miss agreed values.
    #[error("the replica is {0}, and other replicas may have later values: {USE_LAST_LEADER}")]
    NotVoting(&'static str),
    /// The replica does not know the action at a position that may hold a later value.
    #[error("position {0} of the log is unknown to this replica: {USE_LAST_LEADER}")]
    Gap(u64),
    /// The log holds an operation that no overlay module writes.
    #[error("position {0} of the log holds a difference: no overlay module writes differences")]
    Difference(u64),
}

/// Decodes the last value of the log from `records`, which are pairs of key and bytes.
///
/// # Errors
/// If a record is damaged, or if a majority may have agreed on a later value.
pub fn decode_replica<'a>(
    records: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
) -> Result<Replica, ReplicaError> {
    let mut status = Status::Empty;
    let mut actions = BTreeMap::new();
    for (key, bytes) in records {
        match decode_record(key, bytes)? {
            DecodedRecord::Status(found) => status = found,
            DecodedRecord::Action(action) => drop(actions.insert(action.position(), action)),
        }
    }
    match status {
        Status::Voting => replay(&actions),
        // The log was never used.
        Status::Empty | Status::Starting if actions.is_empty() => Ok(Replica::default()),
        status => Err(ReplicaError::NotVoting(status.as_str_name())),
    }
}

/// A record of interest.
enum DecodedRecord {
    Status(Status),
    Action(pb::Action),
}

fn decode_record(key: &[u8], bytes: &[u8]) -> Result<DecodedRecord, ReplicaError> {
    let damaged = |reason: String| damaged(key, reason);
    let record = pb::Record::decode(bytes).map_err(|error| damaged(error.to_string()))?;
    let kind = record.r#type.and_then(|kind| RecordType::try_from(kind).ok());
    match (kind, record.action, record.metadata) {
        (Some(RecordType::Metadata), _, Some(metadata)) if key == METADATA_KEY => {
            let status = Status::try_from(metadata.status.unwrap_or_else(|| Status::Empty.into()));
            status.map(DecodedRecord::Status).map_err(|error| damaged(error.to_string()))
        }
        // Early versions of Mesos wrote a promise instead of metadata. Every replica voted.
        (Some(RecordType::Promise), _, _) if key == METADATA_KEY => {
            Ok(DecodedRecord::Status(Status::Voting))
        }
        (Some(RecordType::Action), Some(action), _) if key == key_of(action.position()) => {
            Ok(DecodedRecord::Action(action))
        }
        (Some(RecordType::Action), Some(action), _) => {
            Err(damaged(format!("holds an action at position {}", action.position())))
        }
        _ => Err(damaged("has an unknown type".to_owned())),
    }
}

/// Creates the error about a damaged record. The key may be arbitrary bytes, so it is shortened and
/// escaped.
fn damaged(key: &[u8], reason: String) -> ReplicaError {
    const KEY_SHOWN: usize = 30;
    let key = String::from_utf8_lossy(key.get(..KEY_SHOWN).unwrap_or(key));
    ReplicaError::Damaged { key: key.escape_default().to_string(), reason }
}

/// Applies the actions in the order of their positions.
fn replay(actions: &BTreeMap<u64, pb::Action>) -> Result<Replica, ReplicaError> {
    let begin = actions.values().filter_map(learned_truncation).max().unwrap_or(0);
    let mut replica = Replica::default();
    let (mut gap, mut next) = (None, begin);
    for (&position, action) in actions.range(begin..) {
        if position > next {
            gap = gap.or(Some(next));
        }
        next = position.saturating_add(1);
        let accepted = kind(action).filter(|_| action.performed.is_some() || action.learned());
        match accepted {
            None => gap = gap.or(Some(position)),
            Some(ActionType::Nop | ActionType::Truncate) => {}
            Some(ActionType::Append) => {
                let value = match decode_append(position, action)? {
                    Write::Set(value) => Some(value),
                    Write::Erase => None,
                    Write::Unrelated => continue,
                };
                let unlearned_at = (!action.learned()).then_some(position);
                replica = Replica { value, unlearned_at };
                // The write replaces the whole value, so earlier gaps do not matter.
                gap = None;
            }
        }
    }
    match gap {
        Some(position) => Err(ReplicaError::Gap(position)),
        None => Ok(replica),
    }
}

/// Returns the first position that remains after a learned truncation.
fn learned_truncation(action: &pb::Action) -> Option<u64> {
    let is_truncation = kind(action) == Some(ActionType::Truncate);
    if action.learned() && is_truncation { action.truncate.as_ref()?.to } else { None }
}

fn kind(action: &pb::Action) -> Option<ActionType> {
    ActionType::try_from(action.r#type?).ok()
}

/// The effect of an appended operation on the value.
enum Write {
    Set(Vec<u8>),
    Erase,
    /// The operation is about another name.
    Unrelated,
}

fn decode_append(position: u64, action: &pb::Action) -> Result<Write, ReplicaError> {
    let damaged = |reason: String| damaged(&key_of(position), reason);
    let bytes = action.append.as_ref().and_then(|append| append.bytes.as_deref());
    let operation = pb::Operation::decode(bytes.unwrap_or_default())
        .map_err(|error| damaged(error.to_string()))?;
    let kind = operation.r#type.and_then(|kind| OperationType::try_from(kind).ok());
    match kind {
        Some(OperationType::Snapshot) => {
            let entry = operation.snapshot.and_then(|snapshot| snapshot.entry);
            let entry = entry.filter(|entry| entry.name() == NAME);
            Ok(entry.map_or(Write::Unrelated, |entry| Write::Set(entry.value.unwrap_or_default())))
        }
        Some(OperationType::Expunge) => {
            let name = operation.expunge.as_ref().map(pb::operation::Expunge::name);
            Ok(if name == Some(NAME) { Write::Erase } else { Write::Unrelated })
        }
        Some(OperationType::Diff) => {
            match operation.diff.as_ref().and_then(|diff| diff.entry.as_ref()) {
                Some(entry) if entry.name() == NAME => Err(ReplicaError::Difference(position)),
                _ => Ok(Write::Unrelated),
            }
        }
        None => Err(damaged("the appended operation has an unknown type".to_owned())),
    }
}

/// Encodes the keys and records of a voting replica whose log contains only `value`. `uuid` is the
/// unique ID of the write, 16 bytes.
#[must_use]
pub fn encode_replica(value: Vec<u8>, uuid: [u8; 16]) -> Vec<(Vec<u8>, Vec<u8>)> {
    // A master follows each write with a truncation up to the write.
    const WRITTEN_AT: u64 = 1;
    let entry =
        pb::Entry { name: Some(NAME.to_vec()), uuid: Some(uuid.to_vec()), value: Some(value) };
    let operation = pb::Operation {
        r#type: Some(OperationType::Snapshot.into()),
        snapshot: Some(pb::operation::Snapshot { entry: Some(entry) }),
        ..pb::Operation::default()
    };
    let action = |position, kind: ActionType| pb::Action {
        position: Some(position),
        promised: Some(1),
        performed: Some(1),
        learned: Some(true),
        r#type: Some(kind.into()),
        ..pb::Action::default()
    };
    let append = pb::action::Append { bytes: Some(operation.encode_to_vec()) };
    let truncate = pb::action::Truncate { to: Some(WRITTEN_AT) };
    let actions = [
        pb::Action { append: Some(append), ..action(WRITTEN_AT, ActionType::Append) },
        pb::Action { truncate: Some(truncate), ..action(WRITTEN_AT + 1, ActionType::Truncate) },
    ];
    let metadata = pb::Metadata { status: Some(Status::Voting.into()), promised: Some(1) };
    let metadata = pb::Record {
        r#type: Some(RecordType::Metadata.into()),
        metadata: Some(metadata),
        ..pb::Record::default()
    };
    let mut records = vec![(METADATA_KEY.to_vec(), metadata.encode_to_vec())];
    for action in actions {
        let key = key_of(action.position());
        let kind = Some(RecordType::Action.into());
        let record = pb::Record { r#type: kind, action: Some(action), ..pb::Record::default() };
        records.push((key, record.encode_to_vec()));
    }
    records
}

/// Returns the key of a position: the position plus one, because key 0 belongs to the metadata.
fn key_of(position: u64) -> Vec<u8> {
    match position.saturating_add(1) {
        number if number <= SHORT_KEY_MAX => format!("{number:010}"),
        number => format!("A{number:020}"),
    }
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

    fn read(records: &Pairs) -> Result<Replica, ReplicaError> {
        decode_replica(records.iter().map(|(key, bytes)| (&**key, &**bytes)))
    }

    fn with_status(status: Status) -> Pairs {
        let metadata = pb::Metadata { status: Some(status.into()), promised: Some(1) };
        let record = pb::Record {
            r#type: Some(RecordType::Metadata.into()),
            metadata: Some(metadata),
            ..pb::Record::default()
        };
        vec![(METADATA_KEY.to_vec(), record.encode_to_vec())]
    }

    /// Encodes a write of `value` at `position` that the replica learned or only accepted.
    fn write_at(position: u64, value: &[u8], learned: bool) -> (Vec<u8>, Vec<u8>) {
        let mut records = encode_replica(value.to_vec(), [7; 16]);
        let mut record = pb::Record::decode(&*records.remove(1).1).unwrap();
        let action = record.action.as_mut().unwrap();
        (action.position, action.learned) = (Some(position), Some(learned));
        (key_of(position), record.encode_to_vec())
    }

    fn action_at(position: u64, change: impl FnOnce(&mut pb::Action)) -> (Vec<u8>, Vec<u8>) {
        let mut action = pb::Action {
            position: Some(position),
            promised: Some(1),
            performed: Some(1),
            learned: Some(true),
            ..pb::Action::default()
        };
        change(&mut action);
        let record = pb::Record {
            r#type: Some(RecordType::Action.into()),
            action: Some(action),
            ..pb::Record::default()
        };
        (key_of(position), record.encode_to_vec())
    }

    fn operation(kind: OperationType) -> pb::action::Append {
        let entry = pb::Entry { name: Some(NAME.to_vec()), ..pb::Entry::default() };
        let operation = pb::Operation {
            r#type: Some(kind.into()),
            expunge: Some(pb::operation::Expunge { name: Some(NAME.to_vec()) }),
            diff: Some(pb::operation::Snapshot { entry: Some(entry) }),
            ..pb::Operation::default()
        };
        pb::action::Append { bytes: Some(operation.encode_to_vec()) }
    }

    #[test]
    fn decode_encoded_replica_returns_value() {
        let records = encode_replica(b"value".to_vec(), [7; 16]);
        let keys: Vec<_> =
            records.iter().map(|(key, _)| std::str::from_utf8(key).unwrap()).collect();
        assert_eq!(keys, ["0000000000", "0000000002", "0000000003"]);
        let value = Some(b"value".to_vec());
        assert_eq!(read(&records), Ok(Replica { value, unlearned_at: None }));
    }

    #[test]
    fn decode_unused_log_is_empty() {
        assert_eq!(read(&Vec::new()), Ok(Replica::default()));
        for status in [Status::Empty, Status::Starting, Status::Voting] {
            assert_eq!(read(&with_status(status)), Ok(Replica::default()), "{status:?}");
        }
    }

    #[test]
    fn decode_non_voting_replica_is_refused() {
        for status in [Status::Empty, Status::Starting, Status::Recovering] {
            let mut records = with_status(status);
            records.push(write_at(1, b"one", true));
            assert_eq!(
                read(&records).unwrap_err().to_string(),
                format!(
                    "the replica is {}, and other replicas may have later values: use the \
                     directory of the master that led last, or start that master once, which \
                     completes its log, and stop it",
                    status.as_str_name()
                )
            );
        }
    }

    #[test]
    fn decode_last_write_counts_if_only_accepted() {
        let mut records = with_status(Status::Voting);
        records.extend([write_at(3, b"one", true), write_at(4, b"two", true)]);
        let value = |value: &[u8]| Some(value.to_vec());
        assert_eq!(read(&records), Ok(Replica { value: value(b"two"), unlearned_at: None }));
        records.push(write_at(5, b"three", false));
        let accepted = Replica { value: value(b"three"), unlearned_at: Some(5) };
        assert_eq!(read(&records), Ok(accepted));
        records.push(write_at(6, b"four", true));
        assert_eq!(read(&records), Ok(Replica { value: value(b"four"), unlearned_at: None }));
    }

    #[test]
    fn decode_gap_after_last_write_is_refused() {
        let mut records = with_status(Status::Voting);
        records.extend([write_at(3, b"one", true), write_at(5, b"two", true)]);
        assert!(read(&records).is_ok(), "gaps before the last write do not matter");
        let mut promised = records.clone();
        promised.push(action_at(6, |action| (action.performed, action.learned) = (None, None)));
        assert_eq!(read(&promised), Err(ReplicaError::Gap(6)));
        let mut missing = records.clone();
        missing.push(action_at(7, |action| action.r#type = Some(ActionType::Nop.into())));
        assert_eq!(
            read(&missing).unwrap_err().to_string(),
            "position 6 of the log is unknown to this replica: use the directory of the master \
             that led last, or start that master once, which completes its log, and stop it"
        );
    }

    #[test]
    fn decode_truncated_write_is_ignored() {
        let mut records = with_status(Status::Voting);
        records.push(write_at(3, b"one", true));
        records.push(action_at(4, |action| {
            action.r#type = Some(ActionType::Truncate.into());
            action.truncate = Some(pb::action::Truncate { to: Some(4) });
        }));
        assert_eq!(read(&records), Ok(Replica::default()));
        records.push(write_at(5, b"two", true));
        let expunge = |action: &mut pb::Action| {
            action.r#type = Some(ActionType::Append.into());
            action.append = Some(operation(OperationType::Expunge));
        };
        assert_eq!(read(&records).unwrap().value.as_deref(), Some(&b"two"[..]));
        records.push(action_at(6, expunge));
        assert_eq!(read(&records), Ok(Replica::default()));
    }

    #[test]
    fn decode_damaged_record_names_key() {
        let mut records = with_status(Status::Voting);
        records.push((key_of(7), write_at(6, b"one", true).1));
        assert_eq!(
            read(&records).unwrap_err().to_string(),
            "record 0000000008: holds an action at position 6: the record is damaged, or this is \
             not a replicated log of Mesos"
        );
        records.pop();
        records.push(action_at(1, |action| {
            action.r#type = Some(ActionType::Append.into());
            action.append = Some(operation(OperationType::Diff));
        }));
        assert_eq!(read(&records), Err(ReplicaError::Difference(1)));
        let other = vec![(b"a\nkey".to_vec(), b"text".to_vec())];
        let message = read(&other).unwrap_err().to_string();
        assert!(message.starts_with(r"record a\nkey: "), "{message}");
    }

    #[test]
    fn key_of_late_position_has_letter_and_20_digits() {
        let key = |position| String::from_utf8(key_of(position)).unwrap();
        assert_eq!(key(9_999_999_998), "9999999999");
        assert_eq!(key(9_999_999_999), "A00000000010000000000");
    }
}
