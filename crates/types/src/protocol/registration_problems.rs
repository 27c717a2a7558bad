//! Why the master does not serve an agent, and the addresses of the agent's host that other agents
//! have by now.

use std::net::Ipv4Addr;

use super::limits::OVERLAYS_MAX;
use crate::addr::Subnet;

/// The addresses that the host of an agent uses for containers and for its VTEPs. The address of a
/// VTEP is a subnet of one address. The agent sends them with its registration, since the master
/// forgets the former addresses of an agent when other agents get them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HeldAddresses {
    registration: u64,
    subnets: Vec<Subnet>,
}

impl HeldAddresses {
    /// Maximum number of subnets: an IPv4 and an IPv6 subnet of each overlay for each kind of
    /// containers, and some VTEPs.
    pub const MAX: usize = 4 * OVERLAYS_MAX + 16;

    /// Returns the first [`Self::MAX`] of these subnets, sorted and without duplicates.
    #[must_use]
    pub fn new(subnets: impl IntoIterator<Item = Subnet>) -> Self {
        let mut subnets: Vec<Subnet> = subnets.into_iter().collect();
        subnets.sort_unstable();
        subnets.dedup();
        subnets.truncate(Self::MAX);
        Self { registration: 0, subnets }
    }

    /// Sets the number of the registration that the message follows.
    #[must_use]
    pub fn with_registration(self, registration: u64) -> Self {
        Self { registration, ..self }
    }

    /// Returns the number of the registration that the message follows. Each registration of an
    /// agent has another number.
    #[must_use]
    pub const fn registration(&self) -> u64 {
        self.registration
    }

    /// Returns the subnets, sorted.
    #[must_use]
    pub fn subnets(&self) -> &[Subnet] {
        &self.subnets
    }
}

/// Why the master does not serve an agent, or not all of its allocation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RegistrationProblems {
    /// Whether the master refuses the registration, so that the agent gets no assignment.
    pub is_refused: bool,
    /// A sentence for each problem, with the remedy.
    pub reasons: Vec<String>,
    /// The addresses of the agent's host that the durable state assigns to other agents. Empty if
    /// the registration is not refused: the assignment then says what the agent has.
    pub reassigned: Vec<Reassigned>,
    /// The number of the registration that was refused, from [`HeldAddresses`]. A refusal of an
    /// earlier registration may arrive after an assignment of the same addresses.
    pub registration: u64,
}

impl RegistrationProblems {
    /// Maximum number of reasons.
    pub const REASONS_MAX: usize = 2 * OVERLAYS_MAX;
    /// Maximum length of a reason in bytes: the longest sentences have their remedy at the end.
    pub const REASON_BYTES_MAX: usize = 800;
}

/// Addresses that another agent has by now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reassigned {
    /// The subnet of [`HeldAddresses`] that contains the addresses.
    pub subnet: Subnet,
    /// The agent that has them, or some of them.
    pub agent: Ipv4Addr,
}
