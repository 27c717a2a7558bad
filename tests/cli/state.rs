//! `state` against the recorded output of a master with the C++ modules, and against servers that
//! are no master. `cluster` tests `state` against a running `mesos-overlay master`.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::support::{FakeMaster, TestDir, http_response};

const RECORDED_STATE: &str = include_str!("../golden/overlay-master-state.json");

fn recorded_master() -> FakeMaster {
    FakeMaster::with_state(http_response("200 OK", RECORDED_STATE))
}

#[test]
fn state_of_cpp_master_is_shown_without_health() {
    let master = recorded_master();
    let output =
        TestDir::new().run(&format!("state -o wide --master {}", master.address)).success();
    assert_eq!(
        output.replace(&master.address, "MASTER"),
        "\
AGENT      VTEP IP        VTEP MAC           OVERLAY  SUBNET            MESOS HALF        DOCKER HALF          STATUS
127.0.0.1  44.128.0.1/16  70:b3:d5:80:00:01  vxlan-1  192.168.0.0/24    192.168.0.0/25    192.168.0.128/25     ok
           fd01:a::1/64
127.0.0.1  44.128.0.1/16  70:b3:d5:80:00:01  vxlan-2  192.168.128.0/24  192.168.128.0/25  192.168.128.128/25   ok
           fd01:a::1/64                               fd01:b::/80       fd01:b::/81       fd01:b::8000:0:0/81

master MASTER: 1 agent: 1 ok, 0 failed, 0 unreported (it shows no health)
"
    );
}

#[test]
fn overlays_in_any_order_are_sorted_by_name() {
    let mut state: Value = serde_json::from_str(RECORDED_STATE).unwrap();
    state["agents"][0]["overlays"].as_array_mut().unwrap().reverse();
    let reversed = FakeMaster::with_state(http_response("200 OK", &state.to_string()));
    let table = |master: &FakeMaster| {
        let output =
            TestDir::new().run(&format!("state -o wide --master {}", master.address)).success();
        output.replace(&master.address, "MASTER")
    };
    assert_eq!(table(&reversed), table(&recorded_master()));
}

#[test]
fn agent_without_service_is_shown_with_reason() {
    let mut state: Value = serde_json::from_str(RECORDED_STATE).unwrap();
    state["agents"] = json!([{ "ip": "10.0.0.7" }, { "ip": "10.0.0.8" }]);
    let health = json!({
        "status": "degraded",
        "problems": ["agent 10.0.0.8 is not served: its record is unreadable: x: y"],
        "epoch": 1,
        "version": 2
    });
    let master = FakeMaster::start(vec![
        ("/overlay-master/state", http_response("200 OK", &state.to_string())),
        ("/overlay-master/health", http_response("200 OK", &health.to_string())),
    ]);
    let output =
        TestDir::new().run(&format!("state -o wide --master {}", master.address)).success();
    assert_eq!(
        output.replace(&master.address, "MASTER"),
        "\
AGENT     VTEP IP  VTEP MAC  OVERLAY  SUBNET  MESOS HALF  DOCKER HALF  STATUS
10.0.0.7  -        -         -        -       -           -            no overlay
10.0.0.8  -        -         -        -       -           -            not served: its record is unreadable: x: y

master MASTER: degraded: 2 agents: 0 ok, 1 failed, 0 unreported, 1 without overlay (epoch 1, version 2)
problem: agent 10.0.0.8 is not served: its record is unreadable: x: y
"
    );
}

#[expect(clippy::disallowed_methods, reason = "the ages of agents are shown")]
fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Returns the table of a master with these agents: the address, the time of the last message before
/// now, and the status of both overlays.
fn brief_table(agents: &[(&str, Option<u64>, [&str; 2])], arguments: &str) -> String {
    let now = unix_now();
    let mut state: Value = serde_json::from_str(RECORDED_STATE).unwrap();
    let recorded = state["agents"][0].clone();
    let agents = agents.iter().map(|(ip, seen, statuses)| {
        let mut agent = recorded.clone();
        agent["ip"] = json!(ip);
        agent["last_seen"] = json!(seen.map(|seen| now - seen));
        agent["version"] = json!(seen.map(|_| "1.20.3"));
        for (overlay, status) in agent["overlays"].as_array_mut().unwrap().iter_mut().zip(statuses)
        {
            overlay["state"] = match *status {
                "ok" => json!({ "status": "STATUS_OK" }),
                "" => json!({}),
                reason => json!({ "status": "STATUS_FAILED", "error": reason }),
            };
        }
        agent
    });
    state["agents"] = agents.collect();
    let master = FakeMaster::with_state(http_response("200 OK", &state.to_string()));
    let output = TestDir::new().run(&format!("state --master {} {arguments}", master.address));
    output.success().replace(&master.address, "MASTER")
}

const THREE: [(&str, Option<u64>, [&str; 2]); 3] = [
    ("10.0.0.9", Some(3 * 3600 + 1800), ["ok", "ok"]),
    ("10.0.0.10", Some(300_000), ["ok", "docker is gone"]),
    ("10.0.0.8", None, ["", ""]),
];

#[test]
fn table_has_one_row_for_each_agent() {
    let expected = "\
AGENT      SEEN  VERSION  SUBNETS           STATUS
10.0.0.8   -     -        192.168.0.0/24    unreported
                          192.168.128.0/24
10.0.0.9   3h    1.20.3   192.168.0.0/24    ok
                          192.168.128.0/24
10.0.0.10  3d    1.20.3   192.168.0.0/24    vxlan-2: failed: docker is gone
                          192.168.128.0/24

master MASTER: 3 agents: 1 ok, 1 failed, 1 unreported (it shows no health)
";
    assert_eq!(brief_table(&THREE, ""), expected);
}

#[test]
fn rows_are_filtered_and_sorted() {
    let agents = |arguments: &str| {
        let table = brief_table(&THREE, arguments);
        let rows = table.lines().skip(1).filter(|line| line.starts_with("10."));
        let agents = rows.map(|line| line.split(' ').next().unwrap().to_owned());
        agents.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(agents("--sort agent"), "10.0.0.8 10.0.0.9 10.0.0.10");
    assert_eq!(agents("--sort seen"), "10.0.0.8 10.0.0.10 10.0.0.9");
    assert_eq!(agents("--sort status"), "10.0.0.10 10.0.0.8 10.0.0.9");
    assert_eq!(agents("--status failed"), "10.0.0.10");
    assert_eq!(agents("--status unreported"), "10.0.0.8");
    assert_eq!(agents("--status failed --overlay vxlan-1"), "");
    assert_eq!(agents("--status failed --overlay vxlan-2"), "10.0.0.10");
    assert_eq!(agents("--overlay vxlan-3"), "");
    assert_eq!(agents("--status ok --agent 10.0.0.9"), "10.0.0.9");
}

#[test]
fn jsonl_has_one_agent_on_each_line() {
    let lines = brief_table(&THREE, "-o jsonl --status ok");
    let agent: Value = serde_json::from_str(&lines).unwrap();
    assert_eq!((lines.lines().count(), &agent["ip"]), (1, &json!("10.0.0.9")));
    assert_eq!(agent["overlays"].as_array().unwrap().len(), 2);
    let lines = brief_table(&THREE, "--format jsonl --sort seen");
    let ips = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["ip"].clone());
    assert_eq!(ips.collect::<Vec<_>>(), ["10.0.0.8", "10.0.0.10", "10.0.0.9"]);
}

#[test]
fn json_of_filtered_state_is_wrong_usage() {
    let master = recorded_master();
    for options in ["-o json --status ok", "--json --overlay vxlan-1"] {
        let arguments = format!("state --master {} {options}", master.address);
        let stderr = TestDir::new().run(&arguments).usage_error();
        assert!(stderr.contains("use --format jsonl"), "{stderr}");
    }
    let arguments = format!("state --master {} --json -o wide", master.address);
    let stderr = TestDir::new().run(&arguments).usage_error();
    assert!(stderr.contains("cannot be used with"), "{stderr}");
}

#[test]
fn json_output_equals_response_of_master() {
    let dir = TestDir::new();
    let master = recorded_master();
    let output = dir.run(&format!("state --master {} --json", master.address)).success();
    assert_eq!(output.trim_end(), RECORDED_STATE.trim_end());
    let environment = [
        ("MESOS_OVERLAY_MASTER", master.address.as_str()),
        ("MESOS_OVERLAY_AGENT", "127.0.0.1"),
        ("MESOS_OVERLAY_JSON", "true"),
    ];
    let agent = dir.run_with("state", &environment, "").success();
    assert!(RECORDED_STATE.contains(&format!("\"agents\":[{}]", agent.trim_end())), "{agent}");
}

#[test]
fn unknown_agent_fails() {
    let master = recorded_master();
    for option in ["", "--json"] {
        let arguments = format!("state --master {} --agent 10.0.0.9 {option}", master.address);
        assert_eq!(
            TestDir::new().run(&arguments).failure(),
            format!(
                "mesos-overlay: agent 10.0.0.9: master {} knows no such agent: omit --agent to \
                 see the agents that it knows\n",
                master.address
            )
        );
    }
}

#[test]
fn unusable_master_fails_with_one_line() {
    let failure = |response: String| {
        let master = FakeMaster::with_state(response);
        let stderr =
            TestDir::new().run(&format!("state -o wide --master {}", master.address)).failure();
        stderr.replace(&master.address, "MASTER")
    };
    assert_eq!(
        failure(http_response("404 Not Found", "")),
        "mesos-overlay: master MASTER: /overlay-master/state: 404 Not Found: this is no overlay \
         master: --master names its address\n"
    );
    assert_eq!(
        failure(http_response("503 Service Unavailable", "the state is being read\n")),
        "mesos-overlay: master MASTER: /overlay-master/state: 503 Service Unavailable: the state is \
         being read: it is not ready: try again, and see its log if that lasts\n"
    );
    assert_eq!(
        failure(http_response("401 Unauthorized", "")),
        "mesos-overlay: master MASTER: /overlay-master/state: 401 Unauthorized: give the file \
         of a credential that it accepts, as --credential FILE\n"
    );
    assert_eq!(
        failure(http_response("500 Internal Server Error", "\r\n\u{1b}[31mbroken\r\nmore")),
        "mesos-overlay: master MASTER: /overlay-master/state: 500 Internal Server Error: \\u{1b}[31mbroken: \
         see its log\n"
    );
    assert_eq!(
        failure(http_response("200 OK", "<html>")),
        "mesos-overlay: master MASTER: /overlay-master/state: not the response of a master: expected \
         value at line 1 column 1: is this the address of a master?\n"
    );
    assert_eq!(
        failure(http_response("200 OK", r#"{"agents":[]}"#)),
        "mesos-overlay: master MASTER: /overlay-master/state: not the response of a master: network: is \
         missing: is this the address of a master?\n"
    );
    assert_eq!(
        failure("220 smtp.example ready\r\n".to_owned()),
        "mesos-overlay: master MASTER: /overlay-master/state: no complete HTTP response: invalid HTTP \
         version parsed: is this the address of a master?\n"
    );
    assert_eq!(
        failure("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{".to_owned()),
        "mesos-overlay: master MASTER: /overlay-master/state: no complete HTTP response: error reading a body from connection: end of file before \
         message length reached: is this the address of a master?\n"
    );
}

#[test]
fn closed_port_fails_with_one_line() {
    // The listener is closed again, so the kernel refuses connections to its port.
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    drop(socket);
    assert_eq!(
        TestDir::new().run(&format!("state -o wide --master {address}")).failure(),
        format!(
            "mesos-overlay: master {address}: connect: Connection refused (os error 111): is the \
             master running there? --master names its address\n"
        )
    );
}

#[test]
fn unresolvable_name_fails_with_one_line() {
    let error = TestDir::new().run("state --master no-such-host.invalid:5050").failure();
    let expected_start = "mesos-overlay: resolve master 'no-such-host.invalid': ";
    assert!(error.starts_with(expected_start));
    assert!(error.ends_with(": check the name and the resolver\n"));
}
