//! What is done with bytes of strangers, as functions that take any bytes and panic if a promise is
//! broken. They know nothing of who calls them: the tests here, or libFuzzer with a line for each,
//! `fuzz_target!(|data: &[u8]| targets::message(data));`.

#![expect(unreachable_pub, reason = "libFuzzer calls them from a program of its own")]

use std::fmt::Display;
use std::sync::{Arc, LazyLock, Mutex};

use bytes::Bytes;
use mesos_network_overlay::config::{parse, parse_agent, parse_master};
use mesos_network_overlay::http::{route_agent, route_master};
use mesos_network_overlay::protocol::{MessageKind, Network, Record, ReleasedRecord};
use mesos_network_overlay::store::{
    Change, Counts, Key, Log, ReplicatedLogStore, Store as _, read_form, reread_znode,
};
use mesos_network_overlay::transport::UNKNOWN_BODY_MAX;
use mesos_network_overlay::transport::libprocess::read_message;
use mesos_network_overlay::wire::mesos::modules::overlay::State;
use mesos_network_overlay::wire::{
    MESSAGE_NAMES, Replica, StateFile, decode_candidate, decode_history, decode_message,
    decode_record, decode_replica, decode_state, encode_candidate, encode_history, encode_message,
    encode_record, encode_replica, encode_state, implausible_candidate, kind_of, parse_json,
    print_json,
};

/// A target and its name, which is also the name of its corpus.
pub(crate) type Target = (&'static str, fn(&[u8]));

/// Every target.
pub(crate) const ALL: [Target; 13] = [
    ("message", message),
    ("record", record),
    ("history", history),
    ("znode", znode),
    ("replicated_log", replicated_log),
    ("replica", replica),
    ("state_file", state_file),
    ("candidate", candidate),
    ("json", json),
    ("http", http),
    ("request", request),
    ("master_config", master_config),
    ("agent_config", agent_config),
];

/// Longest sentence of an error: it may quote what came, but not all of it.
const SENTENCE_MAX: usize = 2000;

fn is_one_line(error: &impl Display) {
    let text = error.to_string();
    assert!(!text.is_empty() && !text.contains(char::is_control), "{text:?} is not one line");
    assert!(text.len() <= SENTENCE_MAX, "{} bytes: {text}", text.len());
}

fn first_line(data: &[u8]) -> (&[u8], &[u8]) {
    let end = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    (&data[..end], data.get(end + 1..).unwrap_or_default())
}

/// The first byte chooses the message, the others are its body.
pub fn message(data: &[u8]) {
    let Some((&choice, body)) = data.split_first() else { return };
    let name = MESSAGE_NAMES[usize::from(choice) % MESSAGE_NAMES.len()];
    match decode_message(name, body) {
        Ok(message) => {
            is_one_line(&message);
            let (same_name, bytes) = encode_message(&message);
            assert_eq!(same_name, name);
            assert_eq!(decode_message(name, &bytes), Ok(message));
        }
        Err(error) => is_one_line(&error),
    }
}

/// What a store held of an agent.
pub fn record(data: &[u8]) {
    match decode_record(data) {
        Ok(record) => assert_eq!(decode_record(&encode_record(&record)), Ok(record)),
        Err(error) => is_one_line(&error),
    }
}

/// What a store held of the history.
pub fn history(data: &[u8]) {
    match decode_history(data) {
        Ok(entries) => {
            let bytes: Vec<u8> = entries.iter().flat_map(encode_history).collect();
            assert_eq!(decode_history(&bytes), Ok(entries));
        }
        Err(error) => is_one_line(&error),
    }
}

/// A line with the path of a znode below the state in ZooKeeper; what follows is its content.
pub fn znode(data: &[u8]) {
    let (path, content) = first_line(data);
    let Ok(path) = std::str::from_utf8(path) else { return };
    let Some((path, content)) = reread_znode(path, content) else { return };
    assert_eq!(reread_znode(&path, &content), Some((path, content)));
}

/// A replicated log, with whoever wants as its writer.
#[derive(Clone)]
struct Value(Arc<Mutex<Vec<u8>>>);

impl Log for Value {
    fn fetch(&self) -> Result<Vec<u8>, String> {
        Ok(self.0.lock().expect("nobody has panicked").clone())
    }

    fn store(&self, value: &[u8]) -> Result<bool, String> {
        value.clone_into(&mut self.0.lock().expect("nobody has panicked"));
        Ok(true)
    }
}

/// The value of the replicated log of Mesos, by whichever module it was written.
pub fn replicated_log(data: &[u8]) {
    static NETWORK: LazyLock<Arc<Network>> = LazyLock::new(|| {
        let text = include_str!("../../docs/network.json");
        let (config, _) = parse_master("network.json", text).expect("the example can be read");
        Arc::new(config.network)
    });
    let log = Value(Arc::new(Mutex::new(data.to_owned())));
    let open = || ReplicatedLogStore::new(Arc::new(log.clone()), Arc::clone(&NETWORK));
    let loaded = match open().load() {
        Ok(loaded) => loaded,
        Err(error) => return is_one_line(&error),
    };
    let mut again = open();
    let Ok(mut later) = again.load() else { return };
    assert!(later.epoch > loaded.epoch);
    assert_eq!(later.records, loaded.records, "what was taken over once is taken over");
    let key = Key::Agent([10, 9, 8, 7].into());
    let vtep_ip = Some([44, 128, 0, 9].into());
    let released = ReleasedRecord { at: 1, vtep_ip, vtep_ip6: None, overlays: Vec::new() };
    let record = encode_record(&Record::Released(released));
    let Ok(version) = again.commit(later.epoch, &[Change::Put(key, record.clone())]) else {
        return;
    };
    later.records.retain(|(one, _)| *one != key);
    later.records.push((key, record));
    later.records.sort();
    let last = match open().load() {
        Ok(last) => last,
        Err(error) => {
            let count = version.0.max(later.epoch.0);
            assert_eq!(count, Counts::MAX, "it was read before, and is refused: {error}");
            return is_one_line(&error);
        }
    };
    assert_eq!((last.version, last.records), (version, later.records));
}

/// The records of a replica of that log: of each a byte with the length of its key, the key, two
/// bytes with its own length, and the record.
pub fn replica(mut data: &[u8]) {
    let mut records = Vec::new();
    while let Some((&length, rest)) = data.split_first() {
        let Some((key, rest)) = rest.split_at_checked(length.into()) else { break };
        let Some((length, rest)) = rest.split_first_chunk::<2>() else { break };
        let length = usize::from(u16::from_be_bytes(*length)).min(rest.len());
        let (record, rest) = rest.split_at(length);
        records.push((key, record));
        data = rest;
    }
    match decode_replica(records) {
        Ok(Replica { value: None, .. }) => {}
        Ok(Replica { value: Some(value), .. }) => {
            let written = encode_replica(value.clone(), [7; 16]);
            let read = decode_replica(written.iter().map(|(key, it)| (&**key, &**it)));
            assert_eq!(read, Ok(Replica { value: Some(value), unlearned_at: None }));
        }
        Err(error) => is_one_line(&error),
    }
}

/// A file with a state, in whichever form.
pub fn state_file(data: &[u8]) {
    match read_form(data) {
        Ok(content) => {
            content.doubts.iter().for_each(is_one_line);
            let records = content.records;
            let file = StateFile { records, ..StateFile::default() };
            assert_eq!(StateFile::parse(&file.print()), Ok(file));
        }
        Err(problems) => {
            assert!(!problems.is_empty());
            problems.iter().for_each(is_one_line);
        }
    }
}

/// A byte that chooses the form; then what a master has written to stand for election.
pub fn candidate(data: &[u8]) {
    const LABELS: [&str; 4] = ["json.info", "info", "", "log"];
    let Some((&choice, content)) = data.split_first() else { return };
    let label = LABELS[usize::from(choice) % LABELS.len()];
    match decode_candidate(label, content) {
        Ok(candidate) => {
            if let Some(fault) = implausible_candidate(label, content, &candidate) {
                is_one_line(&fault);
            }
            let text = encode_candidate(&candidate);
            assert_eq!(decode_candidate("json.info", text.as_bytes()), Ok(candidate));
        }
        Err(error) => is_one_line(&error),
    }
}

/// What another master showed of its state.
pub fn json(data: &[u8]) {
    let state: State = match parse_json(data) {
        Ok(state) => state,
        Err(error) => return is_one_line(&error),
    };
    // What is printed has the defaults of fields that were not there.
    let printed = print_json(&state);
    let again: State = parse_json(printed.as_bytes()).expect("what is printed can be read");
    assert_eq!(print_json(&again), printed);
    match decode_state(&state) {
        Ok(checked) => assert_eq!(decode_state(&encode_state(&checked)), Ok(checked)),
        Err(error) => is_one_line(&error),
    }
}

/// What comes in on a connection, at once and in pieces.
pub fn http(data: &[u8]) {
    let body_max = |name: &str| kind_of(name).map_or(UNKNOWN_BODY_MAX, MessageKind::body_max);
    let whole = read_message(&[data], body_max);
    if let Err(refusal) = &whole {
        is_one_line(refusal);
    }
    if let Ok(Some(incoming)) = &whole {
        is_one_line(&incoming.from);
        for name in MESSAGE_NAMES {
            let _ = decode_message(name, &incoming.body);
        }
    }
    for cut in [data.len() / 3, data.len() / 2, data.len().saturating_sub(1)] {
        let (first, second) = data.split_at(cut);
        assert_eq!(read_message(&[first, second], body_max), whole, "cut at {cut}");
    }
}

/// A line with the target of a request; what follows is its body.
pub fn request(data: &[u8]) {
    let (target, body) = first_line(data);
    let body = Bytes::copy_from_slice(body);
    for method in ["GET", "POST"] {
        let request = ::http::Request::builder().method(method).uri(target).body(body.clone());
        let Ok(request) = request else { return };
        let responses = [route_master(&request).err(), route_agent(&request).err()];
        for response in responses.into_iter().flatten() {
            let text = String::from_utf8(response.body().to_vec()).expect("an error is text");
            // It goes to who asked, and to no log. A network that cannot be used has a line for
            // each of its problems.
            assert!(text.lines().all(|line| line.len() <= SENTENCE_MAX), "{text}");
        }
    }
}

/// A network file or `master_config`.
pub fn master_config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match parse_master("f", text) {
        Ok((config, warnings)) => {
            warnings.iter().for_each(is_one_line);
            let network = &config.network;
            assert!(!network.overlays.is_empty());
            let spaces =
                network.overlays.iter().flat_map(|overlay| [overlay.range, overlay.range6]);
            let mut spaces: Vec<_> = spaces.flatten().map(|range| range.subnet).collect();
            spaces.push(network.vtep_subnet);
            spaces.extend(network.vtep_subnet6);
            for (index, space) in spaces.iter().enumerate() {
                assert!(spaces[..index].iter().all(|other| !other.overlaps(space)), "{space}");
            }
        }
        Err(problems) => {
            assert!(!problems.as_slice().is_empty());
            problems.as_slice().iter().chain(problems.warnings()).for_each(is_one_line);
        }
    }
    let _ = parse("f", text);
}

/// `agent_config`.
pub fn agent_config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match parse_agent("f", text) {
        Ok((_, warnings)) => warnings.iter().for_each(is_one_line),
        Err(problems) => {
            assert!(!problems.as_slice().is_empty());
            problems.as_slice().iter().chain(problems.warnings()).for_each(is_one_line);
        }
    }
}
