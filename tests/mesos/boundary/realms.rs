//! Authentication: our endpoints are as well guarded as those of Mesos beside them.

use std::path::Path;

use super::agent::load_agent;
use super::host::{Build, Host};
use super::master::{NETWORK, register_as_recorded};
use super::peer::{Response, exchange, request};

/// `reader:secret` and `writer:secret`, as HTTP wants them.
const READER: &str = "Basic cmVhZGVyOnNlY3JldA==";
const WRITER: &str = "Basic d3JpdGVyOnNlY3JldA==";
const DELETE: &str = "/overlay-master/agents/delete";

fn ask(host: &Host, method: &str, target: &str, who: Option<&str>) -> Response {
    let headers: Vec<_> = who.iter().map(|who| ("Authorization", *who)).collect();
    let body: &[u8] = if method == "POST" { br#"{"agents":["127.0.0.9"]}"# } else { b"" };
    exchange(host.address, &request(method, target, &headers, body)).expect("an answer")
}

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn reading_and_writing_are_guarded_by_their_realms() {
    let mut host = Host::start(Build::release());
    host.load_master(NETWORK);
    assert_eq!(ask(&host, "POST", DELETE, None).status, 200, "nothing is guarded yet");
    host.tell(&["realm", "mesos-master-readonly", "reader", "secret"]);
    host.tell(&["realm", "mesos-master-readwrite", "writer", "secret"]);
    for target in ["/overlay-master/state", "/overlay-master/health", "/overlay-master/metrics"] {
        let refused = ask(&host, "GET", target, None);
        assert_eq!(refused.status, 401, "{target}");
        let challenge = refused.header("www-authenticate").unwrap_or_default();
        assert!(challenge.contains("mesos-master-readonly"), "{target}: {challenge}");
        assert_eq!(ask(&host, "GET", target, Some(WRITER)).status, 401, "{target}");
        assert_eq!(ask(&host, "GET", target, Some("Basic !")).status, 401, "{target}");
        assert_eq!(ask(&host, "GET", target, Some(READER)).status, 200, "{target}");
        // A route is guarded with all that is below it.
        assert_eq!(ask(&host, "GET", &format!("{target}/x"), None).status, 401, "{target}");
    }
    assert_eq!(ask(&host, "POST", DELETE, None).status, 401);
    assert_eq!(ask(&host, "POST", DELETE, Some(READER)).status, 401);
    assert_eq!(ask(&host, "POST", DELETE, Some(WRITER)).status, 200);
    // Messages are of agents, which libprocess does not authenticate.
    register_as_recorded(&host, &super::master::agent());
}

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn an_agent_has_the_realm_of_agents() {
    let mut host = Host::start(Build::release());
    load_agent(&mut host, "127.0.0.1:1", Path::new("cni"));
    host.tell(&["realm", "mesos-master-readonly", "other", "secret"]);
    for target in ["/overlay-agent/overlay", "/overlay-agent/metrics"] {
        assert_eq!(ask(&host, "GET", target, None).status, 200, "that realm is not its own");
    }
    host.tell(&["realm", "mesos-agent-readonly", "reader", "secret"]);
    for target in ["/overlay-agent/overlay", "/overlay-agent/health", "/overlay-agent/metrics"] {
        assert_eq!(ask(&host, "GET", target, None).status, 401, "{target}");
        assert_ne!(ask(&host, "GET", target, Some(READER)).status, 401, "{target}");
    }
}
