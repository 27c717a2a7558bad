//! Leases the addresses of attachments, in the directory and the format of host-local.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use overlay_cni::allocation::Range;
use overlay_cni::config::NetworkConfig;
use overlay_cni::request::Attachment;
use overlay_cni::{ErrorCode, PluginError};
use overlay_linux::cni::{ContainerEvidence, Lease, LeaseFiles, Leases, LockedLeases, StaleLeases};
use overlay_linux::dataplane::Dataplane;
use overlay_types::addr::InterfaceAddress;

use crate::{failure, ports};

/// Reads what the host shows about containers. It takes time, so it runs only if a range is full.
pub(crate) type ReadEvidence<'a> = &'a dyn Fn() -> Result<ContainerEvidence, PluginError>;

/// The addresses of an attachment.
#[derive(Debug, Default)]
pub(crate) struct Acquired {
    /// The addresses, one for each range of the configuration.
    pub(crate) addresses: Vec<InterfaceAddress>,
    /// Those that were leased now.
    new: Vec<IpAddr>,
}

/// Leases an address of each range. Keeps the leases of the attachment that exist.
///
/// # Errors
/// When no address is free, or the file system refuses. Then nothing is leased.
pub(crate) fn acquire(
    config: &NetworkConfig,
    attachment: &Attachment,
    requested: &[IpAddr],
    evidence: ReadEvidence<'_>,
) -> Result<Acquired, PluginError> {
    let locked = lock(config)?;
    let mut allocator =
        Allocator { config, attachment, requested, evidence, locked: &locked, new: Vec::new() };
    match allocator.run() {
        Ok(addresses) => Ok(Acquired { addresses, new: allocator.new }),
        Err(error) => {
            let new = allocator.new;
            release_locked(&locked, attachment, &new)?;
            Err(error)
        }
    }
}

/// One call of [`acquire`], with the locks.
struct Allocator<'a> {
    config: &'a NetworkConfig,
    attachment: &'a Attachment,
    requested: &'a [IpAddr],
    evidence: ReadEvidence<'a>,
    locked: &'a LockedLeases,
    /// The addresses that were leased now.
    new: Vec<IpAddr>,
}

impl Allocator<'_> {
    fn run(&mut self) -> Result<Vec<InterfaceAddress>, PluginError> {
        let ranges = &self.config.ranges;
        let has_range = |it: &&IpAddr| ranges.iter().any(|range| range.is_of_family(**it));
        if let Some(address) = self.requested.iter().find(|it| !has_range(it)) {
            let message =
                format!("address {address} cannot be given: the network has no such family");
            return Err(PluginError::new(ErrorCode::AddressRefused, message)
                .with_details("ask for an address of a family of the network, or for none"));
        }
        let files = read(self.locked)?;
        let own: Vec<IpAddr> = owned(&files, self.attachment).map(|it| it.address).collect();
        let mut taken = files.taken();
        let mut addresses = Vec::new();
        for (index, range) in ranges.iter().enumerate() {
            let address = match own.iter().copied().find(|address| range.has(*address)) {
                Some(address) => self.keep(address)?,
                None => self.add(index, range, &mut taken)?,
            };
            addresses.extend(InterfaceAddress::within(range.subnet(), address));
        }
        Ok(addresses)
    }

    /// Keeps a lease of an earlier ADD. No container may have the address yet, so an old lease
    /// could be released before this one has it.
    fn keep(&self, address: IpAddr) -> Result<IpAddr, PluginError> {
        self.locked.refresh(address).map_err(|error| failure::io(&error))?;
        Ok(address)
    }

    /// Leases a free address of a range.
    fn add(
        &mut self,
        index: usize,
        range: &Range,
        taken: &mut BTreeSet<IpAddr>,
    ) -> Result<IpAddr, PluginError> {
        let requested = self.requested.iter().copied().find(|address| range.is_of_family(*address));
        let address = match requested {
            Some(requested) => range.request(requested, taken)?,
            None => self.choose(index, range, taken)?,
        };
        let Attachment { container, interface } = self.attachment;
        self.locked
            .add(address, container.as_str(), interface.as_str())
            .map_err(|error| failure::io(&error))?;
        self.new.push(address);
        if requested.is_none() {
            self.locked.set_last_reserved(index, address);
        }
        Ok(address)
    }

    /// Chooses a free address. A full range is searched for leases of containers that are gone.
    fn choose(
        &self,
        index: usize,
        range: &Range,
        taken: &mut BTreeSet<IpAddr>,
    ) -> Result<IpAddr, PluginError> {
        let last = self.locked.last_reserved(index);
        if let Some(address) = range.allocate(taken, last) {
            return Ok(address);
        }
        self.release_stale()?;
        *taken = read(self.locked)?.taken();
        range.allocate(taken, last).ok_or_else(|| {
            let message = format!("no address of {} is free", range.subnet());
            PluginError::new(ErrorCode::NoFreeAddress, message).with_details(
                "run fewer containers of this overlay on this host, or add an overlay with a \
                 shorter prefix at the master for new containers",
            )
        })
    }

    /// Releases the leases of containers that are gone, as the agent does. Those of this call stay.
    fn release_stale(&self) -> Result<(), PluginError> {
        let evidence = (self.evidence)()?;
        let mut leases = read(self.locked)?.leases;
        leases.retain(|lease| !self.new.contains(&lease.address));
        let stale = StaleLeases::default()
            .find(&self.config.name, &leases, &evidence, Duration::ZERO)
            .map_err(|error| failure::io(&error))?;
        ports::unmap(&stale)?;
        stale
            .iter()
            .try_for_each(|lease| self.locked.release(lease))
            .map_err(|error| failure::io(&error))
    }
}

/// Reads what the host shows about the containers of the network's bridge.
pub(crate) fn read_evidence(config: &NetworkConfig) -> Result<ContainerEvidence, PluginError> {
    let mut dataplane = Dataplane::open().map_err(|error| failure::io(&error))?;
    let ports = dataplane.container_ports(true).map_err(|error| failure::io(&error))?;
    Ok(ContainerEvidence::new(ports, &config.bridge))
}

/// Ends the leases that [`acquire`] made, after a failure.
pub(crate) fn undo(
    config: &NetworkConfig,
    attachment: &Attachment,
    acquired: &Acquired,
) -> Result<(), PluginError> {
    let locked = lock(config)?;
    let files = read(&locked)?;
    let own = owned(&files, attachment).filter(|it| acquired.new.contains(&it.address));
    let own: Vec<Lease> = own.cloned().collect();
    // Ports may have been mapped before the failure, to the addresses of one family.
    ports::unmap(&own)?;
    release_locked(&locked, attachment, &acquired.new)
}

fn release_locked(
    locked: &LockedLeases,
    attachment: &Attachment,
    addresses: &[IpAddr],
) -> Result<(), PluginError> {
    if addresses.is_empty() {
        return Ok(());
    }
    let files = read(locked)?;
    let mut own = owned(&files, attachment).filter(|it| addresses.contains(&it.address));
    own.try_for_each(|lease| locked.release(lease)).map_err(|error| failure::io(&error))
}

/// Lists the leases of an attachment.
pub(crate) fn of_attachment(
    config: &NetworkConfig,
    attachment: &Attachment,
) -> Result<Vec<Lease>, PluginError> {
    let files = all(config)?;
    Ok(owned(&files, attachment).cloned().collect())
}

/// Reads all leases of the network, without the lock.
pub(crate) fn all(config: &NetworkConfig) -> Result<LeaseFiles, PluginError> {
    handle(config).files(&config.name).map_err(|error| failure::io(&error))
}

/// Ends leases. A lease that has changed meanwhile is an error.
pub(crate) fn release(config: &NetworkConfig, leases: &[Lease]) -> Result<(), PluginError> {
    if leases.is_empty() {
        return Ok(());
    }
    let locked = lock(config)?;
    leases.iter().try_for_each(|lease| locked.release(lease)).map_err(|error| failure::io(&error))
}

/// Checks that an address of each range is free.
///
/// # Errors
/// When none is, or the directory cannot be locked and read.
pub(crate) fn check_available(config: &NetworkConfig) -> Result<(), PluginError> {
    let not_available =
        |error: PluginError| PluginError::new(ErrorCode::NotAvailable, error.to_string());
    let locked = lock(config).map_err(not_available)?;
    let taken = read(&locked).map_err(not_available)?.taken();
    let full = config.ranges.iter().find(|range| range.allocate(&taken, None).is_none());
    full.map_or(Ok(()), |range| {
        let message = format!("no address of {} is free", range.subnet());
        Err(PluginError::new(ErrorCode::NotAvailable, message))
    })
}

/// Returns the leases of an attachment. The first versions of host-local wrote no interface.
fn owned<'a>(
    files: &'a LeaseFiles,
    attachment: &'a Attachment,
) -> impl Iterator<Item = &'a Lease> + 'a {
    files.leases.iter().filter(|lease| {
        lease.container == attachment.container.as_str()
            && (lease.interface == attachment.interface.as_str() || lease.interface.is_empty())
    })
}

fn handle(config: &NetworkConfig) -> Leases {
    Leases::new(config.data_dir.as_deref())
}

fn lock(config: &NetworkConfig) -> Result<LockedLeases, PluginError> {
    handle(config).lock(&config.name).map_err(|error| failure::io(&error))
}

fn read(locked: &LockedLeases) -> Result<LeaseFiles, PluginError> {
    let files = locked.files().map_err(|error| failure::io(&error))?;
    if files.is_truncated {
        let path = locked.path().display();
        let message = format!("lease directory {path}: it has more files than leases");
        return Err(failure::io(&message).with_details("remove the files that are no leases"));
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::SystemTime;

    use serde_json::json;

    use super::*;

    struct Directory {
        root: tempfile::TempDir,
        config: NetworkConfig,
    }

    impl Directory {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            let config = json!({
                "name": "vxlan-1", "bridge": "m-test-none",
                "ipam": {"dataDir": root.path(), "subnet": "192.168.0.0/29",
                    "subnet6": "fd01:b::/126"},
            });
            let config = NetworkConfig::parse(config.to_string().as_bytes()).unwrap();
            Self { root, config }
        }

        fn acquire(&self, container: &str, requested: &[&str]) -> Result<Vec<String>, ErrorCode> {
            // Every address is in use, so no lease is stale.
            let used = (0..8).map(|last| IpAddr::from([192, 168, 0, last]));
            let used =
                used.chain((0..4).map(|last| IpAddr::from([0xfd01, 0xb, 0, 0, 0, 0, 0, last])));
            let addresses = Some(used.collect());
            self.acquire_with(
                container,
                requested,
                ContainerEvidence { ports: 1, addresses, ..Default::default() },
            )
        }

        fn acquire_with(
            &self,
            container: &str,
            requested: &[&str],
            evidence: ContainerEvidence,
        ) -> Result<Vec<String>, ErrorCode> {
            let requested: Vec<IpAddr> = requested.iter().map(|ip| ip.parse().unwrap()).collect();
            let evidence = || Ok(evidence.clone());
            let acquired = acquire(&self.config, &attachment(container), &requested, &evidence);
            let acquired = acquired.map_err(|error| error.code())?;
            Ok(acquired.addresses.iter().map(ToString::to_string).collect())
        }

        fn write(&self, address: &str, content: &str) {
            fs::create_dir_all(self.root.path().join("vxlan-1")).unwrap();
            fs::write(self.root.path().join("vxlan-1").join(address), content).unwrap();
        }

        fn modified(&self, address: &str) -> SystemTime {
            let path = self.root.path().join("vxlan-1").join(address);
            fs::metadata(path).unwrap().modified().unwrap()
        }

        /// Makes a lease an hour older.
        fn make_older(&self, address: &str) {
            let path = self.root.path().join("vxlan-1").join(address);
            let file = fs::File::options().write(true).open(path).unwrap();
            file.set_modified(self.modified(address) - Duration::from_hours(1)).unwrap();
        }

        fn leased(&self) -> Vec<String> {
            let files = all(&self.config).unwrap();
            files.leases.iter().map(|lease| lease.address.to_string()).collect()
        }
    }

    fn attachment(container: &str) -> Attachment {
        Attachment::new(container, "eth0").unwrap()
    }

    #[test]
    fn attachment_keeps_its_addresses() {
        let directory = Directory::new();
        let first = directory.acquire("c1", &[]).unwrap();
        assert_eq!(first, ["192.168.0.2/29", "fd01:b::2/126"]);
        assert_eq!(directory.acquire("c1", &[]), Ok(first));
        let second = directory.acquire("c2", &[]).unwrap();
        assert_eq!(second, ["192.168.0.3/29", "fd01:b::3/126"]);
        let leases = of_attachment(&directory.config, &attachment("c1")).unwrap();
        release(&directory.config, &leases).unwrap();
        release(&directory.config, &leases).unwrap();
        assert_eq!(directory.leased(), ["192.168.0.3", "fd01:b::3"]);
        // The next address is that after the last one, as with host-local.
        let third = directory.acquire("c3", &[]).unwrap();
        assert_eq!(third, ["192.168.0.4/29", "fd01:b::2/126"]);
    }

    #[test]
    fn leases_of_host_local_are_taken_over() {
        let directory = Directory::new();
        directory.write("192.168.0.2", "c1\r\neth0");
        directory.write("192.168.0.3", "c2");
        directory.write("192.168.0.6", "mesos-overlay-probe\r\nmo-probe");
        directory.write("last_reserved_ip.0", "192.168.0.4");
        assert_eq!(directory.acquire("c1", &[]).unwrap()[0], "192.168.0.2/29");
        assert_eq!(directory.acquire("c2", &[]).unwrap()[0], "192.168.0.3/29");
        // fd01:b::3 is the last address of IPv6, so this container gets none at all.
        assert_eq!(directory.acquire("c3", &[]), Err(ErrorCode::NoFreeAddress));
        assert!(!directory.leased().contains(&"192.168.0.5".to_owned()), "nothing is leased");
    }

    #[test]
    fn full_range_is_searched_for_stale_leases() {
        let directory = Directory::new();
        for container in ["c1", "c2"] {
            directory.acquire(container, &[]).unwrap();
        }
        assert_eq!(directory.acquire("c3", &[]), Err(ErrorCode::NoFreeAddress));
        // After a reboot the bridge has no port, so no container has an address.
        let third = directory.acquire_with("c3", &[], ContainerEvidence::default()).unwrap();
        // The refused container had .4 for a moment.
        assert_eq!(third, ["192.168.0.5/29", "fd01:b::2/126"]);
        assert_eq!(directory.leased(), ["192.168.0.5", "fd01:b::2"]);
    }

    /// The own port of an ADD always exists, so only the time of a lease shows the reboot.
    #[test]
    fn full_range_is_searched_for_leases_before_boot() {
        let directory = Directory::new();
        for container in ["c1", "c2"] {
            directory.acquire(container, &[]).unwrap();
        }
        let boot = directory.modified("192.168.0.2") - Duration::from_mins(30);
        let evidence = ContainerEvidence {
            ports: 1,
            addresses: Some(BTreeSet::new()),
            boot: Some(boot),
            ..Default::default()
        };
        let acquire = || directory.acquire_with("c3", &[], evidence.clone());
        assert_eq!(acquire(), Err(ErrorCode::NoFreeAddress), "the leases are young");
        for address in directory.leased() {
            directory.make_older(&address);
        }
        assert_eq!(acquire().unwrap()[1], "fd01:b::2/126");
    }

    /// Otherwise the agent may release it before the container has the address.
    #[test]
    fn kept_lease_is_young_again() {
        let directory = Directory::new();
        let addresses = directory.acquire("c1", &[]).unwrap();
        let first = directory.modified("192.168.0.2");
        directory.make_older("192.168.0.2");
        assert_eq!(directory.acquire("c1", &[]), Ok(addresses));
        assert!(directory.modified("192.168.0.2") >= first);
    }

    #[test]
    fn requested_address_is_leased_once() {
        let directory = Directory::new();
        let first = directory.acquire("c1", &["192.168.0.5"]).unwrap();
        assert_eq!(first[0], "192.168.0.5/29");
        for refused in ["192.168.0.5", "192.168.1.5", "192.168.0.1"] {
            let error = directory.acquire("c2", &[refused]).unwrap_err();
            assert_eq!(error, ErrorCode::AddressRefused, "{refused}");
        }
        assert_eq!(directory.leased().len(), 2);
        assert_eq!(directory.acquire("c2", &[]).unwrap()[0], "192.168.0.2/29");
        assert!(check_available(&directory.config).is_err(), "IPv6 is full");
    }
}
