//! The configurations that are refused, with their messages: one list for whoever wants to read it.

use crate::support::{NETWORK, Place};

#[test]
fn every_refusal_says_where_and_what_would_be_right() {
    let place = Place::new();
    let mut list = String::new();
    for (what, text) in configurations() {
        place.write("file.json", text);
        let outcome = place.run("check file.json");
        assert_eq!(outcome.code, Some(1), "{what}: {outcome:?}");
        list += &format!("# {what}\n{}{}\n", outcome.stdout, outcome.stderr);
    }
    insta::assert_snapshot!("refused", list);
}

/// What is wrong, and a file in which it is.
fn configurations() -> Vec<(&'static str, String)> {
    let changed = |from: &str, to: &str| {
        assert!(NETWORK.contains(from), "{from}");
        NETWORK.replacen(from, to, 1)
    };
    let name = |name: &str| changed("vxlan-1", name);
    vec![
        ("an empty file", String::new()),
        ("a comma too many", changed("24 } ] }", "24 }, ] }")),
        ("a comma too few", changed("\"44.128.0.0/16\",", "\"44.128.0.0/16\"")),
        ("an unknown key", changed("\"overlays\"", "\"overlay\"")),
        ("a key of another file", changed("\"overlays\"", "\"cni_dir\": \"/cni\", \"overlays\"")),
        ("a key given twice", changed("{ \"vtep", "{ \"vtep_subnet\": \"44.0.0.0/16\", \"vtep")),
        ("a missing key", changed("\"vtep_mac_oui\": \"70:B3:D5:00:00:00\",", "")),
        ("a number in quotes", changed("\"prefix\": 24", "\"prefix\": \"24\"")),
        ("no subnet", changed("192.168.0.0/17", "192.168.0.0")),
        ("host bits set", changed("192.168.0.0/17", "192.168.0.1/17")),
        ("a multicast OUI", changed("70:B3", "71:B3")),
        ("an OUI with a lower half", changed("D5:00:00:00", "D5:00:00:01")),
        ("a VTEP subnet that is too wide", changed("44.128.0.0/16", "44.0.0.0/7")),
        ("overlays that overlap", changed("192.168.128.0/17", "192.168.0.0/16")),
        ("an overlay over the VTEPs", changed("44.128.0.0/16", "192.168.0.0/24")),
        ("space that is not routed", changed("192.168.0.0/17", "127.0.0.0/17")),
        ("no prefix", changed(",   \"prefix\": 24", "")),
        ("a prefix that is too short", changed("\"prefix\": 24", "\"prefix\": 16")),
        ("a prefix that is too long", changed("\"prefix\": 24", "\"prefix\": 30")),
        ("an IPv6 prefix that is too long", changed("\"prefix\": 24", "\"prefix\": 24, \"subnet6\": \"fd01::/64\", \"prefix6\": 128")),
        ("no family", changed("\"subnet\": \"192.168.0.0/17\",   \"prefix\": 24", "\"enabled\": true")),
        ("a name that is given twice", name("vxlan-2")),
        ("an empty name", name("")),
        ("a reserved name", name("bridge")),
        ("a name that is too long", name("vxlan-overlay-1")),
        ("a name that is none of a file", name("vxlan/1")),
        ("an MTU that is too small", changed("\"overlays\"", "\"vtep_mtu\": 67, \"overlays\"")),
        ("no overlay", changed(NETWORK.split_once("[ ").unwrap().1, "] }")),
        ("an agent without a place for its files", "{ \"master\": \"10.0.0.1:5050\" }".to_owned()),
        ("everything at once", "{ \"network\": { \"vtep_subnet\": 1,\n  \"overlays\": [ { \"name\": \"a b\", \"subnet\": \"10.0.0.1/8\" } ] },\n  \"reuse_after\": \"soon\" }".to_owned()),
    ]
}
