//! The capacity of a network: how many agents it serves, and how many containers each agent.

use overlay_engine::ipam::{SubnetPool, VtepPool};
use overlay_types::addr::{Family, Subnet};
use overlay_types::protocol::{AddressRange, Network, Overlay};

use super::process::pluralize;

/// An address space from which every agent gets one allocation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pool<'a> {
    /// The overlay; `None` for the VTEPs.
    pub(super) overlay: Option<&'a Overlay>,
    /// The whole address space.
    pub(super) subnet: Subnet,
    /// Prefix length of an agent's subnet; `None` for the VTEPs.
    pub(super) prefix: Option<u8>,
    /// How many agents the pool serves.
    pub(super) agents: u128,
}

impl Pool<'_> {
    /// Returns the name of the pool for operators.
    pub(super) fn name(&self) -> String {
        match self.overlay {
            Some(overlay) => overlay.name.to_string(),
            None if self.subnet.family() == Family::V6 => "vtep_subnet6".to_owned(),
            None => "vtep_subnet".to_owned(),
        }
    }
}

/// The pools of a network, without those of disabled overlays.
#[derive(Debug)]
pub(super) struct Capacity<'a> {
    /// The pools of the VTEPs first, then those of the overlays in the order of the configuration.
    pub(super) pools: Vec<Pool<'a>>,
}

impl<'a> Capacity<'a> {
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

    /// Returns how many agents get their whole allocation.
    pub(super) fn agents(&self) -> u128 {
        self.pools.iter().map(|pool| pool.agents).min().unwrap_or(0)
    }

    /// Returns the names of the pools that are exhausted after `agents` agents.
    pub(super) fn exhausted_at(&self, agents: u128) -> Vec<String> {
        let exhausted = self.pools.iter().filter(|pool| pool.agents == agents);
        let mut names: Vec<String> = exhausted.map(Pool::name).collect();
        // The two families of an overlay have one name.
        names.dedup();
        names
    }

    /// Returns how many agents get subnets of `overlay`. An agent gets subnets of all families or
    /// none.
    pub(super) fn agents_of(&self, overlay: &Overlay) -> u128 {
        let pools = self
            .pools
            .iter()
            .filter(|pool| pool.overlay.is_some_and(|candidate| candidate.name == overlay.name));
        pools.map(|pool| pool.agents).min().unwrap_or(0)
    }
}

/// Describes a network: `a network of 2 overlays, capacity for 128 agents`.
pub(super) fn describe(network: &Network) -> String {
    let overlays = pluralize(network.overlays.len() as u128, "overlay");
    let disabled = network.overlays.iter().filter(|overlay| !overlay.enabled).count();
    let agents = pluralize(Capacity::of(network).agents(), "agent");
    let disabled = match disabled {
        0 => String::new(),
        number => format!(" ({number} disabled)"),
    };
    format!("a network of {overlays}{disabled}, capacity for {agents}")
}

/// Returns how many containers of the MesosContainerizer an agent can have in `overlay`. Their
/// addresses come from the CNI plugin host-local. The plugin reserves three addresses of the
/// agent's lower half: the network address, the first address for the gateway on the bridge, and
/// the last address for broadcasts. The plugin gets no IPv6 subnet.
pub(super) fn mesos_containers(overlay: &Overlay) -> u128 {
    half(overlay.range.as_ref()).map_or(0, |addresses| addresses.saturating_sub(3))
}

/// Returns how many containers of the DockerContainerizer an agent can have in `overlay`. Docker
/// reserves the corresponding three IPv4 addresses of the upper half. IPv6 has no broadcasts, so
/// Docker reserves two: the network address, which means any router, and the first address for the
/// gateway. A dual-stack container needs an address of each family.
pub(super) fn docker_containers(overlay: &Overlay) -> u128 {
    let v4 = half(overlay.range.as_ref()).map(|addresses| addresses.saturating_sub(3));
    let v6 = half(overlay.range6.as_ref()).map(|addresses| addresses.saturating_sub(2));
    v4.into_iter().chain(v6).min().unwrap_or(0)
}

/// Returns how many addresses half of an agent's subnet has.
fn half(range: Option<&AddressRange>) -> Option<u128> {
    let range = range?;
    let (lower, _) = range.subnet.nth(range.prefix, 0)?.halves()?;
    Some(lower.count(lower.family().bits()))
}

#[cfg(test)]
mod tests {
    use overlay_config::parse_master;

    use super::*;

    fn network(overlay: &str) -> Network {
        let text = format!(
            r#"{{"vtep_subnet":"44.128.0.0/29","vtep_mac_oui":"70:B3:D5:00:00:00",
                "overlays":[{overlay}]}}"#
        );
        parse_master("f", &text).unwrap().0.network
    }

    #[test]
    fn container_counts_exclude_reserved_addresses() {
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
    fn capacity_is_that_of_smallest_pool() {
        let network = network(
            r#"{"name":"a","subnet":"10.0.0.0/16","prefix":24,"subnet6":"fd00::/64","prefix6":66},
               {"name":"b","subnet":"10.1.0.0/24","prefix":24,"enabled":false}"#,
        );
        let capacity = Capacity::of(&network);
        assert_eq!((capacity.agents(), capacity.agents_of(&network.overlays[0])), (4, 4));
        assert_eq!(capacity.exhausted_at(4), ["a"]);
        assert_eq!(capacity.exhausted_at(6), ["vtep_subnet"]);
        assert_eq!(
            describe(&network),
            "a network of 2 overlays (1 disabled), capacity for 4 agents"
        );
    }
}
