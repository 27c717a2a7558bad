//! The open file of the state, as redb uses it. It detects a foreign process that writes to the
//! file, such as `cp backup overlay-master.redb`, which keeps the inode.

use std::fs::File;
use std::io;
use std::ops::Bound;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use redb::backends::FileBackend;
use redb::{BackendError, StorageBackend};

use super::errors::OVERWRITTEN;
use super::open::drop_cached_pages;
use crate::identity::FileId;

/// The bytes that are compared. The header of a redb file is shorter; it has checksums of the whole
/// content, and every commit changes it.
const HEADER_LENGTH: usize = 512;

/// The length and the header of the file.
#[derive(Debug, PartialEq, Eq)]
struct Fingerprint {
    length: u64,
    header: [u8; HEADER_LENGTH],
}

impl Fingerprint {
    fn read(file: &File) -> io::Result<Self> {
        let mut header = [0; HEADER_LENGTH];
        let mut read = 0;
        while read < HEADER_LENGTH {
            match file.read_at(&mut header[read..], read as u64)? {
                0 => break,
                count => read += count,
            }
        }
        Ok(Self { length: file.metadata()?.len(), header })
    }

    fn set_length(&mut self, length: u64) {
        if let Ok(length) = usize::try_from(length)
            && length < HEADER_LENGTH
        {
            self.header[length..].fill(0);
        }
        self.length = length;
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let end = offset.saturating_add(bytes.len() as u64);
        self.length = self.length.max(end);
        let Ok(offset) = usize::try_from(offset) else { return };
        for (kept, byte) in self.header.iter_mut().skip(offset).zip(bytes) {
            *kept = *byte;
        }
    }
}

/// Why an open file is no longer the state.
#[derive(Debug)]
pub(super) enum Loss {
    /// The path does not lead to the file, for this reason. This may change again.
    Moved(String),
    /// Another process wrote to the file.
    Overwritten,
}

/// The state of the file, as far as this process has checked it.
#[derive(Debug)]
enum Content {
    /// This process wrote this last.
    Own(Box<Fingerprint>),
    /// A write failed, or the file was abandoned. Nothing is written until it is opened again.
    Unknown,
    /// Another process wrote to the file.
    Foreign,
}

/// The file of the state. It stays open and locked until the store is dropped, also while it is no
/// longer the state: no other process may open it meanwhile, and no other file gets its inode.
#[derive(Debug)]
pub(super) struct StateFile {
    file: File,
    id: FileId,
    content: Mutex<Content>,
}

impl StateFile {
    pub(super) fn new(file: File) -> io::Result<Self> {
        let id = FileId::of(&file)?;
        Ok(Self { file, id, content: Mutex::new(Content::Unknown) })
    }

    /// Creates the backend of a database in this file, which another process may have changed since
    /// the last database was closed.
    pub(super) fn backend(file: &Arc<Self>) -> Result<StateBackend, redb::Error> {
        drop_cached_pages(&file.file)?;
        // An empty file is refused, because it means that a state was lost. redb would create a
        // database in an empty file.
        let fingerprint = Fingerprint::read(&file.file)?;
        if fingerprint.length == 0 {
            return Err(redb::Error::Corrupted("the file is empty".to_owned()));
        }
        *file.content.lock() = Content::Own(Box::new(fingerprint));
        // A lock belongs to the open file, which both handles share.
        let backend = FileBackend::new(file.file.try_clone()?)?;
        Ok(StateBackend { file: Arc::clone(file), backend })
    }

    /// Checks that `path` is the path of this file.
    ///
    /// # Errors
    /// With the difference, as a sentence.
    pub(super) fn check_path(&self, path: &Path) -> Result<(), String> {
        self.id.check_path(path).map_err(|difference| format!("the file {difference}"))
    }

    /// Checks that `path` is the path of this file, and that no other process wrote to the file.
    pub(super) fn check(&self, path: &Path) -> Result<(), Loss> {
        self.check_path(path).map_err(Loss::Moved)?;
        match self.check_content(&mut self.content.lock()) {
            Ok(true) => Ok(()),
            Ok(false) => Err(Loss::Overwritten),
            Err(error) => Err(Loss::Moved(format!("the file cannot be checked: {error}"))),
        }
    }

    /// Returns false if another process wrote to the file.
    fn check_content(&self, content: &mut Content) -> io::Result<bool> {
        if let Content::Own(written) = content
            && Fingerprint::read(&self.file)? != **written
        {
            *content = Content::Foreign;
        }
        Ok(!matches!(content, Content::Foreign))
    }

    /// Refuses all writes until the file is opened again. redb writes to the file when it closes
    /// the database, which would damage the copy that an operator has put there.
    pub(super) fn abandon(&self) {
        *self.content.lock() = Content::Unknown;
    }

    /// Runs `write`, which changes the file as `note` changes the fingerprint. Writes nothing if
    /// another process wrote to the file: it may have done so since the check before the commit.
    fn write_with(
        &self,
        note: impl FnOnce(&mut Fingerprint),
        write: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        let mut content = self.content.lock();
        let is_own = self.check_content(&mut content)?;
        let Content::Own(fingerprint) = &mut *content else {
            let reason = if is_own { "an earlier write to the file failed" } else { OVERWRITTEN };
            return Err(io::Error::other(reason));
        };
        note(fingerprint);
        let result = write();
        if result.is_err() {
            *content = Content::Unknown;
        }
        result
    }
}

/// The backend of redb.
#[derive(Debug)]
pub(super) struct StateBackend {
    file: Arc<StateFile>,
    backend: FileBackend,
}

impl StorageBackend for StateBackend {
    fn len(&self) -> io::Result<u64> {
        self.backend.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.backend.read(offset, out)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.file.write_with(
            |fingerprint| fingerprint.set_length(length),
            || self.backend.set_len(length),
        )
    }

    fn sync_data(&self) -> io::Result<()> {
        self.backend.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_with(
            |fingerprint| fingerprint.write(offset, data),
            || self.backend.write(offset, data),
        )
    }

    /// Keeps the locks, which [`StateFile`] holds.
    fn close(&self) -> io::Result<()> {
        Ok(())
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.backend.try_lock_range(start, end)
    }

    fn try_lock_shared_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> Result<bool, BackendError> {
        self.backend.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.backend.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.backend.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.backend.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.backend.query_lock_range(start, end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_write_is_no_foreign_write() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        std::fs::write(&path, "state").unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let file = Arc::new(StateFile::new(file).unwrap());
        let backend = StateFile::backend(&file).unwrap();
        let full = || Err(io::ErrorKind::StorageFull.into());
        assert!(file.write_with(|fingerprint| fingerprint.write(0, b"S"), full).is_err());
        assert!(file.check(&path).is_ok());
        let error = backend.write(0, b"S").unwrap_err().to_string();
        assert_eq!(error, "an earlier write to the file failed");
        let backend = StateFile::backend(&file).unwrap();
        backend.write(0, b"S").unwrap();
        assert!(file.check(&path).is_ok());
        std::fs::write(&path, "other").unwrap();
        assert_eq!(backend.write(0, b"S").unwrap_err().to_string(), OVERWRITTEN);
        assert!(matches!(file.check(&path), Err(Loss::Overwritten)));
        assert_eq!(std::fs::read(&path).unwrap(), b"other");
    }
}
