//! Who has what: the agents, the deleted agents whose addresses are free, and the records that were
//! set aside. Every change of it comes with the changes of the store that make it last.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use super::share;
use super::space::Space;
use super::underlay::{UnderlayFault, Underlays};
use super::view::{AgentTally, Fate, PoolUsage};
use crate::addr::{Family, OverlayName, Subnet, Upid};
use crate::mutation::Mutation;
use crate::protocol::{
    Addresses, AgentInfo, AgentOptions, AgentRecord, Assignment, Network, OverlayRecord, Record,
    ReleasedRecord, State, Status, Vtep,
};
use crate::store::{Change, Key, Version};
use crate::wire::encode_record;
use crate::words::counted;

/// The latest time of release that is believed, in seconds since 1970: the year 2100. A host's
/// clock may be wrong, also by years, so the time is not compared with it.
pub(super) const RELEASED_AT_MAX: u64 = 4_102_444_800;

/// All agents of a network.
#[derive(Debug, Clone)]
pub(super) struct Registry {
    pub(super) network: Arc<Network>,
    pub(super) space: Space,
    pub(super) agents: BTreeMap<Ipv4Addr, Agent>,
    pub(super) released: BTreeMap<Ipv4Addr, ReleasedRecord>,
    /// Of these, the agents whose time of release was beyond [`RELEASED_AT_MAX`] in the store.
    pub(super) late_releases: BTreeSet<Ipv4Addr>,
    /// Records that contradict the configuration or each other. They stay in the store as they are
    /// until the operator deletes the agent or mends the configuration.
    pub(super) aside: BTreeMap<Ipv4Addr, Aside>,
    /// The shares of served agents that contradict the configuration or each other. They stay in
    /// the record.
    pub(super) unserved: BTreeMap<(Ipv4Addr, OverlayName), Unserved>,
    /// The same of the IPv6 addresses of their VTEPs, and how they do.
    pub(super) unserved_vteps6: BTreeMap<Ipv4Addr, String>,
    /// Where tunnels to the agents run.
    pub(super) underlays: Underlays,
    /// The agents that did not get all they should, by what is exhausted.
    pub(super) lacking: BTreeMap<Supply, BTreeSet<Ipv4Addr>>,
    pub(super) tally: AgentTally,
    /// The agents that sent something since this master leads.
    pub(super) contacts: BTreeMap<Ipv4Addr, Contact>,
    /// The agents that were put in, changed or removed since somebody took note of it.
    pub(super) touched: BTreeSet<Ipv4Addr>,
    /// Whether an agent was deleted whose addresses were in doubt.
    is_unsettled: bool,
}

/// What is not served.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Doubt {
    /// An agent.
    Agent(Ipv4Addr),
    /// The IPv6 address of its VTEP.
    Vtep6(Ipv4Addr),
    /// Its share of an overlay.
    Share(Ipv4Addr, OverlayName),
    /// The address where tunnels to it run.
    Underlay(Ipv4Addr),
}

/// What can be exhausted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Supply {
    /// The subnets of an overlay, of one family.
    Overlay(OverlayName, Family),
    /// The IPv6 addresses of VTEPs.
    Vtep6,
    /// The addresses of VTEPs.
    Vtep,
}

impl fmt::Display for Supply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Overlay(name, family) => write!(f, "overlay {name} ({family})"),
            Self::Vtep6 => f.write_str("the IPv6 VTEP subnet"),
            Self::Vtep => f.write_str("the VTEP subnet"),
        }
    }
}

/// One agent.
#[derive(Debug, Clone)]
pub(super) struct Agent {
    pub(super) record: AgentRecord,
    /// The version that makes `record` durable.
    pub(super) version: Version,
    /// What it is told, and what it reported.
    pub(super) info: Arc<AgentInfo>,
}

/// Where an agent can be reached, and when it was heard last.
#[derive(Debug, Clone)]
pub(super) struct Contact {
    pub(super) upid: Upid,
    /// Since `Now::elapsed` 0.
    pub(super) heard: Duration,
}

/// An agent whose record was set aside.
#[derive(Debug, Clone)]
pub(super) struct Aside {
    /// How the record contradicts the configuration or others.
    pub(super) reason: String,
    /// The record, if it can be read.
    pub(super) record: Option<AgentRecord>,
    /// What of it nobody else has: nobody else gets that.
    pub(super) held: ReleasedRecord,
}

/// An agent's share of an overlay that it is not served.
#[derive(Debug, Clone)]
pub(super) struct Unserved {
    /// How it contradicts the configuration or others.
    pub(super) reason: String,
    /// What of it nobody else has: nobody else gets that.
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
    /// Tunnels to it cannot run where it says.
    Underlay(UnderlayFault),
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
    /// The addresses that the agent has now and had not before.
    pub(super) given: Addresses,
    /// Whether it has some of them from before it was deleted.
    pub(super) is_return: bool,
}

impl Registry {
    pub(super) fn new(network: Arc<Network>) -> Self {
        Self {
            space: Space::new(&network),
            network,
            agents: BTreeMap::new(),
            released: BTreeMap::new(),
            late_releases: BTreeSet::new(),
            aside: BTreeMap::new(),
            unserved: BTreeMap::new(),
            unserved_vteps6: BTreeMap::new(),
            underlays: Underlays::default(),
            lacking: BTreeMap::new(),
            tally: AgentTally::default(),
            contacts: BTreeMap::new(),
            touched: BTreeSet::new(),
            is_unsettled: false,
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
        self.check_registration(ip, options.underlay).map_err(Refusal::Underlay)?;
        self.lacks_nothing(ip);
        let mut outcome = Outcome::default();
        let (before, mut record) = match self.agents.get(&ip) {
            Some(agent) => (Some(agent.version), agent.record.clone()),
            None => (None, self.admit(ip, options, moment, &mut outcome)?),
        };
        self.complete(ip, &mut record, options, moment, &mut outcome);
        let old = self.agents.get(&ip).map(|agent| &agent.record);
        let is_changed = old.is_none_or(|old| *old != record);
        if is_changed {
            outcome.given = Addresses::gained(old, &record);
            let bytes = encode_record(&Record::Agent(record.clone()));
            outcome.changes.push(Change::Put(Key::Agent(ip), bytes));
        }
        let version = before.filter(|_| !is_changed).unwrap_or(moment.version);
        self.insert(ip, record, version);
        Ok(outcome)
    }

    /// The agent at `upid` has sent something.
    pub(super) fn heard(&mut self, upid: &Upid, elapsed: Duration) {
        let ip = *upid.address.ip();
        if self.agents.contains_key(&ip) || self.aside.contains_key(&ip) {
            self.contacts.insert(ip, Contact { upid: upid.clone(), heard: elapsed });
        }
    }

    /// Whether this is a registered agent, under the name that it registered with if it has
    /// registered since this master leads.
    pub(super) fn is_contact(&self, upid: &Upid) -> bool {
        let ip = upid.address.ip();
        self.agents.contains_key(ip)
            && self.contacts.get(ip).is_none_or(|contact| contact.upid == *upid)
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
        if Mutation::ForgetReports.is_on() {
            self.tally.add(&agent.info);
            return Some(report);
        }
        for theirs in reported {
            let ours = info.overlays.iter_mut().find(|ours| ours.name() == theirs.name());
            let Some(ours) = ours else {
                report.unknown += 1;
                continue;
            };
            if Mutation::StatusSticks.is_on() && ours.status.is_some() {
                continue;
            }
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
    /// left. Returns the change of the store, and what was freed; `None` if there is no such
    /// agent.
    ///
    /// What was in doubt because of it is found out by who asks [`Self::take_unsettled`].
    pub(super) fn release(&mut self, ip: Ipv4Addr, unix: u64) -> Option<(Change, Addresses)> {
        self.contacts.remove(&ip);
        self.forget_refusal(ip);
        // Without this agent others may have what they contest with it.
        let had_doubts = self.has_doubts();
        let is_known = self.agents.contains_key(&ip) || self.aside.contains_key(&ip);
        self.is_unsettled |= had_doubts && is_known;
        if let Some(Aside { held, record, .. }) = self.aside.remove(&ip) {
            self.underlays.unreserve(ip, record.and_then(|record| record.underlay));
            self.remove_resolved_refusals();
            return Some(self.keep_for(ip, ReleasedRecord { at: unix, ..held }));
        }
        // Also of an agent that is not there because there was nothing for it.
        self.lacks_nothing(ip);
        let agent = self.agents.remove(&ip)?;
        self.touched.insert(ip);
        self.tally.remove(&agent.info);
        self.update_underlay_claims(ip, agent.record.underlay, None);
        let AgentRecord { vtep_ip, mut vtep_ip6, mut overlays, .. } = agent.record;
        if self.unserved_vteps6.remove(&ip).is_some() {
            vtep_ip6 = None;
        }
        for overlay in &mut overlays {
            if let Some(unserved) = self.unserved.remove(&(ip, overlay.name.clone())) {
                *overlay = unserved.held;
            }
        }
        overlays.retain(|overlay| !overlay.is_empty());
        let mut subnets = overlays
            .iter()
            .flat_map(|overlay| overlay.subnets().map(|subnet| (&overlay.name, subnet)));
        // It may be withheld from the agents of an overlay that has these addresses now.
        self.is_unsettled |= subnets.any(|(name, subnet)| {
            !self.space.is_taken(name, subnet) && self.space.overlaps(&subnet)
        });
        let released = ReleasedRecord { at: unix, vtep_ip: Some(vtep_ip), vtep_ip6, overlays };
        self.free(ip, &released);
        Some(self.keep_for(ip, released))
    }

    /// What the agent at `ip` has; what becomes of it has to be filled in.
    pub(super) fn fate(&self, ip: Ipv4Addr) -> Option<Fate> {
        let (vtep_ip, overlays, set_aside) = match (self.agents.get(&ip), self.aside.get(&ip)) {
            (Some(agent), _) => (Some(agent.record.vtep_ip), &agent.record.overlays, None),
            (None, Some(aside)) => {
                (aside.held.vtep_ip, &aside.held.overlays, Some(aside.reason.clone()))
            }
            (None, None) => return None,
        };
        let subnets = overlays.iter().flat_map(OverlayRecord::subnets);
        Some(Fate {
            vtep_ip: vtep_ip.map(|ip| ip.to_string()),
            subnets: subnets.map(|subnet| subnet.to_string()).collect(),
            set_aside,
            ..Fate::unknown(ip)
        })
    }

    /// Whether an agent was deleted whose addresses were in doubt, since the last time.
    pub(super) const fn take_unsettled(&mut self) -> bool {
        std::mem::replace(&mut self.is_unsettled, false)
    }

    /// The whole cluster. Those who are not served are there as well: an agent without overlays, an
    /// overlay without subnets, and the reason.
    pub(super) fn state(&self) -> State {
        let served = self.agents.iter().map(|(ip, agent)| self.shown(*ip, agent));
        let mut agents: Vec<Arc<AgentInfo>> = served.collect();
        if !self.aside.is_empty() {
            agents.extend(self.aside.keys().map(|ip| {
                let overlays = Vec::new();
                Arc::new(AgentInfo { ip: *ip, overlays, configuration_attempts: None })
            }));
            agents.sort_by_key(|agent| agent.ip);
        }
        State { network: Arc::clone(&self.network), agents }
    }

    fn shown(&self, ip: Ipv4Addr, agent: &Agent) -> Arc<AgentInfo> {
        let mut info = Arc::clone(&agent.info);
        if self.unserved.is_empty() {
            return info;
        }
        let unserved = self.unserved_of(ip);
        let vtep = unserved.clone().next().and_then(|_| share::vtep(&self.network, &agent.record));
        let Some(vtep) = vtep else {
            return info;
        };
        for (name, unserved) in unserved {
            let overlay = self.network.overlays.iter().find(|overlay| overlay.name == *name);
            if let Some(overlay) = overlay.filter(|overlay| overlay.enabled) {
                let reason = format!("the master does not serve this share: {}", unserved.reason);
                let assignment = share::unserved(overlay, &vtep, reason);
                Arc::make_mut(&mut info).overlays.push(assignment);
            }
        }
        info
    }

    fn unserved_of(
        &self,
        ip: Ipv4Addr,
    ) -> impl Iterator<Item = (&OverlayName, &Unserved)> + Clone + use<'_> {
        let shares = self.unserved.iter().filter(move |((agent, _), _)| *agent == ip);
        shares.map(|((_, name), unserved)| (name, unserved))
    }

    pub(super) const fn tally(&self) -> AgentTally {
        self.tally
    }

    pub(super) fn usage(&self) -> Vec<PoolUsage> {
        self.space.usage(&self.network)
    }

    /// Whether anything needs an operator.
    pub(super) fn has_problems(&self) -> bool {
        self.has_doubts()
            || !self.lacking.is_empty()
            || self.underlays.has_problems()
            || self.tally.failed > 0
            || self.releases_out_of_time().is_some()
    }

    fn has_doubts(&self) -> bool {
        !self.aside.is_empty()
            || !self.unserved.is_empty()
            || !self.unserved_vteps6.is_empty()
            || self.underlays.has_unserved()
    }

    /// What needs an operator, one sentence each.
    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems: Vec<String> = self.doubts().into_values().collect();
        problems.extend(self.refused_underlays());
        problems.extend(self.subnets_containing_agents());
        problems.extend(self.shortages());
        problems.extend(self.releases_out_of_time());
        if self.tally.failed > 0 {
            problems.push(format!(
                "{} with a failed overlay: see the state for the reasons",
                counted(self.tally.failed, "agent")
            ));
        }
        problems
    }

    /// What contradicts the configuration or others, and so is not served: of which agent, of which
    /// overlay or of all, and a sentence for the operator.
    pub(super) fn doubts(&self) -> BTreeMap<Doubt, String> {
        let remedy = "mend the configuration or delete the agent";
        let mut doubts = BTreeMap::new();
        for (ip, Aside { reason, record, .. }) in &self.aside {
            let remedy = match record {
                Some(_) => remedy,
                None => "what it may have is given to nobody until the agent is deleted",
            };
            let sentence = format!("agent {ip} is not served: {reason}: {remedy}");
            doubts.insert(Doubt::Agent(*ip), sentence);
        }
        for (ip, reason) in &self.unserved_vteps6 {
            let sentence =
                format!("agent {ip} is not served its IPv6 VTEP address: {reason}: {remedy}");
            doubts.insert(Doubt::Vtep6(*ip), sentence);
        }
        for ((ip, name), Unserved { reason, .. }) in &self.unserved {
            let sentence = format!("agent {ip} is not served its share: {reason}: {remedy}");
            doubts.insert(Doubt::Share(*ip, name.clone()), sentence);
        }
        let underlays = self.unserved_underlays();
        doubts.extend(underlays.map(|(ip, sentence)| (Doubt::Underlay(ip), sentence)));
        doubts
    }

    /// Names the released agents whose time of release no clock can have shown. Their addresses are
    /// reused last, as if they had been released a moment ago.
    fn releases_out_of_time(&self) -> Option<String> {
        let late = self.late_releases.iter().filter_map(|ip| self.released.get_key_value(ip));
        let mut late = late.filter(|(_, record)| record.at > RELEASED_AT_MAX);
        let (ip, record) = late.next()?;
        let others = match late.count() {
            0 => String::new(),
            count => format!(" (and {} more)", counted(count, "agent")),
        };
        Some(format!(
            "agent {ip}{others} was released at {} s after 1970, which no clock can have shown: its \
             addresses are reused last: export the state, put the true time in the place of 'at', \
             and import it",
            record.at
        ))
    }

    /// What is exhausted, one sentence each.
    pub(super) fn shortages(&self) -> impl Iterator<Item = String> {
        self.lacking.iter().map(|(supply, agents)| {
            format!(
                "{supply} is exhausted: {} did not get any: widen it or delete dead agents",
                counted(agents.len(), "agent")
            )
        })
    }

    /// Puts an agent in, or in the place of what was there, keeping what it reported as long as its
    /// addresses are the same.
    pub(super) fn insert(&mut self, ip: Ipv4Addr, record: AgentRecord, version: Version) {
        let mut overlays = self.serve(ip, &record);
        let (mut underlay_before, underlay) = (None, record.underlay);
        if let Some(before) = self.agents.get(&ip) {
            underlay_before = before.record.underlay;
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
        self.update_underlay_claims(ip, underlay_before, underlay);
        self.touched.insert(ip);
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
            for subnet in overlay.subnets() {
                self.space.free(&overlay.name, subnet, ip, released.at);
            }
        }
    }

    /// Keeps what `released` lists for `ip`.
    fn keep_for(&mut self, ip: Ipv4Addr, released: ReleasedRecord) -> (Change, Addresses) {
        let key = Key::Agent(ip);
        let addresses = Addresses::from(released.clone());
        if released.is_empty() {
            return (Change::Delete(key), addresses);
        }
        let bytes = encode_record(&Record::Released(released.clone()));
        self.released.insert(ip, released);
        (Change::Put(key, bytes), addresses)
    }

    /// The tunnel end of the agent with this record, as far as it is served.
    pub(super) fn vtep(&self, ip: Ipv4Addr, record: &AgentRecord) -> Option<Vtep> {
        let mut vtep = share::vtep(&self.network, record)?;
        vtep.ip6 = vtep.ip6.filter(|_| !self.unserved_vteps6.contains_key(&ip));
        Some(vtep)
    }

    /// What the agent with this record is told, in the order of the configuration.
    fn serve(&self, ip: Ipv4Addr, record: &AgentRecord) -> Vec<Assignment> {
        let Some(vtep) = self.vtep(ip, record) else {
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
