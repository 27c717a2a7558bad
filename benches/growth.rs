//! How the cost of one operation grows with the size of a cluster, without sockets and disk:
//! allocations in larger pools, registrations among more agents, and the state of more agents. A
//! linear scan shows as a ratio close to the ratio of the sizes. A tree shows as a single-digit
//! ratio for a thousand times the size, caused by its depth and by cache misses.

#![expect(clippy::print_stdout, reason = "a benchmark prints")]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesos_network_overlay::http::{render_master, route_master};
use overlay_config::parse_master;
use overlay_engine::ipam::SubnetPool;
use overlay_engine::master::{Command, Event, Forget, Master, Reply, Request, Settings};
use overlay_engine::state_machine::StateMachine as _;
use overlay_store::{Change, Loaded};
use overlay_types::addr::agent_upid;
use overlay_types::clock::Now;
use overlay_types::protocol::{AddressRange, AgentOptions, MasterKind, Message, RequestId};
use overlay_types::state::{Epoch, Key, RecordChange, Version};

/// Number of runs of each measurement. The fastest run counts, since disturbances only add time.
const RUNS: usize = 5;

/// Number of operations of one measurement.
const STEPS: u32 = 20_000;

/// Number of scattered subnets that are allocated in a pool, at most half of the pool.
const SCATTERED: u128 = 1 << 18;

const NETWORK: &str = r#"{
    "vtep_subnet": "44.128.0.0/16",
    "vtep_mac_oui": "70:B3:D5:00:00:00",
    "overlays": [
        { "name": "vxlan-1", "subnet": "10.0.0.0/9", "prefix": 24 },
        { "name": "vxlan-2", "subnet": "10.128.0.0/9", "prefix": 24 }
    ]
}"#;

fn main() -> ExitCode {
    // `cargo test --all-targets` runs benchmarks without this argument: they then do nothing.
    if std::env::args().any(|argument| argument == "--bench") {
        println!("growth: best of {RUNS} runs; ratios are relative to the first line of a block");
        measure_allocations();
        measure_registrations();
        measure_new_agents();
        measure_recoveries();
        measure_state_rendering();
    }
    ExitCode::SUCCESS
}

fn measure_allocations() {
    println!("\nallocate a subnet and release another");
    let mut first = None;
    for bits in [8, 16, 20, 24] {
        let subnet = "10.0.0.0/8".parse().expect("a valid subnet");
        // With 2^24 agents, each subnet is a single address. The pool treats it like any subnet.
        let mut pool = SubnetPool::new(AddressRange { subnet, prefix: 8 + bits });
        let size = pool.capacity();
        let count = SCATTERED.min(size / 2);
        let nth = |index| {
            subnet.nth(8 + bits, index * (size / count)).expect("the subnet is in the pool")
        };
        (0..count).for_each(|index| pool.reserve(nth(index)).expect("the subnet is free"));
        let time = best_time(|| {
            for step in 0..STEPS {
                let allocated = pool.allocate().expect("half of the pool is free");
                pool.free(black_box(allocated.item), step.into()).expect("the subnet is allocated");
            }
        });
        print_time(&format!("2^{bits} subnets, {count} in use"), time / STEPS, &mut first);
    }
}

fn measure_registrations() {
    println!("\nregister a known agent");
    let mut first = None;
    for count in [1000, 10_000] {
        let mut master = master_with_agents(count);
        let mut agents = (0..count).cycle();
        let time = best_time(|| {
            for _ in 0..STEPS {
                let agent = agents.next().expect("the cycle is infinite");
                assert_eq!(register(&mut master, agent), 0, "a known agent changes no record");
            }
        });
        print_time(&format!("{count} agents"), time / STEPS, &mut first);
    }
}

fn measure_new_agents() {
    println!("\nregister a new agent with its history, and forget it");
    let mut first = None;
    for count in [1000, 10_000] {
        let mut master = master_with_agents(count);
        let mut version = u64::from(count);
        let time = best_time(|| {
            for _ in 0..STEPS / 10 {
                assert!(register(&mut master, count) > 1, "a new agent changes several records");
                version += 1;
                master.handle(now(), Event::Committed(Ok(Version(version))));
                let agents = vec![agent(count)];
                let request = Request::Forget(Forget { agents, force: true, dry_run: false });
                master.handle(now(), Event::Request(RequestId(1), request));
                while let Some(command) = master.poll_command() {
                    black_box(command);
                }
                version += 1;
                master.handle(now(), Event::Committed(Ok(Version(version))));
            }
        });
        print_time(&format!("{count} agents"), time / (STEPS / 10), &mut first);
    }
}

fn measure_recoveries() {
    println!("\nload the state and preview another configuration, per agent");
    let (mut first, mut first_copy, mut first_preview) = (None, None, None);
    for count in [1000, 20_000] {
        let records = stored_records(count);
        let network = parse_master("network.json", NETWORK).expect("a valid network").0.network;
        let mut recovered = None;
        let time = best_time(|| {
            let mut master = master();
            let loaded = Loaded { epoch: Epoch(1), version: Version(9), records: records.clone() };
            master.handle(now(), Event::Loaded(Ok(loaded.decode())));
            recovered = Some(black_box(master));
        });
        print_time(&format!("load {count} agents in {time:.1?}"), time / count, &mut first);
        let mut master = recovered.expect("at least one run");
        let mut jobs = Vec::new();
        let time = best_time(|| {
            let request = Request::Preview(Box::new(network.clone()));
            master.handle(now(), Event::Request(RequestId(1), request));
            while let Some(command) = master.poll_command() {
                if let Command::Preview { job, .. } = command {
                    jobs.push(job);
                }
            }
        });
        let text = format!("copy {count} agents for a preview in {time:.1?}");
        print_time(&text, time / count, &mut first_copy);
        let job = jobs.pop().expect("the master requests a preview");
        let time = best_time(|| {
            black_box(job.clone().run());
        });
        print_time(
            &format!("preview {count} agents in {time:.1?}"),
            time / count,
            &mut first_preview,
        );
    }
}

/// Returns the records of a store with `count` agents.
fn stored_records(count: u32) -> Vec<(Key, Vec<u8>)> {
    let mut master = master();
    let loaded = Loaded { epoch: Epoch(1), version: Version(0), records: Vec::new() };
    master.handle(now(), Event::Loaded(Ok(loaded.decode())));
    let mut records = BTreeMap::new();
    for (version, agent) in (1..).zip(0..count) {
        for change in register_and_collect_changes(&mut master, agent) {
            match Change::encode(&change) {
                Change::Put(key, bytes) => drop(records.insert(key, bytes)),
                Change::Delete(key) => drop(records.remove(&key)),
            }
        }
        master.handle(now(), Event::Committed(Ok(Version(version))));
    }
    records.into_iter().collect()
}

fn measure_state_rendering() {
    println!("\nrender the complete state as JSON, per agent");
    let mut first = None;
    for count in [1000, 10_000] {
        let mut master = master_with_agents(count);
        let request = http::Request::get("/overlay-master/state").body(bytes::Bytes::new());
        let (request, format) =
            route_master(&request.expect("a valid request")).expect("a known endpoint");
        assert_eq!(request, Request::State);
        master.handle(now(), Event::Request(RequestId(1), request));
        let Some(Command::Reply { reply, .. }) = master.poll_command() else {
            panic!("the master replies")
        };
        assert!(matches!(&reply, Reply::State(state) if state.agents.len() == count as usize));
        let mut length = 0;
        let time = best_time(|| length = black_box(render_master(&reply, &format)).body().len());
        let name = format!("{count} agents, {} kB in {time:.1?}", length / 1000);
        print_time(&name, time / count, &mut first);
    }
}

/// Returns a master with `count` registered agents whose records are committed.
fn master_with_agents(count: u32) -> Master {
    let mut master = master();
    let loaded = Loaded { epoch: Epoch(1), version: Version(0), records: Vec::new() };
    master.handle(now(), Event::Loaded(Ok(loaded.decode())));
    for agent in 0..count {
        assert!(
            register(&mut master, agent) > 1,
            "a new agent and its history change several records"
        );
        master.handle(now(), Event::Committed(Ok(Version(u64::from(agent) + 1))));
    }
    master
}

/// Returns a master that waits for its state from the store.
fn master() -> Master {
    let (config, _) = parse_master("network.json", NETWORK).expect("a valid network");
    let settings = Settings {
        network: Arc::new(config.network),
        reuse_after: Duration::ZERO,
        kind: MasterKind::Module,
        authentication: None,
    };
    let mut master = Master::new(settings, overlay_wire::encode_peers_update, 1);
    assert_eq!(master.poll_command(), Some(Command::Load));
    master
}

fn agent(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(172, 16, 0, 1).to_bits() + number)
}

/// Registers an agent. Returns the number of changed records.
fn register(master: &mut Master, number: u32) -> usize {
    register_and_collect_changes(master, number).len()
}

/// Registers an agent, and executes the commands of the master as the runtime does. Returns the
/// changes to commit.
fn register_and_collect_changes(master: &mut Master, number: u32) -> Vec<RecordChange> {
    let from = agent_upid(SocketAddrV4::new(agent(number), 5051));
    let message = Message::RegisterAgent(AgentOptions::default());
    master.handle(now(), Event::Message { from, message });
    let mut collected = Vec::new();
    while let Some(command) = master.poll_command() {
        if let Command::Commit { changes, .. } = black_box(command) {
            collected.extend(changes);
        }
    }
    collected
}

const fn now() -> Now {
    Now { elapsed: Duration::ZERO, unix: 1_700_000_000 }
}

#[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
fn best_time(mut measured: impl FnMut()) -> Duration {
    let run = |_| {
        let start = Instant::now();
        measured();
        start.elapsed()
    };
    (0..RUNS).map(run).min().unwrap_or_default()
}

fn print_time(name: &str, time: Duration, first: &mut Option<Duration>) {
    let first = *first.get_or_insert(time);
    let ratio = time.as_secs_f64() / first.as_secs_f64();
    println!("  {name:<40} {:>9} {ratio:>6.2}", format!("{time:.2?}"));
}
