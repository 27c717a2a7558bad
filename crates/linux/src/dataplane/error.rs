//! Errors of the dataplane. The texts reach the operator through the master's state: each text says
//! what failed, on which object, and what to do.

use std::io;

use overlay_types::advice::Command;
use rustix::io::Errno;

use super::state::Operation;

/// Why a netlink request to the kernel failed.
#[derive(Debug, thiserror::Error)]
pub enum DataplaneError {
    /// No netlink socket.
    #[error(
        "open a netlink socket: {0}: the agent needs a kernel with netlink and a free file \
         descriptor"
    )]
    Open(#[source] io::Error),
    /// The state of the kernel could not be read.
    #[error("read the kernel's network state: {0}: the next verification reads it again")]
    Read(#[source] io::Error),
    /// The tracked flows could not be read or deleted.
    #[error(
        "delete the tracked flows that are older than the firewall rules: {0}: such flows go on \
         without masquerade until they end, or until their containers start again"
    )]
    Flows(#[source] io::Error),
    /// The rules of the firewall are missing.
    #[error(
        "new overlays are not programmed: the host has no firewall rules for them, and would \
         accept packets of every host: fix the other problem, which names the firewall"
    )]
    WithoutRules,
    /// A bridge could not be removed.
    #[error("remove bridge {0}: {1}: remove it with {command}", command = Command::remove_device(.0))]
    Remove(String, #[source] io::Error),
}

/// An operation that the kernel refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{operation}: {reason}{remedy}", remedy = remedy(operation, *errno, holder.as_deref()))]
pub struct Failure {
    /// The operation that was attempted.
    pub operation: Operation,
    /// The error number. `None` if the error has no number.
    pub errno: Option<Errno>,
    /// The kernel's answer.
    pub reason: String,
    /// The existing object that conflicts with the operation.
    pub holder: Option<String>,
}

impl Failure {
    /// Creates a failure. `message` is the text that the kernel added to the error number.
    pub(super) fn new(operation: Operation, errno: Errno, message: Option<String>) -> Self {
        let error = describe(&errno.into());
        let reason = match message {
            Some(message) => format!("{error} ({})", message.trim_end_matches('.')),
            None => error,
        };
        Self { operation, errno: Some(errno), reason, holder: None }
    }

    /// Creates a failure of an operation whose answer was lost.
    pub(super) fn unanswered(operation: Operation, error: &io::Error) -> Self {
        let reason = format!("the kernel's answer was lost ({})", describe(error));
        Self { operation, errno: None, reason, holder: None }
    }

    /// Creates a failure of an operation whose device is missing.
    pub(super) fn without_device(operation: Operation) -> Self {
        let reason = "another program removed the device".to_owned();
        Self { operation, errno: None, reason, holder: None }
    }

    pub(super) fn io(operation: Operation, error: &io::Error) -> Self {
        let errno = Errno::from_io_error(error);
        Self { operation, errno, reason: describe(error), holder: None }
    }
}

/// Returns "file exists" for "File exists (os error 17)": the number does not help an operator.
pub(super) fn describe(error: &io::Error) -> String {
    error.to_string().split(" (os error").next().unwrap_or_default().to_lowercase()
}

/// Returns the remedy of a failure, with the colon before it.
fn remedy(operation: &Operation, errno: Option<Errno>, holder: Option<&str>) -> String {
    let text = match (operation, errno) {
        (Operation::AddRoute(key, _), Some(Errno::EXIST)) => {
            let holder = holder.unwrap_or("a route of another program");
            return format!(
                ": the new route conflicts with {holder}, which this host may need: see {}, and \
                 give the overlay another subnet, or let the owner of that route move it",
                Command::show_routes(key.subnet)
            );
        }
        (_, Some(Errno::PERM)) => "run the agent as root, or give it CAP_NET_ADMIN",
        (Operation::AddDevice(_, link), Some(Errno::ADDRINUSE)) => {
            let port = link.identity.port;
            return format!(
                ": find the owner of UDP port {port} with {}, or set another port on all agents",
                Command::show_port_owner(port)
            );
        }
        (Operation::AddDevice(..), Some(Errno::EXIST)) => {
            "remove the other VXLAN device with this VNI, which may be in another network namespace \
             (see 'lsns -t net'), or set another VNI on all agents"
        }
        (Operation::AddDevice(..), Some(Errno::OPNOTSUPP)) => {
            return format!(
                ": the kernel has no VXLAN: load it with {}, or install the kernel's extra modules",
                Command::load_vxlan_module()
            );
        }
        (Operation::AddDevice(..) | Operation::SetUnderlay(..), Some(Errno::ADDRNOTAVAIL)) => {
            "the agent's address is not on this host: register the agent with a local address"
        }
        (Operation::SetNeighbor(..), Some(Errno::NOBUFS)) => {
            "raise net.ipv4.neigh.default.gc_thresh3 and net.ipv6.neigh.default.gc_thresh3"
        }
        (Operation::EnableIpv6(_), _) => {
            "let the agent write to /proc/sys, or boot without ipv6.disable=1"
        }
        (Operation::SetLooseRpFilter(_) | Operation::EnableForwarding(..), _) => {
            "let the agent write to /proc/sys"
        }
        _ => "the next verification tries again",
    };
    format!(": {text}")
}
