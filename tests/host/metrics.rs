//! The metrics, as the tool of Prometheus checks them.

use std::fs;
use std::time::Duration;

use crate::docker_daemon::{TIMEOUT, sleep_poll_interval};
use crate::namespace::{BUSYBOX, Namespace, require_root_and_files, run};
use crate::process::Process;

const PROMTOOL: &str = "/usr/bin/promtool";
const NETWORK: &str = include_str!("../../docs/network.json");
const MASTER: &str = "127.0.0.1:5050";
const AGENT: &str = "127.0.0.2:5051";

/// Returns the body at `url`, when the process answers.
fn get(host: &Namespace, url: &str) -> String {
    let mut waited = Duration::ZERO;
    loop {
        let output = run(host.command(BUSYBOX).args(["wget", "-q", "-O", "-", url]), "");
        if output.status.success() {
            return String::from_utf8(output.stdout).expect("UTF-8");
        }
        assert!(waited < TIMEOUT, "{url}: {output:?}");
        waited += sleep_poll_interval();
    }
}

#[test]
#[ignore = "tests/run host"]
fn metrics_pass_check_of_promtool() {
    require_root_and_files(&[PROMTOOL, BUSYBOX]);
    let host = Namespace::new();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = |name: &str| dir.path().join(name).display().to_string();
    fs::write(path("network.json"), NETWORK).expect("a network file");
    let config = serde_json::json!({
        "master": MASTER, "cni_dir": path("cni"), "dataplane": "external",
        "refuse_collisions": false, "state_dir": path("state"),
        "network_config": { "docker_bridge": false },
    });
    fs::write(path("agent.json"), config.to_string()).expect("an agent_config");
    let start = |name: &str, arguments: &[&str]| {
        Process::start(&host, &dir.path().join(name), "unix:///nowhere", arguments)
    };
    let (network, work_dir, config) = (path("network.json"), path("work"), path("agent.json"));
    let master = ["master", "--config", &network, "--listen", MASTER, "--work-dir", &work_dir];
    let _master = start("master.log", &master);
    let _agent = start("agent.log", &["agent", "--config", &config, "--listen", AGENT]);
    let state = format!("http://{MASTER}/overlay-master/state");
    while !get(&host, &state).contains("\"STATUS_OK\"") {
        sleep_poll_interval();
    }
    for endpoint in [format!("{MASTER}/overlay-master"), format!("{AGENT}/overlay-agent")] {
        let metrics = get(&host, &format!("http://{endpoint}/metrics"));
        assert!(metrics.lines().count() > 40, "{metrics}");
        let checked = run(host.command(PROMTOOL).args(["check", "metrics"]), &metrics);
        let output = String::from_utf8_lossy(&checked.stderr);
        assert!(checked.status.success() && output.is_empty(), "{endpoint}: {output}\n{metrics}");
    }
}
