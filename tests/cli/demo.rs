//! `demo`: assigns addresses to agents and removes everything that it created. Simulated hosts and
//! containers need privileges that not every machine grants: `tests/host/demo.rs` tests them.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;

use crate::support::{NETWORK, RunningProcess, TIMEOUT, TestDir};

/// Returns an environment with `tmp` as temporary directory, and with a `docker` program that
/// creates a marker file when it is called.
fn environment(dir: &TestDir) -> [(&'static str, String); 2] {
    for folder in ["tmp", "bin"] {
        std::fs::create_dir_all(dir.path(folder)).unwrap();
    }
    let docker = dir.path("bin/docker");
    let marker = dir.path("docker-was-called");
    dir.write("bin/docker", format!("#!/bin/sh\n: >'{}'\n", marker.display()));
    std::fs::set_permissions(docker, std::fs::Permissions::from_mode(0o755)).unwrap();
    [
        ("TMPDIR", dir.path("tmp").display().to_string()),
        ("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", dir.path("bin").display())),
    ]
}

fn run(dir: &TestDir, arguments: &str) -> crate::support::Outcome {
    let environment = environment(dir);
    let environment: Vec<_> = environment.iter().map(|(name, value)| (*name, &**value)).collect();
    let outcome = dir.run_with(arguments, &environment, "");
    assert_no_leftovers(dir);
    outcome
}

fn assert_no_leftovers(dir: &TestDir) {
    let leftovers: Vec<_> = std::fs::read_dir(dir.path("tmp")).unwrap().collect();
    assert!(leftovers.is_empty(), "not removed: {leftovers:?}");
    assert!(!dir.path("docker-was-called").exists(), "the demo called Docker on this machine");
}

#[test]
fn demo_on_loopback_prints_assignments() {
    let dir = TestDir::new();
    let outcome = run(&dir, "demo --loopback");
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    for agent in ["127.0.0.2", "127.0.0.3", "127.0.0.4"] {
        let mut lines = outcome.stdout.lines().skip_while(|line| !line.starts_with(agent));
        let (first, second) = (lines.next().unwrap(), lines.next().unwrap());
        assert!(first.contains("  198.18.") && first.ends_with("  ok"), "{first}");
        assert!(second.starts_with("   ") && second.contains("  198.18."), "{second}");
        let wrote =
            format!("agent {agent} wrote the CNI configurations vxlan-1.conf, vxlan-2.conf");
        assert!(outcome.stdout.contains(&wrote), "{}", outcome.stdout);
        assert!(outcome.stderr.contains(&format!("  agent {agent} registered: ")));
    }
    let reason = "\nOn loopback addresses, without hosts and containers: --loopback\n";
    assert!(outcome.stdout.contains(reason), "{}", outcome.stdout);
    for line in outcome.stdout.lines().filter(|line| !line.contains("PATH=")) {
        assert!(line.chars().count() <= 80, "{line}");
    }
}

#[test]
fn commands_that_demo_suggests_work_as_pasted() {
    let dir = TestDir::new();
    let output = run(&dir, "demo --loopback --agents 1").stdout;
    let (_, hints) = output.split_once("an agent that changes nothing here:\n").unwrap();
    let (commands, stop) = hints.split_once("\nTo stop them: 'kill %1 %2'.").unwrap();
    assert!(stop.contains("see\n'mesos-overlay agent --help'"), "{stop}");
    // Another process may use the ports.
    let mut commands = commands.to_owned();
    let ports = [":15050", ":15051"].map(|port| (port, TcpListener::bind("127.0.0.1:0").unwrap()));
    for (port, listener) in &ports {
        assert!(commands.contains(port), "{commands}");
        commands = commands.replace(port, &format!(":{}", listener.local_addr().unwrap().port()));
    }
    drop(ports);
    let script = format!("set -ex\n{commands}\nmesos-overlay agent --help\nkill %1 %2\nwait");
    let mut bash = assert_cmd::Command::new("bash");
    bash.current_dir(dir.path(".")).env("PATH", "/usr/bin:/bin").timeout(TIMEOUT);
    let result = bash.write_stdin(script).output().unwrap();
    let (shown, errors) = (result.stdout, String::from_utf8_lossy(&result.stderr).into_owned());
    let shown = String::from_utf8_lossy(&shown);
    assert!(result.status.success(), "{shown}{errors}");
    assert!(shown.contains("master 127.0.0.1:") && shown.contains(": ok (epoch 1, "), "{shown}");
    assert!(shown.contains("\n1 agent: 1 ok, 0 failed, 0 unreported\n"), "{shown}");
    assert!(shown.contains("\nUsage: mesos-overlay agent "), "{shown}");
    assert!(!dir.path("docker-was-called").exists(), "the agent called Docker");
}

#[test]
fn demo_json_contains_state_and_cni_configs() {
    let dir = TestDir::new();
    let report = run(&dir, "demo --loopback --agents 5 --json").json();
    assert_eq!(report["state"]["agents"].as_array().unwrap().len(), 5);
    assert_eq!(report["state"]["network"]["vtep_subnet"], "198.19.0.0/16");
    let configuration = report["cni"]["127.0.0.6"]["vxlan-2.conf"].as_str().unwrap();
    assert!(configuration.starts_with(r#"{"name":"vxlan-2","type":"mesos-cni-port-mapper","#));
    assert_eq!(report["loopback"], "--loopback");
    let empty = serde_json::json!([]);
    assert_eq!((&report["containers"], &report["pings"]), (&empty, &empty));
}

/// The machine decides whether the demo can create hosts. Every overlay must be ok in both cases.
#[test]
fn demo_creates_hosts_or_names_missing_privilege() {
    let dir = TestDir::new();
    let report = run(&dir, "demo --json").json();
    let agents = report["state"]["agents"].as_array().unwrap();
    assert_eq!(agents.len(), 3);
    for overlay in agents.iter().flat_map(|agent| agent["overlays"].as_array().unwrap()) {
        assert_eq!(overlay["state"]["status"], "STATUS_OK", "{overlay}");
    }
    let pings = report["pings"].as_array().unwrap();
    match report["loopback"].as_str() {
        None => {
            assert_eq!(
                pings.len(),
                6 * 5 * 2,
                "each of six containers pings the others with two sizes"
            );
            assert!(pings.iter().all(|ping| ping["microseconds"].is_u64()), "{pings:?}");
        }
        Some(reason) => {
            assert!(reason.contains("run it as root") || reason.contains("load "), "{reason}");
            assert!(pings.is_empty());
        }
    }
}

#[test]
fn demo_interrupted_early_removes_everything() {
    let dir = TestDir::new();
    let variables = environment(&dir);
    let mut process =
        RunningProcess::start_with_env(&dir, "demo --loopback --agents 128", &variables);
    process.expect_log("master at ");
    let (status, log) = process.terminate();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(
        log.ends_with("mesos-overlay: stopped by a signal before the demo was complete\n"),
        "{log}"
    );
    assert_no_leftovers(&dir);
}

#[test]
fn demo_with_more_agents_than_network_is_refused() {
    let error = TestDir::new().run("demo --agents 129").usage_error();
    assert!(error.contains("129 is not in 1..=128"), "{error}");
}

#[test]
fn docs_show_network_of_demo() {
    let quickstart = include_str!("../../docs/quickstart.md");
    let network = include_str!("../../docs/network.json");
    let indented: String = network.lines().map(|line| format!("    {line}\n")).collect();
    assert!(quickstart.contains(&indented), "docs/quickstart.md shows another network file");
    let configuration = include_str!("../../docs/configuration.md");
    assert!(configuration.contains(&indented), "docs/configuration.md shows another network file");
    let cpp_example: String = NETWORK.lines().map(|line| format!("    {line}\n")).collect();
    assert!(configuration.contains(&cpp_example), "docs/configuration.md has no C++ example");
}
