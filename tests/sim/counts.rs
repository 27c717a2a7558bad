//! The counters of a world, which a campaign prints at its end.

use std::collections::BTreeMap;
use std::fmt;

/// How often each kind of event happened.
#[derive(Debug, Default)]
pub(crate) struct Counts(BTreeMap<String, u64>);

impl Counts {
    pub(crate) fn add(&mut self, what: &str, count: u64) {
        match self.0.get_mut(what) {
            Some(so_far) => *so_far += count,
            None => drop(self.0.insert(what.to_owned(), count)),
        }
    }

    pub(crate) fn get(&self, what: &str) -> u64 {
        self.0.get(what).copied().unwrap_or(0)
    }

    pub(crate) fn add_all(&mut self, others: &Self) {
        others.0.iter().for_each(|(what, count)| self.add(what, *count));
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(what, count)| writeln!(f, "  {what:<32} {count:>12}"))
    }
}
