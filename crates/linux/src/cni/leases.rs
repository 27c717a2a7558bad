//! The lease directories of the CNI plugin host-local, one for each network. The plugin manages
//! them while containers run. It never removes the lease of a container that ended without the
//! plugin. `clean` reads and removes these directories, and the agent leases one address of each
//! bridge for its probes.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::{fs, io};

use overlay_types::addr::{OverlayName, Subnet};
use overlay_types::tunnel::PORT_SUBNET_MIN;

use super::error::CniError;

/// The plugin's default directory.
const DATA_DIR_DEFAULT: &str = "/var/lib/cni/networks";
/// The plugin's lock file.
pub(super) const LOCK: &str = "lock";
/// Prefix of the files with the last allocated address of each range.
pub(super) const LAST_RESERVED: &str = "last_reserved_ip.";

/// Content of the lease of an address that the agent uses for its probes.
pub(super) const PROBE_LEASE: &[u8] = b"mesos-overlay-probe\r\nmo-probe";
/// Number of addresses, from the last one downwards, of which one is taken for probes.
const PROBE_CANDIDATES: usize = 8;
/// Numbers of free addresses from which on the probes take one, and below which they give it back.
const RESERVE_FREE_MIN: u128 = 8;
const KEEP_FREE_MIN: u128 = 4;

/// The lease of an address for probes, or why there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbeLease {
    /// The address is leased.
    Leased(IpAddr),
    /// The subnet is so small that the containers would miss an address.
    SmallSubnet,
    /// The plugin has leased nothing yet.
    NothingLeased,
    /// Containers have almost all addresses.
    FewFree,
    /// None of the last addresses is free.
    NoneFree,
}

/// The lease directories of host-local.
#[derive(Debug, Clone)]
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

    /// Leases an address of the subnet for the probes of the agent: the last one that no container
    /// has and that `is_used` refutes. host-local allocates upwards from the first address, and
    /// skips an address whose file exists. A lease of an earlier agent is used again.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn reserve_probe_address(
        &self,
        overlay: &OverlayName,
        subnet: &Subnet,
        mut is_used: impl FnMut(IpAddr) -> bool,
    ) -> Result<ProbeLease, CniError> {
        if let Some(refused) = self.refuse_probe_address(overlay, subnet)? {
            return Ok(refused);
        }
        let directory = self.path(overlay);
        let last = subnet.offset_of(subnet.last()).unwrap_or_default();
        // The last address is the broadcast address; the first is that of the network, and the
        // second that of the bridge.
        let offsets = (2..last).rev();
        for address in offsets.take(PROBE_CANDIDATES).filter_map(|at| subnet.address_at(at)) {
            if !self.create_probe_lease(&directory.join(address.to_string()))? {
                continue;
            }
            if !is_used(address) {
                return Ok(ProbeLease::Leased(address));
            }
            self.release_probe_address(overlay, address);
        }
        Ok(ProbeLease::NoneFree)
    }

    /// Returns why the containers need all addresses of the subnet, if they do. Then the lease of an
    /// earlier agent ends.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn refuse_probe_address(
        &self,
        overlay: &OverlayName,
        subnet: &Subnet,
    ) -> Result<Option<ProbeLease>, CniError> {
        let last = subnet.offset_of(subnet.last()).unwrap_or_default();
        let refused = if last < PORT_SUBNET_MIN - 1 {
            ProbeLease::SmallSubnet
        } else if !is_directory(&self.path(overlay))? {
            ProbeLease::NothingLeased
        } else if self.free_addresses(overlay, subnet)? < RESERVE_FREE_MIN {
            ProbeLease::FewFree
        } else {
            return Ok(None);
        };
        for address in self.probe_addresses(overlay)? {
            self.release_probe_address(overlay, address);
        }
        Ok(Some(refused))
    }

    /// Creates the lease with its content in one step, so that a crash leaves no lease without an
    /// owner. Returns whether the file is a lease for probes.
    fn create_probe_lease(&self, path: &Path) -> Result<bool, CniError> {
        if path.exists() {
            return Ok(is_probe_lease(path));
        }
        let create = || {
            let mut file =
                tempfile::Builder::new().prefix(".mo-probe-").tempfile_in(&self.data_dir)?;
            file.write_all(PROBE_LEASE)?;
            file.persist_noclobber(path).map_err(|error| error.error)
        };
        match create() {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(is_probe_lease(path)),
            Err(error) => Err(CniError::io("create", path, &error)),
        }
    }

    /// Returns whether the containers can do without the address for probes.
    #[must_use]
    pub fn can_keep_probe_address(&self, overlay: &OverlayName, subnet: &Subnet) -> bool {
        self.free_addresses(overlay, subnet).is_ok_and(|free| free >= KEEP_FREE_MIN)
    }

    /// Returns the number of addresses of the subnet that no container has. With many free addresses
    /// the leases for probes count as those of containers, so that no lease is read.
    fn free_addresses(&self, overlay: &OverlayName, subnet: &Subnet) -> Result<u128, CniError> {
        let directory = self.path(overlay);
        let last = subnet.offset_of(subnet.last()).unwrap_or_default();
        let free = |leased: usize| last.saturating_sub(2).saturating_sub(leased as u128);
        let mut leased = names(&directory)?;
        leased.retain(|name| name.parse().is_ok_and(|address| subnet.contains(address)));
        if free(leased.len()) < RESERVE_FREE_MIN {
            leased.retain(|name| !is_probe_lease(&directory.join(name)));
        }
        Ok(free(leased.len()))
    }

    /// Removes the lease of an address for probes. The lease of a container stays.
    pub fn release_probe_address(&self, overlay: &OverlayName, address: IpAddr) {
        let path = self.path(overlay).join(address.to_string());
        if is_probe_lease(&path)
            && let Err(error) = fs::remove_file(&path)
        {
            log::warn!("remove lease {}: {error}: remove the file", path.display());
        }
    }

    /// Returns the addresses of the overlay that are leased for probes.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn probe_addresses(&self, overlay: &OverlayName) -> Result<Vec<IpAddr>, CniError> {
        let directory = self.path(overlay);
        let names = names(&directory)?.into_iter();
        let leases = names.filter(|name| is_probe_lease(&directory.join(name)));
        Ok(leases.filter_map(|name| name.parse().ok()).collect())
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

/// Returns whether the file is a lease for probes.
fn is_probe_lease(path: &Path) -> bool {
    // A longer file is read no further. A link or a pipe is not opened.
    let read = || {
        if !fs::symlink_metadata(path)?.is_file() {
            return Ok(Vec::new());
        }
        let mut content = Vec::new();
        File::open(path)?.take(PROBE_LEASE.len() as u64 + 1).read_to_end(&mut content)?;
        io::Result::Ok(content)
    };
    read().is_ok_and(|content| content == PROBE_LEASE)
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
    fn probe_lease_is_last_free_address_and_leaves_containers_alone() {
        let root = tempfile::tempdir().unwrap();
        let leases = Leases::new(Some(root.path()));
        let overlay: OverlayName = "vxlan-1".parse().unwrap();
        let subnet: Subnet = "192.168.2.0/25".parse().unwrap();
        let reserve = |used: &str| {
            let is_used = |address: IpAddr| address.to_string() == used;
            leases.reserve_probe_address(&overlay, &subnet, is_used).unwrap()
        };
        assert_eq!(reserve(""), ProbeLease::NothingLeased);
        let directory = leases.path(&overlay);
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("192.168.2.126"), "container\r\neth0").unwrap();
        let address = |text: &str| ProbeLease::Leased(text.parse().unwrap());
        assert_eq!(reserve(""), address("192.168.2.125"));
        assert_eq!(reserve(""), address("192.168.2.125"), "of an earlier agent");
        assert_eq!(reserve("192.168.2.125"), address("192.168.2.124"));
        assert_eq!(
            leases.probe_addresses(&overlay).unwrap(),
            ["192.168.2.124".parse::<IpAddr>().unwrap()]
        );
        for last in ["192.168.2.126", "192.168.2.124"] {
            leases.release_probe_address(&overlay, last.parse().unwrap());
        }
        assert_eq!(names(&directory).unwrap(), ["192.168.2.126".to_owned()].into());
        assert_eq!(names(root.path()).unwrap(), ["vxlan-1".to_owned()].into(), "no other file");
    }

    #[test]
    fn containers_of_small_or_full_subnet_get_every_address() {
        let root = tempfile::tempdir().unwrap();
        let leases = Leases::new(Some(root.path()));
        let overlay: OverlayName = "vxlan-1".parse().unwrap();
        let directory = leases.path(&overlay);
        fs::create_dir(&directory).unwrap();
        let reserve = |subnet: &str| {
            leases.reserve_probe_address(&overlay, &subnet.parse().unwrap(), |_| false).unwrap()
        };
        for small in ["192.168.2.0/29", "192.168.2.0/30", "192.168.2.0/31", "192.168.2.0/32"] {
            assert_eq!(reserve(small), ProbeLease::SmallSubnet, "{small}");
        }
        let subnet: Subnet = "192.168.2.0/28".parse().unwrap();
        let is_kept = || leases.can_keep_probe_address(&overlay, &subnet);
        let add = |number: u8| {
            fs::write(directory.join(format!("192.168.2.{number}")), "container\r\neth0").unwrap();
        };
        (2..7).for_each(add);
        let last = ProbeLease::Leased("192.168.2.14".parse().unwrap());
        assert_eq!(reserve("192.168.2.0/28"), last);
        (7..11).for_each(add);
        assert!(is_kept(), "there are four addresses, one of them for probes");
        add(11);
        assert!(!is_kept());
        assert_eq!(reserve("192.168.2.0/28"), ProbeLease::FewFree);
        assert!(!directory.join("192.168.2.14").exists(), "also of an earlier agent");
    }

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
