//! The lock that an agent holds while it programs a host. The kernel gives it back when the process
//! ends, however it ends; so a file that lies about means nothing.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::HostError;

/// Its name in the state directory.
const NAME: &str = "agent.lock";

/// Held by the one process that programs this host, until it is dropped.
#[derive(Debug)]
pub struct HostLock {
    /// The kernel's lock is that of the open file.
    file: File,
    path: PathBuf,
}

impl HostLock {
    /// Takes the lock of `state_dir`, at once or not at all.
    ///
    /// # Errors
    /// When another process holds it, or the file cannot be written.
    pub fn acquire(state_dir: &Path) -> Result<Self, HostError> {
        let path = Self::path_in(state_dir);
        let failed = |error| HostError::file("lock", &path, &error);
        fs::create_dir_all(state_dir).map_err(failed)?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        loop {
            let lock = Self::take(options.open(&path).map_err(failed)?, &path)?;
            // Whoever cleans up removes the file before the lock is free.
            if lock.is_at_its_path() {
                return Ok(lock);
            }
        }
    }

    /// Takes the lock of `state_dir` if there has ever been one, and makes nothing.
    ///
    /// # Errors
    /// When another process holds it, or the file cannot be written.
    pub fn acquire_existing(state_dir: &Path) -> Result<Option<Self>, HostError> {
        let path = Self::path_in(state_dir);
        match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => Self::take(file, &path).map(Some),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(HostError::file("lock", &path, &error)),
        }
    }

    /// Whether an agent has held that of `state_dir`, and none does. Changes nothing.
    #[must_use]
    pub fn was_left(state_dir: &Path) -> bool {
        let file = File::open(Self::path_in(state_dir));
        file.is_ok_and(|file| file.try_lock_shared().is_ok())
    }

    /// Where that of `state_dir` is.
    #[must_use]
    pub fn path_in(state_dir: &Path) -> PathBuf {
        state_dir.join(NAME)
    }

    /// Removes the file, and gives the lock back.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(self) -> Result<(), HostError> {
        fs::remove_file(&self.path).map_err(|error| HostError::file("remove", &self.path, &error))
    }

    fn take(mut file: File, path: &Path) -> Result<Self, HostError> {
        let path = path.to_owned();
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut process = String::new();
                // Who has just taken it may not have written its number yet.
                let _ = file.read_to_string(&mut process);
                let holder = match process.trim().parse::<u32>() {
                    Ok(process) => format!("process {process}"),
                    Err(_) => "another process".to_owned(),
                };
                return Err(HostError::Held { path, holder });
            }
            Err(TryLockError::Error(error)) => return Err(HostError::file("lock", &path, &error)),
        }
        let mut note = || {
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{}", std::process::id())
        };
        note().map_err(|error| HostError::file("lock", &path, &error))?;
        Ok(Self { file, path })
    }

    fn is_at_its_path(&self) -> bool {
        let identity = |found: fs::Metadata| (found.dev(), found.ino());
        let own = self.file.metadata().map(identity).ok();
        own.is_some() && own == fs::metadata(&self.path).map(identity).ok()
    }
}

/// Whether there is no such file, nor could there be.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}
