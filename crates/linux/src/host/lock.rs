//! The lock that an agent holds while it programs a host. The kernel releases the lock when the
//! process ends for any reason, so the file alone does not mean that the lock is held.

use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::{HostError, create_private_directory};

/// Name of the lock file in the state directory.
const NAME: &str = "agent.lock";
/// The mode of the lock file: a process that can open the file can hold the lock.
const OWNER_ONLY: u32 = 0o600;

/// The lock of the only process that programs this host. Dropping it releases the lock.
#[derive(Debug)]
pub struct HostLock {
    /// The kernel attaches the lock to the open file.
    file: File,
    path: PathBuf,
}

impl HostLock {
    /// Acquires the lock of `state_dir`, without waiting.
    ///
    /// # Errors
    /// When another process holds it, or the file cannot be written.
    pub fn acquire(state_dir: &Path) -> Result<Self, HostError> {
        let path = Self::path_in(state_dir);
        let failed = |error| HostError::file("lock", &path, &error);
        create_private_directory(state_dir).map_err(failed)?;
        let mut options = options();
        options.create(true).truncate(false).mode(OWNER_ONLY);
        loop {
            let lock = Self::lock(options.open(&path).map_err(failed)?, &path)?;
            // `clean` removes the file before it releases the lock. If that happened after the file
            // was opened here, the lock belongs to a removed file.
            if lock.is_at_its_path() {
                return Ok(lock);
            }
        }
    }

    /// Acquires the lock of `state_dir` if the lock file exists. Creates no file.
    ///
    /// # Errors
    /// When another process holds it, or the file cannot be written.
    pub fn acquire_existing(state_dir: &Path) -> Result<Option<Self>, HostError> {
        let path = Self::path_in(state_dir);
        match options().open(&path) {
            Ok(file) => Self::lock(file, &path).map(Some),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(HostError::file("lock", &path, &error)),
        }
    }

    /// Returns whether the lock file of `state_dir` exists and no agent holds the lock. Changes
    /// nothing.
    #[must_use]
    pub fn is_stale(state_dir: &Path) -> bool {
        let file = File::open(Self::path_in(state_dir));
        file.is_ok_and(|file| file.try_lock_shared().is_ok())
    }

    /// Returns the path of the lock file of `state_dir`.
    #[must_use]
    pub fn path_in(state_dir: &Path) -> PathBuf {
        state_dir.join(NAME)
    }

    /// Removes the file, and then releases the lock.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn remove(self) -> Result<(), HostError> {
        fs::remove_file(&self.path).map_err(|error| HostError::file("remove", &self.path, &error))
    }

    fn lock(mut file: File, path: &Path) -> Result<Self, HostError> {
        let path = path.to_owned();
        // Earlier versions made a file that every user could lock.
        if file.metadata().is_ok_and(|found| found.permissions().mode() & 0o077 != 0) {
            let restricted = file.set_permissions(Permissions::from_mode(OWNER_ONLY));
            restricted.map_err(|error| HostError::file("restrict", &path, &error))?;
        }
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut process = String::new();
                // The other process may not have written its ID yet.
                let _ = file.read_to_string(&mut process);
                let holder = match process.trim().parse::<u32>() {
                    Ok(process) => format!("process {process}"),
                    Err(_) => "another process".to_owned(),
                };
                return Err(HostError::Held { path, holder });
            }
            Err(TryLockError::Error(error)) => return Err(HostError::file("lock", &path, &error)),
        }
        write_process_id(&mut file).map_err(|error| HostError::file("lock", &path, &error))?;
        Ok(Self { file, path })
    }

    /// Returns whether the lock file is still at its path. If not, another process may lock the
    /// file that is there.
    #[must_use]
    pub fn is_at_its_path(&self) -> bool {
        let identity = |found: fs::Metadata| (found.dev(), found.ino());
        let own = self.file.metadata().map(identity).ok();
        own.is_some() && own == fs::metadata(&self.path).map(identity).ok()
    }
}

/// Returns the options to open a lock file. A link of another user is not followed.
fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
    options
}

/// Replaces the content of the lock file with the ID of this process.
fn write_process_id(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}

/// Returns whether the file does not exist, or a component of its path is no directory.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}
