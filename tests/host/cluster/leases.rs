//! Leases of containers that a reboot or a crash ended: host-local keeps them until its range is
//! full.

use std::fs::{self, File};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde_json::json;

use super::Cluster;
use super::container::Container;
use crate::hosts::Underlay;
use crate::traffic::{can_ping, now};

/// Each bridge of the CNI plugin has 13 addresses for containers and for the probes.
const SMALL: &str = r#"
    { "vtep_subnet": "44.128.0.0/24", "vtep_mac_oui": "70:B3:D5:00:00:00",
      "overlays": [ { "name": "vxlan-1", "subnet": "192.168.0.0/24", "prefix": 27 } ] }"#;

impl Cluster {
    /// Starts one agent that verifies its host often.
    fn with_small_range() -> Self {
        let mut cluster = Self::with_network(Underlay::V4, SMALL);
        cluster.add_host(1).config["verify_interval"] = json!("1s");
        cluster.start_agents();
        cluster.wait_for_status(1, "vxlan-1", |status| status == "STATUS_OK");
        cluster
    }

    fn leases(&self) -> PathBuf {
        self.host(1).daemon.path("leases/vxlan-1")
    }

    fn released(&self) -> u64 {
        self.host(1).health()["counters"]["leases_released"].as_u64().unwrap_or_default()
    }

    fn problems(&self) -> String {
        self.host(1).health()["problems"].to_string()
    }

    /// Adds containers until the plugin refuses.
    fn fill(&self) -> Vec<Container> {
        let mut containers = Vec::new();
        loop {
            match Container::try_for_mesos(self.host(1), "vxlan-1") {
                Ok(container) => containers.push(container),
                Err(error) => {
                    assert!(error.contains("no IP addresses available"), "{error}");
                    return containers;
                }
            }
        }
    }

    /// Makes the leases older than the host, as after a reboot.
    fn age_leases(&self) {
        for entry in fs::read_dir(self.leases()).expect("the leases") {
            let path = entry.expect("a readable entry").path();
            let file = File::options().write(true).open(path).expect("a lease");
            let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
            file.set_modified(old).expect("a time");
        }
    }
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn leases_of_ended_containers_are_released_after_reboot() {
    let mut cluster = Cluster::with_small_range();
    let containers = cluster.fill();
    let count = containers.len() as u64;
    let reason = format!(
        "overlay vxlan-1: host-local has leased {count} of 13 addresses of 192.168.0.0/28, and \
         {count} containers are connected"
    );
    cluster.wait_for("the full range is named", || cluster.problems().contains(&reason));
    assert_eq!(cluster.released(), 0, "all containers run");
    // The host ends without a word to the plugin.
    cluster.host_mut(1).agent.take().expect("a running process").kill();
    drop(containers);
    let host = cluster.host(1);
    for device in ["m-vxlan-1", "vtep1024"] {
        host.namespace().run(&format!("ip link delete {device}"));
    }
    cluster.age_leases();
    assert!(Container::try_for_mesos(host, "vxlan-1").is_err());
    cluster.host_mut(1).start_agent();
    let start = now();
    cluster.wait_for("the leases are released", || cluster.released() == count);
    eprintln!(
        "{:>6} ms  start of the agent until {count} leases are released",
        start.elapsed().as_millis()
    );
    cluster.wait_for("the range is not full", || !cluster.problems().contains("host-local"));
    let container = Container::for_mesos(cluster.host(1), "vxlan-1");
    assert!(can_ping(cluster.host(1).namespace(), container.address(), 16));
    let log = fs::read_to_string(cluster.host(1).daemon.path("agent.log")).expect("a log");
    let line = "overlay vxlan-1: released the leases of containers that are gone: 192.168.0.2 of \
                container mesos-overlay-";
    assert!(log.contains(line), "{log}");
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn lease_of_running_container_is_never_released() {
    let cluster = Cluster::with_small_range();
    let mut containers = cluster.fill();
    let count = containers.len();
    let running = containers.remove(count / 2);
    let ended = containers.split_off(1);
    let (other, ended_count) = (containers.remove(0), ended.len() as u64);
    drop(ended);
    cluster.age_leases();
    let start = now();
    cluster.wait_for("the others are released", || cluster.released() == ended_count);
    eprintln!(
        "{:>6} ms  until the leases beside running containers are released",
        start.elapsed().as_millis()
    );
    for container in [&running, &other] {
        let lease = cluster.leases().join(container.address().to_string());
        assert!(lease.exists(), "{}", lease.display());
    }
    assert!(can_ping(&running.namespace, other.address(), 16));
    // Nor if another program removes the bridge of the containers.
    let host = cluster.host(1);
    host.agent.as_ref().expect("an agent").signal(rustix::process::Signal::STOP);
    host.namespace().run("ip link delete m-vxlan-1");
    host.agent.as_ref().expect("an agent").signal(rustix::process::Signal::CONT);
    cluster.wait_for("the bridge returns", || can_ping(&running.namespace, other.address(), 16));
    // New containers get the released addresses, and no address twice.
    let more = cluster.fill();
    // The agent may have taken one for its probes.
    assert!((ended_count - 1..=ended_count).contains(&(more.len() as u64)), "{}", more.len());
    for container in &more {
        assert!(![running.address(), other.address()].contains(&container.address()));
    }
    assert_eq!(cluster.released(), ended_count);
}
