//! Colors and progress on a terminal, and neither of them elsewhere.

use serde_json::{Value, json};

use crate::support::{FakeMaster, RunningProcess, TestDir, http_response};

const RECORDED_STATE: &str = include_str!("../golden/overlay-master-state.json");

/// Returns the text without colors.
fn without_colors(text: &str) -> String {
    let mut plain = String::new();
    for (index, part) in text.split("\x1b[").enumerate() {
        plain += if index == 0 { part } else { part.split_once('m').unwrap().1 };
    }
    plain
}

/// A master with an agent that is ok, and an agent that failed.
fn master() -> FakeMaster {
    let mut state: Value = serde_json::from_str(RECORDED_STATE).unwrap();
    let mut agents = vec![state["agents"][0].clone(); 2];
    let statuses = [
        ("10.0.0.7", json!({ "status": "STATUS_OK" })),
        ("10.0.0.8", json!({ "status": "STATUS_FAILED", "error": "it is \u{1b}[31m broken" })),
    ];
    for (agent, (ip, status)) in agents.iter_mut().zip(statuses) {
        agent["ip"] = json!(ip);
        for overlay in agent["overlays"].as_array_mut().unwrap() {
            overlay["state"] = status.clone();
        }
    }
    state["agents"] = agents.into();
    let health =
        json!({ "status": "degraded", "problems": ["a failure"], "epoch": 3, "version": 7 });
    FakeMaster::start(vec![
        ("/overlay-master/state", http_response("200 OK", &state.to_string())),
        ("/overlay-master/health", http_response("200 OK", &health.to_string())),
    ])
}

#[test]
fn status_words_have_colors_on_terminal_and_columns_align() {
    let (dir, master) = (TestDir::new(), master());
    for (arguments, words) in [
        ("state", &["\x1b[32mok\x1b[0m\n", "\x1b[31mfailed\x1b[0m: it is "][..]),
        ("state -o wide", &["\x1b[32mok\x1b[0m\n", "\x1b[31mfailed\x1b[0m: it is "]),
        ("status", &["\x1b[33mdegraded\x1b[0m (epoch", "\x1b[32m1 ok\x1b[0m", "\x1b[31m1 failed"]),
    ] {
        let arguments = format!("{arguments} --master {}", master.address);
        let plain = dir.run(&arguments);
        assert!(!plain.stdout.contains('\u{1b}'), "{}", plain.stdout);
        let plain = format!("{}{}", plain.stdout, plain.stderr);
        let (_, colored) = dir.run_on_terminal(&arguments, &[], 300);
        for word in words {
            assert!(colored.contains(word), "{word:?} is not in {colored:?}");
        }
        assert_eq!(without_colors(&colored), plain);
        // An error of the program has no color: the line is plain on every terminal.
        for (name, value) in [("NO_COLOR", "1"), ("TERM", "dumb")] {
            let (_, shown) = dir.run_on_terminal(&arguments, &[(name, value)], 300);
            assert_eq!(shown, plain, "{name}={value}");
        }
        let (_, shown) = dir.run_on_terminal(&arguments, &[("NO_COLOR", "")], 300);
        assert_eq!(shown, colored);
    }
}

#[test]
fn severities_of_doctor_have_colors_on_terminal() {
    let dir = TestDir::new();
    let (_, shown) = dir.run_on_terminal("doctor --agent 127.0.0.1:1", &[], 300);
    let findings = shown.lines().filter(|line| line.contains("kernel"));
    assert!(findings.clone().any(|line| line.starts_with("\x1b[3")), "{shown:?}");
    assert!(!shown.contains("\n\x1b[32mnote"), "{shown:?}");
    let (_, plain) = dir.run_on_terminal("doctor --agent 127.0.0.1:1", &[("TERM", "dumb")], 300);
    assert!(!plain.contains("\x1b[3"), "{plain:?}");
}

#[test]
fn waiting_shows_spinner_after_a_second_and_erases_it() {
    let (dir, master) = (TestDir::new(), master());
    let arguments = format!("status --master {} --wait 3s", master.address);
    let plain = dir.run(&arguments);
    let plain = format!("{}{}", plain.stdout, plain.stderr);
    let (code, shown) = dir.run_on_terminal(&arguments, &[], 80);
    assert_eq!(code, Some(1), "{shown:?}");
    let (progress, result) = shown.rsplit_once("\x1b[2K").expect(&shown);
    // The line fits the terminal, so that erasing it leaves nothing.
    assert!(progress.contains(" 1s the master is degraded, 1 agent failed"), "{progress:?}");
    assert!(!progress.contains('\n'), "{progress:?}");
    assert_eq!(without_colors(result), plain);
    // A dumb terminal cannot erase it.
    let (_, shown) = dir.run_on_terminal(&arguments, &[("TERM", "dumb")], 80);
    assert_eq!(shown, plain);
}

#[test]
fn operation_within_a_second_shows_no_spinner() {
    let dir = TestDir::with_network();
    let config = "--store memory --listen 127.0.0.1:0";
    let mut master = RunningProcess::start(&dir, &format!("master --config network.json {config}"));
    let address = master.expect_log("overlay master at ");
    let address = address.split(": ").next().unwrap();
    let arguments = format!("status --master {address} --wait");
    dir.run(&arguments).success();
    let (code, shown) = dir.run_on_terminal(&arguments, &[], 80);
    assert_eq!((code, shown.lines().count()), (Some(0), 2), "{shown:?}");
    assert!(!shown.contains('\r') && !shown.contains("\x1b[2K"), "{shown:?}");
}

#[test]
fn demo_has_colors_and_erases_its_spinner_on_terminal() {
    let (code, shown) = TestDir::new().run_on_terminal("demo --loopback --agents 1", &[], 80);
    assert_eq!(code, Some(0), "{shown}");
    let (progress, result) = shown.split_once("AGENT ").unwrap();
    assert!(progress.contains("master at 127.0.0.1:"), "{progress:?}");
    assert!(result.contains("  \x1b[32mok\x1b[0m\n"), "{result:?}");
    // The last thing before the result is an erased line.
    assert!(progress.ends_with("\x1b[2K") || progress.ends_with("\x1b[K"), "{progress:?}");
}
