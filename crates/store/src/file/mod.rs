//! A store in one file, for a single master: the redb database `overlay-master.redb` in the work
//! directory.
//!
//! Why redb: one commit is one `fsync`, and after a kill or a power cut the file opens with the
//! last complete commit. Keys and values are plain bytes, so that a later redb can read the file.
//! The module `tables` has the tables: the records, and three counters. The module `lock` admits one
//! process at a time. Within that process, the epoch fences late commits of an earlier master.
//!
//! The database is closed after any error, because the memory of redb may then differ from the
//! file. The next load opens the database again, but only in the same file, which stays open and
//! locked: a path whose file was removed or replaced does not hold the state that agents rely on.
//! Before and after every commit, the store checks that the path still leads to the open file. Before
//! every write, it checks that no other process wrote to the file (`backend`).

mod backend;
mod create;
mod errors;
mod lock;
mod open;
mod tables;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use overlay_types::state::{Counts, Epoch, Key, StoreError, Version};
use redb::Database;

use self::backend::{Loss, StateFile};
use self::errors::{OVERWRITTEN, held_by_other};
use self::lock::{LockError, WorkDirLock};
use self::open::{create_directory, open_copy, open_file, read_unlocked, verify};
use self::tables::{
    CommitOutcome, EpochOutcome, FORMAT, begin_epoch, commit, read_counts, read_format,
    read_snapshot,
};
use crate::{
    Archive, Change, EpochPurpose, Loaded, Replacement, Snapshot, Store, replace_by_commit,
};

/// Name of the file in the work directory.
const FILE_NAME: &str = "overlay-master.redb";

/// The state of 10,000 agents is a few MB and is read once; redb's own default is 1 GiB.
const CACHE_BYTES: usize = 16 << 20;

/// A store in a file.
#[derive(Debug)]
pub struct FileStore {
    /// The path of the file as the operator wrote it, for messages.
    path: PathBuf,
    /// The same path from the root. A directory that is renamed takes the working directory of this
    /// process with it, and a relative path would lead to the renamed directory.
    absolute: PathBuf,
    /// `None` before the first load of [`FileStore::at`], and after an error until the next load.
    database: Option<Database>,
    /// The directory in which the first load creates missing parts. Later loads create nothing: a
    /// file that vanished is an error, not an empty state.
    create_in: Option<PathBuf>,
    /// Held from the first load, also after an error: no other master may start meanwhile.
    lock: Option<WorkDirLock>,
    /// The file that was opened first, which stays open and locked. No other file holds the state
    /// of this master.
    file: Option<Arc<StateFile>>,
    /// The counts of the last successful load or commit.
    acknowledged: Counts,
    /// Why the content is no longer the state of this master, for good: another process wrote to
    /// the file. The file is not opened again, since redb would repair and so change it.
    overwritten: Option<String>,
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
        let path = dir.join(FILE_NAME);
        Self {
            // Without a working directory, a relative path leads nowhere, and every load fails.
            absolute: std::path::absolute(&path).unwrap_or_else(|_| path.clone()),
            path,
            database: None,
            create_in: Some(dir.to_owned()),
            lock: None,
            file: None,
            acknowledged: Counts::default(),
            overwritten: None,
        }
    }

    fn create_and_open(&mut self) -> Result<Database, StoreError> {
        if let Some(reason) = &self.overwritten {
            return Err(self.overwritten_error("open", reason));
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
            LockError::Io(path, error) => self.lock_error(&path, &error),
        })?;
        self.lock = Some(lock);
        Ok(())
    }

    /// Opens and verifies the file: any file at the first time, and later only the same file.
    fn open_database(&mut self) -> Result<Database, StoreError> {
        let file = match &self.file {
            Some(file) => {
                file.check_path(&self.absolute).map_err(|error| self.lost_error("open", &error))?;
                Arc::clone(file)
            }
            None => {
                let file = open_file(&self.absolute);
                Arc::new(file.map_err(|error| self.store_error("open", &error))?)
            }
        };
        let database = StateFile::backend(&file).and_then(|backend| Ok(verify(backend)?));
        let database = database.map_err(|error| self.store_error("open", &error))?;
        self.check_format(&database)?;
        self.file = Some(file);
        Ok(database)
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

    /// Checks that the path of the state leads to the open file, that this process alone wrote to
    /// the file, and that the lock of the directory is in place. If not, the file is abandoned.
    fn check_file(&mut self, action: &'static str) -> Result<(), StoreError> {
        let Some(file) = &self.file else { return Ok(()) };
        let lock = self.lock.as_ref().map_or(Ok(()), WorkDirLock::check);
        let checked = lock.map_err(Loss::Moved).and_then(|()| file.check(&self.absolute));
        let Err(loss) = checked else { return Ok(()) };
        file.abandon();
        Err(match loss {
            Loss::Moved(reason) => self.lost_error(action, &reason),
            Loss::Overwritten => self.note_overwritten(action, OVERWRITTEN.to_owned()),
        })
    }

    /// Runs `work` on the open file. The file is checked before and afterwards, because it may be
    /// replaced meanwhile. A lost file also explains an error of `work`.
    fn run_checked<T>(
        &mut self,
        action: &'static str,
        work: impl FnOnce() -> Result<T, redb::Error>,
    ) -> Result<T, StoreError> {
        self.check_file(action)?;
        let result = work();
        self.check_file(action)?;
        result.map_err(|error| self.store_error(action, &error))
    }

    fn begin_epoch(&mut self, purpose: EpochPurpose) -> Result<Loaded, StoreError> {
        let database = match self.database.take() {
            Some(database) => database,
            None => self.create_and_open()?,
        };
        let counts = self.run_checked("load", || read_counts(&database))?;
        self.refuse_older_state(counts)?;
        let begun = self.run_checked("load", || begin_epoch(&database, purpose))?;
        let (loaded, unknown) = match begun {
            EpochOutcome::Begun { loaded, unknown } => (loaded, unknown),
            EpochOutcome::InvalidCounts(reason) => return Err(self.counts_error("load", &reason)),
        };
        self.acknowledged = Counts { epoch: loaded.epoch.0, version: loaded.version.0 };
        self.database = Some(database);
        if unknown > 0 {
            log::warn!("{self}: kept and not used: {unknown} records of unknown kind");
        }
        Ok(loaded)
    }

    /// Fails if the file with these counts is older than the state that this master stored: an
    /// older copy was written into the file.
    fn refuse_older_state(&mut self, counts: Counts) -> Result<(), StoreError> {
        let Counts { epoch, version } = self.acknowledged;
        if counts.epoch >= epoch && counts.version >= version {
            return Ok(());
        }
        if let Some(file) = &self.file {
            file.abandon();
        }
        let reason = format!(
            "the file holds an older state, version {} of epoch {}, and this master stored version \
             {version} of epoch {epoch}",
            counts.version, counts.epoch
        );
        Err(self.note_overwritten("load", reason))
    }

    /// Notes that the content is no longer the state of this master, and returns the error.
    fn note_overwritten(&mut self, action: &'static str, reason: String) -> StoreError {
        let error = self.overwritten_error(action, &reason);
        self.overwritten = Some(reason);
        error
    }
}

impl Store for FileStore {
    fn load(&mut self) -> Result<Loaded, StoreError> {
        self.begin_epoch(EpochPurpose::Load)
    }

    fn commit(&mut self, epoch: Epoch, changes: &[Change]) -> Result<Version, StoreError> {
        let Some(database) = self.database.take() else {
            let reason = "an earlier operation failed: load the state first".to_owned();
            return Err(StoreError::Failed { store: self.to_string(), action: "commit", reason });
        };
        let result = match self.run_checked("commit", || commit(&database, epoch, changes))? {
            CommitOutcome::Committed(version) => {
                self.acknowledged = Counts { epoch: epoch.0, version: version.0 };
                Ok(version)
            }
            CommitOutcome::EpochEnded => {
                Err(StoreError::EpochEnded { store: self.to_string(), epoch: epoch.0 })
            }
            // The next load reports the counts again, with the same remedy.
            CommitOutcome::InvalidCounts(reason) => {
                return Err(self.counts_error("commit", &reason));
            }
        };
        self.database = Some(database);
        result
    }

    fn check(&mut self) -> Result<(), StoreError> {
        let Some(database) = self.database.take() else { return Ok(()) };
        self.check_file("check")?;
        self.database = Some(database);
        Ok(())
    }
}

impl Archive for FileStore {
    fn read_snapshot(&mut self) -> Result<Option<Snapshot>, StoreError> {
        let error = |error: redb::Error| self.store_error("open", &error);
        if let Some(database) = &self.database {
            return read_snapshot(database).map(Some).map_err(error);
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

#[cfg(test)]
mod identity_tests;
#[cfg(test)]
mod power_tests;
#[cfg(test)]
mod tests;
