//! The two container networks that an agent makes of its share of an overlay.

use crate::addr::{DeviceName, Mtu, OverlayName, Subnet};

/// The network of the MesosContainerizer: a CNI configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CniNetwork {
    /// Name of the network and of its file.
    pub name: OverlayName,
    /// The bridge that the CNI plugin makes.
    pub bridge: DeviceName,
    /// Where containers get their addresses from. IPv4: Mesos reads CNI results of version 0.2 only, and
    /// the C++ modules give its containers no IPv6 either.
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
