//! The free slots of a pool, out of the slots 0, 1, 2 …
//!
//! A slot is unused, in use, or freed. The set stores unused slots as ranges, since a pool may have
//! 2^128 slots. It stores freed slots one by one, ordered by time. It does not store the slots in
//! use, which are the rest. A bitmap would be simpler, but too large for IPv6. A set of the slots
//! in use would have to be searched for its first gap.

use std::collections::BTreeMap;

use overlay_types::mutation::Mutation;
use rangemap::RangeInclusiveSet;

/// A free slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Vacancy {
    /// The index of the slot.
    pub(super) slot: u128,
    /// When the slot was freed; `None` if it is unused.
    pub(super) freed_at: Option<u64>,
}

/// Why a slot cannot be reserved or freed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SlotError {
    /// No slot has this index.
    Missing,
    /// The slot is in use, and was to be reserved.
    InUse,
    /// The slot is free, and was to be freed.
    Free,
}

/// The position of a freed slot in the order of reuse: by the second in which the slot was freed,
/// and within a second by the order of the calls. Unique.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Turn {
    freed_at: u64,
    sequence: u64,
}

/// The free slots of a pool. All operations are O(log n) in the number of unused ranges and freed
/// slots.
#[derive(Debug, Clone)]
pub(super) struct FreeSet {
    capacity: u128,
    in_use: u128,
    unused: RangeInclusiveSet<u128>,
    freed: BTreeMap<Turn, u128>,
    /// The inverse of `freed`.
    turns: BTreeMap<u128, Turn>,
    next_sequence: u64,
}

impl FreeSet {
    /// Returns the slots 0..`capacity`, all unused.
    pub(super) fn new(capacity: u128) -> Self {
        let mut unused = RangeInclusiveSet::new();
        if let Some(last) = capacity.checked_sub(1) {
            unused.insert(0..=last);
        }
        Self {
            capacity,
            in_use: 0,
            unused,
            freed: BTreeMap::new(),
            turns: BTreeMap::new(),
            next_sequence: 0,
        }
    }

    /// Allocates the slot that [`Self::peek`] returns.
    pub(super) fn allocate(&mut self) -> Option<Vacancy> {
        let vacancy = self.peek()?;
        self.take(vacancy.slot);
        Some(vacancy)
    }

    /// Reserves `slot`, which may be unused or freed.
    pub(super) fn reserve(&mut self, slot: u128) -> Result<(), SlotError> {
        if !self.is_free(slot)? {
            return Err(SlotError::InUse);
        }
        self.take(slot);
        Ok(())
    }

    /// Frees `slot` at `freed_at`.
    pub(super) fn free(&mut self, slot: u128, freed_at: u64) -> Result<(), SlotError> {
        if self.is_free(slot)? {
            return Err(SlotError::Free);
        }
        let turn = Turn { freed_at, sequence: self.next_sequence };
        self.next_sequence += 1;
        self.freed.insert(turn, slot);
        self.turns.insert(slot, turn);
        self.in_use -= 1;
        Ok(())
    }

    /// Reserves all free slots from `first` to `last`.
    pub(super) fn reserve_range(&mut self, first: u128, last: u128) {
        self.take_unused(first, last);
        let freed: Vec<u128> = self.turns.range(first..=last).map(|(slot, _)| *slot).collect();
        for slot in freed {
            self.take(slot);
        }
    }

    /// Reserves the unused slots below the highest used slot, and the `more` lowest slots above it.
    /// Since slots are allocated lowest first, the slots of `more` unreadable records are among
    /// them.
    pub(super) fn reserve_gaps(&mut self, more: u128) {
        let Some(end) = self.capacity.checked_sub(1) else {
            return;
        };
        let tail = self.unused.last().filter(|range| *range.end() == end);
        let untouched = tail.map_or(self.capacity, |range| *range.start());
        if let Some(last) = untouched.saturating_add(more).min(self.capacity).checked_sub(1) {
            self.take_unused(0, last);
        }
    }

    /// Marks the unused slots from `first` to `last` as freed.
    pub(super) fn retire(&mut self, first: u128, last: u128, freed_at: u64) {
        let mut slots = Vec::new();
        for range in self.unused.overlapping(first..=last) {
            slots.extend(first.max(*range.start())..=last.min(*range.end()));
        }
        for slot in slots {
            self.take(slot);
            // The slot was free, so this cannot fail.
            let _ = self.free(slot, freed_at);
        }
    }

    /// Returns the next free slot: the lowest unused slot, or if no slot is unused, the slot that
    /// was freed longest ago.
    pub(super) fn peek(&self) -> Option<Vacancy> {
        if Mutation::ReuseLatestReleased.is_on()
            && let Some((turn, slot)) = self.freed.last_key_value()
        {
            return Some(Vacancy { slot: *slot, freed_at: Some(turn.freed_at) });
        }
        if let Some(range) = self.unused.first() {
            return Some(Vacancy { slot: *range.start(), freed_at: None });
        }
        let (turn, slot) = self.freed.first_key_value()?;
        Some(Vacancy { slot: *slot, freed_at: Some(turn.freed_at) })
    }

    /// Returns the number of slots.
    pub(super) const fn capacity(&self) -> u128 {
        self.capacity
    }

    /// Returns the number of slots in use.
    pub(super) const fn in_use(&self) -> u128 {
        self.in_use
    }

    /// Removes a slot from the free slots.
    fn take(&mut self, slot: u128) {
        match self.turns.remove(&slot) {
            Some(turn) => {
                self.freed.remove(&turn);
            }
            None => self.unused.remove(slot..=slot),
        }
        self.in_use += 1;
    }

    fn take_unused(&mut self, first: u128, last: u128) {
        let overlapping = self.unused.overlapping(first..=last);
        let count = overlapping.map(|range| last.min(*range.end()) - first.max(*range.start()) + 1);
        self.in_use += count.sum::<u128>();
        self.unused.remove(first..=last);
    }

    /// Returns whether `slot` is free.
    pub(super) fn is_free(&self, slot: u128) -> Result<bool, SlotError> {
        if slot >= self.capacity {
            return Err(SlotError::Missing);
        }
        Ok(self.unused.contains(&slot) || self.turns.contains_key(&slot))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots_until_exhausted(set: &mut FreeSet) -> Vec<u128> {
        std::iter::from_fn(|| set.allocate()).map(|vacancy| vacancy.slot).collect()
    }

    #[test]
    fn allocate_prefers_unused_then_oldest_freed() {
        let mut set = FreeSet::new(5);
        for slot in [0, 1, 3] {
            set.reserve(slot).unwrap();
        }
        set.free(3, 100).unwrap();
        set.free(0, 50).unwrap();
        set.free(1, 100).unwrap();
        assert_eq!(set.allocate(), Some(Vacancy { slot: 2, freed_at: None }));
        assert_eq!(set.allocate(), Some(Vacancy { slot: 4, freed_at: None }));
        assert_eq!(set.allocate(), Some(Vacancy { slot: 0, freed_at: Some(50) }));
        assert_eq!(set.allocate(), Some(Vacancy { slot: 3, freed_at: Some(100) }));
        assert_eq!(set.allocate(), Some(Vacancy { slot: 1, freed_at: Some(100) }));
        assert_eq!(set.allocate(), None);
    }

    #[test]
    fn reserve_freed_slot_out_of_order_is_possible() {
        let mut set = FreeSet::new(2);
        assert_eq!(slots_until_exhausted(&mut set), [0, 1]);
        set.free(0, 1).unwrap();
        set.free(1, 2).unwrap();
        assert_eq!(set.reserve(0), Ok(()));
        assert_eq!(set.reserve(0), Err(SlotError::InUse));
        assert_eq!(slots_until_exhausted(&mut set), [1]);
    }

    #[test]
    fn free_free_or_missing_slot_fails() {
        let mut set = FreeSet::new(3);
        set.reserve(1).unwrap();
        assert_eq!(set.free(0, 9), Err(SlotError::Free));
        assert_eq!(set.free(3, 9), Err(SlotError::Missing));
        assert_eq!(set.reserve(u128::MAX), Err(SlotError::Missing));
        set.free(1, 9).unwrap();
        assert_eq!(set.free(1, 10), Err(SlotError::Free));
        assert_eq!(set.in_use(), 0);
        assert_eq!(slots_until_exhausted(&mut set), [0, 2, 1]);
    }

    #[test]
    fn peek_matches_allocate_and_changes_nothing() {
        let mut set = FreeSet::new(2);
        assert_eq!(set.peek(), set.peek());
        assert_eq!(set.peek(), set.clone().allocate());
        assert_eq!(set.in_use(), 0);
        slots_until_exhausted(&mut set);
        set.free(1, 7).unwrap();
        assert_eq!(set.peek(), Some(Vacancy { slot: 1, freed_at: Some(7) }));
        assert_eq!(set.peek(), set.allocate());
        assert_eq!(set.peek(), None);
    }

    #[test]
    fn reserved_range_is_not_allocated() {
        let mut set = FreeSet::new(10);
        for slot in [1, 4, 5] {
            set.reserve(slot).unwrap();
        }
        set.free(4, 7).unwrap();
        set.reserve_range(3, 6);
        assert_eq!(set.in_use(), 5, "1, 3, 4, 5, 6");
        assert_eq!(slots_until_exhausted(&mut set), [0, 2, 7, 8, 9]);
        assert_eq!(set.in_use(), set.capacity());
        set.reserve_range(0, 9);
        assert_eq!(set.in_use(), set.capacity(), "no slot is counted twice");
    }

    #[test]
    fn reserve_gaps_ends_above_highest_used_slot() {
        let gaps = |used: &[u128], more| {
            let mut set = FreeSet::new(6);
            for &slot in used {
                set.reserve(slot).unwrap();
            }
            set.reserve_gaps(more);
            slots_until_exhausted(&mut set)
        };
        assert_eq!(gaps(&[], 0), [0, 1, 2, 3, 4, 5]);
        assert_eq!(gaps(&[], 1), [1, 2, 3, 4, 5]);
        assert_eq!(gaps(&[0, 3], 0), [4, 5]);
        assert_eq!(gaps(&[0, 3], 1), [5]);
        assert_eq!(gaps(&[0, 3], 9), [0; 0]);
        assert_eq!(gaps(&[5], 0), [0; 0]);
        let mut largest = FreeSet::new(u128::MAX);
        largest.reserve_gaps(u128::MAX);
        assert_eq!((largest.in_use(), largest.peek()), (u128::MAX, None));
        FreeSet::new(0).reserve_gaps(1);
    }

    #[test]
    fn retired_slots_come_last() {
        let mut set = FreeSet::new(5);
        set.reserve(1).unwrap();
        set.retire(0, 2, 9);
        assert_eq!(set.in_use(), 1);
        assert_eq!(slots_until_exhausted(&mut set), [3, 4, 0, 2]);
    }

    #[test]
    fn empty_set_is_exhausted() {
        let mut set = FreeSet::new(0);
        assert_eq!(set.allocate(), None);
        assert_eq!(set.reserve(0), Err(SlotError::Missing));
    }

    #[test]
    fn largest_set_is_usable_to_last_slot() {
        let mut set = FreeSet::new(u128::MAX);
        set.reserve(u128::MAX - 1).unwrap();
        assert_eq!(set.reserve(u128::MAX), Err(SlotError::Missing));
        assert_eq!(set.allocate(), Some(Vacancy { slot: 0, freed_at: None }));
        set.free(u128::MAX - 1, 1).unwrap();
        assert_eq!(set.in_use(), 1);
    }

    /// The reserved even slots leave 100,000 unused ranges. An operation that scans the ranges or
    /// the pool would not end in time.
    #[test]
    fn slots_between_many_ranges_are_allocated_and_freed() {
        const SLOTS: u128 = 200_000;
        let mut set = FreeSet::new(u128::MAX);
        for slot in (0..SLOTS).step_by(2) {
            set.reserve(slot).unwrap();
        }
        for slot in (1..SLOTS).step_by(2) {
            assert_eq!(set.allocate().unwrap().slot, slot);
        }
        assert_eq!(set.in_use(), SLOTS);
        assert_eq!(set.unused.len(), 1, "the unused slots are one range again");
        for slot in 0..SLOTS {
            set.free(slot, 7).unwrap();
        }
        for slot in (0..SLOTS).rev() {
            set.reserve(slot).unwrap();
        }
        assert_eq!(set.in_use(), SLOTS);
        assert!(set.freed.is_empty() && set.turns.is_empty());
    }

    #[test]
    fn many_freed_slots_are_reused_in_release_order() {
        const SLOTS: u128 = 200_000;
        let mut set = FreeSet::new(SLOTS);
        assert_eq!(slots_until_exhausted(&mut set).len(), 200_000);
        for slot in 0..SLOTS {
            let position = u64::try_from(slot).unwrap();
            set.free(slot, 200_000 - position).unwrap();
        }
        assert!(slots_until_exhausted(&mut set).into_iter().eq((0..SLOTS).rev()));
    }
}
