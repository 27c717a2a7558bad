//! The cost of an agent that has nothing to do: it watches the kernel and probes its peers, which
//! all answer. The benchmark prints the CPU time and the memory of the idle agent, and the CPU time
//! of a verification that finds no difference, with few and with many peers. Both include the
//! programs that the agent runs. It fails only on a wrong result, never on a missed limit.
//!
//! `cargo bench --bench idle -- 5000` measures one number of peers. Needs root.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark prints")]

#[expect(dead_code, reason = "agents do not stop in a benchmark")]
#[path = "../storm/agents.rs"]
mod agents;
#[expect(dead_code, reason = "agents do not stop in a benchmark")]
#[path = "../storm/assignment_checker.rs"]
mod assignment_checker;
#[path = "../storm/libprocess.rs"]
mod libprocess;
#[expect(dead_code, reason = "the master is neither killed nor replaced")]
#[path = "../storm/master_process.rs"]
mod master_process;
#[expect(dead_code, reason = "the tests use more")]
#[path = "../../tests/host/namespace.rs"]
mod namespace;
mod responder;
#[expect(dead_code, reason = "the peak and the descriptors are not limited")]
#[path = "../storm/usage.rs"]
mod usage;

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::sleep;

use agents::Agents;
use master_process::{MasterProcess, send_request};
use namespace::Namespace;
use usage::{Usage, cpu_time};

/// The measured numbers of peers.
const PEERS: [usize; 2] = [50, 5000];
/// Limits with 5,000 peers: the CPU time of the idle agent in percent of a processor, its resident
/// memory in MiB, and the CPU time of a verification in milliseconds.
const CPU_LIMIT: f64 = 0.5;
const MEMORY_LIMIT: f64 = 30.0;
const VERIFICATION_LIMIT: f64 = 30.0;
/// Time for the agent to program its peers and to send the first probes.
const SETTLING: Duration = Duration::from_secs(30);
/// Duration of each measurement.
const MEASUREMENT: Duration = Duration::from_secs(60);
/// The interval of the verifications that are measured, and the interval without verifications.
const FREQUENT: Duration = Duration::from_secs(1);
const RARE: Duration = Duration::from_secs(3600);
/// The measured agent, the master, and the first simulated agent.
const AGENT: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(172, 20, 0, 1), 5051);
const MASTER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(172, 20, 0, 2), 5050);
const FIRST_PEER: Ipv4Addr = Ipv4Addr::new(172, 24, 0, 1);
/// Length of a clock tick of `/proc/PID/stat` in seconds.
const TICK: f64 = 0.01;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // `cargo test --all-targets` runs benchmarks without this argument: they then do nothing.
    if !arguments.iter().any(|argument| argument == "--bench") {
        return ExitCode::SUCCESS;
    }
    if !rustix::process::geteuid().is_root() {
        println!("idle: skipped: network namespaces need root");
        return ExitCode::SUCCESS;
    }
    let sizes: Vec<usize> = arguments.iter().filter_map(|text| text.parse().ok()).collect();
    match run(if sizes.is_empty() { &PEERS } else { &sizes }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("idle: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The measurements with one number of peers.
struct Cost {
    /// The CPU time of the idle agent, in percent of a processor.
    idle: f64,
    /// Resident memory of the idle agent, in MiB.
    resident: f64,
    /// The CPU time of a verification, in milliseconds.
    verification: f64,
}

fn run(sizes: &[usize]) -> Result<(), String> {
    println!("{:>7} {:>9} {:>9} {:>16}", "peers", "CPU %", "RSS MiB", "verification ms");
    let mut costs = Vec::new();
    for &peers in sizes {
        let cost = measure(peers)?;
        println!(
            "{peers:>7} {:>9.3} {:>9.1} {:>16.1}",
            cost.idle, cost.resident, cost.verification
        );
        costs.push(cost);
    }
    let Some(last) = costs.last() else { return Ok(()) };
    if let [few, .., many] = &costs[..] {
        println!(
            "\n{} peers / {} peers: CPU {:.1}, memory {:.1}, verification {:.1}",
            sizes[sizes.len() - 1],
            sizes[0],
            many.idle / few.idle,
            many.resident / few.resident,
            many.verification / few.verification
        );
    }
    for (name, value, limit) in [
        ("CPU of the idle agent, percent", last.idle, CPU_LIMIT),
        ("memory, MiB", last.resident, MEMORY_LIMIT),
        ("verification, ms", last.verification, VERIFICATION_LIMIT),
    ] {
        let verdict = if value <= limit { "kept" } else { "MISSED" };
        println!("{name}: {value:.2}, limit {limit}: {verdict}");
    }
    Ok(())
}

/// Measures an agent with this number of peers.
fn measure(peers: usize) -> Result<Cost, String> {
    let (near, far) = (Namespace::new(), Namespace::new());
    near.enable_ipv6();
    far.enable_ipv6();
    connect(&near, &far);
    // In the build directory: /tmp may be a tmpfs.
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))
        .map_err(|error| format!("make a directory: {error}"))?;
    let _responder = far.inside(responder::start).map_err(|error| error.to_string())?;
    std::thread::scope(|scope| {
        let (stop, stopped) = watch::channel(());
        let (ready, is_ready) = std::sync::mpsc::channel();
        let work = || far.inside(|| block_on(serve(dir.path(), peers, ready, stopped)));
        let cluster = scope.spawn(work);
        let measured = match is_ready.recv() {
            Ok(()) => near.inside(|| measure_agent(dir.path(), peers)),
            Err(_) => Err("the cluster did not start".to_owned()),
        };
        drop(stop);
        let served = cluster.join().map_err(|_| "the cluster panicked".to_owned())?;
        served.and(measured)
    })
}

/// Connects the host of the agent with the host that has the master and all peers.
fn connect(near: &Namespace, far: &Namespace) {
    near.run(&format!("ip link add u0 type veth peer name u0 netns {}", far.path().display()));
    for (host, address) in [(near, AGENT.ip()), (far, MASTER.ip())] {
        host.run("ip link set u0 up");
        host.run(&format!("ip address add {address}/16 dev u0"));
    }
    near.run(&format!("ip route add 172.24.0.0/13 via {}", MASTER.ip()));
    far.run("ip route add local 172.24.0.0/13 dev lo");
}

/// Runs the master and the simulated agents until `stopped` is closed.
async fn serve(
    dir: &Path,
    peers: usize,
    ready: std::sync::mpsc::Sender<()>,
    mut stopped: watch::Receiver<()>,
) -> Result<(), String> {
    let master = MasterProcess::start("file", dir, MASTER).await?;
    let leader = watch::channel(Some(MASTER)).1;
    let agents = agents::listen()
        .and_then(|listener| Agents::start_on((listener, FIRST_PEER), leader, peers, None))
        .map_err(|error| error.to_string())?;
    agents.all_acknowledged(SETTLING).await.map_err(|error| error + &master.log())?;
    // Fails only if the other thread has ended.
    let _ = ready.send(());
    let _ = stopped.changed().await;
    Ok(())
}

fn measure_agent(dir: &Path, peers: usize) -> Result<Cost, String> {
    let agent = AgentProcess::start(dir, RARE)?;
    agent.settle(peers)?;
    let idle = agent.cpu_percent()?;
    let resident = Usage::of(agent.child.id())?.resident;
    agent.check(peers)?;
    drop(agent);
    let agent = AgentProcess::start(dir, FREQUENT)?;
    agent.settle(peers)?;
    let busy = agent.cpu_percent()?;
    agent.check(peers)?;
    let verification = (busy - idle).max(0.0) / 100.0 * FREQUENT.as_secs_f64() * 1000.0;
    Ok(Cost { idle, resident, verification })
}

/// A running agent. Dropping it kills the process.
struct AgentProcess {
    child: Child,
    log: PathBuf,
}

impl AgentProcess {
    /// Starts an agent in the network namespace of the calling thread.
    fn start(dir: &Path, verify_interval: Duration) -> Result<Self, String> {
        let failure = |error: std::io::Error| format!("start the agent: {error}");
        let config = json!({
            "master": MASTER.to_string(),
            "cni_dir": dir.join("cni"),
            "cni_data_dir": dir.join("leases"),
            "state_dir": dir.join("agent"),
            "verify_interval": format!("{} s", verify_interval.as_secs()),
            "network_config": {
                "allocate_subnet": true, "mesos_bridge": true, "docker_bridge": false,
            },
        });
        let path = dir.join("agent.json");
        fs::write(&path, config.to_string()).map_err(failure)?;
        let log = dir.join("agent.log");
        let output = File::create(&log).map_err(failure)?;
        let child = Command::new(env!("CARGO_BIN_EXE_mesos-overlay"))
            .args(["agent", "--listen", &AGENT.to_string(), "--config"])
            .arg(path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(output)
            .spawn()
            .map_err(failure)?;
        Ok(Self { child, log })
    }

    /// Waits until the agent has programmed and probed its peers.
    fn settle(&self, peers: usize) -> Result<(), String> {
        pause(SETTLING)?;
        self.check(peers)
    }

    /// Checks that the agent reaches all its peers that it has probed, and has no problem.
    fn check(&self, peers: usize) -> Result<(), String> {
        let log = || fs::read_to_string(&self.log).unwrap_or_default();
        let health = block_on(health()).map_err(|error| format!("{error}\n{}", log()))?;
        let (dataplane, probes) = (&health["dataplane"], &health["probes"]);
        let is_right = health["status"] == "ok"
            // The master's table has the agent itself.
            && dataplane["peers"] == peers + 1
            && dataplane["repairs"] == 0
            && probes["unreachable"] == 0
            && probes["reached"].as_u64().is_some_and(|reached| reached > 0);
        if is_right { Ok(()) } else { Err(format!("the agent's health: {health}\n{}", log())) }
    }

    /// Measures the CPU time of the agent and its programs, in percent of a processor.
    fn cpu_percent(&self) -> Result<f64, String> {
        let before = self.cpu_seconds()?;
        pause(MEASUREMENT)?;
        Ok((self.cpu_seconds()? - before) / MEASUREMENT.as_secs_f64() * 100.0)
    }

    fn cpu_seconds(&self) -> Result<f64, String> {
        let pid = self.child.id();
        let path = format!("/proc/{pid}/stat");
        let stat = fs::read_to_string(&path).map_err(|error| format!("read {path}: {error}"))?;
        // The fields after the name: state is the first, cutime the 14th and cstime the 15th.
        let fields = stat.rsplit(')').next().into_iter().flat_map(str::split_whitespace);
        let ticks: f64 = fields.skip(13).take(2).filter_map(|text| text.parse::<f64>().ok()).sum();
        Ok(cpu_time(pid)?.as_secs_f64() + ticks * TICK)
    }
}

impl Drop for AgentProcess {
    fn drop(&mut self) {
        // Both calls fail only if the process has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn health() -> Result<Value, String> {
    let mut last = String::new();
    // After a start under load the agent may not listen yet.
    for _ in 0..10 {
        match send_request(AGENT, "GET /overlay-agent/health", "application/json", "").await {
            Ok(body) => return serde_json::from_slice(&body).map_err(|error| error.to_string()),
            Err(error) => last = error,
        }
        sleep(Duration::from_secs(1)).await;
    }
    Err(last)
}

fn pause(time: Duration) -> Result<(), String> {
    block_on(async {
        sleep(time).await;
        Ok(())
    })
}

fn block_on<T>(work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("start a runtime: {error}"))?
        .block_on(work)
}
