//! Our iptables chains and ipsets on this host.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use overlay_types::addr::Family;

use super::command::{FirewallError, Tools};
use super::iptables::{self, Jump, Scope};
use super::ruleset::Ruleset;

/// Seconds that iptables waits for its lock, which another program may hold.
const LOCK_SECONDS: &str = "5";

/// The iptables programs of a family.
struct Programs {
    change: &'static str,
    save: &'static str,
    restore: &'static str,
}

impl Programs {
    const fn of(family: Family) -> Self {
        match family {
            Family::V4 => {
                Self { change: "iptables", save: "iptables-save", restore: "iptables-restore" }
            }
            Family::V6 => {
                Self { change: "ip6tables", save: "ip6tables-save", restore: "ip6tables-restore" }
            }
        }
    }
}

/// The rules of all tables of one family, as `iptables-save` lists them.
#[derive(Debug, Default)]
pub(super) struct SavedRules(String);

impl SavedRules {
    /// Reads the rules. Without iptables there are none.
    ///
    /// # Errors
    /// When iptables fails: then the rules are unknown.
    pub(super) fn read(tools: &dyn Tools, family: Family) -> Result<Self, FirewallError> {
        let save = Programs::of(family).save;
        if !tools.has(save) {
            return Ok(Self::default());
        }
        match tools.run(save, &[], "") {
            Ok(rules) => Ok(Self(rules)),
            Err(error) if error.is_unsupported() => Ok(Self::default()),
            Err(error) => Err(error),
        }
    }

    /// Returns the listing.
    pub(super) fn text(&self) -> &str {
        &self.0
    }

    /// Returns each line with the name of its table.
    fn lines(&self) -> impl Iterator<Item = (&str, &str)> {
        let mut table = "";
        self.0.lines().filter_map(move |line| match line.strip_prefix('*') {
            Some(name) => {
                table = name;
                None
            }
            None => Some((table, line)),
        })
    }

    /// Returns all chains, each with its table and its policy.
    fn chains(&self) -> impl Iterator<Item = (&str, &str, &str)> {
        self.lines().filter_map(|(table, line)| {
            let mut words = line.strip_prefix(':')?.split(' ');
            Some((table, words.next()?, words.next().unwrap_or_default()))
        })
    }

    /// Returns our chains, each with its table. iptables-save lists the tables in the order of
    /// their creation, which varies.
    pub(super) fn own_chains(&self) -> BTreeSet<(&str, &str)> {
        let chains = self.chains().map(|(table, chain, _)| (table, chain));
        chains.filter(|(_, chain)| iptables::CHAINS.contains(chain)).collect()
    }

    /// Returns whether iptables drops forwarded packets unless a rule accepts them.
    pub(super) fn drops_forwarded(&self) -> bool {
        self.chains().any(|(table, chain, policy)| {
            table == "filter" && matches!((chain, policy), ("FORWARD", "DROP") | ("DOCKER-USER", _))
        })
    }

    fn count(&self, jump: &Jump) -> usize {
        let rule = format!("-A {} -j {}", jump.from, jump.to);
        self.lines().filter(|line| *line == (jump.table, &rule)).count()
    }

    /// Returns whether a jump must be added. Without Docker there is no chain `DOCKER-USER`.
    fn lacks(&self, jump: &Jump) -> bool {
        let mut chains = self.chains();
        let has_chain = jump.from != iptables::DOCKER_USER
            || chains.any(|(table, chain, _)| (table, chain) == (jump.table, jump.from));
        has_chain && self.count(jump) == 0
    }
}

/// Makes our chains and the jumps to them, all at once for each table.
pub(super) fn make(
    tools: &dyn Tools,
    rules: &Ruleset,
    family: Family,
    scope: Scope,
) -> Result<(), FirewallError> {
    let saved = SavedRules::read(tools, family)?;
    let missing: Vec<_> = iptables::JUMPS.iter().filter(|jump| saved.lacks(jump)).collect();
    let script = iptables::script(rules, family, scope, &missing);
    restore(tools, family, &script)
}

/// Makes the sets of agents.
pub(super) fn make_sets(
    tools: &dyn Tools,
    rules: &Ruleset,
    family: Family,
) -> Result<(), FirewallError> {
    tools.run("ipset", &["restore"], &iptables::sets(rules, family)).map(drop)
}

/// Removes the jumps to our chains and the chains, all at once for each table.
pub(super) fn remove(tools: &dyn Tools, family: Family) -> Result<(), FirewallError> {
    let saved = SavedRules::read(tools, family)?;
    let chains = saved.own_chains();
    let tables: BTreeSet<&str> = chains.iter().map(|(table, _)| *table).collect();
    let mut script = String::new();
    for table in tables {
        let _ = writeln!(script, "*{table}");
        for jump in iptables::JUMPS.iter().filter(|jump| jump.table == table) {
            for _ in 0..saved.count(jump) {
                let _ = writeln!(script, "-D {} -j {}", jump.from, jump.to);
            }
        }
        for command in ["-F", "-X"] {
            for (_, chain) in chains.iter().filter(|(other, _)| *other == table) {
                let _ = writeln!(script, "{command} {chain}");
            }
        }
        script.push_str("COMMIT\n");
    }
    if script.is_empty() { Ok(()) } else { restore(tools, family, &script) }
}

fn restore(tools: &dyn Tools, family: Family, script: &str) -> Result<(), FirewallError> {
    let restore = Programs::of(family).restore;
    tools.run(restore, &["--noflush", "-w", LOCK_SECONDS], script).map(drop)
}

/// Describes our chains for an operator.
pub(super) fn describe(tools: &dyn Tools, family: Family) -> Result<Vec<String>, FirewallError> {
    let program = Programs::of(family).change;
    let saved = SavedRules::read(tools, family)?;
    let chains = saved.own_chains().into_iter();
    Ok(chains.map(|(table, chain)| format!("{program} chain {chain} of {table}")).collect())
}

/// Lists our ipsets, including a temporary set that a crash left behind. Without ipset there are
/// none.
///
/// # Errors
/// When ipset fails: then the sets are unknown.
pub(super) fn own_sets(tools: &dyn Tools) -> Result<Vec<String>, FirewallError> {
    if !tools.has("ipset") {
        return Ok(Vec::new());
    }
    let listed = match tools.run("ipset", &["list", "-n"], "") {
        Ok(listed) => listed,
        Err(error) if error.is_unsupported() => String::new(),
        Err(error) => return Err(error),
    };
    Ok(listed.lines().filter(|name| iptables::is_own_set(name)).map(str::to_owned).collect())
}

/// Lists the elements of the sets of agents.
pub(super) fn list_sets(tools: &dyn Tools) -> Result<String, FirewallError> {
    let found = own_sets(tools)?;
    let mut listed = String::new();
    for set in [Family::V4, Family::V6].map(iptables::agents_set) {
        if found.iter().any(|found| found == set) {
            listed.push_str(&tools.run("ipset", &["save", set], "")?);
        }
    }
    Ok(listed)
}

/// Removes our ipsets.
pub(super) fn remove_sets(tools: &dyn Tools) -> Result<(), FirewallError> {
    for set in own_sets(tools)? {
        tools.run("ipset", &["destroy", &set], "")?;
    }
    Ok(())
}
