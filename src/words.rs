//! Words that sentences of several rooms have in common.

use std::fmt::Display;

/// `1 agent`, `2 agents`.
#[must_use]
pub fn counted(count: impl Display + PartialEq + From<u8>, noun: &str) -> String {
    let plural = if count == 1.into() { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

/// Most things of one kind that one event names in the log. Remote senders choose how many there
/// are.
const NAMED_MAX: usize = 10;

/// Returns the first few items, which are named in the log, and how many there are besides.
#[must_use]
pub fn first_few<T>(items: &[T]) -> (&[T], usize) {
    let few = &items[..items.len().min(NAMED_MAX)];
    (few, items.len() - few.len())
}

/// `3 agents: 10.0.0.1, 10.0.0.2, 10.0.0.3`, and of many the first few and their number.
#[must_use]
pub fn named(items: &[impl Display], noun: &str) -> String {
    let (few, more) = first_few(items);
    let names = few.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let rest = if more == 0 { String::new() } else { format!(" and {more} more") };
    // No list is longer than any u64 can say.
    let count = u64::try_from(items.len()).unwrap_or(u64::MAX);
    format!("{}: {names}{rest}", counted(count, noun))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_many_items_are_counted_and_the_first_few_listed() {
        assert_eq!(named(&["a"], "agent"), "1 agent: a");
        let many: Vec<u32> = (1..=1_000_000).collect();
        let text = "1000000 agents: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 999990 more";
        assert_eq!(named(&many, "agent"), text);
        assert_eq!(first_few(&many[..10]), (&many[..10], 0));
    }

    #[test]
    fn one_is_singular() {
        let said = [0, 1, 2].map(|count: usize| counted(count, "message"));
        assert_eq!(said, ["0 messages", "1 message", "2 messages"]);
    }
}
