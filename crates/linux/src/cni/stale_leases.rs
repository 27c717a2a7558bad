//! Releases the leases of containers that are gone. host-local ends a lease when its container is
//! removed through the plugin. After a reboot or a crash nobody removes the container, and the range
//! fills up until no container gets an address.
//!
//! A lease is released only if the container certainly has no connection any more. host-local leases
//! an address after the container's port is at the bridge, and this module looks while it holds the
//! plugin's lock. So a container that is being added has a port.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use std::{fs, io};

use overlay_types::addr::{DeviceName, OverlayName, Subnet};
use overlay_types::address_usage::container_capacity;

use super::error::CniError;
use super::lease_directory::{FileIdentity, Lease, LeaseDirectory, LeaseFiles};
use super::leases::Leases;
use crate::dataplane::ContainerPorts;

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

impl ContainerEvidence {
    /// Selects what the ports of a host show about the containers of a bridge.
    #[must_use]
    pub fn new(ports: ContainerPorts, bridge: &DeviceName) -> Self {
        Self {
            ports: ports.count_at(bridge.as_str()),
            has_detached_ports: ports.has_detached,
            addresses: ports.addresses,
            boot: boot_time(),
        }
    }
}

/// Returns when this host was started.
fn boot_time() -> Option<SystemTime> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let line = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(line.trim().parse().ok()?))
}

/// The leases of a network, under the lock of host-local: the plugin adds and removes none.
#[derive(Debug)]
pub struct LockedLeases {
    directory: LeaseDirectory,
    _locks: Vec<OwnedFd>,
}

impl Leases {
    /// Reads the leases of containers. A network without a lease has no directory.
    ///
    /// # Errors
    /// When the directory cannot be read, or is a symbolic link.
    pub fn files(&self, overlay: &OverlayName) -> Result<LeaseFiles, CniError> {
        let directory = LeaseDirectory::open(&self.path(overlay))?;
        directory.map_or_else(|| Ok(LeaseFiles::default()), |found| found.read())
    }

    /// Lists the leases of containers, in the order of their addresses.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn of_containers(&self, overlay: &OverlayName) -> Result<Vec<Lease>, CniError> {
        Ok(self.files(overlay)?.leases)
    }

    /// Takes the lock of host-local. Returns `None` if the plugin has it, or if it has leased
    /// nothing.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn try_lock(&self, overlay: &OverlayName) -> Result<Option<LockedLeases>, CniError> {
        let Some(directory) = LeaseDirectory::open(&self.path(overlay))? else { return Ok(None) };
        let locks = directory.try_lock()?;
        Ok(locks.map(|locks| LockedLeases { directory, _locks: locks }))
    }

    /// Waits for the lock of host-local, and creates the directory if it is missing. For the CNI
    /// plugin only: an agent never waits for a plugin.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn lock(&self, overlay: &OverlayName) -> Result<LockedLeases, CniError> {
        let directory = LeaseDirectory::create(&self.path(overlay))?;
        let locks = directory.lock()?;
        Ok(LockedLeases { directory, _locks: locks })
    }
}

impl LockedLeases {
    /// Returns the path of the directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Lists the leases of containers, in the order of their addresses.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn list(&self) -> Result<Vec<Lease>, CniError> {
        Ok(self.directory.read()?.leases)
    }

    /// Reads all files of the directory.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn files(&self) -> Result<LeaseFiles, CniError> {
        self.directory.read()
    }

    /// Adds the lease of an address that is not leased.
    ///
    /// # Errors
    /// When the file system refuses, or the address is leased.
    pub fn add(&self, address: IpAddr, container: &str, interface: &str) -> Result<(), CniError> {
        self.directory.add(address, container, interface)
    }

    /// Returns the address that was leased last of a range: 0 is IPv4, 1 is IPv6. `None` if it is
    /// unknown.
    #[must_use]
    pub fn last_reserved(&self, range: usize) -> Option<IpAddr> {
        self.directory.last_reserved(range)
    }

    /// Notes the address that was leased last of a range, for the next allocation.
    pub fn set_last_reserved(&self, range: usize, address: IpAddr) {
        self.directory.set_last_reserved(range, address);
    }

    /// Makes a lease young again, whose container gets the address now.
    ///
    /// # Errors
    /// When the file system refuses, or there is no such lease.
    pub fn refresh(&self, address: IpAddr) -> Result<(), CniError> {
        self.directory.refresh(address)
    }

    /// Removes a lease, unless another one has replaced it.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn release(&self, lease: &Lease) -> Result<(), CniError> {
        self.directory.remove(lease)
    }
}

/// What a single look at the host shows about the container of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseState {
    /// A container has the address.
    InUse,
    /// The container is gone: nothing has the address, Mesos does not know the container, and the
    /// lease is not young.
    Leaked,
    /// No container has the address yet, and the lease is so young that one may be starting.
    Young,
    /// The lease may be needed.
    Unknown(Doubt),
}

/// Why a lease whose address no container has may be needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doubt {
    /// Mesos has a directory or a network namespace of the container, and ends the lease itself.
    KnownToMesos,
    /// Something answers at the address.
    Answers,
    /// The addresses of the containers cannot be read.
    AddressesUnreadable,
    /// The lease names no container.
    NoContainerName,
    /// The time of the file is in the future.
    NoAge,
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

    /// Judges each lease by a single look at the host. `answering` are the addresses that answer at
    /// the bridge, or `None` if they cannot be asked. `now` is the current time.
    ///
    /// # Errors
    /// When the mounts of Mesos cannot be read: then any container may exist.
    pub fn judge(
        &self,
        leases: &[Lease],
        evidence: &ContainerEvidence,
        answering: Option<&BTreeSet<IpAddr>>,
        now: SystemTime,
    ) -> Result<Vec<LeaseState>, CniError> {
        let mounted = self.mounted().map_err(|error| CniError::io("read", &self.mounts, &error))?;
        let has_ports = evidence.ports > 0 || evidence.has_detached_ports;
        let judge = |lease: &Lease| {
            let is_connected =
                evidence.addresses.as_ref().is_some_and(|used| used.contains(&lease.address));
            let age = lease.file.modified.map(|modified| now.duration_since(modified));
            if is_connected {
                LeaseState::InUse
            } else if !is_container_name(&lease.container) {
                LeaseState::Unknown(Doubt::NoContainerName)
            } else if self.has_mesos_container(&lease.container)
                || mounted.contains(&lease.container)
            {
                LeaseState::Unknown(Doubt::KnownToMesos)
            } else if answering.is_some_and(|answering| answering.contains(&lease.address)) {
                LeaseState::Unknown(Doubt::Answers)
            } else if answering.is_none() || (evidence.addresses.is_none() && has_ports) {
                LeaseState::Unknown(Doubt::AddressesUnreadable)
            } else {
                match age {
                    Some(Ok(age)) if age >= UNUSED_MIN => LeaseState::Leaked,
                    Some(Ok(_)) => LeaseState::Young,
                    Some(Err(_)) | None => LeaseState::Unknown(Doubt::NoAge),
                }
            }
        };
        Ok(leases.iter().map(judge).collect())
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
        let mut folders = self.mesos_containers.iter();
        !is_container_name(container) || folders.any(|folder| folder.join(container).exists())
    }
}

/// Returns whether the text of a lease names a container and is no path: the plugin stores what its
/// caller names.
fn is_container_name(container: &str) -> bool {
    !container.is_empty() && !container.contains('/') && container != ".." && container != "."
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

/// Returns whether almost all of the addresses are in use.
#[must_use]
pub const fn is_nearly_full(capacity: u128, used: u128) -> bool {
    /// The share of free addresses below which the range is nearly full: one in twenty.
    const FREE_DIVISOR: u128 = 20;
    /// A smaller range is full with few containers, as its operator expects.
    const CAPACITY_MIN: u128 = 8;
    capacity >= CAPACITY_MIN && capacity.saturating_sub(used) * FREE_DIVISOR <= capacity
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
    /// The addresses of the probes.
    const PROBES: u128 = 1;
    let capacity = container_capacity(subnet);
    let used = leases.iter().filter(|lease| subnet.contains(lease.address)).count();
    is_nearly_full(capacity, used as u128 + PROBES).then(|| {
        format!(
            "overlay {overlay}: host-local has leased {used} of {capacity} addresses of {subnet}, \
             and {connected} containers are connected: without a free address no container starts: \
             run fewer containers of this overlay on this host, or add an overlay with a shorter \
             prefix at the master for new containers"
        )
    })
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use rustix::fs::{FlockOperation, flock};

    use super::super::leases::LOCK;
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
    fn single_look_finds_only_certain_leaks() {
        let addresses: Vec<String> = (2..9).map(|number| format!("192.168.2.{number}")).collect();
        let directory = Directory::new(&addresses.iter().map(String::as_str).collect::<Vec<_>>());
        let path = directory.leases.path(&directory.overlay);
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let age = |number: u8, modified| {
            let file = path.join(format!("192.168.2.{number}"));
            File::options().write(true).open(file).unwrap().set_modified(modified).unwrap();
        };
        (2..9).for_each(|number| age(number, at(1000)));
        age(4, at(1001));
        age(8, at(2000));
        fs::write(path.join("192.168.2.7"), "../x\r\neth0").unwrap();
        age(7, at(1000));
        let folder = directory.root.path().join("mesos");
        fs::create_dir_all(folder.join("of-192.168.2.5")).unwrap();
        let finder = StaleLeases::new(vec![folder], "/dev/null".into());
        let leases = directory.leases.of_containers(&directory.overlay).unwrap();
        let judge = |evidence: &ContainerEvidence| {
            let answering = BTreeSet::from(["192.168.2.6".parse().unwrap()]);
            finder.judge(&leases, evidence, Some(&answering), at(1300)).unwrap()
        };
        let unknown = LeaseState::Unknown;
        assert_eq!(
            judge(&evidence(1, &["192.168.2.2"])),
            [
                LeaseState::InUse,
                LeaseState::Leaked,
                LeaseState::Young,
                unknown(Doubt::KnownToMesos),
                unknown(Doubt::Answers),
                unknown(Doubt::NoContainerName),
                unknown(Doubt::NoAge),
            ]
        );
        let blind = ContainerEvidence { addresses: None, ..evidence(1, &[]) };
        assert_eq!(judge(&blind)[..2], [unknown(Doubt::AddressesUnreadable); 2]);
        let blind = ContainerEvidence { ports: 0, ..blind };
        assert_eq!(judge(&blind)[..3], [LeaseState::Leaked, LeaseState::Leaked, LeaseState::Young]);
        let blind = ContainerEvidence { has_detached_ports: true, ..blind };
        assert_eq!(judge(&blind)[1], unknown(Doubt::AddressesUnreadable));
        let unasked = finder.judge(&leases, &evidence(1, &[]), None, at(1300)).unwrap();
        assert_eq!(unasked[1], unknown(Doubt::AddressesUnreadable));
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
            interface: String::new(),
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
