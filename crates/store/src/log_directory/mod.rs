//! The replicated log of Mesos as a directory on the disk of one replica. The state of the C++
//! module is imported and exported through it while no mesos-master runs.
//!
//! The directory is a LevelDB database. This module copies the database into memory and opens the
//! copy, because LevelDB writes to a database that it opens. A new database is made in memory and
//! written to a temporary directory, so that the former database exists until the new database is
//! complete. The crate `overlay-wire` decodes the records (`replica.rs`).

mod checksum;
mod manifest;

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use overlay_types::protocol::Network;
use overlay_types::state::{Counts, Key, StoreError};
use overlay_wire::{LoggedState, Replica, decode_replica, encode_replica};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::process::{Flock, FlockType, fcntl_getlk};
use rusty_leveldb::env::Env;
use rusty_leveldb::{DB, LdbIterator as _, MemEnv, Options};

use self::checksum::is_intact;
use self::manifest::files_in_use;
use crate::key::KeyBytes as _;
use crate::replicated_log::{import_foreign, records, replace_records};
use crate::{Archive, Replacement, Snapshot, hex_name};

/// The path of the database in memory. LevelDB also looks for it on the disk, where no file can
/// have this path.
const MEMORY_PATH: &str = "/dev/null/replica";

/// The lock file of a LevelDB database. The process that has the database open holds the lock.
const LOCK: &str = "LOCK";

/// A file that every LevelDB database has: it names the manifest in use.
const CURRENT: &str = "CURRENT";

/// Larger than any state, so that LevelDB writes a new database as one sequential file.
const BUFFER_BYTES: usize = 1 << 30;

/// Keys and values.
type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

/// Largest total size of the files of a database, which are read into memory. A log that Mesos
/// truncates regularly has some MiB.
const BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// Files of a database: name and content.
type Files = Vec<(String, Vec<u8>)>;

/// A replicated log in a directory.
#[derive(Debug)]
pub struct LogDirectory {
    path: PathBuf,
    network: Option<Arc<Network>>,
}

impl LogDirectory {
    /// Creates a handle on the log in the directory `path`. A replacement needs `network`, because
    /// the C++ module reads the allocations of each agent in that network.
    #[must_use]
    pub const fn new(path: PathBuf, network: Option<Arc<Network>>) -> Self {
        Self { path, network }
    }

    /// Reads the value of the log. Returns `None` if no value was ever written.
    ///
    /// # Errors
    /// When a mesos-master has the log open, or the log cannot be read.
    pub fn value(&self) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.read_replica()?.value)
    }

    fn read_replica(&self) -> Result<Replica, StoreError> {
        self.check_not_locked()?;
        let files = read_files(&self.path).map_err(|error| self.store_error("read", error))?;
        // If a mesos-master ran meanwhile, the files would be inconsistent.
        self.check_not_locked()?;
        if read_files(&self.path).map_err(|error| self.store_error("read", error))? != files {
            return Err(self.store_error(
                "read",
                "the files changed while they were read: stop the mesos-master that uses them",
            ));
        }
        if files.is_empty() {
            return Ok(Replica::default());
        }
        let records = open_in_memory(&files)
            .and_then(read_records)
            .map_err(|reason| self.store_error("read", format!("{reason}: {DAMAGED}")))?;
        let records = records.iter().map(|(key, bytes)| (&**key, &**bytes));
        decode_replica(records).map_err(|error| self.store_error("read", error))
    }

    fn check_not_locked(&self) -> Result<(), StoreError> {
        let lock = self.path.join(LOCK);
        let holder = lock_holder(&lock)
            .map_err(|error| self.store_error("open", format!("{}: {error}", lock.display())))?;
        let Some(holder) = holder else { return Ok(()) };
        let remedy = "such as a mesos-master: stop that process until this command has ended";
        Err(self.store_error("open", format!("{holder} has the log open, {remedy}")))
    }

    fn store_error(&self, action: &'static str, reason: impl fmt::Display) -> StoreError {
        StoreError::Failed { store: self.to_string(), action, reason: reason.to_string() }
    }

    /// Writes a log with this value to a temporary directory, and exchanges the two directories.
    /// Returns the path of the former log.
    fn write(&self, value: Vec<u8>) -> io::Result<Option<PathBuf>> {
        let files = make_database(&encode_replica(value, uuid())).map_err(io::Error::other)?;
        let (parent, name) = match (self.path.parent(), self.path.file_name()) {
            (Some(parent), Some(name)) if parent.as_os_str().is_empty() => (Path::new("."), name),
            (Some(parent), Some(name)) => (parent, name),
            _ => {
                return Err(io::Error::other(
                    "the path names no directory that can be created: name another directory",
                ));
            }
        };
        let prefix = format!(".{}.", name.to_string_lossy());
        let temporary = tempfile::Builder::new().prefix(&prefix).tempdir_in(parent)?;
        for (name, bytes) in &files {
            let mut options = OpenOptions::new();
            options.write(true).create_new(true).mode(0o600);
            let mut file = options.open(temporary.path().join(name))?;
            file.write_all(bytes)?;
            file.sync_all()?;
        }
        fs::set_permissions(temporary.path(), Permissions::from_mode(0o700))?;
        File::open(temporary.path())?.sync_all()?;
        let kept = if is_empty(&self.path)? {
            fs::rename(temporary.path(), &self.path)?;
            let _ = temporary.keep();
            None
        } else {
            // All steps that can fail come first: after the exchange, the temporary path holds the
            // former log and must not be removed.
            let kept = free_name(&self.path, name)?;
            renameat_with(CWD, temporary.path(), CWD, &self.path, RenameFlags::EXCHANGE)?;
            let former = temporary.keep();
            Some(fs::rename(&former, &kept).map_or(former, |()| kept))
        };
        File::open(parent)?.sync_all()?;
        Ok(kept)
    }
}

/// The remedy for a database that cannot be read.
const DAMAGED: &str = "the log is damaged, or no replicated log of Mesos: use the directory of \
                       another master, or a copy";

impl Archive for LogDirectory {
    fn read_snapshot(&mut self) -> Result<Option<Snapshot>, StoreError> {
        let Replica { value, unlearned_at } = self.read_replica()?;
        let Some(value) = value else { return Ok(None) };
        let mut state =
            LoggedState::decode(&value).map_err(|error| self.store_error("read", error))?;
        let mut warnings = state.losses();
        import_foreign(&mut state);
        if let Some(position) = unlearned_at {
            warnings.push(format!(
                "this replica does not know that a majority has position {position} of the log: if \
                 another master led later, use the directory of the master that led last"
            ));
        }
        let (counts, warning) = state.counts().corrected();
        warnings.extend(warning);
        let unknown = state.entries().filter(|(key, _)| Key::from_bytes(key).is_none());
        let unknown = unknown.map(|(key, bytes)| (hex_name(key), bytes.to_vec())).collect();
        let records = records(&state).collect();
        Ok(Some(Snapshot { counts, records, unknown, warnings }))
    }

    fn replace(
        &mut self,
        records: &[(Key, Vec<u8>)],
        former: Counts,
    ) -> Result<Replacement, StoreError> {
        let Some(network) = self.network.clone() else {
            let reason = "the c++ module needs the network: pass the network file with --config";
            return Err(self.store_error("write", reason));
        };
        let former_value = self.read_replica()?.value.unwrap_or_default();
        let (value, version) = replace_records(former_value, (records, former), network)?;
        self.check_not_locked()?;
        let kept =
            self.write(value).map_err(|error| self.store_error("write", with_remedy(&error)))?;
        Ok(Replacement { version, kept })
    }
}

impl fmt::Display for LogDirectory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "log:{}", self.path.display())
    }
}

/// Returns the process that holds the lock at `path`, as text.
fn lock_holder(path: &Path) -> io::Result<Option<String>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    // Only queries the lock: a mesos-master that starts now must be able to take the lock.
    let held = fcntl_getlk(&file, &Flock::from(FlockType::WriteLock))?;
    Ok(held.map(|lock| match lock.pid {
        Some(pid) => format!("process {}", pid.as_raw_nonzero()),
        None => "another process".to_owned(),
    }))
}

/// Reads the files of the database in `directory`. A missing or empty directory has no files.
fn read_files(directory: &Path) -> io::Result<Files> {
    read_files_within(directory, BYTES_MAX)
}

/// Reads the files of a database, of at most `bytes_max` bytes in total.
fn read_files_within(directory: &Path, bytes_max: u64) -> io::Result<Files> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Files::new()),
        Err(error) => return Err(error),
    };
    let mut files = Files::new();
    let mut other_entries = 0;
    let mut remaining = bytes_max;
    for entry in entries {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let is_data = name == CURRENT
            || name.starts_with("MANIFEST-")
            || [".log", ".ldb", ".sst"].iter().any(|end| name.ends_with(end));
        if is_data && entry.file_type()?.is_file() {
            let mut bytes = Vec::new();
            let read = File::open(entry.path())?.take(remaining + 1).read_to_end(&mut bytes)?;
            let after = u64::try_from(read).ok().and_then(|read| remaining.checked_sub(read));
            remaining = after.ok_or_else(|| too_large(bytes_max))?;
            files.push((name, bytes));
        } else if !matches!(&*name, LOCK | "LOG" | "LOG.old") {
            other_entries += 1;
        }
    }
    if !files.iter().any(|(name, _)| name == CURRENT) && other_entries + files.len() > 0 {
        return Err(io::Error::other(format!(
            "the directory has no file {CURRENT}, so it is no replicated log of Mesos: name the \
             directory overlay_replicated_log in the replicated_log_dir of the master"
        )));
    }
    files.sort();
    Ok(files)
}

fn too_large(bytes_max: u64) -> io::Error {
    io::Error::other(format!(
        "the files have more than {} MiB in total: let the mesos-master truncate the log, or name \
         the right directory",
        bytes_max / (1024 * 1024)
    ))
}

fn options(environment: &Rc<Box<dyn Env>>, create_if_missing: bool) -> Options {
    Options {
        env: Rc::clone(environment),
        create_if_missing,
        paranoid_checks: true,
        write_buffer_size: BUFFER_BYTES,
        ..Options::default()
    }
}

fn memory() -> Rc<Box<dyn Env>> {
    Rc::new(Box::new(MemEnv::new()))
}

fn open_in_memory(files: &Files) -> Result<DB, String> {
    let files = files_in_use(files)?;
    if let Some((name, _)) = files.iter().find(|(name, bytes)| !is_intact(name, bytes)) {
        return Err(format!("a checksum in {name} is wrong"));
    }
    let memory = memory();
    for (name, bytes) in files {
        let mut file =
            memory.open_writable_file(&Path::new(MEMORY_PATH).join(name)).map_err(text)?;
        file.write_all(bytes).map_err(|error| error.to_string())?;
    }
    DB::open(MEMORY_PATH, options(&memory, false)).map_err(text)
}

fn read_records(mut database: DB) -> Result<Pairs, String> {
    let mut iterator = database.new_iter().map_err(text)?;
    let mut records = Vec::new();
    while iterator.advance() {
        records.extend(iterator.current().map(|(key, value)| (key.to_vec(), value.to_vec())));
    }
    Ok(records)
}

/// Makes a new database with these keys and values, and returns its files.
fn make_database(records: &[(Vec<u8>, Vec<u8>)]) -> Result<Files, String> {
    let memory = memory();
    let mut database = DB::open(MEMORY_PATH, options(&memory, true)).map_err(text)?;
    for (key, value) in records {
        database.put(key, value).map_err(text)?;
    }
    database.close().map_err(text)?;
    drop(database);
    let mut files = Files::new();
    for name in memory.children(Path::new(MEMORY_PATH)).map_err(text)? {
        let mut bytes = Vec::new();
        let mut file =
            memory.open_sequential_file(&Path::new(MEMORY_PATH).join(&name)).map_err(text)?;
        file.read_to_end(&mut bytes).map_err(|error| error.to_string())?;
        let name = name.to_string_lossy().into_owned();
        if !matches!(&*name, LOCK | "LOG") {
            files.push((name, bytes));
        }
    }
    Ok(files)
}

fn text(error: rusty_leveldb::Status) -> String {
    error.err
}

fn uuid() -> [u8; 16] {
    let mut bytes: [u8; 16] = std::array::from_fn(|_| fastrand::u8(..));
    // The version and variant bits of a random UUID (RFC 9562).
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    bytes
}

/// Whether `directory` is missing or empty, so that a rename to it loses nothing.
fn is_empty(directory: &Path) -> io::Result<bool> {
    match fs::read_dir(directory) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

/// Returns an unused path next to the directory `path`, called `name`, for its former content.
fn free_name(path: &Path, name: &OsStr) -> io::Result<PathBuf> {
    let mut number = 1;
    loop {
        let mut name = name.to_owned();
        name.push(format!(".replaced-{number}"));
        // Unlike the text of the path, this path does not end in a slash.
        let path = path.with_file_name(name);
        if !path.try_exists()? {
            return Ok(path);
        }
        number += 1;
    }
}

fn with_remedy(error: &io::Error) -> String {
    let remedy = match error.kind() {
        ErrorKind::NotFound => "create the parent directory",
        ErrorKind::PermissionDenied => "run as the user of mesos-master",
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "free some disk space",
        ErrorKind::InvalidInput | ErrorKind::Unsupported => {
            "the file system cannot exchange two directories: move the former directory away"
        }
        _ => return error.to_string(),
    };
    format!("{error}: {remedy}")
}

#[cfg(test)]
mod tests;
