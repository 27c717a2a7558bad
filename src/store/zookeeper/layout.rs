//! Where the state is in ZooKeeper, and what is in the znodes that are not records.
//!
//! ```text
//! PATH/state/epoch              the epoch in digits; the version of this znode fences
//! PATH/state/head               format, version, and how many parts of a commit are pending
//! PATH/state/agents/7/10.0.0.7  the record of an agent, in the group of its last byte
//! PATH/state/agents/7/history-7 a part of the history, in the group of its last byte
//! PATH/state/pending/0          part of a commit that is too large for one request
//! ```
//! Mesos takes every child of an election's path for a candidate whose name ends in digits, which
//! `state` does not. The groups are there because the list of the children of one znode has to fit
//! into one answer.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::store::Key;

/// Version of this layout. A state with a later one is refused.
const FORMAT: u32 = 1;

/// The format of a state into which one is being imported: no master takes it.
const UNFINISHED: u32 = u32::MAX;

/// What the name of a part of the history begins with. Its group is the last byte of its number.
const HISTORY: &str = "history-";

/// The paths of a state.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    root: String,
}

impl Layout {
    /// The state under `path`.
    pub(super) fn under(path: &str) -> Self {
        Self { root: format!("{path}/state") }
    }

    pub(super) fn root(&self) -> &str {
        &self.root
    }

    pub(super) fn epoch(&self) -> String {
        format!("{}/epoch", self.root)
    }

    pub(super) fn head(&self) -> String {
        format!("{}/head", self.root)
    }

    pub(super) fn agents(&self) -> String {
        format!("{}/agents", self.root)
    }

    pub(super) fn group(&self, group: u8) -> String {
        format!("{}/agents/{group}", self.root)
    }

    pub(super) fn record(&self, key: Key) -> String {
        match key {
            Key::Agent(ip) => {
                let [_, _, _, group] = ip.octets();
                format!("{}/{ip}", self.group(group))
            }
            Key::History(number) => {
                let [.., group] = number.to_be_bytes();
                format!("{}/{HISTORY}{number}", self.group(group))
            }
        }
    }

    pub(super) fn pending(&self) -> String {
        format!("{}/pending", self.root)
    }

    pub(super) fn part(&self, number: u32) -> String {
        format!("{}/pending/{number}", self.root)
    }
}

/// The key of the record that is the child `name` of `group`.
pub(super) fn key_of(group: u8, name: &str) -> Option<Key> {
    if let Some(number) = name.strip_prefix(HISTORY) {
        let number: u64 = number.parse().ok()?;
        let [.., last] = number.to_be_bytes();
        return (last == group && name == format!("{HISTORY}{number}"))
            .then_some(Key::History(number));
    }
    let ip: Ipv4Addr = name.parse().ok()?;
    let [_, _, _, last] = ip.octets();
    (last == group && ip.to_string() == name).then_some(Key::Agent(ip))
}

/// What a commit changes beside records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head {
    format: u32,
    /// The last commit.
    pub(super) version: u64,
    /// Into how many parts that commit was cut, some of which may wait to be applied; 0 if there is
    /// nothing to apply.
    pub(super) pending: u32,
}

impl Head {
    pub(super) const fn new(version: u64, pending: u32) -> Self {
        Self { format: FORMAT, version, pending }
    }

    /// That of a state which is made to be imported into, until all of it is there.
    pub(super) const fn unfinished() -> Self {
        Self { format: UNFINISHED, version: 0, pending: 0 }
    }

    pub(super) const fn is_unfinished(self) -> bool {
        self.format == UNFINISHED
    }

    pub(super) fn to_bytes(self) -> Vec<u8> {
        format!(
            r#"{{"format":{},"version":{},"pending":{}}}"#,
            self.format, self.version, self.pending
        )
        .into_bytes()
    }

    /// What is wrong with it, if it cannot be read.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let head: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if head.format > FORMAT && !head.is_unfinished() {
            return Err(format!(
                "it was written by a later version of mesos-overlay (format {}, this one knows \
                 {FORMAT}): run that version",
                head.format
            ));
        }
        Ok(head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_is_in_the_group_of_its_last_byte() {
        let layout = Layout::under("/overlay");
        let agent = Key::Agent(Ipv4Addr::new(10, 0, 0, 7));
        assert_eq!(layout.record(agent), "/overlay/state/agents/7/10.0.0.7");
        assert_eq!(key_of(7, "10.0.0.7"), Some(agent));
        let history = Key::History(258);
        assert_eq!(layout.record(history), "/overlay/state/agents/2/history-258");
        assert_eq!(key_of(2, "history-258"), Some(history));
        assert_eq!(key_of(2, "history-0258"), None);
        for name in ["10.0.0.8", "10.0.0.07", "10.0.0", "note", ""] {
            assert_eq!(key_of(7, name), None, "{name}");
        }
    }

    #[test]
    fn a_head_reads_what_it_prints() {
        let head = Head::new(12, 3);
        assert_eq!(head.to_bytes(), br#"{"format":1,"version":12,"pending":3}"#);
        assert_eq!(Head::parse(&head.to_bytes()), Ok(head));
        let unfinished = Head::unfinished();
        assert_eq!(Head::parse(&unfinished.to_bytes()), Ok(unfinished));
        assert!(unfinished.is_unfinished() && !head.is_unfinished());
        let later = Head::parse(br#"{"format":2,"version":1,"pending":0}"#).unwrap_err();
        assert_eq!(
            later,
            "it was written by a later version of mesos-overlay (format 2, this one knows 1): run \
             that version"
        );
        assert!(Head::parse(b"").is_err() && Head::parse(b"{}").is_err());
    }
}
