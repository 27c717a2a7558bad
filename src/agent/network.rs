//! The two container networks that an agent makes of its share of an overlay.

use std::fmt;

use crate::addr::{DeviceName, Mtu, OverlayName, Subnet};
use crate::protocol::{AgentOptions, Assignment, Bridge};

/// The network of the MesosContainerizer: a CNI configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CniNetwork {
    /// Name of the network and of its file.
    pub name: OverlayName,
    /// The bridge that the CNI plugin makes.
    pub bridge: DeviceName,
    /// Where containers get their addresses from. IPv4: Mesos reads CNI results of version 0.2
    /// only, and the C++ modules give its containers no IPv6 either.
    pub subnet: Subnet,
    /// MTU of the containers.
    pub mtu: Mtu,
}

/// The network of the DockerContainerizer. At least one of its subnets is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DockerNetwork {
    /// Name of the network.
    pub name: OverlayName,
    /// The bridge that Docker makes.
    pub bridge: DeviceName,
    /// Where containers get their IPv4 addresses from.
    pub subnet: Option<Subnet>,
    /// Where containers get their IPv6 addresses from.
    pub subnet6: Option<Subnet>,
    /// MTU of the containers.
    pub mtu: Mtu,
}

/// Which container network of an overlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NetworkKind {
    /// That of the MesosContainerizer.
    Cni,
    /// That of the DockerContainerizer.
    Docker,
}

impl fmt::Display for NetworkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cni => "cni network",
            Self::Docker => "docker network",
        })
    }
}

/// One container network, as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerNetwork {
    /// That of the MesosContainerizer.
    Cni(CniNetwork),
    /// That of the DockerContainerizer.
    Docker(DockerNetwork),
}

impl ContainerNetwork {
    /// Which network of its overlay it is.
    #[must_use]
    pub const fn kind(&self) -> NetworkKind {
        match self {
            Self::Cni(_) => NetworkKind::Cni,
            Self::Docker(_) => NetworkKind::Docker,
        }
    }

    /// Name of the overlay.
    #[must_use]
    pub const fn name(&self) -> &OverlayName {
        match self {
            Self::Cni(network) => &network.name,
            Self::Docker(network) => &network.name,
        }
    }

    /// The networks that `assignment` asks for of an agent with these options.
    ///
    /// # Errors
    /// When the assignment contradicts itself or the options; the sentence is for the operator.
    pub fn all_of(assignment: &Assignment, options: &AgentOptions) -> Result<Vec<Self>, String> {
        let mut networks = Vec::new();
        if options.mesos_bridge && assignment.subnet.is_some() {
            let bridge = bridge_of(assignment, assignment.mesos_bridge.as_ref(), "mesos_bridge")?;
            if let Some(subnet) = bridge.subnet {
                networks.push(Self::Cni(CniNetwork {
                    name: assignment.name().clone(),
                    bridge: bridge.name.clone(),
                    subnet,
                    mtu: options.overlay_mtu,
                }));
            }
        }
        let has_subnet = assignment.subnet.is_some() || assignment.subnet6.is_some();
        if options.docker_bridge && has_subnet {
            let bridge = bridge_of(assignment, assignment.docker_bridge.as_ref(), "docker_bridge")?;
            let subnet6 = bridge.subnet6.filter(|_| options.enable_ipv6);
            if bridge.subnet.is_some() || subnet6.is_some() {
                networks.push(Self::Docker(DockerNetwork {
                    name: assignment.name().clone(),
                    bridge: bridge.name.clone(),
                    subnet: bridge.subnet,
                    subnet6,
                    mtu: options.overlay_mtu,
                }));
            }
        }
        Ok(networks)
    }
}

fn bridge_of<'a>(
    assignment: &Assignment,
    bridge: Option<&'a Bridge>,
    key: &str,
) -> Result<&'a Bridge, String> {
    let Some(bridge) = bridge else {
        return Err(format!(
            "the master assigned no {key}, which this agent's configuration asks for: set \
             network_config.{key} to false, or delete this agent at the master and restart it, \
             so that it registers anew"
        ));
    };
    let lies_within = |half: Option<Subnet>, whole: Option<Subnet>| {
        half.is_none_or(|half| whole.is_some_and(|whole| whole.covers(&half)))
    };
    if lies_within(bridge.subnet, assignment.subnet)
        && lies_within(bridge.subnet6, assignment.subnet6)
    {
        Ok(bridge)
    } else {
        Err(format!("the master assigned a {key} outside the subnet of this agent"))
    }
}
