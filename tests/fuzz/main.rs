//! Bytes of strangers: every reader on a kept corpus, and on what comes of it by chance. What once
//! broke one is kept in `corpus/`, so that it never breaks it again.
//!
//! libFuzzer needs a compiler that most do not have; the targets are ready for it, and these tests
//! need nothing.

mod mutator;
pub(crate) mod targets;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use targets::{ALL, Target};

/// The seed of inputs to be seen again.
const SEED: &str = "MESOS_OVERLAY_SEED";
/// For how many seconds each target gets new inputs.
const SECONDS: &str = "MESOS_OVERLAY_FUZZ_SECONDS";
/// How long one input may take, on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(5);
/// What one input may allocate at a time, in bytes: a small multiple of its length, and what the
/// reader needs for any input.
const ALLOCATED_PER_BYTE: u64 = 100;
const ALLOCATED_ANYWAY: u64 = 256 * 1024;
/// The same for what may be compressed: the longest report, while it is inflated.
const INFLATED: u64 = 4 * 1024 * 1024;
/// Inputs that follow from one seed, so that the last of them is seen again soon.
const INPUTS_OF_A_SEED: usize = 200;

/// Recorded traffic from which inputs are made too.
const RECORDED: [(&str, &str); 7] = [
    ("http", "RegisterAgentMessage.http"),
    ("http", "UpdateAgentOverlaysMessage.http"),
    ("http", "AgentRegisteredMessage.http"),
    ("http", "AgentRegisteredAcknowledgement.http"),
    ("json", "overlay-master-state.json"),
    ("state_file", "overlay-master-state.json"),
    ("message", "overlay-agent-overlay.pb"),
];

#[expect(clippy::disallowed_methods, reason = "how to run a test is not part of its code")]
fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text}: write a number")))
}

#[expect(clippy::disallowed_methods, reason = "inputs are tried for as long as was asked for")]
fn now() -> Instant {
    Instant::now()
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let folder = tests.join("fuzz/corpus").join(name);
    let entries = fs::read_dir(&folder).expect("every target has a corpus");
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("it can be read").path()).collect();
    paths.sort();
    let recorded = RECORDED.iter().filter(|(target, _)| *target == name);
    paths.extend(recorded.map(|(_, file)| tests.join("golden").join(file)));
    paths.iter().map(|path| fs::read(path).expect("it can be read")).collect()
}

/// Tries an input; gives the most bytes that it had allocated at a time.
fn try_input((name, target): Target, input: &[u8], seed: Option<u64>) -> u64 {
    let begun = now();
    let mut is_sound = false;
    let allocated = allocation_counter::measure(|| {
        is_sound = catch_unwind(AssertUnwindSafe(|| target(input))).is_ok();
    });
    let (took, allocated) = (begun.elapsed(), allocated.bytes_max);
    let anyway = if name == "http" { INFLATED } else { ALLOCATED_ANYWAY };
    let most = anyway + ALLOCATED_PER_BYTE * input.len() as u64;
    if is_sound && took < PATIENCE && allocated <= most {
        return allocated;
    }
    let again = seed.map_or_else(String::new, |seed| {
        format!("; see it again: {SEED}={seed} cargo test --test fuzz")
    });
    panic!(
        "{name}: took {took:?} and {allocated} bytes of {most}; keep this in its corpus: {}{again}",
        input.escape_ascii()
    );
}

#[test]
fn the_kept_inputs_break_nothing() {
    for target in ALL {
        let kept = corpus(target.0);
        assert!(!kept.is_empty(), "{} has no corpus", target.0);
        for input in &kept {
            try_input(target, input, None);
        }
    }
}

#[test]
fn what_comes_of_them_by_chance_breaks_nothing() {
    let seconds = number(SECONDS).unwrap_or(1);
    for target in ALL {
        let kept = corpus(target.0);
        let begun = now();
        let (mut count, mut most) = (0, 0);
        loop {
            let seed = number(SEED).unwrap_or_else(|| fastrand::u64(..));
            let mut random = fastrand::Rng::with_seed(seed);
            for _ in 0..INPUTS_OF_A_SEED {
                let mut input = kept[random.usize(..kept.len())].clone();
                mutator::mutate(&mut input, &kept, &mut random);
                most = most.max(try_input(target, &input, Some(seed)));
                count += 1;
            }
            if begun.elapsed().as_secs() >= seconds || number(SEED).is_some() {
                break;
            }
        }
        println!("{}: {count} inputs, at most {most} bytes allocated", target.0);
    }
}
