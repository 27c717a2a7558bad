//! The program as operators run it: a master and an agent, a Docker daemon that comes late,
//! containers on both halves, and restarts of everything under them.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::cni::{PLUGINS, plugin};
use crate::engine::{DOCKER, Engine, IMAGE, PATIENCE, pause};
use crate::namespace::{BUSYBOX, Namespace, run};
use crate::program::Running;

const NETWORK: &str = include_str!("../../docs/network.json");
const MASTER: &str = "127.0.0.1:5050";
const AGENT: &str = "127.0.0.2:5051";

/// One host with everything on it.
struct Host {
    engine: Engine,
}

impl Host {
    fn new() -> Self {
        let engine = Engine::down();
        fs::write(engine.path("network.json"), NETWORK).expect("a network file");
        let config = serde_json::json!({
            "master": MASTER,
            "cni_dir": engine.path("cni"),
            "cni_data_dir": engine.path("leases"),
            "cni_plugins_dir": PLUGINS,
            "docker": DOCKER,
            "verify_interval": "1s",
            "state_dir": engine.path("state"),
        });
        fs::write(engine.path("agent.json"), config.to_string()).expect("an agent_config");
        Self { engine }
    }

    fn start_master(&self) -> Running {
        let config = self.text("network.json");
        let work_dir = self.text("work");
        let arguments =
            ["master", "--config", &config, "--listen", MASTER, "--work-dir", &work_dir];
        self.run("master.log", &arguments)
    }

    fn start_agent(&self) -> Running {
        let config = self.text("agent.json");
        self.run("agent.log", &["agent", "--config", &config, "--listen", AGENT])
    }

    fn run(&self, log: &str, arguments: &[&str]) -> Running {
        let log = self.engine.path(log);
        Running::start(&self.engine.namespace, &log, &self.engine.socket(), arguments)
    }

    fn text(&self, name: &str) -> String {
        self.engine.path(name).to_str().expect("it is text").to_owned()
    }

    /// What the master shows of the agent's overlays; nothing if it does not answer.
    fn overlays(&self) -> Vec<Value> {
        let url = format!("http://{MASTER}/overlay-master/state");
        let mut command = self.engine.namespace.command(BUSYBOX);
        let output = run(command.args(["wget", "-q", "-O", "-", &url]), "");
        let state: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        state["agents"][0]["overlays"].as_array().cloned().unwrap_or_default()
    }

    /// Waits until the master shows two overlays whose status is as wanted.
    fn wait_for(&self, what: &str, is_wanted: impl Fn(&Value) -> bool) -> Vec<Value> {
        let mut waited = Duration::ZERO;
        loop {
            let overlays = self.overlays();
            if overlays.len() == 2 && overlays.iter().all(|overlay| is_wanted(&overlay["state"])) {
                return overlays;
            }
            assert!(
                waited < PATIENCE,
                "{what}: {overlays:?}\n{}\n{}",
                fs::read_to_string(self.engine.path("master.log")).unwrap_or_default(),
                fs::read_to_string(self.engine.path("agent.log")).unwrap_or_default()
            );
            waited += pause();
        }
    }

    fn wait_until_ok(&self) -> Vec<Value> {
        self.wait_for("every overlay is ready", |state| state["status"] == "STATUS_OK")
    }

    fn cni_file(&self) -> (PathBuf, Value) {
        let path = self.engine.path("cni/vxlan-1.conf");
        let content = fs::read(&path).expect("the agent wrote it");
        (path, serde_json::from_slice(&content).expect("it is JSON"))
    }

    /// A container of the MesosContainerizer: a namespace that the real plugin puts on the network.
    fn join(&self, container: &Namespace) -> Ipv4Addr {
        let (_, configuration) = self.cni_file();
        let result = plugin(&self.engine.namespace, "ADD", &configuration, container);
        let address = result["ip4"]["ip"].as_str().expect("an address");
        let (address, _) = address.split_once('/').expect("with a length");
        address.parse().expect("of IPv4")
    }

    fn inspect(&self, container: &str, format: &str) -> String {
        self.engine.succeed(&["inspect", "--format", format, container]).trim().to_owned()
    }
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn restarts_and_a_late_docker_disturb_no_container() {
    let mut host = Host::new();
    let master = host.start_master();
    let agent = host.start_agent();

    // Docker is not up yet: that is reported, and the other half is there all the same.
    let not_running = |state: &Value| {
        let reason = state["error"].as_str().unwrap_or_default();
        state["status"] == "STATUS_FAILED" && reason.contains("the Docker daemon is not running")
    };
    let assigned = host.wait_for("the reason of failure is shown", not_running);
    let mesos_container = Namespace::new();
    let address = host.join(&mesos_container);
    assert_eq!(address, Ipv4Addr::new(192, 168, 0, 2));
    assert!(mesos_container.can_reach("192.168.0.1"), "the gateway of the Mesos half answers");

    // Docker comes: nobody has to do anything.
    host.engine.bring_up();
    host.wait_until_ok();
    host.engine.import_image();
    let sleep = ["/bin/busybox", "sleep", "600"];
    let run_args = ["run", "-d", "--name", "web", "--net", "vxlan-1", IMAGE];
    host.engine.succeed(&[&run_args[..], &sleep[..]].concat());
    let ip = "{{(index .NetworkSettings.Networks \"vxlan-1\").IPAddress}}";
    assert_eq!(host.inspect("web", ip), "192.168.0.130");
    let before = (host.inspect("web", "{{.State.StartedAt}}"), host.engine.inspect("vxlan-1"));
    let written = fs::metadata(host.cni_file().0).and_then(|file| file.modified()).expect("a time");

    // The agent crashes and is started again; then the master.
    agent.kill();
    let agent = host.start_agent();
    host.wait_until_ok();
    master.kill();
    let master = host.start_master();
    let reported = host.wait_until_ok();
    let after = (host.inspect("web", "{{.State.StartedAt}}"), host.engine.inspect("vxlan-1"));
    assert_eq!(after, before, "the container and its network are as they were");
    let still = fs::metadata(host.cni_file().0).and_then(|file| file.modified()).expect("a time");
    assert_eq!(still, written, "the configuration was not touched");
    for (now, then) in reported.iter().zip(&assigned) {
        assert_eq!(now["subnet"], then["subnet"]);
        assert_eq!(now["backend"], then["backend"]);
    }
    let ping = ["exec", "web", "/bin/busybox", "ping", "-c", "1", "-W", "5", "192.168.0.129"];
    host.engine.succeed(&ping);
    assert!(mesos_container.can_reach("192.168.0.1"), "and so does that of the Mesos half");

    // What somebody removes is repaired, and what somebody breaks is shown.
    fs::remove_file(host.cni_file().0).expect("it is removed");
    let mut waited = Duration::ZERO;
    while !host.engine.path("cni/vxlan-1.conf").exists() {
        assert!(waited < PATIENCE, "the configuration was not written again");
        waited += pause();
    }
    host.engine.succeed(&["network", "rm", "vxlan-2"]);
    while !run(&mut host.engine.command(&["network", "inspect", "vxlan-2"]), "").status.success() {
        assert!(waited < PATIENCE, "the network was not made again");
        waited += pause();
    }
    host.engine.succeed(&["rm", "-f", "web"]);
    drop((agent, master));
}
