//! Where the state is kept: what happens without room for it, and that of the C++ module.

use std::fs;
use std::path::Path;

use rustix::process::Signal;
use serde_json::Value;

use super::form::golden;
use super::host::{Cluster, files, wait_for, wait_until};
use super::mesos::{
    MASTER, MASTER_ADDRESS, MASTER_PORT, PROGRAM, Parameters, addresses, mesos_master,
    module_agent, module_master, modules, ready, state,
};

#[test]
#[ignore = "mesos: needs a Mesos installation, root and packages: tests/run mesos"]
fn a_master_without_room_for_its_state_waits_for_it() {
    let mut cluster = Cluster::new();
    let (hub, host) = (cluster.hub().clone(), cluster.host());
    let work_dir = hub.text("overlay");
    hub.succeed("mkdir", &[&work_dir]);
    let small = ["-t", "tmpfs", "-o", "size=4k", "mesos-overlay-test", &work_dir];
    hub.succeed("mount", &small);
    let master = module_master(&hub);
    let _agent = module_agent(&host, MASTER_ADDRESS);

    let health = || {
        let answer = hub.get(MASTER_PORT, "/overlay-master/health");
        answer.map(|answer| (answer.status, answer.text()))
    };
    let is_failed = |health: &Option<(u16, String)>| {
        health.as_ref().is_some_and(|(status, text)| *status == 503 && text.contains("failed"))
    };
    wait_until("the master says that it failed", health, is_failed);
    let line = master.says("make room for it");
    assert!(line.starts_with('E') || line.starts_with('W'), "{line}");
    let snapshot = hub.get(MASTER_PORT, "/metrics/snapshot").expect("an answer").json();
    assert_eq!(snapshot["overlay/master/recovering"], 1.0);
    wait_for("Mesos itself has the agent", || {
        let agents = hub.get(MASTER_PORT, "/slaves")?.json();
        (agents["slaves"].as_array().map(Vec::len) == Some(1)).then_some(())
    });
    assert_eq!(state(&hub), Value::Null);
    assert!(!host.path("cni/vxlan-1.conf").exists(), "the agent was promised something");

    hub.succeed("mount", &["-o", "remount,size=64m", &work_dir]);
    ready(&hub, &[&host]);
}

#[test]
#[ignore = "mesos: needs a Mesos installation, root and packages: tests/run mesos"]
fn the_state_of_the_cpp_module_is_taken_over() {
    let mut cluster = Cluster::new();
    let (hub, host) = (cluster.hub().clone(), cluster.host());
    let recorded = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let log = hub.path("log").join("overlay_replicated_log");
    fs::create_dir_all(&log).expect("a directory");
    for file in files(&recorded.join("overlay_replicated_log")) {
        let name = file.file_name().expect("it has a name");
        fs::copy(&file, log.join(name)).expect("it is copied");
    }
    let start = || {
        let parameters = Parameters::master(&hub).without("work_dir");
        let parameters = parameters.with(&[("replicated_log_dir", &hub.text("log"))]);
        mesos_master(&hub, &modules(&hub, &[(MASTER, &parameters)]), &[])
    };
    let master = start();
    // The agent of the recording is not there, and keeps what it has.
    let is_read = |state: &Value| !state.is_null();
    let taken = addresses(&wait_until("the state is read", || state(&hub), is_read));
    assert_eq!(taken, addresses(&golden!("overlay-master-state.json")));

    let has_two = |state: &Value| addresses(state).len() == 2;
    let agent = module_agent(&host, MASTER_ADDRESS);
    let both = addresses(&wait_until("another one registers", || state(&hub), has_two));
    assert_eq!(both["127.0.0.1"], taken["127.0.0.1"]);
    assert_eq!(both["10.0.0.2"][0]["subnet"], "192.168.1.0/24");
    agent.end(Signal::KILL);
    master.end(Signal::KILL);
    let master = start();
    let again = addresses(&wait_until("it is read again", || state(&hub), is_read));
    assert_eq!(again, both);

    // A log that the program made of it is one of Mesos, too.
    master.end(Signal::KILL);
    let (place, file) = (format!("log:{}", log.display()), hub.text("state.json"));
    hub.succeed(PROGRAM, &["export", "--from", &place, "--output", &file]);
    let network = hub.text("network.json");
    let import = ["import", &file, "--to", &place, "--config", &network, "--replace"];
    hub.succeed(PROGRAM, &import);
    let _master = start();
    let moved = addresses(&wait_until("what was imported is read", || state(&hub), is_read));
    assert_eq!(moved, both);
}
