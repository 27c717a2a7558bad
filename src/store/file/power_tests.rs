//! The power goes at any moment. The disk keeps all that was synced, and of what was not any part,
//! sector by sector: what is read afterwards is one commit as a whole, and none is missing that was
//! answered. So it goes on from there, since it may go again while the file is being repaired.

use std::sync::Arc;

use parking_lot::Mutex;

use super::*;

/// What a disk writes as a whole or not at all.
const SECTOR: usize = 512;

/// What is not durable yet.
#[derive(Debug)]
enum Pending {
    Length(usize),
    Bytes(usize, Vec<u8>),
}

/// What a power cut leaves, and what had been answered before.
#[derive(Debug, Clone)]
struct Left {
    image: Vec<u8>,
    epoch: u64,
    version: u64,
}

/// A disk, and what would be left of it at some of the moments that it has seen.
#[derive(Debug)]
struct Disk {
    /// What whoever reads it is shown.
    shown: Vec<u8>,
    /// What is durable, and has been answered.
    durable: Left,
    pending: Vec<Pending>,
    left: Vec<Left>,
    /// At how many of these something of what is shown would be lost.
    losses: usize,
    random: fastrand::Rng,
}

#[derive(Debug, Clone)]
struct Handle(Arc<Mutex<Disk>>);

impl Disk {
    /// The power may go now.
    fn tick(&mut self) {
        if self.random.u8(0..6) > 0 {
            return;
        }
        let mut left = self.durable.clone();
        let share = self.random.f64();
        for pending in &self.pending {
            match pending {
                Pending::Length(length) if self.random.f64() < share => {
                    left.image.resize(*length, 0);
                }
                Pending::Length(_) => {}
                Pending::Bytes(offset, bytes) => {
                    for (index, sector) in bytes.chunks(SECTOR).enumerate() {
                        if self.random.f64() < share {
                            put(&mut left.image, offset + index * SECTOR, sector);
                        }
                    }
                }
            }
        }
        self.losses += usize::from(left.image != self.shown);
        self.left.push(left);
    }
}

fn put(image: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    image.resize(image.len().max(end), 0);
    image[offset..end].copy_from_slice(bytes);
}

impl Handle {
    fn answer(&self, epoch: u64, version: u64) {
        let durable = &mut self.0.lock().durable;
        (durable.epoch, durable.version) = (epoch, version);
    }
}

impl StorageBackend for Handle {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().shown.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let disk = self.0.lock();
        let bytes = usize::try_from(offset).ok().and_then(|offset| disk.shown.get(offset..));
        let bytes = bytes.and_then(|bytes| bytes.get(..out.len()));
        out.copy_from_slice(bytes.ok_or(ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut disk = self.0.lock();
        let length = usize::try_from(length).unwrap();
        disk.tick();
        disk.shown.resize(length, 0);
        disk.pending.push(Pending::Length(length));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut disk = self.0.lock();
        disk.tick();
        disk.durable.image = disk.shown.clone();
        disk.pending.clear();
        disk.tick();
        Ok(())
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut disk = self.0.lock();
        let offset = usize::try_from(offset).unwrap();
        disk.tick();
        put(&mut disk.shown, offset, bytes);
        disk.pending.push(Pending::Bytes(offset, bytes.to_owned()));
        Ok(())
    }
}

fn disk(left: Left, random: fastrand::Rng) -> Handle {
    let shown = left.image.clone();
    let disk =
        Disk { shown, durable: left, pending: Vec::new(), left: Vec::new(), losses: 0, random };
    Handle(Arc::new(Mutex::new(disk)))
}

const SHARED: u8 = 20;

fn key(number: u8) -> Key {
    Key::Agent([10, 0, 0, number].into())
}

/// What is under every shared key after the commit that makes `version`.
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

/// What whoever starts after the power cut finds.
fn check(left: &Left) {
    let nothing = fastrand::Rng::with_seed(0);
    let database = verify(disk(left.clone(), nothing)).expect("it opens");
    let seen = snapshot(&database).expect("it is read");
    let (epoch, version) = (left.epoch, left.version);
    assert!(
        [version, version + 1].contains(&seen.counts.version),
        "{} after {version}",
        seen.counts.version
    );
    assert!(
        [epoch, epoch + 1].contains(&seen.counts.epoch),
        "epoch {} after {epoch}",
        seen.counts.epoch
    );
    assert!(seen.records == records(seen.counts.version), "{} is half there", seen.counts.version);
}

#[test]
fn a_power_cut_leaves_every_commit_that_was_answered() {
    let seed = fastrand::u64(..);
    println!("seed: {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let dir = tempfile::tempdir().unwrap();
    drop(FileStore::open(dir.path()).unwrap());
    let image = std::fs::read(dir.path().join(FILE_NAME)).unwrap();
    let mut last = Left { image, epoch: 0, version: 0 };
    let (mut cuts, mut losses) = (0, 0);
    for _ in 0..20 {
        let disk = disk(last, random.fork());
        let database = verify(disk.clone()).unwrap();
        // What is found is durable, be it answered or not.
        let found = snapshot(&database).unwrap();
        disk.answer(found.counts.epoch, found.counts.version);
        let begun = begin_epoch(&database, Begin::Load).unwrap().unwrap().loaded;
        let mut version = begun.version;
        disk.answer(begun.epoch.0, version.0);
        for _ in 0..random.u8(1..8) {
            version =
                write(&database, begun.epoch, &batch(version.next().0)).unwrap().unwrap().unwrap();
            disk.answer(begun.epoch.0, version.0);
        }
        drop(database);
        let left = std::mem::take(&mut disk.0.lock().left);
        left.iter().for_each(check);
        cuts += left.len();
        losses += disk.0.lock().losses;
        last = random.choice(left).expect("some moments have passed");
    }
    println!("{cuts} power cuts, {losses} with a loss");
    assert!(losses > 20, "nothing was lost: {losses} of {cuts}");
}
