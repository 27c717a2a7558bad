//! Requests over HTTP, as the machines know them.

/// Tells requests apart. Unique among those that wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);
