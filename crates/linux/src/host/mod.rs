//! Host-wide settings that the overlays need: the host forwards packets, and the programs that
//! manage its network ignore our devices. [`HostSettings::restore`] restores the former settings.
//! [`HostLock`] ensures that only one agent programs a host.
//!
//! The former value of a setting is saved to a file before the change. So a later run can restore
//! it, even without the configuration. Files are written atomically and carry our mark. Foreign
//! files are never changed.

mod drop_in;
mod error;
mod lock;
mod sysctl;
#[cfg(test)]
mod tests;

use std::io::{Read as _, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};
use std::{fs, io};

use overlay_types::tunnel::Desired;
use rustix::fs::OFlags;

pub use self::error::HostError;
pub use self::lock::HostLock;

/// Paths of the host's files. Tests use other paths.
#[derive(Debug, Clone)]
pub(crate) struct HostPaths {
    /// `/etc`.
    pub(crate) etc: PathBuf,
    /// `/proc`.
    pub(crate) proc: PathBuf,
}

impl Default for HostPaths {
    fn default() -> Self {
        Self { etc: "/etc".into(), proc: "/proc".into() }
    }
}

/// Result of [`HostSettings::restore`].
#[derive(Debug, Default, PartialEq, Eq)]
pub struct RestoreResult {
    /// Descriptions of the changes.
    pub done: Vec<String>,
    /// Descriptions of the changes that failed, with the error.
    pub failed: Vec<(String, HostError)>,
}

impl RestoreResult {
    /// Records the result of one change. Returns whether it succeeded.
    fn record(&mut self, change: String, result: Result<(), HostError>) -> bool {
        match result {
            Ok(()) => self.done.push(change),
            Err(error) => {
                self.failed.push((change, error));
                return false;
            }
        }
        true
    }
}

/// The settings of this host, in the calling thread's network namespace.
#[derive(Debug)]
pub struct HostSettings {
    state_dir: PathBuf,
    paths: HostPaths,
    uplinks: Vec<String>,
}

impl HostSettings {
    /// Creates the settings. `state_dir` holds the file with the former values.
    #[must_use]
    pub fn new(state_dir: &Path) -> Self {
        Self::with_paths(state_dir, HostPaths::default())
    }

    /// Creates the settings with another `/etc` and `/proc`.
    #[must_use]
    pub(crate) fn with_paths(state_dir: &Path, paths: HostPaths) -> Self {
        Self { state_dir: state_dir.to_owned(), paths, uplinks: Vec::new() }
    }

    /// Adds the devices that replies to masqueraded packets of containers arrive at. The host must
    /// forward packets of IPv4 from them. IPv6 has one switch for all devices.
    #[must_use]
    pub fn with_uplinks(mut self, uplinks: Vec<String>) -> Self {
        self.uplinks = uplinks;
        self
    }

    /// Returns the uplinks that the host forwards no packets of IPv4 from, although it forwards
    /// those of other devices.
    #[must_use]
    pub fn closed_uplinks(&self) -> Vec<String> {
        self.sysctl().closed_uplinks(&self.uplinks)
    }

    /// Applies the settings that `desired` needs and returns descriptions of the changes. A host
    /// without overlays needs none. If all settings are right, this reads only a few files.
    ///
    /// After an error the remaining changes are still made.
    ///
    /// # Errors
    /// When a setting, a managed file, or the file with the former values cannot be written.
    pub fn apply(&self, desired: &Desired) -> Result<Vec<String>, HostError> {
        self.apply_all(desired, false)
    }

    /// Applies the settings after [`HostError::Reload`]: the programs that manage the network
    /// reload their configuration even if no file changed.
    ///
    /// # Errors
    /// See [`Self::apply`].
    pub fn retry(&self, desired: &Desired) -> Result<Vec<String>, HostError> {
        self.apply_all(desired, true)
    }

    fn apply_all(&self, desired: &Desired, must_reload: bool) -> Result<Vec<String>, HostError> {
        if desired.vxlan_devices.is_empty() {
            return Ok(Vec::new());
        }
        let sysctl = self.sysctl();
        let mut done = sysctl.apply(has_ipv6(desired), &self.uplinks)?;
        if self.is_host_namespace() {
            done.extend(drop_in::apply(
                &self.paths,
                desired,
                &sysctl.changed_accept_ra()?,
                must_reload,
            )?);
        }
        Ok(done)
    }

    /// Restores the former settings and removes our files. A setting that another program has
    /// changed since keeps its value. After an error the remaining changes are still made.
    #[must_use]
    pub fn restore(&self) -> RestoreResult {
        let mut restored = RestoreResult::default();
        // The files first: otherwise the programs that read them undo the other changes.
        if self.is_host_namespace() {
            drop_in::remove(&self.paths, &mut restored);
        }
        self.sysctl().restore(&mut restored);
        restored
    }

    /// Returns whether former values are saved, which [`Self::restore`] would restore.
    #[must_use]
    pub fn has_saved_settings(&self) -> bool {
        self.sysctl().saved.exists()
    }

    /// Describes the changes that [`Self::restore`] makes.
    ///
    /// # Errors
    /// When the file with the former values cannot be read.
    pub fn preview_restore(&self) -> Result<Vec<String>, HostError> {
        let mut list = Vec::new();
        if self.is_host_namespace() {
            list.extend(
                drop_in::owned_files(&self.paths).map(|path| format!("remove {}", path.display())),
            );
        }
        list.extend(self.sysctl().preview_restore()?.iter().map(ToString::to_string));
        Ok(list)
    }

    fn sysctl(&self) -> sysctl::Sysctl {
        sysctl::Sysctl {
            root: self.paths.proc.join("sys/net"),
            saved: self.state_dir.join(sysctl::SAVED_FILE),
        }
    }

    /// Returns whether this is the network namespace of the host's process 1. The programs that
    /// read the files in `/etc` manage only that namespace.
    ///
    /// Compares a file of procfs that exists once per namespace. To read the link `ns/net` of
    /// process 1, an agent needs every capability of that process (ptrace(2), "Ptrace access mode
    /// checking"), and its unit grants only a few.
    fn is_host_namespace(&self) -> bool {
        let identity = |process: &str| {
            let file = fs::metadata(self.paths.proc.join(process).join("net/dev")).ok()?;
            Some((file.dev(), file.ino()))
        };
        // Without permission to read the files of process 1, this process does not manage the host.
        identity("1").is_some_and(|first| Some(first) == identity("thread-self"))
    }
}

fn has_ipv6(desired: &Desired) -> bool {
    desired.vxlan_devices.iter().any(|local| local.ip6.is_some())
}

/// Writes a file of the state directory atomically, accessible to its owner only.
///
/// # Errors
/// When the directory or the file cannot be created or written.
pub fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    create_private_directory(path.parent().unwrap_or_else(|| Path::new(".")))?;
    write_atomically(path, content, 0o600)
}

/// Reads a text file that this program wrote; `None` if it does not exist. The file decides what
/// this user does to the host, so no other user may write it. At most `length_max` bytes are read.
///
/// # Errors
/// When the file cannot be read, is no regular file, or another user can write it.
pub fn read_private(path: &Path, length_max: u64) -> io::Result<Option<String>> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let mut options = fs::OpenOptions::new();
    options.read(true).custom_flags(flags.bits().cast_signed());
    let file = match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let is_own = found.uid() == rustix::process::geteuid().as_raw();
    if !is_own || found.mode() & 0o022 != 0 {
        return Err(io::Error::other("another user can write it: remove it"));
    }
    let mut text = String::new();
    file.take(length_max).read_to_string(&mut text)?;
    Ok(Some(text))
}

/// Creates a directory and its missing parents, accessible to the owner only. The mode of an
/// existing directory stays: it may be shared.
fn create_private_directory(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Writes a file atomically, readable for every user.
fn write_public(path: &Path, content: &[u8]) -> io::Result<()> {
    fs::create_dir_all(path.parent().unwrap_or_else(|| Path::new(".")))?;
    write_atomically(path, content, 0o644)
}

fn write_atomically(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let folder = path.parent().unwrap_or_else(|| Path::new("."));
    let mut file = tempfile::Builder::new().prefix(".mesos-overlay").tempfile_in(folder)?;
    file.write_all(content)?;
    // Not at creation: the umask, which belongs to the host process, would clear bits.
    file.as_file().set_permissions(fs::Permissions::from_mode(mode))?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(io::Error::from)?;
    fs::File::open(folder)?.sync_all()
}
