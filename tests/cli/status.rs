//! `status` against servers with recorded and made-up states. `cluster` tests it against a running
//! `mesos-overlay master`.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Read};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::support::{FakeMaster, Outcome, TestDir, http_response, program};

const RECORDED_STATE: &str = include_str!("../golden/overlay-master-state.json");

/// A master whose agents have these addresses and statuses in both overlays.
fn master_of(agents: &[(&str, &Value)], health: &Value) -> FakeMaster {
    let mut state: Value = serde_json::from_str(RECORDED_STATE).unwrap();
    let recorded = state["agents"][0].clone();
    let agents = agents.iter().map(|(ip, status)| {
        let mut agent = recorded.clone();
        agent["ip"] = json!(ip);
        for overlay in agent["overlays"].as_array_mut().unwrap() {
            overlay["state"] = (*status).clone();
        }
        agent
    });
    state["agents"] = agents.collect();
    FakeMaster::start(vec![
        ("/overlay-master/state", http_response("200 OK", &state.to_string())),
        ("/overlay-master/health", http_response("200 OK", &health.to_string())),
    ])
}

fn health(status: &str, problems: &[&str]) -> Value {
    json!({ "status": status, "problems": problems, "epoch": 3, "version": 7 })
}

fn ok() -> Value {
    json!({ "status": "STATUS_OK" })
}

fn failed(reason: &str) -> Value {
    json!({ "status": "STATUS_FAILED", "error": reason })
}

fn status(master: &FakeMaster, arguments: &str) -> Outcome {
    let outcome = TestDir::new().run(&format!("status --master {} {arguments}", master.address));
    let hide = |text: String| text.replace(&master.address, "MASTER");
    Outcome { code: outcome.code, stdout: hide(outcome.stdout), stderr: hide(outcome.stderr) }
}

#[test]
fn healthy_cluster_is_shown_in_two_lines() {
    let master = master_of(&[("10.0.0.7", &ok()), ("10.0.0.8", &ok())], &health("ok", &[]));
    let expected = "\
master MASTER: ok (epoch 3, version 7)
2 agents: 2 ok, 0 failed, 0 unreported
";
    assert_eq!(status(&master, "").success(), expected);
    assert_eq!(status(&master, "--wait").success(), expected);
}

#[test]
fn full_halves_are_a_warning_with_remedy_and_no_failure() {
    let mut state: Value = serde_json::from_str(RECORDED_STATE).unwrap();
    let recorded = state["agents"][0].clone();
    let agent = |ip: &str, mesos: Value| {
        let mut agent = recorded.clone();
        agent["ip"] = json!(ip);
        for overlay in agent["overlays"].as_array_mut().unwrap() {
            overlay["state"] = ok();
        }
        agent["overlays"][0]["mesos_bridge"]["addresses"] = mesos;
        agent
    };
    state["agents"] = json!([
        agent("10.0.0.7", json!({ "used": 125, "free": 0 })),
        agent("10.0.0.8", json!({ "used": 113, "free": 12 })),
        agent("10.0.0.9", json!({ "used": 3, "free": 122 })),
        agent("10.0.0.10", json!({ "used": 125 })),
    ]);
    let master = FakeMaster::start(vec![
        ("/overlay-master/state", http_response("200 OK", &state.to_string())),
        ("/overlay-master/health", http_response("200 OK", &health("ok", &[]).to_string())),
    ]);
    let remedy = "for Mesos containers: run fewer of them there, or add an overlay with a shorter \
                  prefix for new containers";
    let expected = format!(
        "\
master MASTER: ok (epoch 3, version 7)
4 agents: 4 ok, 0 failed, 0 unreported
warning: 1 agent: overlay vxlan-1: no address is free {remedy}: 10.0.0.7
warning: 1 agent: overlay vxlan-1: a tenth of the addresses or less is free {remedy}: 10.0.0.8
"
    );
    assert_eq!(status(&master, "").success(), expected);
    let shown: Value = serde_json::from_str(&status(&master, "--json").success()).unwrap();
    assert_eq!(shown["warnings"][0]["agents"], json!(["10.0.0.7"]));
    let wide = TestDir::new().run(&format!("state --master {} -o wide", master.address)).success();
    assert!(wide.contains("/25 (3 used, 122 free)"), "{wide}");
}

#[test]
fn agents_that_fail_for_one_reason_are_shown_together() {
    let (docker, rule) = (failed("docker is gone"), failed("a rule\n\u{1b}[31mdrops"));
    let many: Vec<String> = (1..=12).map(|number| format!("10.0.1.{number}")).collect();
    let mut agents: Vec<(&str, &Value)> = many.iter().map(|ip| (ip.as_str(), &docker)).collect();
    let (silent, fine) = (json!({}), ok());
    agents.extend([("10.0.0.9", &silent), ("10.0.0.8", &rule), ("10.0.0.7", &fine)]);
    let master = master_of(&agents, &health("degraded", &["13 agents with a failed overlay"]));
    let outcome = status(&master, "");
    let first = "10.0.1.1, 10.0.1.2, 10.0.1.3, 10.0.1.4, 10.0.1.5, 10.0.1.6, 10.0.1.7, 10.0.1.8";
    let mut expected = String::from(
        "\
master MASTER: degraded (epoch 3, version 7)
15 agents: 1 ok, 13 failed, 1 unreported
",
    );
    for overlay in ["vxlan-1", "vxlan-2"] {
        writeln!(expected, "12 agents: overlay {overlay}: docker is gone: {first} and 4 more")
            .unwrap();
    }
    expected += "1 agent: no complete report yet: 10.0.0.9\n";
    for overlay in ["vxlan-1", "vxlan-2"] {
        writeln!(expected, "1 agent: overlay {overlay}: a rule\\n\\u{{1b}}[31mdrops: 10.0.0.8")
            .unwrap();
    }
    expected += "problem: 13 agents with a failed overlay\n";
    assert_eq!(outcome.stdout, expected);
    assert_eq!(
        outcome.failure(),
        "mesos-overlay: master MASTER: the master is degraded, 13 agents failed, 1 agent unreported\n"
    );
}

#[test]
fn json_has_counts_reasons_and_problems() {
    let failed = failed("docker is gone");
    let master = master_of(&[("10.0.0.7", &failed)], &health("degraded", &["one"]));
    let outcome = status(&master, "--json");
    let shown: Value = serde_json::from_str(&outcome.stdout).unwrap();
    let reason = |overlay: &str| json!({ "reason": format!("overlay {overlay}: docker is gone"), "agents": ["10.0.0.7"] });
    let expected = json!({
        "master": "MASTER", "status": "degraded", "epoch": 3, "version": 7,
        "agents": { "total": 1, "ok": 0, "failed": 1, "unreported": 0, "unassigned": 0, "stale": 0 },
        "reasons": [reason("vxlan-1"), reason("vxlan-2")],
        "problems": ["one"]
    });
    assert_eq!(shown, expected);
    assert_eq!(outcome.code, Some(1));
}

#[test]
fn cpp_master_is_judged_by_its_agents() {
    let master = FakeMaster::with_state(http_response("200 OK", RECORDED_STATE));
    let expected = "master MASTER: it shows no health\n1 agent: 1 ok, 0 failed, 0 unreported\n";
    assert_eq!(status(&master, "").success(), expected);
}

#[test]
fn wait_ends_with_last_reason() {
    let silent = json!({});
    let master = master_of(&[("10.0.0.7", &silent)], &health("ok", &[]));
    assert_eq!(
        status(&master, "--wait 300ms").failure(),
        "mesos-overlay: master MASTER: 1 agent unreported (after 300ms)\n"
    );
    let closed = FakeMaster { address: "127.0.0.1:1".to_owned() };
    let stderr = status(&closed, "--wait 300ms").failure();
    assert!(stderr.contains("MASTER") && stderr.ends_with("(after 300ms)\n"), "{stderr}");
}

#[test]
fn watch_shows_status_again_and_survives_silent_master() {
    let master = master_of(&[("10.0.0.7", &ok())], &health("ok", &[]));
    for (address, is_served) in [(master.address.as_str(), true), ("127.0.0.1:1", false)] {
        let mut command = Command::new(program());
        let command = command.args(["status", "--master", address, "--watch", "100ms"]);
        let mut process = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (stdout, stderr) = (process.stdout.take().unwrap(), process.stderr.take().unwrap());
        let output: Box<dyn Read> = if is_served { Box::new(stdout) } else { Box::new(stderr) };
        let shown = BufReader::new(output).lines().map(Result::unwrap);
        let third = shown.filter(|line| line.contains(address)).nth(2);
        process.kill().unwrap();
        process.wait().unwrap();
        assert!(third.is_some(), "it ended");
    }
}

#[test]
fn unusable_intervals_are_wrong_usage() {
    let master = master_of(&[], &health("ok", &[]));
    for (arguments, reason) in [
        ("--watch 1ms", "shorter than 100ms"),
        ("--wait soon", "invalid value 'soon'"),
        ("--wait 1s --watch", "cannot be used with"),
    ] {
        let stderr = status(&master, arguments).usage_error();
        assert!(stderr.contains(reason), "{arguments}: {stderr}");
    }
}
