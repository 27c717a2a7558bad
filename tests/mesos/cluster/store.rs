//! The stores of the master module: a full disk, and the state of the C++ module.

use std::fs;
use std::path::Path;

use rustix::process::Signal;
use serde_json::Value;

use super::host::{Cluster, files, wait_for, wait_until};
use super::json_shape::golden;
use super::mesos::{
    MASTER, MASTER_ADDRESS, MASTER_PORT, PROGRAM, Parameters, addresses, modules,
    start_mesos_master, start_module_agent, start_module_master, state, wait_until_ready,
};

#[test]
#[ignore = "mesos: needs a Mesos installation, root and packages: tests/run mesos"]
fn master_with_full_disk_waits_for_space() {
    let mut cluster = Cluster::new();
    let (hub, host) = (cluster.hub().clone(), cluster.add_host());
    let work_dir = hub.text("overlay");
    hub.run_ok("mkdir", &[&work_dir]);
    let small = ["-t", "tmpfs", "-o", "size=4k", "mesos-overlay-test", &work_dir];
    hub.run_ok("mount", &small);
    let master = start_module_master(&hub);
    let _agent = start_module_agent(&host, MASTER_ADDRESS);

    let health = || {
        let response = hub.get(MASTER_PORT, "/overlay-master/health");
        response.map(|response| (response.status, response.text()))
    };
    let is_failed = |health: &Option<(u16, String)>| {
        health.as_ref().is_some_and(|(status, text)| *status == 503 && text.contains("failed"))
    };
    wait_until("health with the status failed", health, is_failed);
    let line = master.wait_for_log("free some disk space");
    assert!(line.starts_with('E') || line.starts_with('W'), "{line}");
    let snapshot = hub.get(MASTER_PORT, "/metrics/snapshot").expect("a response").json();
    assert_eq!(snapshot["overlay/master/recovering"], 1.0);
    wait_for("registration with Mesos", || {
        let agents = hub.get(MASTER_PORT, "/slaves")?.json();
        (agents["slaves"].as_array().map(Vec::len) == Some(1)).then_some(())
    });
    assert_eq!(state(&hub), Value::Null);
    assert!(
        !host.path("cni/vxlan-1.conf").exists(),
        "the agent received an assignment that is not durable"
    );

    hub.run_ok("mount", &["-o", "remount,size=64m", &work_dir]);
    wait_until_ready(&hub, &[&host]);
}

#[test]
#[ignore = "mesos: needs a Mesos installation, root and packages: tests/run mesos"]
fn master_imports_state_of_cpp_module() {
    let mut cluster = Cluster::new();
    let (hub, host) = (cluster.hub().clone(), cluster.add_host());
    let recorded = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let log = hub.path("log").join("overlay_replicated_log");
    fs::create_dir_all(&log).expect("a directory");
    for file in files(&recorded.join("overlay_replicated_log")) {
        let name = file.file_name().expect("a file has a name");
        fs::copy(&file, log.join(name)).expect("the file is copied");
    }
    let start = || {
        let parameters = Parameters::master(&hub).without("work_dir");
        let parameters = parameters.with(&[("replicated_log_dir", &hub.text("log"))]);
        start_mesos_master(&hub, &modules(&hub, &[(MASTER, &parameters)]), &[])
    };
    let master = start();
    // The recorded agent does not run. It keeps its addresses.
    let is_loaded = |state: &Value| !state.is_null();
    let imported = addresses(&wait_until("the state is loaded", || state(&hub), is_loaded));
    assert_eq!(imported, addresses(&golden!("overlay-master-state.json")));

    let has_two = |state: &Value| addresses(state).len() == 2;
    let agent = start_module_agent(&host, MASTER_ADDRESS);
    let both = addresses(&wait_until("registration of another agent", || state(&hub), has_two));
    assert_eq!(both["127.0.0.1"], imported["127.0.0.1"]);
    assert_eq!(both["10.0.0.2"][0]["subnet"], "192.168.1.0/24");
    agent.end(Signal::KILL);
    master.end(Signal::KILL);
    let master = start();
    let again = addresses(&wait_until("the state is loaded again", || state(&hub), is_loaded));
    assert_eq!(again, both);

    // Mesos can also load a log that the program wrote.
    master.end(Signal::KILL);
    let (store, file) = (format!("log:{}", log.display()), hub.text("state.json"));
    hub.run_ok(PROGRAM, &["export", "--from", &store, "--output", &file]);
    let network = hub.text("network.json");
    let import = ["import", &file, "--to", &store, "--config", &network, "--replace"];
    hub.run_ok(PROGRAM, &import);
    let _master = start();
    let moved = addresses(&wait_until("the imported state is loaded", || state(&hub), is_loaded));
    assert_eq!(moved, both);
}
