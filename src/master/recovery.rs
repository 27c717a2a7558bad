//! From what is known of every agent to a registry: at the start from what the store held, and when
//! the configuration changes from the registry that was.
//!
//! Nothing in the store can stop the master: what is unreadable or contradicts the configuration or
//! another record is set aside and reported, and the rest is served. What is in doubt is given to
//! nobody, since a container may use it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use super::registry::{Aside, RELEASED_AT_MAX, Registry, Supply, Unserved};
use crate::addr::{Family, OverlayName, Subnet};
use crate::mutation::Mutation;
use crate::protocol::{
    Addresses, AgentInfo, AgentRecord, Network, OverlayRecord, Record, ReleasedRecord,
};
use crate::store::{Change, Key, Version};
use crate::wire::{decode_record, encode_record};

/// The agents with what they have said of their overlays.
pub(super) type Reports = BTreeMap<Ipv4Addr, Arc<AgentInfo>>;

/// What is known of one agent.
#[derive(Debug)]
enum Known {
    /// What it was promised, and the version that makes it durable.
    Agent(AgentRecord, Version),
    /// What it had when it was deleted.
    Released(ReleasedRecord),
    /// There is a record, which cannot be read for this reason.
    Unreadable(String),
}

/// A registry, and the agents whose records had to be changed: see [`Registry::adopt`].
#[derive(Debug)]
pub(super) struct Recovered {
    pub(super) registry: Registry,
    pub(super) adopted: Vec<Adopted>,
}

/// An agent that keeps addresses under the name of another overlay.
#[derive(Debug)]
pub(super) struct Adopted {
    pub(super) ip: Ipv4Addr,
    pub(super) change: Change,
    /// What it keeps, with the new names.
    pub(super) addresses: Addresses,
}

impl Registry {
    /// The registry of `network` with what the store held at `version`.
    pub(super) fn recover(
        network: Arc<Network>,
        version: Version,
        records: Vec<(Ipv4Addr, Vec<u8>)>,
    ) -> Recovered {
        let known = records.into_iter().map(|(ip, bytes)| match decode_record(&bytes) {
            Ok(Record::Agent(record)) => (ip, Known::Agent(record, version)),
            Ok(Record::Released(record)) => (ip, Known::Released(record)),
            Err(error) => (ip, Known::Unreadable(format!("its record is unreadable: {error}"))),
        });
        Self::of(network, known.collect(), version.next())
    }

    /// The registry of another network with the same agents, what they said last, and nothing new.
    /// What has to be changed of their records will have the version `next`.
    pub(super) fn rebuilt(&self, network: Arc<Network>, next: Version) -> Recovered {
        let mut known = Vec::new();
        for (ip, agent) in &self.agents {
            known.push((*ip, Known::Agent(agent.record.clone(), agent.version)));
        }
        for (ip, Aside { reason, record, .. }) in &self.aside {
            let what = match record {
                // Nobody is told of it before it is served, and then it is stored.
                Some(record) => Known::Agent(record.clone(), Version(0)),
                None => Known::Unreadable(reason.clone()),
            };
            known.push((*ip, what));
        }
        for (ip, record) in &self.released {
            known.push((*ip, Known::Released(record.clone())));
        }
        // Who comes first has a contested address: always the same one.
        known.sort_by_key(|(ip, _)| *ip);
        let mut recovered = Self::of(network, known, next);
        recovered.registry.take_over(self);
        recovered
    }

    fn of(network: Arc<Network>, known: Vec<(Ipv4Addr, Known)>, next: Version) -> Recovered {
        let mut registry = Self::new(network);
        let mut refused = Vec::new();
        let mut released = Vec::new();
        let mut unreadable = 0;
        let first = usize::from(Mutation::DropARecord.is_on());
        for (ip, known) in known.into_iter().skip(first) {
            match known {
                Known::Agent(record, version) => {
                    if let Err(reason) = registry.restore(ip, &record, version) {
                        refused.push((ip, reason, record));
                    }
                }
                Known::Released(record) => released.push((ip, record)),
                Known::Unreadable(reason) => {
                    unreadable += 1;
                    let aside = Aside { reason, record: None, held: nothing() };
                    registry.aside.insert(ip, aside);
                }
            }
        }
        // After those who are served: an agent that is not keeps what does not contradict them,
        // since its containers may be running.
        for (ip, reason, record) in refused {
            let held = registry.hold(&record);
            registry.underlays.reserve(ip, record.underlay);
            registry.aside.insert(ip, Aside { reason, record: Some(record), held });
        }
        let adopted = registry.adopt(next);
        registry.withhold_doubts();
        // After all of them: what a deleted agent had is free only if nobody has it.
        for (ip, record) in released {
            registry.restore_released(ip, record);
        }
        if unreadable > 0 {
            registry.space.withhold_gaps(unreadable);
        }
        Recovered { registry, adopted }
    }

    /// Puts an agent in, and says why if its VTEP address cannot be its own: without one it cannot
    /// be served. Nothing has changed then.
    fn restore(
        &mut self,
        ip: Ipv4Addr,
        record: &AgentRecord,
        version: Version,
    ) -> Result<(), String> {
        if Mutation::AllocateLowestFree.is_on() {
            self.insert(ip, record.clone(), version);
            return Ok(());
        }
        // Somebody else wrote it: no agent can register from there.
        if ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast() {
            return Err("no agent can have this address".to_owned());
        }
        self.space.reserve_vtep(record.vtep_ip.into())?;
        if let Some(vtep6) = record.vtep_ip6
            && self.space.has_vteps6()
            && let Err(reason) = self.space.reserve_vtep(vtep6.into())
        {
            self.unserved_vteps6.insert(ip, reason);
        }
        for overlay in &record.overlays {
            if let Err(unserved) = self.restore_overlay(overlay) {
                self.unserved.insert((ip, overlay.name.clone()), unserved);
            }
        }
        self.insert(ip, record.clone(), version);
        Ok(())
    }

    /// Reserves what an agent has of an overlay. An overlay or a family that is not configured is
    /// no contradiction: the record waits until it is configured again.
    fn restore_overlay(&mut self, record: &OverlayRecord) -> Result<(), Unserved> {
        let network = Arc::clone(&self.network);
        let Some(overlay) = network.overlays.iter().find(|overlay| overlay.name == record.name)
        else {
            return Ok(());
        };
        let mut held = record.clone();
        let mut refusal = None;
        for piece in [&mut held.subnet, &mut held.subnet6] {
            if let Some(subnet) = *piece
                && overlay.range_of(subnet.family()).is_some()
                && let Err(reason) = self.space.reserve(&record.name, subnet)
            {
                *piece = piece.filter(|_| !self.space.is_taken(&record.name, subnet));
                refusal.get_or_insert(reason);
            }
        }
        refusal.map_or(Ok(()), |reason| Err(Unserved { reason, held }))
    }

    /// Takes what nobody has of the record of an agent that is not served, and returns what nobody
    /// else has.
    fn hold(&mut self, record: &AgentRecord) -> ReleasedRecord {
        let AgentRecord { vtep_ip, vtep_ip6, overlays, .. } = record.clone();
        let mut held = ReleasedRecord { vtep_ip: Some(vtep_ip), vtep_ip6, overlays, ..nothing() };
        self.reserve_what_is_free(&mut held);
        held
    }

    /// What agents had of an overlay that is not configured any more, and is now just what an agent
    /// gets of another one, they have of that one: so an overlay can be given another name. What
    /// is changed will have the version `next`.
    fn adopt(&mut self, next: Version) -> Vec<Adopted> {
        let network = Arc::clone(&self.network);
        let is_configured =
            |name: &OverlayName| network.overlays.iter().any(|overlay| overlay.name == *name);
        let agents = self.agents.iter();
        let candidates: Vec<Ipv4Addr> = agents
            .filter(|(_, agent)| {
                agent.record.overlays.iter().any(|overlay| !is_configured(&overlay.name))
            })
            .map(|(ip, _)| *ip)
            .collect();
        let mut all = Vec::new();
        for ip in candidates {
            let Some(mut record) = self.agents.get(&ip).map(|agent| agent.record.clone()) else {
                continue;
            };
            let before = record.clone();
            for index in 0..record.overlays.len() {
                if !is_configured(&record.overlays[index].name) {
                    self.adopt_overlay(&mut record, index);
                }
            }
            let addresses = Addresses::gained(Some(&before), &record);
            if !addresses.is_empty() {
                record.overlays.retain(|overlay| !overlay.is_empty());
                let bytes = encode_record(&Record::Agent(record.clone()));
                let change = Change::Put(Key::Agent(ip), bytes);
                all.push(Adopted { ip, change, addresses });
                self.insert(ip, record, next);
            }
        }
        all
    }

    fn adopt_overlay(&mut self, record: &mut AgentRecord, index: usize) {
        for piece in record.overlays[index].subnets() {
            let Some(home) = self.space.home_of(piece).cloned() else { continue };
            let has = |overlay: &OverlayRecord| match piece.family() {
                Family::V4 => overlay.subnet.is_some(),
                Family::V6 => overlay.subnet6.is_some(),
            };
            let position = record.overlays.iter().position(|overlay| overlay.name == home);
            let is_full = position.is_some_and(|position| has(&record.overlays[position]));
            if is_full || self.space.reserve(&home, piece).is_err() {
                continue;
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

    /// Sees to it that nobody gets an address that an agent has in its record and is not served:
    /// it may be in use all the same. What is served is taken, and so nothing happens to it.
    fn withhold_doubts(&mut self) {
        if Mutation::AllocateLowestFree.is_on() {
            return;
        }
        let served = self.agents.values().map(|agent| &agent.record);
        let aside = self.aside.values().filter_map(|aside| aside.record.as_ref());
        let mut doubtful = Vec::new();
        for record in served.chain(aside) {
            let vteps = [Some(record.vtep_ip.into()), record.vtep_ip6.map(IpAddr::V6)];
            let vteps = vteps.into_iter().flatten();
            let vteps = vteps.filter(|vtep| !self.space.is_vtep_taken(*vtep));
            doubtful.extend(vteps.filter_map(|vtep| {
                let bits = if vtep.is_ipv4() { Family::V4.bits() } else { Family::V6.bits() };
                Subnet::containing(vtep, bits)
            }));
            for overlay in &record.overlays {
                let is_doubtful = |subnet: &Subnet| !self.space.is_taken(&overlay.name, *subnet);
                doubtful.extend(overlay.subnets().filter(is_doubtful));
            }
        }
        for subnet in doubtful {
            self.space.withhold(&subnet);
        }
    }

    fn restore_released(&mut self, ip: Ipv4Addr, mut record: ReleasedRecord) {
        self.reserve_what_is_free(&mut record);
        self.free(ip, &record);
        if record.at > RELEASED_AT_MAX {
            self.late_releases.insert(ip);
        }
        // Cut in another way now: what has an address of it rests all the same.
        for overlay in &record.overlays {
            for subnet in overlay.subnets() {
                self.space.retire(&subnet, record.at);
            }
        }
        self.released.insert(ip, record);
    }

    /// Takes of `record` what is free, and removes from it what somebody else has. What the
    /// configuration does not cover stays in it.
    fn reserve_what_is_free(&mut self, record: &mut ReleasedRecord) {
        let space = &mut self.space;
        let mut keep = |vtep: IpAddr| {
            let is_ours = !space.is_vtep_taken(vtep);
            if is_ours {
                // Where the configuration does not cover it there is nothing to take.
                let _ = space.reserve_vtep(vtep);
            }
            is_ours
        };
        record.vtep_ip = record.vtep_ip.filter(|&vtep| keep(vtep.into()));
        record.vtep_ip6 = record.vtep_ip6.filter(|&vtep| keep(vtep.into()));
        for OverlayRecord { name, subnet, subnet6 } in &mut record.overlays {
            let mut keep = |subnet: &Subnet| {
                let is_ours = !space.is_taken(name, *subnet);
                if is_ours {
                    let _ = space.reserve(name, *subnet);
                }
                is_ours
            };
            *subnet = subnet.filter(&mut keep);
            *subnet6 = subnet6.filter(&mut keep);
        }
        record.overlays.retain(|had| !had.is_empty());
    }

    /// What the agents have said of their overlays.
    pub(super) fn reports(&self) -> Reports {
        self.agents.iter().map(|(ip, agent)| (*ip, Arc::clone(&agent.info))).collect()
    }

    /// Takes over what agents have said of overlays of which they have the same addresses now.
    pub(super) fn recall(&mut self, reports: &Reports) {
        for (ip, old) in reports {
            let Some(agent) = self.agents.get_mut(ip) else { continue };
            self.tally.remove(&agent.info);
            for overlay in &mut Arc::make_mut(&mut agent.info).overlays {
                let same = old.overlays.iter().find(|old| old.name() == overlay.name());
                overlay.status = same
                    .filter(|same| same.has_addresses_of(overlay))
                    .and_then(|same| same.status.clone());
            }
            self.tally.add(&agent.info);
        }
    }

    /// Takes over from the registry of before what is not in the records.
    fn take_over(&mut self, before: &Self) {
        self.touched.extend(before.agents.keys().chain(&before.touched));
        self.recall(&before.reports());
        self.carry_over_refusals(before);
        let exists = |supply: &Supply| match supply {
            Supply::Overlay(name, family) => {
                let mut overlays = self.network.overlays.iter();
                overlays.any(|one| one.name == *name && one.range_of(*family).is_some())
            }
            Supply::Vtep6 => self.network.vtep_subnet6.is_some(),
            Supply::Vtep => true,
        };
        self.contacts.clone_from(&before.contacts);
        let lacking = before.lacking.iter().filter(|(supply, _)| exists(supply));
        self.lacking = lacking.map(|(supply, agents)| (supply.clone(), agents.clone())).collect();
    }
}

/// No address at all.
const fn nothing() -> ReleasedRecord {
    ReleasedRecord { at: 0, vtep_ip: None, vtep_ip6: None, overlays: Vec::new() }
}
