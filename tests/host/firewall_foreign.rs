//! Compares the evaluation of foreign rules with the kernel: random rules drop packets of
//! containers exactly if the evaluation finds an obstacle.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use overlay_linux::firewall::foreign::{Listing, Obstacle, obstacles, underlay_devices};
use overlay_types::tunnel::Desired;
use serde_json::Value;

use crate::hosts::{Host, Hosts, Underlay};
use crate::namespace::{Namespace, run};
use crate::traffic::{sleep, time_factor, time_limit};

/// Number of rulesets for each backend.
const RULESETS: u64 = 40;
/// The port of the evaluated packets.
const PORT: u16 = 34_567;

/// Counts and drops the packets that arrive at a container.
const COUNTERS: &str = "
    table ip probe {
        counter of_udp { }
        counter of_tcp { }
        chain arrived {
            type filter hook prerouting priority -400
            udp dport 34567 counter name \"of_udp\" drop
            tcp dport 34567 counter name \"of_tcp\" drop
        }
    }";
const RESET: &str = "
    for program in iptables iptables-legacy; do
        printf '*filter\\n:INPUT ACCEPT\\n:FORWARD ACCEPT\\n:OUTPUT ACCEPT\\nCOMMIT\\n' |
            $program-restore
    done
    nft 'add table inet site; delete table inet site'";

/// Conditions of iptables for packets of containers: by device or address, and by other parts. They
/// are the same for the first packet of a flow and for later packets, which the test does not send.
const FORWARD: [&[&str]; 2] = [
    &[
        "",
        "-i m-vxlan-1",
        "! -i vtep1024",
        "-o vtep+",
        "! -o m-+",
        "-s 192.168.0.0/16",
        "! -s 192.168.1.0/24",
        "-d 192.168.2.0/24",
        "! -d 10.0.0.0/8",
        "-m iprange --dst-range 192.168.2.0-192.168.2.255",
    ],
    &[
        "",
        "",
        "-p udp",
        "-p tcp",
        "! -p udp",
        "-p udp --dport 34567",
        "-p tcp -m multiport --dports 80,34000:35000",
        "-p tcp -m multiport ! --dports 80,443",
        "-m conntrack --ctstate NEW,ESTABLISHED",
        "-m conntrack --ctstate INVALID",
        "-m mark --mark 0x1/0x1",
        "-m mark ! --mark 0x2/0x3",
        "-m addrtype ! --dst-type LOCAL",
    ],
];
const INPUT: [&[&str]; 2] = [
    &["", "-i eth0", "! -i eth0", "-s 10.0.0.0/24", "! -s 10.0.0.2"],
    &["", "-p udp --dport 64000", "-p udp --dport 8472", "-p tcp", "-m addrtype --dst-type LOCAL"],
];
const OUTPUT: [&[&str]; 2] = [
    &["", "-o eth0", "! -o eth0", "-d 10.0.0.0/24", "! -d 10.0.0.2"],
    &["", "-p udp --dport 64000", "-p udp --dport 8472", "-p tcp", "-m addrtype --src-type LOCAL"],
];
const TARGETS: [&str; 9] = [
    "-j ACCEPT",
    "-j ACCEPT",
    "-j DROP",
    "-j DROP",
    "-j REJECT",
    "-j RETURN",
    "-j MARK --set-xmark 0x1/0x1",
    "-j MARK --set-xmark 0x2/0x3",
    "-m comment --comment \"a -j DROP\"",
];
/// Conditions of nftables.
const NFT: [&[&str]; 2] = [
    &[
        "",
        "iifname \"m-*\"",
        "iifname { \"lo\", \"vtep1024\" }",
        "oifname != \"vtep1024\"",
        "ip saddr 192.168.0.0/16",
        "ip daddr { 192.168.2.0/24, 10.0.0.0/8 }",
        "ip daddr != 192.168.2.0/24",
        "ip daddr & 255.255.0.0 == 192.168.0.0",
        "ip saddr . ip daddr { 192.168.0.0/16 . 192.168.0.0-192.168.2.255 }",
        "ip6 saddr fd01::/16",
    ],
    &[
        "",
        "",
        "meta l4proto udp",
        "meta l4proto != { icmp, udp }",
        "udp dport != 34567",
        "tcp dport 30000-40000",
        "th dport { 53, 34567 }",
        "th dport < 1024",
        "ct state { new, established }",
        "ct state invalid",
        "meta mark & 0x1 == 0x1",
        "meta mark != 0x0",
        "fib daddr type != local",
        "meta nfproto ipv4",
    ],
];
const VERDICTS: [&str; 12] = [
    "accept",
    "accept",
    "drop",
    "counter drop",
    "reject",
    "return",
    "jump sub",
    "goto sub",
    "meta mark set 0x1",
    "meta mark set meta mark | 0x2",
    "iifname vmap { \"m-vxlan-1\" : jump sub, \"vtep1024\" : accept }",
    "meta l4proto vmap { udp : drop, tcp : goto sub }",
];

struct Random(fastrand::Rng);

impl Random {
    fn of<'a>(&mut self, values: &[&'a str]) -> &'a str {
        values[self.0.usize(..values.len())]
    }

    fn conditions(&mut self, conditions: [&[&str]; 2]) -> String {
        let [first, second] = conditions.map(|group| self.of(group));
        format!("{first} {second}")
    }

    /// Returns the input of iptables-restore.
    fn iptables(&mut self) -> String {
        let mut rules = String::new();
        for (chain, conditions, max) in [
            ("FORWARD", FORWARD, 5),
            ("SITE", FORWARD, 4),
            ("INPUT", INPUT, 3),
            ("OUTPUT", OUTPUT, 3),
        ] {
            for _ in 0..self.0.usize(..max) {
                let conditions = self.conditions(conditions);
                let target = match chain {
                    "FORWARD" if self.0.u8(..3) == 0 => self.of(&["-j SITE", "-g SITE"]),
                    // A packet that REJECT answers in OUTPUT and INPUT passes other chains again.
                    "INPUT" | "OUTPUT" => self.of(&TARGETS[..4]),
                    _ => self.of(&TARGETS),
                };
                let _ = writeln!(rules, "-A {chain} {conditions} {target}");
            }
        }
        let mut policy = || self.of(&["ACCEPT", "ACCEPT", "DROP"]);
        let [forward, input, output] = [policy(), "ACCEPT", "ACCEPT"];
        format!(
            "*filter\n:FORWARD {forward}\n:INPUT {input}\n:OUTPUT {output}\n:SITE -\n{rules}\
             COMMIT\n"
        )
    }

    /// Returns the input of nft.
    fn nft(&mut self) -> String {
        let mut rules = |max: usize, verdicts: &[&str]| {
            let mut rules = String::new();
            for _ in 0..self.0.usize(..max) {
                let (conditions, verdict) = (self.conditions(NFT), self.of(verdicts));
                let _ = writeln!(rules, "{conditions} {verdict}");
            }
            rules
        };
        let (base, sub) = (rules(6, &VERDICTS), rules(4, &VERDICTS[..6]));
        let (policy, priority) =
            (self.of(&["accept", "accept", "drop"]), self.of(&["-150", "0", "filter + 10"]));
        format!(
            "table inet site {{\n chain sub {{\n{sub} }}\n chain base {{\n  type filter hook \
             forward priority {priority}; policy {policy};\n{base} }}\n}}\n"
        )
    }
}

/// Returns whether packets of both protocols arrive at the container of `to`.
fn all_arrive(from: &Host, to: &Host) -> bool {
    let address = SocketAddr::new(to.address().into(), PORT);
    let delay = time_limit(Duration::from_millis(20));
    from.container.inside(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a free port");
        let _ = socket.send_to(b"probe", address);
        // The packet that opens the connection is enough.
        let _ = TcpStream::connect_timeout(&address, delay);
    });
    sleep(delay);
    let counters = to.container.run("nft -j reset counters table ip probe");
    let counters: Value = serde_json::from_str(&counters).expect("JSON");
    let counters = counters["nftables"].as_array().expect("a list").iter();
    let counts = counters.filter_map(|object| object["counter"]["packets"].as_u64());
    let counts: Vec<_> = counts.collect();
    assert_eq!(counts.len(), 2, "{counts:?}");
    counts.into_iter().all(|packets| packets > 0)
}

/// Loads rules in a namespace.
fn load(namespace: &Namespace, program: &str, rules: &str) {
    let arguments: &[&str] = if program == "nft" { &["-f", "-"] } else { &[] };
    let output = run(namespace.command(program).args(arguments), rules);
    assert!(output.status.success(), "{output:?}\n{rules}");
}

fn found(host: &Host, desired: &Desired) -> Vec<Obstacle> {
    let read = || (Listing::read(), underlay_devices(desired));
    let (listing, devices) = host.namespace.inside(read);
    assert!(listing.errors.is_empty(), "{:?}", listing.errors);
    obstacles(&listing, desired, &devices, false)
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn random_rules_drop_as_the_evaluation_says() {
    let hosts = Hosts::new(2, Underlay::V4);
    hosts.program();
    let [first, second] = [&hosts.hosts[0], &hosts.hosts[1]];
    let mut desired = hosts.desired(first);
    // The container has an IPv4 address on this bridge.
    let bridges = &mut desired.spaces[0].bridges;
    bridges.truncate(1);
    bridges[0].gateways = vec!["192.168.1.1/25".parse().expect("an address")];
    for host in [first, second] {
        load(&host.container, "nft", COUNTERS);
    }
    assert!(first.container_can_ping(&second.address().to_string(), 16));
    let rulesets = RULESETS / u64::from(time_factor().min(4));
    let mut dropped = 0;
    for program in ["iptables-restore", "iptables-legacy-restore", "nft"] {
        for seed in 0..rulesets {
            let mut random = Random(fastrand::Rng::with_seed(seed));
            let rules = if program == "nft" { random.nft() } else { random.iptables() };
            first.namespace.succeed("sh", &["-c", RESET]);
            load(&first.namespace, program, &rules);
            let found = found(first, &desired);
            let arrives = all_arrive(first, second) & all_arrive(second, first);
            assert_eq!(found.is_empty(), arrives, "{program}, seed {seed}:\n{rules}\n{found:#?}");
            dropped += u64::from(!arrives);
        }
    }
    eprintln!("{dropped} of {} rulesets drop packets", 3 * rulesets);
    assert!((rulesets..2 * rulesets + rulesets / 2).contains(&dropped));
}
