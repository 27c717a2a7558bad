//! Too much, too large and too strange: what cannot be served costs no more than that.

use std::io::{BufReader, Write as _};
use std::path::Path;
use std::thread;

use mesos_network_overlay::wire::MESSAGE_NAMES;

use super::agent::load_agent;
use super::host::{Build, Host};
use super::master::{NETWORK, agent, register_as_recorded};
use super::peer::{connect, deliver, encode, read_response};

const MESSAGES: usize = 20_000;
/// What both parts may hold of what waits, in KiB, several times over for what libprocess holds.
const GROWTH_MAX: u64 = 256 * 1024;

/// Numbers that look random and are the same each time.
struct Garbage(u64);

impl Garbage {
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

fn both(build: Build) -> Host {
    let mut host = Host::start(build);
    host.load_master(NETWORK);
    load_agent(&mut host, "127.0.0.1:1", Path::new("cni"));
    host
}

/// The statuses of all that was sent on one connection.
fn pour(host: &Host, messages: &[Vec<u8>]) -> Vec<u16> {
    let mut stream = connect(host.address);
    let mut reader = BufReader::new(stream.try_clone().expect("a descriptor"));
    let count = messages.len();
    let read = move || -> Vec<u16> {
        (0..count).map_while(|_| read_response(&mut reader)).map(|r| r.status).collect()
    };
    let receipts = thread::Builder::new().spawn(read).expect("a thread");
    for message in messages {
        stream.write_all(message).expect("it is sent");
    }
    receipts.join().expect("it does not fail")
}

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn garbage_of_every_kind_is_survived() {
    let host = both(Build::release());
    let mut garbage = Garbage(1);
    let mut messages = Vec::new();
    for process in ["overlay-master", "overlay-agent"] {
        for name in
            MESSAGE_NAMES.iter().chain(&["none", "mesos.internal.log.PromiseRequest", "a/b"])
        {
            for _ in 0..100 {
                let from = format!("x@127.0.0.5:{}", garbage.next() % 65_536);
                messages.push(encode(process, name, &from, &garbage.bytes(300)));
            }
        }
    }
    let statuses = pour(&host, &messages);
    assert_eq!(statuses, vec![202; messages.len()]);
    register_as_recorded(&host, &agent());
    assert_ne!(host.get("/overlay-agent/health").status, 0);
    // Strangers do not fill the log of Mesos.
    assert!(host.log().lines().count() < 500, "{} lines", host.log().lines().count());
}

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn huge_messages_are_refused_and_let_go() {
    let host = both(Build::release());
    let before = host.memory();
    let body = vec![0x0a; 20 * 1024 * 1024];
    for _ in 0..10 {
        for name in MESSAGE_NAMES {
            let from = "overlay-agent@127.0.0.5:1";
            assert_eq!(deliver(host.address, "overlay-master", name, from, &body), 202);
        }
    }
    register_as_recorded(&host, &agent());
    host.wait_for_log("the body exceeds");
    let grown = host.memory().saturating_sub(before);
    assert!(grown < GROWTH_MAX, "{grown} KiB");
}

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn a_flood_is_survived_in_bounded_memory() {
    let host = both(Build::release());
    let register = super::master::golden!("RegisterAgentMessage");
    let before = host.memory();
    // Half of them good: agents that nobody ever hears of again. On 127.0.0.0/8 a refusal is quick.
    let messages: Vec<_> = (0..MESSAGES)
        .map(|at| {
            let from = format!("overlay-agent@127.1.{}.{}:1", at / 250 % 50, at % 250 + 1);
            let body = if at % 2 == 0 { register.body.as_slice() } else { &[0xff; 1000] };
            encode("overlay-master", &register.name, &from, body)
        })
        .collect();
    let statuses = pour(&host, &messages);
    assert_eq!(statuses.len(), MESSAGES);
    assert!(statuses.iter().all(|status| *status == 202));
    let state = host.wait_for_state();
    let agents = state["agents"].as_array().map_or(0, Vec::len);
    // 128 agents' worth of subnets are in the network.
    assert!(agents > 0, "none of them is known");
    let grown = host.memory().saturating_sub(before);
    assert!(grown < GROWTH_MAX, "{grown} KiB");
    // Who comes afterwards is served as ever: its address is one of the first.
    assert_eq!(host.get("/overlay-master/state").status, 200);
    assert_eq!(host.get("/overlay-agent/overlay").status, 200);
    assert!(host.exit().0.success());
}
