//! Which agent comes first of those whose records have one address.
//!
//! A record that was imported may have an address that another record has, also in an overlay with
//! another name or in a subnet of another length. The agent with the lowest IP comes first, also
//! where its own record is quarantined: so the choice depends on nothing but the stored records,
//! and every master that reads them makes the same one.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use overlay_types::addr::{Family, Subnet};
use overlay_types::protocol::{AgentRecord, OverlayRecord};
use rangemap::RangeInclusiveMap;

use super::owners::range;

/// The first agent of each address. Records are added in the order of their agents.
#[derive(Debug, Default)]
pub(super) struct Claims {
    v4: RangeInclusiveMap<u128, Ipv4Addr>,
    v6: RangeInclusiveMap<u128, Ipv4Addr>,
    vteps6: BTreeMap<Ipv6Addr, Ipv4Addr>,
}

impl Claims {
    /// Claims the subnets and the IPv6 VTEP address of a record for the agent at `ip`. The IPv4
    /// VTEP address is not claimed: an agent is served only if its pool has the address.
    pub(super) fn claim(&mut self, ip: Ipv4Addr, record: &AgentRecord) {
        if let Some(vtep_ip6) = record.vtep_ip6 {
            self.vteps6.entry(vtep_ip6).or_insert(ip);
        }
        for subnet in record.overlays.iter().flat_map(OverlayRecord::subnets) {
            self.claim_subnet(ip, &subnet);
        }
    }

    /// Claims the addresses of a subnet. If earlier agents have claimed some of them, the agent
    /// claims the rest, so that no agent after it comes first.
    fn claim_subnet(&mut self, ip: Ipv4Addr, subnet: &Subnet) {
        let claims = match subnet.family() {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        };
        let gaps: Vec<RangeInclusive<u128>> = claims.gaps(&range(subnet)).collect();
        gaps.into_iter().for_each(|gap| claims.insert(gap, ip));
    }

    /// Returns an agent that comes before the agent at `ip` with an address of `subnet`. To be
    /// called when all records are added; the record of the agent has `subnet`.
    pub(super) fn earlier_agent(&self, ip: Ipv4Addr, subnet: &Subnet) -> Option<Ipv4Addr> {
        let claims = match subnet.family() {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        };
        // The agent has claimed what no earlier agent has, so other agents here are earlier.
        claims.overlapping(&range(subnet)).map(|(_, holder)| *holder).find(|holder| *holder != ip)
    }

    /// Returns whether the agent at `ip` comes first with this IPv6 VTEP address.
    pub(super) fn is_first_with_vtep6(&self, ip: Ipv4Addr, vtep_ip6: Ipv6Addr) -> bool {
        self.vteps6.get(&vtep_ip6) == Some(&ip)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_agent_of_an_address_precedes_later_agents() {
        let agent = |number| Ipv4Addr::new(10, 0, 0, number);
        let mut claims = Claims::default();
        let mut claim = |number, text: &str| {
            let subnet = text.parse::<Subnet>().unwrap();
            claims.claim_subnet(agent(number), &subnet);
            claims.earlier_agent(agent(number), &subnet)
        };
        assert_eq!(claim(1, "20.0.0.0/25"), None);
        assert_eq!(claim(1, "20.0.0.0/26"), None, "its own");
        assert_eq!(claim(2, "20.0.0.0/24"), Some(agent(1)));
        // The other half is that of agent 2, though it is not served.
        assert_eq!(claim(3, "20.0.0.128/25"), Some(agent(2)));
        assert_eq!(claim(3, "20.0.1.0/24"), None);
        assert_eq!(claim(4, "20.0.1.255/32"), Some(agent(3)));
        assert_eq!(claim(4, "::1400:0/128"), None, "another family");
        assert_eq!(claim(5, "::/0"), Some(agent(4)));
        assert_eq!(claim(6, "ffff::/16"), Some(agent(5)));
        // Later claims change nothing for the first agents.
        assert_eq!(claim(1, "20.0.0.0/25"), None);
        assert_eq!(claim(4, "::1400:0/128"), None);
    }

    #[test]
    fn first_agent_of_a_vtep_ip6_precedes_later_agents() {
        let agent = |number| Ipv4Addr::new(10, 0, 0, number);
        let vtep_ip6: Ipv6Addr = "fd01:a::1".parse().unwrap();
        let record = AgentRecord {
            vtep_ip: Ipv4Addr::new(44, 128, 0, 1),
            vtep_ip6: Some(vtep_ip6),
            overlays: Vec::new(),
            allocate_subnet: true,
            mesos_bridge: true,
            docker_bridge: true,
            underlay: None,
            direct_mac: None,
            authenticated: None,
        };
        let mut claims = Claims::default();
        claims.claim(agent(1), &record);
        claims.claim(agent(2), &record);
        assert!(claims.is_first_with_vtep6(agent(1), vtep_ip6));
        assert!(!claims.is_first_with_vtep6(agent(2), vtep_ip6));
    }
}
