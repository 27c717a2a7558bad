//! Values with addresses that may be sent only once a version of the state is durable.
//!
//! The registry allocates and releases in memory. Until the commit is durable, another agent may
//! still own an address in the durable state. So all values with addresses leave the registry as
//! [`Gated`] values. A gated value can only be turned into a command with that version.

use overlay_types::addr::Upid;
use overlay_types::protocol::{
    Assignment, MasterKind, Message, Reassigned, RegistrationProblems, RequestId,
};
use overlay_types::state::Version;

use super::command::{Command, Reply};
use super::encoded_update::EncodedUpdate;

/// A value, and the version that must be durable before the value is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Gated<T> {
    value: T,
    valid_from: Version,
}

impl<T> Gated<T> {
    /// Returns a value whose addresses are all exclusive once `valid_from` is durable.
    pub(super) const fn new(value: T, valid_from: Version) -> Self {
        Self { value, valid_from }
    }

    pub(super) const fn valid_from(&self) -> Version {
        self.valid_from
    }

    /// Holds the value back until `version` is durable as well.
    pub(super) fn not_before(self, version: Version) -> Self {
        Self { valid_from: self.valid_from.max(version), ..self }
    }
}

impl Gated<Vec<Assignment>> {
    pub(super) const fn overlay_count(&self) -> usize {
        self.value.len()
    }

    /// Returns the command that sends the assignments to their agent.
    pub(super) fn into_update(self, to: Upid, master: MasterKind) -> Command {
        let message = Message::UpdateAgentOverlays { overlays: self.value, master };
        Command::Send { to, message, when: self.valid_from }
    }
}

impl Gated<Vec<Reassigned>> {
    /// Returns the command that sends the problems of its registration to an agent, with the
    /// addresses that other agents have.
    pub(super) fn into_problems(self, to: Upid, problems: RegistrationProblems) -> Command {
        let problems = RegistrationProblems { reassigned: self.value, ..problems };
        let message = Message::RegistrationProblems(problems);
        Command::Send { to, message, when: self.valid_from }
    }
}

impl Gated<EncodedUpdate> {
    /// Returns the command that sends the update to these agents.
    pub(super) fn into_send(self, to: Vec<Upid>) -> Command {
        Command::SendPeers { to, update: self.value, when: self.valid_from }
    }
}

impl Gated<Reply> {
    /// Returns the command that answers the request.
    pub(super) fn into_command(self, id: RequestId) -> Command {
        Command::Reply { id, reply: self.value, when: self.valid_from }
    }
}

impl<T> Gated<T> {
    /// Converts the value to a reply.
    pub(super) fn into_reply(self, reply: fn(T) -> Reply) -> Gated<Reply> {
        Gated { value: reply(self.value), valid_from: self.valid_from }
    }
}

impl<T> FromIterator<Gated<T>> for Gated<Vec<T>> {
    /// Collects values that are sent together. The latest version counts for all of them.
    fn from_iter<I: IntoIterator<Item = Gated<T>>>(all: I) -> Self {
        let mut gate = Gate::open();
        let value = all.into_iter().map(|gated| gate.absorb(gated)).collect();
        gate.wrap(value)
    }
}

/// The version before which no value of a collection is sent. Each value that the collection
/// absorbs raises the gate of the whole collection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Gate(Version);

impl Gate {
    /// Returns a gate that holds nothing back.
    pub(super) const fn open() -> Self {
        Self(Version(0))
    }

    /// Adds a value to the collection, and returns the bare value.
    pub(super) fn absorb<T>(&mut self, gated: Gated<T>) -> T {
        self.0 = self.0.max(gated.valid_from);
        gated.value
    }

    /// Returns the version before which no value of the collection is sent.
    pub(super) const fn valid_from(self) -> Version {
        self.0
    }

    /// Gates a value of the collection.
    pub(super) const fn wrap<T>(self, value: T) -> Gated<T> {
        Gated { value, valid_from: self.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collection_waits_for_latest_version() {
        let gated = |value, version| Gated::new(value, Version(version));
        let all: Gated<Vec<u8>> = [gated(1, 4), gated(2, 9), gated(3, 2)].into_iter().collect();
        assert_eq!(all, gated_list(&[1, 2, 3], 9));
        assert_eq!(all.clone().not_before(Version(3)), all);
        assert_eq!(all.not_before(Version(12)), gated_list(&[1, 2, 3], 12));
        let none: Gated<Vec<u8>> = [].into_iter().collect();
        assert_eq!(none, gated_list(&[], 0));
    }

    fn gated_list(values: &[u8], version: u64) -> Gated<Vec<u8>> {
        Gated::new(values.to_vec(), Version(version))
    }
}
