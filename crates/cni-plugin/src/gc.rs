//! GC: releases the attachments that the caller does not know.

use overlay_cni::config::NetworkConfig;
use overlay_cni::names::PortNames;
use overlay_cni::request::Attachment;
use overlay_cni::{ErrorCode, PluginError};
use overlay_linux::cni::Lease;
use overlay_linux::dataplane::HostSide;

use crate::{failure, leases, ports};

/// Removes the ports and ends the leases of attachments that are not valid any more. The lease of
/// the agent's probes stays, and so does one that names no container.
///
/// # Errors
/// When the kernel or the file system refuses.
pub(crate) fn run(config: &NetworkConfig) -> Result<(), PluginError> {
    let Some(valid) = &config.valid_attachments else {
        let message = "GC needs cni.dev/valid-attachments";
        return Err(PluginError::new(ErrorCode::InvalidConfiguration, message));
    };
    let mut host = HostSide::open().map_err(|error| failure::io(&error))?;
    let mut stale: Vec<Lease> = Vec::new();
    for lease in leases::all(config)?.leases {
        let Ok(attachment) = Attachment::new(&lease.container, &lease.interface) else { continue };
        if valid.contains(&attachment) {
            continue;
        }
        let names = PortNames::new(&config.name, &attachment)?;
        host.remove_port(&names.device).map_err(|error| failure::io(&error))?;
        stale.push(lease);
    }
    ports::unmap(&stale)?;
    leases::release(config, &stale)
}
