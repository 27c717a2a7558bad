//! CHECK: verifies the attachment of a container.

use std::path::Path;

use overlay_cni::config::NetworkConfig;
use overlay_cni::names::PortNames;
use overlay_cni::request::Attachment;
use overlay_cni::{ErrorCode, PluginError};
use overlay_linux::dataplane::{ContainerNamespace, HostSide};
use overlay_types::addr::InterfaceAddress;

use crate::existing::{docker_result, missing_part, missing_route};
use crate::{failure, leases};

/// Verifies an attachment against the result of its ADD. Changes nothing.
///
/// # Errors
/// When a part of it is missing.
pub(crate) fn run(
    config: &NetworkConfig,
    attachment: &Attachment,
    namespace: &Path,
) -> Result<(), PluginError> {
    let Some(previous) = &config.previous else {
        let message = "CHECK needs prevResult";
        return Err(PluginError::new(ErrorCode::InvalidConfiguration, message));
    };
    let mut container =
        ContainerNamespace::open(namespace).map_err(|error| failure::of_namespace(&error))?;
    let interfaces = container.interfaces().map_err(|error| failure::io(&error))?;
    if let Some(result) = docker_result(config, attachment, namespace, &interfaces) {
        let names = result.interfaces.iter().map(|interface| interface.name.as_str());
        let mut expected = names.flat_map(|name| previous.addresses_of(name));
        let has = |address| result.addresses.iter().any(|found| found.address == address);
        return match expected.find(|address| !has(*address)) {
            None => Ok(()),
            Some(address) => Err(missing(&format!("the container does not have {address}"))),
        };
    }
    let name = attachment.interface.as_str();
    let expected: Vec<InterfaceAddress> = previous.addresses_of(name).collect();
    let leases = leases::of_attachment(config, attachment)?;
    let is_leased =
        |it: &&InterfaceAddress| leases.iter().any(|lease| lease.address == it.address());
    if let Some(address) = expected.iter().find(|address| !is_leased(address)) {
        return Err(missing(&format!("address {address} is not leased to the container")));
    }
    let names = PortNames::new(&config.name, attachment)?;
    let mut host = HostSide::open().map_err(|error| failure::io(&error))?;
    let bridge = host.bridge(&config.bridge).map_err(|error| failure::io(&error))?;
    let port = host.port(&names.device).map_err(|error| failure::io(&error))?;
    let Some(bridge) = bridge else {
        return Err(missing(&format!("bridge {} does not exist", config.bridge)));
    };
    let Some(port) = port else {
        return Err(missing(&format!("port {} does not exist", names.device)));
    };
    let interface = interfaces.iter().find(|interface| interface.name == name);
    if let Some(part) = missing_part(bridge, &port, interface, &expected) {
        return Err(missing(&part));
    }
    match missing_route(config, &mut container)? {
        None => Ok(()),
        Some(destination) => Err(missing(&format!("the container has no route to {destination}"))),
    }
}

fn missing(reason: &str) -> PluginError {
    PluginError::new(ErrorCode::UnknownContainer, reason)
}
