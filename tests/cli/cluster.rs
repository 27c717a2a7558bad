//! Operator commands against a running master and running agents.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use crate::support::{Master, NETWORK, TestDir, start_agent};

/// Starts a master and two agents. The agent 127.0.0.2 registers first.
fn start_two_agents() -> (TestDir, Master, [crate::support::RunningProcess; 2]) {
    let dir = TestDir::with_network();
    let master = Master::start(&dir);
    let agents = ["127.0.0.2", "127.0.0.3"].map(|ip| {
        let mut agent = start_agent(&dir, master.address, ip);
        agent.expect_log("registered with the master");
        agent
    });
    (dir, master, agents)
}

fn count_ok(state: &str) -> usize {
    state.lines().filter(|line| line.ends_with(" ok")).count()
}

#[test]
fn state_shows_assignments_and_status_of_agents() {
    let (dir, master, agents) = start_two_agents();
    let state = master.wait_for_state(&dir, |state| count_ok(state) == 4);
    assert_eq!(
        state,
        "\
AGENT      LAST SEEN             VERSION  VTEP IP        VTEP MAC           OVERLAY  SUBNET            MESOS HALF        DOCKER HALF  STATUS
127.0.0.2  TIME                  -        44.128.0.1/16  70:b3:d5:80:00:01  vxlan-1  192.168.0.0/24    192.168.0.0/25    -            ok
127.0.0.2  TIME                  -        44.128.0.1/16  70:b3:d5:80:00:01  vxlan-2  192.168.128.0/24  192.168.128.0/25  -            ok
127.0.0.3  TIME                  -        44.128.0.2/16  70:b3:d5:80:00:02  vxlan-1  192.168.1.0/24    192.168.1.0/25    -            ok
127.0.0.3  TIME                  -        44.128.0.2/16  70:b3:d5:80:00:02  vxlan-2  192.168.129.0/24  192.168.129.0/25  -            ok

master MASTER: ok: 2 agents: 2 ok, 0 failed, 0 unreported (epoch 1, version 2)
"
    );
    let status = dir.run(&format!("status --master {} --wait", master.address)).success();
    assert_eq!(
        status.replace(&master.address.to_string(), "MASTER"),
        "master MASTER: ok (epoch 1, version 2)\n2 agents: 2 ok, 0 failed, 0 unreported\n"
    );
    let single =
        dir.run(&format!("state -o wide --master {} --agent 127.0.0.3", master.address)).success();
    assert!(!single.contains("127.0.0.2") && single.contains("44.128.0.2/16"), "{single}");
    let json = dir.run(&format!("state --master {} --json", master.address)).json();
    assert_eq!(json["agents"][1]["overlays"][0]["subnet"], "192.168.1.0/24");
    for agent in agents {
        let (status, log) = agent.terminate();
        assert!(status.success() && log.ends_with("stopping: SIGTERM\n"), "{status}: {log}");
    }
    let (status, log) = master.process.terminate();
    assert!(status.success() && log.ends_with("stopping: SIGTERM\n"), "{status}: {log}");
}

#[test]
fn agent_logs_refusals_of_foreign_server_sparsely() {
    let dir = TestDir::new();
    let config = serde_json::json!({ "cni_dir": dir.path("cni"), "dataplane": "external",
        "refuse_collisions": false });
    dir.write("agent.json", config.to_string());
    let server = crate::support::FakeMaster::start(Vec::new());
    let arguments =
        format!("agent --config agent.json --master {} --listen 127.0.0.2:0", server.address);
    let mut agent = crate::support::RunningProcess::start(&dir, &arguments);
    let reason =
        agent.expect_log(&format!("send to {}: the peer refused a message: ", server.address));
    assert_eq!(
        reason,
        "404: no such process at this address: check that it is the address of an overlay master \
         or agent, or of a Mesos process with the module (1 refused since the start)"
    );
    agent.expect_log("(4 refused since the start)");
    let (_, log) = agent.terminate();
    assert!(log.contains("(2 refused since the start)"), "{log}");
    assert!(!log.contains("(3 refused since the start)"), "{log}");
}

#[test]
fn state_of_failed_overlay_shows_reason() {
    let dir = TestDir::with_network();
    let master = Master::start(&dir);
    let config = serde_json::json!({ "cni_dir": dir.path("cni"), "docker": "/no/docker",
        "dataplane": "external", "refuse_collisions": false });
    dir.write("agent.json", config.to_string());
    let arguments =
        format!("agent --config agent.json --master {} --listen 127.0.0.2:0", master.address);
    let _agent = crate::support::RunningProcess::start(&dir, &arguments);
    let state = master.wait_for_state(&dir, |state| state.contains("1 failed"));
    assert!(
        state.contains(
            "192.168.0.128/25    failed: docker network vxlan-1: program '/no/docker' not found: \
             install Docker on this agent, or set network_config.docker_bridge to false in its \
             agent_config\n"
        ),
        "{state}"
    );
    assert!(
        state.ends_with(
            "\nmaster MASTER: degraded: 1 agent: 0 ok, 1 failed, 0 unreported (epoch 1, version 1)\n\
             problem: 1 agent with a failed overlay: see the state for the reasons\n"
        ),
        "{state}"
    );
}

#[test]
fn restarted_master_keeps_assignments() {
    let (dir, master, agents) = start_two_agents();
    let addresses = |state: &str| {
        let rows = state.lines().filter(|line| line.starts_with("127."));
        rows.map(|row| row[..row.len() - 2].to_owned()).collect::<Vec<_>>()
    };
    let before = master.wait_for_state(&dir, |state| count_ok(state) == 4);
    let address = master.address;
    assert!(master.process.terminate().0.success());
    let master = Master::start_at(&dir, address, "network.json");
    let after = master.wait_for_state(&dir, |state| count_ok(state) == 4);
    assert_eq!(addresses(&after), addresses(&before));
    assert!(after.contains("(epoch 2, version 2)"), "{after}");
    drop(agents);
}

#[test]
fn forgotten_agent_that_returns_gets_same_addresses() {
    let (dir, master, [first, second]) = start_two_agents();
    assert!(first.terminate().0.success());
    // The master received a message of this agent a moment ago, so only --force deletes it.
    let forget = format!("forget --force --master {}", master.address);
    assert_eq!(
        dir.run(&format!("{forget} 127.0.0.9 127.0.0.2")).transcript(),
        format!(
            "\
AGENT      VTEP IP     SUBNETS           RESULT
127.0.0.9  -           -                 not known
127.0.0.2  44.128.0.1  192.168.0.0/24    deleted
                       192.168.128.0/24
mesos-overlay: forget 127.0.0.9: master {} knows no such agent: `mesos-overlay state` shows the known agents
exit code 1
",
            master.address
        )
    );
    let mut third = start_agent(&dir, master.address, "127.0.0.4");
    third.expect_log("registered with the master");
    let mut first = start_agent(&dir, master.address, "127.0.0.2");
    first.expect_log("registered with the master");
    let state = master.wait_for_state(&dir, |state| count_ok(state) == 6);
    for (ip, vtep) in [("127.0.0.2", 1), ("127.0.0.3", 2), ("127.0.0.4", 3)] {
        assert!(
            state.contains(&format!("\n{ip}  {:<20}  -        44.128.0.{vtep}/16  ", "TIME")),
            "{state}"
        );
    }
    drop(second);
}

#[test]
fn quarantined_agent_can_be_forgotten() {
    let (dir, master, agents) = start_two_agents();
    drop(agents);
    assert!(master.process.terminate().0.success());
    dir.write("other.json", NETWORK.replace("44.128.0.0/16", "10.255.0.0/16"));
    let listen = "127.0.0.1:0".parse().unwrap();
    let master = Master::start_at(&dir, listen, "other.json");
    let conflict = "44.128.0.1 is no host address of the VTEP subnet 10.255.0.0/16";
    let state = master.wait_for_state(&dir, |state| state.contains("problem: "));
    let problem = format!(
        "\nproblem: agent 127.0.0.2 is not served: {conflict}: fix the configuration or delete \
         the agent\n"
    );
    assert!(state.contains(&problem), "{state}");
    let forget =
        |rest: &str| dir.run(&format!("forget --master {} 127.0.0.2 {rest}", master.address));
    let error = forget("").failure();
    let reason = "has not led long enough to know whether it is running: try again in two minutes, \
                  or give --force\n";
    assert!(error.ends_with(reason), "{error}");
    let forget = |rest: &str| forget(&format!("--force {rest}"));
    let preview = &forget("--dry-run --json").json()["agents"][0];
    assert_eq!(preview["result"], "would_be_deleted");
    assert_eq!(preview["set_aside"], conflict);
    assert!(forget("").success().contains("  deleted\n"));
    assert!(forget("").failure().contains("knows no such agent"));
}

#[test]
fn forged_sender_address_is_refused_and_counted() {
    let dir = TestDir::with_network();
    let master = Master::start(&dir);
    let exchange = |request: String| {
        let mut stream = TcpStream::connect(master.address).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        response
    };
    let response = exchange(
        "POST /overlay-master/mesos.modules.overlay.internal.RegisterAgentMessage HTTP/1.1\r\n\
         Libprocess-From: overlay-agent@10.0.0.9:5051\r\nConnection: close\r\n\r\n"
            .to_owned(),
    );
    assert!(response.starts_with("HTTP/1.1 400 "), "{response}");
    let health = exchange(
        "GET /overlay-master/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            .to_owned(),
    );
    let (_, health) = health.split_once("\r\n\r\n").unwrap();
    let health: serde_json::Value = serde_json::from_str(health).unwrap();
    assert_eq!(health["refused"]["count"], 1);
    let last = health["refused"]["last"].as_str().unwrap();
    assert!(last.contains("UPID IP address validation failed"), "{last}");
    let metrics = exchange(
        "GET /overlay-master/metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            .to_owned(),
    );
    assert!(metrics.contains("\nmesos_overlay_master_refused_total 1\n"), "{metrics}");
}
