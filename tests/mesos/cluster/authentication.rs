//! The authentication of Mesos protects the endpoints of the modules in every Mesos process.

use super::host::{Cluster, Host, wait_until};
use super::mesos::{
    AGENT, AGENT_PORT, MASTER, MASTER_ADDRESS, MASTER_PORT, Parameters, modules, start_mesos_agent,
    start_mesos_master,
};

const CREDENTIALS: &str = r#"{"credentials": [{"principal": "operator", "secret": "wqpe"}]}"#;
/// "operator:wqpe" in base64.
const AUTHORIZATION: (&str, &str) = ("Authorization", "Basic b3BlcmF0b3I6d3FwZQ==");
/// "operator:guess".
const WRONG_AUTHORIZATION: (&str, &str) = ("Authorization", "Basic b3BlcmF0b3I6Z3Vlc3M=");

/// The flags that protect all endpoints of a Mesos process.
const PROTECTED: [&str; 2] = ["--authenticate_http_readonly", "--authenticate_http_readwrite"];

const AGENT_REQUESTS: [(&str, &str, &str); 3] = [
    ("GET", "/overlay-agent/overlay", ""),
    ("GET", "/overlay-agent/health", ""),
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
