//! The MTU of the containers follows that of the routes to the peers. Packets of full size arrive
//! without fragmentation, an underlay that is too small is named. Existing containers and Docker
//! networks keep their MTU and are named.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::Duration;

use overlay_linux::probe::echo::{EchoRequest, Prober};
use serde_json::json;

use super::container::Container;
use super::{Cluster, Host};
use crate::hosts::Underlay;
use crate::namespace::{Namespace, run};
use crate::process::PROGRAM;
use crate::traffic::{can_ping, now, time_limit};

/// A network with an overlay of IPv4 only.
const NETWORK_V4: &str = r#"
    { "vtep_subnet": "44.128.0.0/16", "vtep_mac_oui": "70:B3:D5:00:00:00",
      "overlays": [ { "name": "vxlan-1", "subnet": "192.168.0.0/17", "prefix": 24 } ] }"#;

/// Sends an echo request of this size that no router may fragment. Returns whether the reply of the
/// same size arrived.
fn reaches(namespace: &Namespace, from: IpAddr, to: IpAddr, size: u32) -> bool {
    namespace.inside(|| {
        let mut prober = Prober::open(&[from].into()).expect("a raw socket");
        let request = EchoRequest { from, to, size };
        prober.round(&[request], 3, Duration::from_secs(1)).outcomes[0].has_reply()
    })
}

/// Asserts that the largest packets reach the other container, and larger ones are not sent.
fn assert_full_size(one: &Container, other: &Container, mtu: u32) {
    for (from, to) in [(one, other), (other, one)] {
        let ping = |size| reaches(&from.namespace, from.address(), to.address(), size);
        assert!(ping(mtu), "{} to {} with {mtu} bytes", from.name, to.name);
        assert!(!ping(mtu + 1), "{} to {} with {} bytes", from.name, to.name, mtu + 1);
    }
}

/// Returns the MTU of a device, or nothing if it does not exist.
fn mtu_of(namespace: &Namespace, device: &str) -> String {
    let output = run(namespace.command("ip").args(["-o", "link", "show", "dev", device]), "");
    let text = String::from_utf8_lossy(&output.stdout);
    let mtu = text.split_whitespace().skip_while(|word| *word != "mtu").nth(1);
    mtu.unwrap_or_default().to_owned()
}

/// Returns the MTU in the CNI configuration that the agent wrote.
fn cni_mtu(host: &Host) -> String {
    let content = std::fs::read(host.daemon.path("cni/vxlan-1.conf")).unwrap_or_default();
    let content: serde_json::Value = serde_json::from_slice(&content).unwrap_or_default();
    let delegate = if content["delegate"].is_object() { &content["delegate"] } else { &content };
    delegate["mtu"].to_string()
}

fn problems(host: &Host) -> Vec<String> {
    let health = host.health();
    let problems = health["problems"].as_array().cloned().unwrap_or_default();
    problems.iter().filter_map(|problem| problem.as_str().map(str::to_owned)).collect()
}

fn wait_for_problem(cluster: &Cluster, host: u8, problem: &str) {
    let host = cluster.host(host);
    cluster.wait_for(problem, || problems(host).iter().any(|found| found.contains(problem)));
}

/// Sets the MTU of the network between the hosts.
fn set_mtu(cluster: &Cluster, mtu: u32) {
    for host in &cluster.hosts {
        let number = host.number;
        cluster.switch.run(&format!("ip link set port{number} mtu {}", mtu.max(1500)));
        host.namespace().run(&format!("ip link set eth0 mtu {mtu}"));
    }
}

/// Starts two agents on an underlay with this MTU.
fn cluster_with_mtu(network: &str, mtu: u32) -> Cluster {
    let mut cluster = Cluster::with_network(Underlay::V4, network);
    for number in [1, 2] {
        cluster.add_host(number).config["verify_interval"] = json!("2s");
    }
    set_mtu(&cluster, mtu);
    cluster.start_agents();
    cluster
}

fn wait_for_ok(cluster: &Cluster, overlay: &str) {
    for number in [1, 2] {
        cluster.wait_for_status(number, overlay, |status| status == "STATUS_OK");
        let host = cluster.host(number);
        cluster.wait_for("the agent has its peer", || host.has_fdb_entries(1));
    }
}

/// Ends the containers.
fn leave(cluster: &Cluster, containers: [Container; 2]) {
    for (host, container) in cluster.hosts.iter().zip(containers) {
        container.leave(host, "vxlan-1");
    }
}

fn containers(cluster: &Cluster) -> [Container; 2] {
    [1, 2].map(|number| Container::for_mesos(cluster.host(number), "vxlan-1"))
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn containers_get_mtu_of_underlay_less_80() {
    for (network, underlay) in
        [(NETWORK_V4, 576), (super::NETWORK, 1360), (super::NETWORK, 1500), (super::NETWORK, 9000)]
    {
        let cluster = cluster_with_mtu(network, underlay);
        wait_for_ok(&cluster, "vxlan-1");
        let [one, other] = containers(&cluster);
        let mtu = underlay - 80;
        assert_eq!(mtu_of(&one.namespace, "eth0"), mtu.to_string());
        assert_full_size(&one, &other, mtu);
        if network == super::NETWORK {
            let vteps = ["fd01:a::1", "fd01:a::2"].map(|vtep| vtep.parse().expect("an address"));
            let host = cluster.host(1).namespace();
            cluster.wait_for("the VTEPs reach each other by IPv6", || {
                reaches(host, vteps[0], vteps[1], mtu) || reaches(host, vteps[1], vteps[0], mtu)
            });
        }
        assert_eq!(problems(cluster.host(1)), [""; 0], "{}", cluster.logs());
        eprintln!("underlay {underlay}: containers {mtu}, full size without fragmentation");
    }
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn underlay_that_is_too_small_is_named() {
    const IPV6: &str = "underlay device eth0 has an MTU of 1359, and IPv6 overlays need 1360";
    const IPV4: &str = "underlay device eth0 has an MTU of 575, and IPv4 overlays need 576: if the \
                        network carries 576 bytes, raise it, which changes all traffic of eth0";
    let cluster = cluster_with_mtu(super::NETWORK, 1359);
    wait_for_ok(&cluster, "vxlan-2");
    let mut table = String::new();
    let named = |overlay: &str, expected: &str| {
        cluster.wait_for_status(1, overlay, |status| status.starts_with(expected));
    };
    named("vxlan-1", IPV6);
    // IPv4 of both overlays works.
    let [one, other] = containers(&cluster);
    assert_full_size(&one, &other, 1279);
    // As long as they run, the bridges keep their MTU.
    leave(&cluster, [one, other]);
    for (mtu, reasons) in [
        (575, [IPV4, IPV4]),
        (1360, ["STATUS_OK", "STATUS_OK"]),
        (1359, [IPV6, "STATUS_OK"]),
        (1500, ["STATUS_OK", "STATUS_OK"]),
    ] {
        let start = now();
        set_mtu(&cluster, mtu);
        named("vxlan-1", reasons[0]);
        named("vxlan-2", reasons[1]);
        let elapsed = start.elapsed().as_millis();
        let _ = writeln!(table, "{elapsed:>6} ms  {mtu}: {}", cluster.status(1, "vxlan-1"));
    }
    eprintln!("{table}");
    for host in &cluster.hosts {
        cluster.wait_for("the CNI configuration follows", || cni_mtu(host) == "1420");
    }
    let [one, other] = containers(&cluster);
    assert_full_size(&one, &other, 1420);
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn changed_underlay_is_followed() {
    const ROUTE: &str = "ip route replace 10.0.0.2/32 dev eth0 src 10.0.0.1 mtu 1300";
    let cluster = cluster_with_mtu(super::NETWORK, 1500);
    cluster.wait_until_ok();
    let old = containers(&cluster);
    assert_full_size(&old[0], &old[1], 1420);
    let host = cluster.host(1);
    let follow = |act: &str, underlay: u32| {
        let start = now();
        host.namespace().run(act);
        let mut times = Vec::new();
        let expected = (underlay - 80).to_string();
        let device = (underlay - 50).to_string();
        cluster.wait_for("the VXLAN device follows", || {
            mtu_of(host.namespace(), "vtep1024") == device
        });
        times.push(format!("device {} ms", start.elapsed().as_millis()));
        cluster.wait_for("the CNI configuration follows", || cni_mtu(host) == expected);
        times.push(format!("CNI {} ms", start.elapsed().as_millis()));
        // A bridge carries no more than its containers take.
        let bridge = (underlay - 80).min(1420).to_string();
        cluster.wait_for("the bridge follows", || mtu_of(host.namespace(), "m-vxlan-1") == bridge);
        times.push(format!("bridge {} ms", start.elapsed().as_millis()));
        eprintln!("{}: {act}", times.join(", "));
        assert!(start.elapsed() < time_limit(Duration::from_secs(10)));
    };
    follow("ip link set eth0 mtu 1400", 1400);
    cluster.host(2).namespace().run("ip link set eth0 mtu 1400");
    cluster.wait_for("the peer follows", || cni_mtu(cluster.host(2)) == "1320");
    wait_for_problem(&cluster, 1, "1 container of overlay vxlan-1 (ports ");
    wait_for_problem(&cluster, 1, "with an MTU of 1420 instead of 1320: ");
    assert_eq!(cluster.status(1, "vxlan-1"), "STATUS_OK");
    assert_eq!(mtu_of(&old[0].namespace, "eth0"), "1420", "the container is kept");
    let new = containers(&cluster);
    assert_full_size(&new[0], &new[1], 1320);
    // Packets of containers with the old MTU arrive, as an ICMP error tells them the new one.
    let (from, to) = (&old[0], &old[1]);
    cluster.wait_for("old containers reach each other", || {
        can_ping(&from.namespace, to.address(), 1292)
    });
    for containers in [old, new] {
        leave(&cluster, containers);
    }
    cluster.wait_for("no container has another MTU", || problems(host).is_empty());

    follow("ip link set eth0 mtu 1500", 1500);
    follow(ROUTE, 1300);
    follow("ip route delete 10.0.0.2/32 dev eth0", 1500);
    follow(
        "ip route replace 10.0.0.0/24 dev eth0 src 10.0.0.1 proto kernel scope link mtu lock 1450",
        1450,
    );
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn device_that_does_not_lead_to_peers_is_ignored() {
    let mut cluster = Cluster::new(Underlay::V4);
    for number in [1, 2] {
        cluster.add_host(number);
    }
    // The device with the higher index has the address too.
    let host = cluster.host(1).namespace();
    host.run("ip link add other0 mtu 1300 up type bridge");
    host.run("ip addr add 10.0.0.1/32 dev other0");
    let other = cluster.host(2).namespace();
    other.run("ip link add other0 mtu 9000 up type bridge");
    other.run("ip addr add 10.0.0.2/32 dev other0");
    cluster.start_agents();
    cluster.wait_until_ok();
    for host in &cluster.hosts {
        assert_eq!(mtu_of(host.namespace(), "vtep1024"), "1450");
        assert_eq!(cni_mtu(host), "1420");
        let config = host.daemon.path("agent.json");
        let arguments = ["doctor", "--config", config.to_str().expect("a UTF-8 path")];
        let output = run(host.namespace().command(PROGRAM).args(arguments), "");
        let text = String::from_utf8_lossy(&output.stdout);
        let note =
            format!("other0 has the address 10.0.0.{} too: the MTU is that of eth0", host.number);
        assert!(text.contains(&note), "{text}");
    }
    let [one, other] = containers(&cluster);
    assert_full_size(&one, &other, 1420);
    // The peer is reached through a device without an address.
    let host = cluster.host(1);
    let netns = host.namespace().path();
    let line = format!("ip link add port50 type veth peer name eth1 netns {}", netns.display());
    cluster.switch.run(&line);
    cluster.switch.run("ip link set port50 master br0 up");
    host.namespace().run("ip link set eth1 mtu 1400 up");
    let start = now();
    host.namespace().run("ip route replace 10.0.0.2/32 dev eth1 src 10.0.0.1");
    cluster.wait_for("the VXLAN device follows", || mtu_of(host.namespace(), "vtep1024") == "1350");
    eprintln!("{} ms until the MTU of another device is followed", start.elapsed().as_millis());
    let start = now();
    host.namespace().run("ip link set eth1 mtu 1390");
    cluster.wait_for("the VXLAN device follows", || mtu_of(host.namespace(), "vtep1024") == "1340");
    eprintln!("{} ms until its change is followed", start.elapsed().as_millis());
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn missing_address_or_route_is_named() {
    let cluster = Cluster::started(2, Underlay::V4);
    let host = cluster.host(1).namespace();
    host.run("ip addr add 10.0.9.1/24 dev eth0");
    host.run("ip route add 10.0.0.100/32 dev eth0 src 10.0.0.1");
    let start = now();
    host.run("ip route delete 10.0.0.0/24 dev eth0");
    wait_for_problem(
        &cluster,
        1,
        "packets from 10.0.0.1 to agent 10.0.0.2 are dropped without a route: ",
    );
    eprintln!("{} ms until the missing route is named", start.elapsed().as_millis());
    let start = now();
    host.run("ip route add 10.0.0.0/24 dev eth0 src 10.0.0.1");
    cluster.wait_for("no problem", || problems(cluster.host(1)).is_empty());
    eprintln!("{} ms until it is gone", start.elapsed().as_millis());
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn docker_network_with_other_mtu_is_kept_and_named() {
    const OPTION: &str = "com.docker.network.driver.mtu";
    let mut cluster = Cluster::with_network(Underlay::V4, NETWORK_V4);
    for number in [1, 2] {
        cluster.add_host(number).config["verify_interval"] = json!("1s");
    }
    for host in &mut cluster.hosts {
        host.config["network_config"] = json!({});
        host.daemon.start();
        host.daemon.import_image();
    }
    set_mtu(&cluster, 1500);
    cluster.start_agents();
    wait_for_ok(&cluster, "vxlan-1");
    let docker = [1, 2].map(|number| Container::for_docker(cluster.host(number), "vxlan-1"));
    assert_full_size(&docker[0], &docker[1], 1420);
    let host = cluster.host(1);
    let has_network = |host: &Host| {
        let listed = host.daemon.succeed(&["network", "ls", "--format", "{{.Name}}"]);
        listed.contains("vxlan-1")
    };
    let id = || host.daemon.inspect("vxlan-1")["Id"].clone();
    let old = id();

    let start = now();
    set_mtu(&cluster, 9000);
    wait_for_problem(
        &cluster,
        1,
        "docker network vxlan-1 keeps an MTU of 1420 instead of 8920: to change it, stop its \
         containers and run 'docker network rm vxlan-1', then the agent creates it again",
    );
    eprintln!("{} ms until the smaller MTU is named", start.elapsed().as_millis());
    assert_eq!(cluster.status(1, "vxlan-1"), "STATUS_OK");
    assert_eq!(id(), old);
    assert_full_size(&docker[0], &docker[1], 1420);
    cluster.wait_for("the peer follows", || cni_mtu(cluster.host(2)) == "8920");
    let [one, other] = containers(&cluster);
    assert_full_size(&one, &other, 8920);

    let start = now();
    set_mtu(&cluster, 1400);
    cluster.wait_for_status(1, "vxlan-1", |status| {
        status.contains(
            "docker network vxlan-1: exists, but mtu is 1420 instead of 1320: stop its containers \
             and run 'docker network rm vxlan-1', then the agent creates it again",
        )
    });
    eprintln!("{} ms until the larger MTU is named", start.elapsed().as_millis());
    assert_eq!(id(), old);
    assert!(can_ping(&docker[0].namespace, docker[1].address(), 1292));

    // The remedy.
    let start = now();
    for host in &cluster.hosts {
        host.daemon.succeed(&["rm", "-f", "vxlan-1"]);
        host.daemon.succeed(&["network", "rm", "vxlan-1"]);
    }
    for host in &cluster.hosts {
        let mtu = || host.daemon.inspect("vxlan-1")["Options"][OPTION].clone();
        cluster.wait_for("the network has the new MTU", || has_network(host) && mtu() == "1320");
    }
    wait_for_ok(&cluster, "vxlan-1");
    eprintln!("{} ms until the remedy has worked", start.elapsed().as_millis());
    let docker = [1, 2].map(|number| Container::for_docker(cluster.host(number), "vxlan-1"));
    assert_full_size(&docker[0], &docker[1], 1320);
}
