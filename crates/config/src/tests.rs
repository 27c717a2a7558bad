//! Valid configurations, and arbitrary texts that must not make the parser panic.

use std::path::PathBuf;
use std::time::Duration;

use libprocess::limits::Limits;
use overlay_types::addr::{Family, Mtu, Vni};
use overlay_types::protocol::Vxlan;
use proptest::prelude::*;

use super::document::FILE_MAX;
use super::*;

const VTEPS: &str = r#""vtep_subnet":"44.128.0.0/16","vtep_mac_oui":"70:B3:D5:00:00:00""#;
const OVERLAY_A: &str = r#"{"name":"a","subnet":"10.0.0.0/16","prefix":24}"#;

/// The example of the C++ modules.
const CPP_EXAMPLE: &str = r#"{
  "vtep_subnet": "44.128.0.0/16",
  "vtep_mac_oui": "70:B3:D5:00:00:00",
  "overlays": [
    {
      "name" : "vxlan-1",
      "subnet" : "192.168.0.0/17",
      "prefix" : 24
    },
    {
      "name" : "vxlan-2",
      "subnet" : "192.168.128.0/17",
      "prefix" : 24
    }
  ]
}
"#;

const DCOS_MASTER: &str = r#"{
  "replicated_log_dir": "/var/lib/dcos/mesos/master",
  "replicated_log_timeout": "5mins",
  "zk": { "session_timeout": 20 },
  "network": {
    "vtep_subnet": "44.128.0.0/20",
    "vtep_subnet6": "fd01:a::/64",
    "vtep_mac_oui": "70:B3:D5:00:00:00",
    "overlays": [
      { "name": "dcos", "subnet": "9.0.0.0/8", "prefix": 24 },
      { "name": "dcos6", "subnet6": "fd01:b::/64", "prefix6": 80, "enabled": false }
    ]
  }
}"#;

const DCOS_AGENT: &str = r#"{
  "master": "zk://operator:secret@zk-1.zk:2181,zk-2.zk:2181/mesos",
  "cni_dir": "/opt/mesosphere/etc/dcos/network/cni",
  "cni_data_dir": "/var/run/dcos/cni/networks",
  "network_config": {
    "allocate_subnet": true,
    "mesos_bridge": true,
    "docker_bridge": true,
    "overlay_mtu": 1420,
    "enable_ipv6": true
  },
  "max_configuration_attempts": 4
}"#;

#[test]
fn vxlan_keys_unset_default_to_dcos_net_devices() {
    let vxlan = |keys: &str, overlay: &str| {
        let overlay = format!(r#"{{"name":"a",{overlay}"subnet":"10.0.0.0/16","prefix":24}}"#);
        let text = filled(&format!(r#"{{$V,{keys}"overlays":[{overlay}]}}"#));
        let (config, warnings) = parse_master("f", &text).expect(&text);
        assert!(warnings.is_empty(), "{warnings:?}");
        let Vxlan { vni, device, port } = config.network.vxlan;
        (vni.number(), device.to_string(), port, config.network.overlays[0].vni.map(Vni::number))
    };
    assert_eq!(vxlan("", ""), (1024, "vtep1024".to_owned(), 64000, None));
    assert_eq!(vxlan(r#""vtep_vni":7,"#, ""), (7, "vtep7".to_owned(), 64000, None));
    let keys = r#""vtep_vni":7,"vtep_name":"vtep-a","vtep_port":4789,"#;
    assert_eq!(vxlan(keys, r#""vni":8,"#), (7, "vtep-a".to_owned(), 4789, Some(8)));
    // An overlay with the shared VNI uses the shared device, regardless of the device's name.
    let keys = r#""vtep_vni":7,"vtep_name":"vtep7","#;
    assert_eq!(vxlan(keys, r#""vni":7,"#), (7, "vtep7".to_owned(), 64000, Some(7)));
}

#[test]
fn parse_readme_network_file_gives_no_warning() {
    let (config, warnings) = parse_master("overlays.json", CPP_EXAMPLE).unwrap();
    assert_eq!(warnings, []);
    assert_eq!(config.network.vtep_subnet.to_string(), "44.128.0.0/16");
    assert_eq!(config.network.vtep_mac_oui.to_string(), "70:B3:D5:00:00:00");
    assert_eq!((config.network.vtep_subnet6, config.network.vtep_mtu), (None, None));
    assert_eq!(config.network.overlays.len(), 2);
    let overlay = &config.network.overlays[1];
    assert_eq!(overlay.name.as_str(), "vxlan-2");
    assert_eq!(overlay.range.unwrap().subnet.to_string(), "192.168.128.0/17");
    assert_eq!(overlay.range.unwrap().prefix, 24);
    assert_eq!(overlay.range6, None);
    assert!(overlay.enabled);
    assert_eq!(config.reuse_after, Duration::from_secs(3600));
    assert_eq!(config.zk, None);
    assert_eq!(config.store, StoreKind::File);
    assert_eq!(config.work_dir, PathBuf::from("/var/lib/mesos-overlay"));
    assert_eq!(parse("overlays.json", CPP_EXAMPLE).unwrap().0, Config::Master(config));
}

#[test]
fn parse_dcos_configuration_is_accepted() {
    let (config, warnings) = parse_master("master_config", DCOS_MASTER).unwrap();
    let zk = config.zk.unwrap();
    assert_eq!((zk.url, zk.quorum, zk.session_timeout), (None, None, Duration::from_secs(20)));
    assert_eq!(config.replicated_log_dir, Some(PathBuf::from("/var/lib/dcos/mesos/master")));
    assert_eq!(config.replicated_log_timeout, Some(Duration::from_secs(300)));
    let overlay = &config.network.overlays[1];
    assert_eq!(overlay.range_of(Family::V6).unwrap().prefix, 80);
    assert_eq!(overlay.range_of(Family::V4), None);
    assert!(!overlay.enabled);
    let keys: Vec<_> = warnings.iter().map(|warning| warning.key.as_str()).collect();
    let unused = ["replicated_log_dir", "replicated_log_timeout", "zk"];
    assert_eq!(keys[..3], unused);
    assert_eq!(keys[3..], ["network.vtep_subnet", "network.overlays[0].subnet"]);

    let (config, warnings) = parse_agent("agent_config", DCOS_AGENT).unwrap();
    assert_eq!(warnings, []);
    let overlay_mtu = Some(Mtu::OVERLAY_DEFAULT);
    let options = overlay_types::protocol::AgentOptions::default();
    assert_eq!(config.options, overlay_types::protocol::AgentOptions { overlay_mtu, ..options });
    assert_eq!(config.cni_data_dir, Some(PathBuf::from("/var/run/dcos/cni/networks")));
    assert_eq!(parse("agent_config", DCOS_AGENT).unwrap().0, Config::Agent(config));
}

#[test]
fn parse_master_store_keys_select_store() {
    let text = r#"{"network":{$V,"overlays":[$A]},"store":"memory","work_dir":"/w"}"#;
    let (config, warnings) = parse_master("f", &filled(text)).unwrap();
    assert_eq!((config.store, config.work_dir), (StoreKind::Memory, PathBuf::from("/w")));
    assert_eq!(warnings, []);
    let store = |store: &str| {
        let text = text.replace("memory", store);
        parse_master("f", &filled(&text)).unwrap().0.store
    };
    let shared = store("zk://user:secret@a:2181/overlay");
    let address = EnsembleSource::Address("zk://user:secret@a:2181/overlay".parse().unwrap());
    assert_eq!(shared, StoreKind::ZooKeeper(address));
    assert!(!format!("{shared:?}").contains("secret"));
    let file = EnsembleSource::File("/etc/overlay/zk".into());
    assert_eq!(store("file:///etc/overlay/zk"), StoreKind::ZooKeeper(file));
}

#[test]
fn parse_ipv6_only_overlays_accepts_prefix_up_to_127() {
    let text = r#"{$V,"vtep_subnet6":"fd01:a::/64","vtep_mtu":1450,"overlays":[
        {"name":"a","subnet6":"fd01:b::/64","prefix6":80,"prefix":null},
        {"name":"b","subnet6":"fd01:c::/64","prefix6":127}]}"#;
    let (config, warnings) = parse_master("f", &filled(text)).unwrap();
    assert_eq!(config.network.vtep_mtu, Some(Mtu::new(1450).unwrap()));
    assert!(config.network.overlays.iter().all(|overlay| overlay.range.is_none()));
    assert_eq!(config.network.overlays[1].range6.unwrap().prefix, 127);
    assert_eq!(
        lines(&warnings),
        ["3:55: overlays[1].prefix6: 127 leaves no address for a container in half of an agent's \
          subnet: write at most 125"]
    );
}

#[test]
fn parse_dual_stack_overlay_ranges_do_not_overlap() {
    let both = r#"{$V,"overlays":[{"name":"a","subnet":"10.0.0.0/28","prefix":29,"subnet6":"fd01:b::/64","prefix6":80}]}"#;
    let (config, warnings) = parse_master("f", &filled(both)).unwrap();
    assert!(config.network.overlays[0].range.is_some());
    assert!(config.network.overlays[0].range6.is_some());
    assert_eq!(warnings, []);
}

#[test]
fn parse_agent_minimal_file_has_defaults() {
    let (config, warnings) = parse_agent("f", r#"{"cni_dir":"/c"}"#).unwrap();
    assert_eq!(warnings, []);
    let expected = AgentConfig {
        limits: Limits::for_client(),
        http: HttpConfig::default(),
        authentication: None,
        master: None,
        cni_dir: "/c".into(),
        cni_data_dir: None,
        cni_plugins_dir: Vec::new(),
        cni_plugin: CniPlugin::Bridge,
        port_mapper: true,
        docker: "docker".into(),
        options: overlay_types::protocol::AgentOptions::default(),
        max_configuration_attempts: 4,
        verify_interval: Duration::from_secs(60),
        dataplane: DataplaneConfig {
            kind: DataplaneKind::Vxlan,
            underlay: None,
            firewall: FirewallKind::Auto,
            masquerade: true,
            forwarding: ForwardingKind::Shortcut,
            vxlan_checksum: true,
            isolate_overlays: false,
            overlay_ingress: OverlayIngress::Closed,
            known_agents_only: true,
            host_settings: true,
            refuse_collisions: true,
            direct_routing: false,
            probe_rate: 4,
            repair_offloads: false,
            state_dir: "/var/lib/mesos-overlay".into(),
        },
        from_environment: Vec::new(),
    };
    assert_eq!(config, expected);
}

#[test]
fn parse_agent_reads_every_key() {
    let text = r#"{"master":"10.0.0.1:5050","cni_dir":"/c","cni_data_dir":"/d",
        "cni_plugins_dir":"/usr/lib/cni:/opt/cni/bin","cni_plugin":"overlay",
        "port_mapper":false,"docker":"/usr/bin/docker",
        "network_config":{"allocate_subnet":false,"mesos_bridge":false,"docker_bridge":false,
        "overlay_mtu":1400,"command_timeout":30000,"enable_ipv6":false},
        "max_configuration_attempts":1,"verify_interval":"5mins","dataplane":"vxlan",
        "underlay":"fd00::5","firewall":"iptables","masquerade":false,"isolate_overlays":true,
        "overlay_ingress":"closed","known_agents_only":false,"forwarding":"tracked",
        "vxlan_checksum":false,"host_settings":false,"refuse_collisions":false,
        "direct_routing":"auto","probe_rate":0,"repair_offloads":true,"state_dir":"/s"}"#;
    let (config, _) = parse_agent("f", text).unwrap();
    assert_eq!(config.master.as_deref(), Some("10.0.0.1:5050"));
    assert_eq!(config.cni_plugins_dir, ["/usr/lib/cni", "/opt/cni/bin"].map(PathBuf::from));
    assert!(!config.port_mapper);
    assert_eq!(config.cni_plugin, CniPlugin::Overlay);
    assert_eq!(config.docker, PathBuf::from("/usr/bin/docker"));
    let options = config.options;
    assert!(!options.allocate_subnet && !options.mesos_bridge && !options.docker_bridge);
    assert!(!options.enable_ipv6);
    assert_eq!(options.overlay_mtu.map(Mtu::bytes), Some(1400));
    assert_eq!(options.command_timeout, Duration::from_secs(30));
    assert_eq!(config.max_configuration_attempts, 1);
    assert_eq!(config.verify_interval, Duration::from_secs(300));
    let expected = DataplaneConfig {
        kind: DataplaneKind::Vxlan,
        underlay: Some("fd00::5".parse().unwrap()),
        firewall: FirewallKind::Iptables,
        masquerade: false,
        forwarding: ForwardingKind::Tracked,
        vxlan_checksum: false,
        isolate_overlays: true,
        overlay_ingress: OverlayIngress::Closed,
        known_agents_only: false,
        host_settings: false,
        refuse_collisions: false,
        direct_routing: true,
        probe_rate: 0,
        repair_offloads: true,
        state_dir: "/s".into(),
    };
    assert_eq!(config.dataplane, expected);
}

#[test]
fn overlay_ingress_default_follows_masquerade_and_subnet() {
    let gateway = r#""network_config":{"allocate_subnet":false}"#;
    for (keys, expected) in [
        (r#""masquerade":true"#, OverlayIngress::Closed),
        (r#""masquerade":false"#, OverlayIngress::Open),
        (gateway, OverlayIngress::Open),
        (r#""masquerade":false,"overlay_ingress":"closed""#, OverlayIngress::Closed),
        (r#""overlay_ingress":"open""#, OverlayIngress::Open),
    ] {
        let (config, _) = parse_agent("f", &format!(r#"{{"cni_dir":"/c",{keys}}}"#)).unwrap();
        assert_eq!(config.dataplane.overlay_ingress, expected, "{keys}");
    }
}

#[test]
fn parse_agent_accepts_every_form_of_master_address() {
    for master in [
        "10.0.0.1:5050",
        "localhost:5050",
        "[::1]:5050",
        "master@10.0.0.1:5050",
        "zk://a:2181,b:2181/mesos",
        "zk://user:password@a:2181/mesos",
        "file:///etc/mesos/zk",
    ] {
        let text = format!(r#"{{"cni_dir":"/c","master":"{master}"}}"#);
        assert_eq!(parse_agent("f", &text).unwrap().0.master.as_deref(), Some(master));
    }
}

#[test]
fn parse_durations_accepts_mesos_and_humantime_spellings() {
    for (text, seconds) in [
        ("5mins", 300),
        ("10secs", 10),
        ("1.5hrs", 5400),
        ("2days", 172_800),
        ("1weeks", 604_800),
        ("1h 30m", 5400),
        ("90s", 90),
    ] {
        let text =
            filled(&format!(r#"{{"network":{{$V,"overlays":[$A]}},"reuse_after":"{text}"}}"#));
        let (config, _) = parse_master("f", &text).unwrap();
        assert_eq!(config.reuse_after, Duration::from_secs(seconds), "{text}");
    }
}

#[test]
fn debug_and_problems_hide_passwords() {
    let (config, _) = parse_agent("f", DCOS_AGENT).unwrap();
    let printed = format!("{config:?}");
    assert!(printed.contains("zk://…@zk-1.zk:2181,zk-2.zk:2181/mesos"), "{printed}");
    assert!(!printed.contains("secret"), "{printed}");
    let text = r#"{"network":{$V,"overlays":[$A]},"zk":{"url":"zk://u:secret@a:2181/mesos"}}"#;
    let (config, _) = parse_master("f", &filled(text)).unwrap();
    assert!(!format!("{config:?}").contains("secret"));
    let refused = parse_agent("f", r#"{"cni_dir":"/c","master":"zk://u:secret@a:2181"}"#);
    assert!(!refused.unwrap_err().to_string().contains("secret"));
}

#[test]
fn problem_location_counts_columns_in_characters() {
    let text = "{\n  \"vtep_subnet\": \"é\", \"é\": 1,\r\n\t\"overlays\": [ 1\n]}";
    let problems = parse_master("net\nwork.json", text).unwrap_err();
    assert_eq!(
        problems.to_string().lines().collect::<Vec<_>>(),
        [
            "net\\nwork.json:1:1: vtep_mac_oui: is missing: write the upper half of MACs, such as \
             \"70:B3:D5:00:00:00\"",
            "net\\nwork.json:2:18: vtep_subnet: 'é' is no subnet: write address/length, as in \
             192.168.0.0/17 or fd01:b::/64",
            "net\\nwork.json:2:23: é: is no key: the keys here are vtep_subnet, vtep_subnet6, \
             vtep_mac_oui, vtep_mtu, vtep_vni, vtep_name, vtep_port, overlays",
            "net\\nwork.json:3:16: overlays[0]: is a number: write an object in { }",
        ]
    );
    let problems = parse_master("f", "{\n\"é\": é}").unwrap_err();
    let syntax_problem = problems.as_slice().first().unwrap();
    assert_eq!(syntax_problem.location.position(), Some((2, 6)));
}

#[test]
fn documented_message_matches_program() {
    let page = include_str!("../../../docs/configuration.md");
    let shown = |start: &str| {
        let block = page.split("\n\n").find(|block| block.starts_with(start)).unwrap();
        block.lines().map(|line| &line[4..]).collect::<Vec<_>>().join("\n")
    };
    let cpp_example = shown("    { \"vtep_subnet\": \"44.128.0.0/16\"");
    assert_eq!(parse_master("f", &cpp_example).unwrap(), parse_master("f", CPP_EXAMPLE).unwrap());
    let text = shown("    { \"vtep_subnet\"");
    assert_eq!(format!("{text}\n"), include_str!("../../../docs/network.json"));
    let problems = parse_master("overlays.json", &text.replacen("24", "30", 1)).unwrap_err();
    assert_eq!(problems.to_string(), shown("    overlays.json:"));
    for start in ["    { \"network\"", "    { \"master\""] {
        let text = shown(start).replace("{ …the network file… }", &text);
        assert_eq!(parse("f", &text).unwrap().1, []);
    }
}

#[test]
fn parse_129_overlays_is_refused() {
    let overlays = |count: usize| {
        let overlays: Vec<_> = (0..count)
            .map(|n| format!(r#"{{"name":"o{n}","subnet":"10.{n}.0.0/16","prefix":24}}"#))
            .collect();
        format!("{{{VTEPS},\"overlays\":[{}]}}", overlays.join(","))
    };
    assert_eq!(parse_master("f", &overlays(128)).unwrap().0.network.overlays.len(), 128);
    assert_eq!(
        parse_master("f", &overlays(129)).unwrap_err().to_string(),
        "f:1:78: overlays: has 129 overlays: write at most 128"
    );
}

/// Parses a `text` that has many problems. Returns the number of problems of the master's
/// configuration and the last line of its message. Checks the memory use of both parsers.
fn refuse_flood(text: &str) -> (usize, String) {
    assert!(text.len() <= FILE_MAX);
    let mut problems = None;
    let allocations = allocation_counter::measure(|| {
        let _ = parse_agent("f", text).unwrap_err();
        problems = parse("f", text).err();
    });
    // Each member takes a few hundred bytes, and the text is parsed three times.
    assert!(allocations.bytes_max < 64 * 1024 * 1024, "{} bytes", allocations.bytes_max);
    let problems = problems.unwrap();
    let lines = problems.to_string();
    assert_eq!(lines.lines().count(), problems.count().min(101));
    assert!(lines.len() < 64 * 1024, "{} bytes", lines.len());
    (problems.count(), lines.lines().last().unwrap().to_owned())
}

#[test]
fn parse_many_problems_reports_first_hundred() {
    let elements = format!(r#"{{{VTEPS},"overlays":[{}0]}}"#, "0,".repeat(130_000));
    let (count, last) = refuse_flood(&elements);
    // Only as many overlays of the list are read as a network may have.
    assert_eq!(count, 1 + 128);
    assert_eq!(last, "f:1:275: … and 29 more problems: fix those above and try again");
    let keys = format!(r#"{{{VTEPS},{}"x":1}}"#, r#""":0,"#.repeat(50_000));
    assert_eq!(refuse_flood(&keys).0, 50_002);
    let overlays = vec![r#"{"name":"o","subnet":"10.0.0.0/8","prefix":24}"#; 128].join(",");
    let (count, _) = refuse_flood(&format!(r#"{{{VTEPS},"overlays":[{overlays}]}}"#));
    assert_eq!(count, 127 + 128 * 127 / 2);
    let overlays = vec![r#"{"name":"o"}"#; 20_000].join(",");
    assert_eq!(refuse_flood(&format!(r#"{{{VTEPS},"overlays":[{overlays}]}}"#)).0, 1 + 128);
    let (count, last) = refuse_flood(&"[".repeat(FILE_MAX));
    assert_eq!(count, 1);
    assert_eq!(last, "f:1:262144: bad JSON: ends too early: close every quote and bracket");
}

#[test]
fn parse_100_problems_reports_all() {
    let text = |count: usize| format!("{{{VTEPS},\"overlays\":[{}]}}", vec!["0"; count].join(","));
    let problems = parse_master("f", &text(100)).unwrap_err();
    assert_eq!((problems.count(), problems.as_slice().len()), (100, 100));
    let problems = parse_master("f", &text(101)).unwrap_err();
    assert_eq!((problems.count(), problems.as_slice().len()), (101, 101));
    let last = problems.as_slice().last().unwrap();
    assert_eq!(last.message, "… and 1 more problem: fix those above and try again");
}

#[test]
fn parse_too_long_text_name_or_path_is_refused() {
    let text = " ".repeat(FILE_MAX + 1);
    let message = "is 262145 bytes long: write at most 262144";
    assert_eq!(parse_master("f", &text).unwrap_err().to_string(), format!("f:1:1: {message}"));
    assert_eq!(parse_agent("f", &text).unwrap_err().to_string(), format!("f:1:1: {message}"));

    let name = "n".repeat(101);
    let text = format!(r#"{{{VTEPS},"overlays":[$A],"vtep_subnet6":"{name}","{name}":1}}"#);
    let problems = parse_master("f", &filled(&text)).unwrap_err();
    let key = format!("{}…", "n".repeat(64));
    assert_eq!(
        lines(problems.as_slice()),
        [
            "1:143: vtep_subnet6: is 101 characters long: write a string such as \"fd01:a::/64\"",
            &format!(
                "1:247: {key}: is no key: the keys here are vtep_subnet, vtep_subnet6, \
                 vtep_mac_oui, vtep_mtu, vtep_vni, vtep_name, vtep_port, overlays"
            ),
        ]
    );

    let path = format!("/{}", "é".repeat(3000));
    let text = format!(r#"{{"cni_dir":"{path}"}}"#);
    assert_eq!(
        parse_agent("f", &text).unwrap_err().to_string(),
        "f:1:12: cni_dir: is 6001 bytes long: write at most 4096"
    );
}

#[test]
fn parse_deep_nesting_does_not_overflow_stack() {
    for open in ["[", "{\"a\":", "{\"overlays\":[", "{\"network\":{\"overlays\":[{\"name\":["] {
        let deep = open.repeat(FILE_MAX / open.len());
        assert!(parse("f", &deep).is_err());
        assert!(parse_agent("f", &deep).is_err());
    }
    let half = FILE_MAX / 2 - 100;
    let closed = format!("{{\"overlays\":{}{}}}", "[".repeat(half), "]".repeat(half));
    assert!(parse_master("f", &closed).is_err());
}

/// A valid configuration with a few pieces removed, duplicated, or replaced by hostile text.
fn mutated_config() -> impl Strategy<Value = String> {
    let pieces = prop::sample::select(vec![
        "",
        "\"",
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "null",
        "true",
        "-1",
        "0",
        "1e9",
        "128",
        "33",
        "\\",
        "\\ud800",
        "é",
        "\n",
        "\u{0}",
        "/",
        "::",
        "0.0.0.0/0",
        "ff00::/8",
        "network",
        "prefix",
        "18446744073709551616",
        "18446744073709551615s1000000000ns",
        "99999999999999999y",
    ]);
    let edit = (any::<prop::sample::Index>(), 0..12_usize, pieces, any::<bool>());
    let good = prop::sample::select(vec![CPP_EXAMPLE, DCOS_MASTER, DCOS_AGENT]);
    (good, prop::collection::vec(edit, 1..6)).prop_map(|(good, edits)| {
        let mut text = good.to_owned();
        for (index, length, piece, is_duplicated) in edits {
            let start = text.floor_char_boundary(index.index(text.len() + 1));
            let end = text.ceil_char_boundary((start + length).min(text.len()));
            let cut = text[start..end].to_owned();
            let piece = if is_duplicated { format!("{cut}{piece}{cut}") } else { piece.to_owned() };
            text.replace_range(start..end, &piece);
        }
        text
    })
}

/// Checks that every problem of `text` is one line, has a location in `text`, and that the problems
/// are in the order of their locations.
fn assert_problems_in_order(text: &str) {
    let line_lengths: Vec<usize> = text.split('\n').map(|line| line.chars().count()).collect();
    for result in [parse_master("f", text).map(|x| x.1), parse_agent("f", text).map(|x| x.1)] {
        let problems = match &result {
            Ok(warnings) => warnings.as_slice(),
            Err(problems) => {
                assert!(!problems.as_slice().is_empty(), "refused without a reason");
                problems.as_slice()
            }
        };
        assert!(problems.is_sorted_by_key(|problem| problem.location.position()));
        for problem in problems {
            let (line, column) = problem.location.position().unwrap();
            assert!(column >= 1 && column <= line_lengths[line - 1] + 1);
            assert!(!problem.to_string().contains(char::is_control), "{problem:?}");
        }
    }
    let _ = parse("f", text);
}

proptest! {
    #[test]
    fn parse_any_text_returns_config_or_problems(text in any::<String>()) {
        assert_problems_in_order(&text);
    }

    #[test]
    fn parse_any_json_of_known_keys_returns_config_or_problems(
        text in r#"\{("(vtep_subnet6?|overlays|network|cni_dir|master|name)":(-?[0-9e.]{1,20}|"[0-9a-f./: ]{0,12}"|\[\]|\[\{\}\]|null|\{"name":1\}),){0,4}"reuse_after":"[0-9]{1,20}(s|y|ns|hrs)?"\}"#
    ) {
        assert_problems_in_order(&text);
    }

    #[test]
    fn parse_mutated_config_returns_config_or_problems(text in mutated_config()) {
        assert_problems_in_order(&text);
    }
}

/// Returns `text` with valid VTEP keys in place of `$V` and a valid overlay in place of `$A`.
pub(super) fn filled(text: &str) -> String {
    text.replace("$V", VTEPS).replace("$A", OVERLAY_A)
}

/// Returns the problems of the file `f` without the file name.
pub(super) fn lines(problems: &[Problem]) -> Vec<String> {
    problems.iter().map(|problem| problem.to_string()[2..].to_owned()).collect()
}
