//! What is kept of the past: who had which addresses, since when, and why that changed.

use std::fmt;
use std::net::Ipv4Addr;

use super::Addresses;

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryEntry {
    /// When, in seconds since 1970.
    pub at: u64,
    /// The version of the state that it made.
    pub version: u64,
    /// Whose addresses changed; `None` where the configuration did.
    pub agent: Option<Ipv4Addr>,
    /// What happened.
    pub event: HistoryEvent,
    /// The addresses that the agent got or lost by it.
    pub addresses: Addresses,
    /// Why.
    pub reason: String,
}

/// What happened to the addresses of an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HistoryEvent {
    /// It got them.
    Assigned,
    /// It was deleted, came back, and has those again that were left.
    Returned,
    /// It was deleted: they are free.
    Released,
    /// It keeps them, of an overlay with another name.
    Renamed,
    /// The configuration changed.
    Configured,
    /// What only a later version of this program knows.
    Other,
}

impl HistoryEvent {
    /// All that this version writes.
    pub const ALL: [Self; 5] =
        [Self::Assigned, Self::Returned, Self::Released, Self::Renamed, Self::Configured];
}

impl fmt::Display for HistoryEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Assigned => "assigned",
            Self::Returned => "returned",
            Self::Released => "released",
            Self::Renamed => "renamed",
            Self::Configured => "configured",
            Self::Other => "other",
        })
    }
}
