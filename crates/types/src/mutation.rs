//! Deliberate defects. The simulator runs with one of them at a time and must detect it. Without
//! the feature `mutations`, [`Mutation::is_on`] is a constant and the compiler removes the guarded
//! code.
//!
//! A hook is one line at the location of the defect: `if Mutation::ReuseLatestReleased.is_on()`.
//! `tests/sim/mutations.rs` assigns each defect to the invariant that must detect it.

/// A deliberate defect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutation {
    /// Pending sends are sent before their version is durable.
    SendBeforeDurable,
    /// Pending sends of an abandoned version are sent with the version that replaces it.
    SendAbandonedMessages,
    /// An address is sent before the release by its former holder is durable.
    SendBeforeReleaseIsDurable,
    /// The store accepts commits of epochs that have ended.
    IgnoreEpoch,
    /// Every epoch has the number of the first epoch.
    RepeatEpoch,
    /// A demoted master continues to lead.
    IgnoreDemotion,
    /// A master that the store demoted, but not the election, never tries to lead again.
    NeverRetryAfterDemotion,
    /// A second commit reuses a version whose write is in progress.
    RepeatVersion,
    /// Allocations of a failed commit count as durable.
    IgnoreFailedCommit,
    /// The address that was released last is allocated first.
    ReuseLatestReleased,
    /// An allocation before the end of the cooldown is not counted.
    SkipEarlyReuseCount,
    /// The release of an agent is not stored.
    SkipStoringRelease,
    /// Pending sends of a released agent are sent.
    SendToReleasedAgent,
    /// Allocations loaded from the store are not reserved in the pools.
    SkipStoredReservations,
    /// The first record of the stored state is not loaded.
    SkipFirstRecord,
    /// An overlay is reported as ready while its network is being created.
    ReportBeforeApplied,
    /// An agent accepts assignments from any sender.
    AcceptForeignAssignments,
    /// A registration is sent only once.
    RegisterOnce,
    /// The registration is sent again without delay.
    RetryWithoutDelay,
    /// The first reported status of an overlay is never updated.
    KeepFirstStatus,
    /// Reports are acknowledged and dropped.
    IgnoreReports,
    /// A container network that failed is not retried.
    NeverRetryNetwork,
    /// A malformed message causes a panic.
    PanicOnMalformed,
    /// Peers are sent to agents before their addresses are durable.
    SendPeersBeforeDurable,
    /// Every change of the peer table is sent immediately.
    SendPeersWithoutDebounce,
    /// Changes of agents do not update the peer table.
    SkipPeerChanges,
    /// A delta is applied to a table that is not its base, and the result is accepted.
    IgnorePeerGaps,
    /// An older peer table replaces a newer one.
    AcceptOldPeers,
    /// Peers are requested only once, so a lost update is not noticed.
    RequestPeersOnce,
    /// An agent that has not received the peers removes all of them.
    RemovePeersAtStart,
    /// Peers with conflicting addresses are programmed.
    AcceptConflictingPeers,
    /// Changes in the kernel are noticed only at the next verification.
    IgnoreDrift,
    /// A failed kernel operation is not retried.
    NeverRetryKernel,
    /// No agent becomes stale.
    IgnoreSilence,
    /// A silent agent is stale without an attempt to link to it.
    CallSilentAgentsStale,
    /// A refusal names addresses whose assignment to another agent is not durable.
    NameBeforeDurable,
    /// A refused agent removes all of its container networks.
    RemoveUnnamedNetworks,
    /// A message is accepted again.
    AcceptRepeatedMessages,
    /// An agent that requires authentication accepts messages without a seal.
    AcceptUnsealedMessages,
}

impl Mutation {
    /// All defects.
    pub const ALL: [Self; 39] = [
        Self::SendBeforeDurable,
        Self::SendAbandonedMessages,
        Self::SendBeforeReleaseIsDurable,
        Self::IgnoreEpoch,
        Self::RepeatEpoch,
        Self::IgnoreDemotion,
        Self::NeverRetryAfterDemotion,
        Self::RepeatVersion,
        Self::IgnoreFailedCommit,
        Self::ReuseLatestReleased,
        Self::SkipEarlyReuseCount,
        Self::SkipStoringRelease,
        Self::SendToReleasedAgent,
        Self::SkipStoredReservations,
        Self::SkipFirstRecord,
        Self::ReportBeforeApplied,
        Self::AcceptForeignAssignments,
        Self::RegisterOnce,
        Self::RetryWithoutDelay,
        Self::KeepFirstStatus,
        Self::IgnoreReports,
        Self::NeverRetryNetwork,
        Self::PanicOnMalformed,
        Self::SendPeersBeforeDurable,
        Self::SendPeersWithoutDebounce,
        Self::SkipPeerChanges,
        Self::IgnorePeerGaps,
        Self::AcceptOldPeers,
        Self::RequestPeersOnce,
        Self::RemovePeersAtStart,
        Self::AcceptConflictingPeers,
        Self::IgnoreDrift,
        Self::NeverRetryKernel,
        Self::IgnoreSilence,
        Self::CallSilentAgentsStale,
        Self::NameBeforeDurable,
        Self::RemoveUnnamedNetworks,
        Self::AcceptRepeatedMessages,
        Self::AcceptUnsealedMessages,
    ];

    /// Whether this thread runs with the defect.
    #[cfg(not(feature = "mutations"))]
    #[inline]
    #[must_use]
    pub const fn is_on(self) -> bool {
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
        /// Whether this thread runs with the defect.
        #[must_use]
        pub fn is_on(self) -> bool {
            SELECTED.get() == Some(self)
        }

        /// Selects the defect of this thread, or none.
        pub fn select(mutation: Option<Self>) {
            SELECTED.set(mutation);
        }
    }
}
