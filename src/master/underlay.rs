//! Where tunnels to the agents run. Each agent has an address of its own there, or the packets for
//! one would go to another: the first agent of an address keeps it, and the registration of a
//! second one is refused.
//!
//! Records of a store or an import may contradict that all the same. Of agents with one address the
//! lowest has it, and peers are not told of the others.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::registry::Registry;
use crate::addr::{Subnet, special_address};
use crate::protocol::Network;

/// How many agents with a refused registration are named. Every host can send one, and whoever has
/// many addresses many of them.
const REFUSED_MAX: usize = 1000;

/// Which agents have which addresses of the underlay.
#[derive(Debug, Clone, Default)]
pub(super) struct Underlays {
    /// The addresses of all agents that said one: the first agent of an address has it.
    claims: BTreeSet<(Ipv6Addr, Ipv4Addr)>,
    /// Likewise of the records that were set aside: nobody else gets them.
    reserved: BTreeSet<(Ipv6Addr, Ipv4Addr)>,
    /// The agents whose own record says an address that cannot be theirs.
    unserved: BTreeSet<Ipv4Addr>,
    /// The agents whose IPv4 address lies inside of an overlay or the VTEP subnet. They are served:
    /// a host refuses an overlay that lies over its own network, and has the others.
    inside: BTreeSet<Ipv4Addr>,
    /// The agents whose last registration was refused, and the address that they said.
    refused: BTreeMap<Ipv4Addr, Option<Ipv6Addr>>,
}

/// Why an address cannot be where tunnels to an agent run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum UnderlayFault {
    /// It is not that of a single host.
    #[error(
        "its underlay address {address} is {kind} address: set 'underlay' of the agent to an \
         address of its host"
    )]
    NoHost {
        /// The address.
        address: Ipv6Addr,
        /// What it is.
        kind: &'static str,
    },
    /// Another agent has it.
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
    /// What is sent there goes through the tunnel itself.
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

    /// The agent that has `address`, if it is another one than `ip`.
    fn other_holder(&self, ip: Ipv4Addr, address: Ipv6Addr) -> Option<Ipv4Addr> {
        let holder = Self::first(&self.claims, address);
        let holder = holder.or_else(|| Self::first(&self.reserved, address));
        holder.filter(|holder| *holder != ip)
    }

    /// Whether peers are not told of the agent at `ip`.
    pub(super) fn is_unserved(&self, ip: Ipv4Addr) -> bool {
        self.unserved.contains(&ip)
    }

    pub(super) fn has_unserved(&self) -> bool {
        !self.unserved.is_empty()
    }

    /// Whether something needs an operator that takes nothing away from an agent in the registry.
    pub(super) fn has_problems(&self) -> bool {
        !self.refused.is_empty() || !self.inside.is_empty()
    }

    /// Nobody gets `address`, which the record of the agent at `ip` has that was set aside.
    pub(super) fn reserve(&mut self, ip: Ipv4Addr, address: Option<Ipv6Addr>) {
        self.reserved.extend(address.map(|address| (address, ip)));
    }

    /// The record of the agent at `ip` that was set aside is gone.
    pub(super) fn unreserve(&mut self, ip: Ipv4Addr, address: Option<Ipv6Addr>) {
        if let Some(address) = address {
            self.reserved.remove(&(address, ip));
        }
    }

    /// Remembers a registration that was refused.
    fn refuse(&mut self, ip: Ipv4Addr, address: Option<Ipv6Addr>) {
        if self.refused.len() < REFUSED_MAX || self.refused.contains_key(&ip) {
            self.refused.insert(ip, address);
        }
    }
}

impl Registry {
    /// Checks the address that a registration of the agent at `ip` says, and remembers one that is
    /// refused.
    ///
    /// # Errors
    /// When it cannot be that agent's.
    pub(super) fn check_registration(
        &mut self,
        ip: Ipv4Addr,
        address: Option<Ipv6Addr>,
    ) -> Result<(), UnderlayFault> {
        let Some(fault) = self.underlay_fault(ip, address) else {
            self.underlays.refused.remove(&ip);
            return Ok(());
        };
        // What its record says is named as such already.
        let is_of_record = self.underlays.is_unserved(ip)
            && self.agents.get(&ip).is_some_and(|agent| agent.record.underlay == address);
        if is_of_record {
            self.underlays.refused.remove(&ip);
        } else {
            self.underlays.refuse(ip, address);
        }
        Err(fault)
    }

    /// Why the agent at `ip` cannot have its tunnels at `address`.
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

    /// Why peers cannot reach the agent at `ip` where its record says.
    fn record_fault(&self, ip: Ipv4Addr) -> Option<UnderlayFault> {
        self.underlay_fault(ip, self.agents.get(&ip)?.record.underlay)
    }

    /// The record of the agent at `ip` says `after` in the place of `before`. To be called when the
    /// agent is put in, changed, or removed.
    pub(super) fn update_underlay_claims(
        &mut self,
        ip: Ipv4Addr,
        before: Option<Ipv6Addr>,
        after: Option<Ipv6Addr>,
    ) {
        if before != after {
            if let Some(before) = before {
                self.underlays.claims.remove(&(before, ip));
            }
            self.underlays.claims.extend(after.map(|after| (after, ip)));
            for address in before.into_iter().chain(after) {
                // The one that has it, and the one that has lost it by this, if any.
                let claimants = Underlays::claimants(&self.underlays.claims, address);
                let concerned: Vec<Ipv4Addr> = claimants.take(2).collect();
                concerned.into_iter().for_each(|agent| self.update_underlay_status(agent));
            }
        }
        self.update_underlay_status(ip);
        if before.is_some_and(|before| Some(before) != after) {
            self.remove_resolved_refusals();
        }
    }

    fn update_underlay_status(&mut self, ip: Ipv4Addr) {
        let is_inside =
            self.agents.contains_key(&ip) && inside(&self.network, IpAddr::V4(ip)).is_some();
        if is_inside {
            self.underlays.inside.insert(ip);
        } else {
            self.underlays.inside.remove(&ip);
        }
        let is_unserved = self.record_fault(ip).is_some();
        let unserved = &mut self.underlays.unserved;
        let has_changed = if is_unserved { unserved.insert(ip) } else { unserved.remove(&ip) };
        if has_changed {
            self.touched.insert(ip);
        }
    }

    /// Takes over which registrations were refused before, as far as they would be still.
    pub(super) fn carry_over_refusals(&mut self, before: &Self) {
        self.underlays.refused.clone_from(&before.underlays.refused);
        self.remove_resolved_refusals();
    }

    /// Nobody asks any more for the registration of the agent at `ip`.
    pub(super) fn forget_refusal(&mut self, ip: Ipv4Addr) {
        self.underlays.refused.remove(&ip);
    }

    /// What was refused and would not be any more is no problem: the agent registers again.
    pub(super) fn remove_resolved_refusals(&mut self) {
        let mut refused = std::mem::take(&mut self.underlays.refused);
        refused.retain(|ip, address| self.underlay_fault(*ip, *address).is_some());
        self.underlays.refused = refused;
    }

    /// The agents of which peers are not told, a sentence each.
    pub(super) fn unserved_underlays(&self) -> impl Iterator<Item = (Ipv4Addr, String)> {
        self.underlays.unserved.iter().filter_map(|ip| {
            let fault = self.record_fault(*ip)?;
            Some((*ip, format!("agent {ip} is not served to its peers: {fault}")))
        })
    }

    /// The overlays and VTEP subnets in which agents have their IPv4 addresses, a sentence each.
    pub(super) fn subnets_containing_agents(&self) -> Vec<String> {
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
                "{whose} has {subnet}, in which agent {first}{more} is: hosts there refuse it, and \
                 others do not reach them: set another subnet"
            )
        };
        spaces.into_iter().map(sentence).collect()
    }

    /// The agents whose last registration was refused, a sentence each.
    pub(super) fn refused_underlays(&self) -> impl Iterator<Item = String> {
        self.underlays.refused.iter().filter_map(|(ip, address)| {
            let fault = self.underlay_fault(*ip, *address)?;
            Some(format!("refused the registration of agent {ip}: {fault}"))
        })
    }
}

/// The VTEP subnet or the enabled overlay in which `address` lies, and what it is called.
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
