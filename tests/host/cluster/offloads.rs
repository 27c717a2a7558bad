//! An agent with `repair_offloads` finds a broken offload and switches it off, on its own device.

use serde_json::{Value, json};

use super::container::Container;
use super::{Cluster, Host, MASTER_ADDRESS};
use crate::doctor::run_doctor_in;
use crate::hosts::Underlay;
use crate::offloads::{Fault, Interface, transfer};

const DEVICE: &str = "vtep1024";

/// Returns whether a device leaves checksums to the hardware.
fn has_offload(host: &Host, device: &str) -> bool {
    let name = device.to_owned();
    let read = move || overlay_linux::dataplane::has_checksum_offload(&name);
    host.namespace().inside(read).expect("the features of the device")
}

/// Returns what the agent says about the offloads.
fn note(host: &Host) -> Value {
    host.health()["dataplane"]["offloads"].clone()
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn agent_switches_broken_offload_off_and_keeps_it_off() {
    let mut cluster = Cluster::new(Underlay::V4);
    for number in 1..=3 {
        cluster.add_host(number).config["repair_offloads"] = json!(number < 3);
    }
    let interface = Interface::new(&cluster.switch, "port1");
    interface.set(Fault::Checksum);
    cluster.start_agents();
    cluster.wait_until_ok();
    let containers = [1, 2].map(|number| Container::for_mesos(cluster.host(number), "vxlan-1"));
    let [from, to] = &containers;
    let can_transfer = || transfer(&from.namespace, &to.namespace, to.address()).is_some();
    let host = cluster.host(1);

    cluster.wait_for("the agent switches the offload off", || !has_offload(host, DEVICE));
    cluster.wait_for("a container transfers data", can_transfer);
    let text = note(host);
    let start = "checksum offload of the tunnels is broken to 10.0.0.2, 10.0.0.3: ";
    assert!(text.as_str().is_some_and(|text| text.starts_with(start)), "{text}");
    assert!(has_offload(host, "eth0"), "the device of the host is not ours");
    let log = std::fs::read_to_string(host.daemon.path("agent.log")).expect("a log");
    assert_eq!(log.matches(start).count(), 1, "{log}");
    let done = "switch off the checksum offload of device vtep1024";
    assert_eq!(log.matches(done).count(), 1, "{log}");

    host.namespace().run(&format!("ethtool -K {DEVICE} tx-checksum-ip-generic on"));
    cluster.wait_for("the agent repairs the drift", || !has_offload(host, DEVICE));
    host.namespace().run(&format!("ip link delete {DEVICE}"));
    cluster.wait_for("the new device has no offload either", || {
        let names = host.namespace().devices();
        names.iter().any(|name| name == DEVICE) && !has_offload(host, DEVICE)
    });
    cluster.wait_for("a container transfers data", can_transfer);

    let diagnosis = run_doctor_in(host.namespace(), &["doctor", "--master", MASTER_ADDRESS]);
    assert_eq!(diagnosis.wrong(), [""; 0], "{diagnosis:?}");
    let found = diagnosis.findings_of("offload");
    assert_eq!(
        found,
        ["device vtep1024 computes checksums in software: an operator or the agent \
          (repair_offloads) switched the offload off"]
    );
    // Peers whose hardware works, with and without the setting.
    for number in [2, 3] {
        assert!(has_offload(cluster.host(number), DEVICE));
        assert_eq!(note(cluster.host(number)), Value::Null);
    }
}
