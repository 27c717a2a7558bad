//! The ingress hooks at the ports of the containers.
//!
//! The container that starts gets its hook, and the rules of the table stay. The kernel removes a
//! hook with its port; newer kernels keep the empty chain.

use overlay_types::addr::{DeviceName, Mac};

use super::TABLE;
use super::rules::base;

/// The beginning of the names of the chains.
const CHAIN: &str = "port";

/// The ingress hook at the port of a container. The frames for its bridge continue in the chain of
/// the bridge.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PortHook {
    /// Index of the port. A port that was replaced needs a hook of its own.
    pub(super) index: u32,
    pub(super) device: DeviceName,
    /// Number of the bridge.
    pub(super) bridge: usize,
    /// MAC of the bridge. The kernel gives a bridge the lowest MAC of its ports, so it may change with
    /// each container.
    pub(super) mac: Mac,
}

impl PortHook {
    /// Returns the name of the chain.
    pub(super) fn chain(&self) -> String {
        format!("{CHAIN}{}", self.index)
    }

    fn rule(&self) -> String {
        format!("ether daddr {} goto from{}", self.mac, self.bridge)
    }

    /// Returns the chain as [`listed`] does.
    pub(super) fn listed(&self) -> String {
        format!("{} {} {}", self.chain(), self.device, self.rule())
    }

    /// Returns the input of nft that adds the hook.
    pub(super) fn addition(&self) -> String {
        let (chain, base, rule) = (self.chain(), base(&self.device), self.rule());
        format!("add chain {TABLE} {chain} {{ {base} }}\nadd rule {TABLE} {chain} {rule}\n")
    }

    /// Returns the input of nft that removes the hook. It succeeds if the kernel has removed it.
    pub(super) fn removal(&self) -> String {
        let chain = format!("chain {TABLE} {}", self.chain());
        format!("add {chain}\nflush {chain}\ndelete {chain}\n")
    }
}

/// Returns whether a chain of the table is that of a port.
pub(in super::super) fn is_port_chain(name: &str) -> bool {
    name.strip_prefix(CHAIN).is_some_and(|index| index.parse::<u32>().is_ok())
}

/// Returns a listed chain of a port as text: its name, its device, and its rules.
pub(in super::super) fn listed(name: &str, lines: &[&str]) -> String {
    let device = lines.first().and_then(|line| line.split('"').nth(1)).unwrap_or_default();
    let rules = lines.get(1..).unwrap_or_default().join(" ");
    format!("{name} {device} {rules}")
}
