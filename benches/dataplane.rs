//! The dataplane for thousands of peers, beside `ip -batch` and `bridge -batch` with the same
//! objects, and the throughput of its tunnel beside one that was made by hand. Everything in
//! network namespaces of its own, which needs root; without it nothing is measured, and it says so.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesos_network_overlay::addr::{DeviceName, InterfaceAddress, Mac, OverlayName, Subnet, Vni};
use mesos_network_overlay::dataplane::{Dataplane, Report};
use mesos_network_overlay::firewall::{Backend, Firewall, Options, Ruleset};
use mesos_network_overlay::tunnel::{Desired, Local, PORT_DEFAULT, Peer, Space};
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

/// Peers of the host that is programmed.
const PEERS: u32 = 5_000;
/// How often each measurement is made. The shortest counts: a disturbance only makes it longer.
const RUNS: usize = 3;
/// What is asked of it: at most so many times the time of the programs, at most so much CPU,
/// and at least this part of the throughput.
const PROGRAM_LIMIT: f64 = 1.2;
const VERIFY_LIMIT: Duration = Duration::from_millis(150);
const THROUGHPUT_LIMIT: f64 = 0.95;
/// How often all kinds of tunnels are made anew: each stream has its luck with the caches.
const SETS: usize = 5;
/// How often bytes are sent through each tunnel of a set, by turns.
const TURNS: usize = 20;
/// For how long at a time: the buffers on the way, which hold a few milliseconds, do not matter.
const TURN: Duration = Duration::from_millis(100);

fn main() -> ExitCode {
    // `cargo test --all-targets` runs benchmarks too, without this word.
    if !std::env::args().any(|argument| argument == "--bench") {
        return ExitCode::SUCCESS;
    }
    if !rustix::process::geteuid().is_root() {
        println!("dataplane: not measured: network namespaces need root");
        return ExitCode::SUCCESS;
    }
    program();
    throughput();
    ExitCode::SUCCESS
}

/// A network namespace that is gone at the end.
struct Namespace(String);

impl Namespace {
    fn new(name: &str) -> Self {
        let namespace = Self(format!("mesos-overlay-bench-{}-{name}", std::process::id()));
        run(Command::new("ip").args(["netns", "add", &namespace.0]));
        for line in ["ip link set lo up", "sysctl -qw net.ipv6.conf.all.disable_ipv6=0"] {
            namespace.run(line);
        }
        namespace.run("sysctl -qw net.ipv6.conf.default.disable_ipv6=0");
        namespace
    }

    fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.0)
    }

    fn run(&self, line: &str) {
        let command = format!("--net={}", self.path().display());
        run(Command::new("nsenter").arg(command).arg("--").args(line.split(' ')));
    }

    fn inside<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let enter = || {
                let namespace = std::fs::File::open(self.path()).expect("it is there");
                nix::sched::setns(&namespace, CloneFlags::CLONE_NEWNET).expect("root may enter");
                act()
            };
            let thread = std::thread::Builder::new().spawn_scoped(scope, enter);
            thread.expect("there is room for a thread").join().expect("it does not panic")
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {output:?}");
}

fn overlay() -> OverlayName {
    "vxlan-1".parse().expect("it is a name")
}

fn vtep(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(44, 128, 0, 0)) + number)
}

fn agent(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 0, 0)) + number)
}

fn mac(number: u32) -> Mac {
    Mac::of_vtep("70:B3:D5:00:00:00".parse().expect("it is an OUI"), vtep(number))
}

fn vtep6(number: u32) -> Ipv6Addr {
    Ipv6Addr::from((0xfd01_000a_u128 << 96) + u128::from(number))
}

fn subnets(number: u32) -> [Subnet; 2] {
    let whole: Subnet = "9.0.0.0/8".parse().expect("it is a subnet");
    let whole6: Subnet = "fd01:b::/64".parse().expect("it is a subnet");
    let nth = |whole: Subnet, prefix| whole.nth(prefix, number.into()).expect("there are so many");
    [nth(whole, 24), nth(whole6, 80)]
}

fn peer(number: u32) -> Peer {
    Peer {
        ip: Some(vtep(number)),
        ip6: Some(vtep6(number)),
        mac: mac(number),
        subnets: subnets(number).map(|subnet| (overlay(), subnet)).to_vec(),
    }
}

/// The host with `own` number, with the peers up to `last`.
fn desired(own: u32, last: u32) -> Arc<Desired> {
    let address = |text: String| text.parse::<InterfaceAddress>().expect("it is an address");
    let device = DeviceName::vtep(Vni::DEFAULT);
    let local = Local {
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
    let whole = ["9.0.0.0/8", "fd01:b::/64"].map(|text| text.parse().expect("it is a subnet"));
    let space =
        Space { overlay: overlay(), device, whole: whole.to_vec(), own: subnets(own).to_vec() };
    let peers = (1..=last).filter(|number| *number != own);
    let peers = peers.map(|number| (IpAddr::from(agent(number)), peer(number))).collect();
    Arc::new(Desired {
        locals: vec![local],
        spaces: vec![space],
        peers: Some(peers),
        ..Desired::default()
    })
}

/// The shortest of several times.
fn best(measure: impl FnMut() -> Duration) -> Duration {
    std::iter::repeat_with(measure).take(RUNS).min().unwrap_or_default()
}

#[expect(clippy::disallowed_methods, reason = "it measures")]
fn now() -> Instant {
    Instant::now()
}

/// CPU time of this thread, that of the kernel on its behalf included.
fn cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("every thread has it").into()
}

fn complete(report: Report) -> usize {
    assert!(report.is_complete(), "{:?}", report.failures.first());
    report.done.len()
}

fn host() -> Namespace {
    let namespace = Namespace::new("host");
    namespace.run("ip link add eth0 type bridge");
    namespace.run("ip link set eth0 up");
    namespace.run("ip addr add 10.0.0.1/8 dev eth0");
    namespace
}

/// The device as the dataplane makes it.
fn device_by_hand(namespace: &Namespace, number: u32) {
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

/// The time that the programs take for the same objects.
fn by_hand(folder: &Path) -> Duration {
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
    std::fs::write(&ip_file, ip).expect("there is room");
    std::fs::write(&bridge_file, bridge).expect("there is room");
    let namespace = host();
    let start = now();
    device_by_hand(&namespace, 1);
    namespace.run(&format!("ip -batch {}", ip_file.display()));
    namespace.run(&format!("bridge -batch {}", bridge_file.display()));
    start.elapsed()
}

fn program() {
    println!("dataplane: {PEERS} peers, 5 objects each; the best of {RUNS} runs");
    let folder = tempfile::tempdir().expect("a temporary directory");
    let hand = best(|| by_hand(folder.path()));
    let wanted = desired(1, PEERS + 1);
    let more = desired(1, PEERS + 2);
    let mut verify = Duration::MAX;
    let mut change = (Duration::MAX, 0);
    let ours = best(|| {
        let namespace = host();
        namespace.inside(|| {
            let mut dataplane = Dataplane::open().expect("there is netlink");
            let start = now();
            complete(dataplane.verify(&wanted).expect("the state can be read"));
            let took = start.elapsed();
            let start = cpu();
            assert_eq!(complete(dataplane.verify(&wanted).expect("it can be read")), 0);
            verify = verify.min(cpu() - start);
            let start = cpu();
            let count = complete(dataplane.update(&more).expect("it can be read"));
            change = change.min((cpu() - start, count));
            took
        })
    });
    println!("  from nothing, ip -batch and bridge -batch  {hand:>10.1?}");
    let ratio = limit(ours.as_secs_f64() / hand.as_secs_f64(), false, PROGRAM_LIMIT);
    println!("  from nothing, dataplane                    {ours:>10.1?}  {ratio}");
    let word = word(verify < VERIFY_LIMIT);
    println!(
        "  verify, nothing to do                      {verify:>10.1?}  of CPU, at most {VERIFY_LIMIT:?}: {word}"
    );
    println!("  one peer more, {} operations                {:>10.1?}  of CPU", change.1, change.0);
}

/// Two hosts with a container each.
struct Pair {
    hosts: [Namespace; 2],
    containers: [Namespace; 2],
}

impl Pair {
    fn new(number: usize) -> Self {
        let namespace = |name: &str| Namespace::new(&format!("{number}-{name}"));
        let hosts = ["one", "two"].map(namespace);
        let containers = ["container-one", "container-two"].map(namespace);
        let path = |namespace: &Namespace| namespace.path().display().to_string();
        let other = path(&hosts[1]);
        hosts[0].run(&format!("ip link add eth0 type veth peer name eth0 netns {other}"));
        for (index, host) in hosts.iter().enumerate() {
            let number = index + 1;
            let container = &containers[index];
            host.run("sysctl -qw net.ipv4.ip_forward=1");
            host.run("ip link set eth0 up");
            host.run(&format!("ip addr add 10.0.0.{number}/8 dev eth0"));
            let inside = path(container);
            host.run(&format!("ip link add m-vxlan-1 type veth peer name eth0 netns {inside}"));
            host.run("ip link set m-vxlan-1 up");
            host.run(&format!("ip addr add 9.0.{number}.1/25 dev m-vxlan-1"));
            container.run("ip link set eth0 mtu 1450 up");
            container.run(&format!("ip addr add 9.0.{number}.2/25 dev eth0"));
            container.run(&format!("ip route add default via 9.0.{number}.1"));
        }
        Self { hosts, containers }
    }

    fn by_hand(&self) {
        for (host, (own, other)) in self.hosts.iter().zip([(1, 2), (2, 1)]) {
            device_by_hand(host, own);
            let (mac, vtep) = (mac(other), vtep(other));
            host.run(&format!("ip neigh add {vtep} lladdr {mac} dev vtep1024 nud permanent"));
            host.run(&format!("ip route add 9.0.{other}.0/24 via {vtep} dev vtep1024 onlink"));
            let to = agent(other);
            host.run(&format!("bridge fdb add {mac} dev vtep1024 dst {to} self permanent"));
        }
    }

    /// As somebody does whose containers are to reach the world: with one rule.
    fn by_hand_with_masquerade(&self) {
        for host in &self.hosts {
            for line in [
                "nft add table ip by_hand",
                "nft add chain ip by_hand post { type nat hook postrouting priority 100 ; }",
                "nft add rule ip by_hand post ip saddr 9.0.0.0/8 ip daddr != 9.0.0.0/8 masquerade",
            ] {
                host.run(line);
            }
        }
        self.by_hand();
    }

    /// In the order of the agent: the rules of its firewall first.
    fn by_agent(&self) {
        for (host, own) in self.hosts.iter().zip([1, 2]) {
            let wanted = desired(own, 2);
            host.inside(|| {
                let backend = Backend::detect().expect("there is a firewall");
                let made =
                    Firewall::new(backend).verify(&Ruleset::new(&wanted, Options::default()));
                made.expect("root may make rules");
            });
        }
        self.by_dataplane();
    }

    /// Without a firewall, as by hand.
    fn by_dataplane(&self) {
        for (host, own) in self.hosts.iter().zip([1, 2]) {
            let wanted = desired(own, 2);
            host.inside(|| {
                let mut dataplane = Dataplane::open().expect("there is netlink");
                complete(dataplane.verify(&wanted).expect("the state can be read"));
            });
        }
    }

    /// A stream from the first container to the second, through the tunnel that `connect` makes;
    /// what arrives is thrown away by a thread of its own.
    fn stream(&self, connect: impl FnOnce(&Self)) -> TcpStream {
        connect(self);
        let address = SocketAddr::from(([9, 0, 2, 2], 7007));
        let listen = || TcpListener::bind(address).expect("a free port");
        let listener = self.containers[1].inside(listen);
        let receive = move || {
            stay_on(1);
            let (mut stream, _) = listener.accept().expect("somebody connects");
            let mut buffer = vec![0; 1 << 18];
            while stream.read(&mut buffer).expect("it arrives") > 0 {}
        };
        let receiver = std::thread::Builder::new().spawn(receive);
        receiver.expect("there is room for a thread");
        self.containers[0].inside(|| TcpStream::connect(address).expect("there is a way"))
    }
}

/// Keeps the calling thread on a processor, if there is such a one: where the scheduler puts sender
/// and receiver of a stream matters more than all that is measured here.
fn stay_on(processor: usize) {
    let mut set = CpuSet::new();
    set.set(processor).expect("every machine may have as many");
    let _ = sched_setaffinity(Pid::from_raw(0), &set);
}

/// Gigabits in a second that a stream takes during `time`.
fn rate(stream: &mut TcpStream, time: Duration) -> f64 {
    let bytes = vec![7; 1 << 18];
    let start = now();
    let mut sent = 0.0;
    while start.elapsed() < time {
        stream.write_all(&bytes).expect("it is taken");
        sent += 8.0 * f64::from(1 << 18);
    }
    sent / start.elapsed().as_secs_f64() / 1e9
}

/// The middle one.
fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

/// A tunnel: what it is called, and what makes it.
type Tunnel = (&'static str, fn(&Pair));

/// Each of ours after the one by hand that does the same. A rule that rewrites the sender of any
/// packet has the connection of every packet tracked, which costs far more than all else.
const TUNNELS: [Tunnel; 4] = [
    ("by ip and bridge", Pair::by_hand),
    ("by the dataplane", Pair::by_dataplane),
    ("by ip, bridge and a rule to masquerade", Pair::by_hand_with_masquerade),
    ("by the agent, with its firewall", Pair::by_agent),
];

/// All at the same time, so that what slows the machine down for a while, or how the scheduler
/// places the threads, is the same for all of them.
fn throughput() {
    println!(
        "\ntcp from container to container on another host, the median of {} turns",
        SETS * TURNS
    );
    stay_on(0);
    let mut rates = TUNNELS.map(|_| Vec::new());
    let mut order: [usize; TUNNELS.len()] = std::array::from_fn(|index| index);
    for _ in 0..SETS {
        let pairs: [Pair; TUNNELS.len()] = std::array::from_fn(Pair::new);
        let with = |index: usize| pairs[index].stream(TUNNELS[index].1);
        let mut streams: [TcpStream; TUNNELS.len()] = std::array::from_fn(with);
        // The first turn is that of streams that get into their stride.
        for turn in 0..=TURNS {
            // Whose turn it is waits for what the one before has left in its buffers.
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
    let price = rates[2] / rates[0];
    let notes = [
        String::new(),
        limit(rates[1] / rates[0], true, THROUGHPUT_LIMIT),
        format!("{price:.2} of it: what masquerading costs, whoever does it"),
        limit(rates[3] / rates[2], true, THROUGHPUT_LIMIT),
    ];
    for (((name, _), rate), note) in TUNNELS.iter().zip(rates).zip(notes) {
        println!("{}", format!("  {name:<42} {rate:>6.2} Gbit/s  {note}").trim_end());
    }
}

/// A ratio to what was made by hand, beside its limit.
fn limit(ratio: f64, is_least: bool, limit: f64) -> String {
    let is_kept = if is_least { ratio >= limit } else { ratio <= limit };
    let (what, word) = (if is_least { "least" } else { "most" }, word(is_kept));
    format!("{ratio:.2} of that by hand, at {what} {limit}: {word}")
}

fn word(is_kept: bool) -> &'static str {
    if is_kept { "kept" } else { "MISSED" }
}
