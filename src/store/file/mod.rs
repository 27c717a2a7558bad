//! A state in one file, for a single master: the redb database `overlay-master.redb` in its work
//! directory.
//!
//! redb because one commit is one `fsync` and because a file that a kill or a power cut left behind
//! opens with the last commit and nothing of an unfinished one. What is in it are plain bytes under
//! plain bytes, so that a later redb reads them. There are two tables, one of records and one of
//! three counters; the lock that redb holds on the file is why one process at a time has it, and
//! the epoch fences what is left of an earlier master within that process.
//!
//! The database is closed after any error, since what it has in memory may then differ from the
//! file. The next load opens it again and finds out.

use std::fmt;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use redb::backends::FileBackend;
use redb::{Database, ReadableDatabase as _, StorageBackend, TableDefinition};

use super::{
    Archive, Begin, Change, Counts, Epoch, Key, Loaded, Replaced, Snapshot, Store, StoreError,
    Version, explain_counts, replace_by_commit, unknown_name,
};

/// Name of the file in the work directory.
const FILE_NAME: &str = "overlay-master.redb";

/// Version of what is in the tables. A file with a later one is refused.
const FORMAT: u64 = 1;

/// The state of 10,000 agents is a few MB and is read once; redb's own default is 1 GiB.
const CACHE_BYTES: usize = 16 << 20;

const RECORDS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("records");

const COUNTERS: TableDefinition<'_, &[u8], u64> = TableDefinition::new("counters");
const FORMAT_COUNTER: &[u8] = b"format";
const EPOCH_COUNTER: &[u8] = b"epoch";
const VERSION_COUNTER: &[u8] = b"version";

/// A state in a file.
#[derive(Debug)]
pub struct FileStore {
    path: PathBuf,
    /// `None` before the first load of [`FileStore::at`], and after an error until the next load.
    database: Option<Database>,
    /// The directory in which the first load makes what is missing. Later ones do not: a file that
    /// vanished is an error, and no empty state.
    to_make: Option<PathBuf>,
}

impl FileStore {
    /// Opens the state in the directory `dir`. What is missing is made: the directory with its
    /// parents, for the owner only, and an empty state. The file is locked as long as the store
    /// lives.
    ///
    /// # Errors
    /// When the directory or the file cannot be made, read or written, another process has the
    /// file, or it is no state of this program, is damaged, or was written by a later version.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let mut store = Self::at(dir);
        store.database = Some(store.make_and_open()?);
        Ok(store)
    }

    /// The same, but the first [`Store::load`] does it: until that succeeds the state is unknown,
    /// and the caller goes on.
    #[must_use]
    pub fn at(dir: &Path) -> Self {
        Self { path: dir.join(FILE_NAME), database: None, to_make: Some(dir.to_owned()) }
    }

    fn make_and_open(&mut self) -> Result<Database, StoreError> {
        if let Some(dir) = &self.to_make {
            self.create(dir).map_err(|error| self.failed("open", &error))?;
        }
        let database = self.open_database()?;
        self.to_make = None;
        Ok(database)
    }

    /// Makes the directory and an empty state, where they are missing.
    fn create(&self, dir: &Path) -> Result<(), redb::Error> {
        create_directory(dir)?;
        if !self.path.try_exists()? {
            self.create_file(dir, None, Counts::default())?;
        }
        // Also where the file was there: who made it may have been killed before this.
        Ok(sync_directory(dir)?)
    }

    /// Makes a state beside the file and renames it: a kill in between must not leave half a
    /// database, which would look like a damaged one. It is empty, or holds `records` from its
    /// first commit on.
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
            // Another process was faster: its file is as good, and the lock decides who gets it.
            Err(error) if error.error.kind() == ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(error.error.into()),
            Ok(_) => Ok(()),
        }
    }

    fn open_database(&self) -> Result<Database, StoreError> {
        let database = open_and_verify(&self.path).map_err(|error| self.failed("open", &error))?;
        match read_format(&database) {
            Ok(Some(FORMAT)) => Ok(database),
            Ok(Some(format)) if format > FORMAT => Err(self.refused(format!(
                "it was written by a later version of mesos-overlay (format {format}, this one \
                 knows {FORMAT}): run that version"
            ))),
            Ok(_) => Err(self.refused(self.foreign("it lacks what a state has"))),
            Err(error) => Err(self.failed("open", &error)),
        }
    }

    fn begin(&mut self, begin: Begin) -> Result<Loaded, StoreError> {
        let database = match self.database.take() {
            Some(database) => database,
            None => self.make_and_open()?,
        };
        let begun = begin_epoch(&database, begin)
            .map_err(|error| self.failed("load", &error))?
            .map_err(|reason| self.refused_counts("load", &reason))?;
        self.database = Some(database);
        if begun.unreadable > 0 {
            let count = begun.unreadable;
            log::warn!("{self}: kept and not used: {count} records of unknown kind");
        }
        Ok(begun.loaded)
    }

    fn failed(&self, action: &'static str, error: &redb::Error) -> StoreError {
        StoreError::Failed { store: self.to_string(), action, reason: self.explain(error) }
    }

    fn refused(&self, reason: String) -> StoreError {
        StoreError::Failed { store: self.to_string(), action: "open", reason }
    }

    fn refused_counts(&self, action: &'static str, reason: &str) -> StoreError {
        let directory = self.path.parent().unwrap_or_else(|| Path::new("."));
        let place = format!("file --work-dir {}", directory.display());
        let reason = explain_counts(reason, &place);
        StoreError::Failed { store: self.to_string(), action, reason }
    }

    /// `error` with what an operator can do about it.
    fn explain(&self, error: &redb::Error) -> String {
        let path = self.path.display();
        match error {
            redb::Error::Io(error) => self.explain_io(error),
            redb::Error::DatabaseAlreadyOpen => format!(
                "another process has it open, such as a running `mesos-overlay master` or \
                 mesos-master with this module (`fuser {path}` shows which): stop that one, or use \
                 another work directory"
            ),
            redb::Error::Corrupted(_)
            | redb::Error::UpgradeRequired(_)
            | redb::Error::TableTypeMismatch { .. }
            | redb::Error::TableIsMultimap(_)
            | redb::Error::TypeDefinitionChanged { .. } => self.foreign(&error.to_string()),
            error => error.to_string(),
        }
    }

    fn explain_io(&self, error: &io::Error) -> String {
        let remedy = match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                "make room for it, the state needs a few MB"
            }
            ErrorKind::ReadOnlyFilesystem => {
                "mount the file system for writing, or use another work directory"
            }
            ErrorKind::PermissionDenied => {
                "run as the owner of the work directory, or use another one"
            }
            ErrorKind::NotADirectory | ErrorKind::AlreadyExists => {
                "the work directory must be a directory"
            }
            ErrorKind::InvalidData | ErrorKind::UnexpectedEof => {
                return self.foreign(&error.to_string());
            }
            _ => return error.to_string(),
        };
        format!("{error}: {remedy}")
    }

    fn foreign(&self, what: &str) -> String {
        let path = self.path.display();
        format!(
            "it is damaged, or no state of an overlay master ({what}): put a copy of it back, or set \
             it aside (`mv {path} {path}.aside`), which begins with an empty plan that knows no agent"
        )
    }
}

impl Store for FileStore {
    fn load(&mut self) -> Result<Loaded, StoreError> {
        self.begin(Begin::Load)
    }

    fn commit(&mut self, epoch: Epoch, changes: &[Change]) -> Result<Version, StoreError> {
        let Some(database) = self.database.take() else {
            let reason = "an earlier operation failed: load the state first".to_owned();
            return Err(StoreError::Failed { store: self.to_string(), action: "commit", reason });
        };
        let version = write(&database, epoch, changes)
            .map_err(|error| self.failed("commit", &error))?
            .map_err(|reason| self.refused_counts("commit", &reason))?
            .ok_or_else(|| StoreError::Deposed { store: self.to_string(), epoch: epoch.0 });
        self.database = Some(database);
        version
    }
}

impl Archive for FileStore {
    fn look(&mut self) -> Result<Option<Snapshot>, StoreError> {
        let database = match self.database.take() {
            Some(database) => database,
            None if !self
                .path
                .try_exists()
                .map_err(|error| self.failed("read", &error.into()))? =>
            {
                return Ok(None);
            }
            None => self.open_database()?,
        };
        let snapshot = snapshot(&database).map_err(|error| self.failed("read", &error))?;
        self.database = Some(database);
        Ok(Some(snapshot))
    }

    fn replace(
        &mut self,
        records: &[(Key, Vec<u8>)],
        former: Counts,
    ) -> Result<Replaced, StoreError> {
        if let Some(dir) = self.to_make.take_if(|_| self.database.is_none()) {
            let make = || {
                create_directory(&dir)?;
                let is_new = !self.path.try_exists()?;
                if is_new {
                    self.create_file(&dir, Some(records), former)?;
                }
                sync_directory(&dir)?;
                Ok(is_new)
            };
            if make().map_err(|error| self.failed("make", &error))? {
                // That of another process, if one was faster, is not what is wanted.
                self.database = Some(self.open_database()?);
                return match self.look()? {
                    Some(made) if made.records == records => {
                        Ok(Replaced { version: Version(made.counts.version), kept: None })
                    }
                    _ => Err(self.refused("another process made it at the same time".to_owned())),
                };
            }
        }
        let loaded = self.begin(Begin::Replace(former))?;
        replace_by_commit(self, &loaded, records)
    }
}

impl fmt::Display for FileStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "file:{}", self.path.display())
    }
}

/// Opens an existing database as it is on the disk.
fn open_and_verify(path: &Path) -> Result<Database, redb::Error> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    forget_cached_pages(&file)?;
    // An empty file is not accepted: where a state was, it is a loss, and `create_with_backend`
    // would not say.
    if file.metadata()?.len() == 0 {
        return Err(redb::Error::Corrupted("the file is empty".to_owned()));
    }
    Ok(verify(FileBackend::new(file)?)?)
}

fn verify(backend: impl StorageBackend) -> Result<Database, redb::DatabaseError> {
    let mut builder = Database::builder();
    // Without the check redb trusts the pages of a file that was closed, and panics over a bad one.
    builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
    builder.create_with_backend(backend)
}

/// After an `fsync` that failed, Linux shows the pages that it could not write as if it had, to us
/// and to the next process too. What is not on the disk must not be loaded as durable, so the pages
/// are read again.
fn forget_cached_pages(file: &File) -> io::Result<()> {
    file.sync_data()?;
    match rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed) {
        // A file system without a page cache to forget.
        Err(rustix::io::Errno::NOSYS | rustix::io::Errno::OPNOTSUPP) => Ok(()),
        result => Ok(result?),
    }
}

/// Makes `dir` and its missing parents, for the owner only, and makes their entries durable.
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

/// The format of the tables; `None` if it is not there.
fn read_format(database: &Database) -> Result<Option<u64>, redb::Error> {
    match database.begin_read()?.open_table(COUNTERS) {
        Ok(counters) => Ok(counters.get(FORMAT_COUNTER)?.map(|format| format.value())),
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

struct BegunEpoch {
    loaded: Loaded,
    /// How many records have a key that this version cannot read.
    unreadable: usize,
}

/// All that is there, at the moment of the last commit.
fn snapshot(database: &Database) -> Result<Snapshot, redb::Error> {
    let transaction = database.begin_read()?;
    let counters = transaction.open_table(COUNTERS)?;
    let epoch = counter(&counters, EPOCH_COUNTER)?;
    let counts = Counts { epoch, version: counter(&counters, VERSION_COUNTER)? };
    let (counts, doubt) = counts.corrected();
    let (records, unknown) = read_records(&transaction.open_table(RECORDS)?)?;
    Ok(Snapshot { counts, records, unknown, doubts: doubt.into_iter().collect() })
}

/// The records, and those of a later version of this program.
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
            None => unknown.push((unknown_name(key.value()), bytes)),
        }
    }
    Ok((records, unknown))
}

/// Begins an epoch, unless the counts of the file cannot be true: the inner error says so.
fn begin_epoch(
    database: &Database,
    begin: Begin,
) -> Result<Result<BegunEpoch, String>, redb::Error> {
    let transaction = database.begin_write()?;
    let (records, unknown) = read_records(&transaction.open_table(RECORDS)?)?;
    let (epoch, version) = {
        let mut counters = transaction.open_table(COUNTERS)?;
        let epoch = counter(&counters, EPOCH_COUNTER)?;
        let counts = Counts { epoch, version: counter(&counters, VERSION_COUNTER)? };
        let Counts { epoch, version } = match counts.begun(begin) {
            Ok(begun) => begun,
            Err(reason) => return Ok(Err(reason)),
        };
        counters.insert(EPOCH_COUNTER, epoch)?;
        counters.insert(VERSION_COUNTER, version)?;
        (Epoch(epoch), Version(version))
    };
    transaction.commit()?;
    let unreadable = unknown.len();
    Ok(Ok(BegunEpoch { loaded: Loaded { epoch, version, records }, unreadable }))
}

/// The new version; `None` if `epoch` is not the latest, and then nothing is written. Neither is it
/// for the reason of the inner error, which is that the version cannot be counted on.
fn write(
    database: &Database,
    epoch: Epoch,
    changes: &[Change],
) -> Result<Result<Option<Version>, String>, redb::Error> {
    let transaction = database.begin_write()?;
    let version = {
        let mut counters = transaction.open_table(COUNTERS)?;
        if counter(&counters, EPOCH_COUNTER)? != epoch.0 {
            return Ok(Ok(None));
        }
        let version = Version(counter(&counters, VERSION_COUNTER)?).next();
        if let Err(reason) = (Counts { epoch: epoch.0, version: version.0 }).check() {
            return Ok(Err(reason));
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
    Ok(Ok(Some(version)))
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
