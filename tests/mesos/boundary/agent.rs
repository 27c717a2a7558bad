//! The agent part: what it writes and says to a master that the test plays.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use mesos_network_overlay::wire::mesos;
use serde_json::Value;

use super::host::{AGENT, Build, Host, MASTER, text};
use super::master::{NETWORK, golden};
use super::peer::{Acknowledgement, Peer, Register, Registered, Update, wait_for};

/// Loads an agent that follows `master` and needs neither Docker nor a kernel's help.
pub(crate) fn load_agent(host: &mut Host, master: &str, cni: &Path) {
    let (cni, plugins) = (host.path("").join(cni), host.path("plugins"));
    fs::create_dir_all(&plugins).expect("a directory");
    for plugin in ["bridge", "host-local", "mesos-cni-port-mapper"] {
        make_program(&plugins.join(plugin), "exit 1");
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

/// The same, whose master is in the same process.
pub(crate) fn load_agent_of_own_master(host: &mut Host) {
    let own = host.address.to_string();
    load_agent(host, &own, Path::new("cni"));
}

/// A program that nobody is to run, or that does little.
pub(crate) fn make_program(path: &Path, script: &str) {
    fs::write(path, format!("#!/bin/sh\n{script}\n")).expect("a file");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("it is ours");
}

fn master() -> Peer {
    Peer::listen("overlay-master", Ipv4Addr::LOCALHOST)
}

/// What a master would answer to an agent without Docker.
fn share() -> Update {
    let mut update = golden!("UpdateAgentOverlaysMessage").read::<Update>();
    for overlay in &mut update.overlays {
        overlay.docker_bridge = None;
    }
    update
}

/// Serves a registration, and gives what the agent reports.
fn serve(host: &Host, master: &Peer) -> Registered {
    let asked = master.receive();
    assert_eq!(asked.from, format!("overlay-agent@{}", host.address));
    let config = asked.read::<Register>().network_config.expect("it says what it wants");
    assert!(config.mesos_bridge() && !config.docker_bridge());
    master.send(host.address, "overlay-agent", &share());
    let reported = master.receive().read::<Registered>();
    master.send(host.address, "overlay-agent", &Acknowledgement {});
    reported
}

fn is_ok(reported: &Registered) -> bool {
    use mesos::modules::overlay::agent_overlay_info::state::Status;
    reported.overlays.len() == 2
        && reported
            .overlays
            .iter()
            .all(|overlay| overlay.state.as_ref().is_some_and(|state| state.status() == Status::Ok))
}

fn health(host: &Host) -> Value {
    host.get("/overlay-agent/health").json()
}

/// An agent registers, makes its networks, and registers again when the master's connection ends.
pub(crate) fn an_agent_and_its_master(build: Build) -> Host {
    let mut host = Host::start(build);
    let master = master();
    load_agent(&mut host, &master.address().to_string(), Path::new("cni"));
    assert!(host.path("cni").is_dir(), "it is there before Mesos looks for it");
    let reported = serve(&host, &master);
    assert!(is_ok(&reported), "{reported:?}");
    for (name, subnet) in [("vxlan-1", "192.168.0.0/25"), ("vxlan-2", "192.168.128.0/25")] {
        let content = fs::read(host.path(&format!("cni/{name}.conf"))).expect("it is written");
        let file: Value = serde_json::from_slice(&content).expect("it is JSON");
        assert_eq!(file["name"], name);
        let file = file.to_string();
        assert!(file.contains(&format!("\"m-{name}\"")) && file.contains(subnet), "{file}");
    }
    let overlay = host.get("/overlay-agent/overlay");
    assert_eq!((overlay.status, overlay.content_type()), (200, "application/json"));
    assert_eq!(overlay.json()["ip"], "127.0.0.1");
    wait_for("a healthy agent", || (health(&host)["status"] == "ok").then_some(()));

    master.disconnect();
    assert!(is_ok(&serve(&host, &master)), "it registers again");
    host
}

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn an_agent_registers_again_when_the_connection_ends() {
    an_agent_and_its_master(Build::release());
}

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn an_agent_finds_its_master_when_that_comes() {
    let mut host = Host::start(Build::release());
    // Nobody is there.
    let gone = master();
    let address = gone.address();
    drop(gone);
    load_agent(&mut host, &address.to_string(), Path::new("cni"));
    assert_eq!(health(&host)["status"], "registering");
    assert_eq!(host.get("/overlay-agent/health").status, 503);
    let master = Peer::listen_at("overlay-master", address).expect("nobody has taken it");
    assert!(is_ok(&serve(&host, &master)));
}

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn the_master_may_stand_in_a_file() {
    let mut host = Host::start(Build::release());
    let master = master();
    let file = host.write("master", &format!("{}\n", master.address()));
    load_agent(&mut host, &format!("file://{}", file.display()), Path::new("cni"));
    assert!(is_ok(&serve(&host, &master)));
}

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn an_unknown_process_at_the_master_is_asked_again() {
    let mut host = Host::start(Build::release());
    let master = master();
    load_agent(&mut host, &master.address().to_string(), Path::new("cni"));
    // It gets no answer, and asks until it gets one.
    master.receive().read::<Register>();
    let again = master.receive_within(Duration::from_secs(30));
    again.expect("it asks again").read::<Register>();
    assert!(is_ok(&serve(&host, &master)));
}

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn both_parts_can_live_in_one_process() {
    let mut host = Host::start(Build::release());
    host.load_master(NETWORK);
    load_agent_of_own_master(&mut host);
    let state = wait_for("the agent in the state", || {
        let state = host.wait_for_state();
        let overlays = state["agents"][0]["overlays"].as_array()?;
        let ok = |overlay: &Value| overlay["state"]["status"] == "STATUS_OK";
        (overlays.len() == 2 && overlays.iter().all(ok)).then_some(state.clone())
    });
    assert_eq!(state["agents"][0]["ip"], "127.0.0.1");
    wait_for("a healthy agent", || (health(&host)["status"] == "ok").then_some(()));
    assert_eq!(host.get("/overlay-agent/overlay").status, 200);
    assert!(!host.load(MASTER, &[]), "one of a kind is enough");
}
