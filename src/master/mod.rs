//! The master: owns the address plan, gives every agent that registers its share of the overlays,
//! and keeps what agents report of it.
//!
//! A pure machine: no IO, no clock.

mod allocation;
mod command;
mod effect;
mod event;
mod history;
mod leadership;
mod metrics;
mod peers;
mod promises;
mod recovery;
mod registry;
mod reload;
mod requests;
mod share;
mod space;
#[cfg(test)]
mod tests;
mod underlay;
mod view;

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

pub use command::{Command, Reply};
pub use effect::{AddressEffect, AgentEffect, Effect, PreviewJob};
pub use event::{Event, Forget, Request};
pub use history::HistoryView;
pub use metrics::Metrics;
pub use promises::{Promise, Promises};
pub use share::assignments;
pub use view::{AgentTally, Condition, Counters, Fate, Health, PeersTally, PoolUsage, Verdict};

use crate::addr::{Family, Upid};
use crate::clock::{Backoff, Now};
use crate::machine::{Machine, is_worth_a_line};
use crate::metrics::Catalogue;
use crate::protocol::{AgentOptions, Assignment, HistoryEvent, Message, MessageKind, Network};
use crate::store::Version;
use leadership::{Phase, Progress, Recovering, Standby};
use registry::{Moment, Notice, Outcome, Refusal};

/// How many agents may wait for the state to be read. More are told nothing and ask again.
const WAITING_MAX: usize = 100_000;
/// What is answered by a master that does not lead.
const NOT_LEADING: &str = "this is not the leading master: ask the one that leads";
/// Bounds of the wait before the store is tried again.
const STORE_RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// How a master behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The overlays and the address space.
    pub network: Arc<Network>,
    /// How long a freed address rests before another agent gets it without a warning.
    pub reuse_after: Duration,
}

/// The master. See [`Machine`] for how to run it.
///
/// Allocation happens in memory at once, and what it changes is put into the next commit; until
/// that is durable the runtime holds back what was promised. So the order of messages is the order
/// of allocations, and one commit carries all that came while the one before was being written.
#[derive(Debug)]
pub struct Master {
    settings: Settings,
    /// Whether an election says when this master leads.
    is_elected: bool,
    phase: Phase,
    store_backoff: Backoff,
    random: fastrand::Rng,
    counters: Counters,
    commands: VecDeque<Command>,
}

impl Master {
    /// A master that leads from the start, since there is no other: it begins with reading its
    /// state. `seed` is what its waits are drawn from.
    #[must_use]
    pub fn new(settings: Settings, seed: u64) -> Self {
        let mut master = Self::standing_by(settings, seed);
        master.is_elected = false;
        master.elected(true);
        master
    }

    /// A master that leads when an [`Event::Leading`] says so, and until one says otherwise.
    #[must_use]
    pub fn standing_by(settings: Settings, seed: u64) -> Self {
        Self {
            settings,
            is_elected: true,
            phase: Phase::Standby(Standby::default()),
            store_backoff: Backoff::new(STORE_RETRY.0, STORE_RETRY.1),
            random: fastrand::Rng::with_seed(seed),
            counters: Counters::default(),
            commands: VecDeque::new(),
        }
    }
}

impl Machine for Master {
    type Event = Event;
    type Command = Command;
    type Metrics = Metrics;

    const TIMEOUT: Event = Event::Timeout;
    const CATALOGUE: &'static Catalogue<Metrics> = &metrics::CATALOGUE;

    fn handle(&mut self, now: Now, event: Event) {
        match event {
            Event::Timeout => {
                self.retry_store(now);
                self.serve_peers(now);
            }
            Event::Leading(leads) => self.elected(leads),
            Event::Loaded(Ok(loaded)) => self.loaded(now, loaded),
            Event::Loaded(Err(error)) | Event::Committed(Err(error)) => {
                self.store_failed(now, error);
            }
            Event::Committed(Ok(version)) => self.committed(version),
            Event::Message { from, message } => self.message(now, from, message),
            Event::Malformed { from, name, reason } => {
                self.counters.malformed_messages += 1;
                if is_worth_a_line(self.counters.malformed_messages) {
                    log::warn!("ignored {} from {from}: {reason}", name.escape_debug());
                }
            }
            Event::Reload(network) => {
                let network = Arc::new(network);
                self.reload(now, Settings { network, ..self.settings });
            }
            Event::Ignored { from, kind } => self.ignored(&from, kind),
            Event::Reread(id, settings) => self.reread(now, id, settings),
            Event::Previewed(id, effect) => {
                let (reply, when) = (Reply::Effect(effect), Version(0));
                self.commands.push_back(Command::Reply { id, reply, when });
            }
            Event::Request(id, request) => self.request(now, id, request),
        }
        if let Phase::Leading(leading) = &mut self.phase {
            leading.note_peers(now);
        }
        self.commit_what_waits();
    }

    fn poll_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    fn next_timeout(&self) -> Option<Duration> {
        match &self.phase {
            Phase::Recovering(Recovering { progress: Progress::Failed(_, due), .. })
            | Phase::Standby(Standby { deposed: Some((_, due)), .. }) => Some(*due),
            Phase::Standby(_) | Phase::Recovering(_) => None,
            Phase::Leading(leading) => leading.peers.next_timeout(),
        }
    }

    fn metrics(&self) -> Metrics {
        let (epoch, version, agents, peers) = match &self.phase {
            Phase::Standby(_) | Phase::Recovering(_) => Default::default(),
            Phase::Leading(leading) => {
                let (agents, peers) = (leading.registry.tally(), leading.peers.tally());
                (leading.epoch.0, leading.durable.0, agents, peers)
            }
        };
        Metrics {
            status: self.condition(),
            epoch,
            version,
            agents,
            peers,
            counters: self.counters.clone(),
        }
    }

    fn degrade(metrics: &mut Metrics) {
        metrics.status = metrics.status.degraded();
    }
}

impl Master {
    fn message(&mut self, now: Now, from: Upid, message: Message) {
        match message {
            Message::RegisterAgent(options) => {
                self.counters.register_agent_messages_received += 1;
                self.register(now, from, &options);
            }
            Message::AgentRegistered(overlays) => {
                self.counters.agent_registered_messages_received += 1;
                self.reported(now, from, overlays);
            }
            Message::RequestPeers(have) => self.subscribe(now, from, have),
            Message::UpdateAgentOverlays(_)
            | Message::AgentRegisteredAcknowledgement
            | Message::UpdatePeers(_) => {
                self.counters.unexpected_messages += 1;
                if is_worth_a_line(self.counters.unexpected_messages) {
                    log::warn!("ignored {message} from {from}: it is meant for an agent");
                }
            }
        }
    }

    /// Whether this master has to do with the sender of such a message: only a registered agent
    /// reports and asks for its peers, under the name under which it registered. An answer to each
    /// port of an address would cost a connection.
    #[must_use]
    pub fn accepts(&self, from: &Upid, kind: MessageKind) -> bool {
        match (&self.phase, kind) {
            (Phase::Leading(leading), MessageKind::AgentRegistered | MessageKind::RequestPeers) => {
                leading.registry.is_contact(from)
            }
            (Phase::Standby(_) | Phase::Recovering(_) | Phase::Leading(_), _) => {
                kind == MessageKind::RegisterAgent
            }
        }
    }

    /// Counts a message that was not decoded, and logs a sample of them.
    fn ignored(&mut self, from: &Upid, kind: MessageKind) {
        let (count, reason) = match kind {
            MessageKind::AgentRegistered => {
                self.counters.agent_registered_messages_received += 1;
                let dropped = &mut self.counters.agent_registered_messages_dropped;
                (dropped, "it is not registered, and will register")
            }
            MessageKind::RequestPeers => {
                self.counters.request_peers_messages_received += 1;
                let dropped = &mut self.counters.request_peers_messages_dropped;
                (dropped, "it is not registered, and will register")
            }
            MessageKind::RegisterAgent
            | MessageKind::UpdateAgentOverlays
            | MessageKind::AgentRegisteredAcknowledgement
            | MessageKind::UpdatePeers => {
                (&mut self.counters.unexpected_messages, "the message is meant for an agent")
            }
        };
        *count += 1;
        if is_worth_a_line(*count) {
            log::warn!("ignored {kind} from {from}: {reason} ({count} ignored since the start)");
        }
    }

    fn register(&mut self, now: Now, from: Upid, options: &AgentOptions) {
        let ip = *from.address.ip();
        let leading = match &mut self.phase {
            Phase::Leading(leading) => leading,
            Phase::Recovering(recovering) => {
                if !recovering.keep(from, *options) {
                    self.counters.register_agent_messages_dropped += 1;
                }
                return;
            }
            Phase::Standby(_) => {
                self.counters.register_agent_messages_dropped += 1;
                log::debug!("ignored the registration of {from}: this master does not lead");
                return;
            }
        };
        let moment = Moment {
            unix: now.unix,
            version: leading.next_version(),
            reuse_after: self.settings.reuse_after,
        };
        match leading.registry.register(ip, options, moment) {
            Ok(outcome) => {
                leading.registry.heard(&from, now.elapsed);
                let is_changed = !outcome.changes.is_empty();
                if is_changed {
                    log::info!("{from} registers with a new share or new options");
                }
                self.take_outcome(now, ip, outcome, "it registered");
                self.update(from, is_changed);
            }
            Err(refusal) => {
                leading.registry.heard(&from, now.elapsed);
                self.counters.register_agent_messages_dropped += 1;
                self.refuse(&from, refusal);
            }
        }
    }

    /// Stores what an agent was given, and why.
    fn take_outcome(&mut self, now: Now, ip: Ipv4Addr, outcome: Outcome, why: &str) {
        let Phase::Leading(leading) = &mut self.phase else {
            return;
        };
        let Outcome { changes, notices, given, is_return } = outcome;
        leading.change(changes);
        if !given.is_empty() {
            let event = if is_return { HistoryEvent::Returned } else { HistoryEvent::Assigned };
            leading.note(now, Some(ip), event, given, why);
        }
        notices.iter().for_each(|notice| self.notice(ip, notice));
    }

    fn notice(&mut self, ip: Ipv4Addr, notice: &Notice) {
        match notice {
            Notice::NoVtep6 => {
                self.counters.ip6_allocation_failures += 1;
                log::warn!("agent {ip} gets no IPv6 VTEP address: vtep_subnet6 is exhausted");
            }
            Notice::NoSubnet(overlay, family) => {
                match family {
                    Family::V4 => self.counters.subnet_allocation_failures += 1,
                    Family::V6 => self.counters.subnet6_allocation_failures += 1,
                }
                log::warn!(
                    "agent {ip} gets no subnet of overlay {overlay}: its {family} space is \
                     exhausted: widen it or delete dead agents"
                );
            }
            Notice::EarlyReuse(what) => {
                self.counters.early_reuses += 1;
                log::warn!(
                    "agent {ip} gets {what}, which another agent had less than {} ago: nothing else \
                     is left",
                    humantime::format_duration(self.settings.reuse_after)
                );
            }
        }
    }

    fn refuse(&mut self, from: &Upid, refusal: Refusal) {
        match refusal {
            Refusal::NoVtep(subnet) => {
                self.counters.ip_allocation_failures += 1;
                log::warn!(
                    "cannot register {from}: no VTEP address is left in {subnet}: widen vtep_subnet \
                     or delete dead agents"
                );
            }
            Refusal::Underlay(fault) => {
                self.counters.registrations_refused += 1;
                if is_worth_a_line(self.counters.registrations_refused) {
                    log::warn!("refused the registration of {from}: {fault}");
                }
            }
            Refusal::SetAside(reason) => {
                log::warn!("cannot register {from}: {reason}: mend the configuration or delete it");
            }
        }
    }

    /// Tells the agent its share, unless just that is waiting for the store already.
    fn update(&mut self, to: Upid, is_changed: bool) {
        let Phase::Leading(leading) = &mut self.phase else {
            return;
        };
        let Some((overlays, when)) = leading.registry.assignments(*to.address.ip()) else {
            return;
        };
        if when > leading.durable {
            let is_told = leading.told.insert(to.clone(), when) == Some(when);
            if is_told && !is_changed {
                return;
            }
        }
        self.counters.update_agent_overlays_messages_sent += 1;
        log::debug!("{to} registers and is assigned {} overlays", overlays.len());
        let message = Message::UpdateAgentOverlays(overlays);
        self.commands.push_back(Command::Send { to, message, when });
    }

    fn reported(&mut self, now: Now, from: Upid, overlays: Vec<Assignment>) {
        let report = match &mut self.phase {
            Phase::Leading(leading) => {
                leading.registry.heard(&from, now.elapsed);
                leading.registry.report(*from.address.ip(), overlays)
            }
            // It will not be acknowledged, and so registers again.
            Phase::Standby(_) | Phase::Recovering(_) => None,
        };
        let Some(report) = report else {
            self.counters.agent_registered_messages_dropped += 1;
            if is_worth_a_line(self.counters.agent_registered_messages_dropped) {
                log::warn!(
                    "ignored a report from {from}, which is not registered: it will register"
                );
            }
            return;
        };
        self.counters.unknown_overlays_reported += report.unknown;
        self.counters.outdated_overlays_reported += report.outdated;
        // What is outdated is shown in the state, with the reason; the rest is at most a nuisance.
        log::debug!("{from} reports {} unknown, {} outdated", report.unknown, report.outdated);
        self.counters.agent_registered_acknowledgements_sent += 1;
        let message = Message::AgentRegisteredAcknowledgement;
        self.commands.push_back(Command::Send { to: from, message, when: report.version });
    }
}
