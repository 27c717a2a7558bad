//! Faults from public reports of flannel, Calico, Cilium, Kubernetes, Docker, systemd and others:
//! objects of other programs in the way of a container's packets. The agent repairs its own objects,
//! and names the others in its health until they are gone. `doctor` names them as well.

use std::fmt::Write as _;
use std::fs;
use std::time::Duration;

use serde_json::json;

use super::Cluster;
use super::container::Container;
use crate::doctor::run_doctor_in;
use crate::hosts::Underlay;
use crate::namespace::run;
use crate::traffic::{can_ping, now, poll_interval, sleep, time_factor, time_limit};

/// What the agent of host 1 does.
enum Expected {
    /// Its health has a problem with these parts.
    Named(&'static [&'static str]),
    /// It restores what the command prints.
    Repaired(&'static str),
}

struct Interference {
    /// The report: repository and number on GitHub.
    source: &'static str,
    cause: &'static str,
    removal: &'static str,
    expected: Expected,
}

use Expected::{Named, Repaired};

/// The shell variable `$veth` is the port of the container.
const INTERFERENCES: [Interference; 21] = [
    Interference {
        source: "kubernetes/kubernetes#25092",
        cause: "tc qdisc replace dev m-vxlan-1 root htb direct_qlen 0",
        removal: "tc qdisc delete dev m-vxlan-1 root",
        expected: Named(&[
            "the queueing discipline htb of m-vxlan-1 has neither a default class nor a direct \
             queue, so it drops packets",
            "'tc qdisc delete dev m-vxlan-1 root'",
        ]),
    },
    Interference {
        source: "cilium/cilium#30609",
        cause: "tc qdisc add dev vtep1024 clsact && \
                tc filter add dev vtep1024 ingress bpf da bytecode '1,6 0 0 2,'",
        removal: "tc qdisc delete dev vtep1024 clsact",
        expected: Named(&["possible cause: filters of vtep1024 (ingress: bpf"]),
    },
    Interference {
        source: "cilium/cilium#19586",
        cause: XDP_DROP,
        removal: "ip link set vtep1024 xdpgeneric off",
        expected: Named(&["possible cause: XDP program ", " of vtep1024 may drop packets"]),
    },
    Interference {
        source: "devplayer0/docker-net-dhcp#19",
        cause: "ip link add br9 type bridge && sysctl -qw net.ipv4.conf.br9.rp_filter=1 && \
                ip link set br9 up && ip link set eth0 master br9",
        removal: "ip link delete br9",
        expected: Named(&[
            "eth0 has the agent's address 10.0.0.1, and is a port of bridge br9, whose strict \
             rp_filter drops its packets",
        ]),
    },
    Interference {
        source: "moby/moby#26492",
        cause: "ip link set $veth nomaster",
        removal: "true",
        expected: Repaired("ip -o link show $veth | grep -o 'master m-vxlan-1'; true"),
    },
    Interference {
        source: "lxc/lxc#804",
        cause: "ip link set $veth down",
        removal: "ip link set $veth up",
        expected: Named(&[" of bridge m-vxlan-1 is down: the container behind it is cut off"]),
    },
    Interference {
        source: "k3s-io/k3s#1613",
        cause: "ip xfrm policy add src 0.0.0.0/0 dst 192.168.0.0/17 dir fwd action block",
        removal: "ip xfrm policy flush",
        expected: Named(&[
            "an IPsec policy ('src 0.0.0.0/0 dst 192.168.0.0/17 dir fwd') blocks packets between \
             containers",
        ]),
    },
    Interference {
        source: "projectcalico/calico#3246",
        cause: "ip route add blackhole 192.168.1.0/26 proto bird",
        removal: "ip route delete blackhole 192.168.1.0/26",
        expected: Named(&[
            "the blackhole route 192.168.1.0/26 drops the packets to these containers of agent \
             10.0.0.2",
        ]),
    },
    Interference {
        source: "fail2ban/fail2ban#1276",
        cause: "ip route add unreachable 10.0.0.2/32",
        removal: "ip route delete unreachable 10.0.0.2/32",
        expected: Named(&[
            "the unreachable route 10.0.0.2/32 drops the packets of the tunnel to agent 10.0.0.2",
        ]),
    },
    Interference {
        source: "systemd/systemd#41350",
        cause: "ip rule delete priority 32766",
        removal: "ip rule add priority 32766 lookup main",
        expected: Named(&[
            "no policy rule of IPv4 lets packets use the routing table main",
            "'ip rule add priority 32766 lookup main'",
        ]),
    },
    Interference {
        source: "kubernetes/kubernetes#113659",
        cause: "ip route add default via 10.0.0.2 dev eth0 table 100 && \
                ip rule add priority 100 fwmark 0x8000 lookup 100 && \
                iptables -t mangle -A PREROUTING -i m-vxlan-1 -j MARK --set-mark 0x8000",
        removal: "iptables -t mangle -F PREROUTING; ip rule delete priority 100; \
                  ip route flush table 100",
        expected: Named(&[
            "possible cause: packets of containers with the mark 0x8000 leave through eth0 \
             (routing table 100), by policy rule '100: from all fwmark 0x8000 lookup 100'",
        ]),
    },
    Interference {
        source: "kubernetes-sigs/kind#3881",
        cause: "sysctl -qw net.ipv4.conf.all.arp_ignore=8 && ip neigh flush dev m-vxlan-1",
        removal: "sysctl -qw net.ipv4.conf.all.arp_ignore=0",
        expected: Named(&["net.ipv4.conf.all.arp_ignore is 8, so m-vxlan-1 answers no ARP"]),
    },
    Interference {
        source: "cloudnativelabs/kube-router#561",
        cause: "ip link set m-vxlan-1 arp off",
        removal: "ip link set m-vxlan-1 arp on",
        expected: Named(&[
            "bridge m-vxlan-1 has the flag NOARP",
            "'ip link set m-vxlan-1 arp on', which changes this bridge only",
        ]),
    },
    Interference {
        source: "moby/moby#36069",
        cause: "ip neigh replace 192.168.0.2 lladdr 02:00:00:00:00:99 dev m-vxlan-1 nud permanent",
        removal: "ip neigh delete 192.168.0.2 dev m-vxlan-1",
        expected: Named(&[
            "a permanent neighbor entry of m-vxlan-1 leads packets to container 192.168.0.2 to \
             02:00:00:00:00:99, which is behind no port",
        ]),
    },
    Interference {
        source: "safing/portmaster#110",
        cause: "iptables -I FORWARD -j NFQUEUE --queue-num 7",
        removal: "iptables -D FORWARD -j NFQUEUE --queue-num 7",
        expected: Named(&["'FORWARD -j NFQUEUE --queue-num 7' (", "no program reads its queue"]),
    },
    Interference {
        source: "moby/libnetwork#562",
        cause: "ip netns add mo-elsewhere && ip link set vtep1024 netns mo-elsewhere",
        removal: "ip netns delete mo-elsewhere",
        expected: Named(&["add device vtep1024 with VNI 1024", "another network namespace"]),
    },
    Interference {
        source: "projectcalico/calico#7292",
        cause: "ip link add wg0 type bridge && ip link set wg0 up && ip route add 10.0.0.2 dev wg0",
        removal: "ip link delete wg0",
        expected: Named(&[
            "possible cause: packets of the tunnel to agent 10.0.0.2 leave through wg0 (routing \
             table 254), and eth0 has the agent's address 10.0.0.1",
        ]),
    },
    Interference {
        source: "kubernetes/kubernetes#114815",
        cause: "ip link add kube-ipvs0 type bridge && ip addr add 192.168.1.2/32 dev kube-ipvs0",
        removal: "ip link delete kube-ipvs0",
        expected: Named(&["192.168.1.2/32", "kube-ipvs0"]),
    },
    Interference {
        source: "flannel-io/flannel#1788",
        cause: "ip neigh replace 10.0.0.2 lladdr 02:00:00:00:00:99 dev eth0 nud permanent",
        removal: "ip neigh delete 10.0.0.2 dev eth0",
        expected: Named(&[
            "possible cause: a permanent neighbor entry of eth0 leads packets to agent 10.0.0.2 to \
             02:00:00:00:00:99",
        ]),
    },
    Interference {
        source: "systemd/systemd#7293",
        cause: "ip link set vtep1024 down && ip link set vtep1024 name renamed0",
        removal: "true",
        expected: Repaired("ip -br link show type vxlan | cut -d ' ' -f 1"),
    },
    Interference {
        source: "projectatomic/atomic-system-containers#28",
        cause: "ip link add br9 type bridge && ip link set br9 up && \
                ip link set vtep1024 master br9",
        removal: "ip link delete br9",
        expected: Repaired("ip link show vtep1024 | grep -c 'master'; true"),
    },
];

/// Attaches an XDP program that drops every packet. The program has two instructions: the result is
/// `XDP_DROP`.
const XDP_DROP: &str = r#"perl -e '
    my $code = pack("CCslCCsl", 0xb7, 0, 0, 1, 0x95, 0, 0, 0);
    my $license = "GPL\0";
    my ($at, $text) = map { unpack("Q", pack("P", $_)) } ($code, $license);
    my $load = pack("LLQQLLQL", 6, 2, $at, $text, 0, 0, 0, 0);
    my $bpf = `uname -m` =~ /x86_64/ ? 321 : 280;
    my $program = syscall($bpf, 5, $load, length($load));
    die "bpf: $!" if $program < 0;
    my ($index) = `ip -o link show vtep1024` =~ /^(\d+):/;
    my $xdp = pack("SSlSSL", 8, 1, $program, 8, 3, 2);
    my $body = pack("CCSlLLSS", 0, 0, 0, $index, 0, 0, 4 + length($xdp), 0x802b) . $xdp;
    socket(my $netlink, 16, 3, 0) or die "socket: $!";
    send($netlink, pack("LSSLL", 16 + length($body), 19, 5, 1, 0) . $body, 0) or die "send: $!";
    recv($netlink, my $answer, 4096, 0);
    my $error = unpack("l", substr($answer, 16, 4));
    die "netlink: $error" if $error;'"#;

/// Time limit for a cause without an event, on a busy machine: the probes confirm a loss within
/// seconds, and the agent then verifies everything.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A cluster of two hosts with a container each.
struct Pair {
    cluster: Cluster,
    containers: [Container; 2],
    /// The name of the container's port on host 1.
    port: String,
}

impl Pair {
    fn new() -> Self {
        Self::with_forwarding("shortcut")
    }

    fn with_forwarding(forwarding: &str) -> Self {
        let mut cluster = Cluster::new(Underlay::V4);
        for number in 1..=2 {
            let host = cluster.add_host(number);
            // A port that left its bridge is known only if the agent has seen it there.
            host.config["verify_interval"] = json!("2s");
            host.config["forwarding"] = json!(forwarding);
        }
        cluster.start_agents();
        cluster.wait_until_ok();
        let containers = [1, 2].map(|number| Container::for_mesos(cluster.host(number), "vxlan-1"));
        for number in 1..=2 {
            cluster.wait_for("the probes begin at the bridge", || {
                let probes = &cluster.host(number).health()["probes"];
                probes["bridged_overlays"][0] == "vxlan-1" && probes["reached"] == 1
            });
        }
        let ports = cluster.host(1).namespace().run("ip -o link show master m-vxlan-1");
        let names = ports.lines().filter_map(|line| line.split(": ").nth(1));
        let mut names = names.filter_map(|name| name.split('@').next());
        let port = names
            .rfind(|name| name.starts_with("veth"))
            .expect("a port of the container")
            .to_owned();
        Self { cluster, containers, port }
    }

    fn shell(&self, script: &str) -> String {
        let script = format!("veth={}; {script}", self.port);
        self.cluster.host(1).namespace().succeed("sh", &["-c", &script])
    }

    fn is_alive(&self) -> bool {
        let [first, second] = &self.containers;
        can_ping(&first.namespace, second.address(), 16)
            && can_ping(&second.namespace, first.address(), 16)
    }

    fn problems(&self) -> String {
        let health = self.cluster.host(1).health();
        let problems = health["problems"].as_array().into_iter().flatten();
        problems.filter_map(|text| Some(format!("{}\n", text.as_str()?))).collect()
    }

    /// Returns the milliseconds until a condition holds, or `None` after a timeout.
    fn measure(condition: impl Fn() -> bool) -> Option<u128> {
        let start = now();
        while !condition() {
            if start.elapsed() > time_limit(TIMEOUT) {
                return None;
            }
            sleep(poll_interval(Duration::from_millis(10)));
        }
        Some(start.elapsed().as_millis())
    }

    fn is_ok(&self) -> bool {
        let health = self.cluster.host(1).health();
        health["status"] == "ok" && health["dataplane"]["status"] == "ok"
    }

    /// Returns whether the doctor names the fault and its remedy with these parts, by itself or as
    /// the agent's report. It has no report if the agent does not answer in time, as on a slow
    /// machine or with a full table of flows.
    fn doctor_names(&self, parts: &[&str]) -> bool {
        let host = self.cluster.host(1);
        let config = host.daemon.path("agent.json").display().to_string();
        let arguments = ["doctor", "--config", &config, "--agent", "10.0.0.1:5051"];
        let findings = run_doctor_in(host.namespace(), &arguments).findings;
        let mut texts = String::new();
        for finding in &findings {
            let [what, command] = ["what", "command"].map(|key| finding[key].as_str());
            let _ = writeln!(texts, "{}", what.unwrap_or_default());
            // Reports have the command between quotes.
            let _ = writeln!(texts, "'{}'", command.unwrap_or_default());
        }
        let is_named = parts.iter().all(|part| texts.contains(part));
        if !is_named {
            eprintln!("the doctor's findings:\n{texts}");
        }
        is_named
    }

    /// Causes a fault. Returns the times until it is repaired, or named and gone again. Returns what
    /// was wrong instead.
    fn check(&self, interference: &Interference) -> Result<String, String> {
        match interference.expected {
            Repaired(listing) => {
                let before = self.shell(listing);
                self.shell(interference.cause);
                let is_repaired = || self.shell(listing) == before;
                let repaired = Self::measure(is_repaired);
                let repaired =
                    repaired.ok_or_else(|| format!("not repaired: {}", self.shell(listing)))?;
                let alive = Self::measure(|| self.is_alive()).ok_or("the path stays dead")?;
                self.shell(interference.removal);
                Ok(format!("repaired {repaired:>5} ms, alive after {alive:>5} ms more"))
            }
            Named(parts) => {
                self.shell(interference.cause);
                let is_named = || {
                    let problems = self.problems();
                    parts.iter().all(|part| problems.contains(part))
                };
                let named = Self::measure(is_named);
                let named = named.ok_or_else(|| format!("not named:\n{}", self.problems()))?;
                // A container may know the MAC of its gateway from before, or from a request of the
                // host for another address that arrives while the container asks for the MAC.
                let container = &self.containers[0].namespace;
                let is_dead = (0..3).any(|_| {
                    container.run("ip neigh flush dev eth0");
                    !self.is_alive()
                });
                let is_in_doctor = self.doctor_names(parts);
                self.shell(interference.removal);
                let gone = Self::measure(|| self.is_ok());
                let gone = gone.ok_or_else(|| format!("not gone:\n{}", self.problems()))?;
                match (is_dead, is_in_doctor) {
                    (false, _) => Err("the path is alive".to_owned()),
                    (_, false) => Err("doctor does not name it".to_owned()),
                    _ => Ok(format!("named {named:>8} ms, ok after removal {gone:>5} ms")),
                }
            }
        }
    }
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn objects_of_other_programs_are_repaired_or_named() {
    let pair = Pair::new();
    let (mut table, mut failed) = (String::new(), String::new());
    for interference in &INTERFERENCES {
        let source = interference.source;
        let is_alive = Pair::measure(|| pair.is_alive() && pair.is_ok());
        assert!(
            is_alive.is_some(),
            "before: {source}\n{}\n{}",
            pair.problems(),
            pair.cluster.logs()
        );
        let result = pair.check(interference);
        eprintln!("{result:?}  {source}");
        let _ = match result {
            Ok(times) => writeln!(table, "{times}  {source}"),
            Err(problem) => {
                drop(run(
                    pair.cluster
                        .host(1)
                        .namespace()
                        .command("sh")
                        .args(["-c", &format!("veth={}; {}", pair.port, interference.removal)]),
                    "",
                ));
                writeln!(failed, "{source}: {problem}")
            }
        };
    }
    eprintln!("{table}");
    assert!(failed.is_empty(), "{failed}\n{}", pair.cluster.logs());
    assert!(pair.is_alive());
}

/// The number of tracked flows above which a table counts as too large for this test.
const FLOWS_MAX: usize = 2_000_000;

/// Number of flows that fill the room of those that ended.
const FILL: usize = 2000;

/// Returns the line that adds a flow, which lasts for ten minutes.
fn flow(number: usize) -> String {
    let [_, a, b, c] = u32::try_from(number).expect("a small number").to_be_bytes();
    format!(
        "-A -s 198.18.0.1 -d 11.{a}.{b}.{c} -p udp --sport 7 --dport 8 -t 600 -u \
         SEEN_REPLY,ASSURED\n"
    )
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn full_table_of_tracked_flows_is_named() {
    let pair = Pair::with_forwarding("tracked");
    let read = |name: &str| -> usize {
        let path = format!("/proc/sys/net/netfilter/nf_conntrack_{name}");
        pair.shell(&format!("cat {path}")).trim().parse().expect("a number")
    };
    let max = read("max");
    assert!(max <= FLOWS_MAX, "the machine tracks up to {max} flows: too many for this test");
    let file = pair.cluster.dir.path().join("flows");
    let fill = |first: usize, count: usize| {
        let flows = first..first + count;
        let flows: String = flows.map(flow).collect();
        fs::write(&file, flows).expect("a file");
        // The program fails at the first flow for which the table has no room.
        pair.shell(&format!("conntrack -R {} >/dev/null 2>&1 || true", file.display()));
    };
    let start = now();
    fill(0, max);
    eprintln!("{} of {max} flows in {:?}", read("count"), start.elapsed());
    let parts = ["the table of tracked flows is ", "nf_conntrack_max="];
    // The health is not asked: the connection to it would be a new flow.
    let log = pair.cluster.host(1).daemon.path("agent.log");
    let is_named = || {
        let text = fs::read_to_string(&log).unwrap_or_default();
        parts.iter().all(|part| text.contains(part))
    };
    let named = Pair::measure(is_named);
    assert!(named.is_some(), "{}", pair.cluster.logs());
    // Flows that end make room for others.
    let mut next = max;
    let is_dead = (0..20).any(|_| {
        fill(next, FILL);
        next += FILL;
        !pair.is_alive()
    });
    assert!(is_dead, "new flows pass with {} of {max} flows", read("count"));
    assert!(pair.doctor_names(&parts));
    pair.shell("conntrack -F 2>/dev/null");
    let gone = Pair::measure(|| pair.is_ok() && pair.is_alive());
    assert!(gone.is_some(), "{}", pair.problems());
    eprintln!(
        "named {:>8} ms, ok after removal {:>5} ms  kubernetes/kubernetes#71261",
        named.unwrap_or_default(),
        gone.unwrap_or_default()
    );
}

/// The source address of packets that are not tracked is not changed.
const UNTRACKED_SOURCE: &str =
    "iptables -t nat -A POSTROUTING -s 192.168.0.0/17 -j SNAT --to-source 10.0.0.1";

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn changed_source_is_named_if_packets_are_tracked() {
    let pair = Pair::with_forwarding("tracked");
    let interference = Interference {
        source: "firewalld/firewalld#501",
        cause: UNTRACKED_SOURCE,
        removal: "iptables -t nat -D POSTROUTING -s 192.168.0.0/17 -j SNAT --to-source 10.0.0.1",
        expected: Named(&[
            "get a source address that peers do not accept by rule 'POSTROUTING -s 192.168.0.0/17 \
             -j SNAT --to-source 10.0.0.1'",
        ]),
    };
    let result = pair.check(&interference);
    assert!(result.is_ok(), "{result:?}\n{}", pair.cluster.logs());
}

/// Objects of other programs on healthy hosts: Docker, firewalld, a VPN, a BGP router, Cilium,
/// Kubernetes.
const HARMLESS: [&str; 16] = [
    UNTRACKED_SOURCE,
    // The agent's address on a second device, which carries no packets.
    "ip link add second0 type veth peer name second1 && ip addr add 10.0.0.1/32 dev second0 && \
     ip link set second0 up",
    "ip link add down0 type bridge && ip link set second0 master down0",
    // A right entry of a container whose MAC the bridge has forgotten.
    "set -- $(ip neigh show 192.168.0.2 dev m-vxlan-1) && \
     ip neigh replace 192.168.0.2 lladdr $3 dev m-vxlan-1 nud permanent && \
     ip link set m-vxlan-1 type bridge fdb_flush",
    "sysctl -qw net.bridge.bridge-nf-call-iptables=1",
    "sysctl -qw net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2",
    "sysctl -qw net.ipv4.conf.all.rp_filter=1",
    "ip route add blackhole 203.0.113.0/24 && ip route add unreachable 172.30.0.0/16 metric 9",
    "ip rule add priority 100 fwmark 0x1 lookup 100 && ip route add local default dev lo table 100",
    "ip rule add priority 9 from 203.0.113.7 lookup 9 && ip rule add priority 5 lookup main \
     suppress_prefixlength 0",
    "ip link add docker0 type bridge && ip addr add 172.17.0.1/16 dev docker0 && \
     ip link set docker0 up && iptables -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 \
     -j MASQUERADE",
    "tc qdisc replace dev eth0 root tbf rate 1gbit burst 1mb latency 50ms && \
     tc qdisc add dev eth0 clsact && tc filter add dev eth0 ingress bpf da bytecode '1,6 0 0 0,'",
    "ip xfrm policy add src 10.99.0.0/24 dst 10.98.0.0/24 dir out action block",
    "iptables -t nat -A POSTROUTING -o eth0 -j MASQUERADE && \
     iptables -t nat -A POSTROUTING -o eth0 -s 172.30.0.0/16 -j SNAT --to-source 10.0.0.1",
    "iptables -I FORWARD -j NFQUEUE --queue-num 7 --queue-bypass && \
     iptables -D FORWARD -j NFQUEUE --queue-num 7 --queue-bypass",
    "ip neigh replace 10.0.0.77 lladdr 02:00:00:00:00:77 dev eth0 nud permanent",
];

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn objects_of_other_programs_that_drop_nothing_are_not_named() {
    let pair = Pair::new();
    let mut third = Vec::new();
    for script in HARMLESS {
        pair.shell(script);
        // Containers that start and end are no problem either.
        let container = Container::for_mesos(pair.cluster.host(1), "vxlan-1");
        if let Some(former) = third.pop() {
            Container::leave(former, pair.cluster.host(1), "vxlan-1");
        }
        third.push(container);
        // Two verifications.
        sleep(Duration::from_millis(4500) * time_factor().min(3));
        let health = pair.cluster.host(1).health();
        assert_eq!(health["problems"], json!([]), "{script}: {health}");
        assert_eq!(health["status"], "ok", "{script}: {health}");
        assert!(pair.is_alive(), "the path is dead with: {script}");
        eprintln!("alive and ok  {script}");
    }
}

/// Whether packets pass a bridge that took the device of the underlay differs between runs on one
/// kernel. A dead path must be named.
#[test]
#[ignore = "needs root and packages: tests/run host"]
fn bridge_that_took_the_underlay_is_ok_or_named() {
    let pair = Pair::new();
    pair.shell("ip link add br9 type bridge && ip link set br9 up && ip link set eth0 master br9");
    let cause = "eth0 has the agent's address 10.0.0.1, and is a port of bridge br9";
    let is_right = || {
        let health = pair.cluster.host(1).health();
        match pair.is_alive() {
            true => health["status"] == "ok" && health["problems"] == json!([]),
            false => health["problems"].to_string().contains(cause),
        }
    };
    // Probes of a dead path fail after some seconds.
    sleep(Duration::from_secs(15) * time_factor().min(3));
    let named = Pair::measure(is_right);
    assert!(named.is_some(), "{}", pair.cluster.host(1).health());
    eprintln!("the path is {}", if pair.is_alive() { "alive" } else { "dead, and named" });
}
