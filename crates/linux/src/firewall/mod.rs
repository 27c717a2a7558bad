//! Programs the firewall of the host. The rules:
//!
//! * accept VXLAN packets only from known agents, and only with sources of the sending agent;
//! * accept packets of containers only with the containers' own addresses;
//! * close the ports of agents and masters, and the VXLAN port, to containers;
//! * drop new flows from outside of the overlays to containers;
//! * isolate the overlays from each other, if configured;
//! * masquerade packets that leave the overlays;
//! * accept forwarded packets of the overlays where another program drops them.
//!
//! [`Ruleset`] is the desired state and is pure. The managed rules are one nftables table, or
//! managed iptables chains. Foreign rules are not removed; [`foreign`] finds those that drop packets
//! of the overlays.
//!
//! A verification compares the current listing of the rules with the listing right after the rules
//! were made. So this module need not parse a format that changes between versions, and it detects
//! every added or removed rule. The first verification after a start therefore makes all rules
//! again, each table atomically. All calls block while a program runs, and act on the caller's
//! network namespace.

mod applied;
#[cfg(test)]
mod applied_tests;
mod chains;
mod command;
mod elements;
#[cfg(test)]
mod failure_tests;
#[cfg(test)]
mod fake_host;
pub mod foreign;
mod generation;
mod ipsets;
mod ipt_errors;
mod ipt_mangle;
mod iptables;
mod kept;
mod listing;
mod monitor;
mod nft_chains;
mod nft_errors;
mod nft_untracked;
mod nftables;
mod port_mappings;
#[cfg(test)]
mod restart_tests;
mod ruleset;
mod saved;
pub mod shortcut;
#[cfg(test)]
mod shortcut_tests;
mod table;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::path::Path;

use overlay_types::addr::Family;
use overlay_types::tunnel::Desired;

use self::applied::{AppliedRules, ObservedRules};
use self::chains::SavedRules;
pub use self::command::FirewallError;
use self::command::{SystemTools, Tools};
use self::elements::{ElementChanges, ListedElements};
use self::iptables::Scope;
use self::kept::Format;
use self::listing::Listing;
pub use self::monitor::{Monitor, RulesEvent};
pub use self::port_mappings::{
    PortMappingError, list_port_mappings, map_ports, remove_port_mappings, unmap_ports,
};
pub use self::ruleset::{Forwarding, Ingress, Options, Ruleset};
use self::saved::Section;
pub use self::saved::{LoadError, RulesFile};
use self::shortcut::{Shortcut, ShortcutLinks, ShortcutRules};

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

/// How the source of a packet inside of the tunnel is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InnerCheck {
    /// The source must belong to the agent that sent the packet.
    Pair,
    /// The source must belong to some agent. iptables, and nft before 1.0.1, cannot compare the
    /// source with the sender.
    Membership,
}

/// The result of a verification or an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The rules matched the desired rules.
    Unchanged,
    /// The desired rules changed, or this is the first verification.
    Made,
    /// Another program had changed the rules.
    Repaired,
}

/// The rules of this host.
#[derive(Debug)]
pub struct Firewall {
    backend: Backend,
    /// The check of inner sources that this host supports. `None` until the first verification.
    check: Option<InnerCheck>,
    /// The rules that were made last. `None` if the rules on the host are unknown.
    applied: Option<AppliedRules>,
    /// The file with the rules for the next start of the host.
    file: Option<RulesFile>,
    /// Why the rules of an earlier agent could not be removed.
    clean_failure: Option<FirewallError>,
    /// Whether rules about flows were made that were missing before.
    has_new_flow_rules: bool,
    shortcut: Shortcut,
    tools: Box<dyn Tools>,
}

impl Backend {
    /// Finds the best backend of this host.
    ///
    /// # Errors
    /// When the host has none, or when a program fails for another reason than a kernel without
    /// nftables: then the rules of this host may be in nftables, and iptables would not see them.
    pub fn detect() -> Result<Self, FirewallError> {
        Self::detect_with(&SystemTools::default())
    }

    fn detect_with(tools: &dyn Tools) -> Result<Self, FirewallError> {
        let has_iptables = tools.has("iptables-restore") && tools.has("ipset");
        // A dry run checks all features: kernels before 5.2 have nftables, but no masquerade for
        // both families in one table.
        match probe(tools, nftables::PROBE) {
            Ok(_) => Ok(Self::Nftables),
            Err(FirewallError::ProgramNotFound(_)) if has_iptables => Ok(Self::Iptables),
            Err(error) if !error.is_missing_feature() => Err(error),
            Err(_) if has_iptables => Ok(Self::Iptables),
            Err(FirewallError::Refused { message, .. }) => {
                Err(FirewallError::NoNftables { message })
            }
            Err(error) => Err(error),
        }
    }
}

impl InnerCheck {
    /// Finds the best check that nft supports. nft before 1.0.1 supports no sets whose elements are
    /// parts of a packet.
    fn detect(tools: &dyn Tools) -> Result<Self, FirewallError> {
        match probe(tools, nftables::PAIR_PROBE) {
            Ok(_) => Ok(Self::Pair),
            Err(error) if error.is_missing_feature() => {
                log::warn!(
                    "{error}; until nft 1.0.1 or later is installed, VXLAN packets are not compared \
                     with their sender, and a known agent can forge addresses of other agents"
                );
                Ok(Self::Membership)
            }
            Err(error) => Err(error),
        }
    }
}

/// Replaces the chains of one family. A kernel without the match `u32` cannot check ICMP errors, and
/// gets the other rules.
fn replace_chains(
    tools: &dyn Tools,
    format: Format,
    family: Family,
    saved: &SavedRules,
    tables: &mut [iptables::Table],
) -> Result<(), FirewallError> {
    let Err(error) = chains::replace(tools, family, saved, tables) else { return Ok(()) };
    if format != Format::Ipset || !error.is_missing_match() {
        return Err(error);
    }
    tables.iter_mut().for_each(ipt_errors::remove);
    if chains::replace(tools, family, saved, tables).is_err() {
        return Err(error);
    }
    log::warn!(
        "{error}; the rules work without a check of ICMP errors, so a container can lower the path \
         MTU of this host: install the kernel module xt_u32, or nftables"
    );
    Ok(())
}

/// Checks rules without making them.
fn probe(tools: &dyn Tools, rules: &str) -> Result<String, FirewallError> {
    tools.run("nft", &["--check", "-f", "-"], rules)
}

impl Firewall {
    /// Creates a firewall. The rules on the host are unknown at first.
    #[must_use]
    pub fn new(backend: Backend) -> Self {
        Self::with_tools(backend, Box::<SystemTools>::default())
    }

    fn with_tools(backend: Backend, tools: Box<dyn Tools>) -> Self {
        Self {
            backend,
            check: None,
            applied: None,
            file: None,
            clean_failure: None,
            has_new_flow_rules: false,
            shortcut: Shortcut::default(),
            tools,
        }
    }

    /// Keeps the rules in a file of this directory, so that [`RulesFile::load`] closes the host after
    /// a reboot.
    pub fn keep_in(&mut self, state_dir: &Path) {
        self.file = Some(RulesFile::new(state_dir));
    }

    /// Tries a better check again after nft failed: nft or the kernel may be another one by now. With
    /// `selects_backend`, nft may also replace iptables. The next verification makes all rules
    /// again. Elements that are kept are lost by it, so call this with a list of peers only.
    pub fn probe_again(&mut self, selects_backend: bool) {
        let is_better = match (self.backend, self.check) {
            (Backend::Nftables, Some(InnerCheck::Membership)) => {
                probe(&*self.tools, nftables::PAIR_PROBE).is_ok()
            }
            (Backend::Iptables, _) if selects_backend => {
                Backend::detect_with(&*self.tools) == Ok(Backend::Nftables)
            }
            _ => false,
        };
        if is_better {
            log::info!("firewall: nft supports our rules by now: making all rules again with nft");
            (self.backend, self.check, self.applied) = (Backend::Nftables, None, None);
        }
    }

    /// Notes that other programs changed rules, so that the next verification lists all rules.
    /// After [`Self::verify`] or [`Self::update`] has made rules, `is_during_change` is true: the
    /// listing that later ones are compared with may contain the change of another program, and the
    /// next verification makes the rules again. If events are lost, it does so once: events of our
    /// own rules may fill the buffer each time.
    pub fn note_event(&mut self, event: RulesEvent, is_during_change: bool) {
        if event != RulesEvent::None {
            self.shortcut.note_event();
        }
        let Some(applied) = &mut self.applied else { return };
        applied.note_event(event, is_during_change);
    }

    /// Returns whether rules that decide by the first packet of a flow were missing or different
    /// until they were made since the last call. Flows from before are older than these rules. The
    /// rules of an earlier process count, so that a restart ends no flow.
    pub const fn take_new_flow_rules(&mut self) -> bool {
        std::mem::replace(&mut self.has_new_flow_rules, false)
    }

    /// Returns the processes that ran for this firewall since the last call.
    pub fn take_processes(&mut self) -> Vec<u32> {
        self.tools.take_processes()
    }

    /// Returns the firewall that holds the rules.
    #[must_use]
    pub const fn backend(&self) -> Backend {
        self.backend
    }

    /// Returns how the source of a packet inside of the tunnel is checked. `None` before the first
    /// verification, and without rules.
    #[must_use]
    pub const fn inner_check(&self) -> Option<InnerCheck> {
        self.check
    }

    /// Returns whether the rules keep the known agents of earlier rules.
    #[must_use]
    pub fn keeps_agents(&self) -> bool {
        let kept = self.applied.as_ref().and_then(|applied| applied.kept.as_ref());
        kept.is_some_and(|kept| kept.keys().any(|set| kept::has_agents(set)))
    }

    /// Compares the rules with the desired rules, and makes them again if they differ.
    ///
    /// # Errors
    /// When a program fails. The next call tries again.
    pub fn verify(&mut self, rules: &Ruleset) -> Result<Outcome, FirewallError> {
        let Some(format) = self.detect_format()? else {
            self.remove_former();
            return Ok(Outcome::Unchanged);
        };
        let (rules, kept) = self.with_kept_elements(format, rules)?;
        let applied = self.applied.as_ref().filter(|applied| applied.is_of(&rules, kept.as_ref()));
        let before = self.observe(applied)?;
        if before.elements.is_none()
            && applied.is_some_and(|applied| before.matches(applied, None))
            && self.file.as_ref().is_none_or(RulesFile::is_written)
        {
            return Ok(Outcome::Unchanged);
        }
        let elements = kept.clone().unwrap_or_else(|| format.listed(&rules));
        if let Some(applied) = applied.filter(|applied| before.matches(applied, Some(&elements))) {
            let sections = applied.sections.clone();
            self.save(format, &rules, &sections, &elements);
            self.set_generation(before.generation);
            return Ok(Outcome::Unchanged);
        }
        let outcome = applied.map_or(Outcome::Made, AppliedRules::outcome_if_made_again);
        self.make_all(format, rules.into_owned(), kept, &elements, &before)?;
        Ok(outcome)
    }

    fn set_generation(&mut self, generation: Option<u32>) {
        if let Some(applied) = &mut self.applied {
            applied.generation = generation;
        }
    }

    /// Makes all rules, and lists them.
    fn make_all(
        &mut self,
        format: Format,
        rules: Ruleset,
        kept: Option<ListedElements>,
        elements: &ListedElements,
        before: &ObservedRules,
    ) -> Result<(), FirewallError> {
        let former = self.applied.take();
        let mut sections = Vec::new();
        if rules.is_empty() {
            self.clean()?;
        } else {
            sections = self.make(format, &rules, elements)?;
            if former.is_none() {
                self.remove_other_backend()?;
            }
        }
        let made = self.observe(None)?;
        self.has_new_flow_rules |= before.flow_rules() != made.flow_rules();
        self.save(format, &rules, &sections, elements);
        self.applied = Some(AppliedRules::new(rules, kept, sections, made, former.as_ref()));
        Ok(())
    }

    /// Removes the rules of an earlier agent, since the operator maintains the rules now. After a
    /// failure the next verification tries again.
    fn remove_former(&mut self) {
        if self.applied.is_some() {
            return;
        }
        match self.clean() {
            Ok(()) => {
                self.clean_failure = None;
                self.applied = Some(AppliedRules::default());
            }
            Err(error) => {
                if self.clean_failure.as_ref() != Some(&error) {
                    log::warn!(
                        "{error}; rules of an earlier agent may remain: the next verification \
                         tries again"
                    );
                }
                self.clean_failure = Some(error);
            }
        }
    }

    /// Makes or removes the shortcut for the devices that exist now: see [`shortcut`]. Call this after
    /// the devices were programmed. With `verifies` the existing shortcut is compared. Without a
    /// list of peers, the existing shortcut is kept, as the routes are.
    pub fn apply_shortcut(
        &mut self,
        desired: &Desired,
        options: &Options,
        links: &ShortcutLinks,
        verifies: bool,
    ) -> Outcome {
        let is_known = desired.peers.is_some() || desired.vxlan_devices.is_empty();
        if self.backend != Backend::Nftables || !is_known {
            return Outcome::Unchanged;
        }
        let rules = match self.possible_forwarding(options) {
            Forwarding::Shortcut => ShortcutRules::new(desired, links),
            Forwarding::Tracked | Forwarding::Untracked => ShortcutRules::default(),
        };
        self.shortcut.apply(&*self.tools, rules, verifies)
    }

    /// Returns whether the host has a shortcut.
    #[must_use]
    pub fn has_shortcut(&self) -> bool {
        self.shortcut.is_active()
    }

    /// Lets the shortcut follow the ports of the containers, which start and end. Everything else of it
    /// stays as the last call of [`Self::apply_shortcut`] made it.
    pub fn follow_ports(&mut self, links: &ShortcutLinks) -> Outcome {
        self.shortcut.follow_ports(&*self.tools, links)
    }

    /// Returns how packets between containers are forwarded with these options.
    #[must_use]
    pub fn forwarding(&self, options: &Options) -> Forwarding {
        match self.possible_forwarding(options) {
            Forwarding::Shortcut if !self.shortcut.is_active() => Forwarding::Untracked,
            forwarding => forwarding,
        }
    }

    /// Returns how the rules of this host allow packets between containers to be forwarded. Sources
    /// that only our forward chain checks do not skip it.
    fn possible_forwarding(&self, options: &Options) -> Forwarding {
        let is_untracked =
            self.applied.as_ref().is_some_and(|applied| applied.rules.layout.is_untracked);
        let is_checked = self.check == Some(InnerCheck::Pair) || !options.known_agents_only;
        match options.forwarding {
            _ if !is_untracked || self.backend != Backend::Nftables => Forwarding::Tracked,
            Forwarding::Shortcut if is_checked => Forwarding::Shortcut,
            _ => Forwarding::Untracked,
        }
    }

    /// Writes the rules to the file, unless it has them.
    fn save(
        &mut self,
        format: Format,
        rules: &Ruleset,
        sections: &[Section],
        elements: &ListedElements,
    ) {
        let Some(file) = &mut self.file else { return };
        if rules.is_empty() {
            return;
        }
        match format {
            Format::Nftables(check) => {
                let input = nftables::script(&rules.layout, check, elements);
                file.write(&[Section { program: "nft", input }]);
            }
            Format::Ipset => {
                let sets = Section { program: "ipset", input: ipsets::script(elements) };
                file.write(&[&[sets], sections].concat());
            }
        }
    }

    /// Detects the check of inner sources once. Returns how the backend lists elements, or `None`
    /// without a backend.
    fn detect_format(&mut self) -> Result<Option<Format>, FirewallError> {
        self.check = match (self.backend, self.check) {
            (Backend::None, _) => return Ok(None),
            (Backend::Iptables, _) => Some(InnerCheck::Membership),
            (Backend::Nftables, None) => Some(InnerCheck::detect(&*self.tools)?),
            (Backend::Nftables, known) => known,
        };
        Ok(match self.backend {
            Backend::Nftables => self.check.map(Format::Nftables),
            Backend::Iptables | Backend::None => Some(Format::Ipset),
        })
    }

    /// Returns the rules, with the elements of the existing rules if the list of peers is still
    /// unknown. So a restarted agent accepts no unknown sender before it receives the list. Returns
    /// also all elements, if existing elements were kept.
    fn with_kept_elements<'a>(
        &self,
        format: Format,
        rules: &'a Ruleset,
    ) -> Result<(Cow<'a, Ruleset>, Option<ListedElements>), FirewallError> {
        if !rules.keeps_elements {
            return Ok((Cow::Borrowed(rules), None));
        }
        let existing = match &self.applied {
            Some(applied) => match &applied.kept {
                Some(kept) => kept.clone(),
                None => format.listed(&applied.rules),
            },
            None => self.observe(None)?.elements.unwrap_or_default(),
        };
        let mut rules = rules.clone();
        let kept = format.keep(&mut rules, existing);
        Ok((Cow::Owned(rules), Some(kept)))
    }

    /// Applies new desired rules without a check of the existing rules. If only elements changed,
    /// the cost depends on the number of changed elements. Falls back to [`Self::verify`].
    ///
    /// # Errors
    /// See [`Self::verify`].
    pub fn update(&mut self, rules: &Ruleset) -> Result<Outcome, FirewallError> {
        let format = self.detect_format()?;
        if format.is_none() && self.clean_failure.is_some() {
            // Only a verification tries again.
            return Ok(Outcome::Unchanged);
        }
        if let Some(applied @ AppliedRules { rules: before, kept: None, .. }) = &self.applied
            && let Some(check) = format.map(Format::check)
            && let Some(changes) = rules.changes_since(before, check)
        {
            if changes.is_empty() {
                return Ok(Outcome::Unchanged);
            }
            match self.change_elements(before, rules, &changes) {
                Ok(()) => {
                    self.applied = Some(applied.with_elements_of(rules));
                    return Ok(Outcome::Made);
                }
                // Another program may have changed a set, so all rules are made again.
                Err(error) => log::warn!("{error}: making all rules again"),
            }
            self.applied = None;
        }
        self.verify(rules)
    }

    fn change_elements(
        &self,
        before: &Ruleset,
        rules: &Ruleset,
        changes: &ElementChanges,
    ) -> Result<(), FirewallError> {
        let tools = &*self.tools;
        match (self.backend, self.check) {
            (Backend::Nftables, Some(check)) => {
                tools.run("nft", &["-f", "-"], &nftables::changes(&rules.layout, check, changes))
            }
            (Backend::Iptables, _) => {
                let script = ipsets::changes(changes, &before.elements, &rules.elements);
                tools.run("ipset", &["restore"], &script)
            }
            (Backend::Nftables | Backend::None, _) => return Ok(()),
        }
        .map(drop)
    }

    /// Makes all rules, those that drop packets first. Returns the chains of iptables for the file,
    /// if they hold all rules.
    fn make(
        &self,
        format: Format,
        rules: &Ruleset,
        elements: &ListedElements,
    ) -> Result<Vec<Section>, FirewallError> {
        let mut sections = Vec::new();
        let tools = &*self.tools;
        match format {
            Format::Nftables(check) => {
                let script = nftables::script(&rules.layout, check, elements);
                tools.run("nft", &["-f", "-"], &script)?;
            }
            Format::Ipset => chains::make_sets(tools, elements)?,
        }
        for family in [Family::V4, Family::V6] {
            let saved = SavedRules::read(tools, family)?;
            let bridges = saved.docker_bridges();
            let mut tables = match format {
                Format::Ipset => iptables::tables(rules, family, Scope::Everything, &bridges),
                Format::Nftables(_) if saved.drops_forwarded() => {
                    iptables::tables(rules, family, Scope::Forward, &bridges)
                }
                // Also removes the chains of the other backend, which the operator chose before.
                Format::Nftables(_) => iptables::no_tables(),
            };
            replace_chains(tools, format, family, &saved, &mut tables)?;
            if format == Format::Ipset {
                sections.push(chains::section(family, &tables));
            }
        }
        Ok(sections)
    }

    /// Lists the managed rules. `known` are the applied rules: rules that have a generation are not
    /// listed again at the generation at which they matched.
    ///
    /// # Errors
    /// When a program fails. A failure is never an empty listing.
    fn observe(&self, known: Option<&AppliedRules>) -> Result<ObservedRules, FirewallError> {
        let tools = &*self.tools;
        let is_nft = self.backend == Backend::Nftables;
        let generation = if is_nft { tools.generation() } else { None };
        let known = known.filter(|known| generation.is_some() && known.generation == generation);
        let mut table = Listing::default();
        if is_nft && known.is_none() {
            table.add_table(&table::list(tools)?);
        }
        let chains = match known.filter(|_| chains::have_generation(tools)) {
            Some(known) => Listing { rest: known.chains.clone(), ..Listing::default() },
            None => self.list_chains()?,
        };
        let elements = if is_nft { table.elements } else { chains.elements };
        Ok(ObservedRules {
            generation,
            table: known.map_or(table.rest, |known| known.table.clone()),
            chains: chains.rest,
            elements: known.is_none().then_some(elements),
        })
    }

    /// Lists our chains of iptables, and our ipsets.
    fn list_chains(&self) -> Result<Listing, FirewallError> {
        let tools = &*self.tools;
        let mut chains = Listing::default();
        for family in [Family::V4, Family::V6] {
            let saved = SavedRules::read(tools, family)?;
            chains.add_chains(saved.text());
            saved.misplaced_jumps().for_each(|jump| chains.add_misplaced_jump(jump));
        }
        if self.backend == Backend::Iptables {
            chains.add_set(&chains::list_sets(tools)?);
        }
        Ok(chains)
    }

    /// Removes all managed rules of both backends.
    ///
    /// # Errors
    /// When a program fails.
    pub fn clean(&mut self) -> Result<(), FirewallError> {
        self.applied = None;
        self.shortcut.forget();
        if let Some(file) = &mut self.file
            && let Err(error) = file.remove()
        {
            let path = file.path().display();
            log::warn!("remove {path}: {error}: remove it, or a reboot loads its rules");
        }
        let tools = &*self.tools;
        table::remove(tools)?;
        for family in [Family::V4, Family::V6] {
            chains::remove(tools, family)?;
        }
        chains::remove_sets(tools)
    }

    /// Removes the rules of the other backend, which the operator chose before. They are no longer
    /// updated, so they drop the packets of new agents. The rules of this backend exist already.
    fn remove_other_backend(&self) -> Result<(), FirewallError> {
        match self.backend {
            Backend::Iptables => table::remove(&*self.tools),
            Backend::Nftables | Backend::None => chains::remove_sets(&*self.tools),
        }
    }

    /// Describes the rules that [`Self::clean`] removes.
    ///
    /// # Errors
    /// When a program fails.
    pub fn list_owned() -> Result<Vec<String>, FirewallError> {
        let tools = SystemTools::default();
        let mut found = table::describe(&tools)?;
        for family in [Family::V4, Family::V6] {
            found.extend(chains::describe(&tools, family)?);
        }
        let sets = chains::own_sets(&tools)?.into_iter();
        found.extend(sets.map(|set| format!("ipset {set}")));
        Ok(found)
    }
}
