//! Tests of the rules as text: the input of the programs.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use overlay_types::addr::{DeviceName, Mac, Vni};
use overlay_types::tunnel::{Desired, OverlaySubnets, Peer, VxlanDevice};

use super::*;

pub(super) fn desired() -> Desired {
    let device = DeviceName::vtep(Vni::DEFAULT);
    let space = |overlay: &str, whole: &[&str]| OverlaySubnets {
        overlay: overlay.parse().unwrap(),
        device: device.clone(),
        whole: whole.iter().map(|text| text.parse().unwrap()).collect(),
        own: Vec::new(),
        bridges: Vec::new(),
    };
    let peer = Peer { ip: None, ip6: None, mac: Mac::from([4; 6]), subnets: Vec::new() };
    Desired {
        vxlan_devices: vec![VxlanDevice {
            device: device.clone(),
            vni: Vni::DEFAULT,
            port: 64000,
            mac: Mac::from([2; 6]),
            underlay: Ipv4Addr::new(10, 0, 0, 1).into(),
            mtu: None,
            containers_mtu: None,
            ip: None,
            ip6: None,
        }],
        spaces: vec![
            space("a", &["192.168.0.0/17", "fd01:b::/64"]),
            space("b", &["192.168.128.0/17"]),
        ],
        peers: Some(BTreeMap::from([(IpAddr::from([10, 0, 0, 2]), peer)])),
        ..Desired::default()
    }
}

#[test]
fn nftables_script_replaces_one_table() {
    let rules = Ruleset::new(&desired(), &Options::default());
    assert_eq!(
        nftables::script(&rules).replace('\t', "  "),
        "table inet mesos_overlay\ndelete table inet mesos_overlay\ntable inet mesos_overlay {\n  \
         set spaces4 {\n    type ipv4_addr\n    flags interval\n    elements = { 192.168.0.0/17, \
         192.168.128.0/17 }\n  }\n  set agents4 {\n    type ipv4_addr\n    elements = { 10.0.0.2 \
         }\n  }\n  set spaces6 {\n    type ipv6_addr\n    flags interval\n    elements = { \
         fd01:b::/64 }\n  }\n  set agents6 {\n    type ipv6_addr\n  }\n  chain input {\n    type \
         filter hook input priority -10; policy accept;\n    udp dport { 64000 } ip saddr != \
         @agents4 counter drop\n    udp dport { 64000 } ip6 saddr != @agents6 counter drop\n  }\n  \
         chain postrouting {\n    type nat hook postrouting priority 99;\n    ip saddr @spaces4 ip \
         daddr != @spaces4 ip daddr != 224.0.0.0/4 oifname != { \"vtep1024\" } masquerade\n    ip6 \
         saddr @spaces6 ip6 daddr != @spaces6 ip6 daddr != ff00::/8 oifname != { \"vtep1024\" } \
         masquerade\n  }\n}\n"
    );
}

#[test]
fn options_remove_and_add_rules() {
    let none = Options { masquerade: false, known_agents_only: false, ..Options::default() };
    let script = nftables::script(&Ruleset::new(&desired(), &none));
    assert!(!script.contains("chain"), "{script}");
    let script =
        nftables::script(&Ruleset::new(&desired(), &Options { isolate: true, ..none.clone() }));
    assert!(
        script.contains(
            "ip saddr @overlay0_4 ip daddr @spaces4 ip daddr != @overlay0_4 counter drop"
        ),
        "{script}"
    );
    let nothing = Ruleset::new(&Desired::default(), &Options::default());
    assert_eq!(nftables::script(&nothing), nftables::remove());
}

#[test]
fn iptables_script_has_own_chains() {
    let rules = Ruleset::new(&desired(), &Options { isolate: true, ..Options::default() });
    let script = iptables::script(&rules, Family::V6, Scope::Everything, &[]);
    assert_eq!(
        script,
        "*filter\n:MESOS-OVERLAY - [0:0]\n:MESOS-OVERLAY-OUT - [0:0]\n\
         -A MESOS-OVERLAY -s fd01:b::/64 -d fd01:b::/64 -j ACCEPT\n\
         -A MESOS-OVERLAY -i vtep1024 -d fd01:b::/64 -j ACCEPT\n\
         -A MESOS-OVERLAY -o vtep1024 -s fd01:b::/64 -j ACCEPT\n\
         -A MESOS-OVERLAY-OUT -s fd01:b::/64 -j ACCEPT\n\
         -A MESOS-OVERLAY-OUT -d fd01:b::/64 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
         :MESOS-OVERLAY-IN - [0:0]\n\
         -A MESOS-OVERLAY-IN -p udp --dport 64000 -m set ! --match-set mesos-overlay-6 src -j DROP\n\
         COMMIT\n*nat\n:MESOS-OVERLAY - [0:0]\n\
         -A MESOS-OVERLAY -o vtep1024 -j RETURN\n\
         -A MESOS-OVERLAY -d fd01:b::/64 -j RETURN\n\
         -A MESOS-OVERLAY -s fd01:b::/64 -j MASQUERADE\nCOMMIT\n"
    );
    let script = iptables::script(&rules, Family::V4, Scope::Everything, &[]);
    assert!(script.contains("-A MESOS-OVERLAY -s 192.168.0.0/17 -d 192.168.128.0/17 -j DROP\n"));
    assert_eq!(
        iptables::sets(&rules, Family::V4),
        "create -exist mesos-overlay-4 hash:ip family inet maxelem 1048576\n\
         create -exist mesos-overlay-4-new hash:ip family inet maxelem 1048576\n\
         flush mesos-overlay-4-new\nadd -exist mesos-overlay-4-new 10.0.0.2\n\
         swap mesos-overlay-4 mesos-overlay-4-new\ndestroy mesos-overlay-4-new\n"
    );
}

#[test]
fn invalid_peer_is_not_admitted_by_firewall() {
    let mut desired = desired();
    let peers = desired.peers.as_mut().unwrap();
    let peer = peers.values().next().unwrap().clone();
    for (number, address) in [(5, "192.168.7.7"), (6, "224.0.0.1"), (7, "::ffff:10.0.0.9")] {
        let peer = Peer { mac: Mac::from([2, 0, 0, 0, 0, number]), ..peer.clone() };
        peers.insert(address.parse().unwrap(), peer);
    }
    let rules = Ruleset::new(&desired, &Options::default());
    assert_eq!(rules.agents, Some([IpAddr::from([10, 0, 0, 2])].into()));
}

#[test]
fn agent_changes_touch_only_changed_agents() {
    let before = Ruleset::new(&desired(), &Options::default());
    let mut after = before.clone();
    after.agents = Some([[10, 0, 0, 3].into(), "fd00::3".parse().unwrap()].into());
    let changes = after.agent_changes_since(&before).unwrap();
    assert_eq!(
        nftables::agents(&changes),
        "add element inet mesos_overlay agents4 { 10.0.0.3 }\n\
         add element inet mesos_overlay agents6 { fd00::3 }\n\
         delete element inet mesos_overlay agents4 { 10.0.0.2 }\n"
    );
    assert_eq!(
        iptables::agents(&changes),
        "add mesos-overlay-4 10.0.0.3\nadd mesos-overlay-6 fd00::3\ndel mesos-overlay-4 10.0.0.2\n"
    );
    assert!(before.agent_changes_since(&before).unwrap().is_empty());
    after.isolate = true;
    assert_eq!(after.agent_changes_since(&before), None);
    assert_eq!(Ruleset::default().agent_changes_since(&before), None);
    // Rules that accept every sender have no changes. Without the list of peers all rules are made
    // again.
    let every_sender = Ruleset { agents: None, ..before.clone() };
    assert!(every_sender.agent_changes_since(&every_sender).unwrap().is_empty());
    let unknown = Ruleset { keeps_agents: true, ..every_sender.clone() };
    assert_eq!(unknown.agent_changes_since(&every_sender), None);
}

#[test]
fn error_names_remedy() {
    assert_eq!(
        SystemTools.run("no-such-nft", &[], "").unwrap_err().to_string(),
        "firewall: program 'no-such-nft' not found: install nftables, or iptables and ipset, or \
         set firewall to none"
    );
    let message = "Could not process rule: Operation not supported".to_owned();
    assert_eq!(
        FirewallError::NoNftables { message }.to_string(),
        "firewall: this kernel does not support our nftables rules (Could not process rule: \
         Operation not supported), and iptables with ipset is not installed: install them, or a \
         kernel of 5.2 or later with nftables, or set firewall to none"
    );
}
