//! The same agent always gets the same addresses, until it is deleted: in the store, and in what it
//! is told.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use super::{Fact, Invariant};
use crate::ledger::{Ledger, Share, Step, share_of};

pub(crate) struct AddressesStay {
    /// Whether overlays change so that agents get other shares of what has the same name.
    is_rude: bool,
    /// What each agent was told since it was deleted last.
    told: HashMap<Ipv4Addr, Share>,
    /// When each agent was deleted. A commit may hold its deletion and its return.
    deleted: HashMap<Ipv4Addr, Vec<Duration>>,
}

impl AddressesStay {
    pub(crate) fn new(is_rude: bool) -> Self {
        Self { is_rude, told: HashMap::new(), deleted: HashMap::new() }
    }

    /// A commit that was wanted at a moment changes an agent's record.
    fn stored(&mut self, step: &Step, wanted: Duration) -> Result<(), String> {
        let ip = step.ip;
        let deletions = self.deleted.entry(ip).or_default();
        let count = deletions.len();
        deletions.retain(|deleted| *deleted > wanted);
        let is_deleted = deletions.len() < count;
        let Some(after) = step.after.share().filter(|_| !is_deleted) else {
            self.told.remove(&ip);
            return Ok(());
        };
        for (place, span) in step.before.share().into_iter().flatten() {
            // An overlay may have got another name.
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
            Fact::Stored { by, steps, .. } => {
                return steps.iter().try_for_each(|step| self.stored(step, by.at));
            }
            Fact::Deleted { agent } => {
                self.deleted.entry(*agent).or_default().push(now);
            }
            Fact::Told { by, to, overlays } if by.epoch == ledger.epoch && !self.is_rude => {
                let told = self.told.entry(*to).or_default();
                for (place, span) in share_of(overlays) {
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
