//! The files in `monitoring`: a real Prometheus scrapes a real cluster, and evaluates every query of
//! the dashboard and every alert rule.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::{Cluster, MASTER_ADDRESS};
use crate::hosts::Underlay;
use crate::namespace::{BUSYBOX, require_root_and_files, run};
use crate::process::Process;

const PROMETHEUS: &str = "/usr/bin/prometheus";
const PROMTOOL: &str = "/usr/bin/promtool";
/// The address of Prometheus, in the namespace of the master.
const ADDRESS: &str = "127.0.0.1:9090";
const MONITORING: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/monitoring");
const DASHBOARD: &str = include_str!("../../../monitoring/dashboard.json");
/// The range of the rates, in place of the one that Grafana computes. It has many scrapes.
const RATE_INTERVAL: &str = "15s";

/// A Prometheus in the namespace of the master. It is dropped before the cluster.
struct Prometheus<'a> {
    cluster: &'a Cluster,
    _process: Process,
}

impl<'a> Prometheus<'a> {
    fn start(cluster: &'a Cluster) -> Self {
        let path = |name: &str| cluster.dir.path().join(name).display().to_string();
        let agents =
            cluster.hosts.iter().map(|host| format!("{}:5051", Underlay::V4.address(host.number)));
        let job = |name: &str, targets: Vec<String>| {
            json!({ "job_name": name, "metrics_path": format!("/{name}/metrics"),
                    "static_configs": [{ "targets": targets }] })
        };
        let config = json!({
            "global": { "scrape_interval": "1s", "evaluation_interval": "1s" },
            "rule_files": [format!("{MONITORING}/alerts.yml")],
            "scrape_configs": [
                job("overlay-master", vec![MASTER_ADDRESS.to_owned()]),
                job("overlay-agent", agents.collect()),
            ],
        });
        // JSON is YAML.
        fs::write(path("prometheus.yml"), config.to_string()).expect("a configuration");
        let mut command = cluster.namespace.command(PROMETHEUS);
        command.arg(format!("--config.file={}", path("prometheus.yml")));
        command.arg(format!("--storage.tsdb.path={}", path("prometheus")));
        command.arg(format!("--web.listen-address={ADDRESS}"));
        let process = Process::spawn(command, Path::new(&path("prometheus.log")));
        Self { cluster, _process: process }
    }

    /// Returns the data of an answer, or why there is none.
    fn get(&self, path: &str) -> Result<Value, String> {
        let url = format!("http://{ADDRESS}/api/v1/{path}");
        let mut command = self.cluster.namespace.command(BUSYBOX);
        let output = run(command.args(["wget", "-q", "-O", "-", &url]), "");
        let answer: Value = serde_json::from_slice(&output.stdout)
            .map_err(|error| format!("{error}: {}", String::from_utf8_lossy(&output.stderr)))?;
        if answer["status"] == "success" {
            Ok(answer["data"].clone())
        } else {
            Err(answer.to_string())
        }
    }

    /// Returns the series that a query results in.
    fn query(&self, query: &str) -> Result<Vec<Value>, String> {
        let encoded: String = form_urlencoded::byte_serialize(query.as_bytes()).collect();
        let data = self.get(&format!("query?query={encoded}"))?;
        Ok(data["result"].as_array().cloned().unwrap_or_default())
    }

    /// Waits until a query has a result.
    fn wait_for_result(&self, query: &str) {
        self.cluster.wait_for(query, || self.query(query).is_ok_and(|found| !found.is_empty()));
    }

    /// Returns the names of all metrics that were scraped.
    fn names(&self) -> BTreeSet<String> {
        let names = self.get("label/__name__/values").expect("the names");
        let names = names.as_array().into_iter().flatten();
        names.filter_map(Value::as_str).map(str::to_owned).collect()
    }

    /// Returns the alert rules.
    fn rules(&self) -> Vec<Value> {
        let groups = self.get("rules").expect("the rules");
        let groups = groups["groups"].as_array().into_iter().flatten();
        groups.flat_map(|group| group["rules"].as_array().cloned().unwrap_or_default()).collect()
    }
}

/// Returns the queries of the dashboard, with values for the variables of Grafana.
fn dashboard_queries() -> Vec<String> {
    let dashboard: Value = serde_json::from_str(DASHBOARD).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels").iter();
    let targets = panels.filter_map(|panel| panel["targets"].as_array()).flatten();
    let query = |target: &Value| {
        assert_eq!(target["datasource"]["uid"], "${datasource}", "{target}");
        let query = target["expr"].as_str().expect("a query");
        query.replace("$__rate_interval", RATE_INTERVAL).replace("$agent", ".*")
    };
    targets.map(query).collect()
}

/// Returns the metrics that a query names.
fn metrics_in(query: &str) -> BTreeSet<&str> {
    let is_part = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let words = query.split(|letter| !is_part(letter));
    words.filter(|word| word.starts_with("mesos_overlay_") || *word == "up").collect()
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn queries_of_dashboard_and_alerts_work_on_real_cluster() {
    require_root_and_files(&[PROMETHEUS, PROMTOOL]);
    let mut cluster = Cluster::new(Underlay::V4);
    for number in 1..=2 {
        cluster.add_host(number).config["verify_interval"] = json!("2s");
    }
    cluster.start_agents();
    cluster.wait_until_ok();
    let _containers = cluster.add_containers();
    let prometheus = Prometheus::start(&cluster);
    // Each agent knows the lease of its container, and probes reach the bridge of the other agent.
    prometheus.wait_for_result("sum(mesos_overlay_agent_container_addresses_used) >= 2");
    // The agents report the addresses of containers within a minute.
    prometheus.wait_for_result("sum(mesos_overlay_master_container_addresses_free) > 0");
    prometheus.wait_for_result("min(mesos_overlay_agent_probe_peers_reached) >= 1");
    let range = format!("min(count_over_time(mesos_overlay_agent_peers[{RATE_INTERVAL}])) >= 10");
    prometheus.wait_for_result(&range);
    let names = prometheus.names();
    let unknown = |query: &str| -> Vec<String> {
        metrics_in(query)
            .into_iter()
            .filter(|name| !names.contains(*name))
            .map(str::to_owned)
            .collect()
    };

    let queries = dashboard_queries();
    assert!(queries.len() > 40, "{queries:#?}");
    for query in queries {
        assert_eq!(unknown(&query), [""; 0], "{query}");
        let found = prometheus.query(&query).unwrap_or_else(|error| panic!("{query}: {error}"));
        assert!(!found.is_empty(), "{query} has no result");
    }

    let rules = prometheus.rules();
    assert!(rules.len() > 15, "{rules:#?}");
    for rule in rules {
        let query = rule["query"].as_str().expect("a query");
        assert_eq!(unknown(query), [""; 0], "{query}");
        // A rule that was evaluated without an error is "ok".
        assert_eq!((&rule["health"], &rule["lastError"]), (&json!("ok"), &Value::Null), "{rule}");
        assert_ne!(rule["state"], "firing", "the cluster is in order: {rule}");
    }
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn killed_agent_raises_alert_and_other_scrapes_go_on() {
    require_root_and_files(&[PROMETHEUS]);
    let mut cluster = Cluster::started(2, Underlay::V4);
    cluster.host_mut(2).agent.take().expect("a running agent").kill();
    let prometheus = Prometheus::start(&cluster);
    prometheus.wait_for_result("up{job=\"overlay-agent\"} == 0");
    prometheus.wait_for_result("ALERTS{alertname=\"MesosOverlayDown\",alertstate=\"pending\"}");
    for other in ["overlay-agent", "overlay-master"] {
        prometheus.wait_for_result(&format!("up{{job=\"{other}\"}} == 1"));
    }
    // Its peer may find its paths lost, and a target that was not scraped yet may seem absent. None
    // of these alerts fires before its time.
    let firing = prometheus.query("ALERTS{alertstate=\"firing\"}").expect("alerts");
    assert_eq!(firing, Vec::<Value>::new());
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn alert_rules_pass_their_cases() {
    require_root_and_files(&[PROMTOOL]);
    for arguments in [["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]] {
        let mut command = std::process::Command::new(PROMTOOL);
        let output = run(command.current_dir(MONITORING).args(arguments), "");
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    }
}
