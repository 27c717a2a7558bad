//! A configuration that changes while a master runs, agents that are forgotten, and the history:
//! with a real master and real agents.

use serde_json::json;

use crate::support::{Master, NETWORK, Place, Running, start_agent};

/// The network of the README with another overlay.
fn extended() -> String {
    let third = r#"{ "name": "vxlan-3", "subnet": "10.3.0.0/17", "prefix": 24 }, "#;
    NETWORK.replacen("[ {", &format!("[ {third}{{"), 1)
}

#[test]
fn a_running_master_takes_another_network_and_refuses_what_agents_would_lose() {
    let place = Place::with_network();
    let mut master = Master::start(&place);
    let mut agent = start_agent(&place, master.address, "127.0.0.2");
    agent.expect("registered with the master");
    let address = master.address.to_string();
    let run = |arguments: &str| place.run(arguments).transcript().replace(&address, "MASTER");

    place.write("new.json", extended());
    let effect = "\
overlay vxlan-3 is added: 10.3.0.0/17 in /24
AGENT      OF       BEFORE  AFTER        WHEN
127.0.0.2  vxlan-3  -       10.3.0.0/24  at once
";
    assert_eq!(
        run(&format!("check new.json --against {address}")),
        format!(
            "new.json: ok: a network of 3 overlays, room for 128 agents\n{effect}master MASTER would \
             take it, and tell 1 agent\nexit code 0\n"
        )
    );
    place.write("network.json", extended());
    assert_eq!(
        run(&format!("reload --master {address}")),
        format!("{effect}master MASTER: done: 1 agent told\nexit code 0\n")
    );
    agent.expect("the master assigned 3 overlays");
    agent.expect("overlay vxlan-3: wrote the cni configuration");
    assert!(place.path("cni-127.0.0.2/vxlan-3.conf").exists());

    // Back by a signal. The agent hears of that as well.
    place.write("network.json", NETWORK);
    master.running.hang_up();
    master.running.expect("reading the configuration again: SIGHUP");
    master.running.expect("took over another configuration: overlay vxlan-3 is removed");
    agent.expect("removed the cni configuration of vxlan-3");

    // What an agent would lose is refused, and so is what is no configuration.
    let narrow = NETWORK.replace("192.168.0.0/17", "192.168.1.0/24");
    place.write("network.json", &narrow);
    let said = run(&format!("reload --master {address}"));
    let problem = "problem: agent 127.0.0.2 is not served its share: overlay vxlan-1: \
                   192.168.0.0/24 is none of the /24 subnets of 192.168.1.0/24: mend the \
                   configuration or delete the agent\n";
    let failure = "mesos-overlay: reload: master MASTER refused its configuration and goes on as it \
                   was: 1 problem\nexit code 1\n";
    assert!(said.ends_with(&format!("{problem}{failure}")), "{said}");
    master.running.expect("refused another configuration: agent 127.0.0.2 is not served its share");
    let said = run(&format!("check network.json --against {address}"));
    let failure = "mesos-overlay: network.json: master MASTER would refuse it: 1 problem: take the \
                   change back, or forget the agents\nexit code 1\n";
    assert!(said.ends_with(&format!("{problem}{failure}")), "{said}");
    place.write("network.json", "{");
    let said = run(&format!("reload --master {address}"));
    assert!(said.starts_with("problem: network.json:1:"), "{said}");
    assert!(said.ends_with("goes on as it was: 1 problem\nexit code 1\n"), "{said}");
    let shown = place.run(&format!("state --master {address}")).success();
    assert!(shown.contains("vxlan-1  192.168.0.0/24 "), "{shown}");
}

#[test]
fn what_cannot_be_asked_is_told_in_one_line() {
    let place = Place::with_network();
    place.write("agent.json", r#"{ "cni_dir": "/x" }"#);
    assert_eq!(
        place.run("check agent.json --against 127.0.0.1:1").transcript(),
        "mesos-overlay: check: --against is for a network file or a master_config: this is an \
         agent_config\nexit code 2\n"
    );
    let said = place.run("check network.json --against http://x").usage();
    assert!(said.starts_with("mesos-overlay: --against: 'http://x' is no master"), "{said}");
}

#[test]
fn an_agent_that_programs_nothing_tells_of_what_one_before_it_has_programmed() {
    let place = Place::new();
    let config = json!({
        "cni_dir": place.path("cni"),
        "state_dir": place.path("state"),
        "dataplane": "external",
        "refuse_collisions": false,
    });
    place.write("agent.json", config.to_string());
    let start = || {
        let arguments = "agent --config agent.json --master 127.0.0.1:1 --listen 127.0.0.1:0";
        let mut agent = Running::start(&place, arguments);
        agent.expect("detected master");
        agent.terminate().1
    };
    let text = "and nobody keeps that right any more";
    assert!(!start().contains(text));
    std::fs::create_dir(place.path("state")).unwrap();
    place.write("state/agent.lock", "");
    let log = start();
    assert!(log.contains(text) && log.contains("state/agent.lock"), "{log}");
}

#[test]
fn a_running_agent_is_forgotten_by_force_only_and_the_history_tells_of_it() {
    let place = Place::with_network();
    let master = Master::start(&place);
    let mut agent = start_agent(&place, master.address, "127.0.0.2");
    agent.expect("registered with the master");
    let address = master.address.to_string();
    let forget = |arguments: &str| {
        let outcome = place.run(&format!("forget --master {address} 127.0.0.2 {arguments}"));
        let said = outcome.transcript().replace(&address, "MASTER");
        without_seconds(&said, "heard ")
    };
    let refused = "\
AGENT      VTEP IP     SUBNETS           RESULT
127.0.0.2  44.128.0.1  192.168.0.0/24    kept: heard N s ago
                       192.168.128.0/24
mesos-overlay: forget 127.0.0.2: master MASTER heard it within half an hour: stop it, and forget it with --force
exit code 1
";
    assert_eq!(forget(""), refused);
    assert_eq!(forget("--dry-run"), refused);
    assert!(forget("--force --dry-run").contains("  would be deleted\n"));
    assert!(forget("--force").contains("  deleted\n"));

    let history = place.run(&format!("history --master {address} --agent 127.0.0.2")).success();
    let rows: Vec<String> = history
        .lines()
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().skip(1).collect();
            without_seconds(&words.join(" "), "by force, ")
        })
        .collect();
    let forced = "it was forgotten by force, N s after it was last heard";
    assert_eq!(
        rows,
        [
            "AGENT EVENT OF ADDRESSES WHY".to_owned(),
            "127.0.0.2 assigned vtep 44.128.0.1 it registered".to_owned(),
            "127.0.0.2 assigned vxlan-1 192.168.0.0/24 it registered".to_owned(),
            "127.0.0.2 assigned vxlan-2 192.168.128.0/24 it registered".to_owned(),
            format!("127.0.0.2 released vtep 44.128.0.1 {forced}"),
            format!("127.0.0.2 released vxlan-1 192.168.0.0/24 {forced}"),
            format!("127.0.0.2 released vxlan-2 192.168.128.0/24 {forced}"),
        ]
    );
    let address_only = format!("history --master {address} --address 192.168.128.77");
    let rows = place.run(&address_only).success();
    assert_eq!(rows.matches("vxlan-2  192.168.128.0/24").count(), 2, "{rows}");
    assert_eq!(rows.lines().count(), 3, "{rows}");
    let json = place.run(&format!("history --master {address} --json")).json();
    assert_eq!(json["entries"][0]["overlays"][0]["subnet"], "192.168.0.0/24");
    assert_eq!(json["entries"].as_array().unwrap().len(), 2);
}

/// With `N` for the number after `before`: seconds may have passed.
fn without_seconds(text: &str, before: &str) -> String {
    match text.split_once(before) {
        Some((start, rest)) => {
            let rest = rest.trim_start_matches(|letter: char| letter.is_ascii_digit());
            format!("{start}{before}N{rest}")
        }
        None => text.to_owned(),
    }
}
