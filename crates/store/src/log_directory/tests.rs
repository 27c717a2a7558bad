//! The log in a directory: import of the recorded log of the C++ module, export, and refused logs.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use overlay_config::parse_master;
use overlay_types::state::{Epoch, Version};
use overlay_wire::StateFile;
use overlay_wire::mesos::modules::overlay as pb;
use prost::Message as _;
use rustix::fs::{FlockOperation, fcntl_lock};
use tempfile::TempDir;

use super::*;
use crate::conformance::{self, StoreFixture};
use crate::{FileStore, Log, ReplicatedLogStore, Store};

const GOLDEN: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/overlay_replicated_log");

/// Returns the network of the recording.
fn network() -> Arc<Network> {
    let text = r#"{ "vtep_subnet": "44.128.0.0/16", "vtep_subnet6": "fd01:a::/64",
        "vtep_mac_oui": "70:B3:D5:00:00:00", "vtep_mtu": 1450,
        "overlays": [ { "name": "vxlan-1", "subnet": "192.168.0.0/17", "prefix": 24 },
                      { "name": "vxlan-2", "subnet": "192.168.128.0/17", "prefix": 24,
                        "subnet6": "fd01:b::/64", "prefix6": 80 } ] }"#;
    Arc::new(parse_master("network.json", text).unwrap().0.network)
}

fn golden() -> Files {
    read_files(Path::new(GOLDEN)).unwrap()
}

#[test]
fn files_beyond_limit_are_refused() {
    let length = golden().iter().map(|(_, bytes)| bytes.len() as u64).sum();
    let path = Path::new(GOLDEN);
    assert_eq!(read_files_within(path, length).unwrap(), golden());
    assert_eq!(
        read_files_within(path, length - 1).unwrap_err().to_string(),
        "the files have more than 0 MiB in total: let the mesos-master truncate the log, or name \
         the right directory"
    );
}

fn at(path: &Path) -> LogDirectory {
    LogDirectory::new(path.to_owned(), Some(network()))
}

/// Creates a directory with a log of these files.
fn create_log(files: &Files) -> (TempDir, PathBuf) {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("overlay_replicated_log");
    fs::create_dir(&path).unwrap();
    for (name, bytes) in files {
        fs::write(path.join(name), bytes).unwrap();
    }
    (temporary, path)
}

/// Returns the paths and contents of all files in a directory.
fn listing(path: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| (path.clone(), fs::read(&path).unwrap())).collect()
}

fn read_error(files: &Files) -> String {
    let (_temporary, path) = create_log(files);
    let error = at(&path).read_snapshot().unwrap_err().to_string();
    error.replace(&*path.to_string_lossy(), "DIR")
}

/// A log on the disk whose writer is the handle that read it last.
struct OnDisk(PathBuf, Arc<AtomicU64>, AtomicU64);

impl Log for OnDisk {
    fn fetch(&self) -> Result<Vec<u8>, String> {
        self.2.store(self.1.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        Ok(at(&self.0).value().unwrap().unwrap_or_default())
    }

    fn store(&self, value: &[u8]) -> Result<bool, String> {
        let is_writer = self.1.load(Ordering::SeqCst) == self.2.load(Ordering::SeqCst);
        if is_writer && let Some(kept) = at(&self.0).write(value.to_owned()).unwrap() {
            fs::remove_dir_all(kept).unwrap();
        }
        Ok(is_writer)
    }
}

#[test]
fn log_directory_passes_conformance_suite() {
    conformance::check(&|| {
        let temporary = Rc::new(tempfile::tempdir().unwrap());
        let path = temporary.path().join("log");
        let writers = Arc::new(AtomicU64::new(0));
        let (same, shared) = (path.clone(), Arc::clone(&writers));
        let forged = path.clone();
        let open = move || {
            let log = OnDisk(same.clone(), Arc::clone(&shared), AtomicU64::new(0));
            Box::new(ReplicatedLogStore::new(Arc::new(log), network())) as Box<dyn Store>
        };
        // A replacement makes this archive the writer, because no other process has the log open.
        struct ArchiveAsWriter(
            LogDirectory,
            Arc<AtomicU64>,
            #[expect(dead_code, reason = "keeps the directory")] Rc<TempDir>,
        );
        impl Archive for ArchiveAsWriter {
            fn read_snapshot(&mut self) -> Result<Option<Snapshot>, StoreError> {
                self.0.read_snapshot()
            }

            fn replace(
                &mut self,
                new: &[(Key, Vec<u8>)],
                former: Counts,
            ) -> Result<Replacement, StoreError> {
                self.1.fetch_add(1, Ordering::SeqCst);
                self.0.replace(new, former)
            }
        }
        let archive = move || {
            let archive = ArchiveAsWriter(at(&path), Arc::clone(&writers), Rc::clone(&temporary));
            Box::new(archive) as Box<dyn Archive>
        };
        let forge = move |counts| {
            let log = at(&forged);
            let mut state = LoggedState::decode(&log.value().unwrap().unwrap()).unwrap();
            state.set_counts(counts);
            log.write(state.encode()).unwrap();
        };
        StoreFixture {
            open: Box::new(open),
            archive: Some(Box::new(archive)),
            forge: Box::new(forge),
            is_shared: true,
        }
    });
}

#[test]
fn cpp_log_survives_import_and_export() {
    let (temporary, path) = create_log(&golden());
    let before = listing(&path);
    let cpp_value = at(&path).value().unwrap().unwrap();
    let snapshot = at(&path).read_snapshot().unwrap().unwrap();
    assert_eq!(listing(&path), before, "the log is unchanged");
    assert_eq!(
        (snapshot.records.len(), snapshot.unknown.len(), &*snapshot.warnings),
        (1, 0, &[][..])
    );

    // From the log through a text file into a file store, and back into the log.
    let file = StateFile { records: snapshot.records.clone(), ..StateFile::default() };
    let records = StateFile::parse(&file.print()).unwrap().records;
    let work_dir = temporary.path().join("work");
    FileStore::at(&work_dir).replace(&records, Counts::default()).unwrap();
    let mut store = FileStore::open(&work_dir).unwrap();
    let loaded = store.load().unwrap();
    assert_eq!((loaded.epoch, &loaded.records), (Epoch(1), &snapshot.records));
    let kept = at(&path)
        .replace(&store.read_snapshot().unwrap().unwrap().records, Counts::default())
        .unwrap()
        .kept
        .unwrap();
    assert_eq!(listing(&kept).len(), before.len(), "the former log is kept");

    let own_value = at(&path).value().unwrap().unwrap();
    let again = at(&path).read_snapshot().unwrap().unwrap();
    assert_eq!(again.records, snapshot.records);
    let decode = |value: &[u8]| {
        let mut state = pb::State::decode(value).unwrap();
        // The C++ module asks its agents for this state again.
        for overlay in state.agents.iter_mut().flat_map(|agent| &mut agent.overlays) {
            overlay.state = None;
        }
        state.encode_to_vec()
    };
    assert_eq!(decode(&own_value), decode(&cpp_value), "the value as the C++ module reads it");
}

#[test]
fn replace_without_log_creates_log() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("log");
    assert_eq!(at(&path).read_snapshot(), Ok(None));
    fs::create_dir(&path).unwrap();
    assert_eq!(at(&path).read_snapshot(), Ok(None), "an empty directory");
    let snapshot = at(Path::new(GOLDEN)).read_snapshot().unwrap().unwrap();
    let replaced = at(&path).replace(&snapshot.records, Counts::default()).unwrap();
    assert_eq!(replaced, Replacement { version: Version(1), kept: None });
    assert_eq!(at(&path).read_snapshot().unwrap().unwrap().records, snapshot.records);
    assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 1, "no temporary file remains");
    let names: Vec<_> = read_files(&path).unwrap().into_iter().map(|(name, _)| name).collect();
    assert!(names.contains(&"CURRENT".to_owned()), "{names:?}");
}

#[test]
fn replace_keeps_former_log() {
    let contents = |path: &Path| listing(path).into_values().collect::<Vec<_>>();
    let (temporary, path) = create_log(&golden());
    let before = contents(&path);
    // A shell completes the path with a slash.
    let with_slash = PathBuf::from(format!("{}/", path.display()));
    let kept = at(&with_slash).replace(&[], Counts::default()).unwrap().kept.unwrap();
    assert_eq!(kept, temporary.path().join("overlay_replicated_log.replaced-1"));
    assert_eq!(contents(&kept), before);
    // If no name for the former log is possible, the log is unchanged.
    let long = temporary.path().join("l".repeat(245));
    fs::rename(&kept, &long).unwrap();
    let error = at(&long).replace(&[], Counts::default()).unwrap_err().to_string();
    assert!(error.ends_with(": write: File name too long (os error 36)"), "{error}");
    assert_eq!(contents(&long), before);
    assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 2, "no temporary file remains");
}

#[test]
fn large_state_survives_roundtrip() {
    let (_temporary, path) = create_log(&Files::new());
    let record = at(Path::new(GOLDEN)).read_snapshot().unwrap().unwrap().records.remove(0).1;
    let records: Vec<(Key, Vec<u8>)> =
        (1..8000_u32).map(|number| (Key::Agent(number.into()), record.clone())).collect();
    at(&path).replace(&records, Counts::default()).unwrap();
    assert_eq!(at(&path).read_snapshot().unwrap().unwrap().records, records);
}

/// The environment variable with the path of the lock that a child process of this test holds.
const CHILD_LOCK: &str = "LOG_DIRECTORY_TEST_LOCK";

/// The child process writes this text to stderr when it holds the lock.
const HELD: [u8; 4] = *b"held";

/// Holds the lock until the parent process closes stdin. Runs in the child process.
fn hold_lock(lock: &str) {
    let file = File::options().write(true).open(lock).unwrap();
    fcntl_lock(&file, FlockOperation::LockExclusive).unwrap();
    io::stderr().write_all(&HELD).unwrap();
    io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the parent passes the path to the child")]
fn error_names_process_holding_lock() {
    if let Ok(lock) = std::env::var(CHILD_LOCK) {
        return hold_lock(&lock);
    }
    let (_temporary, path) = create_log(&golden());
    fs::write(path.join(LOCK), "").unwrap();
    assert!(at(&path).read_snapshot().is_ok(), "no process holds the lock");
    // A child process holds the lock: a process does not see its own POSIX locks.
    let mut holder = Command::new(std::env::current_exe().unwrap())
        .args(["--nocapture", "error_names_process_holding_lock"])
        .env(CHILD_LOCK, path.join(LOCK))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = [0; HELD.len()];
    holder.stderr.as_mut().unwrap().read_exact(&mut output).unwrap();
    assert_eq!(output, HELD);
    let expected = format!(
        "log:{}: open: process {} has the log open, such as a mesos-master: stop that process \
         until this command has ended",
        path.display(),
        holder.id()
    );
    assert_eq!(at(&path).read_snapshot().unwrap_err().to_string(), expected);
    assert_eq!(at(&path).replace(&[], Counts::default()).unwrap_err().to_string(), expected);
    drop(holder.stdin.take());
    assert!(holder.wait().unwrap().success());
    assert!(at(&path).read_snapshot().is_ok());
}

#[test]
fn directory_without_log_is_refused() {
    let other = vec![("notes.log".to_owned(), b"a text".to_vec())];
    assert_eq!(
        read_error(&other),
        "log:DIR: read: the directory has no file CURRENT, so it is no replicated log of Mesos: \
         name the directory overlay_replicated_log in the replicated_log_dir of the master"
    );
    let damaged = vec![("CURRENT".to_owned(), b"MANIFEST-000002\n".to_vec())];
    let error = read_error(&damaged);
    assert!(error.starts_with("log:DIR: read: ") && error.ends_with(DAMAGED), "{error}");
}

#[test]
fn uncommitted_write_of_killed_master_is_ignored() {
    let value = at(Path::new(GOLDEN)).value().unwrap();
    let table = golden().iter().find(|(name, _)| name.ends_with(".ldb")).cloned().unwrap();
    let half = table.1[..table.1.len() / 2].to_vec();
    let mut files = golden();
    files.push(("000027.ldb".to_owned(), half.clone()));
    files.push(("MANIFEST-000026".to_owned(), half));
    let (_temporary, path) = create_log(&files);
    assert_eq!(at(&path).value().unwrap(), value);

    files.retain(|(name, _)| *name != table.0);
    let missing = format!("log:DIR: read: table {} is missing: {DAMAGED}", table.0);
    assert_eq!(read_error(&files), missing);
    files.retain(|(name, _)| name != "MANIFEST-000002");
    let no_manifest = format!("log:DIR: read: CURRENT names no manifest: {DAMAGED}");
    assert_eq!(read_error(&files), no_manifest);
}

#[test]
fn flipped_bit_is_detected_or_harmless() {
    let own_files = make_database(&encode_replica(b"value".repeat(20_000), [7; 16])).unwrap();
    let (_temporary, path) = create_log(&own_files);
    check_flipped_bits(&own_files, at(&path).value().unwrap(), 97);
    check_flipped_bits(&golden(), at(Path::new(GOLDEN)).value().unwrap(), 1);
}

/// Flips one bit at a time, in every `step`-th byte, and checks that the log is refused or
/// unchanged.
fn check_flipped_bits(files: &Files, intact: Option<Vec<u8>>, step: usize) {
    let (mut tried, mut refused) = (0, 0);
    for index in 0..files.len() {
        for at_byte in (0..files[index].1.len()).step_by(step) {
            let mut files = files.clone();
            files[index].1[at_byte] ^= 1 << (at_byte % 8);
            let name = &files[index].0;
            let read = std::panic::catch_unwind(|| open_in_memory(&files).and_then(read_records));
            tried += 1;
            let Ok(records) = read.unwrap_or_else(|_| panic!("{name} at {at_byte}")) else {
                refused += 1;
                continue;
            };
            let pairs = records.iter().map(|(key, bytes)| (&**key, &**bytes));
            let replica = decode_replica(pairs)
                .unwrap_or_else(|error| panic!("{name} at {at_byte}: {error}"));
            assert_eq!(replica.value, intact, "{name} at {at_byte}");
        }
    }
    assert!(refused * 10 > tried * 9, "{refused} of {tried}");
}
