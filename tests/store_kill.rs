//! The file store keeps every committed batch when a master is killed during a commit, and when the
//! disk is full.
//!
//! The master is this test program, run again as a child process. The child commits one batch after
//! another and prints each version as soon as the store has returned it. A partly applied batch is
//! detectable: the batch of version `n` writes `n` under every shared key, and adds one key of its
//! own.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::io::{BufRead as _, BufReader, Lines, Write as _};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

use overlay_store::{Change, FileStore, Store as _};
use overlay_types::state::{Key, Version};

/// Directory of the child's store. The variable is set only for the child process.
const CHILD_DIR: &str = "STORE_KILL_TEST_DIR";

const SHARED_KEYS: u32 = 20;

fn shared_key(number: u32) -> Key {
    Key::Agent(Ipv4Addr::from(number))
}

fn own_key(version: u64) -> Key {
    let number = u32::try_from(version).unwrap();
    Key::Agent(Ipv4Addr::from(0x0a00_0000 + number))
}

/// Builds the batch that is committed as `version`. The record length varies from batch to batch,
/// so that pages are split and merged.
fn batch(version: Version) -> Vec<Change> {
    let number = version.0.to_string();
    let bytes = number.repeat(1 + usize::try_from(version.0 % 50).unwrap()).into_bytes();
    let mut changes = vec![Change::Put(own_key(version.0), number.into_bytes())];
    changes.extend((0..SHARED_KEYS).map(|key| Change::Put(shared_key(key), bytes.clone())));
    changes
}

/// Builds all records that the store holds after the batch of `version`.
fn records_at(version: Version) -> Vec<(Key, Vec<u8>)> {
    let mut records = std::collections::BTreeMap::new();
    for number in 1..=version.0 {
        for change in batch(Version(number)) {
            let Change::Put(key, bytes) = change else { unreachable!("a batch only puts") };
            records.insert(key, bytes);
        }
    }
    records.into_iter().collect()
}

/// Loads the state as the next master does, and compares all records with the loaded version.
fn load_and_check(dir: &Path) -> Version {
    let loaded = FileStore::open(dir).unwrap().load().unwrap();
    assert!(loaded.records == records_at(loaded.version), "{:?} is incomplete", loaded.version);
    loaded.version
}

#[test]
#[ignore = "child process of the other tests"]
#[expect(clippy::disallowed_methods, reason = "the parent passes the directory")]
fn child_process_commits_until_killed() {
    let Ok(dir) = std::env::var(CHILD_DIR) else { return };
    let mut store = FileStore::open(Path::new(&dir)).unwrap();
    let loaded = store.load().unwrap();
    let mut version = loaded.version;
    let error = loop {
        match store.commit(loaded.epoch, &batch(version.next())) {
            Ok(committed) => version = committed,
            Err(error) => break error,
        }
        send_line(&format!("committed {}\n", version.0));
    };
    send_line(&format!("failed {error}\n"));
    let again = store.commit(loaded.epoch, &batch(version.next())).unwrap_err();
    send_line(&format!("again {again}\n"));
    match store.load() {
        Ok(loaded) => send_line(&format!("loaded {}\n", loaded.version.0)),
        Err(error) => send_line(&format!("not loaded {error}\n")),
    }
}

/// Sends a line to the parent in one write, so that a kill never cuts a line. The test runner
/// captures the output of `println!`, so the line goes to standard error.
fn send_line(line: &str) {
    std::io::stderr().write_all(line.as_bytes()).unwrap();
}

/// Starts the child in `dir`. With a limit, no file grows beyond that many blocks of 512 bytes. The
/// shell ignores SIGXFSZ for the child, so that a write beyond the limit fails as on a full disk.
fn spawn(dir: &Path, limit: Option<u32>) -> Child {
    let program = std::env::current_exe().unwrap();
    let mut command = match limit {
        None => Command::new(program),
        Some(blocks) => {
            let mut command = Command::new("sh");
            let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
            command.arg("-c").arg(script).arg(program);
            command
        }
    };
    command
        .args(["--ignored", "--exact", "--nocapture", "child_process_commits_until_killed"])
        .env(CHILD_DIR, dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn child_lines(child: &mut Child) -> Lines<BufReader<ChildStderr>> {
    BufReader::new(child.stderr.take().unwrap()).lines()
}

/// Finds the last version that the store reported as committed to the child.
fn last_committed(lines: &[String]) -> Option<Version> {
    lines.iter().rev().find_map(|line| {
        let number = line.strip_prefix("committed ")?;
        Some(Version(number.parse().unwrap()))
    })
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a kill at a random time")]
fn killed_master_reloads_all_committed_batches() {
    let dir = tempfile::tempdir().unwrap();
    let end = Instant::now() + Duration::from_secs(3);
    let (mut rounds, mut version) = (0, Version(0));
    while Instant::now() < end {
        let mut child = spawn(dir.path(), None);
        // Kill the child sometimes while it opens the state, sometimes during a commit.
        let mut lines = child_lines(&mut child);
        let mut received: Vec<String> =
            lines.by_ref().take(fastrand::usize(0..12)).map(Result::unwrap).collect();
        std::thread::sleep(Duration::from_micros(fastrand::u64(0..10_000)));
        child.kill().unwrap();
        received.extend(lines.map(Result::unwrap));
        child.wait().unwrap();
        let committed = last_committed(&received).unwrap_or(version);
        version = load_and_check(dir.path());
        // The kill can hit after the write of one more batch and before its report.
        assert!(
            version == committed || version == committed.next(),
            "{committed:?} was committed and {version:?} loaded"
        );
        rounds += 1;
    }
    println!("{rounds} kills, {} commits", version.0);
    assert!(rounds >= 5 && version.0 >= 5, "{rounds} kills, {} commits", version.0);
}

#[test]
fn full_disk_is_reported_and_keeps_committed_state() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = spawn(dir.path(), Some(200));
    let lines: Vec<String> = child_lines(&mut child).map(Result::unwrap).collect();
    assert!(child.wait().unwrap().success(), "{lines:?}");
    let [.., failed, again, loaded] = &lines[..] else { panic!("{lines:?}") };
    let store = format!("file:{}/overlay-master.redb", dir.path().display());
    assert_eq!(
        *failed,
        format!(
            "failed {store}: commit: File too large (os error 27): free some disk space, the state \
             needs a few MB"
        )
    );
    assert_eq!(
        *again,
        format!("again {store}: commit: an earlier operation failed: load the state first")
    );
    let committed = last_committed(&lines).unwrap();
    assert!(committed.0 > 1, "{lines:?}");
    assert_eq!(*loaded, format!("loaded {}", committed.0), "the failed handle loads the state");
    assert_eq!(load_and_check(dir.path()), committed);

    // Without the limit, commits succeed again.
    let mut store = FileStore::open(dir.path()).unwrap();
    let loaded = store.load().unwrap();
    let next = loaded.version.next();
    assert_eq!(store.commit(loaded.epoch, &batch(next)), Ok(next));
    drop(store);
    assert_eq!(load_and_check(dir.path()), next);
}
