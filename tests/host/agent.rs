//! A master and an agent, started as an operator starts them: with a Docker daemon that starts
//! late, containers of Mesos and of Docker, and restarts of master and agent.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::cni::{PLUGINS, plugin};
use crate::docker_daemon::{DOCKER, DockerDaemon, IMAGE, TIMEOUT, sleep_poll_interval};
use crate::namespace::{BUSYBOX, Namespace, run};
use crate::process::Process;

const NETWORK: &str = include_str!("../golden/network.json");
const MASTER: &str = "127.0.0.1:5050";
const AGENT: &str = "127.0.0.2:5051";

/// One host with a master, an agent and a Docker daemon.
struct Host {
    daemon: DockerDaemon,
}

impl Host {
    fn new() -> Self {
        let daemon = DockerDaemon::stopped();
        fs::write(daemon.path("network.json"), NETWORK).expect("a network file");
        let config = serde_json::json!({
            "master": MASTER,
            "cni_dir": daemon.path("cni"),
            "cni_data_dir": daemon.path("leases"),
            "cni_plugins_dir": PLUGINS,
            "docker": DOCKER,
            "verify_interval": "1s",
            "state_dir": daemon.path("state"),
        });
        fs::write(daemon.path("agent.json"), config.to_string()).expect("an agent_config");
        Self { daemon }
    }

    fn start_master(&self) -> Process {
        let config = self.path_text("network.json");
        let work_dir = self.path_text("work");
        let arguments =
            ["master", "--config", &config, "--listen", MASTER, "--work-dir", &work_dir];
        self.run("master.log", &arguments)
    }

    fn start_agent(&self) -> Process {
        let config = self.path_text("agent.json");
        self.run("agent.log", &["agent", "--config", &config, "--listen", AGENT])
    }

    fn run(&self, log: &str, arguments: &[&str]) -> Process {
        let log = self.daemon.path(log);
        Process::start(&self.daemon.namespace, &log, &self.daemon.socket(), arguments)
    }

    fn path_text(&self, name: &str) -> String {
        self.daemon.path(name).to_str().expect("a UTF-8 path").to_owned()
    }

    /// Returns the agent's overlays as the master shows them, or none if the master does not
    /// answer.
    fn overlays(&self) -> Vec<Value> {
        let url = format!("http://{MASTER}/overlay-master/state");
        let mut command = self.daemon.namespace.command(BUSYBOX);
        let output = run(command.args(["wget", "-q", "-O", "-", &url]), "");
        let state: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        state["agents"][0]["overlays"].as_array().cloned().unwrap_or_default()
    }

    /// Waits until the master shows two overlays, and both states are as expected.
    fn wait_for_state(&self, failure: &str, is_expected: impl Fn(&Value) -> bool) -> Vec<Value> {
        let mut waited = Duration::ZERO;
        loop {
            let overlays = self.overlays();
            if overlays.len() == 2 && overlays.iter().all(|overlay| is_expected(&overlay["state"]))
            {
                return overlays;
            }
            assert!(
                waited < TIMEOUT,
                "{failure}: {overlays:?}\n{}\n{}",
                fs::read_to_string(self.daemon.path("master.log")).unwrap_or_default(),
                fs::read_to_string(self.daemon.path("agent.log")).unwrap_or_default()
            );
            waited += sleep_poll_interval();
        }
    }

    fn wait_until_ok(&self) -> Vec<Value> {
        self.wait_for_state("not every overlay is ready", |state| state["status"] == "STATUS_OK")
    }

    fn cni_file(&self) -> (PathBuf, Value) {
        let path = self.daemon.path("cni/vxlan-1.conf");
        let content = fs::read(&path).expect("file written by the agent");
        (path, serde_json::from_slice(&content).expect("valid JSON"))
    }

    /// Connects a namespace to the overlay with the real plugin, as the MesosContainerizer does.
    fn add_mesos_container(&self, container: &Namespace) -> Ipv4Addr {
        let (_, configuration) = self.cni_file();
        let result = plugin(&self.daemon.namespace, "ADD", &configuration, container);
        let address = result["ip4"]["ip"].as_str().expect("an address");
        let (address, _) = address.split_once('/').expect("an address with a length");
        address.parse().expect("a valid IPv4 address")
    }

    fn inspect(&self, container: &str, format: &str) -> String {
        self.daemon.succeed(&["inspect", "--format", format, container]).trim().to_owned()
    }
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn restarts_and_late_docker_keep_containers_running() {
    let mut host = Host::new();
    let master = host.start_master();
    let agent = host.start_agent();

    // Docker does not run yet. The agent reports the problem, and configures the Mesos bridge.
    let is_docker_missing = |state: &Value| {
        let reason = state["error"].as_str().unwrap_or_default();
        state["status"] == "STATUS_FAILED" && reason.contains("the Docker daemon is not running")
    };
    let assigned = host
        .wait_for_state("the master does not show the reason of the failure", is_docker_missing);
    let mesos_container = Namespace::new();
    let address = host.add_mesos_container(&mesos_container);
    assert_eq!(address, Ipv4Addr::new(192, 168, 0, 2));
    assert!(
        mesos_container.can_reach("192.168.0.1"),
        "the gateway of the Mesos bridge does not answer"
    );

    // Docker starts: the agent recovers without an operator.
    host.daemon.start();
    host.wait_until_ok();
    host.daemon.import_image();
    let sleep = ["/bin/busybox", "sleep", "600"];
    let run_args = ["run", "-d", "--name", "web", "--net", "vxlan-1", IMAGE];
    host.daemon.succeed(&[&run_args[..], &sleep[..]].concat());
    let ip = "{{(index .NetworkSettings.Networks \"vxlan-1\").IPAddress}}";
    assert_eq!(host.inspect("web", ip), "192.168.0.130");
    let before = (host.inspect("web", "{{.State.StartedAt}}"), host.daemon.inspect("vxlan-1"));
    let modified =
        fs::metadata(host.cni_file().0).and_then(|file| file.modified()).expect("a time");

    // First the agent crashes and is restarted, then the master.
    agent.kill();
    let agent = host.start_agent();
    host.wait_until_ok();
    master.kill();
    let master = host.start_master();
    let reported = host.wait_until_ok();
    let after = (host.inspect("web", "{{.State.StartedAt}}"), host.daemon.inspect("vxlan-1"));
    assert_eq!(after, before, "a restart changed the container or its network");
    let modified_later =
        fs::metadata(host.cni_file().0).and_then(|file| file.modified()).expect("a time");
    assert_eq!(modified_later, modified, "a restart rewrote the CNI configuration");
    for (now, then) in reported.iter().zip(&assigned) {
        assert_eq!(now["subnet"], then["subnet"]);
        assert_eq!(now["backend"], then["backend"]);
    }
    let ping = ["exec", "web", "/bin/busybox", "ping", "-c", "1", "-W", "5", "192.168.0.129"];
    host.daemon.succeed(&ping);
    assert!(
        mesos_container.can_reach("192.168.0.1"),
        "the gateway of the Mesos bridge does not answer"
    );

    // The agent restores a CNI file and a Docker network that another process removed.
    fs::remove_file(host.cni_file().0).expect("a removable file");
    let mut waited = Duration::ZERO;
    while !host.daemon.path("cni/vxlan-1.conf").exists() {
        assert!(waited < TIMEOUT, "the agent did not write the CNI configuration again");
        waited += sleep_poll_interval();
    }
    host.daemon.succeed(&["network", "rm", "vxlan-2"]);
    while !run(&mut host.daemon.command(&["network", "inspect", "vxlan-2"]), "").status.success() {
        assert!(waited < TIMEOUT, "the agent did not create the Docker network again");
        waited += sleep_poll_interval();
    }
    host.daemon.succeed(&["rm", "-f", "web"]);
    drop((agent, master));
}
