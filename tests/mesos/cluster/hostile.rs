//! Messages that ask for much memory, against mesos-master with the module: what our code adds is
//! bounded; what libprocess takes by itself, as for any process of Mesos, is printed beside it.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::daemon::Daemon;
use super::host::{Cluster, Host, wait_until};
use super::mesos::{MASTER_PORT, module_master, state};

/// Memory that a process may need more while it is attacked than libprocess needs for a message of
/// the same bytes to one of its own processes, in MiB.
const ADDED_MAX: f64 = 100.0;

/// Memory of a process in MiB: now, and at most since the last time.
fn memory(daemon: &Daemon) -> (f64, f64) {
    let pid = daemon.pid();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let value = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("the kernel's");
        line.trim().trim_end_matches(" kB").parse::<f64>().expect("a number") / 1024.0
    };
    // Makes the kernel forget the peak so far (proc(5)).
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5").expect("it runs");
    (value("VmRSS:"), value("VmHWM:"))
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).expect("memory takes all bytes");
    encoder.finish().expect("memory takes all bytes")
}

/// Sends a message to a process of mesos-master, and says how much memory that took.
fn cost(hub: &Host, master: &Daemon, process: &str, body: &[u8], is_compressed: bool) -> f64 {
    let (before, _) = memory(master);
    let encoding = if is_compressed { "Content-Encoding: gzip\r\n" } else { "" };
    let head = format!(
        "POST /{process}/mesos.modules.overlay.internal.AgentRegisteredMessage HTTP/1.1\r\n\
         Libprocess-From: overlay-agent@{}:5051\r\nConnection: close\r\n{encoding}\
         Content-Length: {}\r\n\r\n",
        hub.ip,
        body.len()
    );
    let answer = hub.exchange(MASTER_PORT, &[head.as_bytes(), body].concat());
    let answer = String::from_utf8_lossy(&answer.expect("an answer")).into_owned();
    assert!(answer.starts_with("HTTP/1.1 202 "), "{answer}");
    // It is answered in the order in which the module takes what comes.
    let health = hub.get(MASTER_PORT, "/overlay-master/health").expect("an answer");
    assert_eq!(health.status, 200);
    memory(master).1 - before
}

#[test]
#[ignore = "mesos: needs a Mesos installation, root and packages: tests/run mesos"]
fn amplifying_messages_cost_what_libprocess_itself_takes() {
    let cluster = Cluster::new();
    let hub = cluster.hub().clone();
    let master = module_master(&hub);
    wait_until("it serves", || state(&hub), |state| !state.is_null());
    let empty_overlays = b"\x0a\x00".repeat(8 * 1024 * 1024);
    let bodies = [
        ("16 KB of gzip, 16 MiB inflated", gzip(&empty_overlays), true),
        ("512 KiB of empty overlays", empty_overlays[..512 * 1024].to_vec(), false),
    ];
    for (name, body, is_compressed) in bodies {
        // The process `version` of Mesos drops messages that it does not know.
        let own = cost(&hub, &master, "version", &body, is_compressed);
        let ours = cost(&hub, &master, "overlay-master", &body, is_compressed);
        println!("{name}: {own:.1} MiB in libprocess, {ours:.1} MiB with the module");
        assert!(ours - own < ADDED_MAX, "{name}: {ours:.1} MiB instead of {own:.1} MiB");
    }
    let health = hub.get(MASTER_PORT, "/overlay-master/health").expect("an answer").json();
    assert_eq!(health["counters"]["malformed_messages"], 0, "nothing of it was decoded: {health}");
}

#[test]
#[ignore = "mesos: needs a Mesos installation, root and packages: tests/run mesos"]
fn flood_of_one_sender_is_refused_and_others_are_served() {
    let cluster = Cluster::new();
    let hub = cluster.hub().clone();
    let master = module_master(&hub);
    wait_until("it serves", || state(&hub), |state| !state.is_null());
    let register = |ip: &str| {
        // A registration without options: an empty network_config.
        format!(
            "POST /overlay-master/mesos.modules.overlay.internal.RegisterAgentMessage HTTP/1.1\r\n\
             Libprocess-From: overlay-agent@{ip}:5051\r\nContent-Length: 2\r\n\r\n\x0a\x00"
        )
    };
    let flood =
        register("10.0.0.66").repeat(20_000) + "GET /version HTTP/1.1\r\nConnection: close\r\n\r\n";
    let before = memory(&master).0;
    hub.exchange(MASTER_PORT, flood.as_bytes()).expect("all of it is taken");
    let honest = register("10.0.0.7") + "GET /version HTTP/1.1\r\nConnection: close\r\n\r\n";
    hub.exchange(MASTER_PORT, honest.as_bytes()).expect("an answer");
    let metrics = hub.get(MASTER_PORT, "/metrics/snapshot").expect("an answer").json();
    let refused = &metrics["overlay/master/limit_refusals/registrations_per_second_per_address"];
    assert!(refused.as_f64().is_some_and(|count| count > 10_000.0), "{refused}");
    let state = state(&hub);
    let agents = state["agents"].as_array().expect("a list");
    assert!(agents.iter().any(|agent| agent["ip"] == "10.0.0.7"), "{state}");
    println!("20,000 registrations of one sender: {:.1} MiB", memory(&master).1 - before);
}
