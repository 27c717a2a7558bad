//! Builds a registry from the records of all agents. The records come from the store at the start,
//! and from the previous registry for another configuration or after a release.
//!
//! No record can stop the master. A record that cannot be read, or that conflicts with the
//! configuration or another record, is quarantined and reported. The other records are served.
//! Conflicting addresses are allocated to no other agent, since a container may use them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use overlay_types::addr::{Family, OverlayName, Subnet};
use overlay_types::mutation::Mutation;
use overlay_types::protocol::{
    Addresses, AgentInfo, AgentRecord, Network, OverlayRecord, Record, ReleasedRecord,
};
use overlay_types::state::{RecordChange, UnreadableRecord, Version};

use super::agents::{
    ActiveAgent, AgentState, QuarantinedAgent, UnservedOverlay, UnservedParts, ValidFrom,
};
use super::claims::{Claims, Ownership};
use super::shortages::Pool;
use super::{ChangeContext, RELEASED_AT_MAX, Registry};

/// The agents with the reported statuses of their overlays.
pub(in crate::master) type Reports = BTreeMap<Ipv4Addr, Arc<AgentInfo>>;

/// The record of one agent before the registry is built.
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
    /// The version that makes newly served addresses exclusive.
    newly_served: Version,
    /// The version of changed records.
    next: Version,
}

/// A registry, and the agents whose records had to be changed: see [`Registry::adopt`].
#[derive(Debug)]
pub(in crate::master) struct Recovered {
    pub(in crate::master) registry: Registry,
    pub(in crate::master) adopted: Vec<AdoptedAgent>,
}

/// An agent that keeps its addresses under the new name of an overlay.
#[derive(Debug)]
pub(in crate::master) struct AdoptedAgent {
    pub(in crate::master) ip: Ipv4Addr,
    pub(in crate::master) change: RecordChange,
    /// The addresses that the agent keeps, with the new names.
    pub(in crate::master) addresses: Addresses,
}

/// Returns whether an agent can have this address. A master never stores a record under another
/// address.
const fn is_possible(ip: Ipv4Addr) -> bool {
    !ip.is_unspecified() && !ip.is_multicast() && !ip.is_broadcast()
}

impl Registry {
    /// Builds the registry of `network` with the records that the store had at `version`.
    pub(in crate::master) fn recover(
        network: Arc<Network>,
        version: Version,
        records: Vec<(Ipv4Addr, Result<Record, UnreadableRecord>)>,
    ) -> Recovered {
        let known = records.into_iter().map(|(ip, record)| match record {
            Ok(Record::Agent(record)) => (ip, KnownRecord::Agent(record, None)),
            Ok(Record::Released(record)) => (ip, KnownRecord::Released(record)),
            Err(error) => {
                (ip, KnownRecord::Unreadable(format!("its record is unreadable: {error}")))
            }
        });
        let versions = BuildVersions { newly_served: version, next: version.next() };
        Self::build(network, known.collect(), versions)
    }

    /// Builds the registry of another network with the same agents and their reported statuses.
    pub(in crate::master) fn rebuilt(
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

    /// Builds a registry. If several records have one address, the agent with the lowest IP owns
    /// it, even if that agent is quarantined. The choice must depend only on the stored records, so
    /// that it is the same after a restart.
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
        registry.reserve_conflicts();
        // This comes after all records: the addresses of a released agent are free only if no other
        // record has them.
        for (ip, record) in released {
            registry.restore_released(ip, record);
        }
        if unreadable > 0 {
            registry.pools.reserve_gaps(unreadable);
        }
        Recovered { registry, adopted }
    }

    /// Puts an agent into the active state.
    ///
    /// # Errors
    /// Returns why the agent cannot have its VTEP address: an agent without a VTEP cannot be
    /// served. The registry is unchanged.
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

    /// Reserves the IPv6 address of a VTEP. Without a `vtep_subnet6` the address is not served, and
    /// stays in the record until one is configured.
    ///
    /// # Errors
    /// Returns how the address conflicts with the configuration or another agent.
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

    /// Reserves the subnets of an overlay in an agent's record, and returns the subnets that the
    /// agent owns. An overlay or a family that is not configured is no conflict: the record keeps
    /// its subnets until it is configured again.
    ///
    /// # Errors
    /// Returns how the subnets conflict with the configuration or another agent.
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

    /// Claims a subnet outside of the pool of its overlay. A subnet that overlaps another pool is
    /// served only if [`Self::adopt`] moves it there.
    fn claim_outside_pools(&self, ip: Ipv4Addr, subnet: Subnet, claims: &mut Claims) -> Ownership {
        if self.pools.overlaps(&subnet) {
            return Ownership::Unknown;
        }
        claims.claim_subnet(ip, subnet)
    }

    /// Quarantines an agent. The agent still owns its addresses before agents with a higher IP: its
    /// containers may be running, and it is served when its conflict ends.
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

    /// Moves subnets of overlays that are no longer configured to the configured overlay that
    /// contains them, if the prefix is the same. So an overlay can be renamed. The changed records
    /// have the version `next`.
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
                let change = RecordChange::PutAgent(ip, Record::Agent(record.clone()));
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
            let Some(home) = self.pools.overlay_with_free(piece).cloned() else { continue };
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

    /// Reserves every address of a record that is not served, since containers may use it. Served
    /// addresses are reserved already.
    fn reserve_conflicts(&mut self) {
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
            self.pools.reserve_overlaps(&subnet);
        }
    }

    fn restore_released(&mut self, ip: Ipv4Addr, mut record: ReleasedRecord) {
        self.reserve_free_addresses(&mut record);
        self.free(ip, &record);
        if record.at > RELEASED_AT_MAX {
            self.late_releases.insert(ip);
        }
        // The prefix may have changed: every subnet that overlaps the released subnet is used last.
        for overlay in &record.overlays {
            for subnet in overlay.subnets() {
                self.pools.retire(&subnet, record.at);
            }
        }
        self.agents.insert(ip, AgentState::Released(record));
    }

    /// Reserves the free addresses of `record`, and removes addresses that another agent has.
    /// Addresses that the configuration does not cover stay in the record.
    fn reserve_free_addresses(&mut self, record: &mut ReleasedRecord) {
        let pools = &mut self.pools;
        let mut keep = |vtep: IpAddr| {
            let is_free = !pools.is_vtep_taken(vtep);
            if is_free {
                // This fails only for an address that the configuration does not cover.
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

    /// Returns the reported statuses of all active agents.
    pub(in crate::master) fn reports(&self) -> Reports {
        self.agents.iter_active().map(|(ip, agent)| (ip, Arc::clone(&agent.info))).collect()
    }

    /// Restores the reported statuses of overlays with unchanged addresses.
    pub(in crate::master) fn restore_reports(&mut self, reports: &Reports) {
        for (ip, old) in reports {
            self.agents.edit_info(*ip, |info| {
                for overlay in &mut info.overlays {
                    let same = old.overlays.iter().find(|old| old.name() == overlay.name());
                    overlay.status = same
                        .filter(|same| same.has_same_addresses(overlay))
                        .and_then(|same| same.status.clone());
                }
            });
        }
    }

    /// Carries over the data of the previous registry that the records do not have. Marks every
    /// agent as changed in `version`.
    fn carry_over(&mut self, before: &Self, version: Version) {
        self.changed.extend(before.agents.iter_active().map(|(ip, _)| (ip, version)));
        self.changed.extend(&before.changed);
        self.restore_reports(&before.reports());
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
