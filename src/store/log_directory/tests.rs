//! The log in a directory: the one that the C++ module wrote, taken over and handed back; and what
//! is refused.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use prost::Message as _;
use rustix::fs::{FlockOperation, fcntl_lock};
use tempfile::TempDir;

use super::*;
use crate::config::parse_master;
use crate::store::conformance::{self, Subject};
use crate::store::{Epoch, FileStore, Store};
use crate::wire::StateFile;
use crate::wire::mesos::modules::overlay as pb;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/overlay_replicated_log");

/// The network of the recording.
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
        "its files have more than 0 MiB together: let its mesos-master truncate it, or name the \
         right directory"
    );
}

fn at(path: &Path) -> LogDirectory {
    LogDirectory::new(path.to_owned(), Some(network()))
}

/// A place for a log with these files.
fn place(files: &Files) -> (TempDir, PathBuf) {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("overlay_replicated_log");
    fs::create_dir(&path).unwrap();
    for (name, bytes) in files {
        fs::write(path.join(name), bytes).unwrap();
    }
    (temporary, path)
}

/// Everything below a directory.
fn listing(path: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| (path.clone(), fs::read(&path).unwrap())).collect()
}

fn refusal(files: &Files) -> String {
    let (_temporary, path) = place(files);
    let error = at(&path).look().unwrap_err().to_string();
    error.replace(&*path.to_string_lossy(), "DIR")
}

/// A log whose writer is whoever has read it last, which is on the disk.
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
fn it_conforms() {
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
        // Whoever replaces it is the writer from then on, as nobody else has it then.
        struct Sole(
            LogDirectory,
            Arc<AtomicU64>,
            #[expect(dead_code, reason = "it is kept")] Rc<TempDir>,
        );
        impl Archive for Sole {
            fn look(&mut self) -> Result<Option<Snapshot>, StoreError> {
                self.0.look()
            }

            fn replace(
                &mut self,
                new: &[(Key, Vec<u8>)],
                former: Counts,
            ) -> Result<Replaced, StoreError> {
                self.1.fetch_add(1, Ordering::SeqCst);
                self.0.replace(new, former)
            }
        }
        let archive = move || {
            let sole = Sole(at(&path), Arc::clone(&writers), Rc::clone(&temporary));
            Box::new(sole) as Box<dyn Archive>
        };
        let forge = move |counts| {
            let log = at(&forged);
            let mut state = LoggedState::decode(&log.value().unwrap().unwrap()).unwrap();
            state.set_counts(counts);
            log.write(state.encode()).unwrap();
        };
        Subject {
            open: Box::new(open),
            archive: Some(Box::new(archive)),
            forge: Box::new(forge),
            is_shared: true,
        }
    });
}

#[test]
fn the_log_of_the_cpp_module_is_taken_over_and_handed_back() {
    let (temporary, path) = place(&golden());
    let before = listing(&path);
    let theirs = at(&path).value().unwrap().unwrap();
    let seen = at(&path).look().unwrap().unwrap();
    assert_eq!(listing(&path), before, "it is left as it is");
    assert_eq!((seen.records.len(), seen.unknown.len(), &*seen.doubts), (1, 0, &[][..]));

    // By way of a text file to a master of ours, which serves on it, and back.
    let file = StateFile { records: seen.records.clone(), ..StateFile::default() };
    let records = StateFile::parse(&file.print()).unwrap().records;
    let work_dir = temporary.path().join("work");
    FileStore::at(&work_dir).replace(&records, Counts::default()).unwrap();
    let mut store = FileStore::open(&work_dir).unwrap();
    let loaded = store.load().unwrap();
    assert_eq!((loaded.epoch, &loaded.records), (Epoch(1), &seen.records));
    let kept = at(&path)
        .replace(&store.look().unwrap().unwrap().records, Counts::default())
        .unwrap()
        .kept
        .unwrap();
    assert_eq!(listing(&kept).len(), before.len(), "the former one is kept");

    let ours = at(&path).value().unwrap().unwrap();
    let again = at(&path).look().unwrap().unwrap();
    assert_eq!(again.records, seen.records);
    let decode = |value: &[u8]| {
        let mut state = pb::State::decode(value).unwrap();
        // What it was like then: the C++ module asks its agents anew.
        for overlay in state.agents.iter_mut().flat_map(|agent| &mut agent.overlays) {
            overlay.state = None;
        }
        state.encode_to_vec()
    };
    assert_eq!(decode(&ours), decode(&theirs), "what the C++ module reads");
}

#[test]
fn a_new_log_is_made_where_there_is_none() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("log");
    assert_eq!(at(&path).look(), Ok(None));
    fs::create_dir(&path).unwrap();
    assert_eq!(at(&path).look(), Ok(None), "an empty directory");
    let seen = at(Path::new(GOLDEN)).look().unwrap().unwrap();
    let replaced = at(&path).replace(&seen.records, Counts::default()).unwrap();
    assert_eq!(replaced, Replaced { version: Version(1), kept: None });
    assert_eq!(at(&path).look().unwrap().unwrap().records, seen.records);
    assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 1, "nothing else is left there");
    let names: Vec<_> = read_files(&path).unwrap().into_iter().map(|(name, _)| name).collect();
    assert!(names.contains(&"CURRENT".to_owned()), "{names:?}");
}

#[test]
fn the_former_log_is_never_lost() {
    let contents = |path: &Path| listing(path).into_values().collect::<Vec<_>>();
    let (temporary, path) = place(&golden());
    let before = contents(&path);
    // As a shell completes it.
    let with_slash = PathBuf::from(format!("{}/", path.display()));
    let kept = at(&with_slash).replace(&[], Counts::default()).unwrap().kept.unwrap();
    assert_eq!(kept, temporary.path().join("overlay_replicated_log.replaced-1"));
    assert_eq!(contents(&kept), before);
    // Where no name is left for it, nothing is done.
    let long = temporary.path().join("l".repeat(245));
    fs::rename(&kept, &long).unwrap();
    let said = at(&long).replace(&[], Counts::default()).unwrap_err().to_string();
    assert!(said.ends_with(": write: File name too long (os error 36)"), "{said}");
    assert_eq!(contents(&long), before);
    assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 2, "nothing else is left there");
}

#[test]
fn a_large_state_is_read_as_it_was_written() {
    let (_temporary, path) = place(&Files::new());
    let record = at(Path::new(GOLDEN)).look().unwrap().unwrap().records.remove(0).1;
    let records: Vec<(Key, Vec<u8>)> =
        (1..8000_u32).map(|number| (Key::Agent(number.into()), record.clone())).collect();
    at(&path).replace(&records, Counts::default()).unwrap();
    assert_eq!(at(&path).look().unwrap().unwrap().records, records);
}

/// The lock that this program holds where it is a child of itself.
const CHILD_LOCK: &str = "LOG_DIRECTORY_TEST_LOCK";

/// What the child says when it holds the lock.
const HELD: [u8; 4] = *b"held";

/// The child: holds the lock until its parent ends.
fn hold(lock: &str) {
    let file = File::options().write(true).open(lock).unwrap();
    fcntl_lock(&file, FlockOperation::LockExclusive).unwrap();
    io::stderr().write_all(&HELD).unwrap();
    io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

#[test]
#[expect(clippy::disallowed_methods, reason = "what the parent tells the child")]
fn whoever_has_it_open_is_named() {
    if let Ok(lock) = std::env::var(CHILD_LOCK) {
        return hold(&lock);
    }
    let (_temporary, path) = place(&golden());
    fs::write(path.join(LOCK), "").unwrap();
    assert!(at(&path).look().is_ok(), "a lock that nobody holds");
    // Another process holds it: a lock of this one would not be seen by it.
    let mut holder = Command::new(std::env::current_exe().unwrap())
        .args(["--nocapture", "whoever_has_it_open_is_named"])
        .env(CHILD_LOCK, path.join(LOCK))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = [0; HELD.len()];
    holder.stderr.as_mut().unwrap().read_exact(&mut said).unwrap();
    assert_eq!(said, HELD);
    let expected = format!(
        "log:{}: open: process {} has it, such as a mesos-master: stop that one for as long as this \
         takes",
        path.display(),
        holder.id()
    );
    assert_eq!(at(&path).look().unwrap_err().to_string(), expected);
    assert_eq!(at(&path).replace(&[], Counts::default()).unwrap_err().to_string(), expected);
    drop(holder.stdin.take());
    assert!(holder.wait().unwrap().success());
    assert!(at(&path).look().is_ok());
}

#[test]
fn what_is_no_log_is_refused() {
    let other = vec![("notes.log".to_owned(), b"a text".to_vec())];
    assert_eq!(
        refusal(&other),
        "log:DIR: read: it has no file CURRENT and so is no replicated log of Mesos: name the \
         directory overlay_replicated_log in the replicated_log_dir of the master"
    );
    let damaged = vec![("CURRENT".to_owned(), b"MANIFEST-000002\n".to_vec())];
    let said = refusal(&damaged);
    assert!(said.starts_with("log:DIR: read: ") && said.ends_with(DAMAGED), "{said}");
}

#[test]
fn what_a_killed_master_had_begun_to_write_does_not_count() {
    let whole = at(Path::new(GOLDEN)).value().unwrap();
    let table = golden().iter().find(|(name, _)| name.ends_with(".ldb")).cloned().unwrap();
    let half = table.1[..table.1.len() / 2].to_vec();
    let mut files = golden();
    files.push(("000027.ldb".to_owned(), half.clone()));
    files.push(("MANIFEST-000026".to_owned(), half));
    let (_temporary, path) = place(&files);
    assert_eq!(at(&path).value().unwrap(), whole);

    files.retain(|(name, _)| *name != table.0);
    let missing = format!("log:DIR: read: table {} is missing: {DAMAGED}", table.0);
    assert_eq!(refusal(&files), missing);
    files.retain(|(name, _)| name != "MANIFEST-000002");
    let none = format!("log:DIR: read: CURRENT names no manifest: {DAMAGED}");
    assert_eq!(refusal(&files), none);
}

#[test]
fn damage_is_refused_or_changes_nothing() {
    let ours = make(&encode_replica(b"value".repeat(20_000), [7; 16])).unwrap();
    let (_temporary, path) = place(&ours);
    damage(&ours, at(&path).value().unwrap(), 97);
    damage(&golden(), at(Path::new(GOLDEN)).value().unwrap(), 1);
}

/// Changes one bit after the other, some bytes apart.
fn damage(files: &Files, whole: Option<Vec<u8>>, step: usize) {
    let (mut tried, mut refused) = (0, 0);
    for index in 0..files.len() {
        for at_byte in (0..files[index].1.len()).step_by(step) {
            let mut files = files.clone();
            files[index].1[at_byte] ^= 1 << (at_byte % 8);
            let name = &files[index].0;
            let read = std::panic::catch_unwind(|| open(&files).and_then(read_records));
            tried += 1;
            let Ok(records) = read.unwrap_or_else(|_| panic!("{name} at {at_byte}")) else {
                refused += 1;
                continue;
            };
            let pairs = records.iter().map(|(key, bytes)| (&**key, &**bytes));
            let value =
                decode_replica(pairs).unwrap_or_else(|it| panic!("{name} at {at_byte}: {it}"));
            assert_eq!(value.value, whole, "{name} at {at_byte}");
        }
    }
    assert!(refused * 10 > tried * 9, "{refused} of {tried}");
}
