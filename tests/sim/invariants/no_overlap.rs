//! No two live allocations overlap, ever: neither in the store nor in what agents are told.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::time::Duration;

use mesos_network_overlay::addr::Family;

use super::{Fact, Invariant};
use crate::ledger::{Ledger, Share, Span, Stored, share_of};

pub(crate) struct NoOverlap {
    /// Who has what, by the first address.
    held: BTreeMap<(Family, u128), (u128, Ipv4Addr)>,
    /// When an agent gave something back.
    freed: HashMap<Span, Duration>,
    /// When something was given to somebody else before it had rested.
    early: HashMap<Span, Duration>,
    reuse_after: Duration,
}

impl NoOverlap {
    pub(crate) fn new(reuse_after: Duration) -> Self {
        let (held, freed, early) = (BTreeMap::new(), HashMap::new(), HashMap::new());
        Self { held, freed, early, reuse_after }
    }

    /// Another agent that has an address of `span`.
    fn other(&self, span: Span, ip: Ipv4Addr) -> Option<Ipv4Addr> {
        let upto = (span.family, span.last);
        let before = self.held.range((span.family, 0)..=upto).next_back();
        before.filter(|(_, (last, had))| *last >= span.first && *had != ip).map(|(_, held)| held.1)
    }

    fn give_back(&mut self, now: Duration, share: &Share) {
        for span in share.values() {
            self.held.remove(&(span.family, span.first));
            self.freed.insert(*span, now);
        }
    }

    fn take(&mut self, now: Duration, ip: Ipv4Addr, share: &Share) -> Result<(), String> {
        for (place, span) in share {
            if let Some(other) = self.other(*span, ip) {
                return Err(format!("{ip} is given {place:?} {span:?}, of which {other} has some"));
            }
            if self.freed.get(span).is_some_and(|freed| now < *freed + self.reuse_after) {
                self.early.insert(*span, now);
            }
            self.held.insert((span.family, span.first), (span.last, ip));
        }
        Ok(())
    }
}

impl Invariant for NoOverlap {
    fn name(&self) -> &'static str {
        "no two live allocations overlap"
    }

    fn observe(&mut self, now: Duration, fact: &Fact<'_>, _: &Ledger) -> Result<(), String> {
        match fact {
            Fact::Stored { steps, .. } => {
                let gone = steps.iter().filter_map(|step| step.before.share());
                gone.for_each(|share| self.give_back(now, share));
                for step in *steps {
                    if let Stored::Has(share) = &step.after {
                        self.take(now, step.ip, share)?;
                    }
                }
                Ok(())
            }
            // A master that does not know yet that it was deposed may repeat what it once said; but
            // what it repeats rests for longer than that, unless nothing else was left.
            Fact::Told { to, overlays, .. } => {
                for (place, span) in share_of(overlays) {
                    if let Some(other) = self.other(span, *to)
                        && !self.early.contains_key(&span)
                    {
                        return Err(format!("{to} is told {place:?}, which {other} has"));
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
