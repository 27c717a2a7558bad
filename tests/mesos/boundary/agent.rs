//! The agent module with a simulated master: its messages, endpoints and CNI files.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use overlay_wire::mesos;
use serde_json::Value;

use super::host::{AGENT, Build, Host, MASTER, text};
use super::master::{NETWORK, golden};
use super::peer::{Acknowledgement, Peer, Register, Registered, Update, wait_for};

/// Loads an agent module for the master at `master`, without Docker and without a dataplane.
pub(crate) fn load_agent(host: &mut Host, master: &str, cni: &Path) {
    let (cni, plugins) = (host.path("").join(cni), host.path("plugins"));
    fs::create_dir_all(&plugins).expect("a directory");
    for plugin in ["bridge", "host-local", "mesos-cni-port-mapper"] {
        write_script(&plugins.join(plugin), "exit 1");
    }
    let parameters = [
        ("master", master),
        ("cni_dir", text(&cni)),
        ("cni_plugins_dir", text(&plugins)),
        ("docker_bridge", "false"),
        ("verify_interval", "1s"),
        ("dataplane", "external"),
        ("refuse_collisions", "false"),
    ];
    assert!(host.load(AGENT, &parameters), "{}", host.log());
}

/// Loads an agent module for the master module in the same process.
pub(crate) fn load_agent_with_embedded_master(host: &mut Host) {
    let own = host.address.to_string();
    load_agent(host, &own, Path::new("cni"));
}

/// Writes an executable shell script.
pub(crate) fn write_script(path: &Path, script: &str) {
    fs::write(path, format!("#!/bin/sh\n{script}\n")).expect("a file");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("the mode is set");
}

fn listen_as_master() -> Peer {
    Peer::listen("overlay-master", Ipv4Addr::LOCALHOST)
}

/// Returns the assignment that a master sends to an agent without Docker.
fn recorded_assignment() -> Update {
    let mut update = golden!("UpdateAgentOverlaysMessage").read::<Update>();
    for overlay in &mut update.overlays {
        overlay.docker_bridge = None;
    }
    update
}

/// Serves a registration. Returns the report of the agent.
fn serve_registration(host: &Host, master: &Peer) -> Registered {
    let request = master.receive();
    assert_eq!(request.from, format!("overlay-agent@{}", host.address));
    let config = request.read::<Register>().network_config.expect("the registration has options");
    assert!(config.mesos_bridge() && !config.docker_bridge());
    master.send(host.address, "overlay-agent", &recorded_assignment());
    let report = master.receive().read::<Registered>();
    master.send(host.address, "overlay-agent", &Acknowledgement {});
    report
}

fn is_ok(report: &Registered) -> bool {
    use mesos::modules::overlay::agent_overlay_info::state::Status;
    report.overlays.len() == 2
        && report
            .overlays
            .iter()
            .all(|overlay| overlay.state.as_ref().is_some_and(|state| state.status() == Status::Ok))
}

fn health(host: &Host) -> Value {
    host.get("/overlay-agent/health").json()
}

/// Checks that an agent registers, writes its CNI files, and registers again after its connection
/// to the master ends.
pub(crate) fn check_agent_reregistration(build: Build) -> Host {
    let mut host = Host::start(build);
    let master = listen_as_master();
    load_agent(&mut host, &master.address().to_string(), Path::new("cni"));
    assert!(host.path("cni").is_dir(), "the CNI directory must exist before Mesos reads it");
    let report = serve_registration(&host, &master);
    assert!(is_ok(&report), "{report:?}");
    for (name, subnet) in [("vxlan-1", "192.168.0.0/25"), ("vxlan-2", "192.168.128.0/25")] {
        let content =
            fs::read(host.path(&format!("cni/{name}.conf"))).expect("the agent wrote the file");
        let file: Value = serde_json::from_slice(&content).expect("the file is JSON");
        assert_eq!(file["name"], name);
        let file = file.to_string();
        assert!(file.contains(&format!("\"m-{name}\"")) && file.contains(subnet), "{file}");
    }
    let overlay = host.get("/overlay-agent/overlay");
    assert_eq!((overlay.status, overlay.content_type()), (200, "application/json"));
    assert_eq!(overlay.json()["ip"], "127.0.0.1");
    wait_for("agent health with the status ok", || (health(&host)["status"] == "ok").then_some(()));

    master.disconnect();
    assert!(is_ok(&serve_registration(&host, &master)), "the agent registers again");
    host
}

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn agent_reregisters_after_connection_ends() {
    check_agent_reregistration(Build::release());
}

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn agent_connects_to_master_that_starts_later() {
    let mut host = Host::start(Build::release());
    // Nothing listens on this address yet.
    let stopped = listen_as_master();
    let address = stopped.address();
    drop(stopped);
    load_agent(&mut host, &address.to_string(), Path::new("cni"));
    assert_eq!(health(&host)["status"], "registering");
    assert_eq!(host.get("/overlay-agent/health").status, 503);
    let master = Peer::listen_at("overlay-master", address).expect("the address is still free");
    assert!(is_ok(&serve_registration(&host, &master)));
}

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn agent_reads_master_address_from_file() {
    let mut host = Host::start(Build::release());
    let master = listen_as_master();
    let file = host.write("master", &format!("{}\n", master.address()));
    load_agent(&mut host, &format!("file://{}", file.display()), Path::new("cni"));
    assert!(is_ok(&serve_registration(&host, &master)));
}

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn agent_without_reply_registers_again() {
    let mut host = Host::start(Build::release());
    let master = listen_as_master();
    load_agent(&mut host, &master.address().to_string(), Path::new("cni"));
    // Without a reply, the agent repeats its registration.
    master.receive().read::<Register>();
    let retry = master.receive_within(Duration::from_secs(30));
    retry.expect("the agent registers again").read::<Register>();
    assert!(is_ok(&serve_registration(&host, &master)));
}

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn master_and_agent_run_in_one_process() {
    let mut host = Host::start(Build::release());
    host.load_master(NETWORK);
    load_agent_with_embedded_master(&mut host);
    let state = wait_for("agent with two overlays in the state", || {
        let state = host.wait_for_state();
        let overlays = state["agents"][0]["overlays"].as_array()?;
        let is_overlay_ok = |overlay: &Value| overlay["state"]["status"] == "STATUS_OK";
        (overlays.len() == 2 && overlays.iter().all(is_overlay_ok)).then_some(state.clone())
    });
    assert_eq!(state["agents"][0]["ip"], "127.0.0.1");
    wait_for("agent health with the status ok", || (health(&host)["status"] == "ok").then_some(()));
    assert_eq!(host.get("/overlay-agent/overlay").status, 200);
    assert!(!host.load(MASTER, &[]), "a second master module is refused");
}
