//! Store and election on real ZooKeeper servers, and the program that uses both.

mod crash;
mod election;
mod export_import;
mod failover;
mod hang;
mod lookup;
mod permissions;
mod store;
mod storm;

use std::time::{Duration, Instant};

use overlay_types::addr::Ensemble;
use rustix::process::{Pid, Signal, kill_process};

use crate::ensemble::Servers;

/// A short tick, because the minimum session timeout is two ticks.
const TICK: Duration = Duration::from_millis(500);

/// Number of servers. An ensemble of this size tolerates the loss of one server.
const SERVERS: usize = 3;

/// The requested session timeout. It is in the range that the servers grant.
const SESSION: Duration = Duration::from_secs(4);

/// Builds the address of a path on these servers. `credentials` is empty, or `user:password@`.
fn ensemble(servers: &Servers, credentials: &str, path: &str) -> Ensemble {
    format!("zk://{credentials}{}{path}", servers.addresses()).parse().expect("an address")
}

/// Suspends all servers for `duration`. Clients observe a network partition.
fn suspend(servers: &Servers, duration: Duration) {
    let signal_all = |signal| {
        for child in servers.servers.iter().filter_map(|server| server.child.as_ref()) {
            kill_process(Pid::from_child(child), signal).expect("a running process");
        }
    };
    signal_all(Signal::STOP);
    sleep(duration);
    signal_all(Signal::CONT);
}

#[expect(clippy::disallowed_methods, reason = "a test waits for other processes")]
fn sleep(duration: Duration) {
    std::thread::sleep(duration);
}

#[expect(clippy::disallowed_methods, reason = "tests measure the duration of events")]
fn now() -> Instant {
    Instant::now()
}
