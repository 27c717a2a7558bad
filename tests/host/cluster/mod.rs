//! The whole system: a master and an agent on each of several hosts, all of them real processes in
//! network namespaces that a switch connects, with containers by the real CNI plugins and by real
//! Docker daemons. Nothing is programmed but by the agents.

mod collision;
mod container;
mod drift;
mod faults;
mod hostile;
mod members;
mod reach;
mod restart;
mod vni;

use std::fs;
use std::net::IpAddr;
use std::time::Duration;

use serde_json::{Value, json};

use self::container::Container;
use crate::cni::PLUGINS;
use crate::engine::{DOCKER, Engine, PATIENCE, pause};
use crate::hosts::{Underlay, plug, switch};
use crate::namespace::{BUSYBOX, Namespace, demand, run, succeed};
use crate::program::{PROGRAM, Running};

/// Both families, and an overlay that has but one.
const NETWORK: &str = r#"
    { "vtep_subnet": "44.128.0.0/16", "vtep_subnet6": "fd01:a::/64",
      "vtep_mac_oui": "70:B3:D5:00:00:00",
      "overlays": [ { "name": "vxlan-1", "subnet": "192.168.0.0/17", "prefix": 24,
                      "subnet6": "fd01:b::/64", "prefix6": 80 },
                    { "name": "vxlan-2", "subnet": "192.168.128.0/17", "prefix": 24 } ] }"#;
/// How many subnets of it each agent has.
const SUBNETS: usize = 3;
/// The number of the host of the master.
const MASTER: u8 = 100;
const MASTER_AT: &str = "10.0.0.100:5050";

/// The hosts, and the master on one of its own.
struct Cluster {
    /// Stopped before their hosts are taken away.
    master: Option<Running>,
    hosts: Vec<Host>,
    switch: Namespace,
    namespace: Namespace,
    folder: tempfile::TempDir,
    underlay: Underlay,
}

/// A host, with or without Docker.
struct Host {
    number: u8,
    agent: Option<Running>,
    engine: Engine,
    /// The agent_config, which a test may change before it starts the agent.
    config: Value,
}

impl Cluster {
    /// A master that runs, and nobody else.
    fn new(underlay: Underlay) -> Self {
        Self::with_network(underlay, NETWORK)
    }

    fn with_network(underlay: Underlay, network: &str) -> Self {
        demand(&[BUSYBOX, &format!("{PLUGINS}/bridge"), &format!("{PLUGINS}/host-local")]);
        let (switch, namespace) = (switch(), Namespace::new());
        plug(&switch, &namespace, MASTER, Underlay::V4);
        let folder = tempfile::tempdir().expect("a temporary directory");
        fs::write(folder.path().join("network.json"), network).expect("a network file");
        let mut cluster =
            Self { master: None, hosts: Vec::new(), switch, namespace, folder, underlay };
        cluster.start_master();
        cluster
    }

    /// A cluster whose agents, on hosts without Docker, have made everything.
    fn started(count: u8, underlay: Underlay) -> Self {
        let mut cluster = Self::new(underlay);
        for number in 1..=count {
            cluster.add(number);
        }
        cluster.start_agents();
        cluster.wait_until_ok();
        cluster
    }

    /// Starts them one after the other, so that what each is assigned goes by its number.
    fn start_agents(&mut self) {
        for index in 0..self.hosts.len() {
            self.hosts[index].start_agent();
            let number = self.hosts[index].number;
            self.wait_for("it is assigned", || !self.overlays(number).is_empty());
        }
    }

    fn start_master(&mut self) {
        let path = |name: &str| self.folder.path().join(name);
        let (config, work) = (path("network.json"), path("work"));
        let text = |path: &std::path::Path| path.to_str().expect("it is text").to_owned();
        let arguments = ["--config", &text(&config), "--work-dir", &text(&work)];
        let arguments = [&["master", "--listen", MASTER_AT][..], &arguments[..]].concat();
        self.master = Some(Running::start(&self.namespace, &path("log"), "", &arguments));
    }

    /// A host without Docker, whose agent is not started yet.
    fn add(&mut self, number: u8) -> &mut Host {
        let engine = Engine::down();
        plug(&self.switch, &engine.namespace, number, Underlay::V4);
        let mut config = json!({
            "master": MASTER_AT,
            "cni_dir": engine.path("cni"),
            "cni_data_dir": engine.path("leases"),
            "cni_plugins_dir": PLUGINS,
            "docker": DOCKER,
            "state_dir": engine.path("state"),
            "network_config": { "docker_bridge": false },
        });
        if self.underlay == Underlay::V6 {
            self.underlay.assign(&engine.namespace, number);
            config["underlay"] = json!(self.underlay.address(number));
        }
        self.hosts.push(Host { number, agent: None, engine, config });
        self.hosts.last_mut().expect("it was added")
    }

    /// A subcommand on the host of the master.
    fn ask(&self, arguments: &[&str]) -> String {
        let mut command = self.namespace.command(PROGRAM);
        succeed(command.args(arguments).args(["--master", MASTER_AT]))
    }

    /// What the master shows of an agent's overlays; nothing if it does not answer.
    fn overlays(&self, number: u8) -> Vec<Value> {
        let mut command = self.namespace.command(PROGRAM);
        let ip = Underlay::V4.address(number).to_string();
        let arguments = ["state", "--json", "--master", MASTER_AT, "--agent", &ip];
        let output = run(command.args(arguments), "");
        let agent: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        agent["overlays"].as_array().cloned().unwrap_or_default()
    }

    /// The status of an overlay of an agent as the master shows it: with the reason of a failure.
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

    /// Waits until all agents have reported both overlays, and know of each other.
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
                    && host.is_programmed(all - 1)
                    && host.routes_to_peers() == SUBNETS * (all - 1)
            });
        }
    }

    fn wait_for_status(&self, number: u8, overlay: &str, is_wanted: impl Fn(&str) -> bool) {
        let what = format!("{overlay} of agent {number}");
        self.wait_for(&what, || is_wanted(&self.status(number, overlay)));
    }

    /// Waits until it is so. What was logged is shown if it does not come to be.
    fn wait_for(&self, what: &str, is_so: impl Fn() -> bool) {
        let mut waited = Duration::ZERO;
        while !is_so() {
            assert!(waited < PATIENCE, "{what}\n{}", self.logs());
            waited += pause();
        }
    }

    fn logs(&self) -> String {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let agents = self.hosts.iter().map(|host| {
            let (number, log) = (host.number, read(host.engine.path("agent.log")));
            format!("agent {number}:\n{log}\n")
        });
        let mut command = self.namespace.command(PROGRAM);
        let shown = run(command.args(["state", "--master", MASTER_AT]), "").stdout;
        let (log, shown) = (read(self.folder.path().join("log")), String::from_utf8_lossy(&shown));
        let master = format!("master:\n{log}\n{shown}\n");
        agents.chain([master]).collect()
    }

    fn host(&self, number: u8) -> &Host {
        self.hosts.iter().find(|host| host.number == number).expect("there is such a host")
    }

    fn host_mut(&mut self, number: u8) -> &mut Host {
        self.hosts.iter_mut().find(|host| host.number == number).expect("there is such a host")
    }

    /// A container of the MesosContainerizer on every host.
    fn containers(&self) -> Vec<Container> {
        self.hosts.iter().map(|host| Container::of_mesos(host, "vxlan-1")).collect()
    }

    /// The address of an agent's end of the tunnels.
    fn vtep(&self, number: u8) -> IpAddr {
        let overlays = self.overlays(number);
        let ip =
            overlays[0]["backend"]["vxlan"]["vtep_ip"].as_str().and_then(|ip| ip.split('/').next());
        ip.and_then(|ip| ip.parse().ok()).expect("it has one")
    }
}

impl Host {
    fn start_agent(&mut self) {
        let config = self.write_config();
        let listen = format!("{}:5051", Underlay::V4.address(self.number));
        let arguments = ["agent", "--config", &config, "--listen", &listen];
        let log = self.engine.path("agent.log");
        let docker = self.engine.socket();
        self.agent = Some(Running::start(&self.engine.namespace, &log, &docker, &arguments));
    }

    /// Where it is.
    fn write_config(&self) -> String {
        let path = self.engine.path("agent.json");
        fs::write(&path, self.config.to_string()).expect("an agent_config");
        path.to_str().expect("it is text").to_owned()
    }

    fn namespace(&self) -> &Namespace {
        &self.engine.namespace
    }

    fn health(&self) -> Value {
        let url = format!("http://{}:5051/overlay-agent/health", Underlay::V4.address(self.number));
        let mut command = self.namespace().command(BUSYBOX);
        let output = run(command.args(["wget", "-q", "-O", "-", &url]), "");
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    /// Whether the kernel knows so many peers.
    fn is_programmed(&self, peers: usize) -> bool {
        let mut command = self.namespace().command("bridge");
        let shown = run(command.args(["fdb", "show", "dev", "vtep1024"]), "").stdout;
        String::from_utf8_lossy(&shown).lines().filter(|line| line.contains(" dst ")).count()
            == peers
    }

    /// They are programmed last.
    fn routes_to_peers(&self) -> usize {
        let shown = self.namespace().run("ip -4 route show proto 109")
            + &self.namespace().run("ip -6 route show proto 109");
        shown.lines().filter(|line| line.contains(" via ")).count()
    }
}
