//! Reads, replaces and removes the managed iptables chains and ipsets of this host.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use overlay_types::addr::Family;

use super::command::{FirewallError, Tools};
use super::elements::ListedElements;
use super::ipsets;
use super::iptables::{self, Chain, JUMPS, Jump, Table};
use super::saved::Section;

/// Seconds that iptables waits for its lock, which another program may hold.
pub(super) const LOCK_SECONDS: &str = "5";

/// The iptables programs of a family.
pub(super) struct Programs {
    /// The program that an operator uses for a single rule.
    pub(super) change: &'static str,
    save: &'static str,
    pub(super) restore: &'static str,
}

impl Programs {
    pub(super) const fn of(family: Family) -> Self {
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

/// Returns the input of `iptables-restore --noflush` that makes the chains on a host without them.
pub(super) fn section(family: Family, tables: &[Table]) -> Section {
    let input = SavedRules::default().replacement(tables);
    Section { program: Programs::of(family).restore, input }
}

/// The rules of all tables of one family, as `iptables-save` lists them.
#[derive(Debug, Default)]
pub(super) struct SavedRules(String);

/// Returns whether the rules of iptables, of both families, certainly have a generation.
pub(super) fn have_generation(tools: &dyn Tools) -> bool {
    [Family::V4, Family::V6].iter().all(|family| tools.has_generation(Programs::of(*family).save))
}

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

    #[cfg(test)]
    pub(super) fn parse(text: &str) -> Self {
        Self(text.to_owned())
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
        chains.filter(|(_, chain)| iptables::is_own_chain(chain)).collect()
    }

    /// Returns whether iptables drops forwarded packets unless a rule accepts them.
    pub(super) fn drops_forwarded(&self) -> bool {
        self.chains().any(|(table, chain, policy)| {
            table == "filter" && matches!((chain, policy), ("FORWARD", "DROP") | ("DOCKER-USER", _))
        })
    }

    /// Returns the bridges that Docker protects.
    pub(super) fn docker_bridges(&self) -> BTreeSet<&str> {
        let rules = self.lines().filter(|(table, _)| *table == "filter");
        rules.filter_map(|(_, line)| iptables::docker_bridge(line)).collect()
    }

    fn count(&self, jump: &Jump) -> usize {
        let rule = jump.rule();
        self.lines().filter(|line| *line == (jump.table, &rule)).count()
    }

    /// Returns whether the jump exists once, and in its place.
    fn is_in_place(&self, jump: &Jump) -> bool {
        let beginning = format!("-A {} ", jump.from);
        let is_of_chain =
            |line: &(&str, &str)| line.0 == jump.table && line.1.starts_with(&beginning);
        let is_first = || self.lines().find(is_of_chain).is_some_and(|line| line.1 == jump.rule());
        !jump.is_first() || (self.count(jump) == 1 && is_first())
    }

    /// Returns our jumps that another program's rules precede.
    pub(super) fn misplaced_jumps(&self) -> impl Iterator<Item = &'static Jump> {
        JUMPS.iter().filter(|jump| self.count(jump) > 0 && !self.is_in_place(jump))
    }

    fn has_chain(&self, table: &str, chain: &str) -> bool {
        self.chains().any(|(other, name, _)| (other, name) == (table, chain))
    }

    /// Returns the input of `iptables-restore --noflush` that replaces all our chains of all
    /// tables, and their jumps. It replaces each table atomically.
    pub(super) fn replacement(&self, tables: &[Table]) -> String {
        tables.iter().map(|table| self.replacement_of(table)).collect()
    }

    fn replacement_of(&self, table: &Table) -> String {
        let own = self.own_chains().into_iter().filter(|(name, _)| *name == table.name);
        let outdated: Vec<_> =
            own.map(|(_, chain)| chain).filter(|chain| !table.has(chain)).collect();
        let mut text = String::new();
        // The declaration of an existing chain removes its rules.
        for chain in table.chains.iter().map(|chain| chain.name.as_str()) {
            let _ = writeln!(text, ":{chain} - [0:0]");
        }
        for chain in &outdated {
            let _ = writeln!(text, "-F {chain}");
        }
        for Chain { name, rules } in &table.chains {
            for rule in rules {
                let _ = writeln!(text, "-A {name} {rule}");
            }
        }
        for jump in JUMPS.iter().filter(|jump| jump.table == table.name) {
            self.add_jump(&mut text, jump, table.has(jump.to));
        }
        for chain in outdated {
            let _ = writeln!(text, "-X {chain}");
        }
        if text.is_empty() { text } else { format!("*{}\n{text}COMMIT\n", table.name) }
    }

    /// Writes the commands that add a missing jump, move a jump to its place, or remove all jumps to
    /// a chain that is removed. Without Docker there is no chain `DOCKER-USER`, and so no jump from
    /// it.
    fn add_jump(&self, text: &mut String, jump: &Jump, is_needed: bool) {
        let Jump { table, from, position, to } = jump;
        let mut count = self.count(jump);
        if !is_needed || !self.is_in_place(jump) {
            for _ in 0..count {
                let _ = writeln!(text, "-D {from} -j {to}");
            }
            count = 0;
        }
        if is_needed
            && count == 0
            && (*from != iptables::DOCKER_USER || self.has_chain(table, from))
        {
            let _ = writeln!(text, "{position} {from} -j {to}");
        }
    }
}

/// Replaces the managed chains and the jumps to them, atomically for each table.
pub(super) fn replace(
    tools: &dyn Tools,
    family: Family,
    saved: &SavedRules,
    tables: &[Table],
) -> Result<(), FirewallError> {
    let script = saved.replacement(tables);
    if script.is_empty() {
        return Ok(());
    }
    let restore = Programs::of(family).restore;
    tools.run(restore, &["--noflush", "-w", LOCK_SECONDS], &script).map(drop)
}

/// Removes the jumps to our chains and the chains.
pub(super) fn remove(tools: &dyn Tools, family: Family) -> Result<(), FirewallError> {
    replace(tools, family, &SavedRules::read(tools, family)?, &iptables::no_tables())
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
    Ok(listed.lines().filter(|name| ipsets::is_own(name)).map(str::to_owned).collect())
}

/// Makes all sets.
pub(super) fn make_sets(tools: &dyn Tools, elements: &ListedElements) -> Result<(), FirewallError> {
    tools.run("ipset", &["restore"], &ipsets::script(elements)).map(drop)
}

/// Lists our sets with their elements.
pub(super) fn list_sets(tools: &dyn Tools) -> Result<String, FirewallError> {
    let found = own_sets(tools)?;
    let mut listed = String::new();
    for (set, ..) in ipsets::SETS {
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
