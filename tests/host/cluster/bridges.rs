//! Bridges and Docker networks that another program removes, and addresses of an earlier assignment
//! on bridges.

use std::process::Command;
use std::time::Duration;

use serde_json::json;

use super::container::Container;
use super::{Cluster, Host};
use crate::docker_daemon::sleep_poll_interval;
use crate::hosts::Underlay;
use crate::namespace::{BUSYBOX, run};
use crate::traffic::{can_ping, now};

/// Three VTEP addresses and two subnets.
const TWO_SUBNETS: &str = r#"
    { "vtep_subnet": "44.128.0.0/29", "vtep_mac_oui": "70:B3:D5:00:00:00",
      "overlays": [ { "name": "vxlan-1", "subnet": "192.168.0.0/23", "prefix": 24 } ] }"#;
/// The gateway of Docker's half of the first subnet.
const GATEWAY: &str = "192.168.0.129";

/// Starts an agent with a Docker daemon, and waits until its Docker network exists.
fn with_docker() -> Cluster {
    let mut cluster = Cluster::new(Underlay::V4);
    let host = cluster.add_host(1);
    host.config["network_config"]["docker_bridge"] = json!(true);
    host.daemon.start();
    host.daemon.import_image();
    cluster.start_agents();
    cluster.wait_until_ok();
    cluster
}

fn repairs_of_networks(host: &Host) -> u64 {
    host.health()["counters"]["container_network_repairs"].as_u64().unwrap_or_default()
}

fn has_address(host: &Host, bridge: &str, address: &str) -> bool {
    let mut command = host.namespace().command("ip");
    let shown = run(command.args(["-o", "addr", "show", "dev", bridge]), "").stdout;
    String::from_utf8_lossy(&shown).contains(&format!("inet {address}/"))
}

/// Lists the ports of containers at a bridge, or none if there is no such bridge.
fn ports(host: &Host, bridge: &str) -> Vec<String> {
    let mut command = host.namespace().command("ip");
    let shown = run(command.args(["-o", "link", "show", "type", "veth", "master", bridge]), "");
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    let names = shown.lines().filter_map(|line| line.split([' ', '@']).nth(1));
    names.filter(|name| !name.starts_with("mo-probe")).map(str::to_owned).collect()
}

/// Returns whether the bridge has its gateway address, and the Docker network exists.
fn has_network(host: &Host) -> bool {
    let mut inspect = host.daemon.command(&["network", "inspect", "vxlan-1"]);
    has_address(host, "d-vxlan-1", GATEWAY) && run(&mut inspect, "").status.success()
}

fn report(start: Duration, what: &str) {
    eprintln!("{:>6} ms  {what}", start.as_millis());
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn docker_network_without_bridge_is_repaired() {
    let cluster = with_docker();
    let host = cluster.host(1);
    cluster.wait_for("the bridge has its address", || has_network(host));
    for (count, act) in [(1, "ip link delete d-vxlan-1"), (2, "docker network rm vxlan-1")] {
        let start = now();
        match act.strip_prefix("docker ") {
            Some(arguments) => {
                host.daemon.succeed(&arguments.split(' ').collect::<Vec<_>>());
            }
            None => drop(host.namespace().run(act)),
        }
        cluster.wait_for(act, || has_network(host) && repairs_of_networks(host) == count);
        report(start.elapsed(), act);
    }
    cluster.wait_for_status(1, "vxlan-1", |status| status == "STATUS_OK");
    let container = Container::for_docker(host, "vxlan-1");
    assert!(can_ping(host.namespace(), container.address(), 16));
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn removed_bridge_returns_to_its_docker_containers() {
    let cluster = with_docker();
    let host = cluster.host(1);
    let container = Container::for_docker(host, "vxlan-1");
    let is_alive = || can_ping(&container.namespace, GATEWAY.parse().expect("an address"), 16);
    assert!(is_alive());
    // An observation sees the port of the container.
    host.namespace().run("ip link set d-vxlan-1 down");
    cluster.wait_for("the bridge is up again", is_alive);
    let ports = ports(host, "d-vxlan-1");
    assert_eq!(ports.len(), 1);
    let start = now();
    host.namespace().run("ip link delete d-vxlan-1");
    cluster.wait_for("the port is attached again", || self::ports(host, "d-vxlan-1") == ports);
    report(start.elapsed(), "ip link delete d-vxlan-1, with a running container");
    assert!(is_alive());
    assert!(host.health()["dataplane"]["repairs"].as_u64() >= Some(2));

    // A stopped container keeps the network from being replaced.
    host.daemon.succeed(&["stop", "vxlan-1"]);
    let start = now();
    host.namespace().run("ip link delete d-vxlan-1");
    cluster.wait_for("the bridge is added again", || has_address(host, "d-vxlan-1", GATEWAY));
    report(start.elapsed(), "ip link delete d-vxlan-1, with a stopped container");
    host.daemon.succeed(&["start", "vxlan-1"]);
    let again =
        host.daemon.succeed(&["exec", "vxlan-1", "/bin/busybox", "ping", "-c", "1", GATEWAY]);
    assert!(again.contains("1 packets received"), "{again}");
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn bridges_removed_before_agent_start_return_to_containers() {
    let mut cluster = with_docker();
    let container = Container::for_docker(cluster.host(1), "vxlan-1");
    let mesos = Container::for_mesos(cluster.host(1), "vxlan-1");
    assert!(cluster.host_mut(1).agent.take().expect("a running process").stop());
    for bridge in ["d-vxlan-1", "m-vxlan-1"] {
        cluster.host(1).namespace().run(&format!("ip link delete {bridge}"));
    }
    let start = now();
    cluster.host_mut(1).start_agent();
    let host = cluster.host(1);
    cluster.wait_for("the ports are attached again", || {
        ["d-vxlan-1", "m-vxlan-1"].iter().all(|bridge| ports(host, bridge).len() == 1)
    });
    report(start.elapsed(), "start of the agent, with bridges that were removed before");
    cluster.wait_for_status(1, "vxlan-1", |status| status == "STATUS_OK");
    cluster.wait_for("the gateways answer", || {
        can_ping(&container.namespace, GATEWAY.parse().expect("an address"), 16)
            && can_ping(&mesos.namespace, [192, 168, 0, 1].into(), 16)
    });
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn docker_network_with_other_subnet_is_named() {
    let cluster = with_docker();
    let host = cluster.host(1);
    let start = now();
    let script = "docker --host $0 network rm vxlan-1 && \
        docker --host $0 network create --subnet 172.31.0.0/24 --opt \
        com.docker.network.bridge.name=d-vxlan-1 --opt com.docker.network.driver.mtu=1420 --opt \
        com.docker.network.bridge.enable_ip_masquerade=false vxlan-1";
    // The agent may be faster than the second command, and then its network is right.
    let mut attempts = 0;
    while !run(Command::new("sh").args(["-c", script, &host.daemon.socket()]), "").status.success()
    {
        attempts += 1;
        assert!(attempts < 20, "{}", cluster.logs());
        sleep_poll_interval();
    }
    cluster.wait_for_status(1, "vxlan-1", |status| {
        status.contains("subnet is 172.31.0.0/24 instead of 192.168.0.128/25")
    });
    report(start.elapsed(), "named: a Docker network with another subnet");
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn detached_port_is_attached_again() {
    let mut cluster = Cluster::new(Underlay::V4);
    cluster.add_host(1).config["verify_interval"] = json!("1s");
    cluster.start_agents();
    cluster.wait_until_ok();
    let host = cluster.host(1);
    let container = Container::for_mesos(host, "vxlan-1");
    let is_alive = || can_ping(&container.namespace, [192, 168, 0, 1].into(), 16);
    cluster.wait_for("the gateway answers", is_alive);
    let before = ports(host, "m-vxlan-1");
    assert_eq!(before.len(), 1);
    // A verification sees the port.
    for _ in 0..60 {
        sleep_poll_interval();
    }
    let start = now();
    host.namespace().run(&format!("ip link set {} nomaster", before[0]));
    cluster.wait_for("the port is attached again", || ports(host, "m-vxlan-1") == before);
    report(start.elapsed(), "ip link set PORT nomaster, with verify_interval 1s");
    assert!(is_alive());
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn containers_start_after_reassignment_to_other_subnet() {
    let mut cluster = Cluster::with_network(Underlay::V4, TWO_SUBNETS);
    for number in [1, 2] {
        cluster.add_host(number).start_agent();
        cluster.wait_for_status(number, "vxlan-1", |status| status == "STATUS_OK");
    }
    let first = Container::for_mesos(cluster.host(1), "vxlan-1");
    let former = first.address();
    first.leave(cluster.host(1), "vxlan-1");
    assert!(has_address(cluster.host(1), "m-vxlan-1", "192.168.0.1"));
    // Another agent gets the subnet of the first, and the first returns to the subnet of the second.
    let forget = |cluster: &mut Cluster, number: u8| {
        assert!(cluster.host_mut(number).agent.take().expect("a running process").stop());
        cluster.run_subcommand(&["forget", "--force", &format!("10.0.0.{number}")]);
    };
    forget(&mut cluster, 1);
    cluster.add_host(3).start_agent();
    cluster.wait_for_status(3, "vxlan-1", |status| status == "STATUS_OK");
    forget(&mut cluster, 2);
    let other = Container::for_mesos(cluster.host(3), "vxlan-1");
    assert_eq!(other.address(), former, "the subnet belongs to agent 3");
    let start = now();
    cluster.host_mut(1).start_agent();
    cluster.wait_for_status(1, "vxlan-1", |status| status == "STATUS_OK");
    cluster.wait_for("the address of the former subnet is gone", || {
        !has_address(cluster.host(1), "m-vxlan-1", "192.168.0.1")
    });
    report(start.elapsed(), "start of the agent until the former subnet is gone");
    let container = Container::for_mesos(cluster.host(1), "vxlan-1");
    assert!(has_address(cluster.host(1), "m-vxlan-1", "192.168.1.1"));
    cluster.wait_for("the containers reach each other", || {
        can_ping(&container.namespace, other.address(), 16)
            && can_ping(&other.namespace, container.address(), 16)
    });
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn foreign_address_that_stops_plugin_is_named_with_remedy() {
    let cluster = Cluster::started(1, Underlay::V4);
    let host = cluster.host(1);
    host.namespace().run("ip link add name m-vxlan-1 type bridge");
    host.namespace().run("ip addr add 10.9.0.1/24 dev m-vxlan-1");
    // The agent leaves a new bridge alone until its next observation.
    host.namespace().run("ip link set m-vxlan-1 up");
    let start = now();
    let remedy = "ip address delete 10.9.0.1/24 dev m-vxlan-1";
    cluster.wait_for_status(1, "vxlan-1", |status| status.contains(remedy));
    report(start.elapsed(), "named: a foreign address before the gateway's");
    assert!(
        Container::try_for_mesos(host, "vxlan-1").is_err_and(|error| error.contains("already"))
    );
    host.namespace().run(remedy);
    cluster.wait_for_status(1, "vxlan-1", |status| status == "STATUS_OK");
    let container = Container::for_mesos(host, "vxlan-1");
    assert!(can_ping(host.namespace(), container.address(), 16));
    assert!(host.namespace().succeed(BUSYBOX, &["ip", "addr"]).contains("192.168.0.1/25"));
}
