//! Requests over HTTP, as the machines know them, and what never became one.

use serde::Serialize;

use crate::escape::bounded_line;

/// Tells requests apart. Unique among those that wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// Messages that were refused before they reached a machine: from a sender at another address than
/// it says, malformed, too large.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Refused {
    /// How many since the start.
    pub count: u64,
    /// The last one: from where, and why.
    pub last: Option<String>,
}

impl Refused {
    /// Longest reason that is shown, in characters.
    const REASON_MAX: usize = 1024;

    /// Returns the same with a reason that can be shown: it may quote what a stranger sent.
    #[must_use]
    pub fn sanitized(self) -> Self {
        let last = self.last.map(|last| bounded_line(&last, Self::REASON_MAX));
        Self { last, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_hostile_reason_is_escaped_and_cut() {
        let last = Some(format!("from 10.0.0.1:5: \u{202e}\n{}", "x".repeat(70_000)));
        let Refused { count, last } = Refused { count: 3, last }.sanitized();
        let last = last.unwrap();
        assert!(last.starts_with(r"from 10.0.0.1:5: \u{202e}\nxxx"), "{last}");
        assert_eq!((count, last.chars().count()), (3, 1024));
        assert!(last.ends_with("x… (cut)"), "{last}");
    }
}
