//! A master and an agent, started as an operator starts them: with a Docker daemon that starts
//! late, containers of Mesos and of Docker, and restarts of master and agent.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::cni::{PLUGINS, plugin};
use crate::cni_plugin::program as overlay_plugin;
use crate::docker_daemon::{DOCKER, DockerDaemon, IMAGE, TIMEOUT, sleep_poll_interval};
use crate::namespace::{BUSYBOX, Namespace, run};
use crate::process::{PROGRAM, Process};

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

    /// Changes a key of the agent's configuration, for its next start.
    fn set(&self, key: &str, value: Value) {
        let path = self.daemon.path("agent.json");
        let text = fs::read(&path).expect("an agent_config");
        let mut config: Value = serde_json::from_slice(&text).expect("valid JSON");
        config[key] = value;
        fs::write(path, config.to_string()).expect("an agent_config");
    }

    /// Waits until the CNI configuration names a plugin.
    fn wait_for_plugin(&self, plugin: &str) -> Value {
        let mut waited = Duration::ZERO;
        loop {
            let path = self.daemon.path("cni/vxlan-1.conf");
            let found: Value = fs::read(path)
                .map_or(Value::Null, |text| serde_json::from_slice(&text).expect("JSON"));
            if found["type"] == plugin {
                return found;
            }
            let log = fs::read_to_string(self.daemon.path("agent.log")).unwrap_or_default();
            assert!(waited < TIMEOUT, "{found}\n{log}");
            waited += sleep_poll_interval();
        }
    }

    fn health(&self) -> Value {
        let url = format!("http://{AGENT}/overlay-agent/health");
        let output = self.daemon.namespace.succeed(BUSYBOX, &["wget", "-q", "-O", "-", &url]);
        serde_json::from_str(&output).expect("valid JSON")
    }

    /// Runs the CNI plugin of mesos-overlay. Returns the address of the result.
    fn overlay_plugin(&self, command: &str, config: &Value, one: &Attached<'_>) -> Value {
        let mut program = self.daemon.namespace.command(overlay_plugin());
        program
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", one.id)
            .env("CNI_IFNAME", one.interface)
            .env("CNI_NETNS", &one.namespace);
        let output = run(&mut program, &config.to_string());
        assert!(output.status.success(), "{command}: {output:?}");
        let result: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        result["ip4"]["ip"].clone()
    }

    fn leased(&self) -> Vec<String> {
        let entries = fs::read_dir(self.daemon.path("leases/vxlan-1")).expect("a directory");
        let names = entries.map(|entry| entry.expect("an entry").file_name());
        let names = names.map(|name| name.to_string_lossy().into_owned());
        // The agent has a lease for its probes.
        let is_lease = |name: &String| name.starts_with("192.168.0.") && name != "192.168.0.126";
        let mut names: Vec<String> = names.filter(is_lease).collect();
        names.sort();
        names
    }

    fn inspect(&self, container: &str, format: &str) -> String {
        self.daemon.succeed(&["inspect", "--format", format, container]).trim().to_owned()
    }
}

/// A container as its containerizer names it.
struct Attached<'a> {
    id: &'a str,
    interface: &'a str,
    namespace: PathBuf,
}

/// clusterd runs the plugin for a container of Docker as well: it keeps its only address.
fn check_docker_container(host: &Host, config: &Value) {
    host.daemon.import_image();
    let sleep = ["/bin/busybox", "sleep", "600"];
    let web = ["run", "-d", "--name", "web", "--net", "vxlan-1", IMAGE];
    host.daemon.succeed(&[&web[..], &sleep[..]].concat());
    let pid = host.inspect("web", "{{.State.Pid}}");
    let namespace = PathBuf::from(format!("/proc/{pid}/ns/net"));
    let docker = Attached { id: "docker", interface: "eth1", namespace };
    assert_eq!(host.overlay_plugin("ADD", config, &docker), "192.168.0.130/25");
    assert_eq!(host.leased().len(), 2, "the container of Docker has no lease");
    host.overlay_plugin("DEL", config, &docker);
    let ping = ["exec", "web", "/bin/busybox", "ping", "-c", "1", "-W", "5", "192.168.0.129"];
    host.daemon.succeed(&ping);
    host.daemon.succeed(&["rm", "-f", "web"]);
}

/// The agent releases the lease of a container that ended without DEL, with its port mapping.
fn check_release_after_end(host: &Host, config: Value, containers: Vec<Namespace>) {
    let mut mapped = config;
    let mapping = serde_json::json!([{"host_port": 8080, "container_port": 80}]);
    mapped["args"]["org.apache.mesos"]["network_info"]["port_mappings"] = mapping;
    let fourth = Namespace::new();
    let fourth_one = Attached { id: "fourth", interface: "eth0", namespace: fourth.path() };
    assert_eq!(host.overlay_plugin("ADD", &mapped, &fourth_one), "192.168.0.5/25");
    let mappings = || host.daemon.namespace.run("nft list table inet mesos_overlay_ports");
    assert!(mappings().contains("192.168.0.5 . 80"), "{}", mappings());
    drop((containers, fourth));
    let mut waited = Duration::ZERO;
    while !host.leased().is_empty() || mappings().contains("8080") {
        assert!(waited < TIMEOUT, "{:?}\n{}", host.leased(), mappings());
        waited += sleep_poll_interval();
    }
}

fn check_clean(host: &Host) {
    let config = host.path_text("agent.json");
    let mut clean = host.daemon.namespace.command(PROGRAM);
    clean.args(["clean", "--config", &config]).env("DOCKER_HOST", host.daemon.socket());
    let cleaned = run(&mut clean, "");
    let text = String::from_utf8_lossy(&cleaned.stdout);
    assert!(text.contains("remove nftables table inet mesos_overlay_ports"), "{cleaned:?}");
    let tables = host.daemon.namespace.run("nft list tables");
    assert!(!tables.contains("mesos_overlay"), "{tables}");
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn chosen_cni_plugin_takes_leases_over_and_gives_them_back() {
    let mut host = Host::new();
    let plugins = host.daemon.path("plugins");
    fs::create_dir(&plugins).expect("a directory");
    host.set("cni_plugins_dir", format!("{}:{PLUGINS}", plugins.display()).into());
    host.set("cni_plugin", "overlay".into());
    host.daemon.start();
    let _master = host.start_master();
    let agent = host.start_agent();
    host.wait_until_ok();

    // The plugin is not installed yet, so the agent configures the former plugins.
    assert_eq!(host.wait_for_plugin("bridge")["dockerSubnets"], Value::Null);
    let health = host.health();
    assert_eq!(health["networks"][0]["plugin"], "bridge", "{health}");
    let problem = "vxlan-1: bridge attaches its containers: CNI plugin 'mesos-overlay-cni' is not";
    assert!(health["problems"].to_string().contains(problem), "{health}");
    let first = Namespace::new();
    assert_eq!(host.add_mesos_container(&first), Ipv4Addr::new(192, 168, 0, 2));

    std::os::unix::fs::symlink(overlay_plugin(), plugins.join("mesos-overlay-cni"))
        .expect("a link");
    let config = host.wait_for_plugin("mesos-overlay-cni");
    assert_eq!(config["dockerSubnets"], serde_json::json!(["192.168.0.128/25"]));
    let second = Namespace::new();
    let second_one = Attached { id: "second", interface: "eth0", namespace: second.path() };
    assert_eq!(host.overlay_plugin("ADD", &config, &second_one), "192.168.0.3/25");
    assert!(first.can_reach("192.168.0.3") && second.can_reach("192.168.0.2"));
    assert_eq!(host.leased(), ["192.168.0.2", "192.168.0.3"]);

    check_docker_container(&host, &config);

    // The former plugin again: it keeps the leases.
    assert!(agent.stop());
    host.set("cni_plugin", "bridge".into());
    let agent = host.start_agent();
    host.wait_for_plugin("bridge");
    let third = Namespace::new();
    assert_eq!(host.add_mesos_container(&third), Ipv4Addr::new(192, 168, 0, 4));
    assert!(third.can_reach("192.168.0.3") && second.can_reach("192.168.0.4"));
    host.overlay_plugin("DEL", &config, &second_one);
    assert_eq!(host.leased(), ["192.168.0.2", "192.168.0.4"]);

    check_release_after_end(&host, config, vec![first, second, third]);
    assert!(agent.stop());
    check_clean(&host);
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
