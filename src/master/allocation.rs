//! What an agent is given that it lacks: out of which pool, and who loses the claim to it.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use super::registry::{Moment, Notice, Outcome, Refusal, Registry, Supply};
use super::space::{Piece, Subnets};
use crate::addr::{OverlayName, Subnet};
use crate::ipam::Allocated;
use crate::mutation::Mutation;
use crate::protocol::{AgentOptions, AgentRecord, Overlay, OverlayRecord, Record};
use crate::store::{Change, Key};
use crate::wire::encode_record;

impl Registry {
    /// The record of an agent that is not there: with what it had when it was deleted, as far as
    /// nobody else has it now, and with a VTEP address in any case.
    pub(super) fn admit(
        &mut self,
        ip: Ipv4Addr,
        options: &AgentOptions,
        moment: Moment,
        outcome: &mut Outcome,
    ) -> Result<AgentRecord, Refusal> {
        let old = self.released.get(&ip).cloned();
        let old_vtep = old.as_ref().and_then(|old| old.vtep_ip);
        let vtep_ip = match old_vtep.filter(|&vtep| self.reclaim_vtep(vtep.into(), ip)) {
            Some(vtep) => vtep,
            None => {
                let allocated = self.space.allocate_vtep();
                let Some(vtep) = allocated else {
                    self.lacks(Supply::Vtep, ip);
                    return Err(Refusal::NoVtep(self.network.vtep_subnet));
                };
                self.taken(vtep, Piece::Vtep(vtep.item.into()), moment, outcome);
                vtep.item
            }
        };
        let mut record = AgentRecord {
            vtep_ip,
            vtep_ip6: None,
            overlays: Vec::new(),
            allocate_subnet: options.allocate_subnet,
            mesos_bridge: options.mesos_bridge,
            docker_bridge: options.docker_bridge,
            underlay: options.underlay,
        };
        if let Some(old) = old {
            self.released.remove(&ip);
            outcome.is_return = true;
            record.vtep_ip6 = old
                .vtep_ip6
                .filter(|&vtep6| !self.space.has_vteps6() || self.reclaim_vtep(vtep6.into(), ip));
            for overlay in old.overlays {
                let OverlayRecord { name, subnet, subnet6 } = overlay;
                let subnet = subnet.filter(|&subnet| self.reclaim(&name, subnet, ip));
                let subnet6 = subnet6.filter(|&subnet6| self.reclaim(&name, subnet6, ip));
                if subnet.is_some() || subnet6.is_some() {
                    record.overlays.push(OverlayRecord { name, subnet, subnet6 });
                }
            }
        }
        Ok(record)
    }

    fn reclaim_vtep(&mut self, vtep: IpAddr, ip: Ipv4Addr) -> bool {
        let piece = Piece::Vtep(vtep);
        let is_ours = self.space.was_had_by(piece, ip) && self.space.reserve_vtep(vtep).is_ok();
        if is_ours {
            self.space.forget_former(piece);
        }
        is_ours
    }

    /// What no pool has is given to nobody: it is kept for when it is configured again, unless it
    /// was given away before, cut in another way. That is rare enough to look at all records. Where
    /// its overlay is elsewhere now the agent gets something else: it was deleted.
    fn reclaim(&mut self, overlay: &OverlayName, subnet: Subnet, ip: Ipv4Addr) -> bool {
        if !self.space.overlaps(&subnet) {
            if self.space.has(overlay, subnet.family()) {
                return false;
            }
            let served = self.agents.values().map(|agent| &agent.record);
            let aside = self.aside.values().filter_map(|aside| aside.record.as_ref());
            let overlays = served.chain(aside).flat_map(|record| &record.overlays);
            return !overlays.flat_map(OverlayRecord::subnets).any(|had| had.overlaps(&subnet));
        }
        let piece = Piece::Subnet(subnet);
        let is_ours =
            self.space.was_had_by(piece, ip) && self.space.reserve(overlay, subnet).is_ok();
        if is_ours {
            self.space.forget_former(piece);
        }
        is_ours
    }

    /// Takes note of what the agent wants and allocates what it lacks of it.
    pub(super) fn complete(
        &mut self,
        ip: Ipv4Addr,
        record: &mut AgentRecord,
        options: &AgentOptions,
        moment: Moment,
        outcome: &mut Outcome,
    ) {
        record.allocate_subnet = options.allocate_subnet;
        record.mesos_bridge = options.mesos_bridge;
        record.docker_bridge = options.docker_bridge;
        record.underlay = options.underlay;
        if record.vtep_ip6.is_none() && self.space.has_vteps6() {
            match self.space.allocate_vtep6() {
                Some(vtep6) => {
                    self.taken(vtep6, Piece::Vtep(vtep6.item.into()), moment, outcome);
                    record.vtep_ip6 = Some(vtep6.item);
                }
                None => {
                    self.lacks(Supply::Vtep6, ip);
                    outcome.notices.push(Notice::NoVtep6);
                }
            }
        }
        if !options.allocate_subnet {
            return;
        }
        let network = Arc::clone(&self.network);
        for overlay in network.overlays.iter().filter(|overlay| overlay.enabled) {
            if !self.unserved.contains_key(&(ip, overlay.name.clone())) {
                self.complete_overlay(ip, record, overlay, moment, outcome);
            }
        }
    }

    fn complete_overlay(
        &mut self,
        ip: Ipv4Addr,
        record: &mut AgentRecord,
        overlay: &Overlay,
        moment: Moment,
        outcome: &mut Outcome,
    ) {
        let name = &overlay.name;
        let position = record.overlays.iter().position(|had| had.name == *name);
        let had = position.map(|position| &record.overlays[position]);
        let lacks_v4 = overlay.range.is_some() && had.is_none_or(|had| had.subnet.is_none());
        let lacks_v6 = overlay.range6.is_some() && had.is_none_or(|had| had.subnet6.is_none());
        if !lacks_v4 && !lacks_v6 {
            return;
        }
        let Subnets { v4, v6 } = match self.space.allocate_subnets(name, lacks_v4, lacks_v6) {
            Ok(subnets) => subnets,
            Err(family) => {
                self.lacks(Supply::Overlay(name.clone(), family), ip);
                outcome.notices.push(Notice::NoSubnet(name.clone(), family));
                return;
            }
        };
        for subnet in v4.into_iter().chain(v6) {
            self.taken(subnet, Piece::Subnet(subnet.item), moment, outcome);
        }
        let position = position.unwrap_or_else(|| {
            let name = name.clone();
            record.overlays.push(OverlayRecord { name, subnet: None, subnet6: None });
            record.overlays.len() - 1
        });
        let had = &mut record.overlays[position];
        had.subnet = had.subnet.or_else(|| v4.map(|subnet| subnet.item));
        had.subnet6 = had.subnet6.or_else(|| v6.map(|subnet| subnet.item));
    }

    fn lacks(&mut self, supply: Supply, ip: Ipv4Addr) {
        self.lacking.entry(supply).or_default().insert(ip);
    }

    pub(super) fn lacks_nothing(&mut self, ip: Ipv4Addr) {
        self.lacking.retain(|_, agents| {
            agents.remove(&ip);
            !agents.is_empty()
        });
    }

    /// A piece was allocated: whoever had it before will not get it back.
    fn taken<T>(
        &mut self,
        allocated: Allocated<T>,
        piece: Piece,
        moment: Moment,
        outcome: &mut Outcome,
    ) {
        if allocated.is_reused_early(moment.unix, moment.reuse_after)
            && !Mutation::EarlyReuseIsNotCounted.is_on()
        {
            outcome.notices.push(Notice::EarlyReuse(match piece {
                Piece::Vtep(ip) => format!("VTEP address {ip}"),
                Piece::Subnet(subnet) => format!("subnet {subnet}"),
            }));
        }
        let Some(former) = self.space.forget_former(piece) else {
            return;
        };
        let Some(released) = self.released.get_mut(&former) else {
            return;
        };
        match piece {
            Piece::Vtep(ip) => {
                released.vtep_ip = released.vtep_ip.filter(|vtep| ip != *vtep);
                released.vtep_ip6 = released.vtep_ip6.filter(|vtep| ip != *vtep);
            }
            Piece::Subnet(subnet) => {
                for overlay in &mut released.overlays {
                    overlay.subnet = overlay.subnet.filter(|had| *had != subnet);
                    overlay.subnet6 = overlay.subnet6.filter(|had| *had != subnet);
                }
                released.overlays.retain(|had| !had.is_empty());
            }
        }
        let key = Key::Agent(former);
        outcome.changes.push(if released.is_empty() {
            self.released.remove(&former);
            Change::Delete(key)
        } else {
            Change::Put(key, encode_record(&Record::Released(released.clone())))
        });
    }
}
