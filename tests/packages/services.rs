//! The services, started by a real systemd with every restriction of their units.

use std::process::Stdio;

use serde_json::{Value, json};

use crate::booted::BootedSystem;

const MASTER: &str = "10.0.0.1:5050";
const NETWORK: &str = r#"
    { "vtep_subnet": "44.128.0.0/16", "vtep_mac_oui": "70:B3:D5:00:00:00",
      "overlays": [ { "name": "vxlan-1", "subnet": "192.168.0.0/17", "prefix": 24 } ] }"#;

/// Boots two hosts, and installs the package on both. The first host runs the master.
fn boot_hosts() -> [BootedSystem; 2] {
    let hosts = [BootedSystem::new(1), BootedSystem::new(2)];
    hosts[0].connect(&hosts[1]);
    for (host, address) in hosts.iter().zip(["10.0.0.1", "10.0.0.2"]) {
        host.set_address(address);
        host.run("dpkg --install /1.deb");
    }
    hosts
}

fn agent_config(firewall: &str) -> String {
    json!({ "master": MASTER, "cni_dir": "/var/lib/mesos/cni", "direct_routing": "auto",
            "firewall": firewall })
    .to_string()
}

fn start_services(hosts: &[BootedSystem; 2]) {
    hosts[0].system().write("etc/mesos-overlay/network.json", NETWORK);
    hosts[0].run("systemctl enable --now mesos-overlay-master");
    for host in hosts {
        host.system().write("etc/mesos-overlay/agent.json", &agent_config("nftables"));
        host.run("systemctl enable --now mesos-overlay-agent");
    }
    wait_until_ok(hosts);
}

fn wait_until_ok(hosts: &[BootedSystem; 2]) {
    let status = format!("mesos-overlay status --master {MASTER}");
    hosts[0].wait_for("both agents are ok", || {
        let output = hosts[0].command(&status).output().unwrap();
        String::from_utf8_lossy(&output.stdout).contains("\n2 agents: 2 ok,")
    });
}

fn health(host: &BootedSystem) -> Value {
    let url = "http://127.0.0.1:5061/overlay-agent/health";
    let output = host.command(&format!("busybox wget -q -O - {url}")).output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

/// Starts a container of Docker, and returns its address.
fn start_docker_container(host: &BootedSystem) -> String {
    host.run(
        "mkdir -p /tmp/image/bin; cp /bin/busybox /tmp/image/bin/; \
         tar -C /tmp/image -c . | docker import - busybox",
    );
    host.run("docker run -d --name web --net vxlan-1 busybox /bin/busybox sleep 600");
    let format = "{{(index .NetworkSettings.Networks \"vxlan-1\").IPAddress}}";
    host.run(&format!("docker inspect --format '{format}' web")).trim().to_owned()
}

/// Adds the namespace `task` to the overlay with the plugin bridge, as the port mapper of Mesos
/// does.
fn add_mesos_container(host: &BootedSystem) {
    let config = host.run("cat /var/lib/mesos/cni/vxlan-1.conf");
    let config: Value = serde_json::from_str(&config).unwrap();
    let mut bridge = config["delegate"].clone();
    bridge["name"] = config["name"].clone();
    host.system().write("task.conf", &bridge.to_string());
    host.run(
        "ip netns add task; CNI_COMMAND=ADD CNI_CONTAINERID=task CNI_NETNS=/run/netns/task \
         CNI_IFNAME=eth0 CNI_PATH=/usr/lib/cni /usr/lib/cni/bridge </task.conf",
    );
}

/// Checks that both kinds of containers of the first host reach the Docker container of the second
/// one.
fn check_containers(hosts: &[BootedSystem; 2], address: &str) {
    for program in ["docker exec web /bin/busybox", "ip netns exec task busybox"] {
        let ping = format!("{program} ping -c 1 -W 1 {address}");
        hosts[0].wait_for(&ping, || hosts[0].succeeds(&ping));
    }
}

/// Checks that a service had every permission that it needed. Docker changes the rules and bridges
/// when it creates a network, which the agent repairs.
fn check_log(host: &BootedSystem, service: &str) {
    let log = host.log(service);
    let problems = log.lines().filter(|line| line.contains(" WARN ") || line.contains(" ERROR "));
    let is_repair = |line: &&str| line.contains("repaired changes of another process");
    let problems: Vec<&str> = problems.filter(|line| !is_repair(line)).collect();
    assert!(problems.is_empty(), "{log}");
    for text in ["not permitted", "ermission denied", "ead-only file system"] {
        assert!(!log.contains(text), "{log}");
    }
}

/// Checks that the doctor uses the agent of the unit with its address, and that the agent answers.
fn check_doctor(output: &[u8]) {
    let text = String::from_utf8_lossy(output);
    assert!(text.contains("process") && !text.contains("not trusted"), "{text}");
    assert!(!text.contains("no agent answers"), "{text}");
}

/// Checks that systemd restarts an agent that hangs.
fn check_watchdog(host: &BootedSystem) {
    let directory = "/run/systemd/system/mesos-overlay-agent.service.d";
    host.run(&format!(
        "mkdir -p {directory} && printf '[Service]\\nWatchdogSec=2\\n' >{directory}/watchdog.conf \
         && systemctl daemon-reload && systemctl restart mesos-overlay-agent \
         && systemctl kill --signal=STOP mesos-overlay-agent"
    ));
    host.wait_for("systemd restarts the agent", || {
        host.log("mesos-overlay-agent").contains("Watchdog timeout (limit 2s)!")
            && host.succeeds("systemctl is-active mesos-overlay-agent")
    });
}

fn main_process(host: &BootedSystem, service: &str) -> String {
    host.run(&format!("systemctl show --property=MainPID --value {service}"))
}

#[test]
#[ignore = "needs root, a mirror of Debian, and Debian packages"]
fn confined_services_connect_containers_of_two_hosts() {
    let hosts = boot_hosts();
    start_services(&hosts);
    let [_, address] = [start_docker_container(&hosts[0]), start_docker_container(&hosts[1])];
    add_mesos_container(&hosts[0]);
    check_containers(&hosts, &address);
    hosts[0].wait_for("probes begin at the bridge, and packets take the direct path", || {
        let health = health(&hosts[0]);
        let probes = &health["probes"];
        (&probes["reached"], &probes["note"]) == (&json!(1), &Value::Null)
            && probes["bridged_overlays"] == json!(["vxlan-1"])
            && health["dataplane"]["direct_routing"]["direct"] == json!(["10.0.0.2"])
            && health["dataplane"]["firewall"] == "nftables"
    });
    // The host's managers of networks leave the devices alone.
    for name in ["sysctl.d/99-zz-mesos-overlay.conf", "systemd/network/00-mesos-overlay.network"] {
        assert!(hosts[0].system().exists(&format!("etc/{name}")), "{name}");
    }
    // The doctor finds the agent in spite of its own mounts.
    let mut text = hosts[0].command(&format!("mesos-overlay doctor --json --master {MASTER}"));
    check_doctor(&text.output().unwrap().stdout);
    hosts[0].run("systemctl reload mesos-overlay-master mesos-overlay-agent");
    let state = hosts[0].run("systemctl show --property=StatusText mesos-overlay-master");
    assert_eq!(state, "StatusText=ok: at 10.0.0.1:5050\n");
    check_log(&hosts[0], "mesos-overlay-master");
    check_log(&hosts[0], "mesos-overlay-agent");

    // The other backend of the firewall, with its own programs.
    for host in &hosts {
        host.system().write("etc/mesos-overlay/agent.json", &agent_config("iptables"));
        host.run("systemctl restart mesos-overlay-agent");
    }
    wait_until_ok(&hosts);
    hosts[0].wait_for("iptables has the rules", || {
        let health = health(&hosts[0]);
        health["status"] == "ok" && health["dataplane"]["firewall"] == "iptables"
    });
    check_containers(&hosts, &address);
    assert!(!hosts[0].log("mesos-overlay-agent").contains("not permitted"));
    check_watchdog(&hosts[1]);
    wait_until_ok(&hosts);
}

#[test]
#[ignore = "needs root, a mirror of Debian, and Debian packages"]
fn upgrade_and_removal_keep_the_network_of_containers() {
    let hosts = boot_hosts();
    start_services(&hosts);
    let [_, address] = [start_docker_container(&hosts[0]), start_docker_container(&hosts[1])];
    add_mesos_container(&hosts[0]);
    let services = ["mesos-overlay-master", "mesos-overlay-agent"];
    let before = services.map(|service| main_process(&hosts[0], service));
    let state = hosts[0].run(&format!("mesos-overlay state --json --master {MASTER}"));
    let state: Value = serde_json::from_str(&state).unwrap();

    let pings = "docker exec web /bin/busybox ping -c 8 -W 1";
    let mut pings = hosts[0].command(&format!("{pings} {address}"));
    let pings = pings.stdout(Stdio::piped()).spawn().unwrap();
    hosts[0].run("dpkg --install /2.deb");
    hosts[0].wait_for("both services run the new version", || {
        services
            .map(|service| main_process(&hosts[0], service))
            .iter()
            .zip(&before)
            .all(|(now, before)| now != before && now != "0\n")
    });
    wait_until_ok(&hosts);
    assert!(pings.wait_with_output().unwrap().status.success(), "containers lost their network");
    check_containers(&hosts, &address);
    let after = hosts[0].run(&format!("mesos-overlay state --json --master {MASTER}"));
    let after: Value = serde_json::from_str(&after).unwrap();
    assert_eq!(
        after["agents"][0]["overlays"][0]["info"],
        state["agents"][0]["overlays"][0]["info"]
    );

    // Removed without `clean`: containers keep their network.
    let text = hosts[1].run("dpkg --remove mesos-overlay");
    assert!(text.contains("containers keep their network"), "{text}");
    assert!(!hosts[1].succeeds("systemctl is-active mesos-overlay-agent"));
    check_containers(&hosts, &address);
    let text = hosts[1].run("dpkg --purge mesos-overlay");
    assert!(text.contains("the devices and firewall rules of the agent stay"), "{text}");
    assert!(!hosts[1].system().exists("etc/sysctl.d/99-zz-mesos-overlay.conf"));

    // As docs/install.md describes it.
    hosts[0].run("docker rm --force web; ip netns delete task");
    hosts[0].run("systemctl stop mesos-overlay-agent");
    hosts[0].run("mesos-overlay clean --config /etc/mesos-overlay/agent.json");
    hosts[0].run("apt-get purge --yes mesos-overlay");
    let left = hosts[0].run("ip -br link; docker network ls; nft list ruleset; ls /etc/sysctl.d");
    for name in ["vxlan-1", "vtep1024", "mesos-overlay"] {
        assert!(!left.contains(name), "{left}");
    }
}
