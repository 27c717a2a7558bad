//! Counts repeated causes for the log. A cause that occurs at every attempt is logged once, and then
//! with a count at every doubling: a fault that lasts for days must not fill the log.

use std::collections::BTreeMap;
use std::fmt;

/// Maximum number of causes. Beyond it, the counts begin again.
const CAUSES_MAX: usize = 16;

/// The causes of consecutive failures, with their counts.
#[derive(Debug, Default)]
pub struct Repetitions(BTreeMap<String, u64>);

impl Repetitions {
    /// Creates an empty list.
    #[must_use]
    pub const fn new() -> Self {
        Self(BTreeMap::new())
    }

    /// Counts `cause`. Returns the end of its log line if it is to be logged now.
    pub fn note(&mut self, cause: &str) -> Option<Repetition> {
        if !self.0.contains_key(cause) && self.0.len() >= CAUSES_MAX {
            self.0.clear();
        }
        let count = self.0.entry(cause.to_owned()).or_default();
        *count = count.saturating_add(1);
        count.is_power_of_two().then_some(Repetition(*count))
    }

    /// Forgets all causes, after a success.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

/// The end of a log line: empty for the first occurrence, and otherwise the count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Repetition(u64);

impl fmt::Display for Repetition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 > 1 { write!(f, " ({} times until now)", self.0) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_cause_is_logged_at_every_doubling() {
        let mut repetitions = Repetitions::new();
        let mut note = |cause: &str| repetitions.note(cause).map(|end| end.to_string());
        let logged: Vec<_> = (0..8).filter_map(|_| note("disk full")).collect();
        let counted = |count: u32| format!(" ({count} times until now)");
        assert_eq!(logged, [String::new(), counted(2), counted(4), counted(8)]);
        assert_eq!(note("read-only"), Some(String::new()));
        assert_eq!(note("disk full"), None);
        repetitions.clear();
        assert_eq!(repetitions.note("disk full"), Some(Repetition(1)));
        for cause in 0..100 {
            assert_eq!(repetitions.note(&cause.to_string()), Some(Repetition(1)));
            assert!(repetitions.0.len() <= CAUSES_MAX);
        }
    }
}
