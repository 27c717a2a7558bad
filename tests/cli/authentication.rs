//! Agents and masters that authenticate each other, and processes that use their addresses, as a
//! container does behind masquerade.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::thread::park_timeout;

use overlay_types::addr::{Upid, agent_upid, master_upid};
use overlay_types::protocol::{AgentOptions, MasterKind, Message, PeersRequest};
use overlay_wire::encode_message;
use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
use serde_json::{Value, json};

use crate::support::{Master, NETWORK, POLL_INTERVAL, RunningProcess, TIMEOUT, TestDir};

const SECRET: &str = "correct-horse-battery-staple";

fn write_secret(dir: &TestDir, name: &str, content: &str) -> PathBuf {
    dir.write(name, content);
    let path = dir.path(name);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path
}

/// Starts a master with `credentials`, if any.
fn start_master(dir: &TestDir, credentials: Option<&str>, mode: &str) -> Master {
    let network: Value = serde_json::from_str(NETWORK).unwrap();
    let mut config = json!({ "network": network });
    if let Some(content) = credentials {
        config["credentials"] = json!(write_secret(dir, "credentials", content));
        config["authentication"] = json!(mode);
    }
    dir.write("master.json", config.to_string());
    Master::start_at(dir, SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0), "master.json")
}

/// A running agent and its address.
struct Agent {
    process: RunningProcess,
    address: SocketAddrV4,
}

/// Starts an agent with `credential`, if any.
fn start_agent(
    dir: &TestDir,
    master: SocketAddrV4,
    ip: &str,
    credential: Option<&str>,
    mode: &str,
) -> Agent {
    let mut config = json!({
        "cni_dir": dir.path(&format!("cni-{ip}")),
        "state_dir": dir.path(&format!("state-{ip}")),
        "dataplane": "external",
        "refuse_collisions": false,
        "network_config": { "docker_bridge": false },
    });
    if let Some(content) = credential {
        config["credential"] = json!(write_secret(dir, &format!("credential-{ip}"), content));
        config["authentication"] = json!(mode);
    }
    dir.write(&format!("agent-{ip}.json"), config.to_string());
    let arguments = format!("agent --config agent-{ip}.json --master {master} --listen {ip}:0");
    let mut process = RunningProcess::start(dir, &arguments);
    let rest = process.expect_log("overlay agent at ");
    let address = rest.split(',').next().unwrap().parse().unwrap();
    Agent { process, address }
}

/// Returns the JSON that a master or agent shows.
fn get(server: SocketAddrV4, path: &str) -> Value {
    let mut stream = TcpStream::connect(server).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    let (_, body) = response.split_once("\r\n\r\n").unwrap();
    serde_json::from_str(body).unwrap_or_default()
}

fn master_health(master: &Master) -> Value {
    get(master.address, "/overlay-master/health")
}

fn agent_health(agent: &Agent) -> Value {
    get(agent.address, "/overlay-agent/health")
}

#[track_caller]
fn wait_for(description: &str, condition: impl Fn() -> bool) {
    for _ in 0..TIMEOUT.as_millis() / POLL_INTERVAL.as_millis() {
        if condition() {
            return;
        }
        park_timeout(POLL_INTERVAL);
    }
    panic!("timeout while waiting: {description}");
}

fn refused(health: &Value) -> u64 {
    health["counters"]["unauthentic_messages_refused"].as_u64().unwrap_or_default()
}

/// Sends a message with the address of another process, as a container of its host can.
fn send_as(from: &Upid, to: &Upid, message: &Message) {
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&socket, &SocketAddrV4::new(*from.address.ip(), 0)).unwrap();
    connect(&socket, &to.address).unwrap();
    let mut stream = TcpStream::from(socket);
    let (name, body) = encode_message(message);
    let head = format!(
        "POST /{}/{name} HTTP/1.1\r\nUser-Agent: libprocess/{from}\r\nLibprocess-From: {from}\r\n\
         Connection: close\r\nHost: {}\r\nContent-Length: {}\r\n\r\n",
        to.id,
        to.address,
        body.len()
    );
    stream.write_all(&[head.as_bytes(), &body].concat()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 202 "), "{answer}");
}

/// Sends the messages of faults C5: another registration, a report and a request in the name of the
/// agent, and an empty assignment in the name of the master.
fn attack(master: &Master, agent: &Agent, underlay: &str) {
    let (agent, master) = (agent_upid(agent.address), master_upid(master.address));
    let options = AgentOptions {
        underlay: underlay.parse().ok(),
        allocate_subnet: false,
        ..AgentOptions::default()
    };
    for message in [
        Message::RegisterAgent(options),
        Message::AgentRegistered(Vec::new()),
        Message::RequestPeers(PeersRequest::default()),
    ] {
        send_as(&agent, &master, &message);
    }
    let nothing = Message::UpdateAgentOverlays { overlays: Vec::new(), master: MasterKind::Other };
    send_as(&master, &agent, &nothing);
}

/// Returns whether the master has the forged registration of the agent at `ip`.
fn has_forged_record(state: &str, ip: &str) -> bool {
    // It requests no halves of the subnets.
    let mut rows = state.lines().filter(|line| line.starts_with(ip)).peekable();
    rows.peek().is_some() && rows.all(|row| !row.contains("/25"))
}

fn cni_files(dir: &TestDir, ip: &str) -> usize {
    let files = std::fs::read_dir(dir.path(&format!("cni-{ip}"))).unwrap();
    files.filter(|file| file.as_ref().unwrap().path().extension().is_some()).count()
}

#[test]
fn attacker_with_addresses_of_agent_and_master_has_no_effect() {
    let dir = TestDir::new();
    let line = format!("agents {SECRET}");
    let master = start_master(&dir, Some(&line), "permitted");
    let mut agent = start_agent(&dir, master.address, "127.0.0.2", Some(&line), "required");
    agent.process.expect_log("registered with the master");
    let before = master.wait_for_state(&dir, |state| state.contains(" ok"));
    assert_eq!(master_health(&master)["authentication"]["authenticated"], 1);
    let state = get(master.address, "/overlay-master/state");
    let authenticated = json!([{ "ip": "127.0.0.2", "principal": "agents" }]);
    assert_eq!(state["authenticated"], authenticated);
    let sound = agent_health(&agent);
    let authentication = json!({ "mode": "required", "principal": "agents",
        "master_authenticated": true, "master_was_authenticated": true });
    assert_eq!(sound["authentication"], authentication);

    attack(&master, &agent, "fd66::66");
    wait_for("the master refuses three messages", || refused(&master_health(&master)) == 3);
    wait_for("the agent refuses a message", || refused(&agent_health(&agent)) == 1);
    let after = master.wait_for_state(&dir, |state| state.contains(" ok"));
    assert_eq!(after, before);
    assert_eq!(cni_files(&dir, "127.0.0.2"), 2);
    assert_eq!(agent_health(&agent)["status"], "ok");

    // An agent without a credential is served, and named.
    let mut other = start_agent(&dir, master.address, "127.0.0.3", None, "");
    other.process.expect_log("registered with the master");
    let health = master_health(&master);
    assert_eq!(health["authentication"]["unauthenticated_agents"], json!(["127.0.0.3"]));
    assert_eq!((&health["status"], &health["problems"]), (&json!("ok"), &json!([])));
    let shown = dir.run(&format!("state -o wide --master {}", master.address)).success();
    let line = "authentication: permitted: 1 authenticated, 1 not, 0 refused; not authenticated: \
                127.0.0.3\n";
    assert!(shown.contains(line), "{shown}");
    // Only its underlay address is protected: the same attack without one has an effect.
    attack(&master, &other, "fd66::66");
    let refused = || master_health(&master)["counters"]["registrations_refused"].as_u64();
    wait_for("the master refuses the underlay address", || refused() == Some(1));
    attack(&master, &other, "");
    master.wait_for_state(&dir, |state| has_forged_record(state, "127.0.0.3"));
}

#[test]
fn attack_without_credentials_has_effect() {
    let dir = TestDir::new();
    let master = start_master(&dir, None, "");
    let mut agent = start_agent(&dir, master.address, "127.0.0.2", None, "");
    agent.process.expect_log("registered with the master");
    wait_for("the networks are there", || cni_files(&dir, "127.0.0.2") == 2);
    assert_eq!(master_health(&master)["authentication"], Value::Null);
    attack(&master, &agent, "fd66::66");
    master.wait_for_state(&dir, |state| has_forged_record(state, "127.0.0.2"));
}

#[test]
fn restarts_and_rotation_keep_authentication() {
    let dir = TestDir::new();
    let (old, new) = (format!("agents {SECRET}"), "agents another-secret");
    let mut master = start_master(&dir, Some(&old), "required");
    let mut agent = start_agent(&dir, master.address, "127.0.0.2", Some(&old), "required");
    agent.process.expect_log("registered with the master");

    // The secret is replaced while both run.
    write_secret(&dir, "credentials", &format!("{old}\n{new}\n"));
    master.process.expect_log("has changed: using the new content");
    write_secret(&dir, "credential-127.0.0.2", new);
    agent.process.expect_log("has changed: using the new content");
    agent.process.expect_log("has authenticated");
    write_secret(&dir, "credentials", new);
    master.process.expect_log("has changed: using the new content");
    assert_eq!(master_health(&master)["status"], "ok");

    let address = master.address;
    assert!(master.process.terminate().0.success());
    let master = Master::start_at(&dir, address, "master.json");
    agent.process.expect_log("has authenticated");
    wait_for("the agent has no problem", || agent_health(&agent)["status"] == "ok");
    drop(agent);
    let mut agent = start_agent(&dir, master.address, "127.0.0.2", Some(new), "required");
    agent.process.expect_log("registered with the master");
    wait_for("the master has no problem", || master_health(&master)["status"] == "ok");
}

#[test]
fn wrong_or_missing_credential_is_named_at_both_ends() {
    let dir = TestDir::new();
    let line = format!("agents {SECRET}");
    let mut master = start_master(&dir, Some(&line), "required");
    let mut wrong =
        start_agent(&dir, master.address, "127.0.0.2", Some("agents s3cret-of-others"), "required");
    let sentence = format!(
        "master overlay-master@{} has no principal 'agents' with the secret of this agent: compare \
         the file of 'credential' with the file of 'credentials' of the master",
        master.address
    );
    wrong.process.expect_log(&sentence);
    assert!(agent_health(&wrong)["problems"].to_string().contains(&sentence));
    let missing = start_agent(&dir, master.address, "127.0.0.3", None, "");
    let reason = "it is not authenticated: set 'credential' of the agent, or 'authentication' of \
                  the master to permitted";
    wait_for("the agent knows why", || {
        agent_health(&missing)["problems"].to_string().contains(reason)
    });
    master.process.expect_log("refused RegisterAgentMessage from overlay-agent@127.0.0.2:");
    let problems = master_health(&master)["problems"].to_string();
    for sentence in [
        "refused agent 127.0.0.2: this master has no principal 'agents' with the secret of the agent",
        "refused agent 127.0.0.3: it is not authenticated",
    ] {
        assert!(problems.contains(sentence), "{problems}");
    }
    assert_eq!(master_health(&master)["authentication"]["refused"], 2);
    // The correct secret needs no restart.
    write_secret(&dir, "credential-127.0.0.2", &line);
    wrong.process.expect_log("registered with the master");
    let (_, log) = wrong.process.terminate();
    assert!(!log.contains("s3cret") && !log.contains(SECRET), "{log}");
}

#[test]
fn authenticated_pair_is_never_unauthenticated_again() {
    let dir = TestDir::new();
    let line = format!("agents {SECRET}");
    let master = start_master(&dir, None, "");
    let address = master.address;
    let mut agent = start_agent(&dir, address, "127.0.0.2", Some(&line), "permitted");
    agent.process.expect_log("registered with the master");
    assert_eq!(agent_health(&agent)["authentication"]["master_authenticated"], false);
    assert!(master.process.terminate().0.success());
    // The master gets its credentials, and loses them again.
    let config = std::fs::read_to_string(dir.path("master.json")).unwrap();
    let mut with_credentials: Value = serde_json::from_str(&config).unwrap();
    with_credentials["credentials"] = json!(write_secret(&dir, "credentials", &line));
    dir.write("with-credentials.json", with_credentials.to_string());
    let master = Master::start_at(&dir, address, "with-credentials.json");
    agent.process.expect_log("has authenticated");
    wait_for("the agent is registered", || agent_health(&agent)["status"] == "ok");
    assert!(master.process.terminate().0.success());
    drop(agent);
    let master = Master::start_at(&dir, address, "master.json");
    let agent = start_agent(&dir, address, "127.0.0.2", Some(&line), "permitted");
    let refusal = "has no credentials, and this agent accepts only a master that authenticates";
    wait_for("the agent refuses the master", || {
        agent_health(&agent)["problems"].to_string().contains(refusal)
    });
    send_as(
        &agent_upid(agent.address),
        &master_upid(address),
        &Message::RegisterAgent(AgentOptions::default()),
    );
    let sentence = "refused agent 127.0.0.2: it has authenticated before, and this master has no \
                    credentials: set 'credentials' of the master, or release the agent";
    wait_for("the master refuses the agent", || {
        master_health(&master)["problems"].to_string().contains(sentence)
    });
    let forgotten = dir.run(&format!("forget --force --master {address} 127.0.0.2"));
    assert_eq!(forgotten.code, Some(0), "{forgotten:?}");
    assert_eq!(master_health(&master)["status"], "ok");
}

#[test]
fn unusable_file_of_credentials_prevents_start() {
    let dir = TestDir::with_network();
    let network: Value = serde_json::from_str(NETWORK).unwrap();
    let missing = dir.path("missing");
    let config = json!({ "network": network, "credentials": missing });
    dir.write("master.json", config.to_string());
    let started = dir.run("master --config master.json --listen 127.0.0.1:0 --work-dir work");
    let failure = started.failure();
    let reason = format!("credentials: {}: No such file or directory", missing.display());
    assert!(failure.contains(&reason), "{failure}");
    dir.write("credential", "s3cret");
    let config = json!({ "cni_dir": dir.path("cni"), "dataplane": "external",
        "refuse_collisions": false, "credential": dir.path("credential") });
    dir.write("agent.json", config.to_string());
    let started = dir.run("agent --config agent.json --master 127.0.0.1:1 --listen 127.0.0.2:0");
    let failure = started.failure();
    assert!(
        failure.contains("credential: line 1: it is not a principal and a secret"),
        "{failure}"
    );
    assert!(!failure.contains("s3cret"), "{failure}");
}
