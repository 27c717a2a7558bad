//! The test suite that every store passes.
//!
//! The feature `conformance` exports the suite, because tests outside this crate run it on stores
//! that need a server. So the suite has its own seeded random sequences instead of a test library,
//! and panics with the reason of a failure.

#![expect(clippy::print_stdout, reason = "the test runner shows it if a rule fails")]

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use overlay_types::state::{Counts, Epoch, Key, StoreError, Version};

use crate::{Archive, Change, Loaded, Store};

/// A state that was never written, and ways to open it.
#[expect(missing_debug_implementations, reason = "closures have no debug format")]
pub struct StoreFixture {
    /// Opens a handle on the state. The suite drops the last handle first, unless the store is
    /// shared.
    pub open: Box<dyn FnMut() -> Box<dyn Store>>,
    /// Opens an archive on the same state, under the same condition. `None` for a store without an
    /// archive.
    pub archive: Option<Box<dyn FnMut() -> Box<dyn Archive>>>,
    /// Writes counts to an existing state, as a foreign process could. The suite drops the last
    /// handle first.
    pub forge: Box<dyn FnMut(Counts)>,
    /// Whether several handles can be open at the same time.
    pub is_shared: bool,
}

impl StoreFixture {
    fn open(&mut self) -> Box<dyn Store> {
        (self.open)()
    }
}

struct Rule {
    name: &'static str,
    check: fn(StoreFixture),
}

/// Lists rules with the names of their functions.
macro_rules! rules {
    ($($rule:ident),* $(,)?) => {
        &[$(Rule { name: stringify!($rule), check: $rule }),*]
    };
}

const RULES: &[Rule] = rules![
    new_state_is_empty,
    committed_records_are_loaded,
    changes_apply_in_order,
    commit_increments_version,
    records_are_sorted_by_key,
    agent_and_history_keys_are_distinct,
    new_epoch_fences_older_epochs,
    commit_of_future_epoch_is_refused,
    later_handle_fences_earlier_handle,
    large_batch_is_one_commit,
    random_changes_match_map,
    snapshot_creates_no_state,
    snapshot_begins_no_epoch,
    replacement_replaces_all_records,
    replacement_continues_higher_counts,
    unreachable_count_is_refused,
    highest_count_is_refused,
];

/// Checks every rule, each on a new fixture.
///
/// # Panics
/// When the store breaks a rule.
pub fn check(fresh: &dyn Fn() -> StoreFixture) {
    for rule in RULES {
        // The test runner prints the name if the rule fails.
        println!("rule: {}", rule.name);
        (rule.check)(fresh());
    }
}

fn new_state_is_empty(mut fixture: StoreFixture) {
    let loaded = load(&mut *fixture.open());
    assert_eq!((loaded.version, loaded.records), (Version(0), Vec::new()));
    let again = load(&mut *fixture.open());
    assert_eq!((again.version, again.records), (Version(0), Vec::new()));
    assert!(again.epoch > loaded.epoch);
}

fn committed_records_are_loaded(mut fixture: StoreFixture) {
    let mut store = fixture.open();
    let epoch = load(&mut *store).epoch;
    let odd_bytes = [Vec::new(), vec![0], vec![0xff; 3], (0..=255).cycle().take(70_000).collect()];
    let records: Vec<(Key, Vec<u8>)> = (0..).map(key).zip(odd_bytes).collect();
    commit(&mut *store, epoch, &puts(&records));
    assert_eq!(load(&mut *store).records, records, "on the same handle");
    drop(store);
    let loaded = load(&mut *fixture.open());
    assert_eq!((loaded.version, loaded.records), (Version(1), records), "on another handle");
}

fn changes_apply_in_order(mut fixture: StoreFixture) {
    let mut store = fixture.open();
    let epoch = load(&mut *store).epoch;
    commit(&mut *store, epoch, &[put(1, "one"), put(2, "two"), put(3, "three")]);
    let changes = [
        put(1, "overwritten"),
        Change::Delete(key(2)),
        Change::Delete(key(9)),
        put(4, "first"),
        put(4, "last"),
        put(5, "gone"),
        Change::Delete(key(5)),
        Change::Delete(key(3)),
        put(3, "back"),
    ];
    commit(&mut *store, epoch, &changes);
    let expected = [(1, "overwritten"), (3, "back"), (4, "last")];
    assert_eq!(load(&mut *store).records, expected.map(|(n, text)| (key(n), text.into())));
}

fn commit_increments_version(mut fixture: StoreFixture) {
    let mut store = fixture.open();
    let epoch = load(&mut *store).epoch;
    assert_eq!(commit(&mut *store, epoch, &[put(1, "one")]), Version(1));
    assert_eq!(commit(&mut *store, epoch, &[]), Version(2), "an empty batch counts");
    assert_eq!(commit(&mut *store, epoch, &[Change::Delete(key(9))]), Version(3));
    drop(store);
    let mut store = fixture.open();
    let loaded = load(&mut *store);
    assert_eq!(loaded.version, Version(3), "over all epochs");
    assert_eq!(commit(&mut *store, loaded.epoch, &[put(1, "two")]), Version(4));
}

fn records_are_sorted_by_key(mut fixture: StoreFixture) {
    let mut store = fixture.open();
    let epoch = load(&mut *store).epoch;
    let mut numbers = [0, 1, 255, 256, 0x00ff_ffff, 0x0100_0000, 0x7fff_ffff, 0x8000_0000, !0];
    let ordered: Vec<(Key, Vec<u8>)> = numbers.map(|number| (key(number), Vec::new())).to_vec();
    numbers.reverse();
    for number in numbers {
        commit(&mut *store, epoch, &[put(number, "")]);
    }
    assert_eq!(load(&mut *store).records, ordered);
}

fn agent_and_history_keys_are_distinct(mut fixture: StoreFixture) {
    let mut store = fixture.open();
    let epoch = load(&mut *store).epoch;
    let numbers = [0, 1, 255, 256, u64::from(u32::MAX), 1 << 32, u64::MAX];
    let mut records: Vec<(Key, Vec<u8>)> = vec![(key(0), vec![1]), (key(!0), vec![2])];
    records.extend(numbers.map(|number| (history(number), number.to_string().into_bytes())));
    let mut reversed = puts(&records);
    reversed.reverse();
    commit(&mut *store, epoch, &reversed);
    assert_eq!(load(&mut *store).records, records, "agents first, in the order of their numbers");
    drop(store);
    let mut store = fixture.open();
    let epoch = load(&mut *store).epoch;
    commit(
        &mut *store,
        epoch,
        &[Change::Delete(history(0)), put(1, "one"), Change::Delete(key(0))],
    );
    records.retain(|(key, _)| ![history(0), self::key(0)].contains(key));
    records.insert(0, (key(1), b"one".to_vec()));
    assert_eq!(load(&mut *store).records, records);
}

fn new_epoch_fences_older_epochs(mut fixture: StoreFixture) {
    let mut store = fixture.open();
    let first = load(&mut *store).epoch;
    commit(&mut *store, first, &[put(1, "one")]);
    let second = load(&mut *store).epoch;
    assert!(second > first);
    assert_fenced(&mut *store, first, &[put(1, "stolen"), put(2, "two")]);
    assert_fenced(&mut *store, first, &[]);
    assert_eq!(
        commit(&mut *store, second, &[put(3, "three")]),
        Version(2),
        "the new epoch can commit"
    );
    drop(store);
    let mut store = fixture.open();
    let loaded = load(&mut *store);
    assert_eq!(loaded.records, [(key(1), b"one".to_vec()), (key(3), b"three".to_vec())]);
    assert_fenced(&mut *store, second, &[Change::Delete(key(1))]);
    assert_eq!(load(&mut *store).records, loaded.records);
}

fn commit_of_future_epoch_is_refused(mut fixture: StoreFixture) {
    let mut store = fixture.open();
    let Epoch(epoch) = load(&mut *store).epoch;
    assert_fenced(&mut *store, Epoch(epoch + 1), &[put(1, "one")]);
    assert_eq!(load(&mut *store).records, []);
}

fn later_handle_fences_earlier_handle(mut fixture: StoreFixture) {
    if !fixture.is_shared {
        return;
    }
    let (mut left, mut right) = (fixture.open(), fixture.open());
    let left_epoch = load(&mut *left).epoch;
    assert_eq!(commit(&mut *left, left_epoch, &[put(1, "left")]), Version(1));
    let loaded = load(&mut *right);
    assert_eq!((loaded.version, &*loaded.records), (Version(1), &[(key(1), b"left".to_vec())][..]));
    assert_fenced(&mut *left, left_epoch, &[put(1, "stolen")]);
    assert_eq!(commit(&mut *right, loaded.epoch, &[put(2, "right")]), Version(2));
    let regained = load(&mut *left);
    assert!(regained.epoch > loaded.epoch);
    assert_eq!(regained.records, [(key(1), b"left".to_vec()), (key(2), b"right".to_vec())]);
    assert_fenced(&mut *right, loaded.epoch, &[Change::Delete(key(1))]);
    assert_eq!(commit(&mut *left, regained.epoch, &[]), Version(3));
}

fn large_batch_is_one_commit(mut fixture: StoreFixture) {
    let mut store = fixture.open();
    let epoch = load(&mut *store).epoch;
    let records: Vec<(Key, Vec<u8>)> =
        (0..10_000_u32).map(|number| (key(number), number.to_string().repeat(40).into())).collect();
    assert_eq!(commit(&mut *store, epoch, &puts(&records)), Version(1));
    assert_eq!(load(&mut *store).records, records);
    let epoch = load(&mut *store).epoch;
    let deletes: Vec<Change> = records.iter().map(|(key, _)| Change::Delete(*key)).collect();
    assert_eq!(commit(&mut *store, epoch, &deletes), Version(2));
    assert_eq!(load(&mut *store).records, []);
}

fn random_changes_match_map(mut fixture: StoreFixture) {
    let seed = fastrand::u64(..);
    println!("seed: {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut model: BTreeMap<Key, Vec<u8>> = BTreeMap::new();
    let mut version = Version(0);
    let mut store = fixture.open();
    let mut epoch = load(&mut *store).epoch;
    for _ in 0..200 {
        match random.u8(0..10) {
            0 => {
                drop(store);
                store = fixture.open();
                epoch = load_and_compare(&mut *store, version, &model);
            }
            1 => {
                let old = epoch;
                epoch = load_and_compare(&mut *store, version, &model);
                assert_fenced(&mut *store, old, &changes(&mut random));
            }
            _ => {
                let changes = changes(&mut random);
                for change in &changes {
                    match change.clone() {
                        Change::Put(key, bytes) => model.insert(key, bytes),
                        Change::Delete(key) => model.remove(&key),
                    };
                }
                version = version.next();
                assert_eq!(commit(&mut *store, epoch, &changes), version);
            }
        }
    }
    load_and_compare(&mut *store, version, &model);
}

fn snapshot_creates_no_state(mut fixture: StoreFixture) {
    let Some(archive) = &mut fixture.archive else { return };
    assert_eq!(archive().read_snapshot().expect("a readable state"), None);
    assert_eq!(
        archive().read_snapshot().expect("a readable state"),
        None,
        "the first snapshot created a state"
    );
    let loaded = load(&mut *fixture.open());
    assert_eq!((loaded.version, loaded.records), (Version(0), Vec::new()));
}

fn snapshot_begins_no_epoch(mut fixture: StoreFixture) {
    if fixture.archive.is_none() {
        return;
    }
    let bytes = |number: u32| number.to_be_bytes().repeat(30);
    let records: Vec<(Key, Vec<u8>)> =
        (0..3000).map(|number| (key(number), bytes(number))).collect();
    let mut store = Some(fixture.open());
    let leader = store.as_deref_mut().expect("just opened");
    let mut epoch = load(leader).epoch;
    commit(leader, epoch, &puts(&records));
    for version in 1..=3 {
        store = store.filter(|_| fixture.is_shared);
        let mut archive = fixture.archive.as_mut().expect("checked above")();
        for _ in 0..2 {
            let snapshot = archive.read_snapshot().expect("a readable state").expect("a state");
            assert_eq!(snapshot.counts, Counts { epoch: epoch.0, version });
            assert_eq!((&snapshot.records, snapshot.unknown.len()), (&records, 0));
        }
        drop(archive);
        let leader = store.get_or_insert_with(|| fixture.open());
        if !fixture.is_shared {
            let later = load(&mut **leader).epoch;
            assert_eq!(later, Epoch(epoch.0 + 1), "a snapshot has begun an epoch");
            epoch = later;
        }
        assert_eq!(
            commit(&mut **leader, epoch, &[]),
            Version(version + 1),
            "the writer keeps its epoch"
        );
    }
}

fn replacement_replaces_all_records(mut fixture: StoreFixture) {
    if fixture.archive.is_none() {
        return;
    }
    let first = vec![(key(1), b"one".to_vec()), (key(2), Vec::new()), (history(7), vec![0xff; 9])];
    let large: Vec<(Key, Vec<u8>)> =
        (2..8000_u32).map(|number| (key(number), number.to_string().repeat(30).into())).collect();
    let mut version = 0;
    for records in [&first, &large, &Vec::new(), &first] {
        let mut archive = fixture.archive.as_mut().expect("checked above")();
        let replaced = archive.replace(records, Counts::default()).expect("replaced");
        assert!(replaced.version.0 > version, "{replaced:?}");
        let snapshot = archive.read_snapshot().expect("a readable state").expect("a state");
        assert_eq!((snapshot.counts.version, &snapshot.records), (replaced.version.0, records));
        drop(archive);
        let mut store = fixture.open();
        let loaded = load(&mut *store);
        assert_eq!((loaded.version, &loaded.records), (replaced.version, records));
        assert!(loaded.epoch.0 > snapshot.counts.epoch);
        version = loaded.version.0;
        if fixture.is_shared {
            let mut archive = fixture.archive.as_mut().expect("checked above")();
            version = archive.replace(records, Counts::default()).expect("replaced").version.0;
            assert_fenced(&mut *store, loaded.epoch, &[Change::Delete(key(1))]);
        }
    }
}

fn replacement_continues_higher_counts(mut fixture: StoreFixture) {
    if fixture.archive.is_none() {
        return;
    }
    let records = vec![(key(1), b"one".to_vec())];
    let (mut epoch, mut version) = (0, 0);
    for (former_epoch, former_version) in [(40, 900), (3, 2000), (500, 7), (0, 0)] {
        let former = Counts { epoch: former_epoch, version: former_version };
        let mut archive = fixture.archive.as_mut().expect("checked above")();
        let replaced = archive.replace(&records, former).expect("replaced").version.0;
        drop(archive);
        let loaded = load(&mut *fixture.open());
        assert_eq!((loaded.version.0, &loaded.records), (replaced, &records));
        assert!(replaced > former.version.max(version), "{replaced} after {version}, {former:?}");
        assert!(loaded.epoch.0 > former.epoch.max(epoch), "{loaded:?} after {epoch}, {former:?}");
        (epoch, version) = (loaded.epoch.0, replaced);
    }
}

fn unreachable_count_is_refused(mut fixture: StoreFixture) {
    let records = vec![(key(1), b"one".to_vec())];
    let mut store = fixture.open();
    let epoch = load(&mut *store).epoch;
    commit(&mut *store, epoch, &puts(&records));
    drop(store);
    for count in [Counts::MAX, Counts::MAX + 1, i64::MAX as u64, u64::MAX - 1, u64::MAX] {
        for (counter, counts) in [
            ("epoch", Counts { epoch: count, version: 7 }),
            ("version", Counts { epoch: 7, version: count }),
        ] {
            (fixture.forge)(counts);
            let error = fixture.open().load().expect_err("refused").to_string();
            let reason = format!("impossible {counter} {count}");
            assert!(error.contains(&reason), "{error}");
            let Some(archive) = &mut fixture.archive else { continue };
            // The remedy in the message must work: the records are not lost.
            let snapshot = archive().read_snapshot().expect("a readable state").expect("a state");
            assert_eq!(
                (&snapshot.records, snapshot.counts.epoch.min(snapshot.counts.version)),
                (&records, 0)
            );
            assert!(
                snapshot.warnings.iter().any(|warning| warning.starts_with(&reason)),
                "{snapshot:?}"
            );
            let replaced = archive().replace(&snapshot.records, snapshot.counts).expect("replaced");
            let mut store = fixture.open();
            let loaded = load(&mut *store);
            assert_eq!((loaded.version, &loaded.records), (replaced.version, &records));
            assert_eq!(commit(&mut *store, loaded.epoch, &[]), replaced.version.next());
        }
    }
}

fn highest_count_is_refused(mut fixture: StoreFixture) {
    drop(fixture.open().load().expect("load"));
    (fixture.forge)(Counts { epoch: 7, version: Counts::MAX - 1 });
    let mut store = fixture.open();
    let epoch = load(&mut *store).epoch;
    assert_eq!(commit(&mut *store, epoch, &[]), Version(Counts::MAX));
    // The commit fails without a panic. The master then loads the state, and the load fails too, so
    // that the master does not seem healthy while every commit is refused.
    let reason = format!("impossible version {}", Counts::MAX + 1);
    let error = store.commit(epoch, &[]).expect_err("refused").to_string();
    assert!(error.contains(&reason), "{error}");
    let reason = format!("impossible version {}", Counts::MAX);
    let error = store.load().expect_err("refused").to_string();
    assert!(error.contains(&reason), "{error}");
}

/// Returns random changes of few keys, so that most changes hit an existing key.
fn changes(random: &mut fastrand::Rng) -> Vec<Change> {
    let change = |random: &mut fastrand::Rng| {
        let number = random.u32(0..40);
        let key = if random.bool() { key(number) } else { history(number.into()) };
        if random.bool() {
            let length = random.usize(0..600);
            let bytes = std::iter::repeat_with(|| random.u8(..)).take(length).collect();
            Change::Put(key, bytes)
        } else {
            Change::Delete(key)
        }
    };
    let count = random.usize(0..12);
    std::iter::repeat_with(|| change(random)).take(count).collect()
}

fn load_and_compare(
    store: &mut dyn Store,
    version: Version,
    model: &BTreeMap<Key, Vec<u8>>,
) -> Epoch {
    let loaded = load(store);
    assert_eq!(loaded.version, version);
    assert!(
        loaded.records.iter().map(|(key, bytes)| (key, bytes)).eq(model),
        "the store has {:?}, the model {model:?}",
        loaded.records
    );
    loaded.epoch
}

fn key(number: u32) -> Key {
    Key::Agent(Ipv4Addr::from(number))
}

fn history(number: u64) -> Key {
    Key::History(number)
}

fn put(number: u32, text: &str) -> Change {
    Change::Put(key(number), text.into())
}

fn puts(records: &[(Key, Vec<u8>)]) -> Vec<Change> {
    records.iter().map(|(key, bytes)| Change::Put(*key, bytes.clone())).collect()
}

fn load(store: &mut dyn Store) -> Loaded {
    store.load().expect("load")
}

fn commit(store: &mut dyn Store, epoch: Epoch, changes: &[Change]) -> Version {
    store.commit(epoch, changes).expect("commit")
}

fn assert_fenced(store: &mut dyn Store, old: Epoch, changes: &[Change]) {
    match store.commit(old, changes) {
        Err(StoreError::EpochEnded { epoch, .. }) => assert_eq!(epoch, old.0),
        other => panic!("a commit of {old:?}, which is not the latest epoch, returned {other:?}"),
    }
}
