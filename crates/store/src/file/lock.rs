//! The lock of a work directory.
//!
//! redb locks the database file, but that lock does not protect the path: a second master could
//! start on a file that replaces the locked file. So the master also locks a separate file, and the
//! directory itself. Each of them refuses a second master while the others are replaced.

use std::fs::{self, File, Metadata, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::process::geteuid;

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
    /// This file or directory cannot be opened or locked.
    Io(PathBuf, io::Error),
}

/// The lock of a work directory. Dropping it releases the lock. The lock file stays, because a
/// removed lock file would let two processes lock different files.
#[derive(Debug)]
pub(super) struct WorkDirLock {
    /// The path of the lock file, for messages.
    path: PathBuf,
    /// The same path from the root.
    absolute: PathBuf,
    id: FileId,
    /// The kernel attaches the locks to these open files.
    _files: (Option<File>, File),
}

impl WorkDirLock {
    /// Acquires the lock of the existing directory `dir`, without waiting.
    pub(super) fn acquire(dir: &Path) -> Result<Self, LockError> {
        let path = dir.join(LOCK_NAME);
        let failed = |error| LockError::Io(path.clone(), error);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(OWNER_ONLY);
        // A link of another user would make this process lock or create a foreign file.
        options.custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
        let file = options.open(&path).map_err(failed)?;
        // A process that can open the file can hold the lock.
        restrict_to_owner(&file, &path).map_err(failed)?;
        try_lock(&file, &path)?;
        let directory = lock_directory(dir)?;
        let id = FileId::of(&file).map_err(failed)?;
        let absolute = std::path::absolute(&path).map_err(failed)?;
        Ok(Self { path, absolute, id, _files: (directory, file) })
    }

    /// Checks that the lock file is still at its path. Otherwise another master may hold the lock
    /// of the file there.
    ///
    /// # Errors
    /// With the difference, as a sentence.
    pub(super) fn check(&self) -> Result<(), String> {
        let check = self.id.check_path(&self.absolute);
        check.map_err(|difference| format!("the lock file {} {difference}", self.path.display()))
    }
}

/// Locks the directory, so that an emptied directory stays locked. Returns `None` if the directory
/// cannot be locked, or another user holds the lock of a directory that other users can open.
fn lock_directory(dir: &Path) -> Result<Option<File>, LockError> {
    let path = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    let failed = |error| LockError::Io(path.to_owned(), error);
    let directory = File::open(path).map_err(failed)?;
    let metadata = directory.metadata().map_err(failed)?;
    let mode = metadata.permissions().mode();
    // The sticky bit protects the files of an owner from other users.
    if mode & 0o022 != 0 && mode & 0o1000 == 0 {
        log::warn!(
            "{}: other users can replace the state: `chmod go-w {0}`, or use another work directory",
            path.display()
        );
    }
    match try_lock(&directory, path) {
        // A network file system may not lock directories.
        Err(LockError::Io(..)) => Ok(None),
        Err(LockError::Held(_)) if mode & OTHER_USERS != 0 && is_held_by_stranger(&metadata) => {
            log::warn!(
                "{}: a process of another user holds the lock of this directory (`fuser {0}` shows \
                 it): without the lock, a removed lock file lets a second master start: end that \
                 process and restart this master, or `chmod go-rx {0}`",
                path.display()
            );
            Ok(None)
        }
        result => result.map(|()| Some(directory)),
    }
}

/// Returns whether only processes of users that run no master here hold the lock of the directory
/// with this `metadata`. Masters run as root, as the owner of the directory, or as this user. A
/// holder that cannot be found may be a master in another container.
fn is_held_by_stranger(metadata: &Metadata) -> bool {
    let masters = [0, metadata.uid(), geteuid().as_raw()];
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    let users: Vec<Option<u32>> = lock_holders(&locks, metadata.ino())
        .map(|process| Some(fs::metadata(format!("/proc/{process}")).ok()?.uid()))
        .collect();
    let is_stranger = |user: &Option<u32>| user.is_some_and(|user| !masters.contains(&user));
    !users.is_empty() && users.iter().all(is_stranger)
}

/// Returns the processes that hold a `flock` of the file `inode`, from the content of
/// `/proc/locks`. Its device numbers are not those of `stat` on every file system.
fn lock_holders(locks: &str, inode: u64) -> impl Iterator<Item = &str> {
    // "3: FLOCK  ADVISORY  WRITE 1234 fd:01:5678 0 EOF"; a waiting process has "->" before FLOCK.
    locks.lines().filter_map(move |line| {
        let mut fields = line.split_whitespace().skip(1);
        let is_held = fields.next() == Some("FLOCK");
        let (process, file) = (fields.nth(2)?, fields.next()?);
        (is_held && file.rsplit(':').next()?.parse() == Ok(inode)).then_some(process)
    })
}

fn try_lock(file: &File, path: &Path) -> Result<(), LockError> {
    file.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => LockError::Held(path.to_owned()),
        TryLockError::Error(error) => LockError::Io(path.to_owned(), error),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_holders_are_found_by_inode() {
        let locks = "1: FLOCK  ADVISORY  WRITE 1234 fd:01:5678 0 EOF\n\
                     1: -> FLOCK  ADVISORY  WRITE 1235 fd:01:5678 0 EOF\n\
                     2: POSIX  ADVISORY  WRITE 1236 fd:01:5678 0 EOF\n\
                     3: OFDLCK ADVISORY  READ -1 00:1b:5678 0 EOF\n\
                     4: FLOCK  ADVISORY  READ 1237 00:1b:5678 0 EOF\n\
                     5: FLOCK  ADVISORY  WRITE 1238 fd:01:15678 0 EOF\n\
                     6: FLOCK\n";
        assert_eq!(lock_holders(locks, 5678).collect::<Vec<_>>(), ["1234", "1237"]);
    }

    #[test]
    fn lock_of_own_user_is_no_strangers_lock() {
        let dir = tempfile::tempdir().unwrap();
        let directory = File::open(dir.path()).unwrap();
        let metadata = directory.metadata().unwrap();
        assert!(!is_held_by_stranger(&metadata), "an unknown holder may be a master");
        directory.try_lock().unwrap();
        assert!(!is_held_by_stranger(&metadata));
    }
}
