//! The store and the election on real ZooKeeper servers, and the program on top of them.

mod election;
mod store;

use std::time::Duration;

use mesos_network_overlay::addr::Ensemble;

use crate::ensemble::Servers;

/// A short tick, so that sessions can be short.
const TICK: Duration = Duration::from_millis(500);

/// The session timeout that is asked for: one that the servers grant.
const SESSION: Duration = Duration::from_secs(4);

/// An address on these servers; `who` is empty, or `user:password@`.
fn ensemble(servers: &Servers, who: &str, path: &str) -> Ensemble {
    format!("zk://{who}{}{path}", servers.addresses()).parse().expect("an address")
}
