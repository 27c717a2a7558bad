//! From what the store held to a registry. Nothing in the store can stop the master: what is
//! unreadable or contradicts the configuration or another record is set aside and reported, and the
//! rest is served.

use std::net::Ipv4Addr;
use std::sync::Arc;

use super::registry::{Aside, Registry, Unserved};
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
        let mut refused = Vec::new();
        let mut released = Vec::new();
        for (Key::Agent(ip), bytes) in records {
            match decode_record(&bytes) {
                Ok(Record::Agent(record)) => {
                    if let Err(reason) = registry.restore(ip, &record, version) {
                        refused.push((ip, reason, record));
                    }
                }
                Ok(Record::Released(record)) => released.push((ip, record)),
                Err(error) => {
                    let reason = format!("its record is unreadable: {error}");
                    registry.set_aside(ip, Aside { reason, held: nothing() });
                }
            }
        }
        // After those who are served: an agent that is not keeps what does not contradict them,
        // since its containers may be running.
        for (ip, reason, AgentRecord { vtep_ip, vtep_ip6, overlays, .. }) in refused {
            let had = ReleasedRecord { vtep_ip: Some(vtep_ip), vtep_ip6, overlays, ..nothing() };
            let held = registry.reserve_what_is_free(had);
            registry.set_aside(ip, Aside { reason, held });
        }
        // After all of them: what a deleted agent had is free only if nobody has it.
        for (ip, record) in released {
            registry.restore_released(ip, record);
        }
        registry
    }

    /// Puts an agent in, and says why if its VTEP address cannot be its own: without one it cannot
    /// be served. Nothing has changed then.
    fn restore(
        &mut self,
        ip: Ipv4Addr,
        record: &AgentRecord,
        version: Version,
    ) -> Result<(), String> {
        self.space.reserve_vtep(record.vtep_ip.into())?;
        let mut record = record.clone();
        if let Some(vtep6) = record.vtep_ip6
            && self.space.has_vteps6()
            && let Err(reason) = self.space.reserve_vtep(vtep6.into())
        {
            log::error!("agent {ip} will get another IPv6 VTEP address: {reason}");
            record.vtep_ip6 = None;
        }
        for overlay in &record.overlays {
            if let Err(unserved) = self.restore_overlay(overlay) {
                let reason = &unserved.reason;
                log::warn!("agent {ip} is not served its share of an overlay: {reason}");
                self.unserved.insert((ip, overlay.name.clone()), unserved);
            }
        }
        self.insert(ip, record, version);
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
                *piece = None;
                refusal.get_or_insert(reason);
            }
        }
        refusal.map_or(Ok(()), |reason| Err(Unserved { reason, held }))
    }

    fn restore_released(&mut self, ip: Ipv4Addr, record: ReleasedRecord) {
        let record = self.reserve_what_is_free(record);
        self.free(ip, &record);
        self.released.insert(ip, record);
    }

    /// Takes of `record` what nobody has, and returns what that is.
    fn reserve_what_is_free(&mut self, mut record: ReleasedRecord) -> ReleasedRecord {
        let space = &mut self.space;
        record.vtep_ip = record.vtep_ip.filter(|&vtep| space.reserve_vtep(vtep.into()).is_ok());
        record.vtep_ip6 = record.vtep_ip6.filter(|&vtep| space.reserve_vtep(vtep.into()).is_ok());
        for OverlayRecord { name, subnet, subnet6 } in &mut record.overlays {
            *subnet = subnet.filter(|&subnet| space.reserve(name, subnet).is_ok());
            *subnet6 = subnet6.filter(|&subnet| space.reserve(name, subnet).is_ok());
        }
        record.overlays.retain(|had| !had.is_empty());
        record
    }

    fn set_aside(&mut self, ip: Ipv4Addr, aside: Aside) {
        log::error!("agent {ip} is not served: {}", aside.reason);
        self.aside.insert(ip, aside);
    }
}

/// No address at all.
const fn nothing() -> ReleasedRecord {
    ReleasedRecord { at: 0, vtep_ip: None, vtep_ip6: None, overlays: Vec::new() }
}
