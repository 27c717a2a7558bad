//! `connectivity` against fake agents on loopback addresses, and against servers that are none.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::thread::Builder;

use serde_json::{Value, json};

use crate::support::{FakeMaster, Outcome, TestDir, http_response};

const RECORDED_STATE: &str = include_str!("../golden/overlay-master-state.json");

/// Agents at the first addresses of a network that only one test uses, on one port.
struct Agents {
    master: FakeMaster,
    port: u16,
}

impl Agents {
    /// Starts an agent in 127.0.`network`.0/24 for each response. `None` is an address without a
    /// server.
    fn start(network: u8, responses: &[Option<String>]) -> Self {
        let port = free_port();
        let mut ips = Vec::new();
        for (index, response) in responses.iter().enumerate() {
            let ip = Ipv4Addr::new(127, 0, network, u8::try_from(index + 1).unwrap());
            ips.push(ip.to_string());
            if let Some(response) = response {
                serve(&format!("{ip}:{port}"), response.clone());
            }
        }
        Self { master: master_of(&ips), port }
    }

    fn run(&self, arguments: &str) -> Outcome {
        let Self { master, port } = self;
        let address = &master.address;
        let command = format!("connectivity --master {address} --agent-port {port} {arguments}");
        let outcome = TestDir::new().run(&command);
        let hide = |text: String| text.replace(address, "MASTER");
        Outcome { code: outcome.code, stdout: hide(outcome.stdout), stderr: hide(outcome.stderr) }
    }
}

/// Returns a port that is free at all addresses of the tests.
fn free_port() -> u16 {
    TcpListener::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port()
}

/// Serves one response to every request.
fn serve(address: &str, response: String) {
    let listener = TcpListener::bind(address).unwrap();
    let serve = move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(response.as_bytes());
        }
    };
    Builder::new().spawn(serve).unwrap();
}

fn master_of(ips: &[String]) -> FakeMaster {
    let mut state: Value = serde_json::from_str(RECORDED_STATE).unwrap();
    let recorded = state["agents"][0].clone();
    let agent = |ip: &String| {
        let mut agent = recorded.clone();
        agent["ip"] = json!(ip);
        agent
    };
    state["agents"] = ips.iter().map(agent).collect();
    FakeMaster::with_state(http_response("200 OK", &state.to_string()))
}

/// The response of an agent whose peers are all reached except these.
fn probes(peers: u64, failing: &[&str]) -> Option<String> {
    let named = failing
        .iter()
        .map(|agent| json!({ "agent": agent, "cause": "no answer", "lost": 8 }))
        .collect::<Vec<_>>();
    let body = json!({
        "status": if failing.is_empty() { "ok" } else { "degraded" }, "peers": peers,
        "ok": peers - failing.len() as u64, "lossy": 0, "failing": failing.len(), "unknown": 0,
        "round_trip_microseconds": { "min": 250, "median": 1_500, "max": 20_000 },
        "named": named
    });
    Some(http_response("200 OK", &body.to_string()))
}

#[test]
fn connected_cluster_is_shown_in_three_lines() {
    let agents = Agents::start(71, &[probes(2, &[]), probes(2, &[]), probes(2, &[])]);
    let expected = "\
master MASTER: 3 agents asked, 3 answered
pairs: 6 ok, 0 lossy, 0 unreachable, 0 unknown
latency: min 0.25 ms, median 1.50 ms, max 20.00 ms
";
    assert_eq!(agents.run("").success(), expected);
}

#[test]
fn agent_that_nobody_reaches_and_agent_without_answer_are_named() {
    let broken = ["127.0.72.3"];
    let agents = Agents::start(72, &[probes(2, &broken), probes(2, &broken), None]);
    let outcome = agents.run("");
    let expected = "\
master MASTER: 3 agents asked, 2 answered
pairs: 2 ok, 0 lossy, 2 unreachable, 2 unknown
latency: min 0.25 ms, median 1.50 ms, max 20.00 ms
127.0.72.3: unreachable from 2 of 2: no answer
127.0.72.3: not asked: Connection refused (os error 111)
";
    assert_eq!(outcome.stdout, expected);
    assert_eq!(
        outcome.failure(),
        "mesos-overlay: connectivity: 2 pairs broken: see the lines above\n"
    );
    let shown: Value = serde_json::from_str(&agents.run("-o json").stdout).unwrap();
    assert_eq!(shown["pairs"], json!({ "ok": 2, "lossy": 0, "broken": 2, "unknown": 2 }));
    assert_eq!(shown["broken"][0]["agent"]["unreachable_from"], 2);
    assert_eq!(shown["unasked"][0]["agents"], json!(["127.0.72.3"]));
}

#[test]
fn hostile_agents_are_bounded_and_escaped() {
    let long = http_response("200 OK", &"x".repeat(1 << 20));
    let cause = "\u{1b}[31m\n\u{202e}".repeat(1000);
    let body = json!({
        "status": "ok", "peers": u64::MAX, "ok": u64::MAX, "lossy": 0, "failing": u64::MAX,
        "named": [{ "agent": "10.0.0.1", "cause": cause, "lost": 4_294_967_295_u32 }]
    });
    let hostile = http_response("200 OK", &body.to_string());
    let agents = Agents::start(73, &[Some(long), Some(hostile), Some("nonsense".to_owned())]);
    let outcome = agents.run("");
    let text = outcome.transcript();
    assert_eq!(outcome.code, Some(1), "{text}");
    assert!(!text.contains('\u{1b}') && !text.contains('\u{202e}'), "{text}");
    assert!(text.len() < 6000, "{} bytes", text.len());
    assert!(text.contains("127.0.73.1: not asked: "), "{text}");
    assert!(text.contains("127.0.73.3: not asked: "), "{text}");
}

#[test]
fn silent_agent_ends_with_deadline() {
    let port = free_port();
    let _listener = TcpListener::bind(format!("127.0.74.1:{port}")).unwrap();
    let agents = Agents { master: master_of(&["127.0.74.1".to_owned()]), port };
    let outcome = agents.run("--timeout 300ms");
    assert!(
        outcome.stdout.ends_with("127.0.74.1: not asked: no answer in 300ms for all agents\n"),
        "{outcome:?}"
    );
    assert_eq!(
        outcome.failure(),
        "mesos-overlay: connectivity: no agent answers: see the reasons, and --agent-port\n"
    );
}

#[test]
fn agents_with_same_reason_share_line_and_lines_are_limited() {
    let not_found = Some(http_response("404 Not Found", ""));
    let agents = Agents::start(75, &vec![not_found; 6]);
    let shown = agents.run("").stdout;
    let line = "127.0.75.1, 127.0.75.2, 127.0.75.3, 127.0.75.4 and 2 more: not asked: it shows no \
                probes: it is a former version, or no agent\n";
    assert!(shown.ends_with(line), "{shown}");
    // Each agent does not reach another one that no other agent names.
    let pairs = |count: u8| {
        (0..count).map(|number| probes(40, &[&format!("10.9.0.{number}")])).collect::<Vec<_>>()
    };
    let agents = Agents::start(77, &pairs(25));
    let shown = agents.run("").stdout;
    assert!(shown.ends_with("… and 5 more lines: see --all\n"), "{shown}");
    assert_eq!(agents.run("--all").stdout.matches(" -> ").count(), 25);
}

#[test]
fn only_agent_that_requires_credential_gets_it() {
    const SECRET: &str = "s3cret-77";
    let dir = TestDir::new();
    dir.write("credential", json!({ "principal": "operator", "secret": SECRET }).to_string());
    let unauthorized = http_response("401 Unauthorized", "");
    let port = free_port();
    let agent = FakeMaster::start_at(
        &format!("127.0.76.1:{port}"),
        vec![
            ("/overlay-agent/probes?limit=1024 authorization: Basic", probes(0, &[]).unwrap()),
            ("/overlay-agent/probes?limit=1024", unauthorized),
        ],
    );
    assert!(agent.address.ends_with(&port.to_string()));
    let master = master_of(&["127.0.76.1".to_owned()]);
    let run = |more: &str| {
        dir.run(&format!("connectivity --master {} --agent-port {port} {more}", master.address))
    };
    let refused = run("").stdout;
    let reason = "401 Unauthorized: it requires a credential: see --agent-credential\n";
    assert!(refused.ends_with(reason), "{refused}");
    let outcome = run("--agent-credential credential");
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert!(!outcome.transcript().contains(SECRET), "{outcome:?}");
}
