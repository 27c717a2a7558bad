//! The metrics of the modules in the metrics of Mesos: their names and values.

use std::collections::BTreeSet;
use std::path::Path;

use mesos_network_overlay::runtime::Metrics;
use overlay_engine::agent::Agent;
use overlay_engine::master::Master;
use serde_json::{Map, Value};

use super::agent::load_agent;
use super::host::{Build, Host};
use super::master::{NETWORK, listen_as_agent, register_recorded_agent};
use super::peer::{deliver, wait_for};

const MASTER: &str = include_str!("../../golden/metrics-master.json");
const AGENT: &str = include_str!("../../golden/metrics-agent.json");

fn recorded_names(text: &str) -> BTreeSet<String> {
    let names: Map<String, Value> = serde_json::from_str(text).expect("an object");
    // Metrics of the replicated log exist only with the C++ module.
    names.into_iter().map(|(name, _)| name).filter(|name| !name.contains("/log/")).collect()
}

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn metric_names_match_cpp_modules_and_catalogue() {
    let mut host = Host::start(Build::release());
    assert!(!host.metrics().keys().any(|name| name.starts_with("overlay/")));
    host.load_master(NETWORK);
    load_agent(&mut host, "127.0.0.1:1", Path::new("cni"));
    let shown: BTreeSet<String> = host
        .metrics()
        .into_iter()
        .map(|(name, _)| name)
        .filter(|name| name.starts_with("overlay/"))
        .collect();
    let expected: Vec<_> = recorded_names(MASTER).union(&recorded_names(AGENT)).cloned().collect();
    let missing: Vec<_> = expected.iter().filter(|name| !shown.contains(*name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
    let (master, agent) = (Metrics::<Master>::catalogue(), Metrics::<Agent>::catalogue());
    let ours =
        master.metrics.iter().map(|metric| format!("{}{}", master.mesos_prefix, metric.name));
    let agents =
        agent.metrics.iter().map(|metric| format!("{}{}", agent.mesos_prefix, metric.name));
    assert_eq!(shown, ours.chain(agents).collect());
}

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn metric_values_follow_messages() {
    let mut host = Host::start(Build::release());
    host.load_master(NETWORK);
    let internal = "overlay/master/internal/";
    assert_eq!(host.metric(&format!("{internal}register_agent_messages_received")), 0.0);
    register_recorded_agent(&host, &listen_as_agent());
    for (name, expected) in [
        ("register_agent_messages_received", 1.0),
        ("update_agent_overlays_messages_sent", 1.0),
        ("agent_registered_messages_received", 1.0),
        ("agent_registered_acknowledgements_sent", 1.0),
        ("register_agent_messages_dropped", 0.0),
    ] {
        assert_eq!(host.metric(&format!("{internal}{name}")), expected, "{name}");
    }
    let name = "mesos.modules.overlay.internal.RegisterAgentMessage";
    let from = "overlay-agent@127.0.0.3:5051";
    assert_eq!(deliver(host.address, "overlay-master", name, from, b"\xff"), 202);
    wait_for("metric of malformed messages", || {
        (host.metric("overlay/master/malformed_messages") == 1.0).then_some(())
    });
    assert_eq!(host.metric("overlay/master/process_restarts"), 0.0);
    let prometheus = host.get("/overlay-master/metrics");
    assert_eq!(prometheus.status, 200);
    assert!(prometheus.text().contains("process_restarts"), "{}", prometheus.text());
}
