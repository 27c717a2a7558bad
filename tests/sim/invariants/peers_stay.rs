//! An agent that is started again leaves the ways to its peers as they are until somebody has told
//! it of peers: its containers, and those of the others, go on.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use mesos_network_overlay::dataplane::Operation;

use super::{Fact, Invariant};
use crate::ledger::Ledger;

#[derive(Default)]
pub(crate) struct PeersStay {
    /// Whose process was told of peers.
    told: HashSet<Ipv4Addr>,
}

impl Invariant for PeersStay {
    fn name(&self) -> &'static str {
        "peers stay until others are known"
    }

    fn observe(&mut self, _: Duration, fact: &Fact<'_>, _: &Ledger) -> Result<(), String> {
        match fact {
            Fact::Began { agent, .. } => {
                self.told.remove(agent);
            }
            Fact::PeersHeard { agent } => {
                self.told.insert(*agent);
            }
            Fact::Programmed { agent, done, .. } if !self.told.contains(agent) => {
                let is_loss = |operation: &&Operation| {
                    matches!(
                        operation,
                        Operation::RemoveForward(..) | Operation::RemoveNeighbour(..)
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
