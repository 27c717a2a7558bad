//! Who has what: the agents, the deleted agents whose addresses are free, and the records that were
//! set aside. Every change of it comes with the changes of the store that make it last.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use super::share;
use super::space::Space;
use super::view::{AgentTally, PoolUsage};
use crate::addr::{Family, OverlayName, Subnet};
use crate::protocol::{
    AgentInfo, AgentOptions, AgentRecord, Assignment, Network, OverlayRecord, Record,
    ReleasedRecord, State, Status,
};
use crate::store::{Change, Key, Version};
use crate::wire::encode_record;

/// All agents of a network.
#[derive(Debug)]
pub(super) struct Registry {
    pub(super) network: Arc<Network>,
    pub(super) space: Space,
    pub(super) agents: BTreeMap<Ipv4Addr, Agent>,
    pub(super) released: BTreeMap<Ipv4Addr, ReleasedRecord>,
    /// Records that contradict the configuration or each other. They stay in the store as they are
    /// until the operator deletes the agent or mends the configuration.
    pub(super) aside: BTreeMap<Ipv4Addr, Aside>,
    /// The shares of served agents that contradict the configuration or each other. They stay in
    /// the record.
    pub(super) unserved: BTreeMap<(Ipv4Addr, OverlayName), Unserved>,
    /// The agents that did not get all they should, by the pool that is exhausted.
    pub(super) lacking: BTreeMap<String, BTreeSet<Ipv4Addr>>,
    tally: AgentTally,
}

/// One agent.
#[derive(Debug)]
pub(super) struct Agent {
    pub(super) record: AgentRecord,
    /// The version that makes `record` durable.
    pub(super) version: Version,
    /// What it is told, and what it reported.
    pub(super) info: Arc<AgentInfo>,
}

/// An agent whose record was set aside.
#[derive(Debug)]
pub(super) struct Aside {
    /// How the record contradicts the configuration or others.
    pub(super) reason: String,
    /// What of it contradicts nothing: nobody else gets that.
    pub(super) held: ReleasedRecord,
}

/// An agent's share of an overlay that it is not served.
#[derive(Debug)]
pub(super) struct Unserved {
    /// How it contradicts the configuration or others.
    pub(super) reason: String,
    /// What of it contradicts nothing: nobody else gets that.
    pub(super) held: OverlayRecord,
}

/// The moment of a change.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    /// Seconds since 1970.
    pub(super) unix: u64,
    /// The version that the change will have.
    pub(super) version: Version,
    /// How long a freed address should rest.
    pub(super) reuse_after: Duration,
}

/// What is worth counting and telling about a registration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Notice {
    /// No IPv6 address for its VTEP is left.
    NoVtep6,
    /// No subnet of this family is left in the overlay.
    NoSubnet(OverlayName, Family),
    /// An address was given that another agent had not long ago, since nothing else was left.
    EarlyReuse(String),
}

/// Why an agent gets nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    /// No VTEP address is left.
    NoVtep(Subnet),
    /// Its record was set aside.
    SetAside(String),
}

/// What an agent's report contained that was not expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Report {
    /// The version that its record needs to be durable.
    pub(super) version: Version,
    /// Overlays that it was not assigned.
    pub(super) unknown: u64,
    /// Overlays whose addresses are not those that it was assigned.
    pub(super) outdated: u64,
}

/// Changes of the store and notices, in the making.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) changes: Vec<Change>,
    pub(super) notices: Vec<Notice>,
}

impl Registry {
    pub(super) fn new(network: Arc<Network>) -> Self {
        Self {
            space: Space::new(&network),
            network,
            agents: BTreeMap::new(),
            released: BTreeMap::new(),
            aside: BTreeMap::new(),
            unserved: BTreeMap::new(),
            lacking: BTreeMap::new(),
            tally: AgentTally::default(),
        }
    }

    /// Gives the agent at `ip` whatever it lacks of what it should have. Who has something keeps
    /// it.
    ///
    /// # Errors
    /// When it can be given nothing at all. Nothing has changed then.
    pub(super) fn register(
        &mut self,
        ip: Ipv4Addr,
        options: &AgentOptions,
        moment: Moment,
    ) -> Result<Outcome, Refusal> {
        if let Some(aside) = self.aside.get(&ip) {
            return Err(Refusal::SetAside(aside.reason.clone()));
        }
        self.lacks_nothing(ip);
        let mut outcome = Outcome::default();
        let (before, mut record) = match self.agents.get(&ip) {
            Some(agent) => (Some(agent.version), agent.record.clone()),
            None => (None, self.admit(ip, options, moment, &mut outcome)?),
        };
        self.complete(ip, &mut record, options, moment, &mut outcome);
        let is_changed =
            before.is_none() || self.agents.get(&ip).is_some_and(|agent| agent.record != record);
        if is_changed {
            let bytes = encode_record(&Record::Agent(record.clone()));
            outcome.changes.push(Change::Put(Key::Agent(ip), bytes));
        }
        let version = before.filter(|_| !is_changed).unwrap_or(moment.version);
        self.insert(ip, record, version);
        Ok(outcome)
    }

    /// The assignments of the agent at `ip`, without status, and the version that makes them
    /// durable.
    pub(super) fn assignments(&self, ip: Ipv4Addr) -> Option<(Vec<Assignment>, Version)> {
        let agent = self.agents.get(&ip)?;
        let plain = |one: &Assignment| Assignment { status: None, ..one.clone() };
        Some((agent.info.overlays.iter().map(plain).collect(), agent.version))
    }

    /// Notes what the agent at `ip` says of its overlays. `None` if there is no such agent.
    pub(super) fn report(&mut self, ip: Ipv4Addr, reported: Vec<Assignment>) -> Option<Report> {
        let agent = self.agents.get_mut(&ip)?;
        self.tally.remove(&agent.info);
        let info = Arc::make_mut(&mut agent.info);
        let mut report = Report { version: agent.version, unknown: 0, outdated: 0 };
        for theirs in reported {
            let ours = info.overlays.iter_mut().find(|ours| ours.name() == theirs.name());
            let Some(ours) = ours else {
                report.unknown += 1;
                continue;
            };
            ours.status = if theirs.has_addresses_of(ours) {
                theirs.status.map(Status::sanitized)
            } else {
                report.outdated += 1;
                // An unchanged C++ agent keeps what it configured once until it is restarted.
                Some(Status::Failed(format!(
                    "the agent still uses {}, and was assigned {}: restart it",
                    addresses(&theirs),
                    addresses(ours)
                )))
            };
        }
        self.tally.add(&agent.info);
        Some(report)
    }

    /// Deletes the agent at `ip`: its addresses are free, and kept for it as long as others are
    /// left. Returns the change of the store; `None` if there is no such agent.
    pub(super) fn release(&mut self, ip: Ipv4Addr, unix: u64) -> Option<Change> {
        if let Some(Aside { held, .. }) = self.aside.remove(&ip) {
            return Some(self.set_free(ip, ReleasedRecord { at: unix, ..held }));
        }
        // Also of an agent that is not there because there was nothing for it.
        self.lacks_nothing(ip);
        let agent = self.agents.remove(&ip)?;
        self.tally.remove(&agent.info);
        let AgentRecord { vtep_ip, vtep_ip6, mut overlays, .. } = agent.record;
        for overlay in &mut overlays {
            if let Some(unserved) = self.unserved.remove(&(ip, overlay.name.clone())) {
                *overlay = unserved.held;
            }
        }
        overlays.retain(|overlay| !overlay.is_empty());
        let released = ReleasedRecord { at: unix, vtep_ip: Some(vtep_ip), vtep_ip6, overlays };
        Some(self.set_free(ip, released))
    }

    /// The whole cluster.
    pub(super) fn state(&self) -> State {
        let agents = self.agents.values().map(|agent| Arc::clone(&agent.info)).collect();
        State { network: Arc::clone(&self.network), agents }
    }

    pub(super) const fn tally(&self) -> AgentTally {
        self.tally
    }

    pub(super) fn usage(&self) -> Vec<PoolUsage> {
        self.space.usage(&self.network)
    }

    /// Whether anything needs an operator.
    pub(super) fn has_problems(&self) -> bool {
        !self.aside.is_empty()
            || !self.lacking.is_empty()
            || !self.unserved.is_empty()
            || self.tally.failed > 0
    }

    /// What needs an operator, one sentence each.
    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for (ip, Aside { reason, .. }) in &self.aside {
            problems.push(format!(
                "agent {ip} is not served: {reason}: mend the configuration or delete the agent"
            ));
        }
        for (pool, agents) in &self.lacking {
            problems.push(format!(
                "{pool} is exhausted: {} did not get any: widen it or delete dead agents",
                count(agents.len(), "agent")
            ));
        }
        for ((ip, _), Unserved { reason, .. }) in &self.unserved {
            problems.push(format!(
                "agent {ip} is not served its share: {reason}: mend the configuration or delete it"
            ));
        }
        if self.tally.failed > 0 {
            problems.push(format!(
                "{} with a failed overlay: see the state for the reasons",
                count(self.tally.failed, "agent")
            ));
        }
        problems
    }

    /// Puts an agent in, or in the place of what was there, keeping what it reported as long as its
    /// addresses are the same.
    pub(super) fn insert(&mut self, ip: Ipv4Addr, record: AgentRecord, version: Version) {
        let mut overlays = self.serve(ip, &record);
        if let Some(before) = self.agents.get(&ip) {
            self.tally.remove(&before.info);
            for overlay in &mut overlays {
                let same = before.info.overlays.iter().find(|old| old.name() == overlay.name());
                overlay.status = same
                    .filter(|same| same.has_addresses_of(overlay))
                    .and_then(|same| same.status.clone());
            }
        }
        let info = Arc::new(AgentInfo { ip, overlays, configuration_attempts: None });
        self.tally.add(&info);
        self.agents.insert(ip, Agent { record, version, info });
    }

    /// Frees in the pools what `released` lists.
    pub(super) fn free(&mut self, ip: Ipv4Addr, released: &ReleasedRecord) {
        if let Some(vtep) = released.vtep_ip {
            self.space.free_vtep(vtep.into(), ip, released.at);
        }
        if let Some(vtep6) = released.vtep_ip6 {
            self.space.free_vtep(vtep6.into(), ip, released.at);
        }
        for overlay in &released.overlays {
            for subnet in overlay.subnet.into_iter().chain(overlay.subnet6) {
                self.space.free(&overlay.name, subnet, ip, released.at);
            }
        }
    }

    /// Frees what `released` lists and keeps it for `ip`.
    fn set_free(&mut self, ip: Ipv4Addr, released: ReleasedRecord) -> Change {
        let key = Key::Agent(ip);
        if released.is_empty() {
            return Change::Delete(key);
        }
        self.free(ip, &released);
        let bytes = encode_record(&Record::Released(released.clone()));
        self.released.insert(ip, released);
        Change::Put(key, bytes)
    }

    /// What the agent with this record is told, in the order of the configuration.
    fn serve(&self, ip: Ipv4Addr, record: &AgentRecord) -> Vec<Assignment> {
        let Some(vtep) = share::vtep(&self.network, record) else {
            return Vec::new();
        };
        let overlays = self.network.overlays.iter();
        let served = overlays
            .filter(|overlay| overlay.enabled)
            .filter(|overlay| !self.unserved.contains_key(&(ip, overlay.name.clone())))
            .filter_map(|overlay| share::assignment(overlay, record, &vtep));
        let mut served: Vec<Assignment> = served.collect();
        // They are kept for as long as the agent is, and there are thousands of agents.
        served.shrink_to_fit();
        served
    }
}

/// The addresses of an assignment, for a sentence.
fn addresses(assignment: &Assignment) -> String {
    let subnets = assignment.subnet.into_iter().chain(assignment.subnet6);
    let mut text: Vec<String> = subnets.map(|subnet| subnet.to_string()).collect();
    text.push(format!("VTEP {}", assignment.vtep.ip.address()));
    text.join(", ")
}

fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}
