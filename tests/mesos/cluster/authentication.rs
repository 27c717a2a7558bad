//! The authentication of Mesos protects the endpoints of the modules in every Mesos process.

use serde_json::Value;

use super::host::{Cluster, Host, wait_until};
use super::mesos::{
    AGENT, AGENT_PORT, MASTER, MASTER_ADDRESS, MASTER_PORT, Parameters, modules, start_mesos_agent,
    start_mesos_master, start_program_agent,
};

const CREDENTIALS: &str = r#"{"credentials": [
    {"principal": "operator", "secret": "wqpe"}, {"principal": "viewer", "secret": "seen"}]}"#;
/// "operator:wqpe" in base64.
const AUTHORIZATION: (&str, &str) = ("Authorization", "Basic b3BlcmF0b3I6d3FwZQ==");
/// "viewer:seen".
const VIEWER_AUTHORIZATION: (&str, &str) = ("Authorization", "Basic dmlld2VyOnNlZW4=");
/// "operator:guess".
const WRONG_AUTHORIZATION: (&str, &str) = ("Authorization", "Basic b3BlcmF0b3I6Z3Vlc3M=");

/// The flags that protect all endpoints of a Mesos process.
const PROTECTED: [&str; 2] = ["--authenticate_http_readonly", "--authenticate_http_readwrite"];

const AGENT_REQUESTS: [(&str, &str, &str); 4] = [
    ("GET", "/overlay-agent/overlay", ""),
    ("GET", "/overlay-agent/health", ""),
    ("GET", "/overlay-agent/probes", ""),
    ("GET", "/overlay-agent/metrics", ""),
];
const MASTER_REQUESTS: [(&str, &str, &str); 4] = [
    ("GET", "/overlay-master/state", ""),
    ("GET", "/overlay-master/health", ""),
    ("GET", "/overlay-master/metrics", ""),
    ("POST", "/overlay-master/agents/delete", r#"{"agents":["10.0.0.9"]}"#),
];

/// Writes the credentials file. Returns the value of the flag that refers to it.
fn credentials(host: &Host) -> String {
    format!("file://{}", host.write("credentials.json", CREDENTIALS))
}

fn assert_protected(host: &Host, port: u16, requests: &[(&str, &str, &str)]) {
    let status = |method: &str, path: &str, headers: &[(&str, &str)], body: &str| {
        host.request(port, method, path, headers, body).map(|response| response.status)
    };
    for &(method, path, body) in requests {
        // Mesos installs its authenticators shortly after it has created the modules.
        let event = format!("{method} {path} is protected");
        wait_until(&event, || status(method, path, &[], body), |status| *status == Some(401));
        assert_eq!(status(method, path, &[WRONG_AUTHORIZATION], body), Some(401), "{path}");
        let event = format!("{method} {path} is served");
        let served = || status(method, path, &[AUTHORIZATION], body);
        wait_until(&event, served, |status| *status == Some(200));
    }
}

#[test]
#[ignore = "mesos: needs a Mesos installation, root and packages: tests/run mesos"]
fn endpoints_in_every_process_are_protected() {
    let mut cluster = Cluster::new();
    let (hub, host) = (cluster.hub().clone(), cluster.add_host());
    // As in DC/OS, mesos-master also loads the agent module, which registers as another agent.
    let agent = Parameters::agent(&hub, MASTER_ADDRESS).with(&[("allocate_subnet", "false")]);
    let list = modules(&hub, &[(MASTER, &Parameters::master(&hub)), (AGENT, &agent)]);
    let credential_flag = format!("--credentials={}", credentials(&hub));
    let _master = start_mesos_master(&hub, &list, &[&PROTECTED[..], &[&credential_flag]].concat());
    let list = modules(&host, &[(AGENT, &Parameters::agent(&host, MASTER_ADDRESS))]);
    let credential_flag = format!("--http_credentials={}", credentials(&host));
    let flags = [&PROTECTED[..], &[&credential_flag]].concat();
    let _agent = start_mesos_agent(&host, MASTER_ADDRESS, &list, &flags);

    assert_protected(&hub, MASTER_PORT, &MASTER_REQUESTS);
    assert_protected(&hub, MASTER_PORT, &AGENT_REQUESTS);
    assert_protected(&host, AGENT_PORT, &AGENT_REQUESTS);
    let state = hub.request(MASTER_PORT, "GET", "/overlay-master/state", &[AUTHORIZATION], "");
    let state = state.expect("a response").json();
    let agents: Vec<_> = state["agents"].as_array().into_iter().flatten().collect();
    assert_eq!(agents.len(), 2, "{state}");
    assert_eq!((&agents[0]["ip"], &agents[1]["ip"]), (&"10.0.0.1".into(), &"10.0.0.2".into()));
}

#[test]
#[ignore = "mesos: needs a Mesos installation, root and packages: tests/run mesos"]
fn delete_by_principal_of_mesos_is_audited() {
    let mut cluster = Cluster::new();
    let (hub, host) = (cluster.hub().clone(), cluster.add_host());
    let parameters = Parameters::master(&hub).with(&[("acls", r#"{"write":["operator"]}"#)]);
    let list = modules(&hub, &[(MASTER, &parameters)]);
    let credential_flag = format!("--credentials={}", credentials(&hub));
    let master = start_mesos_master(&hub, &list, &[&PROTECTED[..], &[&credential_flag]].concat());
    let agent = start_program_agent(&host, MASTER_ADDRESS);
    let read = |path: &str| {
        let response = hub.request(MASTER_PORT, "GET", path, &[VIEWER_AUTHORIZATION], "");
        response.filter(|response| response.status == 200).map(|response| response.json())
    };
    let is_registered = |state: &Option<Value>| {
        state.as_ref().is_some_and(|state| state["agents"][0]["ip"] == "10.0.0.2")
    };
    wait_until("the agent is registered", || read("/overlay-master/state"), is_registered);
    drop(agent);

    let delete = |authorization| {
        let path = "/overlay-master/agents/delete";
        let body = r#"{"agents":["10.0.0.2"]}"#;
        hub.request(MASTER_PORT, "POST", path, &[authorization], body).expect("a response").status
    };
    assert_eq!((delete(VIEWER_AUTHORIZATION), delete(AUTHORIZATION)), (403, 200));
    let line = master.wait_for_log("audit: operator from 10.0.0.1:");
    assert!(line.ends_with(": delete 1 agent: 10.0.0.2: 200 OK"), "{line}");
    let line = master.wait_for_log("audit: refused POST /overlay-master/agents/delete");
    assert!(line.contains("viewer"), "{line}");
    let history = read("/overlay-master/history").expect("the history");
    let entries = history["entries"].as_array().expect("a list");
    let released = entries.iter().find(|entry| entry["event"] == "released").expect("an entry");
    assert_eq!(
        (&released["agent"], &released["principal"]),
        (&"10.0.0.2".into(), &"operator".into())
    );
    let client = released["client"].as_str().expect("an address");
    assert!(client.starts_with("10.0.0.1:"), "{client}");
}
