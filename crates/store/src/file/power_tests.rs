//! Simulated power cuts at random moments. The disk keeps all synced data, and any part of the
//! unsynced data, sector by sector. After each cut the store must read one complete commit, and
//! every acknowledged commit. Each round continues from the image of a cut, so that cuts also hit
//! the repair of the file.

use std::io::{self, ErrorKind};
use std::sync::Arc;

use parking_lot::Mutex;
use redb::StorageBackend;

use super::open::verify;
use super::*;

/// Bytes that a disk writes atomically.
const SECTOR: usize = 512;

/// A write that is not synced.
#[derive(Debug)]
enum UnsyncedWrite {
    Length(usize),
    Bytes(usize, Vec<u8>),
}

/// The disk after a power cut, and the acknowledged counts before the cut.
#[derive(Debug, Clone)]
struct CutImage {
    image: Vec<u8>,
    epoch: u64,
    version: u64,
}

/// A disk, and its images after power cuts at random moments.
#[derive(Debug)]
struct Disk {
    /// The content that a reader sees.
    visible: Vec<u8>,
    /// The synced content, and the acknowledged counts.
    durable: CutImage,
    unsynced: Vec<UnsyncedWrite>,
    cuts: Vec<CutImage>,
    /// Number of cuts that lose visible content.
    losses: usize,
    random: fastrand::Rng,
}

#[derive(Debug, Clone)]
struct Handle(Arc<Mutex<Disk>>);

impl Disk {
    /// Records a possible power cut at this moment, with a probability of one in six.
    fn maybe_cut(&mut self) {
        if self.random.u8(0..6) > 0 {
            return;
        }
        let mut cut = self.durable.clone();
        let kept_share = self.random.f64();
        for write in &self.unsynced {
            match write {
                UnsyncedWrite::Length(length) if self.random.f64() < kept_share => {
                    cut.image.resize(*length, 0);
                }
                UnsyncedWrite::Length(_) => {}
                UnsyncedWrite::Bytes(offset, bytes) => {
                    for (index, sector) in bytes.chunks(SECTOR).enumerate() {
                        if self.random.f64() < kept_share {
                            put(&mut cut.image, offset + index * SECTOR, sector);
                        }
                    }
                }
            }
        }
        self.losses += usize::from(cut.image != self.visible);
        self.cuts.push(cut);
    }
}

fn put(image: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    image.resize(image.len().max(end), 0);
    image[offset..end].copy_from_slice(bytes);
}

impl Handle {
    fn acknowledge(&self, epoch: u64, version: u64) {
        let durable = &mut self.0.lock().durable;
        (durable.epoch, durable.version) = (epoch, version);
    }
}

impl StorageBackend for Handle {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().visible.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let disk = self.0.lock();
        let bytes = usize::try_from(offset).ok().and_then(|offset| disk.visible.get(offset..));
        let bytes = bytes.and_then(|bytes| bytes.get(..out.len()));
        out.copy_from_slice(bytes.ok_or(ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut disk = self.0.lock();
        let length = usize::try_from(length).unwrap();
        disk.maybe_cut();
        disk.visible.resize(length, 0);
        disk.unsynced.push(UnsyncedWrite::Length(length));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut disk = self.0.lock();
        disk.maybe_cut();
        disk.durable.image = disk.visible.clone();
        disk.unsynced.clear();
        disk.maybe_cut();
        Ok(())
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut disk = self.0.lock();
        let offset = usize::try_from(offset).unwrap();
        disk.maybe_cut();
        put(&mut disk.visible, offset, bytes);
        disk.unsynced.push(UnsyncedWrite::Bytes(offset, bytes.to_owned()));
        Ok(())
    }
}

fn disk(image: CutImage, random: fastrand::Rng) -> Handle {
    let visible = image.image.clone();
    let disk =
        Disk { visible, durable: image, unsynced: Vec::new(), cuts: Vec::new(), losses: 0, random };
    Handle(Arc::new(Mutex::new(disk)))
}

const SHARED: u8 = 20;

fn key(number: u8) -> Key {
    Key::Agent([10, 0, 0, number].into())
}

/// Returns the bytes of every shared key after the commit of `version`.
fn bytes(version: u64) -> Vec<u8> {
    version.to_string().repeat(1 + usize::try_from(version % 50).unwrap()).into_bytes()
}

fn batch(version: u64) -> Vec<Change> {
    let mut changes: Vec<Change> =
        (0..SHARED).map(|number| Change::Put(key(number), bytes(version))).collect();
    changes.push(Change::Put(Key::History(version), bytes(version)));
    changes.push(Change::Delete(Key::History(version.saturating_sub(5))));
    changes
}

fn records(version: u64) -> Vec<(Key, Vec<u8>)> {
    if version == 0 {
        return Vec::new();
    }
    let shared = (0..SHARED).map(|number| (key(number), bytes(version)));
    let own = (version.saturating_sub(4).max(1)..=version)
        .map(|number| (Key::History(number), bytes(number)));
    shared.chain(own).collect()
}

/// Checks the state that a master finds after the power cut.
fn check(cut: &CutImage) {
    let unused = fastrand::Rng::with_seed(0);
    let database = verify(disk(cut.clone(), unused)).expect("the database opens");
    let snapshot = read_snapshot(&database).expect("a readable state");
    let (epoch, version) = (cut.epoch, cut.version);
    assert!(
        [version, version + 1].contains(&snapshot.counts.version),
        "{} after {version}",
        snapshot.counts.version
    );
    assert!(
        [epoch, epoch + 1].contains(&snapshot.counts.epoch),
        "epoch {} after {epoch}",
        snapshot.counts.epoch
    );
    assert!(
        snapshot.records == records(snapshot.counts.version),
        "version {} is incomplete",
        snapshot.counts.version
    );
}

#[test]
fn power_cut_keeps_every_acknowledged_commit() {
    let seed = fastrand::u64(..);
    println!("seed: {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let dir = tempfile::tempdir().unwrap();
    drop(FileStore::open(dir.path()).unwrap());
    let image = std::fs::read(dir.path().join(FILE_NAME)).unwrap();
    let mut last = CutImage { image, epoch: 0, version: 0 };
    let (mut cuts, mut losses) = (0, 0);
    for _ in 0..20 {
        let disk = disk(last, random.fork());
        let database = verify(disk.clone()).unwrap();
        // The found state is durable, whether it was acknowledged or not.
        let found = read_snapshot(&database).unwrap();
        disk.acknowledge(found.counts.epoch, found.counts.version);
        let EpochOutcome::Begun { loaded, .. } =
            begin_epoch(&database, EpochPurpose::Load).unwrap()
        else {
            panic!("the counts are refused")
        };
        let mut version = loaded.version;
        disk.acknowledge(loaded.epoch.0, version.0);
        for _ in 0..random.u8(1..8) {
            let changes = batch(version.next().0);
            let outcome = commit(&database, loaded.epoch, &changes).unwrap();
            let CommitOutcome::Committed(committed) = outcome else { panic!("not committed") };
            version = committed;
            disk.acknowledge(loaded.epoch.0, version.0);
        }
        drop(database);
        let images = std::mem::take(&mut disk.0.lock().cuts);
        images.iter().for_each(check);
        cuts += images.len();
        losses += disk.0.lock().losses;
        last = random.choice(images).expect("a power cut");
    }
    println!("{cuts} power cuts, {losses} with a loss");
    assert!(losses > 20, "too few cuts lose content: {losses} of {cuts}");
}
