//! The master module: the recorded registration, and its endpoints with valid and invalid requests.

use std::io::{BufReader, Read as _, Write as _};
use std::net::Ipv4Addr;
use std::thread;

use flate2::read::GzDecoder;
use overlay_wire::{self as wire, mesos};
use prost::Message as _;
use serde_json::json;

use super::host::{Build, Host};
use super::peer::{
    self, Acknowledgement, Message, Peer, Register, Registered, Response, Update, connect, deliver,
    encode, exchange, get, post, read_response, request,
};

/// The network with which the messages were recorded.
pub(crate) const NETWORK: &str = r#"{
    "vtep_subnet": "44.128.0.0/16", "vtep_subnet6": "fd01:a::/64",
    "vtep_mac_oui": "70:B3:D5:00:00:00", "vtep_mtu": 1450,
    "overlays": [
        { "name": "vxlan-1", "subnet": "192.168.0.0/17", "prefix": 24 },
        { "name": "vxlan-2", "subnet": "192.168.128.0/17", "prefix": 24,
          "subnet6": "fd01:b::/64", "prefix6": 80 } ] }"#;

/// Reads a recorded message.
macro_rules! golden {
    ($name:literal) => {
        $crate::boundary::peer::recorded(include_bytes!(concat!("../../golden/", $name, ".http")))
    };
}
pub(crate) use golden;

const STATE: &str = "/overlay-master/state";
const DELETE: &str = "/overlay-master/agents/delete";
const RECORDED_STATE: &str = include_str!("../../golden/overlay-master-state.json");

/// Replays the registration and the report of the recorded agent, and checks all replies.
pub(crate) fn register_recorded_agent(host: &Host, agent: &Peer) {
    let send = |message: &Message| {
        let from = agent.upid();
        let status = deliver(host.address, &message.to, &message.name, &from, &message.body);
        assert_eq!(status, 202);
    };
    send(&golden!("RegisterAgentMessage"));
    let update = agent.receive();
    assert_eq!(update.from, format!("overlay-master@{}", host.address));
    let expected = golden!("UpdateAgentOverlaysMessage");
    assert_eq!(update.read::<Update>().overlays, expected.read::<Update>().overlays);
    assert_eq!(update.body, recorded_update(), "byte for byte");
    send(&golden!("AgentRegisteredMessage"));
    let acknowledgement = agent.receive();
    acknowledgement.read::<Acknowledgement>();
    let expected = golden!("AgentRegisteredAcknowledgement");
    assert_eq!(acknowledgement.body, expected.body);
}

/// Returns the recorded update with the field by which a module of this project says that it sends
/// peers. The C++ agent ignores the field.
fn recorded_update() -> Vec<u8> {
    const SENDS_PEERS: [u8; 3] = [0xa8, 0x06, 0x01];
    [&golden!("UpdateAgentOverlaysMessage").body[..], &SENDS_PEERS].concat()
}

pub(crate) fn listen_as_agent() -> Peer {
    Peer::listen("overlay-agent", Ipv4Addr::LOCALHOST)
}

/// Starts a host with a master module, and registers the recorded agent.
pub(crate) fn start_master_with_agent(build: Build) -> (Host, Peer) {
    let mut host = Host::start(build);
    host.load_master(NETWORK);
    let agent = listen_as_agent();
    register_recorded_agent(&host, &agent);
    (host, agent)
}

/// Returns the JSON of a state without the times when agents were last seen, which the recorded
/// master does not show.
fn without_last_seen(state: &str) -> String {
    let mut parts = state.split("\"last_seen\":");
    let begin = parts.next().unwrap_or_default().to_owned();
    let is_value = |character: char| character.is_ascii_digit() || character == ',';
    parts.fold(begin, |text, part| text + part.trim_start_matches(is_value))
}

/// Checks that an agent registers, has the recorded state, and can be deleted.
pub(crate) fn check_registration(build: Build) -> Host {
    let (host, agent) = start_master_with_agent(build);
    let state = host.get(STATE);
    assert_eq!((state.status, state.content_type()), (200, "application/json"));
    assert_eq!(without_last_seen(state.text()), RECORDED_STATE.trim_end());
    // A second registration keeps the addresses.
    agent.send(host.address, "overlay-master", &golden!("RegisterAgentMessage").read::<Register>());
    assert_eq!(agent.receive().body, recorded_update());
    let deleted = post(host.address, DELETE, br#"{"agents":["127.0.0.1"]}"#);
    assert_eq!(deleted.status, 200, "{deleted:?}");
    assert!(host.get(STATE).json().get("agents").is_none());
    host
}

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn registration_matches_recording() {
    check_registration(Build::release());
}

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn state_supports_every_format() {
    let (host, _agent) = start_master_with_agent(Build::release());
    let state = |target: &str, headers: &[(&str, &str)]| get(host.address, target, headers);
    let expected = RECORDED_STATE.trim_end();

    let jsonp = state("/overlay-master/state?jsonp=show", &[]);
    assert_eq!((jsonp.status, jsonp.content_type()), (200, "text/javascript"));
    assert_eq!(without_last_seen(jsonp.text()), format!("show({expected});"));
    assert_eq!(state("/overlay-master/state?jsonp=a%3Cb", &[]).status, 400);

    let protobuf = state(STATE, &[("Accept", "application/x-protobuf")]);
    assert_eq!((protobuf.status, protobuf.content_type()), (200, "application/x-protobuf"));
    let message: mesos::modules::overlay::State = wire::decode(&protobuf.body).expect("a state");
    assert_eq!(without_last_seen(&wire::print_json(&message)), expected);
    assert_eq!(state(STATE, &[("Accept", "text/html")]).status, 415);

    let gzip = state(STATE, &[("Accept-Encoding", "gzip")]);
    assert_eq!(gzip.header("content-encoding"), Some("gzip"));
    let mut plain = String::new();
    GzDecoder::new(&gzip.body[..]).read_to_string(&mut plain).expect("the body is compressed once");
    assert_eq!(without_last_seen(&plain), expected);

    // libprocess sets the Content-Length of a HEAD response to the length of the sent body, 0.
    let head = exchange(host.address, &request("HEAD", STATE, &[], b"")).expect("a response");
    assert_eq!((head.status, head.body.len()), (200, 0));
    let slash = state("/overlay-master/state/", &[]);
    assert_eq!(slash.status, 200);
    assert_eq!(without_last_seen(slash.text()), expected);
}

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn endpoints_check_method_and_body() {
    let (host, _agent) = start_master_with_agent(Build::release());
    let send = |method: &str, target: &str, body: &[u8]| {
        exchange(host.address, &request(method, target, &[], body)).expect("a response")
    };
    let health = send("GET", "/overlay-master/health", b"");
    assert_eq!((health.status, health.content_type()), (200, "application/json"));
    assert_eq!(health.json()["status"], "ok");
    let metrics = send("GET", "/overlay-master/metrics", b"");
    assert_eq!(metrics.status, 200, "{metrics:?}");
    assert!(metrics.content_type().starts_with("text/plain; version=0.0.4"), "{metrics:?}");

    for (method, target, allowed) in [
        ("POST", STATE, "GET, HEAD"),
        ("DELETE", "/overlay-master/health", "GET, HEAD"),
        ("GET", DELETE, "POST"),
        ("HEAD", DELETE, "POST"),
        ("PUT", DELETE, "POST"),
    ] {
        let refused = send(method, target, b"");
        assert_eq!(refused.status, 405, "{method} {target}: {refused:?}");
        assert_eq!(refused.header("allow"), Some(allowed), "{method} {target}");
    }
    for body in ["", "{", "[]", r#"{"agents":1}"#, r#"{"agents":["300.0.0.1"]}"#] {
        let refused = send("POST", DELETE, body.as_bytes());
        assert_eq!((refused.status, refused.content_type()), (400, "text/plain; charset=utf-8"));
        assert!(refused.text().contains(r#"write {"agents":["10.0.0.1"]}"#), "{refused:?}");
    }
    assert_eq!(send("POST", DELETE, &[0xff; 100]).status, 400);
    // libprocess passes all paths below a route to the module, and handles other paths itself.
    for target in ["/overlay-master/state/more", "/overlay-master/agents", "/overlay-master/none"] {
        assert_eq!(send("GET", target, b"").status, 404, "{target}");
    }
    let state = without_last_seen(host.get(STATE).text());
    assert_eq!(state, RECORDED_STATE.trim_end(), "no request changed the state");
}

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn malformed_requests_do_not_change_state() {
    let (host, agent) = start_master_with_agent(Build::release());
    for target in [
        "/overlay-master/state?a=%FF%FE&%00=%0A",
        "/overlay-master/state?=&&&a&b=",
        "/overlay-master/state?jsonp2=%E2%82%AC",
        "/overlay%2Dmaster/state",
    ] {
        let response = host.get(target);
        assert!(matches!(response.status, 200 | 400 | 404), "{target}: {response:?}");
    }
    for path in ["/overlay-master/st%61te", "/overlay-master/state%00", "/overlay-master/%FF"] {
        assert!(matches!(host.get(path).status, 200 | 400 | 404), "{path}");
    }
    // libprocess closes the connection.
    assert!(exchange(host.address, b"GET /overlay-master/state?a=%zz HTTP/1.1\r\n\r\n").is_none());

    let invalid_utf8: &[u8] = b"GET /overlay-master/state HTTP/1.1\r\nConnection: close\r\n\
        X-Strange: \xff\xfe \xc3\x28\r\nAccept-Encoding: \xff\r\nX-Empty:\r\nX: a\r\nX: b\r\n\r\n";
    let response = exchange(host.address, invalid_utf8).expect("a response");
    assert_eq!(response.status, 200);
    assert_eq!(without_last_seen(response.text()), RECORDED_STATE.trim_end());
    let unreadable: &[u8] =
        b"GET /overlay-master/state HTTP/1.1\r\nConnection: close\r\nAccept: \xff/\xff\r\n\r\n";
    assert!(matches!(exchange(host.address, unreadable).expect("a response").status, 200 | 415));

    let huge = vec![b' '; 2 * 1024 * 1024];
    let refused = post(host.address, DELETE, &huge);
    assert_eq!(refused.status, 413, "{refused:?}");
    let accepted = vec![b' '; 1024 * 1024];
    assert_eq!(
        post(host.address, DELETE, &accepted).status,
        400,
        "the body is read, and is no JSON"
    );

    // The header Libprocess-From makes a request a message, also on the path of an endpoint.
    let from = agent.upid();
    assert_eq!(deliver(host.address, "overlay-master", "state", &from, b""), 202);
    assert_eq!(deliver(host.address, "overlay-none", "state", &from, b""), 404);
    assert_eq!(without_last_seen(host.get(STATE).text()), RECORDED_STATE.trim_end());
}

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn concurrent_requests_get_one_response_each() {
    let (host, _agent) = start_master_with_agent(Build::release());
    let address = host.address;
    let send_pipelined = move || -> Vec<Response> {
        // Ten pipelined requests on each connection.
        let mut stream = connect(address);
        let more = format!("GET {STATE} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let requests = [more.repeat(9).into_bytes(), request("GET", STATE, &[], b"")].concat();
        stream.write_all(&requests).expect("data is sent");
        let mut reader = BufReader::new(stream);
        std::iter::from_fn(|| read_response(&mut reader)).collect()
    };
    let clients: Vec<_> =
        (0..20).map(|_| thread::Builder::new().spawn(send_pipelined).expect("a thread")).collect();
    let mut served = 0;
    for client in clients {
        let responses = client.join().expect("the thread does not panic");
        for response in &responses {
            if response.status == 200 {
                assert_eq!(without_last_seen(response.text()), RECORDED_STATE.trim_end());
                served += 1;
            } else {
                // The module limits the number of pending requests per address.
                assert_eq!(response.status, 503, "{response:?}");
                assert!(response.text().contains("limit requests_per_address"), "{response:?}");
            }
        }
        assert_eq!(responses.len(), 10);
    }
    assert!(served > 0, "no request was served");
}

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn disconnects_at_any_time_are_handled() {
    let (host, agent) = start_master_with_agent(Build::release());
    for round in 0..100 {
        let mut stream = connect(host.address);
        let request = format!("GET {STATE} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let part = if round % 3 == 0 { request.len() } else { round % request.len() };
        stream.write_all(&request.as_bytes()[..part]).expect("data is sent");
        // The stream is dropped before the response arrives.
    }
    // libprocess without a link closes the connection right after the message.
    let register = golden!("RegisterAgentMessage");
    let from = agent.upid();
    let mut stream = connect(host.address);
    let message = encode(&register.to, &register.name, &from, &register.body);
    stream.write_all(&message).expect("data is sent");
    drop(stream);
    assert_eq!(agent.receive().body, recorded_update());
    // Nothing listens on the address of this agent any more.
    let stopped = Peer::listen("overlay-agent", Ipv4Addr::new(127, 0, 0, 2));
    let from = stopped.upid();
    drop(stopped);
    let status = deliver(host.address, &register.to, &register.name, &from, &register.body);
    assert_eq!(status, 202);
    peer::wait_for("registration of the other agent", || {
        let state = host.get(STATE).json();
        (state["agents"].as_array().map(Vec::len) == Some(2)).then_some(())
    });
}

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn process_in_same_host_receives_replies() {
    let mut host = Host::start(Build::release());
    host.load_master(NETWORK);
    let update = golden!("UpdateAgentOverlaysMessage");
    host.command(&["spawn", "overlay-agent", &update.name]);
    let register = golden!("RegisterAgentMessage");
    let master = format!("overlay-master@{}", host.address);
    let body: String = register.body.iter().map(|byte| format!("{byte:02x}")).collect();
    host.command(&["send", "overlay-agent", &master, &register.name, &body]);
    let received = peer::wait_for("reply of the master", || {
        let received = host.command(&["received", "overlay-agent"]);
        (!received.is_empty()).then_some(received)
    });
    let expected: String = recorded_update().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(received, [update.name, master, expected]);
    assert_eq!(host.get("/overlay-master/health").json()["agents"]["total"], json!(1));
}

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn malformed_message_is_logged_and_ignored() {
    let (host, agent) = start_master_with_agent(Build::release());
    let name = golden!("RegisterAgentMessage").name;
    let from = agent.upid();
    assert_eq!(deliver(host.address, "overlay-master", &name, &from, b"\xff\xff"), 202);
    let unexpected = Registered::default().encode_to_vec();
    let name = golden!("AgentRegisteredMessage").name;
    let unknown_agent = "overlay-agent@127.0.0.9:1";
    assert_eq!(deliver(host.address, "overlay-master", &name, unknown_agent, &unexpected), 202);
    host.wait_for_log("malformed mesos.modules.overlay.internal.RegisterAgentMessage");
    assert_eq!(without_last_seen(host.get(STATE).text()), RECORDED_STATE.trim_end());
    // Messages without a valid sender.
    for from in ["", "@0.0.0.0:0", "nobody", "\u{1b}[31m@1.2.3.4:5"] {
        assert_eq!(deliver(host.address, "overlay-master", &name, from, &unexpected), 202);
    }
    assert_eq!(without_last_seen(host.get(STATE).text()), RECORDED_STATE.trim_end());
}
