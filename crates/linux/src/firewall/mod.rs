//! Programs the firewall: masquerade for packets that leave the overlays, VXLAN packets from known
//! agents only, forwarding where another program drops it, and isolation. [`Ruleset`] is the
//! desired state and is pure. The managed rules are one nftables table, or managed iptables chains.
//! Foreign rules are not removed.
//!
//! A verification compares the current listing of the rules with the listing right after the rules
//! were made. So this module need not parse a format that changes between versions, and it detects
//! every added or removed rule. The first verification after a start therefore makes all rules
//! again, atomically. All calls block while a program runs, and act on the caller's network
//! namespace.

mod command;
mod iptables;
mod listing;
mod monitor;
mod nftables;
mod ruleset;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

use overlay_types::addr::Family;

pub use self::command::FirewallError;
use self::command::{has, run};
pub use self::iptables::FORWARD as IPTABLES_CHAIN;
use self::iptables::Scope;
use self::listing::Listing;
pub use self::monitor::Monitor;
pub use self::nftables::TABLE as NFTABLES_TABLE;
use self::ruleset::AgentChanges;
pub use self::ruleset::{Options, Ruleset};

/// The firewall that holds the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// An nftables table, and iptables chains if iptables drops forwarded packets.
    Nftables,
    /// iptables chains and ipsets.
    Iptables,
    /// No rules: the operator maintains them.
    None,
}

/// Result of a verification or an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The rules matched the desired rules.
    Unchanged,
    /// The desired rules changed, or this is the first verification.
    Made,
    /// Another program had changed the rules.
    Repaired,
}

/// The rules that were made last, and their listing.
#[derive(Debug)]
struct AppliedRules {
    rules: Ruleset,
    /// The listing without the agents.
    rest: String,
}

/// The rules of this host.
#[derive(Debug)]
pub struct Firewall {
    backend: Backend,
    /// The rules that were made last. `None` if the rules on the host are unknown.
    applied: Option<AppliedRules>,
}

impl Backend {
    /// Finds the best backend of this host.
    ///
    /// # Errors
    /// When the host has none.
    pub fn detect() -> Result<Self, FirewallError> {
        // A dry run checks all features: kernels before 5.2 have nftables, but no masquerade for
        // both families in one table.
        match run("nft", &["--check", "-f", "-"], nftables::PROBE) {
            Ok(_) => Ok(Self::Nftables),
            Err(_) if has("iptables-restore") && has("ipset") => Ok(Self::Iptables),
            Err(FirewallError::Refused { message, .. }) => {
                Err(FirewallError::NoNftables { message })
            }
            Err(error) => Err(error),
        }
    }
}

impl Firewall {
    /// Creates a firewall. The rules on the host are unknown at first.
    #[must_use]
    pub const fn new(backend: Backend) -> Self {
        Self { backend, applied: None }
    }

    /// Compares the rules with the desired rules, and makes them again if they differ.
    ///
    /// # Errors
    /// When a program fails. The next call tries again.
    pub fn verify(&mut self, rules: &Ruleset) -> Result<Outcome, FirewallError> {
        if self.backend == Backend::None {
            if self.applied.is_none() {
                if let Err(error) = self.clean() {
                    log::warn!("rules of an earlier agent may remain: {error}");
                }
                self.applied = Some(AppliedRules { rules: rules.clone(), rest: String::new() });
            }
            return Ok(Outcome::Unchanged);
        }
        let rules = &*self.with_kept_agents(rules)?;
        let outcome = match &self.applied {
            Some(applied) if applied.rules == *rules => {
                let listing = self.listing()?;
                if listing.rest == applied.rest && listing.agents == rules.listed_agents() {
                    return Ok(Outcome::Unchanged);
                }
                Outcome::Repaired
            }
            _ => Outcome::Made,
        };
        if self.applied.take().is_none() {
            self.remove_other_backend()?;
        }
        if rules.is_empty() {
            self.clean()?;
        } else {
            self.make(rules)?;
        }
        self.applied = Some(AppliedRules { rules: rules.clone(), rest: self.listing()?.rest });
        Ok(outcome)
    }

    /// Adds the agents of the existing rules if the list of peers is still unknown. So a restarted
    /// agent accepts no unknown senders before it receives the list.
    fn with_kept_agents<'a>(&self, rules: &'a Ruleset) -> Result<Cow<'a, Ruleset>, FirewallError> {
        if !rules.keeps_agents {
            return Ok(Cow::Borrowed(rules));
        }
        let agents = match &self.applied {
            Some(applied) => applied.rules.agents.clone(),
            // An empty set belongs to a cluster of one agent, or to no rule.
            None => Some(self.listing()?.agents).filter(|agents| !agents.is_empty()),
        };
        Ok(Cow::Owned(Ruleset { agents, keeps_agents: false, ..rules.clone() }))
    }

    /// Applies new desired rules without a check of the existing rules. If only agents changed, the
    /// cost depends on the number of changed agents. Falls back to [`Self::verify`].
    ///
    /// # Errors
    /// See [`Self::verify`].
    pub fn update(&mut self, rules: &Ruleset) -> Result<Outcome, FirewallError> {
        if let Some(applied) = &self.applied
            && let Some(changes) = rules.agent_changes_since(&applied.rules)
        {
            if changes.is_empty() {
                return Ok(Outcome::Unchanged);
            }
            let (changed, rest) = (self.change_agents(&changes), applied.rest.clone());
            if changed.is_ok() {
                self.applied = Some(AppliedRules { rules: rules.clone(), rest });
                return Ok(Outcome::Made);
            }
            // Another program has changed the set, so all rules are made again.
            self.applied = None;
        }
        self.verify(rules)
    }

    fn change_agents(&self, changes: &AgentChanges) -> Result<(), FirewallError> {
        match self.backend {
            Backend::Nftables => run("nft", &["-f", "-"], &nftables::agents(changes)).map(drop),
            Backend::Iptables => run("ipset", &["restore"], &iptables::agents(changes)).map(drop),
            Backend::None => Ok(()),
        }
    }

    /// Makes all rules.
    fn make(&self, rules: &Ruleset) -> Result<(), FirewallError> {
        if self.backend == Backend::Nftables {
            run("nft", &["-f", "-"], &nftables::script(rules))?;
        }
        for family in [Family::V4, Family::V6] {
            match self.backend {
                Backend::Iptables => {
                    run("ipset", &["restore"], &iptables::sets(rules, family))?;
                    make_chains(rules, family, Scope::Everything)?;
                }
                Backend::Nftables if drops_forwarded(family) => {
                    make_chains(rules, family, Scope::Forward)?;
                }
                Backend::Nftables | Backend::None => {}
            }
        }
        Ok(())
    }

    /// Lists the managed rules.
    fn listing(&self) -> Result<Listing, FirewallError> {
        let mut listing = Listing::default();
        if self.backend == Backend::Nftables {
            let mut arguments = vec!["-s", "list", "table"];
            arguments.extend(nftables::TABLE.split(' '));
            // Without the table nft fails, and the listing is empty.
            listing.add_table(&run("nft", &arguments, "").unwrap_or_default());
        }
        for family in [Family::V4, Family::V6] {
            let programs = Programs::of(family);
            if !has(programs.save) {
                continue;
            }
            listing.add_chains(&run(programs.save, &[], "")?);
            if self.backend == Backend::Iptables {
                let save = ["save", iptables::agents_set(family)];
                listing.add_set(&run("ipset", &save, "").unwrap_or_default());
            }
        }
        Ok(listing)
    }

    /// Removes all managed rules of both backends.
    ///
    /// # Errors
    /// When a program fails.
    pub fn clean(&mut self) -> Result<(), FirewallError> {
        self.applied = None;
        remove_table()?;
        for family in [Family::V4, Family::V6] {
            remove_chains(family)?;
        }
        remove_sets()
    }

    /// Removes the rules of the other backend, which the operator chose before. They are no longer
    /// updated, so they drop the packets of new agents.
    fn remove_other_backend(&self) -> Result<(), FirewallError> {
        if self.backend == Backend::Iptables {
            return remove_table();
        }
        for family in [Family::V4, Family::V6] {
            // The nftables backend uses the other chains as well.
            if own_chains(family)?.iter().any(|(_, chain)| chain == iptables::INPUT) {
                remove_chains(family)?;
            }
        }
        remove_sets()
    }

    /// Describes the rules that [`Self::clean`] removes.
    ///
    /// # Errors
    /// When a program fails.
    pub fn list_owned() -> Result<Vec<String>, FirewallError> {
        let mut found = Vec::new();
        if has_table() {
            found.push(format!("nftables table {}", nftables::TABLE));
        }
        for family in [Family::V4, Family::V6] {
            let program = Programs::of(family).change;
            let chains = own_chains(family)?.into_iter();
            found
                .extend(chains.map(|(table, chain)| format!("{program} chain {chain} of {table}")));
        }
        found.extend(own_sets().into_iter().map(|set| format!("ipset {set}")));
        Ok(found)
    }
}

/// Returns whether our table exists.
fn has_table() -> bool {
    let mut arguments = vec!["list", "table"];
    arguments.extend(nftables::TABLE.split(' '));
    has("nft") && run("nft", &arguments, "").is_ok()
}

fn remove_table() -> Result<(), FirewallError> {
    if has_table() {
        run("nft", &["-f", "-"], &nftables::remove())?;
    }
    Ok(())
}

fn remove_sets() -> Result<(), FirewallError> {
    for set in own_sets() {
        run("ipset", &["destroy", &set], "")?;
    }
    Ok(())
}

/// Lists our ipsets, including a temporary set that a crash left behind.
fn own_sets() -> Vec<String> {
    // ipset fails if the kernel does not support it.
    let listed = if has("ipset") {
        run("ipset", &["list", "-n"], "").unwrap_or_default()
    } else {
        String::new()
    };
    let is_ours = |name: &&str| {
        [Family::V4, Family::V6].map(iptables::agents_set).iter().any(|set| {
            let suffix = name.strip_prefix(set);
            suffix.is_some_and(|suffix| suffix.is_empty() || suffix == iptables::TEMPORARY_SUFFIX)
        })
    };
    listed.lines().filter(is_ours).map(str::to_owned).collect()
}

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

/// Seconds that iptables waits for its lock, which another program may hold.
const LOCK_SECONDS: &str = "5";

/// A rule that jumps from a foreign chain to a managed chain.
struct Jump {
    table: &'static str,
    from: &'static str,
    /// `-I` for the beginning of the chain, `-A` for its end.
    position: &'static str,
    to: &'static str,
}

const fn jump(
    table: &'static str,
    from: &'static str,
    position: &'static str,
    to: &'static str,
) -> Jump {
    Jump { table, from, position, to }
}

/// Docker inserts its chains before the first jump, so `DOCKER-USER` gets a jump as well: Docker
/// evaluates it before its other chains.
const FORWARD_JUMPS: [Jump; 3] = [
    jump("filter", "FORWARD", "-I", iptables::FORWARD),
    jump("filter", "DOCKER-USER", "-I", iptables::FORWARD),
    jump("filter", "FORWARD", "-A", iptables::EXTERNAL),
];
const OTHER_JUMPS: [Jump; 2] = [
    jump("filter", "INPUT", "-I", iptables::INPUT),
    jump("nat", "POSTROUTING", "-I", iptables::MASQUERADE),
];

/// Returns whether iptables drops forwarded packets unless a rule accepts them.
fn drops_forwarded(family: Family) -> bool {
    let programs = Programs::of(family);
    has(programs.change)
        && run(programs.change, &["-w", LOCK_SECONDS, "-S"], "").is_ok_and(|rules| {
            let is_strict = |line: &str| line == "-P FORWARD DROP" || line == "-N DOCKER-USER";
            rules.lines().any(is_strict)
        })
}

/// Makes our chains and the jumps to them.
fn make_chains(rules: &Ruleset, family: Family, scope: Scope) -> Result<(), FirewallError> {
    let programs = Programs::of(family);
    let script = iptables::script(rules, family, scope);
    run(programs.restore, &["--noflush", "-w", LOCK_SECONDS], &script)?;
    let other_jumps = OTHER_JUMPS.iter().filter(|_| scope == Scope::Everything);
    for jump in FORWARD_JUMPS.iter().chain(other_jumps) {
        let Jump { table, from, position, to } = jump;
        let run_command = |command: &str| {
            run(programs.change, &["-w", LOCK_SECONDS, "-t", table, command, from, "-j", to], "")
        };
        if run_command("-C").is_err() {
            let added = run_command(position);
            // Without Docker there is no such chain.
            if *from != "DOCKER-USER" {
                added?;
            }
        }
    }
    Ok(())
}

/// Lists our chains, each with its table.
fn own_chains(family: Family) -> Result<Vec<(String, String)>, FirewallError> {
    let programs = Programs::of(family);
    let mut chains = Vec::new();
    if !has(programs.save) {
        return Ok(chains);
    }
    let saved = run(programs.save, &[], "")?;
    let mut table = "";
    for line in saved.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = name;
        } else if let Some(chain) = line.strip_prefix(':').and_then(|line| line.split(' ').next())
            && iptables::CHAINS.contains(&chain)
        {
            chains.push((table.to_owned(), chain.to_owned()));
        }
    }
    // iptables-save lists the tables in the order of their creation, which varies.
    chains.sort();
    Ok(chains)
}

/// Removes the jumps to our chains, and then the chains.
fn remove_chains(family: Family) -> Result<(), FirewallError> {
    let programs = Programs::of(family);
    let chains = own_chains(family)?;
    let has_chain = |jump: &&Jump| {
        chains
            .iter()
            .any(|(table, chain)| (table.as_str(), chain.as_str()) == (jump.table, jump.to))
    };
    for jump in FORWARD_JUMPS.iter().chain(&OTHER_JUMPS).filter(has_chain) {
        let Jump { table, from, to, .. } = jump;
        let delete = ["-w", LOCK_SECONDS, "-t", table, "-D", from, "-j", to];
        while run(programs.change, &delete, "").is_ok() {}
    }
    for command in ["-F", "-X"] {
        for (table, chain) in &chains {
            run(programs.change, &["-w", LOCK_SECONDS, "-t", table, command, chain], "")?;
        }
    }
    Ok(())
}
