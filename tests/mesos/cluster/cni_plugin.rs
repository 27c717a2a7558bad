//! Tasks of both containerizers with the CNI plugin of mesos-overlay: each has one address.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::rc::Rc;

use serde_json::{Value, json};

use super::daemon::Daemon;
use super::docker::{IMAGE, import_image, start_dockerd};
use super::host::{Cluster, Host, wait_until};
use super::mesos::{
    AGENT, DOCKER, MASTER_ADDRESS, PROGRAM, Parameters, modules, plugins, start_mesos_agent,
    start_module_master, wait_until_ready,
};
use super::scheduler::Scheduler;

/// Number of tasks that run at the same time.
const AT_ONCE: usize = 50;
/// Number of tasks that run one after another, unless this variable has another number. The tier
/// `host` runs 1,000 containers in a shorter time.
const IN_TURN: usize = 40;
const IN_TURN_VARIABLE: &str = "MESOS_OVERLAY_TASKS_IN_TURN";
/// Fails unless the container has exactly one address, and reaches its gateway.
const CHECK: &str = "busybox test $(busybox ip -4 -o address show scope global | busybox wc -l) \
                     -eq 1 && busybox ping -c 1 -W 5";

/// A cluster of one agent with the plugin.
struct Setup {
    host: Rc<Host>,
    scheduler: Scheduler,
    _daemons: Vec<Daemon>,
    _cluster: Cluster,
}

impl Setup {
    fn new(with_docker: bool) -> Self {
        let mut cluster = Cluster::new();
        let (hub, host) = (cluster.hub().clone(), cluster.add_host());
        fs::create_dir(host.path("plugins")).expect("a directory");
        let built = Path::new(PROGRAM).with_file_name("mesos-overlay-cni");
        fs::copy(built, host.path("plugins/mesos-overlay-cni"))
            .expect("run 'cargo build -p overlay-cni-plugin' first");
        let plugins = format!("{}:{}", host.text("plugins"), plugins());
        let mut daemons = vec![start_module_master(&hub)];
        let mut parameters = Parameters::agent(&host, MASTER_ADDRESS)
            .with(&[("cni_plugin", "overlay"), ("cni_plugins_dir", &plugins)]);
        let mut flags = vec![
            format!("--network_cni_plugins_dir={plugins}"),
            "--resources=cpus:8;mem:8192;disk:8192;ports:[31000-31009]".to_owned(),
        ];
        if with_docker {
            daemons.push(start_dockerd(&host));
            import_image(&host);
            parameters = parameters.without("docker_bridge").with(&[("docker", DOCKER)]);
            flags.push("--containerizers=docker,mesos".to_owned());
            flags.push(format!("--docker={DOCKER}"));
            flags.push(format!("--docker_socket={}", host.text("docker.sock")));
        }
        let list = modules(&host, &[(AGENT, &parameters)]);
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        daemons.push(start_mesos_agent(&host, MASTER_ADDRESS, &list, &flags));
        wait_until_ready(&hub, &[&host]);
        let config = fs::read(host.path("cni/vxlan-1.conf")).expect("a CNI configuration");
        let config: Value = serde_json::from_slice(&config).expect("valid JSON");
        assert_eq!(config["type"], "mesos-overlay-cni");
        let scheduler = Scheduler::new(&hub);
        Self { host, scheduler, _daemons: daemons, _cluster: cluster }
    }

    /// Returns the leased addresses of containers.
    fn leased(&self) -> BTreeSet<String> {
        let Ok(entries) = fs::read_dir(self.host.path("leases/vxlan-1")) else {
            return BTreeSet::new();
        };
        // The probes of the agent have the last address.
        let is_lease = |name: &String| name.starts_with("192.168.") && !name.ends_with(".126");
        let names = entries.map(|entry| entry.expect("a readable entry").file_name());
        names.map(|name| name.to_string_lossy().into_owned()).filter(is_lease).collect()
    }

    /// Checks that the ended tasks have left no lease and no port.
    fn wait_until_nothing_is_left(&self) {
        let left = || {
            let ports = self.host.run_ok("ip", &["-o", "link", "show", "master", "m-vxlan-1"]);
            let ports = ports.lines().filter(|line| line.contains(": veth"));
            (self.leased(), ports.map(str::to_owned).collect::<Vec<_>>())
        };
        wait_until("ended tasks leave nothing", left, |(leases, ports)| {
            leases.is_empty() && ports.is_empty()
        });
    }
}

fn ids(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{prefix}-{number}")).collect()
}

fn mesos_task(command: &str) -> Value {
    json!({
        "command": {"value": command},
        "container": {"type": "MESOS", "network_infos": [{"name": "vxlan-1"}]},
    })
}

#[test]
#[ignore = "mesos: needs a Mesos installation, root and packages: tests/run mesos"]
fn tasks_at_once_and_in_turn_get_one_address_each() {
    let mut setup = Setup::new(false);
    let stop = setup.host.text("stop");
    let check = format!("{CHECK} 192.168.0.1");
    let command = format!("{check} && until test -e {stop}; do sleep 0.5; done");
    let at_once = ids("at-once", AT_ONCE);
    setup.scheduler.launch(&at_once, &mesos_task(&command));
    setup.scheduler.wait_for_state(&at_once, "TASK_RUNNING");
    let addresses: Vec<Vec<String>> =
        at_once.iter().map(|id| setup.scheduler.tasks[id].addresses.clone()).collect();
    assert!(addresses.iter().all(|own| own.len() == 1), "{addresses:?}");
    let distinct: BTreeSet<String> = addresses.into_iter().flatten().collect();
    assert_eq!((distinct.len(), &distinct), (AT_ONCE, &setup.leased()));
    fs::write(&stop, "").expect("a file");
    setup.scheduler.wait_for_state(&at_once, "TASK_FINISHED");
    setup.wait_until_nothing_is_left();

    let in_turn = std::env::var(IN_TURN_VARIABLE);
    let in_turn = in_turn.map_or(IN_TURN, |text| text.parse().expect("a number of tasks"));
    let mut former = BTreeSet::new();
    for id in ids("in-turn", in_turn) {
        let id = [id];
        setup.scheduler.launch(&id, &mesos_task(&check));
        setup.scheduler.wait_for_state(&id, "TASK_FINISHED");
        assert_eq!(setup.scheduler.tasks[&id[0]].addresses.len(), 1);
        former.extend(setup.scheduler.tasks[&id[0]].addresses.clone());
    }
    setup.wait_until_nothing_is_left();
    // The next address is that after the last one, so caches of peers have time to end.
    assert!(former.len() > in_turn.min(100) / 2, "{former:?}");
}

#[test]
#[ignore = "mesos: needs a Mesos installation, root and packages: tests/run mesos"]
fn docker_task_keeps_its_only_address() {
    let mut setup = Setup::new(true);
    let stop = setup.host.text("stop");
    // clusterd runs the plugin after the task has started.
    let script = |gateway: &str| format!("busybox sleep 3; {CHECK} {gateway} && busybox sleep 15");
    let docker = json!({
        "command": {"shell": true, "value": script("192.168.0.129")},
        "container": {"type": "DOCKER", "docker": {"image": IMAGE, "network": "USER"},
            "network_infos": [{"name": "vxlan-1"}]},
    });
    let id = ["docker".to_owned()];
    setup.scheduler.launch(&id, &docker);
    let beside = ["mesos".to_owned()];
    let command = format!("{CHECK} 192.168.0.130 && until test -e {stop}; do sleep 0.5; done");
    setup.scheduler.wait_for_state(&id, "TASK_RUNNING");
    assert_eq!(setup.scheduler.tasks["docker"].addresses, ["192.168.0.130"]);
    setup.scheduler.launch(&beside, &mesos_task(&command));
    setup.scheduler.wait_for_state(&beside, "TASK_RUNNING");
    assert_eq!(setup.scheduler.tasks["mesos"].addresses, ["192.168.0.2"]);
    assert_eq!(setup.leased(), ["192.168.0.2".to_owned()].into(), "Docker's address has no lease");
    setup.scheduler.wait_for_state(&id, "TASK_FINISHED");
    fs::write(&stop, "").expect("a file");
    setup.scheduler.wait_for_state(&beside, "TASK_FINISHED");
    setup.wait_until_nothing_is_left();
}
