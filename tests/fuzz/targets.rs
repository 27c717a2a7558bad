//! Fuzz targets: functions that decode untrusted bytes and panic if an invariant is violated. They
//! do not depend on their caller: the tests in `main.rs`, or libFuzzer with
//! `fuzz_target!(|data: &[u8]| targets::message(data));` for each target.

#![expect(unreachable_pub, reason = "libFuzzer calls the targets from a separate crate")]

use std::fmt::Display;
use std::sync::{Arc, LazyLock, Mutex};

use bytes::Bytes;
use libprocess::UNKNOWN_BODY_MAX;
use libprocess::read_message;
use mesos_network_overlay::http::{route_agent, route_master};
use overlay_cni::config::NetworkConfig;
use overlay_cni::names::PortNames;
use overlay_cni::request::Attachment;
use overlay_config::{parse, parse_agent, parse_master};
use overlay_store::{Change, Log, ReplicatedLogStore, Store as _, parse_state, roundtrip_znode};
use overlay_types::protocol::{MessageKind, Network, Record, ReleasedRecord};
use overlay_types::state::{Counts, Key};
use overlay_wire::mesos::modules::overlay::State;
use overlay_wire::{
    MESSAGE_NAMES, Replica, StateFile, append_seal, decode_candidate, decode_history,
    decode_message, decode_message_reserving, decode_record, decode_replica, decode_state,
    encode_candidate, encode_history, encode_message, encode_record, encode_replica, encode_state,
    implausible_candidate, kind_of, parse_json, print_json, split_seal,
};

/// The name of a target, which is also the name of its corpus, and its function.
pub(crate) type Target = (&'static str, fn(&[u8]));

/// Every target.
pub(crate) const ALL: [Target; 16] = [
    ("message", message),
    ("seal", seal),
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
    ("cni_config", cni_config),
    ("cni_environment", cni_environment),
];

/// Longest error message, in bytes. A message may quote a part of the input.
const MESSAGE_BYTES_MAX: usize = 2000;

fn assert_one_line(error: &impl Display) {
    let text = error.to_string();
    assert!(!text.is_empty() && !text.contains(char::is_control), "{text:?} is not one line");
    assert!(text.len() <= MESSAGE_BYTES_MAX, "{} bytes: {text}", text.len());
}

fn first_line(data: &[u8]) -> (&[u8], &[u8]) {
    let end = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    (&data[..end], data.get(end + 1..).unwrap_or_default())
}

/// Decompressed bytes for which the targets reserve memory.
const EXPANDED_MAX: usize = 128 * 1024;

/// Decodes a message. The first byte selects the message type, the other bytes are its body.
pub fn message(data: &[u8]) {
    let Some((&selector, body)) = data.split_first() else { return };
    let name = MESSAGE_NAMES[usize::from(selector) % MESSAGE_NAMES.len()];
    let mut reserve = |expanded: usize| expanded <= EXPANDED_MAX;
    match decode_message_reserving(name, body, &mut reserve) {
        Ok(message) => {
            assert_one_line(&message);
            let (encoded_name, bytes) = encode_message(&message);
            assert_eq!(encoded_name, name);
            assert_eq!(decode_message(name, &bytes), Ok(message));
        }
        Err(error) => assert_one_line(&error),
    }
}

/// Finds the seal of a message.
pub fn seal(data: &[u8]) {
    match split_seal(data) {
        Ok((content, Some(seal))) => {
            let mut again = content.to_vec();
            append_seal(&mut again, &seal);
            assert_eq!(split_seal(&again), Ok((content, Some(seal))));
        }
        Ok((content, None)) => assert_eq!(content, data),
        Err(error) => assert_one_line(&error),
    }
}

/// Decodes an agent record of a store.
pub fn record(data: &[u8]) {
    match decode_record(data) {
        Ok(record) => assert_eq!(decode_record(&encode_record(&record)), Ok(record)),
        Err(error) => assert_one_line(&error),
    }
}

/// Decodes a history record of a store.
pub fn history(data: &[u8]) {
    match decode_history(data) {
        Ok(entries) => {
            let bytes: Vec<u8> = entries.iter().flat_map(encode_history).collect();
            assert_eq!(decode_history(&bytes), Ok(entries));
        }
        Err(error) => assert_one_line(&error),
    }
}

/// Decodes a znode of the ZooKeeper store. The first line is its path, the rest is its content.
pub fn znode(data: &[u8]) {
    let (path, content) = first_line(data);
    let Ok(path) = std::str::from_utf8(path) else { return };
    let Some((path, content)) = roundtrip_znode(path, content) else { return };
    assert_eq!(roundtrip_znode(&path, &content), Some((path, content)));
}

/// A replicated log in memory, without leader election.
#[derive(Clone)]
struct MemoryLog(Arc<Mutex<Vec<u8>>>);

impl Log for MemoryLog {
    fn fetch(&self) -> Result<Vec<u8>, String> {
        Ok(self.0.lock().expect("the mutex is not poisoned").clone())
    }

    fn store(&self, value: &[u8]) -> Result<bool, String> {
        value.clone_into(&mut self.0.lock().expect("the mutex is not poisoned"));
        Ok(true)
    }
}

/// Decodes the value of the replicated log of Mesos, written by either module.
pub fn replicated_log(data: &[u8]) {
    static NETWORK: LazyLock<Arc<Network>> = LazyLock::new(|| {
        let text = include_str!("../golden/network.json");
        let (config, _) = parse_master("network.json", text).expect("the example is valid");
        Arc::new(config.network)
    });
    let log = MemoryLog(Arc::new(Mutex::new(data.to_owned())));
    let open = || ReplicatedLogStore::new(Arc::new(log.clone()), Arc::clone(&NETWORK));
    let loaded = match open().load() {
        Ok(loaded) => loaded,
        Err(error) => return assert_one_line(&error),
    };
    let mut second = open();
    let Ok(mut reloaded) = second.load() else { return };
    assert!(reloaded.epoch > loaded.epoch);
    assert_eq!(reloaded.records, loaded.records, "a second load returns the same records");
    let key = Key::Agent([10, 9, 8, 7].into());
    let vtep_ip = Some([44, 128, 0, 9].into());
    let released = ReleasedRecord { at: 1, vtep_ip, vtep_ip6: None, overlays: Vec::new() };
    let record = encode_record(&Record::Released(released));
    let Ok(version) = second.commit(reloaded.epoch, &[Change::Put(key, record.clone())]) else {
        return;
    };
    reloaded.records.retain(|(other, _)| *other != key);
    reloaded.records.push((key, record));
    reloaded.records.sort();
    let last = match open().load() {
        Ok(last) => last,
        Err(error) => {
            let count = version.0.max(reloaded.epoch.0);
            assert_eq!(
                count,
                Counts::MAX,
                "the value was loaded before, and is refused now: {error}"
            );
            return assert_one_line(&error);
        }
    };
    assert_eq!((last.version, last.records), (version, reloaded.records));
}

/// Decodes the records of a replica of the replicated log. Each record is encoded as the length of
/// its key (one byte), the key, the length of the record (two bytes), and the record.
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
            let read = decode_replica(written.iter().map(|(key, record)| (&**key, &**record)));
            assert_eq!(read, Ok(Replica { value: Some(value), unlearned_at: None }));
        }
        Err(error) => assert_one_line(&error),
    }
}

/// Decodes a state file in any supported format.
pub fn state_file(data: &[u8]) {
    match parse_state(data) {
        Ok(content) => {
            content.warnings.iter().for_each(assert_one_line);
            let records = content.records;
            let file = StateFile { records, ..StateFile::default() };
            assert_eq!(StateFile::parse(&file.print()), Ok(file));
        }
        Err(problems) => {
            assert!(!problems.is_empty());
            problems.iter().for_each(assert_one_line);
        }
    }
}

/// Decodes an election candidate. The first byte selects the format, the rest is the content of the
/// znode.
pub fn candidate(data: &[u8]) {
    const LABELS: [&str; 4] = ["json.info", "info", "", "log"];
    let Some((&selector, content)) = data.split_first() else { return };
    let label = LABELS[usize::from(selector) % LABELS.len()];
    match decode_candidate(label, content) {
        Ok(candidate) => {
            if let Some(fault) = implausible_candidate(label, content, &candidate) {
                assert_one_line(&fault);
            }
            let text = encode_candidate(&candidate);
            assert_eq!(decode_candidate("json.info", text.as_bytes()), Ok(candidate));
        }
        Err(error) => assert_one_line(&error),
    }
}

/// Decodes the JSON state of a master.
pub fn json(data: &[u8]) {
    let state: State = match parse_json(data) {
        Ok(state) => state,
        Err(error) => return assert_one_line(&error),
    };
    // The output contains the default values of missing fields.
    let printed = print_json(&state);
    let reparsed: State = parse_json(printed.as_bytes()).expect("the output is valid");
    assert_eq!(print_json(&reparsed), printed);
    match decode_state(&state) {
        Ok(checked) => assert_eq!(decode_state(&encode_state(&checked)), Ok(checked)),
        Err(error) => assert_one_line(&error),
    }
}

/// Decodes the input of a connection, as one piece and as two pieces.
pub fn http(data: &[u8]) {
    let body_max = |name: &str| kind_of(name).map_or(UNKNOWN_BODY_MAX, MessageKind::body_max);
    let complete = read_message(&[data], body_max);
    if let Err(error) = &complete {
        assert_one_line(error);
    }
    if let Ok(Some(incoming)) = &complete {
        assert_one_line(&incoming.from);
        for name in MESSAGE_NAMES {
            let _ = decode_message(name, &incoming.body);
        }
    }
    for cut in [data.len() / 3, data.len() / 2, data.len().saturating_sub(1)] {
        let (first, second) = data.split_at(cut);
        assert_eq!(read_message(&[first, second], body_max), complete, "cut at {cut}");
    }
}

/// Routes an HTTP request. The first line is its target, the rest is its body.
pub fn request(data: &[u8]) {
    let (target, body) = first_line(data);
    let body = Bytes::copy_from_slice(body);
    for method in ["GET", "POST"] {
        let request = ::http::Request::builder().method(method).uri(target).body(body.clone());
        let Ok(request) = request else { return };
        let responses = [route_master(&request).err(), route_agent(&request).err()];
        for response in responses.into_iter().flatten() {
            let text =
                String::from_utf8(response.body().to_vec()).expect("an error response is text");
            // The response goes to the client only and is not logged, so it may have several lines:
            // one for each problem of a configuration.
            assert!(text.lines().all(|line| line.len() <= MESSAGE_BYTES_MAX), "{text}");
        }
    }
}

/// Parses a network file or a `master_config`.
pub fn master_config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match parse_master("f", text) {
        Ok((config, warnings)) => {
            warnings.iter().for_each(assert_one_line);
            let network = &config.network;
            assert!(!network.overlays.is_empty());
            let subnets =
                network.overlays.iter().flat_map(|overlay| [overlay.range, overlay.range6]);
            let mut subnets: Vec<_> = subnets.flatten().map(|range| range.subnet).collect();
            subnets.push(network.vtep_subnet);
            subnets.extend(network.vtep_subnet6);
            for (index, subnet) in subnets.iter().enumerate() {
                assert!(subnets[..index].iter().all(|other| !other.overlaps(subnet)), "{subnet}");
            }
        }
        Err(problems) => {
            assert!(!problems.as_slice().is_empty());
            problems.as_slice().iter().chain(problems.warnings()).for_each(assert_one_line);
        }
    }
    let _ = parse("f", text);
}

/// Parses an `agent_config`.
pub fn agent_config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match parse_agent("f", text) {
        Ok((_, warnings)) => warnings.iter().for_each(assert_one_line),
        Err(problems) => {
            assert!(!problems.as_slice().is_empty());
            problems.as_slice().iter().chain(problems.warnings()).for_each(assert_one_line);
        }
    }
}

/// Reads the standard input of the CNI plugin: the configuration with the arguments of a task.
pub fn cni_config(data: &[u8]) {
    match NetworkConfig::parse(data) {
        Ok(config) => {
            if let Err(error) = config.mesos() {
                assert_one_line(&error);
            }
            for range in &config.ranges {
                let gateway = range.gateway().address();
                assert!(range.subnet().contains(gateway) && !range.has(gateway));
                let first = range.allocate(&[].into(), None);
                assert!(first.is_some_and(|first| range.has(first)), "{first:?}");
            }
        }
        Err(error) => {
            assert_one_line(&error);
            assert!(!error.to_json("1.0.0").contains(char::is_control));
        }
    }
}

/// Reads the container and the interface of the CNI plugin: a line of the data for each.
pub fn cni_environment(data: &[u8]) {
    let (container, interface) = first_line(data);
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    match Attachment::new(&text(container), &text(interface)) {
        Ok(attachment) => {
            assert!(!attachment.container.as_str().contains('/'));
            let network = "vxlan-1".parse().expect("a name");
            let names = PortNames::new(&network, &attachment).expect("a name for each attachment");
            assert!(names.alias.len() < 256);
        }
        Err(error) => assert_one_line(&error),
    }
}
