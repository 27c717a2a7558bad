//! The ZooKeeper store: conformance, fencing, server outages during commits, expired sessions, and
//! access lists.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use overlay_store::conformance::{self, StoreFixture};
use overlay_store::{Change, Loaded, Store, ZooKeeperStore};
use overlay_types::addr::Ensemble;
use overlay_types::state::{Counts, Epoch, Key, StoreError, Version};

use super::{SERVERS, SESSION, TICK, ensemble, now, sleep, suspend};
use crate::ensemble::Servers;

/// Time limit for the end of an outage.
const TIMEOUT: Duration = Duration::from_secs(60);

fn open(ensemble: &Ensemble) -> ZooKeeperStore {
    ZooKeeperStore::new(ensemble.clone(), SESSION).expect("a store")
}

/// Overwrites the counts in the znodes of a state, as another client could.
fn forge(address: &Ensemble, counts: Counts) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let state = format!("{}/state", address.path());
    let head = format!(r#"{{"format":1,"version":{},"pending":0}}"#, counts.version);
    runtime.block_on(async {
        let client = zookeeper_client::Client::connect(&address.servers()).await.expect("a client");
        let epoch = counts.epoch.to_string();
        let written = client.set_data(&format!("{state}/epoch"), epoch.as_bytes(), None).await;
        written.expect("written");
        let written = client.set_data(&format!("{state}/head"), head.as_bytes(), None).await;
        written.expect("written");
    });
}

fn key(number: u32) -> Key {
    Key::Agent(Ipv4Addr::from(number))
}

#[test]
#[ignore = "needs packages: tests/run host"]
fn zookeeper_store_passes_conformance_suite() {
    let servers = Servers::start(1, TICK);
    let count = Cell::new(0);
    conformance::check(&|| {
        count.set(count.get() + 1);
        let address = ensemble(&servers, "", &format!("/conformance/{}", count.get()));
        let (archived, forged) = (address.clone(), address.clone());
        StoreFixture {
            open: Box::new(move || Box::new(open(&address))),
            archive: Some(Box::new(move || Box::new(open(&archived)))),
            forge: Box::new(move |counts| forge(&forged, counts)),
            is_shared: true,
        }
    });
}

#[test]
#[ignore = "needs packages: tests/run host"]
fn later_epoch_fences_late_commits() {
    let servers = Servers::start(1, TICK);
    let address = ensemble(&servers, "", "/fencing");
    let (mut old, mut new) = (open(&address), open(&address));
    let first = old.load().expect("loaded");
    let many: Vec<Change> = (0..5000).map(|n| Change::Put(key(n), vec![7; 200])).collect();
    assert_eq!(old.commit(first.epoch, &many), Ok(Version(1)), "a commit in parts");
    let second = new.load().expect("loaded");
    assert_eq!((second.version, second.records.len()), (Version(1), 5000));
    for changes in [&many[..], &many[..1], &[]] {
        let epoch_ended =
            StoreError::EpochEnded { store: address.to_string(), epoch: first.epoch.0 };
        assert_eq!(old.commit(first.epoch, changes), Err(epoch_ended));
    }
    assert_eq!(new.commit(second.epoch, &[]), Ok(Version(2)));
    assert_eq!(open(&address).load().expect("loaded").records, second.records);
}

/// A master that commits one batch after another. After every failure it loads the state, as the
/// real master does, and compares the state with the committed batches.
struct Writer {
    store: ZooKeeperStore,
    epoch: Epoch,
    version: Version,
    records: BTreeMap<Key, Vec<u8>>,
    failures: usize,
    longest: Duration,
}

impl Writer {
    fn start(address: &Ensemble) -> Self {
        let mut store = open(address);
        let Loaded { epoch, version, records } = store.load().expect("loaded");
        let records = records.into_iter().collect();
        Self { store, epoch, version, records, failures: 0, longest: Duration::ZERO }
    }

    /// Builds a batch. Every second batch is too large for a single request.
    fn batch(version: Version) -> Vec<Change> {
        let number = u32::try_from(version.0).expect("few commits");
        let (count, length) = if number % 2 == 0 { (2000, 300) } else { (20, 100) };
        let bytes: Vec<u8> = number.to_be_bytes().repeat(length / 4);
        let mut changes: Vec<Change> =
            (0..count).map(|n| Change::Put(key(n), bytes.clone())).collect();
        changes.push(Change::Put(key(1_000_000 + number), bytes));
        changes.push(Change::Delete(key(1_000_000 + number.saturating_sub(3))));
        changes
    }

    fn apply(records: &mut BTreeMap<Key, Vec<u8>>, changes: &[Change]) {
        for change in changes {
            match change.clone() {
                Change::Put(key, bytes) => records.insert(key, bytes),
                Change::Delete(key) => records.remove(&key),
            };
        }
    }

    fn commit(&mut self) {
        let next = self.version.next();
        let changes = Self::batch(next);
        let start = now();
        match self.store.commit(self.epoch, &changes) {
            Ok(version) => {
                assert_eq!(version, next);
                Self::apply(&mut self.records, &changes);
                self.version = next;
            }
            Err(StoreError::Failed { .. }) => {
                self.failures += 1;
                self.load(&changes);
            }
            Err(error) => panic!("{error}"),
        }
        self.longest = self.longest.max(start.elapsed());
    }

    /// Loads the state. Committed batches must be present. The batch of unknown outcome must be
    /// present completely, or not at all.
    fn load(&mut self, unknown: &[Change]) {
        let start = now();
        let loaded = loop {
            match self.store.load() {
                Ok(loaded) => break loaded,
                Err(StoreError::Failed { .. }) if start.elapsed() < TIMEOUT => {}
                Err(error) => panic!("{error}"),
            }
        };
        assert!(loaded.epoch > self.epoch);
        self.epoch = loaded.epoch;
        if loaded.version != self.version {
            assert_eq!(loaded.version, self.version.next());
            self.version = loaded.version;
            Self::apply(&mut self.records, unknown);
        }
        assert!(loaded.records.into_iter().eq(self.records.clone()), "{:?}", self.version);
    }
}

#[test]
#[ignore = "needs packages: tests/run host"]
fn server_kills_lose_no_committed_batch() {
    let mut servers = Servers::start(SERVERS, TICK);
    let address = ensemble(&servers, "", "/outage");
    let mut writer = Writer::start(&address);
    let commits = |writer: &mut Writer, count| (0..count).for_each(|_| writer.commit());
    commits(&mut writer, 20);
    let longest_without_outage = std::mem::take(&mut writer.longest);
    for server in 0..SERVERS {
        servers.kill(server);
        commits(&mut writer, 20);
        servers.restart(server);
        commits(&mut writer, 20);
        servers.wait_until_serving();
    }
    let longest_in_outage = std::mem::take(&mut writer.longest);
    println!(
        "{} commits, {} of unknown outcome; the longest took \
         {longest_without_outage:?}, in an outage {longest_in_outage:?}",
        writer.version.0, writer.failures
    );
    // Kill all servers at once during commits, which simulates a power failure.
    for _ in 0..3 {
        std::thread::scope(|scope| {
            let committing = scope.spawn(|| (0..30).for_each(|_| writer.commit()));
            sleep(Duration::from_millis(fastrand::u64(50..500)));
            (0..SERVERS).for_each(|server| servers.kill(server));
            (0..SERVERS).for_each(|server| servers.restart(server));
            committing.join().expect("thread does not panic");
        });
    }
    println!("{} commits, {} of unknown outcome", writer.version.0, writer.failures);
    let changes = Writer::batch(writer.version.next());
    writer.load(&changes);
    let other = Writer::start(&address);
    assert!(other.records == writer.records && other.version == writer.version);
}

#[test]
#[ignore = "needs packages: tests/run host"]
fn expired_session_is_replaced() {
    let mut servers = Servers::start(1, TICK);
    let address = ensemble(&servers, "", "/expiry");
    let mut writer = Writer::start(&address);
    writer.commit();
    // The session expires while the store is idle: the epoch continues in a new session.
    servers.kill(0);
    sleep(SESSION * 2);
    servers.restart(0);
    servers.wait_until_serving();
    let epoch = writer.epoch;
    (0..3).for_each(|_| writer.commit());
    println!("{} failures after an idle outage", writer.failures);
    // The session expires during a commit: the commit ends within its time limit.
    let start = now();
    std::thread::scope(|scope| {
        scope.spawn(|| suspend(&servers, SESSION * 3));
        sleep(Duration::from_millis(100));
        let changes = Writer::batch(writer.version.next());
        let error =
            writer.store.commit(writer.epoch, &changes).expect_err("all servers are suspended");
        assert!(start.elapsed() < SESSION * 2, "{:?}", start.elapsed());
        assert!(matches!(error, StoreError::Failed { .. }), "{error}");
        writer.load(&changes);
    });
    assert!(writer.epoch > epoch);
    writer.commit();
}

#[test]
#[ignore = "needs packages: tests/run host"]
fn state_with_credentials_is_closed_to_other_users() {
    let servers = Servers::start(1, TICK);
    let owned = ensemble(&servers, "overlay:secret@", "/owned/overlay");
    let mut owner = open(&owned);
    let epoch = owner.load().expect("loaded").epoch;
    owner.commit(epoch, &[Change::Put(key(1), b"record".to_vec())]).expect("committed");
    let root = "/owned/overlay/state";
    let cases = [
        (
            "",
            format!(
                "load: {root}/epoch may not be used without credentials: write the user and the \
                 password that created it, as in zk://USER:PASSWORD@HOST:PORT/PATH"
            ),
        ),
        (
            "overlay:wrong@",
            format!(
                "load: {root}/epoch may not be used with this user and password: write those that \
                 created it, or let its owner change its access list (setAcl)"
            ),
        ),
    ];
    for (credentials, reason) in cases {
        let other_user = ensemble(&servers, credentials, "/owned/overlay");
        let error = open(&other_user).load().expect_err("access is refused").to_string();
        assert_eq!(error, format!("{other_user}: {reason}"));
    }
    assert_eq!(owner.commit(epoch, &[]), Ok(Version(2)), "the owner lost access");
    assert!(!format!("{owner} {owner:?}").contains("secret"));
}

#[test]
#[ignore = "needs packages: tests/run host"]
fn operator_errors_name_cause_and_remedy() {
    let servers = Servers::start(1, TICK);
    let address = ensemble(&servers, "", "/fix");
    let mut store = open(&address);
    let epoch = store.load().expect("loaded").epoch;
    let huge = [Change::Put(key(1), vec![0; 1_000_000])];
    let failure = |result: Result<Version, StoreError>| result.expect_err("an error").to_string();
    assert_eq!(
        failure(store.commit(epoch, &huge)),
        format!(
            "{address}: commit: the record of agent 0.0.0.1 has 1000000 bytes, and the limit of \
             ZooKeeper is 900000: configure fewer overlays"
        )
    );
    assert_eq!(
        failure(store.commit(epoch, &[])),
        format!("{address}: commit: an earlier operation failed: load the state first")
    );
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let write = |path: &str, data: &'static str| {
        runtime.block_on(async {
            let client = zookeeper_client::Client::connect(&address.servers()).await?;
            client.set_data(path, data.as_bytes(), None).await
        })
    };
    write("/fix/state/head", "{}").expect("written");
    let error = store.load().expect_err("damaged state").to_string();
    assert_eq!(
        error,
        format!(
            "{address}: load: /fix/state/head is damaged (missing field `format` at line 1 column \
             2): restore a copy of /fix/state, or remove it (`deleteall /fix/state`): the masters \
             then start with an empty state"
        )
    );
    drop(servers);
    let error = open(&address).load().expect_err("no server runs").to_string();
    assert_eq!(
        error,
        format!(
            "{address}: load: no server of {} answers within 4s: check that most of them run and \
             are reachable from this host, or fix the zk:// address",
            address.servers()
        )
    );
}

#[test]
#[ignore = "needs packages: tests/run host"]
fn incomplete_state_is_named_with_its_missing_part() {
    let servers = Servers::start(1, TICK);
    let address = ensemble(&servers, "", "/fix");
    open(&address).load().expect("loaded");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let remove = |path: &str| {
        runtime.block_on(async {
            let client = zookeeper_client::Client::connect(&address.servers()).await?;
            client.delete(path, None).await
        })
    };
    let load_error = || open(&address).load().expect_err("an incomplete state").to_string();
    let damaged = |path: &str| {
        format!(
            "{address}: load: {path} is damaged (it is missing): restore a copy of /fix/state, or \
             remove it (`deleteall /fix/state`): the masters then start with an empty state"
        )
    };
    for path in ["/fix/state/pending", "/fix/state/agents/7", "/fix/state/head"] {
        remove(path).expect("removed");
        assert_eq!(load_error(), damaged(path));
    }
    remove("/fix/state/epoch").expect("removed");
    assert_eq!(
        load_error(),
        format!(
            "{address}: load: /fix/state exists without its znode 'epoch', so it is no state of \
             overlay masters: a foreign client created it, or a removal was interrupted: restore a \
             copy of it, or remove it (`deleteall /fix/state`): the masters then start with an \
             empty state; or use another path"
        )
    );
}
