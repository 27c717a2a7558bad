//! Why the host is not as it should be: what failed, on which object, why, and what to do.

use std::io;
use std::path::{Path, PathBuf};

/// Why the host is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// A setting could not be written.
    #[error(
        "set {name} to {value}: {reason}: set it with 'sysctl -w {}={value}', or let the agent \
         write to /proc/sys",
        name.replace('/', ".")
    )]
    Write {
        /// Its name below `/proc/sys`.
        name: String,
        /// What it should be.
        value: u32,
        /// The system's answer.
        reason: String,
    },
    /// A file of ours could not be read, written or removed.
    #[error(
        "{action} {}: {reason}: let the agent write there, or set host_settings to false",
        path.display()
    )]
    File {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        reason: String,
    },
    /// A file of somebody else has the name of ours.
    #[error(
        "write {}: there is a file that is not ours, so it is left alone: rename it, or set \
         host_settings to false",
        path.display()
    )]
    Foreign {
        /// Its name.
        path: PathBuf,
    },
    /// A program that manages the network was not told of our files.
    #[error("run '{command}': {reason}: run it by hand")]
    Reload {
        /// What was to be run.
        command: String,
        /// Why it was not done.
        reason: String,
    },
    /// An agent programs this host.
    #[error(
        "{} is held by {holder}: one agent at a time programs a host: stop it, or give this one \
         another state_dir if it is in a network namespace of its own",
        path.display()
    )]
    Held {
        /// The lock.
        path: PathBuf,
        /// Who has it.
        holder: String,
    },
}

impl HostError {
    pub(super) fn file(action: &'static str, path: &Path, error: &io::Error) -> Self {
        Self::File { action, path: path.to_owned(), reason: error.to_string() }
    }
}
