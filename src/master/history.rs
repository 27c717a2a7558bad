//! The history of addresses: which agent had them, since when, and why that changed. Entries are
//! added in the same commit as the change, and never edited.
//!
//! Entries are kept in parts of limited size, and the oldest parts are dropped. So the cost of a
//! registration depends neither on their number nor on the number of agents. Entries are decoded
//! only for a request.

use std::collections::VecDeque;
use std::net::Ipv4Addr;

use bytes::Bytes;

use crate::protocol::HistoryEntry;
use crate::store::{Change, Counts, Key};
use crate::wire::{decode_history, encode_history};

/// Entries of one part. Adding an entry writes the whole part: a few kB.
const ENTRIES_MAX: usize = 64;
/// Parts that are kept: 32,768 entries of about 100 bytes each.
const PARTS_MAX: usize = 512;

/// The history of a state.
#[derive(Debug, Default)]
pub(super) struct History {
    /// The full parts.
    closed: VecDeque<(u64, Bytes)>,
    open: Part,
    /// The changes that the store does not have yet.
    changes: Vec<Change>,
    is_open_changed: bool,
}

/// A part to which entries are added.
#[derive(Debug, Default)]
struct Part {
    number: u64,
    count: usize,
    bytes: Vec<u8>,
}

/// Encoded entries, which are decoded where they are shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryView {
    /// The earliest first.
    parts: Vec<Bytes>,
    agent: Option<Ipv4Addr>,
}

impl HistoryView {
    /// Decodes the entries, the earliest first. Also returns how many parts cannot be decoded.
    #[must_use]
    pub fn entries(&self) -> (Vec<HistoryEntry>, usize) {
        let mut entries = Vec::new();
        let mut unreadable = 0;
        for part in &self.parts {
            match decode_history(part) {
                Ok(part) => entries.extend(part),
                Err(_) => unreadable += 1,
            }
        }
        entries.retain(|entry| self.agent.is_none_or(|agent| entry.agent == Some(agent)));
        (entries, unreadable)
    }
}

impl History {
    /// Restores the history from the parts of the store, in the order of their numbers.
    pub(super) fn recover(parts: impl IntoIterator<Item = (u64, Vec<u8>)>) -> Self {
        let parts = parts.into_iter().map(|(number, bytes)| (number, Bytes::from(bytes)));
        let (mut closed, forged): (VecDeque<(u64, Bytes)>, VecDeque<_>) =
            parts.partition(|(number, _)| *number < Counts::MAX);
        let last = closed.back().map(|(number, bytes)| (*number, decode_history(bytes)));
        let open = match last {
            None => Part::default(),
            Some((number, Ok(entries))) if entries.len() < ENTRIES_MAX => {
                let bytes = closed.pop_back().map(|(_, bytes)| bytes.to_vec()).unwrap_or_default();
                Part { number, count: entries.len(), bytes }
            }
            // A part that is full or cannot be decoded stays unchanged.
            Some((number, _)) => Part { number: number.saturating_add(1), ..Part::default() },
        };
        // The next part must have a greater number than the last, so these do not count. They are
        // kept as the oldest, and so are dropped first.
        for (number, bytes) in forged.into_iter().rev() {
            log::error!("part {number} of the history: no state has come to so many: not counted");
            closed.push_front((number, bytes));
        }
        Self { closed, open, ..Self::default() }
    }

    /// Adds an entry.
    pub(super) fn note(&mut self, entry: &HistoryEntry) {
        self.open.bytes.extend(encode_history(entry));
        self.open.count += 1;
        self.is_open_changed = true;
        if self.open.count == ENTRIES_MAX {
            self.close();
        }
    }

    /// Returns the changes for the store.
    pub(super) fn take_changes(&mut self) -> Vec<Change> {
        let mut changes = std::mem::take(&mut self.changes);
        if std::mem::take(&mut self.is_open_changed) {
            changes.push(Change::Put(Key::History(self.open.number), self.open.bytes.clone()));
        }
        changes
    }

    /// Returns whether there are changes for the store.
    pub(super) const fn has_changes(&self) -> bool {
        self.is_open_changed || !self.changes.is_empty()
    }

    /// Returns all entries, or those of one agent.
    pub(super) fn view(&self, agent: Option<Ipv4Addr>) -> HistoryView {
        let closed = self.closed.iter().map(|(_, bytes)| bytes.clone());
        let open = Bytes::copy_from_slice(&self.open.bytes);
        HistoryView { parts: closed.chain([open]).collect(), agent }
    }

    fn close(&mut self) {
        let next = Part { number: self.open.number.saturating_add(1), ..Part::default() };
        let Part { number, bytes, .. } = std::mem::replace(&mut self.open, next);
        self.is_open_changed = false;
        self.changes.push(Change::Put(Key::History(number), bytes.clone()));
        self.closed.push_back((number, bytes.into()));
        while self.closed.len() >= PARTS_MAX {
            if let Some((oldest, _)) = self.closed.pop_front() {
                self.changes.push(Change::Delete(Key::History(oldest)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::protocol::{Addresses, HistoryEvent};

    fn entry(number: u32) -> HistoryEntry {
        HistoryEntry {
            at: number.into(),
            version: 1,
            agent: Some(Ipv4Addr::from(number % 3)),
            event: HistoryEvent::Assigned,
            addresses: Addresses::default(),
            reason: "registered".to_owned(),
        }
    }

    /// Returns the times of the entries.
    fn times(history: &History, agent: Option<Ipv4Addr>) -> Vec<u64> {
        history.view(agent).entries().0.iter().map(|entry| entry.at).collect()
    }

    fn store(history: &mut History, records: &mut BTreeMap<u64, Vec<u8>>) {
        for change in history.take_changes() {
            match change {
                Change::Put(Key::History(number), bytes) => {
                    records.insert(number, bytes);
                }
                Change::Delete(Key::History(number)) => {
                    records.remove(&number);
                }
                other => panic!("{other:?} is no change of the history"),
            }
        }
    }

    #[test]
    fn history_continues_after_restart() {
        for count in [0, 1, 63, 64, 65, 128, 200] {
            let mut records = BTreeMap::new();
            let mut history = History::default();
            for number in 0..count {
                history.note(&entry(number));
                if number % 7 == 0 {
                    store(&mut history, &mut records);
                }
            }
            store(&mut history, &mut records);
            assert_eq!(history.take_changes(), [], "all of it is stored");
            let mut again = History::recover(records.clone());
            again.note(&entry(count));
            let all: Vec<u64> = (0..=u64::from(count)).collect();
            assert_eq!(times(&again, None), all);
            let of_one: Vec<u64> = all.into_iter().filter(|at| at % 3 == 1).collect();
            assert_eq!(times(&again, Some(Ipv4Addr::from(1))), of_one);
            store(&mut again, &mut records);
            assert_eq!(records.len(), count as usize / ENTRIES_MAX + 1);
        }
    }

    #[test]
    fn oldest_entries_are_dropped_one_part_per_write() {
        let mut records = BTreeMap::new();
        let mut history = History::default();
        let count = u32::try_from(ENTRIES_MAX * (PARTS_MAX + 3)).unwrap();
        for number in 0..count {
            history.note(&entry(number));
            let before = records.len();
            store(&mut history, &mut records);
            assert!(records.len() <= before + 1 && records.len() <= PARTS_MAX);
        }
        let times = times(&History::recover(records), None);
        assert_eq!(times.last(), Some(&u64::from(count - 1)));
        assert!(times.len() > ENTRIES_MAX * (PARTS_MAX - 2), "{}", times.len());
    }

    #[test]
    fn part_number_out_of_reach_does_not_count() {
        let mut records =
            BTreeMap::from([(3, encode_history(&entry(1))), (u64::MAX, encode_history(&entry(9)))]);
        let mut history = History::recover(records.clone());
        for number in 2..200 {
            history.note(&entry(number));
            store(&mut history, &mut records);
        }
        let keys: Vec<u64> = records.keys().copied().collect();
        assert_eq!(keys, [3, 4, 5, 6, u64::MAX], "no part was written twice");
        let expected: Vec<u64> = [9].into_iter().chain(1..200).collect();
        assert_eq!(times(&History::recover(records), None), expected);
    }

    #[test]
    fn unreadable_part_is_counted_and_kept() {
        let mut history = History::recover([(7, b"garbage".to_vec())]);
        history.note(&entry(1));
        let (entries, unreadable) = history.view(None).entries();
        assert_eq!((entries.len(), unreadable), (1, 1));
        let changes = history.take_changes();
        assert!(matches!(changes[..], [Change::Put(Key::History(8), _)]), "{changes:?}");
    }
}
