//! Docker networks on a real daemon.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use mesos_network_overlay::addr::{Mtu, OverlayName};
use mesos_network_overlay::agent::DockerNetwork;
use mesos_network_overlay::docker::{Docker, Outcome, Reason};
use rustix::process::Signal;
use serde_json::Value;

use crate::engine::{DOCKER, Engine, IMAGE};

const GOLDEN: &str = include_str!("../golden/docker-network-inspect.json");

fn network(name: &str, subnets: &[&str]) -> DockerNetwork {
    let name: OverlayName = name.parse().expect("it is a name");
    let subnet = |is_v6: bool| {
        let text = subnets.iter().find(|text| text.contains(':') == is_v6);
        text.map(|text| text.parse().expect("it is a subnet"))
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
async fn networks_are_those_of_the_cpp_modules() {
    let engine = Engine::start();
    let golden: Vec<Value> = serde_json::from_str(GOLDEN).unwrap();
    for (network, golden) in [vxlan_1(), vxlan_2()].iter().zip(golden) {
        assert_eq!(engine.docker().ensure(network).await, Ok(Outcome::Created));
        let found = engine.inspect(network.name.as_str());
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

        assert_eq!(engine.docker().ensure(network).await, Ok(Outcome::Unchanged));
        assert_eq!(engine.inspect(network.name.as_str())["Id"], found["Id"]);
    }
}

#[tokio::test]
#[ignore = "needs root and packages: tests/run host"]
async fn a_container_has_an_address_of_the_subnet_and_reaches_the_gateway() {
    let engine = Engine::start();
    engine.import_image();
    engine.docker().ensure(&vxlan_2()).await.unwrap();
    let script = "busybox ip -o addr show dev eth0; busybox cat /sys/class/net/eth0/mtu; \
                  busybox ping -c 1 -W 5 192.168.128.129 && busybox ping -6 -c 3 -W 5 \
                  fd01:b::8000:0:1 && busybox echo reached both";
    let said = engine.succeed(&[
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
        assert!(said.contains(expected), "{expected} is not in {said}");
    }
}

#[tokio::test]
#[ignore = "needs root and packages: tests/run host"]
async fn a_network_with_a_container_stays_and_an_empty_one_is_removed() {
    let engine = Engine::start();
    engine.import_image();
    let network = vxlan_1();
    engine.docker().ensure(&network).await.unwrap();
    let run =
        ["run", "--detach", "--name=web", "--net=vxlan-1", IMAGE, "/bin/busybox", "sleep", "900"];
    engine.succeed(&run);
    assert_eq!(engine.docker().ensure(&network).await, Ok(Outcome::Unchanged));
    assert_eq!(
        engine.docker().remove(&network.name).await.unwrap_err().to_string(),
        "docker network vxlan-1: has containers and cannot be removed: end them (web)"
    );
    engine.succeed(&["rm", "--force", "web"]);
    assert_eq!(engine.docker().remove(&network.name).await, Ok(true));
    assert_eq!(engine.docker().remove(&network.name).await, Ok(false));
}

#[tokio::test]
#[ignore = "needs root and packages: tests/run host"]
async fn a_network_that_is_not_wanted_stays_as_long_as_a_container_belongs_to_it() {
    let engine = Engine::start();
    engine.import_image();
    let (unwanted, wanted) = (vxlan_1(), vxlan_2());
    engine.docker().ensure(&unwanted).await.unwrap();
    engine.docker().ensure(&wanted).await.unwrap();
    engine.succeed(&["network", "create", "--subnet=10.77.0.0/24", "lab"]);
    // Never started: Docker itself would let its network go.
    engine.succeed(&["create", "--name=web", "--net=vxlan-1", IMAGE, "/bin/busybox", "true"]);
    let names = BTreeSet::from([wanted.name.clone()]);
    let removal = engine.docker().remove_unwanted(&names).await.unwrap();
    assert_eq!(removal.removed, []);
    assert_eq!(
        removal.kept[0].to_string(),
        "docker network vxlan-1: is no longer assigned and has containers: remove them (web), then \
         the agent removes it"
    );
    engine.succeed(&["rm", "web"]);
    let removal = engine.docker().remove_unwanted(&names).await.unwrap();
    assert_eq!((removal.removed, removal.kept), (vec![unwanted.name], Vec::new()));
    assert_eq!(engine.docker().exists(&wanted.name).await, Ok(true));
    engine.inspect("lab");
}

#[tokio::test]
#[ignore = "needs root and packages: tests/run host"]
async fn a_network_that_differs_is_let_be_and_the_difference_named() {
    let engine = Engine::start();
    let arguments = [
        "network",
        "create",
        "--subnet=192.168.0.0/24",
        "--opt=com.docker.network.bridge.enable_ip_masquerade=false",
        "vxlan-1",
    ];
    let id = engine.succeed(&arguments);
    assert_eq!(
        engine.docker().ensure(&vxlan_1()).await.unwrap_err().to_string(),
        "docker network vxlan-1: exists, but bridge is one that Docker named instead of d-vxlan-1, \
         subnet is 192.168.0.0/24 instead of 192.168.0.128/25, mtu is 1500 instead of 1420: end \
         its containers and run 'docker network rm vxlan-1', then the agent makes it anew"
    );
    assert_eq!(
        engine.docker().remove(&vxlan_1().name).await.unwrap_err().to_string(),
        "docker network vxlan-1: is not the agent's: it is left alone"
    );
    assert_eq!(engine.inspect("vxlan-1")["Id"], id.trim());
    engine.succeed(&["network", "rm", "vxlan-1"]);
    assert_eq!(engine.docker().ensure(&vxlan_1()).await, Ok(Outcome::Created));
}

#[tokio::test]
#[ignore = "needs root and packages: tests/run host"]
async fn another_network_with_our_subnet_or_our_bridge_is_named() {
    let engine = Engine::start();
    engine.succeed(&["network", "create", "--subnet=192.168.0.0/24", "lab"]);
    assert_eq!(
        engine.docker().ensure(&vxlan_1()).await.unwrap_err().to_string(),
        "docker network vxlan-1: subnet 192.168.0.128/25 overlaps 192.168.0.0/24 of the Docker \
         network lab: run 'docker network rm lab' if it is not in use, or give the overlay another \
         subnet"
    );
    engine.succeed(&["network", "rm", "lab"]);

    engine.succeed(&["network", "create", "--opt=com.docker.network.bridge.name=d-vxlan-1", "lab"]);
    assert_eq!(
        engine.docker().ensure(&vxlan_1()).await.unwrap_err().to_string(),
        "docker network vxlan-1: bridge d-vxlan-1 belongs to the Docker network lab: run 'docker \
         network rm lab' if it is not in use, or rename the overlay"
    );
    let default = network("vxlan-3", &["172.17.128.0/24"]);
    assert_eq!(
        engine.docker().ensure(&default).await.unwrap_err().to_string(),
        "docker network vxlan-3: subnet 172.17.128.0/24 overlaps 172.17.0.0/16 of Docker's default \
         network: set another 'bip' in Docker's daemon.json, or give the overlay another subnet"
    );
}

#[tokio::test]
#[ignore = "needs root and packages: tests/run host"]
async fn a_network_of_ipv6_only_is_made_and_found_equal() {
    let engine = Engine::start();
    let network = network("vxlan-6", &["fd01:c::/81"]);
    assert_eq!(engine.docker().ensure(&network).await, Ok(Outcome::Created));
    assert_eq!(engine.docker().ensure(&network).await, Ok(Outcome::Unchanged));
    assert_eq!(engine.docker().remove(&network.name).await, Ok(true));
}

#[tokio::test]
#[ignore = "needs root and packages: tests/run host"]
async fn a_daemon_that_hangs_or_is_stopped_is_told_in_time() {
    let mut engine = Engine::start();
    engine.signal(Signal::STOP);
    let timeout = Duration::from_secs(3);
    let docker = Docker::new(DOCKER, timeout).with_host(&engine.socket());
    let begin = tokio::time::Instant::now();
    let error = docker.ensure(&vxlan_1()).await.unwrap_err();
    assert!(begin.elapsed() < 2 * timeout);
    assert_eq!(
        error.to_string(),
        "docker network vxlan-1: docker did not answer within 3s, 'docker version' was killed: \
         look into the Docker daemon's log, restart it if it hangs"
    );
    assert_eq!(clients(&engine.socket()), [""; 0]);

    engine.signal(Signal::CONT);
    assert_eq!(engine.docker().ensure(&vxlan_1()).await, Ok(Outcome::Created));

    assert!(engine.stop(), "dockerd: {}", engine.log());
    let error = engine.docker().ensure(&vxlan_1()).await.unwrap_err();
    assert!(matches!(error.reason, Reason::NotRunning { .. }), "{error:?}");
    let error = error.to_string();
    let expected = "docker network vxlan-1: the Docker daemon is not running: ";
    assert!(error.starts_with(expected), "{error}");
    let remedy = ": start it, or set network_config.docker_bridge to false in the agent_config";
    assert!(error.ends_with(remedy), "{error}");
}

/// Command lines of the `docker` programs that talk to `socket`.
fn clients(socket: &str) -> Vec<String> {
    let processes = fs::read_dir("/proc").expect("there is /proc").flatten();
    let lines = processes.flat_map(|entry| fs::read(entry.path().join("cmdline")));
    lines
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.starts_with(DOCKER) && line.contains(socket))
        .collect()
}
