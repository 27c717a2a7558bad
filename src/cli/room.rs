//! How many agents a network has room for, and how many containers each of them.

use super::host::counted;
use crate::addr::{Family, Subnet};
use crate::ipam::{SubnetPool, VtepPool};
use crate::protocol::{AddressRange, Network, Overlay};

/// The space of something that every agent gets one of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pool<'a> {
    /// The overlay; `None` for the VTEPs.
    pub(super) overlay: Option<&'a Overlay>,
    /// The whole space.
    pub(super) subnet: Subnet,
    /// Length of an agent's subnet, in an overlay.
    pub(super) prefix: Option<u8>,
    /// How many agents it is enough for.
    pub(super) agents: u128,
}

impl Pool<'_> {
    /// What operators call it.
    pub(super) fn name(&self) -> String {
        match self.overlay {
            Some(overlay) => overlay.name.to_string(),
            None if self.subnet.family() == Family::V6 => "vtep_subnet6".to_owned(),
            None => "vtep_subnet".to_owned(),
        }
    }
}

/// The room of a network, as far as it is enabled.
#[derive(Debug)]
pub(super) struct Room<'a> {
    /// Those of the VTEPs first, then in the order of the configuration.
    pub(super) pools: Vec<Pool<'a>>,
}

impl<'a> Room<'a> {
    pub(super) fn of(network: &'a Network) -> Self {
        let vtep = |subnet, agents| Pool { overlay: None, subnet, prefix: None, agents };
        let mut pools = vec![vtep(
            network.vtep_subnet,
            VtepPool::<std::net::Ipv4Addr>::new(network.vtep_subnet).capacity(),
        )];
        pools.extend(
            network
                .vtep_subnet6
                .map(|subnet| vtep(subnet, VtepPool::<std::net::Ipv6Addr>::new(subnet).capacity())),
        );
        for overlay in network.overlays.iter().filter(|overlay| overlay.enabled) {
            for range in overlay.range.into_iter().chain(overlay.range6) {
                let AddressRange { subnet, prefix } = range;
                let agents = SubnetPool::new(range).capacity();
                let overlay = Some(overlay);
                pools.push(Pool { overlay, subnet, prefix: Some(prefix), agents });
            }
        }
        Self { pools }
    }

    /// How many agents get everything that they should.
    pub(super) fn agents(&self) -> u128 {
        self.pools.iter().map(|pool| pool.agents).min().unwrap_or(0)
    }

    /// The names of what runs out when `agents` agents have theirs.
    pub(super) fn exhausted_at(&self, agents: u128) -> Vec<String> {
        let exhausted = self.pools.iter().filter(|pool| pool.agents == agents);
        let mut names: Vec<String> = exhausted.map(Pool::name).collect();
        // The two families of an overlay have one name.
        names.dedup();
        names
    }

    /// How many agents get a subnet of `overlay`: in both families or none.
    pub(super) fn agents_of(&self, overlay: &Overlay) -> u128 {
        let pools = self
            .pools
            .iter()
            .filter(|pool| pool.overlay.is_some_and(|candidate| candidate.name == overlay.name));
        pools.map(|pool| pool.agents).min().unwrap_or(0)
    }
}

/// `a network of 2 overlays, room for 128 agents`
pub(super) fn describe(network: &Network) -> String {
    let overlays = counted(network.overlays.len() as u128, "overlay");
    let disabled = network.overlays.iter().filter(|overlay| !overlay.enabled).count();
    let agents = counted(Room::of(network).agents(), "agent");
    let disabled = match disabled {
        0 => String::new(),
        number => format!(" ({number} disabled)"),
    };
    format!("a network of {overlays}{disabled}, room for {agents}")
}

/// How many containers of the MesosContainerizer an agent can have in `overlay`. Their addresses
/// come from the CNI plugin host-local, which keeps three of the agent's lower half: the network's
/// own, the first, which is the gateway on the bridge, and the last, which is for broadcasts. It is
/// given no IPv6.
pub(super) fn mesos_containers(overlay: &Overlay) -> u128 {
    half(overlay.range.as_ref()).map_or(0, |addresses| addresses.saturating_sub(3))
}

/// How many containers of the DockerContainerizer an agent can have in `overlay`. Docker keeps the
/// same three of the upper half in IPv4. In IPv6 there are no broadcasts, so it keeps two: the
/// network's own, which means any router, and the first, which is the gateway. A container in both
/// families needs an address of each.
pub(super) fn docker_containers(overlay: &Overlay) -> u128 {
    let v4 = half(overlay.range.as_ref()).map(|addresses| addresses.saturating_sub(3));
    let v6 = half(overlay.range6.as_ref()).map(|addresses| addresses.saturating_sub(2));
    v4.into_iter().chain(v6).min().unwrap_or(0)
}

/// How many addresses half of an agent's subnet has.
fn half(range: Option<&AddressRange>) -> Option<u128> {
    let range = range?;
    let (lower, _) = range.subnet.nth(range.prefix, 0)?.halves()?;
    Some(lower.count(lower.family().bits()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse_master;

    fn network(overlay: &str) -> Network {
        let text = format!(
            r#"{{"vtep_subnet":"44.128.0.0/29","vtep_mac_oui":"70:B3:D5:00:00:00",
                "overlays":[{overlay}]}}"#
        );
        parse_master("f", &text).unwrap().0.network
    }

    #[test]
    fn containers_are_what_both_containerizers_leave_of_half_a_subnet() {
        let containers = |overlay: &str| {
            let network = network(overlay);
            (mesos_containers(&network.overlays[0]), docker_containers(&network.overlays[0]))
        };
        let v4 = |prefix| format!(r#"{{"name":"a","subnet":"10.0.0.0/16","prefix":{prefix}}}"#);
        assert_eq!(containers(&v4(24)), (125, 125));
        assert_eq!(containers(&v4(29)), (1, 1));
        let v6 = |prefix| format!(r#"{{"name":"a","subnet6":"fd00::/64","prefix6":{prefix}}}"#);
        assert_eq!(containers(&v6(120)), (0, 126));
        assert_eq!(containers(&v6(127)), (0, 0));
        let dual = r#"{"name":"a","subnet":"10.0.0.0/16","prefix":24,
            "subnet6":"fd00::/64","prefix6":125}"#;
        assert_eq!(containers(dual), (125, 2));
    }

    #[test]
    fn a_network_has_room_for_as_many_agents_as_its_smallest_space() {
        let network = network(
            r#"{"name":"a","subnet":"10.0.0.0/16","prefix":24,"subnet6":"fd00::/64","prefix6":66},
               {"name":"b","subnet":"10.1.0.0/24","prefix":24,"enabled":false}"#,
        );
        let room = Room::of(&network);
        assert_eq!((room.agents(), room.agents_of(&network.overlays[0])), (4, 4));
        assert_eq!(room.exhausted_at(4), ["a"]);
        assert_eq!(room.exhausted_at(6), ["vtep_subnet"]);
        assert_eq!(describe(&network), "a network of 2 overlays (1 disabled), room for 4 agents");
    }
}
