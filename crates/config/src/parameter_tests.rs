//! The parameters of the Mesos modules: every key, the precedence, and the full text of messages.

use std::path::PathBuf;
use std::time::Duration;

use proptest::prelude::*;

use super::document::FILE_MAX;
use super::keys::{AGENT_MODULE, MASTER_MODULE, Schema};
use super::tests::{filled, lines};
use super::*;

type Pairs<'a> = &'a [(&'a str, &'a str)];
type Parsed<T> = Result<(T, Vec<Problem>), Problems>;

const OVERLAYS: &str = r#"[{"name":"a","subnet":"10.0.0.0/16","prefix":24}]"#;
const NETWORK: Pairs<'_> = &[
    ("vtep_subnet", "44.128.0.0/16"),
    ("vtep_mac_oui", "70:B3:D5:00:00:00"),
    ("overlays", OVERLAYS),
];

/// Every parameter of the master module that is a key: a valid value, an invalid value, and the
/// message about the invalid value.
const MASTER_KEYS: &[(&str, &str, &str, &str)] = &[
    (
        "vtep_subnet",
        "10.9.0.0/16",
        "44.128.0.0",
        "'44.128.0.0' is no subnet: write address/length, as in 192.168.0.0/17 or fd01:b::/64",
    ),
    (
        "vtep_subnet6",
        "fd01:a::/64",
        "44.128.0.0/16",
        "'44.128.0.0/16' is an IPv4 subnet: write it as 'vtep_subnet', or an IPv6 subnet here",
    ),
    (
        "vtep_mac_oui",
        "70:B3:D6:00:00:00",
        "\"70:B3:D5:00:00:00\"",
        "'\"70:B3:D5:00:00:00\"' is no MAC address: write six bytes in hexadecimal, as in \
         70:B3:D5:00:00:00",
    ),
    ("vtep_mtu", "1450", "many", "'many' is no number: write 68 to 65535"),
    ("vtep_vni", "7", "16777216", "16777216 is no VXLAN network identifier: write 0 to 16777215"),
    (
        "vtep_name",
        "vtep7",
        "tunnel",
        "'tunnel' does not begin with 'vtep': NetworkManager and systemd-networkd ignore only \
         devices with this prefix; write another name",
    ),
    ("vtep_port", "4789", "0", "0 is no UDP port: write 1 to 65535"),
    (
        "overlays",
        r#"[{"name":"b","subnet":"10.0.0.0/16","prefix":24}]"#,
        "[]",
        "is empty: write at least one overlay, with name, subnet and prefix",
    ),
    ("network", r#"{"vtep_mtu":1450}"#, "7", "is a number: write an object in { }"),
    ("zk", r#"{"quorum":2}"#, "[]", "is a list: write an object in { }"),
    (
        "replicated_log_dir",
        "/var/lib/mesos",
        "",
        "is empty: write a path such as \"/var/lib/mesos/overlay_replicated_log\"",
    ),
    (
        "replicated_log_timeout",
        "5mins",
        "5",
        "'5' is no duration: write a string with number and unit, such as \"5mins\"",
    ),
    (
        "reuse_after",
        "2h",
        "soon",
        "'soon' is no duration: write a string with number and unit, such as \"1h\"",
    ),
    (
        "store",
        "memory",
        "Memory",
        "is no store: write file, memory, zk://HOST:PORT,…/PATH, or file:///PATH of a file that holds \
         such an address",
    ),
    (
        "work_dir",
        "/w",
        "w",
        "'w' is relative: write a path from /, such as \"/var/lib/mesos-overlay\"",
    ),
    ("limits", r#"{"connections":2000}"#, "[]", "is a list: write an object in { }"),
    ("acls", r#"{"read":"ANY","write":["ops"]}"#, "[]", "is a list: write an object in { }"),
    ("hostnames", r#"["overlay.example.com"]"#, "true", "is a boolean: write a list in [ ]"),
    (
        "credentials",
        "file:///c",
        "c",
        "'c' is relative: write a path from /, such as \"/etc/mesos-overlay/credentials\"",
    ),
    (
        "url",
        "zk://u:secret@a:2181/mesos",
        "u:secret@a:2181",
        "is no zk:// address: write the address of ZooKeeper, such as \"zk://10.0.0.1:2181/mesos\"",
    ),
    ("quorum", "2", "0", "0 is out of range: write 1 to 100"),
    ("session_timeout", "20", "20secs", "20secs is no whole number: write 1 to 3600"),
    ("connections", "20000", "0", "0 is out of range: write 16 to 1000000"),
    ("connections_per_address", "32", "0", "0 is out of range: write 4 to 1000000"),
    ("http_connections", "50", "0", "0 is out of range: write 4 to 100000"),
    ("http_connections_per_address", "8", "0", "0 is out of range: write 1 to 100000"),
    ("request_bytes", "100000000", "0", "0 is out of range: write 4194304 to 68719476736"),
    (
        "request_bytes_per_address",
        "5000000",
        "0",
        "0 is out of range: write 4194304 to 68719476736",
    ),
    ("response_bytes", "100000000", "0", "0 is out of range: write 1048576 to 68719476736"),
    (
        "response_bytes_per_address",
        "2000000",
        "0",
        "0 is out of range: write 1048576 to 68719476736",
    ),
    ("requests", "20", "0", "0 is out of range: write 4 to 10000"),
    ("requests_per_address", "4", "0", "0 is out of range: write 1 to 10000"),
    ("messages_per_second", "30000", "0", "0 is out of range: write 10 to 1000000"),
    ("messages_per_second_per_address", "50", "0", "0 is out of range: write 1 to 1000000"),
    ("registrations_per_second", "6000", "0", "0 is out of range: write 10 to 1000000"),
    ("registrations_per_second_per_address", "2", "0", "0 is out of range: write 1 to 1000000"),
    ("unsent_bytes", "100000000", "0", "0 is out of range: write 1048576 to 68719476736"),
    ("unsent_bytes_per_address", "100000", "0", "0 is out of range: write 65536 to 1073741824"),
    ("connects", "2000", "0", "0 is out of range: write 16 to 100000"),
    ("connects_per_address", "4", "0", "0 is out of range: write 1 to 100000"),
    (
        "request_timeout",
        "7s",
        "7",
        "'7' is no duration: write a string with number and unit, such as \"30s\"",
    ),
    (
        "write_timeout",
        "7s",
        "7",
        "'7' is no duration: write a string with number and unit, such as \"30s\"",
    ),
    (
        "http_idle_timeout",
        "7s",
        "7",
        "'7' is no duration: write a string with number and unit, such as \"30s\"",
    ),
];

/// Every parameter of the agent module that is a key: a valid value, an invalid value, and the
/// message about the invalid value.
const AGENT_KEYS: &[(&str, &str, &str, &str)] = &[
    (
        "master",
        "zk://u:secret@a:2181/mesos",
        "u:secret",
        "is no address of a master: write HOST:PORT, zk://HOST:PORT/PATH or file:///PATH",
    ),
    ("cni_dir", "/c", "c", "'c' is relative: write a path from /, such as \"/var/lib/mesos/cni\""),
    (
        "cni_data_dir",
        "/d",
        "d",
        "'d' is relative: write a path from /, such as \"/var/run/cni/networks\"",
    ),
    (
        "cni_plugins_dir",
        "/a:/b",
        "/a:b",
        "contains the relative path 'b': write paths from / with ':' between them",
    ),
    (
        "cni_plugin",
        "overlay",
        "calico",
        "'calico' is not a valid value: write \"bridge\" or \"overlay\"",
    ),
    ("port_mapper", "false", "no", "'no' is no boolean: write true or false"),
    (
        "docker",
        "null",
        "bin/docker",
        "'bin/docker' is relative: write a path from /, or a name without '/'",
    ),
    (
        "network_config",
        r#" {"mesos_bridge":false} "#,
        r#""{}""#,
        "is a string: write an object in { }",
    ),
    ("max_configuration_attempts", "7", "-7", "-7 is negative: write 1 to 1000"),
    ("verify_interval", "90s", "2days", "'2days' is out of range: write 1s to 1day"),
    ("dataplane", "external", "", "is empty: write \"vxlan\" or \"external\""),
    (
        "underlay",
        "fd00::5",
        "fe80",
        "'fe80' is no IPv6 address: write an IPv6 address of this host, such as \"fd00::5\"",
    ),
    (
        "firewall",
        "none",
        "ufw",
        "'ufw' is not a valid value: write \"auto\", \"nftables\", \"iptables\" or \"none\"",
    ),
    ("masquerade", "false", "no", "'no' is no boolean: write true or false"),
    ("isolate_overlays", "true", "yes", "'yes' is no boolean: write true or false"),
    ("overlay_ingress", "open", "all", "'all' is not a valid value: write \"open\" or \"closed\""),
    ("known_agents_only", "false", "no", "'no' is no boolean: write true or false"),
    (
        "forwarding",
        "untracked",
        "fast",
        r#"'fast' is not a valid value: write "tracked", "untracked" or "shortcut""#,
    ),
    ("vxlan_checksum", "false", "no", "'no' is no boolean: write true or false"),
    ("host_settings", "false", "no", "'no' is no boolean: write true or false"),
    ("refuse_collisions", "false", "no", "'no' is no boolean: write true or false"),
    ("direct_routing", "auto", "on", "'on' is not a valid value: write \"off\" or \"auto\""),
    ("probe_rate", "100", "101", "101 is out of range: write 0 to 100"),
    ("repair_offloads", "true", "no", "'no' is no boolean: write true or false"),
    (
        "state_dir",
        "/s",
        "s",
        "'s' is relative: write a path from /, such as \"/var/lib/mesos-overlay\"",
    ),
    ("limits", r#"{"connections":2000}"#, "[]", "is a list: write an object in { }"),
    ("acls", r#"{"read":"ANY","write":["ops"]}"#, "[]", "is a list: write an object in { }"),
    ("hostnames", r#"["overlay.example.com"]"#, "true", "is a boolean: write a list in [ ]"),
    (
        "credential",
        "/c",
        "file://c",
        "'c' is relative: write a path from /, such as \"/etc/mesos-overlay/credential\"",
    ),
    ("allocate_subnet", "false", "", "'' is no boolean: write true or false"),
    ("mesos_bridge", "false", "False", "'False' is no boolean: write true or false"),
    ("docker_bridge", "false", "0", "'0' is no boolean: write true or false"),
    (
        "overlay_mtu",
        "1400",
        "18446744073709551616",
        "18446744073709551616 is out of range: write 68 to 65535",
    ),
    ("command_timeout", "30000", "", "'' is no number: write 100 to 3600000 milliseconds"),
    ("enable_ipv6", "false", "null", "'null' is no boolean: write true or false"),
    ("connections", "20000", "0", "0 is out of range: write 16 to 1000000"),
    ("connections_per_address", "32", "0", "0 is out of range: write 4 to 1000000"),
    ("http_connections", "50", "0", "0 is out of range: write 4 to 100000"),
    ("http_connections_per_address", "8", "0", "0 is out of range: write 1 to 100000"),
    ("request_bytes", "100000000", "0", "0 is out of range: write 4194304 to 68719476736"),
    (
        "request_bytes_per_address",
        "5000000",
        "0",
        "0 is out of range: write 4194304 to 68719476736",
    ),
    ("response_bytes", "100000000", "0", "0 is out of range: write 1048576 to 68719476736"),
    (
        "response_bytes_per_address",
        "2000000",
        "0",
        "0 is out of range: write 1048576 to 68719476736",
    ),
    ("requests", "20", "0", "0 is out of range: write 4 to 10000"),
    ("requests_per_address", "4", "0", "0 is out of range: write 1 to 10000"),
    ("messages_per_second", "30000", "0", "0 is out of range: write 10 to 1000000"),
    ("messages_per_second_per_address", "50", "0", "0 is out of range: write 1 to 1000000"),
    ("unsent_bytes", "100000000", "0", "0 is out of range: write 1048576 to 68719476736"),
    ("unsent_bytes_per_address", "100000", "0", "0 is out of range: write 65536 to 1073741824"),
    ("connects", "2000", "0", "0 is out of range: write 16 to 100000"),
    ("connects_per_address", "4", "0", "0 is out of range: write 1 to 100000"),
    (
        "request_timeout",
        "7s",
        "7",
        "'7' is no duration: write a string with number and unit, such as \"30s\"",
    ),
    (
        "write_timeout",
        "7s",
        "7",
        "'7' is no duration: write a string with number and unit, such as \"30s\"",
    ),
    (
        "http_idle_timeout",
        "7s",
        "7",
        "'7' is no duration: write a string with number and unit, such as \"30s\"",
    ),
];

#[test]
fn master_parameters_include_every_key() {
    assert_table_covers(&MASTER_MODULE, MASTER_KEYS);
    for &(key, good, bad, message) in MASTER_KEYS {
        let (config, _) = master(&with(NETWORK, key, good), None).expect(key);
        assert_ne!(config, master(NETWORK, None).unwrap().0, "{key}");
        let problems = master(&with(NETWORK, key, bad), None).expect_err(key);
        assert_eq!(problems.to_string(), format!("parameter '{key}': {message}"));
    }
}

#[test]
fn agent_parameters_include_every_key() {
    assert_table_covers(&AGENT_MODULE, AGENT_KEYS);
    let base: Pairs<'_> = &[("master", "10.0.0.1:5050"), ("cni_dir", "/var/lib/mesos/cni")];
    // `cni_plugin` needs `cni_plugins_dir`.
    let with_plugins = with(base, "cni_plugins_dir", "/p");
    for &(key, good, bad, message) in AGENT_KEYS {
        let base = if key == "cni_plugin" { &with_plugins } else { base };
        let (config, _) = agent(&with(base, key, good), None).expect(key);
        assert_ne!(config, agent(base, None).unwrap().0, "{key}");
        let problems = agent(&with(base, key, bad), None).expect_err(key);
        assert_eq!(problems.to_string(), format!("parameter '{key}': {message}"));
    }
}

/// Checks that the table has every parameter of `schema` except the names of files, `authentication`,
/// which needs a file of credentials, and, for the agent, the limits of registrations.
fn assert_table_covers(schema: &Schema, table: &[(&str, &str, &str, &str)]) {
    let is_tested = |name: &&str| {
        !["master_config", "agent_config", "authentication"].contains(name)
            && (*schema.names().next().unwrap_or_default() != *"agent_config"
                || !name.starts_with("registrations"))
    };
    let known: Vec<_> = schema.names().filter(is_tested).collect();
    let tested: Vec<_> = table.iter().map(|row| row.0).collect();
    assert_eq!(tested, known);
}

#[test]
fn master_parameters_without_file_equal_file() {
    let file = r#"{"network":{$V,"vtep_mtu":1430,"overlays":[$A]},"reuse_after":"2h",
        "zk":{"url":"zk://a:2181/mesos","quorum":2},"replicated_log_dir":"/d","store":"memory"}"#;
    let file = filled(file);
    let (expected, _) = parse_master("f", &file).unwrap();
    let parameters: &[Pairs<'_>] = &[
        NETWORK,
        &[("vtep_mtu", "1430"), ("reuse_after", "2h"), ("url", "zk://a:2181/mesos")],
        &[("quorum", "2"), ("replicated_log_dir", "/d"), ("store", "memory")],
    ];
    let (config, warnings) = master(&parameters.concat(), None).unwrap();
    assert_eq!(config, expected);
    assert_eq!(warnings, [], "the module uses all of it");
    assert_eq!(master(&[("master_config", "/f")], Some(&file)).unwrap().0, expected);
    assert_eq!(master(&[("overlays", "/f")], Some(&file)).unwrap().0, expected);
}

#[test]
fn parameter_overrides_only_its_key_in_file() {
    let network = filled(r#"{$V,"vtep_mtu":1430,"overlays":[$A]}"#);
    let master_config =
        format!(r#"{{"network":{network},"zk":{{"quorum":2,"session_timeout":20}}}}"#);
    let parameters =
        [("overlays", "/f"), ("vtep_subnet", "10.9.0.0/16"), ("quorum", "3"), ("store", "memory")];
    for file in [&network, &master_config] {
        let (config, _) = master(&parameters, Some(file)).unwrap();
        assert_eq!(config.network.vtep_subnet.to_string(), "10.9.0.0/16");
        assert_eq!(config.network.vtep_mtu.unwrap().bytes(), 1430);
        assert_eq!(config.network.overlays.len(), 1);
        assert_eq!(config.store, StoreKind::Memory);
        let zk = config.zk.unwrap();
        assert_eq!(zk.quorum, Some(3));
        let timeout = if *file == network { 10 } else { 20 };
        assert_eq!(zk.session_timeout, Duration::from_secs(timeout));
    }
    let file = r#"{"cni_dir":"/f","master":"f:1","network_config":{"overlay_mtu":1400,
        "command_timeout":20000}}"#;
    let parameters = [("agent_config", "/f"), ("overlay_mtu", "1300"), ("master", "p:1")];
    let (config, _) = agent(&parameters, Some(file)).unwrap();
    assert_eq!(config.options.overlay_mtu.map(overlay_types::addr::Mtu::bytes), Some(1300));
    assert_eq!(config.options.command_timeout, Duration::from_secs(20));
    assert_eq!((config.master.as_deref(), config.cni_dir), (Some("p:1"), PathBuf::from("/f")));
}

#[test]
fn key_parameter_overrides_object_parameter_and_file() {
    let network = filled(r#"{$V,"vtep_mtu":1430,"overlays":[$A]}"#);
    let inline = network.replace("\"a\"", "\"b\"");
    let parameters = [("overlays", "/f"), ("network", &*inline), ("vtep_mtu", "1440")];
    let (config, _) = master(&parameters, Some(&network)).unwrap();
    assert_eq!(config.network.overlays[0].name.as_str(), "b");
    assert_eq!(config.network.vtep_mtu.unwrap().bytes(), 1440);
    let parameters = [("master_config", "/f"), ("overlays", &OVERLAYS.replace("\"a\"", "\"c\""))];
    let (config, _) = master(&parameters, Some(&network)).unwrap();
    assert_eq!(config.network.overlays[0].name.as_str(), "c");
    // A parameter also applies to an object that is null in the file.
    let (config, _) = agent(
        &[("agent_config", "/f"), ("master", "m:1"), ("enable_ipv6", "false")],
        Some(r#"{"cni_dir":"/c","network_config":null}"#),
    )
    .unwrap();
    assert!(!config.options.enable_ipv6);
}

#[test]
fn master_file_returns_parameter_that_names_file() {
    let file = |pairs: Pairs<'_>| master_file(&owned(pairs));
    let named = |key: &str, path: &str| Some((key.to_owned(), PathBuf::from(path)));
    assert_eq!(file(&[("store", "file"), ("overlays", "/etc/o")]), named("overlays", "/etc/o"));
    assert_eq!(file(&[("master_config", "/m")]), named("master_config", "/m"));
    let both: Pairs<'_> = &[("overlays", OVERLAYS), ("master_config", "m")];
    assert_eq!(file(both), named("master_config", "m"));
    for pairs in [&[("overlays", " [")], &[("overlays", "{}")], &[("overlays", "")]] {
        assert_eq!(file(pairs), None);
    }
    assert_eq!(file(NETWORK), None);
    assert_eq!(file(&[("agent_config", "/a")]), None);
    assert_eq!(agent_file(&owned(&[("agent_config", "/a")])), named("agent_config", "/a"));
    assert_eq!(agent_file(&owned(&[("overlays", "/a")])), None);
}

#[test]
fn environment_applies_only_without_parameter_and_key() {
    let log: Pairs<'_> = &[NETWORK, &[("replicated_log_dir", "/d")]].concat();
    let zk = |pairs: Pairs<'_>, zk: &str, quorum: &str| {
        let (config, _) = master_in(pairs, None, &environment("", zk, quorum)).unwrap();
        let zk = config.zk.map(|zk| (zk.url, zk.quorum));
        (zk, config.from_environment)
    };
    let url = |url: &str| Some(format!("zk://{url}"));
    assert_eq!(
        zk(NETWORK, "zk://e/m", "two"),
        (None, vec![]),
        "only the replicated log needs ZooKeeper"
    );
    assert_eq!(zk(log, "", ""), (None, vec![]));
    assert_eq!(
        zk(log, "zk://e/m", "2"),
        (Some((url("e/m"), Some(2))), vec!["MESOS_ZK", "MESOS_QUORUM"])
    );
    assert_eq!(
        zk(&with(log, "quorum", "3"), "zk://e/m", "two"),
        (Some((url("e/m"), Some(3))), vec!["MESOS_ZK"])
    );
    assert_eq!(
        zk(&with(log, "zk", r#"{"url":"zk://p/m","quorum":null}"#), "zk://e/m", "2"),
        (Some((url("p/m"), Some(2))), vec!["MESOS_QUORUM"])
    );

    let base: Pairs<'_> = &[("cni_dir", "/c")];
    let master_of = |pairs: Pairs<'_>, master: &str, zk: &str| {
        let (config, _) = agent_in(pairs, None, &environment(master, zk, "x")).unwrap();
        (config.master.unwrap(), config.from_environment)
    };
    let expected =
        |master: &str, variables: &[&'static str]| (master.to_owned(), variables.to_vec());
    assert_eq!(master_of(base, "m:1", "zk://e/m"), expected("m:1", &["MESOS_MASTER"]));
    assert_eq!(master_of(base, "", "zk://e/m"), expected("zk://e/m", &["MESOS_ZK"]));
    assert_eq!(master_of(&with(base, "master", "p:1"), "?", "?"), expected("p:1", &[]));
}

#[test]
fn debug_and_problems_of_parameters_hide_passwords() {
    let environment = environment("zk://u:secret@a/m", "zk://u:secret@a/m", "2");
    assert!(!format!("{environment:?}").contains("secret"));
    let base: Pairs<'_> = &[("master", "zk://u:secret@a"), ("url", "secret")];
    for key in ["master", "url", "zk", "nonsense"] {
        let pairs = with(base, key, "zk:u:secret@a");
        for problems in [master(&pairs, None).unwrap_err(), agent(&pairs, None).unwrap_err()] {
            assert!(!problems.to_string().contains("secret"), "{problems}");
        }
    }
}

#[test]
fn malformed_address_in_any_parameter_is_not_repeated() {
    let malformed = [
        "ZK://u:secret@a:1/p",
        "'zk://u:secret@a:1/p'",
        "\u{feff}zk://u:secret@a:1/p",
        "zk://u:secret%40a:1/p",
        "zk:u:secret@a",
        "/x:zk//u:secret@a",
        "zk://u:12/secret@a:1/p",
        "{ \"zk://u:secret@a:1/p\": 1 }",
        "[ \"zk://u:secret@a:1/p\" ]",
        "{ \"url\": zk://u:secret@a:1/p }",
        "{ \"url\": \"ZK://u:secret@a:1/p\" }",
    ];
    let names = |schema: &'static Schema| schema.names().chain(["zk://u:secret@a", "u:secret@a"]);
    for text in malformed {
        for (schema, is_master) in [(&MASTER_MODULE, true), (&AGENT_MODULE, false)] {
            for name in names(schema) {
                let pairs: Pairs<'_> = &[(name, text)];
                let problems = if is_master {
                    master(pairs, None).map(|parsed| parsed.1)
                } else {
                    agent(pairs, None).map(|parsed| parsed.1)
                };
                let shown = match problems {
                    Ok(warnings) => format!("{warnings:?}"),
                    Err(problems) => format!("{problems} {problems:?}"),
                };
                assert!(!shown.contains("secret"), "{name}: {shown}");
            }
        }
    }
}

/// Parameters, the content of the file `f`, the values of MESOS_MASTER, MESOS_ZK and MESOS_QUORUM,
/// and the expected messages.
type Row = (Pairs<'static>, Option<&'static str>, [&'static str; 3], &'static [&'static str]);
const UNSET: [&str; 3] = ["", "", ""];

#[test]
fn master_module_refusals_match_full_text() {
    for (pairs, file, [mesos_master, zk, quorum], expected) in MASTER_REFUSALS {
        let file = file.map(filled);
        let environment = environment(mesos_master, zk, quorum);
        let problems = master_in(pairs, file.as_deref(), &environment).expect_err(expected[0]);
        let messages: Vec<_> = problems.as_slice().iter().map(ToString::to_string).collect();
        assert_eq!(messages, *expected);
    }
}

#[test]
fn agent_module_refusals_match_full_text() {
    for (pairs, file, [mesos_master, zk, quorum], expected) in AGENT_REFUSALS {
        let environment = environment(mesos_master, zk, quorum);
        let problems = agent_in(pairs, *file, &environment).expect_err(expected[0]);
        let messages: Vec<_> = problems.as_slice().iter().map(ToString::to_string).collect();
        assert_eq!(messages, *expected);
    }
}

const MASTER_REFUSALS: &[Row] = &[
    (
        &[],
        None,
        UNSET,
        &[
            r#"parameter 'overlays': is missing: write the path of the network file, such as "/etc/mesos/overlays.json""#,
        ],
    ),
    (
        &[("vtep_mtu", "1450"), ("store", "memory")],
        None,
        UNSET,
        &[
            r#"parameter 'vtep_subnet': is missing: write the IPv4 space of the VTEPs, such as "198.19.0.0/16""#,
            r#"parameter 'vtep_mac_oui': is missing: write the upper half of MACs, such as "70:B3:D5:00:00:00""#,
            r#"parameter 'overlays': is missing: write the list of overlay networks, each with name, subnet and prefix"#,
        ],
    ),
    (
        &[("overlays", "/f"), ("master_config", "/g"), ("overlay", "/h"), ("overlays", "/i")],
        Some("{$V,\"overlays\":[$A]}"),
        UNSET,
        &[
            r#"parameter 'master_config': is given beside 'overlays', which names a file too: keep one of them"#,
            r#"parameter 'overlay': is no parameter: did you mean 'overlays'?"#,
            r#"parameter 'overlays': is given more than once: keep one of them"#,
        ],
    ),
    (
        &[("overlays", "{}"), ("cni_dir", "/c"), ("prefix", "24"), ("agent_config", "/a")],
        None,
        UNSET,
        &[
            r#"parameter 'overlays': is JSON: write the path of a file that holds it"#,
            r#"parameter 'cni_dir': is no parameter here: it belongs in agent_config"#,
            r#"parameter 'prefix': is no parameter here: it belongs in an overlay of 'overlays'"#,
            r#"parameter 'agent_config': is no parameter here: it belongs in the parameters of the agent module"#,
        ],
    ),
    (
        &[("", "x"), ("overlays", "/f\0"), ("vtep_mtu", "\u{1b}[31m")],
        None,
        UNSET,
        &[
            r#"parameter '': is no parameter: the parameters here are master_config, vtep_subnet, vtep_subnet6, vtep_mac_oui, vtep_mtu, vtep_vni, vtep_name, vtep_port, overlays, network, zk, replicated_log_dir, replicated_log_timeout, reuse_after, store, work_dir, limits, acls, hostnames, credentials, authentication, url, quorum, session_timeout, connections, connections_per_address, http_connections, http_connections_per_address, request_bytes, request_bytes_per_address, response_bytes, response_bytes_per_address, requests, requests_per_address, messages_per_second, messages_per_second_per_address, registrations_per_second, registrations_per_second_per_address, unsent_bytes, unsent_bytes_per_address, connects, connects_per_address, request_timeout, write_timeout, http_idle_timeout"#,
            r#"parameter 'overlays': '/f\0' contains a control character: remove it"#,
            r#"parameter 'vtep_mtu': '\u{1b}[31m' is no number: write 68 to 65535"#,
        ],
    ),
    (
        &[("overlays", "/f"), ("vtep_subnet", "44.128.0.1/16"), ("work_dir", "w")],
        Some("{\"vtep_mac_oui\":1,\n\"vtep_subnet\":2,\n\"overlays\":[$A],\n\"colour\":3}"),
        UNSET,
        &[
            r#"f:1:17: vtep_mac_oui: is a number: write a string such as "70:B3:D5:00:00:00""#,
            r#"f:4:1: colour: is no key: the keys here are vtep_subnet, vtep_subnet6, vtep_mac_oui, vtep_mtu, vtep_vni, vtep_name, vtep_port, overlays"#,
            r#"parameter 'vtep_subnet': '44.128.0.1/16' has host bits set: write 44.128.0.0/16"#,
            r#"parameter 'work_dir': 'w' is relative: write a path from /, such as "/var/lib/mesos-overlay""#,
        ],
    ),
    (
        &[("overlays", "/f"), ("vtep_mtu", "67")],
        Some("{,}"),
        UNSET,
        &[
            r#"f:1:2: bad JSON: no key here: write one in double quotes, and no comma after the last member"#,
            r#"parameter 'vtep_mtu': 67 is outside the kernel's range: write 68 to 65535"#,
        ],
    ),
    (
        &[("overlays", "/f"), ("vtep_mtu", "67")],
        None,
        UNSET,
        &[
            r#"parameter 'overlays': names a file that was not read: read it first"#,
            r#"parameter 'vtep_mtu': 67 is outside the kernel's range: write 68 to 65535"#,
        ],
    ),
    (
        &[("master_config", "/f"), ("vtep_mtu", "1450")],
        Some("{\"store\":\"file\"}"),
        UNSET,
        &[
            r#"f:1:1: network.vtep_subnet: is missing: write the IPv4 space of the VTEPs, such as "198.19.0.0/16""#,
            r#"f:1:1: network.vtep_mac_oui: is missing: write the upper half of MACs, such as "70:B3:D5:00:00:00""#,
            r#"f:1:1: network.overlays: is missing: write the list of overlay networks, each with name, subnet and prefix"#,
        ],
    ),
    (
        &[
            ("vtep_subnet", "10.0.0.0/16"),
            ("vtep_mac_oui", "70:B3:D5:00:00:00"),
            (
                "overlays",
                "[{\"name\":\"a\",\"subnet\":\"10.0.0.0/16\",\"prefix\":30},\n{\"nam\":\"\\ud800\"}]",
            ),
        ],
        None,
        UNSET,
        &[
            r#"parameter 'overlays': overlays[0].subnet: '10.0.0.0/16' of 'a' overlaps '10.0.0.0/16' of vtep_subnet: write a separate subnet"#,
            r#"parameter 'overlays': overlays[0].prefix: 30 is too long: half of an agent's subnet has to hold network, gateway, container and broadcast address; write 16 to 29"#,
            r#"parameter 'overlays': overlays[1].name: is missing: write the name of the network, such as "vxlan-1""#,
            r#"parameter 'overlays': overlays[1]: has no address space: write 'subnet' and 'prefix', or 'subnet6' and 'prefix6', or all"#,
            r#"parameter 'overlays': overlays[1].nam: is no key: did you mean 'name'?"#,
        ],
    ),
    (
        &[
            ("network", "{}"),
            ("zk", "{\"quorum\":\"2\",\"session_timeout\":0}"),
            ("overlays", "[{]"),
        ],
        None,
        UNSET,
        &[
            r#"parameter 'network': network.vtep_subnet: is missing: write the IPv4 space of the VTEPs, such as "198.19.0.0/16""#,
            r#"parameter 'network': network.vtep_mac_oui: is missing: write the upper half of MACs, such as "70:B3:D5:00:00:00""#,
            r#"parameter 'zk': zk.quorum: is a string: write a number without quotes, 1 to 100"#,
            r#"parameter 'zk': zk.session_timeout: 0 is out of range: write 1 to 3600"#,
            r#"parameter 'overlays': bad JSON at character 3: no key here: write one in double quotes, and no comma after the last member"#,
        ],
    ),
    (
        &[("network", ""), ("zk", "{} x"), ("quorum", "1.5")],
        None,
        UNSET,
        &[
            r#"parameter 'network': is empty: write a JSON object in { }"#,
            r#"parameter 'zk': bad JSON at character 4: text after the last bracket: remove it"#,
        ],
    ),
    (
        &[("network", "null"), ("replicated_log_dir", "/d")],
        None,
        ["", "10.0.0.1:2181", "two"],
        &[
            r#"parameter 'network': is null: write an object in { }"#,
            r#"environment variable MESOS_ZK: is no zk:// address: write the address of ZooKeeper, such as "zk://10.0.0.1:2181/mesos""#,
            r#"environment variable MESOS_QUORUM: 'two' is no number: write 1 to 100"#,
        ],
    ),
];

const AGENT_REFUSALS: &[Row] = &[
    (
        &[],
        None,
        UNSET,
        &[
            r#"parameter 'master': is missing: write the address of the master as the parameter 'master', as the key 'master' of agent_config or in the environment variable MESOS_MASTER, such as "zk://10.0.0.1:2181/mesos""#,
            r#"parameter 'cni_dir': is missing: write the directory where Mesos reads CNI networks, such as "/var/lib/mesos/cni""#,
        ],
    ),
    (
        &[("agent_config", "/f")],
        Some("{\"cni_dir\":\"/c\"}"),
        UNSET,
        &[
            r#"f:1:1: master: is missing: write the address of the master as the parameter 'master', as the key 'master' of agent_config or in the environment variable MESOS_MASTER, such as "zk://10.0.0.1:2181/mesos""#,
        ],
    ),
    (
        &[("cni_dir", "/c")],
        None,
        ["localhost", "zk://a:2181/mesos", ""],
        &[
            r#"environment variable MESOS_MASTER: is no address of a master: write HOST:PORT, zk://HOST:PORT/PATH or file:///PATH"#,
        ],
    ),
    (
        &[("cni-dir", "/c"), ("overlays", "/o"), ("master_config", "/m"), ("colour", "red")],
        None,
        ["m:1", "", ""],
        &[
            r#"parameter 'cni_dir': is missing: write the directory where Mesos reads CNI networks, such as "/var/lib/mesos/cni""#,
            r#"parameter 'cni-dir': is no parameter: did you mean 'cni_dir'?"#,
            r#"parameter 'overlays': is no parameter here: it belongs in the network"#,
            r#"parameter 'master_config': is no parameter here: it belongs in the parameters of the master module"#,
            r#"parameter 'colour': is no parameter: the parameters here are agent_config, master, cni_dir, cni_data_dir, cni_plugins_dir, cni_plugin, port_mapper, docker, network_config, max_configuration_attempts, verify_interval, dataplane, underlay, firewall, masquerade, isolate_overlays, overlay_ingress, known_agents_only, forwarding, vxlan_checksum, host_settings, refuse_collisions, direct_routing, probe_rate, repair_offloads, state_dir, limits, acls, hostnames, credential, authentication, allocate_subnet, mesos_bridge, docker_bridge, overlay_mtu, command_timeout, enable_ipv6, connections, connections_per_address, http_connections, http_connections_per_address, request_bytes, request_bytes_per_address, response_bytes, response_bytes_per_address, requests, requests_per_address, messages_per_second, messages_per_second_per_address, registrations_per_second, registrations_per_second_per_address, unsent_bytes, unsent_bytes_per_address, connects, connects_per_address, request_timeout, write_timeout, http_idle_timeout"#,
        ],
    ),
    (
        &[("agent_config", "[]"), ("port_mapper", "yes")],
        None,
        UNSET,
        &[
            r#"parameter 'agent_config': is JSON: write the path of a file that holds it"#,
            r#"parameter 'port_mapper': 'yes' is no boolean: write true or false"#,
        ],
    ),
];

#[test]
fn warning_names_parameter() {
    let base: Pairs<'_> = &[("master", "m:1"), ("cni_dir", "/c")];
    let pairs = [base, &[("mesos_bridge", "false"), ("docker_bridge", "false")]].concat();
    let (_, warnings) = agent(&pairs, None).unwrap();
    let messages: Vec<_> = warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        messages,
        ["parameter 'network_config': allocates subnets that no container can use: \
          write false for 'allocate_subnet' too"]
    );
}

#[test]
fn zk_key_warns_only_in_standalone_program() {
    let text = filled(r#"{"network":{$V,"overlays":[$A]},"zk":{}}"#);
    let (_, warnings) = parse_master("f", &text).unwrap();
    assert_eq!(
        lines(&warnings),
        ["1:145: zk: is used by the Mesos module only: the standalone program uses --store"]
    );
    assert_eq!(master(&[("master_config", "/f")], Some(&text)).unwrap().1, []);
}

#[test]
fn hostile_values_are_refused_with_short_lines() {
    let huge = "9".repeat(FILE_MAX * 4);
    let bomb = "[".repeat(FILE_MAX);
    let nested = format!("[{}", "{\"overlays\":[".repeat(FILE_MAX / 20));
    let closed = format!("{}{}", "[".repeat(FILE_MAX / 2), "]".repeat(FILE_MAX / 2));
    let mut keys: Vec<&str> = MASTER_MODULE.names().chain(AGENT_MODULE.names()).collect();
    keys.extend([&huge, "\0", "\u{202e}"]);
    for key in keys {
        for value in [&*huge, &bomb, &nested, &closed, "\0", "\u{1b}]0;\u{7}", "\u{feff}{}", "\\"] {
            let sides = [
                master(&with(NETWORK, key, value), Some("{}")).err(),
                agent(&with(&[("cni_dir", "/c")], key, value), Some("{}")).err(),
            ];
            assert!(value.len() < FILE_MAX / 2 || sides.iter().all(Option::is_some), "{key}");
            for problem in sides.into_iter().flatten().flatten() {
                let line = problem.to_string();
                assert!(line.len() < 1200, "{} bytes", line.len());
                assert!(!line.contains(char::is_control), "{line:?}");
            }
        }
    }
    assert_eq!(
        master(&with(NETWORK, "overlays", &format!("[{huge}")), None).unwrap_err().to_string(),
        "parameter 'overlays': is 1048577 bytes long: write at most 262144"
    );
}

#[test]
fn documented_problems_match_program() {
    let page = include_str!("../../../docs/configuration.md");
    let (_, section) = page.split_once("\n## Module parameters\n").unwrap();
    let shown: Vec<_> = section.lines().filter_map(|line| line.strip_prefix("      ")).collect();
    let overlays = OVERLAYS.replace("24", "30");
    let pairs: Pairs<'_> = &[
        ("vtep_subnt", "x"),
        ("vtep_subnet", "44.128.0.0/16"),
        ("vtep_mac_oui", "70:B3:D5:00:00:00"),
        ("overlays", &overlays),
        ("replicated_log_dir", "/d"),
    ];
    let problems = master_in(pairs, None, &environment("", "", "two")).unwrap_err();
    for line in problems.to_string().lines() {
        assert!(shown.contains(&line), "{line}");
    }
    assert_eq!(problems.as_slice().len(), 3);
}

proptest! {
    #[test]
    fn any_parameters_return_config_or_problems(
        pairs in prop::collection::vec((name(), value()), 0..6),
        file in prop::option::of(r#"\{("(overlays|network|cni_dir|zk)":(\[\]|\{\}|null|"/c"|1),)?"store":"file"\}"#),
        mesos in prop::option::of("[a-z:/0-9]{0,12}"),
    ) {
        let environment = Environment {
            mesos_master: mesos.clone(),
            mesos_zk: mesos.clone(),
            mesos_quorum: mesos,
        };
        let file = file.as_deref().map(|text| ("f", text));
        let sides = [
            master_from_parameters(&pairs, file, &environment).map(|parsed| parsed.1),
            agent_from_parameters(&pairs, file, &environment).map(|parsed| parsed.1),
        ];
        for side in sides {
            let problems = match &side {
                Ok(warnings) => warnings.as_slice(),
                Err(problems) => {
                    prop_assert!(!problems.as_slice().is_empty());
                    problems.as_slice()
                }
            };
            for problem in problems {
                prop_assert!(!problem.to_string().contains(char::is_control), "{problem:?}");
            }
        }
    }
}

fn name() -> impl Strategy<Value = String> {
    let known: Vec<_> = MASTER_MODULE.names().chain(AGENT_MODULE.names()).collect();
    prop_oneof![4 => prop::sample::select(known).prop_map(str::to_owned), 1 => any::<String>()]
}

fn value() -> impl Strategy<Value = String> {
    let known =
        prop::sample::select(vec![OVERLAYS, "44.128.0.0/16", "7", "true", "/d", "5mins", "{}"]);
    prop_oneof![known.prop_map(str::to_owned), r#"[\[\]{}":,a0-9\\]{0,10}"#, any::<String>(),]
}

fn master(pairs: Pairs<'_>, file: Option<&str>) -> Parsed<MasterConfig> {
    master_in(pairs, file, &Environment::default())
}

fn agent(pairs: Pairs<'_>, file: Option<&str>) -> Parsed<AgentConfig> {
    agent_in(pairs, file, &Environment::default())
}

fn master_in(
    pairs: Pairs<'_>,
    file: Option<&str>,
    environment: &Environment,
) -> Parsed<MasterConfig> {
    master_from_parameters(&owned(pairs), file.map(|text| ("f", text)), environment)
}

fn agent_in(
    pairs: Pairs<'_>,
    file: Option<&str>,
    environment: &Environment,
) -> Parsed<AgentConfig> {
    agent_from_parameters(&owned(pairs), file.map(|text| ("f", text)), environment)
}

fn owned(pairs: Pairs<'_>) -> Vec<(String, String)> {
    pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
}

/// Returns `pairs` with `value` as the only value of `key`.
fn with<'a>(pairs: Pairs<'a>, key: &'a str, value: &'a str) -> Vec<(&'a str, &'a str)> {
    let others = pairs.iter().copied().filter(|(other, _)| *other != key);
    others.chain([(key, value)]).collect()
}

/// Creates an environment. An empty text leaves the variable unset.
fn environment(mesos_master: &str, mesos_zk: &str, mesos_quorum: &str) -> Environment {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    Environment {
        mesos_master: some(mesos_master),
        mesos_zk: some(mesos_zk),
        mesos_quorum: some(mesos_quorum),
    }
}
