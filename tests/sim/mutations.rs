//! Every invariant detects defects: a build with a mutation violates the invariant that has to
//! catch it. Only that invariant is checked in these worlds, so that no other invariant catches the
//! mutation first.

use std::collections::BTreeSet;
use std::thread;

use overlay_types::mutation::Mutation;

use crate::campaign::{Size, run_world};

/// The most worlds in which a mutation may go unnoticed.
const SEEDS_MAX: u64 = 5000;
/// Worlds of different mutations that run at a time.
const THREADS: usize = 2;

/// Returns the invariant that has to catch a mutation.
const fn invariant(mutation: Mutation) -> &'static str {
    match mutation {
        Mutation::SkipStoredReservations => "allocations do not overlap",
        Mutation::SendBeforeDurable
        | Mutation::SendAbandonedMessages
        | Mutation::RepeatVersion
        | Mutation::IgnoreFailedCommit
        | Mutation::AcceptForeignAssignments
        | Mutation::SendToReleasedAgent => "sent assignments are stored",
        Mutation::SendBeforeReleaseIsDurable => "sent addresses are exclusive",
        Mutation::SkipFirstRecord => "an agent keeps its addresses",
        Mutation::IgnoreEpoch | Mutation::RepeatEpoch | Mutation::IgnoreDemotion => {
            "demoted masters change nothing"
        }
        Mutation::ReuseLatestReleased
        | Mutation::SkipEarlyReuseCount
        | Mutation::SkipStoringRelease => "released addresses are not reused early",
        Mutation::ReportBeforeApplied => "reports match the host",
        Mutation::RetryWithoutDelay => "messages and commands are bounded",
        Mutation::RegisterOnce
        | Mutation::NeverRetryNetwork
        | Mutation::NeverRetryKernel
        | Mutation::NeverRetryAfterDemotion => "everything heals",
        Mutation::KeepFirstStatus | Mutation::IgnoreReports => "master and agents agree",
        Mutation::PanicOnMalformed => "state machines never panic",
        Mutation::SendPeersBeforeDurable => "programmed peers were assigned",
        Mutation::SendPeersWithoutDebounce => "peer updates are paced",
        Mutation::SkipPeerChanges
        | Mutation::IgnorePeerGaps
        | Mutation::RequestPeersOnce
        | Mutation::IgnoreDrift => "every kernel has the master's peers",
        Mutation::AcceptOldPeers => "known peers never get older",
        Mutation::RemovePeersAtStart => "peers stay until an update is received",
        Mutation::AcceptConflictingPeers => "peers have distinct addresses",
        Mutation::IgnoreSilence | Mutation::CallSilentAgentsStale => "only dead agents are stale",
        Mutation::NameBeforeDurable | Mutation::RemoveUnnamedNetworks => {
            "only reassigned networks are removed"
        }
        Mutation::AcceptRepeatedMessages | Mutation::AcceptUnsealedMessages => {
            "only authentic messages count, once"
        }
    }
}

/// Returns how many seeds it took until the invariant was violated.
fn seeds_until_caught(mutation: Mutation) -> Option<u64> {
    Mutation::select(Some(mutation));
    let invariant = invariant(mutation);
    let is_caught = |seed: &u64| {
        let result = run_world(*seed, Size::Any, Some(invariant), false).result;
        result.is_err_and(|violation| violation.invariant == invariant)
    };
    let caught = (1..=SEEDS_MAX).find(is_caught);
    Mutation::select(None);
    println!("{mutation:?}: {caught:?}");
    caught
}

#[test]
fn every_mutation_breaks_its_rule() {
    let chunks = Mutation::ALL.chunks(Mutation::ALL.len().div_ceil(THREADS));
    let caught: Vec<(Mutation, Option<u64>)> = thread::scope(|scope| {
        let start = |chunk: &'static [Mutation]| {
            scope.spawn(move || {
                chunk.iter().map(|one| (*one, seeds_until_caught(*one))).collect::<Vec<_>>()
            })
        };
        let threads: Vec<_> = chunks.map(start).collect();
        let ended =
            threads.into_iter().flat_map(|thread| thread.join().expect("the thread has ended"));
        ended.collect()
    });
    println!("{:<24} {:<40} seeds", "defect", "invariant");
    for (mutation, seeds) in &caught {
        let seeds = seeds.map_or_else(|| "not caught".to_owned(), |seeds| seeds.to_string());
        println!("{:<24} {:<40} {seeds}", format!("{mutation:?}"), invariant(*mutation));
    }
    let missed = caught.iter().filter(|(_, seeds)| seeds.is_none());
    let missed: Vec<Mutation> = missed.map(|(mutation, _)| *mutation).collect();
    assert_eq!(missed, [], "not caught within {SEEDS_MAX} seeds");
    let invariants: BTreeSet<&str> = Mutation::ALL.iter().map(|one| invariant(*one)).collect();
    assert_eq!(invariants.len(), 20, "every invariant catches something");
}
