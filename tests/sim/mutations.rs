//! Every rule bites: a build with a deliberate defect breaks the rule that is there for it. Only
//! that rule counts in these worlds, so that no other one catches it first.

use std::collections::BTreeSet;
use std::thread;

use mesos_network_overlay::mutation::Mutation;

use crate::campaign::{Size, live};

/// How many worlds a defect may survive.
const SEEDS_MAX: u64 = 5000;
/// Worlds of different defects that run at a time.
const THREADS: usize = 2;

/// The rule that has to catch a defect.
const fn rule(mutation: Mutation) -> &'static str {
    match mutation {
        Mutation::AllocateLowestFree => "no two live allocations overlap",
        Mutation::SendBeforeDurable
        | Mutation::KeepAbandonedPromises
        | Mutation::VersionRepeats
        | Mutation::KeepWhatWasNotStored
        | Mutation::BelieveStrangers
        | Mutation::TellTheDeleted => "what an agent is told is stored",
        Mutation::DropARecord => "an agent keeps its addresses",
        Mutation::ForgetTheEpoch | Mutation::EpochRepeats | Mutation::KeepLeading => {
            "deposed masters change nothing"
        }
        Mutation::ReuseAtOnce | Mutation::EarlyReuseIsNotCounted | Mutation::ReleaseIsNotStored => {
            "addresses rest before others get them"
        }
        Mutation::ReportBeforeApplied => "reports are true",
        Mutation::WaitForNothing => "messages and commands are bounded",
        Mutation::RegisterOnce
        | Mutation::GiveUpANetwork
        | Mutation::GiveUpTheKernel
        | Mutation::NeverReclaim => "everything heals",
        Mutation::StatusSticks | Mutation::ForgetReports => "master and agents agree",
        Mutation::Panic => "machines never panic",
        Mutation::TellOfPeersBeforeDurable => "peers are programmed as they were assigned",
        Mutation::TellOfPeersAtOnce => "a storm is told in a handful of messages",
        Mutation::PassOverNewPeers
        | Mutation::PassOverGaps
        | Mutation::AskForPeersOnce
        | Mutation::PassOverDrift => "every kernel has the master's peers",
        Mutation::BelieveOldPeers => "what is known of peers never gets older",
        Mutation::BeginWithoutPeers => "peers stay until others are known",
        Mutation::BelieveAllPeers => "no two peers have one address",
    }
}

/// How many seeds it took until the rule was broken.
fn seeds_until_caught(mutation: Mutation) -> Option<u64> {
    Mutation::select(Some(mutation));
    let rule = rule(mutation);
    let is_caught = |seed: &u64| {
        let verdict = live(*seed, Size::Any, Some(rule), false).verdict;
        verdict.is_err_and(|broken| broken.rule == rule)
    };
    let caught = (1..=SEEDS_MAX).find(is_caught);
    Mutation::select(None);
    println!("{mutation:?}: {caught:?}");
    caught
}

#[test]
fn every_defect_is_caught_by_the_rule_that_is_there_for_it() {
    let chunks = Mutation::ALL.chunks(Mutation::ALL.len().div_ceil(THREADS));
    let caught: Vec<(Mutation, Option<u64>)> = thread::scope(|scope| {
        let start = |chunk: &'static [Mutation]| {
            scope.spawn(move || {
                chunk.iter().map(|one| (*one, seeds_until_caught(*one))).collect::<Vec<_>>()
            })
        };
        let threads: Vec<_> = chunks.map(start).collect();
        let ended = threads.into_iter().flat_map(|thread| thread.join().expect("it has ended"));
        ended.collect()
    });
    println!("{:<24} {:<40} seeds", "defect", "rule");
    for (mutation, seeds) in &caught {
        let seeds = seeds.map_or_else(|| "not caught".to_owned(), |seeds| seeds.to_string());
        println!("{:<24} {:<40} {seeds}", format!("{mutation:?}"), rule(*mutation));
    }
    let missed = caught.iter().filter(|(_, seeds)| seeds.is_none());
    let missed: Vec<Mutation> = missed.map(|(mutation, _)| *mutation).collect();
    assert_eq!(missed, [], "not caught within {SEEDS_MAX} seeds");
    let rules: BTreeSet<&str> = Mutation::ALL.iter().map(|one| rule(*one)).collect();
    assert_eq!(rules.len(), 16, "every rule catches something");
}
