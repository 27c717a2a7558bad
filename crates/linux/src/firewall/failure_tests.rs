//! Tests with programs that fail: a failure is reported, and opens nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use overlay_types::tunnel::Desired;
use parking_lot::Mutex;

use super::command::{FirewallError, SystemTools, Tools};
use super::tests::desired;
use super::*;

/// A host with simulated programs, of which one run can fail.
#[derive(Debug, Clone, Default)]
struct FakeHost(Arc<Mutex<FakeState>>);

#[derive(Debug, Default)]
struct FakeState {
    table: Option<String>,
    /// The rules of iptables and of ip6tables.
    saved: [String; 2],
    sets: BTreeMap<String, BTreeSet<String>>,
    runs: usize,
    /// The run that fails, and its error.
    failure: Option<(usize, FirewallError)>,
}

impl FakeState {
    fn run(&mut self, command: &str, input: &str) -> Result<String, FirewallError> {
        match command {
            "nft --check -f -" => Ok(String::new()),
            "nft list tables" => {
                Ok(self.table.as_ref().map_or("", |_| "table inet mesos_overlay\n").to_owned())
            }
            "nft -s list table inet mesos_overlay" => {
                self.table.clone().ok_or_else(|| refused("No such file or directory"))
            }
            "nft -f -" => {
                let new = input.strip_prefix(&nftables::remove()).expect("the whole table");
                self.table = (!new.is_empty()).then(|| new.to_owned());
                Ok(String::new())
            }
            "iptables-save " => Ok(self.saved[0].clone()),
            "ip6tables-save " => Ok(self.saved[1].clone()),
            "iptables-restore --noflush -w 5" | "ip6tables-restore --noflush -w 5" => {
                let saved = &mut self.saved[usize::from(command.starts_with("ip6"))];
                *saved = if input.contains("-X ") { String::new() } else { input.to_owned() };
                Ok(String::new())
            }
            "ipset restore" => {
                input.lines().for_each(|line| self.change_set(line));
                Ok(String::new())
            }
            "ipset list -n" => Ok(self.sets.keys().map(|set| format!("{set}\n")).collect()),
            _ => self.run_on_set(command),
        }
    }

    fn change_set(&mut self, line: &str) {
        match *line.split(' ').collect::<Vec<_>>() {
            ["create", "-exist", set, ..] => _ = self.sets.entry(set.to_owned()).or_default(),
            ["flush", set] => self.sets.get_mut(set).expect("a set").clear(),
            ["add", "-exist", set, agent] => {
                _ = self.sets.get_mut(set).expect("a set").insert(agent.to_owned());
            }
            ["swap", set, other] => {
                let (own, new) = (self.sets[set].clone(), self.sets[other].clone());
                self.sets.extend([(set.to_owned(), new), (other.to_owned(), own)]);
            }
            ["destroy", set] => _ = self.sets.remove(set),
            _ => panic!("unknown line {line}"),
        }
    }

    fn run_on_set(&mut self, command: &str) -> Result<String, FirewallError> {
        if let Some(set) = command.strip_prefix("ipset destroy ") {
            self.sets.remove(set);
            return Ok(String::new());
        }
        let set = command.strip_prefix("ipset save ").expect("a known command");
        let agents = self.sets.get(set).ok_or_else(|| refused("The set does not exist"))?;
        Ok(agents.iter().map(|agent| format!("add {set} {agent}\n")).collect())
    }
}

impl Tools for FakeHost {
    fn has(&self, _: &str) -> bool {
        true
    }

    fn run(
        &self,
        program: &'static str,
        arguments: &[&str],
        input: &str,
    ) -> Result<String, FirewallError> {
        let mut state = self.0.lock();
        state.runs += 1;
        match &state.failure {
            Some((run, error)) if *run == state.runs => Err(error.clone()),
            _ => state.run(&format!("{program} {}", arguments.join(" ")), input),
        }
    }
}

fn refused(message: &str) -> FirewallError {
    FirewallError::Refused { command: "x".to_owned(), message: message.to_owned() }
}

/// Failures that do not tell which rules the host has.
fn failures() -> [FirewallError; 6] {
    let command = "x".to_owned();
    [
        FirewallError::TimedOut { command: command.clone() },
        FirewallError::TooMuchOutput { command: command.clone() },
        FirewallError::Start { command, reason: "out of memory".to_owned() },
        refused("the program wrote no error and ended with signal: 9 (SIGKILL)"),
        refused("Operation not permitted"),
        refused("can't initialize iptables table `filter': Permission denied"),
    ]
}

impl FakeHost {
    fn firewall(&self, backend: Backend) -> Firewall {
        Firewall { backend, applied: None, tools: Box::new(self.clone()) }
    }

    /// Makes the run after `runs` further runs fail, or none.
    fn fail(&self, failure: Option<(usize, FirewallError)>) {
        let mut state = self.0.lock();
        state.failure = failure.map(|(runs, error)| (state.runs + 1 + runs, error));
    }

    fn accepts_only_known_agent(&self) -> bool {
        let state = self.0.lock();
        let table = state.table.as_deref().unwrap_or_default();
        let in_table = table.contains("elements = { 10.0.0.2 }") && table.contains("chain input");
        let in_set = state.sets.get("mesos-overlay-4").is_some_and(|set| set.contains("10.0.0.2"));
        in_table || (in_set && state.saved[0].contains("--match-set mesos-overlay-4 src -j DROP"))
    }
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
            assert!(host.accepts_only_known_agent(), "{backend:?} run {run} {error}: {host:?}");
            host.fail(None);
            assert_eq!(firewall.verify(&restarted), Ok(Outcome::Made), "{backend:?} run {run}");
            assert!(host.accepts_only_known_agent(), "{backend:?} run {run} {error}: {host:?}");
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
fn missing_support_means_no_rules() {
    for message in [
        "cache initialization failed: Invalid argument",
        "iptables v1.8.9 (legacy): can't initialize iptables table `filter': Table does not exist",
        "Cannot open session to kernel.",
        "Protocol not supported",
    ] {
        assert!(refused(message).is_unsupported(), "{message}");
    }
    assert!(failures().iter().all(|error| !error.is_unsupported() && !error.lacks_feature()));
    assert!(!SystemTools.has("no-such-nft"));
}
