//! The master: allocates the addresses of the overlays, sends every agent its assignments, and
//! collects the reports of the agents.
//!
//! A pure state machine: no IO, no clock.

mod command;
mod durability_gate;
mod effect;
mod encoded_update;
mod event;
mod gate;
mod history;
mod leading;
mod metrics;
mod peers;
mod phase;
mod registration_problems;
mod registry;
mod reload;
mod requests;
mod state_writer;
#[cfg(test)]
mod tests;
mod view;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use overlay_types::addr::{AGENT_PROCESS, Upid};
use overlay_types::clock::{Backoff, Now};
use overlay_types::protocol::{
    AgentOptions, Assignment, AuthenticationChallenge, AuthenticationMode, AuthenticationRefusal,
    AuthenticityFault, HeldAddresses, Leader, MasterKind, Message, MessageKind, Network,
    PeersRequest, PeersUpdate, Principal, SharedSecrets, UpdateForm,
};
use overlay_types::repetition::Repetitions;
use overlay_types::state::Version;
use overlay_types::warnings::Severity;

use crate::metrics::Catalogue;
use crate::state_machine::{Degrade as _, StateMachine, should_log_sample};
pub use command::{Command, Reply};
pub use durability_gate::{DurabilityGate, PendingSend};
pub use effect::{AddressEffect, AgentEffect, Effect, PreviewJob};
pub use encoded_update::EncodedUpdate;
pub use event::{Event, Forget, Request};
pub use history::HistoryView;
pub use metrics::Metrics;
use phase::{Phase, Standby};
use registry::LastKnown;
use reload::Reloads;
pub use view::{
    AgentTally, AuthenticationTally, AuthenticationView, Condition, Counters, Health, PeersTally,
    PoolUsage, ReleaseOutcome, ReleaseResult,
};

/// The most registrations that are kept while the state is loaded. Further registrations are
/// dropped: agents register again.
const WAITING_MAX: usize = 100_000;
/// Bounds of the backoff after a failure of the store.
const STORE_RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// The settings of a master.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The overlays and the address spaces.
    pub network: Arc<Network>,
    /// The cooldown of a released address. An earlier reuse is counted and logged.
    pub reuse_after: Duration,
    /// What the master says of itself to its agents. Agents close the port of a program to
    /// containers.
    pub kind: MasterKind,
    /// How agents authenticate. `None` without credentials.
    pub authentication: Option<Authentication>,
}

/// How agents authenticate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authentication {
    /// What happens to messages that are not authenticated.
    pub mode: AuthenticationMode,
    /// The secrets of the agents.
    pub secrets: Arc<SharedSecrets>,
}

impl Settings {
    /// Returns what happens to messages that are not authenticated; `None` without credentials.
    fn authentication_mode(&self) -> Option<AuthenticationMode> {
        self.authentication.as_ref().map(|authentication| authentication.mode)
    }
}

/// Encodes the body of an update in a form. The engine does not know the encoding. It paces updates
/// by the length of the body, and encodes an update once for all its receivers.
pub type EncodeUpdate = fn(&PeersUpdate, UpdateForm) -> Arc<[u8]>;

/// The master. See [`StateMachine`] for how to run it.
///
/// Addresses are allocated in memory at once, and the changes go into the next commit. Until that
/// commit is durable, the runtime holds back the messages. So the order of messages is the order of
/// allocations, and one commit has all changes that were made during the commit before.
#[derive(Debug)]
pub struct Master {
    settings: Settings,
    /// Whether an election decides when this master leads.
    is_elected: bool,
    /// The leading master, if it is known.
    leader: Option<Leader>,
    phase: Phase,
    encode_update: EncodeUpdate,
    store_backoff: Backoff,
    /// The errors of the store since it last worked for a while.
    store_errors: Repetitions,
    /// What agents have sent to this master before it began to read its state again.
    last_known: LastKnown,
    /// Whether agents do not notice the begin of the next term.
    is_unnoticed: bool,
    reloads: Reloads,
    random: fastrand::Rng,
    outbox: Outbox,
}

/// The commands for the runtime, and the counters.
#[derive(Debug, Default)]
struct Outbox {
    counters: Counters,
    commands: VecDeque<Command>,
}

impl Outbox {
    fn push(&mut self, command: Command) {
        self.commands.push_back(command);
    }

    fn extend(&mut self, commands: impl IntoIterator<Item = Command>) {
        self.commands.extend(commands);
    }

    /// Counts a report of an agent that is not registered. It is not acknowledged, so the agent
    /// registers again.
    fn drop_report(&mut self, from: &Upid) {
        self.counters.agent_registered_messages_dropped += 1;
        if should_log_sample(self.counters.agent_registered_messages_dropped) {
            log::warn!("ignored a report from {from}, which is not registered: it will register");
        }
    }

    /// Counts a request for peers of an agent that is not registered. It registers, and then
    /// requests its peers again.
    fn drop_request_for_peers(&mut self, from: &Upid) {
        self.counters.request_peers_messages_dropped += 1;
        if should_log_sample(self.counters.request_peers_messages_dropped) {
            log::warn!("ignored a request for peers from {from}: it is not registered here");
        }
    }
}

impl Master {
    /// Returns a master that leads from the start, since no other master exists. Its first command
    /// is to load its state. `seed` is the seed of its random delays.
    #[must_use]
    pub fn new(settings: Settings, encode_update: EncodeUpdate, seed: u64) -> Self {
        let mut master = Self::standing_by(settings, encode_update, seed);
        master.is_elected = false;
        master.elected(true);
        master
    }

    /// Returns a master with an election: it leads from an [`Event::Leading`] with `true` until the
    /// next one with `false`.
    #[must_use]
    pub fn standing_by(settings: Settings, encode_update: EncodeUpdate, seed: u64) -> Self {
        Self {
            settings,
            is_elected: true,
            leader: None,
            phase: Phase::Standby(Standby::default()),
            encode_update,
            store_backoff: Backoff::new(STORE_RETRY.0, STORE_RETRY.1),
            store_errors: Repetitions::new(),
            last_known: LastKnown::default(),
            is_unnoticed: false,
            reloads: Reloads::default(),
            random: fastrand::Rng::with_seed(seed),
            outbox: Outbox::default(),
        }
    }
}

impl Master {
    /// Notes that this master replaces a master of the same process that stopped by a defect. Agents
    /// do not notice that while the process keeps its connections, so silence proves nothing about
    /// an agent that this master has not seen.
    #[must_use]
    pub fn after_restart(self) -> Self {
        Self { is_unnoticed: true, ..self }
    }
}

impl StateMachine for Master {
    type Event = Event;
    type Command = Command;
    type Metrics = Metrics;

    const TIMEOUT: Event = Event::Timeout;
    const CATALOGUE: &'static Catalogue<Metrics> = &metrics::CATALOGUE;

    fn handle(&mut self, now: Now, event: Event) {
        if let Phase::Leading(leading) = &mut self.phase {
            leading.set_now(now);
        }
        match event {
            Event::Timeout => {
                self.retry_store(now);
                self.retry_reading(now);
                if let Phase::Leading(leading) = &mut self.phase {
                    leading.serve_peers(now, &mut self.outbox);
                    leading.check_silent_agents(now, &mut self.outbox);
                }
            }
            Event::Leading(leads) => self.elected(leads),
            Event::LeaderChanged(leader) => self.leader_changed(leader),
            Event::Loaded(Ok(loaded)) => self.loaded(now, loaded),
            Event::Loaded(Err(error)) | Event::Committed(Err(error)) => {
                self.store_failed(now, error);
            }
            Event::Committed(Ok(version)) => self.committed(version),
            Event::StoreLost(error) => self.store_lost(now, error),
            Event::Message { from, message } => self.message(now, (from, None), message),
            Event::Authenticated { from, principal, message } => {
                self.message(now, (from, Some(principal)), message);
            }
            Event::Unauthentic { from, kind, fault } => self.unauthentic(from, kind, fault),
            Event::SecretsChanged(secrets) => self.set_secrets(secrets),
            Event::Exited(address) => match &mut self.phase {
                Phase::Leading(leading) => leading.link_ended(now, address),
                Phase::Standby(_) | Phase::Recovering(_) => {
                    self.last_known.link_ended(now, address);
                }
            },
            Event::Malformed { from, name, reason } => {
                let malformed = &mut self.outbox.counters.malformed_messages;
                *malformed += 1;
                if should_log_sample(*malformed) {
                    log::warn!("ignored {} from {from}: {reason}", name.escape_debug());
                }
            }
            Event::Reload(network) => {
                let network = Arc::new(network);
                let settings = Settings { network, ..self.settings.clone() };
                self.reload(now, settings);
            }
            Event::Ignored { from, kind } => self.ignored(&from, kind),
            Event::ConfigRead(id, settings) => self.finish_reload(now, id, settings),
            Event::Previewed(id, effect) => self.previewed(id, effect),
            Event::Request(id, request) => self.request(now, id, request),
        }
        if let Phase::Leading(leading) = &mut self.phase {
            leading.finish_event(now, &mut self.outbox);
        }
    }

    fn poll_command(&mut self) -> Option<Command> {
        self.outbox.commands.pop_front()
    }

    fn next_timeout(&self) -> Option<Duration> {
        let due = match &self.phase {
            Phase::Recovering(recovering) => recovering.retry_due(),
            Phase::Standby(standby) => standby.retry_due(),
            Phase::Leading(leading) => leading.next_timeout(),
        };
        due.into_iter().chain(self.reloads.next_timeout()).min()
    }

    fn metrics(&self) -> Metrics {
        let (full_halves, nearly_full_halves) = match &self.phase {
            Phase::Leading(leading) => leading.filled_halves(),
            Phase::Standby(_) | Phase::Recovering(_) => (0, 0),
        };
        let (epoch, version, agents, peers, oldest_contact, authentication) = match &self.phase {
            Phase::Standby(_) | Phase::Recovering(_) => Default::default(),
            Phase::Leading(leading) => {
                let (agents, peers) = (leading.agents_tally(), leading.peers_tally());
                let oldest_contact = leading.oldest_contact().unwrap_or_default();
                let authentication = leading.authentication_tally();
                let (epoch, version) = (leading.epoch().0, leading.durable().0);
                (epoch, version, agents, peers, oldest_contact, authentication)
            }
        };
        Metrics {
            status: self.condition(),
            epoch,
            version,
            agents,
            authentication,
            oldest_contact,
            peers,
            full_halves,
            nearly_full_halves,
            counters: self.outbox.counters.clone(),
        }
    }

    fn degrade(metrics: &mut Metrics, severity: Severity) {
        metrics.status = metrics.status.degraded(severity);
    }
}

impl Master {
    fn message(
        &mut self,
        now: Now,
        (from, principal): (Upid, Option<Principal>),
        message: Message,
    ) {
        let (kind, is_authenticated) = (message.kind(), principal.is_some());
        // The runtime asks `accepts` and `trusts` before it decodes a message, which is some events
        // ago.
        if !is_agent(&from) {
            self.ignored(&from, kind);
            return;
        }
        if !self.trusts(&from, kind, is_authenticated) {
            self.unauthentic(from, kind, AuthenticityFault::NotSealed);
            return;
        }
        self.note_authentication(&from, kind, is_authenticated);
        let counters = &mut self.outbox.counters;
        match message {
            Message::RegisterAgent(options) => {
                counters.register_agent_messages_received += 1;
                self.register(now, (from, principal), options);
            }
            Message::AgentRegistered(overlays) => {
                counters.agent_registered_messages_received += 1;
                self.report(now, from, overlays);
            }
            Message::RequestPeers(request) => {
                counters.request_peers_messages_received += 1;
                self.subscribe(now, from, request);
            }
            Message::HeldAddresses(held) => self.send_problems((from, is_authenticated), &held),
            Message::PeerFailures(failures) => {
                counters.peer_failures_messages_received += 1;
                if let Phase::Leading(leading) = &mut self.phase {
                    leading.report_peer_failures(now, &from, failures);
                }
            }
            Message::AuthenticateAgent(request) => {
                counters.authenticate_agent_messages_received += 1;
                if !matches!(self.phase, Phase::Standby(_)) {
                    self.outbox.push(Command::Challenge { to: from, request });
                }
            }
            Message::UpdateAgentOverlays { .. }
            | Message::AgentRegisteredAcknowledgement
            | Message::UpdatePeers(_)
            | Message::RegistrationProblems(_)
            | Message::AuthenticationChallenge(_) => {
                counters.unexpected_messages += 1;
                if should_log_sample(counters.unexpected_messages) {
                    log::warn!("ignored {message} from {from}: it is meant for an agent");
                }
            }
        }
    }

    /// Returns whether this master accepts a message of this kind from the sender. Only a
    /// registered agent may report or request its peers, and only under the UPID with which it
    /// registered: a reply to each port of an address would cost a connection.
    #[must_use]
    pub fn accepts(&self, from: &Upid, kind: MessageKind) -> bool {
        match &self.phase {
            _ if !is_agent(from) => false,
            Phase::Leading(leading) => leading.accepts(from, kind),
            Phase::Recovering(recovering) if kind == MessageKind::HeldAddresses => {
                recovering.is_waiting(from)
            }
            Phase::Recovering(_) if kind == MessageKind::AuthenticateAgent => true,
            Phase::Standby(_) | Phase::Recovering(_) => kind == MessageKind::RegisterAgent,
        }
    }

    /// Returns whether this master accepts a message of this kind from the sender, if its seal is
    /// as good as `is_authenticated` says.
    #[must_use]
    pub fn trusts(&self, from: &Upid, kind: MessageKind, is_authenticated: bool) -> bool {
        match &self.phase {
            Phase::Leading(leading) => leading.trusts(from, kind, is_authenticated),
            // The records of the agents are not known yet.
            Phase::Standby(_) | Phase::Recovering(_) => {
                let mode = self.settings.authentication_mode();
                is_authenticated
                    || kind == MessageKind::AuthenticateAgent
                    || mode != Some(AuthenticationMode::Required)
            }
        }
    }

    /// Counts an unauthenticated message that is accepted although this master has credentials, and
    /// notes an authenticated message.
    fn note_authentication(&mut self, from: &Upid, kind: MessageKind, is_authenticated: bool) {
        if is_authenticated {
            if let Phase::Leading(leading) = &mut self.phase {
                leading.note_authenticated(from);
            }
        } else if self.settings.authentication.is_some() && kind != MessageKind::AuthenticateAgent {
            self.outbox.counters.unauthenticated_messages_accepted += 1;
        }
    }

    /// Counts a message that is not authentic, and logs a sample of such messages. Tells an agent
    /// that its credential is wrong, but nobody else anything.
    fn unauthentic(&mut self, from: Upid, kind: MessageKind, fault: AuthenticityFault) {
        let count = &mut self.outbox.counters.unauthentic_messages_refused;
        *count += 1;
        if should_log_sample(*count) {
            log::warn!("refused {kind} from {from}: {fault} ({count} refused since the start)");
        }
        if let Phase::Leading(leading) = &mut self.phase {
            leading.note_unauthentic(&from, kind, &fault);
        }
        if let AuthenticityFault::WrongCredential(request) = fault {
            let answer = Err(AuthenticationRefusal::WrongCredential);
            let challenge = AuthenticationChallenge { agent_nonce: request.nonce, answer };
            let message = Message::AuthenticationChallenge(challenge);
            self.outbox.push(Command::Send { to: from, message, when: Version(0) });
        }
    }

    /// Counts a message that was not decoded, and logs a sample of such messages.
    fn ignored(&mut self, from: &Upid, kind: MessageKind) {
        if let Phase::Leading(leading) = &mut self.phase {
            leading.record_other_process(from);
            if kind == MessageKind::HeldAddresses {
                leading.expect_registrations(from);
            }
        }
        let counters = &mut self.outbox.counters;
        let (count, reason) = match kind {
            MessageKind::RegisterAgent if !is_agent(from) => {
                counters.register_agent_messages_received += 1;
                let dropped = &mut counters.register_agent_messages_dropped;
                (dropped, "agents have the name overlay-agent")
            }
            MessageKind::AgentRegistered => {
                counters.agent_registered_messages_received += 1;
                let dropped = &mut counters.agent_registered_messages_dropped;
                (dropped, "it is not registered, and will register")
            }
            MessageKind::RequestPeers => {
                counters.request_peers_messages_received += 1;
                let dropped = &mut counters.request_peers_messages_dropped;
                (dropped, "it is not registered, and will register")
            }
            // The registration of the sender has no problems, or the sender will register and then
            // report again.
            MessageKind::HeldAddresses
            | MessageKind::PeerFailures
            | MessageKind::AuthenticateAgent => return,
            MessageKind::RegisterAgent
            | MessageKind::UpdateAgentOverlays
            | MessageKind::AgentRegisteredAcknowledgement
            | MessageKind::UpdatePeers
            | MessageKind::RegistrationProblems
            | MessageKind::AuthenticationChallenge => {
                (&mut counters.unexpected_messages, "the message is meant for an agent")
            }
        };
        *count += 1;
        if should_log_sample(*count) {
            log::warn!("ignored {kind} from {from}: {reason} ({count} ignored since the start)");
        }
    }

    fn register(&mut self, now: Now, sender: (Upid, Option<Principal>), options: AgentOptions) {
        let is_dropped = match &mut self.phase {
            Phase::Leading(leading) => {
                let sender = (sender.0, sender.1.as_ref());
                leading.register(now, sender, &options, &mut self.outbox);
                false
            }
            Phase::Recovering(recovering) => !recovering.keep(sender, options),
            Phase::Standby(_) => {
                let from = &sender.0;
                log::debug!("ignored the registration of {from}: this master does not lead");
                true
            }
        };
        self.outbox.counters.register_agent_messages_dropped += u64::from(is_dropped);
    }

    fn report(&mut self, now: Now, from: Upid, overlays: Vec<Assignment>) {
        match &mut self.phase {
            Phase::Leading(leading) => leading.report(now, from, overlays, &mut self.outbox),
            Phase::Standby(_) | Phase::Recovering(_) => self.outbox.drop_report(&from),
        }
    }

    fn subscribe(&mut self, now: Now, from: Upid, request: PeersRequest) {
        match &mut self.phase {
            Phase::Leading(leading) => leading.subscribe(now, from, request, &mut self.outbox),
            Phase::Standby(_) | Phase::Recovering(_) => self.outbox.drop_request_for_peers(&from),
        }
    }

    /// Answers an agent whose last registration has problems. Other agents get no answer.
    fn send_problems(&mut self, (from, is_authenticated): (Upid, bool), held: &HeldAddresses) {
        match &mut self.phase {
            Phase::Leading(leading) => leading.send_problems(from, held, &mut self.outbox),
            Phase::Recovering(recovering) => {
                recovering.ask_problems((&from, is_authenticated), held);
            }
            Phase::Standby(_) => {}
        }
    }
}

/// Returns whether a process has the name of agents. Another process on the host of an agent must
/// not take the agent's place.
fn is_agent(from: &Upid) -> bool {
    from.id == AGENT_PROCESS
}

#[cfg(test)]
impl Master {
    /// Returns the entry of an agent in the table of peers.
    fn peer_of(&self, ip: std::net::Ipv4Addr) -> overlay_types::protocol::PeerInfo {
        match &self.phase {
            Phase::Leading(leading) => leading.peers_of_registry()[&ip].clone(),
            Phase::Standby(_) | Phase::Recovering(_) => panic!("the master does not lead"),
        }
    }
}
