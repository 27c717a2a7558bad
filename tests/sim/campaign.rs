//! Runs one world for each seed, and prints the command that repeats a world with a violation.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::chance::Chance;
use crate::counts::Counts;
use crate::invariants::Violation;
use crate::scenario::Scenario;
use crate::world::{World, panicked};

/// The outcome of a world.
pub(crate) struct Outcome {
    pub(crate) simulated: Duration,
    pub(crate) events: u64,
    pub(crate) counts: Counts,
    pub(crate) result: Result<(), Violation>,
    pub(crate) trace: Vec<String>,
}

/// The size of the worlds.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Size {
    Any,
    Large(usize),
}

/// Runs the world of a seed, with only the invariant of this name, or with all invariants.
pub(crate) fn run_world(seed: u64, size: Size, only: Option<&str>, has_trace: bool) -> Outcome {
    let mut chance = Chance::of(seed);
    let scenario = match size {
        Size::Any => Scenario::of(&mut chance),
        Size::Large(agents) => Scenario::large(agents, &mut chance),
    };
    let mut trace = Vec::new();
    if has_trace {
        trace.push(format!("{scenario:#?}"));
    }
    let mut counts = Counts::default();
    counts.add("agents", scenario.agents as u64);
    counts.add("masters", scenario.masters as u64);
    let mut world = World::new(scenario, chance, only);
    if has_trace {
        world.start_trace();
    }
    let run = catch_unwind(AssertUnwindSafe(|| world.run()));
    let result = run.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        Err(panicked(text.unwrap_or("it panicked")))
    });
    trace.extend(world.trace().cloned());
    counts.add("events", world.events);
    counts.add_all(&world.counts);
    Outcome { simulated: world.now(), events: world.events, counts, result, trace }
}

/// Runs the worlds of seeds until the seeds or the time end.
///
/// Returns the events by their kind.
///
/// # Panics
/// When an invariant is violated: with the end of the trace and the command that repeats the world.
pub(crate) fn run_campaign(
    test: &str,
    size: Size,
    seeds: impl Iterator<Item = u64>,
    time: Duration,
) -> Counts {
    let begun = now();
    let watch = Watchdog::start();
    let (mut count, mut simulated, mut counts) = (0, Duration::ZERO, Counts::default());
    for seed in seeds {
        watch.begin(seed);
        let outcome = run_world(seed, size, None, false);
        count += 1;
        simulated += outcome.simulated;
        counts.add_all(&outcome.counts);
        if let Err(violation) = outcome.result {
            fail(test, seed, size, &violation);
        }
        if begun.elapsed() >= time {
            break;
        }
    }
    let hours = simulated.as_secs_f64() / 3600.0;
    let rate = hours * 60.0 / begun.elapsed().as_secs_f64();
    println!(
        "{test}: {count} seeds, {hours:.1} simulated hours, {rate:.0} cluster-minutes a second, no \
         invariant violated\n{counts}"
    );
    counts
}

/// Prints the seed of a world that does not end: a state machine in a loop prints nothing.
struct Watchdog {
    seed: Arc<AtomicU64>,
}

impl Watchdog {
    /// The time after which the seed of a running world is printed.
    const TIMEOUT: Duration = Duration::from_secs(60);

    fn start() -> Self {
        let seed = Arc::new(AtomicU64::new(0));
        let weak = Arc::downgrade(&seed);
        let watch = move || {
            let mut before = 0;
            loop {
                thread::park_timeout(Self::TIMEOUT);
                let Some(seed) = weak.upgrade() else { return };
                let now = seed.load(Ordering::Relaxed);
                if now == before && now != 0 {
                    println!("the world of {}={now} takes long", crate::SEED);
                }
                before = now;
            }
        };
        thread::Builder::new().name("watch".to_owned()).spawn(watch).expect("there is a thread");
        Self { seed }
    }

    fn begin(&self, seed: u64) {
        self.seed.store(seed, Ordering::Relaxed);
    }
}

fn fail(test: &str, seed: u64, size: Size, violation: &Violation) -> ! {
    let outcome = run_world(seed, size, None, true);
    for line in &outcome.trace {
        println!("{line}");
    }
    let is_same = outcome.result.as_ref().err() == Some(violation);
    let difference = if is_same { "" } else { "the second run of the seed had another result\n" };
    panic!(
        "{}: {}\n{difference}repeat: {}={seed} cargo test --profile sim --features mutations \
         --test sim {test} -- --nocapture",
        violation.invariant,
        violation.detail,
        crate::SEED,
    )
}

#[expect(clippy::disallowed_methods, reason = "a campaign runs for a given time")]
fn now() -> Instant {
    Instant::now()
}
