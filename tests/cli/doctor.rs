//! `doctor` on the host that runs the tests. Its findings depend on this host, so the tests check
//! only their format and the exit code.

use std::collections::BTreeSet;

use crate::support::{FakeMaster, TestDir};

/// Every check.
const CHECKS: [&str; 19] = [
    "configuration",
    "kernel",
    "forwarding",
    "rp-filter",
    "br-netfilter",
    "offload",
    "udp-port",
    "udp-rules",
    "forward-policy",
    "managers",
    "cni-plugins",
    "docker",
    "tables",
    "agent",
    "master",
    "collisions",
    "mtu",
    "dataplane",
    "peers",
];
/// A loopback address on which nothing listens.
const CLOSED_AGENT: &str = "--agent 127.0.0.77:9";

#[test]
fn doctor_runs_every_check_and_sets_exit_code() {
    let dir = TestDir::new();
    dir.write(
        "agent.json",
        r#"{ "cni_dir": "/cni", "network_config": { "docker_bridge": false } }"#,
    );
    let arguments = format!("doctor --config agent.json {CLOSED_AGENT}");
    let outcome = dir.run(&format!("{arguments} --json"));
    let report: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
    let findings = report["findings"].as_array().unwrap();
    let mut checks: BTreeSet<&str> =
        findings.iter().map(|finding| finding["check"].as_str().unwrap()).collect();
    checks.remove("firewall");
    assert_eq!(checks, CHECKS.into());
    let results: BTreeSet<&str> =
        findings.iter().map(|finding| finding["result"].as_str().unwrap()).collect();
    assert!(results.is_subset(&["ok", "note", "warning", "wrong"].into()), "{results:?}");
    // A finding with a cause follows from that one.
    let is_root = |finding: &&serde_json::Value| finding.get("cause").is_none();
    let roots = findings.iter().filter(is_root);
    let wrong = roots.filter(|finding| finding["result"] == "wrong").count();
    assert_eq!(report["ok"], wrong == 0);
    assert_eq!(outcome.code, Some(i32::from(wrong > 0)), "{outcome:?}");
    for finding in findings.iter().filter(|finding| finding["result"] == "wrong") {
        assert_ne!(finding["why"], "", "{finding}");
    }
    let output = dir.run(&arguments).stdout;
    let summary = output.lines().last().unwrap();
    // Other tests start agents meanwhile, and the doctor has a note about each.
    let shown: usize = summary.split(' ').next().unwrap().parse().unwrap();
    assert!(shown >= CHECKS.len() && summary.contains(" findings: "), "{summary}");
    assert!(summary.contains(&format!(", {wrong} wrong")), "{summary}");
    let agent = "note     agent            no agent answers at 127.0.0.77:9: ";
    assert!(output.lines().any(|line| line.starts_with(agent)), "{output}");
    let causes: Vec<_> = findings.iter().filter_map(|finding| finding["cause"].as_u64()).collect();
    for cause in causes {
        let root = &findings[usize::try_from(cause).unwrap()];
        assert!(is_root(&root) && root["follows"].is_array(), "{root}");
    }
}

#[test]
fn foreign_server_is_distinguished_from_agent() {
    // Simulates a Mesos agent without the module, which uses the same default port.
    let server = FakeMaster::start(Vec::new());
    let outcome = TestDir::new().run(&format!("doctor --json --agent {}", server.address));
    let report: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
    let findings = report["findings"].as_array().unwrap();
    let agent = findings.iter().find(|finding| finding["check"] == "agent").unwrap();
    let expected = format!(
        "something else answers at {} (404 Not Found), perhaps a Mesos agent",
        server.address
    );
    assert_eq!(agent["what"], expected);
    assert_eq!(agent["advice"], "give the address of the overlay agent as --agent");
}

#[test]
fn invalid_arguments_are_refused() {
    let dir = TestDir::new();
    let error = dir.run("doctor --agent nowhere").usage_error();
    assert!(error.starts_with("error: invalid value 'nowhere' for '--agent <IP:PORT>'"), "{error}");
    assert_eq!(
        dir.run(&format!("doctor {CLOSED_AGENT} --master nowhere:port")).usage_error(),
        "mesos-overlay: --master: 'nowhere:port' is no master: write IP:PORT or NAME:PORT, as in \
         10.0.0.1:5050\n"
    );
    let failure = dir.run("doctor --config missing.json").failure();
    assert!(failure.starts_with("mesos-overlay: read missing.json: No such file"), "{failure}");
}
