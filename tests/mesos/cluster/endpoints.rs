//! What a cluster of real Mesos processes shows: the endpoints and the CNI files in the form that
//! those of the C++ modules had, metrics, and the log.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use super::docker::dockerd;
use super::form::{form, golden};
use super::host::{Cluster, Host, wait_for};
use super::mesos::{
    AGENT, AGENT_PORT, DOCKER, MASTER_ADDRESS, MASTER_PORT, Parameters, mesos_agent, module_agent,
    module_master, modules, ready, state,
};

#[test]
#[ignore = "mesos: needs a Mesos installation, root and packages: tests/run mesos"]
fn what_is_shown_has_the_form_of_the_cpp_modules() {
    let mut cluster = Cluster::new();
    let (hub, host) = (cluster.hub().clone(), cluster.host());
    let _docker = dockerd(&host);
    let _master = module_master(&hub);
    let parameters = Parameters::agent(&host, MASTER_ADDRESS).without("docker_bridge");
    let modules = modules(&host, &[(AGENT, &parameters.with(&[("docker", DOCKER)]))]);
    let _agent = mesos_agent(&host, MASTER_ADDRESS, &modules, &[]);
    ready(&hub, &[&host]);

    // Not only the form: a first agent gets the same of the same network.
    let state = state(&hub);
    let recorded = golden!("overlay-master-state.json");
    assert_eq!(form(&state), form(&recorded));
    assert_eq!(state["network"], recorded["network"]);
    assert_eq!(state["agents"][0]["overlays"], recorded["agents"][0]["overlays"]);

    let overlay = host.get(AGENT_PORT, "/overlay-agent/overlay").expect("an answer");
    assert!(overlay.head.contains("content-type: application/json"), "{overlay:?}");
    let recorded = golden!("overlay-agent-overlay.json");
    assert_eq!(form(&overlay.json()), form(&recorded));
    assert_eq!(overlay.json()["overlays"], state["agents"][0]["overlays"]);
    let accept = [("Accept", "application/x-protobuf")];
    let overlay = host.request(AGENT_PORT, "GET", "/overlay-agent/overlay", &accept, "");
    let overlay = overlay.expect("an answer");
    assert!(overlay.head.contains("content-type: application/x-protobuf"), "{overlay:?}");
    // The recorded agent has another address: of five bytes less.
    let recorded = include_bytes!("../../golden/overlay-agent-overlay.pb");
    let shorter = "127.0.0.1".len() - host.ip.to_string().len();
    assert_eq!(overlay.body.len(), recorded.len() - shorter);

    let written = fs::read(host.path("cni/vxlan-1.conf")).expect("the agent wrote it");
    let mut written: Value = serde_json::from_slice(&written).expect("it is JSON");
    let mut recorded = golden!("cni-vxlan-1.conf");
    let place = "/delegate/ipam/dataDir";
    assert_eq!(written.pointer(place), Some(&Value::from(host.text("leases"))));
    *written.pointer_mut(place).expect("as above") = Value::Null;
    *recorded.pointer_mut(place).expect("it is recorded") = Value::Null;
    assert_eq!(written, recorded);
}

#[test]
#[ignore = "mesos: needs a Mesos installation, root and packages: tests/run mesos"]
fn metrics_and_log_are_those_of_mesos_and_sigusr1_ends_the_agent() {
    let mut cluster = Cluster::new();
    let (hub, host) = (cluster.hub().clone(), cluster.host());
    let master = module_master(&hub);
    let mut agent = module_agent(&host, MASTER_ADDRESS);
    ready(&hub, &[&host]);

    let snapshot =
        |host: &Host, port| host.get(port, "/metrics/snapshot").expect("an answer").json();
    let names = |metrics: &Value| -> BTreeSet<String> {
        metrics.as_object().expect("an object").keys().cloned().collect()
    };
    let is_ours = |name: &&String| !name.starts_with("overlay/master/log/");
    let (shown, recorded) = (snapshot(&hub, MASTER_PORT), golden!("metrics-master.json"));
    let recorded = names(&recorded).iter().filter(is_ours).cloned().collect::<BTreeSet<_>>();
    assert_eq!(recorded.difference(&names(&shown)).count(), 0, "{recorded:?}\n{shown}");
    assert_eq!(shown["overlay/master/internal/register_agent_messages_received"], 1.0);
    let (shown, recorded) = (snapshot(&host, AGENT_PORT), golden!("metrics-agent.json"));
    assert_eq!(names(&recorded).difference(&names(&shown)).count(), 0, "{recorded:?}\n{shown}");
    assert_eq!(shown["overlay/slave/internal/register_agent_messages_sent"], 1.0);
    assert_eq!(shown["overlay/slave/registering"], 0.0);

    // glog's form: severity, date, time, thread, file and line.
    let line = master.says("overlay master at 10.0.0.1:5050");
    assert!(line.starts_with('I') && line.contains(".rs:"), "{line}");
    let verbose = |log: &str| log.contains("] overlay-master: ");
    assert!(!verbose(&master.log()));
    let toggle = "/logging/toggle?level=2&duration=1mins";
    assert_eq!(hub.get(MASTER_PORT, toggle).expect("an answer").status, 200);
    assert_eq!(hub.get(MASTER_PORT, "/overlay-master/state").expect("an answer").status, 200);
    wait_for("verbose lines appear", || verbose(&master.log()).then_some(()));

    let help = hub.get(MASTER_PORT, "/help/overlay-master/state").expect("an answer");
    assert!(help.text().contains("The overlay networks"), "{help:?}");

    agent.signal(Signal::USR1);
    let status = agent.ended_within(Duration::from_secs(10));
    assert!(status.success(), "{status}: {}", agent.log());
}

#[test]
#[ignore = "mesos: needs a Mesos installation, root and packages: tests/run mesos"]
fn a_docker_that_hangs_does_not_keep_the_agent_from_ending() {
    let mut cluster = Cluster::new();
    let (hub, host) = (cluster.hub().clone(), cluster.host());
    let _master = module_master(&hub);
    let docker = host.write("docker", "#!/bin/sh\ntouch \"$0.called\"\nexec sleep 4321\n");
    host.succeed("chmod", &["755", &docker]);
    let parameters = Parameters::agent(&host, MASTER_ADDRESS).without("docker_bridge");
    let list = modules(&host, &[(AGENT, &parameters.with(&[("docker", &docker)]))]);
    let mut agent = mesos_agent(&host, MASTER_ADDRESS, &list, &[]);
    wait_for("docker is called", || host.path("docker.called").exists().then_some(()));
    agent.signal(Signal::USR1);
    let status = agent.ended_within(Duration::from_secs(10));
    assert!(status.success(), "{status}: {}", agent.log());
    assert!(!host.succeed("ps", &["-eo", "args"]).contains("sleep 4321"), "it is not left behind");
}
