//! Tests of the file store beyond the conformance suite: locking, refused files and their error
//! messages, damaged files.

use std::fs::{self, OpenOptions};
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::rc::Rc;

use redb::{ReadableTable as _, TableDefinition};

use super::lock::LOCK_NAME;
use super::tables::{COUNTERS, EPOCH_COUNTER, FORMAT_COUNTER, RECORDS, VERSION_COUNTER};
use super::*;
use crate::conformance::{self, StoreFixture};

fn agent(number: u8) -> Key {
    Key::Agent(Ipv4Addr::new(10, 0, 0, number))
}

/// Returns the error of opening the state in `dir`, with FILE in place of the path of the file.
fn open_error(dir: &Path) -> String {
    let error = FileStore::open(dir).unwrap_err().to_string();
    error.replace(&*dir.join(FILE_NAME).to_string_lossy(), "FILE")
}

/// Changes the tables without the store.
fn tamper(dir: &Path, change: impl FnOnce(&redb::WriteTransaction)) {
    let database = Database::open(dir.join(FILE_NAME)).unwrap();
    let transaction = database.begin_write().unwrap();
    change(&transaction);
    transaction.commit().unwrap();
}

#[test]
fn file_store_passes_conformance_suite() {
    conformance::check(&|| {
        let dir = Rc::new(tempfile::tempdir().unwrap());
        let (same, forged) = (Rc::clone(&dir), Rc::clone(&dir));
        let open = move || Box::new(FileStore::open(dir.path()).unwrap()) as Box<dyn Store>;
        let archive = move || Box::new(FileStore::at(same.path())) as Box<dyn Archive>;
        let forge = move |counts: Counts| {
            tamper(forged.path(), |transaction| {
                let mut counters = transaction.open_table(COUNTERS).unwrap();
                counters.insert(EPOCH_COUNTER, counts.epoch).unwrap();
                counters.insert(VERSION_COUNTER, counts.version).unwrap();
            });
        };
        StoreFixture {
            open: Box::new(open),
            archive: Some(Box::new(archive)),
            forge: Box::new(forge),
            is_shared: false,
        }
    });
}

#[test]
fn open_creates_directories_for_owner_only() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("lib/overlay");
    let store = FileStore::open(&dir).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir), 0o700);
    assert_eq!(mode(dir.parent().unwrap()), 0o700);
    assert_eq!(mode(&dir.join(FILE_NAME)), 0o600);
    assert_eq!(store.to_string(), format!("file:{}/overlay-master.redb", dir.display()));
    assert_eq!(mode(&dir.join(LOCK_NAME)), 0o600);
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 2, "no temporary file remains");
}

#[test]
fn open_keeps_mode_of_existing_directory() {
    let temporary = tempfile::tempdir().unwrap();
    fs::set_permissions(temporary.path(), fs::Permissions::from_mode(0o755)).unwrap();
    FileStore::open(temporary.path()).unwrap();
    assert_eq!(fs::metadata(temporary.path()).unwrap().permissions().mode() & 0o777, 0o755);
}

#[test]
fn second_open_names_lock_holder_and_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let first = FileStore::open(dir.path()).unwrap();
    assert_eq!(
        open_error(dir.path()),
        format!(
            "file:FILE: open: another process has it open, such as a running `mesos-overlay \
             master` or mesos-master with this module (`fuser {}` shows it): stop that process, or \
             use another work directory",
            dir.path().join(LOCK_NAME).display()
        )
    );
    drop(first);
    FileStore::open(dir.path()).unwrap();
}

#[test]
fn file_without_state_is_refused_unchanged() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE_NAME);
    let remedy = "restore a copy of it, or move it away (`mv FILE FILE.aside`): the master then \
                  starts with an empty state";
    for bytes in [b"".to_vec(), b"a text\n".to_vec(), vec![0; 100_000]] {
        fs::write(&path, &bytes).unwrap();
        let error = open_error(dir.path());
        assert!(
            error.starts_with(
                "file:FILE: open: the file is damaged, or no state of an overlay master ("
            ) && error.ends_with(remedy),
            "{error}"
        );
        assert_eq!(fs::read(&path).unwrap(), bytes);
    }
}

#[test]
fn special_file_is_refused_without_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE_NAME);
    let fifo = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, &path, fifo, rustix::fs::Mode::RUSR, 0).unwrap();
    let no_state = "the file is damaged, or no state of an overlay master (";
    let reason = format!("{no_state}DB corrupted: it is no regular file): ");
    assert!(open_error(dir.path()).contains(&reason));
    let error = FileStore::at(dir.path()).read_snapshot().unwrap_err().to_string();
    assert!(error.contains(&reason), "{error}");
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(open_error(dir.path()).contains(no_state));
    fs::remove_dir(&path).unwrap();
    std::os::unix::fs::symlink("/nonexistent/state", &path).unwrap();
    let error = open_error(dir.path());
    assert!(error.ends_with("mount the file system to which it leads"), "{error}");
}

#[test]
fn foreign_database_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    Database::create(dir.path().join(FILE_NAME)).unwrap();
    assert!(
        open_error(dir.path())
            .contains("no state of an overlay master (the tables of a state are missing)")
    );
    let other = TableDefinition::<u64, u64>::new("counters");
    tamper(dir.path(), |transaction| drop(transaction.open_table(other).unwrap()));
    assert!(open_error(dir.path()).contains("no state of an overlay master ("));
}

#[test]
fn later_format_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    FileStore::open(dir.path()).unwrap();
    tamper(dir.path(), |transaction| {
        transaction.open_table(COUNTERS).unwrap().insert(FORMAT_COUNTER, 2).unwrap();
    });
    assert_eq!(
        open_error(dir.path()),
        "file:FILE: open: it was written by a later version of mesos-overlay (format 2, this \
         version supports 1): run the later version"
    );
}

#[test]
fn work_directory_that_is_a_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let error = FileStore::open(&file).unwrap_err().to_string();
    assert!(error.ends_with(": the work directory must be a directory"), "{error}");
}

#[test]
fn file_system_error_has_remedy() {
    let store = FileStore::at("/state".as_ref());
    let message = |errno: i32| {
        let error = io::Error::from_raw_os_error(errno);
        store.store_error("commit", &redb::Error::Io(error)).to_string()
    };
    assert_eq!(
        message(28),
        "file:/state/overlay-master.redb: commit: No space left on device (os error 28): free some \
         disk space, the state needs a few MB"
    );
    assert_eq!(
        message(30),
        "file:/state/overlay-master.redb: commit: Read-only file system (os error 30): mount the \
         file system for writing, or use another work directory"
    );
    assert_eq!(
        message(13),
        "file:/state/overlay-master.redb: commit: Permission denied (os error 13): run as the \
         owner of the work directory, or use another work directory"
    );
    assert_eq!(
        message(5),
        "file:/state/overlay-master.redb: commit: Input/output error (os error 5): the disk or its \
         file system fails: see the log of the kernel (`dmesg`)"
    );
}

#[test]
fn record_with_unknown_key_is_kept_and_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = FileStore::open(dir.path()).unwrap();
    let epoch = store.load().unwrap().epoch;
    store.commit(epoch, &[Change::Put(agent(1), b"one".to_vec())]).unwrap();
    drop(store);
    let unknown: [&[u8]; 4] = [b"", b"\x01\x0a", b"\x01\x0a\x00\x00\x01\x00", b"\x02abcd"];
    tamper(dir.path(), |transaction| {
        let mut records = transaction.open_table(RECORDS).unwrap();
        for key in unknown {
            records.insert(key, b"later".as_slice()).unwrap();
        }
    });
    let mut store = FileStore::open(dir.path()).unwrap();
    let loaded = store.load().unwrap();
    assert_eq!(loaded.records, [(agent(1), b"one".to_vec())]);
    store.commit(loaded.epoch, &[Change::Delete(agent(1))]).unwrap();
    drop(store);
    tamper(dir.path(), |transaction| {
        let records = transaction.open_table(RECORDS).unwrap();
        for key in unknown {
            assert_eq!(records.get(key).unwrap().unwrap().value(), b"later");
        }
    });
}

#[test]
fn commit_after_error_is_refused_until_load() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = FileStore::open(dir.path()).unwrap();
    let epoch = store.load().unwrap().epoch;
    store.database = None;
    let error = store.commit(epoch, &[]).unwrap_err().to_string();
    assert!(
        error.ends_with(": commit: an earlier operation failed: load the state first"),
        "{error}"
    );
    let epoch = store.load().unwrap().epoch;
    assert_eq!(store.commit(epoch, &[]), Ok(Version(1)));
}

/// Overwrites random bytes. Damage to the committed state is an error and no panic; other damage
/// has no effect.
#[test]
fn damaged_file_is_refused_or_unaffected() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE_NAME);
    let mut store = FileStore::open(dir.path()).unwrap();
    let epoch = store.load().unwrap().epoch;
    let records: Vec<(Key, Vec<u8>)> = (0..200).map(|n| (agent(n), vec![n; 100])).collect();
    let changes: Vec<Change> =
        records.iter().map(|(key, bytes)| Change::Put(*key, bytes.clone())).collect();
    store.commit(epoch, &changes).unwrap();
    drop(store);
    let intact = fs::read(&path).unwrap();
    let seed = fastrand::u64(..);
    println!("seed: {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut refused = 0;
    for _ in 0..60 {
        fs::write(&path, &intact).unwrap();
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        if random.u8(0..8) == 0 {
            file.set_len(random.u64(1..intact.len() as u64)).unwrap();
        } else {
            let garbage: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(64).collect();
            let offset = random.u64(0..intact.len() as u64 - 64);
            file.write_all_at(&garbage, offset).unwrap();
        }
        match FileStore::open(dir.path()).and_then(|mut store| store.load()) {
            Ok(loaded) => assert_eq!(loaded.records, records),
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 0, "no damage was detected");
}
