//! A master that leads and has loaded its state: registrations, reports, peers, and requests.

mod authentication;
mod pending_updates;
mod reconfiguration;
mod registration;
mod release;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use overlay_types::addr::Upid;
use overlay_types::clock::Now;
use overlay_types::mutation::Mutation;
use overlay_types::protocol::{
    Assignment, AuthenticationMode, Author, MasterKind, Message, MessageKind, PeerFailures,
    PeersRequest, RequestId,
};
use overlay_types::state::{Epoch, LoadedState, Version};
use overlay_types::text::{count_and_list, pluralize, truncate_list};

use super::command::{Command, Reply};
use super::event::Request;
#[cfg(test)]
use super::gate::Gate;
use super::gate::Gated;
use super::history::History;
use super::metrics;
use super::peers::Peers;
use super::registration_problems::ProblematicAgents;
use super::registry::{ChangeContext, LastKnown, Recovered, Registry};
use super::state_writer::StateWriter;
use super::view::{AgentTally, PeersTally, PoolUsage};
use super::{EncodeUpdate, Outbox, Settings};
use crate::metrics::Family;
use authentication::RefusedAgents;
use pending_updates::PendingUpdates;
use release::log_released;

/// The state of a master that leads.
#[derive(Debug)]
pub(in crate::master) struct Leading {
    registry: Registry,
    writer: StateWriter,
    peers: Peers,
    pending_updates: PendingUpdates,
    problems: ProblematicAgents,
    /// The cooldown: how long a released address is not reused while other addresses are left.
    reuse_after: Duration,
    /// What happens to messages that are not authenticated. `None` without credentials.
    authentication: Option<AuthenticationMode>,
    refused: RefusedAgents,
    /// See [`Settings::kind`].
    kind: MasterKind,
    /// When the state was loaded, since `Now::elapsed` 0.
    since: Duration,
    /// The previews that are being computed from the registry of this term.
    previews: BTreeSet<RequestId>,
}

impl Leading {
    /// Builds the state from the stored records and from earlier reports of agents.
    pub(in crate::master) fn recover(
        now: Now,
        settings: &Settings,
        loaded: LoadedState,
        encode_update: EncodeUpdate,
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
            peers: Peers::new(epoch.0, registry.take_changed_peers(), encode_update),
            registry,
            writer: StateWriter::new(epoch, version, History::recover(history)),
            pending_updates: PendingUpdates::default(),
            problems: ProblematicAgents::default(),
            reuse_after: settings.reuse_after,
            authentication: settings.authentication_mode(),
            refused: RefusedAgents::default(),
            kind: settings.kind,
            since: now.elapsed,
            previews: BTreeSet::new(),
        };
        leading.note_adopted(now, adopted);
        leading
    }

    /// Sets the time of the event that follows.
    pub(in crate::master) const fn set_now(&mut self, now: Now) {
        self.registry.set_now(now);
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
    pub(in crate::master) fn accepts(&self, from: &Upid, kind: MessageKind) -> bool {
        match kind {
            MessageKind::AgentRegistered
            | MessageKind::RequestPeers
            | MessageKind::PeerFailures => self.registry.is_contact(from),
            MessageKind::RegisterAgent | MessageKind::AuthenticateAgent => true,
            MessageKind::HeldAddresses => self.problems.has(from),
            MessageKind::UpdateAgentOverlays
            | MessageKind::AgentRegisteredAcknowledgement
            | MessageKind::UpdatePeers
            | MessageKind::RegistrationProblems
            | MessageKind::AuthenticationChallenge => false,
        }
    }

    /// Notes the report of an agent, and acknowledges the report.
    pub(in crate::master) fn report(
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
    pub(in crate::master) fn subscribe(
        &mut self,
        now: Now,
        from: Upid,
        request: PeersRequest,
        out: &mut Outbox,
    ) {
        // Another process on the agent's host would otherwise receive the agent's updates.
        if !self.registry.is_contact(&from) {
            self.registry.record_other_process(&from);
            out.drop_request_for_peers(&from);
            return;
        }
        self.registry.record_contact(&from, now, true);
        self.registry.record_version(*from.address.ip(), request.version);
        self.registry.record_address_counts(*from.address.ip(), request.address_counts);
        let (have, form) = (request.have, request.form);
        let (latest, durable) = (self.writer.latest_version(), self.writer.durable());
        let answer =
            self.peers.subscribe(from.clone(), (have, form), now.elapsed, (latest, durable));
        if let Some((update, bytes)) = answer {
            out.counters.update_peers_messages_sent += 1;
            out.counters.update_peers_bytes_sent += bytes as u64;
            out.push(update.into_send(vec![from]));
        }
        out.counters.update_peers_messages_encoded += self.peers.take_encoded();
    }

    /// Notes the peers that an agent does not reach.
    pub(in crate::master) fn report_peer_failures(
        &mut self,
        now: Now,
        from: &Upid,
        failures: PeerFailures,
    ) {
        if self.registry.is_contact(from) {
            self.registry.record_contact(from, now, false);
            self.registry.report_peer_failures(from, failures);
        } else {
            self.registry.record_other_process(from);
        }
    }

    /// Notes a message that was not decoded: the process is not the process of its agent.
    pub(in crate::master) fn record_other_process(&mut self, from: &Upid) {
        self.registry.record_other_process(from);
    }

    /// Handles the deadlines of silent agents, and links to those that may be silent.
    pub(in crate::master) fn check_silent_agents(&mut self, now: Now, out: &mut Outbox) {
        out.extend(self.registry.take_silent(now.elapsed).into_iter().map(Command::Link));
    }

    /// Handles the end of a link to an agent.
    pub(in crate::master) fn link_ended(&mut self, now: Now, address: SocketAddrV4) {
        self.registry.link_ended(address, now.elapsed);
    }

    /// Sends the next slice of peer updates, if one is due.
    pub(in crate::master) fn serve_peers(&mut self, now: Now, out: &mut Outbox) {
        let (latest, durable) = (self.writer.latest_version(), self.writer.durable());
        for shipment in self.peers.take_slice(now.elapsed, latest, durable) {
            let (to, bytes) = (shipment.to, shipment.bytes);
            out.counters.update_peers_messages_sent += to.len() as u64;
            out.counters.update_peers_bytes_sent += (to.len() * bytes) as u64;
            out.push(shipment.update.into_send(to));
        }
        out.counters.update_peers_messages_encoded += self.peers.take_encoded();
    }

    /// Ends the handling of an event: updates the table of peers, and begins the next commit.
    pub(in crate::master) fn finish_event(&mut self, now: Now, out: &mut Outbox) {
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

    pub(in crate::master) fn committed(&mut self, version: Version) {
        self.writer.committed(version);
        self.pending_updates.committed(version);
    }

    /// Returns when a peer update, an expiry or the deadline of a silent agent is due.
    pub(in crate::master) fn next_timeout(&self) -> Option<Duration> {
        self.peers.next_timeout().into_iter().chain(self.registry.next_silence()).min()
    }

    /// Holds a reply back until the version with every change until now is durable.
    pub(in crate::master) fn gate_reply(&self, reply: Reply) -> Gated<Reply> {
        Gated::new(reply, self.writer.latest_version())
    }

    /// Sets the client that entries of the history name as the author of changes.
    pub(in crate::master) fn set_author(&mut self, author: Author) {
        self.writer.set_author(author);
    }

    /// Answers a request that needs the state.
    pub(in crate::master) fn answer(
        &mut self,
        now: Now,
        request: Request,
        out: &mut Outbox,
    ) -> Gated<Reply> {
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
            | Request::Metrics(_)
            | Request::Reload
            | Request::Preview(_) => self.registry.state().into_reply(Reply::State),
        };
        out.extend(self.pending_updates.take_withdrawal());
        reply.not_before(self.writer.latest_version())
    }

    pub(in crate::master) const fn is_writing(&self) -> bool {
        self.writer.is_writing()
    }

    /// Returns the time since the state was loaded.
    pub(in crate::master) const fn age(&self, now: Now) -> Duration {
        now.elapsed.saturating_sub(self.since)
    }

    pub(in crate::master) const fn epoch(&self) -> Epoch {
        self.writer.epoch()
    }

    pub(in crate::master) const fn durable(&self) -> Version {
        self.writer.durable()
    }

    /// Returns what agents have sent, for the next recovery of this master.
    pub(in crate::master) fn into_last_known(self) -> LastKnown {
        self.registry.into_last_known()
    }

    /// Returns the time of the earliest last message of an agent, in seconds since 1970.
    pub(in crate::master) fn oldest_contact(&self) -> Option<u64> {
        self.registry.oldest_contact()
    }

    /// Returns the number of agents whose assignments are held back.
    pub(in crate::master) fn pending_update_count(&self) -> usize {
        self.pending_updates.held.len()
    }

    pub(in crate::master) const fn agents_tally(&self) -> AgentTally {
        self.registry.tally()
    }

    /// Returns the numbers of halves that are full, and that are nearly full.
    pub(in crate::master) fn filled_halves(&self) -> (u64, u64) {
        let tallies = self.registry.halves_tallies();
        tallies.fold((0, 0), |(full, nearly), (.., tally)| {
            (full + tally.full, nearly + tally.nearly_full)
        })
    }

    pub(in crate::master) fn peers_tally(&self) -> PeersTally {
        self.peers.tally()
    }

    /// Returns the metrics that no catalogue can list, with those of `agents`.
    pub(in crate::master) fn configured_metrics(&self, agents: &[Ipv4Addr]) -> Vec<Family> {
        let (silent, unseen) = self.registry.count_silent(&metrics::SILENCES);
        let mut families = metrics::pools(&self.registry.usage());
        families.extend(metrics::halves(self.registry.halves_tallies()));
        families.extend(metrics::silent_agents(&silent, unseen));
        families.extend(metrics::agents(&self.registry.requested_agents(agents)));
        families
    }

    pub(in crate::master) fn usage(&self) -> Vec<PoolUsage> {
        self.registry.usage()
    }

    pub(in crate::master) fn has_problems(&self) -> bool {
        self.registry.has_problems() || self.peers.problem().is_some() || !self.refused.is_empty()
    }

    /// Returns a sentence for each problem that needs an operator.
    pub(in crate::master) fn problems(&self) -> Vec<String> {
        let mut problems = self.registry.problems();
        problems.extend(self.peers.problem());
        problems.extend(self.authentication_problems());
        problems
    }
}

#[cfg(test)]
impl Leading {
    pub(in crate::master) const fn peers_mut(&mut self) -> &mut Peers {
        &mut self.peers
    }

    /// Returns the table of peers, computed from the registry.
    pub(in crate::master) fn peers_of_registry(
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
