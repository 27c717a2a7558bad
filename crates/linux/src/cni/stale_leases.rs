//! Releases the leases of containers that are gone. host-local ends a lease when its container is
//! removed through the plugin. After a reboot or a crash nobody removes the container, and the range
//! fills up until no container gets an address.
//!
//! A lease is released only if the container certainly has no connection any more. host-local leases
//! an address after the container's port is at the bridge, and this module looks while it holds the
//! plugin's lock. So a container that is being added has a port.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use overlay_types::addr::{OverlayName, Subnet};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::error::CniError;
use super::leases::{LOCK, Leases, is_directory, is_probe_lease, names};

/// Time that an address must be unused before its lease is released, if the bridge has ports and
/// the host was not started again since: the container of the lease may still be being added.
const UNUSED_MIN: Duration = Duration::from_mins(5);
/// A file that is older than the start of the host by less than this may be younger: the file
/// system and the clock round times.
const BOOT_TOLERANCE: Duration = Duration::from_secs(2);
/// The directories of Mesos for the networks of its containers. Mesos removes the lease of a
/// container with such a directory itself, after a restart too.
const MESOS_CONTAINERS: [&str; 2] =
    ["/run/mesos/isolators/network/cni", "/var/run/mesos/isolators/network/cni"];

/// The mounts of the host, among them the network namespaces that Mesos keeps of its containers:
/// `<root>/isolators/network/cni/<container>/ns`, where the root depends on flags of the Mesos agent
/// (`src/slave/containerizer/mesos/isolators/network/cni/paths.cpp`).
const MOUNTS: &str = "/proc/self/mountinfo";

/// What the host shows about the containers of a bridge.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerEvidence {
    /// Ports of the bridge that lead to containers.
    pub ports: usize,
    /// Whether the host has ports of containers that are at no bridge: their bridge was removed.
    pub has_detached_ports: bool,
    /// The addresses in all namespaces of containers. `None` if they cannot be read.
    pub addresses: Option<BTreeSet<IpAddr>>,
    /// When the host was started.
    pub boot: Option<SystemTime>,
}

/// A lease of host-local.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The leased address.
    pub address: IpAddr,
    /// The container.
    pub container: String,
    file: FileIdentity,
}

/// Distinguishes the file of a lease from a later file of the same name.
#[derive(Debug, Clone, PartialEq, Eq)]
struct FileIdentity {
    inode: u64,
    modified: Option<SystemTime>,
}

/// The leases of a network, under the lock of host-local: the plugin adds and removes none.
#[derive(Debug)]
pub struct LockedLeases {
    directory: PathBuf,
    _locks: Vec<File>,
}

impl Leases {
    /// Lists the leases of containers, in the order of their addresses.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn of_containers(&self, overlay: &OverlayName) -> Result<Vec<Lease>, CniError> {
        read_leases(&self.path(overlay))
    }

    /// Takes the lock of host-local. Returns `None` if the plugin has it, or if it has leased
    /// nothing.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn try_lock(&self, overlay: &OverlayName) -> Result<Option<LockedLeases>, CniError> {
        let directory = self.path(overlay);
        if !is_directory(&directory)? {
            return Ok(None);
        }
        let lock = directory.join(LOCK);
        let open = || {
            let file = File::options().create(true).truncate(false).write(true).open(&lock)?;
            // The first versions of the plugin lock the directory.
            Ok(vec![File::open(&directory)?, file])
        };
        let locks = open().map_err(|error: io::Error| CniError::io("open", &lock, &error))?;
        for file in &locks {
            match flock(file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(error) => return Err(CniError::io("lock", &lock, &error.into())),
            }
        }
        Ok(Some(LockedLeases { directory, _locks: locks }))
    }
}

impl LockedLeases {
    /// Lists the leases of containers, in the order of their addresses.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn list(&self) -> Result<Vec<Lease>, CniError> {
        read_leases(&self.directory)
    }

    /// Removes a lease.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn release(&self, lease: &Lease) -> Result<(), CniError> {
        let path = self.directory.join(lease.address.to_string());
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(CniError::io("remove", &path, &error))
            }
            _ => Ok(()),
        }
    }
}

fn read_leases(directory: &Path) -> Result<Vec<Lease>, CniError> {
    let mut leases = Vec::new();
    for name in names(directory)? {
        let Ok(address) = name.parse::<IpAddr>() else { continue };
        let path = directory.join(&name);
        if is_probe_lease(&path) {
            continue;
        }
        let read = || {
            let metadata = fs::metadata(&path)?;
            let file = FileIdentity { inode: metadata.ino(), modified: metadata.modified().ok() };
            Ok::<_, io::Error>((fs::read_to_string(&path)?, file))
        };
        match read() {
            Ok((content, file)) => {
                let container = content.lines().next().unwrap_or_default().trim().to_owned();
                leases.push(Lease { address, container, file });
            }
            // The plugin has just removed it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(CniError::io("read", &path, &error)),
        }
    }
    leases.sort_by_key(|lease| lease.address);
    Ok(leases)
}

/// Finds the leases of containers that are gone.
#[derive(Debug)]
pub struct StaleLeases {
    /// The leases whose address no container had, and since when, by overlay and address.
    unused: BTreeMap<(OverlayName, IpAddr), (FileIdentity, Duration)>,
    mesos_containers: Vec<PathBuf>,
    mounts: PathBuf,
}

impl Default for StaleLeases {
    fn default() -> Self {
        Self::new(MESOS_CONTAINERS.map(PathBuf::from).into(), MOUNTS.into())
    }
}

impl StaleLeases {
    /// Creates a finder. `mesos_containers` are the directories of Mesos for the networks of its
    /// containers, and `mounts` is a file like `/proc/self/mountinfo`.
    #[must_use]
    pub const fn new(mesos_containers: Vec<PathBuf>, mounts: PathBuf) -> Self {
        Self { unused: BTreeMap::new(), mesos_containers, mounts }
    }

    /// Returns the leases that certainly belong to no container. `elapsed` is the time on a clock
    /// that only moves forward. The evidence must be read while the leases are locked.
    ///
    /// # Errors
    /// When the mounts of Mesos cannot be read: then any container may exist.
    pub fn find(
        &mut self,
        overlay: &OverlayName,
        leases: &[Lease],
        evidence: &ContainerEvidence,
        elapsed: Duration,
    ) -> Result<Vec<Lease>, CniError> {
        let mut unused = BTreeMap::new();
        let mut stale = Vec::new();
        let is_unused = |lease: &&Lease| {
            evidence.addresses.as_ref().is_none_or(|used| !used.contains(&lease.address))
        };
        let candidates: Vec<&Lease> = leases.iter().filter(is_unused).collect();
        if candidates.is_empty() {
            self.unused.retain(|(other, _), _| other != overlay);
            return Ok(stale);
        }
        let mounted = self.mounted().map_err(|error| CniError::io("read", &self.mounts, &error))?;
        for lease in candidates {
            if self.has_mesos_container(&lease.container) || mounted.contains(&lease.container) {
                continue;
            }
            let key = (overlay.clone(), lease.address);
            let known = self.unused.get(&key).filter(|(file, _)| *file == lease.file);
            let since = known.map_or(elapsed, |(_, since)| *since);
            if is_gone(lease, evidence, elapsed.saturating_sub(since)) {
                stale.push(lease.clone());
            } else {
                unused.insert(key, (lease.file.clone(), since));
            }
        }
        self.unused.retain(|(other, _), _| other != overlay);
        self.unused.append(&mut unused);
        Ok(stale)
    }

    /// Returns the containers whose network namespaces Mesos keeps, in any directory.
    fn mounted(&self) -> io::Result<BTreeSet<String>> {
        // A mount point may have any bytes.
        let mounts = fs::read(&self.mounts)?;
        let mounts = String::from_utf8_lossy(&mounts);
        Ok(mounts.lines().filter_map(mesos_container).map(str::to_owned).collect())
    }

    /// Returns whether Mesos knows the container, and so ends the lease itself.
    fn has_mesos_container(&self, container: &str) -> bool {
        // Not a path: the plugin stores what its caller names.
        let is_name = !container.is_empty() && !container.contains('/') && container != "..";
        let mut folders = self.mesos_containers.iter();
        !is_name || folders.any(|folder| folder.join(container).exists())
    }
}

/// Returns the container of a mount, if Mesos has mounted a container's network namespace.
fn mesos_container(mount: &str) -> Option<&str> {
    let path = mount.split(' ').nth(4)?.strip_suffix("/ns")?;
    let (folder, container) = path.rsplit_once('/')?;
    folder.ends_with("/isolators/network/cni").then_some(container)
}

/// Returns whether the container of a lease is gone, whose address no container has.
fn is_gone(lease: &Lease, evidence: &ContainerEvidence, unused: Duration) -> bool {
    let has_ports = evidence.ports > 0 || evidence.has_detached_ports;
    if evidence.addresses.is_none() {
        return !has_ports;
    }
    let is_older_than_boot = match (lease.file.modified, evidence.boot) {
        (Some(modified), Some(boot)) => modified + BOOT_TOLERANCE < boot,
        _ => false,
    };
    evidence.ports == 0 || is_older_than_boot || unused >= UNUSED_MIN
}

/// Returns the number of addresses of a bridge's subnet that containers can use.
#[must_use]
pub fn container_capacity(subnet: &Subnet) -> u128 {
    /// The addresses of the network, of broadcasts and of the bridge.
    const OTHERS: u128 = 3;
    let last = subnet.offset_of(subnet.last()).unwrap_or_default();
    (last + 1).saturating_sub(OTHERS)
}

/// Describes a range of addresses that is nearly full. `connected` is the number of ports of
/// containers.
#[must_use]
pub fn nearly_full(
    overlay: &OverlayName,
    subnet: &Subnet,
    leases: &[Lease],
    connected: usize,
) -> Option<String> {
    /// The share of free addresses below which the range is nearly full: one in twenty.
    const FREE_DIVISOR: u128 = 20;
    /// A smaller range is full with few containers, as its operator expects.
    const CAPACITY_MIN: u128 = 8;
    /// The addresses of the probes.
    const PROBES: u128 = 1;
    let capacity = container_capacity(subnet);
    let used = leases.iter().filter(|lease| subnet.contains(lease.address)).count();
    let free = capacity.saturating_sub(used as u128 + PROBES);
    (capacity >= CAPACITY_MIN && free * FREE_DIVISOR <= capacity).then(|| {
        format!(
            "overlay {overlay}: host-local has leased {used} of {capacity} addresses of {subnet}, \
             and {connected} containers are connected: without a free address no container starts: \
             run fewer containers of this overlay on this host, or give the overlay a shorter \
             prefix at the master"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Directory {
        root: tempfile::TempDir,
        leases: Leases,
        overlay: OverlayName,
    }

    impl Directory {
        fn new(addresses: &[&str]) -> Self {
            let root = tempfile::tempdir().unwrap();
            let leases = Leases::new(Some(root.path()));
            let overlay: OverlayName = "vxlan-1".parse().unwrap();
            let directory = leases.path(&overlay);
            fs::create_dir(&directory).unwrap();
            for address in addresses {
                fs::write(directory.join(address), format!("of-{address}\r\neth0")).unwrap();
            }
            fs::write(directory.join("192.168.2.126"), "mesos-overlay-probe\r\nmo-probe").unwrap();
            fs::write(directory.join("last_reserved_ip.0"), "192.168.2.3").unwrap();
            Self { root, leases, overlay }
        }

        fn find(
            &self,
            finder: &mut StaleLeases,
            evidence: &ContainerEvidence,
            elapsed: u64,
        ) -> Vec<String> {
            let locked = self.leases.try_lock(&self.overlay).unwrap().unwrap();
            let elapsed = Duration::from_secs(elapsed);
            let found =
                finder.find(&self.overlay, &locked.list().unwrap(), evidence, elapsed).unwrap();
            found.iter().map(|lease| lease.container.clone()).collect()
        }
    }

    const TWO: [&str; 2] = ["192.168.2.2", "192.168.2.3"];

    fn evidence(ports: usize, addresses: &[&str]) -> ContainerEvidence {
        ContainerEvidence {
            ports,
            addresses: Some(addresses.iter().map(|ip| ip.parse().unwrap()).collect()),
            boot: Some(SystemTime::UNIX_EPOCH),
            ..ContainerEvidence::default()
        }
    }

    #[test]
    fn all_leases_of_bridge_without_ports_are_stale() {
        let directory = Directory::new(&TWO);
        let mut finder = StaleLeases::new(Vec::new(), "/dev/null".into());
        assert_eq!(
            directory.find(&mut finder, &evidence(0, &[]), 0),
            ["of-192.168.2.2", "of-192.168.2.3"]
        );
        // The bridge is gone, and the containers run.
        assert_eq!(
            directory.find(&mut finder, &evidence(0, &["192.168.2.2"]), 0),
            ["of-192.168.2.3"]
        );
        // Kernels that show no addresses of other namespaces.
        let mut unknown = ContainerEvidence { addresses: None, ..evidence(0, &[]) };
        assert_eq!(directory.find(&mut finder, &unknown, 0).len(), 2);
        unknown.has_detached_ports = true;
        assert_eq!(directory.find(&mut finder, &unknown, 1000), [""; 0]);
        unknown = ContainerEvidence { ports: 1, has_detached_ports: false, ..unknown };
        assert_eq!(directory.find(&mut finder, &unknown, 2000), [""; 0]);
    }

    #[test]
    fn unused_lease_beside_containers_is_stale_after_boot_or_time() {
        let directory = Directory::new(&TWO);
        let mut finder = StaleLeases::new(Vec::new(), "/dev/null".into());
        let mut running = evidence(1, &["192.168.2.2"]);
        assert_eq!(directory.find(&mut finder, &running, 0), [""; 0]);
        assert_eq!(directory.find(&mut finder, &running, 299), [""; 0]);
        assert_eq!(directory.find(&mut finder, &running, 300), ["of-192.168.2.3"]);
        // Another container gets the address meanwhile.
        let path = directory.leases.path(&directory.overlay).join("192.168.2.3");
        fs::remove_file(&path).unwrap();
        fs::write(directory.root.path().join("other"), "").unwrap();
        fs::write(&path, "new\r\neth0").unwrap();
        assert_eq!(directory.find(&mut finder, &running, 301), [""; 0]);
        // The address is used in between.
        let used = evidence(2, &TWO);
        assert_eq!(directory.find(&mut finder, &used, 400), [""; 0]);
        assert_eq!(directory.find(&mut finder, &running, 601), [""; 0]);
        assert_eq!(directory.find(&mut finder, &running, 901), ["new"]);
        let file = File::options().write(true).open(&path).unwrap();
        running.boot = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1000));
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        file.set_modified(at(999)).unwrap();
        assert_eq!(directory.find(&mut finder, &running, 1000), [""; 0]);
        file.set_modified(at(997)).unwrap();
        assert_eq!(directory.find(&mut finder, &running, 1000), ["new"]);
    }

    #[test]
    fn container_that_mesos_knows_keeps_its_lease() {
        let directory = Directory::new(&TWO);
        let folder = directory.root.path().join("mesos");
        fs::create_dir_all(folder.join("of-192.168.2.2")).unwrap();
        let mut finder = StaleLeases::new(vec![folder], "/dev/null".into());
        assert_eq!(directory.find(&mut finder, &evidence(0, &[]), 0), ["of-192.168.2.3"]);
        let path = directory.leases.path(&directory.overlay).join("192.168.2.3");
        for content in ["", "../of\r\neth0", "..\r\neth0"] {
            fs::write(&path, content).unwrap();
            assert_eq!(directory.find(&mut finder, &evidence(0, &[]), 0), [""; 0], "{content:?}");
        }
    }

    #[test]
    fn container_with_a_mounted_namespace_keeps_its_lease() {
        let directory = Directory::new(&TWO);
        let mounts = directory.root.path().join("mountinfo");
        // The work directory of the Mesos agent, with --network_cni_root_dir_persist.
        let text = "24 1 0:4 net:[4026532] /srv/mesos/isolators/network/cni/of-192.168.2.2/ns rw - \
                    nsfs nsfs rw\n25 1 0:4 / /mnt/of-192.168.2.3/ns rw - tmpfs tmpfs rw\n";
        fs::write(&mounts, text).unwrap();
        let mut finder = StaleLeases::new(Vec::new(), mounts);
        assert_eq!(directory.find(&mut finder, &evidence(0, &[]), 0), ["of-192.168.2.3"]);
        let mut finder = StaleLeases::new(Vec::new(), directory.root.path().join("none"));
        let leases = directory.leases.of_containers(&directory.overlay).unwrap();
        let found = finder.find(&directory.overlay, &leases, &evidence(0, &[]), Duration::ZERO);
        assert!(found.is_err(), "unknown mounts: {found:?}");
    }

    #[test]
    fn lock_of_plugin_is_respected() {
        let directory = Directory::new(&TWO);
        let path = directory.leases.path(&directory.overlay);
        for name in [path.join(LOCK), path] {
            if !name.exists() {
                fs::write(&name, "").unwrap();
            }
            let plugin = File::open(&name).unwrap();
            flock(&plugin, FlockOperation::LockExclusive).unwrap();
            assert!(directory.leases.try_lock(&directory.overlay).unwrap().is_none());
        }
        let locked = directory.leases.try_lock(&directory.overlay).unwrap().unwrap();
        let leases = locked.list().unwrap();
        locked.release(&leases[0]).unwrap();
        assert_eq!(locked.list().unwrap(), leases[1..]);
        assert!(directory.leases.try_lock(&"other".parse().unwrap()).unwrap().is_none());
    }

    #[test]
    fn nearly_full_range_names_numbers() {
        let lease = |number: u32| Lease {
            address: format!("192.168.2.{number}").parse().unwrap(),
            container: String::new(),
            file: FileIdentity { inode: 1, modified: None },
        };
        let overlay: OverlayName = "vxlan-1".parse().unwrap();
        let subnet: Subnet = "192.168.2.0/25".parse().unwrap();
        let full = |count: u32| {
            nearly_full(&overlay, &subnet, &(2..2 + count).map(lease).collect::<Vec<_>>(), 3)
        };
        assert_eq!(full(117), None);
        assert!(full(118).unwrap().starts_with(
            "overlay vxlan-1: host-local has leased 118 of 125 addresses of 192.168.2.0/25, and 3 \
             containers are connected"
        ));
        let tiny: Subnet = "192.168.2.0/29".parse().unwrap();
        assert_eq!(nearly_full(&overlay, &tiny, &(2..7).map(lease).collect::<Vec<_>>(), 5), None);
    }
}
