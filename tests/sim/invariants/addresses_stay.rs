//! An agent keeps its addresses until its release, in the store and in sent assignments.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use super::{Fact, Invariant};
use crate::ledger::{Allocation, Ledger, Step, allocation_of};

pub(crate) struct AddressesStay {
    /// Whether overlays change so that agents get other subnets of an overlay with the same name.
    has_conflicting_changes: bool,
    /// What was sent to each agent since its last release.
    told: HashMap<Ipv4Addr, Allocation>,
    /// When each agent was released. A commit may have its release and its return.
    deleted: HashMap<Ipv4Addr, Vec<Duration>>,
}

impl AddressesStay {
    pub(crate) fn new(has_conflicting_changes: bool) -> Self {
        Self { has_conflicting_changes, told: HashMap::new(), deleted: HashMap::new() }
    }

    /// Checks the change of a record in a commit that was issued at `wanted`.
    fn stored(&mut self, step: &Step, wanted: Duration) -> Result<(), String> {
        let ip = step.ip;
        let deletions = self.deleted.entry(ip).or_default();
        let count = deletions.len();
        deletions.retain(|deleted| *deleted > wanted);
        let is_deleted = deletions.len() < count;
        let Some(after) = step.after.allocation().filter(|_| !is_deleted) else {
            self.told.remove(&ip);
            return Ok(());
        };
        for (place, span) in step.before.allocation().into_iter().flatten() {
            // The overlay may have been renamed.
            if after.get(place) != Some(span) && !after.values().any(|now| now == span) {
                return Err(format!("{ip} had {place:?} {span:?} and has {after:?}"));
            }
        }
        Ok(())
    }
}

impl Invariant for AddressesStay {
    fn name(&self) -> &'static str {
        "an agent keeps its addresses"
    }

    fn observe(&mut self, now: Duration, fact: &Fact<'_>, ledger: &Ledger) -> Result<(), String> {
        match fact {
            Fact::Committed { by, steps, .. } => {
                return steps.iter().try_for_each(|step| self.stored(step, by.at));
            }
            Fact::ReleaseRequested { agent } => {
                self.deleted.entry(*agent).or_default().push(now);
            }
            Fact::AssignmentsSent { by, to, overlays }
                if by.epoch == ledger.epoch && !self.has_conflicting_changes =>
            {
                let told = self.told.entry(*to).or_default();
                for (place, span) in allocation_of(overlays) {
                    let before = *told.entry(place.clone()).or_insert(span);
                    if before != span {
                        return Err(format!(
                            "{to} was told {place:?} {before:?} and is now told {span:?}"
                        ));
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }
}
