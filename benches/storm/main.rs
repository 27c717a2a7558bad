//! The registration storm: what it costs a master that a whole cluster registers at once, as after
//! a failover. N agents over real sockets register, are told their addresses once those are
//! durable, report, and are acknowledged.
//!
//! It prints figures and the limits beside them, and fails only if a result is wrong: a machine
//! that is busy with something else must not turn into an error. `cargo bench --bench storm --
//! 8000` runs one size.
//!
//! Each size is also run against the floor: a server that moves the same bytes over the same
//! connections and decides nothing, see [`floor`]. The ratio of the two shows what the logic, the
//! store and the encoding of the program cost.
//!
//! `cargo bench --bench storm -- --mesos PREFIX LIBRARY 8000` does the same with the module of that
//! library in the mesos-master of that installation, whose whole process is measured; with
//! `--replicated-log`, the state is where the C++ module has it.

#[expect(dead_code, reason = "in a benchmark no agent ends")]
mod agents;
mod floor;
mod libprocess;
mod mesos;
mod program;
#[expect(dead_code, reason = "in a benchmark no agent ends")]
mod promises;
mod usage;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use agents::Agents;
use floor::{Floor, Traffic};
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

/// How long after the acknowledgement of the last agent the last receipts may take to arrive.
const LAST_RECEIPTS: Duration = Duration::from_millis(500);

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

/// The CPU time of the program relative to that of its floor.
const FLOOR_RATIO_LIMIT: f64 = 1.5;

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
    traffic: Traffic,
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
    if let Some(result) = floor::serve_if_asked(&arguments) {
        return report(result);
    }
    // `cargo test --all-targets` runs benchmarks too, without this word.
    if !arguments.iter().any(|argument| argument == "--bench") {
        return ExitCode::SUCCESS;
    }
    let sizes: Vec<usize> = arguments.iter().filter_map(|text| text.parse().ok()).collect();
    report(Mesos::of(&arguments).and_then(|mesos| run(mesos.as_ref(), &sizes)))
}

fn report(result: Result<(), String>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("storm: {fault}");
            ExitCode::FAILURE
        }
    }
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
    let mut floor_ratio = None;
    for (agents, cpp_cpu, cpp_wall) in SIZES {
        if !chosen.is_empty() && !chosen.contains(&agents) {
            continue;
        }
        let mut storms = (0..RUNS).map(|_| storm(mesos, agents)).collect::<Result<Vec<_>, _>>()?;
        storms.sort_by_key(|storm| storm.cpu);
        let best = storms.swap_remove(0);
        best.print(cpp_cpu, cpp_wall);
        if mesos.is_none() {
            let ratio = compare_with_floor(&best)?;
            if agents == SIZES[2].0 {
                floor_ratio = Some(ratio);
            }
        }
        bests.push((best, cpp_cpu));
    }
    if let Some(ratio) = floor_ratio {
        println!(
            "\nCPU of the program / of its floor at {}: {ratio:.2}, limit {FLOOR_RATIO_LIMIT}: {}",
            SIZES[2].0,
            word(ratio <= FLOOR_RATIO_LIMIT)
        );
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

/// Runs the floor of a storm, prints it, and returns the ratio of the storm's CPU time to it.
fn compare_with_floor(storm: &Storm) -> Result<f64, String> {
    let floors = (0..RUNS).map(|_| run_floor(storm.agents)).collect::<Result<Vec<_>, _>>()?;
    let floor = floors.into_iter().min_by_key(|floor| floor.cpu).ok_or("the floor was not run")?;
    let ratio = storm.cpu.as_secs_f64() / floor.cpu.as_secs_f64();
    let cpu = floor.cpu.as_secs_f64();
    println!(
        "{:>7} {:>6.2} {cpu:>7.3} {:>8.0} is the floor: the program needs {ratio:.2} times its CPU",
        "",
        floor.wall.as_secs_f64(),
        cpu * 1e6 / number(storm.agents)
    );
    if floor.traffic != storm.traffic {
        // For example, since the program repeated something or sent messages of other kinds.
        println!("{:>7} the traffic differs: {}; floor: {}", "", storm.traffic, floor.traffic);
    }
    Ok(ratio)
}

/// A run against the floor.
struct FloorRun {
    wall: Duration,
    cpu: Duration,
    traffic: Traffic,
}

fn run_floor(count: usize) -> Result<FloorRun, String> {
    block_on(async {
        let listener = agents::listen().map_err(|error| error.to_string())?;
        let port = listener.local_addr().map_err(|error| error.to_string())?.port();
        let address = free_address();
        let floor = Floor::start(address, port, count)?;
        let pid = floor.child.id();
        let cpu_before = cpu_time(pid)?;
        let start = now();
        let agents = Agents::start_on(listener, watch::channel(Some(address)).1, count)
            .map_err(|error| error.to_string())?;
        agents.all_acknowledged(PATIENCE).await?;
        let wall = start.elapsed();
        let cpu = cpu_time(pid)? - cpu_before;
        tokio::time::sleep(LAST_RECEIPTS).await;
        agents.promises.lock().check()?;
        Ok(FloorRun { wall, cpu, traffic: Traffic::from(&agents.traffic) })
    })
}

fn block_on<T>(work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("start a runtime: {error}"))?
        .block_on(work)
}

/// Runs a storm against a fresh master, and checks what came of it.
fn storm(mesos: Option<&Mesos>, count: usize) -> Result<Storm, String> {
    block_on(async {
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
            traffic: Traffic::from(&agents.traffic),
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
