//! The history of allocations: which agent got or lost which addresses, when, and why.

use std::fmt;
use std::net::Ipv4Addr;

use super::Addresses;

/// One change of allocations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryEntry {
    /// Time of the change, in seconds since 1970.
    pub at: u64,
    /// Version of the state after the change.
    pub version: u64,
    /// Agent whose addresses changed; `None` for a change of the configuration.
    pub agent: Option<Ipv4Addr>,
    /// Kind of the change.
    pub event: HistoryEvent,
    /// Addresses that the agent got or lost.
    pub addresses: Addresses,
    /// Reason of the change.
    pub reason: String,
    /// Client that requested the change.
    pub author: Author,
}

/// The client that requested a change. Empty if no client did, or if it is unknown.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Author {
    /// Authenticated principal.
    pub principal: Option<String>,
    /// Address of the client, or another description.
    pub client: Option<String>,
}

impl fmt::Display for Author {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.principal.as_deref().filter(|name| !name.is_empty()), &self.client) {
            (Some(principal), Some(client)) => write!(f, "{principal} from {client}"),
            (Some(text), None) => f.write_str(text),
            (None, client) => f.write_str(client.as_deref().unwrap_or("unknown client")),
        }
    }
}

/// Kind of a change of allocations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HistoryEvent {
    /// The agent got addresses.
    Assigned,
    /// A released agent registered again and got its reserved addresses back.
    Returned,
    /// The agent was deleted and its addresses were released.
    Released,
    /// The overlay was renamed and the agent keeps its addresses.
    Renamed,
    /// The configuration changed.
    Configured,
    /// An event of a later version of this program.
    Other,
}

impl HistoryEvent {
    /// All events that this version writes.
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
