//! Who stands for election as the leading master.

use std::net::SocketAddrV4;

/// A master that stands for election, as agents get to know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// What it is called. Every start of a master has another id.
    pub id: String,
    /// Where its program accepts connections.
    pub address: SocketAddrV4,
}

impl Candidate {
    /// With what the ids of our own masters begin. Nobody looks at ids but for this.
    const OWN: &'static str = "mesos-overlay-";

    /// This program, a master at `address`; `number` makes its id differ from all others.
    #[must_use]
    pub fn own(address: SocketAddrV4, number: u64) -> Self {
        Self { id: format!("{}{number:016x}", Self::OWN), address }
    }

    /// Whether it is a master of this program, rather than one of Mesos.
    #[must_use]
    pub fn is_own(&self) -> bool {
        self.id.starts_with(Self::OWN)
    }
}
