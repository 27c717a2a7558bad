//! A host with simulated programs, for tests.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use parking_lot::Mutex;

use super::command::{FirewallError, Tools};
use super::{Backend, Firewall, nftables, shortcut, table};

/// A host with simulated programs. A test can make one of their runs fail.
#[derive(Debug, Clone, Default)]
pub(super) struct FakeHost(pub(super) Arc<Mutex<FakeState>>);

#[derive(Debug, Default)]
pub(super) struct FakeState {
    pub(super) table: Option<String>,
    pub(super) shortcut: Option<String>,
    /// The rules of the shortcut's chains of ports, by name and device.
    pub(super) ports: BTreeMap<String, (String, String)>,
    /// The ports that have vanished.
    pub(super) vanished: BTreeSet<String>,
    /// The rules of iptables and of ip6tables.
    pub(super) saved: [String; 2],
    pub(super) sets: BTreeMap<String, BTreeSet<String>>,
    /// The number of nftables transactions that changed neither `table` nor `saved`.
    pub(super) transactions: u32,
    pub(super) runs: usize,
    /// Whether iptables makes no nftables rules.
    pub(super) is_legacy: bool,
    /// Whether only nft is installed.
    pub(super) is_without_iptables: bool,
    /// The run that fails, and its error.
    failure: Option<(usize, FirewallError)>,
}

impl FakeState {
    fn run(&mut self, command: &str, input: &str) -> Result<String, FirewallError> {
        match command {
            "nft --check -f -" => Ok(String::new()),
            "nft list tables" => {
                let name = |table: &Option<String>, name| table.as_ref().map_or("", |_| name);
                let shortcut = name(&self.shortcut, "table netdev mesos_overlay\n");
                Ok(format!("{}{shortcut}", name(&self.table, "table inet mesos_overlay\n")))
            }
            "nft -s list table netdev mesos_overlay" => {
                let shortcut = self.shortcut.as_deref();
                let shortcut = shortcut.ok_or_else(|| refused("No such file or directory"))?;
                let port = |(chain, (device, rule)): (&String, &(String, String))| {
                    format!(
                        "\tchain {chain} {{\n\t\ttype filter hook ingress device \"{device}\" priority \
                         filter; policy accept;\n\t\t{rule}\n\t}}\n"
                    )
                };
                Ok(self.ports.iter().map(port).fold(shortcut.to_owned(), |all, one| all + &one))
            }
            "nft -s list table inet mesos_overlay" => {
                self.table.clone().ok_or_else(|| refused("No such file or directory"))
            }
            "nft -f -" => {
                self.change_ports(input)?;
                let input = match input.strip_prefix(&table::removal(shortcut::TABLE)) {
                    Some(rest) if rest.is_empty() || rest.starts_with("table netdev") => {
                        self.shortcut = (!rest.is_empty()).then(|| rest.to_owned());
                        self.ports.clear();
                        return Ok(String::new());
                    }
                    Some(rest) => {
                        self.shortcut = None;
                        rest
                    }
                    None => input,
                };
                match input.strip_prefix(&table::removal(nftables::TABLE)) {
                    Some(new) => self.table = (!new.is_empty()).then(|| new.to_owned()),
                    // A change of elements, which this host does not apply.
                    None => self.transactions += 1,
                }
                Ok(String::new())
            }
            "iptables-save " => Ok(self.saved[0].clone()),
            "ip6tables-save " => Ok(self.saved[1].clone()),
            "iptables-restore --noflush -w 5" | "ip6tables-restore --noflush -w 5" => {
                let saved = &mut self.saved[usize::from(command.starts_with("ip6"))];
                *saved = restored(saved, input);
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

    /// Applies the changes of a transaction to the chains of ports. A vanished port makes it fail.
    fn change_ports(&mut self, input: &str) -> Result<(), FirewallError> {
        let mut ports = self.ports.clone();
        for line in input.lines() {
            match *line.splitn(6, ' ').collect::<Vec<_>>() {
                ["add", "chain", "netdev", _, chain, spec] => {
                    let device = spec.split('"').nth(1).expect("a device").to_owned();
                    if self.vanished.contains(&device) {
                        return Err(refused("No such file or directory"));
                    }
                    ports.insert(chain.to_owned(), (device, String::new()));
                }
                ["add", "rule", "netdev", _, chain, rule] => {
                    ports.get_mut(chain).expect("a chain").1.push_str(rule);
                }
                ["delete", "chain", "netdev", _, chain] => drop(ports.remove(chain)),
                _ => {}
            }
        }
        self.ports = ports;
        Ok(())
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

/// Returns the rules after `iptables-restore --noflush`, for input that changes only our chains.
fn restored(saved: &str, input: &str) -> String {
    let mut tables: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let mut table = "";
    for line in saved.lines().chain(input.lines()).filter(|line| *line != "COMMIT") {
        if let Some(name) = line.strip_prefix('*') {
            table = name;
            continue;
        }
        let rules = tables.entry(table).or_default();
        let (verb, rest) = line.split_once(' ').expect("a command");
        match (verb, verb.strip_prefix(':').unwrap_or(rest)) {
            ("-F" | "-X", chain) => rules.retain(|rule| {
                !rule.starts_with(&format!("-A {chain} "))
                    && (verb == "-F" || !rule.starts_with(&format!(":{chain} ")))
            }),
            ("-D", rule) => {
                let index = rules.iter().position(|other| *other == format!("-A {rule}"));
                rules.remove(index.expect("an existing jump"));
            }
            ("-I", rule) => rules.insert(0, format!("-A {rule}")),
            ("-A", _) => rules.push(line.to_owned()),
            (_, chain) => {
                rules.retain(|rule| {
                    let words: Vec<_> = rule.split(' ').collect();
                    rule.split(' ').next() != Some(&format!(":{chain}"))
                        && words[..2] != ["-A", chain]
                });
                rules.insert(0, line.to_owned());
            }
        }
    }
    tables.retain(|_, rules| !rules.is_empty());
    let table =
        |(name, rules): (&&str, &Vec<String>)| format!("*{name}\n{}\nCOMMIT\n", rules.join("\n"));
    tables.iter().map(table).collect()
}

impl Tools for FakeHost {
    fn has_generation(&self, _: &str) -> bool {
        !self.0.lock().is_legacy
    }

    /// Returns a number that differs if the rules differ. Ipsets do not count.
    fn generation(&self) -> Option<u32> {
        let state = self.0.lock();
        let mut hasher = DefaultHasher::new();
        (&state.table, &state.shortcut, &state.saved, state.transactions).hash(&mut hasher);
        u32::try_from(hasher.finish() >> 32).ok()
    }

    fn has(&self, program: &str) -> bool {
        program == "nft" || !self.0.lock().is_without_iptables
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

pub(super) fn refused(message: &str) -> FirewallError {
    FirewallError::Refused { command: "x".to_owned(), message: message.to_owned() }
}

impl FakeHost {
    pub(super) fn firewall(&self, backend: Backend) -> Firewall {
        Firewall::with_tools(backend, Box::new(self.clone()))
    }

    /// Makes the run after `runs` further runs fail, or none.
    pub(super) fn fail(&self, failure: Option<(usize, FirewallError)>) {
        let mut state = self.0.lock();
        state.failure = failure.map(|(runs, error)| (state.runs + 1 + runs, error));
    }

    pub(super) fn accepts_only_known_agents(&self) -> bool {
        let state = self.0.lock();
        let table = state.table.as_deref().unwrap_or_default();
        let in_table = table
            .contains("agents4 {\n\t\ttype ipv4_addr\n\t\telements = { 10.0.0.2, 10.0.0.3 }")
            && table.contains("{ 10.0.0.2 . 0xc0a80200,")
            && table.contains("udp dport 64000 goto vxlan");
        let in_set = state.sets.get("mesos-overlay-4").is_some_and(|set| set.contains("10.0.0.2"));
        in_table || (in_set && state.saved[0].contains("--match-set mesos-overlay-4 src -j DROP"))
    }
}
