//! Tests of a start before the master has sent the list of peers, with and without existing rules.

use overlay_types::tunnel::Desired;

use super::fake_host::{FakeHost, refused};
use super::tests::{desired, program};
use super::*;

const BACKENDS: [Backend; 2] = [Backend::Nftables, Backend::Iptables];

fn without_peers() -> Ruleset {
    let unknown = Desired { peers: None, agents: [].into(), masters: [].into(), ..desired() };
    Ruleset::new(&unknown, &program(true))
}

/// Returns the listed elements of the host.
fn elements(host: &FakeHost, backend: Backend) -> ListedElements {
    host.firewall(backend).observe(None).unwrap().elements.unwrap()
}

#[test]
fn first_start_without_peers_accepts_no_sender() {
    for backend in BACKENDS {
        let host = FakeHost::default();
        let mut firewall = host.firewall(backend);
        assert_eq!(firewall.verify(&without_peers()), Ok(Outcome::Made));
        assert_eq!(firewall.verify(&without_peers()), Ok(Outcome::Unchanged));
        assert_eq!(elements(&host, backend), ListedElements::new());
        assert!(!firewall.keeps_agents(), "{backend:?}");
        let state = host.0.lock();
        let has_rule = match backend {
            Backend::Nftables => {
                let table = state.table.as_deref().unwrap_or_default();
                table.contains("udp dport 64000 goto vxlan") && table.contains("@inner4_24 accept")
            }
            _ => state.saved[0].contains("! --match-set mesos-overlay-4 src -j DROP"),
        };
        assert!(has_rule, "{backend:?} {state:?}");
    }
}

#[test]
fn restart_keeps_all_elements() {
    for backend in BACKENDS {
        let host = FakeHost::default();
        let known = Ruleset::new(&desired(), &program(true));
        host.firewall(backend).verify(&known).unwrap();
        let before = elements(&host, backend);
        assert!(before.len() >= 7 || backend == Backend::Iptables, "{before:?}");
        let mut firewall = host.firewall(backend);
        assert_eq!(firewall.verify(&without_peers()), Ok(Outcome::Made));
        assert_eq!(elements(&host, backend), before);
        assert!(firewall.keeps_agents(), "{backend:?}");
        assert_eq!(firewall.update(&without_peers()), Ok(Outcome::Unchanged));
        assert_eq!(firewall.update(&known), Ok(Outcome::Made));
        assert!(!firewall.keeps_agents(), "{backend:?}");
        assert_eq!(elements(&host, backend), before);
        // The list of peers is unknown again.
        assert_eq!(firewall.update(&without_peers()), Ok(Outcome::Made));
        assert_eq!(elements(&host, backend), before);
    }
}

#[test]
fn only_missing_or_different_flow_rules_are_new() {
    for backend in BACKENDS {
        let host = FakeHost::default();
        let known = Ruleset::new(&desired(), &program(true));
        let mut firewall = host.firewall(backend);
        firewall.verify(&known).unwrap();
        assert!(firewall.take_new_flow_rules(), "{backend:?}: a host without rules");
        assert!(!firewall.take_new_flow_rules());
        // A restart makes all rules again, and so does an element of another program.
        let mut firewall = host.firewall(backend);
        assert_eq!(firewall.verify(&known), Ok(Outcome::Made));
        assert!(!firewall.take_new_flow_rules(), "{backend:?}: the rules of before a restart");
        match backend {
            Backend::Nftables => {
                let table = &mut host.0.lock().table;
                *table = table.as_ref().map(|table| table.replace("10.0.0.2, ", ""));
            }
            _ => host.0.lock().sets.values_mut().for_each(|set| _ = set.pop_first()),
        }
        assert_eq!(firewall.verify(&known), Ok(Outcome::Repaired));
        assert!(!firewall.take_new_flow_rules(), "{backend:?}: an element");
        // Another program removes the masquerade.
        {
            let mut state = host.0.lock();
            let without = |text: &str| {
                let lines = text.lines().filter(|line| !line.to_lowercase().contains("masquerade"));
                lines.map(|line| format!("{line}\n")).collect::<String>()
            };
            state.table = state.table.as_deref().map(without);
            state.saved = [without(&state.saved[0]), without(&state.saved[1])];
        }
        let mut restarted = host.firewall(backend);
        for firewall in [&mut firewall, &mut restarted] {
            firewall.verify(&known).unwrap();
        }
        assert!(firewall.take_new_flow_rules(), "{backend:?}: the masquerade was missing");
        assert!(!restarted.take_new_flow_rules(), "{backend:?}: the other process made it");
    }
}

#[test]
fn former_rules_without_sources_keep_agents_unchecked() {
    let host = FakeHost::default();
    host.0.lock().table = Some(
        "table inet mesos_overlay {\n\tset agents4 {\n\t\ttype ipv4_addr\n\
         \t\telements = { 10.0.0.2 }\n\t}\n}\n"
            .to_owned(),
    );
    let mut firewall = host.firewall(Backend::Nftables);
    assert_eq!(firewall.verify(&without_peers()), Ok(Outcome::Made));
    assert_eq!(firewall.verify(&without_peers()), Ok(Outcome::Unchanged));
    let table = host.0.lock().table.clone().unwrap();
    assert!(table.contains("\t\tip saddr @agents4 accept\n\t\tcounter drop\n"), "{table}");
    assert!(!table.contains("inner"), "{table}");
    let agents = [("agents4".to_owned(), ["10.0.0.2".to_owned()].into())].into();
    assert_eq!(elements(&host, Backend::Nftables), agents);
}

#[test]
fn elements_of_other_underlay_are_not_kept() {
    let host = FakeHost::default();
    host.0.lock().table = Some(
        "table inet mesos_overlay {\n\tset agents6 {\n\t\telements = { fd00::2 }\n\t}\n\
         \tset inner4_24 {\n\t\telements = { fd00::2 . 0xc0a80200 }\n\t}\n\
         \tset hosts4 {\n\t\telements = { 10.0.0.2 }\n\t}\n}\n"
            .to_owned(),
    );
    host.firewall(Backend::Nftables).verify(&without_peers()).unwrap();
    let hosts = [("hosts4".to_owned(), ["10.0.0.2".to_owned()].into())].into();
    assert_eq!(elements(&host, Backend::Nftables), hosts);
}

#[test]
fn nft_without_pairs_checks_membership() {
    let host = FakeHost::default();
    let mut firewall = host.firewall(Backend::Nftables);
    let known = Ruleset::new(&desired(), &program(true));
    host.fail(Some((0, refused("can not use variable sized data types in concat expressions"))));
    assert_eq!(firewall.verify(&known), Ok(Outcome::Made));
    assert_eq!(firewall.inner_check(), Some(InnerCheck::Membership));
    assert!(host.0.lock().table.as_deref().unwrap_or_default().contains("@members4_24"));
    assert_eq!(firewall.verify(&known), Ok(Outcome::Unchanged));
    // Every other failure is an error.
    let mut firewall = host.firewall(Backend::Nftables);
    host.fail(Some((0, refused("Device or resource busy"))));
    assert_eq!(firewall.verify(&known), Err(refused("Device or resource busy")));
    assert_eq!(firewall.inner_check(), None);
    assert_eq!(firewall.verify(&known), Ok(Outcome::Made));
    assert_eq!(firewall.inner_check(), Some(InnerCheck::Pair));
}

#[test]
fn better_check_is_used_once_nft_supports_it() {
    let host = FakeHost::default();
    let known = Ruleset::new(&desired(), &program(true));
    let unsupported = || refused("can not use variable sized data types in concat expressions");
    let mut firewall = host.firewall(Backend::Nftables);
    host.fail(Some((0, unsupported())));
    firewall.verify(&known).unwrap();
    host.fail(Some((0, unsupported())));
    firewall.probe_again(true);
    assert_eq!(firewall.verify(&known), Ok(Outcome::Unchanged), "it is not supported yet");
    assert_eq!(firewall.inner_check(), Some(InnerCheck::Membership));
    firewall.probe_again(false);
    assert_eq!(firewall.verify(&known), Ok(Outcome::Made));
    assert_eq!(firewall.inner_check(), Some(InnerCheck::Pair));
    let runs = host.0.lock().runs;
    firewall.probe_again(true);
    assert_eq!(host.0.lock().runs, runs, "there is no better check");

    let mut firewall = host.firewall(Backend::Iptables);
    firewall.verify(&known).unwrap();
    assert!(host.0.lock().table.is_none(), "the rules of the other backend are removed");
    firewall.probe_again(false);
    assert_eq!(firewall.backend(), Backend::Iptables, "the operator chose it");
    firewall.probe_again(true);
    assert_eq!(firewall.verify(&known), Ok(Outcome::Made));
    assert_eq!(firewall.backend(), Backend::Nftables);
    let state = host.0.lock();
    assert!(state.table.is_some() && state.sets.is_empty() && state.saved.concat().is_empty());
}

#[test]
fn chains_of_former_version_are_replaced() {
    let host = FakeHost::default();
    let former = "*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:MESOS-OVERLAY-IN -\n:MESOS-OVERLAY-LAB -\n\
                  -A INPUT -j MESOS-OVERLAY-IN\n-A INPUT -j MESOS-OVERLAY-IN\n\
                  -A MESOS-OVERLAY-IN -p udp -j DROP\nCOMMIT\n";
    host.0.lock().saved[0] = former.to_owned();
    host.firewall(Backend::Iptables).verify(&Ruleset::new(&desired(), &program(true))).unwrap();
    let saved = host.0.lock().saved[0].clone();
    let (before, filter) = saved.split_once("*filter").unwrap();
    let (filter, mangle) = filter.split_once("COMMIT").unwrap();
    assert!(!filter.contains("MESOS-OVERLAY-IN"), "{filter}");
    assert!(filter.contains(":MESOS-OVERLAY-LAB"), "{filter}");
    assert!((before.to_owned() + mangle).contains("-A INPUT -j MESOS-OVERLAY-IN"), "{saved}");
}
