//! Starts Mesos with the modules, or the program, on a host.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::daemon::Daemon;
use super::host::{Host, wait_until};
use crate::library::{daemon, prefix, release_library};

/// The names of the modules.
pub(crate) const MASTER: &str = "com_mesosphere_mesos_MasterOverlayHelper";
pub(crate) const AGENT: &str = "com_mesosphere_mesos_AgentOverlayHelper";
/// The names of the C++ modules.
pub(crate) const CPP_MASTER: &str = "com_mesosphere_mesos_OverlayMasterManager";
pub(crate) const CPP_AGENT: &str = "com_mesosphere_mesos_OverlayAgentManager";

pub(crate) const MASTER_PORT: u16 = 5050;
pub(crate) const AGENT_PORT: u16 = 5051;
/// The address of the master in most tests.
pub(crate) const MASTER_ADDRESS: &str = "10.0.0.1:5050";

/// The network with which the files in `tests/golden` were recorded.
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
/// The docker of the package docker.io, since `PATH` may contain another docker before it.
pub(crate) const DOCKER: &str = "/usr/bin/docker";
/// The plugin directory of the package containernetworking-plugins.
const PLUGINS: &str = "/usr/lib/cni";

/// Returns the path of a program of Mesos.
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
    /// Returns the parameters of the master module: a network file and a work directory.
    pub(crate) fn master(host: &Host) -> Self {
        let network = host.write("network.json", NETWORK);
        Self::new(&[("overlays", &network), ("work_dir", &host.text("overlay"))])
    }

    /// Returns the parameters of an agent module for the master at `master`, without Docker.
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

    /// Sets or replaces parameters.
    pub(crate) fn with(mut self, pairs: &[(&str, &str)]) -> Self {
        for &(key, value) in pairs {
            self.0.insert(key.to_owned(), value.to_owned());
        }
        self
    }

    /// Removes a parameter.
    pub(crate) fn without(mut self, key: &str) -> Self {
        self.0.remove(key);
        self
    }

    fn json(&self) -> Value {
        self.0.iter().map(|(key, value)| json!({"key": key, "value": value})).collect()
    }
}

/// Returns the search path of the CNI plugins, including those of Mesos.
pub(crate) fn plugins() -> String {
    format!("{PLUGINS}:{}", program("libexec/mesos"))
}

/// Writes a module file with these modules of a library. Returns its URL.
pub(crate) fn module_file(host: &Host, library: &Path, modules: &[(&str, &Parameters)]) -> String {
    let modules: Vec<Value> = modules
        .iter()
        .map(|(name, parameters)| json!({"name": name, "parameters": parameters.json()}))
        .collect();
    let content = json!({"libraries": [{"file": library, "modules": modules}]});
    format!("file://{}", host.write("modules.json", content.to_string()))
}

/// Writes a module file with these modules of the release library. Returns its URL.
pub(crate) fn modules(host: &Host, modules: &[(&str, &Parameters)]) -> String {
    module_file(host, release_library(), modules)
}

/// Starts a mesos-master with a module file.
pub(crate) fn start_mesos_master(host: &Host, modules: &str, flags: &[&str]) -> Daemon {
    let mut command = host.command(daemon("mesos-master"));
    command.arg(format!("--ip={}", host.ip)).arg(format!("--hostname={}", host.ip));
    command.arg(format!("--work_dir={}", host.text("mesos"))).arg(format!("--modules={modules}"));
    // The default registry waits for the disk. These tests do not need the state of Mesos itself.
    command.arg("--registry=in_memory").args(flags);
    Daemon::start(host, "mesos-master", command)
}

/// Starts a mesos-agent with a module file and with CNI networks.
pub(crate) fn start_mesos_agent(
    host: &Host,
    master: &str,
    modules: &str,
    flags: &[&str],
) -> Daemon {
    let mut command = host.command(daemon("mesos-agent"));
    command.arg(format!("--ip={}", host.ip)).arg(format!("--hostname={}", host.ip));
    command.arg(format!("--master={master}")).arg(format!("--modules={modules}"));
    for name in ["work_dir", "runtime_dir", "fetcher_cache_dir"] {
        command.arg(format!("--{name}={}", host.text(&format!("mesos/{name}"))));
    }
    command.args(["--launcher=linux", "--no-systemd_enable_support"]);
    // The Linux launcher requires a control group isolator.
    command.arg("--isolation=filesystem/linux,cgroups/cpu,cgroups/mem,network/cni");
    command.arg(format!("--cgroups_root={}", host.name()));
    command.arg(format!("--network_cni_config_dir={}", host.text("cni")));
    // mesos-agent refuses duplicate flags.
    for (name, default) in [
        ("--containerizers", "mesos"),
        ("--network_cni_plugins_dir", &plugins()),
        ("--resources", "cpus:1;mem:256;disk:256;ports:[31000-31009]"),
    ] {
        if !flags.iter().any(|flag| flag.split('=').next() == Some(name)) {
            command.arg(format!("{name}={default}"));
        }
    }
    command.args(flags);
    command.env("DOCKER_HOST", docker_host(host));
    Daemon::start(host, "mesos-agent", command)
}

/// Returns the socket of the Docker daemon of a host.
pub(crate) fn docker_host(host: &Host) -> String {
    format!("unix://{}", host.text("docker.sock"))
}

/// Starts a mesos-master with the master module.
pub(crate) fn start_module_master(host: &Host) -> Daemon {
    start_mesos_master(host, &modules(host, &[(MASTER, &Parameters::master(host))]), &[])
}

/// Starts a mesos-agent with the agent module. Both use the master at `master`.
pub(crate) fn start_module_agent(host: &Host, master: &str) -> Daemon {
    let modules = modules(host, &[(AGENT, &Parameters::agent(host, master))]);
    start_mesos_agent(host, master, &modules, &[])
}

/// Starts the program as a master, with the work directory of the module.
pub(crate) fn start_program_master(host: &Host) -> Daemon {
    let mut command =
        overlay_command(host, &["master", "--listen", &format!("{}:{MASTER_PORT}", host.ip)]);
    command.args(["--config", &host.write("network.json", NETWORK)]);
    command.args(["--work-dir", &host.text("overlay")]);
    Daemon::start(host, "master", command)
}

/// Starts the program as an agent, with the configuration of the module.
pub(crate) fn start_program_agent(host: &Host, master: &str) -> Daemon {
    let config = json!({
        "master": master,
        "cni_dir": host.path("cni"),
        "network_config": {"docker_bridge": false},
        "state_dir": host.path("state"),
    });
    let config = host.write("agent.json", config.to_string());
    let listen = format!("{}:{AGENT_PORT}", host.ip);
    let command = overlay_command(host, &["agent", "--config", &config, "--listen", &listen]);
    Daemon::start(host, "agent", command)
}

fn overlay_command(host: &Host, arguments: &[&str]) -> Command {
    let mut command = host.command(PROGRAM);
    command.args(arguments);
    command
}

/// Returns the state of the overlay master, or null if there is no response with status 200.
pub(crate) fn state(host: &Host) -> Value {
    let response = host.get(MASTER_PORT, "/overlay-master/state");
    response
        .filter(|response| response.status == 200)
        .map_or(Value::Null, |response| response.json())
}

/// The overlays of each agent by agent address, without the status that the agent reports.
pub(crate) type Addresses = BTreeMap<String, Vec<Value>>;

/// Waits until the overlay master on `master` has exactly these agents, and the status of all their
/// overlays is OK. Returns their addresses.
pub(crate) fn wait_until_ready(master: &Host, agents: &[&Host]) -> Addresses {
    let is_ready = |state: &Value| {
        let shown = state["agents"].as_array().map_or(&[][..], Vec::as_slice);
        let is_ok = |overlay: &Value| overlay["state"]["status"] == "STATUS_OK";
        let overlays = |agent: &Value| agent["overlays"].as_array().cloned().unwrap_or_default();
        shown.len() == agents.len()
            && shown.iter().all(|agent| overlays(agent).len() == 2)
            && shown.iter().all(|agent| overlays(agent).iter().all(is_ok))
    };
    let state = wait_until("all agents are ready", || state(master), is_ready);
    let addresses = addresses(&state);
    let expected: Vec<String> = agents.iter().map(|agent| agent.ip.to_string()).collect();
    assert_eq!(addresses.keys().cloned().collect::<Vec<_>>(), expected);
    addresses
}

/// Extracts the addresses of the agents from the state of a master.
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
