//! The Docker networks of the agent, on a real daemon.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use overlay_linux::docker::{Docker, DockerFailure, Outcome};
use overlay_types::addr::{Mtu, OverlayName};
use overlay_types::container_network::DockerNetwork;
use rustix::process::Signal;
use serde_json::Value;

use crate::docker_daemon::{DOCKER, DockerDaemon, IMAGE};

const GOLDEN: &str = include_str!("../golden/docker-network-inspect.json");

fn network(name: &str, subnets: &[&str]) -> DockerNetwork {
    let name: OverlayName = name.parse().expect("a valid overlay name");
    let subnet = |is_v6: bool| {
        let text = subnets.iter().find(|text| text.contains(':') == is_v6);
        text.map(|text| text.parse().expect("a valid subnet"))
    };
    DockerNetwork {
        bridge: name.docker_bridge(),
        name,
        subnet: subnet(false),
        subnet6: subnet(true),
        mtu: Mtu::OVERLAY_DEFAULT,
    }
}

fn vxlan_1() -> DockerNetwork {
    network("vxlan-1", &["192.168.0.128/25"])
}

fn vxlan_2() -> DockerNetwork {
    network("vxlan-2", &["192.168.128.128/25", "fd01:b::8000:0:0/81"])
}

#[tokio::test]
#[ignore = "needs root and packages: tests/run host"]
async fn created_networks_match_cpp_modules() {
    let daemon = DockerDaemon::started();
    let golden: Vec<Value> = serde_json::from_str(GOLDEN).unwrap();
    for (network, golden) in [vxlan_1(), vxlan_2()].iter().zip(golden) {
        assert_eq!(daemon.client().ensure(network).await, Ok(Outcome::Created));
        let found = daemon.inspect(network.name.as_str());
        for field in
            ["Name", "Scope", "Driver", "EnableIPv6", "Internal", "ConfigOnly", "Containers"]
        {
            assert_eq!(found[field], golden[field], "{field}");
        }
        let pools = |network: &Value| {
            let pools = network["IPAM"]["Config"].as_array().unwrap().iter();
            pools.map(|pool| pool["Subnet"].clone()).collect::<Vec<_>>()
        };
        assert_eq!(pools(&found), pools(&golden));
        for (option, value) in golden["Options"].as_object().unwrap() {
            assert_eq!(&found["Options"][option], value, "{option}");
        }
        assert_eq!(found["Labels"]["org.apache.mesos.overlay"], "1");

        assert_eq!(daemon.client().ensure(network).await, Ok(Outcome::Unchanged));
        assert_eq!(daemon.inspect(network.name.as_str())["Id"], found["Id"]);
    }
}

#[tokio::test]
#[ignore = "needs root and packages: tests/run host"]
async fn container_gets_subnet_address_and_reaches_gateway() {
    let daemon = DockerDaemon::started();
    daemon.import_image();
    daemon.client().ensure(&vxlan_2()).await.unwrap();
    let script = "busybox ip -o addr show dev eth0; busybox cat /sys/class/net/eth0/mtu; \
                  busybox ping -c 1 -W 5 192.168.128.129 && busybox ping -6 -c 3 -W 5 \
                  fd01:b::8000:0:1 && busybox echo reached both";
    let output = daemon.succeed(&[
        "run",
        "--rm",
        "--net",
        "vxlan-2",
        IMAGE,
        "/bin/busybox",
        "sh",
        "-c",
        script,
    ]);
    for expected in
        [" 192.168.128.130/25 ", " fd01:b::8000:0:2/81 ", "\n1420\n", "\nreached both\n"]
    {
        assert!(output.contains(expected), "{expected} is not in {output}");
    }
}

#[tokio::test]
#[ignore = "needs root and packages: tests/run host"]
async fn remove_keeps_network_with_container() {
    let daemon = DockerDaemon::started();
    daemon.import_image();
    let network = vxlan_1();
    daemon.client().ensure(&network).await.unwrap();
    let run =
        ["run", "--detach", "--name=web", "--net=vxlan-1", IMAGE, "/bin/busybox", "sleep", "900"];
    daemon.succeed(&run);
    assert_eq!(daemon.client().ensure(&network).await, Ok(Outcome::Unchanged));
    assert_eq!(
        daemon.client().remove(&network.name).await.unwrap_err().to_string(),
        "docker network vxlan-1: has containers and cannot be removed: stop them (web)"
    );
    daemon.succeed(&["rm", "--force", "web"]);
    assert_eq!(daemon.client().remove(&network.name).await, Ok(true));
    assert_eq!(daemon.client().remove(&network.name).await, Ok(false));
}

#[tokio::test]
#[ignore = "needs root and packages: tests/run host"]
async fn unassigned_network_with_container_is_kept() {
    let daemon = DockerDaemon::started();
    daemon.import_image();
    let (stale, assigned) = (vxlan_1(), vxlan_2());
    daemon.client().ensure(&stale).await.unwrap();
    daemon.client().ensure(&assigned).await.unwrap();
    daemon.succeed(&["network", "create", "--subnet=10.77.0.0/24", "lab"]);
    // The container was never started, so Docker itself would remove its network.
    daemon.succeed(&["create", "--name=web", "--net=vxlan-1", IMAGE, "/bin/busybox", "true"]);
    let names = BTreeSet::from([assigned.name.clone()]);
    let removal = daemon.client().remove_stale(&names).await.unwrap();
    assert_eq!(removal.removed, []);
    assert_eq!(
        removal.kept[0].to_string(),
        "docker network vxlan-1: is no longer assigned and has containers: remove them (web), then \
         the agent removes it"
    );
    daemon.succeed(&["rm", "web"]);
    let removal = daemon.client().remove_stale(&names).await.unwrap();
    assert_eq!((removal.removed, removal.kept), (vec![stale.name], Vec::new()));
    assert_eq!(daemon.client().exists(&assigned.name).await, Ok(true));
    daemon.inspect("lab");
}

#[tokio::test]
#[ignore = "needs root and packages: tests/run host"]
async fn differing_network_is_kept_and_difference_reported() {
    let daemon = DockerDaemon::started();
    let arguments = [
        "network",
        "create",
        "--subnet=192.168.0.0/24",
        "--opt=com.docker.network.bridge.enable_ip_masquerade=false",
        "vxlan-1",
    ];
    let id = daemon.succeed(&arguments);
    assert_eq!(
        daemon.client().ensure(&vxlan_1()).await.unwrap_err().to_string(),
        "docker network vxlan-1: exists, but bridge is one that Docker named instead of d-vxlan-1, \
         subnet is 192.168.0.0/24 instead of 192.168.0.128/25, mtu is 1500 instead of 1420: stop \
         its containers and run 'docker network rm vxlan-1', then the agent creates it again"
    );
    assert_eq!(
        daemon.client().remove(&vxlan_1().name).await.unwrap_err().to_string(),
        "docker network vxlan-1: is not managed by the agent, so it is left alone"
    );
    assert_eq!(daemon.inspect("vxlan-1")["Id"], id.trim());
    daemon.succeed(&["network", "rm", "vxlan-1"]);
    assert_eq!(daemon.client().ensure(&vxlan_1()).await, Ok(Outcome::Created));
}

#[tokio::test]
#[ignore = "needs root and packages: tests/run host"]
async fn conflicting_docker_network_is_named() {
    let daemon = DockerDaemon::started();
    daemon.succeed(&["network", "create", "--subnet=192.168.0.0/24", "lab"]);
    assert_eq!(
        daemon.client().ensure(&vxlan_1()).await.unwrap_err().to_string(),
        "docker network vxlan-1: subnet 192.168.0.128/25 overlaps 192.168.0.0/24 of the Docker \
         network lab: give the overlay another subnet, or remove that network if nothing uses it"
    );
    daemon.succeed(&["network", "rm", "lab"]);

    daemon.succeed(&["network", "create", "--opt=com.docker.network.bridge.name=d-vxlan-1", "lab"]);
    assert_eq!(
        daemon.client().ensure(&vxlan_1()).await.unwrap_err().to_string(),
        "docker network vxlan-1: bridge d-vxlan-1 belongs to the Docker network lab: rename the \
         overlay, or remove that network if nothing uses it"
    );
    let default = network("vxlan-3", &["172.17.128.0/24"]);
    assert_eq!(
        daemon.client().ensure(&default).await.unwrap_err().to_string(),
        "docker network vxlan-3: subnet 172.17.128.0/24 overlaps 172.17.0.0/16 of Docker's default \
         network: set another 'bip' in Docker's daemon.json, or give the overlay another subnet"
    );
}

#[tokio::test]
#[ignore = "needs root and packages: tests/run host"]
async fn ipv6_only_network_is_created_and_recognized() {
    let daemon = DockerDaemon::started();
    let network = network("vxlan-6", &["fd01:c::/81"]);
    assert_eq!(daemon.client().ensure(&network).await, Ok(Outcome::Created));
    assert_eq!(daemon.client().ensure(&network).await, Ok(Outcome::Unchanged));
    assert_eq!(daemon.client().remove(&network.name).await, Ok(true));
}

#[tokio::test]
#[ignore = "needs root and packages: tests/run host"]
async fn hanging_or_stopped_daemon_is_reported_in_time() {
    let mut daemon = DockerDaemon::started();
    daemon.signal(Signal::STOP);
    let timeout = Duration::from_secs(3);
    let docker = Docker::new(DOCKER, timeout).with_host(&daemon.socket());
    let begin = tokio::time::Instant::now();
    let error = docker.ensure(&vxlan_1()).await.unwrap_err();
    assert!(begin.elapsed() < 2 * timeout);
    assert_eq!(
        error.to_string(),
        "docker network vxlan-1: docker did not answer within 3s, 'docker version' was killed: \
         look into the Docker daemon's log, restart it if it hangs"
    );
    assert_eq!(clients(&daemon.socket()), [""; 0]);

    daemon.signal(Signal::CONT);
    assert_eq!(daemon.client().ensure(&vxlan_1()).await, Ok(Outcome::Created));

    assert!(daemon.stop(), "dockerd: {}", daemon.log());
    let error = daemon.client().ensure(&vxlan_1()).await.unwrap_err();
    assert!(matches!(error.reason, DockerFailure::NotRunning { .. }), "{error:?}");
    let error = error.to_string();
    let expected = "docker network vxlan-1: the Docker daemon is not running: ";
    assert!(error.starts_with(expected), "{error}");
    let remedy = ": start it, or set network_config.docker_bridge to false in the agent_config";
    assert!(error.ends_with(remedy), "{error}");
}

/// Lists the command lines of all `docker` processes that use `socket`.
fn clients(socket: &str) -> Vec<String> {
    let processes = fs::read_dir("/proc").expect("readable /proc").flatten();
    let lines = processes.flat_map(|entry| fs::read(entry.path().join("cmdline")));
    lines
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.starts_with(DOCKER) && line.contains(socket))
        .collect()
}
