//! The agent: registers with the master, makes the container networks of its share of the overlays,
//! and reports what became of them.
//!
//! A pure machine: no IO, no clock, no randomness of its own.

mod command;
mod event;
mod leftovers;
#[cfg(test)]
mod limit_tests;
mod limits;
mod metrics;
mod network;
mod overlays;
mod peers;
mod registration;
#[cfg(test)]
mod tests;
mod tunnel;
#[cfg(test)]
mod tunnel_tests;
mod view;
mod wanted;

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

pub use command::{Command, Reply, Scope};
pub use event::{Event, Programmed, Request};
pub use metrics::Metrics;
pub use network::{CniNetwork, ContainerNetwork, DockerNetwork, NetworkKind};
pub use tunnel::TunnelSettings;
pub use view::{Condition, Counters, Health, NetworkHealth, OverlayTally, TunnelHealth};
pub use wanted::desired;

use crate::addr::{OverlayName, Upid};
use crate::clock::Now;
use crate::config::{AgentConfig, DataplaneKind};
use crate::machine::{Machine, is_worth_a_line};
use crate::metrics::{Catalogue, HostCounters, Snapshot};
use crate::mutation::Mutation;
use crate::protocol::{
    AgentInfo, AgentOptions, Assignment, Message, MessageKind, PeersUpdate, Refused,
};
use crate::tunnel::Collision;
use leftovers::Leftovers;
use overlays::Overlays;
use peers::{OwnAddresses, Peers, Taken};
use registration::{Phase, Registration};
use tunnel::Tunnel;

/// Registrations without an answer from which on somebody should look after it.
const SILENCE: u32 = 3;

/// What is wrong when the master does not answer. Messages have no refusals: only the master knows.
fn silence(master: &Upid) -> String {
    format!(
        "master {master} has not answered {SILENCE} registrations: see whether it runs, and the \
         problems that http://{}/overlay-master/health names",
        master.address
    )
}

/// What is wrong when the master says nothing of peers. A C++ module never does.
fn no_peers() -> String {
    "the master does not tell this agent of its peers: let mesos-overlay be the master, or set \
     dataplane to external and let dcos-net find them"
        .to_owned()
}

/// How an agent behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// What it wants of the overlays.
    pub options: AgentOptions,
    /// How many attempts at a network follow each other quickly; later ones come once in
    /// `verify_interval`.
    pub max_configuration_attempts: u32,
    /// How often a network that was found ready is verified.
    pub verify_interval: Duration,
    /// Whether Docker networks that are no longer assigned are removed, if it has to do with Docker
    /// at all. Not where several agents have one Docker engine.
    pub removes_docker_networks: bool,
    /// What it has to do with the network of its host.
    pub tunnel: TunnelSettings,
}

impl From<&AgentConfig> for Settings {
    /// As the configuration says, for an agent on a host of its own.
    fn from(config: &AgentConfig) -> Self {
        Self {
            options: AgentOptions { underlay: config.dataplane.underlay, ..config.options },
            max_configuration_attempts: config.max_configuration_attempts,
            verify_interval: config.verify_interval,
            removes_docker_networks: true,
            tunnel: TunnelSettings {
                programs: config.dataplane.kind == DataplaneKind::Vxlan,
                refuses_collisions: config.dataplane.refuse_collisions,
            },
        }
    }
}

/// The agent. See [`Machine`] for how to run it.
#[derive(Debug)]
pub struct Agent {
    ip: Ipv4Addr,
    settings: Settings,
    random: fastrand::Rng,
    registration: Registration,
    overlays: Overlays,
    leftovers: Leftovers,
    tunnel: Tunnel,
    peers: Peers,
    /// Whether the master has assigned anything since this agent was started.
    has_assignments: bool,
    /// Why the last update of the master was refused as a whole.
    refused_update: Option<String>,
    /// Whether the master lacks the latest statuses.
    has_news: bool,
    counters: Counters,
    commands: VecDeque<Command>,
}

impl Agent {
    /// An agent with the address `ip`, which knows no master yet. `seed` is what its waits are
    /// drawn from: it must differ between agents.
    #[must_use]
    pub fn new(ip: Ipv4Addr, settings: Settings, seed: u64) -> Self {
        Self {
            ip,
            tunnel: Tunnel::new(settings.tunnel),
            peers: Peers::new(OwnAddresses { ip, underlay: settings.options.underlay }),
            settings,
            random: fastrand::Rng::with_seed(seed),
            registration: Registration::new(),
            overlays: Overlays::default(),
            leftovers: Leftovers::default(),
            has_assignments: false,
            refused_update: None,
            has_news: false,
            counters: Counters::default(),
            commands: VecDeque::new(),
        }
    }
}

impl Machine for Agent {
    type Event = Event;
    type Command = Command;
    type Metrics = Metrics;

    const TIMEOUT: Event = Event::Timeout;
    const CATALOGUE: &'static Catalogue<Metrics> = &metrics::CATALOGUE;

    fn handle(&mut self, now: Now, event: Event) {
        match event {
            Event::Timeout => {}
            Event::Detected(address) => self.detected(now, address),
            Event::Exited(address) => self.exited(now, address),
            Event::Message { from, message } => self.message(now, &from, message),
            Event::Malformed { from, name, reason } => self.malformed(&from, &name, &reason),
            Event::Ignored { from, kind } => self.ignored(&from, kind),
            Event::Applied { attempt, overlay, kind, result } => {
                self.leftovers.ended(attempt);
                self.applied(now, attempt, (&overlay, kind), result);
            }
            Event::Inspected { attempt, result } => self.inspected(now, attempt, result),
            Event::Programmed { attempt, result } => self.programmed(now, attempt, result),
            Event::Drifted(scope) => self.tunnel.drifted(now, scope),
            Event::Removed(result) => {
                self.leftovers.removed(now, result, self.settings.verify_interval);
            }
            Event::Request(id, request) => {
                let reply = match request {
                    Request::Overlay => Reply::Overlay(self.info()),
                    Request::Health => Reply::Health(Box::new(self.health(now))),
                    Request::Metrics => Reply::Metrics(Box::new(self.snapshot())),
                };
                self.commands.push_back(Command::Reply { id, reply });
            }
        }
        self.do_what_is_due(now);
    }

    fn poll_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    fn next_timeout(&self) -> Option<Duration> {
        let leftovers = self.leftovers.next_due(&self.overlays.docker_names());
        let overlays = self.overlays.next_due(|network| !self.leftovers.holds(network));
        let tunnel = [self.tunnel.next_due(), self.peers.due()];
        let others = [self.registration.due(), overlays, leftovers];
        others.into_iter().chain(tunnel).flatten().min()
    }

    fn metrics(&self) -> Metrics {
        let overlays = self.overlays.tally(&self.settings);
        let status = if self.registration.master().is_none() {
            Condition::Detached
        } else if !self.registration.is_acknowledged() {
            Condition::Registering
        } else if self.is_degraded(overlays) {
            Condition::Degraded
        } else {
            Condition::Ok
        };
        let peers = self.peers.count().unwrap_or(0) as u64;
        let peers_left_out = self.tunnel.peers_left_out() as u64;
        Metrics { status, overlays, peers, peers_left_out, counters: self.counters.clone() }
    }

    fn degrade(metrics: &mut Metrics) {
        metrics.status = metrics.status.degraded();
    }
}

impl Agent {
    fn detected(&mut self, now: Now, address: Option<SocketAddrV4>) {
        if !self.registration.detected(now, address, &mut self.random) {
            return;
        }
        self.overlays.reset_attempts();
        self.refused_update = None;
        self.peers.detached();
        match address {
            Some(address) => log::info!("detected master {address}"),
            None => log::warn!("no master is known: waiting until one is detected"),
        }
    }

    fn exited(&mut self, now: Now, address: SocketAddrV4) {
        if self.registration.exited(now, address, &mut self.random) {
            self.counters.connections_lost += 1;
            log::warn!("connection to master {address} ended or was refused: registering again");
            self.commands.push_back(Command::Detect);
        }
    }

    fn message(&mut self, now: Now, from: &Upid, message: Message) {
        // Whoever can make this agent believe it can redirect the traffic of all its containers.
        if !self.registration.is_master(from) && !Mutation::AcceptForeignAssignments.is_on() {
            self.ignored(from, message.kind());
            return;
        }
        match message {
            Message::UpdateAgentOverlays(assignments) => self.update(now, from, assignments),
            Message::AgentRegisteredAcknowledgement => self.acknowledged(now),
            Message::UpdatePeers(update) => self.update_peers(now, &update),
            Message::RegisterAgent(_) | Message::AgentRegistered(_) | Message::RequestPeers(_) => {
                self.ignored(from, message.kind());
            }
        }
    }

    /// Whether messages of this sender are from the agent's master.
    #[must_use]
    pub fn has_master(&self, from: &Upid) -> bool {
        self.registration.is_master(from)
    }

    /// Counts a message that is not for this agent, and logs a sample of them.
    fn ignored(&mut self, from: &Upid, kind: MessageKind) {
        self.counters.unexpected_messages += 1;
        if !is_worth_a_line(self.counters.unexpected_messages) {
            return;
        }
        if self.registration.is_master(from) {
            log::warn!("ignored {kind} from {from}: it is meant for a master");
            return;
        }
        let known = self.registration.master().map_or_else(
            || "none is known".to_owned(),
            |master| format!("that is {master}: name it by the address that it advertises"),
        );
        log::warn!("ignored {kind} from {from}, which is not the master of this agent: {known}");
    }

    fn update(&mut self, now: Now, from: &Upid, assignments: Vec<Assignment>) {
        self.counters.update_agent_overlays_messages_received += 1;
        if let Err(reason) = limits::check_message(&assignments) {
            self.refuse_update(from, &reason);
            return;
        }
        self.refused_update = None;
        let count = assignments.len();
        let is_first = !std::mem::replace(&mut self.has_assignments, true);
        if self.overlays.update(now, assignments, &self.settings) || is_first {
            log::info!("the master assigned {count} overlays");
            self.commands.push_back(Command::RetainCni(self.overlays.cni_names()));
            let options = &self.settings.options;
            // One without subnets may be beside another agent, as on the masters of DC/OS.
            let has_docker = options.docker_bridge && options.allocate_subnet;
            if has_docker && self.settings.removes_docker_networks {
                self.leftovers.assigned(now);
            }
        }
        let claims = desired(self.ip, &self.settings, self.overlays.all(), None);
        self.tunnel.claimed(now, claims);
        if self.tunnel.programs() {
            self.peers.assigned(now);
        }
        self.program(now, Scope::Change);
        // A master that assigns wants a report, even if nothing has changed: it may have been
        // restarted.
        self.has_news = true;
        self.registration.assigned();
        self.report(now);
    }

    /// Counts a message that cannot be understood. If it is an assignment of the master, health
    /// shows it.
    fn malformed(&mut self, from: &Upid, name: &str, reason: &str) {
        self.counters.malformed_messages += 1;
        assert!(!Mutation::PanicOnMalformed.is_on(), "a defect that was asked for");
        let is_assignment = name == MessageKind::UpdateAgentOverlays.name();
        if is_assignment && self.registration.is_master(from) {
            self.counters.update_agent_overlays_messages_received += 1;
            self.refuse_update(from, reason);
        } else if is_worth_a_line(self.counters.malformed_messages) {
            log::warn!("ignored {} from {from}: {reason}", name.escape_debug());
        }
    }

    /// Nothing of an update is used, and what is configured stays.
    fn refuse_update(&mut self, from: &Upid, reason: &str) {
        self.counters.update_agent_overlays_messages_dropped += 1;
        let sentence = format!(
            "refused the assignment of master {from}: {reason}: what is configured stays; correct \
             the master's network configuration"
        );
        if is_worth_a_line(self.counters.update_agent_overlays_messages_dropped) {
            log::error!("{sentence}");
        }
        self.refused_update = Some(sentence);
    }

    fn acknowledged(&mut self, now: Now) {
        self.counters.agent_registered_acknowledgements_received += 1;
        if self.registration.phase() != Phase::Reporting {
            self.counters.agent_registered_acknowledgements_dropped += 1;
        } else if self.has_news {
            // Something changed while the report was under way.
            self.report(now);
        } else {
            log::info!("registered with the master");
            self.registration.registered(now, &mut self.random);
        }
    }

    fn applied(
        &mut self,
        now: Now,
        attempt: u64,
        network: (&OverlayName, NetworkKind),
        result: Result<(), String>,
    ) {
        if result.is_err() {
            self.counters.overlay_config_failures += 1;
            if network.1 == NetworkKind::Docker {
                self.counters.docker_cmd_failures += 1;
            }
        }
        let tools = (&self.settings, &mut self.random);
        if let Some(has_changed) = self.overlays.applied(now, attempt, network, result, tools) {
            self.report_news(now, has_changed);
        }
    }

    /// The status of an overlay has changed, or may have been waited for.
    fn report_news(&mut self, now: Now, has_changed: bool) {
        self.has_news |= has_changed;
        match self.registration.phase() {
            Phase::Configuring | Phase::Registered if self.has_news => self.report(now),
            // The master has to acknowledge first.
            Phase::Configuring | Phase::Registered | Phase::Reporting => {}
            // The master has to assign first.
            Phase::Detached | Phase::Registering => {
                let is_dropped = has_changed && self.overlays.are_settled();
                self.counters.agent_registered_messages_dropped += u64::from(is_dropped);
            }
        }
    }

    fn update_peers(&mut self, now: Now, update: &PeersUpdate) {
        self.counters.update_peers_messages_received += 1;
        match self.peers.update(now, update, &mut self.random) {
            Taken::Changed => self.program(now, Scope::Change),
            Taken::Unchanged => {}
            Taken::Dropped => self.counters.update_peers_messages_dropped += 1,
        }
    }

    /// Has the network of the host made as the overlays in use and the peers ask for.
    fn program(&mut self, now: Now, scope: Scope) {
        // Until it is known which overlays are in use, what there is stays.
        if self.overlays.is_admission_awaited() || !self.has_assignments {
            return;
        }
        let peers = self.peers.table();
        let mut desired = desired(self.ip, &self.settings, self.overlays.admitted(), peers);
        desired.left_out = self.peers.left_out();
        self.tunnel.wanted(now, desired, scope);
    }

    fn inspected(&mut self, now: Now, attempt: u64, result: Result<Vec<Collision>, String>) {
        let tools = (&self.settings, &mut self.random);
        if !self.tunnel.inspected(now, (attempt, result.is_ok()), tools) {
            return;
        }
        let is_news = match result {
            Ok(collisions) => {
                let (is_news, late) = self.overlays.admit(&collisions);
                self.tunnel.collides_later(late);
                is_news
            }
            Err(reason) => self.overlays.not_admitted(&reason),
        };
        self.program(now, Scope::Everything);
        self.report_news(now, is_news);
    }

    fn programmed(&mut self, now: Now, attempt: u64, result: Programmed) {
        let tools = (&self.settings, &mut self.random);
        let counters = &mut self.counters;
        let outcomes = self.tunnel.programmed(now, (attempt, result), tools, counters);
        if let Some(outcomes) = outcomes {
            let is_news = self.overlays.programmed(outcomes);
            self.report_news(now, is_news);
        }
    }

    fn is_degraded(&self, overlays: OverlayTally) -> bool {
        overlays.failed > 0
            || self.refused_update.is_some()
            || !self.leftovers.kept().is_empty()
            || self.tunnel.problems().next().is_some()
            || self.peers.is_unanswered()
    }

    /// Tells the master, unless some network is still being tried for the first time.
    fn report(&mut self, now: Now) {
        if !self.overlays.are_settled() {
            return;
        }
        let Some(master) = self.registration.reporting(now, &mut self.random) else {
            return;
        };
        self.has_news = false;
        self.counters.agent_registered_messages_sent += 1;
        let message = Message::AgentRegistered(self.overlays.assignments());
        self.commands.push_back(Command::Send { to: master, message });
    }

    fn do_what_is_due(&mut self, now: Now) {
        if let Some(master) = self.registration.take_due(now, &mut self.random) {
            self.counters.register_agent_messages_sent += 1;
            if self.registration.unanswered() == SILENCE + 1 {
                log::warn!("{}", silence(&master));
            }
            let message = Message::RegisterAgent(self.settings.options);
            self.commands.push_back(Command::Link(master.clone()));
            self.commands.push_back(Command::Send { to: master, message });
        }
        if let Some(master) = self.registration.master()
            && let Some(have) = self.peers.take_due(now, &mut self.random)
        {
            self.counters.request_peers_messages_sent += 1;
            let message = Message::RequestPeers(have);
            self.commands.push_back(Command::Send { to: master.clone(), message });
        }
        self.commands.extend(self.tunnel.take_due(now));
        let wanted = self.overlays.docker_names();
        if self.leftovers.take_due(now, &wanted) {
            self.commands.push_back(Command::RetainDocker(wanted));
        }
        let leftovers = &self.leftovers;
        let due = self.overlays.take_due(now, |network| !leftovers.holds(network));
        for (attempt, network) in due {
            self.leftovers.begun(attempt, &network);
            self.commands.push_back(Command::Apply { attempt, network });
        }
    }

    fn info(&self) -> AgentInfo {
        AgentInfo {
            ip: self.ip,
            overlays: self.overlays.assignments(),
            configuration_attempts: Some(self.overlays.attempts()),
        }
    }

    fn snapshot(&self) -> Snapshot<Metrics> {
        let host = HostCounters::default();
        Snapshot { machine: self.metrics(), host, configured: Vec::new() }
    }

    fn health(&self, now: Now) -> Health {
        let Metrics { status, counters, .. } = self.metrics();
        let mut problems: Vec<String> =
            self.overlays.failures().map(|(name, reason)| format!("{name}: {reason}")).collect();
        problems.extend(self.refused_update.clone());
        problems.extend_from_slice(self.leftovers.kept());
        problems.extend(self.tunnel.problems().cloned());
        if self.peers.is_unanswered() {
            problems.push(no_peers());
        }
        match status {
            Condition::Detached => problems.push("no master is known".to_owned()),
            Condition::Registering if self.registration.unanswered() > SILENCE => {
                problems.extend(self.registration.master().map(silence));
            }
            Condition::Registering | Condition::Degraded | Condition::Ok => {}
        }
        Health {
            status,
            problems,
            master: self.registration.master().map(ToString::to_string),
            networks: self.overlays.health(now),
            dataplane: self.tunnel.health(self.peers.count(), &counters),
            counters,
            refused: Refused::default(),
        }
    }
}
