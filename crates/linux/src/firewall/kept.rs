//! Keeps the elements of existing rules until the master has sent the list of peers. So a restarted
//! agent accepts no unknown sender, and the agents that the rules know stay connected.

use overlay_types::addr::Family;

use super::elements::{ListedElements, SetName};
use super::ruleset::{Layout, Ruleset, Senders};
use super::{InnerCheck, ipsets, nftables};

/// How the elements of the sets are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Nftables(InnerCheck),
    Ipset,
}

/// Returns whether the elements of a set are the underlay addresses of agents, in a listing of either
/// backend.
pub(super) fn has_agents(set: &str) -> bool {
    set.starts_with("agents") || [Family::V4, Family::V6].map(ipsets::agents).contains(&set)
}

impl Format {
    /// Returns the elements of the rules as the program lists them.
    pub(super) fn listed(self, rules: &Ruleset) -> ListedElements {
        match self {
            Self::Nftables(check) => nftables::listed(rules, check),
            Self::Ipset => ipsets::listed(rules),
        }
    }

    /// Returns how the source of a packet inside of the tunnel is checked.
    pub(super) const fn check(self) -> InnerCheck {
        match self {
            Self::Nftables(check) => check,
            Self::Ipset => InnerCheck::Membership,
        }
    }

    /// Adapts the layout of the rules to the existing elements. Returns these elements together
    /// with the elements of the rules.
    ///
    /// If no existing set has agents, the rules accept no VXLAN packet. Existing agents without
    /// sources come from rules of a former version. Then the sources are not checked, as before.
    pub(super) fn keep(self, rules: &mut Ruleset, existing: ListedElements) -> ListedElements {
        let has_agents = existing.contains_key(&self.agents(&rules.layout));
        let mut kept = existing;
        // Sources belong to agents of the same underlay.
        kept.retain(|set, _| has_agents || !(self.is_inner(set) || set.starts_with("gateways")));
        let has_sources = kept.keys().any(|set| self.is_inner(set));
        let layout = &mut rules.layout;
        if has_agents && !has_sources {
            layout.senders = Senders::Agents;
        }
        if let Self::Nftables(check) = self {
            let prefixes = kept.keys().filter_map(|set| nftables::inner_prefix(set, check));
            layout.prefixes.extend(prefixes);
            let sets = nftables::dynamic_sets(layout).into_iter();
            let sets: Vec<_> = sets.map(|set| nftables::set_name(layout, check, set)).collect();
            kept.retain(|set, _| sets.contains(set));
        }
        for (set, elements) in self.listed(rules) {
            kept.entry(set).or_default().extend(elements);
        }
        kept
    }

    fn agents(self, layout: &Layout) -> String {
        match self {
            Self::Nftables(check) => nftables::set_name(layout, check, SetName::Agents),
            Self::Ipset => ipsets::agents(layout.underlay()).to_owned(),
        }
    }

    fn is_inner(self, set: &str) -> bool {
        match self {
            Self::Nftables(check) => nftables::inner_prefix(set, check).is_some(),
            Self::Ipset => ipsets::is_inner(set),
        }
    }
}
