//! Candidates of the master election.

use std::net::SocketAddrV4;

/// A candidate as agents see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Id of the candidate. Every start of a master creates a new id.
    pub id: String,
    /// Address at which the master accepts connections.
    pub address: SocketAddrV4,
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
