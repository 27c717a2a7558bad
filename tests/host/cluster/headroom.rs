//! The used and free addresses of both halves, with leases of host-local and containers of Docker.

use serde_json::{Value, json};

use super::container::Container;
use super::{BUSYBOX, Cluster, Host, MASTER_ADDRESS, PROGRAM};
use crate::hosts::Underlay;
use crate::namespace::run;

/// Each half has 13 addresses for containers.
const SMALL: &str = r#"
    { "vtep_subnet": "44.128.0.0/24", "vtep_mac_oui": "70:B3:D5:00:00:00",
      "overlays": [ { "name": "vxlan-1", "subnet": "192.168.0.0/24", "prefix": 27 } ] }"#;
const CAPACITY: u64 = 13;

/// Returns the halves that the agent shows, first that of Mesos.
fn halves(host: &Host) -> Vec<Value> {
    let address = Underlay::V4.address(host.number);
    let url = format!("http://{address}:5051/overlay-agent/addresses?overlay=vxlan-1");
    let output = run(host.namespace().command(BUSYBOX).args(["wget", "-q", "-O", "-", &url]), "");
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    shown["overlays"][0]["halves"].as_array().cloned().unwrap_or_default()
}

impl Cluster {
    /// Returns used and free addresses of a bridge, as the master shows them.
    fn counts_at_master(&self, bridge: &str) -> Option<(u64, u64)> {
        let counts = self.overlays(1).first()?[bridge]["addresses"].clone();
        Some((counts["used"].as_u64()?, counts["free"].as_u64()?))
    }

    fn status_text(&self) -> String {
        let mut command = self.namespace.command(PROGRAM);
        let output = run(command.args(["status", "--master", MASTER_ADDRESS]), "");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn counts_of_both_halves_follow_containers_up_to_the_master() {
    let mut cluster = Cluster::with_network(Underlay::V4, SMALL);
    let host = cluster.add_host(1);
    host.config["network_config"]["docker_bridge"] = json!(true);
    host.daemon.start();
    host.daemon.import_image();
    cluster.start_agents();
    cluster.wait_for_status(1, "vxlan-1", |status| status == "STATUS_OK");
    let host = cluster.host(1);
    let shown = |half: usize| {
        let halves = halves(host);
        let number = |key: &str| halves.get(half).and_then(|half| half[key].as_u64());
        (number("used"), number("free"))
    };
    cluster.wait_for("both halves are free", || {
        [shown(0), shown(1)] == [(Some(0), Some(CAPACITY)); 2]
    });
    let docker = Container::for_docker(host, "vxlan-1");
    let mesos = Container::for_mesos(host, "vxlan-1");
    cluster.wait_for("each half has a container", || {
        [shown(0), shown(1)] == [(Some(1), Some(CAPACITY - 1)); 2]
    });
    let found = halves(host);
    let listed = |half: usize| found[half]["addresses"][0].clone();
    let (lease, container) = (listed(0), listed(1));
    assert_eq!(lease["address"], mesos.address().to_string());
    assert_eq!((&lease["source"], &lease["interface"]), (&json!("lease"), &json!("eth0")));
    assert_eq!(container["address"], docker.address().to_string());
    assert_eq!((&container["source"], &container["holder"]), (&json!("docker"), &json!("vxlan-1")));
    for bridge in ["mesos_bridge", "docker_bridge"] {
        cluster.wait_for("the master shows the container", || {
            cluster.counts_at_master(bridge) == Some((1, CAPACITY - 1))
        });
    }
    assert!(!cluster.status_text().contains("warning: "), "{}", cluster.status_text());
    // The addresses run out.
    let mut containers = vec![mesos];
    while let Ok(container) = Container::try_for_mesos(host, "vxlan-1") {
        containers.push(container);
    }
    assert_eq!(containers.len() as u64, CAPACITY, "free is what the plugin really gives");
    let full = "warning: 1 agent: overlay vxlan-1: no address is free for Mesos containers: ";
    cluster.wait_for("status names the full half", || cluster.status_text().contains(full));
    assert_eq!(cluster.counts_at_master("mesos_bridge"), Some((CAPACITY, 0)));
    containers.pop().expect("a container").leave(host, "vxlan-1");
    let nearly = "a tenth of the addresses or less is free for Mesos containers: ";
    cluster
        .wait_for("status names the nearly full half", || cluster.status_text().contains(nearly));
    containers.pop().expect("a container").leave(host, "vxlan-1");
    cluster.wait_for("the warning ends", || !cluster.status_text().contains("warning: "));
}
