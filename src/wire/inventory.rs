//! What there is in a state, counted, and what is wrong with it whatever the network is.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use serde::Serialize;

use super::record::{decode_history, decode_record};
use crate::addr::Subnet;
use crate::protocol::Record;
use crate::store::Key;
use crate::words::counted;

/// How much there is in a state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Inventory {
    /// Agents that have addresses.
    pub agents: usize,
    /// Agents that were deleted, and may have theirs again.
    pub released: usize,
    /// Entries of the history.
    pub history: usize,
    /// Records that this version cannot read, and keeps.
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
        let agents = counted(agents, "agent");
        write!(f, "{agents}, {released} released, history of {history}")?;
        if unreadable > 0 {
            write!(f, ", {unreadable} unreadable")?;
        }
        Ok(())
    }
}

/// What a master would set aside of these records, whatever its network is.
#[must_use]
pub fn doubts(records: &[(Key, Vec<u8>)]) -> Vec<String> {
    let mut doubts = Vec::new();
    let mut vteps = Vec::new();
    let mut subnets = Vec::new();
    for (key, bytes) in records {
        match (key, decode_record(bytes)) {
            (Key::Agent(ip), Ok(Record::Agent(record))) => {
                let vtep6 = record.vtep_ip6.map(IpAddr::from);
                vteps.extend(vtep6.into_iter().chain([record.vtep_ip.into()]).map(|it| (it, *ip)));
                let of = record.overlays.into_iter().flat_map(|overlay| {
                    overlay
                        .subnets()
                        .map(|subnet| (subnet.first(), subnet.prefix(), subnet, *ip))
                        .collect::<Vec<_>>()
                });
                subnets.extend(of);
            }
            (Key::Agent(ip), Err(error)) => {
                doubts.push(format!("agent {ip} is unreadable: {error}"))
            }
            _ => {}
        }
    }
    vteps.sort_unstable();
    for pair in vteps.windows(2) {
        if pair[0].0 == pair[1].0 {
            doubts.push(format!(
                "agents {} and {} both have the VTEP address {}",
                pair[0].1, pair[1].1, pair[0].0
            ));
        }
    }
    // One that holds another begins with it or before it, and stands before it here.
    subnets.sort_unstable();
    let mut outer: Option<&(_, _, Subnet, Ipv4Addr)> = None;
    for one in &subnets {
        match outer {
            Some(outer) if outer.2.overlaps(&one.2) => doubts.push(format!(
                "{} of agent {} overlaps {} of agent {}",
                one.2, one.3, outer.2, outer.3
            )),
            _ => outer = Some(one),
        }
    }
    doubts
}
