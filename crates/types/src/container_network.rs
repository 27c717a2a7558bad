//! The container networks of an assignment: a CNI network and a Docker network.

use std::fmt;

use crate::addr::{DeviceName, Mtu, OverlayName, Subnet};
use crate::protocol::{AgentOptions, Assignment, Bridge};
use crate::tunnel::ContainersMtu;

/// The network of the MesosContainerizer: a CNI configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CniNetwork {
    /// Name of the network and of its file.
    pub name: OverlayName,
    /// The bridge that the CNI plugin creates.
    pub bridge: DeviceName,
    /// The IPv4 subnet of the containers.
    pub subnet: Subnet,
    /// The IPv6 subnet of the containers. Only `mesos-overlay-cni` uses it: the plugins of the C++
    /// modules assign no IPv6 addresses.
    pub subnet6: Option<Subnet>,
    /// The subnets of the overlay's Docker network. `mesos-overlay-cni` leaves a container alone
    /// that has one of their addresses.
    pub docker_subnets: Vec<Subnet>,
    /// MTU of the containers.
    pub mtu: Mtu,
}

/// The network of the DockerContainerizer. It has at least one subnet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DockerNetwork {
    /// Name of the network.
    pub name: OverlayName,
    /// The bridge that Docker creates.
    pub bridge: DeviceName,
    /// The IPv4 subnet of the containers.
    pub subnet: Option<Subnet>,
    /// The IPv6 subnet of the containers.
    pub subnet6: Option<Subnet>,
    /// MTU of the containers.
    pub mtu: Mtu,
}

/// The kind of a container network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NetworkKind {
    /// The network of the MesosContainerizer.
    Cni,
    /// The network of the DockerContainerizer.
    Docker,
}

impl NetworkKind {
    /// All kinds.
    pub const ALL: [Self; 2] = [Self::Cni, Self::Docker];

    /// Returns the name of the kind.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cni => "cni network",
            Self::Docker => "docker network",
        }
    }
}

impl fmt::Display for NetworkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The desired state of one container network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerNetwork {
    /// The network of the MesosContainerizer.
    Cni(CniNetwork),
    /// The network of the DockerContainerizer.
    Docker(DockerNetwork),
}

/// Why an assignment cannot be turned into container networks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContainerNetworkError {
    /// The agent needs a bridge that the master did not assign.
    #[error(
        "the master assigned no {0}, which this agent's configuration requires: set \
         network_config.{0} to false, or delete this agent at the master and restart it, so that \
         it registers again"
    )]
    NoBridge(&'static str),
    /// The subnet of a bridge is outside the subnet of the agent.
    #[error("the master assigned a {0} outside the subnet of this agent")]
    BridgeOutsideSubnet(&'static str),
}

impl ContainerNetwork {
    /// Returns the kind of the network.
    #[must_use]
    pub const fn kind(&self) -> NetworkKind {
        match self {
            Self::Cni(_) => NetworkKind::Cni,
            Self::Docker(_) => NetworkKind::Docker,
        }
    }

    /// Returns the name of the overlay.
    #[must_use]
    pub const fn name(&self) -> &OverlayName {
        match self {
            Self::Cni(network) => &network.name,
            Self::Docker(network) => &network.name,
        }
    }

    /// Derives the container networks from an assignment and the options of the agent. `underlay` is
    /// the MTU of the underlay, if it is known.
    ///
    /// # Errors
    /// If the assignment conflicts with the options, or a bridge with the subnet of the agent.
    pub fn from_assignment(
        assignment: &Assignment,
        options: &AgentOptions,
        underlay: Option<Mtu>,
    ) -> Result<Vec<Self>, ContainerNetworkError> {
        let mtu = options.containers_mtu(underlay, assignment.vtep.mtu);
        let mtu = mtu.map_or_else(
            || assignment.vtep.mtu.unwrap_or(Mtu::OVERLAY_DEFAULT).min(Mtu::OVERLAY_DEFAULT),
            ContainersMtu::mtu,
        );
        let mut networks = Vec::new();
        if options.mesos_bridge && assignment.subnet.is_some() {
            let bridge =
                checked_bridge(assignment, assignment.mesos_bridge.as_ref(), "mesos_bridge")?;
            if let Some(subnet) = bridge.subnet {
                networks.push(Self::Cni(CniNetwork {
                    name: assignment.name().clone(),
                    bridge: bridge.name.clone(),
                    subnet,
                    subnet6: bridge.subnet6.filter(|_| options.enable_ipv6),
                    docker_subnets: docker_subnets(assignment, options),
                    mtu,
                }));
            }
        }
        let has_subnet = assignment.subnet.is_some() || assignment.subnet6.is_some();
        if options.docker_bridge && has_subnet {
            let bridge =
                checked_bridge(assignment, assignment.docker_bridge.as_ref(), "docker_bridge")?;
            let subnet6 = bridge.subnet6.filter(|_| options.enable_ipv6);
            if bridge.subnet.is_some() || subnet6.is_some() {
                networks.push(Self::Docker(DockerNetwork {
                    name: assignment.name().clone(),
                    bridge: bridge.name.clone(),
                    subnet: bridge.subnet,
                    subnet6,
                    mtu,
                }));
            }
        }
        Ok(networks)
    }
}

/// Returns the subnets of the Docker network, whose validity [`checked_bridge`] checks.
fn docker_subnets(assignment: &Assignment, options: &AgentOptions) -> Vec<Subnet> {
    let bridge = assignment.docker_bridge.iter().filter(|_| options.docker_bridge);
    bridge.flat_map(|bridge| bridge.subnet.into_iter().chain(bridge.subnet6)).collect()
}

/// Returns `bridge` if it is assigned and its subnets are inside those of the assignment. `key` is
/// the name of the bridge in the configuration.
fn checked_bridge<'a>(
    assignment: &Assignment,
    bridge: Option<&'a Bridge>,
    key: &'static str,
) -> Result<&'a Bridge, ContainerNetworkError> {
    let bridge = bridge.ok_or(ContainerNetworkError::NoBridge(key))?;
    let is_inside = is_within(bridge.subnet, assignment.subnet)
        && is_within(bridge.subnet6, assignment.subnet6);
    if is_inside { Ok(bridge) } else { Err(ContainerNetworkError::BridgeOutsideSubnet(key)) }
}

fn is_within(half: Option<Subnet>, whole: Option<Subnet>) -> bool {
    half.is_none_or(|half| whole.is_some_and(|whole| whole.covers(&half)))
}
