//! No two allocations of registered agents overlap, neither in the store nor in sent assignments.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use overlay_types::addr::Family;

use super::{Fact, Invariant};
use crate::ledger::{Allocation, Ledger, Span, Stored, allocation_of};

pub(crate) struct NoOverlap {
    /// The agent of each range, by the first address.
    held: BTreeMap<(Family, u128), (u128, Ipv4Addr)>,
    /// The time of the last release of each range.
    freed: HashMap<Span, Duration>,
    /// The time of the last early reuse of each range.
    early: HashMap<Span, Duration>,
    /// The ranges that several imported records have. Another invariant checks them.
    conflicting: HashSet<Span>,
    reuse_after: Duration,
}

impl NoOverlap {
    pub(crate) fn new(reuse_after: Duration) -> Self {
        let (held, freed, early) = (BTreeMap::new(), HashMap::new(), HashMap::new());
        Self { held, freed, early, conflicting: HashSet::new(), reuse_after }
    }

    /// Returns another agent that has an address of `span`.
    fn other(&self, span: Span, ip: Ipv4Addr) -> Option<Ipv4Addr> {
        let upto = (span.family, span.last);
        let before = self.held.range((span.family, 0)..=upto).next_back();
        before.filter(|(_, (last, had))| *last >= span.first && *had != ip).map(|(_, held)| held.1)
    }

    fn release(&mut self, now: Duration, allocation: &Allocation) {
        for span in allocation.values().filter(|span| !self.conflicting.contains(span)) {
            self.held.remove(&(span.family, span.first));
            self.freed.insert(*span, now);
        }
    }

    fn allocate(
        &mut self,
        now: Duration,
        ip: Ipv4Addr,
        allocation: &Allocation,
    ) -> Result<(), String> {
        for (kind, span) in allocation.iter().filter(|(_, span)| !self.conflicting.contains(span)) {
            if let Some(other) = self.other(*span, ip) {
                return Err(format!(
                    "{ip} gets {kind:?} {span:?}, which overlaps an allocation of {other}"
                ));
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
                        self.conflicting.insert(*span);
                    }
                }
                for step in *steps {
                    if let Stored::Has(allocation) = &step.after {
                        self.allocate(now, step.ip, allocation)?;
                    }
                }
                Ok(())
            }
            Fact::Committed { steps, .. } => {
                let gone = steps.iter().filter_map(|step| step.before.allocation());
                gone.for_each(|allocation| self.release(now, allocation));
                for step in *steps {
                    if let Stored::Has(allocation) = &step.after {
                        self.allocate(now, step.ip, allocation)?;
                    }
                }
                Ok(())
            }
            // A master that has not noticed its demotion may repeat earlier assignments. The
            // cooldown of their addresses is longer than that time, except after an early reuse.
            Fact::AssignmentsSent { to, overlays, .. } => {
                for (kind, span) in allocation_of(overlays) {
                    if let Some(other) = self.other(span, *to)
                        && !self.conflicting.contains(&span)
                        && !self.early.contains_key(&span)
                    {
                        return Err(format!("{to} is sent {kind:?}, which {other} has"));
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
