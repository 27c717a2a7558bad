//! The firewall's part of the overlays: masquerade for what leaves them, VXLAN packets from known
//! agents only, forwarding where others drop it, isolation. What it is to do is [`Ruleset`], which
//! is pure. It owns one table of nftables, or chains of its own in iptables, and removes no others.
//!
//! Whether the rules are right is found out by comparing the listing with that of the moment when
//! they were made: no reading of a format that changes with every version, and a rule that somebody
//! added or took away shows. So the first verification after a start makes them anew, at once and
//! without a gap. All calls block while a program runs, in the network namespace of the caller.

mod command;
mod iptables;
mod listing;
mod monitor;
mod nftables;
mod ruleset;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

pub use self::command::FirewallError;
use self::command::{has, run};
pub use self::iptables::FORWARD as IPTABLES_CHAIN;
use self::iptables::Scope;
use self::listing::Listing;
pub use self::monitor::Monitor;
pub use self::nftables::TABLE as NFTABLES_TABLE;
use self::ruleset::AgentNews;
pub use self::ruleset::{Options, Ruleset};
use crate::addr::Family;

/// What makes the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// A table of nftables, and chains of iptables where those drop what is forwarded.
    Nftables,
    /// Chains of iptables and sets of ipset.
    Iptables,
    /// Nobody: the operator has rules of their own.
    None,
}

/// What came of a verification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All was right.
    Unchanged,
    /// Other rules were wanted, or this is the first time.
    Made,
    /// Somebody had changed them.
    Repaired,
}

/// The rules of this host.
#[derive(Debug)]
pub struct Firewall {
    backend: Backend,
    /// What was made last, and how all but the agents was listed then.
    made: Option<(Ruleset, String)>,
}

impl Backend {
    /// The best that this host has.
    ///
    /// # Errors
    /// When there is none: then rules are wanted that nobody can make.
    pub fn detect() -> Result<Self, FirewallError> {
        // The kernel is asked for what we need, as if it were to be made: one before 5.2 has
        // nftables, but no masquerade for both families in one table.
        match run("nft", &["--check", "-f", "-"], nftables::PROBE) {
            Ok(_) => Ok(Self::Nftables),
            Err(_) if has("iptables-restore") && has("ipset") => Ok(Self::Iptables),
            Err(FirewallError::Refused { said, .. }) => Err(FirewallError::NoNftables { said }),
            Err(error) => Err(error),
        }
    }
}

impl Firewall {
    /// The firewall, as somebody may have left it.
    #[must_use]
    pub const fn new(backend: Backend) -> Self {
        Self { backend, made: None }
    }

    /// Makes the rules if they are not right.
    ///
    /// # Errors
    /// When a program refuses; then it is tried again with the next call.
    pub fn verify(&mut self, rules: &Ruleset) -> Result<Outcome, FirewallError> {
        if self.backend == Backend::None {
            if self.made.is_none() {
                if let Err(error) = self.clean() {
                    log::warn!("rules that an agent made before may be left: {error}");
                }
                self.made = Some((rules.clone(), String::new()));
            }
            return Ok(Outcome::Unchanged);
        }
        let rules = &*self.with_known_agents(rules)?;
        let outcome = match &self.made {
            Some((made, rest)) if made == rules => {
                let listing = self.listing()?;
                if listing.rest == *rest && listing.agents == rules.listed_agents() {
                    return Ok(Outcome::Unchanged);
                }
                Outcome::Repaired
            }
            _ => Outcome::Made,
        };
        if self.made.take().is_none() {
            self.remove_of_others()?;
        }
        if rules.is_empty() {
            self.clean()?;
        } else {
            self.make(rules)?;
        }
        self.made = Some((rules.clone(), self.listing()?.rest));
        Ok(outcome)
    }

    /// The rules with those agents whom the ones before let in, if others are not known yet: an
    /// agent that is started anew lets no strangers in until it is told of its peers.
    fn with_known_agents<'a>(&self, rules: &'a Ruleset) -> Result<Cow<'a, Ruleset>, FirewallError> {
        if !rules.keeps_agents {
            return Ok(Cow::Borrowed(rules));
        }
        let agents = match &self.made {
            Some((made, _)) => made.agents.clone(),
            // An empty set is that of a cluster of one, or of no rule.
            None => Some(self.listing()?.agents).filter(|agents| !agents.is_empty()),
        };
        Ok(Cow::Owned(Ruleset { agents, keeps_agents: false, ..rules.clone() }))
    }

    /// Makes what is wanted otherwise than before, without a look at what there is. If that is only
    /// other agents, the cost is that of those that come and go.
    ///
    /// # Errors
    /// As [`Self::verify`], which is called where that does not suffice.
    pub fn update(&mut self, rules: &Ruleset) -> Result<Outcome, FirewallError> {
        if let Some((made, rest)) = &self.made
            && let Some(news) = rules.agents_since(made)
        {
            if news.is_empty() {
                return Ok(Outcome::Unchanged);
            }
            let (done, rest) = (self.change_agents(&news), rest.clone());
            if done.is_ok() {
                self.made = Some((rules.clone(), rest));
                return Ok(Outcome::Made);
            }
            // Somebody has changed the set: all of it is made anew.
            self.made = None;
        }
        self.verify(rules)
    }

    fn change_agents(&self, news: &AgentNews) -> Result<(), FirewallError> {
        match self.backend {
            Backend::Nftables => run("nft", &["-f", "-"], &nftables::agents(news)).map(drop),
            Backend::Iptables => run("ipset", &["restore"], &iptables::agents(news)).map(drop),
            Backend::None => Ok(()),
        }
    }

    fn make(&self, rules: &Ruleset) -> Result<(), FirewallError> {
        if self.backend == Backend::Nftables {
            run("nft", &["-f", "-"], &nftables::script(rules))?;
        }
        for family in [Family::V4, Family::V6] {
            match self.backend {
                Backend::Iptables => {
                    run("ipset", &["restore"], &iptables::sets(rules, family))?;
                    chains(rules, family, Scope::Everything)?;
                }
                Backend::Nftables if drops_forwarded(family) => {
                    chains(rules, family, Scope::Forward)?;
                }
                Backend::Nftables | Backend::None => {}
            }
        }
        Ok(())
    }

    /// All rules of ours as they are now.
    fn listing(&self) -> Result<Listing, FirewallError> {
        let mut listing = Listing::default();
        if self.backend == Backend::Nftables {
            let mut arguments = vec!["-s", "list", "table"];
            arguments.extend(nftables::TABLE.split(' '));
            // Without the table the answer is an error, and the listing empty.
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

    /// Removes every rule of ours, of either backend, whoever made it.
    ///
    /// # Errors
    /// When a program refuses.
    pub fn clean(&mut self) -> Result<(), FirewallError> {
        self.made = None;
        remove_table()?;
        for family in [Family::V4, Family::V6] {
            remove_chains(family)?;
        }
        remove_sets()
    }

    /// Removes what the other backend made before this one was chosen. Nobody would keep it up to
    /// date: it would drop the packets of agents that came since.
    fn remove_of_others(&self) -> Result<(), FirewallError> {
        if self.backend == Backend::Iptables {
            return remove_table();
        }
        for family in [Family::V4, Family::V6] {
            // The others are made beside a table as well.
            if own_chains(family)?.iter().any(|(_, chain)| chain == iptables::INPUT) {
                remove_chains(family)?;
            }
        }
        remove_sets()
    }

    /// What [`Self::clean`] would remove, in words.
    ///
    /// # Errors
    /// When it cannot be listed.
    pub fn found() -> Result<Vec<String>, FirewallError> {
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

/// Whether our table is there.
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

/// Our sets, also what a crash left of one that was being filled.
fn own_sets() -> Vec<String> {
    // Where the kernel has none, the answer is an error.
    let listed = if has("ipset") {
        run("ipset", &["list", "-n"], "").unwrap_or_default()
    } else {
        String::new()
    };
    let is_ours = |name: &&str| {
        [Family::V4, Family::V6].map(iptables::agents_set).iter().any(|set| {
            name.strip_prefix(set).is_some_and(|rest| rest.is_empty() || rest == iptables::ASIDE)
        })
    };
    listed.lines().filter(is_ours).map(str::to_owned).collect()
}

/// The programs of a family.
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

/// Seconds to wait for somebody else who is at work on the same tables.
const LOCK_SECONDS: &str = "5";

/// A chain that leads to one of ours.
struct Jump {
    table: &'static str,
    from: &'static str,
    /// `-I` for its beginning, `-A` for its end.
    place: &'static str,
    to: &'static str,
}

const fn jump(
    table: &'static str,
    from: &'static str,
    place: &'static str,
    to: &'static str,
) -> Jump {
    Jump { table, from, place, to }
}

/// Docker puts its own chains before the first, except for what is in `DOCKER-USER`.
const FORWARD_JUMPS: [Jump; 3] = [
    jump("filter", "FORWARD", "-I", iptables::FORWARD),
    jump("filter", "DOCKER-USER", "-I", iptables::FORWARD),
    jump("filter", "FORWARD", "-A", iptables::OUTSIDE),
];
const OTHER_JUMPS: [Jump; 2] = [
    jump("filter", "INPUT", "-I", iptables::INPUT),
    jump("nat", "POSTROUTING", "-I", iptables::LEAVING),
];

/// Whether iptables drops what is forwarded unless somebody accepts it.
fn drops_forwarded(family: Family) -> bool {
    let programs = Programs::of(family);
    has(programs.change)
        && run(programs.change, &["-w", LOCK_SECONDS, "-S"], "").is_ok_and(|rules| {
            let is_strict = |line: &str| line == "-P FORWARD DROP" || line == "-N DOCKER-USER";
            rules.lines().any(is_strict)
        })
}

fn chains(rules: &Ruleset, family: Family, scope: Scope) -> Result<(), FirewallError> {
    let programs = Programs::of(family);
    let script = iptables::script(rules, family, scope);
    run(programs.restore, &["--noflush", "-w", LOCK_SECONDS], &script)?;
    let others = OTHER_JUMPS.iter().filter(|_| scope == Scope::Everything);
    for jump in FORWARD_JUMPS.iter().chain(others) {
        let Jump { table, from, place, to } = jump;
        let change = |how: &str| {
            run(programs.change, &["-w", LOCK_SECONDS, "-t", table, how, from, "-j", to], "")
        };
        if change("-C").is_err() {
            let added = change(place);
            if *from != "DOCKER-USER" {
                added?;
            }
        }
    }
    Ok(())
}

/// Our chains, each with its table.
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
    // Tables are listed in the order in which somebody made them.
    chains.sort();
    Ok(chains)
}

fn remove_chains(family: Family) -> Result<(), FirewallError> {
    let programs = Programs::of(family);
    let chains = own_chains(family)?;
    let is_left = |jump: &&Jump| {
        chains
            .iter()
            .any(|(table, chain)| (table.as_str(), chain.as_str()) == (jump.table, jump.to))
    };
    for jump in FORWARD_JUMPS.iter().chain(&OTHER_JUMPS).filter(is_left) {
        let Jump { table, from, to, .. } = jump;
        let delete = ["-w", LOCK_SECONDS, "-t", table, "-D", from, "-j", to];
        while run(programs.change, &delete, "").is_ok() {}
    }
    for how in ["-F", "-X"] {
        for (table, chain) in &chains {
            run(programs.change, &["-w", LOCK_SECONDS, "-t", table, how, chain], "")?;
        }
    }
    Ok(())
}
