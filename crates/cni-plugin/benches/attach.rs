//! ADD and DEL of the plugin beside those of bridge and host-local, in alternating runs: one
//! container alone, and many at the same time. The benchmark prints the times and their ratios. It
//! fails only on a wrong result, never on a missed limit.
//!
//! `cargo bench -p overlay-cni-plugin`. Needs root and the plugins of the CNI project.

#![expect(clippy::print_stdout, clippy::disallowed_methods, reason = "a benchmark prints times")]

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Most of the time of bridge and host-local.
const LIMIT: f64 = 0.5;
/// Number of containers that are attached one after another, and of those at the same time.
const ALONE: usize = 60;
const AT_ONCE: usize = 100;
/// Number of measurements with many containers at the same time.
const ROUNDS: usize = 5;
const PLUGINS: &str = "/usr/lib/cni";
const COMMANDS: [&str; 2] = ["ADD", "DEL"];

/// A plugin with a network of its own.
struct Plugin {
    program: PathBuf,
    config: Value,
}

impl Plugin {
    fn all(leases: &Path) -> [Self; 2] {
        let config = |name: &str, kind: &str, ipam: &str, subnet: &str| {
            json!({
                "name": name, "type": kind, "bridge": format!("m-{name}"), "isGateway": true,
                "ipMasq": false, "hairpinMode": true, "mtu": 1420,
                "ipam": {"type": ipam, "dataDir": leases, "subnet": subnet,
                    "routes": [{"dst": "0.0.0.0/0"}]},
            })
        };
        let own = "mesos-overlay-cni";
        [
            Self {
                program: env!("CARGO_BIN_EXE_mesos-overlay-cni").into(),
                config: config("vxlan-1", own, own, "192.168.0.0/24"),
            },
            Self {
                program: Path::new(PLUGINS).join("bridge"),
                config: config("vxlan-2", "bridge", "host-local", "192.168.1.0/24"),
            },
        ]
    }

    fn start(&self, host: &Namespace, command: &str, container: &Namespace) -> Child {
        let mut program = Command::new("nsenter");
        program.arg(format!("--net={}", host.path())).arg(&self.program);
        program
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", &container.0)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", PLUGINS)
            .env("CNI_NETNS", container.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = program.spawn().expect("the plugin starts");
        let mut input = child.stdin.take().expect("a pipe");
        input.write_all(self.config.to_string().as_bytes()).expect("the plugin reads");
        child
    }

    /// Runs a command for all containers at the same time. Returns the time until the last ends.
    fn run(&self, host: &Namespace, command: &str, containers: &[Namespace]) -> Duration {
        let start = Instant::now();
        let children: Vec<Child> =
            containers.iter().map(|container| self.start(host, command, container)).collect();
        let outputs: Vec<_> = children
            .into_iter()
            .map(|child| child.wait_with_output().expect("the plugin ends"))
            .collect();
        let elapsed = start.elapsed();
        let mut addresses = BTreeSet::new();
        for output in outputs {
            assert!(output.status.success(), "{command}: {output:?}");
            let result = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
            addresses.extend(result["ip4"]["ip"].as_str().map(str::to_owned));
        }
        assert_eq!(addresses.len(), if command == "ADD" { containers.len() } else { 0 });
        elapsed
    }
}

/// A network namespace, which ends with the value.
struct Namespace(String);

impl Namespace {
    fn new(name: String) -> Self {
        let name = format!("mesos-overlay-bench-{}-{name}", std::process::id());
        ip(&["netns", "add", &name]);
        Self(name)
    }

    fn path(&self) -> String {
        format!("/run/netns/{}", self.0)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        ip(&["netns", "del", &self.0]);
    }
}

fn ip(arguments: &[&str]) {
    let status = Command::new("ip").args(arguments).status().expect("ip starts");
    assert!(status.success(), "ip {arguments:?}");
}

/// Measures both plugins alternately. Returns the times of each command of each plugin.
fn measure(rounds: usize, containers: usize) -> [[Vec<Duration>; 2]; 2] {
    let leases = tempfile::tempdir().expect("a directory");
    let host = Namespace::new("host".to_owned());
    let plugins = Plugin::all(leases.path());
    let mut times: [[Vec<Duration>; 2]; 2] = Default::default();
    // The first run makes the bridges.
    for round in 0..=rounds {
        for (plugin, times) in plugins.iter().zip(&mut times) {
            let name = |number| Namespace::new(format!("{round}-{number}"));
            let containers: Vec<Namespace> = (0..containers).map(name).collect();
            for (command, times) in COMMANDS.iter().zip(times) {
                let elapsed = plugin.run(&host, command, &containers);
                if round > 0 {
                    times.push(elapsed);
                }
            }
        }
    }
    times
}

fn median(times: &mut [Duration]) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1000.0
}

fn main() -> ExitCode {
    // `cargo test --all-targets` runs benchmarks without this argument: they then do nothing.
    if !std::env::args().any(|argument| argument == "--bench") {
        return ExitCode::SUCCESS;
    }
    if !rustix::process::geteuid().is_root() {
        println!("attach: skipped: network namespaces need root");
        return ExitCode::SUCCESS;
    }
    for (rounds, containers) in [(ALONE, 1), (ROUNDS, AT_ONCE)] {
        let [own, former] = &mut measure(rounds, containers);
        for ((command, own), former) in COMMANDS.iter().zip(own).zip(former) {
            let (own, former) = (median(own), median(former));
            let ratio = own / former;
            let verdict = if ratio <= LIMIT { "kept" } else { "MISSED" };
            println!(
                "{command} of {containers} at once: mesos-overlay-cni {own:.1} ms, bridge with \
                 host-local {former:.1} ms, ratio {ratio:.2} (limit {LIMIT}: {verdict})"
            );
        }
    }
    ExitCode::SUCCESS
}
