//! Untrusted texts and request floods: escaping in the terminal output, and a bounded log.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};

use crate::support::{FakeMaster, Master, Outcome, TestDir, http_response};

const RECORDED_STATE: &str = include_str!("../golden/overlay-master-state.json");
/// A color sequence, its C1 form, a direction override, a zero-width space and line separators.
const HOSTILE: &str = "x\u{1b}[31m\u{9b}31m\u{202e}\u{200b}\u{2028}\r\nproblem: y";
const ESCAPED: &str = r"x\u{1b}[31m\u{9b}31m\u{202e}\u{200b}\u{2028}\r\nproblem: y";

/// Fails if the output contains a control character or an invisible character.
fn assert_no_hidden_characters(outcome: &Outcome) {
    let is_hidden = |letter: char| {
        (letter.is_control() && letter != '\n')
            || "\u{200b}\u{200e}\u{202e}\u{2028}\u{2066}\u{feff}".contains(letter)
    };
    assert!(!outcome.stdout.contains(is_hidden), "{outcome:?}");
    assert!(!outcome.stderr.contains(is_hidden), "{outcome:?}");
}

fn hostile_master() -> FakeMaster {
    let mut state: serde_json::Value = serde_json::from_str(RECORDED_STATE).unwrap();
    state["agents"][0]["overlays"][0]["state"] =
        serde_json::json!({ "status": "STATUS_FAILED", "error": HOSTILE });
    let health = serde_json::json!({
        "status": HOSTILE, "problems": [HOSTILE], "epoch": 1, "version": 2
    });
    let entry = serde_json::json!({
        "at": 0, "time": HOSTILE, "version": 1, "agent": HOSTILE, "event": HOSTILE,
        "vtep_ip": HOSTILE, "overlays": [{ "name": HOSTILE, "subnet": HOSTILE }], "reason": HOSTILE
    });
    let preview = serde_json::json!({
        "accepted": true, "changes": [HOSTILE], "problems": [], "warnings": [HOSTILE], "agents": [{
            "ip": "10.0.0.7", "at_once": true,
            "addresses": [{ "of": HOSTILE, "before": [HOSTILE], "after": [HOSTILE] }]
        }]
    });
    let results = serde_json::json!({ "agents": [{
        "ip": "10.0.0.7", "vtep_ip": HOSTILE, "subnets": [HOSTILE], "heard_seconds_ago": null,
        "result": "deleted"
    }] });
    FakeMaster::start(vec![
        ("/overlay-master/state", http_response("200 OK", &state.to_string())),
        ("/overlay-master/health", http_response("200 OK", &health.to_string())),
        (
            "/overlay-master/history",
            http_response("200 OK", &serde_json::json!({ "entries": [entry] }).to_string()),
        ),
        ("/overlay-master/reload", http_response("200 OK", &preview.to_string())),
        ("/overlay-master/agents/delete", http_response("200 OK", &results.to_string())),
    ])
}

#[test]
fn tables_escape_texts_of_master() {
    let master = hostile_master();
    for command in ["state", "history", "reload", "forget 10.0.0.7"] {
        let outcome = TestDir::new().run(&format!("{command} --master {}", master.address));
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        assert_no_hidden_characters(&outcome);
        assert!(outcome.stdout.contains(ESCAPED), "{}", outcome.stdout);
    }
}

#[test]
fn json_output_escapes_texts_and_keeps_their_value() {
    let master = hostile_master();
    let json = |command: &str| {
        let outcome = TestDir::new().run(&format!("{command} --master {} --json", master.address));
        assert_no_hidden_characters(&outcome);
        outcome.json()
    };
    assert_eq!(json("state")["agents"][0]["overlays"][0]["state"]["error"], HOSTILE);
    assert_eq!(json("state --agent 127.0.0.1")["overlays"][0]["state"]["error"], HOSTILE);
    assert_eq!(json("history")["entries"][0]["reason"], HOSTILE);
    assert_eq!(json("reload")["warnings"][0], HOSTILE);
    assert_eq!(json("forget 10.0.0.7")["agents"][0]["vtep_ip"], HOSTILE);
}

#[test]
fn errors_escape_texts_of_master() {
    let hostile = HOSTILE.split('\r').next().unwrap();
    for response in [
        http_response("500 Internal Server Error", hostile),
        http_response("200 OK", &serde_json::json!({ "agents": hostile }).to_string()),
        http_response("200 OK", hostile),
    ] {
        let master = FakeMaster::with_state(response);
        let outcome = TestDir::new().run(&format!("state -o wide --master {}", master.address));
        assert_no_hidden_characters(&outcome);
        let line = outcome.failure();
        assert_eq!(line.lines().count(), 1, "{line}");
    }
    let master = FakeMaster::with_state(http_response("500 Internal Server Error", hostile));
    let failure =
        TestDir::new().run(&format!("state -o wide --master {}", master.address)).failure();
    assert!(failure.contains(r": x\u{1b}[31m\u{9b}31m\u{202e}\u{200b}: see"), "{failure}");
}

#[test]
fn errors_escape_texts_of_files_and_arguments() {
    let dir = TestDir::new();
    dir.write("network.json", format!("{{ \"{}\": 1 }}", "a\u{202e}b\u{9b}c"));
    let outcome = dir.run("check network.json");
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert_no_hidden_characters(&outcome);
    let outcome = dir.run("import --to file:work network.json");
    assert_ne!(outcome.code, Some(0), "{outcome:?}");
    assert_no_hidden_characters(&outcome);
    let outcome = dir.run("state --master x --agent a\u{202e}b\u{9b}c");
    assert_no_hidden_characters(&outcome);
    assert!(outcome.usage_error().contains(r"a\u{202e}b\u{9b}c"));
}

/// Requests the deletion of agents. Repeats the request until the master has loaded its state.
fn delete(master: SocketAddrV4, agents: &[String]) {
    let body = serde_json::json!({ "agents": agents }).to_string();
    loop {
        let mut stream = TcpStream::connect(master).unwrap();
        let length = body.len();
        write!(
            stream,
            "POST /overlay-master/agents/delete HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        if response.starts_with("HTTP/1.1 200 ") {
            return;
        }
        assert!(response.contains("the state is being read"), "{response}");
    }
}

fn get(master: SocketAddrV4, path: &str) -> String {
    let mut stream = TcpStream::connect(master).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    response
}

fn count(log: &str, text: &str) -> usize {
    log.lines().filter(|line| line.contains(text)).count()
}

#[test]
fn request_flood_does_not_fill_log() {
    const REQUESTS: usize = 600;
    let dir = TestDir::with_network();
    let mut master = Master::start(&dir);
    for _ in 0..REQUESTS {
        delete(master.address, &["10.9.9.9".to_owned()]);
    }
    // The master logs the number of omitted lines soon after the flood, without a restart.
    master.process.expect_log("like this one: nothing to delete");
    let metrics = get(master.address, "/overlay-master/metrics");
    let metric = "\nmesos_overlay_master_log_lines_left_out_total ";
    let (_, rest) = metrics.split_once(metric).unwrap();
    let counted: usize = rest.lines().next().unwrap().parse().unwrap();
    let (status, log) = master.process.terminate();
    assert!(status.success(), "{log}");

    let line = "nothing to delete of 1 unknown agent: 10.9.9.9";
    let written =
        log.lines().filter(|entry| entry.contains(line) && !entry.contains("left out ")).count();
    assert!((100..REQUESTS).contains(&written), "{written}:\n{log}");
    // Each line is either written or counted, independent of the speed of the flood.
    let number = |text: &str| text.split(' ').next().unwrap().parse::<usize>().unwrap();
    let (mut notes, mut omitted, mut omitted_of_all_sites) = (0, 0, 0);
    for entry in log.lines() {
        let is_note = entry.contains(" like this left out before)");
        let count = if let Some((rest, _)) = entry.split_once(" like this left out before)") {
            number(rest.rsplit_once('(').unwrap().1)
        } else if entry.contains("like this one: ") {
            number(entry.split_once("left out ").unwrap().1)
        } else {
            continue;
        };
        // Each request also has an audit line, which has a limit of its own.
        omitted_of_all_sites += count;
        if entry.contains(line) {
            notes += usize::from(is_note);
            omitted += count;
        }
    }
    let lines = written + notes + omitted;
    assert_eq!((omitted_of_all_sites, lines), (counted, REQUESTS), "{log}");
}

#[test]
fn request_with_many_agents_logs_one_line() {
    let dir = TestDir::with_network();
    let master = Master::start(&dir);
    let ip = |number: u32| Ipv4Addr::from(0x0a00_0000 + number).to_string();
    let agents: Vec<String> = (0..20_000).map(ip).collect();
    delete(master.address, &agents);
    let (_, log) = master.process.terminate();
    let line = "nothing to delete of 20000 unknown agents: 10.0.0.0, 10.0.0.1, 10.0.0.2, 10.0.0.3, \
                10.0.0.4, 10.0.0.5, 10.0.0.6, 10.0.0.7, 10.0.0.8, 10.0.0.9 and 19990 more";
    assert_eq!(count(&log, line), 1, "{log}");
    assert_eq!(count(&log, "unknown agent"), 1, "{log}");
}
