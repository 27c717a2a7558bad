//! One lease directory of host-local, read as root although its content may be hostile: no symbolic
//! link is followed, no other kind of file is opened, and numbers and lengths are limited.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{
    AtFlags, CWD, Dir, FlockOperation, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, flock,
    linkat, openat, unlinkat, utimensat,
};
use rustix::io::Errno;

use super::error::CniError;
use super::leases::{LAST_RESERVED, LOCK, PROBE_LEASE};

/// Longest content of a lease, in bytes: the ID of a container and the name of a device. IDs of
/// containers have at most 256 bytes.
const CONTENT_MAX: u64 = 4096;
/// Most entries of a lease directory: the addresses of a subnet of 18 bits.
const ENTRIES_MAX: usize = 1 << 18;
/// The file of a lease until it is complete. host-local and earlier versions of the agent take it
/// for one of the files with the last allocated addresses, and leave it alone.
const NEW_LEASE: &str = "last_reserved_ip.new";
/// Most bytes of the file with the last allocated address: an address has at most 45.
const ADDRESS_MAX: u64 = 64;
/// Longest name of a foreign entry that is kept, in bytes.
const NAME_MAX: usize = 256;
/// Most foreign entries that are kept.
const FOREIGN_MAX: usize = 100;

/// A lease of host-local.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The leased address.
    pub address: IpAddr,
    /// The container. Any text, since the plugin stores what its caller names.
    pub container: String,
    /// The device in the container. Empty if the first versions of the plugin wrote the lease.
    pub interface: String,
    pub(super) file: FileIdentity,
}

/// Distinguishes the file of a lease from a later file of the same name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileIdentity {
    pub(super) inode: u64,
    pub(super) modified: Option<SystemTime>,
}

/// The files of a lease directory.
#[derive(Debug, Default)]
pub struct LeaseFiles {
    /// The leases, in the order of their addresses.
    pub leases: Vec<Lease>,
    /// The addresses that the agent leased for its probes.
    pub probes: Vec<IpAddr>,
    /// Files with the name of an address that are no lease, and why. host-local does not allocate
    /// these addresses.
    pub unreadable: BTreeMap<IpAddr, String>,
    /// The names of the first other files that host-local does not write.
    pub foreign: Vec<String>,
    /// Whether the directory has more entries than were read.
    pub is_truncated: bool,
}

/// An open lease directory.
#[derive(Debug)]
pub(super) struct LeaseDirectory {
    path: PathBuf,
    descriptor: OwnedFd,
}

impl LeaseDirectory {
    /// Opens the directory. Returns `None` if it does not exist.
    pub(super) fn open(path: &Path) -> Result<Option<Self>, CniError> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
        match openat(CWD, path, flags, Mode::empty()) {
            Ok(descriptor) => Ok(Some(Self { path: path.to_owned(), descriptor })),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(CniError::io("open directory", path, &error.into())),
        }
    }

    /// Creates the directory if it is missing, and opens it.
    pub(super) fn create(path: &Path) -> Result<Self, CniError> {
        fs::create_dir_all(path).map_err(|error| CniError::io("create directory", path, &error))?;
        let missing = || CniError::io("open directory", path, &Errno::NOENT.into());
        Self::open(path)?.ok_or_else(missing)
    }

    /// Takes the locks of host-local. Returns `None` if the plugin has one of them.
    pub(super) fn try_lock(&self) -> Result<Option<Vec<OwnedFd>>, CniError> {
        let locks = self.open_locks()?;
        for lock in &locks {
            match flock(lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(error) => return Err(self.lock_failed(error)),
            }
        }
        Ok(Some(locks))
    }

    /// Waits for the locks of host-local, as the plugin does.
    pub(super) fn lock(&self) -> Result<Vec<OwnedFd>, CniError> {
        let locks = self.open_locks()?;
        for lock in &locks {
            loop {
                match flock(lock, FlockOperation::LockExclusive) {
                    Ok(()) => break,
                    Err(Errno::INTR) => {}
                    Err(error) => return Err(self.lock_failed(error)),
                }
            }
        }
        Ok(locks)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn lock_failed(&self, error: Errno) -> CniError {
        CniError::io("lock", &self.path.join(LOCK), &error.into())
    }

    fn open_locks(&self) -> Result<Vec<OwnedFd>, CniError> {
        let failed = |error| self.lock_failed(error);
        // A pipe as the file would block without `NONBLOCK`.
        let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = openat(&self.descriptor, LOCK, flags | OFlags::CLOEXEC, Mode::from(0o644));
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        // The first versions of the plugin lock the directory.
        let directory = openat(&self.descriptor, ".", flags, Mode::empty()).map_err(failed)?;
        Ok(vec![directory, file.map_err(failed)?])
    }

    /// Adds a lease in the format of host-local. The file is complete before it gets its name, so a
    /// crash leaves no lease without an owner. The caller has the locks.
    pub(super) fn add(
        &self,
        address: IpAddr,
        container: &str,
        interface: &str,
    ) -> Result<(), CniError> {
        let path = self.path.join(address.to_string());
        let content = format!("{container}\r\n{interface}");
        let add = || -> io::Result<()> {
            // A killed process may have left the file, even as a second name of a lease.
            match unlinkat(&self.descriptor, NEW_LEASE, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            let mut file =
                File::from(openat(&self.descriptor, NEW_LEASE, flags, Mode::from(0o644))?);
            file.write_all(content.as_bytes())?;
            file.sync_data()?;
            // Unlike a rename, a link never replaces a file.
            let (from, to) = (NEW_LEASE, address.to_string());
            linkat(&self.descriptor, from, &self.descriptor, to, AtFlags::empty())?;
            unlinkat(&self.descriptor, NEW_LEASE, AtFlags::empty())?;
            Ok(())
        };
        add().map_err(|error| CniError::io("create", &path, &error))
    }

    /// Returns the address that was leased last of a range of host-local. `None` if it is unknown.
    pub(super) fn last_reserved(&self, range: usize) -> Option<IpAddr> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let name = format!("{LAST_RESERVED}{range}");
        let file = openat(&self.descriptor, name, flags, Mode::empty()).ok()?;
        let mut content = String::new();
        File::from(file).take(ADDRESS_MAX).read_to_string(&mut content).ok()?;
        content.trim().parse().ok()
    }

    /// Writes the address that was leased last of a range of host-local. Without it the next
    /// allocation begins at the first address, so an error is none.
    pub(super) fn set_last_reserved(&self, range: usize, address: IpAddr) {
        let flags = OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY | OFlags::NOFOLLOW;
        let flags = flags | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let name = format!("{LAST_RESERVED}{range}");
        if let Ok(file) = openat(&self.descriptor, name, flags, Mode::from(0o644)) {
            let _ = File::from(file).write_all(address.to_string().as_bytes());
        }
    }

    /// Reads all leases.
    pub(super) fn read(&self) -> Result<LeaseFiles, CniError> {
        let failed = |error: Errno| CniError::io("read directory", &self.path, &error.into());
        let mut files = LeaseFiles::default();
        let mut count = 0;
        for entry in Dir::read_from(&self.descriptor).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let Ok(name) = entry.file_name().to_str() else {
                files.add_foreign(&entry.file_name().to_string_lossy());
                continue;
            };
            if [".", "..", LOCK].contains(&name) || name.starts_with(LAST_RESERVED) {
                continue;
            }
            count += 1;
            if count > ENTRIES_MAX {
                files.is_truncated = true;
                break;
            }
            // The plugin writes addresses in their usual form.
            match name.parse::<IpAddr>() {
                Ok(address) if address.to_string() == name => {
                    self.read_lease(address, &mut files);
                }
                _ => files.add_foreign(name),
            }
        }
        files.leases.sort_by_key(|lease| lease.address);
        files.foreign.sort_unstable();
        Ok(files)
    }

    fn read_lease(&self, address: IpAddr, files: &mut LeaseFiles) {
        match self.open_lease(address) {
            Ok((content, _)) if content == PROBE_LEASE => files.probes.push(address),
            Ok((content, file)) => {
                let content = String::from_utf8_lossy(&content);
                let mut lines = content.lines().map(|line| line.trim().to_owned());
                let container = lines.next().unwrap_or_default();
                let interface = lines.next().unwrap_or_default();
                files.leases.push(Lease { address, container, interface, file });
            }
            // The plugin has just removed it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                files.unreadable.insert(address, error.to_string());
            }
        }
    }

    fn open_lease(&self, address: IpAddr) -> io::Result<(Vec<u8>, FileIdentity)> {
        // Opening a pipe or a device could block or have an effect. Its kind is checked before.
        let name = address.to_string();
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let found =
            File::from(openat(&self.descriptor, &name, flags, Mode::empty())?).metadata()?;
        if !found.is_file() {
            let kind = if found.is_symlink() { "a symbolic link" } else { "no regular file" };
            return Err(io::Error::other(format!("it is {kind}")));
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(openat(&self.descriptor, &name, flags, Mode::empty())?);
        let metadata = file.metadata()?;
        let mut content = Vec::new();
        if metadata.len() > CONTENT_MAX
            || file.take(CONTENT_MAX + 1).read_to_end(&mut content)? as u64 > CONTENT_MAX
        {
            return Err(io::Error::other(format!("it has more than {CONTENT_MAX} bytes")));
        }
        let modified = metadata.modified().ok();
        Ok((content, FileIdentity { inode: metadata.ino(), modified }))
    }

    /// Sets the time of a lease to now, so that it is no old lease of a container that is gone.
    pub(super) fn refresh(&self, address: IpAddr) -> Result<(), CniError> {
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let times = Timestamps { last_access: now, last_modification: now };
        let name = address.to_string();
        utimensat(&self.descriptor, &name, &times, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| CniError::io("write", &self.path.join(name), &error.into()))
    }

    /// Removes a lease. A file that the plugin wrote after the lease was read stays: its identity
    /// differs.
    pub(super) fn remove(&self, lease: &Lease) -> Result<(), CniError> {
        let path = self.path.join(lease.address.to_string());
        match self.open_lease(lease.address) {
            Ok((_, file)) if file == lease.file => {}
            Ok(_) => {
                return Err(CniError::io("remove", &path, &io::Error::other("it has changed")));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(CniError::io("remove", &path, &error)),
        }
        match unlinkat(&self.descriptor, lease.address.to_string(), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(CniError::io("remove", &path, &error.into())),
        }
    }
}

impl LeaseFiles {
    /// Returns the addresses that cannot be leased.
    #[must_use]
    pub fn taken(&self) -> BTreeSet<IpAddr> {
        let leases = self.leases.iter().map(|lease| lease.address);
        leases.chain(self.probes.iter().copied()).chain(self.unreadable.keys().copied()).collect()
    }

    fn add_foreign(&mut self, name: &str) {
        if self.foreign.len() < FOREIGN_MAX {
            self.foreign.push(name.chars().take(NAME_MAX).collect());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use rustix::fs::{FileType, mknodat};

    use super::*;

    struct Directory {
        root: tempfile::TempDir,
    }

    impl Directory {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            fs::create_dir(root.path().join("vxlan-1")).unwrap();
            Self { root }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.root.path().join("vxlan-1").join(name)
        }

        fn open(&self) -> LeaseDirectory {
            LeaseDirectory::open(&self.path("")).unwrap().unwrap()
        }
    }

    #[test]
    fn hostile_files_are_named_and_not_read() {
        let directory = Directory::new();
        let outside = directory.root.path().join("outside");
        fs::write(&outside, "secret\r\neth0").unwrap();
        symlink(&outside, directory.path("192.168.2.3")).unwrap();
        fs::write(directory.path("192.168.2.4"), vec![b'x'; 1 << 20]).unwrap();
        fs::create_dir(directory.path("192.168.2.5")).unwrap();
        // Opening a pipe would block.
        mknodat(CWD, directory.path("192.168.2.6"), FileType::Fifo, Mode::from(0o600), 0).unwrap();
        fs::write(directory.path("192.168.2.7"), "\u{1b}[31m\r\n\u{7}").unwrap();
        fs::write(directory.path("fd01:b:0::2"), "").unwrap();
        fs::write(directory.path("notes\n"), "").unwrap();
        fs::write(directory.path("lock"), "").unwrap();
        fs::write(directory.path("last_reserved_ip.0"), "192.168.2.7").unwrap();
        fs::write(directory.path("192.168.2.126"), PROBE_LEASE).unwrap();
        let found = directory.open().read().unwrap();
        assert_eq!(found.probes, ["192.168.2.126".parse::<IpAddr>().unwrap()]);
        let reasons: Vec<String> =
            found.unreadable.iter().map(|(ip, reason)| format!("{ip}: {reason}")).collect();
        assert_eq!(
            reasons,
            [
                "192.168.2.3: it is a symbolic link",
                "192.168.2.4: it has more than 4096 bytes",
                "192.168.2.5: it is no regular file",
                "192.168.2.6: it is no regular file",
            ]
        );
        let [lease] = &found.leases[..] else { panic!("{:?}", found.leases) };
        assert_eq!((lease.container.as_str(), lease.interface.as_str()), ("\u{1b}[31m", "\u{7}"));
        assert_eq!(found.foreign, ["fd01:b:0::2", "notes\n"]);
    }

    #[test]
    fn only_unchanged_lease_is_removed() {
        let directory = Directory::new();
        let path = directory.path("192.168.2.3");
        fs::write(&path, "one\r\neth0").unwrap();
        let leases = directory.open().read().unwrap().leases;
        fs::remove_file(&path).unwrap();
        directory.open().remove(&leases[0]).unwrap();
        fs::write(directory.path("keep"), "").unwrap();
        fs::write(&path, "two\r\neth0").unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        let error = directory.open().remove(&leases[0]).unwrap_err().to_string();
        assert!(error.ends_with("192.168.2.3: it has changed"), "{error}");
        assert!(path.exists());
        let leases = directory.open().read().unwrap().leases;
        // The network's directory may be replaced by a link meanwhile.
        let (open, moved) = (directory.open(), directory.root.path().join("moved"));
        fs::rename(directory.path(""), &moved).unwrap();
        symlink("/", directory.root.path().join("vxlan-1")).unwrap();
        open.remove(&leases[0]).unwrap();
        assert!(!moved.join("192.168.2.3").exists() && moved.join("keep").exists());
        assert!(LeaseDirectory::open(&directory.root.path().join("vxlan-1")).is_err(), "a link");
    }

    #[test]
    fn added_lease_has_format_of_host_local() {
        let directory = Directory::new();
        let open = directory.open();
        // A process was killed between the two names of the file.
        fs::write(directory.path("192.168.2.2"), "one\r\neth0").unwrap();
        fs::hard_link(directory.path("192.168.2.2"), directory.path(NEW_LEASE)).unwrap();
        let (two, three): (IpAddr, IpAddr) =
            ("192.168.2.2".parse().unwrap(), "192.168.2.3".parse().unwrap());
        open.add(three, "two", "eth1").unwrap();
        assert_eq!(fs::read(directory.path("192.168.2.3")).unwrap(), b"two\r\neth1");
        assert_eq!(fs::read(directory.path("192.168.2.2")).unwrap(), b"one\r\neth0");
        assert!(!directory.path(NEW_LEASE).exists());
        let error = open.add(two, "three", "eth0").unwrap_err().to_string();
        assert!(error.contains("192.168.2.2: File exists"), "{error}");
        let found = open.read().unwrap();
        assert_eq!(found.taken(), [two, three].into());
        assert_eq!(found.foreign, [""; 0]);
    }

    #[test]
    fn last_reserved_address_is_kept_for_each_range() {
        let directory = Directory::new();
        let open = directory.open();
        assert_eq!(open.last_reserved(0), None);
        let address: IpAddr = "192.168.2.3".parse().unwrap();
        open.set_last_reserved(0, address);
        assert_eq!((open.last_reserved(0), open.last_reserved(1)), (Some(address), None));
        assert_eq!(fs::read(directory.path("last_reserved_ip.0")).unwrap(), b"192.168.2.3");
        fs::write(directory.path("last_reserved_ip.1"), vec![b'1'; 1 << 20]).unwrap();
        assert_eq!(open.last_reserved(1), None);
    }

    #[test]
    fn lock_that_is_no_file_is_refused() {
        let directory = Directory::new();
        symlink("/dev/null", directory.path("lock")).unwrap();
        assert!(directory.open().try_lock().is_err());
        fs::remove_file(directory.path("lock")).unwrap();
        mknodat(CWD, directory.path("lock"), FileType::Fifo, Mode::from(0o600), 0).unwrap();
        assert!(directory.open().try_lock().is_err());
        fs::remove_file(directory.path("lock")).unwrap();
        let held = directory.open().try_lock().unwrap();
        assert!(held.is_some() && directory.open().try_lock().unwrap().is_none());
        drop(held);
        let held = directory.open().lock().unwrap();
        assert!(directory.open().try_lock().unwrap().is_none());
        drop(held);
    }

    #[test]
    fn thousands_of_entries_take_little_memory() {
        let directory = Directory::new();
        for number in 0..5000_u32 {
            fs::write(directory.path(&format!("note-{number}")), "").unwrap();
        }
        let open = directory.open();
        let taken = allocation_counter::measure(|| {
            let found = open.read().unwrap();
            assert_eq!((found.foreign.len(), found.leases.len()), (FOREIGN_MAX, 0));
        });
        assert!(taken.bytes_max < 256 * 1024, "{} bytes", taken.bytes_max);
    }
}
