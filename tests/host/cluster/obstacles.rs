//! Foreign firewall rules between a container and its peers, in every backend that the kernel
//! consults: the agent names the rule within a second and reports the overlay as failed until the
//! packets pass. Rules that do not drop the packets of the overlays are not reported.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::json;

use super::Cluster;
use super::container::Container;
use crate::hosts::Underlay;
use crate::traffic::{can_ping, now, poll_interval, sleep, time_limit};

/// Rules that drop packets of the overlays, and parts of the reason that the master shows.
struct Obstacle {
    name: &'static str,
    cause: &'static str,
    reason: &'static [&'static str],
}

/// Removes all rules of the test. The agent makes its rules again.
const RESET: &str = "\
    for program in iptables iptables-legacy; do
        for chain in INPUT FORWARD OUTPUT; do $program -P $chain ACCEPT; done
        for table in filter raw mangle; do $program -t $table -F; done
    done
    for chain in SITE DOCKER-USER ufw-before-forward ufw-reject-forward; do
        iptables -X $chain
    done 2>/dev/null
    for table in 'inet site' 'ip site' 'ip6 site' 'netdev site' 'inet firewalld'; do
        nft delete table $table
    done 2>/dev/null
    true";

const OBSTACLES: [Obstacle; 14] = [
    Obstacle {
        name: "final REJECT in FORWARD",
        cause: "iptables -A FORWARD -j REJECT",
        reason: &[
            "rule 'FORWARD -j REJECT --reject-with icmp-port-unreachable' (iptables-nft, table \
             filter, chain FORWARD)",
            "'iptables -I FORWARD -i vtep1024 -j ACCEPT && \
             iptables -I FORWARD -o vtep1024 -j ACCEPT'",
        ],
    },
    Obstacle {
        name: "final DROP in FORWARD after established",
        cause: "iptables -A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT && \
                iptables -A FORWARD -j DROP",
        reason: &["rule 'FORWARD -j DROP'"],
    },
    Obstacle {
        name: "DROP in a chain that FORWARD jumps to",
        cause: "iptables -N SITE && iptables -A SITE ! -s 10.0.0.0/8 -j DROP && \
                iptables -A FORWARD -o m-+ -j SITE",
        reason: &["packets of peers (192.168.1.0/24) to containers of m-vxlan-1", "chain SITE)"],
    },
    // Docker inserts its jump before the jump of the agent.
    Obstacle {
        name: "DROP in DOCKER-USER",
        cause: "iptables -N DOCKER-USER && iptables -A FORWARD -j DOCKER-USER && sleep 1 && \
                iptables -D FORWARD -j DOCKER-USER && iptables -I FORWARD -j DOCKER-USER && \
                iptables -I DOCKER-USER -j DROP",
        reason: &["chain DOCKER-USER, owned by Docker", "iptables -I DOCKER-USER -i vtep1024"],
    },
    Obstacle {
        name: "DROP in PREROUTING of raw",
        cause: "iptables -t raw -A PREROUTING -i eth0 -p udp --dport 64000 -j DROP",
        reason: &[
            "VXLAN packets of peers to UDP port 64000",
            "table raw, chain PREROUTING",
            "'iptables -t raw -I PREROUTING -p udp --dport 64000 -j ACCEPT'",
        ],
    },
    Obstacle {
        name: "DROP of a range of ports in INPUT",
        cause: "iptables -A INPUT -p udp -m multiport --dports 60000:65000 -j DROP",
        reason: &["VXLAN packets of peers to UDP port 64000", "chain INPUT)"],
    },
    Obstacle {
        name: "policy DROP of INPUT",
        cause: "iptables -P INPUT DROP && iptables -A INPUT -p tcp -j ACCEPT && \
                iptables -A INPUT -i lo -j ACCEPT",
        reason: &["the policy of chain INPUT (iptables-nft, table filter, chain INPUT)"],
    },
    Obstacle {
        name: "REJECT in OUTPUT",
        cause: "iptables -A OUTPUT -p udp --dport 64000 -j REJECT",
        reason: &["VXLAN packets of this host to UDP port 64000 of peers"],
    },
    Obstacle {
        name: "DROP in FORWARD of iptables-legacy",
        cause: "iptables-legacy -A FORWARD -j DROP",
        reason: &[
            "(iptables-legacy, table filter, chain FORWARD)",
            "'iptables-legacy -I FORWARD -i vtep1024 -j ACCEPT && ",
        ],
    },
    Obstacle {
        name: "nftables with a set, priority -50",
        cause: "nft 'add table inet site
                add chain inet site fw { type filter hook forward priority -50; }
                add set inet site blocked { type ipv4_addr; flags interval; }
                add element inet site blocked { 192.168.0.0/17 }
                add rule inet site fw ip daddr @blocked counter drop'",
        reason: &[
            "rule 'ip daddr @blocked counter drop' (nftables, table inet site, chain fw)",
            "'nft insert rule inet site fw iifname vtep1024 accept && \
             nft insert rule inet site fw oifname vtep1024 accept'",
        ],
    },
    Obstacle {
        name: "nftables with a verdict map in prerouting",
        cause: "nft 'add table ip site
                add chain ip site pre { type filter hook prerouting priority -300; }
                add chain ip site drops
                add rule ip site drops drop' && sleep 0.2 && \
                nft 'add rule ip site pre iifname vmap { \"vtep1024\" : goto drops }'",
        reason: &["rule 'drop' (nftables, table ip site, chain drops", "iifname vtep1024 accept"],
    },
    Obstacle {
        name: "nftables at the ingress of the underlay",
        cause: "nft 'add table netdev site
                add chain netdev site in0 { type filter hook ingress device eth0 priority 0; }
                add rule netdev site in0 udp dport 64000 drop'",
        reason: &["table netdev site, chain in0"],
    },
    Obstacle {
        name: "rules like those of firewalld",
        cause: "nft 'add table inet firewalld
                add chain inet firewalld filter_FORWARD { type filter hook forward priority 10; \
                policy drop; }
                add rule inet firewalld filter_FORWARD ct state established,related accept
                add rule inet firewalld filter_FORWARD ct status dnat accept
                add rule inet firewalld filter_FORWARD iifname \"lo\" accept
                add rule inet firewalld filter_FORWARD ct state invalid drop'",
        reason: &[
            "the policy of chain filter_FORWARD (nftables, table inet firewalld, chain \
             filter_FORWARD, owned by firewalld)",
            "'firewall-cmd --zone=trusted --change-interface=m-vxlan-1 && ",
        ],
    },
    Obstacle {
        name: "rules like those of ufw",
        cause: "iptables -N ufw-before-forward && iptables -N ufw-reject-forward
                iptables -A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
                iptables -A ufw-before-forward -p icmp -m icmp --icmp-type 3 -j ACCEPT
                iptables -A ufw-reject-forward -j REJECT
                iptables -A FORWARD -j ufw-before-forward
                iptables -A FORWARD -j ufw-reject-forward",
        reason: &[
            "chain ufw-reject-forward, owned by ufw",
            "'ufw route allow in on vtep1024 && ufw route allow out on vtep1024'",
        ],
    },
];

/// Rules that drop other packets only, or that accept the packets of the overlays before.
const HARMLESS: [&str; 9] = [
    "iptables -A FORWARD -i vtep1024 -j ACCEPT && iptables -A FORWARD -o vtep1024 -j ACCEPT && \
     iptables -A FORWARD -j REJECT",
    "iptables -P FORWARD DROP",
    "iptables -A FORWARD -p tcp --dport 25 -j REJECT",
    "iptables -A FORWARD -m conntrack --ctstate INVALID -j DROP",
    "iptables -A INPUT -s 10.0.0.0/24 -p udp --dport 64000 -j ACCEPT && \
     iptables -A INPUT -p udp --dport 64000 -j DROP",
    "iptables -A FORWARD -i eth0 -o eth0 -j DROP",
    // The module is not evaluated, so the condition is unknown.
    "iptables -A FORWARD -m length --length 9000: -j DROP",
    "nft 'add table inet site
     add chain inet site fw { type filter hook forward priority 10; policy drop; }
     add rule inet site fw iifname { vtep1024, m-vxlan-1, m-vxlan-2 } accept'",
    // The overlays have no containers with IPv6 here.
    "nft 'add table ip6 site
     add chain ip6 site fw { type filter hook forward priority 10; policy drop; }'",
];

/// Time limit for a rule of a backend without events, on a busy machine: the agent inspects foreign
/// rules the less often, the longer that takes.
const TIMEOUT: Duration = Duration::from_secs(40);

/// A cluster of two hosts with a container each.
struct Pair {
    cluster: Cluster,
    containers: [Container; 2],
}

impl Pair {
    fn new() -> Self {
        let mut cluster = Cluster::new(Underlay::V4);
        for number in 1..=2 {
            // Changes of legacy iptables raise no event.
            cluster.add_host(number).config["verify_interval"] = json!("5s");
        }
        cluster.start_agents();
        cluster.wait_until_ok();
        let containers = [1, 2].map(|number| Container::for_mesos(cluster.host(number), "vxlan-1"));
        Self { cluster, containers }
    }

    fn shell(&self, script: &str) {
        self.cluster.host(1).namespace().succeed("sh", &["-c", script]);
    }

    fn is_alive(&self) -> bool {
        let [first, second] = &self.containers;
        can_ping(&first.namespace, second.address(), 16)
    }

    /// Returns the time until the master shows an expected status of agent 1, with the status, or
    /// the status after a timeout.
    fn measure(&self, is_expected: impl Fn(&str) -> bool) -> Result<(u128, String), String> {
        let start = now();
        loop {
            let status = self.cluster.status(1, "vxlan-1");
            if is_expected(&status) {
                return Ok((start.elapsed().as_millis(), status));
            }
            if start.elapsed() > time_limit(TIMEOUT) {
                return Err(status);
            }
            sleep(poll_interval(Duration::from_millis(10)));
        }
    }

    fn until_ok(&self) -> Result<u128, String> {
        self.measure(|status| status == "STATUS_OK").map(|(time, _)| time)
    }

    /// Returns the times until the rule is named, until the status is right after the advised
    /// command, and until it is right after the rules are removed. Returns what was wrong instead.
    fn check(&self, obstacle: &Obstacle) -> Result<String, String> {
        self.shell(obstacle.cause);
        let is_named = |status: &str| obstacle.reason.iter().all(|part| status.contains(part));
        let (named, status) = self.measure(is_named)?;
        if self.is_alive() {
            return Err("the path is alive".to_owned());
        }
        let advised = status.split_once("pass with '").and_then(|(_, rest)| rest.split_once("', "));
        let (command, _) = advised.ok_or("no command")?;
        let mut advice = "not run".to_owned();
        // The programs of these owners are not installed.
        if !command.starts_with("firewall-cmd") && !command.starts_with("ufw") {
            self.shell(command);
            advice = format!("{:>4} ms", self.until_ok()?);
            if !self.is_alive() {
                return Err(format!("the path is dead after {command}"));
            }
            self.shell(RESET);
            self.until_ok()?;
            self.shell(obstacle.cause);
            self.measure(is_named)?;
        }
        self.shell(RESET);
        let gone = self.until_ok()?;
        Ok(format!("named {named:>4} ms, ok after advice {advice}, ok after removal {gone:>4} ms"))
    }
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn foreign_rule_that_drops_is_named_until_packets_pass() {
    let pair = Pair::new();
    let (mut table, mut failed) = (String::new(), String::new());
    for obstacle in &OBSTACLES {
        let name = obstacle.name;
        assert!(pair.is_alive(), "before: {name}\n{}", pair.cluster.logs());
        let _ = match pair.check(obstacle) {
            Ok(times) => writeln!(table, "{times}  {name}"),
            Err(problem) => writeln!(failed, "{name}: {problem}"),
        };
        pair.shell(RESET);
        assert_eq!(pair.until_ok().err(), None, "after: {name}");
    }
    eprintln!("{table}");
    assert!(failed.is_empty(), "{failed}\n{}", pair.cluster.logs());
    assert!(pair.is_alive());
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn foreign_rule_that_drops_other_packets_is_not_reported() {
    let pair = Pair::new();
    for rules in HARMLESS {
        pair.shell(rules);
        // An agent that is right reports nothing in a few verifications after the event.
        sleep(time_limit(Duration::from_millis(1500)));
        let (status, health) = (pair.cluster.status(1, "vxlan-1"), pair.cluster.host(1).health());
        assert_eq!(status, "STATUS_OK", "{rules}");
        assert_eq!(health["dataplane"]["status"], "ok", "{rules}: {health}");
        assert!(pair.is_alive(), "the path is dead with: {rules}");
        pair.shell(RESET);
        assert_eq!(pair.until_ok().err(), None, "after: {rules}");
        eprintln!("alive and ok  {rules}");
    }
}
