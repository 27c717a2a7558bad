//! A panic in a module does not stop Mesos, and the module recovers.

use std::io::{BufReader, Write as _};

use super::agent::load_agent_with_embedded_master;
use super::host::{Build, Host};
use super::master::{NETWORK, golden, listen_as_agent, register_recorded_agent};
use super::peer::{Register, connect, deliver, encode, get, post, read_response, wait_for};

const STATE: &str = "/overlay-master/state";
/// Senders whose messages make a build with fault injection panic.
const AT_BOUNDARY: &str = "overlay-test-panic-at-border@127.0.0.1:1";
const IN_STATE_MACHINE: &str = "overlay-test-panic-in-machine@127.0.0.1:1";
const RESTARTS: &str = "overlay/master/process_restarts";

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn panic_at_boundary_drops_one_message() {
    let mut host = Host::start(Build::with_fault_injection());
    host.load_master(NETWORK);
    let register = golden!("RegisterAgentMessage");
    for count in 1..=3 {
        let status =
            deliver(host.address, &register.to, &register.name, AT_BOUNDARY, &register.body);
        assert_eq!(status, 202);
        wait_for("log line of the panic", || {
            let lines = host.log_lines("panicked, which is a defect: Mesos continues");
            (lines.len() == count).then_some(())
        });
    }
    let lines = host.log_lines("a panic at ");
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(lines.iter().all(|line| line.starts_with('E')), "{lines:?}");
    register_recorded_agent(&host, &listen_as_agent());
    assert_eq!(host.metric(RESTARTS), 0.0);
    assert!(host.exit().0.success());
}

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn exception_at_boundary_is_answered() {
    let mut host = Host::start(Build::with_fault_injection());
    host.load_master(NETWORK);
    for count in 1..=3 {
        let response = get(host.address, STATE, &[("X-Overlay-Test-No-Memory", "1")]);
        assert_eq!((response.status, response.text()), (503, "interrupted: try again\n"));
        let lines = host.log_lines("overlay: failed to handle a request: std::bad_alloc");
        assert_eq!(lines.len(), count, "{}", host.log());
    }
    assert_eq!(host.get(STATE).status, 200);
    assert!(host.exit().0.success());
}

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn panic_in_master_restarts_it_with_its_state() {
    let mut host = Host::start(Build::with_fault_injection());
    host.load_master(NETWORK);
    load_agent_with_embedded_master(&mut host);
    // The agent of this process and another agent, so that the order of addresses matters.
    wait_for("registration of the first agent", || {
        host.wait_for_state()["agents"][0]["ip"].as_str().map(|_| ())
    });
    let second = super::peer::Peer::listen("overlay-agent", [127, 0, 0, 2].into());
    let register = golden!("RegisterAgentMessage");
    second.send(host.address, "overlay-master", &register.read::<Register>());
    let assigned = second.receive().body;
    let subnets = |host: &Host| -> Vec<String> {
        let state = host.wait_for_state();
        let agents = state["agents"].as_array().expect("a list").iter();
        agents.map(|agent| format!("{} {}", agent["ip"], agent["overlays"][0]["subnet"])).collect()
    };
    let before = subnets(&host);
    assert_eq!(before.len(), 2);

    // Requests before and after the panic on the same connection.
    let mut stream = connect(host.address);
    let get = format!("GET {STATE} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let panic = encode(&register.to, &register.name, IN_STATE_MACHINE, &register.body);
    let requests = [get.repeat(20).as_bytes(), &panic, get.repeat(20).as_bytes()].concat();
    stream.write_all(&requests).expect("data is sent");
    let mut reader = BufReader::new(stream);
    let statuses: Vec<u16> = (0..41)
        .map(|_| read_response(&mut reader).expect("every request gets a response").status)
        .collect();
    assert_eq!(statuses[20], 202);
    let is_expected = |status: &u16| matches!(status, 200 | 202 | 503);
    assert!(statuses.iter().all(is_expected), "{statuses:?}");
    assert!(statuses[21..].contains(&503), "{statuses:?}");

    host.wait_for_log("it stopped by itself, a defect: starting it again in");
    assert_eq!(subnets(&host), before);
    second.send(host.address, "overlay-master", &register.read::<Register>());
    assert_eq!(second.receive().body, assigned);
    assert_eq!(host.metric(RESTARTS), 1.0);
    // Deletions also work again.
    assert_eq!(post(host.address, "/overlay-master/agents/delete", b"{\"agents\":[]}").status, 200);
    assert!(host.exit().0.success());
}

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn panic_in_agent_restarts_only_agent() {
    let mut host = Host::start(Build::with_fault_injection());
    host.load_master(NETWORK);
    load_agent_with_embedded_master(&mut host);
    let is_ok = |host: &Host| host.get("/overlay-agent/health").status == 200;
    wait_for("agent health with the status ok", || is_ok(&host).then_some(()));
    let name = golden!("UpdateAgentOverlaysMessage").name;
    assert_eq!(deliver(host.address, "overlay-agent", &name, IN_STATE_MACHINE, b""), 202);
    wait_for("restart of the agent", || {
        (host.metric("overlay/slave/process_restarts") == 1.0).then_some(())
    });
    wait_for("agent health with the status ok", || is_ok(&host).then_some(()));
    assert_eq!(host.metric(RESTARTS), 0.0, "the master restarted, too");
}
