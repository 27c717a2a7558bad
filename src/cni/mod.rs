//! The network of the MesosContainerizer: one CNI configuration file per overlay, in the directory
//! that the Mesos agent reads.
//!
//! Mesos parses every entry of that directory that is no directory itself, hidden and temporary
//! ones too, in no order, and the first file with a name wins. So a file is made elsewhere and
//! renamed into place, and a second file with the name of an overlay is an error, not something to
//! live with. Only files that are ours are ever replaced or removed: operators keep networks of
//! their own in the same directory.
//!
//! All calls block; they are made on a thread for blocking work.

mod configuration;
mod directory;
mod error;
mod leases;

pub use directory::{CniDirectory, Outcome, Removal};
pub use error::CniError;
pub use leases::Leases;

/// The plugins that our configurations name, besides Mesos' own.
pub const PLUGINS: [&str; 2] = [configuration::BRIDGE_PLUGIN, configuration::IPAM_PLUGIN];
/// Where distributions and the plugins' own packages put them.
pub const PLUGIN_FOLDERS: [&str; 3] = ["/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"];

#[cfg(test)]
mod tests;
