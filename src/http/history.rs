//! The history of the addresses as JSON.

use std::time::{Duration, UNIX_EPOCH};

use http::StatusCode;
use serde::Serialize;

use super::{Format, Response};
use crate::escape::bounded_line;
use crate::master::HistoryView;
use crate::protocol::{Addresses, HistoryEntry, OverlayRecord};

/// `{"entries":[…]}`, the earliest first.
#[derive(Serialize)]
struct Body {
    entries: Vec<Entry>,
    /// Parts of the history that cannot be read.
    #[serde(skip_serializing_if = "is_zero")]
    unreadable_parts: usize,
}

#[derive(Serialize)]
struct Entry {
    at: u64,
    /// The same for people.
    time: String,
    version: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    agent: Option<String>,
    event: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    vtep_ip: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vtep_ip6: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    overlays: Vec<Share>,
    reason: String,
}

#[derive(Serialize)]
struct Share {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    subnet: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subnet6: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
const fn is_zero(number: &usize) -> bool {
    *number == 0
}

pub(super) fn render(history: &HistoryView, format: &Format) -> Response {
    let (entries, unreadable_parts) = history.entries();
    let entries = entries.into_iter().map(Entry::from).collect();
    format.value(StatusCode::OK, &Body { entries, unreadable_parts })
}

impl From<HistoryEntry> for Entry {
    fn from(entry: HistoryEntry) -> Self {
        let HistoryEntry { at, version, agent, event, addresses, reason } = entry;
        let Addresses { vtep_ip, vtep_ip6, overlays } = addresses;
        // A clock that was far off when it was written must not keep the rest from being shown.
        let time = UNIX_EPOCH.checked_add(Duration::from_secs(at));
        let time = time.filter(|_| at < YEAR_9999).unwrap_or(UNIX_EPOCH);
        Self {
            at,
            time: humantime::format_rfc3339_seconds(time).to_string(),
            version,
            agent: agent.map(|ip| ip.to_string()),
            event: event.to_string(),
            vtep_ip: vtep_ip.map(|ip| ip.to_string()),
            vtep_ip6: vtep_ip6.map(|ip| ip.to_string()),
            overlays: overlays.into_iter().map(Share::from).collect(),
            reason: bounded_line(&reason, REASON_MAX),
        }
    }
}

/// Longest reason that is shown, in characters: enough for the changes of a configuration. Who can
/// write into the store of the master chooses it.
const REASON_MAX: usize = 8192;

/// Later times cannot be written in the form of RFC 3339.
const YEAR_9999: u64 = 253_370_764_800;

impl From<OverlayRecord> for Share {
    fn from(record: OverlayRecord) -> Self {
        let OverlayRecord { name, subnet, subnet6 } = record;
        Self {
            name: name.to_string(),
            subnet: subnet.map(|subnet| subnet.to_string()),
            subnet6: subnet6.map(|subnet| subnet.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::HistoryEvent;

    #[test]
    fn reason_from_a_hostile_store_is_escaped_and_cut() {
        let entry = HistoryEntry {
            at: 0,
            version: 1,
            agent: None,
            event: HistoryEvent::Configured,
            addresses: Addresses::default(),
            reason: format!("\u{1b}[2J\u{202e}\n{}", "x".repeat(1_000_000)),
        };
        let reason = Entry::from(entry).reason;
        assert!(reason.starts_with(r"\u{1b}[2J\u{202e}\nxx"), "{reason}");
        assert!(reason.ends_with("x… (cut)"), "{reason}");
        assert_eq!(reason.chars().count(), REASON_MAX);
    }
}
