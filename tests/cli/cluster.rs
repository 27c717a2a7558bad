//! A master and agents as processes, and the operator's commands against them.

use crate::support::{Master, NETWORK, Place, start_agent};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

/// Two agents, the first of which registered first.
fn two_agents() -> (Place, Master, [crate::support::Running; 2]) {
    let place = Place::with_network();
    let master = Master::start(&place);
    let agents = ["127.0.0.2", "127.0.0.3"].map(|ip| {
        let mut agent = start_agent(&place, master.address, ip);
        agent.expect("registered with the master");
        agent
    });
    (place, master, agents)
}

fn count_ok(state: &str) -> usize {
    state.lines().filter(|line| line.ends_with(" ok")).count()
}

#[test]
fn the_state_shows_what_the_agents_have_and_how_they_are() {
    let (place, master, agents) = two_agents();
    let state = master.state_when(&place, |state| count_ok(state) == 4);
    assert_eq!(
        state,
        "\
AGENT      VTEP IP        VTEP MAC           OVERLAY  SUBNET            MESOS HALF        DOCKER HALF  STATUS
127.0.0.2  44.128.0.1/16  70:b3:d5:80:00:01  vxlan-1  192.168.0.0/24    192.168.0.0/25    -            ok
127.0.0.2  44.128.0.1/16  70:b3:d5:80:00:01  vxlan-2  192.168.128.0/24  192.168.128.0/25  -            ok
127.0.0.3  44.128.0.2/16  70:b3:d5:80:00:02  vxlan-1  192.168.1.0/24    192.168.1.0/25    -            ok
127.0.0.3  44.128.0.2/16  70:b3:d5:80:00:02  vxlan-2  192.168.129.0/24  192.168.129.0/25  -            ok

master MASTER: ok: 2 agents: 2 ok, 0 failed, 0 unreported (epoch 1, version 2)
"
    );
    let one = place.run(&format!("state --master {} --agent 127.0.0.3", master.address)).success();
    assert!(!one.contains("127.0.0.2") && one.contains("44.128.0.2/16"), "{one}");
    let json = place.run(&format!("state --master {} --json", master.address)).json();
    assert_eq!(json["agents"][1]["overlays"][0]["subnet"], "192.168.1.0/24");
    for agent in agents {
        let (status, log) = agent.terminate();
        assert!(status.success() && log.ends_with("ending: SIGTERM\n"), "{status}: {log}");
    }
    let (status, log) = master.running.terminate();
    assert!(status.success() && log.ends_with("ending: SIGTERM\n"), "{status}: {log}");
}

#[test]
fn a_master_that_is_none_is_told_once_in_a_while() {
    let place = Place::new();
    let config = serde_json::json!({ "cni_dir": place.path("cni"), "dataplane": "external",
        "refuse_collisions": false });
    place.write("agent.json", config.to_string());
    let other = crate::support::FakeMaster::start(Vec::new());
    let arguments =
        format!("agent --config agent.json --master {} --listen 127.0.0.2:0", other.address);
    let mut agent = crate::support::Running::start(&place, &arguments);
    let said = agent.expect(&format!("send to {}: it refused a message: ", other.address));
    assert_eq!(
        said,
        "404: no such process is there: see that this is the address of an overlay master or agent, \
         or of the Mesos with its module (1 refused since the start)"
    );
    agent.expect("(4 refused since the start)");
    let (_, log) = agent.terminate();
    assert!(log.contains("(2 refused since the start)"), "{log}");
    assert!(!log.contains("(3 refused since the start)"), "{log}");
}

#[test]
fn a_failed_overlay_is_shown_with_its_reason() {
    let place = Place::with_network();
    let master = Master::start(&place);
    let config = serde_json::json!({ "cni_dir": place.path("cni"), "docker": "/no/docker",
        "dataplane": "external", "refuse_collisions": false });
    place.write("agent.json", config.to_string());
    let arguments =
        format!("agent --config agent.json --master {} --listen 127.0.0.2:0", master.address);
    let _agent = crate::support::Running::start(&place, &arguments);
    let state = master.state_when(&place, |state| state.contains("1 failed"));
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
fn a_restarted_master_keeps_what_it_promised() {
    let (place, master, agents) = two_agents();
    let addresses = |state: &str| {
        let rows = state.lines().filter(|line| line.starts_with("127."));
        rows.map(|row| row[..row.len() - 2].to_owned()).collect::<Vec<_>>()
    };
    let before = master.state_when(&place, |state| count_ok(state) == 4);
    let address = master.address;
    assert!(master.running.terminate().0.success());
    let master = Master::start_at(&place, address, "network.json");
    let after = master.state_when(&place, |state| count_ok(state) == 4);
    assert_eq!(addresses(&after), addresses(&before));
    assert!(after.contains("(epoch 2, version 2)"), "{after}");
    drop(agents);
}

#[test]
fn a_forgotten_agent_that_returns_has_its_addresses_again() {
    let (place, master, [first, second]) = two_agents();
    assert!(first.terminate().0.success());
    // It was heard a moment ago, and is not any more.
    let forget = format!("forget --force --master {}", master.address);
    assert_eq!(
        place.run(&format!("{forget} 127.0.0.9 127.0.0.2")).transcript(),
        format!(
            "\
AGENT      VTEP IP     SUBNETS           RESULT
127.0.0.9  -           -                 not known
127.0.0.2  44.128.0.1  192.168.0.0/24    deleted
                       192.168.128.0/24
mesos-overlay: forget 127.0.0.9: master {} knows no such agent: `mesos-overlay state` shows those that it knows
exit code 1
",
            master.address
        )
    );
    let mut third = start_agent(&place, master.address, "127.0.0.4");
    third.expect("registered with the master");
    let mut first = start_agent(&place, master.address, "127.0.0.2");
    first.expect("registered with the master");
    let state = master.state_when(&place, |state| count_ok(state) == 6);
    for (ip, vtep) in [("127.0.0.2", 1), ("127.0.0.3", 2), ("127.0.0.4", 3)] {
        assert!(state.contains(&format!("\n{ip}  44.128.0.{vtep}/16  ")), "{state}");
    }
    drop(second);
}

#[test]
fn a_record_that_the_configuration_no_longer_covers_can_be_forgotten() {
    let (place, master, agents) = two_agents();
    drop(agents);
    assert!(master.running.terminate().0.success());
    place.write("other.json", NETWORK.replace("44.128.0.0/16", "10.255.0.0/16"));
    let listen = "127.0.0.1:0".parse().unwrap();
    let master = Master::start_at(&place, listen, "other.json");
    let aside = "44.128.0.1 is no host address of the VTEP subnet 10.255.0.0/16";
    let state = master.state_when(&place, |state| state.contains("problem: "));
    let problem = format!(
        "\nproblem: agent 127.0.0.2 is not served: {aside}: mend the configuration or delete the \
         agent\n"
    );
    assert!(state.contains(&problem), "{state}");
    let forget =
        |rest: &str| place.run(&format!("forget --master {} 127.0.0.2 {rest}", master.address));
    let unsure = forget("").failure();
    let reason = "leads not long enough to know whether it is running: ask again in two minutes, or \
                  give --force\n";
    assert!(unsure.ends_with(reason), "{unsure}");
    let forget = |rest: &str| forget(&format!("--force {rest}"));
    let fate = &forget("--dry-run --json").json()["agents"][0];
    assert_eq!(fate["result"], "would_be_deleted");
    assert_eq!(fate["set_aside"], aside);
    assert!(forget("").success().contains("  deleted\n"));
    assert!(forget("").failure().contains("knows no such agent"));
}

#[test]
fn a_sender_that_names_another_address_is_refused_and_seen_in_the_health() {
    let place = Place::with_network();
    let master = Master::start(&place);
    let exchange = |request: String| {
        let mut stream = TcpStream::connect(master.address).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let answer = exchange(
        "POST /overlay-master/mesos.modules.overlay.internal.RegisterAgentMessage HTTP/1.1\r\n\
         Libprocess-From: overlay-agent@10.0.0.9:5051\r\nConnection: close\r\n\r\n"
            .to_owned(),
    );
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    let health = exchange(
        "GET /overlay-master/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".to_owned(),
    );
    let (_, health) = health.split_once("\r\n\r\n").unwrap();
    let health: serde_json::Value = serde_json::from_str(health).unwrap();
    assert_eq!(health["refused"]["count"], 1);
    let last = health["refused"]["last"].as_str().unwrap();
    assert!(last.contains("UPID IP address validation failed"), "{last}");
    let metrics = exchange(
        "GET /overlay-master/metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".to_owned(),
    );
    assert!(metrics.contains("\nmesos_overlay_master_refused_total 1\n"), "{metrics}");
}
