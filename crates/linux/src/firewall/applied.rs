//! The rules that were made last, and how they are compared with the rules on the host.

use std::collections::BTreeSet;

use super::Outcome;
use super::elements::ListedElements;
use super::listing::flow_rules;
use super::monitor::RulesEvent;
use super::ruleset::Ruleset;
use super::saved::Section;

/// The rules that were made last, and their listing right afterwards.
#[derive(Debug, Clone, Default)]
pub(super) struct AppliedRules {
    pub(super) rules: Ruleset,
    /// All elements of the sets, if elements of earlier rules were kept: see
    /// [`Ruleset::keeps_elements`].
    pub(super) kept: Option<ListedElements>,
    /// The chains of iptables for the file, if they hold all rules.
    pub(super) sections: Vec<Section>,
    /// Our table without the elements of the sets.
    pub(super) table: String,
    /// Our chains of iptables, and our ipsets without their elements.
    pub(super) chains: String,
    reliability: ListingReliability,
    /// The generation of the nftables rules at which a listing matched these rules last. `None` if
    /// only a listing shows whether the host still has them.
    pub(super) generation: Option<u32>,
}

/// Whether the listing may contain a change of another program, made between the rules and the
/// listing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum ListingReliability {
    #[default]
    Full,
    /// Another program changed managed rules.
    Changed,
    /// Events are lost, so another program may have changed managed rules.
    EventsLost,
    /// Events were lost, and the same rules had the same listing twice.
    Confirmed,
}

impl AppliedRules {
    /// `former` are the rules that were made before.
    pub(super) fn new(
        rules: Ruleset,
        kept: Option<ListedElements>,
        sections: Vec<Section>,
        made: ObservedRules,
        former: Option<&Self>,
    ) -> Self {
        let ObservedRules { generation, table, chains, .. } = made;
        let is_confirmed = former.is_some_and(|former| {
            former.reliability == ListingReliability::EventsLost
                && former.is_of(&rules, kept.as_ref())
                && sorted_lines(&former.table) == sorted_lines(&table)
                && sorted_lines(&former.chains) == sorted_lines(&chains)
        });
        let reliability =
            if is_confirmed { ListingReliability::Confirmed } else { ListingReliability::Full };
        Self { rules, kept, sections, table, chains, reliability, generation }
    }

    /// Returns these rules after a change that affects only elements of the sets.
    pub(super) fn with_elements_of(&self, rules: &Ruleset) -> Self {
        Self {
            rules: rules.clone(),
            kept: None,
            sections: self.sections.clone(),
            table: self.table.clone(),
            chains: self.chains.clone(),
            reliability: self.reliability,
            generation: None,
        }
    }

    /// Returns whether these rules were made from `rules` and the elements `kept`.
    pub(super) fn is_of(&self, rules: &Ruleset, kept: Option<&ListedElements>) -> bool {
        self.rules == *rules && self.kept.as_ref() == kept
    }

    /// Returns the outcome of making the same rules again.
    pub(super) fn outcome_if_made_again(&self) -> Outcome {
        if self.reliability == ListingReliability::EventsLost {
            Outcome::Made
        } else {
            Outcome::Repaired
        }
    }

    /// Notes an event: see [`Firewall::note_event`](super::Firewall::note_event).
    pub(super) fn note_event(&mut self, event: RulesEvent, is_during_change: bool) {
        if event != RulesEvent::None {
            self.generation = None;
        }
        match event {
            RulesEvent::Managed if is_during_change => {
                self.reliability = ListingReliability::Changed
            }
            RulesEvent::Lost
                if is_during_change && self.reliability == ListingReliability::Full =>
            {
                self.reliability = ListingReliability::EventsLost;
            }
            _ => {}
        }
    }
}

/// Returns the lines of a listing in an order that does not depend on when the chains were made.
fn sorted_lines(listing: &str) -> Vec<&str> {
    let mut lines: Vec<_> = listing.lines().collect();
    lines.sort_unstable();
    lines
}

/// The rules on the host.
pub(super) struct ObservedRules {
    /// The generation of the nftables rules before they were listed.
    pub(super) generation: Option<u32>,
    /// Our table without the elements of the sets.
    pub(super) table: String,
    /// Our chains of iptables, and our ipsets without their elements.
    pub(super) chains: String,
    /// The elements of the sets. `None` if the generation proves that the host has those of the
    /// applied rules.
    pub(super) elements: Option<ListedElements>,
}

impl ObservedRules {
    /// Returns whether these are certainly the rules of `applied`, which have these elements.
    /// Without `elements`, only the other rules are compared.
    pub(super) fn matches(
        &self,
        applied: &AppliedRules,
        elements: Option<&ListedElements>,
    ) -> bool {
        let is_reliable =
            matches!(applied.reliability, ListingReliability::Full | ListingReliability::Confirmed);
        let has_elements = match (&self.elements, elements) {
            (Some(observed), Some(expected)) => observed == expected,
            _ => true,
        };
        is_reliable && has_elements && self.table == applied.table && self.chains == applied.chains
    }

    /// Returns the rules that decide by the first packet of a flow.
    pub(super) fn flow_rules(&self) -> BTreeSet<&str> {
        [&self.table, &self.chains].into_iter().flat_map(|text| flow_rules(text)).collect()
    }
}
