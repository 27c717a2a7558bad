//! The lock of a work directory.
//!
//! redb locks the database file, but that lock does not protect the path: a second master could
//! start on a file that replaces the locked file. So the master also locks a separate file, and the
//! directory itself. Each of them refuses a second master while the others are replaced.

use std::fs::{File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::identity::FileId;

/// Name of the lock file in the work directory.
pub(super) const LOCK_NAME: &str = "overlay-master.lock";

/// The mode of a file that only its owner may read and lock.
const OWNER_ONLY: u32 = 0o600;
/// The mode bits of all users but the owner.
const OTHER_USERS: u32 = 0o077;

/// Why a work directory cannot be locked.
#[derive(Debug)]
pub(super) enum LockError {
    /// Another process holds the lock of this file or directory.
    Held(PathBuf),
    Io(io::Error),
}

impl From<io::Error> for LockError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// The lock of a work directory. Dropping it releases the lock. The lock file stays, because a
/// removed lock file would let two processes lock different files.
#[derive(Debug)]
pub(super) struct WorkDirLock {
    path: PathBuf,
    id: FileId,
    /// The kernel attaches the locks to these open files.
    _files: (Option<File>, File),
}

impl WorkDirLock {
    /// Acquires the lock of the existing directory `dir`, without waiting.
    pub(super) fn acquire(dir: &Path) -> Result<Self, LockError> {
        let path = dir.join(LOCK_NAME);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(OWNER_ONLY);
        // A link of another user would make this process lock or create a foreign file.
        options.custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
        let file = options.open(&path)?;
        // A process that can open the file can hold the lock.
        restrict_to_owner(&file, &path)?;
        try_lock(&file, &path)?;
        let directory = lock_directory(dir)?;
        let id = FileId::of(&file)?;
        Ok(Self { path, id, _files: (directory, file) })
    }

    /// Checks that the lock file is still at its path. Otherwise another master may hold the lock
    /// of the file there.
    ///
    /// # Errors
    /// With the difference, as a sentence.
    pub(super) fn check(&self) -> Result<(), String> {
        let check = self.id.check_path(&self.path);
        check.map_err(|difference| format!("the lock file {} {difference}", self.path.display()))
    }
}

/// Locks the directory, so that an emptied directory stays locked. Returns `None` if other users
/// can open the directory: they could hold the lock.
fn lock_directory(dir: &Path) -> Result<Option<File>, LockError> {
    let path = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    let directory = File::open(path)?;
    let mode = directory.metadata()?.permissions().mode();
    if mode & OTHER_USERS != 0 {
        // The sticky bit protects the files of an owner from other users.
        if mode & 0o022 != 0 && mode & 0o1000 == 0 {
            log::warn!(
                "{}: other users can replace the state: `chmod go-w {0}`, or use another work \
                 directory",
                path.display()
            );
        }
        return Ok(None);
    }
    match try_lock(&directory, path) {
        // A network file system may not lock directories.
        Err(LockError::Io(_)) => Ok(None),
        result => result.map(|()| Some(directory)),
    }
}

fn try_lock(file: &File, path: &Path) -> Result<(), LockError> {
    file.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => LockError::Held(path.to_owned()),
        TryLockError::Error(error) => LockError::Io(error),
    })
}

/// Withdraws the access of other users to a file of this program. A copy that an operator restored
/// may have a wider mode.
pub(super) fn restrict_to_owner(file: &File, path: &Path) -> io::Result<()> {
    let mode = file.metadata()?.permissions().mode() & 0o7777;
    if mode & OTHER_USERS == 0 {
        return Ok(());
    }
    match file.set_permissions(Permissions::from_mode(OWNER_ONLY)) {
        Ok(()) => log::warn!(
            "{}: changed the mode from {mode:03o} to {OWNER_ONLY:03o}: other users had access",
            path.display()
        ),
        Err(error) => log::warn!(
            "{}: other users have access (mode {mode:03o}), and the mode cannot be changed: \
             {error}: `chmod {OWNER_ONLY:03o} {0}` as its owner",
            path.display()
        ),
    }
    Ok(())
}
