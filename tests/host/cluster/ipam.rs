//! `ipam` on the host of a real agent, with real containers of CNI and Docker.

use std::fs::{self, File};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::container::Container;
use super::{Cluster, MASTER_ADDRESS};
use crate::hosts::Underlay;
use crate::namespace::{Namespace, run};
use crate::traffic::can_ping;

impl Cluster {
    /// Starts one agent with Docker. It has no dataplane, so it does not release leases itself.
    fn with_docker() -> Self {
        let mut cluster = Self::new(Underlay::V4);
        let host = cluster.add_host(1);
        host.config["network_config"]["docker_bridge"] = json!(true);
        host.config["verify_interval"] = json!("1h");
        host.config["dataplane"] = json!("external");
        host.daemon.start();
        host.daemon.import_image();
        cluster.start_agents();
        for overlay in ["vxlan-1", "vxlan-2"] {
            cluster.wait_for_status(1, overlay, |status| status == "STATUS_OK");
        }
        cluster
    }

    /// Runs `ipam` on the host. Returns the exit code and stdout.
    fn ipam(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let host = self.host(1);
        let mut command = host.namespace().command(host.program());
        command.env("DOCKER_HOST", host.daemon.socket());
        let output = run(command.arg("ipam").args(arguments), "");
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn leases_of(&self, overlay: &str) -> PathBuf {
        self.host(1).daemon.path("leases").join(overlay)
    }

    fn lease_of(&self, container: &Container) -> PathBuf {
        self.leases_of("vxlan-1").join(container.address().to_string())
    }
}

/// Makes a lease so old that its container cannot be starting any more.
fn age(lease: &PathBuf) {
    let file = File::options().write(true).open(lease).expect("a lease");
    file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000)).expect("a time");
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn leak_of_killed_container_is_fixed_and_live_container_kept() {
    let cluster = Cluster::with_docker();
    let host = cluster.host(1);
    let (live, killed) =
        (Container::for_mesos(host, "vxlan-1"), Container::for_mesos(host, "vxlan-1"));
    let docker = Container::for_docker(host, "vxlan-1");
    let (live_lease, leak) = (cluster.lease_of(&live), cluster.lease_of(&killed));
    let address: IpAddr = killed.address();
    let (code, shown) = cluster.ipam(&["show", "--master", MASTER_ADDRESS]);
    eprintln!("{shown}");
    assert_eq!(code, Some(0), "{shown}");
    let (_, json) = cluster.ipam(&["show", "-o", "json"]);
    let json: Value = serde_json::from_str(&json).expect("JSON");
    let sources = |address: IpAddr| {
        let all = json["addresses"].as_array().cloned().unwrap_or_default();
        let found = all.into_iter().find(|used| used["address"] == address.to_string());
        found.map(|used| (used["half"].clone(), used["sources"].clone()))
    };
    assert_eq!(sources(live.address()), Some((json!("mesos"), json!(["lease", "kernel"]))));
    assert_eq!(sources(docker.address()), Some((json!("docker"), json!(["docker", "kernel"]))));
    assert_eq!(cluster.ipam(&["check", "--master", MASTER_ADDRESS]).0, Some(0));
    drop(killed);
    let (code, shown) = cluster.ipam(&["check"]);
    assert_eq!(code, Some(0), "the lease is young: {shown}");
    [&live_lease, &leak].into_iter().for_each(age);
    let (code, shown) = cluster.ipam(&["check", "--master", MASTER_ADDRESS]);
    eprintln!("{shown}");
    let line = format!("leak: overlay vxlan-1: {address} is leased to container mesos-overlay-");
    assert!(code == Some(1) && shown.matches("leak: ").count() == 1, "{shown}");
    assert!(shown.contains(&line) && shown.contains("'mesos-overlay ipam check --fix'"), "{shown}");
    assert!(leak.exists(), "a check changes nothing");
    let (code, shown) = cluster.ipam(&["check", "--fix"]);
    eprintln!("{shown}");
    assert!(code == Some(0) && shown.contains(": removed the lease\n"), "{shown}");
    assert!(!leak.exists() && live_lease.exists());
    for container in [&live, &docker] {
        let address = container.address();
        assert!(can_ping(host.namespace(), address, 16), "{address} is untouched");
    }
    assert_eq!(cluster.ipam(&["check"]).0, Some(0));
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn doubtful_lease_is_never_fixed() {
    let cluster = Cluster::with_docker();
    let host = cluster.host(1);
    let first = Container::for_mesos(host, "vxlan-1");
    let second = Container::for_mesos(host, "vxlan-1");
    let (lease, address) = (cluster.lease_of(&second), second.address());
    drop(second);
    // A device behind another bridge has the address: the host sees no container with it.
    let (middle, hidden) = (Namespace::new(), Namespace::new());
    middle.run("ip link add br0 type bridge");
    middle.run("ip link set br0 up");
    for (namespace, port) in [(host.namespace(), "outer"), (&hidden, "eth0")] {
        let path = middle.path();
        let path = path.display();
        namespace.run(&format!("ip link add {port} type veth peer name {port}1 netns {path}"));
        namespace.run(&format!("ip link set {port} up"));
        middle.run(&format!("ip link set {port}1 master br0 up"));
    }
    host.namespace().run("ip link set outer master m-vxlan-1");
    hidden.run(&format!("ip addr add {address}/25 dev eth0"));
    age(&lease);
    age(&cluster.lease_of(&first));
    let (code, shown) = cluster.ipam(&["check", "--fix"]);
    eprintln!("{shown}");
    assert!(code == Some(0) && lease.exists(), "{shown}");
    let line = format!("unknown: overlay vxlan-1: {address} is leased to container ");
    assert!(shown.contains(&line) && shown.contains("something answers at it"), "{shown}");
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn conflicts_of_real_containers_are_named() {
    let cluster = Cluster::with_docker();
    let host = cluster.host(1);
    let live = Container::for_mesos(host, "vxlan-1");
    let docker = Container::for_docker(host, "vxlan-1");
    fs::remove_file(cluster.lease_of(&live)).expect("a lease");
    let write = |address: &str| {
        let path = cluster.leases_of("vxlan-1").join(address);
        fs::write(path, "other\r\neth0").expect("a lease");
    };
    write(&docker.address().to_string());
    write("192.168.99.5");
    let conf = host.daemon.path("cni/vxlan-1.conf");
    let text = fs::read_to_string(&conf).expect("a CNI configuration");
    fs::write(&conf, text.replace("192.168.0.0/25", "192.168.9.0/25"))
        .expect("a CNI configuration");
    let (code, shown) = cluster.ipam(&["check", "--fix", "--master", MASTER_ADDRESS]);
    eprintln!("{shown}");
    assert_eq!(code, Some(1), "{shown}");
    let (live, docker) = (live.address(), docker.address());
    for part in [
        format!(" has {live} without a lease of host-local: restart the container"),
        format!("{docker} is leased to container other and used by the Docker container vxlan-1"),
        "192.168.99.5 of container other is outside of 192.168.0.0/25".to_owned(),
        "its CNI configuration has 192.168.9.0/25, and the assigned addresses are 192.168.0.0/25"
            .to_owned(),
    ] {
        assert!(shown.contains(&part), "{part}\n{shown}");
    }
    assert_eq!(shown.matches("conflict: ").count(), 4, "{shown}");
}
