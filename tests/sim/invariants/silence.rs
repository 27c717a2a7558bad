//! After all faults, a dead agent is stale within the interval, and no living agent is stale.

use std::net::Ipv4Addr;
use std::time::Duration;

use overlay_types::protocol::State;

use super::{Fact, Invariant};
use crate::ledger::Ledger;

pub(crate) struct Silence;

fn stale(state: &State) -> impl Iterator<Item = Ipv4Addr> {
    let stale = state.contacts.iter().filter(|(_, contact)| contact.is_stale);
    stale.map(|(ip, _)| *ip)
}

impl Invariant for Silence {
    fn name(&self) -> &'static str {
        "only dead agents are stale"
    }

    fn observe(&mut self, _: Duration, fact: &Fact<'_>, _: &Ledger) -> Result<(), String> {
        match fact {
            Fact::Healed(healed) => {
                let runs = |ip: &Ipv4Addr| healed.agents.iter().any(|agent| agent.info.ip == *ip);
                let wrong = stale(&healed.state).find(runs);
                wrong.map_or(Ok(()), |ip| Err(format!("{ip} is stale and runs")))
            }
            Fact::StayedAway { dead, state } => {
                // Records that were imported may have no agent, so they are stale as well.
                let is_known = state.agents.iter().any(|agent| agent.ip == *dead);
                let is_stale = stale(state).any(|ip| ip == *dead);
                if is_known && !is_stale {
                    return Err(format!("{dead} has ended and is not stale"));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
