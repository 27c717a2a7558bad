//! Tests of the life of the shortcut on a host with simulated programs. `tests` has its text.

use std::collections::BTreeMap;

use overlay_types::addr::{DeviceName, Mac};

use super::fake_host::{FakeHost, refused};
use super::shortcut::TunnelLink;
use super::tests::{desired, direct, links, links_with_underlay, program, with_gateways};
use super::*;

type Change = fn(&mut Setup);

/// A host whose rules are made.
struct Setup {
    host: FakeHost,
    firewall: Firewall,
    desired: Desired,
    options: Options,
    links: ShortcutLinks,
}

impl Setup {
    fn new() -> Self {
        let host = FakeHost::default();
        let mut firewall = host.firewall(Backend::Nftables);
        let (desired, options) = (with_gateways(&desired()), program(false));
        firewall.verify(&Ruleset::new(&desired, &options)).unwrap();
        Self { host, firewall, desired, options, links: links() }
    }

    fn apply(&mut self, verifies: bool) -> Outcome {
        let Self { firewall, desired, options, links, .. } = self;
        firewall.apply_shortcut(desired, options, links, verifies)
    }

    fn forwarding(&self) -> Forwarding {
        self.firewall.forwarding(&self.options)
    }

    fn has_table(&self) -> bool {
        self.host.0.lock().shortcut.is_some()
    }
}

#[test]
fn shortcut_is_made_once_and_repaired() {
    let mut setup = Setup::new();
    assert_eq!(setup.forwarding(), Forwarding::Untracked);
    assert_eq!(setup.apply(true), Outcome::Made);
    assert_eq!(setup.forwarding(), Forwarding::Shortcut);
    for verifies in [false, true] {
        assert_eq!(setup.apply(verifies), Outcome::Unchanged);
    }
    setup.host.0.lock().shortcut.as_mut().unwrap().push_str("another rule\n");
    assert_eq!(setup.apply(false), Outcome::Unchanged);
    assert_eq!(setup.apply(true), Outcome::Repaired);
    assert_eq!(setup.apply(true), Outcome::Unchanged);
}

#[test]
fn changed_peer_changes_elements_and_device_changes_table() {
    let mut setup = Setup::new();
    setup.apply(true);
    let transactions = setup.host.0.lock().transactions;
    let peers = setup.desired.peers.as_mut().unwrap();
    let (first, _) = peers.first_key_value().map(|(key, peer)| (*key, peer.clone())).unwrap();
    peers.get_mut(&first).unwrap().ip = Some([44, 128, 0, 77].into());
    setup.firewall.update(&Ruleset::new(&setup.desired, &setup.options)).unwrap();
    assert_eq!(setup.apply(false), Outcome::Made);
    // One for the rules and one for the shortcut.
    assert_eq!(setup.host.0.lock().transactions, transactions + 2);
    for link in setup.links.tunnels.values_mut() {
        *link = TunnelLink { index: 99, ..*link };
    }
    let before = setup.host.0.lock().shortcut.clone();
    assert_eq!(setup.apply(false), Outcome::Made);
    assert_ne!(setup.host.0.lock().shortcut, before);
}

#[test]
fn rules_of_direct_routing_are_no_damage() {
    let mut setup = Setup::new();
    (setup.desired, setup.links) = (direct(true), links_with_underlay());
    let rules = Ruleset::new(&setup.desired, &setup.options);
    let outcomes = [[Outcome::Made; 2], [Outcome::Unchanged; 2]];
    for outcomes in outcomes {
        assert_eq!([setup.firewall.verify(&rules).unwrap(), setup.apply(true)], outcomes);
        // Another program has changed its own rules.
        setup.host.0.lock().transactions += 1;
    }
}

#[test]
fn shortcut_ends_with_its_reasons() {
    let reasons: [(&str, Change); 5] = [
        ("option", |setup| setup.options.forwarding = Forwarding::Untracked),
        ("tracked", |setup| setup.options.forwarding = Forwarding::Tracked),
        ("no bridge", |setup| setup.links.bridges.clear()),
        ("no tunnel", |setup| setup.links.tunnels.clear()),
        ("no conntrack", |setup| {
            (setup.options.masquerade, setup.options.ingress) = (false, Ingress::Open);
        }),
    ];
    for (reason, change) in reasons {
        let mut setup = Setup::new();
        setup.apply(true);
        assert!(setup.has_table());
        change(&mut setup);
        let rules = Ruleset::new(&setup.desired, &setup.options);
        setup.firewall.verify(&rules).unwrap();
        assert_eq!(setup.apply(false), Outcome::Made, "{reason}");
        assert!(!setup.has_table() && setup.forwarding() != Forwarding::Shortcut, "{reason}");
        assert_eq!(setup.apply(true), Outcome::Unchanged, "{reason}");
    }
    let mut setup = Setup::new();
    setup.apply(true);
    setup.firewall.clean().unwrap();
    assert!(!setup.has_table());
}

#[test]
fn unknown_peers_keep_shortcut() {
    let mut setup = Setup::new();
    setup.apply(true);
    setup.desired.peers = None;
    assert_eq!(setup.apply(true), Outcome::Unchanged);
    assert!(setup.has_table());
}

#[test]
fn failure_falls_back_until_next_verification() {
    let mut setup = Setup::new();
    setup.host.fail(Some((0, refused("Operation not supported"))));
    assert_eq!(setup.apply(true), Outcome::Unchanged);
    assert_eq!(setup.forwarding(), Forwarding::Untracked);
    assert_eq!(setup.apply(false), Outcome::Unchanged, "it waits for the verification");
    assert_eq!(setup.apply(true), Outcome::Made);
    assert_eq!(setup.forwarding(), Forwarding::Shortcut);
}

/// An outdated table would lead segments to the former VTEPs of peers.
#[test]
fn failed_change_removes_outdated_table() {
    let mut setup = Setup::new();
    setup.apply(true);
    let peers = setup.desired.peers.as_mut().unwrap();
    peers.pop_last();
    setup.host.fail(Some((0, refused("No such file or directory"))));
    assert_eq!(setup.apply(false), Outcome::Unchanged);
    assert!(!setup.has_table());
    assert_eq!(setup.apply(true), Outcome::Made);
    assert!(setup.has_table());
}

/// Shows that the host keeps its rules if only the shortcut is impossible.
#[test]
fn failure_keeps_rules() {
    let mut setup = Setup::new();
    let table = setup.host.0.lock().table.clone();
    setup.host.fail(Some((0, refused("Could not process rule"))));
    setup.apply(true);
    assert_eq!(setup.host.0.lock().table, table);
    let device = DeviceName::vtep(overlay_types::addr::Vni::DEFAULT);
    assert!(table.is_some_and(|table| table.contains(device.as_str())));
}

/// Returns the ports of the first bridge of a setup.
fn ports(setup: &mut Setup) -> &mut BTreeMap<DeviceName, u32> {
    &mut setup.links.bridges.get_mut(&"m-a".parse().unwrap()).unwrap().ports
}

#[test]
fn container_that_starts_gets_hook_without_other_changes() {
    let mut setup = Setup::new();
    setup.apply(true);
    assert_eq!(setup.host.0.lock().ports.len(), 3);
    let before = setup.host.0.lock().shortcut.clone();
    ports(&mut setup).insert("veth99".parse().unwrap(), 99);
    let transactions = setup.host.0.lock().transactions;
    for outcome in [Outcome::Made, Outcome::Unchanged] {
        assert_eq!(setup.firewall.follow_ports(&setup.links), outcome);
    }
    assert_eq!(setup.host.0.lock().transactions, transactions + 1);
    let rule = "ether daddr 02:00:00:00:01:03 goto from0".to_owned();
    assert_eq!(setup.host.0.lock().ports.get("port99"), Some(&("veth99".to_owned(), rule)));
    assert_eq!(setup.host.0.lock().shortcut, before);
    assert_eq!(setup.apply(true), Outcome::Unchanged);
    // The bridge takes the MAC of the container.
    setup.links.bridges.get_mut(&"m-a".parse().unwrap()).unwrap().mac = Mac::from([2; 6]);
    assert_eq!(setup.firewall.follow_ports(&setup.links), Outcome::Made);
    let rule = |chain: &str| setup.host.0.lock().ports[chain].1.clone();
    for chain in ["port31", "port99"] {
        assert_eq!(rule(chain), "ether daddr 02:02:02:02:02:02 goto from0");
    }
    assert_eq!(rule("port41"), "ether daddr 02:00:00:00:01:04 goto from1");
    ports(&mut setup).clear();
    assert_eq!(setup.firewall.follow_ports(&setup.links), Outcome::Made);
    assert_eq!(setup.host.0.lock().ports.keys().collect::<Vec<_>>(), ["port41", "port51"]);
}

#[test]
fn container_that_ends_at_once_leaves_shortcut_of_others() {
    let mut setup = Setup::new();
    setup.apply(true);
    setup.host.0.lock().vanished.insert("veth98".to_owned());
    let started = [97, 98, 99].map(|index| (format!("veth{index}").parse().unwrap(), index));
    ports(&mut setup).extend(started);
    assert_eq!(setup.firewall.follow_ports(&setup.links), Outcome::Made);
    let hooked = |setup: &Setup| setup.host.0.lock().ports.keys().cloned().collect::<Vec<_>>();
    assert_eq!(hooked(&setup), ["port31", "port41", "port51", "port97", "port99"]);
    assert_eq!(setup.forwarding(), Forwarding::Shortcut);
    // It is tried again.
    setup.host.0.lock().vanished.clear();
    assert_eq!(setup.firewall.follow_ports(&setup.links), Outcome::Made);
    assert_eq!(hooked(&setup).len(), 6);
}

#[test]
fn verification_finds_missing_and_changed_hooks() {
    type Damage = fn(&mut Setup);
    let damages: [(Damage, Outcome); 4] = [
        (|setup| drop(setup.host.0.lock().ports.remove("port31")), Outcome::Repaired),
        (
            |setup| setup.host.0.lock().ports.get_mut("port31").unwrap().1.push('x'),
            Outcome::Repaired,
        ),
        (
            |setup| {
                let other = ("veth1".to_owned(), "ether daddr x goto from0".to_owned());
                setup.host.0.lock().ports.insert("port1".to_owned(), other);
            },
            Outcome::Repaired,
        ),
        // The kernel removes the hook of a port that is gone.
        (
            |setup| {
                ports(setup).clear();
                setup.host.0.lock().ports.remove("port31");
            },
            Outcome::Made,
        ),
    ];
    for (number, (damage, outcome)) in damages.into_iter().enumerate() {
        let mut setup = Setup::new();
        setup.apply(true);
        damage(&mut setup);
        setup.host.0.lock().transactions += 1;
        assert_eq!(setup.apply(true), outcome, "{number}");
        assert_eq!(setup.apply(true), Outcome::Unchanged, "{number}");
    }
}
