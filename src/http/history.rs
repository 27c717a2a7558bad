//! The address history as JSON.

use std::time::{Duration, UNIX_EPOCH};

use http::StatusCode;
use overlay_engine::master::HistoryView;
use overlay_types::escape::bounded_line;
use overlay_types::protocol::{Addresses, HistoryEntry, OverlayRecord};
use serde::Serialize;

use super::{Format, Response};

/// Maximum length of a shown reason in characters, which is enough for the changes of a
/// configuration. Any process that can write to the master's store chooses the reason.
const REASON_MAX: usize = 8192;

/// Maximum length of a shown principal or client in characters.
const AUTHOR_MAX: usize = 256;

/// Unix time of the start of the year 9999. RFC 3339 cannot represent times after that year.
const YEAR_9999: u64 = 253_370_764_800;

/// `{"entries":[…]}`, in chronological order.
#[derive(Serialize)]
struct Body {
    entries: Vec<Entry>,
    /// Number of history segments that cannot be read.
    #[serde(skip_serializing_if = "is_zero")]
    unreadable_parts: usize,
}

#[derive(Serialize)]
struct Entry {
    at: u64,
    /// `at` in RFC 3339.
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
    overlays: Vec<OverlayAddresses>,
    reason: String,
    /// Who requested the change.
    #[serde(skip_serializing_if = "Option::is_none")]
    principal: Option<String>,
    /// The address of the requester.
    #[serde(skip_serializing_if = "Option::is_none")]
    client: Option<String>,
}

#[derive(Serialize)]
struct OverlayAddresses {
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
    format.json_value(StatusCode::OK, &Body { entries, unreadable_parts })
}

impl From<HistoryEntry> for Entry {
    fn from(entry: HistoryEntry) -> Self {
        let HistoryEntry { at, version, agent, event, addresses, reason, author } = entry;
        let Addresses { vtep_ip, vtep_ip6, overlays } = addresses;
        // A time of a wrong clock is shown as 1970, so that the entry is displayed nevertheless.
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
            overlays: overlays.into_iter().map(OverlayAddresses::from).collect(),
            reason: bounded_line(&reason, REASON_MAX),
            principal: author.principal.map(|text| bounded_line(&text, AUTHOR_MAX)),
            client: author.client.map(|text| bounded_line(&text, AUTHOR_MAX)),
        }
    }
}

impl From<OverlayRecord> for OverlayAddresses {
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
    use overlay_types::protocol::{Author, HistoryEvent};

    use super::*;

    #[test]
    fn reason_of_hostile_store_is_escaped_and_cut() {
        let entry = HistoryEntry {
            at: 0,
            version: 1,
            agent: None,
            event: HistoryEvent::Configured,
            addresses: Addresses::default(),
            reason: format!("\u{1b}[2J\u{202e}\n{}", "x".repeat(1_000_000)),
            author: Author::default(),
        };
        let reason = Entry::from(entry).reason;
        assert!(reason.starts_with(r"\u{1b}[2J\u{202e}\nxx"), "{reason}");
        assert!(reason.ends_with("x… (cut)"), "{reason}");
        assert_eq!(reason.chars().count(), REASON_MAX);
    }
}
