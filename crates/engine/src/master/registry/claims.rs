//! Decides which agent owns an address that several records have, for addresses outside of all
//! pools.
//!
//! Imported records may have an address in common. The agent with the lowest IP owns it, even if
//! the record of that agent is quarantined. So the choice depends only on the stored records, and
//! every master that loads them makes the same choice. For an address of a pool, the pool decides.
//! The addresses here belong to overlays that are currently not configured.

use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;

use overlay_types::addr::Subnet;
use rangemap::RangeInclusiveMap;

/// Whether an agent is the first, by IP, whose record has an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ownership {
    /// The agent owns the address.
    First,
    /// Another agent owns the address, or a later configuration decides.
    Unknown,
}

/// The first agent of each address, while records are read in the order of their agents.
#[derive(Debug, Default)]
pub(super) struct Claims {
    v4: RangeInclusiveMap<u128, Ipv4Addr>,
    v6: RangeInclusiveMap<u128, Ipv4Addr>,
}

const fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_bits() as u128,
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

impl Claims {
    /// Claims an address for the agent at `ip`.
    pub(super) fn claim_address(&mut self, ip: Ipv4Addr, address: IpAddr) -> Ownership {
        self.claim(ip, address.is_ipv4(), bits(address)..=bits(address))
    }

    /// Claims the addresses of a subnet for the agent at `ip`. If another agent has claimed some of
    /// them, the agent at `ip` claims the rest, so that no later agent becomes the first.
    pub(super) fn claim_subnet(&mut self, ip: Ipv4Addr, subnet: Subnet) -> Ownership {
        let range = bits(subnet.first())..=bits(subnet.last());
        self.claim(ip, subnet.first().is_ipv4(), range)
    }

    fn claim(&mut self, ip: Ipv4Addr, is_ipv4: bool, range: RangeInclusive<u128>) -> Ownership {
        let claims = if is_ipv4 { &mut self.v4 } else { &mut self.v6 };
        let is_first = claims.overlapping(&range).all(|(_, holder)| *holder == ip);
        let gaps: Vec<RangeInclusive<u128>> = claims.gaps(&range).collect();
        gaps.into_iter().for_each(|gap| claims.insert(gap, ip));
        if is_first { Ownership::First } else { Ownership::Unknown }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lowest_agent_owns_claimed_address() {
        let agent = |number| Ipv4Addr::new(10, 0, 0, number);
        let subnet = |text: &str| text.parse::<Subnet>().unwrap();
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let (first, unknown) = (Ownership::First, Ownership::Unknown);
        let mut claims = Claims::default();
        assert_eq!(claims.claim_subnet(agent(1), subnet("20.0.0.0/25")), first);
        assert_eq!(claims.claim_subnet(agent(1), subnet("20.0.0.0/26")), first, "its own");
        assert_eq!(claims.claim_subnet(agent(2), subnet("20.0.0.0/24")), unknown);
        // Agent 2 has claimed the other half, although agent 2 does not own the whole subnet.
        assert_eq!(claims.claim_subnet(agent(3), subnet("20.0.0.128/25")), unknown);
        assert_eq!(claims.claim_subnet(agent(3), subnet("20.0.1.0/24")), first);
        assert_eq!(claims.claim_address(agent(4), address("20.0.1.255")), unknown);
        assert_eq!(claims.claim_address(agent(4), address("::1400:0")), first, "another family");
        let whole = subnet("::/0");
        assert_eq!(claims.claim_subnet(agent(5), whole), unknown);
        assert_eq!(claims.claim_address(agent(6), whole.last()), unknown);
    }
}
