//! What every store must do, as a suite that each of them runs in its tests.
//!
//! It is compiled always, and not for tests only, because a store that needs a server is tested
//! from outside of this crate. So it has its own seeded random sequences instead of a test library,
//! and panics with what went wrong.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use super::{Archive, Change, Counts, Epoch, Key, Loaded, Store, StoreError, Version};

/// A state that was never written.
#[expect(missing_debug_implementations, reason = "a closure has nothing to show")]
pub struct Subject {
    /// Makes a handle on the state. Unless it is shared, the last one was dropped before.
    pub open: Box<dyn FnMut() -> Box<dyn Store>>,
    /// Makes a handle on the same state as an archive, by the same rules; `None` where there is no
    /// looking without taking.
    pub archive: Option<Box<dyn FnMut() -> Box<dyn Archive>>>,
    /// Writes these counts into a state that is there, as somebody else who can write it may. The
    /// last handle was dropped before.
    pub forge: Box<dyn FnMut(Counts)>,
    /// Whether there can be several handles at a time.
    pub is_shared: bool,
}

impl Subject {
    fn open(&mut self) -> Box<dyn Store> {
        (self.open)()
    }
}

struct Rule {
    name: &'static str,
    check: fn(Subject),
}

const RULES: [Rule; 17] = [
    Rule { name: "a new state is empty", check: a_new_state_is_empty },
    Rule { name: "what was committed is loaded", check: what_was_committed_is_loaded },
    Rule { name: "changes apply in their order", check: changes_apply_in_their_order },
    Rule { name: "each commit counts", check: each_commit_counts },
    Rule {
        name: "records come in the order of their keys",
        check: records_come_in_the_order_of_their_keys,
    },
    Rule { name: "each kind of key is its own", check: each_kind_of_key_is_its_own },
    Rule { name: "a new epoch ends the older ones", check: a_new_epoch_ends_the_older_ones },
    Rule {
        name: "an epoch that has not begun is refused",
        check: an_epoch_that_has_not_begun_is_refused,
    },
    Rule { name: "several handles contend", check: several_handles_contend },
    Rule { name: "a large batch is one commit", check: a_large_batch_is_one_commit },
    Rule { name: "any sequence does what a map does", check: any_sequence_does_what_a_map_does },
    Rule { name: "a look makes nothing", check: a_look_makes_nothing },
    Rule { name: "a look takes nothing from its leader", check: a_look_takes_nothing },
    Rule { name: "a replacement is a whole state", check: a_replacement_is_a_whole_state },
    Rule {
        name: "a replacement counts on from where it is from",
        check: a_replacement_counts_on_from_where_it_is_from,
    },
    Rule { name: "a count out of reach is refused", check: count_out_of_reach_is_refused },
    Rule { name: "the last count is refused", check: last_count_is_refused_by_commit_and_load },
];

/// Checks every rule, each on a subject of its own.
///
/// # Panics
/// When a rule is broken.
pub fn check(fresh: &dyn Fn() -> Subject) {
    for rule in RULES {
        // The test runner shows it if the rule fails.
        println!("rule: {}", rule.name);
        (rule.check)(fresh());
    }
}

fn a_new_state_is_empty(mut subject: Subject) {
    let loaded = load(&mut *subject.open());
    assert_eq!((loaded.version, loaded.records), (Version(0), Vec::new()));
    let again = load(&mut *subject.open());
    assert_eq!((again.version, again.records), (Version(0), Vec::new()));
    assert!(again.epoch > loaded.epoch);
}

fn what_was_committed_is_loaded(mut subject: Subject) {
    let mut store = subject.open();
    let epoch = load(&mut *store).epoch;
    let odd_bytes = [Vec::new(), vec![0], vec![0xff; 3], (0..=255).cycle().take(70_000).collect()];
    let records: Vec<(Key, Vec<u8>)> = (0..).map(key).zip(odd_bytes).collect();
    commit(&mut *store, epoch, &puts(&records));
    assert_eq!(load(&mut *store).records, records, "on the same handle");
    drop(store);
    let loaded = load(&mut *subject.open());
    assert_eq!((loaded.version, loaded.records), (Version(1), records), "on another handle");
}

fn changes_apply_in_their_order(mut subject: Subject) {
    let mut store = subject.open();
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

fn each_commit_counts(mut subject: Subject) {
    let mut store = subject.open();
    let epoch = load(&mut *store).epoch;
    assert_eq!(commit(&mut *store, epoch, &[put(1, "one")]), Version(1));
    assert_eq!(commit(&mut *store, epoch, &[]), Version(2), "an empty batch counts");
    assert_eq!(commit(&mut *store, epoch, &[Change::Delete(key(9))]), Version(3));
    drop(store);
    let mut store = subject.open();
    let loaded = load(&mut *store);
    assert_eq!(loaded.version, Version(3), "over all epochs");
    assert_eq!(commit(&mut *store, loaded.epoch, &[put(1, "two")]), Version(4));
}

fn records_come_in_the_order_of_their_keys(mut subject: Subject) {
    let mut store = subject.open();
    let epoch = load(&mut *store).epoch;
    let mut numbers = [0, 1, 255, 256, 0x00ff_ffff, 0x0100_0000, 0x7fff_ffff, 0x8000_0000, !0];
    let ordered: Vec<(Key, Vec<u8>)> = numbers.map(|number| (key(number), Vec::new())).to_vec();
    numbers.reverse();
    for number in numbers {
        commit(&mut *store, epoch, &[put(number, "")]);
    }
    assert_eq!(load(&mut *store).records, ordered);
}

fn each_kind_of_key_is_its_own(mut subject: Subject) {
    let mut store = subject.open();
    let epoch = load(&mut *store).epoch;
    let numbers = [0, 1, 255, 256, u64::from(u32::MAX), 1 << 32, u64::MAX];
    let mut records: Vec<(Key, Vec<u8>)> = vec![(key(0), vec![1]), (key(!0), vec![2])];
    records.extend(numbers.map(|number| (part(number), number.to_string().into_bytes())));
    let mut reversed = puts(&records);
    reversed.reverse();
    commit(&mut *store, epoch, &reversed);
    assert_eq!(load(&mut *store).records, records, "agents first, in the order of their numbers");
    drop(store);
    let mut store = subject.open();
    let epoch = load(&mut *store).epoch;
    commit(&mut *store, epoch, &[Change::Delete(part(0)), put(1, "one"), Change::Delete(key(0))]);
    records.retain(|(key, _)| ![part(0), self::key(0)].contains(key));
    records.insert(0, (key(1), b"one".to_vec()));
    assert_eq!(load(&mut *store).records, records);
}

fn a_new_epoch_ends_the_older_ones(mut subject: Subject) {
    let mut store = subject.open();
    let first = load(&mut *store).epoch;
    commit(&mut *store, first, &[put(1, "one")]);
    let second = load(&mut *store).epoch;
    assert!(second > first);
    assert_deposed(&mut *store, first, &[put(1, "stolen"), put(2, "two")]);
    assert_deposed(&mut *store, first, &[]);
    assert_eq!(commit(&mut *store, second, &[put(3, "three")]), Version(2), "it goes on");
    drop(store);
    let mut store = subject.open();
    let loaded = load(&mut *store);
    assert_eq!(loaded.records, [(key(1), b"one".to_vec()), (key(3), b"three".to_vec())]);
    assert_deposed(&mut *store, second, &[Change::Delete(key(1))]);
    assert_eq!(load(&mut *store).records, loaded.records);
}

fn an_epoch_that_has_not_begun_is_refused(mut subject: Subject) {
    let mut store = subject.open();
    let Epoch(epoch) = load(&mut *store).epoch;
    assert_deposed(&mut *store, Epoch(epoch + 1), &[put(1, "one")]);
    assert_eq!(load(&mut *store).records, []);
}

fn several_handles_contend(mut subject: Subject) {
    if !subject.is_shared {
        return;
    }
    let (mut left, mut right) = (subject.open(), subject.open());
    let left_epoch = load(&mut *left).epoch;
    assert_eq!(commit(&mut *left, left_epoch, &[put(1, "left")]), Version(1));
    let loaded = load(&mut *right);
    assert_eq!((loaded.version, &*loaded.records), (Version(1), &[(key(1), b"left".to_vec())][..]));
    assert_deposed(&mut *left, left_epoch, &[put(1, "stolen")]);
    assert_eq!(commit(&mut *right, loaded.epoch, &[put(2, "right")]), Version(2));
    let regained = load(&mut *left);
    assert!(regained.epoch > loaded.epoch);
    assert_eq!(regained.records, [(key(1), b"left".to_vec()), (key(2), b"right".to_vec())]);
    assert_deposed(&mut *right, loaded.epoch, &[Change::Delete(key(1))]);
    assert_eq!(commit(&mut *left, regained.epoch, &[]), Version(3));
}

fn a_large_batch_is_one_commit(mut subject: Subject) {
    let mut store = subject.open();
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

fn any_sequence_does_what_a_map_does(mut subject: Subject) {
    let seed = fastrand::u64(..);
    println!("seed: {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut model: BTreeMap<Key, Vec<u8>> = BTreeMap::new();
    let mut version = Version(0);
    let mut store = subject.open();
    let mut epoch = load(&mut *store).epoch;
    for _ in 0..200 {
        match random.u8(0..10) {
            0 => {
                drop(store);
                store = subject.open();
                epoch = load_and_compare(&mut *store, version, &model);
            }
            1 => {
                let old = epoch;
                epoch = load_and_compare(&mut *store, version, &model);
                assert_deposed(&mut *store, old, &changes(&mut random));
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

fn a_look_makes_nothing(mut subject: Subject) {
    let Some(archive) = &mut subject.archive else { return };
    assert_eq!(archive().look().expect("look"), None);
    assert_eq!(archive().look().expect("look"), None, "the first look made something");
    let loaded = load(&mut *subject.open());
    assert_eq!((loaded.version, loaded.records), (Version(0), Vec::new()));
}

fn a_look_takes_nothing(mut subject: Subject) {
    if subject.archive.is_none() {
        return;
    }
    let bytes = |number: u32| number.to_be_bytes().repeat(30);
    let records: Vec<(Key, Vec<u8>)> = (0..3000).map(|it| (key(it), bytes(it))).collect();
    let mut store = Some(subject.open());
    let leader = store.as_deref_mut().expect("just opened");
    let mut epoch = load(leader).epoch;
    commit(leader, epoch, &puts(&records));
    for version in 1..=3 {
        store = store.filter(|_| subject.is_shared);
        let mut archive = subject.archive.as_mut().expect("seen above")();
        for _ in 0..2 {
            let seen = archive.look().expect("look").expect("there is a state");
            assert_eq!(seen.counts, Counts { epoch: epoch.0, version });
            assert_eq!((&seen.records, seen.unknown.len()), (&records, 0));
        }
        drop(archive);
        let leader = store.get_or_insert_with(|| subject.open());
        if !subject.is_shared {
            let later = load(&mut **leader).epoch;
            assert_eq!(later, Epoch(epoch.0 + 1), "a look has begun an epoch");
            epoch = later;
        }
        assert_eq!(commit(&mut **leader, epoch, &[]), Version(version + 1), "it still leads");
    }
}

fn a_replacement_is_a_whole_state(mut subject: Subject) {
    if subject.archive.is_none() {
        return;
    }
    let first = vec![(key(1), b"one".to_vec()), (key(2), Vec::new()), (part(7), vec![0xff; 9])];
    let large: Vec<(Key, Vec<u8>)> =
        (2..8000_u32).map(|number| (key(number), number.to_string().repeat(30).into())).collect();
    let mut version = 0;
    for records in [&first, &large, &Vec::new(), &first] {
        let mut archive = subject.archive.as_mut().expect("seen above")();
        let replaced = archive.replace(records, Counts::default()).expect("replaced");
        assert!(replaced.version.0 > version, "{replaced:?}");
        let seen = archive.look().expect("look").expect("there is a state");
        assert_eq!((seen.counts.version, &seen.records), (replaced.version.0, records));
        drop(archive);
        let mut store = subject.open();
        let loaded = load(&mut *store);
        assert_eq!((loaded.version, &loaded.records), (replaced.version, records));
        assert!(loaded.epoch.0 > seen.counts.epoch);
        version = loaded.version.0;
        if subject.is_shared {
            let mut archive = subject.archive.as_mut().expect("seen above")();
            version = archive.replace(records, Counts::default()).expect("replaced").version.0;
            assert_deposed(&mut *store, loaded.epoch, &[Change::Delete(key(1))]);
        }
    }
}

fn a_replacement_counts_on_from_where_it_is_from(mut subject: Subject) {
    if subject.archive.is_none() {
        return;
    }
    let records = vec![(key(1), b"one".to_vec())];
    let (mut epoch, mut version) = (0, 0);
    for (former_epoch, former_version) in [(40, 900), (3, 2000), (500, 7), (0, 0)] {
        let former = Counts { epoch: former_epoch, version: former_version };
        let mut archive = subject.archive.as_mut().expect("seen above")();
        let replaced = archive.replace(&records, former).expect("replaced").version.0;
        drop(archive);
        let loaded = load(&mut *subject.open());
        assert_eq!((loaded.version.0, &loaded.records), (replaced, &records));
        assert!(replaced > former.version.max(version), "{replaced} after {version}, {former:?}");
        assert!(loaded.epoch.0 > former.epoch.max(epoch), "{loaded:?} after {epoch}, {former:?}");
        (epoch, version) = (loaded.epoch.0, replaced);
    }
}

fn count_out_of_reach_is_refused(mut subject: Subject) {
    let records = vec![(key(1), b"one".to_vec())];
    let mut store = subject.open();
    let epoch = load(&mut *store).epoch;
    commit(&mut *store, epoch, &puts(&records));
    drop(store);
    for count in [Counts::MAX, Counts::MAX + 1, i64::MAX as u64, u64::MAX - 1, u64::MAX] {
        for (what, counts) in [
            ("epoch", Counts { epoch: count, version: 7 }),
            ("version", Counts { epoch: 7, version: count }),
        ] {
            (subject.forge)(counts);
            let refusal = subject.open().load().expect_err("refused").to_string();
            let reason = format!("no state has come to {what} {count}");
            assert!(refusal.contains(&reason), "{refusal}");
            let Some(archive) = &mut subject.archive else { continue };
            // As the message says, the records are not lost.
            let seen = archive().look().expect("look").expect("there is a state");
            assert_eq!((&seen.records, seen.counts.epoch.min(seen.counts.version)), (&records, 0));
            assert!(seen.doubts.iter().any(|doubt| doubt.starts_with(&reason)), "{seen:?}");
            let replaced = archive().replace(&seen.records, seen.counts).expect("replaced");
            let mut store = subject.open();
            let loaded = load(&mut *store);
            assert_eq!((loaded.version, &loaded.records), (replaced.version, &records));
            assert_eq!(commit(&mut *store, loaded.epoch, &[]), replaced.version.next());
        }
    }
}

fn last_count_is_refused_by_commit_and_load(mut subject: Subject) {
    drop(subject.open().load().expect("load"));
    (subject.forge)(Counts { epoch: 7, version: Counts::MAX - 1 });
    let mut store = subject.open();
    let epoch = load(&mut *store).epoch;
    assert_eq!(commit(&mut *store, epoch, &[]), Version(Counts::MAX));
    // No panic, and no commit that would be refused for ever by a master that looks well: what it
    // does then is to load.
    let reason = format!("no state has come to version {}", Counts::MAX + 1);
    let refusal = store.commit(epoch, &[]).expect_err("refused").to_string();
    assert!(refusal.contains(&reason), "{refusal}");
    let reason = format!("no state has come to version {}", Counts::MAX);
    let refusal = store.load().expect_err("refused").to_string();
    assert!(refusal.contains(&reason), "{refusal}");
}

/// Few keys, so that most changes meet another.
fn changes(random: &mut fastrand::Rng) -> Vec<Change> {
    let change = |random: &mut fastrand::Rng| {
        let number = random.u32(0..40);
        let key = if random.bool() { key(number) } else { part(number.into()) };
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

fn part(number: u64) -> Key {
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

fn assert_deposed(store: &mut dyn Store, old: Epoch, changes: &[Change]) {
    match store.commit(old, changes) {
        Err(StoreError::Deposed { epoch, .. }) => assert_eq!(epoch, old.0),
        other => panic!("a commit of {old:?}, which is not the latest, gave {other:?}"),
    }
}
