//! No two allocations of registered agents overlap, neither in the store nor in sent assignments.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use mesos_network_overlay::addr::Family;

use super::{Fact, Invariant};
use crate::ledger::{Allocation, Ledger, Span, Stored, allocation_of};

pub(crate) struct NoOverlap {
    /// The agent of each range, by the first address.
    held: BTreeMap<(Family, u128), (u128, Ipv4Addr)>,
    /// When each range was released.
    freed: HashMap<Span, Duration>,
    /// When a range was reused early.
    early: HashMap<Span, Duration>,
    /// Ranges that several imported records have. Another rule checks them.
    contested: HashSet<Span>,
    reuse_after: Duration,
}

impl NoOverlap {
    pub(crate) fn new(reuse_after: Duration) -> Self {
        let (held, freed, early) = (BTreeMap::new(), HashMap::new(), HashMap::new());
        Self { held, freed, early, contested: HashSet::new(), reuse_after }
    }

    /// Returns another agent that has an address of `span`.
    fn other(&self, span: Span, ip: Ipv4Addr) -> Option<Ipv4Addr> {
        let upto = (span.family, span.last);
        let before = self.held.range((span.family, 0)..=upto).next_back();
        before.filter(|(_, (last, had))| *last >= span.first && *had != ip).map(|(_, held)| held.1)
    }

    fn give_back(&mut self, now: Duration, share: &Allocation) {
        for span in share.values().filter(|span| !self.contested.contains(span)) {
            self.held.remove(&(span.family, span.first));
            self.freed.insert(*span, now);
        }
    }

    fn take(&mut self, now: Duration, ip: Ipv4Addr, share: &Allocation) -> Result<(), String> {
        for (place, span) in share.iter().filter(|(_, span)| !self.contested.contains(span)) {
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
        "allocations do not overlap"
    }

    fn observe(&mut self, now: Duration, fact: &Fact<'_>, _: &Ledger) -> Result<(), String> {
        match fact {
            Fact::Imported { steps } => {
                let mut seen = HashSet::new();
                for span in steps
                    .iter()
                    .filter_map(|step| step.after.allocation())
                    .flat_map(BTreeMap::values)
                {
                    if !seen.insert(*span) {
                        self.contested.insert(*span);
                    }
                }
                for step in *steps {
                    if let Stored::Has(share) = &step.after {
                        self.take(now, step.ip, share)?;
                    }
                }
                Ok(())
            }
            Fact::Committed { steps, .. } => {
                let gone = steps.iter().filter_map(|step| step.before.allocation());
                gone.for_each(|share| self.give_back(now, share));
                for step in *steps {
                    if let Stored::Has(share) = &step.after {
                        self.take(now, step.ip, share)?;
                    }
                }
                Ok(())
            }
            // A master that does not know yet that it was demoted may repeat earlier assignments.
            // Their addresses are not reused for longer than that, unless nothing else was left.
            Fact::AssignmentsSent { to, overlays, .. } => {
                for (place, span) in allocation_of(overlays) {
                    if let Some(other) = self.other(span, *to)
                        && !self.contested.contains(&span)
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
