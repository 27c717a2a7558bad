//! The processes of agents: the real state machine, and the execution of its commands.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use bytes::Bytes;
use overlay_engine::agent::{
    Agent, Command, Event, FoundNetworks, NetworkDetails, Reply, Request, Settings, TunnelSettings,
};
use overlay_engine::authentication::{AgentSession, AuthenticationStatus, ContentDigest};
use overlay_engine::state_machine::StateMachine as _;
use overlay_types::addr::{AGENT_PROCESS, OverlayName, Upid, agent_upid};
use overlay_types::container_network::{ContainerNetwork, NetworkKind};
use overlay_types::protocol::{AgentOptions, AuthenticationMode, Message, RequestId, UpdateForm};
use overlay_wire as wire;

use super::followers::{DecodedUpdate, Follower};
use super::masters::MasterNode;
use super::sessions::{open_at_agent, random_seed};
use super::{Packet, SimEvent, World, clock};
use crate::chance::Chance;
use crate::clock::Clock;
use crate::host::{Host, JobOutcome};
use crate::invariants::{Fact, InvariantResult, Violation};
use crate::kernel::{Job, Kernel};
use crate::scenario::{Authentication, Scenario};

/// The count of networks that agents have removed since other agents have their subnets.
pub(crate) const REMOVED: &str = "networks of other agents removed";
/// How long a killed agent is down.
const DOWNTIME_MAX: Duration = Duration::from_secs(60);
/// The timeout of a connection attempt.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Bodies of peer updates that are under way at a time.
const DECODED_MAX: usize = 64;

/// A decoded message.
enum Received {
    Peers(DecodedUpdate),
    Other(Message),
}

/// The node of an agent.
pub(crate) struct AgentNode {
    pub(crate) ip: Ipv4Addr,
    pub(crate) port: u16,
    /// The number of its process.
    pub(crate) run: u64,
    pub(crate) host: Host,
    pub(crate) kernel: Kernel,
    /// Whether the agent programs the kernel and requests its peers.
    pub(crate) programs: bool,
    /// The peers of an agent that does not program the kernel, if its peers are simulated.
    pub(crate) follower: Option<Follower>,
    /// Whether the agent has a former version, which knows no compact form of peer updates.
    pub(crate) is_former_version: bool,
    pub(crate) options: AgentOptions,
    /// How the agent treats an unauthenticated master, if it has a credential.
    pub(crate) authentication: Option<AuthenticationMode>,
    /// Whether its state says that a master has authenticated.
    pub(crate) has_authenticated_master: bool,
    pub(crate) process: Option<Process>,
}

/// A running agent.
pub(crate) struct Process {
    machine: Agent,
    session: AgentSession,
    /// The status of the session that the state machine knows.
    reported: AuthenticationStatus,
    pub(crate) clock: Clock,
    /// When the current timer expires.
    timer: Option<Duration>,
    /// The number and the remote address of the open link.
    link: Option<(u64, SocketAddrV4)>,
    last_link: u64,
}

impl Process {
    /// Lets the session see an event, as the runtime does.
    fn observe(&mut self, event: &Event) {
        match event {
            Event::Exited(address) => self.session.link_ended(*address),
            Event::CredentialChanged(credential) => self.session.set_credential(credential.clone()),
            _ => {}
        }
    }

    /// Reports a changed status of the session to the state machine.
    fn report_session(&mut self, now: Duration) {
        if *self.session.status() != self.reported {
            self.reported.clone_from(self.session.status());
            let event = Event::AuthenticationChanged(self.reported.clone());
            self.machine.handle(self.clock.read(now), event);
        }
    }
}

/// Chooses whether an agent has a credential, and how it treats unauthenticated masters.
fn authentication_mode(scenario: &Scenario, chance: &mut Chance) -> Option<AuthenticationMode> {
    let required = Some(AuthenticationMode::Required);
    match scenario.authentication? {
        Authentication::Required => required,
        Authentication::Permitted if chance.is(0.4) => None,
        Authentication::Permitted if chance.is(0.5) => required,
        Authentication::Permitted => Some(AuthenticationMode::Permitted),
    }
}

impl AgentNode {
    pub(crate) fn new(ip: Ipv4Addr, scenario: &Scenario, chance: &mut Chance) -> Self {
        let mut node = Self {
            ip,
            port: 5051,
            run: 0,
            host: Host::default(),
            kernel: Kernel::default(),
            programs: chance.is(scenario.programming),
            follower: None,
            is_former_version: chance.is(scenario.former_versions),
            options: AgentOptions::default(),
            authentication: authentication_mode(scenario, chance),
            has_authenticated_master: false,
            process: None,
        };
        node.configure(chance);
        node
    }

    /// Chooses the options of the agent.
    pub(crate) fn configure(&mut self, chance: &mut Chance) {
        self.options = AgentOptions {
            allocate_subnet: !chance.is(0.1),
            mesos_bridge: !chance.is(0.1),
            docker_bridge: !chance.is(0.2),
            enable_ipv6: chance.is(0.5),
            ..AgentOptions::default()
        };
    }

    pub(crate) const fn address(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.ip, self.port)
    }
}

impl World {
    pub(crate) fn start_agent(&mut self, agent: usize) -> InvariantResult {
        if self.agents[agent].process.is_some() {
            return Ok(());
        }
        let has_jumps = self.scenario.faults.clock_jumps.is_some();
        let clock = clock(self.now, has_jumps, &mut self.chance);
        let seed = self.chance.seed();
        let random = random_seed(&mut self.chance);
        let authentication = self.agent_authentication(agent);
        let node = &mut self.agents[agent];
        let programs = node.programs;
        let settings = Settings {
            options: node.options,
            max_configuration_attempts: 5,
            verify_interval: self.scenario.verify_interval,
            removes_docker_networks: true,
            tunnel: TunnelSettings { programs, refuses_collisions: programs },
            probe_rate: 0,
            repair_offloads: false,
            authentication: authentication.clone(),
            direct_routing: false,
            direct_link: None,
        };
        let was_authenticated = node.has_authenticated_master;
        let mode = node.authentication.unwrap_or(AuthenticationMode::Permitted);
        let credential = authentication.map(|it| it.credential);
        let session = AgentSession::new(credential, mode, was_authenticated, &random);
        let reported = session.status().clone();
        node.kernel.forget();
        let machine = Agent::new(node.ip, settings, seed);
        node.run += 1;
        node.process = Some(Process {
            machine,
            session,
            reported,
            clock,
            timer: None,
            link: None,
            last_link: 0,
        });
        let (run, ip, options) = (node.run, node.ip, node.options);
        self.note(|| format!("agent {ip} starts, run {run}"));
        self.counts.add("starts of agents", 1);
        self.monitor.observe(self.now, &Fact::AgentStarted { agent: ip, options, programs })?;
        self.find_networks(agent, run)?;
        self.plan_detection(agent, run);
        Ok(())
    }

    /// Delivers the list of the managed networks of a host.
    fn find_networks(&mut self, agent: usize, run: u64) -> InvariantResult {
        for kind in [NetworkKind::Cni, NetworkKind::Docker] {
            let networks = Ok(self.agents[agent].host.found(kind));
            self.deliver_to_agent(agent, run, Event::FoundNetworks { kind, networks })?;
        }
        Ok(())
    }

    /// Kills an agent, and plans its restart.
    pub(super) fn kill_agent(&mut self, agent: usize) {
        let node = &mut self.agents[agent];
        if node.process.take().is_none() {
            return;
        }
        let (ip, address) = (node.ip, node.address());
        self.note(|| format!("agent {ip} is killed"));
        self.links_to_agent_end(address);
        let away =
            if self.has_faults { self.chance.time_up_to(DOWNTIME_MAX) } else { Duration::ZERO };
        self.plan_in(away, SimEvent::AgentStarts(agent));
    }

    pub(super) fn arrives_at_agent(&mut self, agent: usize, packet: &Packet) -> InvariantResult {
        let node = &self.agents[agent];
        let is_addressee = packet.to.address == node.address() && packet.to.id == AGENT_PROCESS;
        if node.process.is_none() || !is_addressee {
            return Ok(());
        }
        let (from, ip, run) = (packet.from.clone(), node.ip, node.run);
        let Some(opened) = self.open_for_agent(agent, packet)? else {
            return Ok(());
        };
        let event = match self.decode_for_agent(&opened) {
            Ok(Received::Peers(update)) => {
                self.monitor.observe(self.now, &Fact::PeersReceived { agent: ip })?;
                if self.agents[agent].follower.is_some() {
                    return self.follower_receives(agent, &update);
                }
                Event::Message { from, message: Message::UpdatePeers(update.content) }
            }
            Ok(Received::Other(message)) => {
                let process = self.agents[agent].process.as_ref();
                let is_of_master = process.is_some_and(|process| process.machine.has_master(&from));
                if let Message::UpdateAgentOverlays { .. } = message
                    && is_of_master
                {
                    self.monitor.observe(self.now, &Fact::AssignmentsReceived { agent: ip })?;
                    self.follow(agent, from.clone())?;
                }
                Event::Message { from, message }
            }
            Err(reason) => Event::Malformed { from, name: packet.name.clone(), reason },
        };
        self.deliver_to_agent(agent, run, event)
    }

    /// Checks a message, as the runtime does. Returns it without its seal, or `None` if it is refused.
    fn open_for_agent(
        &mut self,
        agent: usize,
        packet: &Packet,
    ) -> Result<Option<Packet>, Violation> {
        let node = &mut self.agents[agent];
        let run = node.run;
        let (from, name) = (packet.from.clone(), &packet.name);
        let body = packet.body.clone();
        let mut opened = Packet {
            is_forged: packet.is_forged,
            id: packet.id,
            ..Packet::new(from.clone(), packet.to.clone(), name, body)
        };
        let Some(process) = node.process.as_mut().filter(|process| process.session.is_on()) else {
            return Ok(Some(opened));
        };
        let Some(kind) = wire::kind_of(name) else { return Ok(Some(opened)) };
        let event = if process.machine.has_master(&from) {
            match open_at_agent(&mut process.session, (&from, kind), &packet.body) {
                Ok(length) => {
                    opened.body.truncate(length);
                    self.report_accepted(run, packet, kind)?;
                    return Ok(Some(opened));
                }
                Err(fault) => Event::Unauthentic { from, kind, fault },
            }
        } else {
            Event::Ignored { from, kind }
        };
        self.deliver_to_agent(agent, run, event)?;
        Ok(None)
    }

    /// Decodes a message to an agent. A body of peers that many agents receive is decoded once.
    fn decode_for_agent(&mut self, packet: &Packet) -> Result<Received, String> {
        let body = &packet.body;
        // All empty bodies have one address: an acknowledgement may equal an update without content.
        let is_shared = !body.is_empty();
        let is_same = |known: &Bytes| {
            is_shared && (known.as_ptr(), known.len()) == (body.as_ptr(), body.len())
        };
        if let Some((_, update)) = self.decoded.iter().find(|(known, _)| is_same(known)) {
            return Ok(Received::Peers(update.clone()));
        }
        let message =
            wire::decode_message(&packet.name, body).map_err(|error| error.to_string())?;
        let Message::UpdatePeers(update) = message else { return Ok(Received::Other(message)) };
        let update = DecodedUpdate::new(update);
        self.decoded.push_back((body.clone(), update.clone()));
        if self.decoded.len() > DECODED_MAX {
            self.decoded.pop_front();
        }
        Ok(Received::Peers(update))
    }

    pub(super) fn agent_detects(&mut self, agent: usize, run: u64) -> InvariantResult {
        let leader = self.election.leader.map(|master| self.masters[master].address);
        self.deliver_to_agent(agent, run, Event::Detected(leader))
    }

    /// Ends a link of an agent, if it is still open.
    pub(super) fn agent_loses(&mut self, agent: usize, run: u64, link: u64) -> InvariantResult {
        let node = &mut self.agents[agent];
        let Some(process) = node.process.as_mut().filter(|_| node.run == run) else {
            return Ok(());
        };
        match process.link {
            Some((number, address)) if number == link => {
                process.link = None;
                self.deliver_to_agent(agent, run, Event::Exited(address))
            }
            _ => Ok(()),
        }
    }

    /// Ends all links to a master.
    pub(super) fn links_end(&mut self, master: usize) {
        let address = self.masters[master].address;
        for agent in 0..self.agents.len() {
            let node = &self.agents[agent];
            let link = node.process.as_ref().and_then(|process| process.link);
            if let Some((link, _)) = link.filter(|(_, to)| *to == address) {
                let run = node.run;
                let wait = self.chance.time_up_to(Duration::from_secs(2));
                self.plan_in(wait, SimEvent::Exited { agent, run, link });
            }
        }
    }

    /// Breaks the link of an agent, if one is open.
    pub(super) fn break_link(&mut self, agent: usize) {
        let node = &self.agents[agent];
        let link = node.process.as_ref().and_then(|process| process.link);
        if let Some((link, _)) = link {
            let run = node.run;
            self.plan_in(Duration::ZERO, SimEvent::Exited { agent, run, link });
        }
    }

    pub(super) fn agent_timer(&mut self, agent: usize, run: u64, due: Duration) -> InvariantResult {
        let node = &mut self.agents[agent];
        let Some(process) = node.process.as_mut().filter(|_| node.run == run) else {
            return Ok(());
        };
        if process.timer != Some(due) {
            return Ok(());
        }
        process.timer = None;
        self.handle_for_agent(agent, Event::Timeout)
    }

    /// Delivers an event to an agent, if its process still runs.
    pub(super) fn deliver_to_agent(
        &mut self,
        agent: usize,
        run: u64,
        event: Event,
    ) -> InvariantResult {
        let node = &self.agents[agent];
        if node.process.is_none() || node.run != run {
            return Ok(());
        }
        let ip = node.ip;
        self.monitor.observe(self.now, &Fact::AgentTriggered { agent: ip })?;
        self.handle_for_agent(agent, event)
    }

    fn handle_for_agent(&mut self, agent: usize, event: Event) -> InvariantResult {
        let ip = self.agents[agent].ip;
        self.note(|| format!("agent {ip} <- {event}"));
        let Some(process) = &mut self.agents[agent].process else {
            return Ok(());
        };
        process.observe(&event);
        process.machine.handle(process.clock.read(self.now), event);
        process.report_session(self.now);
        let commands: Vec<Command> =
            std::iter::from_fn(|| process.machine.poll_command()).collect();
        let count = commands.len();
        let fact = Fact::CommandsIssued { node: ip, count, events: 1, is_master: false };
        self.monitor.observe(self.now, &fact)?;
        for command in commands {
            let share = self.faults().map_or(0.0, |faults| faults.agent_kills_at_commands);
            if self.chance.is(share) {
                self.counts.add("fault: agent killed at a command", 1);
                self.kill_agent(agent);
                return Ok(());
            }
            self.note(|| format!("agent {ip} -> {command}"));
            self.run_for_agent(agent, command)?;
        }
        self.set_agent_timer(agent);
        Ok(())
    }

    fn run_for_agent(&mut self, agent: usize, command: Command) -> InvariantResult {
        let node = &mut self.agents[agent];
        let (run, ip) = (node.run, node.ip);
        match command {
            Command::Detect => self.plan_detection(agent, run),
            Command::Link(to) => self.link(agent, to.address),
            Command::Send { to, message } => self.run_send(agent, &to, message)?,
            Command::ReceiveChallenge { from, challenge } => {
                let Some(process) = &mut node.process else { return Ok(()) };
                let held = process.session.receive_challenge(&from, &challenge);
                for message in held.unwrap_or_default() {
                    self.send_from_agent(agent, &from, &message);
                }
            }
            Command::RememberAuthentication => node.has_authenticated_master = true,
            Command::Apply { attempt, network } => {
                let fact = Fact::NetworkDesired { agent: ip, network: &network };
                self.monitor.observe(self.now, &fact)?;
                let faults = self.has_faults.then_some(&self.scenario.faults);
                let kind = network.kind();
                let (end, outcome) = node.host.begin(self.now, kind, faults, &mut self.chance);
                self.counts.add("fault: driver fails", u64::from(outcome != JobOutcome::Works));
                let made = Box::new(network);
                let ends = SimEvent::AttemptDone { agent, run, attempt, made, outcome };
                self.queue.plan(end, ends);
            }
            Command::RetainCni(desired) => {
                let when = node.host.cni_free(self.now);
                self.queue.plan(when, SimEvent::RetainCni { agent, run, desired });
            }
            Command::RetainDocker(desired) => {
                let faults = self.has_faults.then_some(&self.scenario.faults);
                let kind = NetworkKind::Docker;
                let (end, outcome) = node.host.begin(self.now, kind, faults, &mut self.chance);
                self.queue.plan(end, SimEvent::RetainDocker { agent, run, desired, outcome });
            }
            Command::RemoveCni(named) => {
                let when = node.host.cni_free(self.now);
                let fact = Fact::RemovalOrdered { agent: ip, named: &named };
                self.monitor.observe(self.now, &fact)?;
                self.queue.plan(when, SimEvent::RemoveCni { agent, run, named });
            }
            Command::RemoveDocker(named) => {
                let faults = self.has_faults.then_some(&self.scenario.faults);
                let kind = NetworkKind::Docker;
                let (end, outcome) = node.host.begin(self.now, kind, faults, &mut self.chance);
                self.queue.plan(end, SimEvent::RemoveDocker { agent, run, named, outcome });
            }
            Command::FindNetworks => self.find_networks(agent, run)?,
            Command::Inspect { attempt, claims } => {
                self.begin_kernel_job(agent, attempt, Job::Inspect(claims));
            }
            Command::Program { attempt, desired, scope } => {
                self.begin_kernel_job(agent, attempt, Job::Program(desired, scope));
            }
            // The simulated network carries no packets of containers, so nothing is probed.
            Command::Probe { .. }
            | Command::TestOffloads { .. }
            | Command::CountAddresses { .. } => {}
            // Only the final examination sends requests, and it reads the replies itself.
            Command::Reply { .. } => {}
        }
        Ok(())
    }

    /// Runs the command to send a message.
    fn run_send(&mut self, agent: usize, to: &Upid, mut message: Message) -> InvariantResult {
        let node = &mut self.agents[agent];
        let ip = node.ip;
        if let Message::AgentRegistered(overlays) = &message {
            self.monitor.observe(self.now, &Fact::Reported { agent: ip, overlays })?;
        }
        if let Message::RequestPeers(request) = &mut message {
            if node.is_former_version {
                request.form = UpdateForm::Plain;
            }
            let fact = Fact::PeersRequested { agent: ip, have: request.have };
            self.monitor.observe(self.now, &fact)?;
        }
        self.monitor.observe(self.now, &Fact::MessageSent { agent: ip, is_by_agent: true })?;
        let Some(process) = &mut self.agents[agent].process else { return Ok(()) };
        for message in process.session.send(to, message) {
            self.send_from_agent(agent, to, &message);
        }
        Ok(())
    }

    fn send_from_agent(&mut self, agent: usize, to: &Upid, message: &Message) {
        let node = &mut self.agents[agent];
        let from = agent_upid(node.address());
        let (name, mut body) = wire::encode_message(message);
        if let Some(process) = &mut node.process {
            let digest = || ContentDigest::of(&body);
            if let Some(seal) = process.session.seal(message.kind(), digest) {
                wire::append_seal(&mut body, &seal);
            }
        }
        self.send(Packet::new(from, to.clone(), name, body.into()));
    }

    /// Opens a link to a master, unless it is open already.
    fn link(&mut self, agent: usize, address: SocketAddrV4) {
        let node = &mut self.agents[agent];
        let (run, ip) = (node.run, node.ip);
        let Some(process) = &mut node.process else {
            return;
        };
        if process.link.is_some_and(|(_, to)| to == address) {
            return;
        }
        process.last_link += 1;
        let link = process.last_link;
        process.link = Some((link, address));
        let is_up = |master: &MasterNode| master.address == address && master.process.is_some();
        let to = *address.ip();
        let wait = if self.wires.is_cut(ip, to) || self.wires.is_cut(to, ip) {
            CONNECT_TIMEOUT
        } else if self.masters.iter().any(is_up) {
            return;
        } else {
            Duration::from_millis(1)
        };
        self.plan_in(wait, SimEvent::Exited { agent, run, link });
    }

    pub(super) fn attempt_done(
        &mut self,
        (agent, run): (usize, u64),
        attempt: u64,
        network: &ContainerNetwork,
        outcome: JobOutcome,
    ) -> InvariantResult {
        let node = &mut self.agents[agent];
        if node.run != run {
            return Ok(());
        }
        if node.process.is_none() {
            // The attempt was killed with its agent, before or after its effect.
            if self.chance.is(0.5) {
                let _ = node.host.finish(network, outcome);
            }
            return Ok(());
        }
        let result = node.host.finish(network, outcome);
        let (ip, is_done) = (node.ip, result.is_ok());
        self.monitor.observe(self.now, &Fact::NetworkApplied { agent: ip, network, is_done })?;
        let (overlay, kind) = (network.name().clone(), network.kind());
        self.deliver_to_agent(
            agent,
            run,
            Event::Applied { attempt, overlay, kind, details: NetworkDetails::default(), result },
        )
    }

    pub(super) fn retain_cni(&mut self, agent: usize, run: u64, desired: &BTreeSet<OverlayName>) {
        let node = &mut self.agents[agent];
        if node.process.is_some() && node.run == run {
            node.host.retain_cni(desired);
        }
    }

    pub(super) fn remove_cni(
        &mut self,
        agent: usize,
        run: u64,
        named: &FoundNetworks,
    ) -> InvariantResult {
        let node = &mut self.agents[agent];
        if node.process.is_none() || node.run != run {
            return Ok(());
        }
        let (ip, removed) = (node.ip, node.host.remove_cni(named));
        self.note_removed(ip, &removed)?;
        self.deliver_to_agent(agent, run, Event::CniRemoved(Vec::new()))?;
        self.find_networks(agent, run)
    }

    pub(super) fn remove_docker(
        &mut self,
        (agent, run): (usize, u64),
        named: &FoundNetworks,
        outcome: JobOutcome,
    ) -> InvariantResult {
        let node = &mut self.agents[agent];
        if node.process.is_none() || node.run != run {
            return Ok(());
        }
        let (ip, (result, removed)) = (node.ip, node.host.remove_docker(named, outcome));
        self.note_removed(ip, &removed)?;
        self.deliver_to_agent(agent, run, Event::Removed(result))?;
        self.find_networks(agent, run)
    }

    /// Reports the networks that an agent has removed since other agents have their subnets.
    fn note_removed(&mut self, agent: Ipv4Addr, removed: &[ContainerNetwork]) -> InvariantResult {
        self.counts.add(REMOVED, removed.len() as u64);
        removed.iter().try_for_each(|network| {
            self.monitor.observe(self.now, &Fact::NetworkDropped { agent, network })
        })
    }

    pub(super) fn retain_docker(
        &mut self,
        (agent, run): (usize, u64),
        desired: &BTreeSet<OverlayName>,
        outcome: JobOutcome,
    ) -> InvariantResult {
        let node = &mut self.agents[agent];
        if node.process.is_none() || node.run != run {
            return Ok(());
        }
        let result = node.host.retain_docker(desired, outcome);
        self.deliver_to_agent(agent, run, Event::Removed(result))
    }

    fn set_agent_timer(&mut self, agent: usize) {
        let node = &mut self.agents[agent];
        let Some(process) = &mut node.process else {
            return;
        };
        let due = process.machine.next_timeout().map(|due| process.clock.moment_of(due));
        if let Some(due) = due.filter(|due| Some(*due) != process.timer) {
            process.timer = Some(due);
            let run = node.run;
            self.queue.plan(due.max(self.now), SimEvent::AgentTimer { agent, run, due });
        }
    }

    /// Sends a request to a running agent, and ignores its other commands.
    pub(super) fn ask_agent(&mut self, agent: usize, request: Request) -> Option<Reply> {
        let process = self.agents[agent].process.as_mut()?;
        process.machine.handle(process.clock.read(self.now), Event::Request(RequestId(1), request));
        let mut commands = std::iter::from_fn(|| process.machine.poll_command());
        commands.find_map(|command| match command {
            Command::Reply { reply, .. } => Some(reply),
            _ => None,
        })
    }
}
