//! The agent: registers with the master, configures the container networks of the assigned
//! overlays, and reports their status.
//!
//! A pure state machine: no IO, no clock, no randomness of its own.

mod addresses;
mod assigned;
mod authentication;
#[cfg(test)]
mod authentication_tests;
mod cni_gc;
mod command;
mod direct;
mod docker_gc;
mod event;
mod health;
mod host_network;
#[cfg(test)]
mod limit_tests;
mod limits;
mod masters;
mod metrics;
#[cfg(test)]
mod mtu_tests;
mod network_task;
mod offloads;
mod overlays;
mod peers;
mod probes;
mod refusal;
#[cfg(test)]
mod refusal_tests;
mod refused;
mod registration;
#[cfg(test)]
mod repair_tests;
mod settings;
#[cfg(test)]
mod tests;
mod tunnel;
#[cfg(test)]
mod tunnel_tests;
mod view;

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use overlay_types::addr::Upid;
use overlay_types::address_usage::FillLevel;
use overlay_types::clock::Now;
use overlay_types::container_network::NetworkKind;
use overlay_types::mutation::Mutation;
use overlay_types::protocol::{
    AgentOptions, Message, MessageKind, PeersRequest, ProgramVersion, UpdateForm,
};
use overlay_types::repetition::Repetitions;
use overlay_types::warnings::Severity;

use crate::metrics::Catalogue;
use crate::state_machine::{Degrade as _, StateMachine, should_log_sample};
use addresses::Addresses;
pub use addresses::{AddressDetail, AddressDetails, HalfDetails, OverlayDetails};
use authentication::Authentication;
use cni_gc::CniGc;
pub use command::{Command, Reply, Scope};
use direct::Direct;
use docker_gc::DockerGc;
pub use event::{
    AddressQuery, Event, FirewallState, FoundMasters, NetworkDetails, Programmed, Request,
};
use health::{UNANSWERED_MAX, unanswered_problem};
use masters::Masters;
pub use metrics::Metrics;
use offloads::Offloads;
use overlays::Overlays;
use peers::{OwnAddresses, Peers};
use probes::Probes;
use refusal::{Found, Refusal, held_addresses};
pub use refusal::{FoundNetworks, has_named_subnet};
use registration::Registration;
pub use settings::{AuthenticationSettings, Settings};
use tunnel::Tunnel;
pub use tunnel::TunnelSettings;
pub use view::{
    AuthenticationHealth, Condition, Counters, DirectHealth, Health, NamedPeer, NetworkHealth,
    OverlayTally, PeerProbeHealth, ProbeDetails, ProbeHealth, ProbeTally, ProblemSource,
    RoundTrips, TunnelHealth, VxlanPeerHealth,
};

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
    /// `None` without a credential.
    authentication: Option<Authentication>,
    /// The connections that were lost since the master last answered.
    lost_connections: Repetitions,
    overlays: Overlays,
    cni_gc: CniGc,
    docker_gc: DockerGc,
    tunnel: Tunnel,
    peers: Peers,
    probes: Probes,
    offloads: Offloads,
    addresses: Addresses,
    direct: Direct,
    masters: Masters,
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
    /// Whether VXLAN packets of every sender are accepted, because the master sends no peers. This
    /// stays set when another master leads, which may send no peers either.
    accepts_every_sender: bool,
    /// Why the agent cannot be reached at its address.
    address_problem: Option<String>,
    /// Whether the MTU of the first container networks is known, or they wait no longer for it.
    is_mtu_settled: bool,
    mtu_deadline: Option<Duration>,
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
        let mut random = fastrand::Rng::with_seed(seed);
        Self {
            ip,
            refusal: Refusal::new(random.u64(..)),
            tunnel: Tunnel::new(settings.tunnel),
            peers: Peers::new(OwnAddresses { ip, underlay: settings.options.underlay }),
            probes: Probes::new(settings.probe_rate),
            offloads: Offloads::new(settings.tunnel.programs && settings.repair_offloads),
            addresses: Addresses::default(),
            masters: Masters::default(),
            authentication: settings.authentication.as_ref().map(Authentication::new),
            direct: Direct::new(settings.direct_routing, settings.direct_link.clone()),
            settings,
            random,
            registration: Registration::new(),
            lost_connections: Repetitions::new(),
            overlays: Overlays::default(),
            cni_gc: CniGc::default(),
            docker_gc: DockerGc::default(),
            has_assignments: false,
            refused_update: None,
            found: Found::default(),
            reassigned_vtep: None,
            accepts_every_sender: false,
            address_problem: None,
            is_mtu_settled: false,
            mtu_deadline: None,
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
            Event::FoundMasters(found) => {
                self.masters.set_found(found);
                self.program(now, Scope::Change);
            }
            Event::Exited(address) => self.handle_exit(now, address),
            Event::Message { from, message } => self.handle_message(now, &from, message),
            Event::Unauthentic { from, kind, fault } => {
                self.count_unauthentic(&from, kind, &fault);
            }
            Event::AuthenticationChanged(status) => self.set_authentication(status),
            Event::CredentialChanged(credential) => {
                self.set_principal(credential.principal);
                self.registration.register_now(now);
            }
            Event::Malformed { from, name, reason } => self.count_malformed(&from, &name, &reason),
            Event::Ignored { from, kind } => self.count_ignored(&from, kind),
            Event::Applied { attempt, overlay, kind, details, result } => {
                self.docker_gc.finish_attempt(attempt);
                self.finish_attempt(now, attempt, (&overlay, kind), result.map(|()| details));
            }
            Event::Inspected { attempt, underlay_mtu, result } => {
                self.finish_inspection(now, attempt, underlay_mtu, result);
            }
            Event::Remade { overlay, kind } => {
                if self.overlays.is_ready(&overlay, kind) {
                    self.counters.container_network_repairs += 1;
                }
            }
            Event::Programmed { attempt, result } => self.finish_program(now, attempt, result),
            Event::Probed { attempt, result } => {
                let failing = self.probes.failing_count();
                self.probes.finish(now, attempt, result, &mut self.counters);
                if self.probes.failing_count() > failing {
                    self.tunnel.handle_loss(now);
                }
                let is_lost = self.direct.note_failing(now, &self.probes.lost_direct_paths());
                let learned = self.probes.take_learned();
                if is_lost || learned.into_iter().any(|agent| self.direct.waits_for(agent)) {
                    self.program(now, Scope::Change);
                }
            }
            Event::OffloadsTested { attempt, result } => {
                if self.offloads.finish(now, attempt, result) {
                    self.program(now, Scope::Change);
                }
            }
            Event::AddressesCounted { attempt, halves } => {
                self.finish_count(now, attempt, halves);
            }
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
            Event::Request(id, request) => self.answer(now, id, request),
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
            self.probes.next_due(),
            self.offloads.next_due(),
            self.addresses.next_due(),
            self.direct.next_due(),
            self.probes.report_due().filter(|_| self.registration.is_acknowledged()),
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
        let is_master_authenticated =
            self.authentication.as_ref().is_some_and(Authentication::is_authenticated);
        let (probes, counters) = (self.probes.tally(), self.counters.clone());
        let (peers_direct, peers_vxlan) =
            direct::tally(self.tunnel.programmed().map(|programmed| &**programmed));
        Metrics {
            status,
            overlays,
            peers,
            peers_left_out,
            peers_direct,
            peers_vxlan,
            probes,
            full_halves: self.addresses.count_at(FillLevel::Full),
            nearly_full_halves: self.addresses.count_at(FillLevel::NearlyFull),
            is_master_authenticated,
            counters,
        }
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
        self.refusal.reset();
        self.peers.stop_requests();
        match address {
            Some(address) => log::info!("detected master {address}"),
            None => log::warn!("no master is known: waiting until one is detected"),
        }
    }

    fn handle_exit(&mut self, now: Now, address: SocketAddrV4) {
        if self.registration.handle_exit(now, address, &mut self.random) {
            self.counters.connections_lost += 1;
            let problem = format!("connection to master {address} ended or was refused");
            if self.registration.unanswered() == 0 {
                self.lost_connections.clear();
            }
            if let Some(repetition) = self.lost_connections.note(&problem) {
                log::warn!("{problem}{repetition}: registering again");
            }
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
            Message::UpdateAgentOverlays { overlays, master } => {
                self.assign(now, from, overlays, master);
            }
            Message::AgentRegisteredAcknowledgement => self.handle_acknowledgement(now),
            Message::UpdatePeers(update) => self.update_peers(now, &update),
            Message::RegistrationProblems(problems) => self.handle_problems(now, from, &problems),
            Message::AuthenticationChallenge(challenge) => {
                let from = from.clone();
                self.commands.push_back(Command::ReceiveChallenge { from, challenge });
            }
            Message::RegisterAgent(_)
            | Message::AgentRegistered(_)
            | Message::RequestPeers(_)
            | Message::HeldAddresses(_)
            | Message::PeerFailures(_)
            | Message::AuthenticateAgent(_) => {
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

    /// Starts everything that is due.
    fn run_due(&mut self, now: Now) {
        if let Some(master) = self.registration.take_due(now, &mut self.random) {
            self.counters.register_agent_messages_sent += 1;
            if self.registration.unanswered() == UNANSWERED_MAX + 1 {
                log::warn!("{}", unanswered_problem(&master));
            }
            let direct_mac = self.direct.offer().map(|link| link.mac);
            let options = AgentOptions { direct_mac, ..self.settings.options };
            let message = Message::RegisterAgent(options);
            self.commands.push_back(Command::Link(master.clone()));
            self.commands.push_back(Command::Send { to: master.clone(), message });
            let held = held_addresses(&self.found, self.overlays.held_subnets());
            let registration = self.refusal.next_registration();
            let message = Message::HeldAddresses(held.with_registration(registration));
            self.commands.push_back(Command::Send { to: master, message });
        }
        if let Some(master) = self.registration.master()
            && let Some(have) = self.peers.take_due(now, &mut self.random)
        {
            self.counters.request_peers_messages_sent += 1;
            let (form, version) = (UpdateForm::Compact, ProgramVersion::current());
            let address_counts = self.addresses.report();
            let request = PeersRequest { have, form, version, address_counts };
            let message = Message::RequestPeers(request);
            self.commands.push_back(Command::Send { to: master.clone(), message });
        }
        self.update_accepted_senders(now);
        if self.direct.take_due(now, |agent| self.probes.is_failing(agent)) {
            self.program(now, Scope::Change);
        }
        self.tunnel.note_overdue(now);
        self.commands.extend(self.tunnel.take_due(now));
        self.probes.set_programmed(now, self.tunnel.programmed(), &mut self.random);
        self.commands.extend(self.probes.take_due(now, &mut self.random));
        let programmed = self.tunnel.programmed();
        self.commands.extend(self.offloads.take_due(now, programmed, &mut self.random));
        let programmed = self.tunnel.programmed();
        self.commands.extend(self.addresses.take_due(now, programmed));
        self.commands.extend(self.addresses.take_replies(now));
        if self.registration.is_acknowledged()
            && let Some(master) = self.registration.master()
            && let Some(failures) = self.probes.take_report(now, |peer| self.peers.owner(peer))
        {
            self.counters.peer_failures_messages_sent += 1;
            let message = Message::PeerFailures(failures);
            self.commands.push_back(Command::Send { to: master.clone(), message });
        }
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
}
