//! The store and the election on real ZooKeeper servers, and the program on top of them.

mod crash;
mod election;
mod failover;
mod moving;
mod store;
mod storm;
mod trust;

use std::time::{Duration, Instant};

use mesos_network_overlay::addr::Ensemble;
use rustix::process::{Pid, Signal, kill_process};

use crate::ensemble::Servers;

/// A short tick, so that sessions can be short.
const TICK: Duration = Duration::from_millis(500);

/// An ensemble that outlives one of its servers.
const SERVERS: usize = 3;

/// The session timeout that is asked for: one that the servers grant.
const SESSION: Duration = Duration::from_secs(4);

/// An address on these servers; `who` is empty, or `user:password@`.
fn ensemble(servers: &Servers, who: &str, path: &str) -> Ensemble {
    format!("zk://{who}{}{path}", servers.addresses()).parse().expect("an address")
}

/// Keeps servers from running for `duration`, as a partition between them and us does.
fn suspend(servers: &Servers, duration: Duration) {
    let all = |signal| {
        for child in servers.servers.iter().filter_map(|server| server.child.as_ref()) {
            kill_process(Pid::from_child(child), signal).expect("it is there");
        }
    };
    all(Signal::STOP);
    pause(duration);
    all(Signal::CONT);
}

#[expect(clippy::disallowed_methods, reason = "a test waits for other processes")]
fn pause(duration: Duration) {
    std::thread::sleep(duration);
}

#[expect(clippy::disallowed_methods, reason = "a test measures how long something takes")]
fn now() -> Instant {
    Instant::now()
}
