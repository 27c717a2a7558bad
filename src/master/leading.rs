//! A master that leads and has its state: registrations, reports, peers, and requests.

use std::collections::{BTreeSet, HashMap};
use std::mem;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use super::command::{Command, Reply};
use super::effect::{Effect, PreviewJob, ReconfigurationPlan};
use super::event::{Forget, Request};
#[cfg(test)]
use super::gate::Gate;
use super::gate::Gated;
use super::history::History;
use super::peers::Peers;
use super::registry::{
    AdoptedAgent, ChangeContext, Notice, Recovered, RegisterError, Registration, Registry, Reports,
};
use super::reload::log_refused;
use super::state_writer::StateWriter;
use super::view::{AgentTally, PeersTally, PoolUsage, ReleaseOutcome, ReleaseResult};
use super::{Outbox, Settings};
use crate::addr::{Family, Upid};
use crate::clock::Now;
use crate::machine::is_worth_a_line;
use crate::mutation::Mutation;
use crate::protocol::{
    Addresses, AgentOptions, Assignment, HistoryEvent, Message, MessageKind, Network, PeersHave,
};
use crate::store::{Epoch, Key, Loaded, Version};
use crate::words::{first_few, named};

/// An agent that was last seen within this time is running: agents register again within a quarter
/// of an hour, and one of these messages may get lost. Agents with the C++ modules do not register
/// again, so of them only a short time is known.
const RUNNING: Duration = Duration::from_secs(30 * 60);
/// How long after its election a master may have received nothing from an agent that is running:
/// longer than the longest interval between two registrations.
const SETTLING: Duration = Duration::from_secs(2 * 60);

/// The state of a master that leads.
#[derive(Debug)]
pub(super) struct Leading {
    registry: Registry,
    writer: StateWriter,
    peers: Peers,
    pending_updates: PendingUpdates,
    /// How long a released address is not reused as long as others are left.
    reuse_after: Duration,
    /// When the state was loaded, since `Now::elapsed` 0.
    since: Duration,
}

/// The assignments that are held back until a version is durable. Agents register again and again
/// while a disk hangs, and one answer is enough.
#[derive(Debug, Default)]
struct PendingUpdates {
    held: HashMap<Upid, Version>,
    /// Agents that were released while their assignments were held back.
    withdrawn: BTreeSet<Ipv4Addr>,
}

impl PendingUpdates {
    /// Returns whether assignments are to be sent, and notes those that will be held back.
    /// Unchanged assignments that are held back already are not sent twice.
    fn add(&mut self, to: &Upid, valid_from: Version, is_changed: bool) -> bool {
        self.held.insert(to.clone(), valid_from) != Some(valid_from) || is_changed
    }

    fn committed(&mut self, version: Version) {
        self.held.retain(|_, valid_from| *valid_from > version);
    }

    /// Takes back the assignments that are held back for released agents. They were never stored,
    /// and the next commit may give them to other agents.
    fn take_withdrawal(&mut self) -> Option<Command> {
        let agents = mem::take(&mut self.withdrawn);
        if agents.is_empty() || Mutation::SendToReleasedAgent.is_on() {
            return None;
        }
        self.held.retain(|to, _| !agents.contains(to.address.ip()));
        Some(Command::Withdraw(agents))
    }
}

impl Leading {
    /// Builds the state from what the store has and from what agents reported before.
    pub(super) fn recover(
        now: Now,
        settings: &Settings,
        loaded: Loaded,
        reports: &Reports,
    ) -> Self {
        let Loaded { epoch, version, records } = loaded;
        let (mut agents, mut parts) = (Vec::new(), Vec::new());
        for (key, bytes) in records {
            match key {
                Key::Agent(ip) => agents.push((ip, bytes)),
                Key::History(number) => parts.push((number, bytes)),
            }
        }
        let Recovered { mut registry, adopted } =
            Registry::recover(Arc::clone(&settings.network), version, agents);
        registry.recall(reports);
        log_conflicts(&registry);
        log::info!(
            "recovered {} agents from version {} of the state; epoch {} begins",
            registry.tally().total,
            version.0,
            epoch.0
        );
        let mut leading = Self {
            peers: Peers::new(epoch.0, registry.take_changed_peers()),
            registry,
            writer: StateWriter::new(epoch, version, History::recover(parts)),
            pending_updates: PendingUpdates::default(),
            reuse_after: settings.reuse_after,
            since: now.elapsed,
        };
        leading.note_adopted(now, adopted);
        leading
    }

    fn context(&self, now: Now) -> ChangeContext {
        ChangeContext {
            unix: now.unix,
            next: self.writer.next_version(),
            latest: self.writer.latest_version(),
            reuse_after: self.reuse_after,
        }
    }

    /// Returns whether this master takes such a message from the sender.
    pub(super) fn accepts(&self, from: &Upid, kind: MessageKind) -> bool {
        match kind {
            MessageKind::AgentRegistered | MessageKind::RequestPeers => {
                self.registry.is_contact(from)
            }
            MessageKind::RegisterAgent => true,
            MessageKind::UpdateAgentOverlays
            | MessageKind::AgentRegisteredAcknowledgement
            | MessageKind::UpdatePeers => false,
        }
    }

    /// Registers an agent, and sends it its assignments.
    pub(super) fn register(
        &mut self,
        now: Now,
        from: Upid,
        options: &AgentOptions,
        out: &mut Outbox,
    ) {
        let ip = *from.address.ip();
        let context = self.context(now);
        let result = self.registry.register(ip, options, context);
        self.registry.record_contact(&from, now.elapsed);
        match result {
            Ok(registration) => {
                let is_changed = !registration.changes.is_empty();
                if is_changed {
                    log::info!("{from} registered: allocation or options changed");
                }
                self.store_registration(now, ip, registration, "it registered", out);
                self.send_assignments(from, is_changed, out);
            }
            Err(error) => {
                out.counters.register_agent_messages_dropped += 1;
                log_refused_registration(&from, error, out);
            }
        }
    }

    /// Writes what an agent was given, and why.
    fn store_registration(
        &mut self,
        now: Now,
        ip: Ipv4Addr,
        registration: Registration,
        reason: &str,
        out: &mut Outbox,
    ) {
        let Registration { changes, notices, gained, is_return } = registration;
        self.writer.change(changes);
        if !gained.is_empty() {
            let event = if is_return { HistoryEvent::Returned } else { HistoryEvent::Assigned };
            self.writer.note(now, Some(ip), event, gained, reason);
        }
        notices.iter().for_each(|notice| self.log_notice(ip, notice, out));
    }

    fn log_notice(&self, ip: Ipv4Addr, notice: &Notice, out: &mut Outbox) {
        let counters = &mut out.counters;
        match notice {
            Notice::NoVtep6 => {
                counters.ip6_allocation_failures += 1;
                log::warn!("agent {ip} gets no IPv6 VTEP address: vtep_subnet6 is exhausted");
            }
            Notice::NoSubnet(overlay, family) => {
                match family {
                    Family::V4 => counters.subnet_allocation_failures += 1,
                    Family::V6 => counters.subnet6_allocation_failures += 1,
                }
                log::warn!(
                    "agent {ip} gets no subnet of overlay {overlay}: its {family} space is \
                     exhausted: widen it or delete dead agents"
                );
            }
            Notice::EarlyReuse(address) => {
                counters.early_reuses += 1;
                log::warn!(
                    "agent {ip} gets {address}, which another agent had less than {} ago: nothing \
                     else is left",
                    humantime::format_duration(self.reuse_after)
                );
            }
        }
    }

    /// Sends the agent its assignments, unless the same ones are held back for it already.
    fn send_assignments(&mut self, to: Upid, is_changed: bool, out: &mut Outbox) {
        let Some(assignments) = self.registry.assignments(*to.address.ip()) else {
            return;
        };
        let valid_from = assignments.valid_from();
        let is_held_back = valid_from > self.writer.durable();
        if is_held_back && !self.pending_updates.add(&to, valid_from, is_changed) {
            return;
        }
        out.counters.update_agent_overlays_messages_sent += 1;
        log::debug!("{to} registered and is assigned {} overlays", assignments.overlay_count());
        out.push(assignments.into_update(to));
    }

    /// Notes what an agent reports, and acknowledges it.
    pub(super) fn report(
        &mut self,
        now: Now,
        from: Upid,
        overlays: Vec<Assignment>,
        out: &mut Outbox,
    ) {
        self.registry.record_contact(&from, now.elapsed);
        let Some(report) = self.registry.report(*from.address.ip(), overlays) else {
            out.drop_report(&from);
            return;
        };
        let counters = &mut out.counters;
        counters.unknown_overlays_reported += report.unknown;
        counters.outdated_overlays_reported += report.outdated;
        // The state shows an outdated overlay with the reason.
        log::debug!("{from} reports {} unknown, {} outdated", report.unknown, report.outdated);
        counters.agent_registered_acknowledgements_sent += 1;
        let message = Message::AgentRegisteredAcknowledgement;
        out.push(Command::Send { to: from, message, when: report.valid_from });
    }

    /// Subscribes an agent to its peers, and answers at once if the agent has the latest table.
    pub(super) fn subscribe(&mut self, now: Now, from: Upid, have: PeersHave, out: &mut Outbox) {
        // A message that another process sends in the name of an agent would turn its updates away.
        if !self.registry.is_contact(&from) {
            out.drop_request_for_peers(&from);
            return;
        }
        self.registry.record_contact(&from, now.elapsed);
        let (latest, durable) = (self.writer.latest_version(), self.writer.durable());
        let answer = self.peers.subscribe(from.clone(), have, now.elapsed, (latest, durable));
        if let Some((update, bytes)) = answer {
            out.counters.update_peers_messages_sent += 1;
            out.counters.update_peers_bytes_sent += bytes as u64;
            out.push(update.into_send(from));
        }
    }

    /// Sends the next subscribers what they are missing, if it is time.
    pub(super) fn serve_peers(&mut self, now: Now, out: &mut Outbox) {
        let (latest, durable) = (self.writer.latest_version(), self.writer.durable());
        for shipment in self.peers.slice(now.elapsed, latest, durable) {
            let (to, bytes) = (shipment.to, shipment.bytes);
            out.counters.update_peers_messages_sent += to.len() as u64;
            out.counters.update_peers_bytes_sent += (to.len() * bytes) as u64;
            out.push(shipment.update.into_broadcast(to));
        }
    }

    /// Ends the handling of an event: updates the table of peers, and begins the next commit.
    pub(super) fn finish_event(&mut self, now: Now, out: &mut Outbox) {
        for (ip, info) in self.registry.take_changed_peers() {
            if Mutation::SkipPeerChanges.is_on() {
                continue;
            }
            self.peers.set(ip, info);
            if !self.registry.is_active(ip) {
                self.peers.unsubscribe(ip);
            }
        }
        self.peers.schedule(now.elapsed);
        if let Some(commit) = self.writer.take_commit() {
            out.push(commit);
        }
    }

    pub(super) fn committed(&mut self, version: Version) {
        self.writer.committed(version);
        self.pending_updates.committed(version);
    }

    /// Returns when something is due even if nothing happens.
    pub(super) fn next_timeout(&self) -> Option<Duration> {
        self.peers.next_timeout()
    }

    /// Takes another configuration, unless an agent would lose by it what it has.
    pub(super) fn reconfigure(
        &mut self,
        now: Now,
        settings: &Settings,
        out: &mut Outbox,
    ) -> Effect {
        let context = ChangeContext { reuse_after: settings.reuse_after, ..self.context(now) };
        let network = Arc::clone(&settings.network);
        let plan = ReconfigurationPlan::new(&self.registry, network, context);
        let ReconfigurationPlan { registry, adopted, registrations, updated, effect } = plan;
        if !effect.accepted {
            log_refused(&effect.problems);
            return effect;
        }
        self.reuse_after = settings.reuse_after;
        self.registry = registry;
        self.note_adopted(now, adopted);
        if effect.changes.is_empty() {
            log::info!("read the configuration again: the network has not changed");
        } else {
            let changes = effect.changes.join("; ");
            log::info!("took over another configuration: {changes}");
            let addresses = Addresses::default();
            self.writer.note(now, None, HistoryEvent::Configured, addresses, &changes);
        }
        for (ip, registration) in registrations {
            let reason = "the configuration has changed";
            self.store_registration(now, ip, registration, reason, out);
        }
        for upid in updated {
            self.send_assignments(upid, true, out);
        }
        effect
    }

    /// Notes the agents that keep addresses under another name.
    fn note_adopted(&mut self, now: Now, adopted: Vec<AdoptedAgent>) {
        for AdoptedAgent { ip, change, addresses } in adopted {
            self.writer.change([change]);
            let reason = "the configuration has another name for the overlay";
            self.writer.note(now, Some(ip), HistoryEvent::Renamed, addresses, reason);
        }
    }

    /// Returns the work that previews another network.
    pub(super) fn preview_job(&self, now: Now, network: Network) -> PreviewJob {
        PreviewJob::new(&self.registry, network, self.context(now))
    }

    /// Puts a reply about the state behind the version that has every change until now.
    pub(super) fn gate_reply(&self, reply: Reply) -> Gated<Reply> {
        Gated::new(reply, self.writer.latest_version())
    }

    /// Answers a request for which the state is needed.
    pub(super) fn answer(&mut self, now: Now, request: Request, out: &mut Outbox) -> Gated<Reply> {
        let reply = match request {
            Request::DeleteAgents(ips) => {
                let release = |ip: &Ipv4Addr| self.release(now, *ip, "it was deleted over HTTP");
                let (released, unknown): (Vec<_>, Vec<_>) = ips.into_iter().partition(release);
                log_released(&released);
                if !unknown.is_empty() {
                    log::info!("nothing to delete of {}", named(&unknown, "unknown agent"));
                }
                self.resolve_conflicts(now);
                self.registry.state().into_reply(Reply::State)
            }
            Request::Forget(forget) => self.forget(now, &forget).into_reply(Reply::ReleaseResults),
            Request::History(agent) => self.gate_reply(Reply::History(self.writer.history(agent))),
            // The other requests are answered whatever the phase.
            Request::State
            | Request::Health
            | Request::Metrics
            | Request::Reload
            | Request::Preview(_) => self.registry.state().into_reply(Reply::State),
        };
        out.extend(self.pending_updates.take_withdrawal());
        reply.not_before(self.writer.latest_version())
    }

    /// Releases an agent. Returns whether it was known.
    fn release(&mut self, now: Now, ip: Ipv4Addr, reason: &str) -> bool {
        let is_held_back = |valid_from| valid_from > self.writer.durable();
        if self.registry.valid_from(ip).is_some_and(is_held_back) {
            self.pending_updates.withdrawn.insert(ip);
        }
        let context = self.context(now);
        let Some((change, addresses)) = self.registry.release(ip, context) else {
            return false;
        };
        if !Mutation::SkipStoringRelease.is_on() {
            self.writer.change([change]);
        }
        self.writer.note(now, Some(ip), HistoryEvent::Released, addresses, reason);
        true
    }

    /// Serves what no longer conflicts since agents were released.
    fn resolve_conflicts(&mut self, now: Now) {
        let context = self.context(now);
        let adopted = self.registry.resolve_conflicts(context);
        self.note_adopted(now, adopted);
    }

    /// Releases agents that are not running, or all of them if that is forced.
    fn forget(&mut self, now: Now, forget: &Forget) -> Gated<Vec<ReleaseResult>> {
        let (mut results, mut released) = (Vec::new(), Vec::new());
        for &ip in &forget.agents {
            if !self.registry.is_known(ip) {
                if !forget.dry_run {
                    self.registry.forget_refusal(ip);
                }
                results.push(Gated::new(ReleaseResult::unknown(ip), Version(0)));
                continue;
            }
            let last_seen = self.registry.last_seen(ip);
            let silence = last_seen.map(|last_seen| now.elapsed.saturating_sub(last_seen));
            let is_running = silence.is_some_and(|silence| silence < RUNNING);
            let is_settling = now.elapsed.saturating_sub(self.since) < SETTLING;
            let outcome = if is_running && !forget.force {
                ReleaseOutcome::Running
            } else if silence.is_none() && is_settling && !forget.force {
                ReleaseOutcome::MayBeRunning
            } else if forget.dry_run {
                ReleaseOutcome::WouldBeDeleted
            } else {
                ReleaseOutcome::Deleted
            };
            results.extend(self.registry.release_result(ip, outcome, silence));
            if outcome == ReleaseOutcome::Deleted {
                // Whether the agent runs is not known: a stopped agent looks the same for a while.
                let reason = match silence {
                    Some(silence) if is_running => {
                        let seconds = silence.as_secs();
                        format!("it was forgotten by force, {seconds} s after it was last heard")
                    }
                    None if is_settling => {
                        "it was forgotten by force, before this master had heard it".to_owned()
                    }
                    _ => "it was forgotten".to_owned(),
                };
                self.release(now, ip, &reason);
                released.push(ip);
            }
        }
        log_released(&released);
        self.resolve_conflicts(now);
        results.into_iter().collect()
    }

    pub(super) const fn is_writing(&self) -> bool {
        self.writer.is_writing()
    }

    pub(super) const fn epoch(&self) -> Epoch {
        self.writer.epoch()
    }

    pub(super) const fn durable(&self) -> Version {
        self.writer.durable()
    }

    /// Returns what the agents reported, for the next recovery of this master.
    pub(super) fn reports(&self) -> Reports {
        self.registry.reports()
    }

    /// Returns for how many agents assignments are held back.
    pub(super) fn pending_update_count(&self) -> usize {
        self.pending_updates.held.len()
    }

    pub(super) const fn agents_tally(&self) -> AgentTally {
        self.registry.tally()
    }

    pub(super) fn peers_tally(&self) -> PeersTally {
        self.peers.tally()
    }

    pub(super) fn usage(&self) -> Vec<PoolUsage> {
        self.registry.usage()
    }

    pub(super) fn has_problems(&self) -> bool {
        self.registry.has_problems() || self.peers.problem().is_some()
    }

    /// Returns a sentence for each problem that needs an operator.
    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = self.registry.problems();
        problems.extend(self.peers.problem());
        problems
    }
}

#[cfg(test)]
impl Leading {
    pub(super) const fn peers_mut(&mut self) -> &mut Peers {
        &mut self.peers
    }

    /// Returns the table of peers as the registry has it now.
    pub(super) fn peers_of_registry(
        &self,
    ) -> std::collections::BTreeMap<Ipv4Addr, crate::protocol::PeerInfo> {
        let mut gate = Gate::open();
        let agents = self.registry.active_agents();
        agents.filter_map(|ip| Some((ip, gate.absorb(self.registry.peer(ip))?))).collect()
    }
}

/// Logs the first few conflicts: there may be one of every agent.
fn log_conflicts(registry: &Registry) {
    let conflicts: Vec<String> = registry.conflicts().into_values().collect();
    let (few, more) = first_few(&conflicts);
    for sentence in few {
        log::error!("{sentence}");
    }
    if more > 0 {
        log::error!("{more} more problems of the recovered state: see the health of the master");
    }
}

fn log_refused_registration(from: &Upid, error: RegisterError, out: &mut Outbox) {
    let counters = &mut out.counters;
    match error {
        RegisterError::NoVtep(subnet) => {
            counters.ip_allocation_failures += 1;
            log::warn!(
                "cannot register {from}: no VTEP address is left in {subnet}: widen vtep_subnet or \
                 delete dead agents"
            );
        }
        RegisterError::Underlay(fault) => {
            counters.registrations_refused += 1;
            if is_worth_a_line(counters.registrations_refused) {
                log::warn!("refused the registration of {from}: {fault}");
            }
        }
        RegisterError::Quarantined(reason) => {
            log::warn!("cannot register {from}: {reason}: mend the configuration or delete it");
        }
    }
}

/// Logs one line for a request, which may release a hundred thousand agents.
fn log_released(agents: &[Ipv4Addr]) {
    if !agents.is_empty() {
        log::info!("released the addresses of {}", named(agents, "deleted agent"));
    }
}
