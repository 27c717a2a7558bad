//! Hosts that lose the address of their agent, and agents that the master cannot serve.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Cluster, Host};
use crate::hosts::Underlay;
use crate::process::Process;

const ALL: &str = "0.0.0.0:5051";
/// Two VTEP addresses and two subnets.
const FOR_TWO_AGENTS: &str = r#"
    { "vtep_subnet": "44.128.0.0/30",
      "vtep_mac_oui": "70:B3:D5:00:00:00",
      "overlays": [ { "name": "vxlan-1", "subnet": "192.168.0.0/23", "prefix": 24 } ] }"#;

impl Host {
    /// Starts the agent on all addresses of the host.
    fn start_agent_on_all(&mut self, more: &[&str]) {
        let config = self.write_config();
        let arguments = [&["agent", "--config", &config, "--listen", ALL][..], more].concat();
        let log = self.daemon.path("agent.log");
        let docker = self.daemon.socket();
        self.agent = Some(Process::start(&self.daemon.namespace, &log, &docker, &arguments));
    }

    /// Returns the health of the agent, also if the host has no other address.
    fn local_health(&self) -> Value {
        self.namespace().inside(|| {
            let Ok(mut stream) = TcpStream::connect("127.0.0.1:5051") else { return Value::Null };
            let request = "GET /overlay-agent/health HTTP/1.1\r\nHost: 127.0.0.1:5051\r\n\
                           Connection: close\r\n\r\n";
            let mut response = String::new();
            let answered = stream
                .write_all(request.as_bytes())
                .and_then(|()| stream.read_to_string(&mut response));
            let body = answered.ok().and_then(|_| response.split_once("\r\n\r\n"));
            let body = body.map(|(_, body)| body.to_owned()).unwrap_or_default();
            serde_json::from_str(&body).unwrap_or_default()
        })
    }

    fn cni_subnet(&self) -> Option<String> {
        let content = fs::read(self.daemon.path("cni/vxlan-1.conf")).ok()?;
        let file: Value = serde_json::from_slice(&content).expect("valid JSON");
        let ipam = file.get("delegate").unwrap_or(&file)["ipam"].clone();
        ipam["subnet"].as_str().map(str::to_owned)
    }
}

/// Returns how long it takes until the agent reports the problem.
#[expect(clippy::disallowed_methods, reason = "tests measure the duration of events")]
fn time_until_problem(host: &Host, begin: &str) -> (Duration, Value) {
    let start = Instant::now();
    loop {
        let health = host.local_health();
        let first = health["problems"][0].as_str().unwrap_or_default();
        if first.starts_with(begin) {
            return (start.elapsed(), health);
        }
        assert!(start.elapsed() < Duration::from_secs(60), "{health}");
        crate::docker_daemon::sleep_poll_interval();
    }
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn agent_follows_new_address_of_host() {
    let mut cluster = Cluster::started(2, Underlay::V4);
    let host = cluster.host_mut(1);
    assert!(host.agent.take().expect("a running process").stop());
    host.start_agent_on_all(&[]);
    cluster.wait_for("agent 1 is ok", || cluster.host(1).local_health()["status"] == "ok");
    let before = cluster.host(1).cni_subnet().expect("a CNI configuration");
    cluster.host(1).namespace().run("ip addr del 10.0.0.1/24 dev eth0");
    let problem = "this host has no address 10.0.0.1 any more";
    let (elapsed, health) = time_until_problem(cluster.host(1), problem);
    assert!(elapsed < Duration::from_secs(20), "without an event, a minute passes: {elapsed:?}");
    assert_eq!(health["status"], "failed", "{health}");
    let text = health["problems"].to_string();
    assert!(text.contains("give the host another address") && !text.contains("external"), "{text}");
    cluster.host(1).namespace().run("ip addr add 10.0.0.11/24 dev eth0");
    for overlay in ["vxlan-1", "vxlan-2"] {
        cluster.wait_for_status(11, overlay, |status| status == "STATUS_OK");
    }
    cluster.wait_for("agent 11 is ok", || cluster.host(1).local_health()["status"] == "ok");
    let after = cluster.host(1).cni_subnet().expect("a CNI configuration");
    let assigned = &cluster.overlays(11)[0]["mesos_bridge"]["ip"];
    assert_eq!(assigned, &after, "{}", cluster.logs());
    assert_ne!(after, before);
    assert_eq!(cluster.overlays(1).len(), 2, "the record of the old address stays");
    let log = fs::read_to_string(cluster.host(1).daemon.path("agent.log")).expect("a log");
    assert!(log.contains("this host has the address 10.0.0.11 instead of 10.0.0.1"), "{log}");
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn advertised_address_is_not_replaced() {
    let mut cluster = Cluster::started(1, Underlay::V4);
    let host = cluster.host_mut(1);
    assert!(host.agent.take().expect("a running process").stop());
    host.start_agent_on_all(&["--advertise", "10.0.0.1:5051"]);
    cluster.wait_for("agent 1 is ok", || cluster.host(1).local_health()["status"] == "ok");
    let namespace = cluster.host(1).namespace();
    namespace.run("ip addr add 10.0.1.11/16 dev eth0");
    namespace.run("ip addr del 10.0.0.1/24 dev eth0");
    let problem = "this host has no address 10.0.0.1 any more";
    let (_, health) = time_until_problem(cluster.host(1), problem);
    assert!(health["problems"][0].to_string().contains("--advertise"), "{health}");
    for _ in 0..50 {
        crate::docker_daemon::sleep_poll_interval();
    }
    let health = cluster.host(1).local_health();
    assert_eq!(health["status"], "failed", "{health}");
    cluster.host(1).namespace().run("ip addr add 10.0.0.1/24 dev eth0");
    cluster.wait_for("agent 1 is ok", || cluster.host(1).local_health()["status"] == "ok");
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn refused_agent_drops_reassigned_subnet() {
    let mut cluster = Cluster::with_network(Underlay::V4, FOR_TWO_AGENTS);
    for number in [1, 2] {
        cluster.add_host(number).start_agent_on_all(&[]);
        cluster.wait_for_status(number, "vxlan-1", |status| status == "STATUS_OK");
    }
    let subnet = cluster.host(1).cni_subnet().expect("a CNI configuration");
    assert!(cluster.host_mut(1).agent.take().expect("a running process").stop());
    cluster.run_subcommand(&["forget", "--force", "10.0.0.1"]);
    cluster.add_host(3).start_agent_on_all(&[]);
    cluster.wait_for_status(3, "vxlan-1", |status| status == "STATUS_OK");
    assert_eq!(cluster.host(3).cni_subnet().as_ref(), Some(&subnet));
    // The first agent returns. Its host has the file and the device of the earlier process.
    assert_eq!(cluster.host(1).cni_subnet().as_ref(), Some(&subnet));
    cluster.host_mut(1).start_agent_on_all(&[]);
    let refused = "master 10.0.0.100:5050 refuses this agent: no VTEP address is left in \
                   44.128.0.0/30";
    let (elapsed, _) = time_until_problem(cluster.host(1), refused);
    eprintln!("refused after {elapsed:?}");
    cluster.wait_for("the configuration is gone", || cluster.host(1).cni_subnet().is_none());
    cluster.wait_for("the device is gone", || {
        !cluster.host(1).namespace().devices().iter().any(|name| name == "vtep1024")
    });
    let health = cluster.host(1).local_health();
    assert_eq!(health["status"], "failed", "{health}");
    let text = health["problems"].to_string();
    assert!(text.contains("agent 10.0.0.3 has ") && text.contains(&subnet), "{text}");
    // The others are not affected, and the first agent is served when there is room.
    assert_eq!(cluster.status(3, "vxlan-1"), "STATUS_OK");
    assert!(cluster.host_mut(2).agent.take().expect("a running process").stop());
    cluster.run_subcommand(&["forget", "--force", "10.0.0.2"]);
    cluster.wait_for_status(1, "vxlan-1", |status| status == "STATUS_OK");
    cluster.wait_for("agent 1 is ok", || cluster.host(1).local_health()["status"] == "ok");
}
