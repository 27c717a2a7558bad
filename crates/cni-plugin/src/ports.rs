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
        PortMappingError::Taken { .. } => Some("map another port of the host"),
        PortMappingError::NoProgram => Some("install nftables"),
        PortMappingError::Listing(_) | PortMappingError::Firewall(_) => None,
    };
    let refused = PluginError::new(ErrorCode::PortMapping, error.to_string());
    match details {
        Some(details) => refused.with_details(details),
        None => refused,
    }
}
