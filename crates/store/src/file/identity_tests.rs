//! Tests of a state file that is removed, replaced or overwritten while a master has it open, and
//! of reading a state without changing it.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

use super::lock::LOCK_NAME;
use super::*;

/// A store with two commits, and the path of its file.
fn opened(dir: &Path) -> (FileStore, Epoch, PathBuf) {
    let mut store = FileStore::open(dir).unwrap();
    let epoch = store.load().unwrap().epoch;
    for version in 1..=2 {
        assert_eq!(store.commit(epoch, &[put(1)]), Ok(Version(version)));
    }
    (store, epoch, dir.join(FILE_NAME))
}

fn put(number: u8) -> Change {
    Change::Put(Key::Agent([10, 0, 0, number].into()), vec![number; 100])
}

/// Checks that the store refuses a check, a commit and a load with `reason`.
#[track_caller]
fn assert_lost(store: &mut FileStore, epoch: Epoch, reason: &str) {
    let error = store.check().unwrap_err().to_string();
    let expected = format!(
        "{store}: check: {reason}: this master assigns no addresses until the same file is back; \
         otherwise stop this master, restore the latest copy of the state and start one master"
    );
    assert_eq!(error, expected);
    assert!(store.commit(epoch, &[put(2)]).is_err());
    let error = store.load().unwrap_err().to_string();
    assert!(error.contains(&format!(": {reason}: this master assigns")), "{error}");
}

const REMOVED: &str = "the file was removed or moved away, or its file system was unmounted";
const REPLACED: &str = "the file was replaced: another file has its path";

#[test]
fn commit_after_removal_fails_until_same_file_is_back() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, epoch, path) = opened(dir.path());
    let away = dir.path().join("away");
    fs::rename(&path, &away).unwrap();
    let error = store.commit(epoch, &[put(2)]).unwrap_err().to_string();
    assert!(error.contains(&format!(": commit: {REMOVED}: ")), "{error}");
    assert!(store.load().is_err());
    assert!(!path.exists(), "the store created another file");
    fs::rename(&away, &path).unwrap();
    let loaded = store.load().unwrap();
    assert_eq!((loaded.version, loaded.records.len()), (Version(2), 1));
    assert_eq!(store.commit(loaded.epoch, &[put(2)]), Ok(Version(3)));
}

#[test]
fn replaced_file_is_never_opened_by_running_master() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, epoch, path) = opened(dir.path());
    let away = dir.path().join("away");
    fs::rename(&path, &away).unwrap();
    fs::copy(&away, &path).unwrap();
    let copy = fs::read(&path).unwrap();
    assert_lost(&mut store, epoch, REPLACED);
    let second = FileStore::open(dir.path()).unwrap_err().to_string();
    assert!(second.contains("open: another process has it open"), "{second}");
    assert_eq!(fs::read(&path).unwrap(), copy);
    assert_eq!(fs::read(&away).unwrap(), copy, "the store wrote to the former file");
    fs::rename(&away, &path).unwrap();
    assert_eq!(store.load().unwrap().version, Version(2));
}

#[test]
fn file_on_other_file_system_is_refused() {
    let (here, shm) = (tempfile::tempdir().unwrap(), tempfile::tempdir_in("/dev/shm").unwrap());
    let link = here.path().join("work");
    fs::create_dir(here.path().join("own")).unwrap();
    symlink(here.path().join("own"), &link).unwrap();
    let (mut store, epoch, path) = opened(&link);
    for name in [FILE_NAME, LOCK_NAME] {
        fs::copy(link.join(name), shm.path().join(name)).unwrap();
    }
    fs::remove_file(&link).unwrap();
    symlink(shm.path(), &link).unwrap();
    let lock = link.join(LOCK_NAME);
    let device = |path: &Path| fs::metadata(path).unwrap().dev();
    let reason = if device(here.path()) == device(shm.path()) {
        "was replaced: another file has its path"
    } else {
        "is hidden: a file of another file system has its path"
    };
    assert_lost(&mut store, epoch, &format!("the lock file {} {reason}", lock.display()));
    // A mount over the file alone.
    fs::remove_file(&link).unwrap();
    symlink(here.path().join("own"), &link).unwrap();
    let epoch = store.load().unwrap().epoch;
    fs::rename(&path, link.join("away")).unwrap();
    symlink(shm.path().join(FILE_NAME), &path).unwrap();
    assert_lost(&mut store, epoch, &format!("the file {reason}"));
}

#[test]
fn overwritten_file_is_refused_and_left_unchanged() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE_NAME);
    drop(FileStore::open(dir.path()).unwrap());
    let backup = fs::read(&path).unwrap();
    let (mut store, epoch, path) = opened(dir.path());
    // As `cp backup overlay-master.redb` does: the inode stays the same.
    fs::write(&path, &backup).unwrap();
    let error = store.check().unwrap_err().to_string();
    assert!(error.contains(": check: another process wrote to the file: "), "{error}");
    assert_eq!(fs::read(&path).unwrap(), backup, "the store wrote to the restored copy");
    assert!(store.commit(epoch, &[put(2)]).is_err());
    let error = store.load().unwrap_err().to_string();
    assert!(error.contains(": open: another process wrote to the file: "), "{error}");
    assert_eq!(fs::read(&path).unwrap(), backup, "a later load wrote to the restored copy");
    drop(store);
    let loaded = FileStore::open(dir.path()).unwrap().load().unwrap();
    assert_eq!(loaded.version, Version(0), "a restart accepts the restored copy");
}

#[test]
fn file_overwritten_while_closed_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE_NAME);
    drop(FileStore::open(dir.path()).unwrap());
    let backup = fs::read(&path).unwrap();
    let (mut store, _, path) = opened(dir.path());
    // As after any error of the disk.
    store.database = None;
    fs::write(&path, &backup).unwrap();
    let older = "the file holds an older state, version 0 of epoch 0, and this master stored \
                 version 2 of epoch 1: ";
    for action in ["load", "open"] {
        let error = store.load().unwrap_err().to_string();
        assert!(error.contains(&format!(": {action}: {older}")), "{error}");
    }
}

#[test]
fn commit_with_truncated_file_fails() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, epoch, path) = opened(dir.path());
    let length = fs::metadata(&path).unwrap().len();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(length - 1).unwrap();
    let error = store.commit(epoch, &[put(2)]).unwrap_err().to_string();
    assert!(error.contains("another process wrote to the file"), "{error}");
}

#[test]
fn missing_or_replaced_lock_file_fails_commits() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("work");
    let (mut store, epoch, _) = opened(&dir);
    let lock = dir.join(LOCK_NAME);
    let away = dir.join("away");
    fs::rename(&lock, &away).unwrap();
    let removed = "was removed or moved away, or its file system was unmounted";
    let reason = format!("the lock file {} {removed}", lock.display());
    assert_lost(&mut store, epoch, &reason);
    // The directory stays locked.
    let second = FileStore::open(&dir).unwrap_err().to_string();
    assert!(second.contains("open: another process has it open"), "{second}");
    fs::rename(&away, &lock).unwrap();
    let epoch = store.load().unwrap().epoch;
    assert_eq!(store.commit(epoch, &[put(2)]), Ok(Version(3)));
}

/// Opens a second store on `dir`, which is refused.
#[track_caller]
fn assert_locked(dir: &Path) {
    let second = FileStore::open(dir).unwrap_err().to_string();
    assert!(second.contains("open: another process has it open"), "{second}");
}

#[test]
fn failed_store_stays_locked_in_readable_directory() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let (mut store, epoch, path) = opened(dir.path());
    let lock = dir.path().join(LOCK_NAME);
    fs::remove_file(&lock).unwrap();
    assert!(store.check().is_err());
    assert_locked(dir.path());
    // The second store made another lock file.
    let replaced = "was replaced: another file has its path";
    let error = store.load().unwrap_err().to_string();
    assert!(error.contains(&format!("the lock file {} {replaced}", lock.display())), "{error}");
    assert!(store.commit(epoch, &[put(2)]).is_err());
    fs::remove_file(&path).unwrap();
    fs::remove_file(&lock).unwrap();
    assert_locked(dir.path());
    assert!(!path.exists(), "the second store created a state");
    drop(store);
    FileStore::open(dir.path()).unwrap();
}

#[test]
fn failed_store_keeps_its_file_locked() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (mut store, _, path) = opened(dir.path());
    // The same file in another directory, as after a move to another volume of a union.
    fs::hard_link(&path, other.path().join(FILE_NAME)).unwrap();
    fs::remove_file(&path).unwrap();
    for _ in 0..2 {
        assert!(store.check().is_ok() || store.load().is_err());
        assert_locked(other.path());
        store.database = None;
    }
    fs::hard_link(other.path().join(FILE_NAME), &path).unwrap();
    assert_eq!(store.load().unwrap().version, Version(2), "the same file is back");
    assert_locked(other.path());
}

#[test]
fn file_overwritten_between_check_and_commit_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE_NAME);
    drop(FileStore::open(dir.path()).unwrap());
    let backup = fs::read(&path).unwrap();
    let (mut store, epoch, path) = opened(dir.path());
    let database = store.database.take().unwrap();
    let error = store.run_checked("commit", || {
        fs::write(&path, &backup)?;
        commit(&database, epoch, &[put(2)])
    });
    let error = error.err().unwrap().to_string();
    assert!(error.contains(": commit: another process wrote to the file: "), "{error}");
    drop(database);
    assert_eq!(fs::read(&path).unwrap(), backup, "the store wrote to the restored copy");
}

#[test]
fn file_moved_between_check_and_commit_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, epoch, path) = opened(dir.path());
    let database = store.database.take().unwrap();
    let error = store.run_checked("commit", || {
        fs::rename(&path, dir.path().join("away"))?;
        commit(&database, epoch, &[put(2)])
    });
    let error = error.err().unwrap().to_string();
    assert!(error.contains(&format!(": commit: {REMOVED}: ")), "{error}");
}

#[test]
fn failed_write_is_no_overwritten_file() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, epoch, _) = opened(dir.path());
    let database = store.database.take().unwrap();
    // As on a full disk.
    store.file.as_ref().unwrap().abandon();
    let error = store.run_checked("commit", || commit(&database, epoch, &[put(2)]));
    let error = error.err().unwrap().to_string();
    assert!(error.ends_with(": commit: an earlier write to the file failed"), "{error}");
    drop(database);
    assert_eq!(store.load().unwrap().version, Version(2));
}

#[test]
fn wider_modes_of_state_and_lock_are_withdrawn() {
    let dir = tempfile::tempdir().unwrap();
    drop(FileStore::open(dir.path()).unwrap());
    let mode =
        |name: &str| fs::metadata(dir.path().join(name)).unwrap().permissions().mode() & 0o777;
    for name in [FILE_NAME, LOCK_NAME] {
        fs::set_permissions(dir.path().join(name), fs::Permissions::from_mode(0o644)).unwrap();
    }
    drop(FileStore::open(dir.path()).unwrap());
    assert_eq!((mode(FILE_NAME), mode(LOCK_NAME)), (0o600, 0o600));
}

#[test]
fn linked_lock_file_is_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("target");
    symlink(&target, dir.path().join(LOCK_NAME)).unwrap();
    assert!(FileStore::open(dir.path()).is_err());
    assert!(!target.exists());
}

#[test]
fn snapshot_leaves_directory_unchanged() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _, path) = opened(dir.path());
    // A copy of a running master's file is one that was not closed.
    let unclosed = fs::read(&path).unwrap();
    drop(store);
    let closed = fs::read(&path).unwrap();
    assert_ne!(unclosed, closed);
    fs::remove_file(dir.path().join(LOCK_NAME)).unwrap();
    for bytes in [unclosed, closed] {
        fs::write(&path, &bytes).unwrap();
        let snapshot = FileStore::at(dir.path()).read_snapshot().unwrap().unwrap();
        assert_eq!((snapshot.counts.version, snapshot.records.len()), (2, 1));
        assert_eq!(fs::read(&path).unwrap(), bytes);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
