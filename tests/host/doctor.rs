//! `mesos-overlay doctor` on hosts with a real dataplane: no finding in a healthy cluster, every
//! fault reported with its cause, and every printed command repairs its fault.
//!
//! Fake servers answer for agents and masters. The test process itself programs the hosts.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::{fs, thread};

use overlay_types::addr::{Mtu, Vni};
use overlay_types::protocol::{
    AddressRange, AgentInfo, Assignment, Bridge, Network, Overlay, State, Status, Vtep, Vxlan,
};
use overlay_types::tunnel::{ContainersMtu, Desired};
use overlay_wire as wire;
use serde_json::{Value, json};

use crate::hosts::{Host, Hosts, Underlay, device, overlay};
use crate::namespace::{Namespace, run};

const PROGRAM: &str = env!("CARGO_BIN_EXE_mesos-overlay");
const AGENT_PORT: u16 = 5051;
const MASTER_PORT: u16 = 5050;
const PROBE_OK: &str = "2 peers reached through the tunnel, with small and full-size packets";

/// An HTTP server. It answers with the first entry of the contents that has a path that is a prefix
/// of the requested path.
struct FakeServer {
    listener: Arc<TcpListener>,
    thread: Option<JoinHandle<()>>,
}

type Contents = Arc<Mutex<Vec<(&'static str, String)>>>;

impl FakeServer {
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
                let contents = contents.lock().expect("lock is not poisoned");
                let content = contents.iter().find(|(prefix, _)| path.starts_with(prefix));
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
        let thread = thread::Builder::new().spawn(serve).expect("a thread");
        Self { listener, thread: Some(thread) }
    }
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        // The shutdown makes `accept` in the server's thread fail, which ends the thread.
        let _ = rustix::net::shutdown(&*self.listener, rustix::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn network_overlay() -> Overlay {
    let range = |text: &str, prefix| {
        Some(AddressRange { subnet: text.parse().expect("a valid subnet"), prefix })
    };
    Overlay {
        name: overlay(),
        range: range("192.168.0.0/16", 24),
        range6: range("fd01:b::/64", 80),
        vni: None,
        enabled: true,
    }
}

/// Returns the agent information that matches the dataplane of a host.
fn info(number: u8, desired: &Desired) -> AgentInfo {
    let (local, space) = (&desired.vxlan_devices[0], &desired.spaces[0]);
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
            ip: local.ip.expect("an IPv4 VTEP"),
            ip6: local.ip6,
            mac: local.mac,
            mtu: None,
        },
        status: Some(Status::Ok),
    };
    let ip = Ipv4Addr::new(10, 0, 0, number);
    AgentInfo { ip, overlays: vec![assignment], configuration_attempts: None }
}

/// Three hosts with fake agents and masters for the doctor to query.
pub(crate) struct DiagnosedCluster {
    hosts: Hosts,
    agents: Vec<Contents>,
    _servers: Vec<FakeServer>,
}

impl DiagnosedCluster {
    pub(crate) fn new(underlay: Underlay) -> Self {
        let hosts = Hosts::new(3, underlay);
        hosts.program();
        let infos: Vec<_> =
            hosts.hosts.iter().map(|host| info(host.number, &hosts.desired(host))).collect();
        let network = Network {
            vtep_subnet: "44.128.0.0/16".parse().expect("a valid subnet"),
            vtep_subnet6: "fd01:a::/64".parse().ok(),
            vtep_mac_oui: "70:B3:D5:00:00:00".parse().expect("a valid OUI"),
            vtep_mtu: None,
            vxlan: Vxlan::default(),
            overlays: vec![network_overlay()],
        };
        let agents = infos.iter().cloned().map(Arc::new).collect();
        let contacts = BTreeMap::new();
        let state = State {
            network: Arc::new(network),
            agents,
            contacts,
            peer_failures: BTreeMap::new(),
            address_counts: BTreeMap::new(),
            principals: BTreeMap::new(),
        };
        let state = wire::print_json(&wire::encode_state(&state));
        let master = Arc::new(Mutex::new(vec![("/overlay-master/state", state)]));
        let mut servers = Vec::new();
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
            servers.push(FakeServer::new(&host.namespace, AGENT_PORT, &contents));
            servers.push(FakeServer::new(&host.namespace, MASTER_PORT, &master));
            agents.push(contents);
        }
        for host in &hosts.hosts {
            write_agent_config(host, underlay);
        }
        let cluster = Self { hosts, agents, _servers: servers };
        // The bridges get the MTU of the containers.
        (1..=3).for_each(|number| cluster.repair(number));
        cluster
    }

    pub(crate) fn host(&self, number: u8) -> &Host {
        &self.hosts.hosts[usize::from(number) - 1]
    }

    /// Repairs the dataplane of a host, as the agent of the host would.
    pub(crate) fn repair(&self, number: u8) {
        let host = self.host(number);
        let mut desired = self.hosts.desired(host);
        for local in &mut desired.vxlan_devices {
            local.containers_mtu = Some(ContainersMtu::Derived(Mtu::OVERLAY_DEFAULT));
        }
        let report = host.verify(&desired);
        assert!(report.is_complete(), "{report:?}");
    }

    /// Returns the switch that connects the hosts.
    pub(crate) const fn switch(&self) -> &Namespace {
        &self.hosts.switch
    }

    /// Runs the doctor with all checks and with probes.
    pub(crate) fn diagnose_with_probe(&self, number: u8) -> Diagnosis {
        self.run_doctor(number, &["--probe"])
    }

    /// Runs the doctor without probes: the doctor sends no packets to peers, and waits for no
    /// answers.
    pub(crate) fn diagnose_without_probe(&self, number: u8) -> Diagnosis {
        self.run_doctor(number, &[])
    }

    fn run_doctor(&self, number: u8, more: &[&str]) -> Diagnosis {
        let host = self.host(number);
        let config = host.dir.path().join("agent.json");
        let config = config.to_str().expect("a UTF-8 path");
        let arguments = ["doctor", "--config", config, "--master", "127.0.0.1:5050"];
        run_doctor_in(&host.namespace, &[&arguments, more].concat())
    }

    #[track_caller]
    fn assert_healthy(&self, number: u8) {
        let diagnosis = self.diagnose_with_probe(number);
        assert_eq!(diagnosis.wrong(), [""; 0], "{diagnosis:?}");
        assert_eq!(diagnosis.code, Some(0));
        assert_eq!(diagnosis.findings_of("probe"), [PROBE_OK], "{diagnosis:?}");
    }

    /// Runs the printed command of every finding that is wrong.
    fn apply(&self, number: u8, diagnosis: &Diagnosis) {
        for finding in diagnosis.findings.iter().filter(|finding| finding["result"] == "wrong") {
            if let Some(command) = finding["command"].as_str() {
                self.host(number).namespace.succeed("sh", &["-c", command]);
            }
        }
    }
}

/// Creates the configuration of an agent, and the files to which the configuration refers.
fn write_agent_config(host: &Host, underlay: Underlay) {
    let path = |name: &str| host.dir.path().join(name);
    fs::create_dir(path("plugins")).expect("a directory");
    for plugin in ["bridge", "host-local"] {
        create_plugin(host, plugin);
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

fn create_plugin(host: &Host, plugin: &str) {
    let path = host.dir.path().join("plugins").join(plugin);
    fs::write(&path, "").expect("a file");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
        .expect("permission to change the file");
}

/// Exit code and findings of the doctor.
#[derive(Debug)]
pub(crate) struct Diagnosis {
    code: Option<i32>,
    pub(crate) findings: Vec<Value>,
}

pub(crate) fn run_doctor_in(namespace: &Namespace, arguments: &[&str]) -> Diagnosis {
    let output = run(namespace.command(PROGRAM).args(arguments).arg("--json"), "");
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {output:?}"));
    let findings = report["findings"].as_array().expect("a list").clone();
    assert_eq!(report["ok"] == true, output.status.success(), "{output:?}");
    Diagnosis { code: output.status.code(), findings }
}

impl Diagnosis {
    /// Returns one text per wrong finding: check, object, reason and remedy.
    pub(crate) fn wrong(&self) -> Vec<String> {
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

    /// Returns the findings of a check.
    pub(crate) fn findings_of(&self, check: &str) -> Vec<&str> {
        let findings = self.findings.iter().filter(|finding| finding["check"] == check);
        findings.filter_map(|finding| finding["what"].as_str()).collect()
    }

    /// Asserts that a single wrong finding contains all of these words.
    #[track_caller]
    fn assert_finding(&self, words: &[&str]) {
        let has_all = |text: &String| words.iter().all(|word| text.contains(word));
        assert!(self.wrong().iter().any(has_all), "{words:?} is not in {:#?}", self.wrong());
        assert_eq!(self.code, Some(1));
    }
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn healthy_ipv6_underlay_has_no_findings() {
    let cluster = DiagnosedCluster::new(Underlay::V6);
    for number in 1..=3 {
        cluster.assert_healthy(number);
    }
    // A host that drops pings in the underlay is no fault.
    let quiet = &cluster.host(2).namespace;
    quiet.run("nft add table inet quiet");
    quiet.run("nft add chain inet quiet in { type filter hook input priority 0 ; }");
    quiet.run("nft add rule inet quiet in iifname eth0 icmpv6 type echo-request drop");
    cluster.assert_healthy(1);
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn host_without_agent_is_diagnosed_without_changes() {
    let hosts = Hosts::new(1, Underlay::V4);
    let host = &hosts.hosts[0];
    host.namespace.run("ip route add default via 10.0.0.9");
    write_agent_config(host, Underlay::V4);
    let config = host.dir.path().join("agent.json");
    // Link-local addresses and carrier flags change by themselves meanwhile.
    let dump = || {
        let dump = host.dump().replace("NO-CARRIER,", "").replace(",LOWER_UP", "");
        dump.lines().filter(|line| !line.contains("fe80::")).map(str::to_owned).collect::<Vec<_>>()
    };
    let before = dump();
    let arguments = ["doctor", "--probe", "--config", config.to_str().expect("a UTF-8 path")];
    let diagnosis = run_doctor_in(&host.namespace, &arguments);
    assert_eq!(diagnosis.wrong(), [""; 0]);
    assert_eq!(
        diagnosis.findings_of("mtu"),
        ["the tunnel carries inner packets of up to 1450 bytes"]
    );
    assert_eq!(diagnosis.findings_of("forwarding"), ["net.ipv4.ip_forward is 0"]);
    assert_eq!(diagnosis.findings_of("firewall"), ["the firewall backend is nftables"]);
    assert!(
        diagnosis.findings_of("kernel")[0].ends_with(" creates VXLAN devices"),
        "{diagnosis:?}"
    );
    // A foreign device with the name of the future VTEP is found as well.
    host.namespace.run("ip link add vtep1024 type bridge");
    let diagnosis = run_doctor_in(&host.namespace, &arguments);
    diagnosis.assert_finding(&[
        "device vtep1024 is a foreign bridge device",
        "find its owner with 'ip -d link show vtep1024', and let the owner rename or remove it\n",
    ]);
    host.namespace.run("ip link delete vtep1024");
    assert_eq!(before, dump(), "the doctor changed the host");
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn printed_commands_repair_host() {
    let cluster = DiagnosedCluster::new(Underlay::V4);
    cluster.assert_healthy(1);
    let host = &cluster.host(1).namespace;
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
                "command: sysctl -w net/ipv4/conf/vtep1024/rp_filter=2\n",
            ],
        ),
        (
            &["ip route flush proto 109"],
            &[
                "the route to 192.168.0.0/16 is missing (and 2 more differences)",
                "ip route add 192.168.2.0/24 via 44.128.0.2 dev vtep1024 onlink",
            ],
        ),
        (
            &["ip link set vtep1024 down"],
            &["device vtep1024 is down", "command: ip link set vtep1024 up"],
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
        let diagnosis = cluster.diagnose_with_probe(1);
        diagnosis.assert_finding(words);
        cluster.apply(1, &diagnosis);
        cluster.assert_healthy(1);
    }
    // A change to foreign objects is only advice, without a command to run.
    host.run("ip route add 192.168.77.0/24 via 10.0.0.2");
    fs::remove_file(cluster.host(1).dir.path().join("plugins/host-local"))
        .expect("an existing file");
    let diagnosis = cluster.diagnose_with_probe(1);
    diagnosis.assert_finding(&[
        "subnet 192.168.0.0/16 of overlay vxlan-1 collides",
        "192.168.77.0/24 via 10.0.0.2 dev eth0",
        "change the subnet of the overlay at the master, or that of the network behind it\n",
    ]);
    diagnosis.assert_finding(&["CNI plugin host-local is not in", "containernetworking-plugins"]);
    host.run("ip route delete 192.168.77.0/24");
    create_plugin(cluster.host(1), "host-local");
    check_port_holder_is_named(&cluster);
    cluster.assert_healthy(1);
}

/// A process. Dropping this value kills the process.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn check_port_holder_is_named(cluster: &DiagnosedCluster) {
    let host = &cluster.host(1).namespace;
    // A VXLAN device that is down releases its UDP port.
    host.run("ip link set vtep1024 down");
    let socket = host.inside(|| UdpSocket::bind("0.0.0.0:64000").expect("a free port"));
    let mut command = Command::new("sleep");
    command.arg("1000").stdin(Stdio::from(OwnedFd::from(socket)));
    let holder = Process(command.spawn().expect("sleep starts"));
    // This drop closes the test's own handle of the socket.
    drop(command);
    let taken = format!("UDP port 64000 is used by process {}", holder.0.id());
    let diagnosis = cluster.diagnose_with_probe(1);
    diagnosis.assert_finding(&[
        &taken,
        &format!("see the process with 'ps -fp {}', and stop its service", holder.0.id()),
    ]);
    // A killed process holds its port until the process is reaped.
    drop(holder);
    cluster.apply(1, &diagnosis);
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn probe_locates_packet_loss() {
    let cluster = DiagnosedCluster::new(Underlay::V4);
    cluster.assert_healthy(1);
    check_unreachable_peer_is_located(&cluster);
    check_too_small_mtu_is_located(&cluster);
    check_dropping_firewall_is_located(&cluster);
    check_different_vni_or_mac_is_located(&cluster);
}

/// The second agent, as findings name it.
const SECOND_AGENT: &str = "agent 10.0.0.2, VTEP 44.128.0.2";

fn check_unreachable_peer_is_located(cluster: &DiagnosedCluster) {
    let peer = &cluster.host(2).namespace;
    peer.run("ip link delete vtep1024");
    cluster
        .diagnose_with_probe(1)
        .assert_finding(&[SECOND_AGENT, "nothing listens on UDP port 64000 there"]);
    cluster.repair(2);

    peer.run("ip link set eth0 down");
    // The kernel retries a known neighbor for longer than a probe waits.
    cluster.host(1).namespace.run("ip neigh flush dev eth0");
    cluster.diagnose_with_probe(1).assert_finding(&[
        SECOND_AGENT,
        "10.0.0.1 reports that the host is unreachable",
        "'mesos-overlay forget --master 127.0.0.1:5050 10.0.0.2'",
    ]);
    peer.run("ip link set eth0 up");
    cluster.assert_healthy(1);
}

fn check_too_small_mtu_is_located(cluster: &DiagnosedCluster) {
    let peer = &cluster.host(2).namespace;
    // The kernel silently drops frames that are larger than this MTU.
    peer.run("ip link set eth0 mtu 1400");
    let diagnosis = cluster.diagnose_with_probe(1);
    diagnosis.assert_finding(&[
        SECOND_AGENT,
        "bytes arrive, packets of 1450 bytes do not",
        "to 1500, or set vtep_mtu",
    ]);
    let largest = diagnosis.findings_of("probe").into_iter().find_map(|summary| {
        let (_, rest) = summary.split_once("VTEP 44.128.0.2: packets of ")?;
        rest.split(' ').next()?.parse::<u32>().ok()
    });
    // veth accepts four more bytes, for a VLAN tag.
    assert!(largest.is_some_and(|bytes| (1350..=1354).contains(&bytes)), "{diagnosis:?}");
    peer.run("ip link set eth0 mtu 1500");
    cluster.assert_healthy(1);
}

fn check_dropping_firewall_is_located(cluster: &DiagnosedCluster) {
    let peer = &cluster.host(2).namespace;
    for verdict in ["drop", "reject"] {
        peer.run("nft add table inet site");
        peer.run("nft add chain inet site in { type filter hook input priority 0 ; }");
        peer.run(&format!("nft add rule inet site in udp dport 64000 {verdict}"));
        let diagnosis = cluster.diagnose_with_probe(1);
        match verdict {
            "drop" => diagnosis.assert_finding(&[
                SECOND_AGENT,
                "the peer answers in the underlay, and not in the tunnel",
                "so a firewall drops UDP port 64000 in one direction",
                "run 'mesos-overlay doctor --probe' on 10.0.0.2",
            ]),
            // A reject of nftables looks as if no process listened on the port.
            _ => {
                diagnosis.assert_finding(&[SECOND_AGENT, "nothing listens on UDP port 64000 there"])
            }
        }
        let peer_diagnosis = cluster.diagnose_without_probe(2);
        peer_diagnosis.assert_finding(&[
            "(nftables, table inet site, chain in, handle ",
            "VXLAN packets of peers to UDP port 64000 are dropped",
            "command: nft insert rule inet site in udp dport 64000 accept",
        ]);
        cluster.apply(2, &peer_diagnosis);
        cluster.assert_healthy(2);
        peer.run("nft delete table inet site");
    }
}

fn check_different_vni_or_mac_is_located(cluster: &DiagnosedCluster) {
    let host = cluster.host(2);
    let mut other = info(2, &cluster.hosts.desired(host));
    other.overlays[0].vtep.vni = Vni::new(2048).expect("a valid VNI");
    let report = |info: &AgentInfo| {
        let text = wire::print_json(&wire::encode_agent(info));
        cluster.agents[1].lock().expect("lock is not poisoned")[0].1 = text;
    };
    let mut desired = cluster.hosts.desired(host);
    desired.vxlan_devices[0].vni = other.overlays[0].vtep.vni;
    host.verify(&desired);
    report(&other);
    cluster.diagnose_with_probe(1).assert_finding(&[
        "agent 10.0.0.2, VTEP 44.128.0.2: the peer has VNI 2048, and device vtep1024 has VNI 1024",
        "check that both agents have the same master",
    ]);
    report(&info(2, &cluster.hosts.desired(host)));
    cluster.repair(2);
    cluster.assert_healthy(1);

    let first = &cluster.host(1).namespace;
    let wrong = "02:00:00:00:00:02";
    first.run(&format!("ip neigh replace 44.128.0.2 lladdr {wrong} dev vtep1024 nud permanent"));
    first.run(&format!("bridge fdb replace {wrong} dev vtep1024 dst 10.0.0.2 self permanent"));
    let diagnosis = cluster.diagnose_with_probe(1);
    diagnosis.assert_finding(&[
        "the peer has MAC 70:b3:d5:80:00:02, and this host sends to 02:00:00:00:00:02",
        "command: ip neigh replace 44.128.0.2 lladdr 70:b3:d5:80:00:02 dev vtep1024 nud permanent",
    ]);
    cluster.apply(1, &diagnosis);
    cluster.assert_healthy(1);
}
