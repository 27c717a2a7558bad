//! The directory of CNI configurations: written so that Mesos never sees half a file, and kept free
//! of what is ours and no longer wanted.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read as _, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use rustix::io::Errno;

use super::configuration::{
    BRIDGE_PLUGIN, Form, IPAM_PLUGIN, PORT_MAPPER_PLUGIN, declared_name, is_ours, render,
};
use super::error::CniError;
use crate::addr::OverlayName;
use crate::agent::CniNetwork;

/// Larger files are not read: a network configuration has some hundred bytes, and what else lies in
/// the directory shall not fill our memory.
const FILE_MAX: u64 = 1024 * 1024;
/// Longest prefix of a subnet that host-local allocates from: network, bridge, one container,
/// broadcast.
const PREFIX_MAX: u8 = 30;
/// What is appended to the name of files.
const EXTENSION: &str = ".conf";
/// The directory in which files are made, when it is inside the directory that Mesos reads. Mesos
/// skips directories.
const STAGING_INSIDE: &str = ".mesos-overlay";

/// What a write did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// There was no file.
    Created,
    /// There was a file of ours with other content.
    Replaced,
    /// The file was right already and was not touched.
    Unchanged,
}

/// What became of the files that are no longer wanted.
#[derive(Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Removal {
    /// The overlays whose file is gone.
    pub removed: Vec<OverlayName>,
    /// What could not be read or removed; the rest was done nevertheless.
    pub failed: Vec<CniError>,
}

/// The directory from which the Mesos agent reads CNI configurations (its
/// `--network_cni_config_dir`).
#[derive(Debug)]
pub struct CniDirectory {
    directory: PathBuf,
    data_dir: Option<PathBuf>,
    plugins: Vec<PathBuf>,
    port_mapper: bool,
    /// Held by every call: overlays are written by several threads, which share the staging
    /// directory.
    lock: Mutex<()>,
}

impl CniDirectory {
    /// `data_dir` is where host-local keeps its addresses, its own default if not given. `plugins`
    /// is where plugins are looked for, as the Mesos agent's `--network_cni_plugins_dir`; if it is
    /// empty, plugins are not checked. `port_mapper` asks for the port mapper of Mesos, which is
    /// left out all the same if `plugins` is known and does not have it.
    #[must_use]
    pub fn new(
        directory: PathBuf,
        data_dir: Option<PathBuf>,
        plugins: Vec<PathBuf>,
        port_mapper: bool,
    ) -> Self {
        Self { directory, data_dir, plugins, port_mapper, lock: Mutex::new(()) }
    }

    /// Creates the directory, since a Mesos agent exits when it does not exist, and removes what a
    /// crash left of a write.
    ///
    /// # Errors
    /// When the directory cannot be created or read.
    pub fn prepare(&self) -> Result<(), CniError> {
        let _guard = self.lock.lock();
        let directory = self.make()?;
        clear_stagings(&directory)
    }

    /// Makes the file of `network` as it should be.
    ///
    /// # Errors
    /// When the file system refuses, somebody else's file is in the way, another file declares the
    /// same network, or a plugin is missing. The file was not touched then.
    pub fn write(&self, network: &CniNetwork) -> Result<Outcome, CniError> {
        let _guard = self.lock.lock();
        if network.subnet.prefix() > PREFIX_MAX {
            return Err(CniError::SubnetTooSmall {
                overlay: network.name.clone(),
                subnet: network.subnet,
            });
        }
        let content = self.content(network)?;
        let directory = self.make()?;
        let path = self.path_of(&network.name);
        let outcome = match read_own(&path, &network.name)? {
            None => Outcome::Created,
            Some(found) if found == content => Outcome::Unchanged,
            Some(_) => Outcome::Replaced,
        };
        self.check_declared_once(&network.name, &path)?;
        if outcome != Outcome::Unchanged {
            place(&directory, &path, &content)
                .map_err(|error| CniError::io("write", &path, &error))?;
        }
        Ok(outcome)
    }

    /// The files that are ours, by their overlays. What is not ours is none of our business here,
    /// nor is what cannot be read.
    ///
    /// # Errors
    /// When the directory cannot be read. If it does not exist, there are none.
    pub fn ours(&self) -> Result<BTreeMap<OverlayName, PathBuf>, CniError> {
        let paths = match entries(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            paths => {
                paths.map_err(|error| CniError::io("read directory", &self.directory, &error))?
            }
        };
        let own = |path: PathBuf| {
            let overlay = overlay_of(&path)?;
            matches!(read_own(&path, &overlay), Ok(Some(_))).then_some((overlay, path))
        };
        Ok(paths.into_iter().filter_map(own).collect())
    }

    /// Removes the file of an overlay, if it is ours, and what a crash left of a write.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn remove(&self, overlay: &OverlayName) -> Result<(), CniError> {
        let _guard = self.lock.lock();
        let path = self.path_of(overlay);
        if read_own(&path, overlay)?.is_some() {
            fs::remove_file(&path)
                .and_then(|()| sync(&self.directory))
                .map_err(|error| CniError::io("remove", &path, &error))?;
        }
        clear_stagings(&self.directory)
    }

    /// Removes the files of overlays that are not `wanted`. Running containers do not notice: Mesos
    /// keeps a copy of the configuration that a container was started with.
    pub fn remove_unwanted(&self, wanted: &BTreeSet<OverlayName>) -> Removal {
        let _guard = self.lock.lock();
        let mut removal = Removal::default();
        let ours = self.ours().unwrap_or_else(|error| {
            removal.failed.push(error);
            BTreeMap::new()
        });
        for (overlay, path) in ours.into_iter().filter(|(overlay, _)| !wanted.contains(overlay)) {
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

    /// Makes the directory and tells where it really is, since it may be a symbolic link to another
    /// file system.
    fn make(&self) -> Result<PathBuf, CniError> {
        fs::create_dir_all(&self.directory)
            .and_then(|()| fs::canonicalize(&self.directory))
            .map_err(|error| CniError::io("create directory", &self.directory, &error))
    }

    fn content(&self, network: &CniNetwork) -> Result<Vec<u8>, CniError> {
        let mut form = if self.port_mapper { Form::PortMapper } else { Form::Plain };
        if !self.plugins.is_empty() {
            for plugin in [BRIDGE_PLUGIN, IPAM_PLUGIN] {
                if !self.has_plugin(plugin) {
                    return Err(CniError::PluginMissing { plugin, searched: self.plugins.clone() });
                }
            }
            if !self.has_plugin(PORT_MAPPER_PLUGIN) {
                form = Form::Plain;
            }
        }
        let data_dir = self.data_dir.as_deref();
        render(network, form, data_dir)
            .map_err(|_| CniError::DataDirNotText(data_dir.map(Path::to_owned).unwrap_or_default()))
    }

    fn has_plugin(&self, plugin: &str) -> bool {
        self.plugins.iter().any(|directory| {
            fs::metadata(directory.join(plugin))
                .is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
        })
    }

    /// Reads all other files as Mesos does: whatever their name, through symbolic links.
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

/// The content of our file at `path`, `None` if nothing is there.
fn read_own(path: &Path, overlay: &OverlayName) -> Result<Option<Vec<u8>>, CniError> {
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

/// The beginning of a file, at most as much as a network configuration has: the file may have grown
/// since its length was looked at.
fn read_limited(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path)?.take(FILE_MAX).read_to_end(&mut content)?;
    Ok(content)
}

/// The overlay whose file would have this path.
fn overlay_of(path: &Path) -> Option<OverlayName> {
    path.file_name()?.to_str()?.strip_suffix(EXTENSION)?.parse().ok()
}

/// The paths in a directory in a fixed order, so that errors are the same each time.
fn entries(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = fs::read_dir(directory)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

/// Where files for `directory` are made, in the order of preference: beside it; and inside it, in a
/// directory which Mesos skips, when `directory` is a mount of its own or what holds it is
/// read-only.
fn stagings(directory: &Path) -> Vec<PathBuf> {
    let beside = directory.file_name().map(|name| {
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(STAGING_INSIDE);
        directory.with_file_name(hidden)
    });
    beside.into_iter().chain([directory.join(STAGING_INSIDE)]).collect()
}

/// Puts `content` at `path` in `directory`, whole or not at all, also when the machine stops.
fn place(directory: &Path, path: &Path, content: &[u8]) -> io::Result<()> {
    let mut result = Ok(());
    for staging in stagings(directory) {
        result = place_through(&staging, path, content);
        // Empty again in any case, unless another process is at work there as well.
        let _ = fs::remove_dir(&staging);
        let Err(error) = &result else { break };
        let is_elsewhere = Errno::from_io_error(error).is_some_and(|errno| {
            [Errno::XDEV, Errno::ROFS, Errno::ACCESS, Errno::PERM].contains(&errno)
        });
        if !is_elsewhere {
            break;
        }
    }
    result.and_then(|()| sync(directory))
}

fn place_through(staging: &Path, path: &Path, content: &[u8]) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(staging) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    // Where everybody may write, as in /tmp, somebody else could have put it there to slip us a
    // file.
    let found = fs::symlink_metadata(staging)?;
    if !found.is_dir() || found.uid() != rustix::process::geteuid().as_raw() {
        let reason = format!("{} is not a directory of ours", staging.display());
        return Err(io::Error::other(reason));
    }
    let mut file = tempfile::NamedTempFile::new_in(staging)?;
    file.write_all(content)?;
    // Not at creation: there the umask, which is the host process' own, takes bits away.
    file.as_file().set_permissions(fs::Permissions::from_mode(0o644))?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Removes what a crash left of a write.
fn clear_stagings(directory: &Path) -> Result<(), CniError> {
    stagings(directory).iter().try_for_each(|staging| {
        remove_leftovers(staging)
            .map_err(|error| CniError::io("clean up directory", staging, &error))
    })
}

fn remove_leftovers(staging: &Path) -> io::Result<()> {
    if !fs::symlink_metadata(staging).is_ok_and(|found| found.is_dir()) {
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
    fn file_that_grows_while_it_is_read_is_read_to_its_limit() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(4 * FILE_MAX).unwrap();
        assert_eq!(read_limited(file.path()).unwrap().len() as u64, FILE_MAX);
    }
}
