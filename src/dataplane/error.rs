//! Why something in the kernel is not as it should be. The texts reach the operator through the
//! master's state: each says what failed, on which object, and what to do.

use std::io;

use super::state::Operation;
use super::uapi::{EADDRINUSE, EADDRNOTAVAIL, EEXIST, ENOBUFS, EOPNOTSUPP, EPERM};

/// Why the kernel cannot be talked to.
#[derive(Debug, thiserror::Error)]
pub enum DataplaneError {
    /// No netlink socket.
    #[error(
        "open a netlink socket: {0}: the agent needs a kernel with netlink and room for a file"
    )]
    Open(#[source] io::Error),
    /// The state of the kernel could not be read.
    #[error("read the kernel's network state: {0}: it is read again at the next verification")]
    Read(#[source] io::Error),
    /// A bridge could not be removed.
    #[error("remove bridge {0}: {1}: remove it with 'ip link delete {0}'")]
    Remove(String, #[source] io::Error),
}

/// An operation that the kernel refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{operation}: {reason}{remedy}", remedy = remedy(operation, *errno, holder.as_deref()))]
pub struct Failure {
    /// What was attempted.
    pub operation: Operation,
    /// The number of the error; 0 where there is none.
    pub errno: i32,
    /// The kernel's answer.
    pub reason: String,
    /// Who has what was wanted.
    pub holder: Option<String>,
}

impl Failure {
    pub(super) fn new(operation: Operation, errno: i32, said: Option<String>) -> Self {
        let error = io::Error::from_raw_os_error(errno).to_string();
        // "File exists (os error 17)": the number says nothing to an operator.
        let error = error.split(" (os error").next().unwrap_or_default().to_lowercase();
        let reason = match said {
            Some(said) => format!("{error} ({})", said.trim_end_matches('.')),
            None => error,
        };
        Self { operation, errno, reason, holder: None }
    }

    pub(super) fn io(operation: Operation, error: &io::Error) -> Self {
        Self::new(operation, error.raw_os_error().unwrap_or(0), None)
    }
}

fn remedy(operation: &Operation, errno: i32, holder: Option<&str>) -> String {
    let text = match (operation, errno) {
        (Operation::AddRoute(key, _), EEXIST) => {
            let holder = holder.unwrap_or("somebody else");
            return format!(
                ": {holder} has it: remove it with 'ip route delete {}', or give the overlay \
                 another subnet",
                key.subnet
            );
        }
        (_, EPERM) => "run the agent as root, or give it CAP_NET_ADMIN",
        (Operation::AddDevice(_, link), EADDRINUSE) => {
            return format!(
                ": see who has UDP port {port} with 'ss -ulpn sport = :{port}', or set another port \
                 on all agents",
                port = link.identity.port
            );
        }
        (Operation::AddDevice(..), EEXIST) => {
            "remove the other VXLAN device with this VNI, or set another VNI on all agents"
        }
        (Operation::AddDevice(..), EOPNOTSUPP) => {
            "the kernel has no VXLAN: load it with 'modprobe vxlan', or install the kernel's extra \
             modules"
        }
        (Operation::AddDevice(..) | Operation::SetUnderlay(..), EADDRNOTAVAIL) => {
            "the agent's address is none of this host: register with one that is"
        }
        (Operation::SetNeighbour(..), ENOBUFS) => {
            "raise net.ipv4.neigh.default.gc_thresh3 and net.ipv6.neigh.default.gc_thresh3"
        }
        (Operation::EnableIpv6(_), _) => {
            "let the agent write to /proc/sys, or boot without ipv6.disable=1"
        }
        (Operation::Loosen(_), _) => "let the agent write to /proc/sys",
        _ => "it is tried again at the next verification",
    };
    format!(": {text}")
}
