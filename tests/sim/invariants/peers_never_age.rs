//! What an agent knows of its peers never gets older while its process lives: messages that come
//! late, twice, or from a master that was deposed take nothing back, as long as the agent is
//! answered.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use mesos_network_overlay::protocol::PeersHave;

use super::{Fact, Invariant};
use crate::ledger::Ledger;

/// So often an agent asks in vain before it believes that its master counts anew.
const SILENCE: u32 = 3;

#[derive(Default)]
pub(crate) struct PeersNeverAge {
    /// What each process of an agent has shown last, and how often.
    shown: HashMap<Ipv4Addr, (PeersHave, u32)>,
    /// Who was lied to.
    deceived: HashSet<Ipv4Addr>,
}

impl Invariant for PeersNeverAge {
    fn name(&self) -> &'static str {
        "what is known of peers never gets older"
    }

    fn observe(&mut self, _: Duration, fact: &Fact<'_>, _: &Ledger) -> Result<(), String> {
        match fact {
            Fact::Began { agent, .. } => {
                self.shown.remove(agent);
            }
            Fact::Lied { agent } => {
                self.deceived.insert(*agent);
            }
            Fact::PeersAsked { agent, have } if !self.deceived.contains(agent) => {
                let (before, asked) = self.shown.get(agent).copied().unwrap_or_default();
                let times = if before == *have { asked + 1 } else { 1 };
                self.shown.insert(*agent, (*have, times));
                // Who has found its table to be wrong begins anew.
                let is_older = (have.epoch, have.version) < (before.epoch, before.version);
                let is_silence = asked > SILENCE;
                if is_older && !is_silence && *have != PeersHave::default() {
                    return Err(format!("{agent} had {before:?} and has {have:?}"));
                }
            }
            _ => {}
        }
        Ok(())
    }
}
