//! Tests of the comparison with the rules that were made last.

use tempfile::TempDir;

use super::fake_host::FakeHost;
use super::tests::{desired, program};
use super::*;

fn rules() -> Ruleset {
    Ruleset::new(&desired(), &program(true))
}

/// Verifies, and returns the outcome with the programs that ran.
fn verify(firewall: &mut Firewall, host: &FakeHost) -> (Outcome, usize) {
    let before = host.0.lock().runs;
    let outcome = firewall.verify(&rules()).unwrap();
    (outcome, host.0.lock().runs - before)
}

/// The number of programs that list the chains of iptables, and of those that list our table.
const SAVES: usize = 2;
const LISTS: usize = 2;

#[test]
fn rules_of_known_generation_are_not_listed() {
    for is_legacy in [false, true] {
        let host = FakeHost::default();
        host.0.lock().is_legacy = is_legacy;
        let saves = if is_legacy { SAVES } else { 0 };
        let mut firewall = host.firewall(Backend::Nftables);
        assert_eq!(verify(&mut firewall, &host).0, Outcome::Made);
        assert_eq!(verify(&mut firewall, &host), (Outcome::Unchanged, saves));
        // Another program changes rules of its own.
        host.0.lock().transactions += 1;
        assert_eq!(verify(&mut firewall, &host), (Outcome::Unchanged, SAVES + LISTS));
        assert_eq!(verify(&mut firewall, &host), (Outcome::Unchanged, saves));
        // The kernel counts a change before a listing shows it, so an event causes a listing.
        firewall.note_event(RulesEvent::Foreign, false);
        assert_eq!(verify(&mut firewall, &host), (Outcome::Unchanged, SAVES + LISTS));
    }
}

#[test]
fn removed_table_or_chain_is_repaired() {
    let host = FakeHost::default();
    let mut firewall = host.firewall(Backend::Nftables);
    verify(&mut firewall, &host);
    host.0.lock().table = None;
    assert_eq!(verify(&mut firewall, &host).0, Outcome::Repaired);
    host.0.lock().saved[0] = "*filter\n:MESOS-OVERLAY - [0:0]\nCOMMIT\n".to_owned();
    assert_eq!(verify(&mut firewall, &host).0, Outcome::Repaired);
}

#[test]
fn change_of_elements_is_compared_with_a_listing() {
    let host = FakeHost::default();
    let mut firewall = host.firewall(Backend::Nftables);
    firewall.verify(&rules()).unwrap();
    let mut more = desired();
    more.masters.insert("10.0.0.9:5050".parse().unwrap());
    let more = Ruleset::new(&more, &program(true));
    assert_eq!(firewall.update(&more), Ok(Outcome::Made));
    // The simulated host has not applied the change.
    assert_eq!(firewall.verify(&more), Ok(Outcome::Repaired));
    assert_eq!(firewall.verify(&more), Ok(Outcome::Unchanged));
}

#[test]
fn ipsets_are_always_listed() {
    let host = FakeHost::default();
    let mut firewall = host.firewall(Backend::Iptables);
    verify(&mut firewall, &host);
    for _ in 0..2 {
        let (outcome, runs) = verify(&mut firewall, &host);
        assert!(outcome == Outcome::Unchanged && runs > SAVES, "{outcome:?} {runs}");
    }
    host.0.lock().sets.clear();
    assert_eq!(verify(&mut firewall, &host).0, Outcome::Repaired);
}

#[test]
fn removed_file_is_written_again_at_known_generation() {
    let (dir, host) = (TempDir::new().unwrap(), FakeHost::default());
    let mut firewall = host.firewall(Backend::Nftables);
    firewall.keep_in(dir.path());
    verify(&mut firewall, &host);
    let path = RulesFile::new(dir.path()).path().to_owned();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(verify(&mut firewall, &host), (Outcome::Unchanged, 0));
    assert!(path.exists());
}

#[test]
fn foreign_change_during_own_change_makes_rules_again() {
    for backend in [Backend::Nftables, Backend::Iptables] {
        let host = FakeHost::default();
        let mut firewall = host.firewall(backend);
        verify(&mut firewall, &host);
        for _ in 0..3 {
            firewall.note_event(RulesEvent::Managed, true);
            assert_eq!(verify(&mut firewall, &host).0, Outcome::Repaired, "{backend:?}");
        }
        assert_eq!(verify(&mut firewall, &host).0, Outcome::Unchanged);
    }
}

#[test]
fn lost_events_make_rules_once_more() {
    for backend in [Backend::Nftables, Backend::Iptables] {
        let host = FakeHost::default();
        let mut firewall = host.firewall(backend);
        verify(&mut firewall, &host);
        // The events of these rules fill the buffer each time.
        firewall.note_event(RulesEvent::Lost, true);
        assert_eq!(verify(&mut firewall, &host).0, Outcome::Made, "{backend:?}");
        firewall.note_event(RulesEvent::Lost, true);
        assert_eq!(verify(&mut firewall, &host).0, Outcome::Unchanged, "{backend:?}");
    }
}

#[test]
fn foreign_rule_in_first_listing_is_removed_after_lost_events() {
    let host = FakeHost::default();
    let mut firewall = host.firewall(Backend::Nftables);
    verify(&mut firewall, &host);
    // The state after a foreign change between the rules and their listing.
    let foreign = |table: &mut Option<String>| {
        let table = table.as_mut().unwrap();
        table.push_str("# foreign rule\n");
    };
    foreign(&mut host.0.lock().table);
    firewall.note_event(RulesEvent::Lost, true);
    assert_eq!(verify(&mut firewall, &host).0, Outcome::Made);
    assert!(!host.0.lock().table.as_ref().unwrap().contains("foreign"));
    foreign(&mut host.0.lock().table);
    assert_eq!(verify(&mut firewall, &host).0, Outcome::Repaired);
}
