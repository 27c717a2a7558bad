//! How the cost of one step grows with the size of a cluster, without sockets and disk: an
//! allocation in larger pools, a registration among more agents, the state of more agents. A list
//! that is scanned shows as a ratio like that of the sizes; a tree shows as its depth and the
//! caches of the processor, which is a single digit for a thousand times the size.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesos_network_overlay::addr::Upid;
use mesos_network_overlay::clock::Now;
use mesos_network_overlay::config::parse_master;
use mesos_network_overlay::http::{render_master, route_master};
use mesos_network_overlay::ipam::SubnetPool;
use mesos_network_overlay::machine::Machine as _;
use mesos_network_overlay::master::{Command, Event, Forget, Master, Reply, Request, Settings};
use mesos_network_overlay::protocol::{AddressRange, AgentOptions, Message, RequestId};
use mesos_network_overlay::store::{Change, Epoch, Key, Loaded, Version};

/// How often each measurement is made. The shortest counts: a disturbance only makes it longer.
const RUNS: usize = 5;

/// Steps of one measurement.
const STEPS: u32 = 20_000;

/// Scattered subnets that are in use in a pool; or half of it, if that is less.
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
    // `cargo test --all-targets` runs benchmarks too, without this word.
    if std::env::args().any(|argument| argument == "--bench") {
        println!(
            "growth: the best of {RUNS} runs each; the ratio is to the first line of its block"
        );
        allocations();
        registrations();
        new_agents();
        recoveries();
        states();
    }
    ExitCode::SUCCESS
}

fn allocations() {
    println!("\nallocate a subnet and free another");
    let mut first = None;
    for bits in [8, 16, 20, 24] {
        let subnet = "10.0.0.0/8".parse().expect("it is a subnet");
        // 2^24 agents would have one address each, which is a subnet like any other here.
        let mut pool = SubnetPool::new(AddressRange { subnet, prefix: 8 + bits });
        let size = pool.capacity();
        let count = SCATTERED.min(size / 2);
        let nth = |index| subnet.nth(8 + bits, index * (size / count)).expect("it is in the pool");
        (0..count).for_each(|index| pool.reserve(nth(index)).expect("it is free"));
        let time = best(|| {
            for step in 0..STEPS {
                let allocated = pool.allocate().expect("half of the pool is free");
                pool.free(black_box(allocated.item), step.into()).expect("it is in use");
            }
        });
        show(&format!("2^{bits} subnets, {count} in use"), time / STEPS, &mut first);
    }
}

fn registrations() {
    println!("\nregister again, and be told the same");
    let mut first = None;
    for count in [1000, 10_000] {
        let mut master = leading(count);
        let mut agents = (0..count).cycle();
        let time = best(|| {
            for _ in 0..STEPS {
                let agent = agents.next().expect("it has no end");
                assert_eq!(register(&mut master, agent), 0, "nothing has changed");
            }
        });
        show(&format!("{count} agents"), time / STEPS, &mut first);
    }
}

fn new_agents() {
    println!("\nregister for the first time, with its history, and be forgotten");
    let mut first = None;
    for count in [1000, 10_000] {
        let mut master = leading(count);
        let mut version = u64::from(count);
        let time = best(|| {
            for _ in 0..STEPS / 10 {
                assert!(register(&mut master, count) > 1, "it is new");
                version += 1;
                master.handle(now(), Event::Committed(Ok(Version(version))));
                let agents = vec![agent(count)];
                let question = Request::Forget(Forget { agents, force: true, dry_run: false });
                master.handle(now(), Event::Request(RequestId(1), question));
                while let Some(command) = master.poll_command() {
                    black_box(command);
                }
                version += 1;
                master.handle(now(), Event::Committed(Ok(Version(version))));
            }
        });
        show(&format!("{count} agents"), time / (STEPS / 10), &mut first);
    }
}

fn recoveries() {
    println!("\nread the state and try another configuration on it, for each agent");
    let (mut first, mut first_copy, mut first_trial) = (None, None, None);
    for count in [1000, 20_000] {
        let records = stored(count);
        let network = parse_master("network.json", NETWORK).expect("it is a network").0.network;
        let mut recovered = None;
        let time = best(|| {
            let mut master = master();
            let loaded = Loaded { epoch: Epoch(1), version: Version(9), records: records.clone() };
            master.handle(now(), Event::Loaded(Ok(loaded)));
            recovered = Some(black_box(master));
        });
        show(&format!("read {count} agents in {time:.1?}"), time / count, &mut first);
        let mut master = recovered.expect("it was measured");
        let mut jobs = Vec::new();
        let time = best(|| {
            let question = Request::Preview(Box::new(network.clone()));
            master.handle(now(), Event::Request(RequestId(1), question));
            while let Some(command) = master.poll_command() {
                if let Command::Preview { job, .. } = command {
                    jobs.push(job);
                }
            }
        });
        let text = format!("copy {count} agents for a preview in {time:.1?}");
        show(&text, time / count, &mut first_copy);
        let job = jobs.pop().expect("the master wants a preview");
        let time = best(|| {
            black_box(job.clone().run());
        });
        show(&format!("preview {count} agents in {time:.1?}"), time / count, &mut first_trial);
    }
}

/// What the store has of so many agents.
fn stored(count: u32) -> Vec<(Key, Vec<u8>)> {
    let mut master = master();
    let loaded = Loaded { epoch: Epoch(1), version: Version(0), records: Vec::new() };
    master.handle(now(), Event::Loaded(Ok(loaded)));
    let mut records = BTreeMap::new();
    for (version, agent) in (1..).zip(0..count) {
        for change in changes_of_registering(&mut master, agent) {
            match change {
                Change::Put(key, bytes) => drop(records.insert(key, bytes)),
                Change::Delete(key) => drop(records.remove(&key)),
            }
        }
        master.handle(now(), Event::Committed(Ok(Version(version))));
    }
    records.into_iter().collect()
}

fn states() {
    println!("\nrender the whole state as JSON, for each agent");
    let mut first = None;
    for count in [1000, 10_000] {
        let mut master = leading(count);
        let request = http::Request::get("/overlay-master/state").body(bytes::Bytes::new());
        let (question, format) = route_master(&request.expect("a request")).expect("a question");
        assert_eq!(question, Request::State);
        master.handle(now(), Event::Request(RequestId(1), question));
        let Some(Command::Reply { reply, .. }) = master.poll_command() else {
            panic!("the master replies")
        };
        assert!(matches!(&reply, Reply::State(state) if state.agents.len() == count as usize));
        let mut length = 0;
        let time = best(|| length = black_box(render_master(&reply, &format)).body().len());
        let name = format!("{count} agents, {} kB in {time:.1?}", length / 1000);
        show(&name, time / count, &mut first);
    }
}

/// A master with so many agents, all of them stored.
fn leading(count: u32) -> Master {
    let mut master = master();
    let loaded = Loaded { epoch: Epoch(1), version: Version(0), records: Vec::new() };
    master.handle(now(), Event::Loaded(Ok(loaded)));
    for agent in 0..count {
        assert!(register(&mut master, agent) > 1, "it is new, and so is its history");
        master.handle(now(), Event::Committed(Ok(Version(u64::from(agent) + 1))));
    }
    master
}

/// A master that waits for its state.
fn master() -> Master {
    let (config, _) = parse_master("network.json", NETWORK).expect("it is a network");
    let settings = Settings { network: Arc::new(config.network), reuse_after: Duration::ZERO };
    let mut master = Master::new(settings, 1);
    assert_eq!(master.poll_command(), Some(Command::Load));
    master
}

fn agent(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(172, 16, 0, 1).to_bits() + number)
}

/// Registers an agent and does what the runtime would. Returns how many records were written.
fn register(master: &mut Master, number: u32) -> usize {
    changes_of_registering(master, number).len()
}

fn changes_of_registering(master: &mut Master, number: u32) -> Vec<Change> {
    let from = Upid::agent(SocketAddrV4::new(agent(number), 5051));
    let message = Message::RegisterAgent(AgentOptions::default());
    master.handle(now(), Event::Message { from, message });
    let mut written = Vec::new();
    while let Some(command) = master.poll_command() {
        if let Command::Commit { changes, .. } = black_box(command) {
            written.extend(changes);
        }
    }
    written
}

const fn now() -> Now {
    Now { elapsed: Duration::ZERO, unix: 1_700_000_000 }
}

#[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
fn best(mut measured: impl FnMut()) -> Duration {
    let run = |_| {
        let start = Instant::now();
        measured();
        start.elapsed()
    };
    (0..RUNS).map(run).min().unwrap_or_default()
}

fn show(name: &str, time: Duration, first: &mut Option<Duration>) {
    let first = *first.get_or_insert(time);
    let ratio = time.as_secs_f64() / first.as_secs_f64();
    println!("  {name:<40} {:>9} {ratio:>6.2}", format!("{time:.2?}"));
}
