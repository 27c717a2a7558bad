//! Tasks get their addresses out of the halves of their agent, and notice nothing of a restart.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use rustix::process::Signal;

use super::daemon::Daemon;
use super::docker::{IMAGE, dockerd, import_image};
use super::host::{Cluster, Host, files, wait_for};
use super::mesos::{
    AGENT, DOCKER, MASTER_ADDRESS, Parameters, mesos_agent, module_agent, module_master, modules,
    program, ready,
};

/// Starts a command in a container on the network vxlan-1.
fn start(hub: &Host, command: &str, flags: &[&str]) -> Daemon {
    let mut execute = hub.command(program("bin/mesos-execute"));
    execute.env("LIBPROCESS_IP", hub.ip.to_string()).arg(format!("--master={MASTER_ADDRESS}"));
    execute.args(["--name=task", "--resources=cpus:0.1;mem:32", "--networks=vxlan-1"]);
    execute.arg(format!("--command={command}")).args(flags);
    Daemon::start(hub, "mesos-execute", execute)
}

/// Runs one to its end, and returns what it prints.
fn run(hub: &Host, agent: &Host, command: &str, flags: &[&str]) -> String {
    start(hub, command, flags).says("TASK_FINISHED");
    printed(agent).expect("the task had a sandbox")
}

/// What the only task of a host has printed.
fn printed(agent: &Host) -> Option<String> {
    fn find(directory: &Path) -> Option<String> {
        files(directory).filter(|path| !path.is_symlink()).find_map(|path| {
            if path.is_dir() {
                return find(&path);
            }
            let is_output = path.file_name().is_some_and(|name| name == "stdout");
            let text = is_output.then(|| fs::read_to_string(&path).expect("it is text"))?;
            (!text.is_empty()).then_some(text)
        })
    }
    find(&agent.path("mesos/work_dir/slaves"))
}

/// The address in what `ip -o address` prints.
fn address(printed: &str) -> Ipv4Addr {
    let address = printed.split(" inet ").nth(1).and_then(|rest| rest.split('/').next());
    address.and_then(|text| text.parse().ok()).expect(printed)
}

#[test]
#[ignore = "mesos: needs a Mesos installation, root and packages: tests/run mesos"]
fn a_task_gets_an_address_of_the_mesos_half() {
    let mut cluster = Cluster::new();
    let (hub, host) = (cluster.hub().clone(), cluster.host());
    let _master = module_master(&hub);
    let _agent = module_agent(&host, MASTER_ADDRESS);
    ready(&hub, &[&host]);

    let command = "ip -4 -o address show dev eth0; ip route; ls -l /proc/self/fd";
    let printed = run(&hub, &host, command, &["--containerizer=mesos"]);
    // The first is the network, the second the gateway.
    assert_eq!(address(&printed), Ipv4Addr::new(192, 168, 0, 2), "{printed}");
    assert!(printed.contains("inet 192.168.0.2/25"), "{printed}");
    assert!(printed.contains("default via 192.168.0.1 dev eth0"), "{printed}");
    // What the module has open in the agent is not open in its tasks.
    assert!(!printed.contains("anon_inode") && !printed.contains("socket"), "{printed}");
    let bridges = host.succeed("ip", &["-o", "link", "show", "type", "bridge"]);
    assert!(bridges.contains("m-vxlan-1") && bridges.contains("mtu 1420"), "{bridges}");
}

#[test]
#[ignore = "mesos: needs a Mesos installation, root and packages: tests/run mesos"]
fn a_task_of_docker_gets_an_address_of_the_docker_half() {
    let mut cluster = Cluster::new();
    let (hub, host) = (cluster.hub().clone(), cluster.host());
    let _docker = dockerd(&host);
    import_image(&host);
    let _master = module_master(&hub);
    let parameters = Parameters::agent(&host, MASTER_ADDRESS).without("docker_bridge");
    let list = modules(&host, &[(AGENT, &parameters.with(&[("docker", DOCKER)]))]);
    let socket = format!("--docker_socket={}", host.text("docker.sock"));
    let docker = format!("--docker={DOCKER}");
    let flags = ["--containerizers=docker,mesos", &docker, &socket];
    let _agent = mesos_agent(&host, MASTER_ADDRESS, &list, &flags);
    ready(&hub, &[&host]);

    let image = format!("--docker_image={IMAGE}");
    let command = "/bin/busybox ip -4 -o address show dev eth0";
    let printed = run(&hub, &host, command, &["--containerizer=docker", &image]);
    assert_eq!(address(&printed), Ipv4Addr::new(192, 168, 0, 130), "{printed}");
}

#[test]
#[ignore = "mesos: needs a Mesos installation, root and packages: tests/run mesos"]
fn a_task_survives_restarts_of_master_and_agent_with_its_address() {
    let mut cluster = Cluster::new();
    let (hub, host) = (cluster.hub().clone(), cluster.host());
    let master = module_master(&hub);
    let agent = module_agent(&host, MASTER_ADDRESS);
    ready(&hub, &[&host]);
    let command = "while sleep 0.2; do ip -4 -o address show dev eth0; done";
    let _task = start(&hub, command, &["--containerizer=mesos", "--checkpoint"]);
    let lines = || {
        let printed = printed(&host).unwrap_or_default();
        printed.split_inclusive('\n').filter(|line| line.ends_with('\n')).map(address).collect()
    };
    let all = |lines: Vec<Ipv4Addr>| (lines.len() > 2).then_some(lines);
    let before = wait_for("the task runs", || all(lines()));

    agent.end(Signal::KILL);
    master.end(Signal::KILL);
    let _master = module_master(&hub);
    let _agent = module_agent(&host, MASTER_ADDRESS);
    ready(&hub, &[&host]);
    let so_far = lines().len();
    let after = wait_for("the task goes on", || all(lines().split_off(so_far)));
    assert!(before.iter().chain(&after).all(|address| *address == before[0]), "{after:?}");
}
