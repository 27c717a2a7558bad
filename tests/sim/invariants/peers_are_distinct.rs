//! No two peers have the same address in a kernel, even after a false update: every agent has one
//! MAC, and every address has one route.

use std::collections::HashSet;
use std::time::Duration;

use overlay_linux::dataplane::State;
use overlay_types::addr::Subnet;

use super::{Fact, Invariant};
use crate::kernel::routes_to_peers;
use crate::ledger::Ledger;

pub(crate) struct PeersAreDistinct;

fn check(kernel: &State) -> Result<(), String> {
    for (name, device) in &kernel.devices {
        let mut agents = HashSet::new();
        if let Some(twice) = device.forwards.values().find(|agent| !agents.insert(*agent)) {
            return Err(format!("two MACs lead to {twice} on {name}"));
        }
        let known: HashSet<_> = device.neighbors.values().collect();
        let mut strays = device.forwards.iter().filter(|(mac, _)| !known.contains(mac));
        if let Some((mac, agent)) = strays.next() {
            return Err(format!("{mac} of {agent} on {name} is the MAC of no VTEP"));
        }
        if let Some((vtep, _)) =
            device.neighbors.iter().find(|(_, mac)| !device.forwards.contains_key(mac))
        {
            return Err(format!("VTEP {vtep} on {name} has no FDB entry"));
        }
        let own = device.neighbors.keys().find(|vtep| {
            device.link.mac == device.neighbors[vtep]
                || device.addresses.iter().any(|own| own.address() == **vtep)
        });
        if let Some(own) = own {
            return Err(format!("VTEP {own} on {name} is the host's own"));
        }
    }
    let mut last: Option<Subnet> = None;
    for (key, _) in routes_to_peers(kernel) {
        if let Some(before) = last.filter(|before| before.overlaps(&key.subnet)) {
            return Err(format!("route {} overlaps route {before}", key.subnet));
        }
        last = Some(key.subnet);
    }
    Ok(())
}

impl Invariant for PeersAreDistinct {
    fn name(&self) -> &'static str {
        "peers have distinct addresses"
    }

    fn observe(&mut self, _: Duration, fact: &Fact<'_>, _: &Ledger) -> Result<(), String> {
        match fact {
            // An agent without peers leaves all entries, also foreign ones.
            Fact::Programmed { agent, desired, done, kernel }
                if done.is_exact && desired.peers.is_some() =>
            {
                check(kernel).map_err(|detail| format!("in the kernel of {agent}: {detail}"))
            }
            _ => Ok(()),
        }
    }
}
