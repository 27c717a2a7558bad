//! The conflicts and other problems of a registry, as sentences for the operator.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use overlay_types::text::pluralize;

use super::agents::AgentState;
use super::{Conflict, RELEASED_AT_MAX, Registry};

impl Registry {
    /// Returns whether anything needs an operator.
    pub(in crate::master) fn has_problems(&self) -> bool {
        self.has_conflicts()
            || !self.shortages.is_empty()
            || self.underlays.has_problems()
            || self.tally().failed > 0
            || self.has_silent_agents()
            || self.has_peer_failures()
            || self.impossible_release_times().is_some()
    }

    pub(super) fn has_conflicts(&self) -> bool {
        self.agents.has_conflicts() || self.underlays.has_unserved()
    }

    /// Returns a sentence for each problem that needs an operator.
    pub(in crate::master) fn problems(&self) -> Vec<String> {
        let mut problems: Vec<String> = self.conflicts().into_values().collect();
        problems.extend(self.refused_underlays());
        problems.extend(self.subnets_containing_agents());
        problems.extend(self.shortages());
        problems.extend(self.impossible_release_times());
        let failed = self.tally().failed;
        if failed > 0 {
            problems.push(format!(
                "{} with a failed overlay: see the state for the reasons",
                pluralize(failed, "agent")
            ));
        }
        problems.extend(self.silent_agents());
        problems.extend(self.peer_failure_problems());
        problems
    }

    /// Returns the conflicts, each with a sentence for the operator.
    pub(in crate::master) fn conflicts(&self) -> BTreeMap<Conflict, String> {
        let mut conflicts = BTreeMap::new();
        for (ip, state) in self.agents.iter_conflicting() {
            conflicts.extend(conflicts_of_state(ip, state));
        }
        let underlays = self.unserved_underlays();
        conflicts.extend(underlays.map(|(ip, sentence)| (Conflict::Underlay(ip), sentence)));
        conflicts
    }

    /// Returns a sentence for each conflict of the agent's record.
    pub(in crate::master) fn conflicts_of(&self, ip: Ipv4Addr) -> Vec<String> {
        let state = self.agents.get(ip);
        state.map_or_else(Vec::new, |state| conflicts_of_state(ip, state).into_values().collect())
    }

    /// Returns a sentence about the released agents whose time of release is impossible. Their
    /// addresses are reused last.
    fn impossible_release_times(&self) -> Option<String> {
        let late = self.late_releases.iter();
        let late = late.filter_map(|ip| Some((ip, self.agents.released(*ip)?)));
        let mut late = late.filter(|(_, record)| record.at > RELEASED_AT_MAX);
        let (ip, record) = late.next()?;
        let others = match late.count() {
            0 => String::new(),
            count => format!(" (and {} more)", pluralize(count, "agent")),
        };
        Some(format!(
            "agent {ip}{others} was released at {} s after 1970, which no clock can have shown: its \
             addresses are reused last: export the state, put the true time in the place of 'at', \
             and import it",
            record.at
        ))
    }

    /// Returns a sentence for each exhausted pool.
    pub(in crate::master) fn shortages(&self) -> impl Iterator<Item = String> {
        self.shortages.sentences()
    }
}

/// Returns the conflicts of one agent's record, each with a sentence for the operator.
fn conflicts_of_state(ip: Ipv4Addr, state: &AgentState) -> BTreeMap<Conflict, String> {
    let remedy = "fix the configuration or delete the agent";
    let mut conflicts = BTreeMap::new();
    match state {
        AgentState::Quarantined(agent) => {
            let reason = &agent.reason;
            let remedy = match agent.record {
                Some(_) => remedy,
                None => "addresses that it may have are not allocated until the agent is deleted",
            };
            let sentence = format!("agent {ip} is not served: {reason}: {remedy}");
            conflicts.insert(Conflict::Agent(ip), sentence);
        }
        AgentState::Active(agent) => {
            let parts = agent.unserved.as_deref();
            if let Some(reason) = parts.and_then(|parts| parts.vtep_ip6.as_ref()) {
                let sentence =
                    format!("agent {ip} is not served its IPv6 VTEP address: {reason}: {remedy}");
                conflicts.insert(Conflict::Vtep6(ip), sentence);
            }
            for (name, unserved) in agent.unserved_overlays() {
                let reason = &unserved.reason;
                let sentence =
                    format!("agent {ip} is not served its allocation: {reason}: {remedy}");
                conflicts.insert(Conflict::Overlay(ip, name.clone()), sentence);
            }
        }
        AgentState::Released(_) => {}
    }
    conflicts
}
