//! A restarted agent leaves the entries of its peers until it receives peers: the traffic of
//! containers goes on.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use overlay_linux::dataplane::Operation;

use super::{Fact, Invariant};
use crate::ledger::Ledger;

#[derive(Default)]
pub(crate) struct PeersStay {
    /// The agents whose process received peers.
    informed: HashSet<Ipv4Addr>,
}

impl Invariant for PeersStay {
    fn name(&self) -> &'static str {
        "peers stay until an update is received"
    }

    fn observe(&mut self, _: Duration, fact: &Fact<'_>, _: &Ledger) -> Result<(), String> {
        match fact {
            Fact::AgentStarted { agent, .. } => {
                self.informed.remove(agent);
            }
            Fact::PeersReceived { agent } => {
                self.informed.insert(*agent);
            }
            Fact::Programmed { agent, done, .. } if !self.informed.contains(agent) => {
                let is_loss = |operation: &&Operation| {
                    matches!(
                        operation,
                        Operation::RemoveForward(..) | Operation::RemoveNeighbor(..)
                    )
                };
                if let Some(operation) = done.operations.iter().find(is_loss) {
                    return Err(format!("{agent} knows no peers, and was to {operation}"));
                }
            }
            _ => {}
        }
        Ok(())
    }
}
