//! Why a CNI configuration is not as it should be. The texts reach the operator through the
//! master's state: each says what to do.

use std::io;
use std::path::{Path, PathBuf};

use crate::addr::{OverlayName, Subnet};

/// Why a CNI configuration was not written or removed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CniError {
    /// The file system refused.
    #[error("{action} {path}: {reason}", path = shown(path))]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        reason: String,
    },
    /// A file of somebody else has the name of ours.
    #[error(
        "{path} is no CNI configuration of overlay {overlay}, so it is left alone: move it out of \
         the directory",
        path = shown(path)
    )]
    Foreign {
        /// The overlay whose configuration belongs there.
        overlay: OverlayName,
        /// The file.
        path: PathBuf,
    },
    /// What has the name of our file is no regular file.
    #[error(
        "{path} is a {kind} where the CNI configuration of overlay {overlay} belongs, so it is \
         left alone: move it out of the directory",
        path = shown(path)
    )]
    NotAFile {
        /// The overlay whose configuration belongs there.
        overlay: OverlayName,
        /// What is there instead.
        path: PathBuf,
        /// What kind of thing it is.
        kind: &'static str,
    },
    /// Two files declare one network, and nobody knows which of them Mesos sees first.
    #[error(
        "{other} declares the network {overlay} too, and Mesos takes whichever it sees first of it \
         and {path}: move {other} out of the directory, or change its name",
        other = shown(other), path = shown(path)
    )]
    DeclaredTwice {
        /// The network's name.
        overlay: OverlayName,
        /// The file of somebody else.
        other: PathBuf,
        /// Our file.
        path: PathBuf,
    },
    /// A plugin without which no container can join.
    #[error(
        "CNI plugin '{plugin}' is not an executable file in {searched}: install the CNI plugins \
         there, or correct cni_plugins_dir",
        searched = .searched.iter().map(|path| shown(path)).collect::<Vec<_>>().join(":")
    )]
    PluginMissing {
        /// The plugin.
        plugin: &'static str,
        /// Where it was looked for.
        searched: Vec<PathBuf>,
    },
    /// A subnet in which the bridge and one container have no room. The host-local plugin (1.1.1)
    /// says so to each container that is launched; it is said here once instead.
    #[error(
        "subnet {subnet} of overlay {overlay} has no room for a bridge and a container: give the \
         overlay a prefix of at most 29"
    )]
    SubnetTooSmall {
        /// The overlay.
        overlay: OverlayName,
        /// Its subnet for the MesosContainerizer.
        subnet: Subnet,
    },
    /// There is something among the leases of a network that is no lease.
    #[error(
        "{path} is none of the files of the CNI plugin host-local, so its directory is left alone: \
         move it away",
        path = shown(path)
    )]
    NotOfHostLocal {
        /// The file.
        path: PathBuf,
    },
    /// JSON is UTF-8, a path need not be.
    #[error(
        "cni_data_dir {path} is no UTF-8 text, so no CNI configuration can hold it",
        path = shown(.0)
    )]
    DataDirNotText(PathBuf),
}

impl CniError {
    pub(super) fn io(action: &'static str, path: &Path, error: &io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), reason: error.to_string() }
    }
}

/// A path on one line, whatever bytes are in it.
fn shown(path: &Path) -> String {
    path.to_string_lossy().escape_debug().to_string()
}
