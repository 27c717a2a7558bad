//! Candidates of the master election.

use std::fmt;
use std::net::SocketAddrV4;

use serde::Serialize;

/// A candidate as agents see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Id of the candidate. Every start of a master creates a new id.
    pub id: String,
    /// Address at which the master accepts connections.
    pub address: SocketAddrV4,
}

/// The leading master of an election.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Leader {
    /// Address at which the leader accepts connections.
    pub address: SocketAddrV4,
    /// Id of the leader's candidate, if the election shows it. Every start of a master has another
    /// id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
}

impl fmt::Display for Leader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.id {
            Some(id) => write!(f, "{} ({})", self.address, id.escape_debug()),
            None => self.address.fmt(f),
        }
    }
}

impl Candidate {
    /// Prefix of the ids of mesos-overlay masters. The rest of an id is never interpreted.
    const OWN: &'static str = "mesos-overlay-";

    /// Creates the candidate of a mesos-overlay master. `number` makes the id unique.
    #[must_use]
    pub fn own(address: SocketAddrV4, number: u64) -> Self {
        Self { id: format!("{}{number:016x}", Self::OWN), address }
    }

    /// Whether the candidate is a mesos-overlay master and not a Mesos master.
    #[must_use]
    pub fn is_own(&self) -> bool {
        self.id.starts_with(Self::OWN)
    }
}
