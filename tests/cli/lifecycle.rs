//! Reload, forget and history with a running master and running agents.

use serde_json::json;

use crate::support::{Master, NETWORK, RunningProcess, TestDir, start_agent};

/// The network of the README with a third overlay.
fn network_with_third_overlay() -> String {
    let third = r#"{ "name": "vxlan-3", "subnet": "10.3.0.0/17", "prefix": 24 }, "#;
    NETWORK.replacen("[ {", &format!("[ {third}{{"), 1)
}

#[test]
fn reload_adds_overlay_and_refuses_narrower_subnet() {
    let dir = TestDir::with_network();
    let mut master = Master::start(&dir);
    let mut agent = start_agent(&dir, master.address, "127.0.0.2");
    agent.expect_log("registered with the master");
    let address = master.address.to_string();
    let run = |arguments: &str| dir.run(arguments).transcript().replace(&address, "MASTER");

    dir.write("new.json", network_with_third_overlay());
    let effect = "\
overlay vxlan-3 is added: 10.3.0.0/17 in /24
AGENT      OF       BEFORE  AFTER        WHEN
127.0.0.2  vxlan-3  -       10.3.0.0/24  at once
";
    assert_eq!(
        run(&format!("check new.json --against {address}")),
        format!(
            "new.json: ok: a network of 3 overlays, capacity for 128 agents\n{effect}master MASTER would \
             accept it, and notify 1 agent\nexit code 0\n"
        )
    );
    dir.write("network.json", network_with_third_overlay());
    assert_eq!(
        run(&format!("reload --master {address}")),
        format!("{effect}master MASTER: done: assignments queued for 1 agent\nexit code 0\n")
    );
    agent.expect_log("the master assigned 3 overlays");
    agent.expect_log("overlay vxlan-3: wrote the cni configuration");
    assert!(dir.path("cni-127.0.0.2/vxlan-3.conf").exists());

    // Restore the network by SIGHUP. The agent removes the overlay.
    dir.write("network.json", NETWORK);
    master.process.send_sighup();
    master.process.expect_log("reading the configuration again: SIGHUP");
    master.process.expect_log("applied another configuration: overlay vxlan-3 is removed");
    agent.expect_log("removed the cni configuration of vxlan-3");

    // The master refuses a subnet that excludes an assigned one, and a file that is no JSON.
    let narrow = NETWORK.replace("192.168.0.0/17", "192.168.1.0/24");
    dir.write("network.json", &narrow);
    let output = run(&format!("reload --master {address}"));
    let problem = "problem: agent 127.0.0.2 is not served its allocation: overlay vxlan-1: \
                   192.168.0.0/24 is none of the /24 subnets of 192.168.1.0/24: fix the \
                   configuration or delete the agent\n";
    let failure = "mesos-overlay: reload: master MASTER refused its configuration and continues \
                   unchanged: 1 problem\nexit code 1\n";
    assert!(output.ends_with(&format!("{problem}{failure}")), "{output}");
    master
        .process
        .expect_log("refused another configuration: agent 127.0.0.2 is not served its allocation");
    let output = run(&format!("check network.json --against {address}"));
    let failure = "mesos-overlay: network.json: master MASTER would refuse it: 1 problem: revert the \
                   change, or forget the agents\nexit code 1\n";
    assert!(output.ends_with(&format!("{problem}{failure}")), "{output}");
    dir.write("network.json", "{");
    let output = run(&format!("reload --master {address}"));
    assert!(output.starts_with("problem: network.json:1:"), "{output}");
    assert!(output.ends_with("continues unchanged: 1 problem\nexit code 1\n"), "{output}");
    let state = dir.run(&format!("state -o wide --master {address}")).success();
    assert!(state.contains("vxlan-1  192.168.0.0/24 "), "{state}");
}

#[test]
fn check_against_with_wrong_input_fails_with_one_line() {
    let dir = TestDir::with_network();
    dir.write("agent.json", r#"{ "cni_dir": "/x" }"#);
    assert_eq!(
        dir.run("check agent.json --against 127.0.0.1:1").transcript(),
        "mesos-overlay: check: --against is for a network file or a master_config: this is an \
         agent_config\nexit code 2\n"
    );
    let error = dir.run("check network.json --against http://x").usage_error();
    assert!(error.starts_with("mesos-overlay: --against: 'http://x' is no master"), "{error}");
}

#[test]
fn agent_with_external_dataplane_warns_of_stale_one() {
    let dir = TestDir::new();
    let config = json!({
        "cni_dir": dir.path("cni"),
        "state_dir": dir.path("state"),
        "dataplane": "external",
        "refuse_collisions": false,
    });
    dir.write("agent.json", config.to_string());
    let start = || {
        let arguments = "agent --config agent.json --master 127.0.0.1:1 --listen 127.0.0.1:0";
        let mut agent = RunningProcess::start(&dir, arguments);
        agent.expect_log("detected master");
        agent.terminate().1
    };
    let warning = "and no agent maintains that dataplane now";
    assert!(!start().contains(warning));
    std::fs::create_dir(dir.path("state")).unwrap();
    dir.write("state/agent.lock", "");
    let log = start();
    assert!(log.contains(warning) && log.contains("state/agent.lock"), "{log}");
}

#[test]
fn forget_running_agent_needs_force_and_is_in_history() {
    let dir = TestDir::with_network();
    let master = Master::start(&dir);
    let mut agent = start_agent(&dir, master.address, "127.0.0.2");
    agent.expect_log("registered with the master");
    let address = master.address.to_string();
    let forget = |arguments: &str| {
        let outcome = dir.run(&format!("forget --master {address} 127.0.0.2 {arguments}"));
        let transcript = outcome.transcript().replace(&address, "MASTER");
        mask_seconds(&transcript, "last seen ")
    };
    let refused = "\
AGENT      VTEP IP     SUBNETS           RESULT
127.0.0.2  44.128.0.1  192.168.0.0/24    kept: last seen N s ago
                       192.168.128.0/24
mesos-overlay: forget 127.0.0.2: master MASTER has seen it within half an hour: stop it, and forget it with --force
exit code 1
";
    assert_eq!(forget(""), refused);
    assert_eq!(forget("--dry-run"), refused);
    assert!(forget("--force --dry-run").contains("  would be deleted\n"));
    assert!(forget("--force").contains("  deleted\n"));

    let history = dir.run(&format!("history --master {address} --agent 127.0.0.2")).success();
    let rows: Vec<String> = history
        .lines()
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().skip(1).collect();
            let row = mask_seconds(&words.join(" "), "by force, ");
            // The port of the client differs in each run.
            row.split(" (by 127.0.0.1:").next().unwrap_or_default().to_owned()
        })
        .collect();
    let reason = "released by force, N s after it was last seen";
    assert_eq!(
        rows,
        [
            "AGENT EVENT OF ADDRESSES WHY".to_owned(),
            "127.0.0.2 assigned vtep 44.128.0.1 it registered".to_owned(),
            "127.0.0.2 assigned vxlan-1 192.168.0.0/24 it registered".to_owned(),
            "127.0.0.2 assigned vxlan-2 192.168.128.0/24 it registered".to_owned(),
            format!("127.0.0.2 released vtep 44.128.0.1 {reason}"),
            format!("127.0.0.2 released vxlan-1 192.168.0.0/24 {reason}"),
            format!("127.0.0.2 released vxlan-2 192.168.128.0/24 {reason}"),
        ]
    );
    assert_eq!(history.matches(" after it was last seen (by 127.0.0.1:").count(), 3, "{history}");
    let by_address = format!("history --master {address} --address 192.168.128.77");
    let rows = dir.run(&by_address).success();
    assert_eq!(rows.matches("vxlan-2  192.168.128.0/24").count(), 2, "{rows}");
    assert_eq!(rows.lines().count(), 3, "{rows}");
    let json = dir.run(&format!("history --master {address} --json")).json();
    assert_eq!(json["entries"][0]["overlays"][0]["subnet"], "192.168.0.0/24");
    assert_eq!(json["entries"].as_array().unwrap().len(), 2);
}

/// Replaces the number after `before` by `N`, since the number of seconds varies.
fn mask_seconds(text: &str, before: &str) -> String {
    match text.split_once(before) {
        Some((start, rest)) => {
            let rest = rest.trim_start_matches(|letter: char| letter.is_ascii_digit());
            format!("{start}{before}N{rest}")
        }
        None => text.to_owned(),
    }
}
