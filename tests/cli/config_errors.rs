//! Invalid configurations with their error messages, collected in one snapshot for review.

use crate::support::{NETWORK, TestDir};

#[test]
fn invalid_config_names_position_and_valid_value() {
    let dir = TestDir::new();
    let mut report = String::new();
    for (fault, text) in invalid_configs() {
        dir.write("file.json", text);
        let outcome = dir.run("check file.json");
        assert_eq!(outcome.code, Some(1), "{fault}: {outcome:?}");
        report += &format!("# {fault}\n{}{}\n", outcome.stdout, outcome.stderr);
    }
    insta::assert_snapshot!("config_errors", report);
}

/// Returns pairs of a fault and a configuration file with that fault.
fn invalid_configs() -> Vec<(&'static str, String)> {
    let changed = |from: &str, to: &str| {
        assert!(NETWORK.contains(from), "{from}");
        NETWORK.replacen(from, to, 1)
    };
    let name = |name: &str| changed("vxlan-1", name);
    vec![
        ("an empty file", String::new()),
        ("an extra comma", changed("24 } ] }", "24 }, ] }")),
        ("a missing comma", changed("\"44.128.0.0/16\",", "\"44.128.0.0/16\"")),
        ("an unknown key", changed("\"overlays\"", "\"overlay\"")),
        ("a key that belongs in an agent_config", changed("\"overlays\"", "\"cni_dir\": \"/cni\", \"overlays\"")),
        ("a key given twice", changed("{ \"vtep", "{ \"vtep_subnet\": \"44.0.0.0/16\", \"vtep")),
        ("a missing key", changed("\"vtep_mac_oui\": \"70:B3:D5:00:00:00\",", "")),
        ("a number in quotes", changed("\"prefix\": 24", "\"prefix\": \"24\"")),
        ("a subnet without a prefix length", changed("192.168.0.0/17", "192.168.0.0")),
        ("host bits set", changed("192.168.0.0/17", "192.168.0.1/17")),
        ("a multicast OUI", changed("70:B3", "71:B3")),
        ("an OUI with a lower half", changed("D5:00:00:00", "D5:00:00:01")),
        ("a VTEP subnet that is too wide", changed("44.128.0.0/16", "44.0.0.0/7")),
        ("overlays that overlap", changed("192.168.128.0/17", "192.168.0.0/16")),
        ("an overlay that overlaps the VTEP subnet", changed("44.128.0.0/16", "192.168.0.0/24")),
        ("a loopback subnet", changed("192.168.0.0/17", "127.0.0.0/17")),
        ("no prefix", changed(",   \"prefix\": 24", "")),
        ("a prefix that is too short", changed("\"prefix\": 24", "\"prefix\": 16")),
        ("a prefix that is too long", changed("\"prefix\": 24", "\"prefix\": 30")),
        ("an IPv6 prefix that is too long", changed("\"prefix\": 24", "\"prefix\": 24, \"subnet6\": \"fd01::/64\", \"prefix6\": 128")),
        ("neither an IPv4 nor an IPv6 subnet", changed("\"subnet\": \"192.168.0.0/17\",   \"prefix\": 24", "\"enabled\": true")),
        ("a name that is given twice", name("vxlan-2")),
        ("an empty name", name("")),
        ("a reserved name", name("bridge")),
        ("a name that is too long", name("vxlan-overlay-1")),
        ("a name with a slash", name("vxlan/1")),
        ("an MTU that is too small", changed("\"overlays\"", "\"vtep_mtu\": 67, \"overlays\"")),
        ("no overlay", changed(NETWORK.split_once("[ ").unwrap().1, "] }")),
        ("an agent without cni_dir", "{ \"master\": \"10.0.0.1:5050\" }".to_owned()),
        ("several errors in one file", "{ \"network\": { \"vtep_subnet\": 1,\n  \"overlays\": [ { \"name\": \"a b\", \"subnet\": \"10.0.0.1/8\" } ] },\n  \"reuse_after\": \"soon\" }".to_owned()),
    ]
}
