//! Whole clusters in one thread from one seed: masters, agents, a store, an election, Docker, CNI
//! and kernels, a network between them, and everything goes wrong. First the faults, in which
//! nothing that was promised may be broken; then they end, and the cluster has to heal.
//!
//! The machines are the real ones, and so are the messages between them, the promises that a master
//! keeps back, and the epochs of the store. See CONTRIBUTING.md for how to run it.

mod campaign;
mod chance;
mod clock;
mod counts;
mod host;
mod invariants;
mod kernel;
mod ledger;
#[cfg(feature = "mutations")]
mod mutations;
mod plan;
mod queue;
mod scenario;
mod spread;
mod storage;
mod wires;
mod world;

use std::time::Duration;

use campaign::{Size, live, run};

/// The seed of a world to be seen again.
const SEED: &str = "MESOS_OVERLAY_SEED";
/// How many seconds fresh seeds are tried.
const SECONDS: &str = "MESOS_OVERLAY_SIM_SECONDS";

#[expect(clippy::disallowed_methods, reason = "how to run a test is not part of its code")]
fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text}: write a number")))
}

#[test]
fn seeds_that_are_always_the_same() {
    run("seeds_that_are_always_the_same", Size::Any, 1..=40, Duration::from_secs(600));
}

#[test]
fn fresh_seeds() {
    let seconds = Duration::from_secs(number(SECONDS).unwrap_or(5));
    match number(SEED) {
        Some(seed) => run("fresh_seeds", Size::Any, std::iter::once(seed), seconds),
        None => {
            let fresh = std::iter::repeat_with(|| fastrand::u64(..));
            run("fresh_seeds", Size::Any, fresh, seconds);
        }
    }
}

#[test]
fn two_thousand_agents() {
    let seed = number(SEED).unwrap_or_else(|| fastrand::u64(..));
    let once = std::iter::once(seed);
    run("two_thousand_agents", Size::Large(2000), once, Duration::ZERO);
}

/// Within which time an agent is to be known to nearly all of the others.
const KNOWN_WITHIN: Duration = Duration::from_secs(2);
/// Messages about peers to an agent, however many register at once: one for each half second of the
/// storm, and one that answers its question.
const HANDFUL: u32 = 8;

#[test]
fn a_thousand_agents_come_to_know_each_other() {
    let seed = number(SEED).unwrap_or_else(|| fastrand::u64(..));
    let spread = spread::measure(seed, 1000, 3);
    let spread = spread.unwrap_or_else(|broken| panic!("{SEED}={seed}: {broken:?}"));
    println!("{spread}");
    for times in spread.later.iter().chain([&spread.storm]) {
        assert_eq!(times.of(100).map(|_| ()), Some(()), "{SEED}={seed}: {times} of all others");
    }
    for times in &spread.later {
        let known = times.of(95).expect("all know it at last");
        assert!(known <= KNOWN_WITHIN, "{SEED}={seed}: {times}");
    }
    assert!(spread.most <= HANDFUL, "{SEED}={seed}: {} messages to one agent", spread.most);
}

#[test]
fn a_seed_leads_to_the_same_world_again() {
    let seed = number(SEED).unwrap_or_else(|| fastrand::u64(..));
    let [first, second] = [(), ()].map(|()| live(seed, Size::Any, None, true));
    assert_eq!(first.story, second.story, "{SEED}={seed}");
    assert_eq!(first.events, second.events, "{SEED}={seed}");
}
