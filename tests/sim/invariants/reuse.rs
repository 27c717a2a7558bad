//! An address is allocated to another agent only after its release was stored, and either after
//! `reuse_after` or because no other address was left. The master counts early reuses.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use overlay_types::addr::{Family, Subnet};
use overlay_types::protocol::Network;

use super::{Fact, Invariant, Writer};
use crate::ledger::{AddressKind, Ledger, Span, Step, Stored};
use crate::scenario::Scenario;

pub(crate) struct Reuse {
    reuse_after: Duration,
    /// Whether the cooldowns and the free addresses are known. They are unknown if wall clocks
    /// jump, or if masters reserve conflicting addresses.
    is_time_known: bool,
    /// The agent of each range.
    holders: HashMap<Span, Ipv4Addr>,
    /// The agent that had each free range last, and the time of its release in seconds since 1970.
    freed: HashMap<Span, (Ipv4Addr, u64)>,
    /// When each agent was first released since its record was last stored. If one commit has both
    /// the release and the return, no other time of the release is known.
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
    fn check_reuse(
        &mut self,
        by: &Writer,
        kind: &AddressKind,
        (span, freed): (Span, u64),
    ) -> Result<(), String> {
        let cooldown = Duration::from_secs(by.unix.saturating_sub(freed));
        if !self.is_time_known || cooldown >= self.reuse_after {
            return Ok(());
        }
        let used = self.used.get(kind).map_or(0, |used| used.len() as u128);
        let capacities = by.networks.iter().map(|network| capacity(network, kind));
        let capacity = capacities.min().unwrap_or(0);
        if used < capacity {
            return Err(format!(
                "{kind:?} {span:?} was reused after {cooldown:?}, and only {used} of {capacity} \
                 were used"
            ));
        }
        let early = self.early.entry((by.master, by.run)).or_default();
        *early += 1;
        if *early > by.early_reuses {
            let (master, counted) = (by.master, by.early_reuses);
            return Err(format!(
                "{kind:?} {span:?} was reused after {cooldown:?}; {early} early reuses \
                 by master {master}, which has counted {counted}"
            ));
        }
        Ok(())
    }

    /// Checks an allocation.
    fn check_allocation(
        &mut self,
        by: &Writer,
        ip: Ipv4Addr,
        kind: &AddressKind,
        span: Span,
    ) -> Result<(), String> {
        if let Some(holder) = self.holders.insert(span, ip).filter(|holder| *holder != ip) {
            return Err(format!("{ip} gets {kind:?} of {holder}, whose release is not stored"));
        }
        match self.freed.remove(&span) {
            Some((former, freed)) if former != ip => self.check_reuse(by, kind, (span, freed)),
            _ => Ok(()),
        }
    }

    /// Notes the addresses of a released agent, including addresses that it got and lost within one
    /// commit.
    fn note_released(&mut self, step: &Step) {
        if let Stored::Had(allocation, at) = &step.after {
            for (kind, span) in allocation {
                self.used.entry(kind.clone()).or_default().insert(*span);
                self.freed.insert(*span, (step.ip, *at));
            }
        }
    }

    /// Notes the addresses that an agent lost. A commit may have its release and its return.
    fn note_lost(&mut self, by: &Writer, step: &Step) {
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
        for (kind, span) in step.before.allocation().into_iter().flatten() {
            if after.and_then(|after| after.get(kind)) == Some(span) {
                continue;
            }
            self.holders.remove(span);
            self.freed.insert(*span, (step.ip, at));
        }
    }

    /// Drops the ranges of an agent that returned to a master with a narrower overlay. The master
    /// allocates other addresses, and no longer knows the addresses outside of the overlay.
    fn drop_unknown(&mut self, by: &Writer, step: &Step) {
        let (Stored::Had(before, _) | Stored::Has(before), Stored::Has(after)) =
            (&step.before, &step.after)
        else {
            return;
        };
        for (kind, span) in before {
            let is_other = after.get(kind).is_some_and(|other| other != span);
            if is_other && by.networks.iter().any(|network| !covers(network, kind, *span)) {
                self.freed.remove(span);
            }
        }
    }
}

/// Returns whether a pool has the addresses.
fn covers(network: &Network, kind: &AddressKind, span: Span) -> bool {
    let whole = match kind {
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
fn capacity(network: &Network, kind: &AddressKind) -> u128 {
    let hosts = |subnet: &Subnet, unusable| subnet.count(subnet.family().bits()) - unusable;
    match kind {
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
                    Some(agent) => Err(format!(
                        "the release of {agent} is confirmed, and it still has its addresses"
                    )),
                    None => Ok(()),
                };
            }
            _ => return Ok(()),
        };
        for step in *steps {
            self.note_lost(by, step);
        }
        for step in *steps {
            self.note_released(step);
            self.drop_unknown(by, step);
        }
        let mut given = Vec::new();
        for step in *steps {
            let before = step.before.allocation();
            let is_new = |kind, span| before.and_then(|before| before.get(kind)) != Some(span);
            let after = step.after.allocation().into_iter().flatten();
            let new = after.filter(|(kind, span)| is_new(*kind, *span));
            given.extend(new.map(|(kind, span)| (step.ip, kind, *span)));
        }
        // All allocations of a commit count as used: a master reuses early only after the others.
        for (_, kind, span) in &given {
            self.used.entry((*kind).clone()).or_default().insert(*span);
        }
        given.into_iter().try_for_each(|(ip, kind, span)| self.check_allocation(by, ip, kind, span))
    }
}
