//! The planned events, in the order of time. Events of one moment keep the order in which they were
//! planned, so that a seed always gives the same world.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::time::Duration;

/// The planned events of a world.
pub(crate) struct Queue<T> {
    heap: BinaryHeap<Reverse<Entry<T>>>,
    planned: u64,
}

struct Entry<T> {
    when: Duration,
    number: u64,
    what: T,
}

impl<T> Queue<T> {
    pub(crate) const fn new() -> Self {
        Self { heap: BinaryHeap::new(), planned: 0 }
    }

    pub(crate) fn plan(&mut self, when: Duration, what: T) {
        self.planned += 1;
        self.heap.push(Reverse(Entry { when, number: self.planned, what }));
    }

    /// Returns the next event, unless it is after `end`.
    pub(crate) fn next_before(&mut self, end: Duration) -> Option<(Duration, T)> {
        if self.heap.peek()?.0.when > end {
            return None;
        }
        self.heap.pop().map(|Reverse(entry)| (entry.when, entry.what))
    }
}

impl<T> Ord for Entry<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.when, self.number).cmp(&(other.when, other.number))
    }
}

impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<T> Eq for Entry<T> {}
