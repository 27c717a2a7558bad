//! The znodes of the state, and the content of the znodes that are not records.
//!
//! ```text
//! PATH/state/epoch              the epoch in digits; the version of this znode fences writers
//! PATH/state/head               format, version, and the number of pending parts of a commit
//! PATH/state/agents/7/10.0.0.7  the record of an agent, in the group of its last byte
//! PATH/state/agents/7/history-7 a part of the history, in the group of its last byte
//! PATH/state/pending/0          part of a commit that is too large for one request
//! ```
//! Mesos treats every child of an election path whose name ends in digits as a candidate. The name
//! `state` does not end in digits. The groups exist because the list of the children of one znode
//! must fit into one reply.

use std::net::Ipv4Addr;

use overlay_types::state::Key;
use serde::{Deserialize, Serialize};

/// Version of this layout. A state with a later version is refused.
const FORMAT: u32 = 1;

/// The format of a state during an import. No master loads it.
const UNFINISHED: u32 = u32::MAX;

/// Prefix of the name of a history part. The group is the last byte of its number.
const HISTORY_PREFIX: &str = "history-";

/// The paths of a state.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    root: String,
}

impl Layout {
    /// Returns the layout of the state below `path`.
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
                format!("{}/{HISTORY_PREFIX}{number}", self.group(group))
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

/// Returns the key of the record in the child `name` of `group`.
pub(super) fn record_key(group: u8, name: &str) -> Option<Key> {
    if let Some(number) = name.strip_prefix(HISTORY_PREFIX) {
        let number: u64 = number.parse().ok()?;
        let [.., last] = number.to_be_bytes();
        return (last == group && name == format!("{HISTORY_PREFIX}{number}"))
            .then_some(Key::History(number));
    }
    let ip: Ipv4Addr = name.parse().ok()?;
    let [_, _, _, last] = ip.octets();
    (last == group && ip.to_string() == name).then_some(Key::Agent(ip))
}

/// The content of the znode `head`, which every commit writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head {
    format: u32,
    /// Version of the last commit.
    pub(super) version: u64,
    /// Number of parts of the last commit, some of which may not be applied yet. 0 if all changes
    /// are applied.
    pub(super) pending: u32,
}

impl Head {
    pub(super) const fn new(version: u64, pending: u32) -> Self {
        Self { format: FORMAT, version, pending }
    }

    /// Returns the head of a state during an import.
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

    /// Parses the content of the znode.
    ///
    /// # Errors
    /// With the reason why the content is no head that this version can read.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let head: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if head.format > FORMAT && !head.is_unfinished() {
            return Err(format!(
                "it was written by a later version of mesos-overlay (format {}, this version \
                 supports {FORMAT}): run the later version",
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
    fn record_path_has_group_of_last_byte() {
        let layout = Layout::under("/overlay");
        let agent = Key::Agent(Ipv4Addr::new(10, 0, 0, 7));
        assert_eq!(layout.record(agent), "/overlay/state/agents/7/10.0.0.7");
        assert_eq!(record_key(7, "10.0.0.7"), Some(agent));
        let history = Key::History(258);
        assert_eq!(layout.record(history), "/overlay/state/agents/2/history-258");
        assert_eq!(record_key(2, "history-258"), Some(history));
        assert_eq!(record_key(2, "history-0258"), None);
        for name in ["10.0.0.8", "10.0.0.07", "10.0.0", "note", ""] {
            assert_eq!(record_key(7, name), None, "{name}");
        }
    }

    #[test]
    fn head_survives_roundtrip() {
        let head = Head::new(12, 3);
        assert_eq!(head.to_bytes(), br#"{"format":1,"version":12,"pending":3}"#);
        assert_eq!(Head::parse(&head.to_bytes()), Ok(head));
        let unfinished = Head::unfinished();
        assert_eq!(Head::parse(&unfinished.to_bytes()), Ok(unfinished));
        assert!(unfinished.is_unfinished() && !head.is_unfinished());
        let later = Head::parse(br#"{"format":2,"version":1,"pending":0}"#).unwrap_err();
        assert_eq!(
            later,
            "it was written by a later version of mesos-overlay (format 2, this version supports \
             1): run the later version"
        );
        assert!(Head::parse(b"").is_err() && Head::parse(b"{}").is_err());
    }
}
