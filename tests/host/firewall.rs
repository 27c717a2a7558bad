//! The firewall on the real kernel, with nft and with iptables: what it lets out, what it keeps
//! out, that it is made again, and gone at the end.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use mesos_network_overlay::firewall::{Backend, Firewall, Monitor, Options, Outcome, Ruleset};

use crate::hosts::{Host, Hosts, Underlay};
use crate::namespace::demand;

const BACKENDS: [Backend; 2] = [Backend::Nftables, Backend::Iptables];

/// Two hosts with the rules, and a third that is in no overlay.
struct Site {
    hosts: Hosts,
    walls: Vec<Firewall>,
}

impl Site {
    fn new(backend: Backend) -> Self {
        demand(&["/usr/sbin/nft", "/usr/sbin/iptables", "/usr/sbin/ipset"]);
        let hosts = Hosts::new(3, Underlay::V4);
        hosts.program();
        let walls = hosts.hosts.iter().map(|_| Firewall::new(backend)).collect();
        Self { hosts, walls }
    }

    fn host(&self, index: usize) -> &Host {
        &self.hosts.hosts[index]
    }

    fn rules(&self, options: Options) -> Ruleset {
        Ruleset::new(&self.hosts.desired(self.host(0)), options)
    }

    fn verify(&mut self, index: usize, rules: &Ruleset) -> Outcome {
        let wall = &mut self.walls[index];
        let verified = self.hosts.hosts[index].namespace.inside(|| wall.verify(rules));
        verified.unwrap_or_else(|error| panic!("{error}"))
    }

    fn update(&mut self, index: usize, rules: &Ruleset) -> Outcome {
        let wall = &mut self.walls[index];
        let updated = self.hosts.hosts[index].namespace.inside(|| wall.update(rules));
        updated.unwrap_or_else(|error| panic!("{error}"))
    }

    /// From whom a datagram of the first container comes, where it arrives.
    fn sender_at(&self, to: &Host, address: &str) -> Option<String> {
        let address = SocketAddr::new(address.parse().expect("it is an address"), 7008);
        let is_container = address.ip() == to.address();
        let namespace = if is_container { &to.container } else { &to.namespace };
        let receiver = namespace.inside(|| UdpSocket::bind(address).expect("a free port"));
        receiver.set_read_timeout(Some(Duration::from_secs(1))).expect("it is a socket");
        self.host(0).container.inside(|| {
            let sender = UdpSocket::bind("0.0.0.0:0").expect("a free port");
            sender.send_to(b"who", address).expect("there is a way");
        });
        receiver.recv_from(&mut [0; 8]).ok().map(|(_, from)| from.ip().to_string())
    }
}

#[test]
#[ignore = "host"]
fn what_leaves_the_overlays_is_masqueraded_and_nothing_inside() {
    for backend in BACKENDS {
        let mut site = Site::new(backend);
        let rules = site.rules(Options::default());
        assert_eq!(site.sender_at(site.host(2), "10.0.0.3").as_deref(), Some("192.168.1.2"));
        assert_eq!(site.verify(0, &rules), Outcome::Made);
        assert_eq!(site.verify(0, &rules), Outcome::Unchanged);
        assert_eq!(site.sender_at(site.host(2), "10.0.0.3").as_deref(), Some("10.0.0.1"));
        assert_eq!(site.sender_at(site.host(1), "192.168.2.2").as_deref(), Some("192.168.1.2"));
        let without = site.rules(Options { masquerade: false, ..Options::default() });
        assert_eq!(site.verify(0, &without), Outcome::Made);
        assert_eq!(site.sender_at(site.host(2), "10.0.0.3").as_deref(), Some("192.168.1.2"));
    }
}

#[test]
#[ignore = "host"]
fn packets_of_strangers_are_dropped() {
    for backend in BACKENDS {
        let mut site = Site::new(backend);
        let mut rules = site.rules(Options::default());
        let to = site.host(0).address().to_string();
        assert!(site.host(2).container_reaches(&to, 16));
        let agents = rules.agents.as_mut().expect("it is the default");
        agents.retain(|agent| *agent != Underlay::V4.address(3));
        site.verify(0, &rules);
        assert!(!site.host(2).container_reaches(&to, 16), "{backend:?}");
        assert!(site.host(1).container_reaches(&to, 16), "{backend:?}");
        // The third agent comes back, the second goes, and nothing but them is written.
        let agents = rules.agents.as_mut().expect("it is the default");
        agents.remove(&Underlay::V4.address(2));
        agents.insert(Underlay::V4.address(3));
        assert_eq!(site.update(0, &rules), Outcome::Made);
        assert!(site.host(2).container_reaches(&to, 16), "{backend:?}");
        assert!(!site.host(1).container_reaches(&to, 16), "{backend:?}");
        assert_eq!(site.update(0, &rules), Outcome::Unchanged);
        assert_eq!(site.verify(0, &rules), Outcome::Unchanged);
        // Somebody empties the set.
        site.host(0).namespace.run(match backend {
            Backend::Iptables => "ipset flush mesos-overlay-4",
            _ => "nft flush set inet mesos_overlay agents4",
        });
        assert!(!site.host(2).container_reaches(&to, 16), "{backend:?}");
        assert_eq!(site.verify(0, &rules), Outcome::Repaired);
        assert!(site.host(2).container_reaches(&to, 16), "{backend:?}");
        // Its agent is started anew, and is not told of its peers yet.
        site.walls[0] = Firewall::new(backend);
        let mut desired = site.hosts.desired(site.host(0));
        desired.peers = None;
        let unknown = Ruleset::new(&desired, Options::default());
        assert_eq!(site.verify(0, &unknown), Outcome::Made);
        assert_eq!(site.verify(0, &unknown), Outcome::Unchanged);
        assert!(site.host(2).container_reaches(&to, 16), "{backend:?}");
        assert!(!site.host(1).container_reaches(&to, 16), "{backend:?}");
        let everybody = Options { known_agents_only: false, ..Options::default() };
        let rules = site.rules(everybody);
        site.verify(0, &rules);
        assert!(site.host(2).container_reaches(&to, 16), "{backend:?}");
    }
}

#[test]
#[ignore = "host"]
fn a_strict_forward_policy_does_not_stop_the_overlays() {
    for backend in BACKENDS {
        let mut site = Site::new(backend);
        // Before Docker is started, and after.
        for index in 0..3 {
            let desired = site.hosts.desired(site.host(index));
            site.verify(index, &Ruleset::new(&desired, Options::default()));
        }
        for host in &site.hosts.hosts {
            for program in ["iptables", "ip6tables"] {
                host.namespace.run(&format!("{program} -P FORWARD DROP"));
                // As Docker has it.
                host.namespace.run(&format!("{program} -N DOCKER-USER"));
                host.namespace.run(&format!("{program} -I FORWARD -j DOCKER-USER"));
            }
        }
        for index in 0..3 {
            let desired = site.hosts.desired(site.host(index));
            let rules = Ruleset::new(&desired, Options::default());
            assert_eq!(site.verify(index, &rules), Outcome::Repaired);
            assert_eq!(site.verify(index, &rules), Outcome::Unchanged);
        }
        site.hosts.assert_all_reach_each_other();
        // And out of the overlays, with the answer.
        assert!(site.host(0).container_reaches("10.0.0.3", 16), "{backend:?}");
    }
}

#[test]
#[ignore = "host"]
fn overlays_can_be_isolated() {
    for backend in BACKENDS {
        let mut site = Site::new(backend);
        let mut rules = site.rules(Options { isolate: true, ..Options::default() });
        let subnets = ["192.168.1.0/24", "192.168.2.0/24"];
        let space = |text: &str| [text.parse().expect("it is a subnet")].into();
        rules.spaces = [("a", subnets[0]), ("b", subnets[1])]
            .map(|(name, text)| (name.parse().expect("it is a name"), space(text)))
            .into();
        let to = site.host(1).address().to_string();
        assert!(site.host(0).container_reaches(&to, 16));
        site.verify(0, &rules);
        assert!(!site.host(0).container_reaches(&to, 16), "{backend:?}");
        rules.isolate = false;
        site.verify(0, &rules);
        assert!(site.host(0).container_reaches(&to, 16), "{backend:?}");
    }
}

#[test]
#[ignore = "host"]
fn what_others_flush_is_heard_and_made_again() {
    for (backend, drifts) in [
        (
            Backend::Nftables,
            &["nft flush ruleset", "nft flush chain inet mesos_overlay postrouting"][..],
        ),
        (
            Backend::Iptables,
            &["nft flush ruleset", "iptables -t nat -F", "ipset flush mesos-overlay-4"][..],
        ),
    ] {
        let mut site = Site::new(backend);
        let rules = site.rules(Options::default());
        site.verify(0, &rules);
        let mut monitor =
            site.host(0).namespace.inside(Monitor::open).expect("the kernel has nftables");
        for drift in drifts {
            site.host(0).namespace.run(drift);
            let is_heard = monitor.wait(Duration::from_secs(1)).expect("the socket works");
            assert!(is_heard || drift.starts_with("ipset"), "{drift}");
            assert_eq!(site.verify(0, &rules), Outcome::Repaired, "{drift}");
            assert_eq!(site.verify(0, &rules), Outcome::Unchanged, "{drift}");
            assert_eq!(site.sender_at(site.host(2), "10.0.0.3").as_deref(), Some("10.0.0.1"));
            // What we did ourselves.
            while monitor.wait(Duration::from_millis(20)).expect("the socket works") {}
        }
    }
}

#[test]
#[ignore = "host"]
fn who_makes_the_rules_can_change() {
    let mut site = Site::new(Backend::Nftables);
    let rules = site.rules(Options::default());
    site.host(0).namespace.run("iptables -P FORWARD DROP");
    let of = |backend| match backend {
        Backend::Nftables => "nftables table inet mesos_overlay",
        Backend::Iptables => "iptables chain MESOS-OVERLAY-IN of filter",
        Backend::None => "",
    };
    let [nft, iptables] = BACKENDS;
    for backend in [nft, iptables, nft, Backend::None, iptables, Backend::None] {
        site.walls[0] = Firewall::new(backend);
        site.verify(0, &rules);
        assert_eq!(site.verify(0, &rules), Outcome::Unchanged);
        let found = site.host(0).namespace.inside(Firewall::found).expect("it can be listed");
        assert_eq!(found.is_empty(), backend == Backend::None, "{backend:?}: {found:?}");
        for each in BACKENDS {
            let is_there = found.iter().any(|what| what == of(each));
            assert_eq!(is_there, each == backend, "{backend:?}: {found:?}");
        }
        let is_set = |what: &String| what.starts_with("ipset");
        assert_eq!(found.iter().any(is_set), backend == iptables, "{found:?}");
    }
}

#[test]
#[ignore = "host"]
fn clean_leaves_the_rules_of_others() {
    for backend in BACKENDS {
        let mut site = Site::new(backend);
        let namespace = &site.hosts.hosts[0].namespace;
        for line in [
            "nft add table inet others",
            "nft add chain inet others input { type filter hook input priority 0 ; }",
            "nft add rule inet others input counter accept",
            "iptables -P FORWARD DROP",
            "iptables -A FORWARD -s 192.168.0.0/16 -j ACCEPT",
            "iptables -t nat -A POSTROUTING -s 10.9.0.0/16 -j MASQUERADE",
            "ip6tables -P FORWARD DROP",
            "ip6tables -t nat -A POSTROUTING -s fd09::/64 -j MASQUERADE",
            "ipset create others hash:ip",
            // So that its tables are there.
            "iptables -A INPUT -s 10.9.0.0/16 -j ACCEPT",
            "ip6tables -A INPUT -s fd09::/64 -j ACCEPT",
        ] {
            namespace.run(line);
        }
        let dump = |site: &Site| {
            ["nft -s list ruleset", "ipset save"].map(|line| site.host(0).namespace.run(line))
        };
        let before = dump(&site);
        let rules = site.rules(Options { isolate: true, ..Options::default() });
        site.verify(0, &rules);
        assert_ne!(dump(&site), before);
        // By one that knows nothing of what was made.
        site.host(0).namespace.inside(|| Firewall::new(Backend::Nftables).clean()).expect("root");
        assert_eq!(dump(&site), before, "{backend:?}");
    }
}
