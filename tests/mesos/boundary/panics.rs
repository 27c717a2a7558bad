//! A defect of ours: whatever panics, Mesos goes on, and so do we.

use std::io::{BufReader, Write as _};

use super::agent::load_agent_of_own_master;
use super::host::{Build, Host};
use super::master::{NETWORK, agent, golden, register_as_recorded};
use super::peer::{Register, connect, deliver, encode, post, read_response, wait_for};

const STATE: &str = "/overlay-master/state";
/// Senders at which a build with faults panics.
const AT_BORDER: &str = "overlay-test-panic-at-border@127.0.0.1:1";
const IN_MACHINE: &str = "overlay-test-panic-in-machine@127.0.0.1:1";
const RESTARTS: &str = "overlay/master/process_restarts";

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn a_panic_at_the_border_costs_one_message() {
    let mut host = Host::start(Build::with_faults());
    host.load_master(NETWORK);
    let register = golden!("RegisterAgentMessage");
    for count in 1..=3 {
        let status = deliver(host.address, &register.to, &register.name, AT_BORDER, &register.body);
        assert_eq!(status, 202);
        wait_for("the panic in the log", || {
            let lines = host.logged("it panicked, which is a defect: Mesos goes on");
            (lines.len() == count).then_some(())
        });
    }
    let lines = host.logged("a panic at ");
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(lines.iter().all(|line| line.starts_with('E')), "{lines:?}");
    register_as_recorded(&host, &agent());
    assert_eq!(host.metric(RESTARTS), 0.0);
    assert!(host.exit().0.success());
}

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn a_panic_of_the_machine_costs_a_restart() {
    let mut host = Host::start(Build::with_faults());
    host.load_master(NETWORK);
    load_agent_of_own_master(&mut host);
    // The one of this process, and one more, so that the order matters.
    wait_for("the first agent", || host.wait_for_state()["agents"][0]["ip"].as_str().map(|_| ()));
    let second = super::peer::Peer::listen("overlay-agent", [127, 0, 0, 2].into());
    let register = golden!("RegisterAgentMessage");
    second.send(host.address, "overlay-master", &register.read::<Register>());
    let promised = second.receive().body;
    let subnets = |host: &Host| -> Vec<String> {
        let state = host.wait_for_state();
        let agents = state["agents"].as_array().expect("two").iter();
        agents.map(|agent| format!("{} {}", agent["ip"], agent["overlays"][0]["subnet"])).collect()
    };
    let before = subnets(&host);
    assert_eq!(before.len(), 2);

    // Requests before the panic, and behind it on the same connection.
    let mut stream = connect(host.address);
    let get = format!("GET {STATE} HTTP/1.1\r\nHost: host\r\n\r\n");
    let panic = encode(&register.to, &register.name, IN_MACHINE, &register.body);
    let requests = [get.repeat(20).as_bytes(), &panic, get.repeat(20).as_bytes()].concat();
    stream.write_all(&requests).expect("it is sent");
    let mut reader = BufReader::new(stream);
    let statuses: Vec<u16> =
        (0..41).map(|_| read_response(&mut reader).expect("each gets one").status).collect();
    assert_eq!(statuses[20], 202);
    let is_known = |status: &u16| matches!(status, 200 | 202 | 503);
    assert!(statuses.iter().all(is_known), "{statuses:?}");
    assert!(statuses[21..].contains(&503), "{statuses:?}");

    host.wait_for_log("it stopped by itself, a defect: starting it again in");
    assert_eq!(subnets(&host), before);
    second.send(host.address, "overlay-master", &register.read::<Register>());
    assert_eq!(second.receive().body, promised);
    assert_eq!(host.metric(RESTARTS), 1.0);
    // It forgets as before, too.
    assert_eq!(post(host.address, "/overlay-master/agents/delete", b"{\"agents\":[]}").status, 200);
    assert!(host.exit().0.success());
}

#[test]
#[ignore = "mesos: needs MESOS_PREFIX"]
fn a_panic_of_the_agent_costs_a_restart() {
    let mut host = Host::start(Build::with_faults());
    host.load_master(NETWORK);
    load_agent_of_own_master(&mut host);
    let is_ok = |host: &Host| host.get("/overlay-agent/health").status == 200;
    wait_for("a healthy agent", || is_ok(&host).then_some(()));
    let name = golden!("UpdateAgentOverlaysMessage").name;
    assert_eq!(deliver(host.address, "overlay-agent", &name, IN_MACHINE, b""), 202);
    wait_for("its restart", || {
        (host.metric("overlay/slave/process_restarts") == 1.0).then_some(())
    });
    wait_for("a healthy agent", || is_ok(&host).then_some(()));
    assert_eq!(host.metric(RESTARTS), 0.0, "the master has nothing to do with it");
}
