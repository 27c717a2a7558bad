//! Authentication: the realms of Mesos protect the endpoints of the modules.

use std::path::Path;

use super::agent::load_agent;
use super::host::{Build, Host};
use super::master::{NETWORK, register_recorded_agent};
use super::peer::{Response, exchange, request};

/// Authorization headers for `reader:secret` and `writer:secret`.
const READER: &str = "Basic cmVhZGVyOnNlY3JldA==";
const WRITER: &str = "Basic d3JpdGVyOnNlY3JldA==";
const DELETE: &str = "/overlay-master/agents/delete";

fn send_request(host: &Host, method: &str, target: &str, authorization: Option<&str>) -> Response {
    let headers: Vec<_> = authorization.iter().map(|value| ("Authorization", *value)).collect();
    let body: &[u8] = if method == "POST" { br#"{"agents":["127.0.0.9"]}"# } else { b"" };
    exchange(host.address, &request(method, target, &headers, body)).expect("a response")
}

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn master_endpoints_require_their_realm() {
    let mut host = Host::start(Build::release());
    host.load_master(NETWORK);
    assert_eq!(
        send_request(&host, "POST", DELETE, None).status,
        200,
        "without a realm, the endpoint is open"
    );
    host.command(&["realm", "mesos-master-readonly", "reader", "secret"]);
    host.command(&["realm", "mesos-master-readwrite", "writer", "secret"]);
    for target in ["/overlay-master/state", "/overlay-master/health", "/overlay-master/metrics"] {
        let refused = send_request(&host, "GET", target, None);
        assert_eq!(refused.status, 401, "{target}");
        let challenge = refused.header("www-authenticate").unwrap_or_default();
        assert!(challenge.contains("mesos-master-readonly"), "{target}: {challenge}");
        assert_eq!(send_request(&host, "GET", target, Some(WRITER)).status, 401, "{target}");
        assert_eq!(send_request(&host, "GET", target, Some("Basic !")).status, 401, "{target}");
        assert_eq!(send_request(&host, "GET", target, Some(READER)).status, 200, "{target}");
        // The realm of a route also protects all paths below it.
        assert_eq!(
            send_request(&host, "GET", &format!("{target}/x"), None).status,
            401,
            "{target}"
        );
    }
    assert_eq!(send_request(&host, "POST", DELETE, None).status, 401);
    assert_eq!(send_request(&host, "POST", DELETE, Some(READER)).status, 401);
    assert_eq!(send_request(&host, "POST", DELETE, Some(WRITER)).status, 200);
    // Agents send messages, which libprocess does not authenticate.
    register_recorded_agent(&host, &super::master::listen_as_agent());
}

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn agent_endpoints_require_agent_realm() {
    let mut host = Host::start(Build::release());
    load_agent(&mut host, "127.0.0.1:1", Path::new("cni"));
    host.command(&["realm", "mesos-master-readonly", "other", "secret"]);
    for target in ["/overlay-agent/overlay", "/overlay-agent/metrics"] {
        assert_eq!(
            send_request(&host, "GET", target, None).status,
            200,
            "the realm of masters does not protect {target}"
        );
    }
    host.command(&["realm", "mesos-agent-readonly", "reader", "secret"]);
    for target in ["/overlay-agent/overlay", "/overlay-agent/health", "/overlay-agent/metrics"] {
        assert_eq!(send_request(&host, "GET", target, None).status, 401, "{target}");
        assert_ne!(send_request(&host, "GET", target, Some(READER)).status, 401, "{target}");
    }
}
