//! The names of the libprocess processes of master and agent. The C++ modules use the same names.

use std::net::SocketAddrV4;

use libprocess::Upid;

/// Id of the master's process.
pub const MASTER_PROCESS: &str = "overlay-master";
/// Id of the agent's process.
pub const AGENT_PROCESS: &str = "overlay-agent";

/// Returns the master's process at `address`.
#[must_use]
pub fn master_upid(address: SocketAddrV4) -> Upid {
    Upid { id: MASTER_PROCESS.to_owned(), address }
}

/// Returns the agent's process at `address`.
#[must_use]
pub fn agent_upid(address: SocketAddrV4) -> Upid {
    Upid { id: AGENT_PROCESS.to_owned(), address }
}
