//! Errors of the host's settings. Each text says what failed, on which object, why, and what to do.

use std::io;
use std::path::{Path, PathBuf};

use overlay_types::advice::Command;

/// Why a setting of the host could not be changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// A setting could not be written.
    #[error(
        "set {name} to {value}: {reason}: let the agent write to /proc/sys, or set it with {}",
        Command::write_setting(name, *value)
    )]
    Write {
        /// The name below `/proc/sys`.
        name: String,
        /// The desired value.
        value: u32,
        /// The system's error.
        reason: String,
    },
    /// A managed file could not be read, written or removed.
    #[error(
        "{action} {}: {reason}: let the agent write there, or set host_settings to false",
        path.display()
    )]
    File {
        /// The action that failed.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        reason: String,
    },
    /// A foreign file exists at the path of a managed file.
    #[error(
        "write {}: a foreign file exists there, so it is left alone: rename it, or set \
         host_settings to false",
        path.display()
    )]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// A program that manages the network could not reload its configuration.
    #[error("run '{command}': {reason}: see the log of that service")]
    Reload {
        /// The command.
        command: String,
        /// Why it failed.
        reason: String,
    },
    /// Another agent programs this host.
    #[error(
        "{} is held by {holder}: one agent at a time programs a host: stop that process, or give \
         this agent another state_dir if this agent has its own network namespace",
        path.display()
    )]
    Held {
        /// The lock file.
        path: PathBuf,
        /// The process that holds the lock.
        holder: String,
    },
}

impl HostError {
    pub(super) fn file(action: &'static str, path: &Path, error: &io::Error) -> Self {
        Self::File { action, path: path.to_owned(), reason: error.to_string() }
    }
}
