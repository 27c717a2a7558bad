//! What one agent gets.

use std::fmt::Display;

use serde::Serialize;

use crate::addr::{Family, InterfaceAddress, Mac, Subnet};
use crate::protocol::{Assignment, Network, Overlay};

/// The share of one agent, as it is printed. Names are those of the master's state.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Share {
    /// In the order of registration, counted from 1.
    pub(super) agent: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) vtep_ip: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) vtep_ip6: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) vtep_mac: Option<String>,
    pub(super) overlays: Vec<OverlayShare>,
}

/// The share of one overlay.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct OverlayShare {
    pub(super) name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) subnet: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) subnet6: Option<String>,
    pub(super) mesos_bridge: Half,
    pub(super) docker_bridge: Half,
}

/// The half of one containerizer.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Half {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ip: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ip6: Option<String>,
}

impl Share {
    /// What the rule gives the agent with this number.
    pub(super) fn planned(network: &Network, agent: u32) -> Self {
        let index = u128::from(agent) - 1;
        // The first address is the network's own, in IPv4 the last one is for broadcasts.
        let host = |subnet: &Subnet| {
            let address = subnet.address_at(index + 1)?;
            let is_host = subnet.family() == Family::V6 || address != subnet.last();
            InterfaceAddress::within(subnet, address).filter(|_| is_host)
        };
        let Some(vtep) = host(&network.vtep_subnet) else {
            return Self {
                agent,
                vtep_ip: None,
                vtep_ip6: None,
                vtep_mac: None,
                overlays: Vec::new(),
            };
        };
        let mac = match vtep.address() {
            std::net::IpAddr::V4(ip) => Some(Mac::of_vtep(network.vtep_mac_oui, ip)),
            std::net::IpAddr::V6(_) => None,
        };
        let overlays = network.overlays.iter().filter(|overlay| overlay.enabled);
        Self {
            agent,
            vtep_ip: text(Some(vtep)),
            vtep_ip6: text(network.vtep_subnet6.as_ref().and_then(host)),
            vtep_mac: text(mac),
            overlays: overlays
                .filter_map(|overlay| OverlayShare::planned(overlay, index))
                .collect(),
        }
    }

    /// What the master tells the agent. One that gets no overlay is not told its VTEP either.
    pub(super) fn assigned(agent: u32, assignments: &[Assignment]) -> Self {
        let vtep = assignments.first().map(|assignment| &assignment.vtep);
        Self {
            agent,
            vtep_ip: text(vtep.map(|vtep| vtep.ip)),
            vtep_ip6: text(vtep.and_then(|vtep| vtep.ip6)),
            vtep_mac: text(vtep.map(|vtep| vtep.mac)),
            overlays: assignments.iter().map(OverlayShare::assigned).collect(),
        }
    }
}

impl OverlayShare {
    /// All families of the overlay or nothing.
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
            mesos_bridge: Half::of(halves.map(|(it, _)| it), halves6.map(|(it, _)| it)),
            docker_bridge: Half::of(halves.map(|(_, it)| it), halves6.map(|(_, it)| it)),
        })
    }

    fn assigned(assignment: &Assignment) -> Self {
        let half = |bridge: &crate::protocol::Bridge| Half::of(bridge.subnet, bridge.subnet6);
        Self {
            name: assignment.name().to_string(),
            subnet: text(assignment.subnet),
            subnet6: text(assignment.subnet6),
            mesos_bridge: assignment.mesos_bridge.as_ref().map(half).unwrap_or_default(),
            docker_bridge: assignment.docker_bridge.as_ref().map(half).unwrap_or_default(),
        }
    }
}

impl Half {
    fn of(subnet: Option<Subnet>, subnet6: Option<Subnet>) -> Self {
        Self { ip: text(subnet), ip6: text(subnet6) }
    }
}

fn text(value: Option<impl Display>) -> Option<String> {
    value.map(|value| value.to_string())
}
