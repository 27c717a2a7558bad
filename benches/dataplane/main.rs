//! Compares the dataplane with manual configuration: the time to program thousands of peers,
//! relative to `ip -batch` and `bridge -batch` with the same objects, and the throughput of its
//! tunnel. Then compares the overlay with that of Docker Swarm, if its programs are installed, and
//! with the bare hosts. All measurements run in separate network namespaces, which need root. Without
//! root the benchmark prints that it is skipped.

#![expect(clippy::print_stdout, reason = "a benchmark prints")]

#[expect(dead_code, reason = "the tests use more")]
#[path = "../../tests/host/docker_daemon.rs"]
mod docker_daemon;
mod measures;
#[expect(dead_code, reason = "the tests use more")]
#[path = "../../tests/host/namespace.rs"]
mod namespace;
mod pair;
mod paths;
mod swarm;
#[expect(dead_code, reason = "the tests use more")]
#[path = "../../tests/host/traffic.rs"]
mod traffic;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4, TcpStream};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use overlay_linux::dataplane::{Dataplane, Report};
use overlay_linux::firewall::{Backend, Firewall, Options, Ruleset};
use overlay_types::addr::{DeviceName, InterfaceAddress, Mac, OverlayName, Subnet, Vni};
use overlay_types::tunnel::{
    Desired, OverlayBridge, OverlaySubnets, PORT_DEFAULT, Peer, VxlanDevice,
};

use namespace::Namespace;
use pair::Pair;

/// The MTU of the containers, which is that of the tunnels.
const MTU: u32 = 1450;
/// Number of peers of the measured host.
const PEERS: u32 = 5_000;
/// Number of runs of each measurement. The fastest run counts, since disturbances only add time.
const RUNS: usize = 3;
/// Limits: the time relative to `ip` and `bridge`, the CPU time of a verification without changes,
/// and the least throughput relative to the manual tunnel.
const PROGRAM_LIMIT: f64 = 0.6;
const VERIFY_LIMIT: Duration = Duration::from_millis(150);
const THROUGHPUT_LIMIT: f64 = 0.95;
/// Number of times that all tunnels are created again, since the cache layout of a stream varies.
const SETS: usize = 5;
/// Number of turns in which data is sent through each tunnel of a set.
const TURNS: usize = 20;
/// Number of pairs of the comparison with and without the closing rules, the number and duration
/// of the turns of each, and the least median ratio.
const CLOSED_PAIRS: usize = 20;
const CLOSED_TURNS: u32 = 10;
const CLOSED_TURN: Duration = Duration::from_millis(50);
const CLOSED_LIMIT: f64 = 0.97;
/// Numbers of peers of the comparison of rule changes.
const RULE_PEERS: [u32; 2] = [10, 10_000];
/// Duration of a turn: long enough to make buffers of a few milliseconds irrelevant.
const TURN: Duration = Duration::from_millis(100);

fn main() -> ExitCode {
    // `cargo test --all-targets` runs benchmarks without this argument: they then do nothing.
    if !std::env::args().any(|argument| argument == "--bench") {
        return ExitCode::SUCCESS;
    }
    if !rustix::process::geteuid().is_root() {
        println!("dataplane: skipped: network namespaces need root");
        return ExitCode::SUCCESS;
    }
    measure_programming();
    measure_rule_changes();
    measure_throughput();
    measure_closing_rules();
    paths::measure_paths();
    ExitCode::SUCCESS
}

fn overlay() -> OverlayName {
    "vxlan-1".parse().expect("a valid name")
}

fn vtep(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(44, 128, 0, 0)) + number)
}

fn agent(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 0, 0)) + number)
}

fn mac(number: u32) -> Mac {
    Mac::for_vtep("70:B3:D5:00:00:00".parse().expect("a valid OUI"), vtep(number))
}

fn vtep6(number: u32) -> Ipv6Addr {
    Ipv6Addr::from((0xfd01_000a_u128 << 96) + u128::from(number))
}

fn subnets(number: u32) -> [Subnet; 2] {
    let space: Subnet = "9.0.0.0/8".parse().expect("a valid subnet");
    let space6: Subnet = "fd01:b::/64".parse().expect("a valid subnet");
    let nth = |space: Subnet, prefix| space.nth(prefix, number.into()).expect("a large space");
    [nth(space, 24), nth(space6, 80)]
}

fn peer(number: u32) -> Peer {
    Peer {
        ip: Some(vtep(number)),
        ip6: Some(vtep6(number)),
        mac: mac(number),
        subnets: subnets(number).map(|subnet| (overlay(), subnet)).to_vec(),
        direct: None,
    }
}

/// Returns the desired state of host number `own` with all peers up to number `last`.
fn desired(own: u32, last: u32) -> Arc<Desired> {
    let address = |text: String| text.parse::<InterfaceAddress>().expect("a valid address");
    let device = DeviceName::vtep(Vni::DEFAULT);
    let local = VxlanDevice {
        device: device.clone(),
        vni: Vni::DEFAULT,
        port: PORT_DEFAULT,
        mac: mac(own),
        underlay: agent(own).into(),
        mtu: None,
        containers_mtu: None,
        ip: Some(address(format!("{}/16", vtep(own)))),
        ip6: Some(address(format!("{}/64", vtep6(own)))),
    };
    let subnets_of_overlay =
        ["9.0.0.0/8", "fd01:b::/64"].map(|text| text.parse().expect("a valid subnet"));
    let space = OverlaySubnets {
        overlay: overlay(),
        device,
        whole: subnets_of_overlay.to_vec(),
        own: subnets(own).to_vec(),
        bridges: vec![OverlayBridge {
            device: "m-vxlan-1".parse().expect("a valid device name"),
            subnets: subnets(own).to_vec(),
            gateways: vec![address(format!(
                "{}/25",
                subnets(own)[0].address_at(1).expect("an address")
            ))],
        }],
    };
    let others = || (1..=last).filter(|number| *number != own);
    let peers = others().map(|number| (IpAddr::from(agent(number)), peer(number))).collect();
    Arc::new(Desired {
        vxlan_devices: vec![local],
        spaces: vec![space],
        peers: Some(peers),
        agents: others().map(agent).collect(),
        masters: BTreeSet::from([SocketAddrV4::new(agent(2), 5050)]),
        ..Desired::default()
    })
}

/// Returns the shortest time of several runs.
fn best_time(measure: impl FnMut() -> Duration) -> Duration {
    std::iter::repeat_with(measure).take(RUNS).min().unwrap_or_default()
}

#[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
fn now() -> Instant {
    Instant::now()
}

/// Returns the CPU time of this thread, including kernel time.
fn thread_cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("every thread has a CPU clock").into()
}

/// Checks that a report has no failures. Returns the number of operations.
fn operation_count(report: Report) -> usize {
    assert!(report.is_complete(), "{:?}", report.failures.first());
    report.done.len()
}

fn host_namespace() -> Namespace {
    let namespace = Namespace::new();
    namespace.enable_ipv6();
    namespace.run("ip link add eth0 type bridge");
    namespace.run("ip link set eth0 up");
    namespace.run("ip addr add 10.0.0.1/8 dev eth0");
    namespace
}

/// Creates with `ip` the VXLAN device that the dataplane would create.
fn create_device_manually(namespace: &Namespace, number: u32) {
    namespace.run(&format!(
        "ip link add vtep1024 address {} mtu 1450 type vxlan id 1024 dstport 64000 local {} \
         nolearning noudpcsum",
        mac(number),
        agent(number)
    ));
    namespace.run("ip link set vtep1024 up");
    namespace.run(&format!("ip addr add {}/16 dev vtep1024", vtep(number)));
    namespace.run(&format!("ip addr add {}/64 dev vtep1024 nodad", vtep6(number)));
}

/// Returns the time that `ip` and `bridge` take to create the objects of all peers.
fn time_of_manual_setup(folder: &Path) -> Duration {
    let (mut ip, mut bridge) = (String::new(), String::new());
    for number in 2..=PEERS + 1 {
        let (mac, vtep, vtep6) = (mac(number), vtep(number), vtep6(number));
        let [subnet, subnet6] = subnets(number);
        let _ = writeln!(
            ip,
            "neigh replace {vtep} lladdr {mac} dev vtep1024 nud permanent\n\
             neigh replace {vtep6} lladdr {mac} dev vtep1024 nud permanent\n\
             route add {subnet} via {vtep} dev vtep1024 onlink proto 109\n\
             route add {subnet6} via {vtep6} dev vtep1024 onlink proto 109"
        );
        let to = agent(number);
        let _ = writeln!(bridge, "fdb replace {mac} dev vtep1024 dst {to} self permanent");
    }
    let (ip_file, bridge_file) = (folder.join("ip"), folder.join("bridge"));
    std::fs::write(&ip_file, ip).expect("the file is written");
    std::fs::write(&bridge_file, bridge).expect("the file is written");
    let namespace = host_namespace();
    let start = now();
    create_device_manually(&namespace, 1);
    namespace.run(&format!("ip -batch {}", ip_file.display()));
    namespace.run(&format!("bridge -batch {}", bridge_file.display()));
    start.elapsed()
}

fn measure_programming() {
    println!("dataplane: {PEERS} peers, 5 objects each; best of {RUNS} runs");
    let folder = tempfile::tempdir().expect("a temporary directory");
    let manual = best_time(|| time_of_manual_setup(folder.path()));
    let desired_state = desired(1, PEERS + 1);
    let with_another_peer = desired(1, PEERS + 2);
    let mut verify = Duration::MAX;
    let mut change = (Duration::MAX, 0);
    let automatic = best_time(|| {
        let namespace = host_namespace();
        namespace.inside(|| {
            let mut dataplane = Dataplane::open().expect("netlink is available");
            let start = now();
            operation_count(dataplane.verify(&desired_state).expect("the state is readable"));
            let elapsed = start.elapsed();
            let start = thread_cpu_time();
            assert_eq!(
                operation_count(dataplane.verify(&desired_state).expect("the state is readable")),
                0
            );
            verify = verify.min(thread_cpu_time() - start);
            let start = thread_cpu_time();
            let count = operation_count(
                dataplane.update(&with_another_peer).expect("the state is readable"),
            );
            change = change.min((thread_cpu_time() - start, count));
            elapsed
        })
    });
    println!("  initial setup, ip -batch and bridge -batch  {manual:>10.1?}");
    let ratio = limit(automatic.as_secs_f64() / manual.as_secs_f64(), false, PROGRAM_LIMIT);
    println!("  initial setup, dataplane                    {automatic:>10.1?}  {ratio}");
    let verdict = verdict(verify < VERIFY_LIMIT);
    println!(
        "  verify without changes                     {verify:>10.1?}  of CPU, \
         at most {VERIFY_LIMIT:?}: {verdict}"
    );
    println!("  one more peer, {} operations                {:>10.1?}  of CPU", change.1, change.0);
}

/// Returns the options with all rules.
fn all_rules() -> Options {
    Options { isolate: true, control_ports: BTreeSet::from([5051]), ..Options::default() }
}

/// Compares the time to add and remove one peer in the rules among few and among many peers.
fn measure_rule_changes() {
    println!("\nrules: one peer is added and removed, median of {CLOSED_PAIRS} runs");
    let backend = Backend::detect().expect("a firewall backend");
    let mut times = Vec::new();
    for peers in RULE_PEERS {
        let rules = |last| Ruleset::new(&desired(1, last), &all_rules());
        let (without, with) = (rules(peers + 1), rules(peers + 2));
        let namespace = host_namespace();
        let seconds = namespace.inside(|| {
            let mut firewall = Firewall::new(backend);
            firewall.verify(&without).expect("root may create rules");
            let mut change = || {
                let start = now();
                firewall.update(&with).expect("root may create rules");
                firewall.update(&without).expect("root may create rules");
                start.elapsed().as_secs_f64()
            };
            median(std::iter::repeat_with(&mut change).take(CLOSED_PAIRS).collect())
        });
        println!("  {peers:>6} peers{:>47.1} ms", seconds * 1e3);
        times.push(seconds);
    }
    println!("  ratio {:.2}", times[1] / times[0]);
}

/// Pins the calling thread to a processor, if this processor exists. The placement of sender and
/// receiver by the scheduler would affect the throughput more than the measured differences.
fn pin_to_processor(processor: usize) {
    let mut set = CpuSet::new();
    set.set(processor).expect("a small processor number");
    let _ = sched_setaffinity(Pid::from_raw(0), &set);
}

/// Sends data for `time`. Returns the throughput in Gbit/s.
fn rate(stream: &mut TcpStream, time: Duration) -> f64 {
    let bytes = vec![7; 1 << 18];
    let start = now();
    let mut sent = 0.0;
    while start.elapsed() < time {
        stream.write_all(&bytes).expect("data is sent");
        sent += 8.0 * f64::from(1 << 18);
    }
    sent / start.elapsed().as_secs_f64() / 1e9
}

/// Returns the median.
fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

/// The name of a tunnel, and the function that creates it.
type Tunnel = (&'static str, fn(&Pair));

/// Each tunnel of mesos-overlay follows the equivalent manual tunnel. A masquerade rule makes the
/// kernel track every connection, which costs far more than anything else here.
const TUNNELS: [Tunnel; 4] = [
    ("ip and bridge", Pair::connect_manually),
    ("dataplane", Pair::connect_by_dataplane),
    ("ip, bridge and a masquerade rule", Pair::connect_manually_with_masquerade),
    ("agent with its firewall", Pair::connect_by_agent),
];

/// Measures all tunnels in turns, so that a temporary load of the machine affects all of them.
fn measure_throughput() {
    println!("\nTCP between containers on two hosts, median of {} turns", SETS * TURNS);
    pin_to_processor(0);
    let mut rates = TUNNELS.map(|_| Vec::new());
    let mut order: [usize; TUNNELS.len()] = std::array::from_fn(|index| index);
    for _ in 0..SETS {
        let pairs: [Pair; TUNNELS.len()] = std::array::from_fn(|_| Pair::new(MTU));
        let open_stream = |index: usize| pairs[index].stream(1, TUNNELS[index].1);
        let mut streams: [TcpStream; TUNNELS.len()] = std::array::from_fn(open_stream);
        // The first turn warms up the streams and does not count.
        for turn in 0..=TURNS {
            // The buffers of the previous stream delay the next one, so the order is random.
            fastrand::shuffle(&mut order);
            for index in order {
                let rate = rate(&mut streams[index], TURN);
                if turn > 0 {
                    rates[index].push(rate);
                }
            }
        }
    }
    let rates = rates.map(median);
    let masquerade_ratio = rates[2] / rates[0];
    let notes = [
        String::new(),
        limit(rates[1] / rates[0], true, THROUGHPUT_LIMIT),
        format!("{masquerade_ratio:.2} of ip and bridge: the cost of masquerading"),
        limit(rates[3] / rates[2], true, THROUGHPUT_LIMIT),
    ];
    for (((name, _), rate), note) in TUNNELS.iter().zip(rates).zip(notes) {
        println!("{}", format!("  {name:<42} {rate:>6.2} Gbit/s  {note}").trim_end());
    }
}

/// The rules that are compared on the same tunnel, and the table that has them.
const CLOSING_RULES: [(&str, &str); 2] =
    [("all rules", "mesos_overlay"), ("masquerade and known agents", "open")];

/// Compares the throughput with all rules to that without the rules that close overlays: only
/// masquerade, which needs connection tracking as well, and the check of senders.
///
/// With sender and receiver on one processor, the processing time of both hosts and of both
/// directions limits the rate, so the ratio is precise. On two processors it also depends on the
/// times at which the processors wait for each other.
fn measure_closing_rules() {
    println!(
        "\nTCP with closed overlays, {CLOSED_PAIRS} pairs of {CLOSED_TURNS} turns of \
         {CLOSED_TURN:?}, alternating"
    );
    for (receiver, name) in [(0, "on one processor"), (1, "on two processors")] {
        let samples = closing_rules_samples(receiver);
        let [all, open] =
            [0, 1].map(|index| median(samples.iter().map(|rates| rates[index]).collect()));
        let mut ratios: Vec<_> = samples.iter().map(|[all, open]| all / open).collect();
        ratios.sort_by(f64::total_cmp);
        let [low, middle, high] = [1, 2, 3].map(|part| ratios[part * ratios.len() / 4]);
        let limit = match receiver {
            0 => format!(", at least {CLOSED_LIMIT}: {}", verdict(middle >= CLOSED_LIMIT)),
            _ => String::new(),
        };
        println!(
            "  {name:<18} {:<11} {all:>6.2} Gbit/s, {} {open:.2} Gbit/s\n  \
             {:<18} median ratio {middle:.3} (quartiles {low:.3} and {high:.3}){limit}",
            CLOSING_RULES[0].0, CLOSING_RULES[1].0, ""
        );
    }
}

/// Returns the rate with each of [`CLOSING_RULES`], once for each pair. The rules are exchanged
/// below one stream, since two pairs of hosts with the same rules differ by more than the rules do.
/// A sample consists of many short turns in random order, so that a disturbance affects both samples
/// of a pair.
fn closing_rules_samples(receiver: usize) -> Vec<[f64; 2]> {
    pin_to_processor(0);
    let pair = Pair::new(MTU);
    let mut stream = pair.stream(receiver, Pair::connect_by_agent);
    pair.apply_open_rules();
    let mut order = [0, 1];
    let mut sample = || {
        let mut rates = [0.0; CLOSING_RULES.len()];
        for _ in 0..CLOSED_TURNS {
            fastrand::shuffle(&mut order);
            for index in order {
                pair.wake_table(CLOSING_RULES[index].1);
                // The data that was sent before passes the rules as well.
                rate(&mut stream, CLOSED_TURN / 10);
                rates[index] += rate(&mut stream, CLOSED_TURN) / f64::from(CLOSED_TURNS);
            }
        }
        rates
    };
    // The first sample warms up and does not count.
    sample();
    std::iter::repeat_with(sample).take(CLOSED_PAIRS).collect()
}

/// Formats a ratio to the manual setup with its limit and verdict.
fn limit(ratio: f64, is_lower_bound: bool, limit: f64) -> String {
    let is_kept = if is_lower_bound { ratio >= limit } else { ratio <= limit };
    let (bound, verdict) = (if is_lower_bound { "least" } else { "most" }, verdict(is_kept));
    format!("{ratio:.2} of the manual setup, at {bound} {limit}: {verdict}")
}

fn verdict(is_kept: bool) -> &'static str {
    if is_kept { "kept" } else { "MISSED" }
}
