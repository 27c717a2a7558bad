//! Runs the agent: its service, its event sources and its command executor.

use std::collections::{BTreeSet, VecDeque};
use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use libprocess::{RequestClass, Transport};
use overlay_engine::agent::{
    Agent, AuthenticationSettings, Command, Event, FoundMasters, Reply, Request, Settings,
    TunnelSettings,
};
use overlay_engine::authentication::{AgentSession, AuthenticationStatus, ContentDigest};
use overlay_engine::state_machine::{Degrade as _, StateMachine as _};
use overlay_linux::cni::CniDirectory;
use overlay_linux::dataplane::direct_link;
use overlay_linux::docker::Docker;
use overlay_types::addr::{AGENT_PROCESS, Upid, agent_upid};
use overlay_types::protocol::{
    AgentCredential, AuthenticationChallenge, AuthenticationMode, AuthenticityFault, Author,
    Message, MessageKind, Principal, RequestId,
};
use overlay_types::tunnel::DirectLink;
use overlay_zookeeper::detector::{Detector, ELECTION_FAILURE, Election, FixedMaster};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use super::authentication_mark::AuthenticationMark;
use super::container_networks::ContainerNetworks;
use super::credential_file::{CredentialChanges, CredentialFile};
use super::dataplane_options::DataplaneOptions;
use super::dataplane_thread::{DataplaneThread, Job};
use super::dataplane_worker::HostWorker;
use super::inbox::{Inbox, PendingReplies, Stopped};
use super::own_address::{self, AddressRemedy};
use super::probe_thread::{ProbeJob, ProbeThread};
use super::sealed_sender::SealedSender;
use super::service_tasks::ServiceTasks;
use super::{
    AccessControl, Authenticator, Executor, Metrics, ProgressOptions, RuntimeStatus, Service,
    random_seed,
};
use crate::http::{
    Access, Format, Request as HttpRequest, Response, classify_agent, render_agent, route_agent,
};

/// Interval after which a failed name resolution is tried again.
const RESOLVE_RETRY: Duration = Duration::from_secs(5);
/// Key of the failure to resolve the master's name.
const RESOLVE_FAILURE: &str = "master-name";
/// Time without a leader after which an agent needs an operator. No election takes that long.
const LEADERLESS_MAX: Duration = Duration::from_secs(30);
/// Key of the failure that no master leads.
const LEADERLESS_FAILURE: &str = "no-leader";
/// Shortest interval between two resolutions of the master's name. Otherwise a master that refuses
/// connections would cause a resolution for every attempt.
const RESOLVE_INTERVAL_MIN: Duration = Duration::from_secs(1);

impl Service for Agent {
    type Request = Request;
    type Reply = Reply;

    const PROCESS: &'static str = AGENT_PROCESS;

    fn handles(kind: MessageKind) -> bool {
        matches!(
            kind,
            MessageKind::UpdateAgentOverlays
                | MessageKind::AgentRegisteredAcknowledgement
                | MessageKind::UpdatePeers
                | MessageKind::RegistrationProblems
                | MessageKind::AuthenticationChallenge
        )
    }

    fn accepts(&self, from: &Upid, _: MessageKind) -> bool {
        self.has_master(from)
    }

    fn ignored(from: Upid, kind: MessageKind) -> Event {
        Event::Ignored { from, kind }
    }

    fn trusts(&self, _: &Upid, _: MessageKind, _: bool) -> bool {
        // The session decides about unauthenticated messages.
        true
    }

    fn message(from: Upid, _: Option<Principal>, message: Message) -> Event {
        Event::Message { from, message }
    }

    fn unauthentic(from: Upid, kind: MessageKind, fault: AuthenticityFault) -> Event {
        Event::Unauthentic { from, kind, fault }
    }

    fn malformed(from: Upid, name: String, reason: String) -> Event {
        Event::Malformed { from, name, reason }
    }

    fn exited(address: SocketAddrV4) -> Option<Event> {
        Some(Event::Exited(address))
    }

    fn request(id: RequestId, request: Request) -> Event {
        Event::Request(id, request)
    }

    fn complete(reply: &mut Reply, runtime: RuntimeStatus) {
        match reply {
            Reply::Health(health) => {
                let host = (&mut health.refused, &mut health.log);
                if let Some(severity) = runtime.complete_health(host, &mut health.problems) {
                    health.status = health.status.degraded(severity);
                }
            }
            Reply::Metrics(snapshot) => {
                if let Some(severity) = runtime.complete_metrics(&mut snapshot.host) {
                    Self::degrade(&mut snapshot.metrics, severity);
                }
            }
            Reply::Overlay(..) | Reply::Probes(_) | Reply::Addresses(_) => {}
        }
    }

    fn access(_: &str) -> Access {
        Access::Read
    }

    fn describe_change(_: &Request) -> Option<String> {
        None
    }

    fn with_author(request: Request, _: Author) -> Request {
        request
    }

    fn classify(method: &Method, path: &str) -> RequestClass {
        classify_agent(method, path)
    }

    fn route(request: &HttpRequest) -> Result<(Request, Format), Box<Response>> {
        route_agent(request)
    }

    fn render(reply: &Reply, format: &Format) -> Response {
        render_agent(reply, format)
    }
}

/// The parameters of an agent.
#[derive(Debug)]
pub struct AgentOptions {
    /// The settings of the state machine.
    pub settings: Settings,
    /// The source of the master's address.
    pub master: Detector,
    /// The directory of CNI configurations.
    pub cni: CniDirectory,
    /// The Docker engine of the host.
    pub docker: Docker,
    /// The options of the dataplane, for settings with a dataplane.
    pub dataplane: DataplaneOptions,
    /// The file of the credential, if the settings have one. Its changes apply at once.
    pub credential: Option<CredentialFile<AgentCredential>>,
    /// Seed of the random backoff intervals. Must differ between agents.
    pub seed: u64,
    /// The metrics that the agent updates.
    pub metrics: Metrics<Agent>,
    /// Who may use the HTTP endpoints.
    pub access: AccessControl,
    /// What an operator does when the host loses the agent's address.
    pub address_remedy: AddressRemedy,
}

/// A running agent. Dropping it stops the agent. The container networks stay.
pub struct AgentHost(ServiceTasks<Agent>, ProgressOptions);

impl fmt::Debug for AgentHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AgentHost")
    }
}

/// Returns the device that the agent announces for direct routing. The dataplane finds it again, and
/// reports why there is none.
fn find_direct_link(own: Ipv4Addr) -> Option<DirectLink> {
    direct_link(own.into()).ok()?.ok()
}

impl AgentHost {
    /// Starts an agent with the address of `transport` as its identity. Must be called within a
    /// tokio runtime, from a thread in the network namespace of the host.
    ///
    /// # Errors
    /// When a thread cannot be created.
    pub fn start(options: AgentOptions, transport: impl Transport) -> io::Result<Self> {
        let AgentOptions {
            mut settings,
            master,
            cni,
            docker,
            dataplane,
            credential,
            seed,
            metrics,
            access,
            address_remedy,
        } = options;
        let own = agent_upid(transport.address());
        access.resolve_names(*own.address.ip());
        let (inbox, receiver) = Inbox::with_access(metrics, access);
        let detect = Arc::new(Notify::new());
        let mut tasks = JoinSet::new();
        let mark = AuthenticationMark::in_directory(&dataplane.state_dir);
        let session = open_session(&mut settings, &mark)?;
        if let Some((file, authentication)) = credential.zip(settings.authentication.as_ref()) {
            let known = authentication.credential.clone();
            tasks.spawn(follow_credential(file, known, inbox.clone()));
        }
        tasks.spawn(detect_master(master, inbox.clone(), Arc::clone(&detect)));
        let underlay = settings.options.underlay.map(IpAddr::V6);
        let addresses = [Some(IpAddr::V4(*own.address.ip())), underlay].into_iter().flatten();
        tasks.spawn(own_address::watch(addresses, address_remedy, inbox.clone()));
        if !settings.tunnel.programs {
            dataplane.warn_stale_dataplane();
        }
        let dataplane = if settings.tunnel == TunnelSettings::NONE {
            None
        } else {
            let programs = settings.tunnel.programs;
            let leases = cni.leases();
            let create = move |wake| HostWorker::new(dataplane.clone(), leases.clone(), wake);
            Some(DataplaneThread::start(create, programs, inbox.clone())?)
        };
        let has_probes =
            settings.tunnel.programs && (settings.probe_rate > 0 || settings.repair_offloads);
        let start = || ProbeThread::start(cni.leases(), inbox.clone());
        let probes = has_probes.then(start).transpose()?;
        // Without a dataplane nobody configures the bridges.
        let docker = if settings.tunnel.programs { docker.with_bridges() } else { docker };
        let mut networks =
            ContainerNetworks::new(cni, docker, settings.manages_docker(), inbox.clone());
        networks.find();
        if settings.direct_routing {
            settings.direct_link = find_direct_link(*own.address.ip());
        }
        let state_machine = Agent::new(*own.address.ip(), settings, seed);
        let (sender, transport) = transport.open(Arc::new(inbox.clone()));
        let reported = session.status().clone();
        let executor = AgentExecutor {
            sender: SealedSender::new(own, sender),
            session,
            mark,
            reported,
            faults: VecDeque::new(),
            networks,
            dataplane,
            probes,
            detect,
            _tasks: tasks,
        };
        let progress = ProgressOptions::default();
        let probed = (progress.clone(), None);
        let inbox = (inbox, receiver);
        let tasks = ServiceTasks::start(state_machine, executor, inbox, transport, probed);
        Ok(Self(tasks, progress))
    }

    /// Returns the proof that the agent makes progress.
    #[must_use]
    pub fn progress(&self) -> ProgressOptions {
        self.1.clone()
    }

    /// Sends a request to the agent and awaits the reply, as an HTTP request does.
    ///
    /// # Errors
    /// When the agent has stopped.
    pub async fn request(&self, request: Request) -> Result<Reply, Stopped> {
        self.0.request(request).await
    }

    /// Returns the metrics, which outlive the agent.
    #[must_use]
    pub fn metrics(&self) -> Metrics<Agent> {
        self.0.metrics()
    }

    /// Waits until the agent has stopped by itself, which only a defect causes.
    pub async fn stopped(&mut self) {
        self.0.stopped().await;
    }

    /// Stops the agent and waits for its end. A running `docker` command is killed.
    pub async fn stop(self) {
        self.0.stop().await;
    }
}

/// Creates the session of the agent with its masters, and notes in the settings whether a master has
/// authenticated before.
fn open_session(settings: &mut Settings, mark: &AuthenticationMark) -> io::Result<AgentSession> {
    let seed = random_seed()?;
    let Some(authentication) = &mut settings.authentication else {
        return Ok(AgentSession::new(None, AuthenticationMode::Permitted, false, &seed));
    };
    authentication.was_authenticated = mark.is_set();
    let AuthenticationSettings { credential, mode, was_authenticated } = authentication;
    Ok(AgentSession::new(Some(credential.clone()), *mode, *was_authenticated, &seed))
}

/// Sends every change of the credential to the agent.
async fn follow_credential(
    file: CredentialFile<AgentCredential>,
    known: AgentCredential,
    inbox: Inbox<Agent>,
) {
    let warnings = inbox.metrics().warnings().clone();
    let mut changes = CredentialChanges::new(file, known, warnings);
    loop {
        let credential = changes.next().await;
        inbox.send(Event::CredentialChanged(credential)).await;
    }
}

/// Sends the address of the master to the agent, at the start and whenever the agent requests it.
async fn detect_master(master: Detector, inbox: Inbox<Agent>, detect: Arc<Notify>) {
    match master {
        Detector::Fixed(master) => resolve_master(master, inbox, detect).await,
        Detector::Elected(Election { leader, programs }) => {
            tokio::join!(follow_programs(programs, &inbox), follow_leader(leader, &inbox, detect));
        }
    }
}

/// Sends the programs among the candidates of the election, now and after every change. They stay
/// after the follower of the election has stopped.
async fn follow_programs(
    mut programs: watch::Receiver<BTreeSet<SocketAddrV4>>,
    inbox: &Inbox<Agent>,
) {
    loop {
        let found = FoundMasters::Elected(programs.borrow_and_update().clone());
        inbox.send(Event::FoundMasters(found)).await;
        if programs.changed().await.is_err() {
            return;
        }
    }
}

/// Sends every new leader at once, and the current leader when the agent requests it. A leader that
/// is elected again lost its leadership in between, and has lost the registration of the agent.
async fn follow_leader(
    mut leader: watch::Receiver<Option<SocketAddrV4>>,
    inbox: &Inbox<Agent>,
    detect: Arc<Notify>,
) {
    let mut last_sent = None;
    let mut is_new = false;
    loop {
        let address = *leader.borrow_and_update();
        if is_new && last_sent.is_some() && last_sent == address {
            inbox.send(Event::Detected(None)).await;
        }
        inbox.send(Event::Detected(address)).await;
        last_sent = address;
        is_new = tokio::select! {
            never = report_missing_leader(address, inbox) => match never {},
            changed = leader.changed() => {
                if changed.is_err() {
                    // The follower of the election has stopped: the last known leader stays.
                    detect.notified().await;
                }
                changed.is_ok()
            }
            () = detect.notified() => false,
        };
    }
}

/// Sets a failure after some time without a leader, unless a more precise reason is known.
async fn report_missing_leader(leader: Option<SocketAddrV4>, inbox: &Inbox<Agent>) -> Infallible {
    let warnings = inbox.metrics().warnings();
    if leader.is_some() {
        warnings.set_failure(LEADERLESS_FAILURE, None);
        return std::future::pending().await;
    }
    loop {
        tokio::time::sleep(LEADERLESS_MAX).await;
        let text = || {
            format!(
                "no master has led the election for {LEADERLESS_MAX:?}: see whether masters run, \
                 and whether their election has the path of this agent's master"
            )
        };
        let is_unknown = !warnings.has_failure(ELECTION_FAILURE);
        warnings.set_failure(LEADERLESS_FAILURE, is_unknown.then(text));
    }
}

async fn resolve_master(master: FixedMaster, inbox: Inbox<Agent>, detect: Arc<Notify>) {
    let mut was_resolved = false;
    loop {
        match master.resolve_all().await {
            Ok((address, all)) => {
                was_resolved = true;
                inbox.metrics().warnings().set_failure(RESOLVE_FAILURE, None);
                inbox.send(Event::FoundMasters(FoundMasters::Named(all))).await;
                inbox.send(Event::Detected(Some(address))).await;
                tokio::time::sleep(RESOLVE_INTERVAL_MIN).await;
                detect.notified().await;
            }
            Err(reason) => {
                let failure = format!("{reason}; trying again in {RESOLVE_RETRY:?}");
                inbox.metrics().warnings().set_failure(RESOLVE_FAILURE, Some(failure));
                // After a failed resolution, the last resolved address stays.
                if !was_resolved {
                    inbox.send(Event::Detected(None)).await;
                }
                tokio::time::sleep(RESOLVE_RETRY).await;
            }
        }
    }
}

struct AgentExecutor {
    sender: SealedSender,
    session: AgentSession,
    mark: AuthenticationMark,
    /// The status of the session that the state machine knows.
    reported: AuthenticationStatus,
    /// The challenges that the session refused.
    faults: VecDeque<Event>,
    networks: ContainerNetworks,
    /// `None` if the settings have no dataplane.
    dataplane: Option<DataplaneThread>,
    /// `None` if the agent does not probe its peers.
    probes: Option<ProbeThread>,
    detect: Arc<Notify>,
    /// The tasks that detect the master and watch the address. They end with the agent.
    _tasks: JoinSet<()>,
}

impl AgentExecutor {
    fn queue(&self, job: Job) {
        if let Some(dataplane) = &self.dataplane {
            dataplane.queue(job);
        }
    }

    fn send(&mut self, to: &Upid, message: &Message) {
        let session = &mut self.session;
        self.sender
            .send(to, message, |kind, content| session.seal(kind, || ContentDigest::of(content)));
    }

    fn receive_challenge(&mut self, from: Upid, challenge: &AuthenticationChallenge) {
        match self.session.receive_challenge(&from, challenge) {
            Ok(held) => held.iter().for_each(|message| self.send(&from, message)),
            Err(fault) => {
                let kind = MessageKind::AuthenticationChallenge;
                self.faults.push_back(Event::Unauthentic { from, kind, fault });
            }
        }
    }
}

impl Executor<Agent> for AgentExecutor {
    fn sessions(&mut self) -> &mut dyn Authenticator {
        &mut self.session
    }

    fn observe(&mut self, event: &Event) {
        match event {
            Event::Exited(address) => self.session.link_ended(*address),
            Event::CredentialChanged(credential) => self.session.set_credential(credential.clone()),
            _ => {}
        }
        self.networks.reap();
    }

    fn interruption(&mut self) -> Option<Event> {
        if *self.session.status() != self.reported {
            self.reported.clone_from(self.session.status());
            return Some(Event::AuthenticationChanged(self.reported.clone()));
        }
        self.faults.pop_front()
    }

    fn execute(&mut self, command: Command, replies: &mut PendingReplies<Agent>) {
        match command {
            Command::Detect => self.detect.notify_one(),
            Command::Link(to) => self.sender.link(&to),
            Command::Send { to, message } => {
                for message in self.session.send(&to, message) {
                    self.send(&to, &message);
                }
            }
            Command::ReceiveChallenge { from, challenge } => {
                self.receive_challenge(from, &challenge);
            }
            Command::RememberAuthentication => self.mark.set(),
            Command::Apply { attempt, network } => self.networks.apply(attempt, network),
            Command::Inspect { attempt, claims } => {
                self.queue(Job::Inspect { attempt, claims });
            }
            Command::Program { attempt, desired, scope } => {
                self.queue(Job::Program { attempt, desired, scope });
            }
            Command::Probe { attempt, desired, packets } => {
                if let Some(probes) = &self.probes {
                    probes.queue(ProbeJob::Echo { attempt, desired, packets });
                }
            }
            Command::TestOffloads { attempt, desired, peer } => {
                if let Some(probes) = &self.probes {
                    probes.queue(ProbeJob::Offloads { attempt, desired, peer });
                }
            }
            Command::CountAddresses { attempt, desired, with_names } => {
                self.networks.count_addresses(attempt, desired, with_names);
            }
            Command::RetainCni(overlays) => self.networks.retain_cni(overlays),
            Command::RetainDocker(overlays) => self.networks.retain_docker(overlays),
            Command::RemoveCni(overlays) => self.networks.remove_cni(overlays),
            Command::RemoveDocker(overlays) => self.networks.remove_docker(overlays),
            Command::FindNetworks => self.networks.find(),
            Command::Reply { id, reply } => replies.send(id, reply),
        }
    }

    fn flush(&mut self, _: &mut PendingReplies<Agent>) {}
}

#[cfg(test)]
mod tests {
    use overlay_engine::metrics::{HostCounters, LogTally};
    use overlay_types::protocol::RejectedMessages;
    use overlay_types::warnings::Warnings;

    use super::super::inbox::Input;
    use super::*;

    #[tokio::test]
    async fn leader_elected_again_is_detected_again() {
        let (inbox, mut events) = Inbox::new(Metrics::new());
        let (election, leader) = watch::channel(None);
        let detect = Arc::new(Notify::new());
        let follower = tokio::spawn({
            let detect = Arc::clone(&detect);
            async move { follow_leader(leader, &inbox, detect).await }
        });
        let mut next = async || match events.recv().await {
            Some(Input::Event(Event::Detected(address))) => address.map(|address| address.port()),
            _ => Some(0),
        };
        let at = |port| Some(SocketAddrV4::new([10, 0, 0, 1].into(), port));
        assert_eq!(next().await, None);
        election.send_replace(at(1));
        assert_eq!(next().await, Some(1));
        detect.notify_one();
        assert_eq!(next().await, Some(1), "the agent requested the leader");
        election.send_replace(at(2));
        assert_eq!(next().await, Some(2));
        election.send_replace(at(2));
        assert_eq!((next().await, next().await), (None, Some(2)), "elected again");
        follower.abort();
    }

    #[test]
    fn standing_warning_degrades_ok_and_keeps_worse_status() {
        use overlay_engine::agent::{Condition, Counters, Health};
        let warnings = Warnings::new();
        let after = |status, warnings: &Warnings| {
            let health = Health {
                status,
                problems: vec!["first".to_owned()],
                sources: Vec::new(),
                master: None,
                networks: Vec::new(),
                dataplane: None,
                probes: None,
                authentication: None,
                counters: Counters::default(),
                refused: RejectedMessages::default(),
                log: LogTally::default(),
            };
            let mut reply = Reply::Health(Box::new(health));
            let runtime =
                RuntimeStatus::new(RejectedMessages::default(), HostCounters::default(), warnings);
            Agent::complete(&mut reply, runtime);
            match reply {
                Reply::Health(health) => (health.status, health.problems),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(after(Condition::Ok, &warnings), (Condition::Ok, vec!["first".to_owned()]));
        warnings.set("acl", Some("second".to_owned()));
        let problems = vec!["first".to_owned(), "second".to_owned()];
        for (status, expected) in [
            (Condition::Ok, Condition::Degraded),
            (Condition::Degraded, Condition::Degraded),
            (Condition::Registering, Condition::Registering),
            (Condition::Detached, Condition::Detached),
        ] {
            assert_eq!(after(status, &warnings), (expected, problems.clone()));
        }
        // Without an election, a registered agent serves its containers.
        warnings.set_failure("acl", Some("second".to_owned()));
        for (status, expected) in [
            (Condition::Ok, Condition::Degraded),
            (Condition::Registering, Condition::Failed),
            (Condition::Detached, Condition::Failed),
        ] {
            assert_eq!(after(status, &warnings), (expected, problems.clone()));
        }
    }
}
