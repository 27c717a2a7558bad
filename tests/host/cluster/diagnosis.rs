//! `doctor` on the hosts of real agents: it finds their configuration, and shows one root cause for
//! each fault, whatever follows from it.

use std::fmt::Write as _;

use rustix::process::Signal;
use serde_json::Value;

use super::container::Container;
use super::{Cluster, Host, MASTER_ADDRESS};
use crate::doctor::{Diagnosis, run_doctor_in};
use crate::hosts::Underlay;
use crate::namespace::run;
use crate::process::{PROGRAM, Process};
use crate::traffic::now;

/// Most lines of the doctor's text for one fault.
const LINES_MAX: usize = 10;

fn diagnose(host: &Host) -> Diagnosis {
    run_doctor_in(host.namespace(), &["doctor", "--master", MASTER_ADDRESS])
}

/// Returns the findings that are wrong and follow from no other finding.
fn roots(diagnosis: &Diagnosis) -> Vec<&Value> {
    let wrong = diagnosis.findings.iter().filter(|finding| finding["result"] == "wrong");
    wrong.filter(|finding| finding.get("cause").is_none()).collect()
}

/// A fault, and the only root cause that the doctor may show.
struct Fault {
    name: &'static str,
    cause: &'static str,
    /// Whether a running agent repairs the fault: then the agent hangs here.
    is_repaired: bool,
    check: &'static str,
    what: &'static str,
    removal: &'static str,
}

const FAULTS: [Fault; 5] = [
    Fault {
        name: "a bridge is down, and the agent hangs",
        cause: "ip link set m-vxlan-1 down",
        is_repaired: true,
        check: "dataplane",
        what: "bridge m-vxlan-1 is down",
        removal: "true",
    },
    Fault {
        name: "a REJECT rule in FORWARD",
        cause: "iptables -A FORWARD -j REJECT",
        is_repaired: false,
        check: "forward-policy",
        what: "rule 'FORWARD -j REJECT",
        removal: "iptables -F FORWARD",
    },
    Fault {
        name: "forwarding is off for the tunnel, and the agent hangs",
        cause: "sysctl -qw net.ipv4.conf.vtep1024.forwarding=0",
        is_repaired: true,
        check: "dataplane",
        what: "IPv4 forwarding is off for device vtep1024",
        removal: "true",
    },
    Fault {
        name: "a policy rule",
        cause: "ip route add default via 10.0.0.2 dev eth0 table 100
                ip rule add priority 100 from 192.168.0.0/17 lookup 100",
        is_repaired: false,
        check: "dataplane",
        what: "packets from m-vxlan-1 to 192.168.1.0/24 do not leave through vtep1024",
        removal: "ip rule delete priority 100; ip route flush table 100",
    },
    Fault {
        name: "the MTU of the underlay is too small",
        cause: "ip link set eth0 mtu 1300",
        is_repaired: false,
        check: "mtu",
        what: "underlay device eth0",
        removal: "ip link set eth0 mtu 1500",
    },
];

/// Returns the lines without those about agents of other tests or of the machine.
fn own_lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !line.contains("runs in another network namespace"))
}

/// Causes a fault and waits for its diagnosis. Returns the doctor's text, or what is wrong with the
/// diagnosis.
fn diagnose_fault(cluster: &Cluster, fault: &Fault) -> Result<String, String> {
    let host = cluster.host(1);
    let agent = host.agent.as_ref().expect("a running agent");
    if fault.is_repaired {
        agent.signal(Signal::STOP);
    }
    host.namespace().succeed("sh", &["-ec", fault.cause]);
    if !fault.is_repaired {
        cluster.wait_for("the agent reports the fault", || {
            cluster.host(1).health()["status"] == "degraded"
        });
    }
    let diagnosis = diagnose(host);
    let mut command = host.namespace().command(PROGRAM);
    let text = run(command.args(["doctor", "--master", MASTER_ADDRESS]), "").stdout;
    let text = String::from_utf8_lossy(&text).into_owned();
    host.namespace().succeed("sh", &["-c", fault.removal]);
    if fault.is_repaired {
        agent.signal(Signal::CONT);
    }
    let roots = roots(&diagnosis);
    let is_expected = |root: &&Value| {
        root["check"] == fault.check
            && root["what"].as_str().is_some_and(|what| what.starts_with(fault.what))
    };
    match roots[..] {
        [root] if is_expected(&root) && own_lines(&text).count() <= LINES_MAX => Ok(text),
        _ => Err(format!("{} root causes: {:#?}\n{text}", roots.len(), diagnosis.wrong())),
    }
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn fault_has_one_root_cause() {
    let cluster = Cluster::started(2, Underlay::V4);
    let _containers = [1, 2].map(|number| Container::for_mesos(cluster.host(number), "vxlan-1"));
    let (mut shown, mut failed) = (String::new(), String::new());
    for fault in &FAULTS {
        cluster.wait_until_ok();
        let is_right = || diagnose(cluster.host(1)).wrong().is_empty();
        cluster.wait_for("the agent has repaired the former fault", is_right);
        let start = now();
        let _ = match diagnose_fault(&cluster, fault) {
            Ok(text) => {
                let time = start.elapsed().as_millis();
                writeln!(shown, "# {}: diagnosed after {time} ms\n{text}", fault.name)
            }
            Err(problem) => writeln!(failed, "# {}: {problem}", fault.name),
        };
    }
    eprintln!("{shown}");
    assert!(failed.is_empty(), "{failed}\n{}", cluster.logs());
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn doctor_finds_configuration_of_running_agent() {
    let mut cluster = Cluster::started(1, Underlay::V4);
    let host = cluster.host(1);
    let config = host.daemon.path("agent.json").display().to_string();
    let diagnosis = run_doctor_in(host.namespace(), &["doctor"]);
    assert_eq!(diagnosis.wrong(), [""; 0]);
    let found = diagnosis.findings_of("configuration");
    let found = found.join("\n");
    let found = own_lines(&found).collect::<String>();
    assert!(found.starts_with(&format!("{config}, of the agent of process ")), "{found:?}");
    // The agent listens on the address of the host, and uses no Docker.
    assert_eq!(diagnosis.findings_of("agent"), ["the agent at 10.0.0.1:5051 has 2 overlays"]);
    assert_eq!(diagnosis.findings_of("docker"), ["Docker is not needed: docker_bridge is off"]);
    assert_eq!(diagnosis.findings_of("cni-plugins"), ["bridge and host-local are installed"]);

    host.namespace().run(&format!("touch -d +1hour {config}"));
    let found = run_doctor_in(host.namespace(), &["doctor"]);
    let found = found.findings_of("configuration").join("\n");
    assert!(found.contains(&format!("{config} was changed after the agent of")), "{found}");

    // The master's host has another network namespace, without an agent.
    let diagnosis = run_doctor_in(&cluster.namespace, &["doctor"]);
    assert_eq!(diagnosis.wrong(), [""; 0]);
    let found = diagnosis.findings_of("configuration").join("\n");
    assert!(found.contains("no configuration of an agent found"), "{found}");
    assert!(found.contains(" (mesos-overlay) runs in another network namespace"), "{found}");

    let second = host.daemon.path("second.json");
    std::fs::write(&second, host.config.to_string()).expect("an agent_config");
    let program = host.program();
    let mut command = host.namespace().command(program.to_str().expect("a UTF-8 path"));
    command.arg("agent").args(["--listen", "10.0.0.1:5061", "--config"]).arg(&second);
    let process = Process::spawn(command, &host.daemon.path("second.log"));
    cluster.wait_for("both agents are named", || {
        let diagnosis = run_doctor_in(cluster.host(1).namespace(), &["doctor"]);
        let found = diagnosis.findings_of("configuration").join("\n");
        found.contains("several agents run on this host: processes ")
    });
    drop(process);
    cluster.host_mut(1).agent = None;
    let diagnosis = run_doctor_in(cluster.host(1).namespace(), &["doctor", "--config", &config]);
    assert!(diagnosis.findings_of("configuration").contains(&config.as_str()));
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn process_of_another_user_is_named_and_not_used() {
    let mut cluster = Cluster::started(1, Underlay::V4);
    cluster.host_mut(1).agent = None;
    let host = cluster.host(1);
    let [docker, executed, config, log] =
        ["docker.sh", "executed", "other.json", "other.log"].map(|name| host.daemon.path(name));
    std::fs::write(&docker, format!("#!/bin/sh\ntouch {}\n", executed.display())).expect("a file");
    host.namespace().run(&format!("chmod 755 {}", docker.display()));
    let text = serde_json::json!({ "cni_dir": "/cni", "docker": docker });
    std::fs::write(&config, text.to_string()).expect("an agent_config");
    let script = format!(
        "exec -a mesos-overlay sh -c 'sleep 60; true' agent --config={} --listen=127.0.0.1:6666",
        config.display()
    );
    let mut command = host.namespace().command("setpriv");
    command.args(["--reuid=65534", "--clear-groups", "bash", "-c", &script]);
    let process = Process::spawn(command, &log);
    let named = || {
        let diagnosis = run_doctor_in(cluster.host(1).namespace(), &["doctor"]);
        diagnosis.findings_of("configuration").join("\n")
    };
    let reason = "looks like an agent and is not trusted: it runs as user 65534";
    cluster.wait_for("the process is named", || named().contains(reason));
    let found = named();
    drop(process);
    assert!(found.contains("no configuration of an agent found"), "{found}");
    assert!(!executed.exists(), "the doctor ran the program of another user");
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn no_advice_cuts_colliding_host_off() {
    let mut cluster = Cluster::new(Underlay::V4);
    cluster.add_host(1);
    let host = cluster.host(1);
    // The network of the operator, connected and through a router.
    host.namespace().run("ip addr add 192.168.1.60/24 dev eth0");
    host.namespace().run("ip route add 192.168.5.0/24 via 10.0.0.100");
    let routes = host.namespace().run("ip route show");
    cluster.start_agents();
    cluster.wait_for_status(1, "vxlan-1", |status| status.contains("collides"));
    let host = cluster.host(1);
    let diagnosis = diagnose(host);
    let roots = roots(&diagnosis);
    assert!(roots.iter().all(|root| root["check"] == "collisions"), "{roots:#?}");
    for finding in diagnosis.findings.iter().filter(|finding| finding["result"] == "wrong") {
        assert_eq!(finding.get("command"), None, "{finding:#}");
        let text = finding.to_string();
        for dangerous in ["route delete", "route replace", "link delete", "addr delete"] {
            assert!(!text.contains(dangerous), "{text}");
        }
    }
    assert!(!cluster.status(1, "vxlan-1").contains("'ip "), "{}", cluster.status(1, "vxlan-1"));
    let kept = host.namespace().run("ip route show");
    for route in routes.lines() {
        assert!(kept.contains(route), "{route}\n{kept}");
    }
}
