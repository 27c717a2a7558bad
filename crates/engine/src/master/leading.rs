//! A master that leads and has loaded its state: registrations, reports, peers, and requests.

use std::collections::{BTreeSet, HashMap};
use std::mem;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use super::command::{Command, Reply};
use super::effect::log_refused;
use super::effect::{Effect, PreviewJob, ReconfigurationPlan};
use super::event::{Forget, Request};
#[cfg(test)]
use super::gate::Gate;
use super::gate::Gated;
use super::history::History;
use super::peers::Peers;
use super::registration_problems::{ProblematicAgents, repetition};
use super::registry::{
    AdoptedAgent, ChangeContext, LastKnown, Notice, Recovered, RegisterError, Registration,
    Registry,
};
use super::state_writer::StateWriter;
use super::view::{AgentTally, PeersTally, PoolUsage, ReleaseOutcome, ReleaseResult};
use super::{Outbox, Settings, UpdateLength};
use crate::state_machine::should_log_sample;
use overlay_types::addr::{Family, Upid};
use overlay_types::clock::Now;
use overlay_types::mutation::Mutation;
use overlay_types::protocol::{
    Addresses, AgentOptions, Assignment, Author, HeldAddresses, HistoryEvent, Message, MessageKind,
    Network, PeerTableVersion, RequestId,
};
use overlay_types::state::{Epoch, LoadedState, Version};
use overlay_types::text::{count_and_list, pluralize, truncate_list};

/// An agent that was last seen within this time counts as running. Agents register again within a
/// quarter of an hour, and one of these messages may get lost. Agents with the C++ modules do not
/// register again, so such an agent may run although it was last seen earlier.
const RUNNING: Duration = Duration::from_secs(30 * 60);
/// How long after the election an unseen agent may be running. Every running agent registers with a
/// new master, and repeats an unanswered registration after at most a minute.
const SETTLING: Duration = Duration::from_secs(2 * 60);

/// The state of a master that leads.
#[derive(Debug)]
pub(super) struct Leading {
    registry: Registry,
    writer: StateWriter,
    peers: Peers,
    pending_updates: PendingUpdates,
    problems: ProblematicAgents,
    /// The cooldown: how long a released address is not reused while other addresses are left.
    reuse_after: Duration,
    /// When the state was loaded, since `Now::elapsed` 0.
    since: Duration,
    /// The previews that are being computed from the registry of this term.
    previews: BTreeSet<RequestId>,
}

/// The assignments that are held back until a version is durable. While a disk hangs, agents repeat
/// their registration, and one answer is enough.
#[derive(Debug, Default)]
struct PendingUpdates {
    held: HashMap<Upid, Version>,
    /// Agents that were released while messages or replies were held back.
    withdrawn: BTreeSet<Ipv4Addr>,
}

impl PendingUpdates {
    /// Notes that assignments are held back until `valid_from`. Returns whether to send them:
    /// unchanged assignments that are held back already are not sent twice.
    fn add(&mut self, to: &Upid, valid_from: Version, is_changed: bool) -> bool {
        self.held.insert(to.clone(), valid_from) != Some(valid_from) || is_changed
    }

    /// Removes the assignments that are no longer held back.
    fn committed(&mut self, version: Version) {
        self.held.retain(|_, valid_from| *valid_from > version);
    }

    /// Returns the command that drops the assignments that are held back for released agents. These
    /// assignments were never stored, and the next commit may allocate the addresses to other
    /// agents.
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
    /// Builds the state from the stored records and from earlier reports of agents.
    pub(super) fn recover(
        now: Now,
        settings: &Settings,
        loaded: LoadedState,
        update_length: UpdateLength,
        last_known: LastKnown,
    ) -> Self {
        let LoadedState { epoch, version, agents, history } = loaded;
        let Recovered { mut registry, adopted } =
            Registry::recover(Arc::clone(&settings.network), version, agents);
        registry.restore_last_known(last_known, now);
        log_conflicts(&registry);
        log::info!(
            "recovered {} from version {} of the state; epoch {} begins",
            pluralize(registry.tally().total, "agent"),
            version.0,
            epoch.0
        );
        let mut leading = Self {
            peers: Peers::new(epoch.0, registry.take_changed_peers(), update_length),
            registry,
            writer: StateWriter::new(epoch, version, History::recover(history)),
            pending_updates: PendingUpdates::default(),
            problems: ProblematicAgents::default(),
            reuse_after: settings.reuse_after,
            since: now.elapsed,
            previews: BTreeSet::new(),
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

    /// Returns whether this master accepts a message of this kind from the sender.
    pub(super) fn accepts(&self, from: &Upid, kind: MessageKind) -> bool {
        match kind {
            MessageKind::AgentRegistered | MessageKind::RequestPeers => {
                self.registry.is_contact(from)
            }
            MessageKind::RegisterAgent => true,
            MessageKind::HeldAddresses => self.problems.has(from),
            MessageKind::UpdateAgentOverlays
            | MessageKind::AgentRegisteredAcknowledgement
            | MessageKind::UpdatePeers
            | MessageKind::RegistrationProblems => false,
        }
    }

    /// Registers an agent, and sends the assignments to the agent.
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
        self.registry.record_contact(&from, now, false);
        self.registry.end_requests(ip);
        match result {
            Ok(registration) => {
                let is_changed = !registration.changes.is_empty();
                if is_changed {
                    log::info!("{from} registered: allocation or options changed");
                }
                let reasons = self.store_registration(now, ip, registration, "it registered", out);
                self.note_problems(&from, reasons);
                self.send_assignments(from, is_changed, out);
            }
            Err(error) => {
                out.counters.register_agent_messages_dropped += 1;
                let has_new = count_refused_registration(&error, out);
                for (reason, count) in self.problems.replace(&from, true, vec![error.to_string()]) {
                    if has_new {
                        log::warn!("cannot register {from}: {reason}{}", repetition(count));
                    }
                }
            }
        }
    }

    /// Notes the problems of an accepted registration, and logs the new problems. `reasons` are
    /// those of the allocation; the conflicts of the record are added.
    fn note_problems(&mut self, from: &Upid, mut reasons: Vec<String>) {
        let ip = *from.address.ip();
        reasons.extend(self.registry.conflicts_of(ip));
        for (reason, count) in self.problems.replace(from, false, reasons) {
            log::warn!("agent {ip} is not served as a whole: {reason}{}", repetition(count));
        }
    }

    /// Answers an agent whose last registration has problems. If the registration was refused, the
    /// answer names the held addresses that other agents have.
    pub(super) fn send_problems(&mut self, from: Upid, held: &HeldAddresses, out: &mut Outbox) {
        let Some(problems) = self.problems.get(&from) else {
            return;
        };
        let (ip, durable) = (*from.address.ip(), self.writer.durable());
        let reassigned = if problems.is_refused {
            self.registry.reassigned(ip, held, durable)
        } else {
            // Behind the assignment, to which the problems belong.
            let valid_from = self.registry.valid_from(ip);
            Gated::new(Vec::new(), valid_from.unwrap_or(Version(0)))
        };
        if self.problems.add_answer(ip, reassigned.valid_from(), durable) {
            out.counters.registration_problems_messages_sent += 1;
            out.push(reassigned.into_problems(from, problems));
        }
    }

    /// Stores a registration, with its reason in the history. Returns a sentence for each shortage.
    fn store_registration(
        &mut self,
        now: Now,
        ip: Ipv4Addr,
        registration: Registration,
        reason: &str,
        out: &mut Outbox,
    ) -> Vec<String> {
        let Registration { changes, notices, returned, assigned } = registration;
        if changes.is_empty() {
            debug_assert!(assigned.is_empty(), "a new address is in the record");
        } else {
            self.writer.change(changes);
            let gained = [(HistoryEvent::Returned, returned), (HistoryEvent::Assigned, assigned)];
            for (event, addresses) in gained.into_iter().filter(|(_, gained)| !gained.is_empty()) {
                self.writer.note(now, Some(ip), event, addresses, reason);
            }
        }
        notices.iter().filter_map(|notice| self.count_notice(ip, notice, out)).collect()
    }

    /// Counts a notice. Returns a sentence if it is a shortage, and otherwise logs it.
    fn count_notice(&self, ip: Ipv4Addr, notice: &Notice, out: &mut Outbox) -> Option<String> {
        let counters = &mut out.counters;
        match notice {
            Notice::NoVtep6 => {
                counters.ip6_allocation_failures += 1;
                Some(
                    "the agent gets no IPv6 VTEP address: vtep_subnet6 is exhausted: widen it or \
                     delete dead agents"
                        .to_owned(),
                )
            }
            Notice::NoSubnet(overlay, family) => {
                match family {
                    Family::V4 => counters.subnet_allocation_failures += 1,
                    Family::V6 => counters.subnet6_allocation_failures += 1,
                }
                Some(format!(
                    "the agent gets no subnet of overlay {overlay}: its {family} space is \
                     exhausted: widen it or delete dead agents"
                ))
            }
            Notice::EarlyReuse(address) => {
                counters.early_reuses += 1;
                log::warn!(
                    "agent {ip} gets {address}, which another agent had less than {} ago: nothing \
                     else is left",
                    humantime::format_duration(self.reuse_after)
                );
                None
            }
        }
    }

    /// Sends the assignments to the agent, unless unchanged assignments are held back already.
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

    /// Notes the report of an agent, and acknowledges the report.
    pub(super) fn report(
        &mut self,
        now: Now,
        from: Upid,
        overlays: Vec<Assignment>,
        out: &mut Outbox,
    ) {
        // Another process on the agent's host does not know the agent's overlays.
        if !self.registry.is_contact(&from) {
            self.registry.record_other_process(&from);
            out.drop_report(&from);
            return;
        }
        self.registry.record_contact(&from, now, false);
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

    /// Subscribes an agent to the table of peers. Answers at once if the agent has the latest
    /// table.
    pub(super) fn subscribe(
        &mut self,
        now: Now,
        from: Upid,
        have: PeerTableVersion,
        out: &mut Outbox,
    ) {
        // Another process on the agent's host would otherwise receive the agent's updates.
        if !self.registry.is_contact(&from) {
            self.registry.record_other_process(&from);
            out.drop_request_for_peers(&from);
            return;
        }
        self.registry.record_contact(&from, now, true);
        let (latest, durable) = (self.writer.latest_version(), self.writer.durable());
        let answer = self.peers.subscribe(from.clone(), have, now.elapsed, (latest, durable));
        if let Some((update, bytes)) = answer {
            out.counters.update_peers_messages_sent += 1;
            out.counters.update_peers_bytes_sent += bytes as u64;
            out.push(update.into_send(from));
        }
    }

    /// Notes a message that was not decoded: the process is not the process of its agent.
    pub(super) fn record_other_process(&mut self, from: &Upid) {
        self.registry.record_other_process(from);
    }

    /// Handles the deadlines of silent agents, and links to those that may be silent.
    pub(super) fn check_silent_agents(&mut self, now: Now, out: &mut Outbox) {
        out.extend(self.registry.take_silent(now.elapsed).into_iter().map(Command::Link));
    }

    /// Handles the end of a link to an agent.
    pub(super) fn link_ended(&mut self, now: Now, address: SocketAddrV4) {
        self.registry.link_ended(address, now.elapsed);
    }

    /// Sends the next slice of peer updates, if one is due.
    pub(super) fn serve_peers(&mut self, now: Now, out: &mut Outbox) {
        let (latest, durable) = (self.writer.latest_version(), self.writer.durable());
        for shipment in self.peers.take_slice(now.elapsed, latest, durable) {
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
        debug_assert!(
            self.peers.valid_from() <= self.writer.latest_version(),
            "the peers wait for a version that no commit makes"
        );
        self.peers.schedule(now.elapsed);
        if let Some(commit) = self.writer.take_commit() {
            out.push(commit);
        }
    }

    pub(super) fn committed(&mut self, version: Version) {
        self.writer.committed(version);
        self.pending_updates.committed(version);
    }

    /// Returns when a peer update, an expiry or the deadline of a silent agent is due.
    pub(super) fn next_timeout(&self) -> Option<Duration> {
        self.peers.next_timeout().into_iter().chain(self.registry.next_silence()).min()
    }

    /// Applies another configuration, unless an agent would lose an allocation.
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
            log::info!("applied another configuration: {changes}");
            let addresses = Addresses::default();
            self.writer.note(now, None, HistoryEvent::Configured, addresses, &changes);
        }
        for (ip, registration) in registrations {
            let reason = "the configuration has changed";
            let reasons = self.store_registration(now, ip, registration, reason, out);
            if let Some(upid) = self.registry.contact(ip).cloned() {
                self.note_problems(&upid, reasons);
            }
        }
        for upid in updated {
            self.send_assignments(upid, true, out);
        }
        effect
    }

    /// Stores the records of agents that keep addresses under another overlay name.
    fn note_adopted(&mut self, now: Now, adopted: Vec<AdoptedAgent>) {
        for AdoptedAgent { ip, change, addresses } in adopted {
            self.writer.change([change]);
            let reason = "the configuration has another name for the overlay";
            self.writer.note(now, Some(ip), HistoryEvent::Renamed, addresses, reason);
        }
    }

    /// Returns the job that previews another network.
    pub(super) fn preview_job(&mut self, now: Now, id: RequestId, network: Network) -> PreviewJob {
        self.previews.insert(id);
        PreviewJob::new(&self.registry, network, self.context(now))
    }

    /// Notes the end of a preview. Returns false if an earlier term of this master began it: the
    /// allocations of that term may never have been stored.
    pub(super) fn end_preview(&mut self, id: RequestId) -> bool {
        self.previews.remove(&id)
    }

    /// Holds a reply back until the version with every change until now is durable.
    pub(super) fn gate_reply(&self, reply: Reply) -> Gated<Reply> {
        Gated::new(reply, self.writer.latest_version())
    }

    /// Sets the client that entries of the history name as the author of changes.
    pub(super) fn set_author(&mut self, author: Author) {
        self.writer.set_author(author);
    }

    /// Answers a request that needs the state.
    pub(super) fn answer(&mut self, now: Now, request: Request, out: &mut Outbox) -> Gated<Reply> {
        let reply = match request {
            Request::DeleteAgents(ips) => {
                let release = |ip: &Ipv4Addr| self.release(now, *ip, "it was deleted over HTTP");
                let (released, unknown): (Vec<_>, Vec<_>) = ips.into_iter().partition(release);
                log_released(&released);
                if !unknown.is_empty() {
                    log::info!(
                        "nothing to delete of {}",
                        count_and_list(&unknown, "unknown agent")
                    );
                }
                self.resolve_conflicts(now);
                self.registry.state().into_reply(Reply::State)
            }
            Request::Forget(forget) => self.forget(now, &forget).into_reply(Reply::ReleaseResults),
            Request::History(agent) => self.gate_reply(Reply::History(self.writer.history(agent))),
            Request::By(_, request) => return self.answer(now, *request, out),
            // `Master::request` answers the other requests, except `State`, in every phase.
            Request::State
            | Request::Health
            | Request::Metrics
            | Request::Reload
            | Request::Preview(_) => self.registry.state().into_reply(Reply::State),
        };
        out.extend(self.pending_updates.take_withdrawal());
        reply.not_before(self.writer.latest_version())
    }

    /// Releases an agent. Returns whether the agent was known.
    fn release(&mut self, now: Now, ip: Ipv4Addr, reason: &str) -> bool {
        let is_anything_held_back = self.writer.latest_version() > self.writer.durable();
        self.problems.remove(ip);
        let context = self.context(now);
        let Some((change, addresses)) = self.registry.release(ip, context) else {
            return false;
        };
        if !Mutation::SkipStoringRelease.is_on() {
            self.writer.change([change]);
        }
        if is_anything_held_back {
            self.pending_updates.withdrawn.insert(ip);
        }
        self.writer.note(now, Some(ip), HistoryEvent::Released, addresses, reason);
        true
    }

    /// Serves the addresses that no longer conflict after agents were released.
    fn resolve_conflicts(&mut self, now: Now) {
        let context = self.context(now);
        let adopted = self.registry.resolve_conflicts(context);
        self.note_adopted(now, adopted);
    }

    /// Releases the agents that are not running, or all requested agents with `force`.
    fn forget(&mut self, now: Now, forget: &Forget) -> Gated<Vec<ReleaseResult>> {
        let (mut results, mut released) = (Vec::new(), Vec::new());
        for &ip in &forget.agents {
            if !self.registry.is_known(ip) {
                if !forget.dry_run {
                    self.registry.forget_refusal(ip);
                    self.problems.remove(ip);
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
                // A stopped agent counts as running for a while, so the reason does not say that
                // the agent was running.
                let reason = match silence {
                    Some(silence) if is_running => {
                        let seconds = silence.as_secs();
                        format!("released by force, {seconds} s after it was last seen")
                    }
                    None if is_settling => {
                        "released by force, before this master has seen it".to_owned()
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

    /// Returns what agents have sent, for the next recovery of this master.
    pub(super) fn into_last_known(self) -> LastKnown {
        self.registry.into_last_known()
    }

    /// Returns the time of the earliest last message of an agent, in seconds since 1970.
    pub(super) fn oldest_contact(&self) -> Option<u64> {
        self.registry.oldest_contact()
    }

    /// Returns the number of agents whose assignments are held back.
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

    /// Returns the table of peers, computed from the registry.
    pub(super) fn peers_of_registry(
        &self,
    ) -> std::collections::BTreeMap<Ipv4Addr, overlay_types::protocol::PeerInfo> {
        let mut gate = Gate::open();
        let agents = self.registry.active_agents();
        agents.filter_map(|ip| Some((ip, gate.absorb(self.registry.peer(ip))?))).collect()
    }
}

/// Logs the first few conflicts: every agent may have one.
fn log_conflicts(registry: &Registry) {
    let conflicts: Vec<String> = registry.conflicts().into_values().collect();
    let (few, more) = truncate_list(&conflicts);
    for sentence in few {
        log::error!("{sentence}");
    }
    if more > 0 {
        log::error!("{more} more problems of the recovered state: see the health of the master");
    }
}

/// Counts a refused registration. Returns whether it may be logged: an agent can send any number of
/// underlay addresses, each of which is a new reason.
fn count_refused_registration(error: &RegisterError, out: &mut Outbox) -> bool {
    let counters = &mut out.counters;
    match error {
        RegisterError::NoVtep(_) => {
            counters.ip_allocation_failures += 1;
            true
        }
        RegisterError::Underlay(_) => {
            counters.registrations_refused += 1;
            should_log_sample(counters.registrations_refused)
        }
        RegisterError::Quarantined(_) => true,
    }
}

/// Logs one line for a request, which may release a hundred thousand agents.
fn log_released(agents: &[Ipv4Addr]) {
    if !agents.is_empty() {
        log::info!("released the addresses of {}", count_and_list(agents, "deleted agent"));
    }
}
