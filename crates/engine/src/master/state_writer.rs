//! The changes of the state that are not durable yet, and the versions that contain them.
//!
//! One commit is under way at a time. All changes during a commit go into the next commit.

use std::collections::BTreeMap;
use std::mem;
use std::net::Ipv4Addr;

use overlay_types::clock::Now;
use overlay_types::mutation::Mutation;
use overlay_types::protocol::{Addresses, Author, HistoryEntry, HistoryEvent};
use overlay_types::state::{Epoch, Key, RecordChange, Version};

use super::command::Command;
use super::history::{History, HistoryView};

/// The durable version, and the changes for the next commit.
#[derive(Debug)]
pub(super) struct StateWriter {
    epoch: Epoch,
    durable: Version,
    /// Whether the version after `durable` is being written.
    is_writing: bool,
    /// The changes of the next commit: the last change of each key.
    pending: BTreeMap<Key, RecordChange>,
    history: History,
    /// The client that requested the current changes.
    author: Author,
}

impl StateWriter {
    pub(super) const fn new(epoch: Epoch, durable: Version, history: History) -> Self {
        let author = Author { principal: None, client: None };
        Self { epoch, durable, is_writing: false, pending: BTreeMap::new(), history, author }
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
    pub(super) fn change(&mut self, changes: impl IntoIterator<Item = RecordChange>) {
        for change in changes {
            self.pending.insert(change.key(), change);
        }
    }

    /// Sets the client that following entries of the history name.
    pub(super) fn set_author(&mut self, author: Author) {
        self.author = author;
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
        let (at, author) = (now.unix, self.author.clone());
        let entry = HistoryEntry { at, version, agent, event, addresses, reason, author };
        self.history.note(entry);
    }

    /// Returns the history, including entries that are not stored yet.
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
        let mut changes: Vec<RecordChange> = mem::take(&mut self.pending).into_values().collect();
        changes.extend(self.history.take_changes());
        Some(Command::Commit { epoch: self.epoch, changes })
    }
}
