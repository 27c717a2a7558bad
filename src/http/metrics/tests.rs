//! The metrics in the format of Prometheus, and the names of the metrics of Mesos.

use std::collections::{BTreeMap, BTreeSet};

use std::time::Duration;

use overlay_engine::agent::{self, Agent};
use overlay_engine::master::{self, Master};
use overlay_engine::metrics::{HostCounters, LogTally, Metric};
use overlay_engine::state_machine::StateMachine;

use super::super::{render_agent, render_master, route_agent, route_master};
use super::*;

const GOLDEN_MASTER: &str = include_str!("../../../tests/golden/metrics-master.json");
const GOLDEN_AGENT: &str = include_str!("../../../tests/golden/metrics-agent.json");

fn request(method: &str, path: &str) -> Request {
    request_accepting("application/openmetrics-text", method, path)
}

fn request_accepting(accept: &str, method: &str, path: &str) -> Request {
    let builder = http::Request::builder().method(method).uri(path);
    builder.header("accept", accept).body(bytes::Bytes::new()).unwrap()
}

fn text(response: &Response) -> &str {
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()[http::header::CONTENT_TYPE], OPEN_METRICS);
    std::str::from_utf8(response.body()).unwrap()
}

fn samples(text: &str) -> String {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .fold(String::new(), |all, line| all + line + "\n")
}

fn render_master_metrics(snapshot: Snapshot<master::Metrics>) -> String {
    let (routed, format) = route_master(&request("GET", "/overlay-master/metrics")).unwrap();
    assert_eq!(routed, master::Request::Metrics(Vec::new()));
    let reply = master::Reply::Metrics(Box::new(snapshot));
    text(&render_master(&reply, &format)).to_owned()
}

fn render_agent_metrics(snapshot: Snapshot<agent::Metrics>) -> String {
    let (routed, format) = route_agent(&request("GET", "/overlay-agent/metrics")).unwrap();
    assert_eq!(routed, agent::Request::Metrics);
    let reply = agent::Reply::Metrics(Box::new(snapshot));
    text(&render_agent(&reply, &format)).to_owned()
}

fn master_snapshot() -> Snapshot<master::Metrics> {
    Snapshot {
        metrics: master::Metrics {
            status: master::Condition::Degraded,
            epoch: 3,
            version: 41,
            authentication: master::AuthenticationTally {
                authenticated: 16,
                unauthenticated: 17,
                refused: 18,
            },
            agents: master::AgentTally {
                authenticated: 16,
                total: 9,
                ok: 3,
                failed: 2,
                unreported: 1,
                unassigned: 2,
                stale: 1,
            },
            oldest_contact: 1_700_000_000,
            peers: master::PeersTally {
                version: 9,
                agents: 6,
                subscribers: 4,
                plain_subscribers: 1,
            },
            full_halves: 4,
            nearly_full_halves: 5,
            counters: master::Counters { early_reuses: 7, ..Default::default() },
        },
        host: HostCounters {
            start_unix: 1_600_000_000,
            process_restarts: 1,
            dataplane_restarts: 2,
            refused: 5,
            limits: std::array::from_fn(|limit| match limit {
                1 => 2,
                _ => 0,
            }),
            authentication_failures: 3,
            forbidden_requests: 4,
            log: LogTally { lines_left_out: 8, lines_dropped: 9 },
        },
        configured: Vec::new(),
        histograms: Vec::new(),
    }
}

fn agent_snapshot() -> Snapshot<agent::Metrics> {
    Snapshot {
        metrics: agent::Metrics {
            is_master_authenticated: true,
            status: agent::Condition::Registering,
            overlays: agent::OverlayTally { ok: 1, failed: 1, ..Default::default() },
            peers: 4,
            peers_left_out: 1,
            peers_direct: 3,
            peers_vxlan: 4,
            probes: agent::ProbeTally { reached: 3, ..Default::default() },
            full_halves: 1,
            nearly_full_halves: 2,
            counters: agent::Counters { docker_cmd_failures: 2, ..Default::default() },
        },
        host: HostCounters::default(),
        configured: Vec::new(),
        histograms: Vec::new(),
    }
}

/// Returns a small catalogue in both formats: OpenMetrics and the text format of Prometheus.
fn render_small_catalogue() -> [String; 2] {
    const CATALOGUE: Catalogue<u64> = Catalogue {
        mesos_prefix: "box/",
        prometheus_prefix: "box",
        metrics: &[
            Metric::counter("internal/opened", "How often it was opened.", |seen| *seen),
            Metric::gauge_of("lids/open", "state", "Its lids.", |seen| seen % 2),
            Metric::gauge_of("lids/shut", "state", "Its lids.", |seen| 1 - seen % 2),
            Metric::host_counter("refused", "What did not fit.", |host| host.refused),
        ],
    };
    let odd = Family {
        name: "content",
        kind: Kind::Gauge,
        help: "Content of the box.",
        series: vec![
            Series { labels: vec![("what", "a \"b\\\n".to_owned())], value: 4 },
            Series { labels: vec![("what", "\u{1b}[2J\u{202e}日本".to_owned())], value: 5 },
        ],
    };
    const BOUNDS: &[Duration] = &[Duration::from_millis(5)];
    let mut durations = Histogram::new("waits", "Waits before it.", BOUNDS);
    for milliseconds in [5, 1, 6] {
        durations.observe(Duration::from_millis(milliseconds));
    }
    let host = HostCounters { refused: 2, ..HostCounters::default() };
    let snapshot =
        Snapshot { metrics: 5, host, configured: vec![odd], histograms: vec![durations] };
    ["application/openmetrics-text", "text/plain"].map(|accept| {
        let format = negotiate(&request_accepting(accept, "GET", "/"));
        let response = render(&CATALOGUE, &snapshot, &format);
        let text = std::str::from_utf8(response.body()).unwrap();
        text.replace(env!("CARGO_PKG_VERSION"), "VERSION")
    })
}

#[test]
fn small_catalogue_has_format_of_prometheus_text() {
    let [_, text] = render_small_catalogue();
    assert_eq!(
        text,
        "\
# HELP box_opened_total How often it was opened.
# TYPE box_opened_total counter
box_opened_total 5
# HELP box_lids Its lids.
# TYPE box_lids gauge
box_lids{state=\"open\"} 1
box_lids{state=\"shut\"} 0
# HELP box_refused_total What did not fit.
# TYPE box_refused_total counter
box_refused_total 2
# HELP box_content Content of the box.
# TYPE box_content gauge
box_content{what=\"a \\\"b\\\\\\n\"} 4
box_content{what=\"\\\\u{1b}[2J\\\\u{202e}日本\"} 5
# HELP box_waits Waits before it.
# TYPE box_waits histogram
box_waits_bucket{le=\"0.005\"} 2
box_waits_bucket{le=\"+Inf\"} 3
box_waits_sum 0.012
box_waits_count 3
# HELP mesos_overlay_build_info 1, with the version of the program as label.
# TYPE mesos_overlay_build_info gauge
mesos_overlay_build_info{version=\"VERSION\"} 1
"
    );
}

#[test]
fn accept_decides_between_text_and_openmetrics() {
    let content_type = |accept: &str| {
        let request = request_accepting(accept, "GET", "/overlay-agent/metrics");
        let (_, format) = route_agent(&request).unwrap();
        let reply = agent::Reply::Metrics(Box::new(agent_snapshot()));
        render_agent(&reply, &format).headers()[http::header::CONTENT_TYPE].clone()
    };
    // The headers of Prometheus 1 and 2, of curl, and of a browser.
    let prometheus = "application/openmetrics-text;version=1.0.0;q=0.8,\
                      application/openmetrics-text;version=0.0.1;q=0.75,\
                      text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    for accept in [prometheus, "application/openmetrics-text, */*", "application/openmetrics-text"]
    {
        assert_eq!(content_type(accept), OPEN_METRICS, "{accept}");
    }
    for accept in [
        "text/plain;version=0.0.4",
        "text/plain;version=0.0.4;q=0.9,application/openmetrics-text;version=1.0.0;q=0.5",
        "application/openmetrics-text;version=9.0.0,text/plain;q=0.1",
        "application/openmetrics-text;q=0, text/plain",
        "*/*",
        "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
        "application/json",
    ] {
        assert_eq!(content_type(accept), PROMETHEUS_TEXT, "{accept}");
    }
    let request = http::Request::get("/overlay-agent/metrics").body(bytes::Bytes::new()).unwrap();
    assert_eq!(negotiate(&request).body, BodyFormat::PrometheusText);
}

#[test]
fn small_catalogue_has_openmetrics_format() {
    let [text, _] = render_small_catalogue();
    assert_eq!(
        text,
        "\
# HELP box_opened How often it was opened.
# TYPE box_opened counter
box_opened_total 5
# HELP box_lids Its lids.
# TYPE box_lids gauge
box_lids{state=\"open\"} 1
box_lids{state=\"shut\"} 0
# HELP box_refused What did not fit.
# TYPE box_refused counter
box_refused_total 2
# HELP box_content Content of the box.
# TYPE box_content gauge
box_content{what=\"a \\\"b\\\\\\n\"} 4
box_content{what=\"\\\\u{1b}[2J\\\\u{202e}日本\"} 5
# HELP box_waits Waits before it.
# TYPE box_waits histogram
box_waits_sum 0.012
box_waits_count 3
box_waits_bucket{le=\"0.005\"} 2
box_waits_bucket{le=\"+Inf\"} 3
# HELP mesos_overlay_build_info 1, with the version of the program as label.
# TYPE mesos_overlay_build_info gauge
mesos_overlay_build_info{version=\"VERSION\"} 1
# EOF
"
    );
}

#[test]
fn master_metrics_are_rendered() {
    let samples = samples(&render_master_metrics(master_snapshot()));
    for line in [
        "mesos_overlay_master_recovering 0",
        "mesos_overlay_master_process_restarts_total 1",
        "mesos_overlay_master_process_start_time_seconds 1600000000",
        "mesos_overlay_master_register_agent_messages_received_total 0",
        "mesos_overlay_master_status{status=\"ok\"} 0",
        "mesos_overlay_master_status{status=\"degraded\"} 1",
        "mesos_overlay_master_agents{state=\"ok\"} 3",
        "mesos_overlay_master_agents{state=\"failed\"} 2",
        "mesos_overlay_master_agents{state=\"unreported\"} 1",
        "mesos_overlay_master_agents{state=\"unassigned\"} 2",
        "mesos_overlay_master_agents{state=\"stale\"} 1",
        "mesos_overlay_master_oldest_contact_timestamp_seconds 1700000000",
        "mesos_overlay_master_peers 6",
        "mesos_overlay_master_peers_subscribers 4",
        "mesos_overlay_master_epoch 3",
        "mesos_overlay_master_version 41",
        "mesos_overlay_master_container_halves_full 4",
        "mesos_overlay_master_container_halves_nearly_full 5",
        "mesos_overlay_master_early_reuses_total 7",
        "mesos_overlay_master_refused_total 5",
        "mesos_overlay_master_limit_refusals_total{limit=\"connections_per_address\"} 2",
        "mesos_overlay_master_limit_refusals_total{limit=\"write_timeout\"} 0",
        "mesos_overlay_master_log_lines_left_out_total 8",
        "mesos_overlay_master_authentication_failures_total 3",
        "mesos_overlay_master_forbidden_requests_total 4",
        "mesos_overlay_master_log_lines_dropped_total 9",
    ] {
        assert!(samples.contains(&format!("{line}\n")), "{line} is not in\n{samples}");
    }
    let mut recovering = master_snapshot();
    recovering.metrics.status = master::Condition::Failed;
    assert!(render_master_metrics(recovering).contains("\nmesos_overlay_master_recovering 1\n"));
}

/// The samples of [`agent_snapshot`].
const AGENT_SAMPLES: &str = "\
mesos_overlay_agent_registering 1
mesos_overlay_agent_overlay_config_failed 0
mesos_overlay_agent_overlays_without_subnets 0
mesos_overlay_agent_overlay_config_failures_total 0
mesos_overlay_agent_docker_cmd_failures_total 2
mesos_overlay_agent_register_agent_messages_sent_total 0
mesos_overlay_agent_update_agent_overlays_messages_received_total 0
mesos_overlay_agent_update_agent_overlays_messages_dropped_total 0
mesos_overlay_agent_agent_registered_messages_sent_total 0
mesos_overlay_agent_agent_registered_messages_dropped_total 0
mesos_overlay_agent_agent_registered_acknowledgements_received_total 0
mesos_overlay_agent_agent_registered_acknowledgements_dropped_total 0
mesos_overlay_agent_status{status=\"ok\"} 0
mesos_overlay_agent_status{status=\"degraded\"} 0
mesos_overlay_agent_status{status=\"registering\"} 1
mesos_overlay_agent_status{status=\"detached\"} 0
mesos_overlay_agent_status{status=\"failed\"} 0
mesos_overlay_agent_overlays{state=\"ok\"} 1
mesos_overlay_agent_overlays{state=\"failed\"} 1
mesos_overlay_agent_overlays{state=\"configuring\"} 0
mesos_overlay_agent_process_restarts_total 0
mesos_overlay_agent_connections_lost_total 0
mesos_overlay_agent_master_authenticated 1
mesos_overlay_agent_unauthentic_messages_refused_total 0
mesos_overlay_agent_malformed_messages_total 0
mesos_overlay_agent_unexpected_messages_total 0
mesos_overlay_agent_request_peers_messages_sent_total 0
mesos_overlay_agent_update_peers_messages_received_total 0
mesos_overlay_agent_update_peers_messages_dropped_total 0
mesos_overlay_agent_registration_problems_messages_received_total 0
mesos_overlay_agent_peers 4
mesos_overlay_agent_peers_left_out 1
mesos_overlay_agent_peers_direct 3
mesos_overlay_agent_peers_vxlan 4
mesos_overlay_agent_dataplane_changes_total 0
mesos_overlay_agent_dataplane_repairs_total 0
mesos_overlay_agent_dataplane_failures_total 0
mesos_overlay_agent_container_network_repairs_total 0
mesos_overlay_agent_container_halves_full 1
mesos_overlay_agent_container_halves_nearly_full 2
mesos_overlay_agent_leases_released_total 0
mesos_overlay_agent_dataplane_restarts_total 0
mesos_overlay_agent_probe_packets_sent_total 0
mesos_overlay_agent_probe_packets_lost_total 0
mesos_overlay_agent_probe_path_packets_sent_total 0
mesos_overlay_agent_probe_path_packets_lost_total 0
mesos_overlay_agent_peer_failures_messages_sent_total 0
mesos_overlay_agent_probe_peers_reached 3
mesos_overlay_agent_probe_peers_unreachable 0
mesos_overlay_agent_probe_peers_large_lost 0
mesos_overlay_agent_probe_peers_by_loss{lost_of_8=\"0\"} 0
mesos_overlay_agent_probe_peers_by_loss{lost_of_8=\"1\"} 0
mesos_overlay_agent_probe_peers_by_loss{lost_of_8=\"2\"} 0
mesos_overlay_agent_probe_peers_by_loss{lost_of_8=\"3\"} 0
mesos_overlay_agent_probe_peers_by_loss{lost_of_8=\"4\"} 0
mesos_overlay_agent_probe_peers_by_loss{lost_of_8=\"5\"} 0
mesos_overlay_agent_probe_peers_by_loss{lost_of_8=\"6\"} 0
mesos_overlay_agent_probe_peers_by_loss{lost_of_8=\"7\"} 0
mesos_overlay_agent_probe_peers_by_loss{lost_of_8=\"8\"} 0
mesos_overlay_agent_probe_round_trip_seconds 0.0
mesos_overlay_agent_process_start_time_seconds 0
mesos_overlay_agent_refused_total 0
mesos_overlay_agent_limit_refusals_total{limit=\"connections\"} 0
mesos_overlay_agent_limit_refusals_total{limit=\"connections_per_address\"} 0
mesos_overlay_agent_limit_refusals_total{limit=\"http_connections\"} 0
mesos_overlay_agent_limit_refusals_total{limit=\"http_connections_per_address\"} 0
mesos_overlay_agent_limit_refusals_total{limit=\"request_bytes\"} 0
mesos_overlay_agent_limit_refusals_total{limit=\"request_bytes_per_address\"} 0
mesos_overlay_agent_limit_refusals_total{limit=\"response_bytes\"} 0
mesos_overlay_agent_limit_refusals_total{limit=\"response_bytes_per_address\"} 0
mesos_overlay_agent_limit_refusals_total{limit=\"requests\"} 0
mesos_overlay_agent_limit_refusals_total{limit=\"requests_per_address\"} 0
mesos_overlay_agent_limit_refusals_total{limit=\"messages_per_second\"} 0
mesos_overlay_agent_limit_refusals_total{limit=\"messages_per_second_per_address\"} 0
mesos_overlay_agent_limit_refusals_total{limit=\"unsent_bytes\"} 0
mesos_overlay_agent_limit_refusals_total{limit=\"unsent_bytes_per_address\"} 0
mesos_overlay_agent_limit_refusals_total{limit=\"connects\"} 0
mesos_overlay_agent_limit_refusals_total{limit=\"connects_per_address\"} 0
mesos_overlay_agent_limit_refusals_total{limit=\"request_timeout\"} 0
mesos_overlay_agent_limit_refusals_total{limit=\"write_timeout\"} 0
mesos_overlay_agent_limit_refusals_total{limit=\"http_idle_timeout\"} 0
mesos_overlay_agent_log_lines_left_out_total 0
mesos_overlay_agent_authentication_failures_total 0
mesos_overlay_agent_forbidden_requests_total 0
mesos_overlay_agent_log_lines_dropped_total 0
mesos_overlay_build_info{version=\"VERSION\"} 1
";

#[test]
fn agent_metrics_are_rendered() {
    let samples = samples(&render_agent_metrics(agent_snapshot()));
    assert_eq!(samples, AGENT_SAMPLES.replace("VERSION", env!("CARGO_PKG_VERSION")));
}

/// Returns the names of the metrics of Mesos.
fn mesos_names<M: StateMachine>() -> BTreeSet<String> {
    let names = M::CATALOGUE.metrics.iter().map(|metric| metric.name);
    names.map(|name| format!("{}{name}", M::CATALOGUE.mesos_prefix)).collect()
}

#[test]
fn every_metric_name_of_cpp_modules_exists() {
    let missing = |golden: &str, names: &BTreeSet<String>| -> Vec<String> {
        let recorded: BTreeMap<String, f64> = serde_json::from_str(golden).unwrap();
        // The replicated log of Mesos exports its own metrics.
        let expected = recorded.into_keys().filter(|name| !name.contains("/log/"));
        expected.filter(|name| !names.contains(name)).collect()
    };
    assert_eq!(missing(GOLDEN_MASTER, &mesos_names::<Master>()), [""; 0]);
    assert_eq!(missing(GOLDEN_AGENT, &mesos_names::<Agent>()), [""; 0]);
}

/// Asserts that each family is declared once and followed by its samples only.
fn assert_valid(text: &str) {
    let mut seen = BTreeSet::new();
    let body = text.strip_suffix("# EOF\n").unwrap();
    for block in body.split("# HELP ").skip(1) {
        let (help, rest) = block.split_once('\n').unwrap();
        let (family, help) = help.split_once(' ').unwrap();
        assert!(help.ends_with('.') && !help.contains(['\\', '"']), "{family}: {help}");
        let is_plain = |letter: char| letter.is_ascii_lowercase() || "_0123456789".contains(letter);
        assert!(family.chars().all(is_plain), "{family}");
        assert!(seen.insert(family), "{family} is duplicated");
        let mut lines = rest.lines();
        let suffix = match lines.next().unwrap().strip_prefix(&format!("# TYPE {family} ")) {
            Some("counter") => "_total",
            Some("gauge") => "",
            other => panic!("{family}: {other:?}"),
        };
        let mut series = BTreeSet::new();
        for line in lines {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(value.parse::<f64>().is_ok_and(|value| value >= 0.0), "{line}");
            assert_eq!(name.split('{').next(), Some(&*format!("{family}{suffix}")), "{line}");
            assert!(series.insert(name), "{line} is duplicated");
        }
        assert!(!series.is_empty(), "{family} has no sample");
    }
}

#[test]
fn families_are_declared_once_with_valid_names() {
    assert_valid(&render_master_metrics(master_snapshot()));
    assert_valid(&render_agent_metrics(agent_snapshot()));
    assert_eq!(mesos_names::<Master>().len(), Master::CATALOGUE.metrics.len());
    assert_eq!(mesos_names::<Agent>().len(), Agent::CATALOGUE.metrics.len());
}

#[test]
fn query_selects_agents_of_metrics() {
    let routed = |query: &str| {
        let path = format!("/overlay-master/metrics?{query}");
        route_master(&request("GET", &path)).map(|(request, _)| request)
    };
    let agents =
        |ips: &[&str]| master::Request::Metrics(ips.iter().map(|ip| ip.parse().unwrap()).collect());
    assert_eq!(routed("").unwrap(), agents(&[]));
    let query = "agent=10.0.0.2,10.0.0.1,10.0.0.2";
    assert_eq!(routed(query).unwrap(), agents(&["10.0.0.1", "10.0.0.2"]));
    let many = |count: u8| {
        let agents: Vec<String> = (0..count).map(|last| format!("10.0.0.{last}")).collect();
        format!("agent={}", agents.join(","))
    };
    assert!(routed(&many(100)).is_ok());
    for (query, reason) in [
        (many(101), "agent: 101 agents are more than 100: name fewer agents"),
        (
            "agent=all".to_owned(),
            "agent: invalid IPv4 address syntax: write ?agent=10.0.0.1,10.0.0.2",
        ),
    ] {
        let refused = routed(&query).unwrap_err();
        assert_eq!(refused.status(), 400);
        let body = String::from_utf8_lossy(refused.body());
        assert!(body.contains(reason), "{body}");
    }
}

#[test]
fn metrics_refuse_post() {
    assert!(route_master(&request("HEAD", "/overlay-master/metrics/")).is_ok());
    let refused = route_master(&request("POST", "/overlay-master/metrics")).unwrap_err();
    assert_eq!(refused.status(), 405);
    let refused = route_agent(&request("POST", "/overlay-agent/metrics")).unwrap_err();
    assert_eq!(refused.status(), 405);
}
