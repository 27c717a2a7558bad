//! The endpoints, CNI files, metrics and logs of real Mesos processes with the modules. Endpoints
//! and CNI files have the JSON shape of the C++ modules.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use super::docker::start_dockerd;
use super::host::{Cluster, Host, wait_for};
use super::json_shape::{golden, json_shape};
use super::mesos::{
    AGENT, AGENT_PORT, DOCKER, MASTER_ADDRESS, MASTER_PORT, Parameters, modules, start_mesos_agent,
    start_module_agent, start_module_master, state, wait_until_ready,
};

#[test]
#[ignore = "mesos: needs a Mesos installation, root and packages: tests/run mesos"]
fn endpoints_and_cni_files_match_cpp_modules() {
    let mut cluster = Cluster::new();
    let (hub, host) = (cluster.hub().clone(), cluster.add_host());
    let _docker = start_dockerd(&host);
    let _master = start_module_master(&hub);
    let parameters = Parameters::agent(&host, MASTER_ADDRESS).without("docker_bridge");
    let modules = modules(&host, &[(AGENT, &parameters.with(&[("docker", DOCKER)]))]);
    let _agent = start_mesos_agent(&host, MASTER_ADDRESS, &modules, &[]);
    wait_until_ready(&hub, &[&host]);

    // The values are equal, too: the first agent of the same network gets the same addresses.
    let mut state = state(&hub);
    let agent = state["agents"][0].as_object_mut().expect("an agent is an object");
    // The extensions of the C++ format.
    let last_seen = agent.remove("last_seen").expect("the master has seen the agent");
    assert!(last_seen.is_number(), "{last_seen}");
    assert_eq!(agent.remove("version"), Some(env!("CARGO_PKG_VERSION").into()));
    let recorded = golden!("overlay-master-state.json");
    assert_eq!(json_shape(&state), json_shape(&recorded));
    assert_eq!(state["network"], recorded["network"]);
    assert_eq!(state["agents"][0]["overlays"], recorded["agents"][0]["overlays"]);

    let overlay = host.get(AGENT_PORT, "/overlay-agent/overlay").expect("a response");
    assert!(overlay.head.contains("content-type: application/json"), "{overlay:?}");
    let recorded = golden!("overlay-agent-overlay.json");
    assert_eq!(json_shape(&overlay.json()), json_shape(&recorded));
    assert_eq!(overlay.json()["overlays"], state["agents"][0]["overlays"]);
    let accept = [("Accept", "application/x-protobuf")];
    let overlay = host.request(AGENT_PORT, "GET", "/overlay-agent/overlay", &accept, "");
    let overlay = overlay.expect("a response");
    assert!(overlay.head.contains("content-type: application/x-protobuf"), "{overlay:?}");
    // The address of the recorded agent is longer, so its body is longer.
    let recorded = include_bytes!("../../golden/overlay-agent-overlay.pb");
    let shorter = "127.0.0.1".len() - host.ip.to_string().len();
    assert_eq!(overlay.body.len(), recorded.len() - shorter);

    let written = fs::read(host.path("cni/vxlan-1.conf")).expect("the agent wrote the file");
    let mut written: Value = serde_json::from_slice(&written).expect("the file is JSON");
    let mut recorded = golden!("cni-vxlan-1.conf");
    let data_dir = "/delegate/ipam/dataDir";
    assert_eq!(written.pointer(data_dir), Some(&Value::from(host.text("leases"))));
    *written.pointer_mut(data_dir).expect("the key exists") = Value::Null;
    *recorded.pointer_mut(data_dir).expect("the key exists") = Value::Null;
    assert_eq!(written, recorded);
}

#[test]
#[ignore = "mesos: needs a Mesos installation, root and packages: tests/run mesos"]
fn modules_use_metrics_and_log_of_mesos() {
    let mut cluster = Cluster::new();
    let (hub, host) = (cluster.hub().clone(), cluster.add_host());
    let master = start_module_master(&hub);
    let mut agent = start_module_agent(&host, MASTER_ADDRESS);
    wait_until_ready(&hub, &[&host]);

    let snapshot =
        |host: &Host, port| host.get(port, "/metrics/snapshot").expect("a response").json();
    let names = |metrics: &Value| -> BTreeSet<String> {
        metrics.as_object().expect("an object").keys().cloned().collect()
    };
    let is_own_metric = |name: &&String| !name.starts_with("overlay/master/log/");
    let (shown, recorded) = (snapshot(&hub, MASTER_PORT), golden!("metrics-master.json"));
    let recorded = names(&recorded).iter().filter(is_own_metric).cloned().collect::<BTreeSet<_>>();
    assert_eq!(recorded.difference(&names(&shown)).count(), 0, "{recorded:?}\n{shown}");
    assert_eq!(shown["overlay/master/internal/register_agent_messages_received"], 1.0);
    let (shown, recorded) = (snapshot(&host, AGENT_PORT), golden!("metrics-agent.json"));
    assert_eq!(names(&recorded).difference(&names(&shown)).count(), 0, "{recorded:?}\n{shown}");
    assert_eq!(shown["overlay/slave/internal/register_agent_messages_sent"], 1.0);
    assert_eq!(shown["overlay/slave/registering"], 0.0);

    // The format of glog: severity, date, time, thread, file and line.
    let line = master.wait_for_log("overlay master at 10.0.0.1:5050");
    assert!(line.starts_with('I') && line.contains(".rs:"), "{line}");
    let verbose = |log: &str| log.contains("] overlay-master: ");
    assert!(!verbose(&master.log()));
    let toggle = "/logging/toggle?level=2&duration=1mins";
    assert_eq!(hub.get(MASTER_PORT, toggle).expect("a response").status, 200);
    assert_eq!(hub.get(MASTER_PORT, "/overlay-master/state").expect("a response").status, 200);
    wait_for("verbose log lines", || verbose(&master.log()).then_some(()));

    let help = hub.get(MASTER_PORT, "/help/overlay-master/state").expect("a response");
    assert!(help.text().contains("The overlay networks"), "{help:?}");

    agent.signal(Signal::USR1);
    let status = agent.wait_for_exit(Duration::from_secs(10));
    assert!(status.success(), "{status}: {}", agent.log());
}

#[test]
#[ignore = "mesos: needs a Mesos installation, root and packages: tests/run mesos"]
fn agent_with_hanging_docker_stops_in_time() {
    let mut cluster = Cluster::new();
    let (hub, host) = (cluster.hub().clone(), cluster.add_host());
    let _master = start_module_master(&hub);
    let docker = host.write("docker", "#!/bin/sh\ntouch \"$0.called\"\nexec sleep 4321\n");
    host.run_ok("chmod", &["755", &docker]);
    let parameters = Parameters::agent(&host, MASTER_ADDRESS).without("docker_bridge");
    let list = modules(&host, &[(AGENT, &parameters.with(&[("docker", &docker)]))]);
    let mut agent = start_mesos_agent(&host, MASTER_ADDRESS, &list, &[]);
    wait_for("call of docker", || host.path("docker.called").exists().then_some(()));
    // mesos-agent handles signals once it answers requests.
    let answers = || host.get(AGENT_PORT, "/slave(1)/health").filter(|reply| reply.status == 200);
    wait_for("health of mesos-agent", answers);
    agent.signal(Signal::USR1);
    let status = agent.wait_for_exit(Duration::from_secs(10));
    assert!(status.success(), "{status}: {}", agent.log());
    // A killed process is in the list until the kernel has ended it.
    wait_for("the end of the docker process", || {
        (!host.run_ok("ps", &["-eo", "args"]).contains("sleep 4321")).then_some(())
    });
}
