//! `mesos-overlay doctor` on hosts with a real dataplane: a healthy cluster has nothing wrong, each
//! fault is named with its cause, and what is printed as a command mends it.
//!
//! What agents and masters say is said by stand-ins: the hosts are programmed by this process.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::{fs, thread};

use mesos_network_overlay::addr::Vni;
use mesos_network_overlay::protocol::{
    AddressRange, AgentInfo, Assignment, Bridge, Network, Overlay, State, Status, Vtep, Vxlan,
};
use mesos_network_overlay::tunnel::Desired;
use mesos_network_overlay::wire;
use serde_json::{Value, json};

use crate::hosts::{Host, Hosts, Underlay, device, overlay};
use crate::namespace::{Namespace, run};

const PROGRAM: &str = env!("CARGO_BIN_EXE_mesos-overlay");
const AGENT_PORT: u16 = 5051;
const MASTER_PORT: u16 = 5050;
const WELL: &str = "2 peers reached through the tunnel, with small and full-size packets";

/// Answers every question with a 200 and the content for the beginning of its path.
struct StandIn {
    listener: Arc<TcpListener>,
    thread: Option<JoinHandle<()>>,
}

type Contents = Arc<Mutex<Vec<(&'static str, String)>>>;

impl StandIn {
    fn new(namespace: &Namespace, port: u16, contents: &Contents) -> Self {
        let address = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port);
        let listener = namespace.inside(|| TcpListener::bind(address).expect("a free port"));
        let listener = Arc::new(listener);
        let (accepting, contents) = (Arc::clone(&listener), Arc::clone(contents));
        let serve = move || {
            while let Ok((mut stream, _)) = accepting.accept() {
                let mut request = [0; 4096];
                let length = stream.read(&mut request).unwrap_or(0);
                let request = String::from_utf8_lossy(&request[..length]).into_owned();
                let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
                let contents = contents.lock().expect("nobody panics with it");
                let content = contents.iter().find(|(wanted, _)| path.starts_with(wanted));
                let (status, body) =
                    content.map_or(("404 Not Found", ""), |(_, body)| ("200 OK", body.as_str()));
                let _ = write!(
                    stream,
                    "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: \
                     {}\r\nconnection: close\r\n\r\n{body}",
                    body.len()
                );
            }
        };
        let thread = thread::Builder::new().spawn(serve).expect("there is room for a thread");
        Self { listener, thread: Some(thread) }
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        // Whoever accepts is told that there is nothing more.
        let _ = rustix::net::shutdown(&*self.listener, rustix::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn network_overlay() -> Overlay {
    let range = |text: &str, prefix| {
        Some(AddressRange { subnet: text.parse().expect("it is a subnet"), prefix })
    };
    Overlay {
        name: overlay(),
        range: range("192.168.0.0/16", 24),
        range6: range("fd01:b::/64", 80),
        vni: None,
        enabled: true,
    }
}

/// What an agent would have for a host to be as it is programmed here.
fn info(number: u8, desired: &Desired) -> AgentInfo {
    let (local, space) = (&desired.locals[0], &desired.spaces[0]);
    let bridge = Bridge {
        name: overlay().mesos_bridge(),
        subnet: format!("192.168.{number}.0/25").parse().ok(),
        subnet6: None,
    };
    let assignment = Assignment {
        overlay: network_overlay(),
        subnet: Some(space.own[0]),
        subnet6: Some(space.own[1]),
        mesos_bridge: Some(bridge),
        docker_bridge: None,
        vtep: Vtep {
            vni: local.vni,
            device: device(),
            port: local.port,
            ip: local.ip.expect("it has one"),
            ip6: local.ip6,
            mac: local.mac,
            mtu: None,
        },
        status: Some(Status::Ok),
    };
    let ip = Ipv4Addr::new(10, 0, 0, number);
    AgentInfo { ip, overlays: vec![assignment], configuration_attempts: None }
}

/// Three hosts with all that a doctor asks.
struct Ward {
    hosts: Hosts,
    agents: Vec<Contents>,
    _stand_ins: Vec<StandIn>,
}

impl Ward {
    fn new(underlay: Underlay) -> Self {
        let hosts = Hosts::new(3, underlay);
        hosts.program();
        let infos: Vec<_> =
            hosts.hosts.iter().map(|host| info(host.number, &hosts.desired(host))).collect();
        let network = Network {
            vtep_subnet: "44.128.0.0/16".parse().expect("it is a subnet"),
            vtep_subnet6: "fd01:a::/64".parse().ok(),
            vtep_mac_oui: "70:B3:D5:00:00:00".parse().expect("it is an OUI"),
            vtep_mtu: None,
            vxlan: Vxlan::default(),
            overlays: vec![network_overlay()],
        };
        let agents = infos.iter().cloned().map(Arc::new).collect();
        let state = State { network: Arc::new(network), agents };
        let state = wire::print_json(&wire::encode_state(&state));
        let master = Arc::new(Mutex::new(vec![("/overlay-master/state", state)]));
        let mut stand_ins = Vec::new();
        let mut agents = Vec::new();
        for (host, info) in hosts.hosts.iter().zip(&infos) {
            let health = json!({
                "status": "ok", "problems": [], "dataplane": { "status": "ok" }
            })
            .to_string();
            let contents: Contents = Arc::new(Mutex::new(vec![
                ("/overlay-agent/overlay", wire::print_json(&wire::encode_agent(info))),
                ("/overlay-agent/health", health),
            ]));
            stand_ins.push(StandIn::new(&host.namespace, AGENT_PORT, &contents));
            stand_ins.push(StandIn::new(&host.namespace, MASTER_PORT, &master));
            agents.push(contents);
        }
        for host in &hosts.hosts {
            prepare(host, underlay);
        }
        Self { hosts, agents, _stand_ins: stand_ins }
    }

    fn host(&self, number: u8) -> &Host {
        &self.hosts.hosts[usize::from(number) - 1]
    }

    /// As the agent of the host would do.
    fn repair(&self, number: u8) {
        let host = self.host(number);
        let report = host.verify(&self.hosts.desired(host));
        assert!(report.is_complete(), "{report:?}");
    }

    /// With all that there is.
    fn examine(&self, number: u8) -> Diagnosis {
        self.ask(number, &["--probe"])
    }

    /// Without a packet to peers, and so without waiting for answers.
    fn look(&self, number: u8) -> Diagnosis {
        self.ask(number, &[])
    }

    fn ask(&self, number: u8, more: &[&str]) -> Diagnosis {
        let host = self.host(number);
        let config = host.folder.path().join("agent.json");
        let config = config.to_str().expect("it is text");
        let arguments = ["doctor", "--config", config, "--master", "127.0.0.1:5050"];
        diagnose(&host.namespace, &[&arguments, more].concat())
    }

    #[track_caller]
    fn assert_well(&self, number: u8) {
        let diagnosis = self.examine(number);
        assert_eq!(diagnosis.wrong(), [""; 0], "{diagnosis:?}");
        assert_eq!(diagnosis.code, Some(0));
        assert_eq!(diagnosis.of("probe"), [WELL], "{diagnosis:?}");
    }

    /// Runs every command that is printed for what is wrong.
    fn apply(&self, number: u8, diagnosis: &Diagnosis) {
        for finding in diagnosis.findings.iter().filter(|finding| finding["result"] == "wrong") {
            if let Some(command) = finding["command"].as_str() {
                self.host(number).namespace.succeed("sh", &["-c", command]);
            }
        }
    }
}

/// Files that the configuration names.
fn prepare(host: &Host, underlay: Underlay) {
    let path = |name: &str| host.folder.path().join(name);
    fs::create_dir(path("plugins")).expect("a directory");
    for plugin in ["bridge", "host-local"] {
        place_plugin(host, plugin);
    }
    let mut config = json!({
        "cni_dir": path("cni"),
        "cni_plugins_dir": path("plugins"),
        "firewall": "nftables",
        "network_config": { "docker_bridge": false },
    });
    if underlay == Underlay::V6 {
        config["underlay"] = json!(underlay.address(host.number).to_string());
    }
    fs::write(path("agent.json"), config.to_string()).expect("an agent_config");
}

fn place_plugin(host: &Host, plugin: &str) {
    let path = host.folder.path().join("plugins").join(plugin);
    fs::write(&path, "").expect("a file");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it is ours");
}

/// What the doctor said.
#[derive(Debug)]
struct Diagnosis {
    code: Option<i32>,
    findings: Vec<Value>,
}

fn diagnose(namespace: &Namespace, arguments: &[&str]) -> Diagnosis {
    let output = run(namespace.command(PROGRAM).args(arguments).arg("--json"), "");
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {output:?}"));
    let findings = report["findings"].as_array().expect("a list").clone();
    assert_eq!(report["ok"] == true, output.status.success(), "{output:?}");
    Diagnosis { code: output.status.code(), findings }
}

impl Diagnosis {
    /// What is wrong: check, object, reason and remedy, a text for each.
    fn wrong(&self) -> Vec<String> {
        let wrong = self.findings.iter().filter(|finding| finding["result"] == "wrong");
        wrong
            .map(|finding| {
                let mut text = String::new();
                for key in ["check", "what", "why", "command", "advice"] {
                    if let Some(part) = finding[key].as_str() {
                        let _ = writeln!(text, "{key}: {part}");
                    }
                }
                text
            })
            .collect()
    }

    /// What a check found.
    fn of(&self, check: &str) -> Vec<&str> {
        let findings = self.findings.iter().filter(|finding| finding["check"] == check);
        findings.filter_map(|finding| finding["what"].as_str()).collect()
    }

    /// Something is wrong that has all of these words in one finding.
    #[track_caller]
    fn assert_wrong(&self, words: &[&str]) {
        let has_all = |text: &String| words.iter().all(|word| text.contains(word));
        assert!(self.wrong().iter().any(has_all), "{words:?} is not in {:#?}", self.wrong());
        assert_eq!(self.code, Some(1));
    }
}

#[test]
#[ignore = "host"]
fn a_doctor_finds_nothing_wrong_over_ipv6() {
    let ward = Ward::new(Underlay::V6);
    for number in 1..=3 {
        ward.assert_well(number);
    }
    // That a host does not answer in the underlay means nothing.
    let quiet = &ward.host(2).namespace;
    quiet.run("nft add table inet quiet");
    quiet.run("nft add chain inet quiet in { type filter hook input priority 0 ; }");
    quiet.run("nft add rule inet quiet in iifname eth0 icmpv6 type echo-request drop");
    ward.assert_well(1);
}

#[test]
#[ignore = "host"]
fn a_doctor_looks_at_a_host_before_its_first_agent() {
    let hosts = Hosts::new(1, Underlay::V4);
    let host = &hosts.hosts[0];
    host.namespace.run("ip route add default via 10.0.0.9");
    prepare(host, Underlay::V4);
    let config = host.folder.path().join("agent.json");
    // The kernel makes sure of its own address and of carriers meanwhile.
    let dump = || {
        let dump = host.dump().replace("NO-CARRIER,", "").replace(",LOWER_UP", "");
        dump.lines().filter(|line| !line.contains("fe80::")).map(str::to_owned).collect::<Vec<_>>()
    };
    let before = dump();
    let arguments = ["doctor", "--probe", "--config", config.to_str().expect("it is text")];
    let diagnosis = diagnose(&host.namespace, &arguments);
    assert_eq!(diagnosis.wrong(), [""; 0]);
    assert_eq!(diagnosis.of("mtu"), ["the underlay has room for packets of 1450 bytes"]);
    assert_eq!(diagnosis.of("forwarding"), ["net.ipv4.ip_forward is 0"]);
    assert_eq!(diagnosis.of("firewall"), ["rules are made by nftables"]);
    assert!(diagnosis.of("kernel")[0].ends_with(" makes VXLAN devices"), "{diagnosis:?}");
    // What has the place of the device to come is found as well.
    host.namespace.run("ip link add vtep1024 type bridge");
    let diagnosis = diagnose(&host.namespace, &arguments);
    diagnosis.assert_wrong(&[
        "device vtep1024 is a bridge device, not ours",
        "if nobody needs it, 'ip link delete vtep1024'\n",
    ]);
    host.namespace.run("ip link delete vtep1024");
    assert_eq!(before, dump(), "looking changes nothing");
}

#[test]
#[ignore = "host"]
fn what_a_doctor_prints_mends_the_host() {
    let ward = Ward::new(Underlay::V4);
    ward.assert_well(1);
    let host = &ward.host(1).namespace;
    let faults: [(&[&str], &[&str]); 5] = [
        (
            &["sysctl -qw net.ipv4.ip_forward=0"],
            &["net.ipv4.ip_forward is 0", "command: sysctl -w net.ipv4.ip_forward=1\n"],
        ),
        (
            &["sysctl -qw net.ipv4.conf.vtep1024.rp_filter=1"],
            &[
                "check: rp-filter",
                "vtep1024 has rp_filter 1, strict",
                "command: sysctl -w net.ipv4.conf.vtep1024.rp_filter=2\n",
            ],
        ),
        (
            &["ip route flush proto 109"],
            &[
                "add route to 192.168.2.0/24 metric 0 via 44.128.0.2 on vtep1024",
                "command: ip route replace 192.168.2.0/24 via 44.128.0.2 dev vtep1024 onlink",
            ],
        ),
        (
            &["ip link set vtep1024 down"],
            &["set device vtep1024 up", "command: ip link set vtep1024 up\n"],
        ),
        (
            &["ip link set vtep1024 mtu 1500"],
            &["device vtep1024 has an MTU of 1500", "command: ip link set vtep1024 mtu 1450\n"],
        ),
    ];
    for (lines, words) in faults {
        for line in lines {
            host.run(line);
        }
        let diagnosis = ward.examine(1);
        diagnosis.assert_wrong(words);
        ward.apply(1, &diagnosis);
        ward.assert_well(1);
    }
    // What takes something away from others is advice, and nothing is run by itself.
    host.run("ip route add 192.168.77.0/24 via 10.0.0.2");
    fs::remove_file(ward.host(1).folder.path().join("plugins/host-local")).expect("it is there");
    let diagnosis = ward.examine(1);
    diagnosis.assert_wrong(&[
        "subnet 192.168.0.0/16 of overlay vxlan-1 collides",
        "192.168.77.0/24 via 10.0.0.2 dev eth0",
        "if nobody needs the route, 'ip route delete 192.168.77.0/24'\n",
    ]);
    diagnosis.assert_wrong(&["CNI plugin host-local is not in", "containernetworking-plugins"]);
    host.run("ip route delete 192.168.77.0/24");
    place_plugin(ward.host(1), "host-local");
    assert_names_who_has_the_port(&ward);
    ward.assert_well(1);
}

/// A process that ends with its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn assert_names_who_has_the_port(ward: &Ward) {
    let host = &ward.host(1).namespace;
    // Then the kernel gives the port back.
    host.run("ip link set vtep1024 down");
    let socket = host.inside(|| UdpSocket::bind("0.0.0.0:64000").expect("a free port"));
    let mut command = Command::new("sleep");
    command.arg("1000").stdin(Stdio::from(OwnedFd::from(socket)));
    let holder = Running(command.spawn().expect("sleep starts"));
    // Ours is closed with it.
    drop(command);
    let taken = format!("UDP port 64000 is taken by process {}", holder.0.id());
    let diagnosis = ward.examine(1);
    diagnosis.assert_wrong(&[&taken, &format!("stop it, as with 'kill {}', or", holder.0.id())]);
    // A process that was killed has its port until it is gone.
    drop(holder);
    ward.apply(1, &diagnosis);
}

#[test]
#[ignore = "host"]
fn a_probe_locates_each_loss() {
    let ward = Ward::new(Underlay::V4);
    ward.assert_well(1);
    assert_tells_where_packets_end(&ward);
    assert_tells_what_is_too_large(&ward);
    assert_tells_who_drops_the_tunnel(&ward);
    assert_tells_another_vni_or_mac(&ward);
}

const SECOND: &str = "agent 10.0.0.2, VTEP 44.128.0.2";

fn assert_tells_where_packets_end(ward: &Ward) {
    let peer = &ward.host(2).namespace;
    peer.run("ip link delete vtep1024");
    ward.examine(1).assert_wrong(&[SECOND, "nobody listens on UDP port 64000 there"]);
    ward.repair(2);

    peer.run("ip link set eth0 down");
    // What it knows already it tries for longer than a probe waits.
    ward.host(1).namespace.run("ip neigh flush dev eth0");
    ward.examine(1).assert_wrong(&[
        SECOND,
        "10.0.0.1 says that the host is unreachable",
        "mesos-overlay forget 10.0.0.2",
    ]);
    peer.run("ip link set eth0 up");
    ward.assert_well(1);
}

fn assert_tells_what_is_too_large(ward: &Ward) {
    let peer = &ward.host(2).namespace;
    // Frames that are too large for it are dropped without a word.
    peer.run("ip link set eth0 mtu 1400");
    let diagnosis = ward.examine(1);
    diagnosis.assert_wrong(&[
        SECOND,
        "bytes arrive, and of 1450 do not",
        "to 1500, or set vtep_mtu",
    ]);
    let arrives = diagnosis.of("probe").into_iter().find_map(|what| {
        let (_, rest) = what.split_once("VTEP 44.128.0.2: packets of ")?;
        rest.split(' ').next()?.parse::<u32>().ok()
    });
    // veth lets four bytes more pass, for the sake of VLANs.
    assert!(arrives.is_some_and(|bytes| (1350..=1354).contains(&bytes)), "{diagnosis:?}");
    peer.run("ip link set eth0 mtu 1500");
    ward.assert_well(1);
}

fn assert_tells_who_drops_the_tunnel(ward: &Ward) {
    let peer = &ward.host(2).namespace;
    for verdict in ["drop", "reject"] {
        peer.run("nft add table inet site");
        peer.run("nft add chain inet site in { type filter hook input priority 0 ; }");
        peer.run(&format!("nft add rule inet site in udp dport 64000 {verdict}"));
        let diagnosis = ward.examine(1);
        match verdict {
            "drop" => diagnosis.assert_wrong(&[
                SECOND,
                "it answers in the underlay, and not in the tunnel",
                "so a firewall drops UDP port 64000 in one direction",
                "run 'mesos-overlay doctor --probe' on 10.0.0.2",
            ]),
            // That is how nftables rejects: as if nobody had the port.
            _ => diagnosis.assert_wrong(&[SECOND, "nobody listens on UDP port 64000 there"]),
        }
        let there = ward.look(2);
        there.assert_wrong(&[
            "in table inet site, chain in",
            "command: nft delete rule inet site in handle ",
        ]);
        ward.apply(2, &there);
        ward.assert_well(2);
        peer.run("nft delete table inet site");
    }
}

fn assert_tells_another_vni_or_mac(ward: &Ward) {
    let host = ward.host(2);
    let mut other = info(2, &ward.hosts.desired(host));
    other.overlays[0].vtep.vni = Vni::new(2048).expect("it is a VNI");
    let say = |info: &AgentInfo| {
        let text = wire::print_json(&wire::encode_agent(info));
        ward.agents[1].lock().expect("nobody panics with it")[0].1 = text;
    };
    let mut desired = ward.hosts.desired(host);
    desired.locals[0].vni = other.overlays[0].vtep.vni;
    host.verify(&desired);
    say(&other);
    ward.examine(1).assert_wrong(&[
        "agent 10.0.0.2, VTEP 44.128.0.2: it has VNI 2048, and device vtep1024 1024",
        "see whether both agents have the same master",
    ]);
    say(&info(2, &ward.hosts.desired(host)));
    ward.repair(2);
    ward.assert_well(1);

    let first = &ward.host(1).namespace;
    let wrong = "02:00:00:00:00:02";
    first.run(&format!("ip neigh replace 44.128.0.2 lladdr {wrong} dev vtep1024 nud permanent"));
    first.run(&format!("bridge fdb replace {wrong} dev vtep1024 dst 10.0.0.2 self permanent"));
    let diagnosis = ward.examine(1);
    diagnosis.assert_wrong(&[
        "it has MAC 70:b3:d5:80:00:02, and this host sends to 02:00:00:00:00:02",
        "command: ip neigh replace 44.128.0.2 lladdr 70:b3:d5:80:00:02 dev vtep1024 nud permanent",
    ]);
    ward.apply(1, &diagnosis);
    ward.assert_well(1);
}
