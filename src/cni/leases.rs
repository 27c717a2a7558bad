//! What the plugin host-local leaves of our networks: for each a directory with the addresses that
//! it gave to containers. It is the plugin's while there are containers; what a container that
//! ended without it left stays there for ever. Looked at only by who removes all that is ours.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::{fs, io};

use super::error::CniError;
use crate::addr::OverlayName;

/// Where the plugin keeps them if it is not told where.
const DATA_DIR_DEFAULT: &str = "/var/lib/cni/networks";
/// What the plugin locks, and what it gave last of each range of addresses.
const LOCK: &str = "lock";
const LAST: &str = "last_reserved_ip.";

/// The directories of host-local.
#[derive(Debug)]
pub struct Leases {
    data_dir: PathBuf,
}

impl Leases {
    /// `data_dir` is where host-local keeps its addresses, its own default if not given.
    #[must_use]
    pub fn new(data_dir: Option<&Path>) -> Self {
        Self { data_dir: data_dir.unwrap_or_else(|| Path::new(DATA_DIR_DEFAULT)).to_owned() }
    }

    /// The networks that it gave addresses of and whose name an overlay could have, ours or not.
    ///
    /// # Errors
    /// When the directory cannot be read. If it does not exist, there are none.
    pub fn networks(&self) -> Result<BTreeSet<OverlayName>, CniError> {
        let names = names(&self.data_dir)?;
        let names = names.into_iter().filter(|name| self.data_dir.join(name).is_dir());
        Ok(names.filter_map(|name| name.parse().ok()).collect())
    }

    /// Where those of an overlay are.
    #[must_use]
    pub fn path(&self, overlay: &OverlayName) -> PathBuf {
        self.data_dir.join(overlay.as_str())
    }

    /// Removes those of an overlay.
    ///
    /// # Errors
    /// When the file system refuses, or the directory has a file that host-local does not make:
    /// then nothing was removed.
    pub fn remove(&self, overlay: &OverlayName) -> Result<(), CniError> {
        let directory = self.path(overlay);
        let names = names(&directory)?;
        let is_known = |name: &&String| {
            // The colons of IPv6 are written otherwise on some systems, not on this one.
            name.as_str() == LOCK || name.starts_with(LAST) || name.parse::<IpAddr>().is_ok()
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

/// The names in a directory, in a fixed order; none if it is not there.
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
    fn leases_are_removed_unless_there_is_something_else_among_them() {
        let place = tempfile::tempdir().unwrap();
        let leases = Leases::new(Some(place.path()));
        let overlay: OverlayName = "vxlan-1".parse().unwrap();
        assert_eq!(leases.networks(), Ok(BTreeSet::new()));
        let directory = leases.path(&overlay);
        fs::create_dir(&directory).unwrap();
        for name in ["lock", "last_reserved_ip.0", "192.168.0.2", "fd01:b::2", "notes"] {
            fs::write(directory.join(name), "").unwrap();
        }
        fs::write(place.path().join("file"), "").unwrap();
        fs::create_dir(place.path().join("no overlay")).unwrap();
        assert_eq!(leases.networks(), Ok([overlay.clone()].into()));
        assert_eq!(
            leases.remove(&overlay).unwrap_err().to_string(),
            format!(
                "{} is none of the files of the CNI plugin host-local, so its directory is left \
                 alone: move it away",
                directory.join("notes").display()
            )
        );
        assert!(directory.join("192.168.0.2").exists());
        fs::remove_file(directory.join("notes")).unwrap();
        assert_eq!(leases.remove(&overlay), Ok(()));
        assert_eq!(leases.networks(), Ok(BTreeSet::new()));
    }
}
