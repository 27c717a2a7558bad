//! How much happened in a world, and of which kind: what a campaign shows at its end.

use std::collections::BTreeMap;
use std::fmt;

/// How often each thing happened.
#[derive(Debug, Default)]
pub(crate) struct Counts(BTreeMap<String, u64>);

impl Counts {
    pub(crate) fn add(&mut self, what: &str, count: u64) {
        match self.0.get_mut(what) {
            Some(so_far) => *so_far += count,
            None => drop(self.0.insert(what.to_owned(), count)),
        }
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
