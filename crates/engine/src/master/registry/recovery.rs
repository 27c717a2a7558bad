//! Builds a registry from the records of all agents: at the start from what the store has, and for
//! another configuration or after a release from the registry before.
//!
//! No record can stop the master. A record that cannot be read, or that conflicts with the
//! configuration or another record, is quarantined and reported, and the rest is served.
//! Conflicting addresses are allocated to no other agent, since a container may use them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::sync::Arc;

use overlay_types::addr::{Family, OverlayName, Subnet};
use overlay_types::clock::Now;
use overlay_types::mutation::Mutation;
use overlay_types::protocol::{
    Addresses, AgentInfo, AgentRecord, Network, OverlayRecord, PeerFailures, Record, ReleasedRecord,
};
use overlay_types::state::{RecordChange, UnreadableRecord, Version};

use super::agents::{
    ActiveAgent, AgentState, QuarantinedAgent, UnservedOverlay, UnservedParts, ValidFrom,
};
use super::claims::Claims;
use super::contacts::Contacts;
use super::shortages::Pool;
use super::{ChangeContext, RELEASED_AT_MAX, Registry};

/// What agents have sent to a master and the store does not have. A master that reads its state
/// again keeps it, since agents do not notice that.
///
/// The addresses in it may be in no durable version, so nothing but a registry can read it.
#[derive(Debug, Default)]
pub(in crate::master) struct LastKnown {
    reports: Reports,
    contacts: Contacts,
    /// The peers that agents do not reach, by the reporting agent.
    peer_failures: BTreeMap<Ipv4Addr, PeerFailures>,
}

impl LastKnown {
    /// Keeps only who was seen when: another master may have changed the assignments.
    pub(in crate::master) fn without_reports(self) -> Self {
        Self { reports: Reports::new(), ..self }
    }

    /// Handles the end of a link to an agent while no registry does.
    pub(in crate::master) fn link_ended(&mut self, now: Now, address: SocketAddrV4) {
        self.contacts.exited(address, now.elapsed);
    }

    /// Notes that the agents do not notice the begin of this leader. See [`Contacts`].
    pub(in crate::master) const fn begin_unnoticed(&mut self) {
        self.contacts.begin_unnoticed();
    }
}

/// The agents with the reported statuses of their overlays.
type Reports = BTreeMap<Ipv4Addr, Arc<AgentInfo>>;

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
    /// it, even if that agent is quarantined, and whatever the overlay name and the prefix in the
    /// records. The choice depends only on the stored records, so it is the same after a restart.
    fn build(
        network: Arc<Network>,
        mut known: Vec<(Ipv4Addr, KnownRecord)>,
        versions: BuildVersions,
    ) -> Recovered {
        known.sort_by_key(|(ip, _)| (!is_possible(*ip), *ip));
        let first = usize::from(Mutation::SkipFirstRecord.is_on()).min(known.len());
        known.drain(..first);
        // Before any record is served: an agent may precede others with subnets that no pool has.
        let mut claims = Claims::default();
        for (ip, known) in &known {
            if let KnownRecord::Agent(record, _) = known {
                claims.claim(*ip, record);
            }
        }
        let mut registry = Self::new(network);
        let mut released = Vec::new();
        let mut unreadable = 0;
        for (ip, known) in known {
            match known {
                KnownRecord::Agent(record, before) => {
                    let result = registry.restore(ip, &record, before, versions, &claims);
                    if let Err(reason) = result {
                        registry.quarantine(ip, reason, record, &claims);
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
        let adopted = registry.adopt(versions, &claims);
        registry.reserve_conflicts();
        // After all records: the addresses of a released agent are free only if no record has them.
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
    /// Why the VTEP address cannot be the agent's own: without one it cannot be served. Nothing has
    /// changed then.
    fn restore(
        &mut self,
        ip: Ipv4Addr,
        record: &AgentRecord,
        before: Option<ValidFrom>,
        versions: BuildVersions,
        claims: &Claims,
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
            match self.restore_vtep_ip6(ip, vtep6, claims) {
                Ok(true) => {
                    let served_before = before.as_ref().and_then(|before| before.vtep_ip6);
                    valid_from.vtep_ip6 = Some(served_before.unwrap_or(newly_served));
                }
                Ok(false) => {}
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

    /// Reserves the IPv6 address of a VTEP, and returns whether the agent comes first with it.
    /// Without a subnet for them it is not served, and waits until one is configured.
    ///
    /// # Errors
    /// How the address conflicts with the configuration or another agent.
    fn restore_vtep_ip6(
        &mut self,
        ip: Ipv4Addr,
        vtep_ip6: Ipv6Addr,
        claims: &Claims,
    ) -> Result<bool, String> {
        if self.pools.has_vteps6() {
            self.pools.reserve_vtep(vtep_ip6.into())?;
            return Ok(true);
        }
        Ok(claims.is_first_with_vtep6(ip, vtep_ip6))
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
        claims: &Claims,
    ) -> Result<Vec<Subnet>, UnservedOverlay> {
        let mut held = record.clone();
        let mut owned = Vec::new();
        let mut conflict = None;
        for piece in [&mut held.subnet, &mut held.subnet6] {
            let Some(subnet) = *piece else { continue };
            let earlier = claims.earlier_agent(ip, &subnet);
            match self.restore_subnet(&record.name, subnet, earlier) {
                Ok(()) if earlier.is_none() => owned.push(subnet),
                Ok(()) => {}
                Err(reason) => {
                    let is_taken = self.pools.is_taken(&record.name, subnet);
                    *piece = piece.filter(|_| earlier.is_none() && !is_taken);
                    conflict.get_or_insert(reason);
                }
            }
        }
        conflict.map_or(Ok(owned), |reason| Err(UnservedOverlay { reason, held }))
    }

    /// Reserves a subnet in the pool of its overlay, if there is one. `earlier` is an agent that
    /// comes first with an address of the subnet.
    ///
    /// # Errors
    /// How the subnet conflicts with the configuration or the earlier agent. An overlay that is not
    /// configured has a conflict only where a pool has the addresses: otherwise nothing is served
    /// to either agent.
    fn restore_subnet(
        &mut self,
        name: &OverlayName,
        subnet: Subnet,
        earlier: Option<Ipv4Addr>,
    ) -> Result<(), String> {
        let is_configured = self.pools.has(name, subnet.family());
        let is_conflict = if is_configured {
            // A slot that is not free is refused by its pool.
            self.pools.overlay_with_free(subnet) == Some(name)
        } else {
            self.pools.overlaps(&subnet)
        };
        if let Some(earlier) = earlier.filter(|_| is_conflict) {
            return Err(format!(
                "overlay {name}: the record of agent {earlier} has addresses of {subnet}"
            ));
        }
        if is_configured { self.pools.reserve(name, subnet) } else { Ok(()) }
    }

    /// Quarantines an agent. The agent still owns its addresses before agents with a higher IP: its
    /// containers may be running, and it is served when its conflict ends.
    fn quarantine(&mut self, ip: Ipv4Addr, reason: String, record: AgentRecord, claims: &Claims) {
        let AgentRecord { vtep_ip, vtep_ip6, mut overlays, underlay, .. } = record.clone();
        for OverlayRecord { subnet, subnet6, .. } in &mut overlays {
            let is_first = |subnet: &Subnet| claims.earlier_agent(ip, subnet).is_none();
            *subnet = subnet.filter(is_first);
            *subnet6 = subnet6.filter(is_first);
        }
        let mut held =
            ReleasedRecord { vtep_ip: Some(vtep_ip), vtep_ip6, overlays, ..no_addresses() };
        self.reserve_free_addresses(&mut held);
        self.underlays.reserve(ip, underlay, is_possible(ip));
        let agent = QuarantinedAgent { reason, record: Some(record), held };
        self.agents.insert(ip, AgentState::Quarantined(Box::new(agent)));
    }

    /// Moves subnets of overlays that are no longer configured to the configured overlay that
    /// contains them, if the prefix is the same. So an overlay can be renamed.
    fn adopt(&mut self, versions: BuildVersions, claims: &Claims) -> Vec<AdoptedAgent> {
        let BuildVersions { newly_served, next } = versions;
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
        for (ip, mut agent) in candidates {
            let before = agent.record.clone();
            let had_unserved = agent.unserved_overlays().count();
            for index in 0..agent.record.overlays.len() {
                if !is_configured(&agent.record.overlays[index].name) {
                    self.adopt_overlay(ip, &mut agent, index, claims, next);
                }
            }
            let addresses = Addresses::gained(Some(&before), &agent.record);
            let is_adopted = !addresses.is_empty();
            if is_adopted {
                agent.record.overlays.retain(|overlay| !overlay.is_empty());
                let change = RecordChange::PutAgent(ip, Record::Agent(agent.record.clone()));
                all.push(AdoptedAgent { ip, change, addresses });
                agent.valid_from.record = next;
            }
            if is_adopted || agent.unserved_overlays().count() != had_unserved {
                let ActiveAgent { record, valid_from, unserved, .. } = agent;
                // An unchanged record is in no commit: its peers would wait for `next` forever.
                let version = if is_adopted { next } else { newly_served };
                self.put_active(ip, record, valid_from, unserved, version);
            }
        }
        all
    }

    /// Moves the subnets of one overlay in the record of an agent to the overlays that have them
    /// now, as far as the agent comes first with them.
    fn adopt_overlay(
        &mut self,
        ip: Ipv4Addr,
        agent: &mut ActiveAgent,
        index: usize,
        claims: &Claims,
        next: Version,
    ) {
        let ActiveAgent { record, valid_from, unserved, .. } = agent;
        let former = record.overlays[index].clone();
        for piece in former.subnets() {
            let Some(home) = self.pools.overlay_with_free(piece).cloned() else { continue };
            if claims.earlier_agent(ip, &piece).is_some() {
                continue;
            }
            let family = piece.family();
            let position = record.overlays.iter().position(|overlay| overlay.name == home);
            let occupant = position.and_then(|at| *subnet_of(&mut record.overlays[at], family));
            if let Some(occupant) = occupant {
                // Named, since the agent may have been served both in different overlays.
                let reason = format!(
                    "overlay {}: the agent cannot have {piece} of overlay {home}, since its record \
                     has {occupant} there",
                    former.name
                );
                let part = UnservedOverlay { reason, held: record.overlays[index].clone() };
                let parts = unserved.get_or_insert_default();
                parts.overlays.entry(former.name.clone()).or_insert(part);
                continue;
            }
            if self.pools.reserve(&home, piece).is_err() {
                continue;
            }
            if valid_from.of_subnet(piece).is_none() {
                valid_from.subnets.push((piece, next));
            }
            let position = position.unwrap_or_else(|| {
                let name = home.clone();
                record.overlays.push(OverlayRecord { name, subnet: None, subnet6: None });
                record.overlays.len() - 1
            });
            *subnet_of(&mut record.overlays[position], family) = Some(piece);
            *subnet_of(&mut record.overlays[index], family) = None;
            // The part that stays unserved holds what the record has of it now.
            if let Some(parts) = unserved {
                if let Some(part) = parts.overlays.get_mut(&home) {
                    *subnet_of(&mut part.held, family) = Some(piece);
                }
                if let Some(part) = parts.overlays.get_mut(&former.name) {
                    *subnet_of(&mut part.held, family) = None;
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
        // The range may be cut in another way now: whatever overlaps the subnet waits as well.
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

    /// Returns what the agents have sent, for the next recovery of this master.
    pub(in crate::master) fn into_last_known(mut self) -> LastKnown {
        let peer_failures = std::mem::take(&mut self.peer_failures);
        LastKnown { reports: self.reports(), contacts: self.take_contacts(), peer_failures }
    }

    /// Restores what agents have sent before the state was read again. Every agent gets the time to
    /// send its next message.
    pub(in crate::master) fn restore_last_known(&mut self, last_known: LastKnown, now: Now) {
        let LastKnown { reports, mut contacts, peer_failures } = last_known;
        self.peer_failures = peer_failures;
        self.restore_reports(&reports);
        contacts.restart(now.elapsed);
        self.restore_contacts(contacts);
        self.expect_agents(now);
    }

    /// Returns the reported statuses of all active agents.
    fn reports(&self) -> Reports {
        self.agents.iter_active().map(|(ip, agent)| (ip, Arc::clone(&agent.info))).collect()
    }

    /// Restores the reported statuses of overlays with unchanged addresses.
    fn restore_reports(&mut self, reports: &Reports) {
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
        self.restore_contacts(before.contacts.clone());
        self.peer_failures.clone_from(&before.peer_failures);
        self.address_counts.clone_from(&before.address_counts);
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

/// Returns the place of a record that has the subnet of this family.
const fn subnet_of(record: &mut OverlayRecord, family: Family) -> &mut Option<Subnet> {
    match family {
        Family::V4 => &mut record.subnet,
        Family::V6 => &mut record.subnet6,
    }
}

/// Returns a record without any address.
const fn no_addresses() -> ReleasedRecord {
    ReleasedRecord { at: 0, vtep_ip: None, vtep_ip6: None, overlays: Vec::new() }
}
