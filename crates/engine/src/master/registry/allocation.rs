//! Allocates the missing addresses of an agent, and removes them from the record of the released
//! agent that had them before.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use overlay_types::addr::{OverlayName, Subnet};
use overlay_types::mutation::Mutation;
use overlay_types::protocol::{
    Addresses, AgentOptions, AgentRecord, Overlay, OverlayRecord, Record,
};
use overlay_types::state::{Key, RecordChange};

use super::address_pools::{Address, Subnets};
use super::agents::AgentState;
use super::shortages::Pool;
use super::{ChangeContext, Notice, RegisterError, Registration, Registry, Sender};
use crate::ipam::Allocated;

impl Registry {
    /// Registers an agent with its last options. Returns `None` if the agent is not active or is
    /// refused.
    pub(in crate::master) fn register_again(
        &mut self,
        ip: Ipv4Addr,
        context: ChangeContext,
    ) -> Option<Registration> {
        let AgentRecord {
            allocate_subnet, mesos_bridge, docker_bridge, underlay, direct_mac, ..
        } = self.agents.active(ip)?.record;
        let options = AgentOptions {
            allocate_subnet,
            mesos_bridge,
            docker_bridge,
            underlay,
            direct_mac,
            // The master does not use the other options.
            ..AgentOptions::default()
        };
        self.register(ip, &options, Sender::Unchecked, context).ok()
    }

    /// Creates the record of a new or returning agent, with a VTEP. A returning agent gets the
    /// addresses back that no other agent got meanwhile.
    pub(super) fn admit(
        &mut self,
        ip: Ipv4Addr,
        options: &AgentOptions,
        context: ChangeContext,
        registration: &mut Registration,
    ) -> Result<AgentRecord, RegisterError> {
        let old = self.agents.released(ip).cloned();
        let old_vtep = old.as_ref().and_then(|old| old.vtep_ip);
        let vtep_ip = match old_vtep.filter(|&vtep| self.reclaim_vtep(vtep.into(), ip)) {
            Some(vtep) => vtep,
            None => {
                let allocated = self.pools.allocate_vtep();
                let Some(vtep) = allocated else {
                    self.shortages.add(Pool::Vtep, ip);
                    return Err(RegisterError::NoVtep(self.network.vtep_subnet));
                };
                let address = Address::Vtep(vtep.item.into());
                self.note_allocated(vtep, address, context, registration);
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
            direct_mac: options.direct_mac,
            authenticated: None,
        };
        if let Some(old) = old {
            self.agents.remove(ip);
            registration.returned = Addresses::from(old.clone());
            record.vtep_ip6 = old
                .vtep_ip6
                .filter(|&vtep6| !self.pools.has_vteps6() || self.reclaim_vtep(vtep6.into(), ip));
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
        let address = Address::Vtep(vtep);
        let is_reclaimed =
            self.pools.is_released_by(address, ip) && self.pools.reserve_vtep(vtep).is_ok();
        if is_reclaimed {
            self.pools.remove_former_agent(address);
        }
        is_reclaimed
    }

    /// Reserves the former subnet of a returning agent. Returns whether the agent keeps it.
    ///
    /// If the overlay was moved to another range, the agent gets another subnet. If no range is
    /// configured, the record keeps the subnet until the range is configured again, unless another
    /// agent got a part of it under another prefix. That case is rare, so the search through all
    /// records is acceptable.
    fn reclaim(&mut self, overlay: &OverlayName, subnet: Subnet, ip: Ipv4Addr) -> bool {
        if !self.pools.overlaps(&subnet) {
            if self.pools.has(overlay, subnet.family()) {
                return false;
            }
            let overlays = self.agents.iter_records().flat_map(|record| &record.overlays);
            return !overlays.flat_map(OverlayRecord::subnets).any(|had| had.overlaps(&subnet));
        }
        let address = Address::Subnet(subnet);
        let is_reclaimed =
            self.pools.is_released_by(address, ip) && self.pools.reserve(overlay, subnet).is_ok();
        if is_reclaimed {
            self.pools.remove_former_agent(address);
        }
        is_reclaimed
    }

    /// Puts the options of the agent into its record, and allocates the missing addresses.
    pub(super) fn complete(
        &mut self,
        ip: Ipv4Addr,
        record: &mut AgentRecord,
        options: &AgentOptions,
        context: ChangeContext,
        registration: &mut Registration,
    ) {
        record.allocate_subnet = options.allocate_subnet;
        record.mesos_bridge = options.mesos_bridge;
        record.docker_bridge = options.docker_bridge;
        record.underlay = options.underlay;
        record.direct_mac = options.direct_mac;
        if record.vtep_ip6.is_none() && self.pools.has_vteps6() {
            match self.pools.allocate_vtep6() {
                Some(vtep6) => {
                    let address = Address::Vtep(vtep6.item.into());
                    self.note_allocated(vtep6, address, context, registration);
                    record.vtep_ip6 = Some(vtep6.item);
                }
                None => {
                    self.shortages.add(Pool::Vtep6, ip);
                    registration.notices.push(Notice::NoVtep6);
                }
            }
        }
        if !options.allocate_subnet {
            return;
        }
        let network = Arc::clone(&self.network);
        for overlay in network.overlays.iter().filter(|overlay| overlay.enabled) {
            let agent = self.agents.active(ip);
            if !agent.is_some_and(|agent| agent.is_overlay_unserved(&overlay.name)) {
                self.complete_overlay(ip, record, overlay, context, registration);
            }
        }
    }

    fn complete_overlay(
        &mut self,
        ip: Ipv4Addr,
        record: &mut AgentRecord,
        overlay: &Overlay,
        context: ChangeContext,
        registration: &mut Registration,
    ) {
        let name = &overlay.name;
        let position = record.overlays.iter().position(|had| had.name == *name);
        let had = position.map(|position| &record.overlays[position]);
        let needs_v4 = overlay.range.is_some() && had.is_none_or(|had| had.subnet.is_none());
        let needs_v6 = overlay.range6.is_some() && had.is_none_or(|had| had.subnet6.is_none());
        if !needs_v4 && !needs_v6 {
            return;
        }
        let Subnets { v4, v6 } = match self.pools.allocate_subnets(name, needs_v4, needs_v6) {
            Ok(subnets) => subnets,
            Err(family) => {
                self.shortages.add(Pool::Overlay(name.clone(), family), ip);
                registration.notices.push(Notice::NoSubnet(name.clone(), family));
                return;
            }
        };
        for subnet in v4.into_iter().chain(v6) {
            self.note_allocated(subnet, Address::Subnet(subnet.item), context, registration);
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

    /// Notes an allocation: removes the address from the record of the released agent that had it.
    fn note_allocated<T>(
        &mut self,
        allocated: Allocated<T>,
        address: Address,
        context: ChangeContext,
        registration: &mut Registration,
    ) {
        if allocated.is_reused_early(context.unix, context.reuse_after)
            && !Mutation::SkipEarlyReuseCount.is_on()
        {
            registration.notices.push(Notice::EarlyReuse(match address {
                Address::Vtep(ip) => format!("VTEP address {ip}"),
                Address::Subnet(subnet) => format!("subnet {subnet}"),
            }));
        }
        let Some(former) = self.pools.remove_former_agent(address) else {
            return;
        };
        let Some(mut released) = self.agents.released(former).cloned() else {
            return;
        };
        match address {
            Address::Vtep(ip) => {
                released.vtep_ip = released.vtep_ip.filter(|vtep| ip != *vtep);
                released.vtep_ip6 = released.vtep_ip6.filter(|vtep| ip != *vtep);
            }
            Address::Subnet(subnet) => {
                for overlay in &mut released.overlays {
                    overlay.subnet = overlay.subnet.filter(|had| *had != subnet);
                    overlay.subnet6 = overlay.subnet6.filter(|had| *had != subnet);
                }
                released.overlays.retain(|had| !had.is_empty());
            }
        }
        registration.changes.push(if released.is_empty() {
            self.agents.remove(former);
            RecordChange::Delete(Key::Agent(former))
        } else {
            let change = RecordChange::PutAgent(former, Record::Released(released.clone()));
            self.agents.insert(former, AgentState::Released(released));
            change
        });
    }
}
