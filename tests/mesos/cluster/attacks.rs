//! Messages that amplify memory, sent to a mesos-master with the module. The memory that the module
//! adds is bounded. The tests also print the memory that libprocess takes for any of its processes.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::daemon::Daemon;
use super::host::{Cluster, Host, wait_until};
use super::mesos::{MASTER_PORT, start_module_master, state};

/// Limit of the memory that the module adds, in MiB. The baseline is the memory that libprocess
/// takes for an equal message to one of its own processes.
const ADDED_MEMORY_MAX: f64 = 100.0;

/// Returns the current memory of a process and its peak since the last call, in MiB.
fn memory(daemon: &Daemon) -> (f64, f64) {
    let pid = daemon.pid();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let value = |name: &str| {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .expect("the kernel shows the value");
        line.trim().trim_end_matches(" kB").parse::<f64>().expect("a number") / 1024.0
    };
    // Resets the peak, see proc(5).
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5").expect("the process runs");
    (value("VmRSS:"), value("VmHWM:"))
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).expect("writes to memory succeed");
    encoder.finish().expect("writes to memory succeed")
}

/// Sends a message to a process of mesos-master. Returns the memory that it took, in MiB.
fn memory_cost(
    hub: &Host,
    master: &Daemon,
    process: &str,
    body: &[u8],
    is_compressed: bool,
) -> f64 {
    let (before, _) = memory(master);
    let encoding = if is_compressed { "Content-Encoding: gzip\r\n" } else { "" };
    let head = format!(
        "POST /{process}/mesos.modules.overlay.internal.AgentRegisteredMessage HTTP/1.1\r\n\
         Libprocess-From: overlay-agent@{}:5051\r\nConnection: close\r\n{encoding}\
         Content-Length: {}\r\n\r\n",
        hub.ip,
        body.len()
    );
    let response = hub.exchange(MASTER_PORT, &[head.as_bytes(), body].concat());
    let response = String::from_utf8_lossy(&response.expect("a response")).into_owned();
    assert!(response.starts_with("HTTP/1.1 202 "), "{response}");
    // The module handles events in order, so this response means that the message was handled.
    let health = hub.get(MASTER_PORT, "/overlay-master/health").expect("an answer");
    assert_eq!(health.status, 200);
    memory(master).1 - before
}

#[test]
#[ignore = "mesos: needs a Mesos installation, root and packages: tests/run mesos"]
fn amplifying_message_adds_bounded_memory() {
    let cluster = Cluster::new();
    let hub = cluster.hub().clone();
    let master = start_module_master(&hub);
    wait_until("the master serves", || state(&hub), |state| !state.is_null());
    let empty_overlays = b"\x0a\x00".repeat(8 * 1024 * 1024);
    let bodies = [
        ("16 KB of gzip, 16 MiB inflated", gzip(&empty_overlays), true),
        ("512 KiB of empty overlays", empty_overlays[..512 * 1024].to_vec(), false),
    ];
    for (name, body, is_compressed) in bodies {
        // The `version` process of Mesos drops unknown messages, so its cost is that of libprocess.
        let baseline = memory_cost(&hub, &master, "version", &body, is_compressed);
        let with_module = memory_cost(&hub, &master, "overlay-master", &body, is_compressed);
        println!("{name}: {baseline:.1} MiB in libprocess, {with_module:.1} MiB with the module");
        assert!(
            with_module - baseline < ADDED_MEMORY_MAX,
            "{name}: {with_module:.1} MiB instead of {baseline:.1} MiB"
        );
    }
    let health = hub.get(MASTER_PORT, "/overlay-master/health").expect("an answer").json();
    assert_eq!(
        health["counters"]["malformed_messages"], 0,
        "the module decoded a message: {health}"
    );
}

#[test]
#[ignore = "mesos: needs a Mesos installation, root and packages: tests/run mesos"]
fn flood_of_one_sender_is_refused_others_are_served() {
    let cluster = Cluster::new();
    let hub = cluster.hub().clone();
    let master = start_module_master(&hub);
    wait_until("the master serves", || state(&hub), |state| !state.is_null());
    let register = |ip: &str| {
        // A registration without options, which has an empty network_config.
        format!(
            "POST /overlay-master/mesos.modules.overlay.internal.RegisterAgentMessage HTTP/1.1\r\n\
             Libprocess-From: overlay-agent@{ip}:5051\r\nContent-Length: 2\r\n\r\n\x0a\x00"
        )
    };
    let flood =
        register("10.0.0.66").repeat(20_000) + "GET /version HTTP/1.1\r\nConnection: close\r\n\r\n";
    let before = memory(&master).0;
    hub.exchange(MASTER_PORT, flood.as_bytes()).expect("mesos-master reads the flood");
    let honest = register("10.0.0.7") + "GET /version HTTP/1.1\r\nConnection: close\r\n\r\n";
    hub.exchange(MASTER_PORT, honest.as_bytes()).expect("an answer");
    let metrics = hub.get(MASTER_PORT, "/metrics/snapshot").expect("an answer").json();
    let refused = &metrics["overlay/master/limit_refusals/registrations_per_second_per_address"];
    assert!(refused.as_f64().is_some_and(|count| count > 10_000.0), "{refused}");
    let state = state(&hub);
    let agents = state["agents"].as_array().expect("a list");
    assert!(agents.iter().any(|agent| agent["ip"] == "10.0.0.7"), "{state}");
    println!("20,000 registrations of one sender take {:.1} MiB", memory(&master).1 - before);
}
