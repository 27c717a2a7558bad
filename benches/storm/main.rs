//! The registration storm: what it costs a master that a whole cluster registers at once, as after
//! a failover. N agents over real sockets register, are told their addresses once those are
//! durable, report, and are acknowledged.
//!
//! It prints figures and the limits beside them, and fails only if a result is wrong: a machine
//! that is busy with something else must not turn into an error. `cargo bench --bench storm --
//! 8000` runs one size.
//!
//! `cargo bench --bench storm -- --mesos PREFIX LIBRARY 8000` does the same with the module of that
//! library in the mesos-master of that installation, whose whole process is measured; with
//! `--replicated-log`, the state is where the C++ module has it.

#[expect(dead_code, reason = "in a benchmark no agent ends")]
mod agents;
mod libprocess;
mod mesos;
mod program;
#[expect(dead_code, reason = "in a benchmark no agent ends")]
mod promises;
mod usage;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use agents::Agents;
use mesos::Mesos;
use program::{Program, free_address};
use tokio::sync::watch;
use usage::{Usage, cpu_time};

/// How often each size is run. The best run counts: what disturbs a measurement only ever makes it
/// longer.
const RUNS: usize = 3;

/// How much of the master's log is shown.
const LOG_LINES: usize = 5;

/// How long a storm may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What follows the acknowledgement of the last agent, such as the ends of connections, is over by
/// then.
const AFTERMATH: Duration = Duration::from_secs(3);

/// Agents, and what the C++ module needed for them on two cores: processor and wall seconds.
const SIZES: [(usize, f64, f64); 3] = [(1000, 3.1, 5.0), (3000, 7.1, 5.0), (8000, 36.0, 29.0)];

/// What 8,000 agents may cost the master: processor seconds, MiB, and the cost of one of them
/// relative to one of 1,000.
const CPU_LIMIT: f64 = 2.0;
const MEMORY_LIMIT: f64 = 150.0;
const RATIO_LIMIT: f64 = 1.3;

/// Processor seconds that 8,000 agents may cost a mesos-master with the module: a third of what
/// they cost with the C++ module.
const MESOS_CPU_LIMIT: f64 = 12.0;

/// One run.
struct Storm {
    agents: usize,
    wall: Duration,
    cpu: Duration,
    /// The processor time of what came after.
    aftermath: Duration,
    commits: u64,
    repeated: usize,
    usage: Usage,
    /// What the master had to say, which should be nothing.
    log: String,
    /// Most memory, with one request for the whole state.
    peak_with_state: f64,
}

impl Storm {
    fn cpu_of_one(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / number(self.agents)
    }

    fn print(&self, cpp_cpu: f64, cpp_wall: f64) {
        println!(
            "{:>7} {:>6.2} {:>7.3} {:>8.0} {:>8} {:>8.0} {:>8.3} {:>6.1} {:>6.1} {:>8} {:>6} {:>5}",
            self.agents,
            self.wall.as_secs_f64(),
            self.cpu.as_secs_f64(),
            self.cpu_of_one(),
            self.commits,
            number(self.agents) / self.commits as f64,
            self.aftermath.as_secs_f64(),
            self.usage.peak,
            self.usage.resident,
            self.usage.descriptors,
            cpp_cpu,
            cpp_wall
        );
        if self.repeated > 0 {
            println!("{:>7} {} registrations were not answered in time", "", self.repeated);
        }
        for line in self.log.lines().take(LOG_LINES) {
            println!("{:>7} {line}", "");
        }
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // `cargo test --all-targets` runs benchmarks too, without this word.
    if !arguments.iter().any(|argument| argument == "--bench") {
        return ExitCode::SUCCESS;
    }
    let sizes: Vec<usize> = arguments.iter().filter_map(|text| text.parse().ok()).collect();
    if let Err(fault) = Mesos::of(&arguments).and_then(|mesos| run(mesos.as_ref(), &sizes)) {
        eprintln!("storm: {fault}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn run(mesos: Option<&Mesos>, chosen: &[usize]) -> Result<(), String> {
    let who = if mesos.is_some() { "the module in mesos-master" } else { "the program" };
    let is_replicated = mesos.is_some_and(|mesos| mesos.is_replicated);
    let place = if is_replicated { "the replicated log" } else { "a file" };
    println!("registration storm: {who}, the best of {RUNS} runs each, state durable in {place}\n");
    println!(
        "{:>7} {:>6} {:>7} {:>8} {:>8} {:>8} {:>8} {:>6} {:>6} {:>8} {:>12}",
        "agents",
        "wall",
        "CPU",
        "CPU per",
        "commits",
        "agents/",
        "CPU",
        "RSS",
        "RSS",
        "descrip-",
        "C++ module"
    );
    println!(
        "{:>7} {:>6} {:>7} {:>8} {:>8} {:>8} {:>8} {:>6} {:>6} {:>8} {:>6} {:>5}",
        "", "s", "s", "agent µs", "", "commit", "after s", "peak", "now", "tors", "CPU s", "wall"
    );
    let mut bests = Vec::new();
    for (agents, cpp_cpu, cpp_wall) in SIZES {
        if !chosen.is_empty() && !chosen.contains(&agents) {
            continue;
        }
        let mut storms = (0..RUNS).map(|_| storm(mesos, agents)).collect::<Result<Vec<_>, _>>()?;
        storms.sort_by_key(|storm| storm.cpu);
        let best = storms.swap_remove(0);
        best.print(cpp_cpu, cpp_wall);
        bests.push((best, cpp_cpu));
    }
    match (&bests[..], mesos) {
        ([(first, _), .., (last, cpp)], None) if chosen.is_empty() => judge(first, last, *cpp),
        ([.., (last, cpp)], Some(_)) if last.agents == SIZES[2].0 => {
            judge_cpu(last, MESOS_CPU_LIMIT, *cpp);
        }
        _ => {}
    }
    Ok(())
}

fn word(is_kept: bool) -> &'static str {
    if is_kept { "kept" } else { "MISSED" }
}

fn judge_cpu(last: &Storm, limit: f64, cpp: f64) {
    let cpu = last.cpu.as_secs_f64();
    println!(
        "CPU seconds at {}: {cpu:.2}, limit {limit}: {}; the C++ module {cpp}, {:.0} times that",
        last.agents,
        word(cpu <= limit),
        cpp / cpu
    );
}

fn judge(first: &Storm, last: &Storm, cpp: f64) {
    let ratio = last.cpu_of_one() / first.cpu_of_one();
    let total = |storm: &Storm| (storm.cpu + storm.aftermath).as_secs_f64();
    let whole = total(last) / number(last.agents) * number(first.agents) / total(first);
    let (many, few) = (last.agents, first.agents);
    println!(
        "\nCPU of one of {many} agents / of one of {few}: {ratio:.2}, limit {RATIO_LIMIT}: {}\n  \
         the same with what came after: {whole:.2}",
        word(ratio <= RATIO_LIMIT)
    );
    judge_cpu(last, CPU_LIMIT, cpp);
    let peak = last.usage.peak;
    println!(
        "peak RSS at {many}: {peak:.1} MiB, limit {MEMORY_LIMIT}: {}; {:.1} MiB once the whole state \
         was asked for",
        word(peak <= MEMORY_LIMIT),
        last.peak_with_state
    );
}

/// Runs a storm against a fresh master, and checks what came of it.
fn storm(mesos: Option<&Mesos>, count: usize) -> Result<Storm, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("start a runtime: {error}"))?;
    runtime.block_on(async {
        // Beside the build, since /tmp may be memory, which makes durable writes look cheap.
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))
            .map_err(|error| format!("make a directory: {error}"))?;
        let address = free_address();
        let master = match mesos {
            Some(mesos) => mesos.start(dir.path(), address, count).await?,
            None => Program::start("file", dir.path(), address).await?,
        };
        let pid = master.child.id();
        let cpu_before = cpu_time(pid)?;
        let start = now();
        let agents = Agents::start(watch::channel(Some(address)).1, count)
            .map_err(|error| error.to_string())?;
        agents.all_acknowledged(PATIENCE).await.map_err(|fault| fault + &master.log())?;
        let wall = start.elapsed();
        let cpu_after = cpu_time(pid)?;
        let usage = Usage::of(pid)?;
        let health = master.health().await?;
        let commits = health["counters"]["commits"].as_u64().ok_or("health shows no commits")?;
        tokio::time::sleep(AFTERMATH).await;
        let cpu_end = cpu_time(pid)?;
        let told = agents.promises.lock().count();
        let state = master.state().await?;
        agents.promises.lock().check_state(&state)?;
        if told != count || health["agents"]["ok"] != count {
            return Err(format!("{told} agents were told, health shows {health}"));
        }
        Ok(Storm {
            agents: count,
            wall,
            cpu: cpu_after - cpu_before,
            aftermath: cpu_end - cpu_after,
            commits,
            repeated: agents.repeated(),
            usage,
            log: mesos.map_or_else(|| master.log(), |_| mesos::own_lines(&master.log())),
            peak_with_state: Usage::of(pid)?.peak,
        })
    })
}

#[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
fn now() -> Instant {
    Instant::now()
}

/// For a quotient.
fn number(count: usize) -> f64 {
    count as f64
}
