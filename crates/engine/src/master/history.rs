//! The history of addresses: which agent had which addresses, since when, and why that changed. The
//! commit that changes a record also stores the entry. Entries are never changed.
//!
//! The entries are kept in parts of limited size, and the oldest parts are dropped. So the cost of
//! a registration depends neither on the number of entries nor on the number of agents. The master
//! reads the history only for a request.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::sync::Arc;

use overlay_types::protocol::HistoryEntry;
use overlay_types::state::{Counts, Key, LoadedPart, RecordChange, UnreadableRecord};

/// Entries of one part. Each added entry writes its part as a whole: a few kB.
const ENTRIES_MAX: usize = 64;
/// Parts that are kept: 32,768 entries of about 100 bytes each.
const PARTS_MAX: usize = 512;

/// The history of addresses, and its changes that are not stored yet.
#[derive(Debug, Default)]
pub(super) struct History {
    /// Full or unreadable parts, the oldest first.
    closed: VecDeque<(u64, StoredPart)>,
    open: OpenPart,
    /// Changes for the next commit, besides the open part.
    changes: Vec<RecordChange>,
    is_open_changed: bool,
}

/// The entries of a part, or the reason why this version cannot decode the part.
type StoredPart = Result<Arc<[HistoryEntry]>, UnreadableRecord>;

/// The part that entries are added to.
#[derive(Debug, Default)]
struct OpenPart {
    number: u64,
    entries: Vec<HistoryEntry>,
}

/// A copy of the history, which is filtered and rendered outside of the state machine's thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryView {
    /// The earliest first.
    parts: Vec<StoredPart>,
    agent: Option<Ipv4Addr>,
}

impl HistoryView {
    /// Returns the entries, the earliest first, and the number of parts that cannot be decoded.
    #[must_use]
    pub fn entries(&self) -> (Vec<HistoryEntry>, usize) {
        let is_of_agent =
            |entry: &&HistoryEntry| self.agent.is_none_or(|agent| entry.agent == Some(agent));
        let readable = self.parts.iter().flatten();
        let entries = readable.flat_map(|part| part.iter()).filter(is_of_agent).cloned().collect();
        (entries, self.parts.iter().filter(|part| part.is_err()).count())
    }
}

impl History {
    /// Restores the history from the stored parts, in the order of their numbers.
    pub(super) fn recover(parts: impl IntoIterator<Item = LoadedPart>) -> Self {
        let (mut parts, forged): (Vec<LoadedPart>, Vec<LoadedPart>) =
            parts.into_iter().partition(|part| part.number < Counts::MAX);
        let open = match parts.pop() {
            None => OpenPart::default(),
            Some(LoadedPart { number, entries: Ok(entries), is_lossless: true })
                if entries.len() < ENTRIES_MAX =>
            {
                OpenPart { number, entries }
            }
            // A part stays unchanged if it is full, or if rewriting it would lose a part of it.
            Some(part) => {
                let number = part.number.saturating_add(1);
                parts.push(part);
                OpenPart { number, entries: Vec::new() }
            }
        };
        let to_stored = |part: LoadedPart| (part.number, part.entries.map(Arc::from));
        let mut closed: VecDeque<(u64, StoredPart)> = parts.into_iter().map(to_stored).collect();
        // The next part must have a greater number than the last, so these numbers are ignored.
        // The parts are kept as the oldest, and so are dropped first.
        for (number, part) in forged.into_iter().map(to_stored).rev() {
            log::error!("part {number} of the history: ignored: impossible number");
            closed.push_front((number, part));
        }
        Self { closed, open, ..Self::default() }
    }

    /// Adds an entry.
    pub(super) fn note(&mut self, entry: HistoryEntry) {
        self.open.entries.push(entry);
        self.is_open_changed = true;
        if self.open.entries.len() == ENTRIES_MAX {
            self.close();
        }
    }

    /// Returns the changes for the next commit.
    pub(super) fn take_changes(&mut self) -> Vec<RecordChange> {
        let mut changes = std::mem::take(&mut self.changes);
        if std::mem::take(&mut self.is_open_changed) {
            let OpenPart { number, entries } = &self.open;
            changes.push(RecordChange::PutHistory(*number, entries.as_slice().into()));
        }
        changes
    }

    /// Returns whether there are changes for the next commit.
    pub(super) const fn has_changes(&self) -> bool {
        self.is_open_changed || !self.changes.is_empty()
    }

    /// Returns all entries, or the entries of one agent.
    pub(super) fn view(&self, agent: Option<Ipv4Addr>) -> HistoryView {
        let closed = self.closed.iter().map(|(_, part)| part.clone());
        let open = Ok(self.open.entries.as_slice().into());
        HistoryView { parts: closed.chain([open]).collect(), agent }
    }

    fn close(&mut self) {
        let number = self.open.number.saturating_add(1);
        let next = OpenPart { number, entries: Vec::new() };
        let OpenPart { number, entries } = std::mem::replace(&mut self.open, next);
        let entries: Arc<[HistoryEntry]> = entries.into();
        self.is_open_changed = false;
        self.changes.push(RecordChange::PutHistory(number, Arc::clone(&entries)));
        self.closed.push_back((number, Ok(entries)));
        while self.closed.len() >= PARTS_MAX {
            if let Some((oldest, _)) = self.closed.pop_front() {
                self.changes.push(RecordChange::Delete(Key::History(oldest)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use overlay_types::protocol::{Addresses, Author, HistoryEvent};

    use super::*;

    fn entry(number: u32) -> HistoryEntry {
        HistoryEntry {
            at: number.into(),
            version: 1,
            agent: Some(Ipv4Addr::from(number % 3)),
            event: HistoryEvent::Assigned,
            addresses: Addresses::default(),
            reason: "registered".to_owned(),
            author: Author::default(),
        }
    }

    /// Returns the times of the entries.
    fn times(history: &History, agent: Option<Ipv4Addr>) -> Vec<u64> {
        history.view(agent).entries().0.iter().map(|entry| entry.at).collect()
    }

    /// Restores a history from parts that this version can rewrite.
    fn recover(records: BTreeMap<u64, Result<Vec<HistoryEntry>, UnreadableRecord>>) -> History {
        let to_part = |(number, entries)| LoadedPart { number, entries, is_lossless: true };
        History::recover(records.into_iter().map(to_part))
    }

    fn store(
        history: &mut History,
        records: &mut BTreeMap<u64, Result<Vec<HistoryEntry>, UnreadableRecord>>,
    ) {
        for change in history.take_changes() {
            match change {
                RecordChange::PutHistory(number, entries) => {
                    records.insert(number, Ok(entries.to_vec()));
                }
                RecordChange::Delete(Key::History(number)) => {
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
                history.note(entry(number));
                if number % 7 == 0 {
                    store(&mut history, &mut records);
                }
            }
            store(&mut history, &mut records);
            assert_eq!(history.take_changes(), [], "everything is stored");
            let mut again = recover(records.clone());
            again.note(entry(count));
            let all: Vec<u64> = (0..=u64::from(count)).collect();
            assert_eq!(times(&again, None), all);
            let of_one: Vec<u64> = all.into_iter().filter(|at| at % 3 == 1).collect();
            assert_eq!(times(&again, Some(Ipv4Addr::from(1))), of_one);
            store(&mut again, &mut records);
            assert_eq!(records.len(), count as usize / ENTRIES_MAX + 1);
        }
    }

    #[test]
    fn oldest_entries_are_dropped_and_entry_costs_one_part() {
        let mut records = BTreeMap::new();
        let mut history = History::default();
        let count = u32::try_from(ENTRIES_MAX * (PARTS_MAX + 3)).unwrap();
        for number in 0..count {
            history.note(entry(number));
            let before = records.len();
            store(&mut history, &mut records);
            assert!(records.len() <= before + 1 && records.len() <= PARTS_MAX);
        }
        let times = times(&recover(records), None);
        assert_eq!(times.last(), Some(&u64::from(count - 1)));
        assert!(times.len() > ENTRIES_MAX * (PARTS_MAX - 2), "{}", times.len());
    }

    #[test]
    fn part_number_beyond_limit_is_ignored() {
        let mut records = BTreeMap::from([(3, Ok(vec![entry(1)])), (u64::MAX, Ok(vec![entry(9)]))]);
        let mut history = recover(records.clone());
        for number in 2..200 {
            history.note(entry(number));
            store(&mut history, &mut records);
        }
        let keys: Vec<u64> = records.keys().copied().collect();
        assert_eq!(keys, [3, 4, 5, 6, u64::MAX], "no part was written twice");
        let expected: Vec<u64> = [9].into_iter().chain(1..200).collect();
        assert_eq!(times(&recover(records), None), expected);
    }

    #[test]
    fn unreadable_part_is_counted_and_kept() {
        let mut history =
            recover(BTreeMap::from([(7, Err(UnreadableRecord("garbage".to_owned())))]));
        history.note(entry(1));
        let (entries, unreadable) = history.view(None).entries();
        assert_eq!((entries.len(), unreadable), (1, 1));
        let changes = history.take_changes();
        assert!(matches!(changes[..], [RecordChange::PutHistory(8, _)]), "{changes:?}");
    }

    #[test]
    fn part_of_later_version_is_kept_unchanged() {
        let part = LoadedPart { number: 7, entries: Ok(vec![entry(1)]), is_lossless: false };
        let mut history = History::recover([part]);
        history.note(entry(2));
        assert_eq!(times(&history, None), [1, 2]);
        let changes = history.take_changes();
        assert!(matches!(changes[..], [RecordChange::PutHistory(8, _)]), "{changes:?}");
    }
}
