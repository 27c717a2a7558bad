//! The file store keeps what it promised: a master is killed while it commits, and runs out of
//! disk.
//!
//! The master is this test program itself, run again as a child that commits one batch after the
//! other and prints the version of each as soon as the store has returned it. Batches show
//! themselves if they are halved: the batch of version `n` writes `n` under every shared key, and
//! one key of its own.

#![expect(clippy::unwrap_used, reason = "a test stops at what it does not expect")]

use std::io::{BufRead as _, BufReader, Lines, Write as _};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

use mesos_network_overlay::store::{Change, FileStore, Key, Store as _, Version};

/// Where the child commits; without it, it is no child.
const CHILD_DIR: &str = "STORE_KILL_TEST_DIR";

const SHARED_KEYS: u32 = 20;

fn shared_key(number: u32) -> Key {
    Key::Agent(Ipv4Addr::from(number))
}

fn own_key(version: u64) -> Key {
    let number = u32::try_from(version).unwrap();
    Key::Agent(Ipv4Addr::from(0x0a00_0000 + number))
}

/// The batch that makes `version`. Its length differs from the last one's, so that pages are split
/// and merged.
fn batch(version: Version) -> Vec<Change> {
    let number = version.0.to_string();
    let bytes = number.repeat(1 + usize::try_from(version.0 % 50).unwrap()).into_bytes();
    let mut changes = vec![Change::Put(own_key(version.0), number.into_bytes())];
    changes.extend((0..SHARED_KEYS).map(|key| Change::Put(shared_key(key), bytes.clone())));
    changes
}

/// Everything that is there after the batch of `version`.
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

/// Loads the state as the next master does and compares all of it with what its version says.
fn load_and_check(dir: &Path) -> Version {
    let loaded = FileStore::open(dir).unwrap().load().unwrap();
    assert!(loaded.records == records_at(loaded.version), "{:?} is half there", loaded.version);
    loaded.version
}

#[test]
#[ignore = "it is the child of the other tests"]
#[expect(clippy::disallowed_methods, reason = "what the parent tells the child")]
fn child() {
    let Ok(dir) = std::env::var(CHILD_DIR) else { return };
    let mut store = FileStore::open(Path::new(&dir)).unwrap();
    let loaded = store.load().unwrap();
    let mut version = loaded.version;
    let error = loop {
        match store.commit(loaded.epoch, &batch(version.next())) {
            Ok(committed) => version = committed,
            Err(error) => break error,
        }
        tell(&format!("committed {}\n", version.0));
    };
    tell(&format!("failed {error}\n"));
    let again = store.commit(loaded.epoch, &batch(version.next())).unwrap_err();
    tell(&format!("again {again}\n"));
    match store.load() {
        Ok(loaded) => tell(&format!("loaded {}\n", loaded.version.0)),
        Err(error) => tell(&format!("not loaded {error}\n")),
    }
}

/// Sends a line to the parent in one write, so that a kill leaves all of it or nothing; println!
/// would be held back by the test runner.
fn tell(line: &str) {
    std::io::stderr().write_all(line.as_bytes()).unwrap();
}

/// Runs the child in `dir`. With a limit, no file may grow beyond so many blocks of 512 bytes, and
/// a write beyond it fails as on a full disk instead of killing the child, which is what the shell
/// is for.
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
        .args(["--ignored", "--exact", "--nocapture", "child"])
        .env(CHILD_DIR, dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn lines(child: &mut Child) -> Lines<BufReader<ChildStderr>> {
    BufReader::new(child.stderr.take().unwrap()).lines()
}

/// The last version that the child was promised.
fn last_committed(lines: &[String]) -> Option<Version> {
    lines.iter().rev().find_map(|line| {
        let number = line.strip_prefix("committed ")?;
        Some(Version(number.parse().unwrap()))
    })
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a kill at a random time")]
fn a_master_that_is_killed_comes_back_with_all_that_was_committed() {
    let dir = tempfile::tempdir().unwrap();
    let end = Instant::now() + Duration::from_secs(3);
    let (mut rounds, mut version) = (0, Version(0));
    while Instant::now() < end {
        let mut child = spawn(dir.path(), None);
        // Sometimes while it opens the state, sometimes while it is committing.
        let mut lines = lines(&mut child);
        let mut heard: Vec<String> =
            lines.by_ref().take(fastrand::usize(0..12)).map(Result::unwrap).collect();
        std::thread::sleep(Duration::from_micros(fastrand::u64(0..10_000)));
        child.kill().unwrap();
        heard.extend(lines.map(Result::unwrap));
        child.wait().unwrap();
        let promised = last_committed(&heard).unwrap_or(version);
        version = load_and_check(dir.path());
        // One more may have been written whose success nobody has heard of.
        assert!(
            version == promised || version == promised.next(),
            "{promised:?} was promised and {version:?} loaded"
        );
        rounds += 1;
    }
    println!("{rounds} kills, {} commits", version.0);
    assert!(rounds >= 5 && version.0 >= 5, "{rounds} kills, {} commits", version.0);
}

#[test]
fn a_full_disk_is_reported_and_the_state_is_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = spawn(dir.path(), Some(200));
    let lines: Vec<String> = lines(&mut child).map(Result::unwrap).collect();
    assert!(child.wait().unwrap().success(), "{lines:?}");
    let [.., failed, again, loaded] = &lines[..] else { panic!("{lines:?}") };
    let store = format!("file:{}/overlay-master.redb", dir.path().display());
    assert_eq!(
        *failed,
        format!(
            "failed {store}: commit: File too large (os error 27): make room for it, the state needs \
             a few MB"
        )
    );
    assert_eq!(
        *again,
        format!("again {store}: commit: an earlier operation failed: load the state first")
    );
    let promised = last_committed(&lines).unwrap();
    assert!(promised.0 > 1, "{lines:?}");
    assert_eq!(*loaded, format!("loaded {}", promised.0), "on the handle that failed");
    assert_eq!(load_and_check(dir.path()), promised);

    // With room again it goes on.
    let mut store = FileStore::open(dir.path()).unwrap();
    let loaded = store.load().unwrap();
    let next = loaded.version.next();
    assert_eq!(store.commit(loaded.epoch, &batch(next)), Ok(next));
    drop(store);
    assert_eq!(load_and_check(dir.path()), next);
}
