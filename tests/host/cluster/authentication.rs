//! Containers that send messages with the address of their host, since masquerade lends it to them:
//! as the agent of the host, and as the master. With credentials, nothing changes.
//!
//! The firewall of the agents is off, as the ports of a Mesos process are open: executors and
//! schedulers in containers need them.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::Duration;

use overlay_types::addr::Upid;
use overlay_types::protocol::{AgentOptions, MasterKind, Message, PeersUpdate};
use overlay_wire::encode_message;
use serde_json::{Value, json};

use super::container::Container;
use super::{Cluster, MASTER_ADDRESS, NETWORK};
use crate::hosts::Underlay;
use crate::namespace::{BUSYBOX, Namespace, run, succeed};
use crate::traffic::can_ping;

const AGENT: &str = "overlay-agent@10.0.0.1:5051";

fn upid(text: &str) -> Upid {
    text.parse().expect("a process")
}

fn master() -> Upid {
    upid(&format!("overlay-master@{MASTER_ADDRESS}"))
}

/// Starts two hosts, with the credentials of a file or without any.
fn start(credentials: Option<&str>) -> Cluster {
    let network: Value = serde_json::from_str(NETWORK).expect("a network");
    let mut config = json!({ "network": network });
    if let Some(path) = credentials {
        config["credentials"] = json!(path);
    }
    let mut cluster = Cluster::with_network(Underlay::V4, &config.to_string());
    for number in 1..=2 {
        let host = cluster.add_host(number);
        host.config["firewall"] = json!("none");
        if let Some(path) = credentials {
            host.config["credential"] = json!(path);
        }
    }
    cluster.start_agents();
    cluster.wait_until_ok();
    cluster
}

/// Sends a message. Returns whether the receiver took it from the network.
fn send(from_host: &Namespace, from: &Upid, to: &Upid, message: &Message) -> bool {
    let (name, body) = encode_message(message);
    let head = format!(
        "POST /{}/{name} HTTP/1.1\r\nUser-Agent: libprocess/{from}\r\nLibprocess-From: {from}\r\n\
         Connection: close\r\nHost: {}\r\nContent-Length: {}\r\n\r\n",
        to.id,
        to.address,
        body.len()
    );
    from_host.inside(|| {
        let mut stream = TcpStream::connect(to.address).expect("a connection");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a socket timeout");
        stream.write_all(&[head.as_bytes(), &body].concat()).expect("a sent request");
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer.contains(" 202 ")
    })
}

/// Sends the messages of an attacker in a container on host 1, and in one on the master's host.
fn attack(cluster: &Cluster, container: &Container) {
    // The master sees the address of host 1, as with any masquerade.
    let rules = "add table ip lend
                 add chain ip lend post { type nat hook postrouting priority 100 ; }
                 add rule ip lend post ip saddr 192.168.0.0/17 oifname != vtep1024 masquerade";
    let host = cluster.host(1).namespace();
    rules.lines().for_each(|line| drop(succeed(host.command("nft").arg(line.trim()))));
    host.run("sysctl -qw net.ipv4.ip_forward=1");
    let options = AgentOptions {
        underlay: "fd66::66".parse().ok(),
        docker_bridge: false,
        ..AgentOptions::default()
    };
    let (agent, master) = (upid(AGENT), master());
    assert!(send(&container.namespace, &agent, &master, &Message::RegisterAgent(options)));
    let forgeries = [
        Message::UpdatePeers(Arc::new(PeersUpdate { epoch: 9, version: 9, ..Default::default() })),
        Message::UpdateAgentOverlays { overlays: Vec::new(), master: MasterKind::Other },
    ];
    for message in forgeries {
        assert!(send(&cluster.namespace, &master, &agent, &message));
    }
}

fn master_health(cluster: &Cluster) -> Value {
    let url = format!("http://{MASTER_ADDRESS}/overlay-master/health");
    let mut command = cluster.namespace.command(BUSYBOX);
    let output = run(command.args(["wget", "-q", "-O", "-", &url]), "");
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

fn refused(health: &Value) -> u64 {
    health["counters"]["unauthentic_messages_refused"].as_u64().unwrap_or_default()
}

/// Lists what the attacker wants to change on a host.
fn list(cluster: &Cluster, number: u8) -> String {
    let host = cluster.host(number);
    let lines = ["ip route show", "bridge fdb show dev vtep1024", "ip neigh show dev vtep1024"];
    let entries: String = lines.iter().map(|line| host.namespace().run(line)).collect();
    let files = fs::read_dir(host.daemon.path("cni")).expect("the directory of CNI");
    entries + &files.count().to_string()
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn container_with_address_of_its_host_changes_nothing() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let path = folder.path().join("credentials");
    fs::write(&path, "agents correct-horse-battery-staple").expect("a file");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("a mode");
    let cluster = start(path.to_str());
    let containers = cluster.add_containers();
    let [first, second] = &containers[..] else { panic!("two containers") };
    assert!(can_ping(&first.namespace, second.address(), 1392), "{}", cluster.logs());
    let before = [1, 2].map(|number| list(&cluster, number));

    attack(&cluster, first);
    cluster
        .wait_for("the master refuses the registration", || refused(&master_health(&cluster)) == 1);
    cluster.wait_for("the agent refuses both messages", || refused(&cluster.host(1).health()) == 2);
    assert_eq!([1, 2].map(|number| list(&cluster, number)), before);
    assert!(can_ping(&first.namespace, second.address(), 1392), "{}", cluster.logs());
    assert_eq!(master_health(&cluster)["authentication"]["authenticated"], 2);
    assert_eq!(cluster.host(1).health()["status"], "ok", "{}", cluster.logs());
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn container_without_credentials_cuts_its_host_off() {
    let cluster = start(None);
    let containers = cluster.add_containers();
    let [first, second] = &containers[..] else { panic!("two containers") };
    assert!(can_ping(&first.namespace, second.address(), 1392), "{}", cluster.logs());
    attack(&cluster, first);
    cluster.wait_for("the containers are cut off", || {
        !can_ping(&first.namespace, second.address(), 16)
    });
}
