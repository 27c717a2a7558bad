//! The trial setup of docs/mesos.md: the files that `make` creates, and the documented commands.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use super::daemon::Daemon;
use super::host::{Cluster, Host, wait_for, wait_until};
use super::mesos::{MASTER_PORT, plugins};
use crate::library::{daemon, release_library};

/// The templates of the module files.
const MASTER: (&str, &str) =
    ("master_modules.json", include_str!("../../../cpp-shim/master_modules.json.in"));
const AGENT: (&str, &str) =
    ("agent_modules.json", include_str!("../../../cpp-shim/agent_modules.json.in"));

/// Returns the flag with the module file that `make` wrote beside the directory of the library. If
/// the library was not built by `make`, this function writes the same file.
fn module_file(host: &Host, (name, template): (&str, &str)) -> String {
    let library = release_library();
    let by_make = library.ancestors().nth(2).map(|build| build.join(name));
    let path = by_make.filter(|path| path.exists()).unwrap_or_else(|| {
        let network = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/network.json");
        let library = library.to_str().expect("paths are text");
        let content = template.replace("@library@", library).replace("@network@", network);
        PathBuf::from(host.write(name, content))
    });
    format!("--modules=file://{}", path.display())
}

fn mesos(host: &Host, name: &str, flags: &[&str]) -> Daemon {
    let mut command = host.command(daemon(name));
    // Mesos listens on localhost, which is the master address in the module file.
    command.args(["--ip=127.0.0.1", "--hostname=localhost", "--work_dir=/var/lib/mesos"]);
    command.args(flags);
    Daemon::start(host, name, command)
}

#[test]
#[ignore = "mesos: needs a Mesos installation, root and packages: tests/run mesos"]
fn trial_on_one_machine_works_as_documented() {
    let modified_on_machine =
        || fs::metadata("/var/lib/mesos-overlay").and_then(|file| file.modified()).ok();
    let before = modified_on_machine();
    let cluster = Cluster::new();
    let hub = cluster.hub();
    // The documented paths are absolute, so hide those of the machine.
    for directory in ["/var/lib", "/run"] {
        hub.run_ok("mount", &["-t", "tmpfs", "mesos-overlay-test", directory]);
    }
    let mut master = mesos(hub, "mesos-master", &[&module_file(hub, MASTER)]);
    master.wait_for_log("overlay master at 127.0.0.1:5050");
    let plugins = format!("--network_cni_plugins_dir={}", plugins());
    let cgroups = format!("--cgroups_root={}", hub.name());
    let flags = [
        "--master=127.0.0.1:5050",
        &module_file(hub, AGENT),
        "--isolation=cgroups/cpu,cgroups/mem,filesystem/linux,network/cni",
        "--containerizers=mesos",
        "--network_cni_config_dir=/var/lib/mesos/cni",
        &plugins,
        &cgroups,
        "--no-systemd_enable_support",
    ];
    let agent = mesos(hub, "mesos-agent", &flags);
    agent.wait_for_log("registered with the master");

    let get = |path: &str| {
        let response = hub.get_local(MASTER_PORT, path);
        response
            .filter(|response| response.status == 200)
            .map_or(Value::Null, |response| response.json())
    };
    let state = wait_until(
        "report of the agent",
        || get("/overlay-master/state"),
        |state| state["agents"][0]["overlays"][1]["state"]["status"] == "STATUS_FAILED",
    );
    assert_eq!(state["agents"][0]["ip"], "127.0.0.1");
    // This host has no Docker, so the overlay fails. The Mesos half works nevertheless.
    let reason = state["agents"][0]["overlays"][0]["state"]["error"].as_str().unwrap_or_default();
    assert!(reason.contains("Docker daemon"), "{state}");
    let file = "/var/lib/mesos/cni/vxlan-1.conf";
    let written: Value =
        serde_json::from_str(&hub.run_ok("cat", &[file])).expect("the file is JSON");
    assert_eq!(written["name"], "vxlan-1");
    assert_eq!(written["type"], "mesos-cni-port-mapper");
    wait_for("registration with Mesos", || {
        let agents = get("/slaves")["slaves"].as_array().map_or(0, Vec::len);
        (agents == 1).then_some(())
    });
    hub.run_ok("ls", &["/var/lib/mesos-overlay/overlay-master.redb"]);
    master.signal(rustix::process::Signal::TERM);
    assert_eq!(
        modified_on_machine(),
        before,
        "the test changed the state directory of the machine"
    );
}
