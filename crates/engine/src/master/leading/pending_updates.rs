//! The assignments that are held back until a version is durable.

use std::collections::{BTreeSet, HashMap};
use std::mem;
use std::net::Ipv4Addr;

use overlay_types::addr::Upid;
use overlay_types::mutation::Mutation;
use overlay_types::state::Version;

use super::super::command::Command;

/// The assignments that are held back until a version is durable. While a disk hangs, agents repeat
/// their registration, and one answer is enough.
#[derive(Debug, Default)]
pub(super) struct PendingUpdates {
    pub(super) held: HashMap<Upid, Version>,
    /// Agents that were released while messages or replies were held back.
    pub(super) withdrawn: BTreeSet<Ipv4Addr>,
}

impl PendingUpdates {
    /// Notes that assignments are held back until `valid_from`. Returns whether to send them:
    /// unchanged assignments that are held back already are not sent twice.
    pub(super) fn add(&mut self, to: &Upid, valid_from: Version, is_changed: bool) -> bool {
        self.held.insert(to.clone(), valid_from) != Some(valid_from) || is_changed
    }

    /// Removes the assignments that are no longer held back.
    pub(super) fn committed(&mut self, version: Version) {
        self.held.retain(|_, valid_from| *valid_from > version);
    }

    /// Returns the command that drops the assignments that are held back for released agents. These
    /// assignments were never stored, and the next commit may allocate the addresses to other
    /// agents.
    pub(super) fn take_withdrawal(&mut self) -> Option<Command> {
        let agents = mem::take(&mut self.withdrawn);
        if agents.is_empty() || Mutation::SendToReleasedAgent.is_on() {
            return None;
        }
        self.held.retain(|to, _| !agents.contains(to.address.ip()));
        Some(Command::Withdraw(agents))
    }
}
