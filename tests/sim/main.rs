//! Simulates whole clusters in one thread from one seed: masters, agents, a store, an election,
//! Docker, CNI, kernels, and a network between them. First faults are injected, during which every
//! invariant must hold. Then the faults end, and the cluster has to heal.
//!
//! The state machines are the real ones, and so are the messages, the durability gate of a master,
//! and the epochs of the store. CONTRIBUTING.md describes how to run the simulator.

#![expect(clippy::print_stdout, reason = "the seeds of a failure are printed")]

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

use campaign::{Size, run_campaign, run_world};

/// The environment variable with the seed of the world to repeat.
const SEED: &str = "MESOS_OVERLAY_SEED";
/// The environment variable with the number of seconds for fresh seeds.
const SECONDS: &str = "MESOS_OVERLAY_SIM_SECONDS";

#[expect(clippy::disallowed_methods, reason = "the caller of the test sets the seed and the time")]
fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text}: write a number")))
}

#[test]
fn fixed_seeds() {
    let counts = run_campaign("fixed_seeds", Size::Any, 1..=40, Duration::from_secs(600));
    for what in [world::REFUSED, world::REMOVED] {
        assert!(counts.get(what) > 0, "no world has {what}");
    }
}

#[test]
fn fresh_seeds() {
    let seconds = Duration::from_secs(number(SECONDS).unwrap_or(5));
    match number(SEED) {
        Some(seed) => {
            run_campaign("fresh_seeds", Size::Any, std::iter::once(seed), seconds);
        }
        None => {
            let fresh = std::iter::repeat_with(|| fastrand::u64(..));
            run_campaign("fresh_seeds", Size::Any, fresh, seconds);
        }
    }
}

#[test]
fn two_thousand_agents() {
    let seed = number(SEED).unwrap_or_else(|| fastrand::u64(..));
    let once = std::iter::once(seed);
    run_campaign("two_thousand_agents", Size::Large(2000), once, Duration::ZERO);
}

/// The time within which all other agents have programmed an agent.
const PROGRAMMED_WITHIN: Duration = Duration::from_secs(2);
/// The time within which agents that start within a second have programmed each other, for up to
/// 10,000 agents.
const STORM_WITHIN: Duration = Duration::from_secs(10);
/// The most messages about peers to an agent, for any number of agents that register at once: one
/// for each half second of the storm, and the answer to its request.
const PEER_MESSAGES_MAX: u32 = 8;

#[test]
fn thousand_agents_program_each_other_in_time() {
    let seed = number(SEED).unwrap_or_else(|| fastrand::u64(..));
    measure_spread(seed, 1000, 1.0);
}

#[test]
fn ten_thousand_agents_program_each_other_in_time() {
    let seed = number(SEED).unwrap_or_else(|| fastrand::u64(..));
    measure_spread(seed, 10_000, 0.02);
}

/// Asserts how fast agents program each other: `agents` agents that start within a second, and three
/// more, one after the other. The share `whole` of the agents has a kernel.
fn measure_spread(seed: u64, agents: usize, whole: f64) {
    let spread = spread::measure(seed, agents, 3, whole);
    let spread = spread.unwrap_or_else(|violation| panic!("{SEED}={seed}: {violation:?}"));
    println!("{spread}");
    for (times, _) in &spread.later {
        let known = times.of(100).unwrap_or(Duration::MAX);
        assert!(known <= PROGRAMMED_WITHIN, "{SEED}={seed}: {times} of all others");
    }
    assert!(spread.storm.of(100).is_some(), "{SEED}={seed}: {}", spread.storm);
    assert!(spread.complete <= STORM_WITHIN, "{SEED}={seed}: {:?}", spread.complete);
    assert!(
        spread.most <= PEER_MESSAGES_MAX,
        "{SEED}={seed}: {} messages to one agent",
        spread.most
    );
}

#[test]
fn same_seed_gives_same_world() {
    let seed = number(SEED).unwrap_or_else(|| fastrand::u64(..));
    let [first, second] = [(), ()].map(|()| run_world(seed, Size::Any, None, true));
    assert_eq!(first.trace, second.trace, "{SEED}={seed}");
    assert_eq!(first.events, second.events, "{SEED}={seed}");
}
