//! The registration storm: the cost for a master when a whole cluster registers at once, as after a
//! failover. N agents register over real sockets, receive their addresses once these are durable,
//! report their overlays, and are acknowledged.
//!
//! The benchmark prints measurements with their limits. It fails only on a wrong result, never on a
//! missed limit, since the machine may be busy. `cargo bench --bench storm -- 8000` runs one size.
//!
//! Each size also runs against the floor, a server that transfers the same bytes over the same
//! connections without any logic, see [`floor`]. The ratio of both shows the cost of the logic, the
//! store and the encoding.
//!
//! `cargo bench --bench storm -- --authenticated 8000` lets agents and master authenticate each
//! other, and compares the CPU time with that of a storm without credentials.
//!
//! `cargo bench --bench storm -- --peers 1000` then lets all agents request their peers at once, in
//! the compact and in the plain form. The master sends each table at most at the rate of a network
//! of 1 Gbit/s.
//!
//! `cargo bench --bench storm -- --mesos PREFIX LIBRARY 8000` measures a mesos-master that loads
//! the module from LIBRARY. The measurement covers the whole mesos-master process. With
//! `--replicated-log`, the state is in the replicated log, as with the C++ module.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark prints")]

#[expect(dead_code, reason = "agents do not stop in a benchmark")]
mod agents;
#[expect(dead_code, reason = "agents do not stop in a benchmark")]
mod assignment_checker;
mod floor;
mod libprocess;
mod master_process;
mod mesos;
mod peers;
mod usage;

use std::fs::{self, Permissions};
use std::net::SocketAddrV4;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use overlay_config::parse_agent_credential;
use tokio::sync::watch;

use agents::{Agents, FIRST_ADDRESS};
use floor::{Floor, Traffic};
use master_process::{MasterProcess, NETWORK, free_address};
use mesos::Mesos;
use usage::{Usage, cpu_time};

/// Number of runs of each size. The fastest run counts, since disturbances only add time.
const RUNS: usize = 3;

/// Number of log lines of the master to print.
const LOG_LINES: usize = 5;

/// Timeout of a storm.
const STORM_TIMEOUT: Duration = Duration::from_secs(60);

/// Time for the last receipts to arrive after the acknowledgement of the last agent.
const LAST_RECEIPTS: Duration = Duration::from_millis(500);

/// Time for the work after the acknowledgement of the last agent, such as closing connections.
const AFTERMATH: Duration = Duration::from_secs(3);

/// Number of agents, and the CPU and wall seconds of the C++ module on two cores.
const SIZES: [(usize, f64, f64); 3] = [(1000, 3.1, 5.0), (3000, 7.1, 5.0), (8000, 36.0, 29.0)];

/// Limits for 8,000 agents: CPU seconds, peak memory in MiB, and the CPU time per agent relative to
/// that with 1,000 agents.
const CPU_LIMIT: f64 = 2.0;
const MEMORY_LIMIT: f64 = 150.0;
const RATIO_LIMIT: f64 = 1.3;

/// Limit of the CPU time of the program relative to the floor.
const FLOOR_RATIO_LIMIT: f64 = 1.5;

/// Limit of the CPU time of the program with authentication, relative to that without.
const AUTHENTICATION_LIMIT: f64 = 1.1;

/// The credential of the agents.
const CREDENTIAL: &str = "agents correct-horse-battery-staple";

/// Limit of the CPU seconds of a mesos-master with the module for 8,000 agents: a third of the CPU
/// seconds with the C++ module.
const MESOS_CPU_LIMIT: f64 = 12.0;

/// The measurements of one run.
struct Storm {
    agents: usize,
    wall: Duration,
    cpu: Duration,
    /// The CPU time during `AFTERMATH`.
    aftermath: Duration,
    traffic: Traffic,
    commits: u64,
    retries: usize,
    usage: Usage,
    /// The log of the master. It should be empty.
    log: String,
    /// Peak memory after one request for the complete state, in MiB.
    peak_with_state: f64,
}

impl Storm {
    /// Returns the CPU time per agent, in microseconds.
    fn cpu_per_agent(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / number(self.agents)
    }

    fn print(&self, cpp_cpu: f64, cpp_wall: f64) {
        println!(
            "{:>7} {:>6.2} {:>7.3} {:>8.0} {:>8} {:>8.0} {:>8.3} {:>6.1} {:>6.1} {:>8} {:>6} {:>5}",
            self.agents,
            self.wall.as_secs_f64(),
            self.cpu.as_secs_f64(),
            self.cpu_per_agent(),
            self.commits,
            number(self.agents) / self.commits as f64,
            self.aftermath.as_secs_f64(),
            self.usage.peak,
            self.usage.resident,
            self.usage.descriptors,
            cpp_cpu,
            cpp_wall
        );
        if self.retries > 0 {
            println!("{:>7} {} registrations timed out and were repeated", "", self.retries);
        }
        for line in self.log.lines().take(LOG_LINES) {
            println!("{:>7} {line}", "");
        }
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(result) = floor::serve_if_requested(&arguments) {
        return exit_code(result);
    }
    // `cargo test --all-targets` runs benchmarks without this argument: they then do nothing.
    if !arguments.iter().any(|argument| argument == "--bench") {
        return ExitCode::SUCCESS;
    }
    let sizes: Vec<usize> = arguments.iter().filter_map(|text| text.parse().ok()).collect();
    if arguments.iter().any(|argument| argument == "--peers") {
        let sizes = if sizes.is_empty() { vec![SIZES[0].0] } else { sizes };
        return exit_code(sizes.into_iter().try_for_each(peers::measure));
    }
    if arguments.iter().any(|argument| argument == "--authenticated") {
        let sizes = if sizes.is_empty() { vec![SIZES[2].0] } else { sizes };
        return exit_code(sizes.into_iter().try_for_each(compare_authentication));
    }
    exit_code(Mesos::from_arguments(&arguments).and_then(|mesos| run(mesos.as_ref(), &sizes)))
}

fn exit_code(result: Result<(), String>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("storm: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(mesos: Option<&Mesos>, selected_sizes: &[usize]) -> Result<(), String> {
    let subject = if mesos.is_some() { "the module in mesos-master" } else { "the program" };
    let is_replicated = mesos.is_some_and(|mesos| mesos.is_replicated);
    let store = if is_replicated { "the replicated log" } else { "a file" };
    println!("registration storm: {subject}, best of {RUNS} runs, state in {store}\n");
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
    let mut best_runs = Vec::new();
    let mut floor_ratio = None;
    for (agents, cpp_cpu, cpp_wall) in SIZES {
        if !selected_sizes.is_empty() && !selected_sizes.contains(&agents) {
            continue;
        }
        let mut storms =
            (0..RUNS).map(|_| storm(mesos, agents, false)).collect::<Result<Vec<_>, _>>()?;
        storms.sort_by_key(|storm| storm.cpu);
        let best = storms.swap_remove(0);
        best.print(cpp_cpu, cpp_wall);
        if mesos.is_none() {
            let ratio = compare_with_floor(&best)?;
            if agents == SIZES[2].0 {
                floor_ratio = Some(ratio);
            }
        }
        best_runs.push((best, cpp_cpu));
    }
    if let Some(ratio) = floor_ratio {
        println!(
            "\nCPU of the program / of the floor at {}: {ratio:.2}, limit {FLOOR_RATIO_LIMIT}: {}",
            SIZES[2].0,
            verdict(ratio <= FLOOR_RATIO_LIMIT)
        );
    }
    match (&best_runs[..], mesos) {
        ([(first, _), .., (last, cpp)], None) if selected_sizes.is_empty() => {
            print_limits(first, last, *cpp)
        }
        ([.., (last, cpp)], Some(_)) if last.agents == SIZES[2].0 => {
            print_cpu_limit(last, MESOS_CPU_LIMIT, *cpp);
        }
        _ => {}
    }
    Ok(())
}

/// Starts a master that takes authenticated agents only.
async fn start_authenticating(dir: &Path, address: SocketAddrV4) -> Result<MasterProcess, String> {
    let failure = |error: std::io::Error| format!("write to {}: {error}", dir.display());
    let credentials = dir.join("credentials");
    fs::write(&credentials, CREDENTIAL).map_err(failure)?;
    fs::set_permissions(&credentials, Permissions::from_mode(0o600)).map_err(failure)?;
    let network: serde_json::Value =
        serde_json::from_str(NETWORK).map_err(|error| error.to_string())?;
    let config = serde_json::json!({ "network": network, "credentials": credentials,
        "authentication": "required" });
    let path = dir.join("master.json");
    fs::write(&path, config.to_string()).map_err(failure)?;
    let command = MasterProcess::command("file", &path, dir, address);
    MasterProcess::launch(command, dir, address).await
}

/// Compares storms with and without authentication. They alternate, since the machine may be busy.
fn compare_authentication(count: usize) -> Result<(), String> {
    let mut best = [f64::INFINITY; 2];
    let mut walls = [f64::INFINITY; 2];
    for _ in 0..RUNS {
        for (index, is_authenticated) in [false, true].into_iter().enumerate() {
            let storm = storm(None, count, is_authenticated)?;
            best[index] = best[index].min(storm.cpu.as_secs_f64());
            walls[index] = walls[index].min(storm.wall.as_secs_f64());
            if storm.retries > 0 {
                println!("  {} registrations timed out and were repeated", storm.retries);
            }
        }
    }
    let ratio = best[1] / best[0];
    println!(
        "{count} agents: CPU {:.3} s and wall {:.2} s, authenticated {:.3} s and {:.2} s: {ratio:.3} \
         times as much, limit {AUTHENTICATION_LIMIT}: {}",
        best[0],
        walls[0],
        best[1],
        walls[1],
        verdict(ratio <= AUTHENTICATION_LIMIT)
    );
    Ok(())
}

fn verdict(is_kept: bool) -> &'static str {
    if is_kept { "kept" } else { "MISSED" }
}

fn print_cpu_limit(last: &Storm, limit: f64, cpp: f64) {
    let cpu = last.cpu.as_secs_f64();
    println!(
        "CPU seconds at {}: {cpu:.2}, limit {limit}: {}; C++ module: {cpp}, {:.0} times as much",
        last.agents,
        verdict(cpu <= limit),
        cpp / cpu
    );
}

fn print_limits(first: &Storm, last: &Storm, cpp: f64) {
    let ratio = last.cpu_per_agent() / first.cpu_per_agent();
    let total = |storm: &Storm| (storm.cpu + storm.aftermath).as_secs_f64();
    let total_ratio = total(last) / number(last.agents) * number(first.agents) / total(first);
    let (many, few) = (last.agents, first.agents);
    println!(
        "\nCPU per agent at {many} / at {few}: {ratio:.2}, limit {RATIO_LIMIT}: {}\n  \
         including the CPU time after the storm: {total_ratio:.2}",
        verdict(ratio <= RATIO_LIMIT)
    );
    print_cpu_limit(last, CPU_LIMIT, cpp);
    let peak = last.usage.peak;
    println!(
        "peak RSS at {many}: {peak:.1} MiB, limit {MEMORY_LIMIT}: {}; {:.1} MiB after a request \
         for the complete state",
        verdict(peak <= MEMORY_LIMIT),
        last.peak_with_state
    );
}

/// Runs the floor and prints its measurements. Returns the ratio of the CPU time of `storm` to the
/// CPU time of the floor.
fn compare_with_floor(storm: &Storm) -> Result<f64, String> {
    let floors = (0..RUNS).map(|_| run_floor(storm.agents)).collect::<Result<Vec<_>, _>>()?;
    let floor = floors.into_iter().min_by_key(|floor| floor.cpu).ok_or("the floor was not run")?;
    let ratio = storm.cpu.as_secs_f64() / floor.cpu.as_secs_f64();
    let cpu = floor.cpu.as_secs_f64();
    println!(
        "{:>7} {:>6.2} {cpu:>7.3} {:>8.0} floor: the program takes {ratio:.2} times its CPU time",
        "",
        floor.wall.as_secs_f64(),
        cpu * 1e6 / number(storm.agents)
    );
    if floor.traffic != storm.traffic {
        // For example, the program repeated a message or sent other types of messages.
        println!("{:>7} the traffic differs: {}; floor: {}", "", storm.traffic, floor.traffic);
    }
    Ok(ratio)
}

/// The measurements of one run against the floor.
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
        let agents = Agents::start_on(
            (listener, FIRST_ADDRESS),
            watch::channel(Some(address)).1,
            count,
            None,
        )
        .map_err(|error| error.to_string())?;
        agents.all_acknowledged(STORM_TIMEOUT).await?;
        let wall = start.elapsed();
        let cpu = cpu_time(pid)? - cpu_before;
        tokio::time::sleep(LAST_RECEIPTS).await;
        agents.checker.lock().check()?;
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

/// Runs a storm against a new master, and checks the resulting state.
fn storm(mesos: Option<&Mesos>, count: usize, is_authenticated: bool) -> Result<Storm, String> {
    block_on(async {
        // In the build directory: /tmp may be a tmpfs, on which durable writes cost nothing.
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))
            .map_err(|error| format!("make a directory: {error}"))?;
        let address = free_address();
        let master = match mesos {
            Some(mesos) => mesos.start(dir.path(), address, count).await?,
            None if is_authenticated => start_authenticating(dir.path(), address).await?,
            None => MasterProcess::start("file", dir.path(), address).await?,
        };
        let pid = master.child.id();
        let leader = watch::channel(Some(address)).1;
        let cpu_before = cpu_time(pid)?;
        let start = now();
        let credential = is_authenticated.then(|| parse_agent_credential(CREDENTIAL));
        let credential = credential.transpose().map_err(|error| error.to_string())?;
        let agents = Agents::start(leader, count, credential);
        let agents = agents.map_err(|error| error.to_string())?;
        agents.all_acknowledged(STORM_TIMEOUT).await.map_err(|error| error + &master.log())?;
        let wall = start.elapsed();
        let cpu_after = cpu_time(pid)?;
        let usage = Usage::of(pid)?;
        let health = master.health().await?;
        let commits = health["counters"]["commits"].as_u64().ok_or("health shows no commits")?;
        tokio::time::sleep(AFTERMATH).await;
        let cpu_end = cpu_time(pid)?;
        let assigned = agents.checker.lock().count();
        let state = master.state().await?;
        agents.checker.lock().check_state(&state)?;
        if assigned != count || health["agents"]["ok"] != count {
            return Err(format!("{assigned} agents have an assignment, health shows {health}"));
        }
        Ok(Storm {
            agents: count,
            wall,
            cpu: cpu_after - cpu_before,
            aftermath: cpu_end - cpu_after,
            traffic: Traffic::from(&agents.traffic),
            commits,
            retries: agents.repeated(),
            usage,
            log: mesos.map_or_else(|| master.log(), |_| mesos::module_lines(&master.log())),
            peak_with_state: Usage::of(pid)?.peak,
        })
    })
}

#[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
fn now() -> Instant {
    Instant::now()
}

/// Converts a count for a division.
fn number(count: usize) -> f64 {
    count as f64
}
