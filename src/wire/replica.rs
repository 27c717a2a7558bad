//! What one replica of the replicated log of Mesos has on its disk: the value that its records come
//! to, and the records of a log that holds a value.
//!
//! A replica alone cannot know what a majority has agreed on. What it was told to be agreed on is
//! *learned*. What it has only accepted may have been agreed on by others, and the next leader that
//! hears this replica makes it so: it counts, with a warning. What it has not even accepted, behind
//! the last value, may be a later value: then this replica is refused.

use std::collections::BTreeMap;

use prost::Message as _;

use super::mesos::modules::overlay::replica as pb;
use super::mesos::modules::overlay::replica::action::Type as ActionType;
use super::mesos::modules::overlay::replica::metadata::Status;
use super::mesos::modules::overlay::replica::operation::Type as OperationType;
use super::mesos::modules::overlay::replica::record::Type as RecordType;

/// The name under which the state of an overlay master is in its log.
const NAME: &[u8] = b"network-state";

/// The key of what belongs to no position.
const METADATA_KEY: &[u8] = b"0000000000";

/// The last position whose key has ten digits; what follows has more, behind a letter.
const SHORT_KEY_MAX: u64 = 9_999_999_999;

/// What to do with a replica that may know less than others.
const ANOTHER: &str = "use the directory of the master that led last, or start that master once, \
                       which completes its log, and stop it";

/// The value of a log, as one replica knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Replica {
    /// The last value; `None` where none was ever written.
    pub value: Option<Vec<u8>>,
    /// The position at which the value stands if nobody has told this replica that a majority has
    /// accepted it too.
    pub unlearned_at: Option<u64>,
}

/// Why records are not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplicaError {
    /// They are none of a replica.
    #[error("record {key}: {reason}: it is damaged, or no replicated log of Mesos")]
    Damaged {
        /// The key, as text.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// This replica had not heard all that others know.
    #[error("the replica is {0}, and others may know more: {ANOTHER}")]
    NotVoting(&'static str),
    /// There is something that this replica does not know.
    #[error("what is at position {0} of the log is not known to this replica: {ANOTHER}")]
    Hole(u64),
    /// Something that no overlay module writes.
    #[error("position {0} of the log holds a difference: no overlay module writes that")]
    Difference(u64),
}

/// The value that `records`, keys and bytes, come to.
///
/// # Errors
/// When they are no records of a replica, or a later value than theirs may have been agreed on.
pub fn decode_replica<'a>(
    records: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
) -> Result<Replica, ReplicaError> {
    let mut status = Status::Empty;
    let mut actions = BTreeMap::new();
    for (key, bytes) in records {
        match decode_record(key, bytes)? {
            Known::Status(known) => status = known,
            Known::Action(action) => drop(actions.insert(action.position(), action)),
        }
    }
    match status {
        Status::Voting => replay(&actions),
        // A log that was never used.
        Status::Empty | Status::Starting if actions.is_empty() => Ok(Replica::default()),
        status => Err(ReplicaError::NotVoting(status.as_str_name())),
    }
}

enum Known {
    Status(Status),
    Action(pb::Action),
}

fn decode_record(key: &[u8], bytes: &[u8]) -> Result<Known, ReplicaError> {
    let damaged = |reason: String| {
        let key =
            String::from_utf8_lossy(key.get(..30).unwrap_or(key)).escape_default().to_string();
        ReplicaError::Damaged { key, reason }
    };
    let record = pb::Record::decode(bytes).map_err(|error| damaged(error.to_string()))?;
    let kind = record.r#type.and_then(|kind| RecordType::try_from(kind).ok());
    match (kind, record.action, record.metadata) {
        (Some(RecordType::Metadata), _, Some(metadata)) if key == METADATA_KEY => {
            let status = Status::try_from(metadata.status.unwrap_or_else(|| Status::Empty.into()));
            status.map(Known::Status).map_err(|error| damaged(error.to_string()))
        }
        // Of a time in which every replica voted.
        (Some(RecordType::Promise), _, _) if key == METADATA_KEY => {
            Ok(Known::Status(Status::Voting))
        }
        (Some(RecordType::Action), Some(action), _) if key == key_of(action.position()) => {
            Ok(Known::Action(action))
        }
        (Some(RecordType::Action), Some(action), _) => {
            Err(damaged(format!("it tells of position {}", action.position())))
        }
        _ => Err(damaged("it is of no known kind".to_owned())),
    }
}

/// What is known of each position, in their order.
fn replay(actions: &BTreeMap<u64, pb::Action>) -> Result<Replica, ReplicaError> {
    let begins = actions.values().filter(|action| action.learned()).filter_map(|action| {
        (kind(action) == Some(ActionType::Truncate)).then(|| action.truncate.as_ref()?.to)?
    });
    let begin = begins.max().unwrap_or(0);
    let mut replica = Replica::default();
    let (mut hole, mut next) = (None, begin);
    for (&position, action) in actions.range(begin..) {
        if position > next {
            hole = hole.or(Some(next));
        }
        next = position.saturating_add(1);
        let accepted = kind(action).filter(|_| action.performed.is_some() || action.learned());
        match accepted {
            None => hole = hole.or(Some(position)),
            Some(ActionType::Nop | ActionType::Truncate) => {}
            Some(ActionType::Append) => {
                if let Some(value) = appended(position, action)? {
                    let unlearned_at = (!action.learned()).then_some(position);
                    replica = Replica { value, unlearned_at };
                    // Whatever was before, this is all of the value.
                    hole = None;
                }
            }
        }
    }
    match hole {
        Some(position) => Err(ReplicaError::Hole(position)),
        None => Ok(replica),
    }
}

fn kind(action: &pb::Action) -> Option<ActionType> {
    ActionType::try_from(action.r#type?).ok()
}

/// What became of the value by what was appended; `None` if it is about something else.
fn appended(position: u64, action: &pb::Action) -> Result<Option<Option<Vec<u8>>>, ReplicaError> {
    let damaged = |reason: String| {
        let key = String::from_utf8_lossy(&key_of(position)).into_owned();
        ReplicaError::Damaged { key, reason }
    };
    let bytes = action.append.as_ref().and_then(|append| append.bytes.as_deref());
    let operation = pb::Operation::decode(bytes.unwrap_or_default())
        .map_err(|error| damaged(error.to_string()))?;
    let is_ours = |entry: Option<&pb::Entry>| entry.is_some_and(|entry| entry.name() == NAME);
    let kind = operation.r#type.and_then(|kind| OperationType::try_from(kind).ok());
    match kind {
        Some(OperationType::Snapshot) => {
            let entry = operation.snapshot.and_then(|snapshot| snapshot.entry);
            Ok(entry
                .filter(|entry| entry.name() == NAME)
                .map(|entry| Some(entry.value.unwrap_or_default())))
        }
        Some(OperationType::Expunge) => {
            let name = operation.expunge.as_ref().map(pb::operation::Expunge::name);
            Ok((name == Some(NAME)).then_some(None))
        }
        Some(OperationType::Diff) => match operation.diff.map(|diff| diff.entry) {
            Some(entry) if is_ours(entry.as_ref()) => Err(ReplicaError::Difference(position)),
            _ => Ok(None),
        },
        None => Err(damaged("what was appended is of no known kind".to_owned())),
    }
}

/// The keys and records of a replica that votes, in whose log is `value` and nothing else. `uuid`
/// is that of the write, 16 bytes that no other write has.
#[must_use]
pub fn encode_replica(value: Vec<u8>, uuid: [u8; 16]) -> Vec<(Vec<u8>, Vec<u8>)> {
    // As after one write of a master: each write is followed by a truncation to it.
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

/// The key of a position: one more than it, since zero is taken.
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

    /// A write of `value` at `position`, as a replica has it that knows, or only accepted it.
    fn written(position: u64, value: &[u8], learned: bool) -> (Vec<u8>, Vec<u8>) {
        let mut records = encode_replica(value.to_vec(), [7; 16]);
        let mut record = pb::Record::decode(&*records.remove(1).1).unwrap();
        let action = record.action.as_mut().unwrap();
        (action.position, action.learned) = (Some(position), Some(learned));
        (key_of(position), record.encode_to_vec())
    }

    fn at(position: u64, change: impl FnOnce(&mut pb::Action)) -> (Vec<u8>, Vec<u8>) {
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
    fn what_was_written_is_read() {
        let records = encode_replica(b"value".to_vec(), [7; 16]);
        let keys: Vec<_> =
            records.iter().map(|(key, _)| std::str::from_utf8(key).unwrap()).collect();
        assert_eq!(keys, ["0000000000", "0000000002", "0000000003"]);
        let value = Some(b"value".to_vec());
        assert_eq!(read(&records), Ok(Replica { value, unlearned_at: None }));
    }

    #[test]
    fn a_log_that_was_never_used_holds_nothing() {
        assert_eq!(read(&Vec::new()), Ok(Replica::default()));
        for status in [Status::Empty, Status::Starting, Status::Voting] {
            assert_eq!(read(&with_status(status)), Ok(Replica::default()), "{status:?}");
        }
    }

    #[test]
    fn a_replica_that_does_not_vote_is_refused() {
        for status in [Status::Empty, Status::Starting, Status::Recovering] {
            let mut records = with_status(status);
            records.push(written(1, b"one", true));
            assert_eq!(
                read(&records).unwrap_err().to_string(),
                format!(
                    "the replica is {}, and others may know more: use the directory of the master \
                     that led last, or start that master once, which completes its log, and stop it",
                    status.as_str_name()
                )
            );
        }
    }

    #[test]
    fn the_last_write_counts_also_if_only_accepted() {
        let mut records = with_status(Status::Voting);
        records.extend([written(3, b"one", true), written(4, b"two", true)]);
        let value = |value: &[u8]| Some(value.to_vec());
        assert_eq!(read(&records), Ok(Replica { value: value(b"two"), unlearned_at: None }));
        records.push(written(5, b"three", false));
        let accepted = Replica { value: value(b"three"), unlearned_at: Some(5) };
        assert_eq!(read(&records), Ok(accepted));
        records.push(written(6, b"four", true));
        assert_eq!(read(&records), Ok(Replica { value: value(b"four"), unlearned_at: None }));
    }

    #[test]
    fn what_may_be_a_later_write_is_not_passed_over() {
        let mut records = with_status(Status::Voting);
        records.extend([written(3, b"one", true), written(5, b"two", true)]);
        assert!(read(&records).is_ok(), "what is before the last write does not matter");
        let mut promised = records.clone();
        promised.push(at(6, |action| (action.performed, action.learned) = (None, None)));
        assert_eq!(read(&promised), Err(ReplicaError::Hole(6)));
        let mut missing = records.clone();
        missing.push(at(7, |action| action.r#type = Some(ActionType::Nop.into())));
        assert_eq!(
            read(&missing).unwrap_err().to_string(),
            "what is at position 6 of the log is not known to this replica: use the directory of \
             the master that led last, or start that master once, which completes its log, and stop \
             it"
        );
    }

    #[test]
    fn what_is_truncated_is_not_there() {
        let mut records = with_status(Status::Voting);
        records.push(written(3, b"one", true));
        records.push(at(4, |action| {
            action.r#type = Some(ActionType::Truncate.into());
            action.truncate = Some(pb::action::Truncate { to: Some(4) });
        }));
        assert_eq!(read(&records), Ok(Replica::default()));
        records.push(written(5, b"two", true));
        let expunge = |action: &mut pb::Action| {
            action.r#type = Some(ActionType::Append.into());
            action.append = Some(operation(OperationType::Expunge));
        };
        assert_eq!(read(&records).unwrap().value.as_deref(), Some(&b"two"[..]));
        records.push(at(6, expunge));
        assert_eq!(read(&records), Ok(Replica::default()));
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let mut records = with_status(Status::Voting);
        records.push((key_of(7), written(6, b"one", true).1));
        assert_eq!(
            read(&records).unwrap_err().to_string(),
            "record 0000000008: it tells of position 6: it is damaged, or no replicated log of Mesos"
        );
        records.pop();
        records.push(at(1, |action| {
            action.r#type = Some(ActionType::Append.into());
            action.append = Some(operation(OperationType::Diff));
        }));
        assert_eq!(read(&records), Err(ReplicaError::Difference(1)));
        let other = vec![(b"a\nkey".to_vec(), b"text".to_vec())];
        let said = read(&other).unwrap_err().to_string();
        assert!(said.starts_with(r"record a\nkey: "), "{said}");
    }

    #[test]
    fn late_positions_have_keys_of_their_own() {
        let key = |position| String::from_utf8(key_of(position)).unwrap();
        assert_eq!(key(9_999_999_998), "9999999999");
        assert_eq!(key(9_999_999_999), "A00000000010000000000");
    }
}
