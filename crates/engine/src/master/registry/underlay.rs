//! The underlay addresses of the agents, which are the endpoints of the tunnels. Two agents must
//! not have the same address, or packets for one agent would go to the other agent. The first agent
//! with an address keeps it, and the registration of a second agent is refused.
//!
//! Stored or imported records may still conflict. Then the agent with the lowest IP owns the
//! address, and the other agents are not sent to peers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use overlay_types::addr::{Subnet, special_address};
use overlay_types::protocol::Network;
use overlay_types::state::Version;

use super::Registry;

/// The most refused registrations that are kept. Every host can send one, and a host with many
/// addresses can send many.
const REFUSED_MAX: usize = 1000;

/// The agents by their underlay addresses.
#[derive(Debug, Clone, Default)]
pub(super) struct Underlays {
    /// The underlay addresses of all records, including quarantined records. The agent with the
    /// lowest IP owns an address.
    claims: BTreeSet<(Ipv6Addr, Ipv4Addr)>,
    /// The addresses of records whose agents cannot exist. Every other claim precedes them.
    reserved: BTreeSet<(Ipv6Addr, Ipv4Addr)>,
    /// The active agents that cannot have the address of their record.
    unserved: BTreeSet<Ipv4Addr>,
    /// The agents whose IPv4 address lies inside of an overlay or the VTEP subnet. They are served:
    /// their hosts refuse only the overlay that contains their own address.
    inside: BTreeSet<Ipv4Addr>,
    /// The agents whose last registration was refused, and the address that they sent.
    refused: BTreeMap<Ipv4Addr, Option<Ipv6Addr>>,
}

/// Why an agent cannot have an underlay address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(in crate::master) enum UnderlayFault {
    /// The address is not the address of a single host.
    #[error(
        "its underlay address {address} is {kind} address: set 'underlay' of the agent to an \
         address of its host"
    )]
    NoHost {
        /// The address.
        address: Ipv6Addr,
        /// The kind of the address.
        kind: &'static str,
    },
    /// Another agent has the address.
    #[error(
        "its underlay address {address} belongs to agent {holder}: set another 'underlay' on one of \
         the two agents, or delete agent {holder} if it is gone"
    )]
    Taken {
        /// The address.
        address: Ipv6Addr,
        /// The other agent.
        holder: Ipv4Addr,
    },
    /// Packets to the address would go through the tunnels themselves.
    #[error(
        "its underlay address {address} lies inside of {subnet} of {whose}, which leads into the \
         tunnels: set another 'underlay' of the agent, or another subnet"
    )]
    Inside {
        /// The address.
        address: Ipv6Addr,
        /// The subnet.
        subnet: Subnet,
        /// The overlay, or the key of the VTEP subnet.
        whose: String,
    },
}

impl Underlays {
    fn first(set: &BTreeSet<(Ipv6Addr, Ipv4Addr)>, address: Ipv6Addr) -> Option<Ipv4Addr> {
        Self::claimants(set, address).next()
    }

    fn claimants(
        set: &BTreeSet<(Ipv6Addr, Ipv4Addr)>,
        address: Ipv6Addr,
    ) -> impl Iterator<Item = Ipv4Addr> {
        let of_address = (address, Ipv4Addr::UNSPECIFIED)..=(address, Ipv4Addr::BROADCAST);
        set.range(of_address).map(|(_, ip)| *ip)
    }

    /// Returns the agent that owns `address`, unless it is the agent at `ip`.
    fn other_holder(&self, ip: Ipv4Addr, address: Ipv6Addr) -> Option<Ipv4Addr> {
        let holder = Self::first(&self.claims, address);
        let holder = holder.or_else(|| Self::first(&self.reserved, address));
        holder.filter(|holder| *holder != ip)
    }

    /// Returns whether the agent is not sent to its peers.
    pub(super) fn is_unserved(&self, ip: Ipv4Addr) -> bool {
        self.unserved.contains(&ip)
    }

    pub(super) fn has_unserved(&self) -> bool {
        !self.unserved.is_empty()
    }

    /// Returns whether there are problems that leave every agent of the registry served.
    pub(super) fn has_problems(&self) -> bool {
        !self.refused.is_empty() || !self.inside.is_empty()
    }

    /// Reserves the address of a quarantined agent.
    pub(super) fn reserve(&mut self, ip: Ipv4Addr, address: Option<Ipv6Addr>, is_possible: bool) {
        let addresses = if is_possible { &mut self.claims } else { &mut self.reserved };
        addresses.extend(address.map(|address| (address, ip)));
    }

    /// Removes the address of a quarantined agent that was released.
    pub(super) fn unreserve(&mut self, ip: Ipv4Addr, address: Option<Ipv6Addr>) {
        if let Some(address) = address {
            self.claims.remove(&(address, ip));
            self.reserved.remove(&(address, ip));
        }
    }

    /// Records a refused registration.
    fn refuse(&mut self, ip: Ipv4Addr, address: Option<Ipv6Addr>) {
        if self.refused.len() < REFUSED_MAX || self.refused.contains_key(&ip) {
            self.refused.insert(ip, address);
        }
    }
}

impl Registry {
    /// Checks the underlay address of a registration, and records a refused registration.
    ///
    /// # Errors
    /// Returns why the agent cannot have the address.
    pub(super) fn check_registration(
        &mut self,
        ip: Ipv4Addr,
        address: Option<Ipv6Addr>,
    ) -> Result<(), UnderlayFault> {
        let Some(fault) = self.underlay_fault(ip, address) else {
            self.underlays.refused.remove(&ip);
            return Ok(());
        };
        // The conflict of a record is reported as a problem already.
        let is_of_record = self.underlays.is_unserved(ip)
            && self.agents.active(ip).is_some_and(|agent| agent.record.underlay == address);
        if is_of_record {
            self.underlays.refused.remove(&ip);
        } else {
            self.underlays.refuse(ip, address);
        }
        Err(fault)
    }

    /// Returns why the agent cannot have `address`, or `None` if it can.
    fn underlay_fault(&self, ip: Ipv4Addr, address: Option<Ipv6Addr>) -> Option<UnderlayFault> {
        let address = address?;
        if let Some(kind) = special_address(address.into()) {
            return Some(UnderlayFault::NoHost { address, kind });
        }
        let taken = |holder| UnderlayFault::Taken { address, holder };
        let holder = self.underlays.other_holder(ip, address);
        holder.map(taken).or_else(|| {
            let (subnet, whose) = inside(&self.network, address.into())?;
            Some(UnderlayFault::Inside { address, subnet, whose })
        })
    }

    /// Returns why the agent cannot have the address of its record, or `None` if it can.
    fn record_fault(&self, ip: Ipv4Addr) -> Option<UnderlayFault> {
        self.underlay_fault(ip, self.agents.active(ip)?.record.underlay)
    }

    /// Notes that the underlay address in the agent's record is `after` instead of `before`, in
    /// `version`. To be called when the agent is inserted, changed, or removed.
    pub(super) fn update_underlay_claims(
        &mut self,
        ip: Ipv4Addr,
        before: Option<Ipv6Addr>,
        after: Option<Ipv6Addr>,
        version: Version,
    ) {
        if before != after {
            if let Some(before) = before {
                self.underlays.claims.remove(&(before, ip));
            }
            self.underlays.claims.extend(after.map(|after| (after, ip)));
            for address in before.into_iter().chain(after) {
                // The agent that owns the address now, and the previous owner, if any.
                let claimants = Underlays::claimants(&self.underlays.claims, address);
                let concerned: Vec<Ipv4Addr> = claimants.take(2).collect();
                concerned.into_iter().for_each(|agent| self.update_underlay_status(agent, version));
            }
        }
        self.update_underlay_status(ip, version);
        if before.is_some_and(|before| Some(before) != after) {
            self.remove_resolved_refusals();
        }
    }

    fn update_underlay_status(&mut self, ip: Ipv4Addr, version: Version) {
        let is_inside =
            self.agents.is_active(ip) && inside(&self.network, IpAddr::V4(ip)).is_some();
        if is_inside {
            self.underlays.inside.insert(ip);
        } else {
            self.underlays.inside.remove(&ip);
        }
        let is_unserved = self.record_fault(ip).is_some();
        let unserved = &mut self.underlays.unserved;
        let has_changed = if is_unserved { unserved.insert(ip) } else { unserved.remove(&ip) };
        if has_changed {
            self.changed.insert(ip, version);
            // The agent owns the address only when the changed record of the other agent is stored.
            if !is_unserved && let Some(valid_from) = self.agents.valid_from_mut(ip) {
                valid_from.underlay = valid_from.underlay.max(version);
            }
        }
    }

    /// Carries over the refused registrations that would still be refused.
    pub(super) fn carry_over_refusals(&mut self, before: &Self) {
        self.underlays.refused.clone_from(&before.underlays.refused);
        self.remove_resolved_refusals();
    }

    /// Removes the refused registration of the agent.
    pub(in crate::master) fn forget_refusal(&mut self, ip: Ipv4Addr) {
        self.underlays.refused.remove(&ip);
    }

    /// Removes the refused registrations that would be accepted now. Their agents register again.
    pub(super) fn remove_resolved_refusals(&mut self) {
        let mut refused = std::mem::take(&mut self.underlays.refused);
        refused.retain(|ip, address| self.underlay_fault(*ip, *address).is_some());
        self.underlays.refused = refused;
    }

    /// Returns the agents that are not sent to their peers, with a sentence for each.
    pub(super) fn unserved_underlays(&self) -> impl Iterator<Item = (Ipv4Addr, String)> {
        self.underlays.unserved.iter().filter_map(|ip| {
            let fault = self.record_fault(*ip)?;
            Some((*ip, format!("agent {ip} is not served to its peers: {fault}")))
        })
    }

    /// Returns a sentence for each overlay and VTEP subnet that contains IPs of agents.
    pub(in crate::master) fn subnets_containing_agents(&self) -> Vec<String> {
        let mut spaces: BTreeMap<(String, Subnet), Vec<Ipv4Addr>> = BTreeMap::new();
        for ip in &self.underlays.inside {
            if let Some((subnet, whose)) = inside(&self.network, IpAddr::V4(*ip)) {
                spaces.entry((whose, subnet)).or_default().push(*ip);
            }
        }
        let sentence = |((whose, subnet), agents): ((String, Subnet), Vec<Ipv4Addr>)| {
            let more = match agents.len().saturating_sub(1) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            let first = agents.first().copied().unwrap_or(Ipv4Addr::UNSPECIFIED);
            format!(
                "{subnet} of {whose} contains agent {first}{more}: these hosts refuse it, and \
                 other hosts do not reach them: set another subnet"
            )
        };
        spaces.into_iter().map(sentence).collect()
    }

    /// Returns a sentence for each agent whose last registration was refused.
    pub(super) fn refused_underlays(&self) -> impl Iterator<Item = String> {
        self.underlays.refused.iter().filter_map(|(ip, address)| {
            let fault = self.underlay_fault(*ip, *address)?;
            Some(format!("refused the registration of agent {ip}: {fault}"))
        })
    }
}

/// Returns the VTEP subnet or the enabled overlay that contains `address`, and its name.
fn inside(network: &Network, address: IpAddr) -> Option<(Subnet, String)> {
    let vteps =
        [("vtep_subnet", Some(network.vtep_subnet)), ("vtep_subnet6", network.vtep_subnet6)];
    let vteps = vteps.into_iter().find_map(|(key, subnet)| {
        subnet.filter(|subnet| subnet.contains(address)).map(|subnet| (subnet, key.to_owned()))
    });
    vteps.or_else(|| {
        network.overlays.iter().filter(|overlay| overlay.enabled).find_map(|overlay| {
            let mut ranges = overlay.range.iter().chain(&overlay.range6);
            let range = ranges.find(|range| range.subnet.contains(address))?;
            Some((range.subnet, format!("overlay {}", overlay.name)))
        })
    })
}
