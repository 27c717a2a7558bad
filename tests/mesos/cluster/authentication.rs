//! Mesos' authentication protects our endpoints, whichever process they are in.

use super::host::{Cluster, Host, wait_until};
use super::mesos::{
    AGENT, AGENT_PORT, MASTER, MASTER_ADDRESS, MASTER_PORT, Parameters, mesos_agent, mesos_master,
    modules,
};

const CREDENTIALS: &str = r#"{"credentials": [{"principal": "operator", "secret": "wqpe"}]}"#;
/// "operator:wqpe" in base64.
const AUTHORIZATION: (&str, &str) = ("Authorization", "Basic b3BlcmF0b3I6d3FwZQ==");
/// "operator:guess".
const GUESS: (&str, &str) = ("Authorization", "Basic b3BlcmF0b3I6Z3Vlc3M=");

/// The flags that protect all endpoints of a Mesos process.
const PROTECTED: [&str; 2] = ["--authenticate_http_readonly", "--authenticate_http_readwrite"];

const AGENTS: [(&str, &str, &str); 3] = [
    ("GET", "/overlay-agent/overlay", ""),
    ("GET", "/overlay-agent/health", ""),
    ("GET", "/overlay-agent/metrics", ""),
];
const MASTERS: [(&str, &str, &str); 4] = [
    ("GET", "/overlay-master/state", ""),
    ("GET", "/overlay-master/health", ""),
    ("GET", "/overlay-master/metrics", ""),
    ("POST", "/overlay-master/agents/delete", r#"{"agents":["10.0.0.9"]}"#),
];

/// The value of the flag for those who may use the endpoints.
fn credentials(host: &Host) -> String {
    format!("file://{}", host.write("credentials.json", CREDENTIALS))
}

fn are_protected(host: &Host, port: u16, requests: &[(&str, &str, &str)]) {
    let status = |method: &str, path: &str, headers: &[(&str, &str)], body: &str| {
        host.request(port, method, path, headers, body).map(|answer| answer.status)
    };
    for &(method, path, body) in requests {
        // Mesos itself installs its authenticators a moment after it has made the modules.
        let what = format!("{method} {path} is protected");
        wait_until(&what, || status(method, path, &[], body), |status| *status == Some(401));
        assert_eq!(status(method, path, &[GUESS], body), Some(401), "{path}");
        let what = format!("{method} {path} is served");
        let served = || status(method, path, &[AUTHORIZATION], body);
        wait_until(&what, served, |status| *status == Some(200));
    }
}

#[test]
#[ignore = "mesos: needs a Mesos installation, root and packages: tests/run mesos"]
fn endpoints_are_protected_in_every_process() {
    let mut cluster = Cluster::new();
    let (hub, host) = (cluster.hub().clone(), cluster.host());
    // As DC/OS has it, mesos-master has the agent module too, which registers beside it.
    let agent = Parameters::agent(&hub, MASTER_ADDRESS).with(&[("allocate_subnet", "false")]);
    let list = modules(&hub, &[(MASTER, &Parameters::master(&hub)), (AGENT, &agent)]);
    let credential_flag = format!("--credentials={}", credentials(&hub));
    let _master = mesos_master(&hub, &list, &[&PROTECTED[..], &[&credential_flag]].concat());
    let list = modules(&host, &[(AGENT, &Parameters::agent(&host, MASTER_ADDRESS))]);
    let credential_flag = format!("--http_credentials={}", credentials(&host));
    let flags = [&PROTECTED[..], &[&credential_flag]].concat();
    let _agent = mesos_agent(&host, MASTER_ADDRESS, &list, &flags);

    are_protected(&hub, MASTER_PORT, &MASTERS);
    are_protected(&hub, MASTER_PORT, &AGENTS);
    are_protected(&host, AGENT_PORT, &AGENTS);
    let state = hub.request(MASTER_PORT, "GET", "/overlay-master/state", &[AUTHORIZATION], "");
    let state = state.expect("an answer").json();
    let agents: Vec<_> = state["agents"].as_array().into_iter().flatten().collect();
    assert_eq!(agents.len(), 2, "{state}");
    assert_eq!((&agents[0]["ip"], &agents[1]["ip"]), (&"10.0.0.1".into(), &"10.0.0.2".into()));
}
