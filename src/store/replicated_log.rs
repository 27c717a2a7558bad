//! A state in the replicated log of Mesos, where the C++ module keeps its own: that is taken over,
//! and what is written can be read by it again.
//!
//! The log holds one value, the whole state, which each commit writes anew. Its epoch is within it,
//! and besides Mesos itself lets one master write at a time: whoever reads it becomes the writer.

use std::fmt;
use std::sync::Arc;

use super::{
    Begin, Change, Counts, Epoch, Key, Loaded, Store, StoreError, Version, explain_counts,
};
use crate::master::assignments;
use crate::protocol::{Network, Record};
use crate::wire::{Foreign, LoggedState, decode_record};

/// A value that several masters share, of whom one can write. Calls wait, but not for ever.
pub trait Log: Send + Sync {
    /// Becomes the writer and reads the value, which is empty where it was never written.
    ///
    /// # Errors
    /// With the reason and what to do.
    fn fetch(&self) -> Result<Vec<u8>, String>;

    /// Writes the value. False if this is not the writer any more: then it is not written, unless
    /// the next writer finds it with a minority and completes it.
    ///
    /// # Errors
    /// With the reason; the value may or may not be written.
    fn store(&self, value: &[u8]) -> Result<bool, String>;
}

/// A state in a replicated log.
pub struct ReplicatedLogStore {
    log: Arc<dyn Log>,
    network: Arc<Network>,
    /// `None` before the first load, and after an error until the next.
    state: Option<LoggedState>,
}

impl ReplicatedLogStore {
    /// The state in `log`. The C++ module is shown what agents have of `network`.
    #[must_use]
    pub fn new(log: Arc<dyn Log>, network: Arc<Network>) -> Self {
        Self { log, network, state: None }
    }

    fn failed(&self, action: &'static str, reason: impl fmt::Display) -> StoreError {
        StoreError::Failed { store: self.to_string(), action, reason: reason.to_string() }
    }

    fn refused(&self, action: &'static str, reason: &str) -> StoreError {
        let place = "log:REPLICATED_LOG_DIR/overlay_replicated_log --config NETWORK_FILE";
        self.failed(action, explain_counts(reason, place))
    }

    fn apply(&self, state: &mut LoggedState, change: &Change) {
        match change {
            Change::Put(key, bytes) => {
                state.put(&key.to_bytes(), bytes.clone());
                self.show(state, *key, bytes);
            }
            Change::Delete(key) => {
                state.delete(&key.to_bytes());
                self.show(state, *key, &[]);
            }
        }
    }

    /// Says to the C++ module what it is to know of this record.
    fn show(&self, state: &mut LoggedState, key: Key, bytes: &[u8]) {
        let Key::Agent(ip) = key else { return };
        let shown = match decode_record(bytes) {
            Ok(Record::Agent(record)) => Some(assignments(&self.network, &record)),
            // It knows no agents that were deleted.
            Ok(Record::Released(_)) | Err(_) => None,
        };
        state.show_agent(ip, shown);
    }

    /// The same of all: it ends Mesos if an agent has something of an overlay that its
    /// configuration no longer has.
    fn show_all(&self, state: &mut LoggedState) {
        let entries: Vec<(Key, Vec<u8>)> = records(state).collect();
        for (key, bytes) in entries {
            self.show(state, key, &bytes);
        }
    }
}

/// Takes over what the C++ module has written since we did. Returns of how many agents.
pub(super) fn take_over(state: &mut LoggedState) -> usize {
    let ip_of = |key: &[u8]| match Key::from_bytes(key)? {
        Key::Agent(ip) => Some(ip),
        Key::History(_) => None,
    };
    let changes = state.foreign(ip_of);
    let count = changes.len();
    for (ip, change) in changes {
        match change {
            Foreign::Has(record) => state.put(&Key::Agent(ip).to_bytes(), record),
            Foreign::Forgotten => state.delete(&Key::Agent(ip).to_bytes()),
        }
    }
    count
}

/// The records that this version can read the keys of.
pub(super) fn records(state: &LoggedState) -> impl Iterator<Item = (Key, Vec<u8>)> {
    state.entries().filter_map(|(key, record)| Some((Key::from_bytes(key)?, record.to_vec())))
}

impl ReplicatedLogStore {
    /// Begins an epoch.
    pub(super) fn begin(&mut self, begin: Begin) -> Result<Loaded, StoreError> {
        self.state = None;
        let value = self.log.fetch().map_err(|reason| self.failed("load", reason))?;
        let no_state =
            |reason| self.failed("load", format!("{reason}: it is no state of an overlay master"));
        let mut state = LoggedState::decode(&value).map_err(no_state)?;
        let begun = state.counts().begun(begin);
        let Counts { epoch, version } = begun.map_err(|reason| self.refused("load", &reason))?;
        let count = take_over(&mut state);
        if count > 0 {
            log::info!(
                "{self}: the c++ module wrote it last: taking over its changes of {count} agents"
            );
        }
        self.show_all(&mut state);
        state.set_network(&self.network);
        state.set_counts(Counts { epoch, version });
        match self.log.store(&state.encode()) {
            Ok(true) => {}
            // As after each write that was late: the next attempt will become the writer.
            Ok(false) => return Err(self.failed("load", "this is not the writer any more")),
            Err(reason) => return Err(self.failed("load", reason)),
        }
        let records = records(&state).collect();
        self.state = Some(state);
        Ok(Loaded { epoch: Epoch(epoch), version: Version(version), records })
    }
}

impl Store for ReplicatedLogStore {
    fn load(&mut self) -> Result<Loaded, StoreError> {
        self.begin(Begin::Load)
    }

    fn commit(&mut self, epoch: Epoch, changes: &[Change]) -> Result<Version, StoreError> {
        let Some(mut state) = self.state.take() else {
            return Err(self.failed("commit", "an earlier operation failed: load the state first"));
        };
        let Counts { epoch: current, version } = state.counts();
        if current != epoch.0 {
            self.state = Some(state);
            return Err(StoreError::Deposed { store: self.to_string(), epoch: epoch.0 });
        }
        for change in changes {
            self.apply(&mut state, change);
        }
        let version = Version(version).next();
        let counts = Counts { epoch: current, version: version.0 };
        counts.check().map_err(|reason| self.refused("commit", &reason))?;
        state.set_counts(counts);
        match self.log.store(&state.encode()) {
            Ok(true) => {
                self.state = Some(state);
                Ok(version)
            }
            Ok(false) => Err(StoreError::Deposed { store: self.to_string(), epoch: epoch.0 }),
            Err(reason) => Err(self.failed("commit", reason)),
        }
    }
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

    use parking_lot::Mutex;
    use prost::Message as _;

    use super::*;
    use crate::config::parse_master;
    use crate::protocol::{AgentRecord, OverlayRecord};
    use crate::store::conformance::{self, Subject};
    use crate::wire::encode_record;
    use crate::wire::mesos::modules::overlay as pb;

    /// A log in memory: the value, and how often the writer changed.
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
        let text = include_str!("../../docs/network.json");
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
    fn it_conforms() {
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
            Subject { open, archive: None, forge, is_shared: true }
        });
    }

    #[test]
    fn the_cpp_module_can_read_what_we_write() {
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

    /// What the C++ module does with the value: it keeps the fields that it does not know, or
    /// drops them, and adds and removes agents.
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
    fn what_the_cpp_module_changed_is_taken_over() {
        for keeps_unknown in [true, false] {
            let shared = Arc::default();
            let mut ours = store(&shared);
            let epoch = ours.load().unwrap().epoch;
            let (one, two) =
                (agent("44.128.0.1", "192.168.0.0/24"), agent("44.128.0.2", "192.168.1.0/24"));
            ours.commit(epoch, &[put("10.0.0.7", &one), put("10.0.0.8", &two)]).unwrap();
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
            let had: Vec<_> = read(&loaded).into_iter().map(|(_, record)| record).collect();
            assert!(had.contains(&one) && had.contains(&two), "{had:?}");
        }
    }

    #[test]
    fn what_only_we_know_survives_the_cpp_module() {
        let shared = Arc::default();
        let mut ours = store(&shared);
        let epoch = ours.load().unwrap().epoch;
        let Record::Agent(mut record) = agent("44.128.0.1", "192.168.0.0/24") else { panic!() };
        // An overlay that is not configured now.
        record.overlays.push(OverlayRecord {
            name: "old".parse().unwrap(),
            subnet: Some("10.9.0.0/24".parse().unwrap()),
            subnet6: None,
        });
        let record = Record::Agent(record);
        ours.commit(epoch, &[put("10.0.0.7", &record)]).unwrap();
        edit(&shared, true, |_| {});
        let loaded = store(&shared).load().unwrap();
        assert_eq!(read(&loaded), [("agent 10.0.0.7".to_owned(), record)]);
        assert_eq!(loaded.epoch, Epoch(2));
        assert_eq!(loaded.version, Version(1));
    }

    #[test]
    fn the_cpp_module_is_not_shown_overlays_that_are_gone() {
        let shared: Arc<Mutex<Shared>> = Arc::default();
        let mut ours = store(&shared);
        let epoch = ours.load().unwrap().epoch;
        ours.commit(epoch, &[put("10.0.0.7", &agent("44.128.0.1", "192.168.0.0/24"))]).unwrap();
        let mut smaller = (*network()).clone();
        smaller.overlays.remove(0);
        let handle = Handle(Arc::clone(&shared), Mutex::new(0));
        let mut later = ReplicatedLogStore::new(Arc::new(handle), Arc::new(smaller));
        let loaded = later.load().unwrap();
        assert_eq!(read(&loaded).len(), 1, "we keep it");
        let state = pb::State::decode(shared.lock().value.as_slice()).unwrap();
        assert_eq!(state.agents.len(), 1);
        assert!(state.agents[0].overlays.is_empty());
        assert_eq!(store(&shared).load().unwrap().records, loaded.records, "and so on");
    }

    #[test]
    fn what_the_cpp_module_writes_carelessly_is_understood() {
        let shared: Arc<Mutex<Shared>> = Arc::default();
        let mut ours = store(&shared);
        let epoch = ours.load().unwrap().epoch;
        let record = agent("44.128.0.1", "192.168.0.0/24");
        ours.commit(epoch, &[put("10.0.0.7", &record)]).unwrap();
        edit(&shared, false, |state| {
            let overlay = &mut state.agents[0].overlays[0];
            overlay.subnet = Some("192.168.0.5/24".to_owned());
            overlay.info.as_mut().unwrap().subnet = Some("192.168.1.5/17".to_owned());
            // One that got nothing, as the C++ module keeps it.
            let mut bare = state.agents[0].clone();
            bare.ip = Some("10.0.0.8".to_owned());
            bare.overlays.clear();
            state.agents.push(bare);
        });
        // An agent whose error is no UTF-8, and which has nothing else of use.
        let state = [0x32, 3, 0x12, 1, 0xff];
        let agent = [b"\x0a\x0810.0.0.9\x12\x05".as_slice(), &state].concat();
        shared.lock().value.extend([&[0x12, 17][..], &agent].concat());
        let loaded = store(&shared).load().unwrap();
        let ips: Vec<_> = loaded.records.iter().map(|(key, _)| key.to_string()).collect();
        assert_eq!(ips, ["agent 10.0.0.7", "agent 10.0.0.9"]);
        assert_eq!(decode_record(&loaded.records[0].1).unwrap(), record);
    }

    #[test]
    fn a_damaged_value_is_refused_or_read_as_far_as_it_goes() {
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
            "replicated log: load: no state has come to version 18446744073709551615: it is damaged, \
             or somebody else has written it: put a copy of the state back; or stop all masters and \
             have it counted anew: `mesos-overlay export --from \
             log:REPLICATED_LOG_DIR/overlay_replicated_log --config NETWORK_FILE -o state.json`, \
             then `mesos-overlay import state.json --to \
             log:REPLICATED_LOG_DIR/overlay_replicated_log --config NETWORK_FILE --replace`"
        );
        own.version = Some(8);
        shared.lock().value = value(&own);
        let mut ours = store(&shared);
        let loaded = ours.load().unwrap();
        let expected = [(key("10.0.0.7"), b"other".to_vec()), (key("10.0.0.9"), b"last".to_vec())];
        assert_eq!((loaded.version, loaded.records.as_slice()), (Version(8), &expected[..]));
        ours.commit(loaded.epoch, &[Change::Delete(key("10.0.0.9"))]).unwrap();
        assert_eq!(store(&shared).load().unwrap().records, expected[..1]);
    }

    #[test]
    fn an_agent_of_the_cpp_module_that_makes_no_sense_is_not_lost() {
        let shared: Arc<Mutex<Shared>> = Arc::default();
        let mut ours = store(&shared);
        let epoch = ours.load().unwrap().epoch;
        ours.commit(epoch, &[put("10.0.0.7", &agent("44.128.0.1", "192.168.0.0/24"))]).unwrap();
        edit(&shared, false, |state| {
            state.agents[0].overlays[0].subnet = Some("nonsense".to_owned())
        });
        let loaded = store(&shared).load().unwrap();
        assert_eq!(loaded.records.len(), 1);
        assert!(decode_record(&loaded.records[0].1).is_err(), "the master sets it aside");
    }
}
