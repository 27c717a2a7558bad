//! Finds which addresses of an agent's host belong to other agents by now.

use std::net::Ipv4Addr;

use overlay_types::addr::Subnet;
use overlay_types::mutation::Mutation;
use overlay_types::protocol::{HeldAddresses, Reassigned};
use overlay_types::state::Version;

use super::super::gate::Gated;
use super::Registry;

impl Registry {
    /// Returns the held subnets with addresses that the durable state assigns to other agents than
    /// the agent at `ip`. Names an address only if its assignment is durable already: an agent
    /// removes the named addresses, and a commit under way may fail.
    pub(in crate::master) fn reassigned(
        &self,
        ip: Ipv4Addr,
        held: &HeldAddresses,
        durable: Version,
    ) -> Gated<Vec<Reassigned>> {
        held.subnets().iter().filter_map(|subnet| self.holder(ip, *subnet, durable)).collect()
    }

    fn holder(&self, ip: Ipv4Addr, subnet: Subnet, durable: Version) -> Option<Gated<Reassigned>> {
        // Without this check, the message would still be held back until the commit.
        let (durable, is_early) = match Mutation::NameBeforeDurable.is_on() {
            true => (Version(u64::MAX), true),
            false => (durable, false),
        };
        self.agents.owners_of(&subnet).filter(|agent| *agent != ip).find_map(|agent| {
            let mut exclusive = self.agents.active(agent)?.exclusive();
            let valid_from = exclusive
                .find(|(had, valid_from)| had.overlaps(&subnet) && *valid_from <= durable)
                .map(|(_, valid_from)| if is_early { Version(0) } else { valid_from })?;
            Some(Gated::new(Reassigned { subnet, agent }, valid_from))
        })
    }
}
