//! Errors of CNI configurations. The texts reach the operator through the master's state: each text
//! says what to do.

use std::io;
use std::path::{Path, PathBuf};

use overlay_types::addr::{OverlayName, Subnet};

/// Why a CNI configuration was not written or removed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CniError {
    /// The file system refused.
    #[error("{action} {path}: {reason}", path = shown(path))]
    Io {
        /// The action that failed.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        reason: String,
    },
    /// A foreign file exists at the path of the managed file.
    #[error(
        "{path} is not a CNI configuration of overlay {overlay}, so it is left alone: move it out \
         of the directory",
        path = shown(path)
    )]
    Foreign {
        /// The overlay whose configuration belongs at the path.
        overlay: OverlayName,
        /// The file.
        path: PathBuf,
    },
    /// The object at the path of the managed file is not a regular file.
    #[error(
        "{path} is a {kind} where the CNI configuration of overlay {overlay} belongs, so it is \
         left alone: move it out of the directory",
        path = shown(path)
    )]
    NotAFile {
        /// The overlay whose configuration belongs at the path.
        overlay: OverlayName,
        /// The path.
        path: PathBuf,
        /// Kind of the object at the path.
        kind: &'static str,
    },
    /// Two files declare the same network. Mesos reads the files in no order and uses the first.
    #[error(
        "{other} and {path} both declare the network {overlay}, and Mesos uses the file that it \
         reads first: move {other} out of the directory, or change the network name in it",
        other = shown(other), path = shown(path)
    )]
    DeclaredTwice {
        /// The network's name.
        overlay: OverlayName,
        /// The foreign file.
        other: PathBuf,
        /// The managed file.
        path: PathBuf,
    },
    /// A plugin is missing, so no container can join.
    #[error(
        "CNI plugin '{plugin}' is not an executable file in {searched}: install the CNI plugins \
         there, or correct cni_plugins_dir",
        searched = .searched.iter().map(|path| shown(path)).collect::<Vec<_>>().join(":")
    )]
    PluginMissing {
        /// The plugin.
        plugin: &'static str,
        /// The directories that were searched.
        searched: Vec<PathBuf>,
    },
    /// The subnet is too small for the bridge and one container. The host-local plugin (1.1.1)
    /// fails at each launch of a container. This error reports the problem once, before a launch.
    #[error(
        "subnet {subnet} of overlay {overlay} is too small for a bridge and a container: give the \
         overlay a prefix of at most 29"
    )]
    SubnetTooSmall {
        /// The overlay.
        overlay: OverlayName,
        /// Its subnet for the MesosContainerizer.
        subnet: Subnet,
    },
    /// The lease directory of a network contains a foreign file.
    #[error(
        "{path} is not a file of the CNI plugin host-local, so its directory is left alone: \
         move the file away",
        path = shown(path)
    )]
    NotOfHostLocal {
        /// The file.
        path: PathBuf,
    },
    /// The path is not UTF-8 text, so JSON cannot contain it.
    #[error(
        "cni_data_dir {path} is not UTF-8 text, so no CNI configuration can contain it",
        path = shown(.0)
    )]
    DataDirNotText(PathBuf),
}

impl CniError {
    pub(super) fn io(action: &'static str, path: &Path, error: &io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), reason: error.to_string() }
    }
}

/// Formats a path on one line, with control characters escaped.
fn shown(path: &Path) -> String {
    path.to_string_lossy().escape_debug().to_string()
}
