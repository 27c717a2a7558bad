//! An address is allocated to another agent only after its release was stored, and either after
//! `reuse_after` or because nothing else was left. The latter is counted.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use mesos_network_overlay::addr::{Family, Subnet};
use mesos_network_overlay::protocol::Network;

use super::{Fact, Invariant, Writer};
use crate::ledger::{AddressKind, Ledger, Span, Step, Stored};
use crate::scenario::Scenario;

pub(crate) struct Reuse {
    reuse_after: Duration,
    /// Whether the times since releases are known, and what else was left: not where wall clocks
    /// jump, and not where masters withhold conflicting addresses.
    is_time_known: bool,
    /// The agent of each range.
    holders: HashMap<Span, Ipv4Addr>,
    /// The agent that had each free range last, and the time of its release in seconds since 1970.
    freed: HashMap<Span, (Ipv4Addr, u64)>,
    /// When each agent was released first since its record was stored last. Nothing else is known
    /// of its addresses if the commit has its return as well.
    deleted: HashMap<Ipv4Addr, Duration>,
    /// Every range that was ever allocated, by its pool.
    used: BTreeMap<AddressKind, HashSet<Span>>,
    /// The early reuses of each process of a master.
    early: HashMap<(usize, u64), u64>,
}

impl Reuse {
    pub(crate) fn new(scenario: &Scenario) -> Self {
        Self {
            reuse_after: scenario.reuse_after,
            is_time_known: scenario.faults.clock_jumps.is_none()
                && !scenario.plan.has_conflicting_changes
                && scenario.imported == 0,
            holders: HashMap::new(),
            freed: HashMap::new(),
            deleted: HashMap::new(),
            used: BTreeMap::new(),
            early: HashMap::new(),
        }
    }

    /// Checks the reuse of a range that was released at `freed`.
    fn reused(
        &mut self,
        by: &Writer,
        place: &AddressKind,
        (span, freed): (Span, u64),
    ) -> Result<(), String> {
        let rested = Duration::from_secs(by.unix.saturating_sub(freed));
        if !self.is_time_known || rested >= self.reuse_after {
            return Ok(());
        }
        let used = self.used.get(place).map_or(0, |used| used.len() as u128);
        let capacities = by.networks.iter().map(|network| capacity(network, place));
        let capacity = capacities.min().unwrap_or(0);
        if used < capacity {
            return Err(format!(
                "{place:?} {span:?} rested for {rested:?}, and only {used} of {capacity} were used"
            ));
        }
        let early = self.early.entry((by.master, by.run)).or_default();
        *early += 1;
        if *early > by.early_reuses {
            let (master, counted) = (by.master, by.early_reuses);
            return Err(format!(
                "{place:?} {span:?} rested for {rested:?}; {early} early reuses by master {master}, \
                 which has counted {counted}"
            ));
        }
        Ok(())
    }

    /// Checks an allocation.
    fn given(
        &mut self,
        by: &Writer,
        ip: Ipv4Addr,
        place: &AddressKind,
        span: Span,
    ) -> Result<(), String> {
        if let Some(holder) = self.holders.insert(span, ip).filter(|holder| *holder != ip) {
            return Err(format!("{ip} gets {place:?} of {holder}, whose release is not stored"));
        }
        match self.freed.remove(&span) {
            Some((former, freed)) if former != ip => self.reused(by, place, (span, freed)),
            _ => Ok(()),
        }
    }

    /// Notes the addresses of a released agent, also those that it got and lost within one commit.
    fn had(&mut self, step: &Step) {
        if let Stored::Had(share, at) = &step.after {
            for (place, span) in share {
                self.used.entry(place.clone()).or_default().insert(*span);
                self.freed.insert(*span, (step.ip, *at));
            }
        }
    }

    /// Notes the addresses that an agent lost. A commit may have its release and its return.
    fn gave_back(&mut self, by: &Writer, step: &Step) {
        let deleted = self.deleted.get(&step.ip).copied().filter(|deleted| *deleted <= by.at);
        if deleted.is_some() {
            self.deleted.remove(&step.ip);
        }
        let at = match &step.after {
            Stored::Had(_, at) => *at,
            Stored::Nothing | Stored::Has(_) => {
                let ago = by.at.saturating_sub(deleted.unwrap_or(by.at));
                by.unix.saturating_sub(ago.as_secs() + 1)
            }
        };
        let after = step.after.allocation();
        for (place, span) in step.before.allocation().into_iter().flatten() {
            if after.and_then(|after| after.get(place)) == Some(span) {
                continue;
            }
            self.holders.remove(span);
            self.freed.insert(*span, (step.ip, at));
        }
    }

    /// Drops the ranges of an agent that returned to a master with a narrower overlay. The master
    /// allocates other addresses, and no longer knows of those outside of the overlay.
    fn forgotten(&mut self, by: &Writer, step: &Step) {
        let (Stored::Had(before, _) | Stored::Has(before), Stored::Has(after)) =
            (&step.before, &step.after)
        else {
            return;
        };
        for (place, span) in before {
            let is_other = after.get(place).is_some_and(|other| other != span);
            if is_other && by.networks.iter().any(|network| !covers(network, place, *span)) {
                self.freed.remove(span);
            }
        }
    }
}

/// Returns whether a pool has the addresses.
fn covers(network: &Network, place: &AddressKind, span: Span) -> bool {
    let whole = match place {
        AddressKind::Vtep(Family::V4) => Some(network.vtep_subnet),
        AddressKind::Vtep(Family::V6) => network.vtep_subnet6,
        AddressKind::Subnet(name, family) => {
            let overlay = network.overlays.iter().find(|overlay| overlay.name == *name);
            overlay.and_then(|overlay| overlay.range_of(*family)).map(|range| range.subnet)
        }
    };
    whole.is_some_and(|whole| {
        let whole = Span::of_subnet(&whole);
        whole.first <= span.first && span.last <= whole.last
    })
}

/// Returns the number of agents for which a pool is enough.
fn capacity(network: &Network, place: &AddressKind) -> u128 {
    let hosts = |subnet: &Subnet, unusable| subnet.count(subnet.family().bits()) - unusable;
    match place {
        AddressKind::Vtep(Family::V4) => hosts(&network.vtep_subnet, 2),
        AddressKind::Vtep(Family::V6) => network.vtep_subnet6.map_or(0, |subnet| hosts(&subnet, 1)),
        AddressKind::Subnet(name, family) => {
            let overlay = network.overlays.iter().find(|overlay| overlay.name == *name);
            let range = overlay.and_then(|overlay| overlay.range_of(*family));
            range.map_or(0, |range| range.subnet.count(range.prefix))
        }
    }
}

impl Invariant for Reuse {
    fn name(&self) -> &'static str {
        "released addresses are not reused early"
    }

    fn observe(&mut self, now: Duration, fact: &Fact<'_>, ledger: &Ledger) -> Result<(), String> {
        let (by, steps) = match fact {
            Fact::Committed { by, steps, .. } => (by, steps),
            Fact::ReleaseRequested { agent } => {
                self.deleted.entry(*agent).or_insert(now);
                return Ok(());
            }
            Fact::ReleaseConfirmed { by, agents, asked } if by.epoch == ledger.epoch => {
                let is_stored = |agent: &&Ipv4Addr| {
                    self.deleted.get(*agent).is_none_or(|deleted| deleted > asked)
                        || ledger.at(**agent, ledger.version).allocation().is_none()
                };
                return match agents.iter().find(|agent| !is_stored(agent)) {
                    Some(agent) => {
                        Err(format!("{agent} is said to be deleted, and has all it had"))
                    }
                    None => Ok(()),
                };
            }
            _ => return Ok(()),
        };
        for step in *steps {
            self.gave_back(by, step);
        }
        for step in *steps {
            self.had(step);
            self.forgotten(by, step);
        }
        let mut given = Vec::new();
        for step in *steps {
            let before = step.before.allocation();
            let is_new = |place, span| before.and_then(|before| before.get(place)) != Some(span);
            let after = step.after.allocation().into_iter().flatten();
            let new = after.filter(|(place, span)| is_new(*place, *span));
            given.extend(new.map(|(place, span)| (step.ip, place, *span)));
        }
        // All of a commit counts as used: an early reuse comes after the other allocations.
        for (_, place, span) in &given {
            self.used.entry((*place).clone()).or_default().insert(*span);
        }
        given.into_iter().try_for_each(|(ip, place, span)| self.given(by, ip, place, span))
    }
}
