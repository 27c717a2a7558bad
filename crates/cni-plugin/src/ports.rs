//! Maps ports of the host to containers.

use std::net::IpAddr;

use overlay_cni::config::NetworkConfig;
use overlay_cni::{ErrorCode, PluginError};
use overlay_linux::cni::Lease;
use overlay_linux::firewall::{self, PortMappingError};
use overlay_types::port_mapping::PortMapping;

use crate::leases;

/// Maps the ports of a container. Replaces mappings of the same address.
///
/// # Errors
/// When another container has a port, or the firewall of the host refuses.
pub(crate) fn map(
    config: &NetworkConfig,
    mappings: &[PortMapping],
    addresses: &[IpAddr],
) -> Result<(), PluginError> {
    if mappings.is_empty() {
        return Ok(());
    }
    let taken = leases::all(config)?.taken();
    // Leases of other networks are not known here, so their mappings stay.
    let is_stale =
        |address| config.ranges.iter().any(|range| range.has(address)) && !taken.contains(&address);
    firewall::map_ports(&config.bridge, mappings, addresses, &is_stale)
        .map_err(|error| failed(&error))
}

/// Removes the mappings to the addresses of leases.
///
/// # Errors
/// When the firewall of the host refuses.
pub(crate) fn unmap(leases: &[Lease]) -> Result<(), PluginError> {
    if leases.is_empty() {
        return Ok(());
    }
    let addresses = leases.iter().map(|lease| lease.address).collect();
    firewall::unmap_ports(&addresses).map_err(|error| failed(&error))
}

fn failed(error: &PortMappingError) -> PluginError {
    let details = match error {
        PortMappingError::Taken { .. } => "map another port of the host",
        PortMappingError::NoProgram => "install nftables, or iptables",
        PortMappingError::Listing(_) => "install another version of nftables",
        PortMappingError::Lock(_) => "end the process that lslocks shows for the lock",
        PortMappingError::Firewall(_) => {
            "see why root cannot change the tables of nftables or iptables on this host, then start \
             the task again"
        }
    };
    PluginError::new(ErrorCode::PortMapping, error.to_string()).with_details(details)
}
