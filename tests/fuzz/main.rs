//! Untrusted bytes: runs every decoder on a inputs corpus and on random mutations of it. `corpus/`
//! also contains each input that once made a decoder fail, as a regression test.
//!
//! These tests need no fuzzing toolchain. libFuzzer, which needs a nightly compiler, can call the
//! same targets.

mod mutator;
pub(crate) mod targets;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use targets::{ALL, Target};

/// The environment variable with the seed of a run to repeat.
const SEED: &str = "MESOS_OVERLAY_SEED";
/// The environment variable with the number of seconds to fuzz each target.
const SECONDS: &str = "MESOS_OVERLAY_FUZZ_SECONDS";
/// Upper bound for the time of one input, on a busy machine.
const INPUT_TIME_MAX: Duration = Duration::from_secs(5);
/// Upper bound for the bytes allocated at a time: this multiple of the length of the input, plus
/// `ALLOCATED_BASE`, which the decoder needs for any input.
const ALLOCATED_PER_BYTE: u64 = 100;
const ALLOCATED_BASE: u64 = 256 * 1024;
/// The base for inputs that may be compressed: the size of the longest report after inflation.
const ALLOCATED_BASE_INFLATED: u64 = 4 * 1024 * 1024;
/// Number of inputs derived from one seed. It is small, so that a repeated run is short.
const INPUTS_PER_SEED: usize = 200;

/// Recorded traffic that extends the corpus of a target.
const RECORDED: [(&str, &str); 7] = [
    ("http", "RegisterAgentMessage.http"),
    ("http", "UpdateAgentOverlaysMessage.http"),
    ("http", "AgentRegisteredMessage.http"),
    ("http", "AgentRegisteredAcknowledgement.http"),
    ("json", "overlay-master-state.json"),
    ("state_file", "overlay-master-state.json"),
    ("message", "overlay-agent-overlay.pb"),
];

#[expect(
    clippy::disallowed_methods,
    reason = "the caller of a test chooses its seed and its duration"
)]
fn number_from_env(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text}: write a number")))
}

#[expect(clippy::disallowed_methods, reason = "the caller of a test chooses its duration")]
fn now() -> Instant {
    Instant::now()
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let folder = tests.join("fuzz/corpus").join(name);
    let entries = fs::read_dir(&folder).expect("every target has a corpus");
    let mut paths: Vec<_> =
        entries.map(|entry| entry.expect("the directory is readable").path()).collect();
    paths.sort();
    let recorded = RECORDED.iter().filter(|(target, _)| *target == name);
    paths.extend(recorded.map(|(_, file)| tests.join("golden").join(file)));
    paths.iter().map(|path| fs::read(path).expect("the file is readable")).collect()
}

/// Runs a target on an input. Returns the peak of the allocated bytes.
fn run_target((name, target): Target, input: &[u8], seed: Option<u64>) -> u64 {
    let start = now();
    let mut has_succeeded = false;
    let allocated = allocation_counter::measure(|| {
        has_succeeded = catch_unwind(AssertUnwindSafe(|| target(input))).is_ok();
    });
    let (duration, allocated) = (start.elapsed(), allocated.bytes_max);
    let base =
        if matches!(name, "http" | "message") { ALLOCATED_BASE_INFLATED } else { ALLOCATED_BASE };
    let limit = base + ALLOCATED_PER_BYTE * input.len() as u64;
    if has_succeeded && duration < INPUT_TIME_MAX && allocated <= limit {
        return allocated;
    }
    let replay = seed.map_or_else(String::new, |seed| {
        format!("; to repeat: {SEED}={seed} cargo test --test fuzz")
    });
    panic!(
        "{name}: took {duration:?} and {allocated} of {limit} bytes; add this input to its corpus: \
         {}{replay}",
        input.escape_ascii()
    );
}

#[test]
fn corpus_inputs_fail_no_target() {
    for target in ALL {
        let inputs = corpus(target.0);
        assert!(!inputs.is_empty(), "{} has no corpus", target.0);
        for input in &inputs {
            run_target(target, input, None);
        }
    }
}

#[test]
fn mutated_inputs_fail_no_target() {
    let seconds = number_from_env(SECONDS).unwrap_or(1);
    for target in ALL {
        let inputs = corpus(target.0);
        let start = now();
        let (mut count, mut peak) = (0, 0);
        loop {
            let seed = number_from_env(SEED).unwrap_or_else(|| fastrand::u64(..));
            let mut random = fastrand::Rng::with_seed(seed);
            for _ in 0..INPUTS_PER_SEED {
                let mut input = inputs[random.usize(..inputs.len())].clone();
                mutator::mutate(&mut input, &inputs, &mut random);
                peak = peak.max(run_target(target, &input, Some(seed)));
                count += 1;
            }
            if start.elapsed().as_secs() >= seconds || number_from_env(SEED).is_some() {
                break;
            }
        }
        println!("{}: {count} inputs, at most {peak} bytes allocated", target.0);
    }
}
