//! The agents by their IP, and the state of each agent.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use overlay_types::addr::{OverlayName, Subnet};
use overlay_types::protocol::{AgentInfo, AgentRecord, OverlayRecord, ReleasedRecord};
use overlay_types::state::Version;

use super::super::view::AgentTally;
use super::owners::Owners;

/// The state of one agent.
#[derive(Debug, Clone)]
pub(super) enum AgentState {
    /// The agent is registered and served.
    Active(ActiveAgent),
    /// The stored record conflicts with the configuration or with another record. It stays in the
    /// store unchanged until the operator releases the agent or fixes the configuration.
    Quarantined(Box<QuarantinedAgent>),
    /// The addresses stay reserved for this agent while other addresses are left.
    Released(ReleasedRecord),
}

/// An agent that is served.
#[derive(Debug, Clone)]
pub(super) struct ActiveAgent {
    pub(super) record: AgentRecord,
    pub(super) valid_from: ValidFrom,
    /// The parts of the record that are not served. Most agents have none.
    pub(super) unserved: Option<Box<UnservedParts>>,
    /// The assignments of the agent with the statuses that it reported.
    pub(super) info: Arc<AgentInfo>,
    /// Whether the agent was not seen for too long. See [`super::contacts`].
    pub(super) is_stale: bool,
}

/// An agent that is not served.
#[derive(Debug, Clone)]
pub(super) struct QuarantinedAgent {
    /// How the record conflicts.
    pub(super) reason: String,
    /// The record, if it can be read.
    pub(super) record: Option<AgentRecord>,
    /// Addresses of the record that no other agent holds. They stay reserved.
    pub(super) held: ReleasedRecord,
}

/// The parts of an active agent's record that conflict with the configuration or with another
/// record. They stay in the record.
#[derive(Debug, Clone, Default)]
pub(super) struct UnservedParts {
    /// Why the IPv6 address of the VTEP is not served, if it is not.
    pub(super) vtep_ip6: Option<String>,
    pub(super) overlays: BTreeMap<OverlayName, UnservedOverlay>,
}

/// An overlay whose subnets in the record of an agent are not served.
#[derive(Debug, Clone)]
pub(super) struct UnservedOverlay {
    /// How the subnets conflict.
    pub(super) reason: String,
    /// The subnets that no other agent holds. They stay reserved.
    pub(super) held: OverlayRecord,
}

impl UnservedParts {
    pub(super) fn is_empty(&self) -> bool {
        self.vtep_ip6.is_none() && self.overlays.is_empty()
    }
}

impl ActiveAgent {
    pub(super) fn is_overlay_unserved(&self, name: &OverlayName) -> bool {
        self.unserved.as_ref().is_some_and(|parts| parts.overlays.contains_key(name))
    }

    pub(super) fn is_vtep_ip6_unserved(&self) -> bool {
        self.unserved.as_ref().is_some_and(|parts| parts.vtep_ip6.is_some())
    }

    /// Returns the overlays that are not served.
    pub(super) fn unserved_overlays(
        &self,
    ) -> impl Iterator<Item = (&OverlayName, &UnservedOverlay)> {
        self.unserved.iter().flat_map(|parts| &parts.overlays)
    }
}

/// For each address of an active agent, the version of the state that makes the address exclusive.
/// Once this version is durable, the stored record of the agent has the address, and no stored
/// record of an agent with a lower IP has it. An address without an entry is not exclusive in any
/// version yet.
#[derive(Debug, Clone)]
pub(super) struct ValidFrom {
    /// The version that has the current record, including the options.
    pub(super) record: Version,
    pub(super) vtep_ip: Version,
    pub(super) vtep_ip6: Option<Version>,
    pub(super) underlay: Version,
    pub(super) subnets: Vec<(Subnet, Version)>,
}

impl ValidFrom {
    /// Returns the versions of an agent with only a VTEP.
    pub(super) const fn new(version: Version) -> Self {
        Self {
            record: version,
            vtep_ip: version,
            vtep_ip6: None,
            underlay: version,
            subnets: Vec::new(),
        }
    }

    /// Returns the version from which all addresses are exclusive and the record is stored.
    pub(super) fn latest(&self) -> Version {
        let Self { record, vtep_ip, vtep_ip6, underlay, subnets } = self;
        let subnets = subnets.iter().map(|(_, version)| *version);
        let latest = (*record).max(*vtep_ip).max(*underlay);
        subnets.chain(*vtep_ip6).fold(latest, Version::max)
    }

    pub(super) fn of_subnet(&self, subnet: Subnet) -> Option<Version> {
        self.subnets.iter().find(|(known, _)| *known == subnet).map(|(_, version)| *version)
    }

    /// Notes that `record` replaces `before` in `version`. The gained addresses were allocated in
    /// this version.
    pub(super) fn update(&mut self, before: &AgentRecord, record: &AgentRecord, version: Version) {
        self.record = version;
        if record.vtep_ip6.is_some() && before.vtep_ip6 != record.vtep_ip6 {
            self.vtep_ip6 = Some(version);
        }
        if before.underlay != record.underlay {
            self.underlay = version;
        }
        let had =
            |subnet: Subnet| before.overlays.iter().any(|it| it.subnets().any(|had| had == subnet));
        for subnet in record.overlays.iter().flat_map(OverlayRecord::subnets) {
            if !had(subnet) {
                self.subnets.push((subnet, version));
            }
        }
    }
}

/// The states of all agents.
#[derive(Debug, Clone, Default)]
pub(super) struct Agents {
    states: BTreeMap<Ipv4Addr, AgentState>,
    /// The quarantined agents, and the active agents with unserved parts.
    conflicting: BTreeSet<Ipv4Addr>,
    /// The active agents, counted by their last report.
    tally: AgentTally,
    owners: Owners,
}

impl Agents {
    pub(super) fn get(&self, ip: Ipv4Addr) -> Option<&AgentState> {
        self.states.get(&ip)
    }

    pub(super) fn active(&self, ip: Ipv4Addr) -> Option<&ActiveAgent> {
        match self.states.get(&ip) {
            Some(AgentState::Active(agent)) => Some(agent),
            _ => None,
        }
    }

    pub(super) fn is_active(&self, ip: Ipv4Addr) -> bool {
        self.active(ip).is_some()
    }

    /// Returns whether the agent has a record that was not released.
    pub(super) fn is_known(&self, ip: Ipv4Addr) -> bool {
        matches!(self.states.get(&ip), Some(AgentState::Active(_) | AgentState::Quarantined(_)))
    }

    pub(super) fn released(&self, ip: Ipv4Addr) -> Option<&ReleasedRecord> {
        match self.states.get(&ip) {
            Some(AgentState::Released(record)) => Some(record),
            _ => None,
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Ipv4Addr, &AgentState)> {
        self.states.iter().map(|(ip, state)| (*ip, state))
    }

    pub(super) fn iter_active(&self) -> impl Iterator<Item = (Ipv4Addr, &ActiveAgent)> {
        self.iter().filter_map(|(ip, state)| match state {
            AgentState::Active(agent) => Some((ip, agent)),
            AgentState::Quarantined(_) | AgentState::Released(_) => None,
        })
    }

    /// Returns the readable records of all agents that were not released.
    pub(super) fn iter_records(&self) -> impl Iterator<Item = &AgentRecord> {
        self.states.values().filter_map(|state| match state {
            AgentState::Active(agent) => Some(&agent.record),
            AgentState::Quarantined(agent) => agent.record.as_ref(),
            AgentState::Released(_) => None,
        })
    }

    /// Returns the quarantined agents, and the active agents with unserved parts.
    pub(super) fn iter_conflicting(&self) -> impl Iterator<Item = (Ipv4Addr, &AgentState)> {
        self.conflicting.iter().filter_map(|ip| Some((*ip, self.states.get(ip)?)))
    }

    pub(super) fn has_conflicts(&self) -> bool {
        !self.conflicting.is_empty()
    }

    /// Returns the agents that have addresses of the subnet exclusively.
    pub(super) fn owners_of(&self, subnet: &Subnet) -> impl Iterator<Item = Ipv4Addr> {
        self.owners.of(subnet)
    }

    pub(super) const fn tally(&self) -> AgentTally {
        self.tally
    }

    /// Sets the state of an agent, in place of its previous state.
    pub(super) fn insert(&mut self, ip: Ipv4Addr, state: AgentState) {
        self.remove(ip);
        let has_conflict = match &state {
            AgentState::Active(agent) => {
                self.tally.add(&agent.info, agent.is_stale);
                self.tally.authenticated += usize::from(agent.record.authenticated.is_some());
                self.owners.insert(ip, agent);
                agent.unserved.is_some()
            }
            AgentState::Quarantined(_) => true,
            AgentState::Released(_) => false,
        };
        if has_conflict {
            self.conflicting.insert(ip);
        }
        self.states.insert(ip, state);
    }

    /// Removes an agent.
    pub(super) fn remove(&mut self, ip: Ipv4Addr) -> Option<AgentState> {
        self.conflicting.remove(&ip);
        let state = self.states.remove(&ip)?;
        if let AgentState::Active(agent) = &state {
            self.tally.remove(&agent.info, agent.is_stale);
            self.tally.authenticated -= usize::from(agent.record.authenticated.is_some());
            self.owners.remove(agent);
        }
        Some(state)
    }

    /// Changes the reported statuses of an active agent. Returns `None` if the agent is not active.
    pub(super) fn edit_info<T>(
        &mut self,
        ip: Ipv4Addr,
        edit: impl FnOnce(&mut AgentInfo) -> T,
    ) -> Option<T> {
        let Some(AgentState::Active(agent)) = self.states.get_mut(&ip) else {
            return None;
        };
        self.tally.remove(&agent.info, agent.is_stale);
        let result = edit(Arc::make_mut(&mut agent.info));
        self.tally.add(&agent.info, agent.is_stale);
        Some(result)
    }

    /// Notes whether an agent was not seen for too long.
    pub(super) fn set_stale(&mut self, ip: Ipv4Addr, is_stale: bool) {
        if let Some(AgentState::Active(agent)) = self.states.get_mut(&ip) {
            self.tally.remove(&agent.info, agent.is_stale);
            agent.is_stale = is_stale;
            self.tally.add(&agent.info, agent.is_stale);
        }
    }

    /// Returns the versions of an active agent's addresses.
    pub(super) fn valid_from_mut(&mut self, ip: Ipv4Addr) -> Option<&mut ValidFrom> {
        match self.states.get_mut(&ip) {
            Some(AgentState::Active(agent)) => Some(&mut agent.valid_from),
            _ => None,
        }
    }
}
