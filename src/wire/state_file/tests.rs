//! The text of a state: how it looks, that nothing gets lost in it, and what is said of one that
//! makes no sense.

use proptest::prelude::*;

use super::*;
use crate::wire::{Inventory, doubts};

const OURS: &str = include_str!("../../../tests/fuzz/corpus/state_file/ours");

fn problems(text: &str) -> Vec<String> {
    StateFile::parse(text).unwrap_err()
}

#[test]
fn it_reads_what_it_prints_and_an_operator_can_too() {
    let file = StateFile::parse(OURS).unwrap();
    assert_eq!(
        Inventory::of(&file.records).to_string(),
        "2 agents, 1 released, history of 3, 1 unreadable"
    );
    let printed = file.print();
    assert_eq!(StateFile::parse(&printed), Ok(file.clone()));
    let without = |text: &str| -> String {
        text.lines()
            .filter(|line| !line.contains("checksum") && !line.contains("\"bytes\""))
            .collect()
    };
    assert_eq!(without(&printed), without(OURS));
    let other_layout: serde_json::Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(StateFile::parse(&other_layout.to_string()), Ok(file), "the layout does not matter");
}

#[test]
fn what_this_version_does_not_know_stays_as_it_is() {
    let record = encode_record(&Record::Released(ReleasedRecord {
        at: 7,
        vtep_ip: Some([44, 128, 0, 1].into()),
        vtep_ip6: None,
        overlays: Vec::new(),
    }));
    // A field that a later version may add.
    let later = [&*record, &[0xa2, 0x06, 1, b'x']].concat();
    let records = vec![
        (Key::Agent([10, 0, 0, 1].into()), record),
        (Key::Agent([10, 0, 0, 2].into()), later),
        (Key::Agent([10, 0, 0, 3].into()), vec![0xff, 0]),
        (Key::History(0), Vec::new()),
        (Key::History(u64::MAX), b"damaged".to_vec()),
    ];
    let unknown = vec![("03ff".to_owned(), b"later".to_vec())];
    let counts = Counts { epoch: 1, version: 2 };
    let file = StateFile { records, unknown, from: "a \"store\"".to_owned(), counts };
    let printed = file.print();
    assert!(printed.contains("it holds more than this version knows"), "{printed}");
    assert_eq!(StateFile::parse(&printed), Ok(file));
}

#[test]
fn every_problem_is_named() {
    let text = OURS
        .replace(r#""vtep_ip":"44.128.0.1","vtep_ip6""#, r#""vtep_ip6""#)
        .replace("192.168.0.0/25", "192.168.0.1/25")
        .replace("10.0.0.9\",\"at\"", "10.0.0.8\",\"at\"")
        .replace("\"configured\"", "\"lost\"")
        .replace("ff00", "ff0");
    assert_eq!(
        problems(&text),
        [
            "agents[0]: vtep_ip: missing",
            "agents[1]: overlays[0].subnet: '192.168.0.1/25' has host bits set: write 192.168.0.0/25",
            "history[1]: event: 'lost' is none",
            "bytes[0]: bytes: two hexadecimal digits for each byte are expected",
        ]
    );
    let twice = OURS.replace("10.0.0.9\",\"at\"", "10.0.0.8\",\"at\"");
    assert_eq!(
        problems(&twice),
        ["released[0]: agent 10.0.0.8 is also agents[1]: remove one of them"]
    );
    let unknown_key = OURS.replace("\"underlay\"", "\"overlay\"");
    assert_eq!(problems(&unknown_key), ["agents[0]: unknown field `overlay`"]);
}

#[test]
fn a_file_that_was_damaged_is_told_from_one_that_was_edited() {
    let printed = StateFile::parse(OURS).unwrap().print();
    let edited = printed.replace("44.128.0.3", "44.128.0.4");
    let said = problems(&edited);
    assert!(
        said[0].starts_with("checksum: is 'crc32:")
            && said[0].ends_with(
                "': the file was damaged or edited; if it is as it should be, remove the line with \
                 the checksum"
            ),
        "{said:?}"
    );
    let is_sum = |line: &&str| line.contains("checksum");
    let lines: Vec<&str> = edited.lines().filter(|line| !is_sum(line)).collect();
    assert!(StateFile::parse(&lines.join("\n")).is_ok());
    for length in [printed.len() - 2, printed.len() / 2, 20] {
        assert!(problems(&printed[..length])[0].starts_with("EOF while parsing"), "{length}");
    }
}

#[test]
fn another_form_or_version_is_refused() {
    let version = OURS.replace("\"form_version\": 1", "\"form_version\": 2, \"new\": []");
    assert_eq!(
        problems(&version),
        ["form_version: it was written by a later version of mesos-overlay (form 2, this one \
             knows 1): run that version"]
    );
    let form = OURS.replace("mesos-overlay state", "another");
    assert!(is_state_file(&form) && !is_state_file("{\"agents\":[]}"));
    assert_eq!(
        problems(&form),
        ["form: is 'another': a file of `mesos-overlay export` says 'mesos-overlay state'"]
    );
}

#[test]
fn counts_that_no_state_has_come_to_are_refused() {
    let damaged = OURS.replace("\"version\": 12,", "\"version\": 18446744073709551615,");
    assert_eq!(
        problems(&damaged),
        [
            "no state has come to version 18446744073709551615: put that of a backup in its place, or \
          0, from which it is counted anew"
        ]
    );
}

#[test]
fn two_agents_with_one_ipv6_vtep_are_told() {
    let second = "\"vtep_ip\":\"44.128.0.1\",\"overlays\"";
    let both =
        OURS.replace(second, "\"vtep_ip\":\"44.128.0.2\",\"vtep_ip6\":\"fd01:a::1\",\"overlays\"");
    let doubts = doubts(&StateFile::parse(&both).unwrap().records);
    assert_eq!(doubts[1], "agents 10.0.0.7 and 10.0.0.8 both have the VTEP address fd01:a::1");
}

#[test]
fn what_a_master_would_set_aside_is_told() {
    assert_eq!(
        doubts(&StateFile::parse(OURS).unwrap().records),
        [
            "agent 10.0.0.10 is unreadable: malformed mesos.modules.overlay.record.AgentRecord: \
             failed to decode Protobuf message: invalid wire type value: 7",
            "agents 10.0.0.7 and 10.0.0.8 both have the VTEP address 44.128.0.1",
            "192.168.0.0/25 of agent 10.0.0.8 overlaps 192.168.0.0/24 of agent 10.0.0.7",
        ]
    );
}

proptest! {
    #[test]
    fn no_bytes_get_lost(
        records in prop::collection::btree_map(
            (any::<bool>(), any::<u32>()), prop::collection::vec(any::<u8>(), 0..40), 0..10)
    ) {
        let key = |(is_agent, number): (bool, u32)| {
            if is_agent { Key::Agent(number.into()) } else { Key::History(number.into()) }
        };
        let mut records: Vec<_> = records.into_iter().map(|(it, bytes)| (key(it), bytes)).collect();
        records.sort();
        let file = StateFile { records, ..StateFile::default() };
        prop_assert_eq!(StateFile::parse(&file.print()), Ok(file));
    }
}
