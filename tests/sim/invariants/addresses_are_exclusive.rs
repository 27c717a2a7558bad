//! An address is sent to an agent only if it is exclusive in the durable state: no stored record of
//! an agent with a lower IP has the address.
//!
//! Imported records may conflict. The agent with the lowest IP owns the address until its release
//! is durable. Another invariant checks that the stored record of the agent itself has the address.

use std::collections::{BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::time::Duration;

use super::{Fact, Invariant};
use crate::ledger::{Ledger, Span, Step, allocation_of};

#[derive(Default)]
pub(crate) struct AddressesAreExclusive {
    /// The agents whose stored records have an address.
    holders: HashMap<Span, BTreeSet<Ipv4Addr>>,
}

impl AddressesAreExclusive {
    fn stored(&mut self, step: &Step) {
        for span in step.before.allocation().into_iter().flat_map(|allocation| allocation.values())
        {
            if let Some(holders) = self.holders.get_mut(span) {
                holders.remove(&step.ip);
            }
        }
        for span in step.after.allocation().into_iter().flat_map(|allocation| allocation.values()) {
            self.holders.entry(*span).or_default().insert(step.ip);
        }
    }
}

impl Invariant for AddressesAreExclusive {
    fn name(&self) -> &'static str {
        "sent addresses are exclusive"
    }

    fn observe(&mut self, _: Duration, fact: &Fact<'_>, ledger: &Ledger) -> Result<(), String> {
        match fact {
            Fact::Imported { steps } | Fact::Committed { steps, .. } => {
                steps.iter().for_each(|step| self.stored(step));
                Ok(())
            }
            Fact::AssignmentsSent { by, to, overlays } if by.epoch == ledger.epoch => {
                for (kind, span) in allocation_of(overlays) {
                    let first = self.holders.get(&span).and_then(BTreeSet::first);
                    if let Some(first) = first.filter(|first| *first < to) {
                        return Err(format!(
                            "{to} is sent {kind:?} {span:?} by master {} in epoch {}, and the \
                             stored record of {first} has it at version {}",
                            by.master, by.epoch, ledger.version
                        ));
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
