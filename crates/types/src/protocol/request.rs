//! Ids of pending HTTP requests, and the count of rejected messages.

use serde::Serialize;

use crate::escape::bounded_line;

/// Identifies a pending request. Unique among pending requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// Messages that were rejected before they reached a state machine. For example, the sender claims
/// another address, or the message is malformed or too large.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct RejectedMessages {
    /// Number of rejected messages since the start.
    pub count: u64,
    /// Sender and reason of the last rejection.
    pub last: Option<String>,
}

impl RejectedMessages {
    /// Longest shown reason in characters.
    const REASON_MAX: usize = 1024;

    /// Escapes and truncates the reason, which may quote the message of an untrusted sender.
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
    fn sanitized_hostile_reason_is_escaped_and_cut() {
        let last = Some(format!("from 10.0.0.1:5: \u{202e}\n{}", "x".repeat(70_000)));
        let RejectedMessages { count, last } = RejectedMessages { count: 3, last }.sanitized();
        let last = last.unwrap();
        assert!(last.starts_with(r"from 10.0.0.1:5: \u{202e}\nxxx"), "{last}");
        assert_eq!((count, last.chars().count()), (3, 1024));
        assert!(last.ends_with("x… (cut)"), "{last}");
    }
}
