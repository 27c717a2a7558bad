//! Builds a registry from the records of all agents: at the start from what the store has, and for
//! another configuration or after a release from the registry before.
//!
//! No record can stop the master. A record that cannot be read, or that conflicts with the
//! configuration or another record, is quarantined and reported, and the rest is served.
//! Conflicting addresses are allocated to no other agent, since a container may use them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use super::agents::{
    ActiveAgent, AgentState, QuarantinedAgent, UnservedOverlay, UnservedParts, ValidFrom,
};
use super::claims::{Claims, Ownership};
use super::shortages::Pool;
use super::{ChangeContext, RELEASED_AT_MAX, Registry};
use crate::addr::{Family, OverlayName, Subnet};
use crate::mutation::Mutation;
use crate::protocol::{
    Addresses, AgentInfo, AgentRecord, Network, OverlayRecord, Record, ReleasedRecord,
};
use crate::store::{Change, Key, Version};
use crate::wire::{decode_record, encode_record};

/// The agents with what they reported of their overlays.
pub(in super::super) type Reports = BTreeMap<Ipv4Addr, Arc<AgentInfo>>;

/// What is known of one agent before the registry is built.
#[derive(Debug)]
enum KnownRecord {
    /// The record of a registered agent. If the agent was served before, the versions of the
    /// addresses that were served.
    Agent(AgentRecord, Option<ValidFrom>),
    /// The agent was released.
    Released(ReleasedRecord),
    /// The record cannot be read for this reason.
    Unreadable(String),
}

/// The versions of the addresses in a registry that is built.
#[derive(Debug, Clone, Copy)]
struct BuildVersions {
    /// The version that makes exclusive what was not served before.
    newly_served: Version,
    /// The version of a record that is changed.
    next: Version,
}

/// A registry, and the agents whose records had to be changed: see [`Registry::adopt`].
#[derive(Debug)]
pub(in super::super) struct Recovered {
    pub(in super::super) registry: Registry,
    pub(in super::super) adopted: Vec<AdoptedAgent>,
}

/// An agent that keeps addresses under the name of another overlay.
#[derive(Debug)]
pub(in super::super) struct AdoptedAgent {
    pub(in super::super) ip: Ipv4Addr,
    pub(in super::super) change: Change,
    /// The addresses that the agent keeps, with the new names.
    pub(in super::super) addresses: Addresses,
}

/// Returns whether an agent can have this address. Other records were written by someone else.
const fn is_possible(ip: Ipv4Addr) -> bool {
    !ip.is_unspecified() && !ip.is_multicast() && !ip.is_broadcast()
}

impl Registry {
    /// Builds the registry of `network` with the records that the store had at `version`.
    pub(in super::super) fn recover(
        network: Arc<Network>,
        version: Version,
        records: Vec<(Ipv4Addr, Vec<u8>)>,
    ) -> Recovered {
        let known = records.into_iter().map(|(ip, bytes)| match decode_record(&bytes) {
            Ok(Record::Agent(record)) => (ip, KnownRecord::Agent(record, None)),
            Ok(Record::Released(record)) => (ip, KnownRecord::Released(record)),
            Err(error) => {
                (ip, KnownRecord::Unreadable(format!("its record is unreadable: {error}")))
            }
        });
        let versions = BuildVersions { newly_served: version, next: version.next() };
        Self::build(network, known.collect(), versions)
    }

    /// Builds the registry of another network with the same agents and what they reported last.
    pub(in super::super) fn rebuilt(
        &self,
        network: Arc<Network>,
        context: ChangeContext,
    ) -> Recovered {
        // An address that is served only from now on may belong to an agent whose release is not
        // durable yet.
        let is_early = Mutation::SendBeforeReleaseIsDurable.is_on();
        let newly_served = if is_early { Version(0) } else { context.latest };
        let versions = BuildVersions { newly_served, next: context.next };
        let known = self.agents.iter().map(|(ip, state)| {
            let known = match state {
                AgentState::Active(agent) => {
                    let mut valid_from = agent.valid_from.clone();
                    if self.underlays.is_unserved(ip) {
                        valid_from.underlay = newly_served;
                    }
                    KnownRecord::Agent(agent.record.clone(), Some(valid_from))
                }
                AgentState::Quarantined(agent) => match &agent.record {
                    Some(record) => KnownRecord::Agent(record.clone(), None),
                    None => KnownRecord::Unreadable(agent.reason.clone()),
                },
                AgentState::Released(record) => KnownRecord::Released(record.clone()),
            };
            (ip, known)
        });
        let mut recovered = Self::build(network, known.collect(), versions);
        recovered.registry.carry_over(self, context.latest);
        recovered
    }

    /// Builds a registry. Of the agents whose records have one address the one with the lowest IP
    /// comes first, also where that agent is quarantined: a choice that depends on anything but the
    /// stored records would be another one after a restart.
    fn build(
        network: Arc<Network>,
        mut known: Vec<(Ipv4Addr, KnownRecord)>,
        versions: BuildVersions,
    ) -> Recovered {
        known.sort_by_key(|(ip, _)| (!is_possible(*ip), *ip));
        let mut registry = Self::new(network);
        let mut claims = Claims::default();
        let mut released = Vec::new();
        let mut unreadable = 0;
        let first = usize::from(Mutation::SkipFirstRecord.is_on());
        for (ip, known) in known.into_iter().skip(first) {
            match known {
                KnownRecord::Agent(record, before) => {
                    let result = registry.restore(ip, &record, before, versions, &mut claims);
                    if let Err(reason) = result {
                        registry.quarantine(ip, reason, record, &mut claims);
                    }
                }
                KnownRecord::Released(record) => released.push((ip, record)),
                KnownRecord::Unreadable(reason) => {
                    unreadable += 1;
                    let agent = QuarantinedAgent { reason, record: None, held: no_addresses() };
                    registry.agents.insert(ip, AgentState::Quarantined(Box::new(agent)));
                }
            }
        }
        let adopted = registry.adopt(versions.next);
        registry.withhold_conflicts();
        // After all records: the addresses of a released agent are free only if no record has them.
        for (ip, record) in released {
            registry.restore_released(ip, record);
        }
        if unreadable > 0 {
            registry.pools.withhold_gaps(unreadable);
        }
        Recovered { registry, adopted }
    }

    /// Puts an agent into the active state.
    ///
    /// # Errors
    /// Why the VTEP address cannot be the agent's own: without one it cannot be served. Nothing has
    /// changed then.
    fn restore(
        &mut self,
        ip: Ipv4Addr,
        record: &AgentRecord,
        before: Option<ValidFrom>,
        versions: BuildVersions,
        claims: &mut Claims,
    ) -> Result<(), String> {
        let newly_served = versions.newly_served;
        if Mutation::SkipStoredReservations.is_on() {
            let valid_from = before.unwrap_or_else(|| ValidFrom::new(newly_served));
            self.put_active(ip, record.clone(), valid_from, None, newly_served);
            return Ok(());
        }
        if !is_possible(ip) {
            return Err("no agent can have this address".to_owned());
        }
        self.pools.reserve_vtep(record.vtep_ip.into())?;
        let mut valid_from = ValidFrom::new(newly_served);
        if let Some(before) = &before {
            valid_from.record = before.record;
            valid_from.vtep_ip = before.vtep_ip;
            valid_from.underlay = before.underlay;
        }
        let mut unserved = UnservedParts::default();
        if let Some(vtep6) = record.vtep_ip6 {
            match self.restore_vtep_ip6(ip, vtep6.into(), claims) {
                Ok(Ownership::First) => {
                    let served_before = before.as_ref().and_then(|before| before.vtep_ip6);
                    valid_from.vtep_ip6 = Some(served_before.unwrap_or(newly_served));
                }
                Ok(Ownership::Unknown) => {}
                Err(reason) => unserved.vtep_ip6 = Some(reason),
            }
        }
        for overlay in &record.overlays {
            match self.restore_overlay(ip, overlay, claims) {
                Ok(owned) => valid_from.subnets.extend(owned.into_iter().map(|subnet| {
                    let served_before = before.as_ref().and_then(|it| it.of_subnet(subnet));
                    (subnet, served_before.unwrap_or(newly_served))
                })),
                Err(part) => drop(unserved.overlays.insert(overlay.name.clone(), part)),
            }
        }
        let unserved = (!unserved.is_empty()).then(|| Box::new(unserved));
        self.put_active(ip, record.clone(), valid_from, unserved, newly_served);
        Ok(())
    }

    /// Reserves the IPv6 address of a VTEP. Without a subnet for them it is not served, and waits
    /// until one is configured.
    ///
    /// # Errors
    /// How the address conflicts with the configuration or another agent.
    fn restore_vtep_ip6(
        &mut self,
        ip: Ipv4Addr,
        vtep_ip6: IpAddr,
        claims: &mut Claims,
    ) -> Result<Ownership, String> {
        if self.pools.has_vteps6() {
            self.pools.reserve_vtep(vtep_ip6)?;
            return Ok(Ownership::First);
        }
        Ok(claims.claim_address(ip, vtep_ip6))
    }

    /// Reserves what the record of an agent has of an overlay, and returns the subnets of which the
    /// agent comes first. An overlay or a family that is not configured is no conflict: the record
    /// waits until it is configured again.
    ///
    /// # Errors
    /// How the subnets conflict with the configuration or another agent.
    fn restore_overlay(
        &mut self,
        ip: Ipv4Addr,
        record: &OverlayRecord,
        claims: &mut Claims,
    ) -> Result<Vec<Subnet>, UnservedOverlay> {
        let mut held = record.clone();
        let mut owned = Vec::new();
        let mut conflict = None;
        for piece in [&mut held.subnet, &mut held.subnet6] {
            let Some(subnet) = *piece else { continue };
            if self.pools.has(&record.name, subnet.family()) {
                match self.pools.reserve(&record.name, subnet) {
                    Ok(()) => owned.push(subnet),
                    Err(reason) => {
                        *piece = piece.filter(|_| !self.pools.is_taken(&record.name, subnet));
                        conflict.get_or_insert(reason);
                    }
                }
            } else if self.claim_outside_pools(ip, subnet, claims) == Ownership::First {
                owned.push(subnet);
            }
        }
        conflict.map_or(Ok(owned), |reason| Err(UnservedOverlay { reason, held }))
    }

    /// Claims a subnet that no pool has. What overlaps a pool is served only if it is adopted.
    fn claim_outside_pools(&self, ip: Ipv4Addr, subnet: Subnet, claims: &mut Claims) -> Ownership {
        if self.pools.overlaps(&subnet) {
            return Ownership::Unknown;
        }
        claims.claim_subnet(ip, subnet)
    }

    /// Quarantines an agent. It comes before later agents with its addresses as any other agent:
    /// its containers may be running, and it is served when its conflict ends.
    fn quarantine(
        &mut self,
        ip: Ipv4Addr,
        reason: String,
        record: AgentRecord,
        claims: &mut Claims,
    ) {
        let AgentRecord { vtep_ip, vtep_ip6, overlays, underlay, .. } = record.clone();
        if let Some(vtep_ip6) = vtep_ip6.filter(|_| !self.pools.has_vteps6()) {
            claims.claim_address(ip, vtep_ip6.into());
        }
        for overlay in &overlays {
            for subnet in overlay.subnets() {
                if !self.pools.has(&overlay.name, subnet.family()) {
                    self.claim_outside_pools(ip, subnet, claims);
                }
            }
        }
        let mut held =
            ReleasedRecord { vtep_ip: Some(vtep_ip), vtep_ip6, overlays, ..no_addresses() };
        self.reserve_free_addresses(&mut held);
        self.underlays.reserve(ip, underlay, is_possible(ip));
        let agent = QuarantinedAgent { reason, record: Some(record), held };
        self.agents.insert(ip, AgentState::Quarantined(Box::new(agent)));
    }

    /// Keeps the addresses of an overlay that is no longer configured and that are now just what an
    /// agent gets of another overlay, under the name of that overlay: so an overlay can be renamed.
    /// The changed records have the version `next`.
    fn adopt(&mut self, next: Version) -> Vec<AdoptedAgent> {
        let network = Arc::clone(&self.network);
        let is_configured =
            |name: &OverlayName| network.overlays.iter().any(|overlay| overlay.name == *name);
        let agents = self.agents.iter_active();
        let candidates: Vec<(Ipv4Addr, ActiveAgent)> = agents
            .filter(|(_, agent)| {
                agent.record.overlays.iter().any(|overlay| !is_configured(&overlay.name))
            })
            .map(|(ip, agent)| (ip, agent.clone()))
            .collect();
        let mut all = Vec::new();
        for (ip, agent) in candidates {
            let ActiveAgent { mut record, mut valid_from, unserved, .. } = agent;
            let before = record.clone();
            for index in 0..record.overlays.len() {
                if !is_configured(&record.overlays[index].name) {
                    self.adopt_overlay(&mut record, index, (&mut valid_from, next));
                }
            }
            let addresses = Addresses::gained(Some(&before), &record);
            if !addresses.is_empty() {
                record.overlays.retain(|overlay| !overlay.is_empty());
                let bytes = encode_record(&Record::Agent(record.clone()));
                let change = Change::Put(Key::Agent(ip), bytes);
                all.push(AdoptedAgent { ip, change, addresses });
                valid_from.record = next;
                self.put_active(ip, record, valid_from, unserved, next);
            }
        }
        all
    }

    fn adopt_overlay(
        &mut self,
        record: &mut AgentRecord,
        index: usize,
        (valid_from, next): (&mut ValidFrom, Version),
    ) {
        for piece in record.overlays[index].subnets() {
            let Some(home) = self.pools.home_of(piece).cloned() else { continue };
            let has = |overlay: &OverlayRecord| match piece.family() {
                Family::V4 => overlay.subnet.is_some(),
                Family::V6 => overlay.subnet6.is_some(),
            };
            let position = record.overlays.iter().position(|overlay| overlay.name == home);
            let is_full = position.is_some_and(|position| has(&record.overlays[position]));
            if is_full || self.pools.reserve(&home, piece).is_err() {
                continue;
            }
            if valid_from.of_subnet(piece).is_none() {
                valid_from.subnets.push((piece, next));
            }
            let position = position.unwrap_or_else(|| {
                record.overlays.push(OverlayRecord { name: home, subnet: None, subnet6: None });
                record.overlays.len() - 1
            });
            match piece.family() {
                Family::V4 => {
                    record.overlays[position].subnet = Some(piece);
                    record.overlays[index].subnet = None;
                }
                Family::V6 => {
                    record.overlays[position].subnet6 = Some(piece);
                    record.overlays[index].subnet6 = None;
                }
            }
        }
    }

    /// Withholds every address that the record of an agent has and that is not served: it may be in
    /// use all the same. Served addresses are taken, so nothing happens to them.
    fn withhold_conflicts(&mut self) {
        if Mutation::SkipStoredReservations.is_on() {
            return;
        }
        let mut conflicting = Vec::new();
        for record in self.agents.iter_records() {
            let vteps = [Some(record.vtep_ip.into()), record.vtep_ip6.map(IpAddr::V6)];
            let vteps = vteps.into_iter().flatten();
            let vteps = vteps.filter(|vtep| !self.pools.is_vtep_taken(*vtep));
            conflicting.extend(vteps.filter_map(|vtep| {
                let bits = if vtep.is_ipv4() { Family::V4.bits() } else { Family::V6.bits() };
                Subnet::containing(vtep, bits)
            }));
            for overlay in &record.overlays {
                let is_free = |subnet: &Subnet| !self.pools.is_taken(&overlay.name, *subnet);
                conflicting.extend(overlay.subnets().filter(is_free));
            }
        }
        for subnet in conflicting {
            self.pools.withhold(&subnet);
        }
    }

    fn restore_released(&mut self, ip: Ipv4Addr, mut record: ReleasedRecord) {
        self.reserve_free_addresses(&mut record);
        self.free(ip, &record);
        if record.at > RELEASED_AT_MAX {
            self.late_releases.insert(ip);
        }
        // The range may be cut in another way now: whatever overlaps the subnet waits as well.
        for overlay in &record.overlays {
            for subnet in overlay.subnets() {
                self.pools.retire(&subnet, record.at);
            }
        }
        self.agents.insert(ip, AgentState::Released(record));
    }

    /// Reserves the addresses of `record` that are free, and removes those from it that another
    /// agent has. Addresses that the configuration does not cover stay in it.
    fn reserve_free_addresses(&mut self, record: &mut ReleasedRecord) {
        let pools = &mut self.pools;
        let mut keep = |vtep: IpAddr| {
            let is_free = !pools.is_vtep_taken(vtep);
            if is_free {
                // Where the configuration does not cover it there is nothing to reserve.
                let _ = pools.reserve_vtep(vtep);
            }
            is_free
        };
        record.vtep_ip = record.vtep_ip.filter(|&vtep| keep(vtep.into()));
        record.vtep_ip6 = record.vtep_ip6.filter(|&vtep| keep(vtep.into()));
        for OverlayRecord { name, subnet, subnet6 } in &mut record.overlays {
            let mut keep = |subnet: &Subnet| {
                let is_free = !pools.is_taken(name, *subnet);
                if is_free {
                    let _ = pools.reserve(name, *subnet);
                }
                is_free
            };
            *subnet = subnet.filter(&mut keep);
            *subnet6 = subnet6.filter(&mut keep);
        }
        record.overlays.retain(|had| !had.is_empty());
    }

    /// Returns what the agents reported of their overlays.
    pub(in super::super) fn reports(&self) -> Reports {
        self.agents.iter_active().map(|(ip, agent)| (ip, Arc::clone(&agent.info))).collect()
    }

    /// Restores what agents reported of overlays of which they have the same addresses now.
    pub(in super::super) fn recall(&mut self, reports: &Reports) {
        for (ip, old) in reports {
            self.agents.edit_info(*ip, |info| {
                for overlay in &mut info.overlays {
                    let same = old.overlays.iter().find(|old| old.name() == overlay.name());
                    overlay.status = same
                        .filter(|same| same.has_addresses_of(overlay))
                        .and_then(|same| same.status.clone());
                }
            });
        }
    }

    /// Carries over from the registry before what is not in the records. Every agent may have
    /// changed, in `version` at the latest.
    fn carry_over(&mut self, before: &Self, version: Version) {
        self.changed.extend(before.agents.iter_active().map(|(ip, _)| (ip, version)));
        self.changed.extend(&before.changed);
        self.recall(&before.reports());
        self.carry_over_refusals(before);
        self.contacts.clone_from(&before.contacts);
        let network = Arc::clone(&self.network);
        self.shortages = before.shortages.of_pools(|pool| match pool {
            Pool::Overlay(name, family) => {
                let mut overlays = network.overlays.iter();
                overlays.any(|one| one.name == *name && one.range_of(*family).is_some())
            }
            Pool::Vtep6 => network.vtep_subnet6.is_some(),
            Pool::Vtep => true,
        });
    }
}

/// Returns a record without any address.
const fn no_addresses() -> ReleasedRecord {
    ReleasedRecord { at: 0, vtep_ip: None, vtep_ip6: None, overlays: Vec::new() }
}
