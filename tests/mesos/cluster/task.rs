//! Tasks get addresses from the subnet of their agent, and survive restarts of master and agent.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use rustix::process::Signal;

use super::daemon::Daemon;
use super::docker::{IMAGE, import_image, start_dockerd};
use super::host::{Cluster, Host, files, wait_for};
use super::mesos::{
    AGENT, DOCKER, MASTER_ADDRESS, Parameters, modules, program, start_mesos_agent,
    start_module_agent, start_module_master, wait_until_ready,
};

/// Starts a task on the network vxlan-1.
fn start_task(hub: &Host, command: &str, flags: &[&str]) -> Daemon {
    let mut execute = hub.command(program("bin/mesos-execute"));
    execute.env("LIBPROCESS_IP", hub.ip.to_string()).arg(format!("--master={MASTER_ADDRESS}"));
    execute.args(["--name=task", "--resources=cpus:0.1;mem:32", "--networks=vxlan-1"]);
    execute.arg(format!("--command={command}")).args(flags);
    Daemon::start(hub, "mesos-execute", execute)
}

/// Runs a task to its end. Returns its stdout.
fn run_task(hub: &Host, agent: &Host, command: &str, flags: &[&str]) -> String {
    start_task(hub, command, flags).wait_for_log("TASK_FINISHED");
    task_output(agent).expect("the task had a sandbox")
}

/// Returns the stdout of the only task of a host.
fn task_output(agent: &Host) -> Option<String> {
    fn find(directory: &Path) -> Option<String> {
        files(directory).filter(|path| !path.is_symlink()).find_map(|path| {
            if path.is_dir() {
                return find(&path);
            }
            let is_output = path.file_name().is_some_and(|name| name == "stdout");
            let text = is_output.then(|| fs::read_to_string(&path).expect("stdout is text"))?;
            (!text.is_empty()).then_some(text)
        })
    }
    find(&agent.path("mesos/work_dir/slaves"))
}

/// Parses the address in the output of `ip -o address`.
fn address(printed: &str) -> Ipv4Addr {
    let address = printed.split(" inet ").nth(1).and_then(|rest| rest.split('/').next());
    address.and_then(|text| text.parse().ok()).expect(printed)
}

#[test]
#[ignore = "mesos: needs a Mesos installation, root and packages: tests/run mesos"]
fn mesos_task_gets_address_of_mesos_half() {
    let mut cluster = Cluster::new();
    let (hub, host) = (cluster.hub().clone(), cluster.add_host());
    let _master = start_module_master(&hub);
    let _agent = start_module_agent(&host, MASTER_ADDRESS);
    wait_until_ready(&hub, &[&host]);

    let command = "ip -4 -o address show dev eth0; ip route; ls -l /proc/self/fd";
    let printed = run_task(&hub, &host, command, &["--containerizer=mesos"]);
    // 192.168.0.0 is the network and 192.168.0.1 the gateway.
    assert_eq!(address(&printed), Ipv4Addr::new(192, 168, 0, 2), "{printed}");
    assert!(printed.contains("inet 192.168.0.2/25"), "{printed}");
    assert!(printed.contains("default via 192.168.0.1 dev eth0"), "{printed}");
    // Tasks do not inherit descriptors of the module.
    assert!(!printed.contains("anon_inode") && !printed.contains("socket"), "{printed}");
    let bridges = host.run_ok("ip", &["-o", "link", "show", "type", "bridge"]);
    assert!(bridges.contains("m-vxlan-1") && bridges.contains("mtu 1420"), "{bridges}");
}

#[test]
#[ignore = "mesos: needs a Mesos installation, root and packages: tests/run mesos"]
fn docker_task_gets_address_of_docker_half() {
    let mut cluster = Cluster::new();
    let (hub, host) = (cluster.hub().clone(), cluster.add_host());
    let _docker = start_dockerd(&host);
    import_image(&host);
    let _master = start_module_master(&hub);
    let parameters = Parameters::agent(&host, MASTER_ADDRESS).without("docker_bridge");
    let list = modules(&host, &[(AGENT, &parameters.with(&[("docker", DOCKER)]))]);
    let socket = format!("--docker_socket={}", host.text("docker.sock"));
    let docker = format!("--docker={DOCKER}");
    let flags = ["--containerizers=docker,mesos", &docker, &socket];
    let _agent = start_mesos_agent(&host, MASTER_ADDRESS, &list, &flags);
    wait_until_ready(&hub, &[&host]);

    let image = format!("--docker_image={IMAGE}");
    let command = "/bin/busybox ip -4 -o address show dev eth0";
    let printed = run_task(&hub, &host, command, &["--containerizer=docker", &image]);
    assert_eq!(address(&printed), Ipv4Addr::new(192, 168, 0, 130), "{printed}");
}

#[test]
#[ignore = "mesos: needs a Mesos installation, root and packages: tests/run mesos"]
fn task_keeps_address_after_master_and_agent_restart() {
    let mut cluster = Cluster::new();
    let (hub, host) = (cluster.hub().clone(), cluster.add_host());
    let master = start_module_master(&hub);
    let agent = start_module_agent(&host, MASTER_ADDRESS);
    wait_until_ready(&hub, &[&host]);
    let command = "while sleep 0.2; do ip -4 -o address show dev eth0; done";
    let _task = start_task(&hub, command, &["--containerizer=mesos", "--checkpoint"]);
    let lines = || {
        let printed = task_output(&host).unwrap_or_default();
        printed.split_inclusive('\n').filter(|line| line.ends_with('\n')).map(address).collect()
    };
    let enough = |lines: Vec<Ipv4Addr>| (lines.len() > 2).then_some(lines);
    let before = wait_for("output of the task", || enough(lines()));

    agent.end(Signal::KILL);
    master.end(Signal::KILL);
    let _master = start_module_master(&hub);
    let _agent = start_module_agent(&host, MASTER_ADDRESS);
    wait_until_ready(&hub, &[&host]);
    let so_far = lines().len();
    let after =
        wait_for("output of the task after the restart", || enough(lines().split_off(so_far)));
    assert!(before.iter().chain(&after).all(|address| *address == before[0]), "{after:?}");
}
