//! The records that the store has before the first load, as after an import. Some of them conflict.

use std::net::IpAddr;

use overlay_store::Change;
use overlay_types::addr::Subnet;
use overlay_types::protocol::{AddressRange, AgentRecord, Network, OverlayRecord, Record};
use overlay_types::state::Key;
use overlay_wire as wire;

use super::World;

/// Returns the host address with this number in a VTEP subnet.
fn host(subnet: &Subnet, number: u128) -> Option<IpAddr> {
    subnet.address_at(number + 1).filter(|address| *address != subnet.last())
}

impl World {
    /// Fills the store with records of the first agents.
    pub(super) fn import(&mut self) {
        let count = self.scenario.imported;
        if count == 0 {
            return;
        }
        self.counts.add("imported records", count as u64);
        let network = self.plan.network();
        let mut changes = Vec::new();
        for agent in 0..count {
            if let Some(record) = self.imported_record(&network, agent) {
                let bytes = wire::encode_record(&Record::Agent(record));
                changes.push(Change::Put(Key::Agent(self.agents[agent].ip), bytes));
            }
        }
        self.storage.import(&changes);
        self.monitor.import(&changes).expect("an import violates no invariant");
    }

    /// Returns the record of an agent. Some of its addresses belong to an agent with a lower IP.
    fn imported_record(&mut self, network: &Network, agent: usize) -> Option<AgentRecord> {
        let mut number = || {
            let is_contested = agent > 0 && self.chance.is(0.3);
            (if is_contested { self.chance.index(agent) } else { agent }) as u128
        };
        let IpAddr::V4(vtep_ip) = host(&network.vtep_subnet, number())? else { return None };
        let vtep_ip6 = network.vtep_subnet6.and_then(|subnet| host(&subnet, number()));
        let subnet = |range: AddressRange, number| range.subnet.nth(range.prefix, number);
        let overlays = network.overlays.iter().map(|overlay| OverlayRecord {
            name: overlay.name.clone(),
            subnet: overlay.range.and_then(|range| subnet(range, number())),
            subnet6: overlay.range6.and_then(|range| subnet(range, number())),
        });
        let overlays = overlays.filter(|overlay| !overlay.is_empty()).collect();
        let options = self.agents[agent].options;
        Some(AgentRecord {
            vtep_ip,
            vtep_ip6: vtep_ip6.and_then(|ip6| match ip6 {
                IpAddr::V4(_) => None,
                IpAddr::V6(ip6) => Some(ip6),
            }),
            overlays,
            allocate_subnet: options.allocate_subnet,
            mesos_bridge: options.mesos_bridge,
            docker_bridge: options.docker_bridge,
            // Agents of a simulation register without one, and their kernels have no such route.
            underlay: None,
        })
    }
}
