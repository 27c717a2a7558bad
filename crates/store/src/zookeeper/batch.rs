//! The writes of a commit: the last change of each key, in groups that fit into one request.
//!
//! A server closes the connection if a request exceeds 1 MiB (`jute.maxbuffer`), and the
//! transaction that it forwards to the other servers is somewhat larger than the request. So a
//! commit of more than 256 KiB is split into parts. The parts are written first, below `pending`.
//! Then one request commits all of them. Then each part is applied. Applying a part twice has no
//! further effect.

use std::collections::{BTreeMap, HashSet};

use overlay_types::state::Key;

use crate::Change;
use crate::key::KeyBytes as _;

/// Largest size of one request or one part in bytes.
const GROUP_BYTES: usize = 256 << 10;

/// Overhead of a change in bytes: path, access list, headers.
const CHANGE_BYTES: usize = 200;

/// Longest record in bytes that fits into a request with its overhead.
pub(super) const RECORD_MAX: usize = 900_000;

/// A write to one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Write<'a> {
    Put(Key, &'a [u8]),
    Delete(Key),
}

impl Write<'_> {
    pub(super) const fn key(&self) -> Key {
        match self {
            Self::Put(key, _) | Self::Delete(key) => *key,
        }
    }

    const fn request_bytes(&self) -> usize {
        match self {
            Self::Put(_, bytes) => CHANGE_BYTES + bytes.len(),
            Self::Delete(_) => CHANGE_BYTES,
        }
    }
}

/// Returns the last change of each key as a write, in the order of the keys. Omits deletes of keys
/// that are not in `existing`.
pub(super) fn last_writes<'a>(changes: &'a [Change], existing: &HashSet<Key>) -> Vec<Write<'a>> {
    let mut last = BTreeMap::new();
    for change in changes {
        match change {
            Change::Put(key, bytes) => last.insert(*key, Write::Put(*key, bytes)),
            Change::Delete(key) => last.insert(*key, Write::Delete(*key)),
        };
    }
    let is_needed =
        |write: &Write<'_>| matches!(write, Write::Put(..)) || existing.contains(&write.key());
    last.into_values().filter(is_needed).collect()
}

/// Splits `writes` into groups that fit into one request each. A larger record is alone in its
/// group.
pub(super) fn split_into_groups(writes: Vec<Write<'_>>) -> Vec<Vec<Write<'_>>> {
    let mut groups = Vec::new();
    let mut group = Vec::new();
    let mut size = 0;
    for write in writes {
        if size + write.request_bytes() > GROUP_BYTES && !group.is_empty() {
            groups.push(std::mem::take(&mut group));
            size = 0;
        }
        size += write.request_bytes();
        group.push(write);
    }
    if !group.is_empty() {
        groups.push(group);
    }
    groups
}

const PUT: u8 = 1;
const DELETE: u8 = 2;

/// Encodes a group as the bytes of a part. Each write is its kind, the length of the key, the key,
/// the length of the record, and the record.
pub(super) fn encode(group: &[Write<'_>]) -> Vec<u8> {
    let mut part = Vec::new();
    for write in group {
        let (kind, bytes) = match write {
            Write::Put(_, bytes) => (PUT, *bytes),
            Write::Delete(_) => (DELETE, &[][..]),
        };
        let key = write.key().to_bytes();
        part.push(kind);
        part.push(u8::try_from(key.len()).unwrap_or(u8::MAX));
        part.extend(key);
        part.extend(u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
        part.extend(bytes);
    }
    part
}

/// Decodes the group of a part. Returns `None` if the bytes are no part.
pub(super) fn decode(mut part: &[u8]) -> Option<Vec<Write<'_>>> {
    let mut group = Vec::new();
    while let Some((&[kind, length], rest)) = part.split_first_chunk::<2>() {
        let (key, rest) = rest.split_at_checked(length.into())?;
        let key = Key::from_bytes(key)?;
        let (length, rest) = rest.split_first_chunk::<4>()?;
        let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
        let (bytes, rest) = rest.split_at_checked(length)?;
        group.push(match kind {
            PUT => Write::Put(key, bytes),
            DELETE if bytes.is_empty() => Write::Delete(key),
            _ => return None,
        });
        part = rest;
    }
    part.is_empty().then_some(group)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ip(number: u32) -> Key {
        Key::Agent(number.into())
    }

    #[test]
    fn last_change_wins_and_needless_delete_is_omitted() {
        let changes = [
            Change::Put(ip(2), b"first".to_vec()),
            Change::Delete(ip(9)),
            Change::Put(ip(2), b"last".to_vec()),
            Change::Put(ip(1), b"gone".to_vec()),
            Change::Delete(ip(1)),
            Change::Delete(ip(3)),
        ];
        let existing = HashSet::from([ip(3)]);
        let expected = [Write::Put(ip(2), b"last"), Write::Delete(ip(3))];
        assert_eq!(last_writes(&changes, &existing), expected);
        assert_eq!(split_into_groups(Vec::new()), Vec::<Vec<Write<'_>>>::new());
    }

    #[test]
    fn group_fits_into_request() {
        let record = vec![0; 1000];
        let huge = vec![0; RECORD_MAX];
        let mut all: Vec<Write<'_>> =
            (0..1000).map(|number| Write::Put(ip(number), &record)).collect();
        all.insert(500, Write::Put(ip(7777), &huge));
        let groups = split_into_groups(all.clone());
        assert_eq!(groups.concat(), all, "the groups hold all writes in order");
        for group in &groups {
            assert!(encode(group).len() <= GROUP_BYTES || group.len() == 1, "{}", group.len());
        }
        assert_eq!(groups.len(), 7);
    }

    #[test]
    fn damaged_part_is_refused() {
        let part = encode(&[Write::Put(ip(1), b"record"), Write::Delete(ip(2))]);
        for length in 1..part.len() {
            // A cut between two writes cannot be detected. Servers do not truncate znodes.
            let is_valid = length == 11 + b"record".len();
            assert_eq!(decode(&part[..length]).is_some(), is_valid, "{length}");
        }
        assert_eq!(decode(&[3, 5, 1, 0, 0, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(decode(&[2, 5, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0]), None);
    }

    proptest! {
        #[test]
        fn part_survives_roundtrip(
            changes in prop::collection::vec(
                (any::<u32>(), prop::option::of(prop::collection::vec(any::<u8>(), 0..50))), 0..20)
        ) {
            let group: Vec<Write<'_>> = changes
                .iter()
                .map(|(number, bytes)| match bytes {
                    Some(bytes) => Write::Put(ip(*number), bytes),
                    None => Write::Delete(ip(*number)),
                })
                .collect();
            let part = encode(&group);
            prop_assert_eq!(decode(&part), Some(group));
        }

        #[test]
        fn random_bytes_cause_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = decode(&bytes);
        }
    }
}
