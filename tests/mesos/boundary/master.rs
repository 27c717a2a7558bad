//! The master part: a registration as it was recorded, and its endpoints, behind which anything may
//! ask anything.

use std::io::{BufReader, Read as _, Write as _};
use std::net::Ipv4Addr;
use std::thread;

use flate2::read::GzDecoder;
use mesos_network_overlay::wire::{self, mesos};
use prost::Message as _;
use serde_json::json;

use super::host::{Build, Host};
use super::peer::{
    self, Acknowledgement, Message, Peer, Register, Registered, Response, Update, connect, deliver,
    encode, exchange, get, post, read_response, request,
};

/// That of the recording.
pub(crate) const NETWORK: &str = r#"{
    "vtep_subnet": "44.128.0.0/16", "vtep_subnet6": "fd01:a::/64",
    "vtep_mac_oui": "70:B3:D5:00:00:00", "vtep_mtu": 1450,
    "overlays": [
        { "name": "vxlan-1", "subnet": "192.168.0.0/17", "prefix": 24 },
        { "name": "vxlan-2", "subnet": "192.168.128.0/17", "prefix": 24,
          "subnet6": "fd01:b::/64", "prefix6": 80 } ] }"#;

/// A recorded message.
macro_rules! golden {
    ($name:literal) => {
        $crate::boundary::peer::recorded(include_bytes!(concat!("../../golden/", $name, ".http")))
    };
}
pub(crate) use golden;

const STATE: &str = "/overlay-master/state";
const DELETE: &str = "/overlay-master/agents/delete";
const RECORDED_STATE: &str = include_str!("../../golden/overlay-master-state.json");

/// Has the agent of the recording register, and report that all is well.
pub(crate) fn register_as_recorded(host: &Host, agent: &Peer) {
    let send = |message: &Message| {
        let from = agent.upid();
        let status = deliver(host.address, &message.to, &message.name, &from, &message.body);
        assert_eq!(status, 202);
    };
    send(&golden!("RegisterAgentMessage"));
    let update = agent.receive();
    assert_eq!(update.from, format!("overlay-master@{}", host.address));
    let expected = golden!("UpdateAgentOverlaysMessage");
    assert_eq!(update.read::<Update>(), expected.read::<Update>());
    assert_eq!(update.body, expected.body, "byte for byte");
    send(&golden!("AgentRegisteredMessage"));
    let acknowledgement = agent.receive();
    acknowledgement.read::<Acknowledgement>();
    let expected = golden!("AgentRegisteredAcknowledgement");
    assert_eq!(acknowledgement.body, expected.body);
}

pub(crate) fn agent() -> Peer {
    Peer::listen("overlay-agent", Ipv4Addr::LOCALHOST)
}

/// A master that has the agent of the recording.
pub(crate) fn master_with_agent(build: Build) -> (Host, Peer) {
    let mut host = Host::start(build);
    host.load_master(NETWORK);
    let agent = agent();
    register_as_recorded(&host, &agent);
    (host, agent)
}

/// An agent registers, is shown as it was recorded, and is forgotten.
pub(crate) fn a_registration(build: Build) -> Host {
    let (host, agent) = master_with_agent(build);
    let state = host.get(STATE);
    assert_eq!((state.status, state.content_type()), (200, "application/json"));
    assert_eq!(state.text(), RECORDED_STATE.trim_end());
    // Once more: it keeps what it has.
    agent.send(host.address, "overlay-master", &golden!("RegisterAgentMessage").read::<Register>());
    assert_eq!(agent.receive().body, golden!("UpdateAgentOverlaysMessage").body);
    let deleted = post(host.address, DELETE, br#"{"agents":["127.0.0.1"]}"#);
    assert_eq!(deleted.status, 200, "{deleted:?}");
    assert!(host.get(STATE).json().get("agents").is_none());
    host
}

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn a_registration_is_as_it_was_recorded() {
    a_registration(Build::release());
}

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn the_state_comes_in_every_form() {
    let (host, _agent) = master_with_agent(Build::release());
    let state = |target: &str, headers: &[(&str, &str)]| get(host.address, target, headers);
    let expected = RECORDED_STATE.trim_end();

    let jsonp = state("/overlay-master/state?jsonp=show", &[]);
    assert_eq!((jsonp.status, jsonp.content_type()), (200, "text/javascript"));
    assert_eq!(jsonp.text(), format!("show({expected});"));
    assert_eq!(state("/overlay-master/state?jsonp=a%3Cb", &[]).status, 400);

    let protobuf = state(STATE, &[("Accept", "application/x-protobuf")]);
    assert_eq!((protobuf.status, protobuf.content_type()), (200, "application/x-protobuf"));
    let message: mesos::modules::overlay::State = wire::decode(&protobuf.body).expect("a state");
    assert_eq!(wire::print_json(&message), expected);
    assert_eq!(state(STATE, &[("Accept", "text/html")]).status, 415);

    let gzip = state(STATE, &[("Accept-Encoding", "gzip")]);
    assert_eq!(gzip.header("content-encoding"), Some("gzip"));
    let mut plain = String::new();
    GzDecoder::new(&gzip.body[..]).read_to_string(&mut plain).expect("it is compressed once");
    assert_eq!(plain, expected);

    // libprocess says how long the body is that it sends.
    let head = exchange(host.address, &request("HEAD", STATE, &[], b"")).expect("an answer");
    assert_eq!((head.status, head.body.len()), (200, 0));
    let slash = state("/overlay-master/state/", &[]);
    assert_eq!((slash.status, slash.text()), (200, expected));
}

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn every_endpoint_answers_every_method() {
    let (host, _agent) = master_with_agent(Build::release());
    let ask = |method: &str, target: &str, body: &[u8]| {
        exchange(host.address, &request(method, target, &[], body)).expect("an answer")
    };
    let health = ask("GET", "/overlay-master/health", b"");
    assert_eq!((health.status, health.content_type()), (200, "application/json"));
    assert_eq!(health.json()["status"], "ok");
    let metrics = ask("GET", "/overlay-master/metrics", b"");
    assert_eq!(metrics.status, 200, "{metrics:?}");
    assert!(metrics.content_type().starts_with("application/openmetrics-text;"), "{metrics:?}");

    for (method, target, allowed) in [
        ("POST", STATE, "GET, HEAD"),
        ("DELETE", "/overlay-master/health", "GET, HEAD"),
        ("GET", DELETE, "POST"),
        ("HEAD", DELETE, "POST"),
        ("PUT", DELETE, "POST"),
    ] {
        let refused = ask(method, target, b"");
        assert_eq!(refused.status, 405, "{method} {target}: {refused:?}");
        assert_eq!(refused.header("allow"), Some(allowed), "{method} {target}");
    }
    for body in ["", "{", "[]", r#"{"agents":1}"#, r#"{"agents":["300.0.0.1"]}"#] {
        let refused = ask("POST", DELETE, body.as_bytes());
        assert_eq!((refused.status, refused.content_type()), (400, "text/plain; charset=utf-8"));
        assert!(refused.text().contains(r#"write {"agents":["10.0.0.1"]}"#), "{refused:?}");
    }
    assert_eq!(ask("POST", DELETE, &[0xff; 100]).status, 400);
    // libprocess gives us all below a route of ours, and answers the rest itself.
    for target in ["/overlay-master/state/more", "/overlay-master/agents", "/overlay-master/none"] {
        assert_eq!(ask("GET", target, b"").status, 404, "{target}");
    }
    assert_eq!(host.get(STATE).text(), RECORDED_STATE.trim_end(), "nothing has changed it");
}

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn requests_may_hold_anything() {
    let (host, agent) = master_with_agent(Build::release());
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
    // libprocess ends the connection.
    assert!(exchange(host.address, b"GET /overlay-master/state?a=%zz HTTP/1.1\r\n\r\n").is_none());

    let strange: &[u8] = b"GET /overlay-master/state HTTP/1.1\r\nConnection: close\r\n\
        X-Strange: \xff\xfe \xc3\x28\r\nAccept-Encoding: \xff\r\nX-Empty:\r\nX: a\r\nX: b\r\n\r\n";
    let response = exchange(host.address, strange).expect("an answer");
    assert_eq!((response.status, response.text()), (200, RECORDED_STATE.trim_end()));
    let unreadable: &[u8] =
        b"GET /overlay-master/state HTTP/1.1\r\nConnection: close\r\nAccept: \xff/\xff\r\n\r\n";
    assert!(matches!(exchange(host.address, unreadable).expect("one").status, 200 | 415));

    let huge = vec![b' '; 2 * 1024 * 1024];
    let refused = post(host.address, DELETE, &huge);
    assert_eq!(refused.status, 413, "{refused:?}");
    let accepted = vec![b' '; 1024 * 1024];
    assert_eq!(post(host.address, DELETE, &accepted).status, 400, "it is read, and no JSON");

    // A message is one whatever it is sent to; and a request for no message is none.
    let from = agent.upid();
    assert_eq!(deliver(host.address, "overlay-master", "state", &from, b""), 202);
    assert_eq!(deliver(host.address, "overlay-none", "state", &from, b""), 404);
    assert_eq!(host.get(STATE).text(), RECORDED_STATE.trim_end());
}

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn many_requests_at_once_get_one_answer_each() {
    let (host, _agent) = master_with_agent(Build::release());
    let address = host.address;
    let ask = move || -> Vec<Response> {
        // Ten on each connection, without waiting.
        let mut stream = connect(address);
        let more = format!("GET {STATE} HTTP/1.1\r\nHost: host\r\n\r\n");
        let requests = [more.repeat(9).into_bytes(), request("GET", STATE, &[], b"")].concat();
        stream.write_all(&requests).expect("it is sent");
        let mut reader = BufReader::new(stream);
        std::iter::from_fn(|| read_response(&mut reader)).collect()
    };
    let clients: Vec<_> =
        (0..20).map(|_| thread::Builder::new().spawn(ask).expect("a thread")).collect();
    let mut answered = 0;
    for client in clients {
        let responses = client.join().expect("it has not failed");
        for response in &responses {
            if response.status == 200 {
                assert_eq!(response.text(), RECORDED_STATE.trim_end());
                answered += 1;
            } else {
                // One address may have a few of them waiting.
                assert_eq!(response.status, 503, "{response:?}");
                assert!(response.text().contains("limit requests_per_address"), "{response:?}");
            }
        }
        assert_eq!(responses.len(), 10);
    }
    assert!(answered > 0, "none was answered");
}

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn clients_and_agents_may_go_away_at_any_time() {
    let (host, agent) = master_with_agent(Build::release());
    for round in 0..100 {
        let mut stream = connect(host.address);
        let request = format!("GET {STATE} HTTP/1.1\r\nHost: host\r\n\r\n");
        let part = if round % 3 == 0 { request.len() } else { round % request.len() };
        stream.write_all(&request.as_bytes()[..part]).expect("it is sent");
        // Dropped without a look at the answer.
    }
    // As libprocess does that has no link: the end comes right behind the message.
    let register = golden!("RegisterAgentMessage");
    let from = agent.upid();
    let mut stream = connect(host.address);
    let message = encode(&register.to, &register.name, &from, &register.body);
    stream.write_all(&message).expect("it is sent");
    drop(stream);
    assert_eq!(agent.receive().body, golden!("UpdateAgentOverlaysMessage").body);
    // Nobody listens where this answer goes.
    let gone = Peer::listen("overlay-agent", Ipv4Addr::new(127, 0, 0, 2));
    let from = gone.upid();
    drop(gone);
    let status = deliver(host.address, &register.to, &register.name, &from, &register.body);
    assert_eq!(status, 202);
    peer::wait_for("the other agent", || {
        let state = host.get(STATE).json();
        (state["agents"].as_array().map(Vec::len) == Some(2)).then_some(())
    });
}

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn a_process_beside_it_gets_its_answers_too() {
    let mut host = Host::start(Build::release());
    host.load_master(NETWORK);
    let update = golden!("UpdateAgentOverlaysMessage");
    host.tell(&["spawn", "overlay-agent", &update.name]);
    let register = golden!("RegisterAgentMessage");
    let master = format!("overlay-master@{}", host.address);
    let body: String = register.body.iter().map(|byte| format!("{byte:02x}")).collect();
    host.tell(&["send", "overlay-agent", &master, &register.name, &body]);
    let received = peer::wait_for("the answer", || {
        let received = host.tell(&["received", "overlay-agent"]);
        (!received.is_empty()).then_some(received)
    });
    let expected: String = update.body.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(received, [update.name, master, expected]);
    assert_eq!(host.get("/overlay-master/health").json()["agents"]["total"], json!(1));
}

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn a_wrong_message_is_in_the_log_and_changes_nothing() {
    let (host, agent) = master_with_agent(Build::release());
    let name = golden!("RegisterAgentMessage").name;
    let from = agent.upid();
    assert_eq!(deliver(host.address, "overlay-master", &name, &from, b"\xff\xff"), 202);
    let strange = Registered::default().encode_to_vec();
    let name = golden!("AgentRegisteredMessage").name;
    let stranger = "overlay-agent@127.0.0.9:1";
    assert_eq!(deliver(host.address, "overlay-master", &name, stranger, &strange), 202);
    host.wait_for_log("malformed mesos.modules.overlay.internal.RegisterAgentMessage");
    assert_eq!(host.get(STATE).text(), RECORDED_STATE.trim_end());
    // No sender at all, and one that is none.
    for from in ["", "@0.0.0.0:0", "nobody", "\u{1b}[31m@1.2.3.4:5"] {
        assert_eq!(deliver(host.address, "overlay-master", &name, from, &strange), 202);
    }
    assert_eq!(host.get(STATE).text(), RECORDED_STATE.trim_end());
}
