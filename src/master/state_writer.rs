//! The changes of the state that are not written yet, and the versions that have them.
//!
//! One commit is under way at a time. All changes that are made meanwhile go into the next one.

use std::collections::BTreeMap;
use std::mem;
use std::net::Ipv4Addr;

use super::command::Command;
use super::history::{History, HistoryView};
use crate::clock::Now;
use crate::mutation::Mutation;
use crate::protocol::{Addresses, HistoryEntry, HistoryEvent};
use crate::store::{Change, Epoch, Key, Version};

/// The durable version, and what is to be written.
#[derive(Debug)]
pub(super) struct StateWriter {
    epoch: Epoch,
    durable: Version,
    /// Whether the version after `durable` is being written.
    is_writing: bool,
    /// The changes of the next commit: the last one of each key.
    pending: BTreeMap<Key, Change>,
    history: History,
}

impl StateWriter {
    pub(super) const fn new(epoch: Epoch, durable: Version, history: History) -> Self {
        Self { epoch, durable, is_writing: false, pending: BTreeMap::new(), history }
    }

    pub(super) const fn epoch(&self) -> Epoch {
        self.epoch
    }

    pub(super) const fn durable(&self) -> Version {
        self.durable
    }

    pub(super) const fn is_writing(&self) -> bool {
        self.is_writing
    }

    /// Returns the version that the next commit makes.
    pub(super) fn next_version(&self) -> Version {
        if self.is_writing && !Mutation::RepeatVersion.is_on() {
            self.durable.next().next()
        } else {
            self.durable.next()
        }
    }

    /// Returns the version that has every change until now.
    pub(super) fn latest_version(&self) -> Version {
        if self.has_pending() {
            self.next_version()
        } else if self.is_writing {
            self.durable.next()
        } else {
            self.durable
        }
    }

    fn has_pending(&self) -> bool {
        !self.pending.is_empty() || self.history.has_changes()
    }

    /// Adds changes to the next commit.
    pub(super) fn change(&mut self, changes: impl IntoIterator<Item = Change>) {
        for change in changes {
            let (Change::Put(key, _) | Change::Delete(key)) = &change;
            self.pending.insert(*key, change);
        }
    }

    /// Adds an entry to the history, in the next commit.
    pub(super) fn note(
        &mut self,
        now: Now,
        agent: Option<Ipv4Addr>,
        event: HistoryEvent,
        addresses: Addresses,
        reason: &str,
    ) {
        let (version, reason) = (self.next_version().0, reason.to_owned());
        self.history.note(&HistoryEntry { at: now.unix, version, agent, event, addresses, reason });
    }

    /// Returns the history, also what is not written yet.
    pub(super) fn history(&self, agent: Option<Ipv4Addr>) -> HistoryView {
        self.history.view(agent)
    }

    /// Notes that the commit that was under way is durable.
    pub(super) const fn committed(&mut self, version: Version) {
        self.durable = version;
        self.is_writing = false;
    }

    /// Returns the next commit, if there is something to write and no commit is under way.
    pub(super) fn take_commit(&mut self) -> Option<Command> {
        if self.is_writing || !self.has_pending() {
            return None;
        }
        self.is_writing = true;
        let mut changes: Vec<Change> = mem::take(&mut self.pending).into_values().collect();
        changes.extend(self.history.take_changes());
        Some(Command::Commit { epoch: self.epoch, changes })
    }
}
