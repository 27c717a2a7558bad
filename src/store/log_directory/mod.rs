//! The replicated log of Mesos as a directory on the disk of one replica, while no mesos-master has
//! it: so the state of the C++ module is taken over without one, and handed back.
//!
//! The directory is a LevelDB database. It is read into memory as it is and opened there, since
//! opening one writes into it; and a new one is made in memory and then written beside, so that the
//! former is there until the new one is whole. What the records in it mean is in
//! `wire/replica.rs`.

mod checksum;
mod manifest;

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::process::{Flock, FlockType, fcntl_getlk};
use rusty_leveldb::env::Env;
use rusty_leveldb::{DB, LdbIterator as _, MemEnv, Options};

use self::checksum::is_whole;
use self::manifest::{CURRENT, in_use};
use super::replicated_log::{records, take_over};
use super::{
    Archive, Begin, Counts, Key, Log, Replaced, ReplicatedLogStore, Snapshot, StoreError, Version,
    replace_by_commit, unknown_name,
};
use crate::protocol::Network;
use crate::wire::{LoggedState, Replica, decode_replica, encode_replica};

/// Where the database is in memory: nothing can be there on a disk, which it would look for.
const NOWHERE: &str = "/dev/null/replica";

/// The lock of a LevelDB database, held by the process that has it open.
const LOCK: &str = "LOCK";

/// Larger than any state, so that a new database is one file that is written from front to back.
const BUFFER_BYTES: usize = 1 << 30;

/// Keys and values.
type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

/// Most bytes of all files of a database, which are read into memory. A log of Mesos that is
/// truncated as usual has some MiB.
const BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// Files of a database: their names, and what is in them.
type Files = Vec<(String, Vec<u8>)>;

/// A replicated log in a directory.
#[derive(Debug)]
pub struct LogDirectory {
    path: PathBuf,
    network: Option<Arc<Network>>,
}

impl LogDirectory {
    /// The log in the directory `path`. The C++ module is shown what agents have of `network`,
    /// which writing needs.
    #[must_use]
    pub const fn new(path: PathBuf, network: Option<Arc<Network>>) -> Self {
        Self { path, network }
    }

    /// The value as it stands in the log; `None` where none was ever written.
    ///
    /// # Errors
    /// When a mesos-master has it, it cannot be read, or others may know more.
    pub fn value(&self) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.replica()?.value)
    }

    fn replica(&self) -> Result<Replica, StoreError> {
        self.refuse_if_held()?;
        let files = read_files(&self.path).map_err(|error| self.failed("read", error))?;
        // Had one come and gone meanwhile, the files would not belong together.
        self.refuse_if_held()?;
        if read_files(&self.path).map_err(|error| self.failed("read", error))? != files {
            return Err(self.failed("read", "it changed meanwhile: a mesos-master has it: stop it"));
        }
        if files.is_empty() {
            return Ok(Replica::default());
        }
        let records = open(&files)
            .and_then(read_records)
            .map_err(|reason| self.failed("read", format!("{reason}: {DAMAGED}")))?;
        let records = records.iter().map(|(key, bytes)| (&**key, &**bytes));
        decode_replica(records).map_err(|error| self.failed("read", error))
    }

    fn refuse_if_held(&self) -> Result<(), StoreError> {
        let lock = self.path.join(LOCK);
        let holder = holder(&lock)
            .map_err(|error| self.failed("open", format!("{}: {error}", lock.display())))?;
        let Some(holder) = holder else { return Ok(()) };
        let remedy = "such as a mesos-master: stop that one for as long as this takes";
        Err(self.failed("open", format!("{holder} has it, {remedy}")))
    }

    fn failed(&self, action: &'static str, reason: impl fmt::Display) -> StoreError {
        StoreError::Failed { store: self.to_string(), action, reason: reason.to_string() }
    }

    /// Writes a log with this value beside the directory, and exchanges the two. Returns where the
    /// former one is.
    fn write(&self, value: Vec<u8>) -> io::Result<Option<PathBuf>> {
        let files = make(&encode_replica(value, uuid())).map_err(io::Error::other)?;
        let (parent, name) = match (self.path.parent(), self.path.file_name()) {
            (Some(parent), Some(name)) if parent.as_os_str().is_empty() => (Path::new("."), name),
            (Some(parent), Some(name)) => (parent, name),
            _ => return Err(io::Error::other("it is no directory that can be made: name one")),
        };
        let prefix = format!(".{}.", name.to_string_lossy());
        let beside = tempfile::Builder::new().prefix(&prefix).tempdir_in(parent)?;
        for (name, bytes) in &files {
            let mut file = File::create_new(beside.path().join(name))?;
            file.write_all(bytes)?;
            file.sync_all()?;
        }
        // As LevelDB makes its own.
        fs::set_permissions(beside.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        File::open(beside.path())?.sync_all()?;
        let kept = if is_empty(&self.path)? {
            fs::rename(beside.path(), &self.path)?;
            let _ = beside.keep();
            None
        } else {
            // Whatever can fail does so before: from then on nothing may take away what is beside.
            let kept = free_name(&self.path, name)?;
            renameat_with(CWD, beside.path(), CWD, &self.path, RenameFlags::EXCHANGE)?;
            let former = beside.keep();
            Some(fs::rename(&former, &kept).map_or(former, |()| kept))
        };
        File::open(parent)?.sync_all()?;
        Ok(kept)
    }
}

/// What to do with a database that cannot be read.
const DAMAGED: &str = "it is damaged, or no replicated log of Mesos: use the directory of another \
                       master, or a copy";

impl Archive for LogDirectory {
    fn look(&mut self) -> Result<Option<Snapshot>, StoreError> {
        let Replica { value, unlearned_at } = self.replica()?;
        let Some(value) = value else { return Ok(None) };
        let mut state = LoggedState::decode(&value).map_err(|error| self.failed("read", error))?;
        let mut doubts = state.losses();
        take_over(&mut state);
        if let Some(position) = unlearned_at {
            doubts.push(format!(
                "nobody has told this replica that a majority knows what is at position {position} \
                 of the log: if other masters led later, use the directory of the last"
            ));
        }
        let (counts, doubt) = state.counts().corrected();
        doubts.extend(doubt);
        let unknown = state.entries().filter(|(key, _)| Key::from_bytes(key).is_none());
        let unknown = unknown.map(|(key, bytes)| (unknown_name(key), bytes.to_vec())).collect();
        let records = records(&state).collect();
        Ok(Some(Snapshot { counts, records, unknown, doubts }))
    }

    fn replace(
        &mut self,
        records: &[(Key, Vec<u8>)],
        former: Counts,
    ) -> Result<Replaced, StoreError> {
        let Some(network) = self.network.clone() else {
            let reason = "the c++ module wants to know the network: give the network file";
            return Err(self.failed("write", reason));
        };
        let there = self.replica()?.value.unwrap_or_default();
        let (value, version) = replaced_value(there, (records, former), network)?;
        self.refuse_if_held()?;
        let kept = self.write(value).map_err(|error| self.failed("write", explain(&error)))?;
        Ok(Replaced { version, kept })
    }
}

impl fmt::Display for LogDirectory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "log:{}", self.path.display())
    }
}

/// A log of which only the value matters.
struct Value(Mutex<Vec<u8>>);

impl Log for Value {
    fn fetch(&self) -> Result<Vec<u8>, String> {
        Ok(self.0.lock().clone())
    }

    fn store(&self, value: &[u8]) -> Result<bool, String> {
        value.clone_into(&mut self.0.lock());
        Ok(true)
    }
}

/// The value of a log after `records`, of a state that has come as far as `former`, were put in the
/// place of all others in `value`.
pub(super) fn replaced_value(
    value: Vec<u8>,
    (records, former): (&[(Key, Vec<u8>)], Counts),
    network: Arc<Network>,
) -> Result<(Vec<u8>, Version), StoreError> {
    let log = Arc::new(Value(Mutex::new(value)));
    let mut store = ReplicatedLogStore::new(Arc::clone(&log) as Arc<dyn Log>, network);
    let loaded = store.begin(Begin::Replace(former))?;
    let replaced = replace_by_commit(&mut store, &loaded, records)?;
    let value = std::mem::take(&mut *log.0.lock());
    Ok((value, replaced.version))
}

/// The process that holds the lock at `path`, in words.
fn holder(path: &Path) -> io::Result<Option<String>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    // Asked for, and not taken: a mesos-master that starts now must not find it taken.
    let held = fcntl_getlk(&file, &Flock::from(FlockType::WriteLock))?;
    Ok(held.map(|lock| match lock.pid {
        Some(pid) => format!("process {}", pid.as_raw_nonzero()),
        None => "another process".to_owned(),
    }))
}

/// The files of the database in `directory`; none where there is none, or an empty one.
fn read_files(directory: &Path) -> io::Result<Files> {
    read_files_within(directory, BYTES_MAX)
}

/// The same files, of at most `bytes_max` bytes together.
fn read_files_within(directory: &Path, bytes_max: u64) -> io::Result<Files> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Files::new()),
        Err(error) => return Err(error),
    };
    let mut files = Files::new();
    let mut others = 0;
    let mut left = bytes_max;
    for entry in entries {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let is_data = name == CURRENT
            || name.starts_with("MANIFEST-")
            || [".log", ".ldb", ".sst"].iter().any(|end| name.ends_with(end));
        if is_data && entry.file_type()?.is_file() {
            let mut bytes = Vec::new();
            let read = File::open(entry.path())?.take(left + 1).read_to_end(&mut bytes)?;
            left = u64::try_from(read).ok().and_then(|read| left.checked_sub(read)).ok_or_else(
                || {
                    let mebibytes = bytes_max / (1024 * 1024);
                    io::Error::other(format!(
                        "its files have more than {mebibytes} MiB together: let its mesos-master \
                     truncate it, or name the right directory"
                    ))
                },
            )?;
            files.push((name, bytes));
        } else if !matches!(&*name, LOCK | "LOG" | "LOG.old") {
            others += 1;
        }
    }
    if !files.iter().any(|(name, _)| name == CURRENT) && others + files.len() > 0 {
        return Err(io::Error::other(format!(
            "it has no file {CURRENT} and so is no replicated log of Mesos: name the directory \
             overlay_replicated_log in the replicated_log_dir of the master"
        )));
    }
    files.sort();
    Ok(files)
}

fn options(environment: &Rc<Box<dyn Env>>, may_make: bool) -> Options {
    Options {
        env: Rc::clone(environment),
        create_if_missing: may_make,
        paranoid_checks: true,
        write_buffer_size: BUFFER_BYTES,
        ..Options::default()
    }
}

fn memory() -> Rc<Box<dyn Env>> {
    Rc::new(Box::new(MemEnv::new()))
}

fn open(files: &Files) -> Result<DB, String> {
    let files = in_use(files)?;
    if let Some((name, _)) = files.iter().find(|(name, bytes)| !is_whole(name, bytes)) {
        return Err(format!("a checksum in {name} is wrong"));
    }
    let memory = memory();
    for (name, bytes) in files {
        let mut file = memory.open_writable_file(&Path::new(NOWHERE).join(name)).map_err(text)?;
        file.write_all(bytes).map_err(|error| error.to_string())?;
    }
    DB::open(NOWHERE, options(&memory, false)).map_err(text)
}

fn read_records(mut database: DB) -> Result<Pairs, String> {
    let mut iterator = database.new_iter().map_err(text)?;
    let mut records = Vec::new();
    while iterator.advance() {
        records.extend(iterator.current().map(|(key, value)| (key.to_vec(), value.to_vec())));
    }
    Ok(records)
}

/// The files of a new database with these keys and values.
fn make(records: &[(Vec<u8>, Vec<u8>)]) -> Result<Files, String> {
    let memory = memory();
    let mut database = DB::open(NOWHERE, options(&memory, true)).map_err(text)?;
    for (key, value) in records {
        database.put(key, value).map_err(text)?;
    }
    database.close().map_err(text)?;
    drop(database);
    let mut files = Files::new();
    for name in memory.children(Path::new(NOWHERE)).map_err(text)? {
        let mut bytes = Vec::new();
        let mut file =
            memory.open_sequential_file(&Path::new(NOWHERE).join(&name)).map_err(text)?;
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
    // Random, in the words of RFC 9562.
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    bytes
}

/// Whether nothing is there that a rename would take away.
fn is_empty(directory: &Path) -> io::Result<bool> {
    match fs::read_dir(directory) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

/// A name beside the directory `path`, which is called `name`, for what was there.
fn free_name(path: &Path, name: &OsStr) -> io::Result<PathBuf> {
    let mut number = 1;
    loop {
        let mut name = name.to_owned();
        name.push(format!(".replaced-{number}"));
        // Unlike the text of the path, it does not end in a slash.
        let path = path.with_file_name(name);
        if !path.try_exists()? {
            return Ok(path);
        }
        number += 1;
    }
}

fn explain(error: &io::Error) -> String {
    let remedy = match error.kind() {
        ErrorKind::NotFound => "make the directory above it",
        ErrorKind::PermissionDenied => "run as the user of mesos-master",
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "make room for it",
        ErrorKind::InvalidInput | ErrorKind::Unsupported => {
            "the file system cannot exchange two directories: move the former one away"
        }
        _ => return error.to_string(),
    };
    format!("{error}: {remedy}")
}

#[cfg(test)]
mod tests;
