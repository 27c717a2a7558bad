//! `ipam` with fake agents and with leases in a directory of the test. The addresses of containers
//! come from the real kernel: tests/host/cluster/ipam.rs has containers.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::support::{FakeMaster, Outcome, TestDir, http_response};

const RECORDED_STATE: &str = include_str!("../golden/overlay-master-state.json");

/// A host with an agent and a directory of leases.
struct Host {
    dir: TestDir,
    agent: FakeMaster,
}

impl Host {
    fn new() -> Self {
        let dir = TestDir::new();
        let state: Value = serde_json::from_str(RECORDED_STATE).unwrap();
        let response = http_response("200 OK", &state["agents"][0].to_string());
        let agent = FakeMaster::start(vec![("/overlay-agent/overlay", response)]);
        let (cni, leases) = (dir.path("cni"), dir.path("leases"));
        fs::create_dir_all(leases.join("vxlan-1")).unwrap();
        dir.write("agent.json", json!({ "cni_dir": cni, "cni_data_dir": leases }).to_string());
        Self { dir, agent }
    }

    /// Writes a lease that is so many seconds old.
    fn lease(&self, address: &str, content: &str, age: u64) {
        let path = self.dir.path("leases/vxlan-1").join(address);
        fs::write(&path, content).unwrap();
        let file = File::options().write(true).open(path).unwrap();
        file.set_modified(now() - Duration::from_secs(age)).unwrap();
    }

    fn run(&self, arguments: &str) -> Outcome {
        let agent = &self.agent.address;
        self.dir.run(&format!("ipam {arguments} --config agent.json --no-docker --agent {agent}"))
    }

    /// Returns the JSON of a run, whatever its exit code: the kernel shows containers to root only.
    fn json(&self, arguments: &str) -> Value {
        serde_json::from_str(&self.run(&format!("{arguments} -o json")).stdout).unwrap()
    }
}

#[expect(clippy::disallowed_methods, reason = "leases have an age")]
fn now() -> SystemTime {
    SystemTime::now()
}

#[test]
fn show_lists_leases_and_counts_free_addresses() {
    let host = Host::new();
    host.lease("192.168.0.3", "0a1b2c3d-1111-2222-3333-444455556666\r\neth0", 60);
    host.lease("192.168.0.126", "mesos-overlay-probe\r\nmo-probe", 60);
    host.lease("last_reserved_ip.0", "192.168.0.3", 60);
    let shown = host.json("show");
    assert_eq!(shown["agent"], "127.0.0.1");
    let expected = json!([
        { "address": "192.168.0.3", "overlay": "vxlan-1", "half": "mesos",
          "container": "0a1b2c3d-1111-2222-3333-444455556666", "name": null, "interface": "eth0",
          "port": null, "sources": ["lease"] },
        { "address": "192.168.0.126", "overlay": "vxlan-1", "half": "mesos", "container": null,
          "name": null, "interface": null, "port": null, "sources": ["probe"] },
    ]);
    assert_eq!(shown["addresses"], expected);
    assert_eq!(
        shown["halves"][0],
        json!({ "overlay": "vxlan-1", "half": "mesos", "subnet": "192.168.0.0/25", "used": 2,
                "free": 123 })
    );
    let table = host.run("show").stdout;
    let expected = "\
ADDRESS        OVERLAY  HALF   CONTAINER     INTERFACE  SOURCE
192.168.0.3    vxlan-1  mesos  0a1b2c3d-111  eth0       lease
192.168.0.126  vxlan-1  mesos  -             -          probe

vxlan-1 mesos 192.168.0.0/25: 2 used, 123 free
vxlan-1 docker 192.168.0.128/25: 0 used, 125 free
";
    assert!(table.starts_with(expected), "{table}");
    let wide = host.run("show -o wide").stdout;
    assert!(wide.contains("0a1b2c3d-1111-2222-3333-444455556666"), "{wide}");
}

#[test]
fn hostile_lease_directory_is_shown_safely() {
    let host = Host::new();
    let path = host.dir.path("leases/vxlan-1");
    host.dir.write("secret", "secret-content\r\neth0");
    symlink(host.dir.path("secret"), path.join("192.168.0.4")).unwrap();
    host.lease("192.168.0.5", &"x".repeat(1 << 20), 1000);
    host.lease("192.168.0.6", "\u{1b}[31m\u{7}\r\n\u{202e}", 1000);
    host.lease("notes\u{1b}[31m\n", "", 1000);
    for number in 0..3000 {
        host.lease(&format!("file-{number}"), "", 1000);
    }
    for arguments in ["show", "show -o json", "check", "check -o json", "check --fix"] {
        let outcome = host.run(arguments);
        let text = outcome.transcript();
        assert!(!text.contains("secret-content") && !text.contains('\u{1b}'), "{text}");
        assert!(!text.contains('\u{202e}') && text.len() < 10_000, "{text}");
    }
    let shown = host.run("check").stdout;
    for line in [
        "conflict: overlay vxlan-1: the file 192.168.0.4 is no lease of host-local: it is a \
         symbolic link: find out who wrote it, and remove it: no container gets its address\n",
        "conflict: overlay vxlan-1: the file 192.168.0.5 is no lease of host-local: it has more \
         than 4096 bytes: find out who wrote it, and remove it: no container gets its address\n",
    ] {
        assert!(shown.contains(line), "{shown}");
    }
    for name in ["192.168.0.4", "192.168.0.5", "file-0"] {
        assert!(path.join(name).symlink_metadata().is_ok(), "{name}");
    }
}

#[test]
fn old_lease_is_a_leak_and_young_lease_is_none() {
    let host = Host::new();
    host.lease("192.168.0.3", "gone\r\neth0", 301);
    host.lease("192.168.0.4", "new\r\neth0", 10);
    let found = |kind: &str| {
        let report = host.json("check");
        let all = report["problems"].as_array().cloned().unwrap_or_default();
        all.into_iter()
            .chain(report["unknown"].as_array().cloned().unwrap_or_default())
            .filter(|problem| problem["kind"] == kind)
            .map(|problem| problem["address"].as_str().unwrap_or_default().to_owned())
            .collect::<Vec<_>>()
    };
    // A user other than root cannot see whether a container has the address.
    let is_certain = rustix::process::geteuid().is_root();
    let leaked = found(if is_certain { "leak" } else { "unknown" });
    assert!(leaked.is_empty() || leaked == ["192.168.0.3"], "{leaked:?}");
    assert!(!is_certain || leaked == ["192.168.0.3"], "{leaked:?}");
    // The plugin has the lock.
    let lock = File::create(host.dir.path("leases/vxlan-1/lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let path = host.dir.path("leases/vxlan-1/192.168.0.3");
    let shown = host.run("check --fix");
    assert!(path.exists() && shown.code == Some(1), "{shown:?}");
    drop(lock);
    let shown = host.run("check --fix").stdout;
    assert_eq!(path.exists(), !is_certain, "{shown}");
    let line = "fixed: overlay vxlan-1: 192.168.0.3 is leased to container gone (eth0), which is \
                gone: removed the lease\n";
    assert_eq!(shown.contains(line), is_certain, "{shown}");
    assert!(host.dir.path("leases/vxlan-1/192.168.0.4").exists());
}

#[test]
fn agent_that_does_not_answer_is_a_problem() {
    let dir = TestDir::new();
    let outcome = dir.run("ipam check --no-docker --agent 127.0.0.1:1");
    let stdout = &outcome.stdout;
    let line = "unreadable: agent 127.0.0.1:1: ";
    assert!(stdout.starts_with(line), "{stdout}");
    assert!(stdout.contains(": start the agent, or name its address with --agent\n"), "{stdout}");
    let stderr = outcome.failure();
    assert!(stderr.starts_with("mesos-overlay: ipam check: "), "{stderr}");
}
