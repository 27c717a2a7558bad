//! A store in one file, for a single master: the redb database `overlay-master.redb` in the work
//! directory.
//!
//! Why redb: one commit is one `fsync`, and after a kill or a power cut the file opens with the
//! last complete commit. Keys and values are plain bytes, so that a later redb can read the file.
//! The module `tables` has the tables: the records, and three counters. The module `lock` admits one
//! process at a time. Within that process, the epoch fences late commits of an earlier master.
//!
//! The database is closed after any error, because the memory of redb may then differ from the
//! file. The next load opens the file again, but only the same file: a path whose file was removed
//! or replaced does not hold the state that agents rely on. Before and after every commit, the store
//! checks that the path still leads to the open file, and that no other process wrote to the file
//! (`backend`).

mod backend;
mod lock;
mod open;
mod tables;

use std::fmt;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use overlay_types::state::{Counts, Epoch, Key, StoreError, Version};
use redb::Database;
use redb::backends::FileBackend;

use self::backend::{Loss, StateFile};
use self::lock::{LockError, WorkDirLock};
use self::open::{
    OpenError, create_directory, open_and_verify, open_copy, read_unlocked, sync_directory,
};
use self::tables::{
    COUNTERS, CommitOutcome, EPOCH_COUNTER, EpochOutcome, FORMAT, FORMAT_COUNTER, RECORDS,
    VERSION_COUNTER, begin_epoch, commit, read_counts, read_format, read_snapshot,
};
use crate::identity::FileId;
use crate::key::KeyBytes as _;
use crate::{
    Archive, Change, EpochPurpose, Loaded, Replacement, Snapshot, Store, replace_by_commit,
    with_counts_remedy,
};

/// Name of the file in the work directory.
const FILE_NAME: &str = "overlay-master.redb";

/// The state of 10,000 agents is a few MB and is read once; redb's own default is 1 GiB.
const CACHE_BYTES: usize = 16 << 20;

/// The reason for a file to which another process wrote.
const OVERWRITTEN: &str = "another process wrote to the file";

/// A store in a file.
#[derive(Debug)]
pub struct FileStore {
    path: PathBuf,
    /// `None` before the first load of [`FileStore::at`], and after an error until the next load.
    database: Option<OpenDatabase>,
    /// The directory in which the first load creates missing parts. Later loads create nothing: a
    /// file that vanished is an error, not an empty state.
    create_in: Option<PathBuf>,
    /// Held from the first load, also after an error: no other master may start meanwhile.
    lock: Option<WorkDirLock>,
    /// The file that was opened first. No other file holds the state of this master.
    id: Option<FileId>,
    /// The counts of the last successful load or commit.
    acknowledged: Counts,
    /// Why the content is no longer the state of this master, for good: another process wrote to
    /// the file. The file is not opened again, since redb would repair and so change it.
    overwritten: Option<String>,
}

/// An open database, and its file.
#[derive(Debug)]
struct OpenDatabase {
    database: Database,
    file: Arc<StateFile>,
}

impl FileStore {
    /// Opens the state in the directory `dir`. Creates a missing directory with its parents,
    /// accessible to the owner only, and a missing state. The file is locked until the store is
    /// dropped.
    ///
    /// # Errors
    /// When the directory or the file cannot be created, read or written, or another process has
    /// the file open. Also when the file is no state of this program, is damaged, or was written by
    /// a later version.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let mut store = Self::at(dir);
        store.database = Some(store.create_and_open()?);
        Ok(store)
    }

    /// Creates a store that the first [`Store::load`] opens. Errors of the file are then errors of
    /// that load, which the caller can try again.
    #[must_use]
    pub fn at(dir: &Path) -> Self {
        Self {
            path: dir.join(FILE_NAME),
            database: None,
            create_in: Some(dir.to_owned()),
            lock: None,
            id: None,
            acknowledged: Counts::default(),
            overwritten: None,
        }
    }

    fn create_and_open(&mut self) -> Result<OpenDatabase, StoreError> {
        if let Some(reason) = &self.overwritten {
            return Err(self.lost_error("open", reason));
        }
        self.lock_directory()?;
        if let Some(dir) = &self.create_in {
            self.create_missing(dir).map_err(|error| self.store_error("open", &error))?;
        }
        let database = self.open_database()?;
        self.create_in = None;
        Ok(database)
    }

    /// Locks the directory, which the first call creates. Later calls check the lock.
    fn lock_directory(&mut self) -> Result<(), StoreError> {
        if let Some(lock) = &self.lock {
            return lock.check().map_err(|reason| self.lost_error("open", &reason));
        }
        let dir = self.path.parent().unwrap_or_else(|| Path::new("."));
        create_directory(dir).map_err(|error| self.store_error("open", &error.into()))?;
        let lock = WorkDirLock::acquire(dir).map_err(|error| match error {
            LockError::Held(path) => self.open_error(held_by_other(&path)),
            LockError::Io(error) => self.store_error("open", &error.into()),
        })?;
        self.lock = Some(lock);
        Ok(())
    }

    /// Checks that the path of the state leads to the open file, that this process alone wrote to
    /// the file, and that the lock of the directory is in place. If not, the file is abandoned.
    fn check_file(&mut self, open: &OpenDatabase, action: &'static str) -> Result<(), StoreError> {
        let lock = self.lock.as_ref().map_or(Ok(()), WorkDirLock::check);
        let checked = lock.map_err(Loss::Moved).and_then(|()| open.file.check(&self.path));
        let Err(loss) = checked else { return Ok(()) };
        open.file.abandon();
        let reason = match loss {
            Loss::Moved(reason) => reason,
            Loss::Overwritten => self.overwritten.insert(OVERWRITTEN.to_owned()).clone(),
        };
        Err(self.lost_error(action, &reason))
    }

    /// Creates the error for a state that this master no longer holds.
    fn lost_error(&self, action: &'static str, reason: &str) -> StoreError {
        let reason = format!(
            "{reason}: this master assigns no addresses until the same file is back; otherwise \
             stop this master, restore the latest copy of the state and start one master"
        );
        StoreError::Failed { store: self.to_string(), action, reason }
    }

    /// Creates an empty state if it is missing.
    fn create_missing(&self, dir: &Path) -> Result<(), redb::Error> {
        if !self.path.try_exists()? {
            self.create_file(dir, None, Counts::default())?;
            log::info!("created an empty state in {self}: no agent has addresses yet");
        }
        // Also for an existing file: the process that created it may have been killed before.
        Ok(sync_directory(dir)?)
    }

    /// Creates a state in a temporary file and renames it. A kill in between must not leave a
    /// partly written database, which would look damaged. The state is empty, or its first commit
    /// holds `records`.
    fn create_file(
        &self,
        dir: &Path,
        records: Option<&[(Key, Vec<u8>)]>,
        former: Counts,
    ) -> Result<(), redb::Error> {
        let file = tempfile::Builder::new().prefix(".overlay-master.").tempfile_in(dir)?;
        let database = Database::builder()
            .set_cache_size(CACHE_BYTES)
            .create_with_backend(FileBackend::new(file.reopen()?)?)?;
        let transaction = database.begin_write()?;
        {
            let mut table = transaction.open_table(RECORDS)?;
            for (key, bytes) in records.unwrap_or_default() {
                table.insert(&*key.to_bytes(), &**bytes)?;
            }
            let mut counters = transaction.open_table(COUNTERS)?;
            counters.insert(FORMAT_COUNTER, FORMAT)?;
            counters.insert(EPOCH_COUNTER, former.epoch)?;
            counters.insert(VERSION_COUNTER, former.version + u64::from(records.is_some()))?;
        }
        transaction.commit()?;
        database.close()?;
        match file.persist_noclobber(&self.path) {
            // Another process created the file first. The lock decides which process opens it.
            Err(error) if error.error.kind() == ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(error.error.into()),
            Ok(_) => Ok(()),
        }
    }

    /// Creates a state that holds `records`, unless the file exists. Returns whether it was
    /// missing.
    fn create_with_records(
        &self,
        dir: &Path,
        records: &[(Key, Vec<u8>)],
        former: Counts,
    ) -> Result<bool, redb::Error> {
        let is_missing = !self.path.try_exists()?;
        if is_missing {
            self.create_file(dir, Some(records), former)?;
        }
        sync_directory(dir)?;
        Ok(is_missing)
    }

    fn open_database(&mut self) -> Result<OpenDatabase, StoreError> {
        let (database, file) =
            open_and_verify(&self.path, self.id).map_err(|error| match error {
                OpenError::OtherFile(reason) => self.lost_error("open", &reason),
                OpenError::Database(error) => self.store_error("open", &error),
            })?;
        self.check_format(&database)?;
        self.id = Some(file.id());
        Ok(OpenDatabase { database, file })
    }

    fn check_format(&self, database: &Database) -> Result<(), StoreError> {
        match read_format(database) {
            Ok(Some(FORMAT)) => Ok(()),
            Ok(Some(format)) if format > FORMAT => Err(self.open_error(format!(
                "it was written by a later version of mesos-overlay (format {format}, this version \
                 supports {FORMAT}): run the later version"
            ))),
            Ok(_) => Err(self.open_error(self.not_a_state("the tables of a state are missing"))),
            Err(error) => Err(self.store_error("open", &error)),
        }
    }

    fn begin_epoch(&mut self, purpose: EpochPurpose) -> Result<Loaded, StoreError> {
        let open = match self.database.take() {
            Some(open) => open,
            None => self.create_and_open()?,
        };
        self.check_file(&open, "load")?;
        self.refuse_older_state(&open)?;
        let begun = begin_epoch(&open.database, purpose)
            .map_err(|error| self.store_error("load", &error))?;
        let (loaded, unknown) = match begun {
            EpochOutcome::Begun { loaded, unknown } => (loaded, unknown),
            EpochOutcome::InvalidCounts(reason) => return Err(self.counts_error("load", &reason)),
        };
        self.check_file(&open, "load")?;
        self.acknowledged = Counts { epoch: loaded.epoch.0, version: loaded.version.0 };
        self.database = Some(open);
        if unknown > 0 {
            log::warn!("{self}: kept and not used: {unknown} records of unknown kind");
        }
        Ok(loaded)
    }

    /// Fails if the file is older than the state that this master stored: an older copy was written
    /// into the file.
    fn refuse_older_state(&mut self, open: &OpenDatabase) -> Result<(), StoreError> {
        let counts =
            read_counts(&open.database).map_err(|error| self.store_error("load", &error))?;
        let Counts { epoch, version } = self.acknowledged;
        if counts.epoch >= epoch && counts.version >= version {
            return Ok(());
        }
        open.file.abandon();
        let reason = format!(
            "the file holds an older state, version {} of epoch {}, and this master stored version \
             {version} of epoch {epoch}",
            counts.version, counts.epoch
        );
        let error = self.lost_error("load", &reason);
        self.overwritten = Some(reason);
        Err(error)
    }

    fn store_error(&self, action: &'static str, error: &redb::Error) -> StoreError {
        StoreError::Failed { store: self.to_string(), action, reason: self.with_remedy(error) }
    }

    fn open_error(&self, reason: String) -> StoreError {
        StoreError::Failed { store: self.to_string(), action: "open", reason }
    }

    fn counts_error(&self, action: &'static str, reason: &str) -> StoreError {
        let directory = self.path.parent().unwrap_or_else(|| Path::new("."));
        let uri = format!("file --work-dir {}", directory.display());
        let reason = with_counts_remedy(reason, &uri);
        StoreError::Failed { store: self.to_string(), action, reason }
    }

    /// Returns the text of `error` with a remedy for the operator.
    fn with_remedy(&self, error: &redb::Error) -> String {
        match error {
            redb::Error::Io(error) => self.with_io_remedy(error),
            redb::Error::DatabaseAlreadyOpen => held_by_other(&self.path),
            redb::Error::Corrupted(_)
            | redb::Error::UpgradeRequired(_)
            | redb::Error::TableTypeMismatch { .. }
            | redb::Error::TableIsMultimap(_)
            | redb::Error::TypeDefinitionChanged { .. } => self.not_a_state(&error.to_string()),
            error => error.to_string(),
        }
    }

    fn with_io_remedy(&self, error: &io::Error) -> String {
        let remedy = match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                "free some disk space, the state needs a few MB"
            }
            ErrorKind::ReadOnlyFilesystem => {
                "mount the file system for writing, or use another work directory"
            }
            ErrorKind::PermissionDenied => {
                "run as the owner of the work directory, or use another work directory"
            }
            ErrorKind::NotADirectory | ErrorKind::AlreadyExists => {
                "the work directory must be a directory"
            }
            ErrorKind::InvalidData | ErrorKind::UnexpectedEof => {
                return self.not_a_state(&error.to_string());
            }
            _ => return error.to_string(),
        };
        format!("{error}: {remedy}")
    }

    fn not_a_state(&self, cause: &str) -> String {
        let path = self.path.display();
        format!(
            "the file is damaged, or no state of an overlay master ({cause}): restore a copy of \
             it, or move it away (`mv {path} {path}.aside`): the master then starts with an empty \
             state"
        )
    }
}

impl Store for FileStore {
    fn load(&mut self) -> Result<Loaded, StoreError> {
        self.begin_epoch(EpochPurpose::Load)
    }

    fn commit(&mut self, epoch: Epoch, changes: &[Change]) -> Result<Version, StoreError> {
        let Some(open) = self.database.take() else {
            let reason = "an earlier operation failed: load the state first".to_owned();
            return Err(StoreError::Failed { store: self.to_string(), action: "commit", reason });
        };
        self.check_file(&open, "commit")?;
        let outcome = commit(&open.database, epoch, changes)
            .map_err(|error| self.store_error("commit", &error))?;
        let result = match outcome {
            CommitOutcome::Committed(version) => Ok(version),
            CommitOutcome::EpochEnded => {
                Err(StoreError::EpochEnded { store: self.to_string(), epoch: epoch.0 })
            }
            // The next load reports the counts again, with the same remedy.
            CommitOutcome::InvalidCounts(reason) => {
                return Err(self.counts_error("commit", &reason));
            }
        };
        // Also after the commit: the file may have been replaced meanwhile.
        self.check_file(&open, "commit")?;
        if let Ok(version) = result {
            self.acknowledged = Counts { epoch: epoch.0, version: version.0 };
        }
        self.database = Some(open);
        result
    }

    fn check(&mut self) -> Result<(), StoreError> {
        let Some(open) = self.database.take() else { return Ok(()) };
        self.check_file(&open, "check")?;
        self.database = Some(open);
        Ok(())
    }
}

impl Archive for FileStore {
    fn read_snapshot(&mut self) -> Result<Option<Snapshot>, StoreError> {
        let error = |error: redb::Error| self.store_error("open", &error);
        if let Some(open) = &self.database {
            return read_snapshot(&open.database).map(Some).map_err(error);
        }
        let Some(bytes) = read_unlocked(&self.path).map_err(error)? else { return Ok(None) };
        let database = open_copy(&bytes).map_err(error)?;
        self.check_format(&database)?;
        read_snapshot(&database).map(Some).map_err(error)
    }

    fn replace(
        &mut self,
        records: &[(Key, Vec<u8>)],
        former: Counts,
    ) -> Result<Replacement, StoreError> {
        self.lock_directory()?;
        if let Some(dir) = self.create_in.take_if(|_| self.database.is_none()) {
            let is_new = self
                .create_with_records(&dir, records, former)
                .map_err(|error| self.store_error("create", &error))?;
            if is_new {
                self.database = Some(self.open_database()?);
                // Another process may have created the file first, with other records.
                return match self.read_snapshot()? {
                    Some(created) if created.records == records => {
                        Ok(Replacement { version: Version(created.counts.version), kept: None })
                    }
                    _ => {
                        let reason = "another process created the file at the same time";
                        Err(self.open_error(reason.to_owned()))
                    }
                };
            }
        }
        let loaded = self.begin_epoch(EpochPurpose::Replace(former))?;
        replace_by_commit(self, &loaded, records)
    }
}

impl fmt::Display for FileStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "file:{}", self.path.display())
    }
}

/// Returns the reason why a state is not opened whose lock at `path` another process holds.
fn held_by_other(path: &Path) -> String {
    format!(
        "another process has it open, such as a running `mesos-overlay master` or mesos-master \
         with this module (`fuser {}` shows it): stop that process, or use another work directory",
        path.display()
    )
}

#[cfg(test)]
mod identity_tests;
#[cfg(test)]
mod power_tests;
#[cfg(test)]
mod tests;
