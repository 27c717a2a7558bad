//! The tables of agents.

use std::ops::Range;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use overlay_types::address_usage::{AddressCount, OverlayCounts};
use overlay_types::protocol::{AgentContact, AgentInfo, Assignment, Bridge, State, Status};

use super::super::Failure;
use super::super::agent_status::{contact_of, quarantine_reason};
use super::super::http_client::Health;
use super::super::output::{Output, Table, address_pair, sanitize};

/// Unix time of the start of the year 9999. RFC 3339 cannot represent times after that year.
const YEAR_9999: u64 = 253_370_764_800;

/// Prints a table with a row for each agent, which fits a terminal of 80 columns. `now` is the time in
/// seconds since 1970.
pub(in crate::cli) fn print_agents(
    output: &mut Output,
    state: &State,
    health: Option<&Health>,
    now: u64,
) -> Result<(), Failure> {
    let mut table = Table::with_sentences(&["AGENT", "SEEN", "VERSION", "SUBNETS", "STATUS"]);
    for agent in &state.agents {
        let contact = contact_of(state, agent.ip);
        let subnets: Vec<String> = agent.overlays.iter().filter_map(subnet).collect();
        let seen = contact.last_seen.map(|at| age(now.saturating_sub(at))).unwrap_or_default();
        let status = match quarantine_reason(health, agent.ip) {
            Some(reason) => format!("not served: {}", sanitize(reason)),
            None => statuses(agent, contact),
        };
        let cells = [agent.ip.to_string(), seen, version(contact), subnets.join("\n"), status];
        table.row(output, cells)?;
    }
    table.finish(output)
}

fn version(contact: AgentContact) -> String {
    contact.version.map(|version| version.to_string()).unwrap_or_default()
}

/// Returns the subnet of an agent in an overlay. An IPv6 subnet is shown only without an IPv4 subnet.
fn subnet(overlay: &Assignment) -> Option<String> {
    let Assignment { subnet, subnet6, .. } = overlay;
    subnet.as_ref().or(subnet6.as_ref()).map(ToString::to_string)
}

/// Returns the status of an agent: one text if all its overlays have the same, and otherwise a line
/// for each overlay that is not ok.
fn statuses(agent: &AgentInfo, contact: AgentContact) -> String {
    let stale = if contact.is_stale { "stale, last report: " } else { "" };
    let texts: Vec<(String, String)> = agent
        .overlays
        .iter()
        .map(|overlay| (overlay.name().to_string(), status_text(overlay.status.as_ref())))
        .collect();
    match texts.split_first() {
        None if contact.is_stale => "stale, no overlay".to_owned(),
        None => "no overlay".to_owned(),
        Some(((_, first), others)) if others.iter().all(|(_, text)| text == first) => {
            format!("{stale}{first}")
        }
        Some(_) => {
            let failing = texts.into_iter().filter(|(_, text)| text != "ok");
            let lines = failing.map(|(overlay, text)| format!("{stale}{overlay}: {text}"));
            lines.collect::<Vec<_>>().join("\n")
        }
    }
}

fn status_text(status: Option<&Status>) -> String {
    status.map_or_else(|| "unreported".to_owned(), |status| sanitize(&status.to_string()))
}

/// Returns a duration in its largest unit, such as `12s`, `5m`, `7h` or `3d`.
fn age(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m", seconds / 60),
        3_600..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Returns the time in seconds since 1970.
#[expect(clippy::disallowed_methods, reason = "the command line may read the clock")]
pub(in crate::cli) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Returns the time of the last message of an agent.
fn last_seen(contact: AgentContact) -> String {
    let time = contact.last_seen.and_then(|at| UNIX_EPOCH.checked_add(Duration::from_secs(at)));
    let time = time.filter(|_| contact.last_seen.is_some_and(|at| at < YEAR_9999));
    time.map(|time| humantime::format_rfc3339_seconds(time).to_string()).unwrap_or_default()
}

/// Prints a table with the allocations of each overlay of each agent.
pub(super) fn print_overlays(
    output: &mut Output,
    state: &State,
    is_sorted_by_name: bool,
    health: Option<&Health>,
) -> Result<(), Failure> {
    // A master with the C++ modules does not show when it has last seen an agent, nor its version.
    let has_contacts = !state.contacts.is_empty();
    let mut header = HEADER.to_vec();
    if !has_contacts {
        header.drain(CONTACT_COLUMNS);
    }
    let mut table = Table::with_sentences(&header);
    for agent in &state.agents {
        let mut overlays: Vec<&Assignment> = agent.overlays.iter().collect();
        if is_sorted_by_name {
            overlays.sort_by_key(|overlay| overlay.name());
        }
        let quarantine_reason = quarantine_reason(health, agent.ip);
        let known = Known {
            contact: contact_of(state, agent.ip),
            counts: state.address_counts.get(&agent.ip),
        };
        for cells in agent_rows(agent, &overlays, known, quarantine_reason) {
            let mut cells = Vec::from(cells);
            if !has_contacts {
                cells.drain(CONTACT_COLUMNS);
            }
            table.row(output, cells)?;
        }
    }
    table.finish(output)
}

/// The columns of what the master knows from the messages of an agent.
const CONTACT_COLUMNS: Range<usize> = 1..3;
const HEADER: [&str; 10] = [
    "AGENT",
    "LAST SEEN",
    "VERSION",
    "VTEP IP",
    "VTEP MAC",
    "OVERLAY",
    "SUBNET",
    "MESOS HALF",
    "DOCKER HALF",
    "STATUS",
];

/// What the master knows from the messages of an agent.
#[derive(Clone, Copy)]
struct Known<'a> {
    contact: AgentContact,
    counts: Option<&'a OverlayCounts>,
}

/// Returns the rows of an agent: one for each overlay, or one.
fn agent_rows(
    agent: &AgentInfo,
    overlays: &[&Assignment],
    Known { contact, counts }: Known<'_>,
    quarantine_reason: Option<&str>,
) -> Vec<[String; 10]> {
    let stale = if contact.is_stale { "stale, last report: " } else { "" };
    if overlays.is_empty() {
        let mut cells = [const { String::new() }; 10];
        cells[0] = agent.ip.to_string();
        cells[1] = last_seen(contact);
        cells[2] = version(contact);
        cells[9] = match quarantine_reason {
            Some(reason) => format!("not served: {}", sanitize(reason)),
            None if contact.is_stale => "stale, no overlay".to_owned(),
            None => "no overlay".to_owned(),
        };
        return vec![cells];
    }
    let row = |overlay: &&Assignment| {
        let Assignment { vtep, subnet, subnet6, mesos_bridge, docker_bridge, status, .. } = overlay;
        let counts = counts.and_then(|counts| counts.get(overlay.name())).copied();
        let counts = counts.unwrap_or_default();
        let half = |bridge: &Option<Bridge>, count: Option<AddressCount>| {
            let bridge = bridge.as_ref();
            let subnets = address_pair(
                bridge.and_then(|half| half.subnet),
                bridge.and_then(|half| half.subnet6),
            );
            match count {
                Some(AddressCount { used, free }) => {
                    format!("{subnets} ({used} used, {free} free)")
                }
                None => subnets,
            }
        };
        let status = format!("{stale}{}", status_text(status.as_ref()));
        [
            agent.ip.to_string(),
            last_seen(contact),
            version(contact),
            address_pair(Some(vtep.ip), vtep.ip6),
            vtep.mac.to_string(),
            overlay.name().to_string(),
            address_pair(subnet.as_ref(), subnet6.as_ref()),
            half(mesos_bridge, counts.mesos),
            half(docker_bridge, counts.docker),
            status,
        ]
    };
    overlays.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn age_has_largest_unit() {
        let ages = [0, 59, 60, 3_599, 3_600, 172_799, 172_800, 864_000].map(age);
        assert_eq!(ages, ["0s", "59s", "1m", "59m", "1h", "47h", "2d", "10d"]);
    }
}
