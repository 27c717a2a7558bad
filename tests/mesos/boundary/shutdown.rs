//! The end of the process: with `process::finalize` as in mesos-agent, and without as in
//! mesos-master.

use std::fs;
use std::io::{BufReader, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;

use super::agent::{load_agent, load_agent_with_embedded_master, write_script};
use super::host::{AGENT, Build, Host, MASTER, text};
use super::master::{NETWORK, golden};
use super::peer::{Peer, Update, connect, deliver, read_response, wait_for};

/// Limit of the time in which libprocess and the modules stop on a busy machine, in milliseconds.
const FINALIZE_MAX_MS: u64 = 2_000;
/// Number of pipelined requests. libprocess reads all of them at once.
const REQUESTS: usize = 500;
const MESSAGES: &str = "5000";

/// Starts a host with both modules under load: incoming messages, outgoing messages and requests
/// without a response. libprocess must have read all requests before it ends, since it has a bug:
/// it uses the process of a connection after deleting it.
fn start_under_load(build: Build) -> (Host, TcpStream) {
    let mut host = Host::start(build);
    host.load_master(NETWORK);
    load_agent_with_embedded_master(&mut host);
    wait_for("agent health with the status ok", || {
        (host.get("/overlay-agent/health").status == 200).then_some(())
    });
    assert!(host.module_thread_count() > 0);

    let mut stream = connect(host.address);
    let get = "GET /overlay-master/state HTTP/1.1\r\nHost: localhost\r\n\r\n";
    stream.write_all(get.repeat(REQUESTS).as_bytes()).expect("data is sent");
    let mut reader = BufReader::new(stream.try_clone().expect("a descriptor"));
    assert_eq!(read_response(&mut reader).expect("the first response").status, 200);

    let register = golden!("RegisterAgentMessage");
    for last in 1..=100 {
        // Nothing listens on these addresses.
        let from = format!("overlay-agent@127.0.1.{last}:1");
        let status = deliver(host.address, &register.to, &register.name, &from, &register.body);
        assert_eq!(status, 202);
    }
    host.command(&[
        "spawn",
        "other-agent",
        "mesos.modules.overlay.internal.UpdateAgentOverlaysMessage",
    ]);
    let body: String = register.body.iter().map(|byte| format!("{byte:02x}")).collect();
    let master = format!("overlay-master@{}", host.address);
    host.command(&["send", "other-agent", &master, &register.name, &body, MESSAGES]);
    (host, stream)
}

/// Checks that libprocess can be finalized under load, and that the process then ends.
pub(crate) fn check_finalize_under_load(build: Build) -> String {
    let (mut host, _requests) = start_under_load(build);
    let duration: u64 = host.command(&["finalize"])[0].parse().expect("milliseconds");
    assert!(duration < FINALIZE_MAX_MS, "{duration} ms: {}", host.log());
    wait_for("end of the module threads", || (host.module_thread_count() == 0).then_some(()));
    let (status, log) = host.exit();
    assert!(status.success(), "{status}: {log}");
    log
}

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn finalize_under_load_stops_modules_in_time() {
    check_finalize_under_load(Build::release());
}

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn finalize_of_idle_modules_is_fast() {
    let mut host = Host::start(Build::release());
    host.load_master(NETWORK);
    load_agent(&mut host, "127.0.0.1:1", Path::new("cni"));
    let duration: u64 = host.command(&["finalize"])[0].parse().expect("milliseconds");
    assert!(duration < 2_000, "{duration} ms: {}", host.log());
    assert_eq!(host.module_thread_count(), 0);
    assert!(host.exit().0.success());
}

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn exit_without_finalize_succeeds() {
    let (host, _requests) = start_under_load(Build::release());
    let (status, log) = host.exit();
    assert!(status.success(), "{status}: {log}");
}

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn finalize_kills_hanging_docker() {
    let mut host = Host::start(Build::release());
    let master = Peer::listen("overlay-master", Ipv4Addr::LOCALHOST);
    // This docker hangs.
    let (cni, docker) = (host.path("cni"), host.path("docker"));
    write_script(&docker, "echo $$ > $0.pid; exec sleep 60");
    let address = master.address().to_string();
    let parameters = [
        ("master", &*address),
        ("cni_dir", text(&cni)),
        ("docker", text(&docker)),
        ("dataplane", "external"),
        ("refuse_collisions", "false"),
    ];
    assert!(host.load(AGENT, &parameters), "{}", host.log());
    master.receive();
    let update = golden!("UpdateAgentOverlaysMessage").read::<Update>();
    master.send(host.address, "overlay-agent", &update);
    let child = wait_for("start of docker", || {
        let pid = fs::read_to_string(host.path("docker.pid")).ok()?;
        pid.strip_suffix('\n').map(|pid| Path::new("/proc").join(pid))
    });
    // The threads of the modules block all signals. Child processes must not inherit this mask.
    let status = wait_for("start of sleep", || {
        let status = fs::read_to_string(child.join("status")).expect("the process runs");
        status.starts_with("Name:\tsleep\n").then_some(status)
    });
    let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).expect("a mask");
    assert_eq!(mask.trim(), "0000000000000000");
    let duration: u64 = host.command(&["finalize"])[0].parse().expect("milliseconds");
    assert!(duration < FINALIZE_MAX_MS, "{duration} ms: {}", host.log());
    wait_for("end of docker", || (!child.exists()).then_some(()));
    assert!(host.exit().0.success());
}

/// Time for which the end of a module may block libprocess, on a busy machine.
const STOP_MAX_MS: u64 = 500;

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn finalize_ends_waiting_operation_of_log() {
    let mut host = Host::start(Build::release());
    let network = host.write("network.json", NETWORK);
    let log = host.path("log-replica");
    // No ZooKeeper runs there, so the log never has a quorum.
    let parameters = [
        ("overlays", text(&network)),
        ("replicated_log_dir", text(&log)),
        ("zk", r#"{"url":"zk://127.0.0.1:9/mesos","quorum":2}"#),
    ];
    assert!(host.load(MASTER, &parameters), "{}", host.log());
    wait_for("state that waits for the log", || {
        let health = host.get("/overlay-master/health");
        (health.status == 503 || health.status == 200).then_some(())
    });
    // The clients of the detector, the log's replica and the log's network. libprocess has a bug:
    // finalize during the start of a client ends the process.
    wait_for("three ZooKeeper clients", || {
        (host.log_lines("Initiating client connection").len() == 3).then_some(())
    });
    let duration: u64 = host.command(&["finalize"])[0].parse().expect("milliseconds");
    assert!(duration < STOP_MAX_MS, "{duration} ms: {}", host.log());
    wait_for("end of the module threads", || (host.module_thread_count() == 0).then_some(()));
    let (status, log) = host.exit();
    assert!(status.success(), "{status}: {log}");
}
