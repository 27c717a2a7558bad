//! Tests with programs that fail: a failure is reported, and opens nothing.

use overlay_types::tunnel::Desired;

use super::command::{FirewallError, SystemTools, Tools};
use super::fake_host::{FakeHost, refused};
use super::tests::desired;
use super::*;

/// Failures after which the rules of the host are unknown.
fn failures() -> [FirewallError; 7] {
    let command = "x".to_owned();
    [
        FirewallError::TimedOut { command: command.clone() },
        FirewallError::TooMuchOutput { command: command.clone() },
        FirewallError::Start { command, reason: "out of memory".to_owned() },
        refused("the program wrote no error and ended with signal: 9 (SIGKILL)"),
        refused("Operation not permitted"),
        refused("can't initialize iptables table `filter': Permission denied"),
        refused("can't initialize iptables table `filter': Memory allocation problem"),
    ]
}

#[test]
fn failing_program_never_reads_as_no_rules() {
    for backend in [Backend::Nftables, Backend::Iptables] {
        let known = Ruleset::new(&desired(), &Options::default());
        // After a restart the agent has not received the list of peers, so it keeps the agents.
        let restarted = Desired { peers: None, ..desired() };
        let restarted = Ruleset::new(&restarted, &Options::default());
        let host = FakeHost::default();
        host.firewall(backend).verify(&known).unwrap();
        let before = host.0.lock().runs;
        host.firewall(backend).verify(&restarted).unwrap();
        let runs = host.0.lock().runs - before;
        assert!(runs >= 5, "{runs}");
        for (run, error) in (0..runs).flat_map(|run| failures().map(|error| (run, error))) {
            let mut firewall = host.firewall(backend);
            host.fail(Some((run, error.clone())));
            assert_eq!(firewall.verify(&restarted), Err(error.clone()), "{backend:?} run {run}");
            assert!(host.accepts_only_known_agents(), "{backend:?} run {run} {error}: {host:?}");
            host.fail(None);
            assert_eq!(firewall.verify(&restarted), Ok(Outcome::Made), "{backend:?} run {run}");
            assert!(host.accepts_only_known_agents(), "{backend:?} run {run} {error}: {host:?}");
            assert_eq!(firewall.verify(&restarted), Ok(Outcome::Unchanged));
        }
    }
}

#[test]
fn failed_clean_is_error() {
    for backend in [Backend::Nftables, Backend::Iptables] {
        let host = FakeHost::default();
        let known = Ruleset::new(&desired(), &Options::default());
        host.firewall(backend).verify(&known).unwrap();
        let mut run = 0;
        loop {
            host.fail(Some((run, refused("Device or resource busy"))));
            match host.firewall(backend).clean() {
                Err(error) => assert_eq!(error, refused("Device or resource busy")),
                Ok(()) => break,
            }
            run += 1;
        }
        assert!(run > 3, "{run}");
        host.fail(None);
        let state = host.0.lock();
        assert_eq!((&state.table, state.sets.len()), (&None, 0));
        assert_eq!(state.saved.concat(), "");
    }
}

#[test]
fn failed_removal_is_tried_again_at_next_verification() {
    let host = FakeHost::default();
    let known = Ruleset::new(&desired(), &Options::default());
    host.firewall(Backend::Nftables).verify(&known).unwrap();
    let mut firewall = host.firewall(Backend::None);
    host.fail(Some((0, refused("Device or resource busy"))));
    assert_eq!(firewall.verify(&known), Ok(Outcome::Unchanged));
    assert!(host.0.lock().table.is_some());
    let runs = host.0.lock().runs;
    assert_eq!(firewall.update(&known), Ok(Outcome::Unchanged));
    assert_eq!(host.0.lock().runs, runs, "a change of a peer removes nothing");
    assert_eq!(firewall.verify(&known), Ok(Outcome::Unchanged));
    assert_eq!(host.0.lock().table, None);
    let runs = host.0.lock().runs;
    assert_eq!(firewall.verify(&known), Ok(Outcome::Unchanged));
    assert_eq!(host.0.lock().runs, runs, "there is nothing to remove");
}

#[test]
fn only_missing_support_selects_iptables() {
    let host = FakeHost::default();
    assert_eq!(Backend::detect_with(&host), Ok(Backend::Nftables));
    for error in failures() {
        host.fail(Some((0, error.clone())));
        assert_eq!(Backend::detect_with(&host), Err(error));
    }
    for error in [
        FirewallError::ProgramNotFound("nft"),
        refused("Could not process rule: Operation not supported"),
        refused("Could not process rule: No such file or directory"),
        refused("cache initialization failed: Invalid argument"),
        refused("syntax error, unexpected masquerade"),
    ] {
        host.fail(Some((0, error)));
        assert_eq!(Backend::detect_with(&host), Ok(Backend::Iptables));
    }
}

#[test]
fn host_without_iptables_reports_failure_of_nft() {
    let host = FakeHost::default();
    host.0.lock().is_without_iptables = true;
    let unsupported = "Could not process rule: Operation not supported";
    host.fail(Some((0, refused(unsupported))));
    let message = unsupported.to_owned();
    assert_eq!(Backend::detect_with(&host), Err(FirewallError::NoNftables { message }));
    // After another failure the kernel may well support the rules.
    for error in failures() {
        host.fail(Some((0, error.clone())));
        assert_eq!(Backend::detect_with(&host), Err(error));
    }
}

#[test]
fn missing_support_means_no_rules() {
    for message in [
        "cache initialization failed: Invalid argument",
        "iptables v1.8.9 (legacy): can't initialize iptables table `filter': Table does not exist",
        "iptables-save v1.8.9 (legacy): Cannot initialize: Table does not exist",
        "Cannot open session to kernel.",
        "Protocol not supported",
    ] {
        assert!(refused(message).is_unsupported(), "{message}");
    }
    for error in failures() {
        assert!(!error.is_unsupported() && !error.is_missing_feature(), "{error}");
    }
    assert!(!SystemTools::default().has("no-such-nft"));
}
