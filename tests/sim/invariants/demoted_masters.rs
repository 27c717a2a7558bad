//! No write of a demoted master takes effect, and it sends only what was durable in its term.

use std::time::Duration;

use super::{Fact, Invariant};
use crate::ledger::{Ledger, allocation_of};

#[derive(Default)]
pub(crate) struct DemotedMasters {
    /// The last version of each epoch, from the second on.
    ends: Vec<u64>,
}

impl Invariant for DemotedMasters {
    fn name(&self) -> &'static str {
        "demoted masters change nothing"
    }

    fn observe(&mut self, _: Duration, fact: &Fact<'_>, ledger: &Ledger) -> Result<(), String> {
        match fact {
            Fact::EpochBegan => self.ends.push(ledger.version),
            Fact::Committed { by, epoch, .. } if *epoch != ledger.epoch => {
                return Err(format!(
                    "master {} has written in epoch {epoch}, which ended when epoch {} began",
                    by.master, ledger.epoch
                ));
            }
            Fact::AssignmentsSent { by, to, .. } if !by.leads => {
                return Err(format!(
                    "master {} sends assignments to {to}, and does not lead",
                    by.master
                ));
            }
            Fact::AssignmentsSent { by, to, overlays } if by.epoch < ledger.epoch => {
                let index = usize::try_from(by.epoch).unwrap_or(usize::MAX);
                let end = self.ends.get(index).copied().unwrap_or(ledger.version);
                if by.durable > end {
                    return Err(format!(
                        "master {} assumes version {} is durable: its epoch ended with {end}",
                        by.master, by.durable
                    ));
                }
                let stored = ledger.at(*to, by.durable);
                for (kind, span) in allocation_of(overlays) {
                    if stored.allocation().and_then(|allocation| allocation.get(&kind))
                        != Some(&span)
                    {
                        return Err(format!(
                            "{to} is sent {kind:?} {span:?} by the demoted master {}, and the \
                             store had {stored:?} at the end of its epoch",
                            by.master
                        ));
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }
}
