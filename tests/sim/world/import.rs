//! The records that the store has before the first load, as after an import. Some of them conflict.

use std::net::IpAddr;

use overlay_store::Change;
use overlay_types::addr::{Mtu, Subnet};
use overlay_types::container_network::{CniNetwork, ContainerNetwork, DockerNetwork};
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
        self.leave_networks(&network);
        self.storage.import(&changes);
        self.monitor.import(&changes).expect("an import violates no invariant");
    }

    /// Leaves container networks on the hosts, as after the restore of an old or edited state: other
    /// agents have or get their subnets.
    fn leave_networks(&mut self, network: &Network) {
        for agent in 0..self.agents.len() {
            for overlay in &network.overlays {
                let number = self.chance.index(self.agents.len()) as u128;
                let subnet = overlay.range.and_then(|range| range.subnet.nth(range.prefix, number));
                let halves = subnet.filter(|_| self.chance.is(0.7)).and_then(|it| it.halves());
                let Some((lower, upper)) = halves else { continue };
                let bridge = |prefix| format!("{prefix}-{}", overlay.name).parse();
                let (name, mtu) = (overlay.name.clone(), Mtu::OVERLAY_DEFAULT);
                let host = &mut self.agents[agent].host;
                host.leave(ContainerNetwork::Cni(CniNetwork {
                    name: name.clone(),
                    bridge: bridge('m').expect("it is a device name"),
                    subnet: lower,
                    subnet6: None,
                    docker_subnets: Vec::new(),
                    mtu,
                }));
                host.leave(ContainerNetwork::Docker(DockerNetwork {
                    name,
                    bridge: bridge('d').expect("it is a device name"),
                    subnet: Some(upper),
                    subnet6: None,
                    mtu,
                }));
            }
        }
    }

    /// Returns the record of an agent. Some of its addresses belong to an agent with a lower IP. Such
    /// a VTEP address leads to a refusal, so it is more frequent.
    fn imported_record(&mut self, network: &Network, agent: usize) -> Option<AgentRecord> {
        let mut number = |share: f64| {
            let is_contested = agent > 0 && self.chance.is(share);
            (if is_contested { self.chance.index(agent) } else { agent }) as u128
        };
        let IpAddr::V4(vtep_ip) = host(&network.vtep_subnet, number(0.5))? else { return None };
        let vtep_ip6 = network.vtep_subnet6.and_then(|subnet| host(&subnet, number(0.3)));
        let subnet = |range: AddressRange, number| range.subnet.nth(range.prefix, number);
        let overlays = network.overlays.iter().map(|overlay| OverlayRecord {
            name: overlay.name.clone(),
            subnet: overlay.range.and_then(|range| subnet(range, number(0.3))),
            subnet6: overlay.range6.and_then(|range| subnet(range, number(0.3))),
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
            direct_mac: None,
            authenticated: None,
        })
    }
}
