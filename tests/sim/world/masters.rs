//! The processes of masters: the real state machine, its real durability gate, and the execution of
//! its commands.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use overlay_engine::authentication::{ContentDigest, MasterSessions};
use overlay_engine::master::{
    Command, DurabilityGate, EncodedUpdate, Event, Master, PendingSend, Reply, Request, Settings,
};
use overlay_engine::state_machine::StateMachine as _;
use overlay_store::Change;
use overlay_types::addr::{MASTER_PROCESS, Upid, master_upid};
use overlay_types::protocol::{
    AuthenticityFault, MasterKind, Message, MessageKind, Network, PeersUpdate, RequestId,
    UpdateForm,
};
use overlay_wire as wire;

use super::agents::AgentNode;
use super::sessions::{open_at_master, random_seed};
use super::{Packet, SimEvent, World, clock, master_address};
use crate::clock::Clock;
use crate::invariants::{Fact, InvariantResult, Violation, Writer};
use crate::storage::{Job, Storage, Work};

/// The count of refusals that name addresses of other agents.
pub(crate) const REFUSED: &str = "refusals with reassigned addresses";
/// Events that a master handles in a batch.
const BATCH_SIZE: usize = 128;
/// How long reading the configuration takes.
const CONFIG_READ_TIME: Duration = Duration::from_millis(5);
/// The timeout of an attempt to link to an agent.
const LINK_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a killed master is down.
const DOWNTIME_MAX: Duration = Duration::from_secs(40);

/// The processor time of masters. It does not influence the simulated time.
#[derive(Default)]
pub(crate) struct MasterTime {
    /// The time of all events in all state machines, with encoding and compression.
    pub(crate) total: Duration,
    /// The longest event, which delays the next one.
    pub(crate) longest: Duration,
    /// The time of encoding and compression.
    pub(crate) encoding: Duration,
    /// The longest encoding.
    pub(crate) longest_encoding: Duration,
}

impl MasterTime {
    fn add(&mut self, time: Duration) {
        self.total += time;
        self.longest = self.longest.max(time);
        let encoding = ENCODING.take();
        self.encoding += encoding;
        self.longest_encoding = self.longest_encoding.max(encoding);
    }
}

thread_local! {
    /// The time of encodings since the last [`MasterTime::add`].
    static ENCODING: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

fn encode_and_measure(update: &PeersUpdate, form: UpdateForm) -> Arc<[u8]> {
    let start = processor_time();
    let body = wire::encode_peers_update(update, form);
    ENCODING.set(ENCODING.get() + processor_time().saturating_sub(start));
    body
}

/// Returns the processor time of this thread.
fn processor_time() -> Duration {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID);
    time.map_or(Duration::ZERO, Duration::from)
}

/// The node of a master.
pub(crate) struct MasterNode {
    pub(crate) address: SocketAddrV4,
    /// The number of its process.
    pub(crate) run: u64,
    pub(crate) process: Option<Process>,
    /// When the last notification of the election arrives.
    pub(crate) last_notification: Duration,
}

/// A running master.
pub(crate) struct Process {
    machine: Master,
    sessions: MasterSessions,
    gate: DurabilityGate,
    pub(crate) clock: Clock,
    networks: Vec<Arc<Network>>,
    inbox: VecDeque<Event>,
    is_waking: bool,
    /// When the current timer expires.
    timer: Option<Duration>,
    leads: bool,
    epoch: u64,
    durable: u64,
    is_store_busy: bool,
    /// The open links to agents.
    pub(super) links: BTreeSet<SocketAddrV4>,
    last_request: u64,
    /// The requests to delete agents, by their number.
    deletions: BTreeMap<u64, (Duration, Vec<Ipv4Addr>)>,
    /// The replies of this master, by the number of the request.
    pub(crate) replies: BTreeMap<u64, Reply>,
}

impl MasterNode {
    pub(crate) fn new(master: usize) -> Self {
        Self {
            address: master_address(master),
            run: 0,
            process: None,
            last_notification: Duration::ZERO,
        }
    }
}

impl Process {
    fn new(settings: Settings, (seed, random): (u64, [u8; 32]), clock: Clock) -> Self {
        let secrets = settings.authentication.as_ref().map(|it| Arc::clone(&it.secrets));
        Self {
            sessions: MasterSessions::new(secrets, &random),
            networks: vec![Arc::clone(&settings.network)],
            machine: Master::standing_by(settings, encode_and_measure, seed),
            gate: DurabilityGate::new(),
            clock,
            inbox: VecDeque::new(),
            is_waking: false,
            timer: None,
            leads: false,
            epoch: 0,
            durable: 0,
            is_store_busy: false,
            links: BTreeSet::new(),
            last_request: 0,
            deletions: BTreeMap::new(),
            replies: BTreeMap::new(),
        }
    }

    /// Handles an event as the runtime does.
    fn take(&mut self, now: Duration, event: Event) {
        match &event {
            Event::Leading(leads) => self.leads = *leads,
            Event::Loaded(result) => {
                self.is_store_busy = false;
                if let Ok(loaded) = result {
                    (self.epoch, self.durable) = (loaded.epoch.0, loaded.version.0);
                }
            }
            Event::Committed(result) => {
                self.is_store_busy = false;
                self.durable = result.as_ref().map_or(self.durable, |version| version.0);
            }
            _ => {}
        }
        self.gate.observe(&event);
        self.machine.handle(self.clock.read(now), event);
    }
}

impl World {
    pub(super) fn start_master(&mut self, master: usize) -> InvariantResult {
        if self.masters[master].process.is_some() {
            return Ok(());
        }
        let network = self.plan.network();
        let settings = Settings {
            network,
            reuse_after: self.scenario.reuse_after,
            kind: MasterKind::Program,
            authentication: self.master_authentication(),
        };
        let random = random_seed(&mut self.chance);
        let has_jumps = self.scenario.faults.clock_jumps.is_some();
        let clock = clock(self.now, has_jumps, &mut self.chance);
        let process = Process::new(settings, (self.chance.seed(), random), clock);
        let node = &mut self.masters[master];
        node.run += 1;
        node.process = Some(process);
        let run = node.run;
        self.note(|| format!("master {master} starts, run {run}"));
        self.counts.add("starts of masters", 1);
        self.master_joins(master);
        self.wake_master(master, run)
    }

    /// Kills a master, and plans its restart.
    pub(super) fn kill_master(&mut self, master: usize) {
        if self.masters[master].process.take().is_none() {
            return;
        }
        self.note(|| format!("master {master} is killed"));
        self.master_dies(master);
        self.links_end(master);
        let away =
            if self.has_faults { self.chance.time_up_to(DOWNTIME_MAX) } else { Duration::ZERO };
        self.plan_in(away, SimEvent::MasterStarts(master));
    }

    pub(super) fn arrives_at_master(&mut self, master: usize, packet: &Packet) -> InvariantResult {
        let node = &self.masters[master];
        if node.process.is_none() || packet.to.id != MASTER_PROCESS {
            return Ok(());
        }
        let run = node.run;
        let sends_no_peers = self.sends_no_peers(master);
        if sends_no_peers && packet.name.ends_with(".RequestPeersMessage") {
            return Ok(());
        }
        let event = self.decode_for_master(master, packet)?;
        let agent = *packet.from.address.ip();
        let is_of_peers = matches!(
            &event,
            Event::Message { message: Message::RequestPeers(_), .. }
                | Event::Authenticated { message: Message::RequestPeers(_), .. }
        );
        let fact = if is_of_peers {
            Fact::PeersRequestReceived { of: (master, run), agent }
        } else {
            Fact::MessageReceived { agent }
        };
        self.monitor.observe(self.now, &fact)?;
        self.deliver_to_master(master, run, event)
    }

    /// Converts a message to an event, as the runtime does.
    fn decode_for_master(&mut self, master: usize, packet: &Packet) -> Result<Event, Violation> {
        let node = &mut self.masters[master];
        let run = node.run;
        let process = node.process.as_mut().expect("the master runs");
        let from = packet.from.clone();
        let (mut content, mut principal) = (&packet.body[..], None);
        if process.sessions.is_on()
            && let Some(kind) = wire::kind_of(&packet.name)
        {
            if !process.machine.accepts(&from, kind) {
                return Ok(Event::Ignored { from, kind });
            }
            match open_at_master(&mut process.sessions, (&from, kind), content) {
                Ok(opened) => (content, principal) = opened,
                Err(fault) => return Ok(Event::Unauthentic { from, kind, fault }),
            }
            if !process.machine.trusts(&from, kind, principal.is_some()) {
                let fault = AuthenticityFault::NotSealed;
                return Ok(Event::Unauthentic { from, kind, fault });
            }
            // An agent that never authenticated may ask why it is refused.
            if kind != MessageKind::HeldAddresses || principal.is_some() {
                self.report_accepted(run, packet, kind)?;
            }
        }
        Ok(match (wire::decode_message(&packet.name, content), principal) {
            (Ok(message), Some(principal)) => Event::Authenticated { from, principal, message },
            (Ok(message), None) => Event::Message { from, message },
            (Err(error), _) => {
                let (name, reason) = (packet.name.clone(), error.to_string());
                Event::Malformed { from, name, reason }
            }
        })
    }

    /// Returns whether a master sends no peers.
    pub(super) const fn sends_no_peers(&self, master: usize) -> bool {
        master < self.scenario.masters_without_peers
    }

    /// Puts an event into the inbox of a master, if its process still runs.
    pub(super) fn deliver_to_master(
        &mut self,
        master: usize,
        run: u64,
        event: Event,
    ) -> InvariantResult {
        let busy = self.scenario.busy;
        let node = &mut self.masters[master];
        let Some(process) = node.process.as_mut().filter(|_| node.run == run) else {
            return Ok(());
        };
        process.inbox.push_back(event);
        if std::mem::replace(&mut process.is_waking, true) {
            return Ok(());
        }
        if busy.is_zero() {
            return self.wake_master(master, run);
        }
        let wait = self.chance.time_up_to(busy);
        self.plan_in(wait, SimEvent::MasterWakes { master, run });
        Ok(())
    }

    pub(super) fn master_timer(
        &mut self,
        master: usize,
        run: u64,
        due: Duration,
    ) -> InvariantResult {
        let node = &mut self.masters[master];
        let Some(process) = node.process.as_mut().filter(|_| node.run == run) else {
            return Ok(());
        };
        if process.timer != Some(due) {
            return Ok(());
        }
        process.timer = None;
        self.deliver_to_master(master, run, Event::Timeout)
    }

    /// Lets a master handle its inbox, and runs its commands, as the runtime does.
    pub(super) fn wake_master(&mut self, master: usize, run: u64) -> InvariantResult {
        let now = self.now;
        let node = &mut self.masters[master];
        let Some(process) = node.process.as_mut().filter(|_| node.run == run) else {
            return Ok(());
        };
        process.is_waking = false;
        let count = process.inbox.len().min(BATCH_SIZE);
        let batch: Vec<Event> = process.inbox.drain(..count).collect();
        if !process.inbox.is_empty() {
            process.is_waking = true;
            self.queue.plan(now, SimEvent::MasterWakes { master, run });
        }
        for event in batch {
            self.note(|| format!("master {master} <- {event}"));
            if let Some(process) = &mut self.masters[master].process {
                let start = processor_time();
                process.take(now, event);
                self.master_time.add(processor_time().saturating_sub(start));
            }
        }
        self.do_for_master(master, count)
    }

    /// Runs the commands of a master, unless it is killed in between.
    fn do_for_master(&mut self, master: usize, events: usize) -> InvariantResult {
        let node = *self.masters[master].address.ip();
        let Some(process) = &mut self.masters[master].process else {
            return Ok(());
        };
        let commands: Vec<Command> =
            std::iter::from_fn(|| process.machine.poll_command()).collect();
        let count = commands.len();
        let fact = Fact::CommandsIssued { node, count, events: events.max(1), is_master: true };
        self.monitor.observe(self.now, &fact)?;
        for command in commands {
            if self.is_killed_here(master) {
                return Ok(());
            }
            self.note(|| format!("master {master} -> {command}"));
            self.run_for_master(master, command)?;
        }
        let Some(process) = &mut self.masters[master].process else {
            return Ok(());
        };
        let released: Vec<PendingSend> = process.gate.release().collect();
        for send in released {
            if self.is_killed_here(master) {
                return Ok(());
            }
            self.send_released(master, send)?;
        }
        self.set_master_timer(master);
        Ok(())
    }

    fn is_killed_here(&mut self, master: usize) -> bool {
        let share = self.faults().map_or(0.0, |faults| faults.master_kills_at_commands);
        let is_killed = self.chance.is(share);
        if is_killed {
            self.counts.add("fault: master killed at a command", 1);
            self.kill_master(master);
        }
        is_killed
    }

    fn run_for_master(&mut self, master: usize, command: Command) -> InvariantResult {
        let authentication = self.master_authentication();
        let node = &mut self.masters[master];
        let Some(process) = &mut node.process else {
            return Ok(());
        };
        match command {
            Command::Load => self.queue_job(master, Work::Load),
            Command::Commit { epoch, changes } => {
                self.queue_job(master, Work::Commit { epoch, changes });
            }
            Command::Abandon(reason) => {
                for send in process.gate.abandon() {
                    if let PendingSend::Reply(id, _) = send {
                        process.replies.insert(id.0, Reply::Unavailable(reason.clone()));
                    }
                }
            }
            Command::Challenge { to, request } => {
                let challenge = process.sessions.challenge(&to, &request);
                let message = Message::AuthenticationChallenge(challenge);
                return self.send_from_master(master, to, &message);
            }
            Command::SetSecrets(secrets) => process.sessions.set_secrets(secrets),
            Command::Link(to) => self.link_to_agent(master, to.address),
            Command::ReadConfig(id) => {
                let network = self.plan.network();
                process.networks.push(Arc::clone(&network));
                let settings = Settings {
                    network,
                    reuse_after: self.scenario.reuse_after,
                    kind: MasterKind::Program,
                    authentication,
                };
                let (run, event) = (node.run, Box::new(Event::ConfigRead(id, Ok(settings))));
                self.plan_in(CONFIG_READ_TIME, SimEvent::MasterReceives { master, run, event });
                return self.monitor.observe(self.now, &Fact::ConfigRead);
            }
            Command::Preview { id, job } => {
                let (run, event) = (node.run, Box::new(Event::Previewed(id, Box::new(job.run()))));
                self.plan_in(CONFIG_READ_TIME, SimEvent::MasterReceives { master, run, event });
            }
            Command::Withdraw(agents) => process.gate.withdraw(&agents),
            Command::Send { to, message, when } => {
                process.gate.hold(when, PendingSend::Message(to, message));
            }
            Command::SendPeers { to, update, when } => {
                process.gate.hold(when, PendingSend::Peers(to, update));
            }
            Command::Reply { id, reply, when } => {
                process.gate.hold(when, PendingSend::Reply(id, reply));
            }
        }
        Ok(())
    }

    /// Opens a link to an agent, unless it is open already.
    fn link_to_agent(&mut self, master: usize, address: SocketAddrV4) {
        let node = &mut self.masters[master];
        let (run, own) = (node.run, *node.address.ip());
        let Some(process) = node.process.as_mut().filter(|it| !it.links.contains(&address)) else {
            return;
        };
        let is_up = |agent: &AgentNode| agent.address() == address && agent.process.is_some();
        let wait = if self.wires.is_cut(own, *address.ip()) {
            LINK_TIMEOUT
        } else if self.agents.iter().any(is_up) {
            process.links.insert(address);
            return;
        } else {
            Duration::from_millis(1)
        };
        let event = Box::new(Event::Exited(address));
        self.plan_in(wait, SimEvent::MasterReceives { master, run, event });
    }

    /// Ends the links of all masters to an agent.
    pub(super) fn links_to_agent_end(&mut self, address: SocketAddrV4) {
        for master in 0..self.masters.len() {
            let node = &mut self.masters[master];
            let run = node.run;
            let links = node.process.as_mut().map(|process| &mut process.links);
            if links.is_some_and(|links| links.remove(&address)) {
                let wait = self.chance.time_up_to(Duration::from_secs(2));
                let event = Box::new(Event::Exited(address));
                self.plan_in(wait, SimEvent::MasterReceives { master, run, event });
            }
        }
    }

    fn queue_job(&mut self, master: usize, work: Work) {
        let by = self.writer(master);
        if let Some(process) = &mut self.masters[master].process {
            assert!(!process.is_store_busy, "a master has two jobs for its store at a time");
            process.is_store_busy = true;
            let before = process.networks.len().saturating_sub(1);
            process.networks.drain(..before);
        }
        let faults = self.has_faults.then_some(&self.scenario.faults);
        let tools = (&mut self.chance, &mut self.counts);
        let (job, before, after) = Storage::begin(by, work, faults, tools);
        self.plan_in(before, SimEvent::StoreJobDone(Box::new(job), after));
    }

    /// Returns a description of a running master.
    fn writer(&self, master: usize) -> Writer {
        let node = &self.masters[master];
        let process = node.process.as_ref().expect("a master with a command runs");
        Writer {
            master,
            run: node.run,
            leads: process.leads,
            epoch: process.epoch,
            durable: process.durable,
            early_reuses: process.machine.metrics().counters.early_reuses,
            at: self.now,
            unix: process.clock.read(self.now).unix,
            networks: process.networks.clone(),
        }
    }

    /// Applies a job of the store, whether or not its master still runs.
    pub(super) fn store_job_done(&mut self, job: &Job, after: Duration) -> InvariantResult {
        let (event, is_changed) = self.storage.act(job);
        self.note(|| format!("the store runs a job of master {}: {event}", job.by.master));
        match &job.work {
            Work::Load if is_changed => self.monitor.begin_epoch(self.now)?,
            Work::Commit { epoch, changes } if is_changed => {
                let changes: Vec<Change> = changes.iter().map(Change::encode).collect();
                let steps = self.monitor.write(self.now, &job.by, epoch.0, &changes)?;
                for step in steps {
                    self.note(|| {
                        format!("the store has the record of {}: {:?}", step.ip, step.after)
                    });
                }
            }
            Work::Load | Work::Commit { .. } => {}
        }
        let (master, run) = (job.by.master, job.by.run);
        self.plan_in(after, SimEvent::MasterReceives { master, run, event: Box::new(event) });
        Ok(())
    }

    fn send_released(&mut self, master: usize, send: PendingSend) -> InvariantResult {
        match send {
            PendingSend::Message(to, message) => self.send_from_master(master, to, &message)?,
            PendingSend::Peers(to, update) => {
                let body = Bytes::from_owner(Arc::clone(update.body()));
                for to in to {
                    self.send_peers(master, to, &update, &body)?;
                }
            }
            PendingSend::Reply(id, reply) => {
                let by = self.writer(master);
                if let Some(process) = &mut self.masters[master].process {
                    if let Some((asked, agents)) = process.deletions.remove(&id.0)
                        && matches!(reply, Reply::State(_))
                    {
                        let fact = Fact::ReleaseConfirmed { by: &by, agents: &agents, asked };
                        self.monitor.observe(self.now, &fact)?;
                    }
                    process.replies.insert(id.0, reply);
                }
            }
        }
        Ok(())
    }

    fn send_from_master(&mut self, master: usize, to: Upid, message: &Message) -> InvariantResult {
        let agent = *to.address.ip();
        if let Message::UpdateAgentOverlays { overlays, .. } = message {
            let by = self.writer(master);
            let fact = Fact::AssignmentsSent { by: &by, to: agent, overlays };
            self.monitor.observe(self.now, &fact)?;
        }
        if let Message::RegistrationProblems(problems) = message {
            let by = self.writer(master);
            self.counts.add(REFUSED, u64::from(!problems.reassigned.is_empty()));
            let fact = Fact::ProblemsSent { by: &by, to: agent, problems };
            self.monitor.observe(self.now, &fact)?;
        }
        self.monitor.observe(self.now, &Fact::MessageSent { agent, is_by_agent: false })?;
        self.note(|| format!("master {master} sends {message} to {to}"));
        let (name, mut body) = wire::encode_message(message);
        let from = master_upid(self.masters[master].address);
        if let Some(process) = &mut self.masters[master].process {
            let digest = || ContentDigest::of(&body);
            if let Some(seal) = process.sessions.seal(&to, message.kind(), digest) {
                wire::append_seal(&mut body, &seal);
            }
        }
        self.send(Packet::new(from, to, name, body.into()));
        Ok(())
    }

    fn send_peers(
        &mut self,
        master: usize,
        to: Upid,
        update: &EncodedUpdate,
        body: &Bytes,
    ) -> InvariantResult {
        self.counts.add("messages about peers", 1);
        let by = (master, self.masters[master].run);
        let fact = Fact::PeersSent { by, to: *to.address.ip(), bytes: body.len() };
        self.monitor.observe(self.now, &fact)?;
        self.note(|| format!("master {master} sends {} to {to}", update.message()));
        let from = master_upid(self.masters[master].address);
        let kind = MessageKind::UpdatePeers;
        let process = self.masters[master].process.as_mut();
        let seal = process.and_then(|it| it.sessions.seal(&to, kind, || update.digest()));
        let body = seal.map_or_else(
            || body.clone(),
            |seal| {
                let mut sealed = body.to_vec();
                wire::append_seal(&mut sealed, &seal);
                sealed.into()
            },
        );
        self.send(Packet::new(from, to, kind.name(), body));
        Ok(())
    }

    fn set_master_timer(&mut self, master: usize) {
        let node = &mut self.masters[master];
        let Some(process) = &mut node.process else {
            return;
        };
        let due = process.machine.next_timeout().map(|due| process.clock.moment_of(due));
        if let Some(due) = due.filter(|due| Some(*due) != process.timer) {
            process.timer = Some(due);
            let run = node.run;
            self.queue.plan(due.max(self.now), SimEvent::MasterTimer { master, run, due });
        }
    }

    /// Sends a request to a master, if it runs. Its reply has the returned number.
    pub(super) fn ask_master(&mut self, master: usize, request: Request) -> Result<u64, Violation> {
        let node = &mut self.masters[master];
        let run = node.run;
        let Some(process) = &mut node.process else {
            return Ok(0);
        };
        process.last_request += 1;
        let id = process.last_request;
        if let Request::DeleteAgents(agents) = &request {
            process.deletions.insert(id, (self.now, agents.clone()));
        }
        self.deliver_to_master(master, run, Event::Request(RequestId(id), request))?;
        Ok(id)
    }
}
