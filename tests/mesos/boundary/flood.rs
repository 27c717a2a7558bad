//! Invalid, oversized and excessive messages take bounded memory and do not stop the modules.

use std::io::{BufReader, Write as _};
use std::path::Path;
use std::thread;

use overlay_wire::MESSAGE_NAMES;

use super::agent::load_agent;
use super::host::{Build, Host};
use super::master::{NETWORK, listen_as_agent, register_recorded_agent};
use super::peer::{connect, deliver, encode, read_response};

const MESSAGES: usize = 20_000;
/// Limit of the additional memory of the host, in KiB. It includes the queues of libprocess.
const MEMORY_GROWTH_MAX: u64 = 256 * 1024;

/// A deterministic pseudo-random generator (xorshift).
struct PseudoRandom(u64);

impl PseudoRandom {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn bytes(&mut self, limit: u64) -> Vec<u8> {
        let length = self.next() % limit;
        (0..length).map(|_| self.next().to_le_bytes()[0]).collect()
    }
}

fn start_with_both_modules(build: Build) -> Host {
    let mut host = Host::start(build);
    host.load_master(NETWORK);
    load_agent(&mut host, "127.0.0.1:1", Path::new("cni"));
    host
}

/// Sends messages on one connection. Returns the status of each receipt.
fn send_all(host: &Host, messages: &[Vec<u8>]) -> Vec<u16> {
    let mut stream = connect(host.address);
    let mut reader = BufReader::new(stream.try_clone().expect("a descriptor"));
    let count = messages.len();
    let read = move || -> Vec<u16> {
        (0..count)
            .map_while(|_| read_response(&mut reader))
            .map(|response| response.status)
            .collect()
    };
    let receipts = thread::Builder::new().spawn(read).expect("a thread");
    for message in messages {
        stream.write_all(message).expect("data is sent");
    }
    receipts.join().expect("the thread does not panic")
}

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn random_messages_do_not_stop_modules() {
    let host = start_with_both_modules(Build::release());
    let mut random = PseudoRandom(1);
    let mut messages = Vec::new();
    for process in ["overlay-master", "overlay-agent"] {
        for name in
            MESSAGE_NAMES.iter().chain(&["none", "mesos.internal.log.PromiseRequest", "a/b"])
        {
            for _ in 0..100 {
                let from = format!("x@127.0.0.5:{}", random.next() % 65_536);
                messages.push(encode(process, name, &from, &random.bytes(300)));
            }
        }
    }
    let statuses = send_all(&host, &messages);
    assert_eq!(statuses, vec![202; messages.len()]);
    register_recorded_agent(&host, &listen_as_agent());
    assert_ne!(host.get("/overlay-agent/health").status, 0);
    // Invalid messages do not fill the log of Mesos.
    assert!(host.log().lines().count() < 500, "{} lines", host.log().lines().count());
}

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn oversized_messages_are_refused_and_freed() {
    let host = start_with_both_modules(Build::release());
    let before = host.memory();
    let body = vec![0x0a; 20 * 1024 * 1024];
    for _ in 0..10 {
        for name in MESSAGE_NAMES {
            let from = "overlay-agent@127.0.0.5:1";
            assert_eq!(deliver(host.address, "overlay-master", name, from, &body), 202);
        }
    }
    register_recorded_agent(&host, &listen_as_agent());
    host.wait_for_log("the body exceeds");
    let growth = host.memory().saturating_sub(before);
    assert!(growth < MEMORY_GROWTH_MAX, "{growth} KiB");
}

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn registration_flood_takes_bounded_memory() {
    let host = start_with_both_modules(Build::release());
    let register = super::master::golden!("RegisterAgentMessage");
    let before = host.memory();
    // Half of the messages are valid. Nothing listens on these addresses, so connects fail at once.
    let messages: Vec<_> = (0..MESSAGES)
        .map(|at| {
            let from = format!("overlay-agent@127.1.{}.{}:1", at / 250 % 50, at % 250 + 1);
            let body = if at % 2 == 0 { register.body.as_slice() } else { &[0xff; 1000] };
            encode("overlay-master", &register.name, &from, body)
        })
        .collect();
    let statuses = send_all(&host, &messages);
    assert_eq!(statuses.len(), MESSAGES);
    assert!(statuses.iter().all(|status| *status == 202));
    let state = host.wait_for_state();
    let agents = state["agents"].as_array().map_or(0, Vec::len);
    // The network has subnets for 128 agents only, so most registrations are refused.
    assert!(agents > 0, "no agent registered");
    let growth = host.memory().saturating_sub(before);
    assert!(growth < MEMORY_GROWTH_MAX, "{growth} KiB");
    // The endpoints still respond after the flood.
    assert_eq!(host.get("/overlay-master/state").status, 200);
    assert_eq!(host.get("/overlay-agent/overlay").status, 200);
    assert!(host.exit().0.success());
}
