//! DEL: detaches a container. Everything that is missing already is no error, so DEL can be
//! repeated, also after it was killed.

use std::path::Path;

use overlay_cni::PluginError;
use overlay_cni::config::NetworkConfig;
use overlay_cni::names::PortNames;
use overlay_cni::request::Attachment;
use overlay_linux::cni::Lease;
use overlay_linux::dataplane::{ContainerNamespace, HostSide, NamespaceError};

use crate::{failure, leases, ports, removal};

/// Detaches a container: first its port mappings and its interface, then its leases. So no address
/// has two owners.
///
/// # Errors
/// When the kernel or the file system refuses.
pub(crate) fn run(
    config: &NetworkConfig,
    attachment: &Attachment,
    namespace: Option<&Path>,
) -> Result<(), PluginError> {
    let leases = leases::of_attachment(config, attachment)?;
    // Mesos passes the arguments of ADD again. Without mappings no program is started.
    if config.mesos().is_ok_and(|mesos| !mesos.port_mappings.is_empty()) {
        ports::unmap(&leases)?;
    }
    let names = PortNames::new(&config.name, attachment)?;
    let mut host = HostSide::open().map_err(|error| failure::io(&error))?;
    let is_removed = removal::remove_port(&mut host, &names.device)?;
    if let Some(namespace) = namespace.filter(|_| !is_removed && !leases.is_empty()) {
        remove_former_interface(attachment, namespace, &leases)?;
    }
    leases::release(config, &leases)
}

/// Removes the interface that bridge made, whose port has another name. The namespace may belong to
/// another container by now, so the interface must have an address of the leases.
fn remove_former_interface(
    attachment: &Attachment,
    namespace: &Path,
    leases: &[Lease],
) -> Result<(), PluginError> {
    let mut container = match ContainerNamespace::open(namespace) {
        Ok(container) => container,
        // The container has ended, and with it its interfaces. Its process may have a successor in
        // the namespace of the host.
        Err(
            NamespaceError::Missing(_)
            | NamespaceError::OfHost(_)
            | NamespaceError::NotANamespace(_),
        ) => return Ok(()),
        Err(error) => return Err(failure::of_namespace(&error)),
    };
    let interfaces = container.interfaces().map_err(|error| failure::io(&error))?;
    let is_leased = |address| leases.iter().any(|lease| lease.address == address);
    let name = attachment.interface.as_str();
    let former = interfaces.iter().find(|interface| {
        interface.name == name && interface.addresses.iter().any(|it| is_leased(it.address()))
    });
    former.map_or(Ok(()), |former| container.remove(former).map_err(|error| failure::io(&error)))
}
