//! `doctor` on whatever host these tests run on: what it finds there is not ours to say, but its
//! form and its exit code are.

use std::collections::BTreeSet;

use crate::support::{FakeMaster, Place};

/// Every check, in the order in which they are shown.
const CHECKS: [&str; 18] = [
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
/// Port 9 of an address of the loopback: nobody answers.
const NOBODY: &str = "--agent 127.0.0.77:9";

#[test]
fn every_check_is_there_and_the_exit_code_says_whether_something_is_wrong() {
    let place = Place::new();
    place.write(
        "agent.json",
        r#"{ "cni_dir": "/cni", "network_config": { "docker_bridge": false } }"#,
    );
    let arguments = format!("doctor --config agent.json {NOBODY}");
    let outcome = place.run(&format!("{arguments} --json"));
    let report: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
    let findings = report["findings"].as_array().unwrap();
    let mut checks: Vec<&str> =
        findings.iter().map(|finding| finding["check"].as_str().unwrap()).collect();
    checks.dedup();
    checks.retain(|check| *check != "firewall");
    assert_eq!(checks, CHECKS);
    let results: BTreeSet<&str> =
        findings.iter().map(|finding| finding["result"].as_str().unwrap()).collect();
    assert!(results.is_subset(&["ok", "note", "warning", "wrong"].into()), "{results:?}");
    let wrong = findings.iter().filter(|finding| finding["result"] == "wrong").count();
    assert_eq!(report["ok"], wrong == 0);
    assert_eq!(outcome.code, Some(i32::from(wrong > 0)), "{outcome:?}");
    for finding in findings.iter().filter(|finding| finding["result"] == "wrong") {
        assert_ne!(finding["why"], "", "{finding}");
    }
    let shown = place.run(&arguments).stdout;
    let summary = shown.lines().last().unwrap();
    assert!(summary.starts_with(&format!("{} findings: ", findings.len())), "{summary}");
    assert!(summary.ends_with(&format!(", {wrong} wrong")), "{summary}");
    let agent = "note     agent            no agent answers at 127.0.0.77:9: ";
    assert!(shown.lines().any(|line| line.starts_with(agent)), "{shown}");
}

#[test]
fn who_answers_and_is_no_overlay_agent_is_told_apart() {
    // As a Mesos agent without the module, which has the port by default.
    let other = FakeMaster::start(Vec::new());
    let shown = Place::new().run(&format!("doctor --agent {}", other.address)).stdout;
    let what = format!(
        "agent            something else answers at {} (404 Not Found), perhaps a Mesos agent",
        other.address
    );
    assert!(shown.contains(&what), "{shown}");
    assert!(shown.contains("give the address of the overlay agent as --agent\n"), "{shown}");
}

#[test]
fn what_cannot_be_used_is_refused() {
    let place = Place::new();
    let usage = place.run("doctor --agent nowhere").usage();
    assert!(usage.starts_with("error: invalid value 'nowhere' for '--agent <IP:PORT>'"), "{usage}");
    assert_eq!(
        place.run(&format!("doctor {NOBODY} --master nowhere:port")).usage(),
        "mesos-overlay: --master: 'nowhere:port' is no master: write IP:PORT or NAME:PORT, as in \
         10.0.0.1:5050\n"
    );
    let failure = place.run("doctor --config missing.json").failure();
    assert!(failure.starts_with("mesos-overlay: read missing.json: No such file"), "{failure}");
}

#[test]
fn a_master_that_is_elected_is_not_asked() {
    let environment = [("MESOS_OVERLAY_MASTER", "zk://user:password@10.0.0.1/mesos")];
    let outcome = Place::new().run_with(&format!("doctor {NOBODY}"), &environment, "");
    assert!(outcome.stdout.contains("master           not asked: "), "{outcome:?}");
    assert!(!outcome.transcript().contains("password"), "{outcome:?}");
}
