//! The cost of the stores: the registration storm on each store relative to the memory store, and
//! the time that a master takes to load a large state.
//!
//! The benchmark prints measurements with their limits, and fails only on a wrong result. ZooKeeper
//! runs on this machine with one and with three servers, from the Debian package. Without this
//! package the benchmark skips ZooKeeper. The file store is on the disk of the build directory.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark prints")]

#[path = "../storm/agents.rs"]
#[expect(dead_code, reason = "agents do not stop in a benchmark")]
mod agents;
#[path = "../storm/assignment_checker.rs"]
#[expect(dead_code, reason = "agents do not stop in a benchmark")]
mod assignment_checker;
#[path = "../../tests/host/ensemble.rs"]
mod ensemble;
#[path = "../storm/libprocess.rs"]
mod libprocess;
#[path = "../storm/master_process.rs"]
mod master_process;

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use overlay_config::parse_master;
use overlay_engine::master::{Event, Master, Settings};
use overlay_engine::state_machine::StateMachine as _;
use overlay_store::{Change, FileStore, Store, ZooKeeperStore};
use overlay_types::addr::{OverlayName, Subnet};
use overlay_types::clock::Now;
use overlay_types::protocol::{AgentRecord, MasterKind, OverlayRecord, Record};
use overlay_types::state::Key;
use overlay_wire::encode_record;
use tokio::sync::watch;

use agents::Agents;
use ensemble::Servers;
use master_process::{MasterProcess, NETWORK, free_address};

/// Number of runs of each storm. The fastest run counts.
const RUNS: usize = 3;
/// Number of agents in a storm, and the limit of its wall time relative to the memory store.
const STORM_AGENTS: usize = 8000;
const RATIO_LIMIT: f64 = 3.0;

/// Number of agents in the large state, and the limits of its load time in seconds.
const STATE_AGENTS: u32 = 20_000;
const FILE_LIMIT: f64 = 1.0;
const ZOOKEEPER_LIMIT: f64 = 3.0;

/// Timeout of a storm.
const STORM_TIMEOUT: Duration = Duration::from_secs(60);
/// The tick time of the ZooKeeper servers.
const TICK: Duration = Duration::from_secs(2);
/// The session timeout of the ZooKeeper store.
const SESSION: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    // `cargo test --all-targets` runs benchmarks without this argument: they then do nothing.
    if !std::env::args().any(|argument| argument == "--bench") {
        return ExitCode::SUCCESS;
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("stores: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let has_zookeeper = Path::new("/usr/share/java/zookeeper.jar").exists();
    if !has_zookeeper {
        println!("ZooKeeper is skipped: the Debian package zookeeper is missing\n");
    }
    println!("{STORM_AGENTS} agents register at once: best of {RUNS} runs");
    let memory = best_storm("memory", |_| "memory".to_owned(), None)?;
    best_storm("file", |_| "file".to_owned(), Some(memory))?;
    for count in if has_zookeeper { &[1, 3][..] } else { &[] } {
        let servers = Servers::start(*count, TICK);
        let store = |run| format!("zk://{}/storm-{run}", servers.addresses());
        best_storm(&format!("ZooKeeper, {count} server(s)"), store, Some(memory))?;
    }

    println!("\na new master loads a state of {STATE_AGENTS} agents");
    let dir =
        tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).map_err(|error| error.to_string())?;
    let mut open = || Box::new(FileStore::at(dir.path())) as Box<dyn Store>;
    measure_load("file", FILE_LIMIT, &mut open)?;
    for count in if has_zookeeper { &[1, 3][..] } else { &[] } {
        let servers = Servers::start(*count, TICK);
        let address = format!("zk://{}/load", servers.addresses());
        let mut open = || {
            let ensemble = address.parse().expect("an address");
            Box::new(ZooKeeperStore::new(ensemble, SESSION).expect("a store")) as Box<dyn Store>
        };
        measure_load(&format!("ZooKeeper, {count} server(s)"), ZOOKEEPER_LIMIT, &mut open)?;
    }
    Ok(())
}

/// Runs storms on a store, and returns the wall time of the fastest in seconds. Prints its ratio to
/// `memory`, the wall time on the memory store.
fn best_storm(
    name: &str,
    store: impl Fn(usize) -> String,
    memory: Option<f64>,
) -> Result<f64, String> {
    let storms = (0..RUNS).map(|run| storm(&store(run))).collect::<Result<Vec<_>, _>>()?;
    let (wall, commits) =
        storms.into_iter().min_by(|(a, _), (b, _)| a.total_cmp(b)).ok_or("no run")?;
    print!("  {name:<24} {wall:>6.2} s, {commits:>4} commits");
    match memory {
        Some(memory) => {
            let ratio = wall / memory;
            let verdict = if ratio <= RATIO_LIMIT { "kept" } else { "MISSED" };
            println!(": {ratio:.2} times the memory store, limit {RATIO_LIMIT}: {verdict}");
        }
        None => println!(),
    }
    Ok(wall)
}

/// Runs a storm against a new master. Returns the wall time in seconds and the number of commits.
fn storm(store: &str) -> Result<(f64, u64), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("start a runtime: {error}"))?;
    runtime.block_on(async {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))
            .map_err(|error| format!("make a directory: {error}"))?;
        let address = free_address();
        let master = MasterProcess::start(store, dir.path(), address).await?;
        let start = now();
        let agents = Agents::start(watch::channel(Some(address)).1, STORM_AGENTS, None)
            .map_err(|error| error.to_string())?;
        agents.all_acknowledged(STORM_TIMEOUT).await.map_err(|error| error + &master.log())?;
        let wall = start.elapsed().as_secs_f64();
        let health = master.health().await?;
        let state = master.state().await?;
        agents.checker.lock().check_state(&state)?;
        if agents.repeated() > 0 {
            println!("  {} registrations timed out and were repeated", agents.repeated());
        }
        let commits = health["counters"]["commits"].as_u64().ok_or("health shows no commits")?;
        Ok((wall, commits))
    })
}

/// Fills a store, and measures how long a new master takes to load the state.
fn measure_load(
    name: &str,
    limit: f64,
    open: &mut dyn FnMut() -> Box<dyn Store>,
) -> Result<(), String> {
    let mut store = open();
    let epoch = store.load().map_err(|error| error.to_string())?.epoch;
    let records: Vec<Change> = (0..STATE_AGENTS).map(record).collect();
    let start = now();
    for batch in records.chunks(1000) {
        store.commit(epoch, batch).map_err(|error| error.to_string())?;
    }
    let fill_time = start.elapsed();
    drop(store);

    let (config, _) = parse_master("network", NETWORK).map_err(|problems| problems.to_string())?;
    let settings = Settings {
        network: Arc::new(config.network),
        reuse_after: config.reuse_after,
        kind: MasterKind::Program,
        authentication: None,
    };
    let start = now();
    let mut store = open();
    let loaded = store.load().map_err(|error| error.to_string())?;
    let store_time = start.elapsed();
    let bytes: usize = loaded.records.iter().map(|(_, bytes)| bytes.len()).sum();
    let mut master = Master::new(settings, overlay_wire::encode_peers_update, 1);
    master.handle(Now { elapsed: Duration::ZERO, unix: 0 }, Event::Loaded(Ok(loaded.decode())));
    let total_time = start.elapsed();
    let agents = master.metrics().agents.total;
    if u32::try_from(agents) != Ok(STATE_AGENTS) {
        return Err(format!("{name}: the state has {agents} of {STATE_AGENTS} agents"));
    }
    let seconds = total_time.as_secs_f64();
    let verdict = if seconds < limit { "kept" } else { "MISSED" };
    println!(
        "  {name:<24} {seconds:>6.3} s, of which {:.3} s in the store; limit {limit}: {verdict} \
         ({} KiB, written in {:.2} s)",
        store_time.as_secs_f64(),
        bytes / 1024,
        fill_time.as_secs_f64()
    );
    Ok(())
}

/// Returns the record of an agent with two overlays.
fn record(number: u32) -> Change {
    let subnet = |base: Ipv4Addr| -> Option<Subnet> {
        format!("{}/24", Ipv4Addr::from(u32::from(base) + (number << 8))).parse().ok()
    };
    let overlay = |name: &str, base: Ipv4Addr| OverlayRecord {
        name: name.parse::<OverlayName>().expect("a name"),
        subnet: subnet(base),
        subnet6: None,
    };
    let record = Record::Agent(AgentRecord {
        vtep_ip: Ipv4Addr::from(0x2c80_0001 + number),
        vtep_ip6: None,
        overlays: vec![
            overlay("vxlan-1", Ipv4Addr::new(10, 0, 0, 0)),
            overlay("vxlan-2", Ipv4Addr::new(10, 128, 0, 0)),
        ],
        allocate_subnet: true,
        mesos_bridge: true,
        docker_bridge: true,
        underlay: None,
        direct_mac: None,
        authenticated: None,
    });
    let agent = Ipv4Addr::from(0xac10_0001 + number);
    Change::Put(Key::Agent(agent), encode_record(&record))
}

#[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
fn now() -> Instant {
    Instant::now()
}
