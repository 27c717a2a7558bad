//! The allocation of one agent, as planned or as assigned by a master.

use std::fmt::Display;

use overlay_types::addr::{Family, InterfaceAddress, Mac, Subnet};
use overlay_types::protocol::{Assignment, Bridge, Network, Overlay};
use serde::Serialize;

/// The allocation of one agent, in the form that `plan` prints. The keys are those of the master's
/// state.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct AgentAllocation {
    /// The position of the agent in the order of registration, from 1 on.
    pub(super) agent: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) vtep_ip: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) vtep_ip6: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) vtep_mac: Option<String>,
    pub(super) overlays: Vec<OverlayAllocation>,
}

/// The allocation of one agent in one overlay.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct OverlayAllocation {
    pub(super) name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) subnet: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) subnet6: Option<String>,
    pub(super) mesos_bridge: BridgeSubnets,
    pub(super) docker_bridge: BridgeSubnets,
}

/// The halves of the subnets that one containerizer gets.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct BridgeSubnets {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ip: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ip6: Option<String>,
}

impl AgentAllocation {
    /// Computes the allocation of the agent with this number by the rule of the plan.
    pub(super) fn planned(network: &Network, agent: u32) -> Self {
        let index = u128::from(agent) - 1;
        // The first address is the network address; in IPv4 the last one is for broadcasts.
        let vtep_address = |subnet: &Subnet| {
            let address = subnet.address_at(index + 1)?;
            let is_host = subnet.family() == Family::V6 || address != subnet.last();
            InterfaceAddress::within(subnet, address).filter(|_| is_host)
        };
        let Some(vtep) = vtep_address(&network.vtep_subnet) else {
            return Self {
                agent,
                vtep_ip: None,
                vtep_ip6: None,
                vtep_mac: None,
                overlays: Vec::new(),
            };
        };
        let mac = match vtep.address() {
            std::net::IpAddr::V4(ip) => Some(Mac::for_vtep(network.vtep_mac_oui, ip)),
            std::net::IpAddr::V6(_) => None,
        };
        let overlays = network.overlays.iter().filter(|overlay| overlay.enabled);
        Self {
            agent,
            vtep_ip: text(Some(vtep)),
            vtep_ip6: text(network.vtep_subnet6.as_ref().and_then(vtep_address)),
            vtep_mac: text(mac),
            overlays: overlays
                .filter_map(|overlay| OverlayAllocation::planned(overlay, index))
                .collect(),
        }
    }

    /// Converts the assignment of a master. The assignment of an agent without overlays contains no
    /// VTEP.
    pub(super) fn from_assignments(agent: u32, assignments: &[Assignment]) -> Self {
        let vtep = assignments.first().map(|assignment| &assignment.vtep);
        Self {
            agent,
            vtep_ip: text(vtep.map(|vtep| vtep.ip)),
            vtep_ip6: text(vtep.and_then(|vtep| vtep.ip6)),
            vtep_mac: text(vtep.map(|vtep| vtep.mac)),
            overlays: assignments.iter().map(OverlayAllocation::from_assignment).collect(),
        }
    }
}

impl OverlayAllocation {
    /// Computes the allocation of the agent at `index`: subnets of all families, or none.
    fn planned(overlay: &Overlay, index: u128) -> Option<Self> {
        let mut subnets = [None; 2];
        for (slot, range) in subnets.iter_mut().zip([&overlay.range, &overlay.range6]) {
            if let Some(range) = range {
                *slot = Some(range.subnet.nth(range.prefix, index)?);
            }
        }
        let [subnet, subnet6] = subnets;
        let [halves, halves6] = subnets.map(|subnet| subnet.and_then(|subnet| subnet.halves()));
        Some(Self {
            name: overlay.name.to_string(),
            subnet: text(subnet),
            subnet6: text(subnet6),
            mesos_bridge: BridgeSubnets::of(
                halves.map(|(lower, _)| lower),
                halves6.map(|(lower, _)| lower),
            ),
            docker_bridge: BridgeSubnets::of(
                halves.map(|(_, upper)| upper),
                halves6.map(|(_, upper)| upper),
            ),
        })
    }

    fn from_assignment(assignment: &Assignment) -> Self {
        let half = |bridge: &Bridge| BridgeSubnets::of(bridge.subnet, bridge.subnet6);
        Self {
            name: assignment.name().to_string(),
            subnet: text(assignment.subnet),
            subnet6: text(assignment.subnet6),
            mesos_bridge: assignment.mesos_bridge.as_ref().map(half).unwrap_or_default(),
            docker_bridge: assignment.docker_bridge.as_ref().map(half).unwrap_or_default(),
        }
    }
}

impl BridgeSubnets {
    fn of(subnet: Option<Subnet>, subnet6: Option<Subnet>) -> Self {
        Self { ip: text(subnet), ip6: text(subnet6) }
    }
}

fn text(value: Option<impl Display>) -> Option<String> {
    value.map(|value| value.to_string())
}
