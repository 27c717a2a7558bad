//! Requests over HTTP, as the machines know them, and what never became one.

use serde::Serialize;

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
