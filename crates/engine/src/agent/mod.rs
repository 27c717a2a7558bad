//! The agent: registers with the master, configures the container networks of the assigned overlays,
//! and reports their status.
//!
//! A pure state machine: no IO, no clock, no randomness of its own.

mod cni_gc;
mod command;
mod docker_gc;
mod event;
#[cfg(test)]
mod limit_tests;
mod limits;
mod metrics;
mod overlays;
mod peers;
mod refusal;
#[cfg(test)]
mod refusal_tests;
mod refused;
mod registration;
#[cfg(test)]
mod tests;
mod tunnel;
#[cfg(test)]
mod tunnel_tests;
mod view;

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use overlay_config::{AgentConfig, DataplaneKind};
use overlay_types::addr::{OverlayName, Upid};
use overlay_types::clock::Now;
use overlay_types::container_network::NetworkKind;
use overlay_types::mutation::Mutation;
use overlay_types::protocol::{
    AgentInfo, AgentOptions, Assignment, Message, MessageKind, PeersUpdate, RejectedMessages,
};
use overlay_types::tunnel::{Collision, Desired};
use overlay_types::warnings::Severity;

use crate::metrics::{Catalogue, HostCounters, LogTally, Snapshot};
use crate::state_machine::{Degrade as _, StateMachine, should_log_sample};
use cni_gc::CniGc;
pub use command::{Command, Reply, Scope};
use docker_gc::DockerGc;
pub use event::{Event, Programmed, Request};
pub use metrics::Metrics;
use overlays::Overlays;
use peers::{ApplyResult, OwnAddresses, Peers};
pub use refusal::FoundNetworks;
use refusal::{Found, Refusal, held_addresses, reassigned_vtep_problem};
use registration::{Phase, Registration};
use tunnel::Tunnel;
pub use tunnel::TunnelSettings;
pub use view::{Condition, Counters, Health, NetworkHealth, OverlayTally, TunnelHealth};

/// Consecutive unanswered registrations after which the health shows a problem.
const UNANSWERED_MAX: u32 = 3;

/// Describes a master that does not answer. The protocol has no refusal, so only the master knows
/// the reason.
fn unanswered_problem(master: &Upid) -> String {
    format!(
        "master {master} has not answered {UNANSWERED_MAX} registrations: see whether it runs, and \
         the problems that http://{}/overlay-master/health names",
        master.address
    )
}

/// Describes a master that sends no peers. A C++ module never sends peers.
fn no_peers_problem() -> String {
    "the master sends no peers to this agent: let mesos-overlay be the master, or set dataplane to \
     external and let dcos-net find them"
        .to_owned()
}

/// The settings of an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The options that the agent registers with.
    pub options: AgentOptions,
    /// Number of quick attempts at a network. Later attempts follow at `verify_interval`.
    pub max_configuration_attempts: u32,
    /// Interval of the verification of a ready network.
    pub verify_interval: Duration,
    /// Whether the agent removes Docker networks that are no longer assigned, if it configures Docker
    /// networks at all. Agents that share a Docker engine must not.
    pub removes_docker_networks: bool,
    /// What the agent does with the network of its host.
    pub tunnel: TunnelSettings,
}

impl Settings {
    /// Returns whether the Docker networks of the host belong to this agent. An agent without
    /// subnets may share the host with another agent, as on the masters of DC/OS. The Docker
    /// networks belong to the other agent.
    #[must_use]
    pub const fn manages_docker(&self) -> bool {
        self.options.docker_bridge && self.options.allocate_subnet && self.removes_docker_networks
    }
}

impl From<&AgentConfig> for Settings {
    /// Converts the configuration of the only agent on a host.
    fn from(config: &AgentConfig) -> Self {
        Self {
            options: config.registered_options(),
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

/// What the parts of the agent need to handle an event.
#[derive(Debug)]
struct Context<'a> {
    now: Now,
    settings: &'a Settings,
    random: &'a mut fastrand::Rng,
}

/// The agent. See [`StateMachine`] for how to run it.
#[derive(Debug)]
pub struct Agent {
    ip: Ipv4Addr,
    settings: Settings,
    random: fastrand::Rng,
    registration: Registration,
    overlays: Overlays,
    cni_gc: CniGc,
    docker_gc: DockerGc,
    tunnel: Tunnel,
    peers: Peers,
    /// Whether a master has sent an assignment since the start of this agent.
    has_assignments: bool,
    /// Why the agent refused the last assignment message as a whole.
    refused_update: Option<String>,
    /// What the master says about the registration.
    refusal: Refusal,
    /// What the host had before the first assignment.
    found: Found,
    /// The VTEP address of this host that another agent has, and that agent.
    reassigned_vtep: Option<(IpAddr, Ipv4Addr)>,
    /// Why the agent cannot be reached at its address.
    address_problem: Option<String>,
    /// Whether the status of an overlay has changed since the last report.
    has_unreported_change: bool,
    counters: Counters,
    commands: VecDeque<Command>,
}

impl Agent {
    /// Creates an agent with the address `ip` and without a master. `seed` must differ between
    /// agents: their delays are drawn from it.
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
            cni_gc: CniGc::default(),
            docker_gc: DockerGc::default(),
            has_assignments: false,
            refused_update: None,
            refusal: Refusal::default(),
            found: Found::default(),
            reassigned_vtep: None,
            address_problem: None,
            has_unreported_change: false,
            counters: Counters::default(),
            commands: VecDeque::new(),
        }
    }
}

impl StateMachine for Agent {
    type Event = Event;
    type Command = Command;
    type Metrics = Metrics;

    const TIMEOUT: Event = Event::Timeout;
    const CATALOGUE: &'static Catalogue<Metrics> = &metrics::CATALOGUE;

    fn handle(&mut self, now: Now, event: Event) {
        match event {
            Event::Timeout => {}
            Event::Detected(address) => self.set_master(now, address),
            Event::Exited(address) => self.handle_exit(now, address),
            Event::Message { from, message } => self.handle_message(now, &from, message),
            Event::Malformed { from, name, reason } => self.count_malformed(&from, &name, &reason),
            Event::Ignored { from, kind } => self.count_ignored(&from, kind),
            Event::Applied { attempt, overlay, kind, result } => {
                self.docker_gc.finish_attempt(attempt);
                self.finish_attempt(now, attempt, (&overlay, kind), result);
            }
            Event::Inspected { attempt, result } => self.finish_inspection(now, attempt, result),
            Event::Programmed { attempt, result } => self.finish_program(now, attempt, result),
            Event::Drifted(scope) => self.tunnel.handle_drift(now, scope),
            Event::Removed(result) => {
                self.docker_gc.finish_removal(now, result, self.settings.verify_interval);
            }
            Event::CniRemoved(failures) => {
                self.cni_gc.finish_removal(now, failures, self.settings.verify_interval);
            }
            Event::FoundNetworks { kind, networks } => self.found_networks(kind, networks),
            Event::DockerStarted => {
                self.overlays.retry_failed(now, NetworkKind::Docker);
                self.docker_gc.retry_failed(now);
            }
            Event::FoundVteps(vteps) => self.found_vteps(vteps),
            Event::OwnAddress(problem) => self.set_address_problem(now, problem),
            Event::Request(id, request) => {
                let reply = self.reply(now, request);
                self.commands.push_back(Command::Reply { id, reply });
            }
        }
        self.run_due(now);
    }

    fn poll_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    fn next_timeout(&self) -> Option<Duration> {
        let due = [
            self.registration.due(),
            self.overlays.next_due(|network| self.docker_gc.delays(network)),
            self.cni_gc.due(),
            self.docker_gc.next_due(&self.overlays.docker_names()),
            self.tunnel.next_due(),
            self.peers.due(),
        ];
        due.into_iter().flatten().min()
    }

    fn metrics(&self) -> Metrics {
        let overlays = self.overlays.tally(&self.settings);
        let status = if self.address_problem.is_some() {
            Condition::Failed
        } else if self.registration.master().is_none() {
            Condition::Detached
        } else if self.refusal.is_refused() {
            Condition::Failed
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

    fn degrade(metrics: &mut Metrics, severity: Severity) {
        metrics.status = metrics.status.degraded(severity);
    }
}

impl Agent {
    /// Returns whether the sender is the agent's master.
    #[must_use]
    pub fn has_master(&self, from: &Upid) -> bool {
        self.registration.is_master(from)
    }

    fn set_master(&mut self, now: Now, address: Option<SocketAddrV4>) {
        if !self.registration.set_master(now, address, &mut self.random) {
            return;
        }
        self.overlays.reset_attempts();
        self.refused_update = None;
        self.refusal = Refusal::default();
        self.peers.stop_requests();
        match address {
            Some(address) => log::info!("detected master {address}"),
            None => log::warn!("no master is known: waiting until one is detected"),
        }
    }

    fn handle_exit(&mut self, now: Now, address: SocketAddrV4) {
        if self.registration.handle_exit(now, address, &mut self.random) {
            self.counters.connections_lost += 1;
            log::warn!("connection to master {address} ended or was refused: registering again");
            self.commands.push_back(Command::Detect);
        }
    }

    fn handle_message(&mut self, now: Now, from: &Upid, message: Message) {
        // A forged message could redirect the traffic of all containers of this agent.
        if !self.registration.is_master(from) && !Mutation::AcceptForeignAssignments.is_on() {
            self.count_ignored(from, message.kind());
            return;
        }
        match message {
            Message::UpdateAgentOverlays(assignments) => self.assign(now, from, assignments),
            Message::AgentRegisteredAcknowledgement => self.handle_acknowledgement(now),
            Message::UpdatePeers(update) => self.update_peers(now, &update),
            Message::RegistrationProblems(problems) => self.handle_problems(now, from, &problems),
            Message::RegisterAgent(_)
            | Message::AgentRegistered(_)
            | Message::RequestPeers(_)
            | Message::HeldAddresses(_) => {
                self.count_ignored(from, message.kind());
            }
        }
    }

    /// Counts a message that is not for this agent, and logs a sample of such messages.
    fn count_ignored(&mut self, from: &Upid, kind: MessageKind) {
        self.counters.unexpected_messages += 1;
        if !should_log_sample(self.counters.unexpected_messages) {
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

    /// Counts a message that could not be decoded. The health shows the reason if the message is an
    /// assignment of the master.
    fn count_malformed(&mut self, from: &Upid, name: &str, reason: &str) {
        self.counters.malformed_messages += 1;
        assert!(!Mutation::PanicOnMalformed.is_on(), "a mutation requested this panic");
        let is_assignment = name == MessageKind::UpdateAgentOverlays.name();
        if is_assignment && self.registration.is_master(from) {
            self.counters.update_agent_overlays_messages_received += 1;
            self.refuse_update(from, reason);
        } else if should_log_sample(self.counters.malformed_messages) {
            log::warn!("ignored {} from {from}: {reason}", name.escape_debug());
        }
    }

    /// Refuses an assignment message as a whole. The current configuration stays.
    fn refuse_update(&mut self, from: &Upid, reason: &str) {
        self.counters.update_agent_overlays_messages_dropped += 1;
        let sentence = format!(
            "refused the assignment of master {from}: {reason}: the present configuration stays; \
             correct the master's network configuration"
        );
        if should_log_sample(self.counters.update_agent_overlays_messages_dropped) {
            log::error!("{sentence}");
        }
        self.refused_update = Some(sentence);
    }

    /// Handles the assignments of the master.
    fn assign(&mut self, now: Now, from: &Upid, assignments: Vec<Assignment>) {
        self.counters.update_agent_overlays_messages_received += 1;
        if let Err(reason) = limits::check_message(&assignments) {
            self.refuse_update(from, &reason);
            return;
        }
        self.refused_update = None;
        self.refusal.note_assignment();
        self.found.clear();
        self.reassigned_vtep = None;
        let count = assignments.len();
        let is_first = !std::mem::replace(&mut self.has_assignments, true);
        if self.overlays.update(now, assignments, &self.settings) || is_first {
            log::info!("the master assigned {count} overlays");
            self.commands.push_back(Command::RetainCni(self.overlays.cni_names()));
            if self.settings.manages_docker() {
                self.docker_gc.schedule(now);
            }
        }
        let claims =
            Desired::for_assignments(self.ip, &self.settings.options, self.overlays.valid(), None);
        self.tunnel.set_claims(now, claims);
        if self.tunnel.programs() {
            self.peers.request_now(now);
        }
        self.program(now, Scope::Change);
        // The master expects a report after each assignment, even without a change: the master may
        // have been restarted.
        self.has_unreported_change = true;
        self.registration.begin_configuring();
        self.report(now);
    }

    fn handle_acknowledgement(&mut self, now: Now) {
        self.counters.agent_registered_acknowledgements_received += 1;
        if self.registration.phase() != Phase::Reporting {
            self.counters.agent_registered_acknowledgements_dropped += 1;
        } else if self.has_unreported_change {
            // A status changed while the report was under way.
            self.report(now);
        } else {
            log::info!("registered with the master");
            self.registration.complete(now, &mut self.random);
        }
    }

    fn finish_attempt(
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
        let mut context = Context { now, settings: &self.settings, random: &mut self.random };
        let change = self.overlays.finish_attempt(&mut context, attempt, network, result);
        if let Some(has_changed) = change {
            self.report_change(now, has_changed);
        }
    }

    /// Reports a changed status, if the registration allows a report now. An unchanged status may
    /// complete the configuration, so it can lead to a report, too.
    fn report_change(&mut self, now: Now, has_changed: bool) {
        self.has_unreported_change |= has_changed;
        match self.registration.phase() {
            Phase::Configuring | Phase::Registered if self.has_unreported_change => {
                self.report(now);
            }
            // A report has to wait for the acknowledgement of the previous report.
            Phase::Configuring | Phase::Registered | Phase::Reporting => {}
            // A report has to wait for an assignment.
            Phase::Detached | Phase::Registering => {
                let is_dropped = has_changed && self.overlays.are_attempted();
                self.counters.agent_registered_messages_dropped += u64::from(is_dropped);
            }
        }
    }

    fn update_peers(&mut self, now: Now, update: &PeersUpdate) {
        self.counters.update_peers_messages_received += 1;
        match self.peers.update(now, update, &mut self.random) {
            ApplyResult::Changed => self.program(now, Scope::Change),
            ApplyResult::Unchanged => {}
            ApplyResult::Dropped => self.counters.update_peers_messages_dropped += 1,
        }
    }

    /// Sets the desired state of the host's network: the admitted overlays and the peers.
    fn program(&mut self, now: Now, scope: Scope) {
        // Until the inspection has ended, the programmed state stays.
        if self.overlays.is_admission_pending() || !self.has_assignments {
            return;
        }
        self.program_admitted(now, scope);
    }

    fn program_admitted(&mut self, now: Now, scope: Scope) {
        let peers = self.peers.by_underlay();
        let mut desired = Desired::for_assignments(
            self.ip,
            &self.settings.options,
            self.overlays.admitted(),
            peers,
        );
        desired.excluded_peers = self.peers.excluded_peers();
        self.tunnel.set_desired(now, desired, scope);
    }

    fn finish_inspection(
        &mut self,
        now: Now,
        attempt: u64,
        result: Result<Vec<Collision>, String>,
    ) {
        let mut context = Context { now, settings: &self.settings, random: &mut self.random };
        if !self.tunnel.finish_inspection(&mut context, attempt, result.is_ok()) {
            return;
        }
        let has_changed = match result {
            Ok(collisions) => {
                let (has_changed, late) = self.overlays.admit(&collisions);
                self.tunnel.set_late_collisions(late);
                has_changed
            }
            Err(reason) => self.overlays.fail_inspection(&reason),
        };
        self.program(now, Scope::Everything);
        self.report_change(now, has_changed);
    }

    fn finish_program(&mut self, now: Now, attempt: u64, result: Programmed) {
        let mut context = Context { now, settings: &self.settings, random: &mut self.random };
        let counters = &mut self.counters;
        let tunnels = self.tunnel.finish_program(&mut context, attempt, result, counters);
        if let Some(tunnels) = tunnels {
            let has_changed = self.overlays.set_tunnels(tunnels);
            self.report_change(now, has_changed);
        }
    }

    /// Sends a report to the master, unless a network waits for its first attempt.
    fn report(&mut self, now: Now) {
        if !self.overlays.are_attempted() {
            return;
        }
        let Some(master) = self.registration.begin_report(now, &mut self.random) else {
            return;
        };
        self.has_unreported_change = false;
        self.counters.agent_registered_messages_sent += 1;
        let message = Message::AgentRegistered(self.overlays.assignments());
        self.commands.push_back(Command::Send { to: master, message });
    }

    /// Starts everything that is due.
    fn run_due(&mut self, now: Now) {
        if let Some(master) = self.registration.take_due(now, &mut self.random) {
            self.counters.register_agent_messages_sent += 1;
            if self.registration.unanswered() == UNANSWERED_MAX + 1 {
                log::warn!("{}", unanswered_problem(&master));
            }
            let message = Message::RegisterAgent(self.settings.options);
            self.commands.push_back(Command::Link(master.clone()));
            self.commands.push_back(Command::Send { to: master.clone(), message });
            let held = held_addresses(&self.found, self.overlays.held_subnets());
            let message = Message::HeldAddresses(held);
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
        let docker_names = self.overlays.docker_names();
        self.commands.extend(self.docker_gc.take_due(now, &docker_names));
        if self.cni_gc.take_due(now) && self.has_assignments {
            self.commands.push_back(Command::RetainCni(self.overlays.cni_names()));
        }
        let docker_gc = &self.docker_gc;
        let due = self.overlays.take_due(now, |network| docker_gc.delays(network));
        for (attempt, network) in due {
            self.docker_gc.start_attempt(attempt, &network);
            self.commands.push_back(Command::Apply { attempt, network });
        }
    }

    fn reply(&self, now: Now, request: Request) -> Reply {
        match request {
            Request::Overlay => Reply::Overlay(self.info()),
            Request::Health => Reply::Health(Box::new(self.health(now))),
            Request::Metrics => Reply::Metrics(Box::new(self.snapshot())),
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
        Snapshot { metrics: self.metrics(), host, configured: Vec::new() }
    }

    fn is_degraded(&self, overlays: OverlayTally) -> bool {
        overlays.failed > 0
            || self.refused_update.is_some()
            || !self.refusal.is_empty()
            || !self.cni_gc.problems().is_empty()
            || self.docker_gc.problems().next().is_some()
            || self.tunnel.problems().next().is_some()
            || self.gets_no_peers()
    }

    /// Returns whether the master serves this agent, and sends it no peers.
    fn gets_no_peers(&self) -> bool {
        self.peers.is_unanswered()
            && self.address_problem.is_none()
            && !self.refusal.is_refused()
            && self.registration.is_acknowledged()
    }

    fn health(&self, now: Now) -> Health {
        let Metrics { status, counters, .. } = self.metrics();
        Health {
            status,
            problems: self.problems(status),
            master: self.registration.master().map(ToString::to_string),
            networks: self.overlays.health(now),
            dataplane: self.tunnel.health(self.peers.count(), &counters),
            counters,
            refused: RejectedMessages::default(),
            log: LogTally::default(),
        }
    }

    fn problems(&self, status: Condition) -> Vec<String> {
        let mut problems: Vec<String> = self.address_problem.clone().into_iter().collect();
        if let Some(master) = self.registration.master() {
            problems.extend(self.refusal.sentences(master));
        }
        problems.extend(self.overlays.failures().map(|(name, reason)| format!("{name}: {reason}")));
        problems.extend(self.found.problems().cloned());
        problems.extend(self.refused_update.clone());
        problems.extend_from_slice(self.cni_gc.problems());
        problems.extend(self.docker_gc.problems().cloned());
        problems.extend(self.tunnel.problems().cloned());
        if self.gets_no_peers() {
            problems.push(no_peers_problem());
        }
        if !self.has_assignments
            && let Some((vtep, agent)) = self.reassigned_vtep
        {
            problems.push(reassigned_vtep_problem(vtep, agent));
        }
        match status {
            Condition::Detached => problems.push("no master is known".to_owned()),
            Condition::Registering | Condition::Failed
                if self.address_problem.is_none()
                    && self.registration.unanswered() > UNANSWERED_MAX =>
            {
                problems.extend(self.registration.master().map(unanswered_problem));
            }
            Condition::Registering | Condition::Failed | Condition::Degraded | Condition::Ok => {}
        }
        problems
    }
}
