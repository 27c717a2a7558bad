//! The whole system: a master on a host of its own, and an agent on each of several hosts. All are
//! real processes in network namespaces that a switch connects. The real CNI plugins and real
//! Docker daemons create the containers. Only the agents program the kernel.

mod authentication;
mod bridges;
mod closed;
mod collision;
mod connectivity;
mod container;
mod detours;
mod diagnosis;
mod direct;
mod drift;
mod faults;
mod headroom;
mod hostile;
mod interference;
mod ipam;
mod leases;
mod membership;
mod monitoring;
mod mtu;
mod obstacles;
mod offloads;
mod path;
mod probes;
mod reachability;
mod restart;
mod shortcut;
mod unserved;
mod vni;
mod vrf;

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use self::container::Container;
use crate::cni::PLUGINS;
use crate::docker_daemon::{DOCKER, DockerDaemon, TIMEOUT, sleep_poll_interval};
use crate::hosts::{Underlay, connect_to_switch, switch};
use crate::namespace::{BUSYBOX, Namespace, require_root_and_files, run, succeed};
use crate::process::{PROGRAM, Process};
use crate::traffic::poll_interval;

/// A network with an overlay of IPv4 and IPv6, and an overlay of IPv4 only.
const NETWORK: &str = r#"
    { "vtep_subnet": "44.128.0.0/16", "vtep_subnet6": "fd01:a::/64",
      "vtep_mac_oui": "70:B3:D5:00:00:00",
      "overlays": [ { "name": "vxlan-1", "subnet": "192.168.0.0/17", "prefix": 24,
                      "subnet6": "fd01:b::/64", "prefix6": 80 },
                    { "name": "vxlan-2", "subnet": "192.168.128.0/17", "prefix": 24 } ] }"#;
/// Number of subnets that each agent receives of this network.
const SUBNETS_PER_AGENT: usize = 3;
/// Number of the master's host.
const MASTER_HOST: u8 = 100;
const MASTER_ADDRESS: &str = "10.0.0.100:5050";

/// The hosts of the agents, and the host of the master.
struct Cluster {
    /// The first field, so that the master stops before its namespace is removed.
    master: Option<Process>,
    /// The agent's host that runs the master. `None` is the master's own host.
    master_host: Option<u8>,
    hosts: Vec<Host>,
    switch: Namespace,
    namespace: Namespace,
    dir: tempfile::TempDir,
    underlay: Underlay,
}

/// A host, with or without Docker.
struct Host {
    number: u8,
    agent: Option<Process>,
    daemon: DockerDaemon,
    /// The agent_config, which a test may change before it starts the agent.
    config: Value,
    /// The command that runs the agent's command line, such as one that changes the mounts.
    wrapper: Vec<String>,
}

impl Cluster {
    /// Starts a master. There are no agents yet.
    fn new(underlay: Underlay) -> Self {
        Self::with_network(underlay, NETWORK)
    }

    fn with_network(underlay: Underlay, network: &str) -> Self {
        require_root_and_files(&[
            BUSYBOX,
            &format!("{PLUGINS}/bridge"),
            &format!("{PLUGINS}/host-local"),
        ]);
        let (switch, namespace) = (switch(), Namespace::new());
        connect_to_switch(&switch, &namespace, MASTER_HOST, Underlay::V4);
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::write(dir.path().join("network.json"), network).expect("a network file");
        let mut cluster = Self {
            master: None,
            master_host: None,
            hosts: Vec::new(),
            switch,
            namespace,
            dir,
            underlay,
        };
        cluster.start_master();
        cluster
    }

    /// Starts a master and agents on hosts without Docker, and waits until all agents are ready.
    fn started(count: u8, underlay: Underlay) -> Self {
        let mut cluster = Self::new(underlay);
        for number in 1..=count {
            cluster.add_host(number);
        }
        cluster.start_agents();
        cluster.wait_until_ok();
        cluster
    }

    /// Starts the agents one after another, so that addresses are allocated in the order of the
    /// hosts.
    fn start_agents(&mut self) {
        for index in 0..self.hosts.len() {
            self.hosts[index].start_agent();
            let number = self.hosts[index].number;
            self.wait_for("the agent has an assignment", || !self.overlays(number).is_empty());
        }
    }

    fn start_master(&mut self) {
        let path = |name: &str| self.dir.path().join(name);
        let (config, work) = (path("network.json"), path("work"));
        let path_text = |path: &std::path::Path| path.to_str().expect("a UTF-8 path").to_owned();
        let arguments = ["--config", &path_text(&config), "--work-dir", &path_text(&work)];
        let arguments = [&["master", "--listen", MASTER_ADDRESS][..], &arguments[..]].concat();
        let namespace =
            self.master_host.map_or(&self.namespace, |host| self.host(host).namespace());
        self.master = Some(Process::start(namespace, &path("log"), "", &arguments));
    }

    /// Adds a host without Docker. Does not start its agent.
    fn add_host(&mut self, number: u8) -> &mut Host {
        let daemon = DockerDaemon::stopped();
        connect_to_switch(&self.switch, &daemon.namespace, number, Underlay::V4);
        let mut config = json!({
            "master": MASTER_ADDRESS,
            "cni_dir": daemon.path("cni"),
            "cni_data_dir": daemon.path("leases"),
            "cni_plugins_dir": PLUGINS,
            "docker": DOCKER,
            "state_dir": daemon.path("state"),
            "network_config": { "docker_bridge": false },
        });
        if self.underlay == Underlay::V6 {
            self.underlay.add_address(&daemon.namespace, number);
            config["underlay"] = json!(self.underlay.address(number));
        }
        self.hosts.push(Host { number, agent: None, daemon, config, wrapper: Vec::new() });
        self.hosts.last_mut().expect("an added host")
    }

    /// Runs a subcommand on the master's host.
    fn run_subcommand(&self, arguments: &[&str]) -> String {
        let mut command = self.namespace.command(PROGRAM);
        succeed(command.args(arguments).args(["--master", MASTER_ADDRESS]))
    }

    /// Returns the agent's overlays as the master shows them, or none if the master does not
    /// answer.
    fn overlays(&self, number: u8) -> Vec<Value> {
        let mut command = self.namespace.command(PROGRAM);
        let ip = Underlay::V4.address(number).to_string();
        let arguments = ["state", "--json", "--master", MASTER_ADDRESS, "--agent", &ip];
        let output = run(command.args(arguments), "");
        let agent: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        agent["overlays"].as_array().cloned().unwrap_or_default()
    }

    /// Returns the status of an agent's overlay as the master shows it, or the error of a failure.
    fn status(&self, number: u8, overlay: &str) -> String {
        let overlays = self.overlays(number);
        let found = overlays.iter().find(|found| found["info"]["name"] == overlay);
        let state = found.map(|found| found["state"].clone()).unwrap_or_default();
        let word = |key: &str| state[key].as_str().unwrap_or_default().to_owned();
        match (word("status"), word("error")) {
            (status, error) if error.is_empty() => status,
            (_, error) => error,
        }
    }

    /// Waits until all agents have reported both overlays as ready, and know each other.
    fn wait_until_ok(&self) {
        for host in &self.hosts {
            for overlay in ["vxlan-1", "vxlan-2"] {
                self.wait_for_status(host.number, overlay, |status| status == "STATUS_OK");
            }
        }
        let all = self.hosts.len();
        for host in &self.hosts {
            self.wait_for(&format!("agent {} knows {all} peers", host.number), || {
                let health = host.health();
                let is_ok = health["status"] == "ok" && health["dataplane"]["status"] == "ok";
                is_ok
                    && health["dataplane"]["peers"] == all
                    && host.has_fdb_entries(all - 1)
                    && host.count_peer_routes() == SUBNETS_PER_AGENT * (all - 1)
            });
        }
    }

    fn wait_for_status(&self, number: u8, overlay: &str, is_expected: impl Fn(&str) -> bool) {
        let condition_name = format!("{overlay} of agent {number}");
        self.wait_for(&condition_name, || is_expected(&self.status(number, overlay)));
    }

    /// Waits until `condition` holds. After a timeout, panics with its name and all logs.
    fn wait_for(&self, condition_name: &str, condition: impl Fn() -> bool) {
        let mut waited = Duration::ZERO;
        while !condition() {
            let limit = poll_interval(TIMEOUT);
            assert!(waited < limit, "timeout while waiting: {condition_name}\n{}", self.logs());
            waited += sleep_poll_interval();
        }
    }

    fn logs(&self) -> String {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let agents = self.hosts.iter().map(|host| {
            let (number, log) = (host.number, read(host.daemon.path("agent.log")));
            format!("agent {number}:\n{log}\n")
        });
        let mut command = self.namespace.command(PROGRAM);
        let shown = run(command.args(["state", "--master", MASTER_ADDRESS]), "").stdout;
        let (log, shown) = (read(self.dir.path().join("log")), String::from_utf8_lossy(&shown));
        let master = format!("master:\n{log}\n{shown}\n");
        agents.chain([master]).collect()
    }

    fn host(&self, number: u8) -> &Host {
        self.hosts.iter().find(|host| host.number == number).expect("a host of this number")
    }

    fn host_mut(&mut self, number: u8) -> &mut Host {
        self.hosts.iter_mut().find(|host| host.number == number).expect("a host of this number")
    }

    /// Adds a container of the MesosContainerizer to every host.
    fn add_containers(&self) -> Vec<Container> {
        self.hosts.iter().map(|host| Container::for_mesos(host, "vxlan-1")).collect()
    }

    /// Returns the VTEP address of an agent.
    fn vtep(&self, number: u8) -> IpAddr {
        let overlays = self.overlays(number);
        let ip =
            overlays[0]["backend"]["vxlan"]["vtep_ip"].as_str().and_then(|ip| ip.split('/').next());
        ip.and_then(|ip| ip.parse().ok()).expect("a VTEP address")
    }
}

impl Host {
    fn start_agent(&mut self) {
        let config = self.write_config();
        let listen = format!("{}:5051", Underlay::V4.address(self.number));
        let mut command = self.daemon.namespace.command("env");
        command.args(&self.wrapper).arg(self.program());
        command.args(["agent", "--config", &config, "--listen", &listen]);
        command.env("DOCKER_HOST", self.daemon.socket());
        self.agent = Some(Process::spawn(command, &self.daemon.path("agent.log")));
    }

    /// Returns the program in a directory of root. The doctor trusts no agent whose program another
    /// user may replace, and the directory of the build may belong to anyone.
    fn program(&self) -> PathBuf {
        let path = self.daemon.path("mesos-overlay");
        if !path.exists() && fs::hard_link(PROGRAM, &path).is_err() {
            fs::copy(PROGRAM, &path).expect("a copy of the program");
        }
        path
    }

    /// Writes the agent_config, and returns its path.
    fn write_config(&self) -> String {
        let path = self.daemon.path("agent.json");
        fs::write(&path, self.config.to_string()).expect("an agent_config");
        path.to_str().expect("a UTF-8 path").to_owned()
    }

    fn namespace(&self) -> &Namespace {
        &self.daemon.namespace
    }

    fn health(&self) -> Value {
        let url = format!("http://{}:5051/overlay-agent/health", Underlay::V4.address(self.number));
        let mut command = self.namespace().command(BUSYBOX);
        let output = run(command.args(["wget", "-q", "-O", "-", &url]), "");
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    /// Returns whether the FDB has entries for exactly this number of peers.
    fn has_fdb_entries(&self, peers: usize) -> bool {
        let mut command = self.namespace().command("bridge");
        let shown = run(command.args(["fdb", "show", "dev", "vtep1024"]), "").stdout;
        String::from_utf8_lossy(&shown).lines().filter(|line| line.contains(" dst ")).count()
            == peers
    }

    /// Counts the routes to peers. The agent programs routes last.
    fn count_peer_routes(&self) -> usize {
        let shown = self.namespace().run("ip -4 route show proto 109")
            + &self.namespace().run("ip -6 route show proto 109");
        shown.lines().filter(|line| line.contains(" via ")).count()
    }
}
