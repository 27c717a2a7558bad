//! Runs worlds, one seed after the other, and says how to see the one again in which a rule was
//! broken.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::chance::Chance;
use crate::counts::Counts;
use crate::invariants::Broken;
use crate::scenario::Scenario;
use crate::world::{World, panicked};

/// What became of a world.
pub(crate) struct Outcome {
    pub(crate) simulated: Duration,
    pub(crate) events: u64,
    pub(crate) counts: Counts,
    pub(crate) verdict: Result<(), Broken>,
    pub(crate) story: Vec<String>,
}

/// Which worlds.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Size {
    Any,
    Large(usize),
}

/// Lives through the world of a seed, in which only the rule with this name counts, or all.
pub(crate) fn live(seed: u64, size: Size, only: Option<&str>, has_story: bool) -> Outcome {
    let mut chance = Chance::of(seed);
    let scenario = match size {
        Size::Any => Scenario::of(&mut chance),
        Size::Large(agents) => Scenario::large(agents, &mut chance),
    };
    let mut story = Vec::new();
    if has_story {
        story.push(format!("{scenario:#?}"));
    }
    let mut counts = Counts::default();
    counts.add("agents", scenario.agents as u64);
    counts.add("masters", scenario.masters as u64);
    let mut world = World::new(scenario, chance, only);
    if has_story {
        world.tell_story();
    }
    let lived = catch_unwind(AssertUnwindSafe(|| world.run()));
    let verdict = lived.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        Err(panicked(text.unwrap_or("it panicked")))
    });
    story.extend(world.story().cloned());
    counts.add("events", world.events);
    counts.add_all(&world.counts);
    Outcome { simulated: world.now(), events: world.events, counts, verdict, story }
}

/// Lives through seeds until they or the time are over.
///
/// # Panics
/// When a rule is broken: with the end of the story and the command that shows it again.
pub(crate) fn run(test: &str, size: Size, seeds: impl Iterator<Item = u64>, time: Duration) {
    let begun = now();
    let watch = Watch::start();
    let (mut count, mut simulated, mut counts) = (0, Duration::ZERO, Counts::default());
    for seed in seeds {
        watch.begin(seed);
        let outcome = live(seed, size, None, false);
        count += 1;
        simulated += outcome.simulated;
        counts.add_all(&outcome.counts);
        if let Err(broken) = outcome.verdict {
            fail(test, seed, size, &broken);
        }
        if begun.elapsed() >= time {
            break;
        }
    }
    let hours = simulated.as_secs_f64() / 3600.0;
    let rate = hours * 60.0 / begun.elapsed().as_secs_f64();
    println!(
        "{test}: {count} seeds, {hours:.1} simulated hours, {rate:.0} cluster-minutes a second, no \
         rule broken\n{counts}"
    );
}

/// Names the seed of a world that does not come to an end: a machine that goes round and round says
/// nothing by itself.
struct Watch {
    seed: Arc<AtomicU64>,
}

impl Watch {
    /// How long a world may take before it is named.
    const PATIENCE: Duration = Duration::from_secs(60);

    fn start() -> Self {
        let seed = Arc::new(AtomicU64::new(0));
        let weak = Arc::downgrade(&seed);
        let watch = move || {
            let mut before = 0;
            loop {
                thread::park_timeout(Self::PATIENCE);
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

fn fail(test: &str, seed: u64, size: Size, broken: &Broken) -> ! {
    let outcome = live(seed, size, None, true);
    for line in &outcome.story {
        println!("{line}");
    }
    let is_same = outcome.verdict.as_ref().err() == Some(broken);
    let doubt = if is_same { "" } else { "the seed has led to another world the second time\n" };
    panic!(
        "{}: {}\n{doubt}see it again: {}={seed} cargo test --profile sim --features mutations \
         --test sim {test} -- --nocapture",
        broken.rule,
        broken.how,
        crate::SEED,
    )
}

#[expect(clippy::disallowed_methods, reason = "a campaign lasts as long as it was given")]
fn now() -> Instant {
    Instant::now()
}
