//! A store in one file, for a single master: the redb database `overlay-master.redb` in the work
//! directory.
//!
//! Why redb: one commit is one `fsync`, and after a kill or a power cut the file opens with the
//! last complete commit. Keys and values are plain bytes, so that a later redb can read the file.
//! There are two tables: the records, and three counters. redb locks the file, so only one process
//! at a time can open the file. Within that process, the epoch fences late commits of an earlier
//! master.
//!
//! The database is closed after any error, because the memory of redb may then differ from the
//! file. The next load opens the file again.

use std::fmt;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use overlay_types::state::{Counts, Epoch, Key, StoreError, Version};
use redb::backends::FileBackend;
use redb::{Database, ReadableDatabase as _, StorageBackend, TableDefinition};

use crate::key::KeyBytes as _;
use crate::{
    Archive, Change, EpochPurpose, Loaded, Replacement, Snapshot, Store, hex_name,
    replace_by_commit, with_counts_remedy,
};

/// Name of the file in the work directory.
const FILE_NAME: &str = "overlay-master.redb";

/// Version of the format of the tables. A file with a later version is refused.
const FORMAT: u64 = 1;

/// The state of 10,000 agents is a few MB and is read once; redb's own default is 1 GiB.
const CACHE_BYTES: usize = 16 << 20;

const RECORDS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("records");

const COUNTERS: TableDefinition<'_, &[u8], u64> = TableDefinition::new("counters");
const FORMAT_COUNTER: &[u8] = b"format";
const EPOCH_COUNTER: &[u8] = b"epoch";
const VERSION_COUNTER: &[u8] = b"version";

/// A store in a file.
#[derive(Debug)]
pub struct FileStore {
    path: PathBuf,
    /// `None` before the first load of [`FileStore::at`], and after an error until the next load.
    database: Option<Database>,
    /// The directory in which the first load creates missing parts. Later loads create nothing: a
    /// file that vanished is an error, not an empty state.
    create_in: Option<PathBuf>,
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
        Self { path: dir.join(FILE_NAME), database: None, create_in: Some(dir.to_owned()) }
    }

    fn create_and_open(&mut self) -> Result<Database, StoreError> {
        if let Some(dir) = &self.create_in {
            self.create_missing(dir).map_err(|error| self.store_error("open", &error))?;
        }
        let database = self.open_database()?;
        self.create_in = None;
        Ok(database)
    }

    /// Creates the directory and an empty state if they are missing.
    fn create_missing(&self, dir: &Path) -> Result<(), redb::Error> {
        create_directory(dir)?;
        if !self.path.try_exists()? {
            self.create_file(dir, None, Counts::default())?;
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
        create_directory(dir)?;
        let is_missing = !self.path.try_exists()?;
        if is_missing {
            self.create_file(dir, Some(records), former)?;
        }
        sync_directory(dir)?;
        Ok(is_missing)
    }

    fn open_database(&self) -> Result<Database, StoreError> {
        let database =
            open_and_verify(&self.path).map_err(|error| self.store_error("open", &error))?;
        match read_format(&database) {
            Ok(Some(FORMAT)) => Ok(database),
            Ok(Some(format)) if format > FORMAT => Err(self.open_error(format!(
                "it was written by a later version of mesos-overlay (format {format}, this version \
                 supports {FORMAT}): run the later version"
            ))),
            Ok(_) => Err(self.open_error(self.not_a_state("the tables of a state are missing"))),
            Err(error) => Err(self.store_error("open", &error)),
        }
    }

    fn begin_epoch(&mut self, purpose: EpochPurpose) -> Result<Loaded, StoreError> {
        let database = match self.database.take() {
            Some(database) => database,
            None => self.create_and_open()?,
        };
        let begun =
            begin_epoch(&database, purpose).map_err(|error| self.store_error("load", &error))?;
        let (loaded, unknown) = match begun {
            EpochOutcome::Begun { loaded, unknown } => (loaded, unknown),
            EpochOutcome::InvalidCounts(reason) => return Err(self.counts_error("load", &reason)),
        };
        self.database = Some(database);
        if unknown > 0 {
            log::warn!("{self}: kept and not used: {unknown} records of unknown kind");
        }
        Ok(loaded)
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
        let path = self.path.display();
        match error {
            redb::Error::Io(error) => self.with_io_remedy(error),
            redb::Error::DatabaseAlreadyOpen => format!(
                "another process has it open, such as a running `mesos-overlay master` or \
                 mesos-master with this module (`fuser {path}` shows it): stop that process, or \
                 use another work directory"
            ),
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
        let Some(database) = self.database.take() else {
            let reason = "an earlier operation failed: load the state first".to_owned();
            return Err(StoreError::Failed { store: self.to_string(), action: "commit", reason });
        };
        let outcome = commit(&database, epoch, changes)
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
        self.database = Some(database);
        result
    }
}

impl Archive for FileStore {
    fn read_snapshot(&mut self) -> Result<Option<Snapshot>, StoreError> {
        if self.database.is_none() {
            let exists = self.path.try_exists();
            if !exists.map_err(|error| self.store_error("read", &error.into()))? {
                return Ok(None);
            }
        }
        let database = match self.database.take() {
            Some(database) => database,
            None => self.open_database()?,
        };
        let snapshot =
            read_snapshot(&database).map_err(|error| self.store_error("read", &error))?;
        self.database = Some(database);
        Ok(Some(snapshot))
    }

    fn replace(
        &mut self,
        records: &[(Key, Vec<u8>)],
        former: Counts,
    ) -> Result<Replacement, StoreError> {
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

/// Opens an existing database and verifies its content on the disk.
fn open_and_verify(path: &Path) -> Result<Database, redb::Error> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    drop_cached_pages(&file)?;
    // An empty file is refused, because it means that a state was lost. `create_with_backend` would
    // create a database in an empty file.
    if file.metadata()?.len() == 0 {
        return Err(redb::Error::Corrupted("the file is empty".to_owned()));
    }
    Ok(verify(FileBackend::new(file)?)?)
}

fn verify(backend: impl StorageBackend) -> Result<Database, redb::DatabaseError> {
    let mut builder = Database::builder();
    // Without the check, redb trusts the pages of a closed file, and panics at a damaged page.
    builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
    builder.create_with_backend(backend)
}

/// Drops the cached pages of `file`, so that they are read from the disk again. After a failed
/// `fsync`, Linux marks the pages that it could not write as clean. This process and the next
/// process would load these pages as durable.
fn drop_cached_pages(file: &File) -> io::Result<()> {
    file.sync_data()?;
    match rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed) {
        // The file system has no page cache.
        Err(rustix::io::Errno::NOSYS | rustix::io::Errno::OPNOTSUPP) => Ok(()),
        result => Ok(result?),
    }
}

/// Creates `dir` and its missing parents, accessible to the owner only, and syncs their entries.
fn create_directory(dir: &Path) -> io::Result<()> {
    let is_missing = |path: &&Path| !path.as_os_str().is_empty() && !path.exists();
    let missing: Vec<&Path> = dir.ancestors().take_while(is_missing).collect();
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    missing.iter().filter_map(|path| path.parent()).try_for_each(sync_directory)
}

fn sync_directory(dir: &Path) -> io::Result<()> {
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    File::open(dir)?.sync_all()
}

/// Reads the format of the tables. Returns `None` if the file has none.
fn read_format(database: &Database) -> Result<Option<u64>, redb::Error> {
    match database.begin_read()?.open_table(COUNTERS) {
        Ok(counters) => Ok(counters.get(FORMAT_COUNTER)?.map(|format| format.value())),
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

enum EpochOutcome {
    Begun {
        loaded: Loaded,
        /// Number of records whose key this version cannot read.
        unknown: usize,
    },
    /// No state can have reached the counts of the file, for this reason.
    InvalidCounts(String),
}

enum CommitOutcome {
    Committed(Version),
    /// A later epoch has begun. Nothing was written.
    EpochEnded,
    /// The version cannot be incremented, for this reason. Nothing was written.
    InvalidCounts(String),
}

/// Reads the state of the last commit.
fn read_snapshot(database: &Database) -> Result<Snapshot, redb::Error> {
    let transaction = database.begin_read()?;
    let counters = transaction.open_table(COUNTERS)?;
    let epoch = counter(&counters, EPOCH_COUNTER)?;
    let counts = Counts { epoch, version: counter(&counters, VERSION_COUNTER)? };
    let (counts, warning) = counts.corrected();
    let (records, unknown) = read_records(&transaction.open_table(RECORDS)?)?;
    Ok(Snapshot { counts, records, unknown, warnings: warning.into_iter().collect() })
}

/// The records of this version, and the records of a later version of this program.
type Records = (Vec<(Key, Vec<u8>)>, Vec<(String, Vec<u8>)>);

fn read_records(
    table: &impl redb::ReadableTable<&'static [u8], &'static [u8]>,
) -> Result<Records, redb::Error> {
    let mut records = Vec::new();
    let mut unknown = Vec::new();
    for entry in table.iter()? {
        let (key, bytes) = entry?;
        let bytes = bytes.value().to_vec();
        match Key::from_bytes(key.value()) {
            Some(key) => records.push((key, bytes)),
            None => unknown.push((hex_name(key.value()), bytes)),
        }
    }
    Ok((records, unknown))
}

fn begin_epoch(database: &Database, purpose: EpochPurpose) -> Result<EpochOutcome, redb::Error> {
    let transaction = database.begin_write()?;
    let (records, unknown) = read_records(&transaction.open_table(RECORDS)?)?;
    let (epoch, version) = {
        let mut counters = transaction.open_table(COUNTERS)?;
        let epoch = counter(&counters, EPOCH_COUNTER)?;
        let counts = Counts { epoch, version: counter(&counters, VERSION_COUNTER)? };
        let Counts { epoch, version } = match purpose.next_counts(counts) {
            Ok(begun) => begun,
            Err(reason) => return Ok(EpochOutcome::InvalidCounts(reason)),
        };
        counters.insert(EPOCH_COUNTER, epoch)?;
        counters.insert(VERSION_COUNTER, version)?;
        (Epoch(epoch), Version(version))
    };
    transaction.commit()?;
    let loaded = Loaded { epoch, version, records };
    Ok(EpochOutcome::Begun { loaded, unknown: unknown.len() })
}

fn commit(
    database: &Database,
    epoch: Epoch,
    changes: &[Change],
) -> Result<CommitOutcome, redb::Error> {
    let transaction = database.begin_write()?;
    let version = {
        let mut counters = transaction.open_table(COUNTERS)?;
        if counter(&counters, EPOCH_COUNTER)? != epoch.0 {
            return Ok(CommitOutcome::EpochEnded);
        }
        let version = Version(counter(&counters, VERSION_COUNTER)?).next();
        if let Err(reason) = (Counts { epoch: epoch.0, version: version.0 }).check() {
            return Ok(CommitOutcome::InvalidCounts(reason));
        }
        counters.insert(VERSION_COUNTER, version.0)?;
        let mut records = transaction.open_table(RECORDS)?;
        for change in changes {
            match change {
                Change::Put(key, bytes) => {
                    records.insert(&*key.to_bytes(), &**bytes)?;
                }
                Change::Delete(key) => {
                    records.remove(&*key.to_bytes())?;
                }
            }
        }
        version
    };
    transaction.commit()?;
    Ok(CommitOutcome::Committed(version))
}

fn counter(
    counters: &impl redb::ReadableTable<&'static [u8], u64>,
    name: &[u8],
) -> Result<u64, redb::Error> {
    let missing = || redb::Error::Corrupted("a counter is missing".to_owned());
    counters.get(name)?.map(|value| value.value()).ok_or_else(missing)
}

#[cfg(test)]
mod power_tests;
#[cfg(test)]
mod tests;
