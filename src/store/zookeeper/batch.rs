//! What a commit writes: the last change of each key, in groups that a request has room for.
//!
//! A server closes the connection over a request of 1 MiB (`jute.maxbuffer`), and passes on to the
//! others what a request becomes, which is somewhat larger. So a commit of more than a quarter of
//! that is cut into parts. These are written first, where nobody looks at them; then one request
//! makes all of them count; then they are applied one after the other, each of them once or more
//! often, which makes no difference.

use std::collections::{BTreeMap, HashSet};

use crate::store::{Change, Key};

/// Bytes of one request, or of one part.
const GROUP_BYTES: usize = 256 << 10;

/// What a change costs beside its bytes: path, access list, headers.
const CHANGE_BYTES: usize = 200;

/// The longest record: what fits into a request with all that belongs to it.
pub(super) const RECORD_MAX: usize = 900_000;

/// The state of a record after a commit.
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

    const fn cost(&self) -> usize {
        match self {
            Self::Put(_, bytes) => CHANGE_BYTES + bytes.len(),
            Self::Delete(_) => CHANGE_BYTES,
        }
    }
}

/// What `changes` come to, of which only the last of each key counts, where there are records of
/// `known` keys. The result is in the order of the keys.
pub(super) fn writes<'a>(changes: &'a [Change], known: &HashSet<Key>) -> Vec<Write<'a>> {
    let mut last = BTreeMap::new();
    for change in changes {
        match change {
            Change::Put(key, bytes) => last.insert(*key, Write::Put(*key, bytes)),
            Change::Delete(key) => last.insert(*key, Write::Delete(*key)),
        };
    }
    let is_needed =
        |write: &Write<'_>| matches!(write, Write::Put(..)) || known.contains(&write.key());
    last.into_values().filter(is_needed).collect()
}

/// The same in groups, each of a size that a request has room for; a record that is larger is alone
/// in its group. There is none where there is nothing to write.
pub(super) fn grouped(writes: Vec<Write<'_>>) -> Vec<Vec<Write<'_>>> {
    let mut groups = Vec::new();
    let mut group = Vec::new();
    let mut size = 0;
    for write in writes {
        if size + write.cost() > GROUP_BYTES && !group.is_empty() {
            groups.push(std::mem::take(&mut group));
            size = 0;
        }
        size += write.cost();
        group.push(write);
    }
    if !group.is_empty() {
        groups.push(group);
    }
    groups
}

const PUT: u8 = 1;
const DELETE: u8 = 2;

/// A group as the bytes of a part: of each write what it is, the length of the key and the key,
/// and of a record its length and its bytes.
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

/// The group in the bytes of a part; `None` if they are none.
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
    fn the_last_change_of_a_key_counts_and_needless_deletes_do_not() {
        let changes = [
            Change::Put(ip(2), b"first".to_vec()),
            Change::Delete(ip(9)),
            Change::Put(ip(2), b"last".to_vec()),
            Change::Put(ip(1), b"gone".to_vec()),
            Change::Delete(ip(1)),
            Change::Delete(ip(3)),
        ];
        let known = HashSet::from([ip(3)]);
        let expected = [Write::Put(ip(2), b"last"), Write::Delete(ip(3))];
        assert_eq!(writes(&changes, &known), expected);
        assert_eq!(grouped(Vec::new()), Vec::<Vec<Write<'_>>>::new());
    }

    #[test]
    fn a_group_fits_into_a_request() {
        let record = vec![0; 1000];
        let huge = vec![0; RECORD_MAX];
        let mut all: Vec<Write<'_>> =
            (0..1000).map(|number| Write::Put(ip(number), &record)).collect();
        all.insert(500, Write::Put(ip(7777), &huge));
        let groups = grouped(all.clone());
        assert_eq!(groups.concat(), all, "nothing is lost, and nothing changes its place");
        for group in &groups {
            assert!(encode(group).len() <= GROUP_BYTES || group.len() == 1, "{}", group.len());
        }
        assert_eq!(groups.len(), 7);
    }

    #[test]
    fn damaged_parts_are_noticed() {
        let part = encode(&[Write::Put(ip(1), b"record"), Write::Delete(ip(2))]);
        for length in 1..part.len() {
            // A cut between two writes cannot be seen; the server has no such cuts.
            let is_whole = length == 11 + b"record".len();
            assert_eq!(decode(&part[..length]).is_some(), is_whole, "{length}");
        }
        assert_eq!(decode(&[3, 5, 1, 0, 0, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(decode(&[2, 5, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0]), None);
    }

    proptest! {
        #[test]
        fn a_part_reads_what_was_written(
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
        fn no_bytes_are_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = decode(&bytes);
        }
    }
}
