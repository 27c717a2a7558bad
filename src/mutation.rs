//! Deliberate defects, one at a time, which show that the simulator notices each of them. Without
//! the feature `mutations` there are none: every question is answered by a constant, and the
//! compiler removes what it guards.
//!
//! A hook is one line at the place where the defect would be: `if Mutation::ReuseAtOnce.is_on()`.
//! `tests/sim/mutations.rs` says which invariant has to catch which.

/// A defect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutation {
    /// Promises leave before the version that they wait for is durable.
    SendBeforeDurable,
    /// Promises for a version that never came leave with the one that came instead.
    KeepAbandonedPromises,
    /// The store takes commits of epochs that have ended.
    ForgetTheEpoch,
    /// Every epoch has the number of the first.
    EpochRepeats,
    /// A master that is deposed goes on.
    KeepLeading,
    /// A master that the store has deposed, and the election has not, waits for ever.
    NeverReclaim,
    /// A version is named again while the first of its name is being written.
    VersionRepeats,
    /// What was allocated for a commit that failed is taken for durable.
    KeepWhatWasNotStored,
    /// An address that was freed last is given away first.
    ReuseAtOnce,
    /// An address that is given away early is not counted.
    EarlyReuseIsNotCounted,
    /// An agent is deleted in memory only.
    ReleaseIsNotStored,
    /// An agent that was deleted is told what was held back for it.
    TellTheDeleted,
    /// What the store says that agents have is not taken out of the pools.
    AllocateLowestFree,
    /// The first record of a state is not read.
    DropARecord,
    /// An overlay is reported as ready while its network is being made.
    ReportBeforeApplied,
    /// Assignments are believed whoever sends them.
    BelieveStrangers,
    /// A registration is sent once.
    RegisterOnce,
    /// The wait for an answer does not last.
    WaitForNothing,
    /// A status that an agent has reported once stays.
    StatusSticks,
    /// Reports are acknowledged and forgotten.
    ForgetReports,
    /// A network that failed is not tried again.
    GiveUpANetwork,
    /// A message that cannot be understood is the end.
    Panic,
    /// Agents are told of peers whose addresses are not stored yet.
    TellOfPeersBeforeDurable,
    /// Every change of the table of peers is told at once.
    TellOfPeersAtOnce,
    /// What changes of agents is not taken into the table of peers.
    PassOverNewPeers,
    /// Changes of another table than the agent's are made to it, and what comes of it is believed.
    PassOverGaps,
    /// What is older than what is known of peers takes its place.
    BelieveOldPeers,
    /// Peers are asked for once: what is lost later is not missed.
    AskForPeersOnce,
    /// An agent that knows no peers takes them all away.
    BeginWithoutPeers,
    /// Peers are programmed with addresses that others have.
    BelieveAllPeers,
    /// What others change in the kernel is seen at the next verification.
    PassOverDrift,
    /// What the kernel refused is not tried again.
    GiveUpTheKernel,
}

impl Mutation {
    /// Every defect there is.
    pub const ALL: [Self; 32] = [
        Self::SendBeforeDurable,
        Self::KeepAbandonedPromises,
        Self::ForgetTheEpoch,
        Self::EpochRepeats,
        Self::KeepLeading,
        Self::NeverReclaim,
        Self::VersionRepeats,
        Self::KeepWhatWasNotStored,
        Self::ReuseAtOnce,
        Self::EarlyReuseIsNotCounted,
        Self::ReleaseIsNotStored,
        Self::TellTheDeleted,
        Self::AllocateLowestFree,
        Self::DropARecord,
        Self::ReportBeforeApplied,
        Self::BelieveStrangers,
        Self::RegisterOnce,
        Self::WaitForNothing,
        Self::StatusSticks,
        Self::ForgetReports,
        Self::GiveUpANetwork,
        Self::Panic,
        Self::TellOfPeersBeforeDurable,
        Self::TellOfPeersAtOnce,
        Self::PassOverNewPeers,
        Self::PassOverGaps,
        Self::BelieveOldPeers,
        Self::AskForPeersOnce,
        Self::BeginWithoutPeers,
        Self::BelieveAllPeers,
        Self::PassOverDrift,
        Self::GiveUpTheKernel,
    ];

    /// Whether this thread runs with this defect.
    #[cfg(not(feature = "mutations"))]
    #[inline]
    pub(crate) const fn is_on(self) -> bool {
        false
    }
}

#[cfg(feature = "mutations")]
mod selection {
    use std::cell::Cell;

    use super::Mutation;

    thread_local! {
        static SELECTED: Cell<Option<Mutation>> = const { Cell::new(None) };
    }

    impl Mutation {
        /// Whether this thread runs with this defect.
        pub(crate) fn is_on(self) -> bool {
            SELECTED.get() == Some(self)
        }

        /// Runs this thread with this defect from now on, or with none.
        pub fn select(mutation: Option<Self>) {
            SELECTED.set(mutation);
        }
    }
}
