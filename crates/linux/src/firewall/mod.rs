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

mod chains;
mod command;
#[cfg(test)]
mod failure_tests;
mod iptables;
mod listing;
mod monitor;
mod nftables;
mod ruleset;
mod table;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

use overlay_types::addr::Family;

use self::chains::SavedRules;
pub use self::command::FirewallError;
use self::command::{SystemTools, Tools};
pub use self::iptables::FORWARD as IPTABLES_CHAIN;
use self::iptables::Scope;
use self::listing::Listing;
pub use self::monitor::Monitor;
pub use self::nftables::TABLE as NFTABLES_TABLE;
use self::ruleset::AgentChanges;
pub use self::ruleset::{Ingress, Options, Ruleset};

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
    tools: Box<dyn Tools>,
}

impl Backend {
    /// Finds the best backend of this host.
    ///
    /// # Errors
    /// When the host has none, or when a program fails for another reason than a kernel without
    /// nftables: then the rules of this host may be in nftables, and iptables would not see them.
    pub fn detect() -> Result<Self, FirewallError> {
        Self::detect_with(&SystemTools)
    }

    fn detect_with(tools: &dyn Tools) -> Result<Self, FirewallError> {
        let has_iptables = tools.has("iptables-restore") && tools.has("ipset");
        // A dry run checks all features: kernels before 5.2 have nftables, but no masquerade for
        // both families in one table.
        match tools.run("nft", &["--check", "-f", "-"], nftables::PROBE) {
            Ok(_) => Ok(Self::Nftables),
            Err(FirewallError::ProgramNotFound(_)) if has_iptables => Ok(Self::Iptables),
            Err(error) if error.lacks_feature() && has_iptables => Ok(Self::Iptables),
            Err(FirewallError::Refused { message, .. }) if !has_iptables => {
                Err(FirewallError::NoNftables { message })
            }
            Err(error) => Err(error),
        }
    }
}

impl Firewall {
    /// Creates a firewall. The rules on the host are unknown at first.
    #[must_use]
    pub fn new(backend: Backend) -> Self {
        Self { backend, applied: None, tools: Box::new(SystemTools) }
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
        let tools = &*self.tools;
        match self.backend {
            Backend::Nftables => tools.run("nft", &["-f", "-"], &nftables::agents(changes)),
            Backend::Iptables => tools.run("ipset", &["restore"], &iptables::agents(changes)),
            Backend::None => return Ok(()),
        }
        .map(drop)
    }

    /// Makes all rules.
    fn make(&self, rules: &Ruleset) -> Result<(), FirewallError> {
        let tools = &*self.tools;
        if self.backend == Backend::Nftables {
            tools.run("nft", &["-f", "-"], &nftables::script(rules))?;
        }
        for family in [Family::V4, Family::V6] {
            match self.backend {
                Backend::Iptables => {
                    chains::make_sets(tools, rules, family)?;
                    chains::make(tools, rules, family, Scope::Everything)?;
                }
                Backend::Nftables if SavedRules::read(tools, family)?.drops_forwarded() => {
                    chains::make(tools, rules, family, Scope::Forward)?;
                }
                Backend::Nftables | Backend::None => {}
            }
        }
        Ok(())
    }

    /// Lists the managed rules.
    ///
    /// # Errors
    /// When a program fails. A failure is never an empty listing.
    fn listing(&self) -> Result<Listing, FirewallError> {
        let tools = &*self.tools;
        let mut listing = Listing::default();
        if self.backend == Backend::Nftables {
            listing.add_table(&table::list(tools)?);
        }
        for family in [Family::V4, Family::V6] {
            listing.add_chains(SavedRules::read(tools, family)?.text());
        }
        if self.backend == Backend::Iptables {
            listing.add_set(&chains::list_sets(tools)?);
        }
        Ok(listing)
    }

    /// Removes all managed rules of both backends.
    ///
    /// # Errors
    /// When a program fails.
    pub fn clean(&mut self) -> Result<(), FirewallError> {
        self.applied = None;
        let tools = &*self.tools;
        table::remove(tools)?;
        for family in [Family::V4, Family::V6] {
            chains::remove(tools, family)?;
        }
        chains::remove_sets(tools)
    }

    /// Removes the rules of the other backend, which the operator chose before. They are no longer
    /// updated, so they drop the packets of new agents.
    fn remove_other_backend(&self) -> Result<(), FirewallError> {
        let tools = &*self.tools;
        if self.backend == Backend::Iptables {
            return table::remove(tools);
        }
        for family in [Family::V4, Family::V6] {
            // The nftables backend uses the other chains as well.
            let saved = SavedRules::read(tools, family)?;
            if saved.own_chains().iter().any(|(_, chain)| *chain == iptables::INPUT) {
                chains::remove(tools, family)?;
            }
        }
        chains::remove_sets(tools)
    }

    /// Describes the rules that [`Self::clean`] removes.
    ///
    /// # Errors
    /// When a program fails.
    pub fn list_owned() -> Result<Vec<String>, FirewallError> {
        let mut found: Vec<_> = table::describe(&SystemTools)?.into_iter().collect();
        for family in [Family::V4, Family::V6] {
            found.extend(chains::describe(&SystemTools, family)?);
        }
        let sets = chains::own_sets(&SystemTools)?.into_iter();
        found.extend(sets.map(|set| format!("ipset {set}")));
        Ok(found)
    }
}
