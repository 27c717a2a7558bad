//! Counts the records of a state and finds conflicts that do not depend on the network.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use overlay_types::addr::Subnet;
use overlay_types::protocol::Record;
use overlay_types::state::Key;
use overlay_types::text::pluralize;
use serde::Serialize;

use super::record::{decode_history, decode_record};

/// The number of records in a state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Inventory {
    /// Active agents.
    pub agents: usize,
    /// Released agents, whose addresses are still reserved for them.
    pub released: usize,
    /// Entries of the history.
    pub history: usize,
    /// Records that this version cannot read. They are kept.
    pub unreadable: usize,
}

impl Inventory {
    /// Counts `records`.
    #[must_use]
    pub fn of(records: &[(Key, Vec<u8>)]) -> Self {
        let mut inventory = Self::default();
        for (key, bytes) in records {
            match key {
                Key::Agent(_) => match decode_record(bytes) {
                    Ok(Record::Agent(_)) => inventory.agents += 1,
                    Ok(Record::Released(_)) => inventory.released += 1,
                    Err(_) => inventory.unreadable += 1,
                },
                Key::History(_) => match decode_history(bytes) {
                    Ok(entries) => inventory.history += entries.len(),
                    Err(_) => inventory.unreadable += 1,
                },
            }
        }
        inventory
    }
}

impl fmt::Display for Inventory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { agents, released, history, unreadable } = *self;
        let agents = pluralize(agents, "agent");
        write!(f, "{agents}, {released} released, history of {history}")?;
        if unreadable > 0 {
            write!(f, ", {unreadable} unreadable")?;
        }
        Ok(())
    }
}

/// A subnet of an agent. The field order sorts a subnet behind every subnet that contains it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct OwnedSubnet {
    first: IpAddr,
    prefix: u8,
    subnet: Subnet,
    agent: Ipv4Addr,
}

/// Describes the conflicts for which every master would quarantine records, whatever its network.
#[must_use]
pub fn find_conflicts(records: &[(Key, Vec<u8>)]) -> Vec<String> {
    let mut conflicts = Vec::new();
    let mut vteps = Vec::new();
    let mut subnets = Vec::new();
    for (key, bytes) in records {
        match (key, decode_record(bytes)) {
            (Key::Agent(ip), Ok(Record::Agent(record))) => {
                let vtep6 = record.vtep_ip6.map(IpAddr::from);
                vteps.extend(
                    vtep6.into_iter().chain([record.vtep_ip.into()]).map(|vtep| (vtep, *ip)),
                );
                for overlay in &record.overlays {
                    subnets.extend(overlay.subnets().map(|subnet| OwnedSubnet {
                        first: subnet.first(),
                        prefix: subnet.prefix(),
                        subnet,
                        agent: *ip,
                    }));
                }
            }
            (Key::Agent(ip), Err(error)) => {
                conflicts.push(format!("agent {ip} is unreadable: {error}"))
            }
            _ => {}
        }
    }
    vteps.sort_unstable();
    for pair in vteps.windows(2) {
        if pair[0].0 == pair[1].0 {
            conflicts.push(format!(
                "agents {} and {} both have the VTEP address {}",
                pair[0].1, pair[1].1, pair[0].0
            ));
        }
    }
    subnets.sort_unstable();
    let mut outer: Option<&OwnedSubnet> = None;
    for inner in &subnets {
        match outer {
            Some(outer) if outer.subnet.overlaps(&inner.subnet) => conflicts.push(format!(
                "{} of agent {} overlaps {} of agent {}",
                inner.subnet, inner.agent, outer.subnet, outer.agent
            )),
            _ => outer = Some(inner),
        }
    }
    conflicts
}
