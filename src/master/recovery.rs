//! From what the store held to a registry. Nothing in the store can stop the master: what is
//! unreadable or contradicts the configuration or another record is set aside and reported, and the
//! rest is served.

use std::net::Ipv4Addr;
use std::sync::Arc;

use super::registry::Registry;
use crate::protocol::{AgentRecord, Network, OverlayRecord, Record, ReleasedRecord};
use crate::store::{Key, Version};
use crate::wire::decode_record;

impl Registry {
    /// The registry of `network` with what the store held at `version`.
    pub(super) fn recover(
        network: Arc<Network>,
        version: Version,
        records: Vec<(Key, Vec<u8>)>,
    ) -> Self {
        let mut registry = Self::new(network);
        let mut released = Vec::new();
        for (Key::Agent(ip), bytes) in records {
            match decode_record(&bytes) {
                Ok(Record::Agent(record)) => registry.restore(ip, record, version),
                Ok(Record::Released(record)) => released.push((ip, record)),
                Err(error) => registry.set_aside(ip, format!("its record is unreadable: {error}")),
            }
        }
        // After those who have something: what a deleted agent had is free only if nobody has it.
        for (ip, record) in released {
            registry.restore_released(ip, record);
        }
        registry
    }

    fn restore(&mut self, ip: Ipv4Addr, mut record: AgentRecord, version: Version) {
        if let Err(reason) = self.space.reserve_vtep(record.vtep_ip.into()) {
            self.set_aside(ip, reason);
            return;
        }
        if let Some(vtep6) = record.vtep_ip6
            && self.space.has_vteps6()
            && let Err(reason) = self.space.reserve_vtep(vtep6.into())
        {
            log::error!("agent {ip} will get another IPv6 VTEP address: {reason}");
            record.vtep_ip6 = None;
        }
        for overlay in &record.overlays {
            if let Err(reason) = self.restore_overlay(overlay) {
                log::warn!("agent {ip} is not served its share of an overlay: {reason}");
                self.unserved.insert((ip, overlay.name.clone()), reason);
            }
        }
        self.insert(ip, record, version);
    }

    /// Reserves what an agent has of an overlay. An overlay or a family that is not configured is
    /// no contradiction: the record waits until it is configured again.
    fn restore_overlay(&mut self, record: &OverlayRecord) -> Result<(), String> {
        let network = Arc::clone(&self.network);
        let Some(overlay) = network.overlays.iter().find(|overlay| overlay.name == record.name)
        else {
            return Ok(());
        };
        for subnet in record.subnet.into_iter().chain(record.subnet6) {
            if overlay.range_of(subnet.family()).is_some() {
                self.space.reserve(&record.name, subnet)?;
            }
        }
        Ok(())
    }

    fn restore_released(&mut self, ip: Ipv4Addr, mut record: ReleasedRecord) {
        let space = &mut self.space;
        record.vtep_ip = record.vtep_ip.filter(|&vtep| space.reserve_vtep(vtep.into()).is_ok());
        record.vtep_ip6 = record.vtep_ip6.filter(|&vtep| space.reserve_vtep(vtep.into()).is_ok());
        for OverlayRecord { name, subnet, subnet6 } in &mut record.overlays {
            *subnet = subnet.filter(|&subnet| space.reserve(name, subnet).is_ok());
            *subnet6 = subnet6.filter(|&subnet| space.reserve(name, subnet).is_ok());
        }
        record.overlays.retain(|had| had.subnet.is_some() || had.subnet6.is_some());
        self.free(ip, &record);
        self.released.insert(ip, record);
    }

    fn set_aside(&mut self, ip: Ipv4Addr, reason: String) {
        log::error!("agent {ip} is not served: {reason}");
        self.aside.insert(ip, reason);
    }
}
