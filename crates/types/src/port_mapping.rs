//! Ports of the host that lead to containers.

use std::fmt;

/// A port of the host that leads to a port of the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortMapping {
    /// The protocol.
    pub protocol: PortProtocol,
    /// The port of the host.
    pub host_port: u16,
    /// The port of the container.
    pub container_port: u16,
}

/// A protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PortProtocol {
    /// TCP, the default of Mesos.
    Tcp,
    /// UDP.
    Udp,
}

impl PortProtocol {
    /// Parses the name of a protocol, as nft and iptables write it.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "tcp" => Some(Self::Tcp),
            "udp" => Some(Self::Udp),
            _ => None,
        }
    }
}

impl fmt::Display for PortProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

impl fmt::Display for PortMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} to {}", self.host_port, self.protocol, self.container_port)
    }
}
