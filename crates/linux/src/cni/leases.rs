//! The lease directories of the CNI plugin host-local, one for each network. The plugin manages
//! them while containers run. It never removes the lease of a container that ended without the
//! plugin. Only `clean` reads and removes these directories.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::{fs, io};

use overlay_types::addr::OverlayName;

use super::error::CniError;

/// The plugin's default directory.
const DATA_DIR_DEFAULT: &str = "/var/lib/cni/networks";
/// The plugin's lock file.
const LOCK: &str = "lock";
/// Prefix of the files with the last allocated address of each range.
const LAST_RESERVED: &str = "last_reserved_ip.";

/// The lease directories of host-local.
#[derive(Debug)]
pub struct Leases {
    data_dir: PathBuf,
}

impl Leases {
    /// Creates a handle. `data_dir` is host-local's directory, by default the plugin's own default.
    #[must_use]
    pub fn new(data_dir: Option<&Path>) -> Self {
        Self { data_dir: data_dir.unwrap_or_else(|| Path::new(DATA_DIR_DEFAULT)).to_owned() }
    }

    /// Lists the networks, managed or foreign, that have a lease directory and a name that is valid
    /// for an overlay.
    ///
    /// # Errors
    /// When the directory cannot be read. A missing directory has no leases.
    pub fn networks(&self) -> Result<BTreeSet<OverlayName>, CniError> {
        let mut networks = BTreeSet::new();
        for name in names(&self.data_dir)? {
            if let Ok(overlay) = name.parse()
                && is_directory(&self.data_dir.join(name))?
            {
                networks.insert(overlay);
            }
        }
        Ok(networks)
    }

    /// Returns whether the overlay has a lease directory.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn has(&self, overlay: &OverlayName) -> Result<bool, CniError> {
        is_directory(&self.path(overlay))
    }

    /// Returns the path of the lease directory of an overlay.
    #[must_use]
    pub fn path(&self, overlay: &OverlayName) -> PathBuf {
        self.data_dir.join(overlay.as_str())
    }

    /// Removes the lease directory of an overlay.
    ///
    /// # Errors
    /// When the file system refuses. When the directory contains a foreign file, nothing is
    /// removed.
    pub fn remove(&self, overlay: &OverlayName) -> Result<(), CniError> {
        let directory = self.path(overlay);
        let names = names(&directory)?;
        let is_known = |name: &&String| {
            // On Linux the plugin keeps the colons of IPv6 addresses in file names.
            name.as_str() == LOCK
                || name.starts_with(LAST_RESERVED)
                || name.parse::<IpAddr>().is_ok()
        };
        if let Some(other) = names.iter().find(|name| !is_known(name)) {
            return Err(CniError::NotOfHostLocal { path: directory.join(other) });
        }
        let remove = || {
            names.iter().try_for_each(|name| fs::remove_file(directory.join(name)))?;
            fs::remove_dir(&directory)
        };
        remove().map_err(|error| CniError::io("remove", &directory, &error))
    }
}

/// Returns whether this is an existing directory.
fn is_directory(path: &Path) -> Result<bool, CniError> {
    match fs::metadata(path) {
        Ok(found) => Ok(found.is_dir()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(CniError::io("read", path, &error)),
    }
}

/// Lists the names in a directory, sorted. A missing directory has none.
fn names(directory: &Path) -> Result<BTreeSet<String>, CniError> {
    let failed = |error: io::Error| CniError::io("read directory", directory, &error);
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        entries => entries.map_err(failed)?,
    };
    let name = |entry: fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    entries.map(|entry| entry.map(name)).collect::<io::Result<_>>().map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_with_foreign_file_are_kept() {
        let root = tempfile::tempdir().unwrap();
        let leases = Leases::new(Some(root.path()));
        let overlay: OverlayName = "vxlan-1".parse().unwrap();
        assert_eq!(leases.networks(), Ok(BTreeSet::new()));
        let directory = leases.path(&overlay);
        fs::create_dir(&directory).unwrap();
        for name in ["lock", "last_reserved_ip.0", "192.168.0.2", "fd01:b::2", "notes"] {
            fs::write(directory.join(name), "").unwrap();
        }
        fs::write(root.path().join("file"), "").unwrap();
        fs::create_dir(root.path().join("no overlay")).unwrap();
        assert_eq!(leases.networks(), Ok([overlay.clone()].into()));
        assert_eq!(
            leases.remove(&overlay).unwrap_err().to_string(),
            format!(
                "{} is not a file of the CNI plugin host-local, so its directory is left \
                 alone: move the file away",
                directory.join("notes").display()
            )
        );
        assert!(directory.join("192.168.0.2").exists());
        fs::remove_file(directory.join("notes")).unwrap();
        assert_eq!(leases.remove(&overlay), Ok(()));
        assert_eq!(leases.networks(), Ok(BTreeSet::new()));
    }
}
