//! The trial of the documentation: what `make` leaves, as it is, and the commands of docs/mesos.md.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use super::daemon::Daemon;
use super::host::{Cluster, Host, wait_for, wait_until};
use super::mesos::{MASTER_PORT, plugins, program};
use crate::library::release_library;

/// The templates of the module files.
const MASTER: (&str, &str) =
    ("master_modules.json", include_str!("../../../cpp-shim/master_modules.json.in"));
const AGENT: (&str, &str) =
    ("agent_modules.json", include_str!("../../../cpp-shim/agent_modules.json.in"));

/// The module file that `make` has written beside the library's directory; where the library was
/// built in another way, the same as `make` would write it.
fn module_file(host: &Host, (name, template): (&str, &str)) -> String {
    let library = release_library();
    let made = library.ancestors().nth(2).map(|build| build.join(name));
    let path = made.filter(|path| path.exists()).unwrap_or_else(|| {
        let network = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/network.json");
        let library = library.to_str().expect("paths are text");
        let content = template.replace("@library@", library).replace("@network@", network);
        PathBuf::from(host.write(name, content))
    });
    format!("--modules=file://{}", path.display())
}

fn mesos(host: &Host, name: &str, flags: &[&str]) -> Daemon {
    let mut command = host.command(program(&format!("sbin/{name}")));
    // localhost is where the module file has the master, so Mesos has to be there.
    command.args(["--ip=127.0.0.1", "--hostname=localhost", "--work_dir=/var/lib/mesos"]);
    command.args(flags);
    Daemon::start(host, name, command)
}

#[test]
#[ignore = "mesos: needs a Mesos installation, root and packages: tests/run mesos"]
fn the_trial_on_one_machine_works_as_it_is_documented() {
    let of_the_machine =
        || fs::metadata("/var/lib/mesos-overlay").and_then(|it| it.modified()).ok();
    let before = of_the_machine();
    let cluster = Cluster::new();
    let hub = cluster.hub();
    // Of the host's own, since the documented paths are the machine's.
    for directory in ["/var/lib", "/run"] {
        hub.succeed("mount", &["-t", "tmpfs", "mesos-overlay-test", directory]);
    }
    let mut master = mesos(hub, "mesos-master", &[&module_file(hub, MASTER)]);
    let master_says = |words: &str| master.says(words);
    master_says("overlay master at 127.0.0.1:5050");
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
    agent.says("registered with the master");

    let get = |path: &str| {
        let answer = hub.get_local(MASTER_PORT, path);
        answer.filter(|answer| answer.status == 200).map_or(Value::Null, |answer| answer.json())
    };
    let state = wait_until(
        "the agent has said what it made",
        || get("/overlay-master/state"),
        |state| state["agents"][0]["overlays"][1]["state"]["status"] == "STATUS_FAILED",
    );
    assert_eq!(state["agents"][0]["ip"], "127.0.0.1");
    // There is no Docker on this host. The other half is there all the same.
    let reason = state["agents"][0]["overlays"][0]["state"]["error"].as_str().unwrap_or_default();
    assert!(reason.contains("Docker daemon"), "{state}");
    let file = "/var/lib/mesos/cni/vxlan-1.conf";
    let written: Value = serde_json::from_str(&hub.succeed("cat", &[file])).expect("it is JSON");
    assert_eq!(written["name"], "vxlan-1");
    assert_eq!(written["type"], "mesos-cni-port-mapper");
    wait_for("Mesos has the agent as well", || {
        let agents = get("/slaves")["slaves"].as_array().map_or(0, Vec::len);
        (agents == 1).then_some(())
    });
    hub.succeed("ls", &["/var/lib/mesos-overlay/overlay-master.redb"]);
    master.signal(rustix::process::Signal::TERM);
    assert_eq!(of_the_machine(), before, "it is the host's own");
}
