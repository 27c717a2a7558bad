//! The modules in Mesos authenticate each other. A container can send messages with the address of its
//! host, and so in the name of the agent and of the master: with credentials they change nothing.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::rc::Rc;

use serde_json::{Value, json};

use super::daemon::Daemon;
use super::host::{Cluster, Host, wait_until};
use super::mesos::{
    AGENT, AGENT_PORT, MASTER, MASTER_ADDRESS, MASTER_PORT, Parameters, modules, start_mesos_agent,
    start_mesos_master, state, wait_until_ready,
};

const CREDENTIAL: &str = "agents correct-horse-battery-staple";
/// A registration with an empty network_config.
const REGISTRATION: &[u8] = b"\x0a\x00";

/// A master and an agent with the modules.
struct Pair {
    hub: Rc<Host>,
    host: Rc<Host>,
    _processes: [Daemon; 2],
    _cluster: Cluster,
}

impl Pair {
    fn start(is_authenticated: bool) -> Self {
        let mut cluster = Cluster::new();
        let (hub, host) = (cluster.hub().clone(), cluster.add_host());
        let mut master = Parameters::master(&hub);
        let mut agent = Parameters::agent(&host, MASTER_ADDRESS);
        if is_authenticated {
            let credentials = write_secret(&hub, "credentials");
            master = master.with(&[("credentials", &credentials), ("authentication", "required")]);
            agent = agent.with(&[("credential", &write_secret(&host, "credential"))]);
        }
        let list = modules(&hub, &[(MASTER, &master)]);
        let master = start_mesos_master(&hub, &list, &[]);
        let list = modules(&host, &[(AGENT, &agent)]);
        let agent = start_mesos_agent(&host, MASTER_ADDRESS, &list, &[]);
        wait_until_ready(&hub, &[&host]);
        Self { hub, host, _processes: [master, agent], _cluster: cluster }
    }

    /// Sends a message in the name of the agent to the master.
    fn send_as_agent(&self, name: &str, body: &[u8]) {
        let from = format!("overlay-agent@{}:{AGENT_PORT}", self.host.ip);
        send(&self.hub, MASTER_PORT, ("overlay-master", &from), name, body);
    }

    /// Sends a message in the name of the master to the agent.
    fn send_as_master(&self, name: &str, body: &[u8]) {
        let from = format!("overlay-master@{MASTER_ADDRESS}");
        send(&self.host, AGENT_PORT, ("overlay-agent", &from), name, body);
    }

    fn master_health(&self) -> Value {
        self.hub.get(MASTER_PORT, "/overlay-master/health").expect("an answer").json()
    }

    fn agent_health(&self) -> Value {
        self.host.get(AGENT_PORT, "/overlay-agent/health").expect("an answer").json()
    }
}

/// Writes the credential into a file that only its owner can read. Returns its path.
fn write_secret(host: &Host, name: &str) -> String {
    let path = host.write(name, CREDENTIAL);
    fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("the mode is set");
    path
}

/// Sends a message to a process on `host`. Mesos accepts it: the module decides.
fn send(host: &Host, port: u16, (to, from): (&str, &str), name: &str, body: &[u8]) {
    let head = format!(
        "POST /{to}/mesos.modules.overlay.internal.{name} HTTP/1.1\r\nLibprocess-From: {from}\r\n\
         Connection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let response = host.exchange(port, &[head.as_bytes(), body].concat());
    let response = String::from_utf8_lossy(&response.expect("a response")).into_owned();
    assert!(response.starts_with("HTTP/1.1 202 "), "{response}");
}

#[test]
#[ignore = "mesos: needs a Mesos installation, root and packages: tests/run mesos"]
fn authenticated_modules_refuse_forged_messages() {
    let pair = Pair::start(true);
    let shown = state(&pair.hub);
    let ip = pair.host.ip.to_string();
    assert_eq!(shown["authenticated"], json!([{ "ip": ip, "principal": "agents" }]), "{shown}");
    assert_eq!(pair.agent_health()["authentication"]["master_authenticated"], true);
    pair.send_as_agent("RegisterAgentMessage", REGISTRATION);
    pair.send_as_agent("AgentRegisteredMessage", b"");
    pair.send_as_master("UpdateAgentOverlaysMessage", b"");
    let count = |health: &Value| health["counters"]["unauthentic_messages_refused"].as_u64();
    wait_until("the master refuses", || count(&pair.master_health()), |count| *count == Some(2));
    wait_until("the agent refuses", || count(&pair.agent_health()), |count| *count == Some(1));
    let health = pair.agent_health();
    let networks: Vec<&Value> =
        health["networks"].as_array().into_iter().flatten().map(|it| &it["status"]).collect();
    assert_eq!(networks, ["ok", "ok"], "{health}");
    assert_eq!(health["status"], "ok", "{health}");
    let statuses = |agent: &Value| {
        let overlays = agent["overlays"].as_array().cloned().unwrap_or_default();
        overlays.into_iter().map(|overlay| overlay["state"]["status"].clone()).collect::<Vec<_>>()
    };
    let agents = state(&pair.hub)["agents"].clone();
    assert_eq!(statuses(&agents[0]), ["STATUS_OK", "STATUS_OK"], "{agents}");
}

#[test]
#[ignore = "mesos: needs a Mesos installation, root and packages: tests/run mesos"]
fn modules_without_credentials_obey_forged_messages() {
    let pair = Pair::start(false);
    pair.send_as_agent("AgentRegisteredMessage", b"");
    let is_failed = |shown: &Value| {
        let overlays = shown["agents"][0]["overlays"].as_array().cloned().unwrap_or_default();
        !overlays.is_empty() && overlays.iter().all(|it| it["state"]["status"] != "STATUS_OK")
    };
    wait_until("the report counts", || state(&pair.hub), is_failed);
    assert!(state(&pair.hub).get("authenticated").is_none());
    pair.send_as_master("UpdateAgentOverlaysMessage", b"");
    let networks = |health: &Value| health["networks"].as_array().map(Vec::len);
    wait_until("the agent has no network", || networks(&pair.agent_health()), |it| *it == Some(0));
}
