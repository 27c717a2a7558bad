//! Opens the file of the state: as the state of a master, or as a copy that is only read.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use redb::backends::InMemoryBackend;
use redb::{Database, StorageBackend};
use rustix::fs::OFlags;

use super::CACHE_BYTES;
use super::backend::StateFile;
use super::lock::restrict_to_owner;
use crate::STATE_BYTES_MAX;

/// Opens an existing file.
pub(super) fn open_file(path: &Path) -> Result<StateFile, redb::Error> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    refuse_special_file(&file)?;
    restrict_to_owner(&file, path)?;
    Ok(StateFile::new(file)?)
}

fn refuse_special_file(file: &File) -> Result<(), redb::Error> {
    if file.metadata()?.is_file() {
        return Ok(());
    }
    Err(redb::Error::Corrupted("it is no regular file".to_owned()))
}

/// Reads the file at `path`, unless a process has it open as a database. Returns `None` if there is
/// no file. redb writes even to a database that it only reads, so the caller opens a copy.
pub(super) fn read_unlocked(path: &Path) -> Result<Option<Vec<u8>>, redb::Error> {
    // Opening a FIFO would wait for a writer.
    let nonblocking = OFlags::NONBLOCK.bits().cast_signed();
    let file = match OpenOptions::new().read(true).custom_flags(nonblocking).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    refuse_special_file(&file)?;
    // A shared lock: a running master would change the file meanwhile.
    match file.try_lock_shared() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(redb::Error::DatabaseAlreadyOpen),
        Err(TryLockError::Error(error)) => return Err(error.into()),
    }
    let mut bytes = Vec::new();
    let length = (&file).take(STATE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
    if length > STATE_BYTES_MAX {
        return Err(redb::Error::Corrupted("the file is larger than any state".to_owned()));
    }
    Ok(Some(bytes))
}

/// Opens a copy of a database in memory.
pub(super) fn open_copy(bytes: &[u8]) -> Result<Database, redb::Error> {
    if bytes.is_empty() {
        return Err(redb::Error::Corrupted("the file is empty".to_owned()));
    }
    let copy = InMemoryBackend::new();
    copy.set_len(bytes.len() as u64)?;
    copy.write(0, bytes)?;
    Ok(verify(copy)?)
}

/// Opens a database and verifies its content.
pub(super) fn verify(backend: impl StorageBackend) -> Result<Database, redb::DatabaseError> {
    let mut builder = Database::builder();
    // Without the check, redb trusts the pages of a closed file, and panics at a damaged page.
    builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
    builder.create_with_backend(backend)
}

/// Drops the cached pages of `file`, so that they are read from the disk again. After a failed
/// `fsync`, Linux marks the pages that it could not write as clean. This process and the next
/// process would load these pages as durable.
pub(super) fn drop_cached_pages(file: &File) -> io::Result<()> {
    file.sync_data()?;
    match rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed) {
        // The file system has no page cache.
        Err(rustix::io::Errno::NOSYS | rustix::io::Errno::OPNOTSUPP) => Ok(()),
        result => Ok(result?),
    }
}

/// Creates `dir` and its missing parents, accessible to the owner only, and syncs their entries.
pub(super) fn create_directory(dir: &Path) -> io::Result<()> {
    let is_missing = |path: &&Path| !path.as_os_str().is_empty() && !path.exists();
    let missing: Vec<&Path> = dir.ancestors().take_while(is_missing).collect();
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    missing.iter().filter_map(|path| path.parent()).try_for_each(sync_directory)
}

pub(super) fn sync_directory(dir: &Path) -> io::Result<()> {
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    File::open(dir)?.sync_all()
}
