//! Networks of the MesosContainerizer: one CNI configuration file per overlay, in the directory
//! that the Mesos agent reads.
//!
//! Mesos parses every file of that directory, including hidden and temporary ones, in no order. The
//! first file with a network's name wins. So a file is written to a staging directory and then
//! renamed, and a second file with the name of an overlay is an error. Only managed files are
//! replaced or removed: operators keep their own networks in the same directory.
//!
//! All calls block and belong on a thread for blocking work.

mod configuration;
mod directory;
mod error;
mod lease_directory;
mod leases;
mod stale_leases;

pub use directory::{CniDirectory, ManagedFiles, Outcome, Removal};
pub use error::CniError;
pub use lease_directory::{Lease, LeaseFiles};
pub use leases::{Leases, ProbeLease};
pub use stale_leases::{
    ContainerEvidence, Doubt, LeaseState, LockedLeases, StaleLeases, is_nearly_full, nearly_full,
};

/// The plugins that our configurations name by default, without the port mapper of Mesos.
pub const PLUGINS: [&str; 2] = [configuration::BRIDGE_PLUGIN, configuration::IPAM_PLUGIN];
/// The plugin that our configurations name if the operator chooses it.
pub const OVERLAY_PLUGIN: &str = configuration::OVERLAY_PLUGIN;
/// The plugin directories of distributions and of the plugins' own packages.
pub const PLUGIN_FOLDERS: [&str; 3] = ["/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"];

#[cfg(test)]
mod tests;
