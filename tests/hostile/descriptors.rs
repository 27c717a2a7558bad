//! An agent with a low limit of file descriptors keeps repairing under many connections.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::time::{sleep, timeout};

use crate::master_process::free_address;
use crate::victim::{TIMEOUT, Victim, attacker, connect};

/// Limit of file descriptors of the agent.
const DESCRIPTORS: &str = "128";

/// An agent process. Dropping this value kills the process.
struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        // Both calls fail only if the process has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn wait_for_file(path: &Path) {
    let wait = async {
        while !path.exists() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(TIMEOUT, wait).await.unwrap_or_else(|_| panic!("no {}", path.display()));
}

#[tokio::test]
#[ignore = "attack, runs alone: tests/run hostile"]
async fn agent_with_few_descriptors_repairs_under_load() {
    let victim = Victim::start(1).await;
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (cni_dir, config) = (dir.path().join("cni"), dir.path().join("agent.json"));
    let text = format!(
        r#"{{"master":"{}","cni_dir":"{}","cni_data_dir":"{1}/leases","state_dir":"{}/state",
            "dataplane":"external","refuse_collisions":false,"verify_interval":"1s",
            "network_config":{{"docker_bridge":false}}}}"#,
        victim.address(),
        cni_dir.display(),
        dir.path().display()
    );
    fs::write(&config, text).unwrap();
    let listen = free_address();
    let log = fs::File::create(dir.path().join("agent.log")).unwrap();
    let agent = Command::new("sh")
        .args(["-c", "ulimit -n \"$1\" && shift && exec \"$@\"", "sh", DESCRIPTORS])
        .arg(env!("CARGO_BIN_EXE_mesos-overlay"))
        .args(["agent", "--listen", &listen.to_string(), "--config"])
        .arg(&config)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap();
    let _agent = Agent(agent);
    let file = cni_dir.join("vxlan-1.conf");
    wait_for_file(&file).await;
    let mut held = Vec::new();
    for index in 0..1100 {
        held.extend(connect(attacker(index % 50), listen).await);
    }
    for _ in 0..3 {
        fs::remove_file(&file).unwrap();
        wait_for_file(&file).await;
    }
    let log = fs::read_to_string(dir.path().join("agent.log")).unwrap();
    assert!(log.contains("limits.connections is "), "{log}");
    assert!(!log.contains("Too many open files"), "{log}");
}
