//! Phrases shared by the messages of several crates.

use std::fmt::Display;

/// Formats a count with its noun: `1 agent`, `2 agents`.
#[must_use]
pub fn pluralize(count: impl Display + PartialEq + From<u8>, noun: &str) -> String {
    let plural = if count == 1.into() { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

/// Longest list in one log message. Remote senders choose how many items there are.
const LISTED_MAX: usize = 10;

/// Returns the first items, which a log message lists, and the number of remaining items.
#[must_use]
pub fn truncate_list<T>(items: &[T]) -> (&[T], usize) {
    let first = &items[..items.len().min(LISTED_MAX)];
    (first, items.len() - first.len())
}

/// Formats a count and a list: `2 agents: 10.0.0.1, 10.0.0.2`. A long list is truncated.
#[must_use]
pub fn count_and_list(items: &[impl Display], noun: &str) -> String {
    let (first, more) = truncate_list(items);
    let names = first.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let rest = if more == 0 { String::new() } else { format!(" and {more} more") };
    // `usize` has at most 64 bits.
    let count = u64::try_from(items.len()).unwrap_or(u64::MAX);
    format!("{}: {names}{rest}", pluralize(count, noun))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn count_and_list_long_list_is_truncated() {
        assert_eq!(count_and_list(&["a"], "agent"), "1 agent: a");
        let many: Vec<u32> = (1..=1_000_000).collect();
        let text = "1000000 agents: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 999990 more";
        assert_eq!(count_and_list(&many, "agent"), text);
        assert_eq!(truncate_list(&many[..10]), (&many[..10], 0));
    }

    #[test]
    fn pluralize_one_is_singular() {
        let phrases = [0, 1, 2].map(|count: usize| pluralize(count, "message"));
        assert_eq!(phrases, ["0 messages", "1 message", "2 messages"]);
    }
}
