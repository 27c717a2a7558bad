//! A store in the replicated log of Mesos, which the C++ module uses too. This store imports the
//! state of the C++ module, and the C++ module can read what this store writes.
//!
//! The log holds one value, the complete state, and each commit writes a new value. The value
//! contains the epoch. In addition, Mesos lets only one master write at a time: the master that
//! read the log last is the writer.

use std::fmt;
use std::sync::Arc;

use overlay_types::assignment::build_assignments;
use overlay_types::protocol::{Network, Record};
use overlay_types::state::{Counts, Epoch, Key, StoreError, Version};
use overlay_wire::{ForeignChange, LoggedState, decode_record};
use parking_lot::Mutex;

use crate::key::KeyBytes as _;
use crate::{Change, EpochPurpose, Loaded, Store, replace_by_commit, with_counts_remedy};

/// A value that several masters share and one master can write. Calls block, with a timeout.
pub trait Log: Send + Sync {
    /// Becomes the writer and reads the value. A log that was never written has an empty value.
    ///
    /// # Errors
    /// With the reason and a remedy.
    fn fetch(&self) -> Result<Vec<u8>, String>;

    /// Writes the value. Returns false if another master became the writer: then the value is not
    /// written, unless the next writer finds it on a minority of replicas and completes the write.
    ///
    /// # Errors
    /// With the reason. The value may or may not be written.
    fn store(&self, value: &[u8]) -> Result<bool, String>;

    /// Checks without IO to other replicas that the files of this replica are still there.
    ///
    /// # Errors
    /// With the reason and a remedy.
    fn check(&self) -> Result<(), String> {
        Ok(())
    }
}

/// A store in a replicated log.
pub struct ReplicatedLogStore {
    log: Arc<dyn Log>,
    network: Arc<Network>,
    /// `None` before the first load, and after an error until the next load.
    state: Option<LoggedState>,
}

impl ReplicatedLogStore {
    /// Creates a handle on the state in `log`. The part of the value that the C++ module reads
    /// contains the allocations of each agent in `network`.
    #[must_use]
    pub fn new(log: Arc<dyn Log>, network: Arc<Network>) -> Self {
        Self { log, network, state: None }
    }

    fn store_error(&self, action: &'static str, reason: impl fmt::Display) -> StoreError {
        StoreError::Failed { store: self.to_string(), action, reason: reason.to_string() }
    }

    fn counts_error(&self, action: &'static str, reason: &str) -> StoreError {
        let uri = "log:REPLICATED_LOG_DIR/overlay_replicated_log --config NETWORK_FILE";
        self.store_error(action, with_counts_remedy(reason, uri))
    }

    fn apply(&self, state: &mut LoggedState, change: &Change) {
        match change {
            Change::Put(key, bytes) => {
                state.put(&key.to_bytes(), bytes.clone());
                self.update_cpp_agent(state, *key, bytes);
            }
            Change::Delete(key) => {
                state.delete(&key.to_bytes());
                self.update_cpp_agent(state, *key, &[]);
            }
        }
    }

    /// Writes the agent of this record to the part of the state that the C++ module reads.
    fn update_cpp_agent(&self, state: &mut LoggedState, key: Key, bytes: &[u8]) {
        let Key::Agent(ip) = key else { return };
        let shown = match decode_record(bytes) {
            Ok(Record::Agent(record)) => Some(build_assignments(&self.network, &record)),
            // The C++ module has no deleted agents.
            Ok(Record::Released(_)) | Err(_) => None,
        };
        state.set_agent(ip, shown);
    }

    /// Writes all agents to the part of the state that the C++ module reads. The C++ module ends
    /// mesos-master if an agent has an allocation of an overlay that is not configured.
    fn update_all_cpp_agents(&self, state: &mut LoggedState) {
        let entries: Vec<(Key, Vec<u8>)> = records(state).collect();
        for (key, bytes) in entries {
            self.update_cpp_agent(state, key, &bytes);
        }
    }
}

/// Imports the changes that the C++ module wrote after the last write of this program. Returns the
/// number of changed agents.
pub(super) fn import_foreign(state: &mut LoggedState) -> usize {
    let ip_of = |key: &[u8]| match Key::from_bytes(key)? {
        Key::Agent(ip) => Some(ip),
        Key::History(_) => None,
    };
    let changes = state.foreign_changes(ip_of);
    let count = changes.len();
    for (ip, change) in changes {
        match change {
            ForeignChange::Put(record) => state.put(&Key::Agent(ip).to_bytes(), record),
            ForeignChange::Deleted => state.delete(&Key::Agent(ip).to_bytes()),
        }
    }
    count
}

/// Returns the records whose keys this version can read.
pub(super) fn records(state: &LoggedState) -> impl Iterator<Item = (Key, Vec<u8>)> {
    state.entries().filter_map(|(key, record)| Some((Key::from_bytes(key)?, record.to_vec())))
}

impl ReplicatedLogStore {
    fn begin_epoch(&mut self, purpose: EpochPurpose) -> Result<Loaded, StoreError> {
        self.state = None;
        let value = self.log.fetch().map_err(|reason| self.store_error("load", reason))?;
        let no_state = |reason| {
            self.store_error("load", format!("{reason}: it is no state of an overlay master"))
        };
        let mut state = LoggedState::decode(&value).map_err(no_state)?;
        let begun = purpose.next_counts(state.counts());
        let Counts { epoch, version } =
            begun.map_err(|reason| self.counts_error("load", &reason))?;
        let count = import_foreign(&mut state);
        if count > 0 {
            log::info!(
                "{self}: the c++ module wrote the state last: imported its changes of {count} \
                 agents"
            );
        }
        self.update_all_cpp_agents(&mut state);
        state.set_network(&self.network);
        state.set_counts(Counts { epoch, version });
        match self.log.store(&state.encode()) {
            Ok(true) => {}
            // The next attempt to load becomes the writer again.
            Ok(false) => return Err(self.store_error("load", "another master became the writer")),
            Err(reason) => return Err(self.store_error("load", reason)),
        }
        let records = records(&state).collect();
        self.state = Some(state);
        Ok(Loaded { epoch: Epoch(epoch), version: Version(version), records })
    }
}

impl Store for ReplicatedLogStore {
    fn load(&mut self) -> Result<Loaded, StoreError> {
        self.begin_epoch(EpochPurpose::Load)
    }

    fn commit(&mut self, epoch: Epoch, changes: &[Change]) -> Result<Version, StoreError> {
        let Some(mut state) = self.state.take() else {
            return Err(
                self.store_error("commit", "an earlier operation failed: load the state first")
            );
        };
        let Counts { epoch: current, version } = state.counts();
        if current != epoch.0 {
            self.state = Some(state);
            return Err(StoreError::EpochEnded { store: self.to_string(), epoch: epoch.0 });
        }
        for change in changes {
            self.apply(&mut state, change);
        }
        let version = Version(version).next();
        let counts = Counts { epoch: current, version: version.0 };
        counts.check().map_err(|reason| self.counts_error("commit", &reason))?;
        state.set_counts(counts);
        match self.log.store(&state.encode()) {
            Ok(true) => {
                self.state = Some(state);
                Ok(version)
            }
            Ok(false) => Err(StoreError::EpochEnded { store: self.to_string(), epoch: epoch.0 }),
            Err(reason) => Err(self.store_error("commit", reason)),
        }
    }

    fn check(&mut self) -> Result<(), StoreError> {
        if self.state.is_none() {
            return Ok(());
        }
        let lost = self.log.check().err();
        lost.map_or(Ok(()), |reason| {
            self.state = None;
            Err(self.store_error("check", reason))
        })
    }
}

/// A log in memory with one writer.
struct MemoryLog(Mutex<Vec<u8>>);

impl Log for MemoryLog {
    fn fetch(&self) -> Result<Vec<u8>, String> {
        Ok(self.0.lock().clone())
    }

    fn store(&self, value: &[u8]) -> Result<bool, String> {
        value.clone_into(&mut self.0.lock());
        Ok(true)
    }
}

/// Returns the value of a log after `records` have replaced all records in `value`. Epoch and
/// version continue from `former`, the counts of the state that the records come from.
pub(super) fn replace_records(
    value: Vec<u8>,
    (records, former): (&[(Key, Vec<u8>)], Counts),
    network: Arc<Network>,
) -> Result<(Vec<u8>, Version), StoreError> {
    let log = Arc::new(MemoryLog(Mutex::new(value)));
    let mut store = ReplicatedLogStore::new(Arc::clone(&log) as Arc<dyn Log>, network);
    let loaded = store.begin_epoch(EpochPurpose::Replace(former))?;
    let replacement = replace_by_commit(&mut store, &loaded, records)?;
    let value = std::mem::take(&mut *log.0.lock());
    Ok((value, replacement.version))
}

impl fmt::Display for ReplicatedLogStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("replicated log")
    }
}

impl fmt::Debug for ReplicatedLogStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplicatedLogStore").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use overlay_config::parse_master;
    use overlay_types::protocol::{AgentRecord, OverlayRecord};
    use overlay_wire::encode_record;
    use overlay_wire::mesos::modules::overlay as pb;
    use prost::Message as _;

    use super::*;
    use crate::conformance::{self, StoreFixture};

    /// A log that several handles share: the value, and the number of the current writer.
    #[derive(Default)]
    struct Shared {
        value: Vec<u8>,
        writer: u64,
    }

    struct Handle(Arc<Mutex<Shared>>, Mutex<u64>);

    impl Log for Handle {
        fn fetch(&self) -> Result<Vec<u8>, String> {
            let mut shared = self.0.lock();
            shared.writer += 1;
            *self.1.lock() = shared.writer;
            Ok(shared.value.clone())
        }

        fn store(&self, value: &[u8]) -> Result<bool, String> {
            let mut shared = self.0.lock();
            let is_writer = shared.writer == *self.1.lock();
            if is_writer {
                shared.value = value.to_owned();
            }
            Ok(is_writer)
        }
    }

    fn network() -> Arc<Network> {
        let text = include_str!("../../../tests/golden/network.json");
        Arc::new(parse_master("network.json", text).unwrap().0.network)
    }

    fn store(shared: &Arc<Mutex<Shared>>) -> ReplicatedLogStore {
        let handle = Handle(Arc::clone(shared), Mutex::new(0));
        ReplicatedLogStore::new(Arc::new(handle), network())
    }

    fn agent(vtep: &str, subnet: &str) -> Record {
        let overlay = OverlayRecord {
            name: "vxlan-1".parse().unwrap(),
            subnet: Some(subnet.parse().unwrap()),
            subnet6: None,
        };
        Record::Agent(AgentRecord {
            vtep_ip: vtep.parse().unwrap(),
            vtep_ip6: None,
            overlays: vec![overlay],
            allocate_subnet: true,
            mesos_bridge: true,
            docker_bridge: false,
            underlay: None,
            direct_mac: None,
            authenticated: None,
        })
    }

    fn key(ip: &str) -> Key {
        Key::Agent(ip.parse().unwrap())
    }

    fn put(ip: &str, record: &Record) -> Change {
        Change::Put(key(ip), encode_record(record))
    }

    fn read(loaded: &Loaded) -> Vec<(String, Record)> {
        let record =
            |(key, bytes): &(Key, Vec<u8>)| (key.to_string(), decode_record(bytes).unwrap());
        loaded.records.iter().map(record).collect()
    }

    #[test]
    fn replicated_log_store_passes_conformance_suite() {
        conformance::check(&|| {
            let shared: Arc<Mutex<Shared>> = Arc::default();
            let forged = Arc::clone(&shared);
            let open = Box::new(move || Box::new(store(&shared)) as Box<dyn Store>);
            let forge = Box::new(move |counts| {
                let mut shared = forged.lock();
                let mut state = LoggedState::decode(&shared.value).unwrap();
                state.set_counts(counts);
                shared.value = state.encode();
            });
            StoreFixture { open, archive: None, forge, is_shared: true }
        });
    }

    #[test]
    fn committed_agent_is_readable_by_cpp_module() {
        let shared = Arc::default();
        let mut store = store(&shared);
        let epoch = store.load().unwrap().epoch;
        let record = agent("44.128.0.1", "192.168.0.0/24");
        store.commit(epoch, &[put("10.0.0.7", &record)]).unwrap();
        let state = pb::State::decode(shared.lock().value.as_slice()).unwrap();
        let network = state.network.unwrap();
        assert_eq!(network.vtep_subnet(), "44.128.0.0/16");
        assert_eq!(state.agents.len(), 1);
        let overlay = &state.agents[0].overlays[0];
        assert_eq!((state.agents[0].ip(), overlay.subnet()), ("10.0.0.7", "192.168.0.0/24"));
        assert_eq!(overlay.mesos_bridge.as_ref().unwrap().ip(), "192.168.0.0/25");
        assert_eq!(overlay.docker_bridge, None);
        let vxlan = overlay.backend.as_ref().unwrap().vxlan.as_ref().unwrap();
        assert_eq!(vxlan.vtep_mac(), "70:b3:d5:80:00:01");
        store.commit(epoch, &[Change::Delete(key("10.0.0.7"))]).unwrap();
        let state = pb::State::decode(shared.lock().value.as_slice()).unwrap();
        assert!(state.agents.is_empty());
    }

    /// Edits the value as the C++ module does: it keeps or drops unknown fields, and adds and
    /// removes agents.
    fn edit(shared: &Mutex<Shared>, keeps_unknown: bool, edit: impl FnOnce(&mut pb::State)) {
        let mut shared = shared.lock();
        let own = LoggedState::decode(&shared.value).unwrap();
        let mut state = pb::State::decode(shared.value.as_slice()).unwrap();
        edit(&mut state);
        let mut value = state.encode_to_vec();
        if keeps_unknown {
            value.extend(own.encode_own());
        }
        shared.value = value;
    }

    #[test]
    fn changes_of_cpp_module_are_imported_on_load() {
        for keeps_unknown in [true, false] {
            let shared = Arc::default();
            let mut own_store = store(&shared);
            let epoch = own_store.load().unwrap().epoch;
            let (one, two) =
                (agent("44.128.0.1", "192.168.0.0/24"), agent("44.128.0.2", "192.168.1.0/24"));
            own_store.commit(epoch, &[put("10.0.0.7", &one), put("10.0.0.8", &two)]).unwrap();
            edit(&shared, keeps_unknown, |state| {
                let mut third = state.agents.remove(0);
                third.ip = Some("10.0.0.9".to_owned());
                state.agents.push(third);
            });
            let loaded = store(&shared).load().unwrap();
            let ips: BTreeSet<_> = read(&loaded).into_iter().map(|(key, _)| key).collect();
            assert_eq!(
                ips,
                BTreeSet::from(["agent 10.0.0.8".to_owned(), "agent 10.0.0.9".to_owned()])
            );
            let records: Vec<_> = read(&loaded).into_iter().map(|(_, record)| record).collect();
            assert!(records.contains(&one) && records.contains(&two), "{records:?}");
        }
    }

    #[test]
    fn overlay_unknown_to_cpp_module_survives_its_write() {
        let shared = Arc::default();
        let mut own_store = store(&shared);
        let epoch = own_store.load().unwrap().epoch;
        let Record::Agent(mut record) = agent("44.128.0.1", "192.168.0.0/24") else { panic!() };
        // This overlay is not configured.
        record.overlays.push(OverlayRecord {
            name: "old".parse().unwrap(),
            subnet: Some("10.9.0.0/24".parse().unwrap()),
            subnet6: None,
        });
        let record = Record::Agent(record);
        own_store.commit(epoch, &[put("10.0.0.7", &record)]).unwrap();
        edit(&shared, true, |_| {});
        let loaded = store(&shared).load().unwrap();
        assert_eq!(read(&loaded), [("agent 10.0.0.7".to_owned(), record)]);
        assert_eq!(loaded.epoch, Epoch(2));
        assert_eq!(loaded.version, Version(1));
    }

    #[test]
    fn removed_overlay_is_hidden_from_cpp_module() {
        let shared: Arc<Mutex<Shared>> = Arc::default();
        let mut own_store = store(&shared);
        let epoch = own_store.load().unwrap().epoch;
        own_store
            .commit(epoch, &[put("10.0.0.7", &agent("44.128.0.1", "192.168.0.0/24"))])
            .unwrap();
        let mut smaller = (*network()).clone();
        smaller.overlays.remove(0);
        let handle = Handle(Arc::clone(&shared), Mutex::new(0));
        let mut later = ReplicatedLogStore::new(Arc::new(handle), Arc::new(smaller));
        let loaded = later.load().unwrap();
        assert_eq!(read(&loaded).len(), 1, "the record is kept");
        let state = pb::State::decode(shared.lock().value.as_slice()).unwrap();
        assert_eq!(state.agents.len(), 1);
        assert!(state.agents[0].overlays.is_empty());
        assert_eq!(store(&shared).load().unwrap().records, loaded.records, "after another load");
    }

    #[test]
    fn unnormalized_values_of_cpp_module_are_accepted() {
        let shared: Arc<Mutex<Shared>> = Arc::default();
        let mut own_store = store(&shared);
        let epoch = own_store.load().unwrap().epoch;
        let record = agent("44.128.0.1", "192.168.0.0/24");
        own_store.commit(epoch, &[put("10.0.0.7", &record)]).unwrap();
        edit(&shared, false, |state| {
            let overlay = &mut state.agents[0].overlays[0];
            overlay.subnet = Some("192.168.0.5/24".to_owned());
            overlay.info.as_mut().unwrap().subnet = Some("192.168.1.5/17".to_owned());
            // The C++ module keeps an agent without allocations like this.
            let mut bare = state.agents[0].clone();
            bare.ip = Some("10.0.0.8".to_owned());
            bare.overlays.clear();
            state.agents.push(bare);
        });
        // This agent has an error text that is not UTF-8, and no allocation.
        let state = [0x32, 3, 0x12, 1, 0xff];
        let agent = [b"\x0a\x0810.0.0.9\x12\x05".as_slice(), &state].concat();
        shared.lock().value.extend([&[0x12, 17][..], &agent].concat());
        let loaded = store(&shared).load().unwrap();
        let ips: Vec<_> = loaded.records.iter().map(|(key, _)| key.to_string()).collect();
        assert_eq!(ips, ["agent 10.0.0.7", "agent 10.0.0.9"]);
        assert_eq!(decode_record(&loaded.records[0].1).unwrap(), record);
    }

    #[test]
    fn forged_counts_are_refused_and_duplicate_keys_merged() {
        let shared: Arc<Mutex<Shared>> = Arc::default();
        let entry = |number: u8, record: &[u8]| {
            let key = Some(vec![1, 10, 0, 0, number]);
            pb::log::Entry { key, record: Some(record.to_owned()) }
        };
        let mut own = pb::log::Own { epoch: Some(4), version: Some(u64::MAX), entries: Vec::new() };
        own.entries = vec![entry(9, b"first"), entry(7, b"other"), entry(9, b"last")];
        let value = |own: &pb::log::Own| {
            let own = Some(own.clone());
            pb::log::LoggedState { own, ..Default::default() }.encode_to_vec()
        };
        shared.lock().value = value(&own);
        assert_eq!(
            store(&shared).load().unwrap_err().to_string(),
            "replicated log: load: impossible version 18446744073709551615: the state is \
             damaged, or a foreign process wrote it: restore a copy of the state; or stop all \
             masters and reset the counts: `mesos-overlay export --from \
             log:REPLICATED_LOG_DIR/overlay_replicated_log --config NETWORK_FILE --output state.json`, \
             then `mesos-overlay import state.json --to \
             log:REPLICATED_LOG_DIR/overlay_replicated_log --config NETWORK_FILE --replace`"
        );
        own.version = Some(8);
        shared.lock().value = value(&own);
        let mut own_store = store(&shared);
        let loaded = own_store.load().unwrap();
        let expected = [(key("10.0.0.7"), b"other".to_vec()), (key("10.0.0.9"), b"last".to_vec())];
        assert_eq!((loaded.version, loaded.records.as_slice()), (Version(8), &expected[..]));
        own_store.commit(loaded.epoch, &[Change::Delete(key("10.0.0.9"))]).unwrap();
        assert_eq!(store(&shared).load().unwrap().records, expected[..1]);
    }

    #[test]
    fn invalid_agent_of_cpp_module_is_kept_undecodable() {
        let shared: Arc<Mutex<Shared>> = Arc::default();
        let mut own_store = store(&shared);
        let epoch = own_store.load().unwrap().epoch;
        own_store
            .commit(epoch, &[put("10.0.0.7", &agent("44.128.0.1", "192.168.0.0/24"))])
            .unwrap();
        edit(&shared, false, |state| {
            state.agents[0].overlays[0].subnet = Some("nonsense".to_owned())
        });
        let loaded = store(&shared).load().unwrap();
        assert_eq!(loaded.records.len(), 1);
        assert!(decode_record(&loaded.records[0].1).is_err(), "the master quarantines the record");
    }
}
