//! `check`: output, exit codes and unreadable files.

use crate::support::TestDir;

#[test]
fn valid_file_prints_one_line() {
    let dir = TestDir::with_network();
    assert_eq!(
        dir.run("check network.json").success(),
        "network.json: ok: a network of 2 overlays, capacity for 128 agents\n"
    );
}

#[test]
fn problems_are_shown_with_source_lines() {
    let dir = TestDir::new();
    dir.write(
        "network.json",
        r#"{ "vtep_subnet": "44.128.0.1/16",
  "vtep_mac_oui": "71:B3:D5:00:00:00",
  "overlays": [ { "nam": "vxlan-1", "subnet": "192.168.0.0/17", "prefix": 24 } ] }
"#,
    );
    assert_eq!(
        dir.run("check network.json").transcript(),
        r#"network.json:1:18: vtep_subnet: '44.128.0.1/16' has host bits set: write 44.128.0.0/16
  1 | { "vtep_subnet": "44.128.0.1/16",
    |                  ^
network.json:2:19: vtep_mac_oui: '71:B3:D5:00:00:00' is a multicast address: the first byte must be even, as in 70:B3:D5:00:00:00
  2 |   "vtep_mac_oui": "71:B3:D5:00:00:00",
    |                   ^
network.json:3:17: overlays[0].name: is missing: write the name of the network, such as "vxlan-1"
  3 |   "overlays": [ { "nam": "vxlan-1", "subnet": "192.168.0.0/17", "prefix": 24 } ] }
    |                 ^
network.json:3:19: overlays[0].nam: is no key: did you mean 'name'?
  3 |   "overlays": [ { "nam": "vxlan-1", "subnet": "192.168.0.0/17", "prefix": 24 } ] }
    |                   ^
mesos-overlay: network.json: 4 problems: fix them and try again
exit code 1
"#
    );
}

#[test]
fn source_line_of_several_problems_is_shown_once() {
    let dir = TestDir::new();
    dir.write("network.json", "{}\n");
    assert_eq!(
        dir.run("check network.json").transcript(),
        r#"network.json:1:1: vtep_subnet: is missing: write the IPv4 space of the VTEPs, such as "198.19.0.0/16"
network.json:1:1: vtep_mac_oui: is missing: write the upper half of MACs, such as "70:B3:D5:00:00:00"
network.json:1:1: overlays: is missing: write the list of overlay networks, each with name, subnet and prefix
  1 | {}
    | ^
mesos-overlay: network.json: 3 problems: fix them and try again
exit code 1
"#
    );
}

#[test]
fn warning_is_marked_and_exits_with_0() {
    let dir = TestDir::new();
    dir.write(
        "network.json",
        r#"{ "vtep_subnet": "45.128.0.0/16",
  "vtep_mac_oui": "70:B3:D5:00:00:00",
  "overlays": [ { "name": "a", "subnet": "10.0.0.0/16", "prefix": 24 },
                { "name": "b", "subnet": "10.1.0.0/16", "prefix": 24, "enabled": false } ] }
"#,
    );
    assert_eq!(
        dir.run("check network.json").success(),
        r#"network.json:1:18: warning: vtep_subnet: '45.128.0.0/16' is public space: hosts of its owner cannot be reached from here; write private space, as in 10.0.0.0/8
  1 | { "vtep_subnet": "45.128.0.0/16",
    |                  ^
network.json: ok: a network of 2 overlays (1 disabled), capacity for 256 agents; 1 warning
"#
    );
}

#[test]
fn agent_and_master_configs_are_recognized() {
    let dir = TestDir::new();
    let check = |text: &str| {
        dir.write("f", text);
        dir.run("check f").success()
    };
    let master = format!(r#"{{"network":{},"reuse_after":"5mins"}}"#, crate::support::NETWORK);
    assert_eq!(check(&master), "f: ok: a network of 2 overlays, capacity for 128 agents\n");
    assert_eq!(
        check(r#"{"cni_dir":"/var/lib/mesos/cni","master":"10.0.0.1:5050"}"#),
        "f: ok: an agent with container networks for Mesos and Docker\n"
    );
    let agent = r#"{"cni_dir":"/cni","network_config":{"docker_bridge":false}}"#;
    assert_eq!(check(agent), "f: ok: an agent with container networks for Mesos\n");
}

#[test]
fn json_output_has_documented_keys() {
    let dir = TestDir::with_network();
    assert_eq!(
        dir.run("check network.json --json").json(),
        serde_json::json!({
            "file": "network.json",
            "ok": true,
            "summary": "a network of 2 overlays, capacity for 128 agents",
            "problems": [],
            "warnings": []
        })
    );
    dir.write("bad.json", "[]");
    let outcome = dir.run("check bad.json --json");
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&outcome.stdout).unwrap(),
        serde_json::json!({
            "file": "bad.json",
            "ok": false,
            "problems": [{
                "file": "bad.json",
                "line": 1,
                "column": 1,
                "key": "",
                "message": "is a list: write an object in { }"
            }],
            "warnings": []
        })
    );
    assert_eq!(outcome.failure(), "mesos-overlay: bad.json: 1 problem: fix it and try again\n");
}

#[test]
fn environment_variable_enables_json() {
    let dir = TestDir::with_network();
    let with =
        |value: &str| dir.run_with("check network.json", &[("MESOS_OVERLAY_JSON", value)], "");
    for value in ["1", "true", "yes"] {
        assert_eq!(with(value).json()["ok"], true);
    }
    assert!(with("0").success().starts_with("network.json: ok"));
    assert!(with("maybe").usage_error().starts_with("error: invalid value 'maybe' for '--json'"));
}

#[test]
fn dash_reads_stdin() {
    let dir = TestDir::new();
    let checked = dir.run_with("check -", &[], crate::support::NETWORK);
    assert_eq!(checked.success(), "stdin: ok: a network of 2 overlays, capacity for 128 agents\n");
    let checked = dir.run_with("check -", &[], "[]");
    assert!(checked.stdout.starts_with("stdin:1:1: is a list"), "{checked:?}");
}

#[test]
fn unreadable_file_fails_with_one_line() {
    let dir = TestDir::new();
    std::fs::create_dir(dir.path("directory")).unwrap();
    dir.write("latin-1.json", b"{ \"name\": \"\xe4\" }");
    let check = |file: &str| dir.run(&format!("check {file}")).failure();
    assert_eq!(
        check("none.json"),
        "mesos-overlay: read none.json: No such file or directory (os error 2): check the path\n"
    );
    assert_eq!(check("directory"), "mesos-overlay: read directory: Is a directory (os error 21)\n");
    assert_eq!(
        check("latin-1.json"),
        "mesos-overlay: read latin-1.json: it is not UTF-8 text: save it as UTF-8\n"
    );
}

#[test]
fn closed_pipe_keeps_exit_code() {
    let dir = TestDir::with_network();
    let outcome = dir.run_into_closed_pipe("check network.json");
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""));
    dir.write("bad.json", "[]");
    assert_eq!(
        dir.run_into_closed_pipe("check bad.json").failure(),
        "mesos-overlay: bad.json: 1 problem: fix it and try again\n"
    );
}

#[test]
fn warnings_are_shown_beside_problems() {
    let dir = TestDir::new();
    let config = r#"{"cni_dir":"/c","verify_interval":1,"network_config":{"overlay_mtu":9000}}"#;
    dir.write("agent.json", config);
    let outcome = dir.run("check agent.json");
    assert_eq!(outcome.code, Some(1));
    assert!(outcome.stdout.contains(": verify_interval: "), "{}", outcome.stdout);
    let warning = outcome.stdout.lines().find(|line| line.contains(" warning: "));
    assert!(warning.is_some_and(|line| line.contains("overlay_mtu")), "{}", outcome.stdout);
    assert!(outcome.stderr.ends_with(": 1 problem: fix it and try again\n"), "{}", outcome.stderr);
}
