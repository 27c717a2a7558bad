//! Compares the pages with the binary: flags, transcripts, metrics, alerts and log messages.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::help::all_subcommands;
use crate::support::{FakeMaster, Master, TestDir, http_response, program, start_agent};

const PAGE: &str = include_str!("../../docs/command-line.md");
/// The network of the examples.
const NETWORK: &str = include_str!("../../docs/network.json");
const MONITORING_PAGE: &str = include_str!("../../docs/monitoring.md");
const TROUBLESHOOTING_PAGE: &str = include_str!("../../docs/troubleshooting.md");
const ALERTS: &str = include_str!("../../monitoring/alerts.yml");
const ALERT_CASES: &str = include_str!("../../monitoring/alerts_test.yml");
/// The address of the master in the examples of the page.
const MASTER: &str = "10.0.0.1:5050";

#[test]
fn page_table_lists_every_subcommand() {
    let (_, table) = PAGE.split_once("\n## Subcommands\n").unwrap();
    let table = table.split("\n## ").next().unwrap();
    for subcommand in all_subcommands() {
        let first = subcommand.split(' ').next().unwrap();
        assert!(table.contains(&format!("[`{first}`](#{first})")), "table without {first}");
    }
}

#[test]
fn page_lists_every_flag_with_variable_and_default() {
    let dir = TestDir::new();
    for subcommand in all_subcommands() {
        let help = dir.run(&format!("{subcommand} --help")).success();
        let first = subcommand.split(' ').next().unwrap();
        let heading = format!("\n## {first}\n");
        let (_, section) = PAGE.split_once(&heading).expect(subcommand);
        let section = section.split("\n#").next().unwrap();
        for (flag, about) in flags(&help) {
            let scope = if flag == "--log" { PAGE } else { section };
            let row_start = format!("| `{flag}");
            let row = scope.lines().find(|line| {
                let rest = line.strip_prefix(&row_start);
                rest.is_some_and(|rest| rest.starts_with([' ', '`']))
            });
            let row = row.unwrap_or_else(|| {
                panic!("{subcommand} {flag}: the page has no row for this flag")
            });
            let variable =
                bracketed(&about, "env: ").expect("every flag has an environment variable");
            let variable = variable.split('=').next().unwrap();
            assert!(row.contains(&format!("| `{variable}` |")), "row without {variable}: {row}");
            // The page describes the default of --log in a sentence.
            if let Some(default) = bracketed(&about, "default: ").filter(|_| flag != "--log") {
                assert!(row.contains(&format!("| `{default}` |")), "row without {default}: {row}");
            }
        }
    }
}

/// Returns the text of README.md and of all pages in docs.
fn pages() -> String {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = std::fs::read_dir(root.join("docs")).unwrap();
    let docs = docs.map(|entry| entry.unwrap().path());
    let docs = docs.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    let pages = docs.chain([root.join("README.md")]);
    pages.map(|path| std::fs::read_to_string(path).unwrap()).collect()
}

#[test]
fn page_commands_have_existing_flags() {
    let dir = TestDir::new();
    let known: BTreeMap<&str, BTreeSet<String>> = all_subcommands()
        .map(|subcommand| {
            let help = dir.run(&format!("{subcommand} --help")).success();
            (subcommand, flags(&help).into_iter().map(|(flag, _)| flag).collect())
        })
        .collect();
    let mut count = 0;
    let pages = pages().replace("\\\n", " ");
    for command in pages.lines().flat_map(|line| line.split("mesos-overlay ").skip(1)) {
        // The end of the command in a shell, or of the code in a sentence.
        let command = command.split(['`', '\'', '|', '>', '&', ';', '#']).next().unwrap();
        let words: Vec<&str> = command.split_whitespace().collect();
        // `ipam check` before `ipam`
        let named = [2, 1].map(|count| words.get(..count).unwrap_or_default().join(" "));
        let Some(known) = named.iter().find_map(|subcommand| known.get(&**subcommand)) else {
            continue;
        };
        for word in words.iter().filter(|word| word.starts_with("--") && **word != "--help") {
            let flag = word.split('=').next().unwrap();
            assert!(known.contains(flag), "no flag {flag}: mesos-overlay {command}");
            count += 1;
        }
    }
    assert!(count > 40, "{count}");
}

/// Returns the flags in the output of `--help`, each with its description.
pub(crate) fn flags(help: &str) -> Vec<(String, String)> {
    let (_, options) = help.split_once("\nOptions:\n").unwrap();
    let mut flags: Vec<(String, String)> = Vec::new();
    for line in options.lines().take_while(|line| !line.starts_with("Examples:")) {
        let text = line.trim_start();
        let long =
            text.split_once(", ").filter(|(short, _)| short.len() == 2 && !text.starts_with("-h"));
        let text = long.map_or(text, |(_, long)| long);
        if let Some(name) = text.strip_prefix("--") {
            let name = name.split_whitespace().next().unwrap();
            flags.push((format!("--{name}"), String::new()));
        } else if text.starts_with("-h,") {
            break;
        }
        if let Some((_, about)) = flags.last_mut() {
            *about += text;
            about.push('\n');
        }
    }
    // Every subcommand has --log.
    assert!(!flags.is_empty(), "{help}");
    flags
}

/// Returns the value of the last `[KIND VALUE]` in `text`.
fn bracketed<'a>(text: &'a str, kind: &str) -> Option<&'a str> {
    let (_, rest) = text.rsplit_once(&format!("[{kind}"))?;
    rest.split(']').next()
}

#[test]
fn page_transcripts_match_output() {
    let dir = TestDir::new();
    dir.write("network.json", NETWORK);
    let master = fake_master();
    let mut subcommands = BTreeSet::new();
    for (command, expected) in transcripts() {
        if let Some(file) = command.strip_prefix("cat ") {
            dir.write(file, expected);
        } else if let Some(arguments) = command.strip_prefix("mesos-overlay ") {
            let outcome = dir.run(&arguments.replace(MASTER, &master.address));
            let output = format!("{}{}", outcome.stdout, outcome.stderr);
            let output = output.replace(&master.address, MASTER);
            assert_eq!(output, expected, "$ {command}\n{output}");
            subcommands.extend(arguments.split(' ').next().map(str::to_owned));
        }
    }
    let expected =
        ["check", "plan", "status", "state", "forget", "reload", "history", "export", "import"];
    let expected = expected.map(str::to_owned);
    assert_eq!(subcommands, BTreeSet::from(expected));
}

/// Returns the commands of the page, each with its output.
fn transcripts() -> Vec<(&'static str, String)> {
    let mut transcripts: Vec<(&str, String)> = Vec::new();
    let mut is_inside = false;
    for line in PAGE.lines() {
        if let Some(command) = line.strip_prefix("    $ ") {
            transcripts.push((command, String::new()));
            is_inside = true;
        } else if is_inside && (line.is_empty() || line.starts_with("    ")) {
            let (_, text) = transcripts.last_mut().unwrap();
            *text += line.strip_prefix("    ").unwrap_or(line);
            text.push('\n');
        } else {
            is_inside = false;
        }
    }
    // Remove the blank lines after each block.
    for (_, text) in &mut transcripts {
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    transcripts
}

#[expect(clippy::disallowed_methods, reason = "the ages of agents are shown")]
fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A master with the agents of the examples. One of these agents has no Docker.
fn fake_master() -> FakeMaster {
    let reason = "docker network vxlan-1: program 'docker' not found: install Docker on this agent, or \
                  set network_config.docker_bridge to false in its agent_config";
    let ok = serde_json::json!({ "status": "STATUS_OK" });
    let failed = serde_json::json!({ "status": "STATUS_FAILED", "error": reason });
    let mut agents = [agent("10.0.0.7", 1, &ok), agent("10.0.0.8", 2, &failed)];
    // The ages in the tables do not change during the test.
    let now = unix_now();
    for agent in &mut agents {
        agent["version"] = "1.2.0".into();
    }
    agents[0]["last_seen"] = (now - 90 * 60).into();
    agents[1]["last_seen"] = (now - 150 * 60).into();
    let network: serde_json::Value = serde_json::from_str(NETWORK).unwrap();
    let state = |agents: &[serde_json::Value]| {
        let state = serde_json::json!({ "network": network, "agents": agents });
        http_response("200 OK", &state.to_string())
    };
    let health = serde_json::json!({
        "status": "degraded",
        "problems": ["1 agent with a failed overlay: see the state for the reasons"],
        "epoch": 1,
        "version": 2
    });
    FakeMaster::start(vec![
        ("/overlay-master/state", state(&agents)),
        ("/overlay-master/health", http_response("200 OK", &health.to_string())),
        (
            "/overlay-master/agents/delete \"dry_run\":true",
            http_response("200 OK", &release_results("would_be_deleted")),
        ),
        (
            "/overlay-master/agents/delete 10.0.0.8",
            http_response("409 Conflict", &release_of_running_agent()),
        ),
        ("/overlay-master/agents/delete", http_response("200 OK", &release_results("deleted"))),
        ("/overlay-master/preview 10.4.0.0/17", http_response("409 Conflict", &changed_subnet())),
        ("/overlay-master/preview", http_response("200 OK", &added_overlay())),
        ("/overlay-master/reload", http_response("200 OK", &added_overlay())),
        ("/overlay-master/history?agent=10.0.0.7", http_response("200 OK", &history())),
    ])
}

/// The response to a request to delete the first agent and, if deleted, an unknown agent.
fn release_results(result: &str) -> String {
    let first = serde_json::json!({
        "ip": "10.0.0.7",
        "vtep_ip": "198.19.0.1",
        "subnets": ["198.18.0.0/24", "198.18.128.0/24"],
        "result": result,
        "heard_seconds_ago": 4000
    });
    let unknown = serde_json::json!({ "ip": "10.0.0.9", "subnets": [], "result": "not_known" });
    let agents = if result == "deleted" { vec![first, unknown] } else { vec![first] };
    serde_json::json!({ "agents": agents }).to_string()
}

/// The response to a request to delete a running agent.
fn release_of_running_agent() -> String {
    let second = serde_json::json!({
        "ip": "10.0.0.8",
        "vtep_ip": "198.19.0.2",
        "subnets": ["198.18.1.0/24", "198.18.129.0/24"],
        "result": "running",
        "heard_seconds_ago": 12
    });
    serde_json::json!({ "agents": [second] }).to_string()
}

/// The response to a configuration that adds an overlay.
fn added_overlay() -> String {
    let agent = |ip: &str, subnet: &str| {
        let of = serde_json::json!({ "of": "vxlan-3", "before": [], "after": [subnet] });
        serde_json::json!({ "ip": ip, "at_once": true, "addresses": [of] })
    };
    serde_json::json!({
        "accepted": true,
        "changes": ["overlay vxlan-3 is added: 10.3.0.0/17 in /24"],
        "problems": [],
        "warnings": [],
        "agents": [agent("10.0.0.7", "10.3.0.0/24"), agent("10.0.0.8", "10.3.1.0/24")]
    })
    .to_string()
}

/// The response to a configuration that changes the subnet of an overlay.
fn changed_subnet() -> String {
    let agent = |ip: &str, subnet: &str| {
        let of = serde_json::json!({ "of": "vxlan-1", "before": [subnet], "after": [] });
        serde_json::json!({ "ip": ip, "at_once": true, "addresses": [of] })
    };
    let problem = |ip: &str, subnet: &str| {
        format!(
            "agent {ip} is not served its allocation: overlay vxlan-1: {subnet} is none of the /24 subnets \
             of 10.4.0.0/17: fix the configuration or delete the agent"
        )
    };
    let agents = [("10.0.0.7", "198.18.0.0/24"), ("10.0.0.8", "198.18.1.0/24")];
    serde_json::json!({
        "accepted": false,
        "changes": ["overlay vxlan-1: subnet is 10.4.0.0/17 in /24 instead of 198.18.0.0/17 in /24"],
        "problems": agents.map(|(ip, subnet)| problem(ip, subnet)),
        "warnings": [],
        "agents": agents.map(|(ip, subnet)| agent(ip, subnet))
    })
    .to_string()
}

fn history() -> String {
    let entry = |time: &str, event: &str, reason: &str| {
        serde_json::json!({
            "at": 0,
            "time": time,
            "version": 1,
            "agent": "10.0.0.7",
            "event": event,
            "vtep_ip": "198.19.0.1",
            "overlays": [
                { "name": "vxlan-1", "subnet": "198.18.0.0/24" },
                { "name": "vxlan-2", "subnet": "198.18.128.0/24" }
            ],
            "reason": reason
        })
    };
    let entries = [
        entry("2026-03-02T08:15:00Z", "assigned", "it registered"),
        entry("2026-04-01T17:40:12Z", "released", "it was forgotten"),
    ];
    serde_json::json!({ "entries": entries }).to_string()
}

fn agent(ip: &str, number: u8, first: &serde_json::Value) -> serde_json::Value {
    let ok = serde_json::json!({ "status": "STATUS_OK" });
    let overlay = |name: &str, base: u8, state: &serde_json::Value| {
        let third = base + number - 1;
        serde_json::json!({
            "info": { "name": name, "subnet": format!("198.18.{base}.0/17"), "prefix": 24 },
            "subnet": format!("198.18.{third}.0/24"),
            "mesos_bridge": { "name": format!("m-{name}"), "ip": format!("198.18.{third}.0/25") },
            "docker_bridge": {
                "name": format!("d-{name}"),
                "ip": format!("198.18.{third}.128/25")
            },
            "backend": { "vxlan": {
                "vni": 1024,
                "vtep_name": "vtep1024",
                "vtep_ip": format!("198.19.0.{number}/16"),
                "vtep_mac": format!("70:b3:d5:13:00:0{number}")
            } },
            "state": state
        })
    };
    let overlays = [overlay("vxlan-1", 0, first), overlay("vxlan-2", 128, &ok)];
    serde_json::json!({ "ip": ip, "overlays": overlays })
}

/// The metrics of a master and of an agent that another program programs the dataplane for.
fn scrape() -> String {
    let dir = TestDir::with_network();
    let master = Master::start(&dir);
    let mut agent = start_agent(&dir, master.address, "127.0.0.2");
    let address = agent.expect_log("overlay agent at ");
    let address = address.split(',').next().unwrap();
    agent.expect_log("registered with the master");
    get(&master.address.to_string(), "/overlay-master/metrics?agent=127.0.0.2")
        + &get(address, "/overlay-agent/metrics")
}

#[test]
fn page_metrics_exist_in_binary() {
    let metrics = scrape();
    let is_name = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let names = |text| -> BTreeSet<&str> {
        let words = str::split(text, |letter| !is_name(letter));
        let is_metric = |word: &&str| {
            ["mesos_overlay_master_", "mesos_overlay_agent_"]
                .iter()
                .any(|prefix| word.starts_with(prefix))
        };
        words.filter(is_metric).collect()
    };
    let exported = names(&metrics);
    for (text, at_least) in [(&*pages(), 100), (ALERTS, 15)] {
        let documented = names(text);
        assert!(documented.len() >= at_least, "{documented:?}");
        // Only an agent that programs the dataplane counts the addresses of containers.
        let unknown: Vec<_> = documented
            .difference(&exported)
            .filter(|name| !name.contains("_container_addresses_"))
            .collect();
        assert!(unknown.is_empty(), "{unknown:?} are not in\n{metrics}");
    }
}

#[test]
fn page_lists_every_metric_with_type_and_meaning() {
    let metrics = scrape();
    let types: BTreeMap<&str, &str> =
        metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    let helps = metrics.lines().filter_map(|line| line.strip_prefix("# HELP ")?.split_once(' '));
    let rows: BTreeSet<String> =
        helps.map(|(name, help)| format!("| `{name}` | {} | {help} |", types[name])).collect();
    assert!(rows.len() > 100, "{rows:?}");
    let missing: Vec<&str> = rows
        .iter()
        .map(String::as_str)
        .filter(|row| !MONITORING_PAGE.lines().any(|line| line == *row))
        .collect();
    assert!(missing.is_empty(), "docs/monitoring.md lacks the rows\n{}", missing.join("\n"));
}

#[test]
fn every_alert_has_row_remedy_and_two_cases() {
    let mut alerts = ALERTS.split("- alert: ").skip(1).peekable();
    assert!(alerts.peek().is_some());
    for alert in alerts {
        let (name, rule) = alert.split_once('\n').unwrap();
        let severity = rule.split_once("severity: ").unwrap().1.lines().next().unwrap();
        let row = format!("| `{name}` | {severity} | ");
        assert!(MONITORING_PAGE.contains(&row), "docs/monitoring.md has no row {row}");
        assert!(rule.contains("summary: "), "{rule}");
        let (_, description) = rule.split_once("description: ").unwrap();
        assert!(description.matches('\'').count() >= 2, "{name} names no command: {description}");
        for case in ["fires", "is silent"] {
            let case = format!("\n  - name: {name} {case}\n");
            assert_eq!(ALERT_CASES.matches(&case).count(), 1, "alerts_test.yml: {case}");
        }
    }
}

fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
    response
}

#[test]
fn page_log_messages_exist_in_binary() {
    let binary = std::fs::read(program()).unwrap();
    let is_in_binary =
        |text: &str| binary.windows(text.len()).any(|window| window == text.as_bytes());
    let (_, tables) = TROUBLESHOOTING_PAGE.split_once("\n## By log text\n").unwrap();
    let (tables, _) = tables.split_once("\n## ").unwrap();
    // The first cell of a row has one or more texts in back quotes.
    let cells = tables.lines().filter_map(|line| line.strip_prefix("| `")?.split(" | ").next());
    let texts: Vec<&str> = cells
        .flat_map(|cell| cell.split('`').step_by(2))
        .filter(|text| text.contains(' '))
        .collect();
    assert!(texts.len() > 90, "{} texts: {texts:?}", texts.len());
    for text in texts {
        for part in text.split('…').filter(|part| part.len() > 4) {
            assert!(is_in_binary(part), "the binary does not contain {part:?}");
        }
    }
}
