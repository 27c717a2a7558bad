//! The firewall on the real kernel, with nft and with iptables: masquerading, dropped packets,
//! repair and cleaning.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use overlay_linux::firewall::{Backend, Firewall, Monitor, Options, Outcome, RulesEvent, Ruleset};
use overlay_types::tunnel::{Desired, OverlaySubnets};

use crate::hosts::{Host, Hosts, Underlay};
use crate::namespace::require_root_and_files;
use crate::traffic::time_limit;

const BACKENDS: [Backend; 2] = [Backend::Nftables, Backend::Iptables];

/// Three hosts with programmed dataplanes, and a firewall for each host.
struct FirewalledHosts {
    hosts: Hosts,
    firewalls: Vec<Firewall>,
}

impl FirewalledHosts {
    fn new(backend: Backend) -> Self {
        require_root_and_files(&["/usr/sbin/nft", "/usr/sbin/iptables", "/usr/sbin/ipset"]);
        let hosts = Hosts::new(3, Underlay::V4);
        hosts.program();
        let firewalls = hosts.hosts.iter().map(|_| Firewall::new(backend)).collect();
        Self { hosts, firewalls }
    }

    fn host(&self, index: usize) -> &Host {
        &self.hosts.hosts[index]
    }

    fn rules(&self, options: Options) -> Ruleset {
        Ruleset::new(&self.hosts.desired(self.host(0)), &options)
    }

    /// Returns the rules of the first host for a list of peers without one agent.
    fn rules_without(&self, number: u8) -> Ruleset {
        let mut desired = self.hosts.desired(self.host(0));
        desired.peers.as_mut().expect("peers").remove(&Underlay::V4.address(number));
        Ruleset::new(&desired, &Options::default())
    }

    fn verify(&mut self, index: usize, rules: &Ruleset) -> Outcome {
        let firewall = &mut self.firewalls[index];
        let verified = self.hosts.hosts[index].namespace.inside(|| firewall.verify(rules));
        verified.unwrap_or_else(|error| panic!("{error}"))
    }

    fn update(&mut self, index: usize, rules: &Ruleset) -> Outcome {
        let firewall = &mut self.firewalls[index];
        let updated = self.hosts.hosts[index].namespace.inside(|| firewall.update(rules));
        updated.unwrap_or_else(|error| panic!("{error}"))
    }

    /// Sends a datagram from the first container. Returns its source address at the receiver, or
    /// `None` if the datagram does not arrive.
    fn sender_at(&self, to: &Host, address: &str) -> Option<String> {
        let address = SocketAddr::new(address.parse().expect("a valid address"), 7008);
        let is_container = address.ip() == to.address();
        let namespace = if is_container { &to.container } else { &to.namespace };
        let receiver = namespace.inside(|| UdpSocket::bind(address).expect("a free port"));
        receiver.set_read_timeout(Some(Duration::from_secs(1))).expect("a socket timeout");
        self.host(0).container.inside(|| {
            let sender = UdpSocket::bind("0.0.0.0:0").expect("a free port");
            sender.send_to(b"test", address).expect("a route");
        });
        receiver.recv_from(&mut [0; 8]).ok().map(|(_, from)| from.ip().to_string())
    }
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn only_traffic_leaving_overlays_is_masqueraded() {
    for backend in BACKENDS {
        let mut setup = FirewalledHosts::new(backend);
        let rules = setup.rules(Options::default());
        assert_eq!(setup.sender_at(setup.host(2), "10.0.0.3").as_deref(), Some("192.168.1.2"));
        assert_eq!(setup.verify(0, &rules), Outcome::Made);
        assert_eq!(setup.verify(0, &rules), Outcome::Unchanged);
        assert_eq!(setup.sender_at(setup.host(2), "10.0.0.3").as_deref(), Some("10.0.0.1"));
        assert_eq!(setup.sender_at(setup.host(1), "192.168.2.2").as_deref(), Some("192.168.1.2"));
        let without = setup.rules(Options { masquerade: false, ..Options::default() });
        assert_eq!(setup.verify(0, &without), Outcome::Made);
        assert_eq!(setup.sender_at(setup.host(2), "10.0.0.3").as_deref(), Some("192.168.1.2"));
    }
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn packets_from_unknown_agents_are_dropped() {
    for backend in BACKENDS {
        let mut setup = FirewalledHosts::new(backend);
        let to = setup.host(0).address().to_string();
        assert!(setup.host(2).container_can_ping(&to, 16));
        let rules = setup.rules_without(3);
        setup.verify(0, &rules);
        assert!(!setup.host(2).container_can_ping(&to, 16), "{backend:?}");
        assert!(setup.host(1).container_can_ping(&to, 16), "{backend:?}");
        // The third agent returns, the second leaves. The update changes only these two.
        let rules = setup.rules_without(2);
        assert_eq!(setup.update(0, &rules), Outcome::Made);
        assert!(setup.host(2).container_can_ping(&to, 16), "{backend:?}");
        assert!(!setup.host(1).container_can_ping(&to, 16), "{backend:?}");
        assert_eq!(setup.update(0, &rules), Outcome::Unchanged);
        assert_eq!(setup.verify(0, &rules), Outcome::Unchanged);
        // Another process empties the set.
        setup.host(0).namespace.run(match backend {
            Backend::Iptables => "ipset flush mesos-overlay-4",
            _ => "nft flush set inet mesos_overlay inner4_24",
        });
        assert!(!setup.host(2).container_can_ping(&to, 16), "{backend:?}");
        assert_eq!(setup.verify(0, &rules), Outcome::Repaired);
        assert!(setup.host(2).container_can_ping(&to, 16), "{backend:?}");
        // The host's agent restarts, and has not received its peers yet.
        setup.firewalls[0] = Firewall::new(backend);
        let mut desired = setup.hosts.desired(setup.host(0));
        desired.peers = None;
        let without_peers = Ruleset::new(&desired, &Options::default());
        assert_eq!(setup.verify(0, &without_peers), Outcome::Made);
        assert_eq!(setup.verify(0, &without_peers), Outcome::Unchanged);
        assert!(setup.host(2).container_can_ping(&to, 16), "{backend:?}");
        assert!(!setup.host(1).container_can_ping(&to, 16), "{backend:?}");
        let all_agents_allowed = Options { known_agents_only: false, ..Options::default() };
        let rules = setup.rules(all_agents_allowed);
        setup.verify(0, &rules);
        assert!(setup.host(1).container_can_ping(&to, 16), "{backend:?}");
    }
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn first_start_without_peers_accepts_no_sender() {
    for backend in BACKENDS {
        let mut setup = FirewalledHosts::new(backend);
        let to = setup.host(0).address().to_string();
        let desired = setup.hosts.desired(setup.host(0));
        let without_peers = Desired { peers: None, ..desired.clone() };
        let rules = Ruleset::new(&without_peers, &Options::default());
        assert_eq!(setup.verify(0, &rules), Outcome::Made);
        assert_eq!(setup.verify(0, &rules), Outcome::Unchanged);
        assert!(!setup.host(1).container_can_ping(&to, 16), "{backend:?}");
        setup.update(0, &Ruleset::new(&desired, &Options::default()));
        assert!(setup.host(1).container_can_ping(&to, 16), "{backend:?}");
    }
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn forward_policy_drop_does_not_block_overlays() {
    for backend in BACKENDS {
        let mut setup = FirewalledHosts::new(backend);
        // The rules exist before Docker starts, and are repaired afterwards.
        for index in 0..3 {
            let desired = setup.hosts.desired(setup.host(index));
            setup.verify(index, &Ruleset::new(&desired, &Options::default()));
        }
        for host in &setup.hosts.hosts {
            for program in ["iptables", "ip6tables"] {
                host.namespace.run(&format!("{program} -P FORWARD DROP"));
                // Docker creates this chain and this jump.
                host.namespace.run(&format!("{program} -N DOCKER-USER"));
                host.namespace.run(&format!("{program} -I FORWARD -j DOCKER-USER"));
            }
        }
        for index in 0..3 {
            let desired = setup.hosts.desired(setup.host(index));
            let rules = Ruleset::new(&desired, &Options::default());
            assert_eq!(setup.verify(index, &rules), Outcome::Repaired);
            assert_eq!(setup.verify(index, &rules), Outcome::Unchanged);
        }
        setup.hosts.assert_full_reachability();
        // Packets from the container to a host outside, and their answers, pass as well.
        assert!(setup.host(0).container_can_ping("10.0.0.3", 16), "{backend:?}");
    }
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn isolate_option_separates_overlays() {
    for backend in BACKENDS {
        let mut setup = FirewalledHosts::new(backend);
        // The first container belongs to the first overlay, the other containers to the second.
        let mut desired = setup.hosts.desired(setup.host(0));
        let whole = |text: &str| vec![text.parse().expect("a valid subnet")];
        let own = OverlaySubnets { whole: whole("192.168.0.0/23"), ..desired.spaces[0].clone() };
        let other = OverlaySubnets {
            overlay: "b".parse().expect("a valid overlay name"),
            whole: whole("192.168.2.0/23"),
            bridges: Vec::new(),
            ..own.clone()
        };
        desired.spaces = vec![own, other];
        for (overlay, _) in
            desired.peers.iter_mut().flatten().flat_map(|(_, peer)| &mut peer.subnets)
        {
            *overlay = desired.spaces[1].overlay.clone();
        }
        let to = setup.host(1).address().to_string();
        assert!(setup.host(0).container_can_ping(&to, 16));
        let rules = |isolate| Ruleset::new(&desired, &Options { isolate, ..Options::default() });
        setup.verify(0, &rules(true));
        assert!(!setup.host(0).container_can_ping(&to, 16), "{backend:?}");
        setup.verify(0, &rules(false));
        assert!(setup.host(0).container_can_ping(&to, 16), "{backend:?}");
    }
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn flushed_rules_are_detected_and_repaired() {
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
        let mut setup = FirewalledHosts::new(backend);
        let rules = setup.rules(Options::default());
        setup.verify(0, &rules);
        let mut monitor =
            setup.host(0).namespace.inside(Monitor::open).expect("the kernel has nftables");
        for drift in drifts {
            setup.host(0).namespace.run(drift);
            let limit = time_limit(Duration::from_secs(1));
            let event = monitor.take(limit, &[]).expect("monitor socket works");
            assert!(event == RulesEvent::Managed || drift.starts_with("ipset"), "{drift}");
            assert_eq!(setup.verify(0, &rules), Outcome::Repaired, "{drift}");
            assert_eq!(setup.verify(0, &rules), Outcome::Unchanged, "{drift}");
            assert_eq!(setup.sender_at(setup.host(2), "10.0.0.3").as_deref(), Some("10.0.0.1"));
            // Drain the events of the repair itself.
            monitor.take(Duration::from_millis(20), &[]).expect("monitor socket works");
        }
    }
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn backend_change_replaces_all_rules() {
    let mut setup = FirewalledHosts::new(Backend::Nftables);
    let rules = setup.rules(Options::default());
    setup.host(0).namespace.run("iptables -P FORWARD DROP");
    let main_object = |backend| match backend {
        Backend::Nftables => "nftables table inet mesos_overlay",
        Backend::Iptables => "iptables chain MESOS-OVERLAY-IN of mangle",
        Backend::None => "",
    };
    let [nft, iptables] = BACKENDS;
    for backend in [nft, iptables, nft, Backend::None, iptables, Backend::None] {
        setup.firewalls[0] = Firewall::new(backend);
        setup.verify(0, &rules);
        assert_eq!(setup.verify(0, &rules), Outcome::Unchanged);
        let found =
            setup.host(0).namespace.inside(Firewall::list_owned).expect("the rules can be listed");
        assert_eq!(found.is_empty(), backend == Backend::None, "{backend:?}: {found:?}");
        for other in BACKENDS {
            let exists = found.iter().any(|object| object == main_object(other));
            assert_eq!(exists, other == backend, "{backend:?}: {found:?}");
        }
        let is_set = |object: &String| object.starts_with("ipset");
        assert_eq!(found.iter().any(is_set), backend == iptables, "{found:?}");
    }
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn clean_keeps_foreign_rules() {
    for backend in BACKENDS {
        let mut setup = FirewalledHosts::new(backend);
        let namespace = &setup.hosts.hosts[0].namespace;
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
            // These rules create the tables of iptables and ip6tables.
            "iptables -A INPUT -s 10.9.0.0/16 -j ACCEPT",
            "ip6tables -A INPUT -s fd09::/64 -j ACCEPT",
            "iptables -t mangle -A FORWARD -s 10.9.0.0/16 -j ACCEPT",
            "ip6tables -t mangle -A FORWARD -s fd09::/64 -j ACCEPT",
            "iptables -t mangle -A INPUT -s 10.9.0.0/16 -j ACCEPT",
            "ip6tables -t mangle -A INPUT -s fd09::/64 -j ACCEPT",
        ] {
            namespace.run(line);
        }
        let dump = |setup: &FirewalledHosts| {
            ["nft -s list ruleset", "ipset save"].map(|line| setup.host(0).namespace.run(line))
        };
        let before = dump(&setup);
        let rules = setup.rules(Options { isolate: true, ..Options::default() });
        setup.verify(0, &rules);
        assert_ne!(dump(&setup), before);
        // A new instance cleans, without knowledge of what was created.
        setup
            .host(0)
            .namespace
            .inside(|| Firewall::new(Backend::Nftables).clean())
            .expect("permission to clean");
        assert_eq!(dump(&setup), before, "{backend:?}");
    }
}
