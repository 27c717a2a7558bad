//! An agent keeps its addresses until its release, in the store and in sent assignments.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use super::{Fact, Invariant};
use crate::ledger::{Allocation, Ledger, Step, allocation_of};

pub(crate) struct AddressesStay {
    /// Whether overlays change so that agents get other subnets of an overlay with the same name.
    has_conflicting_changes: bool,
    /// The addresses that were sent to each agent since its last release.
    sent: HashMap<Ipv4Addr, Allocation>,
    /// When each agent was released. One commit may contain a release and a return.
    deleted: HashMap<Ipv4Addr, Vec<Duration>>,
}

impl AddressesStay {
    pub(crate) fn new(has_conflicting_changes: bool) -> Self {
        Self { has_conflicting_changes, sent: HashMap::new(), deleted: HashMap::new() }
    }

    /// Checks the change of a record in a commit that was issued at `issued`.
    fn stored(&mut self, step: &Step, issued: Duration) -> Result<(), String> {
        let ip = step.ip;
        let deletions = self.deleted.entry(ip).or_default();
        let count = deletions.len();
        deletions.retain(|deleted| *deleted > issued);
        let is_deleted = deletions.len() < count;
        let Some(after) = step.after.allocation().filter(|_| !is_deleted) else {
            self.sent.remove(&ip);
            return Ok(());
        };
        for (kind, span) in step.before.allocation().into_iter().flatten() {
            // The overlay may have been renamed.
            if after.get(kind) != Some(span) && !after.values().any(|now| now == span) {
                return Err(format!("{ip} had {kind:?} {span:?} and has {after:?}"));
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
                let sent = self.sent.entry(*to).or_default();
                for (kind, span) in allocation_of(overlays) {
                    let before = *sent.entry(kind.clone()).or_insert(span);
                    if before != span {
                        return Err(format!(
                            "{to} was sent {kind:?} {before:?} and is now sent {span:?}"
                        ));
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }
}
