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

/// The open file of the state.
#[derive(Debug)]
pub(super) struct StateFile {
    backend: FileBackend,
    /// The same open file. Locks belong to the open file, so closing this handle releases none.
    file: File,
    id: FileId,
    /// What this process wrote last. `None` after [`Self::abandon`].
    written: Mutex<Option<Fingerprint>>,
}

impl StateFile {
    pub(super) fn new(file: File) -> Result<Self, redb::DatabaseError> {
        let same = file.try_clone().map_err(redb::StorageError::from)?;
        let id = FileId::of(&same).map_err(redb::StorageError::from)?;
        let fingerprint = Fingerprint::read(&same).map_err(redb::StorageError::from)?;
        let backend = FileBackend::new(file)?;
        Ok(Self { backend, file: same, id, written: Mutex::new(Some(fingerprint)) })
    }

    pub(super) const fn id(&self) -> FileId {
        self.id
    }

    /// Checks that `path` is the path of this file, and that no other process wrote to the file.
    pub(super) fn check(&self, path: &Path) -> Result<(), Loss> {
        let moved = |difference| Loss::Moved(format!("the file {difference}"));
        self.id.check_path(path).map_err(moved)?;
        let found = Fingerprint::read(&self.file)
            .map_err(|error| Loss::Moved(format!("the file cannot be checked: {error}")))?;
        match &*self.written.lock() {
            Some(written) if *written == found => Ok(()),
            _ => Err(Loss::Overwritten),
        }
    }

    /// Refuses all writes from now on. redb writes to the file when it closes the database, which
    /// would damage the copy that an operator has put there.
    pub(super) fn abandon(&self) {
        *self.written.lock() = None;
    }

    /// Runs `write`, which changes the file as `note` changes the fingerprint.
    fn write_with(
        &self,
        note: impl FnOnce(&mut Fingerprint),
        write: impl FnOnce(&FileBackend) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut written = self.written.lock();
        let Some(fingerprint) = &mut *written else {
            return Err(io::Error::other("the file is no longer the state of this master"));
        };
        note(fingerprint);
        write(&self.backend)
    }
}

/// The backend of redb. The store keeps another reference, to check the file.
#[derive(Debug)]
pub(super) struct StateBackend(pub(super) Arc<StateFile>);

impl StorageBackend for StateBackend {
    fn len(&self) -> io::Result<u64> {
        self.0.backend.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.backend.read(offset, out)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.0.write_with(
            |fingerprint| fingerprint.set_length(length),
            |backend| backend.set_len(length),
        )
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.backend.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_with(
            |fingerprint| fingerprint.write(offset, data),
            |backend| backend.write(offset, data),
        )
    }

    fn close(&self) -> io::Result<()> {
        self.0.backend.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.backend.try_lock_range(start, end)
    }

    fn try_lock_shared_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> Result<bool, BackendError> {
        self.0.backend.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.backend.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.backend.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.backend.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.backend.query_lock_range(start, end)
    }
}
