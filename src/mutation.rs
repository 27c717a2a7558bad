//! Deliberate defects, one at a time, which prove that the simulator notices each of them. Without
//! the feature `mutations` there are none: `is_on` is a constant, and the compiler removes the code
//! behind it.
//!
//! A hook is one line at the place of the defect: `if Mutation::ReuseLatestReleased.is_on()`.
//! `tests/sim/mutations.rs` lists the rule that has to catch each mutation.

/// A deliberate defect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutation {
    /// Messages are sent before the version that they wait for is durable.
    SendBeforeDurable,
    /// Messages for a version that never came are sent with the version that came instead.
    SendAbandonedMessages,
    /// An address that another agent had is sent before the release of that agent is durable.
    SendBeforeReleaseIsDurable,
    /// The store takes commits of epochs that have ended.
    IgnoreEpoch,
    /// Every epoch has the number of the first.
    RepeatEpoch,
    /// A demoted master goes on.
    IgnoreDemotion,
    /// A master that the store has demoted, and the election has not, waits for ever.
    NeverRetryAfterDemotion,
    /// A version is used again while the first commit with it is being written.
    RepeatVersion,
    /// A failed commit is taken for durable.
    IgnoreFailedCommit,
    /// The address that was released last is reused first.
    ReuseLatestReleased,
    /// The early reuse of an address is not counted.
    SkipEarlyReuseCount,
    /// A release is not stored.
    SkipStoringRelease,
    /// Messages that were held back for a released agent are sent.
    SendToReleasedAgent,
    /// The addresses of stored records are not reserved in the pools.
    SkipStoredReservations,
    /// The first record of the state is not read.
    SkipFirstRecord,
    /// An overlay is reported as ready while its network is still being applied.
    ReportBeforeApplied,
    /// Assignments of any sender are accepted.
    AcceptForeignAssignments,
    /// A registration is sent only once.
    RegisterOnce,
    /// A registration is repeated without a delay.
    RetryWithoutDelay,
    /// The first status that an agent reported stays.
    KeepFirstStatus,
    /// Reports are acknowledged and ignored.
    IgnoreReports,
    /// A failed network is not retried.
    NeverRetryNetwork,
    /// A message that cannot be decoded causes a panic.
    PanicOnMalformed,
    /// Peers are sent before their addresses are durable.
    SendPeersBeforeDurable,
    /// Every change of the table of peers is sent at once.
    SendPeersWithoutDebounce,
    /// Changes of agents do not reach the table of peers.
    SkipPeerChanges,
    /// An agent applies a delta to a table for which it was not made.
    IgnorePeerGaps,
    /// An older table of peers replaces a newer one.
    AcceptOldPeers,
    /// Peers are requested only once.
    RequestPeersOnce,
    /// An agent that knows no peers yet removes all peers from its kernel.
    RemovePeersAtStart,
    /// Peers with conflicting addresses are programmed.
    AcceptConflictingPeers,
    /// Foreign changes in the kernel are seen only at the next verification.
    IgnoreDrift,
    /// Operations that the kernel refused are not retried.
    NeverRetryKernel,
}

impl Mutation {
    /// All mutations.
    pub const ALL: [Self; 33] = [
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
    ];

    /// Returns whether this thread runs with this mutation.
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
        /// Returns whether this thread runs with this mutation.
        pub(crate) fn is_on(self) -> bool {
            SELECTED.get() == Some(self)
        }

        /// Runs this thread with this mutation from now on, or with none.
        pub fn select(mutation: Option<Self>) {
            SELECTED.set(mutation);
        }
    }
}
