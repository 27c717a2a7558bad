//! The directory of CNI configurations. Files are written atomically, so that Mesos never reads
//! half a file. Stale managed files are removed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read as _, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use overlay_types::addr::{OverlayName, Subnet};
use overlay_types::container_network::CniNetwork;
use parking_lot::Mutex;
use rustix::io::Errno;

use super::configuration::{
    BRIDGE_PLUGIN, Form, IPAM_PLUGIN, OVERLAY_PLUGIN, PORT_MAPPER_PLUGIN, declared_name, is_ours,
    render, subnets_of,
};
use super::error::CniError;
use super::leases::Leases;

/// Maximum number of bytes that are read of a file. A network configuration has some hundred bytes,
/// and foreign files must not fill the memory.
const FILE_MAX: u64 = 1024 * 1024;
/// Longest prefix that host-local accepts: addresses of the network, the bridge, one container and
/// the broadcast.
const PREFIX_MAX: u8 = 30;
/// Extension of the files.
const EXTENSION: &str = ".conf";
/// Name of the staging directory inside of the directory that Mesos reads, where Mesos skips
/// directories. Also the suffix of the name of the staging directory beside that directory.
const STAGING_NAME: &str = ".mesos-overlay";

/// Result of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The file did not exist.
    Created,
    /// A managed file had other content.
    Replaced,
    /// The file had the desired content and was not written.
    Unchanged,
}

/// Result of the removal of stale files.
#[derive(Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Removal {
    /// The overlays of the removed files.
    pub removed: Vec<OverlayName>,
    /// The errors of the files that could not be read or removed. The removal continued after each.
    pub failed: Vec<CniError>,
}

/// The managed files of the directory.
#[derive(Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct ManagedFiles {
    /// The files by their overlays.
    pub files: BTreeMap<OverlayName, PathBuf>,
    /// The errors of the files that could not be read. They have the names of managed files.
    pub unreadable: Vec<CniError>,
}

/// The directory from which the Mesos agent reads CNI configurations (its
/// `--network_cni_config_dir`).
#[derive(Debug)]
pub struct CniDirectory {
    directory: PathBuf,
    data_dir: Option<PathBuf>,
    plugins: Vec<PathBuf>,
    port_mapper: bool,
    /// Whether the operator chose `mesos-overlay-cni`.
    wants_overlay_plugin: bool,
    /// Held by every call that writes: several threads share the staging directory.
    lock: Mutex<()>,
}

impl CniDirectory {
    /// Creates a handle. Reads and writes no file.
    ///
    /// `data_dir` is the directory of host-local's leases, by default the plugin's default.
    /// `plugins` is the Mesos agent's `--network_cni_plugins_dir`; plugins are not checked if it is
    /// empty. `port_mapper` enables the port mapper of Mesos if `plugins` has that plugin.
    #[must_use]
    pub fn new(
        directory: PathBuf,
        data_dir: Option<PathBuf>,
        plugins: Vec<PathBuf>,
        port_mapper: bool,
    ) -> Self {
        let wants_overlay_plugin = false;
        let lock = Mutex::new(());
        Self { directory, data_dir, plugins, port_mapper, wants_overlay_plugin, lock }
    }

    /// Chooses `mesos-overlay-cni`. Its program must be in a directory of `plugins`, or the
    /// configurations name the plugins bridge and host-local: the Docker executor of clusterd ends
    /// with its task if a plugin is missing.
    #[must_use]
    pub fn with_overlay_plugin(self, wants_overlay_plugin: bool) -> Self {
        Self { wants_overlay_plugin, ..self }
    }

    /// Returns the plugin that the configurations name now.
    #[must_use]
    pub fn plugin(&self) -> &'static str {
        match self.form() {
            Form::Overlay => OVERLAY_PLUGIN,
            Form::PortMapper => PORT_MAPPER_PLUGIN,
            Form::Plain => BRIDGE_PLUGIN,
        }
    }

    /// Returns why the configurations do not name the plugin that the operator chose.
    #[must_use]
    pub fn plugin_problem(&self) -> Option<String> {
        let plugin = self.plugin();
        (self.wants_overlay_plugin && plugin != OVERLAY_PLUGIN).then(|| {
            format!("{plugin} attaches its containers: {}", self.plugin_missing(OVERLAY_PLUGIN))
        })
    }

    /// Creates the directory, because a Mesos agent exits without it. Removes the staging files of
    /// an interrupted write.
    ///
    /// # Errors
    /// When the directory cannot be created or read.
    pub fn prepare(&self) -> Result<(), CniError> {
        let _guard = self.lock.lock();
        let directory = self.create_directory()?;
        clear_staging(&directory)
    }

    /// Returns the leases of the networks.
    #[must_use]
    pub fn leases(&self) -> Leases {
        Leases::new(self.data_dir.as_deref())
    }

    /// Writes the file of `network`, unless the file has the desired content.
    ///
    /// # Errors
    /// When the file system refuses, the file is foreign, another file declares the same network,
    /// or a plugin is missing. The existing file then stays unchanged.
    pub fn write(&self, network: &CniNetwork) -> Result<Outcome, CniError> {
        let _guard = self.lock.lock();
        if network.subnet.prefix() > PREFIX_MAX {
            return Err(CniError::SubnetTooSmall {
                overlay: network.name.clone(),
                subnet: network.subnet,
            });
        }
        let content = self.content(network)?;
        let directory = self.create_directory()?;
        let path = self.path_of(&network.name);
        let outcome = match read_managed(&path, &network.name)? {
            None => Outcome::Created,
            Some(found) if found == content => Outcome::Unchanged,
            Some(_) => Outcome::Replaced,
        };
        self.check_declared_once(&network.name, &path)?;
        if outcome != Outcome::Unchanged {
            write_atomically(&directory, &path, &content)
                .map_err(|error| CniError::io("write", &path, &error))?;
        }
        Ok(outcome)
    }

    /// Lists the managed files by their overlays, without foreign files.
    ///
    /// # Errors
    /// When the directory cannot be read. A missing directory has no files.
    pub fn ours(&self) -> Result<ManagedFiles, CniError> {
        let mut managed = ManagedFiles::default();
        self.read_managed_files(|overlay, path, _| drop(managed.files.insert(overlay, path)))
            .map(|unreadable| ManagedFiles { unreadable, ..managed })
    }

    /// Lists the subnets of the managed files.
    ///
    /// # Errors
    /// When the directory or a file of it cannot be read. A missing directory has no files.
    pub fn subnets(&self) -> Result<BTreeMap<OverlayName, Vec<Subnet>>, CniError> {
        let mut subnets = BTreeMap::new();
        let unreadable = self.read_managed_files(|overlay, _, content| {
            subnets.insert(overlay, subnets_of(&content));
        })?;
        unreadable.into_iter().next().map_or(Ok(subnets), Err)
    }

    /// Reads all managed files. Returns the errors of the files that could not be read.
    fn read_managed_files(
        &self,
        mut found: impl FnMut(OverlayName, PathBuf, Vec<u8>),
    ) -> Result<Vec<CniError>, CniError> {
        let paths = match entries(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            paths => {
                paths.map_err(|error| CniError::io("read directory", &self.directory, &error))?
            }
        };
        let mut unreadable = Vec::new();
        for path in paths {
            let Some(overlay) = overlay_of(&path) else { continue };
            match read_managed(&path, &overlay) {
                Ok(Some(content)) => found(overlay, path, content),
                Err(error @ CniError::Io { .. }) => unreadable.push(error),
                // A foreign object, or a file that was removed meanwhile.
                Ok(None) | Err(_) => {}
            }
        }
        Ok(unreadable)
    }

    /// Removes the managed file of an overlay, and the staging files of an interrupted write.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn remove(&self, overlay: &OverlayName) -> Result<(), CniError> {
        let _guard = self.lock.lock();
        let path = self.path_of(overlay);
        if read_managed(&path, overlay)?.is_some() {
            fs::remove_file(&path)
                .and_then(|()| sync(&self.directory))
                .map_err(|error| CniError::io("remove", &path, &error))?;
        }
        clear_staging(&self.directory)
    }

    /// Removes the managed files of all overlays except the `assigned` ones. Running containers are
    /// not affected: Mesos keeps a copy of the configuration that a container started with.
    pub fn remove_stale(&self, assigned: &BTreeSet<OverlayName>) -> Removal {
        let _guard = self.lock.lock();
        let mut removal = Removal::default();
        let ManagedFiles { files, unreadable } = self.ours().unwrap_or_else(|error| {
            let unreadable = vec![error];
            ManagedFiles { unreadable, ..ManagedFiles::default() }
        });
        removal.failed = unreadable;
        for (overlay, path) in files.into_iter().filter(|(overlay, _)| !assigned.contains(overlay))
        {
            match fs::remove_file(&path) {
                Ok(()) => removal.removed.push(overlay),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => removal.failed.push(CniError::io("remove", &path, &error)),
            }
        }
        if !removal.removed.is_empty()
            && let Err(error) = sync(&self.directory)
        {
            removal.failed.push(CniError::io("sync directory", &self.directory, &error));
        }
        removal
    }

    fn path_of(&self, overlay: &OverlayName) -> PathBuf {
        self.directory.join(format!("{overlay}{EXTENSION}"))
    }

    /// Creates the directory and returns its canonical path: it may be a symbolic link to another
    /// file system.
    fn create_directory(&self) -> Result<PathBuf, CniError> {
        fs::create_dir_all(&self.directory)
            .and_then(|()| fs::canonicalize(&self.directory))
            .map_err(|error| CniError::io("create directory", &self.directory, &error))
    }

    fn content(&self, network: &CniNetwork) -> Result<Vec<u8>, CniError> {
        let form = self.form();
        if form != Form::Overlay && !self.plugins.is_empty() {
            for plugin in [BRIDGE_PLUGIN, IPAM_PLUGIN] {
                if !self.has_plugin(plugin) {
                    return Err(self.plugin_missing(plugin));
                }
            }
        }
        let data_dir = self.data_dir.as_deref();
        render(network, form, data_dir)
            .map_err(|_| CniError::DataDirNotText(data_dir.map(Path::to_owned).unwrap_or_default()))
    }

    fn form(&self) -> Form {
        let is_known = !self.plugins.is_empty();
        if self.wants_overlay_plugin && self.has_plugin(OVERLAY_PLUGIN) {
            Form::Overlay
        } else if self.port_mapper && (!is_known || self.has_plugin(PORT_MAPPER_PLUGIN)) {
            Form::PortMapper
        } else {
            Form::Plain
        }
    }

    fn plugin_missing(&self, plugin: &'static str) -> CniError {
        CniError::PluginMissing { plugin, searched: self.plugins.clone() }
    }

    fn has_plugin(&self, plugin: &str) -> bool {
        self.plugins.iter().any(|directory| {
            fs::metadata(directory.join(plugin))
                .is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
        })
    }

    /// Returns an error if another file declares the network. Reads all files as Mesos does: with
    /// any name, and through symbolic links.
    fn check_declared_once(&self, overlay: &OverlayName, path: &Path) -> Result<(), CniError> {
        let others = entries(&self.directory)
            .map_err(|error| CniError::io("read directory", &self.directory, &error))?;
        let declares = |other: &Path| {
            fs::metadata(other).is_ok_and(|file| file.is_file() && file.len() <= FILE_MAX)
                && read_limited(other).is_ok_and(|content| {
                    declared_name(&content).as_deref() == Some(overlay.as_str())
                })
        };
        match others.into_iter().find(|other| other != path && declares(other)) {
            None => Ok(()),
            Some(other) => Err(CniError::DeclaredTwice {
                overlay: overlay.clone(),
                other,
                path: path.to_owned(),
            }),
        }
    }
}

/// Reads the managed file at `path`. Returns `None` if it does not exist.
fn read_managed(path: &Path, overlay: &OverlayName) -> Result<Option<Vec<u8>>, CniError> {
    let file = match fs::symlink_metadata(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(CniError::io("read", path, &error)),
    };
    let kind = match file.file_type() {
        kind if kind.is_symlink() => Some("symbolic link"),
        kind if kind.is_dir() => Some("directory"),
        kind if kind.is_file() => None,
        _ => Some("special file"),
    };
    if let Some(kind) = kind {
        return Err(CniError::NotAFile { overlay: overlay.clone(), path: path.to_owned(), kind });
    }
    let foreign = || CniError::Foreign { overlay: overlay.clone(), path: path.to_owned() };
    if file.len() > FILE_MAX {
        return Err(foreign());
    }
    let content = read_limited(path).map_err(|error| CniError::io("read", path, &error))?;
    if is_ours(&content, overlay) { Ok(Some(content)) } else { Err(foreign()) }
}

/// Reads at most [`FILE_MAX`] bytes: the file may have grown since its length was read.
fn read_limited(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path)?.take(FILE_MAX).read_to_end(&mut content)?;
    Ok(content)
}

/// Returns the overlay whose managed file would have this path.
fn overlay_of(path: &Path) -> Option<OverlayName> {
    path.file_name()?.to_str()?.strip_suffix(EXTENSION)?.parse().ok()
}

/// Lists the paths in a directory, sorted, so that errors are the same each time.
fn entries(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = fs::read_dir(directory)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

/// Returns the staging directories for `directory`, in order of preference: a sibling, and a
/// subdirectory. The subdirectory is used if `directory` is a mount point or its parent is
/// read-only.
fn staging_directories(directory: &Path) -> Vec<PathBuf> {
    let beside = directory.file_name().map(|name| {
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(STAGING_NAME);
        directory.with_file_name(hidden)
    });
    beside.into_iter().chain([directory.join(STAGING_NAME)]).collect()
}

/// Writes `path` in `directory` atomically, also if the machine crashes.
fn write_atomically(directory: &Path, path: &Path, content: &[u8]) -> io::Result<()> {
    let mut result = Ok(());
    for staging in staging_directories(directory) {
        result = write_and_rename(&staging, path, content);
        // The directory is empty now, unless another process uses it as well.
        let _ = fs::remove_dir(&staging);
        let Err(error) = &result else { break };
        let is_specific_to_staging = Errno::from_io_error(error).is_some_and(|errno| {
            [Errno::XDEV, Errno::ROFS, Errno::ACCESS, Errno::PERM].contains(&errno)
        });
        if !is_specific_to_staging {
            break;
        }
    }
    result.and_then(|()| sync(directory))
}

/// Writes `content` to a file in `staging`, and renames that file to `path`.
fn write_and_rename(staging: &Path, path: &Path, content: &[u8]) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(staging) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    // If every user may write to the parent directory, as in /tmp, another user may have created
    // the staging directory to inject a file.
    let found = fs::symlink_metadata(staging)?;
    if !found.is_dir() || found.uid() != rustix::process::geteuid().as_raw() {
        let reason = format!("{} is not a directory that this process owns", staging.display());
        return Err(io::Error::other(reason));
    }
    let mut file = tempfile::NamedTempFile::new_in(staging)?;
    file.write_all(content)?;
    // Not at creation: the umask, which belongs to the host process, would clear bits.
    file.as_file().set_permissions(fs::Permissions::from_mode(0o644))?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Removes the staging files of an interrupted write.
fn clear_staging(directory: &Path) -> Result<(), CniError> {
    staging_directories(directory).iter().try_for_each(|staging| {
        remove_staging(staging).map_err(|error| CniError::io("clean up directory", staging, &error))
    })
}

fn remove_staging(staging: &Path) -> io::Result<()> {
    let found = match fs::symlink_metadata(staging) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found?,
    };
    if !found.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(staging)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs::remove_file(entry.path())?;
        }
    }
    fs::remove_dir(staging)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growing_file_is_read_up_to_limit() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(4 * FILE_MAX).unwrap();
        assert_eq!(read_limited(file.path()).unwrap().len() as u64, FILE_MAX);
    }
}
