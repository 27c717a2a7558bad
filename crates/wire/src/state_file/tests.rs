//! The state file: its layout, the preservation of all records, and the problems of bad files.

use proptest::prelude::*;

use super::*;
use crate::{Inventory, find_conflicts};

const EXPORTED: &str = include_str!("../../../../tests/fuzz/corpus/state_file/ours");

fn problems(text: &str) -> Vec<String> {
    StateFile::parse(text).unwrap_err()
}

#[test]
fn print_and_parse_round_trip() {
    let file = StateFile::parse(EXPORTED).unwrap();
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
    assert_eq!(without(&printed), without(EXPORTED));
    let other_layout: serde_json::Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(StateFile::parse(&other_layout.to_string()), Ok(file), "the layout does not matter");
}

#[test]
fn unknown_and_unreadable_records_are_preserved() {
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
    assert!(printed.contains("it has fields that this version does not know"), "{printed}");
    assert_eq!(StateFile::parse(&printed), Ok(file));
}

#[test]
fn parse_reports_every_problem() {
    let text = EXPORTED
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
            "history[1]: event: 'lost' is not an event",
            "bytes[0]: bytes: two hexadecimal digits for each byte are expected",
        ]
    );
    let twice = EXPORTED.replace("10.0.0.9\",\"at\"", "10.0.0.8\",\"at\"");
    assert_eq!(
        problems(&twice),
        ["released[0]: agent 10.0.0.8 is also agents[1]: remove one of them"]
    );
    let unknown_key = EXPORTED.replace("\"underlay\"", "\"overlay\"");
    assert_eq!(problems(&unknown_key), ["agents[0]: unknown field `overlay`"]);
}

#[test]
fn parse_edited_file_requires_checksum_removal() {
    let printed = StateFile::parse(EXPORTED).unwrap().print();
    let edited = printed.replace("44.128.0.3", "44.128.0.4");
    let found = problems(&edited);
    assert!(
        found[0].starts_with("checksum: is 'crc32:")
            && found[0].ends_with(
                "': the file was damaged or edited; if the records are correct, remove the line with \
                 the checksum"
            ),
        "{found:?}"
    );
    let is_sum = |line: &&str| line.contains("checksum");
    let lines: Vec<&str> = edited.lines().filter(|line| !is_sum(line)).collect();
    assert!(StateFile::parse(&lines.join("\n")).is_ok());
    for length in [printed.len() - 2, printed.len() / 2, 20] {
        assert!(problems(&printed[..length])[0].starts_with("EOF while parsing"), "{length}");
    }
}

#[test]
fn parse_unknown_form_or_version_is_refused() {
    let version = EXPORTED.replace("\"form_version\": 1", "\"form_version\": 2, \"new\": []");
    assert_eq!(
        problems(&version),
        ["form_version: the file was written by a later version of mesos-overlay (form 2, this \
             version knows 1): run that version"]
    );
    let form = EXPORTED.replace("mesos-overlay state", "another");
    assert!(is_state_file(&form) && !is_state_file("{\"agents\":[]}"));
    assert_eq!(
        problems(&form),
        ["form: is 'another': a file of `mesos-overlay export` has 'mesos-overlay state'"]
    );
}

#[test]
fn parse_impossible_counts_are_refused() {
    let damaged = EXPORTED.replace("\"version\": 12,", "\"version\": 18446744073709551615,");
    assert_eq!(
        problems(&damaged),
        ["impossible version 18446744073709551615: write the number from a backup, or 0 to \
             restart the count"]
    );
}

#[test]
fn find_conflicts_reports_shared_ipv6_vtep() {
    let second = "\"vtep_ip\":\"44.128.0.1\",\"overlays\"";
    let both = EXPORTED
        .replace(second, "\"vtep_ip\":\"44.128.0.2\",\"vtep_ip6\":\"fd01:a::1\",\"overlays\"");
    let conflicts = find_conflicts(&StateFile::parse(&both).unwrap().records);
    assert_eq!(conflicts[1], "agents 10.0.0.7 and 10.0.0.8 both have the VTEP address fd01:a::1");
}

#[test]
fn find_conflicts_reports_records_to_quarantine() {
    assert_eq!(
        find_conflicts(&StateFile::parse(EXPORTED).unwrap().records),
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
    fn print_and_parse_preserve_all_bytes(
        records in prop::collection::btree_map(
            (any::<bool>(), any::<u32>()), prop::collection::vec(any::<u8>(), 0..40), 0..10)
    ) {
        let key = |(is_agent, number): (bool, u32)| {
            if is_agent { Key::Agent(number.into()) } else { Key::History(number.into()) }
        };
        let mut records: Vec<_> = records.into_iter().map(|(seed, bytes)| (key(seed), bytes)).collect();
        records.sort();
        let file = StateFile { records, ..StateFile::default() };
        prop_assert_eq!(StateFile::parse(&file.print()), Ok(file));
    }
}
