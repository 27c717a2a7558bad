//! The rules of the former version, which did not check packets inside of the tunnel. The first
//! start of this version replaces the former rules, accepts no unknown sender meanwhile, and leaves
//! none of the former rules.

use overlay_linux::firewall::{Backend, Firewall, Options, Outcome, Ruleset};
use overlay_types::tunnel::Desired;

use crate::hosts::{Hosts, Underlay};
use crate::namespace::{require_root_and_files, run};

/// The table of the former version, which knows the second agent.
const TABLE: &str = "table inet mesos_overlay {
    set spaces4 { type ipv4_addr; flags interval; elements = { 192.168.0.0/16 }; }
    set agents4 { type ipv4_addr; elements = { 10.0.0.2 }; }
    set spaces6 { type ipv6_addr; flags interval; elements = { fd01:b::/64 }; }
    set agents6 { type ipv6_addr; }
    chain input {
        type filter hook input priority -10; policy accept;
        udp dport { 64000 } ip saddr != @agents4 counter drop
        udp dport { 64000 } ip6 saddr != @agents6 counter drop
    }
    chain postrouting {
        type nat hook postrouting priority 99;
        ip saddr @spaces4 ip daddr != @spaces4 oifname != { \"vtep1024\" } masquerade
    }
}
";

/// The sets of the former version.
const SETS: &str = "create mesos-overlay-4 hash:ip family inet maxelem 1048576
create mesos-overlay-6 hash:ip family inet6 maxelem 1048576
add mesos-overlay-4 10.0.0.2
";

/// The chains of the former version.
fn chains(family: &str, space: &str) -> String {
    format!(
        "*filter\n:MESOS-OVERLAY - [0:0]\n:MESOS-OVERLAY-OUT - [0:0]\n:MESOS-OVERLAY-IN - [0:0]\n\
         -A MESOS-OVERLAY -s {space} -d {space} -j ACCEPT\n\
         -A MESOS-OVERLAY -i vtep1024 -d {space} -j ACCEPT\n\
         -A MESOS-OVERLAY-OUT -s {space} -j ACCEPT\n\
         -A MESOS-OVERLAY-IN -p udp --dport 64000 -m set ! --match-set mesos-overlay-{family} src \
         -j DROP\n\
         -I FORWARD -j MESOS-OVERLAY\n-A FORWARD -j MESOS-OVERLAY-OUT\n\
         -I INPUT -j MESOS-OVERLAY-IN\nCOMMIT\n\
         *nat\n:MESOS-OVERLAY - [0:0]\n-A MESOS-OVERLAY -s {space} -j MASQUERADE\n\
         -I POSTROUTING -j MESOS-OVERLAY\nCOMMIT\n"
    )
}

fn install_former_rules(hosts: &Hosts, backend: Backend) {
    let inputs = if backend == Backend::Nftables {
        vec![("nft -f -", TABLE.to_owned())]
    } else {
        vec![
            ("ipset restore", SETS.to_owned()),
            ("iptables-restore --noflush", chains("4", "192.168.0.0/16")),
            ("ip6tables-restore --noflush", chains("6", "fd01:b::/64")),
        ]
    };
    for (line, input) in inputs {
        let mut words = line.split(' ');
        let mut command = hosts.hosts[0].namespace.command(words.next().expect("a program"));
        let output = run(command.args(words), &input);
        assert!(output.status.success(), "{line}: {output:?}");
    }
}

#[test]
#[ignore = "needs root and packages: tests/run host"]
fn former_rules_are_replaced_without_gap() {
    for backend in [Backend::Nftables, Backend::Iptables] {
        require_root_and_files(&["/usr/sbin/nft", "/usr/sbin/iptables", "/usr/sbin/ipset"]);
        let hosts = Hosts::new(3, Underlay::V4);
        hosts.program();
        let [first, second, third] = &hosts.hosts[..] else { panic!("three hosts") };
        let to = first.address().to_string();
        let has_access = || [second, third].map(|host| host.container_can_ping(&to, 16));
        assert_eq!(has_access(), [true, true]);
        install_former_rules(&hosts, backend);
        assert_eq!(has_access(), [true, false], "{backend:?}");

        // The list of peers is unknown after the start. The known agent stays known.
        let desired = hosts.desired(first);
        let without_peers = Desired { peers: None, ..desired.clone() };
        let mut firewall = Firewall::new(backend);
        let mut verify = |desired: &Desired| {
            let rules = Ruleset::new(desired, &Options::default());
            let verified = first.namespace.inside(|| firewall.verify(&rules));
            verified.unwrap_or_else(|error| panic!("{error}"))
        };
        assert_eq!(verify(&without_peers), Outcome::Made);
        assert_eq!(has_access(), [true, false], "{backend:?}");
        assert_eq!(verify(&without_peers), Outcome::Unchanged);
        assert_eq!(verify(&desired), Outcome::Made);
        assert_eq!(has_access(), [true, true], "{backend:?}");

        // Only the rules of this version remain.
        let owned = || first.namespace.inside(Firewall::list_owned).expect("the rules");
        let rules = || {
            let saved = ["iptables-save", "ip6tables-save", "ipset list -n"];
            let saved = saved.map(|line| first.namespace.run(line));
            let lines = saved.iter().flat_map(|text| text.lines());
            let own = lines.filter(|line| line.to_ascii_uppercase().contains("MESOS-OVERLAY"));
            let own = own.map(|line| line.split(" [").next().unwrap_or(line).to_owned());
            let mut own: Vec<String> = own.collect();
            own.sort();
            own
        };
        let upgraded = (owned(), rules());
        let clean = || Firewall::new(backend).clean();
        first.namespace.inside(clean).expect("permission to clean");
        assert_eq!((owned(), rules()), (Vec::new(), Vec::new()), "{backend:?}");
        verify(&desired);
        assert_eq!((owned(), rules()), upgraded, "{backend:?}");
    }
}
