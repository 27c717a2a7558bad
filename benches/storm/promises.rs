//! What must be true of the addresses that agents were told.

use std::collections::BTreeSet;

use mesos_network_overlay::protocol::{State, Status};

use super::agents::Told;

/// How many overlays the network of [`super::program`] has, and the length of an agent's subnet in
/// each.
const OVERLAYS: usize = 2;
const PREFIX: u8 = 24;

/// Checks that no two agents share anything, and that each has something of everything.
pub(crate) fn check_distinct(told: &Told) -> Result<(), String> {
    let (mut ips, mut macs, mut subnets) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (agent, overlays) in told {
        let [first, ..] = &overlays[..] else { return Err(format!("{agent} was told nothing")) };
        let vtep = &first.vtep;
        if overlays.len() != OVERLAYS || overlays.iter().any(|one| one.vtep != *vtep) {
            return Err(format!("{agent} was told {overlays:?}"));
        }
        if !ips.insert(vtep.ip.address()) || !macs.insert(vtep.mac.to_string()) {
            return Err(format!("{agent} shares its VTEP {vtep:?}"));
        }
        for overlay in overlays {
            // All subnets have one length, so those that differ do not overlap either.
            let subnet = overlay.subnet.filter(|subnet| {
                subnet.prefix() == PREFIX
                    && overlay.overlay.range.is_some_and(|range| range.subnet.covers(subnet))
            });
            let subnet = subnet.ok_or_else(|| format!("{agent} was told {overlay:?}"))?;
            if !subnets.insert(subnet) {
                return Err(format!("{agent} shares its subnet {subnet}"));
            }
        }
    }
    Ok(())
}

/// Checks that the master shows every agent with what it was told, and as ready.
pub(crate) fn check_state(state: &State, told: &Told) -> Result<(), String> {
    if state.agents.len() != told.len() {
        return Err(format!("{} agents were told, {} shown", told.len(), state.agents.len()));
    }
    for agent in &state.agents {
        let told = told.get(&agent.ip).ok_or_else(|| format!("{} was told nothing", agent.ip))?;
        let is_told = agent.overlays.len() == told.len()
            && agent.overlays.iter().zip(told).all(|(shown, told)| {
                shown.name() == told.name()
                    && shown.has_addresses_of(told)
                    && shown.status == Some(Status::Ok)
            });
        if !is_told {
            return Err(format!("{} was told {told:?}, shown {:?}", agent.ip, agent.overlays));
        }
    }
    Ok(())
}
