//! Mesos with the modules, and the program, each on a host.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::daemon::Daemon;
use super::host::{Host, wait_until};
use crate::library::{prefix, release_library};

/// The names of the modules.
pub(crate) const MASTER: &str = "com_mesosphere_mesos_MasterOverlayHelper";
pub(crate) const AGENT: &str = "com_mesosphere_mesos_AgentOverlayHelper";
/// The names that they had in C++.
pub(crate) const CPP_MASTER: &str = "com_mesosphere_mesos_OverlayMasterManager";
pub(crate) const CPP_AGENT: &str = "com_mesosphere_mesos_OverlayAgentManager";

pub(crate) const MASTER_PORT: u16 = 5050;
pub(crate) const AGENT_PORT: u16 = 5051;
/// Where most clusters of these tests have their master.
pub(crate) const MASTER_ADDRESS: &str = "10.0.0.1:5050";

/// The network of which `tests/golden` was recorded.
pub(crate) const NETWORK: &str = r#"{
    "vtep_subnet": "44.128.0.0/16",
    "vtep_subnet6": "fd01:a::/64",
    "vtep_mac_oui": "70:B3:D5:00:00:00",
    "vtep_mtu": 1450,
    "overlays": [
        { "name": "vxlan-1", "subnet": "192.168.0.0/17", "prefix": 24 },
        { "name": "vxlan-2", "subnet": "192.168.128.0/17", "prefix": 24,
          "subnet6": "fd01:b::/64", "prefix6": 80 }
    ]
}"#;

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_mesos-overlay");
/// The docker of the package docker.io: another one may come first in `PATH`.
pub(crate) const DOCKER: &str = "/usr/bin/docker";
/// Where the package containernetworking-plugins has them.
const PLUGINS: &str = "/usr/lib/cni";

/// A program of Mesos.
pub(crate) fn program(path: &str) -> String {
    text(&prefix().join(path))
}

pub(crate) fn text(path: &Path) -> String {
    path.to_str().expect("paths are text").to_owned()
}

/// Parameters of a module.
#[derive(Debug, Clone)]
pub(crate) struct Parameters(BTreeMap<String, String>);

impl Parameters {
    /// Of the master module: a network file, and a place for the state.
    pub(crate) fn master(host: &Host) -> Self {
        let network = host.write("network.json", NETWORK);
        Self::new(&[("overlays", &network), ("work_dir", &host.text("overlay"))])
    }

    /// Of the agent module, which finds its master at `master`. It leaves Docker alone.
    pub(crate) fn agent(host: &Host, master: &str) -> Self {
        Self::new(&[
            ("master", master),
            ("cni_dir", &host.text("cni")),
            ("cni_data_dir", &host.text("leases")),
            ("cni_plugins_dir", &plugins()),
            ("docker_bridge", "false"),
            ("state_dir", &host.text("state")),
        ])
    }

    fn new(pairs: &[(&str, &str)]) -> Self {
        Self(BTreeMap::new()).with(pairs)
    }

    /// The same with others.
    pub(crate) fn with(mut self, pairs: &[(&str, &str)]) -> Self {
        for &(key, value) in pairs {
            self.0.insert(key.to_owned(), value.to_owned());
        }
        self
    }

    /// The same without one of them.
    pub(crate) fn without(mut self, key: &str) -> Self {
        self.0.remove(key);
        self
    }

    fn json(&self) -> Value {
        self.0.iter().map(|(key, value)| json!({"key": key, "value": value})).collect()
    }
}

/// Where the CNI plugins are, Mesos' own among them.
pub(crate) fn plugins() -> String {
    format!("{PLUGINS}:{}", program("libexec/mesos"))
}

/// Where Mesos finds a module file with these modules of a library.
pub(crate) fn module_file(host: &Host, library: &Path, modules: &[(&str, &Parameters)]) -> String {
    let modules: Vec<Value> = modules
        .iter()
        .map(|(name, parameters)| json!({"name": name, "parameters": parameters.json()}))
        .collect();
    let content = json!({"libraries": [{"file": library, "modules": modules}]});
    format!("file://{}", host.write("modules.json", content.to_string()))
}

/// The same for the library under test.
pub(crate) fn modules(host: &Host, modules: &[(&str, &Parameters)]) -> String {
    module_file(host, release_library(), modules)
}

/// A mesos-master with the modules of a file.
pub(crate) fn mesos_master(host: &Host, modules: &str, flags: &[&str]) -> Daemon {
    let mut command = host.command(program("sbin/mesos-master"));
    command.arg(format!("--ip={}", host.ip)).arg(format!("--hostname={}", host.ip));
    command.arg(format!("--work_dir={}", host.text("mesos"))).arg(format!("--modules={modules}"));
    // The default waits for the disk, and nobody here looks at what Mesos itself keeps.
    command.arg("--registry=in_memory").args(flags);
    Daemon::start(host, "mesos-master", command)
}

/// A mesos-agent with the modules of a file, which puts containers on the networks.
pub(crate) fn mesos_agent(host: &Host, master: &str, modules: &str, flags: &[&str]) -> Daemon {
    let mut command = host.command(program("sbin/mesos-agent"));
    command.arg(format!("--ip={}", host.ip)).arg(format!("--hostname={}", host.ip));
    command.arg(format!("--master={master}")).arg(format!("--modules={modules}"));
    for name in ["work_dir", "runtime_dir", "fetcher_cache_dir"] {
        command.arg(format!("--{name}={}", host.text(&format!("mesos/{name}"))));
    }
    // It refuses a flag that is given twice.
    if !flags.iter().any(|flag| flag.starts_with("--containerizers=")) {
        command.arg("--containerizers=mesos");
    }
    command.args(["--launcher=linux", "--no-systemd_enable_support"]);
    // The Linux launcher insists on a control group isolator.
    command.arg("--isolation=filesystem/linux,cgroups/cpu,cgroups/mem,network/cni");
    command.arg(format!("--cgroups_root={}", host.name()));
    command.arg(format!("--network_cni_config_dir={}", host.text("cni")));
    command.arg(format!("--network_cni_plugins_dir={}", plugins()));
    command.args(["--resources=cpus:1;mem:256;disk:256;ports:[31000-31009]"]).args(flags);
    command.env("DOCKER_HOST", docker_host(host));
    Daemon::start(host, "mesos-agent", command)
}

/// Where a Docker daemon of the host's own would listen.
pub(crate) fn docker_host(host: &Host) -> String {
    format!("unix://{}", host.text("docker.sock"))
}

/// A mesos-master with the master module.
pub(crate) fn module_master(host: &Host) -> Daemon {
    mesos_master(host, &modules(host, &[(MASTER, &Parameters::master(host))]), &[])
}

/// A mesos-agent with the agent module, both of the same master.
pub(crate) fn module_agent(host: &Host, master: &str) -> Daemon {
    let modules = modules(host, &[(AGENT, &Parameters::agent(host, master))]);
    mesos_agent(host, master, &modules, &[])
}

/// The program as a master, with its state where the module has its own.
pub(crate) fn program_master(host: &Host) -> Daemon {
    let mut command = overlay(host, &["master", "--listen", &format!("{}:{MASTER_PORT}", host.ip)]);
    command.args(["--config", &host.write("network.json", NETWORK)]);
    command.args(["--work-dir", &host.text("overlay")]);
    Daemon::start(host, "master", command)
}

/// The program as an agent, configured as the module.
pub(crate) fn program_agent(host: &Host, master: &str) -> Daemon {
    let config = json!({
        "master": master,
        "cni_dir": host.path("cni"),
        "network_config": {"docker_bridge": false},
        "state_dir": host.path("state"),
    });
    let config = host.write("agent.json", config.to_string());
    let listen = format!("{}:{AGENT_PORT}", host.ip);
    let command = overlay(host, &["agent", "--config", &config, "--listen", &listen]);
    Daemon::start(host, "agent", command)
}

fn overlay(host: &Host, arguments: &[&str]) -> Command {
    let mut command = host.command(PROGRAM);
    command.args(arguments);
    command
}

/// What the overlay master shows; null if it does not answer.
pub(crate) fn state(host: &Host) -> Value {
    let answer = host.get(MASTER_PORT, "/overlay-master/state");
    answer.filter(|answer| answer.status == 200).map_or(Value::Null, |answer| answer.json())
}

/// What agents have, by their address: of each overlay everything but what the agent says of it.
pub(crate) type Addresses = BTreeMap<String, Vec<Value>>;

/// Waits until the overlay master on `master` has these agents and no others, and all of them are
/// ready.
pub(crate) fn ready(master: &Host, agents: &[&Host]) -> Addresses {
    let is_ready = |state: &Value| {
        let shown = state["agents"].as_array().map_or(&[][..], Vec::as_slice);
        let is_well = |overlay: &Value| overlay["state"]["status"] == "STATUS_OK";
        let overlays = |agent: &Value| agent["overlays"].as_array().cloned().unwrap_or_default();
        shown.len() == agents.len()
            && shown.iter().all(|agent| overlays(agent).len() == 2)
            && shown.iter().all(|agent| overlays(agent).iter().all(is_well))
    };
    let state = wait_until("every agent is ready", || state(master), is_ready);
    let addresses = addresses(&state);
    let expected: Vec<String> = agents.iter().map(|agent| agent.ip.to_string()).collect();
    assert_eq!(addresses.keys().cloned().collect::<Vec<_>>(), expected);
    addresses
}

/// What agents have by what a master shows.
pub(crate) fn addresses(state: &Value) -> Addresses {
    let agents = state["agents"].as_array().cloned().unwrap_or_default();
    let mut addresses = Addresses::new();
    for agent in agents {
        let ip = agent["ip"].as_str().expect("an agent has an address").to_owned();
        let mut overlays = agent["overlays"].as_array().cloned().unwrap_or_default();
        for overlay in &mut overlays {
            let members = overlay.as_object_mut().expect("an overlay is an object");
            members.remove("state");
        }
        addresses.insert(ip, overlays);
    }
    addresses
}
