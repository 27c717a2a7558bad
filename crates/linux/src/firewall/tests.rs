//! Tests of the rules as text: the input of the programs. The files in `expected` have the texts
//! for the first of three hosts with two overlays.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use overlay_types::addr::{DeviceName, Mac, Subnet, Vni};
use overlay_types::tunnel::{
    Desired, DirectLink, DirectPeer, DirectRouting, OverlayBridge, OverlaySubnets, Peer,
    VxlanDevice,
};

use super::shortcut::{BridgeLink, TunnelLink};
use super::*;

/// Returns the desired state of the first of three hosts.
pub(super) fn desired() -> Desired {
    desired_with_underlay(Family::V4)
}

fn underlay(host: u8, family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 0, 0, host).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, host.into()).into(),
    }
}

fn parse(texts: &[&str]) -> Vec<Subnet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn peer(host: u8) -> Peer {
    let subnets = [
        ("a", format!("192.168.{host}.0/24")),
        ("a", format!("fd01:b:0:0:{host}::/80")),
        ("b", format!("192.168.{}.0/24", 128 + host)),
    ];
    Peer {
        ip: Some(Ipv4Addr::new(44, 128, 0, host)),
        ip6: Some(Ipv6Addr::new(0xfd01, 0xa, 0, 0, 0, 0, 0, host.into())),
        mac: Mac::from([2, 0, 0, 0, 0, host]),
        subnets: subnets.map(|(name, text)| (name.parse().unwrap(), text.parse().unwrap())).into(),
        direct: None,
    }
}

/// Returns the desired state of the first of three hosts. The second has the master.
fn desired_with_underlay(family: Family) -> Desired {
    let device = DeviceName::vtep(Vni::DEFAULT);
    let bridge = |name: &str, subnets: &[&str]| OverlayBridge {
        device: name.parse().unwrap(),
        subnets: parse(subnets),
        gateways: Vec::new(),
    };
    let space = |overlay: &str, whole: &[&str], own: &[&str], bridges| OverlaySubnets {
        overlay: overlay.parse().unwrap(),
        device: device.clone(),
        whole: parse(whole),
        own: parse(own),
        bridges,
    };
    Desired {
        vxlan_devices: vec![VxlanDevice {
            device: device.clone(),
            vni: Vni::DEFAULT,
            port: 64000,
            mac: Mac::from([2, 0, 0, 0, 0, 1]),
            underlay: underlay(1, family),
            mtu: None,
            containers_mtu: None,
            ip: "44.128.0.1/16".parse().ok(),
            ip6: "fd01:a::1/64".parse().ok(),
        }],
        spaces: vec![
            space(
                "a",
                &["192.168.0.0/17", "fd01:b::/64"],
                &["192.168.1.0/24", "fd01:b:0:0:1::/80"],
                vec![
                    bridge("m-a", &["192.168.1.0/25", "fd01:b:0:0:1::/81"]),
                    bridge("d-a", &["192.168.1.128/25", "fd01:b:0:0:1:8000::/81"]),
                ],
            ),
            space(
                "b",
                &["192.168.128.0/17"],
                &["192.168.129.0/24"],
                vec![bridge("m-b", &["192.168.129.0/25"])],
            ),
        ],
        peers: Some([2, 3].map(|host| (underlay(host, family), peer(host))).into()),
        agents: [2, 3].map(|host| Ipv4Addr::new(10, 0, 0, host)).into(),
        masters: ["10.0.0.2:5050".parse().unwrap()].into(),
        ..Desired::default()
    }
}

/// Returns the desired state with the gateway addresses of two bridges.
pub(super) fn with_gateways(desired: &Desired) -> Desired {
    let mut desired = desired.clone();
    for (bridge, gateway) in
        desired.spaces[0].bridges.iter_mut().zip(["192.168.1.1/25", "fd01:b:0:0:1:8000::1/81"])
    {
        bridge.gateways.push(gateway.parse().unwrap());
    }
    desired
}

/// Returns the devices of the first host.
pub(super) fn links() -> ShortcutLinks {
    let bridges = [("m-a", 3, 31), ("d-a", 4, 41), ("m-b", 5, 51)];
    let bridge = |(name, index, port): (&str, u8, u32)| {
        let ports = [(format!("veth{port}").parse().unwrap(), port)].into();
        let mac = Mac::from([2, 0, 0, 0, 1, index]);
        (name.parse().unwrap(), BridgeLink { index: index.into(), mac, ports })
    };
    ShortcutLinks {
        tunnels: [(DeviceName::vtep(Vni::DEFAULT), TunnelLink { index: 7, has_ipv6: true })].into(),
        bridges: bridges.map(bridge).into(),
        direct: None,
    }
}

/// Returns the options of an agent with control ports.
pub(super) fn program(isolate: bool) -> Options {
    Options { isolate, control_ports: [5051].into(), ..Options::default() }
}

fn open() -> Options {
    Options { ingress: Ingress::Open, ..program(false) }
}

fn nft(rules: &Ruleset, check: InnerCheck) -> String {
    nftables::script(&rules.layout, check, &nftables::listed(rules, check))
}

/// Returns the input of `iptables-restore` on a host without rules of ours.
fn ipt(rules: &Ruleset, family: Family, scope: Scope) -> String {
    SavedRules::default().replacement(&iptables::tables(rules, family, scope, &BTreeSet::new()))
}

/// Returns the texts, each with the name of its file.
fn texts() -> Vec<(&'static str, String)> {
    use InnerCheck::{Membership, Pair};
    let desired = desired();
    let rules = |options: Options| Ruleset::new(&desired, &options);
    let module = Options::default();
    let without_conntrack = Options { masquerade: false, ..open() };
    let any = Options { known_agents_only: false, ..without_conntrack.clone() };
    let ipv6 = Ruleset::new(&desired_with_underlay(Family::V6), &program(true));
    let mut gateway = desired.clone();
    gateway.peers.as_mut().unwrap().values_mut().for_each(|peer| peer.subnets.clear());
    let gateway = Ruleset::new(&gateway, &program(false));
    let isolated = rules(program(true));
    vec![
        ("nft-closed", nft(&rules(program(false)), Pair)),
        ("nft-isolated", nft(&isolated, Pair)),
        ("nft-open", nft(&rules(without_conntrack), Pair)),
        ("nft-any-sender", nft(&rules(any), Pair)),
        ("nft-module", nft(&rules(module.clone()), Pair)),
        ("nft-ipv6-underlay", nft(&ipv6, Pair)),
        ("nft-gateway", nft(&gateway, Pair)),
        ("nft-membership", nft(&isolated, Membership)),
        ("nft-membership-gateway", nft(&gateway, Membership)),
        ("nft-shortcut", ShortcutRules::new(&with_gateways(&desired), &links()).script()),
        ("nft-shortcut-direct", ShortcutRules::new(&direct(true), &links_with_underlay()).script()),
        ("ipsets", ipsets::script(&ipsets::listed(&isolated))),
        ("iptables-isolated", ipt(&isolated, Family::V4, Scope::Everything)),
        ("ip6tables-isolated", ipt(&isolated, Family::V6, Scope::Everything)),
        ("iptables-open", ipt(&rules(open()), Family::V4, Scope::Everything)),
        ("iptables-gateway", ipt(&gateway, Family::V4, Scope::Everything)),
        ("iptables-module", ipt(&rules(module), Family::V4, Scope::Everything)),
        ("iptables-forward", ipt(&isolated, Family::V4, Scope::Forward)),
    ]
}

#[test]
fn rules_match_expected_texts() {
    let expected = BTreeMap::from([
        ("nft-closed", include_str!("expected/nft-closed.txt")),
        ("nft-isolated", include_str!("expected/nft-isolated.txt")),
        ("nft-open", include_str!("expected/nft-open.txt")),
        ("nft-any-sender", include_str!("expected/nft-any-sender.txt")),
        ("nft-module", include_str!("expected/nft-module.txt")),
        ("nft-ipv6-underlay", include_str!("expected/nft-ipv6-underlay.txt")),
        ("nft-gateway", include_str!("expected/nft-gateway.txt")),
        ("nft-membership", include_str!("expected/nft-membership.txt")),
        ("nft-membership-gateway", include_str!("expected/nft-membership-gateway.txt")),
        ("nft-shortcut", include_str!("expected/nft-shortcut.txt")),
        ("nft-shortcut-direct", include_str!("expected/nft-shortcut-direct.txt")),
        ("ipsets", include_str!("expected/ipsets.txt")),
        ("iptables-isolated", include_str!("expected/iptables-isolated.txt")),
        ("ip6tables-isolated", include_str!("expected/ip6tables-isolated.txt")),
        ("iptables-open", include_str!("expected/iptables-open.txt")),
        ("iptables-gateway", include_str!("expected/iptables-gateway.txt")),
        ("iptables-module", include_str!("expected/iptables-module.txt")),
        ("iptables-forward", include_str!("expected/iptables-forward.txt")),
    ]);
    let texts = texts();
    assert_eq!(texts.len(), expected.len());
    for (name, text) in texts {
        assert_eq!(text, expected[name], "{name}");
    }
}

/// Returns the devices of the first host, with that of direct routing.
pub(super) fn links_with_underlay() -> ShortcutLinks {
    ShortcutLinks { direct: Some(("eth0".parse().unwrap(), 2)), ..links() }
}

/// Returns the desired state of a host with direct routing. Only the second host offers it.
pub(super) fn direct(is_used: bool) -> Desired {
    let mut desired = desired();
    let mac = Mac::from([6, 0, 0, 0, 0, 2]);
    let peer = desired.peers.as_mut().unwrap().get_mut(&underlay(2, Family::V4)).unwrap();
    peer.direct = Some(DirectPeer { mac, is_used });
    let own = DirectLink { device: "eth0".parse().unwrap(), mac: Mac::from([6, 0, 0, 0, 0, 1]) };
    desired.direct = Some(DirectRouting { link: Some(own) });
    desired
}

#[test]
fn direct_packets_need_mac_and_subnet_of_the_same_peer() {
    let desired = direct(false);
    let text = nft(&Ruleset::new(&desired, &program(false)), InnerCheck::Pair);
    for part in [
        "set direct4_24 {\n\t\ttype ether_addr . ipv4_addr\n\t\telements = { \
         06:00:00:00:00:02 . 192.168.130.0, 06:00:00:00:00:02 . 192.168.2.0 }",
        "set direct4_32 {\n\t\ttype ether_addr . ipv4_addr\n\t\telements = { \
         06:00:00:00:00:02 . 44.128.0.2 }",
        "iifname \"eth0\" ether saddr . ip saddr & 255.255.255.0 @direct4_24 goto direct_in",
        "iifname \"eth0\" ether saddr . ip saddr & 255.255.255.0 @direct4_24 goto tunnel\n",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    let (accepted, dropped) = ("@direct4_24 goto tunnel\n", "@spaces4_17 counter drop");
    let forward = text.split("chain forward {").nth(1).unwrap();
    let (accepted, dropped) = (forward.find(accepted).unwrap(), forward.find(dropped).unwrap());
    assert!(accepted < dropped, "{forward}");
    // A source that belongs to any agent is checked already.
    let members = nft(&Ruleset::new(&desired, &program(false)), InnerCheck::Membership);
    assert!(members.contains("@direct4_24 goto tunnel\n"), "{members}");
}

#[test]
fn direct_offer_changes_elements_only() {
    let rules = |desired: &Desired| Ruleset::new(desired, &program(false));
    let (with_offer, mut without) = (direct(false), direct(false));
    without.peers.as_mut().unwrap().values_mut().for_each(|peer| peer.direct = None);
    let changes = rules(&with_offer).changes_since(&rules(&without), InnerCheck::Pair).unwrap();
    assert_eq!((changes.added.len(), changes.removed.len()), (3, 0));
    let text = nftables::changes(&rules(&with_offer).layout, InnerCheck::Pair, &changes);
    assert!(text.starts_with("add element inet mesos_overlay direct4_24 { 06:"), "{text}");
    // Without a device of this host, nothing is accepted.
    let mut off = with_offer;
    off.direct = Some(DirectRouting::default());
    assert!(!nft(&rules(&off), InnerCheck::Pair).contains("direct4"));
}

#[test]
fn host_without_devices_has_no_rules() {
    let rules = Ruleset::new(&Desired::default(), &Options::default());
    assert!(rules.is_empty());
    assert_eq!(rules, Ruleset::default());
}

#[test]
fn host_without_bridges_has_no_bridge_rules() {
    let mut desired = desired();
    desired.spaces.iter_mut().for_each(|space| space.bridges.clear());
    let rules = Ruleset::new(&desired, &program(true));
    let text = nft(&rules, InnerCheck::Pair);
    assert!(!text.contains("bridge") && text.contains("chain forward"), "{text}");
}

#[test]
fn packets_of_invalid_peer_are_not_accepted() {
    let mut desired = desired();
    let peers = desired.peers.as_mut().unwrap();
    for (number, address) in [(5, "192.168.7.7"), (6, "224.0.0.1"), (7, "::ffff:10.0.0.9")] {
        peers.insert(address.parse().unwrap(), peer(number));
    }
    // The subnet of another overlay is not accepted, and its peer is no gateway.
    let subnet = "192.168.4.0/24".parse().unwrap();
    let foreign = Peer { subnets: vec![("b".parse().unwrap(), subnet)], ..peer(4) };
    peers.insert(underlay(4, Family::V4), foreign);
    let rules = Ruleset::new(&desired, &Options::default());
    let listed = nftables::listed(&rules, InnerCheck::Pair);
    assert_eq!(listed["agents4"], ["10.0.0.2", "10.0.0.3", "10.0.0.4"].map(str::to_owned).into());
    assert!(!listed["inner4_24"].iter().any(|element| element.starts_with("10.0.0.4 ")));
    assert!(!listed.contains_key("gateways4"), "{listed:?}");
}

/// Returns the desired state with this number of peers.
fn desired_with_peers(count: u16) -> Desired {
    let mut desired = desired();
    let whole: Subnet = "192.0.0.0/9".parse().unwrap();
    desired.spaces[0].whole = vec![whole];
    let peers = (0..count).map(|number| {
        let [high, low] = number.to_be_bytes();
        let subnet = whole.nth(24, u128::from(number) + 5).unwrap();
        let peer = Peer {
            ip: Some(Ipv4Addr::new(44, 128, high + 1, low)),
            ip6: None,
            mac: Mac::from([2, 0, 0, 1, high, low]),
            subnets: vec![("a".parse().unwrap(), subnet)],
            direct: None,
        };
        (Ipv4Addr::new(10, 1, high, low).into(), peer)
    });
    desired.peers = Some(peers.collect());
    desired
}

#[test]
fn change_of_one_peer_is_as_long_with_10000_peers() {
    let lengths = |count: u16| {
        let [before, after] = [count, count + 1]
            .map(|count| Ruleset::new(&desired_with_peers(count), &program(true)));
        [InnerCheck::Pair, InnerCheck::Membership].map(|check| {
            let changes = after.changes_since(&before, check).unwrap();
            assert_eq!(changes.removed, []);
            let nft = nftables::changes(&after.layout, check, &changes);
            let ipset = ipsets::changes(&changes, &before.elements, &after.elements);
            (changes.added.len(), nft.lines().count(), ipset.lines().count())
        })
    };
    assert_eq!(lengths(10), [(4, 3, 4); 2]);
    assert_eq!(lengths(10_000), [(4, 3, 4); 2]);
}

#[test]
fn changes_touch_only_changed_elements() {
    let before = Ruleset::new(&desired(), &program(false));
    let mut desired = desired();
    let peers = desired.peers.as_mut().unwrap();
    peers.remove(&underlay(3, Family::V4));
    peers.insert(underlay(4, Family::V4), Peer { ip6: None, ..peer(4) });
    peers
        .get_mut(&underlay(4, Family::V4))
        .unwrap()
        .subnets
        .retain(|(_, subnet)| subnet.family() == Family::V4);
    desired.agents = [Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::new(10, 0, 0, 4)].into();
    desired.masters = ["10.0.0.4:5050".parse().unwrap()].into();
    let after = Ruleset::new(&desired, &program(false));
    let changes = after.changes_since(&before, InnerCheck::Pair).unwrap();
    assert_eq!(
        nftables::changes(&after.layout, InnerCheck::Pair, &changes),
        "add element inet mesos_overlay agents4 { 10.0.0.4 }\n\
         add element inet mesos_overlay hosts4 { 10.0.0.4 }\n\
         add element inet mesos_overlay inner4_24 { 10.0.0.4 . 0xc0a80400, 10.0.0.4 . 0xc0a88400 }\n\
         add element inet mesos_overlay inner4_32 { 10.0.0.4 . 0xa000004, 10.0.0.4 . 0x2c800004 }\n\
         add element inet mesos_overlay masters4 { 10.0.0.4 . 5050, 10.0.0.4 . 64000 }\n\
         delete element inet mesos_overlay agents4 { 10.0.0.3 }\n\
         delete element inet mesos_overlay hosts4 { 10.0.0.3 }\n\
         delete element inet mesos_overlay inner4_24 { 10.0.0.3 . 0xc0a80300, 10.0.0.3 . 0xc0a88300 }\n\
         delete element inet mesos_overlay inner4_32 { 10.0.0.3 . 0xa000003, 10.0.0.3 . 0x2c800003 }\n\
         delete element inet mesos_overlay inner6_80 { 10.0.0.3 . 0xfd01000b000000000003000000000000 }\n\
         delete element inet mesos_overlay inner6_128 { 10.0.0.3 . 0xfd01000a000000000000000000000003 }\n\
         delete element inet mesos_overlay masters4 { 10.0.0.2 . 5050, 10.0.0.2 . 64000 }\n"
    );
    assert_eq!(
        ipsets::changes(&changes, &before.elements, &after.elements),
        "add mesos-overlay-4 10.0.0.4\nadd mesos-overlay-hosts 10.0.0.4\n\
         add mesos-overlay-inner-4 192.168.4.0/24\nadd mesos-overlay-inner-4 192.168.132.0/24\n\
         add mesos-overlay-inner-4 10.0.0.4\nadd mesos-overlay-inner-4 44.128.0.4\n\
         add mesos-overlay-masters 10.0.0.4,5050\nadd mesos-overlay-masters 10.0.0.4,17:64000\n\
         del mesos-overlay-4 10.0.0.3\ndel mesos-overlay-hosts 10.0.0.3\n\
         del mesos-overlay-inner-4 192.168.3.0/24\ndel mesos-overlay-inner-4 192.168.131.0/24\n\
         del mesos-overlay-inner-4 10.0.0.3\ndel mesos-overlay-inner-4 44.128.0.3\n\
         del mesos-overlay-inner-6 fd01:b:0:0:3::/80\ndel mesos-overlay-inner-6 fd01:a::3\n\
         del mesos-overlay-masters 10.0.0.2,5050\ndel mesos-overlay-masters 10.0.0.2,17:64000\n"
    );
}

#[test]
fn peer_with_new_underlay_address_keeps_its_subnets_in_ipsets() {
    let before = Ruleset::new(&desired(), &program(false));
    let mut desired = desired();
    let peers = desired.peers.as_mut().unwrap();
    let moved = peers.remove(&underlay(3, Family::V4)).unwrap();
    peers.insert(underlay(4, Family::V4), moved);
    let after = Ruleset::new(&desired, &program(false));
    let changes = after.changes_since(&before, InnerCheck::Membership).unwrap();
    assert_eq!(
        ipsets::changes(&changes, &before.elements, &after.elements),
        "add mesos-overlay-4 10.0.0.4\nadd mesos-overlay-inner-4 10.0.0.4\n\
         del mesos-overlay-4 10.0.0.3\ndel mesos-overlay-inner-4 10.0.0.3\n"
    );
}

#[test]
fn jump_after_foreign_rule_is_moved_to_the_beginning() {
    let rules = Ruleset::new(&desired(), &program(false));
    let tables = iptables::tables(&rules, Family::V4, Scope::Everything, &BTreeSet::new());
    let jump = "-A FORWARD -j MESOS-OVERLAY\n";
    let foreign = "-A FORWARD -j ACCEPT\n";
    let saved = |rules: &str| {
        let chains = ":FORWARD ACCEPT [0:0]\n:MESOS-OVERLAY - [0:0]\n";
        SavedRules::parse(&format!("*mangle\n{chains}{rules}COMMIT\n"))
    };
    let moves =
        |text: &str| text.contains("-D FORWARD -j MESOS-OVERLAY\n-I FORWARD -j MESOS-OVERLAY\n");
    let misplaced = saved(&format!("{foreign}{jump}"));
    assert_eq!(misplaced.misplaced_jumps().count(), 1);
    assert!(moves(&misplaced.replacement(&tables)));
    let first = saved(&format!("{jump}{foreign}"));
    assert_eq!(first.misplaced_jumps().count(), 0);
    assert!(!first.replacement(&tables).contains("-D FORWARD -j MESOS-OVERLAY\n"));
}

#[test]
fn rules_without_u32_have_no_check_of_errors() {
    let rules = Ruleset::new(&desired(), &program(false));
    let [mut mangle, ..] =
        iptables::tables(&rules, Family::V4, Scope::Everything, &BTreeSet::new());
    let count = mangle.chains.len();
    ipt_errors::remove(&mut mangle);
    let script = SavedRules::default().replacement(&[mangle]);
    assert!(!script.contains("icmp -j") && !script.contains("u32"), "{script}");
    assert_eq!(script.matches(" - [0:0]").count(), count - 6);
}

#[test]
fn changes_of_layout_make_all_rules() {
    use InnerCheck::{Membership, Pair};
    let before = Ruleset::new(&desired(), &program(false));
    assert!(before.changes_since(&before, Pair).unwrap().is_empty());
    let others = [
        Ruleset::new(&desired(), &program(true)),
        Ruleset::new(&desired(), &open()),
        Ruleset::new(&desired(), &Options::default()),
        Ruleset::new(&Desired { peers: None, ..desired() }, &program(false)),
        Ruleset::default(),
    ];
    for other in others {
        assert_eq!(other.changes_since(&before, Pair), None, "{other:?}");
    }
    // The first gateway changes a rule, unless the source is checked against the sender.
    let mut gateway = desired();
    gateway.peers.as_mut().unwrap().values_mut().for_each(|peer| peer.subnets.clear());
    let gateway = Ruleset::new(&gateway, &program(false));
    assert!(gateway.changes_since(&before, Pair).is_some());
    assert_eq!(gateway.changes_since(&before, Membership), None);
    let any = Options { known_agents_only: false, ..program(false) };
    let any = Ruleset::new(&desired(), &any);
    assert!(any.changes_since(&any, Pair).unwrap().is_empty());
}

#[test]
fn port_of_local_master_is_closed_on_this_host_only() {
    let options = Options { local_ports: [5050].into(), ..program(false) };
    let rules = Ruleset::new(&desired(), &options);
    let text = nft(&rules, InnerCheck::Pair);
    assert!(text.contains("tcp dport @local_ports counter drop"), "{text}");
    assert!(text.contains("ip daddr @hosts4 tcp dport @control_ports counter drop"), "{text}");
    assert_eq!(text.matches("@local_ports").count(), 1);
    let script = ipt(&rules, Family::V4, Scope::Everything);
    let here = "-A MESOS-OVERLAY-PORTS -p tcp -m multiport --dports 5050,5051 -j DROP\n";
    let elsewhere = "-m multiport --dports 5051 -m set --match-set mesos-overlay-hosts dst -j DROP";
    assert!(script.contains(here) && script.contains(elsewhere), "{script}");
    // In a Mesos process the port of the agent is not known to the rules.
    let module = Options { local_ports: [5050].into(), ..Options::default() };
    let text = nft(&Ruleset::new(&desired(), &module), InnerCheck::Pair);
    assert!(text.contains("@local_ports") && !text.contains("@control_ports"), "{text}");
}

#[test]
fn external_chain_accepts_nothing_to_docker_networks() {
    let saved = SavedRules::parse(
        "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -j DOCKER-USER\n\
         -A FORWARD -o br-0a1b -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
         -A FORWARD -o br-0a1b -j DOCKER\n-A FORWARD -o d-a -j DOCKER\n\
         -A FORWARD -i br-0a1b -o br-0a1b -j ACCEPT\nCOMMIT\n*nat\n\
         -A PREROUTING -o br-no -j DOCKER\nCOMMIT\n",
    );
    let bridges = saved.docker_bridges();
    assert_eq!(bridges, BTreeSet::from(["br-0a1b", "d-a"]));
    let rules = Ruleset::new(&desired(), &program(false));
    let tables = iptables::tables(&rules, Family::V4, Scope::Forward, &bridges);
    let script = SavedRules::default().replacement(&tables);
    let external: Vec<_> =
        script.lines().filter(|line| line.starts_with("-A MESOS-OVERLAY-OUT ")).collect();
    assert_eq!(external[0], "-A MESOS-OVERLAY-OUT -o br-0a1b -j RETURN", "before what accepts");
    assert!(external[1..].iter().all(|line| line.ends_with(" -j ACCEPT")), "{external:?}");
}

#[test]
fn listed_elements_equal_written_elements() {
    for family in [Family::V4, Family::V6] {
        for check in [InnerCheck::Pair, InnerCheck::Membership] {
            let rules = Ruleset::new(&desired_with_underlay(family), &program(true));
            let mut listing = Listing::default();
            listing.add_table(&nft(&rules, check));
            assert_eq!(listing.elements, nftables::listed(&rules, check), "{check:?}");
            assert!(listing.rest.contains("elements = { 5051 }"), "{}", listing.rest);
        }
    }
}

#[test]
fn error_names_remedy() {
    assert_eq!(
        SystemTools::default().run("no-such-nft", &[], "").unwrap_err().to_string(),
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

#[test]
fn shortcut_follows_path_by_elements_only() {
    let rules = |is_used, links: &ShortcutLinks| ShortcutRules::new(&direct(is_used), links);
    let both = links_with_underlay();
    let changes = rules(true, &both).changes_since(&rules(false, &both));
    let table = shortcut::TABLE;
    let expected = ["192.168.2.0", "192.168.130.0"].map(|subnet| {
        [
            format!("delete element {table} via4_24 {{ {subnet} : 44.128.0.2 }}"),
            format!("add element {table} direct4_24 {{ {subnet} : 10.0.0.2 }}"),
        ]
    });
    let lines: BTreeSet<_> = changes.lines().map(str::to_owned).collect();
    assert_eq!(lines, expected.into_iter().flatten().collect());
    // Without the device in the underlay, a direct path takes the route of the kernel.
    let without = rules(true, &links()).script();
    assert!(!without.contains("192.168.2.0 : "), "{without}");
    assert!(without.contains("192.168.3.0 : 44.128.0.3"), "{without}");
}
