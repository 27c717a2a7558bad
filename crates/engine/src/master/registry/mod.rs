//! The agents of a network and the addresses allocated to them. Every method that changes an
//! agent's record returns the changes of the store that make the change durable.
//!
//! Addresses leave the registry only behind a gate: see [`Gated`].

mod address_changes;
mod address_counts;
mod address_pools;
mod agents;
mod allocation;
mod claims;
mod contacts;
mod owners;
mod peer_failures;
mod problems;
mod reassigned;
mod recovery;
mod seen;
mod shared_addresses;
mod shortages;
mod underlay;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use overlay_types::addr::{Family, OverlayName, Subnet};
use overlay_types::assignment;
use overlay_types::mutation::Mutation;
use overlay_types::protocol::{
    Addresses, AgentInfo, AgentOptions, AgentRecord, Assignment, Network, OverlayRecord,
    PeerFailures, PeerInfo, Principal, Record, ReleasedRecord, State, Status, Vtep,
};
use overlay_types::state::{Key, RecordChange, Version};
use overlay_types::tunnel::{DirectPeer, Peer};

use super::gate::Gated;
use super::view::{AgentTally, PoolUsage, ReleaseOutcome, ReleaseResult};
use address_counts::AddressCounts;
pub(super) use address_counts::HalvesTally;
use address_pools::AddressPools;
use agents::{ActiveAgent, AgentState, Agents, QuarantinedAgent, UnservedParts, ValidFrom};
use contacts::Contacts;
pub(super) use recovery::{AdoptedAgent, LastKnown, Recovered};
pub(super) use seen::RequestedAgent;
use shortages::Shortages;
pub(super) use underlay::UnderlayFault;
use underlay::Underlays;

/// The latest plausible time of a release, in seconds since 1970: the year 2100. The time is not
/// compared with the clock of the host, which may be wrong by years.
const RELEASED_AT_MAX: u64 = 4_102_444_800;

/// The agents of one network and the addresses allocated to them.
#[derive(Debug, Clone)]
pub(super) struct Registry {
    network: Arc<Network>,
    pools: AddressPools,
    agents: Agents,
    /// The released agents whose time of release in the store was beyond [`RELEASED_AT_MAX`].
    late_releases: BTreeSet<Ipv4Addr>,
    underlays: Underlays,
    shortages: Shortages,
    contacts: Contacts,
    /// The peers that agents do not reach, by the reporting agent.
    peer_failures: BTreeMap<Ipv4Addr, PeerFailures>,
    address_counts: AddressCounts,
    /// Agents inserted, changed or removed since the last call of [`Self::take_changed_peers`],
    /// with the version that has the change.
    changed: BTreeMap<Ipv4Addr, Version>,
    /// Whether a release may have ended a conflict.
    needs_rebuild: bool,
}

/// A part of a record that is not served because it conflicts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Conflict {
    /// All of an agent's record.
    Agent(Ipv4Addr),
    /// The IPv6 address of the agent's VTEP.
    Vtep6(Ipv4Addr),
    /// The agent's subnets of an overlay.
    Overlay(Ipv4Addr, OverlayName),
    /// The underlay address of the agent.
    Underlay(Ipv4Addr),
}

/// The time of a change, and the version that contains it.
#[derive(Debug, Clone, Copy)]
pub(super) struct ChangeContext {
    /// Seconds since 1970.
    pub(super) unix: u64,
    /// The version of the next commit, with which a change of a record becomes durable.
    pub(super) next: Version,
    /// The version that contains every change until now.
    pub(super) latest: Version,
    /// The cooldown: how long a released address is not reused while other addresses are left.
    pub(super) reuse_after: Duration,
}

/// A part of a registration that needs an operator's attention.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Notice {
    /// No IPv6 address is left for the VTEP.
    NoVtep6,
    /// No subnet of this family is left in the overlay.
    NoSubnet(OverlayName, Family),
    /// An address was reused before its cooldown ended, since no other address was left.
    EarlyReuse(String),
}

/// Why a registration is refused. The text is for the operators of the master and of the agent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum RegisterError {
    /// No VTEP address is left.
    #[error("no VTEP address is left in {0}: widen vtep_subnet or delete dead agents")]
    NoVtep(Subnet),
    /// The record of the agent is quarantined.
    #[error("{0}: fix the master's configuration or delete the agent")]
    Quarantined(String),
    /// The agent cannot have the underlay address that it sent.
    #[error(transparent)]
    Underlay(UnderlayFault),
    /// An agent that is not authenticated sent another underlay address than before.
    #[error(
        "its underlay address has changed, which needs authentication: set 'credential' of the \
         agent, or delete the agent"
    )]
    UnderlayChanged,
}

/// How much is known about the sender of a registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sender<'a> {
    /// The master has no credentials, or repeats the last registration itself.
    Unchecked,
    /// Any process that uses the address of the agent can be the sender.
    Unauthenticated,
    /// The sender has the secret of this principal.
    Authenticated(&'a Principal),
}

/// The result of an agent's report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Report {
    /// The version from which the reported assignments are durable.
    pub(super) valid_from: Version,
    /// Overlays that were not assigned to the agent.
    pub(super) unknown: u64,
    /// Overlays whose addresses differ from the assigned addresses.
    pub(super) outdated: u64,
}

/// The result of a registration.
#[derive(Debug, Default)]
pub(super) struct Registration {
    /// The changes of the store.
    pub(super) changes: Vec<RecordChange>,
    pub(super) notices: Vec<Notice>,
    /// The addresses that the agent gained by the registration, and had before its release.
    pub(super) returned: Addresses,
    /// The other addresses that the agent gained by the registration.
    pub(super) assigned: Addresses,
}

impl Registry {
    fn new(network: Arc<Network>) -> Self {
        Self {
            pools: AddressPools::new(&network),
            network,
            agents: Agents::default(),
            late_releases: BTreeSet::new(),
            underlays: Underlays::default(),
            shortages: Shortages::default(),
            contacts: Contacts::default(),
            peer_failures: BTreeMap::new(),
            address_counts: AddressCounts::default(),
            changed: BTreeMap::new(),
            needs_rebuild: false,
        }
    }

    pub(super) const fn network(&self) -> &Arc<Network> {
        &self.network
    }

    /// Allocates a VTEP and every missing subnet for the agent. Existing allocations are kept.
    ///
    /// # Errors
    /// Returns why the agent gets no addresses. The record of the agent is unchanged.
    pub(super) fn register(
        &mut self,
        ip: Ipv4Addr,
        options: &AgentOptions,
        sender: Sender<'_>,
        context: ChangeContext,
    ) -> Result<Registration, RegisterError> {
        if let Some(AgentState::Quarantined(agent)) = self.agents.get(ip) {
            return Err(RegisterError::Quarantined(agent.reason.clone()));
        }
        self.check_registration(ip, options.underlay).map_err(RegisterError::Underlay)?;
        let before = self.agents.active(ip).cloned();
        let has_other_underlay =
            before.as_ref().is_some_and(|agent| agent.record.underlay != options.underlay);
        if has_other_underlay && sender == Sender::Unauthenticated {
            return Err(RegisterError::UnderlayChanged);
        }
        self.shortages.clear(ip);
        let mut registration = Registration::default();
        let mut record = match &before {
            Some(agent) => agent.record.clone(),
            None => self.admit(ip, options, context, &mut registration)?,
        };
        self.complete(ip, &mut record, options, context, &mut registration);
        if let Sender::Authenticated(principal) = sender {
            record.authenticated = Some(principal.clone());
        }
        let old = before.as_ref().map(|agent| &agent.record);
        if old == Some(&record) {
            return Ok(registration);
        }
        let gained = Addresses::gained(old, &record);
        (registration.returned, registration.assigned) = gained.partition(&registration.returned);
        let change = RecordChange::PutAgent(ip, Record::Agent(record.clone()));
        registration.changes.push(change);
        let (valid_from, unserved) = match before {
            Some(ActiveAgent { record: old, mut valid_from, unserved, .. }) => {
                valid_from.update(&old, &record, context.next);
                (valid_from, unserved)
            }
            None => {
                let mut valid_from = ValidFrom::new(context.next);
                let nothing =
                    AgentRecord { vtep_ip6: None, overlays: Vec::new(), ..record.clone() };
                valid_from.update(&nothing, &record, context.next);
                (valid_from, None)
            }
        };
        self.put_active(ip, record, valid_from, unserved, context.next);
        Ok(registration)
    }

    /// Returns whether the agent has a record that was not released.
    pub(super) fn is_known(&self, ip: Ipv4Addr) -> bool {
        self.agents.is_known(ip)
    }

    /// Returns the principal with which the agent last authenticated, if it ever did since it was
    /// last released.
    pub(super) fn principal(&self, ip: Ipv4Addr) -> Option<&Principal> {
        match self.agents.get(ip)? {
            AgentState::Active(agent) => agent.record.authenticated.as_ref(),
            AgentState::Quarantined(agent) => agent.record.as_ref()?.authenticated.as_ref(),
            AgentState::Released(_) => None,
        }
    }

    /// Returns the registered agents that never authenticated.
    pub(super) fn unauthenticated_agents(&self) -> impl Iterator<Item = Ipv4Addr> {
        let agents = self.agents.iter_active();
        agents.filter(|(_, agent)| agent.record.authenticated.is_none()).map(|(ip, _)| ip)
    }

    /// Returns whether the agent is registered.
    pub(super) fn is_active(&self, ip: Ipv4Addr) -> bool {
        self.agents.is_active(ip)
    }

    /// Returns the registered agents.
    pub(super) fn active_agents(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.agents.iter_active().map(|(ip, _)| ip)
    }

    /// Returns the assignments of the agent, without statuses.
    pub(super) fn assignments(&self, ip: Ipv4Addr) -> Option<Gated<Vec<Assignment>>> {
        let agent = self.agents.active(ip)?;
        Some(Gated::new(plain_assignments(agent), agent.valid_from.latest()))
    }

    /// Returns the version from which the assignments of the agent may be sent.
    pub(super) fn valid_from(&self, ip: Ipv4Addr) -> Option<Version> {
        self.agents.active(ip).map(|agent| agent.valid_from.latest())
    }

    /// Notes the reported statuses of the agent's overlays. Returns `None` if the agent is not
    /// registered.
    pub(super) fn report(&mut self, ip: Ipv4Addr, reported: Vec<Assignment>) -> Option<Report> {
        let valid_from = self.valid_from(ip)?;
        let mut report = Report { valid_from, unknown: 0, outdated: 0 };
        if Mutation::IgnoreReports.is_on() {
            return Some(report);
        }
        self.agents.edit_info(ip, |info| {
            let mut seen = BTreeSet::new();
            for reported in reported {
                let mut overlays = info.overlays.iter_mut();
                let Some(assigned) = overlays.find(|it| it.name() == reported.name()) else {
                    report.unknown += 1;
                    continue;
                };
                let is_repeated = !seen.insert(assigned.name().clone());
                if Mutation::KeepFirstStatus.is_on() && assigned.status.is_some() {
                    continue;
                }
                assigned.status = if is_repeated {
                    let reason = "the agent reports this overlay more than once: restart it";
                    Some(Status::Failed(reason.to_owned()))
                } else if reported.has_same_addresses(assigned) {
                    reported.status.map(Status::sanitized)
                } else {
                    report.outdated += 1;
                    // A C++ agent keeps what it configured first until it is restarted.
                    Some(Status::Failed(format!(
                        "the agent still uses {}, and was assigned {}: restart it",
                        addresses(&reported),
                        addresses(assigned)
                    )))
                };
            }
            info.overlays.iter_mut().filter(|it| !seen.contains(it.name())).for_each(omit_status);
        })?;
        Some(report)
    }

    /// Releases the addresses of the agent. They stay reserved for it while other addresses are
    /// left. Returns the change of the store and the released addresses, or `None` if the agent is
    /// not known.
    ///
    /// The next [`Self::resolve_conflicts`] resolves the conflicts that end by the release.
    pub(super) fn release(
        &mut self,
        ip: Ipv4Addr,
        context: ChangeContext,
    ) -> Option<(RecordChange, Addresses)> {
        self.contacts.remove(ip);
        self.peer_failures.remove(&ip);
        self.forget_address_counts(ip);
        self.forget_refusal(ip);
        // The release may end a conflict with another agent.
        self.needs_rebuild |= self.has_conflicts() && self.agents.is_known(ip);
        if !matches!(self.agents.get(ip), Some(AgentState::Quarantined(_))) {
            // The agent may have been refused because no VTEP was left.
            self.shortages.clear(ip);
        }
        if !self.agents.is_known(ip) {
            return None;
        }
        match self.agents.remove(ip)? {
            AgentState::Quarantined(agent) => {
                let QuarantinedAgent { held, record, .. } = *agent;
                self.underlays.unreserve(ip, record.and_then(|record| record.underlay));
                self.remove_resolved_refusals();
                Some(self.reserve_released(ip, ReleasedRecord { at: context.unix, ..held }))
            }
            AgentState::Active(agent) => Some(self.release_active(ip, agent, context)),
            AgentState::Released(_) => None,
        }
    }

    fn release_active(
        &mut self,
        ip: Ipv4Addr,
        agent: ActiveAgent,
        context: ChangeContext,
    ) -> (RecordChange, Addresses) {
        self.changed.insert(ip, context.next);
        self.update_underlay_claims(ip, agent.record.underlay, None, context.next);
        let AgentRecord { vtep_ip, mut vtep_ip6, mut overlays, .. } = agent.record;
        if let Some(mut unserved) = agent.unserved {
            if unserved.vtep_ip6.is_some() {
                vtep_ip6 = None;
            }
            for overlay in &mut overlays {
                if let Some(unserved) = unserved.overlays.remove(&overlay.name) {
                    *overlay = unserved.held;
                }
            }
        }
        overlays.retain(|overlay| !overlay.is_empty());
        let mut subnets = overlays
            .iter()
            .flat_map(|overlay| overlay.subnets().map(|subnet| (&overlay.name, subnet)));
        // The subnet may be reserved in the pool of another overlay that has these addresses now.
        self.needs_rebuild |= subnets.any(|(name, subnet)| {
            !self.pools.is_taken(name, subnet) && self.pools.overlaps(&subnet)
        });
        let at = context.unix;
        let released = ReleasedRecord { at, vtep_ip: Some(vtep_ip), vtep_ip6, overlays };
        self.free(ip, &released);
        self.reserve_released(ip, released)
    }

    /// Returns the result of a request to release the agent, or `None` if the agent is not known.
    /// To be called before the release.
    pub(super) fn release_result(
        &self,
        ip: Ipv4Addr,
        result: ReleaseOutcome,
        silence: Option<Duration>,
    ) -> Option<Gated<ReleaseResult>> {
        let (valid_from, vtep_ip, overlays, quarantined) = match self.agents.get(ip)? {
            AgentState::Active(agent) => {
                let AgentRecord { vtep_ip, overlays, .. } = &agent.record;
                (agent.valid_from.latest(), Some(*vtep_ip), overlays, None)
            }
            AgentState::Quarantined(agent) => {
                let ReleasedRecord { vtep_ip, overlays, .. } = &agent.held;
                (Version(0), *vtep_ip, overlays, Some(agent.reason.clone()))
            }
            AgentState::Released(_) => return None,
        };
        let subnets = overlays.iter().flat_map(OverlayRecord::subnets);
        let result = ReleaseResult {
            ip,
            vtep_ip: vtep_ip.map(|ip| ip.to_string()),
            subnets: subnets.map(|subnet| subnet.to_string()).collect(),
            result,
            last_seen_seconds_ago: silence.map(|silence| silence.as_secs()),
            quarantined,
        };
        Some(Gated::new(result, valid_from))
    }

    /// Rebuilds the registry if a release may have ended a conflict since the last call. Newly
    /// served addresses are exclusive only when the release is durable.
    pub(super) fn resolve_conflicts(&mut self, context: ChangeContext) -> Vec<AdoptedAgent> {
        if !std::mem::take(&mut self.needs_rebuild) {
            return Vec::new();
        }
        let Recovered { registry, adopted } = self.rebuilt(Arc::clone(&self.network), context);
        *self = registry;
        adopted
    }

    /// Returns the whole cluster. A quarantined agent is shown without overlays. An unserved
    /// overlay is shown without subnets, with the reason.
    pub(super) fn state(&self) -> Gated<State> {
        let versions = self.agents.iter_active().map(|(_, agent)| agent.valid_from.latest());
        let valid_from = versions.fold(Version(0), Version::max);
        let agents = self.agents.iter().filter_map(|(ip, state)| match state {
            AgentState::Active(agent) => Some(self.shown(agent)),
            AgentState::Quarantined(_) => {
                let overlays = Vec::new();
                Some(Arc::new(AgentInfo { ip, overlays, configuration_attempts: None }))
            }
            AgentState::Released(_) => None,
        });
        let state = State {
            network: Arc::clone(&self.network),
            agents: agents.collect(),
            contacts: self.contact_times(),
            peer_failures: self.shown_peer_failures(),
            address_counts: self.shown_address_counts(),
            principals: self.principals(),
        };
        Gated::new(state, valid_from)
    }

    fn principals(&self) -> BTreeMap<Ipv4Addr, Principal> {
        let agents = self.agents.iter().map(|(ip, _)| ip);
        agents.filter_map(|ip| Some((ip, self.principal(ip)?.clone()))).collect()
    }

    /// Returns an agent with its unserved overlays.
    fn shown(&self, agent: &ActiveAgent) -> Arc<AgentInfo> {
        let mut info = Arc::clone(&agent.info);
        if agent.unserved.is_none() {
            return info;
        }
        let Some(vtep) = assignment::build_vtep(&self.network, &agent.record) else {
            return info;
        };
        for (name, unserved) in agent.unserved_overlays() {
            let overlay = self.network.overlays.iter().find(|overlay| overlay.name == *name);
            if let Some(overlay) = overlay.filter(|overlay| overlay.enabled) {
                let reason =
                    format!("the master does not serve this allocation: {}", unserved.reason);
                let assignment = assignment::failed_assignment(overlay, &vtep, reason);
                Arc::make_mut(&mut info).overlays.push(assignment);
            }
        }
        info
    }

    pub(super) const fn tally(&self) -> AgentTally {
        self.agents.tally()
    }

    pub(super) fn usage(&self) -> Vec<PoolUsage> {
        self.pools.usage(&self.network)
    }

    /// Returns the agents that changed since the last call, as entries of the table of peers.
    /// `None` stands for an agent that is not served, or whose underlay address is not served.
    pub(super) fn take_changed_peers(&mut self) -> Vec<(Ipv4Addr, Gated<Option<PeerInfo>>)> {
        let changed = std::mem::take(&mut self.changed).into_iter();
        changed.map(|(ip, version)| (ip, self.peer(ip).not_before(version))).collect()
    }

    /// Returns the agent's entry in the table of peers. An agent without subnets has an entry, too.
    pub(super) fn peer(&self, ip: Ipv4Addr) -> Gated<Option<PeerInfo>> {
        let agent = self.agents.active(ip).filter(|_| !self.underlays.is_unserved(ip));
        let info = agent.and_then(|agent| self.peer_info(ip, agent));
        let valid_from = agent.map_or(Version(0), |agent| agent.valid_from.latest());
        Gated::new(info, valid_from)
    }

    fn peer_info(&self, ip: Ipv4Addr, agent: &ActiveAgent) -> Option<PeerInfo> {
        let vtep = self.vtep(&agent.record, agent.is_vtep_ip6_unserved())?;
        let mut subnets = Vec::new();
        for overlay in &agent.info.overlays {
            for subnet in overlay.subnet.into_iter().chain(overlay.subnet6) {
                subnets.push((overlay.name().clone(), subnet));
            }
        }
        // The order of the overlays in the configuration must not change the entry.
        subnets.sort();
        let address = |address: IpAddr| match address {
            IpAddr::V4(v4) => (Some(v4), None),
            IpAddr::V6(v6) => (None, Some(v6)),
        };
        let peer = Peer {
            ip: address(vtep.ip.address()).0,
            ip6: vtep.ip6.and_then(|ip6| address(ip6.address()).1),
            mac: vtep.mac,
            subnets,
            direct: agent.record.direct_mac.map(|mac| DirectPeer { mac, is_used: false }),
        };
        let underlay = agent.record.underlay.map_or(IpAddr::V4(ip), IpAddr::V6);
        Some(PeerInfo { underlay, peer })
    }

    /// Puts an agent into the active state in `version`. Reported statuses are kept for overlays
    /// with unchanged addresses.
    fn put_active(
        &mut self,
        ip: Ipv4Addr,
        record: AgentRecord,
        valid_from: ValidFrom,
        unserved: Option<Box<UnservedParts>>,
        version: Version,
    ) {
        let info = Arc::new(AgentInfo { ip, overlays: Vec::new(), configuration_attempts: None });
        let is_stale = self.contacts.stale().contains(&ip);
        let mut agent = ActiveAgent { record, valid_from, unserved, info, is_stale };
        let mut overlays = self.build_assignments(&agent);
        let (mut underlay_before, underlay) = (None, agent.record.underlay);
        if let Some(before) = self.agents.active(ip) {
            underlay_before = before.record.underlay;
            for overlay in &mut overlays {
                let same = before.info.overlays.iter().find(|old| old.name() == overlay.name());
                overlay.status = same
                    .filter(|same| same.has_same_addresses(overlay))
                    .and_then(|same| same.status.clone());
            }
        }
        Arc::make_mut(&mut agent.info).overlays = overlays;
        self.agents.insert(ip, AgentState::Active(agent));
        self.update_underlay_claims(ip, underlay_before, underlay, version);
        self.changed.insert(ip, version);
    }

    /// Frees the addresses of `released` in the pools.
    fn free(&mut self, ip: Ipv4Addr, released: &ReleasedRecord) {
        if let Some(vtep) = released.vtep_ip {
            self.pools.free_vtep(vtep.into(), ip, released.at);
        }
        if let Some(vtep6) = released.vtep_ip6 {
            self.pools.free_vtep(vtep6.into(), ip, released.at);
        }
        for overlay in &released.overlays {
            for subnet in overlay.subnets() {
                self.pools.free(&overlay.name, subnet, ip, released.at);
            }
        }
    }

    /// Reserves the addresses of `released` for the agent that had them.
    fn reserve_released(
        &mut self,
        ip: Ipv4Addr,
        released: ReleasedRecord,
    ) -> (RecordChange, Addresses) {
        let addresses = Addresses::from(released.clone());
        if released.is_empty() {
            return (RecordChange::Delete(Key::Agent(ip)), addresses);
        }
        let change = RecordChange::PutAgent(ip, Record::Released(released.clone()));
        self.agents.insert(ip, AgentState::Released(released));
        (change, addresses)
    }

    /// Returns the VTEP of an agent, without an unserved IPv6 address.
    fn vtep(&self, record: &AgentRecord, is_ip6_unserved: bool) -> Option<Vtep> {
        let mut vtep = assignment::build_vtep(&self.network, record)?;
        vtep.ip6 = vtep.ip6.filter(|_| !is_ip6_unserved);
        Some(vtep)
    }

    /// Returns the assignments of an agent, in the order of the configuration.
    fn build_assignments(&self, agent: &ActiveAgent) -> Vec<Assignment> {
        let Some(vtep) = self.vtep(&agent.record, agent.is_vtep_ip6_unserved()) else {
            return Vec::new();
        };
        let overlays = self.network.overlays.iter();
        let served = overlays
            .filter(|overlay| overlay.enabled)
            .filter(|overlay| !agent.is_overlay_unserved(&overlay.name))
            .filter_map(|overlay| assignment::build_assignment(overlay, &agent.record, &vtep));
        let mut served: Vec<Assignment> = served.collect();
        // The registry keeps the assignments of thousands of agents.
        served.shrink_to_fit();
        served
    }
}

/// Returns the assignments of an agent without the statuses that it reported.
fn plain_assignments(agent: &ActiveAgent) -> Vec<Assignment> {
    let plain = |one: &Assignment| Assignment { status: None, ..one.clone() };
    agent.info.overlays.iter().map(plain).collect()
}

/// Changes the status of an overlay that the last report of its agent omits. Without an earlier
/// status, the overlay is newer than the report, or the agent never reports it: both are no success.
fn omit_status(assigned: &mut Assignment) {
    if assigned.status.is_some() {
        let reason = "the last report of the agent omits this overlay: see its log, or restart it";
        assigned.status = Some(Status::Failed(reason.to_owned()));
    }
}

/// Lists the addresses of an assignment for a sentence.
fn addresses(assignment: &Assignment) -> String {
    let subnets = assignment.subnet.into_iter().chain(assignment.subnet6);
    let mut text: Vec<String> = subnets.map(|subnet| subnet.to_string()).collect();
    text.push(format!("VTEP {}", assignment.vtep.ip.address()));
    text.join(", ")
}
