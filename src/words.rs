//! Words that sentences of several rooms have in common.

use std::fmt::Display;

/// `1 agent`, `2 agents`.
#[must_use]
pub fn counted(count: impl Display + PartialEq + From<u8>, noun: &str) -> String {
    let plural = if count == 1.into() { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

#[cfg(test)]
mod tests {
    use super::counted;

    #[test]
    fn one_is_singular() {
        let said = [0, 1, 2].map(|count: usize| counted(count, "message"));
        assert_eq!(said, ["0 messages", "1 message", "2 messages"]);
    }
}
