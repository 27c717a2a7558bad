//! The peers of an agent never get older while its process runs: late or duplicate messages, and
//! messages of a demoted master, revert nothing while the agent gets answers.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use overlay_types::protocol::PeerTableVersion;

use super::{Fact, Invariant};
use crate::ledger::Ledger;

/// The number of unanswered requests after which an agent accepts a lower version.
const UNANSWERED_MAX: u32 = 3;

#[derive(Default)]
pub(crate) struct PeersNeverAge {
    /// The version in the last request of each agent's process, and how often it was repeated.
    requested: HashMap<Ipv4Addr, (PeerTableVersion, u32)>,
    /// The agents that received false peers.
    deceived: HashSet<Ipv4Addr>,
}

impl Invariant for PeersNeverAge {
    fn name(&self) -> &'static str {
        "known peers never get older"
    }

    fn observe(&mut self, _: Duration, fact: &Fact<'_>, _: &Ledger) -> Result<(), String> {
        match fact {
            Fact::AgentStarted { agent, .. } => {
                self.requested.remove(agent);
            }
            Fact::FalsePeersSent { agent } => {
                self.deceived.insert(*agent);
            }
            Fact::PeersRequested { agent, have } if !self.deceived.contains(agent) => {
                let (before, asked) = self.requested.get(agent).copied().unwrap_or_default();
                let times = if before == *have { asked + 1 } else { 1 };
                self.requested.insert(*agent, (*have, times));
                // An agent with a wrong table starts again.
                let is_older = (have.epoch, have.version) < (before.epoch, before.version);
                let is_unanswered = asked > UNANSWERED_MAX;
                if is_older && !is_unanswered && *have != PeerTableVersion::default() {
                    return Err(format!("{agent} had {before:?} and has {have:?}"));
                }
            }
            _ => {}
        }
        Ok(())
    }
}
