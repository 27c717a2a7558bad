//! Runs the master: its service, its event sources and its command executor.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::SocketAddrV4;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use http::Method;
use libprocess::{RequestClass, Transport};
use overlay_engine::authentication::MasterSessions;
use overlay_engine::master::{
    Command, DurabilityGate, Effect, Event, Master, PendingSend, PreviewJob, Reply, Request,
    Settings,
};
use overlay_engine::state_machine::{Degrade as _, StateMachine as _};
use overlay_store::Store;
use overlay_types::addr::{MASTER_PROCESS, Upid, master_upid};
use overlay_types::protocol::{
    AuthenticityFault, Author, Leader, Message, MessageKind, Principal, RequestId, SharedSecrets,
};
use overlay_types::state::StoreError;
use overlay_wire::encode_peers_update;
use overlay_zookeeper::detector::Lease;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::credential_file::{CredentialChanges, CredentialFile};
use super::inbox::{Inbox, PendingReplies, Stopped};
use super::progress::Probe;
use super::sealed_sender::{SealedSender, seal_for};
use super::service_tasks::ServiceTasks;
use super::store_thread::{Job, StoreThread};
use super::{
    AccessControl, Authenticator, Executor, Metrics, ProgressOptions, RuntimeStatus, Service,
    random_seed,
};
use crate::http::{
    Access, Format, Request as HttpRequest, Response, access_to_master, classify_master,
    describe_change, render_master, route_master,
};

impl Service for Master {
    type Request = Request;
    type Reply = Reply;

    const PROCESS: &'static str = MASTER_PROCESS;

    fn handles(kind: MessageKind) -> bool {
        matches!(
            kind,
            MessageKind::RegisterAgent
                | MessageKind::AgentRegistered
                | MessageKind::RequestPeers
                | MessageKind::HeldAddresses
                | MessageKind::PeerFailures
                | MessageKind::AuthenticateAgent
        )
    }

    fn accepts(&self, from: &Upid, kind: MessageKind) -> bool {
        Self::accepts(self, from, kind)
    }

    fn ignored(from: Upid, kind: MessageKind) -> Event {
        Event::Ignored { from, kind }
    }

    fn trusts(&self, from: &Upid, kind: MessageKind, is_authenticated: bool) -> bool {
        Self::trusts(self, from, kind, is_authenticated)
    }

    fn message(from: Upid, principal: Option<Principal>, message: Message) -> Event {
        match principal {
            Some(principal) => Event::Authenticated { from, principal, message },
            None => Event::Message { from, message },
        }
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
            Reply::State(_)
            | Reply::ReleaseResults(_)
            | Reply::History(_)
            | Reply::Effect(_)
            | Reply::Misconfigured(_)
            | Reply::Unavailable(_) => {}
        }
    }

    fn access(path: &str) -> Access {
        access_to_master(path)
    }

    fn describe_change(request: &Request) -> Option<String> {
        describe_change(request)
    }

    fn with_author(request: Request, author: Author) -> Request {
        Request::By(author, Box::new(request))
    }

    fn classify(method: &Method, path: &str) -> RequestClass {
        classify_master(method, path)
    }

    fn route(request: &HttpRequest) -> Result<(Request, Format), Box<Response>> {
        route_master(request)
    }

    fn render(reply: &Reply, format: &Format) -> Response {
        render_master(reply, format)
    }
}

/// Reads and checks the configuration of a master again. Returns it, or every problem. Applies
/// nothing. May block.
pub type ReadConfig = Arc<dyn Fn() -> Result<ReadConfiguration, Vec<String>> + Send + Sync>;

/// A configuration that was read again.
pub struct ReadConfiguration {
    /// The settings of the state machine, which may refuse them.
    pub settings: Settings,
    /// Applies the rest. Called if the state machine has accepted the settings, so that a reload
    /// applies either all or nothing.
    pub apply: Box<dyn FnOnce() + Send>,
}

impl fmt::Debug for ReadConfiguration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("ReadConfiguration");
        debug.field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// The parameters of a master.
pub struct MasterOptions {
    /// The settings of the state machine.
    pub settings: Settings,
    /// The durable state.
    pub store: Box<dyn Store>,
    /// The election: whether this master leads. Every change counts, even if it is reverted at
    /// once. If the sender is dropped, this master loses its leadership. `None` for a single
    /// master, which leads from the start.
    pub leading: Option<watch::Receiver<bool>>,
    /// The leading master, with an election that shows it.
    pub leader: Option<watch::Receiver<Option<Leader>>>,
    /// The lease of the leadership, if the election has one. Without a lease, a process that was
    /// suspended sends messages until the election reports its demotion.
    pub lease: Option<Lease>,
    /// How the progress of the master is probed.
    pub progress: ProgressOptions,
    /// Reads the configuration again. `None` if the configuration cannot be reloaded.
    pub read_config: Option<ReadConfig>,
    /// The file of the agents' credentials, if the settings have credentials. Its changes apply at
    /// once.
    pub credentials: Option<CredentialFile<SharedSecrets>>,
    /// Seed of the random backoff intervals.
    pub seed: u64,
    /// The metrics that the master updates.
    pub metrics: Metrics<Master>,
    /// Who may use the HTTP endpoints.
    pub access: AccessControl,
}

impl fmt::Debug for MasterOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MasterOptions").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// A running master. Dropping it stops the master. A write in progress is finished.
pub struct MasterHost {
    tasks: ServiceTasks<Master>,
    /// The tasks that follow the election and the file of credentials.
    followers: Vec<AbortOnDrop>,
}

/// A task that is aborted when this handle is dropped.
struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl fmt::Debug for MasterHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MasterHost")
    }
}

impl MasterHost {
    /// Starts a master that receives messages and requests over `transport`. Must be called within
    /// a tokio runtime.
    ///
    /// # Errors
    /// When a thread cannot be created.
    pub fn start(options: MasterOptions, transport: impl Transport) -> io::Result<Self> {
        let MasterOptions { settings, store, leading, leader, read_config, seed, .. } = options;
        let lease = options.lease;
        let (metrics, access, credentials) = (options.metrics, options.access, options.credentials);
        let secrets = settings.authentication.as_ref().map(|it| Arc::clone(&it.secrets));
        let sessions = MasterSessions::new(secrets.clone(), &random_seed()?);
        let progress = (options.progress, store.activity());
        let own = master_upid(transport.address());
        access.resolve_names(*own.address.ip());
        let (inbox, receiver) = Inbox::with_access(metrics, access);
        let results = inbox.clone();
        let store = StoreThread::start(store, move |store, job| {
            if let Some(event) = run_job(store, job) {
                results.send_blocking(event);
            }
        })?;
        let (sender, transport) = transport.open(Arc::new(inbox.clone()));
        let reloader =
            ConfigReloader { read_config, inbox: inbox.clone(), accepted: Arc::default() };
        let gate = DurabilityGate::new();
        let sender = SealedSender::new(own, sender);
        let executor =
            MasterExecutor { sender, sessions, store, gate, reloader, lease, is_elected: false };
        let mut state_machine = match &leading {
            None => Master::new(settings, encode_peers_update, seed),
            Some(_) => Master::standing_by(settings, encode_peers_update, seed),
        };
        if inbox.metrics().restarts() > 0 {
            state_machine = state_machine.after_restart();
        }
        let leading = leading.map(|leading| tokio::spawn(follow_election(leading, inbox.clone())));
        let leader = leader.map(|leader| tokio::spawn(follow_leader(leader, inbox.clone())));
        let credentials = credentials.zip(secrets).map(|(file, known)| {
            let (known, inbox) = (SharedSecrets::clone(&known), inbox.clone());
            tokio::spawn(follow_credentials(file, known, inbox))
        });
        let followers = leading.into_iter().chain(leader).chain(credentials);
        let followers = followers.map(AbortOnDrop).collect();
        let inbox = (inbox, receiver);
        let tasks = ServiceTasks::start(state_machine, executor, inbox, transport, progress);
        Ok(Self { tasks, followers })
    }

    /// Sends a request to the master and awaits the reply, as an HTTP request does. A master that
    /// hangs does not reply, so a caller that has to end awaits the reply in another task.
    ///
    /// # Errors
    /// When the master has stopped.
    pub fn request(
        &self,
        request: Request,
    ) -> impl Future<Output = Result<Reply, Stopped>> + Send + use<> {
        self.tasks.request(request)
    }

    /// Returns the metrics, which outlive the master.
    #[must_use]
    pub fn metrics(&self) -> Metrics<Master> {
        self.tasks.metrics()
    }

    /// Waits until the master has stopped by itself, which only a defect causes.
    pub async fn stopped(&mut self) {
        self.tasks.stopped().await;
    }

    /// Stops the master and waits until its store is closed.
    pub async fn stop(self) {
        drop(self.followers);
        self.tasks.stop().await;
    }
}

/// Sends every change of the leadership to the master.
async fn follow_election(mut leading: watch::Receiver<bool>, inbox: Inbox<Master>) {
    let mut last_sent = false;
    loop {
        let leads = *leading.borrow_and_update();
        // The leadership was lost and won again in between, and another master may have led
        // meanwhile.
        if last_sent && leads {
            inbox.send(Event::Leading(false)).await;
        }
        inbox.send(Event::Leading(leads)).await;
        last_sent = leads;
        if leading.changed().await.is_err() {
            log::error!("the election task has ended: lost leadership");
            inbox.send(Event::Leading(false)).await;
            return;
        }
    }
}

/// Sends every change of the agents' credentials to the master.
async fn follow_credentials(
    file: CredentialFile<SharedSecrets>,
    known: SharedSecrets,
    inbox: Inbox<Master>,
) {
    let warnings = inbox.metrics().warnings().clone();
    let mut changes = CredentialChanges::new(file, known, warnings);
    loop {
        let secrets = changes.next().await;
        inbox.send(Event::SecretsChanged(secrets)).await;
    }
}

/// Sends every change of the leading master to this master.
async fn follow_leader(mut leader: watch::Receiver<Option<Leader>>, inbox: Inbox<Master>) {
    loop {
        let current = leader.borrow_and_update().clone();
        inbox.send(Event::LeaderChanged(current)).await;
        if leader.changed().await.is_err() {
            return;
        }
    }
}

/// Runs a job, and returns its result. A successful check has none, nor has a probe.
fn run_job(store: &mut dyn Store, job: Job) -> Option<Event> {
    match job {
        Job::Load => Some(Event::Loaded(catch_panic("load", || store.load_records()))),
        Job::Check => catch_panic("check", || store.check()).err().map(Event::StoreLost),
        Job::Commit { epoch, changes } => {
            let result = catch_panic("commit", || store.commit_records(epoch, &changes));
            Some(Event::Committed(result))
        }
        Job::Probe(probe) => {
            probe.pass();
            None
        }
    }
}

/// Converts a panic of the store to an error. The master waits for the result of every job: without
/// a result it would stop allocating and still seem healthy. After the error, the master loads the
/// state again, as after any failed commit.
fn catch_panic<T>(
    action: &'static str,
    work: impl FnOnce() -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    std::panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        let reason = "the store panicked, which is a defect: see the log or stderr".to_owned();
        Err(StoreError::Failed { store: "store".to_owned(), action, reason })
    })
}

struct MasterExecutor {
    sender: SealedSender,
    sessions: MasterSessions,
    store: StoreThread,
    gate: DurabilityGate,
    reloader: ConfigReloader,
    lease: Option<Lease>,
    /// Whether the election has reported that this master leads.
    is_elected: bool,
}

/// Reads the configuration again and previews changes of the network, on threads of the blocking
/// pool.
struct ConfigReloader {
    read_config: Option<ReadConfig>,
    inbox: Inbox<Master>,
    /// The functions that apply the rest of a configuration, by the request that read it. A function
    /// runs if the state machine accepts the settings.
    accepted: Arc<Mutex<HashMap<RequestId, ApplyRest>>>,
}

/// See [`ReadConfiguration::apply`].
type ApplyRest = Box<dyn FnOnce() + Send>;

impl ConfigReloader {
    /// Reads the configuration again. The result is an event.
    fn reload(&self, id: RequestId) {
        let (read_config, inbox) = (self.read_config.clone(), self.inbox.clone());
        let accepted = Arc::clone(&self.accepted);
        tokio::spawn(async move {
            let reading = tokio::task::spawn_blocking(move || match read_config {
                Some(read_config) => read_config(),
                None => Err(vec![
                    "this master cannot read its configuration again: restart it".to_owned(),
                ]),
            });
            let read = reading.await.unwrap_or_else(|error| {
                Err(vec![format!("read the configuration: {error}, which is a defect")])
            });
            let settings = read.map(|ReadConfiguration { settings, apply }| {
                accepted.lock().insert(id, apply);
                settings
            });
            inbox.send(Event::ConfigRead(id, settings)).await;
        });
    }

    /// Applies the rest of a configuration if the reply says that the state machine has accepted its
    /// settings. Other replies change nothing.
    fn finish(&self, id: RequestId, reply: &Reply) {
        let Some(apply) = self.accepted.lock().remove(&id) else { return };
        if matches!(reply, Reply::Effect(effect) if effect.accepted) {
            apply();
        }
    }

    /// Runs a preview. The result is an event. The request limits bound the number of previews.
    fn preview(&self, id: RequestId, job: PreviewJob) {
        let inbox = self.inbox.clone();
        tokio::spawn(async move {
            let effect = tokio::task::spawn_blocking(move || job.run()).await;
            let effect = effect.unwrap_or_else(|error| Effect {
                problems: vec![format!("preview the network: {error}, which is a defect")],
                ..Effect::default()
            });
            inbox.send(Event::Previewed(id, Box::new(effect))).await;
        });
    }
}

impl Executor<Master> for MasterExecutor {
    fn sessions(&mut self) -> &mut dyn Authenticator {
        &mut self.sessions
    }

    fn observe(&mut self, event: &Event) {
        if let Event::Leading(leads) = event {
            self.is_elected = *leads;
        }
        self.gate.observe(event);
    }

    fn interruption(&mut self) -> Option<Event> {
        let has_ended = self.lease.as_ref().is_some_and(|lease| !lease.lasts());
        (self.is_elected && has_ended).then_some(Event::Leading(false))
    }

    fn execute(&mut self, command: Command, replies: &mut PendingReplies<Master>) {
        match command {
            Command::Load => self.store.queue(Job::Load),
            Command::Abandon(reason) => {
                for send in self.gate.abandon() {
                    if let PendingSend::Reply(id, _) = send {
                        replies.send(id, Reply::Unavailable(reason.clone()));
                    }
                }
            }
            Command::Withdraw(agents) => self.gate.withdraw(&agents),
            Command::Commit { epoch, changes } => {
                self.store.queue(Job::Commit { epoch, changes });
            }
            Command::Challenge { to, request } => {
                let challenge = self.sessions.challenge(&to, &request);
                let message = Message::AuthenticationChallenge(challenge);
                self.sender.send(&to, &message, |_, _| None);
            }
            Command::SetSecrets(secrets) => self.sessions.set_secrets(secrets),
            Command::Link(to) => self.sender.link(&to),
            Command::ReadConfig(id) => self.reloader.reload(id),
            Command::Preview { id, job } => self.reloader.preview(id, *job),
            Command::Send { to, message, when } => {
                self.gate.hold(when, PendingSend::Message(to, message));
            }
            Command::SendPeers { to, update, when } => {
                self.gate.hold(when, PendingSend::Peers(to, update));
            }
            Command::Reply { id, reply, when } => {
                self.reloader.finish(id, &reply);
                self.gate.hold(when, PendingSend::Reply(id, reply));
            }
        }
    }

    fn probe(&mut self, probe: Probe) {
        self.store.queue(Job::Probe(probe.enter_store()));
    }

    fn flush(&mut self, replies: &mut PendingReplies<Master>) {
        for send in self.gate.release() {
            match send {
                PendingSend::Message(to, message) => {
                    self.sender.send(&to, &message, seal_for(&mut self.sessions, &to));
                }
                PendingSend::Peers(to, update) => {
                    self.sender.send_peers(&to, &update, &mut self.sessions);
                }
                PendingSend::Reply(id, reply) => replies.send(id, reply),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use libprocess::{Receipt, Sender};
    use overlay_store::{Change, Loaded, MemoryStore};
    use overlay_types::protocol::{MasterKind, Network};
    use overlay_types::state::{Epoch, Version};
    use tokio::time::Instant;

    use super::super::drive;
    use super::super::inbox::Input;
    use super::*;

    struct PanickingStore;

    impl Store for PanickingStore {
        fn load(&mut self) -> Result<Loaded, StoreError> {
            panic!("a page is damaged")
        }

        fn commit(&mut self, _: Epoch, _: &[Change]) -> Result<Version, StoreError> {
            panic!("a page is damaged")
        }
    }

    #[tokio::test]
    async fn leadership_lost_and_regained_sends_both_events() {
        let (inbox, mut events) = Inbox::new(Metrics::new());
        let (election, leading) = watch::channel(false);
        let follower = tokio::spawn(follow_election(leading, inbox));
        let mut next = async || match events.recv().await {
            Some(Input::Event(event)) => event.to_string(),
            Some(Input::Request(..) | Input::Message(..) | Input::Probe(_)) | None => {
                "nothing".to_owned()
            }
        };
        assert_eq!(next().await, "not elected");
        election.send_replace(true);
        assert_eq!(next().await, "elected");
        // The receiver sees only the last value.
        election.send_replace(false);
        election.send_replace(true);
        assert_eq!((next().await, next().await), ("not elected".into(), "elected".into()));
        drop(election);
        assert_eq!((next().await, next().await), ("not elected".into(), "nothing".into()));
        follower.await.unwrap();
    }

    #[tokio::test]
    async fn hung_reload_does_not_delay_stop() {
        let (started, mut is_started) = tokio::sync::mpsc::channel(1);
        let (end, hang) = std::sync::mpsc::channel::<()>();
        let hang = Mutex::new(hang);
        let read_config = Arc::new(move || {
            let _ = started.blocking_send(());
            let _ = hang.lock().recv();
            Err(Vec::new())
        });
        let network = overlay_config::parse_master("", include_str!("../../docs/network.json"));
        let network = Arc::new(network.unwrap().0.network);
        let options = MasterOptions {
            settings: Settings {
                network,
                reuse_after: Duration::ZERO,
                kind: MasterKind::Program,
                authentication: None,
            },
            store: Box::new(MemoryStore::new()),
            leading: None,
            leader: None,
            lease: None,
            progress: ProgressOptions::default(),
            read_config: Some(read_config),
            credentials: None,
            seed: 1,
            metrics: Metrics::new(),
            access: AccessControl::default(),
        };
        let server = libprocess::Server::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let advertise = server.local_addr();
        let transport = libprocess::TcpTransport { server, options: Default::default(), advertise };
        let host = MasterHost::start(options, transport).unwrap();
        let reply = tokio::spawn(host.request(Request::Reload));
        is_started.recv().await.unwrap();
        host.stop().await;
        assert_eq!(reply.await.unwrap().err(), Some(Stopped));
        drop(end);
    }

    /// A sender without a network.
    struct NoSender;

    impl Sender for NoSender {
        fn send(&self, _: &Upid, _: &Upid, _: &'static str, _: &[u8], _: Receipt) {}

        fn link(&self, _: &Upid) {}
    }

    /// A master that leads while `lease` lasts.
    async fn start_with_lease(lease: Lease) -> Inbox<Master> {
        let (inbox, receiver) = Inbox::new(Metrics::new());
        let results = inbox.clone();
        let store = StoreThread::start(Box::new(MemoryStore::new()), move |store, job| {
            if let Some(event) = run_job(store, job) {
                results.send_blocking(event);
            }
        });
        let network = Network {
            vtep_subnet: "44.128.0.0/16".parse().unwrap(),
            vtep_subnet6: None,
            vtep_mac_oui: "70:B3:D5:00:00:00".parse().unwrap(),
            vtep_mtu: None,
            vxlan: overlay_types::protocol::Vxlan::default(),
            overlays: Vec::new(),
        };
        let settings = Settings {
            network: Arc::new(network),
            reuse_after: Duration::ZERO,
            kind: MasterKind::Program,
            authentication: None,
        };
        let executor = MasterExecutor {
            sender: SealedSender::new(
                master_upid("127.0.0.1:5050".parse().unwrap()),
                Box::new(NoSender),
            ),
            sessions: MasterSessions::new(None, &[0; 32]),
            store: store.unwrap(),
            gate: DurabilityGate::new(),
            reloader: ConfigReloader {
                read_config: None,
                inbox: inbox.clone(),
                accepted: Arc::default(),
            },
            lease: Some(lease),
            is_elected: false,
        };
        let master = Master::standing_by(settings, encode_peers_update, 1);
        tokio::spawn(drive(master, executor, receiver, inbox.metrics().clone()));
        inbox.send(Event::Leading(true)).await;
        inbox
    }

    /// Returns whether the master answers with its state.
    async fn leads(inbox: &Inbox<Master>) -> bool {
        matches!(inbox.request(Request::State).await.unwrap(), Reply::State(_))
    }

    #[tokio::test]
    async fn ended_lease_stops_replies_until_next_term() {
        let lease = Lease::new();
        lease.begin(Instant::now() + Duration::from_secs(60));
        let inbox = start_with_lease(lease.clone()).await;
        while !leads(&inbox).await {
            tokio::task::yield_now().await;
        }
        // As after a suspension: the election has not reported the end yet.
        lease.end();
        assert!(!leads(&inbox).await);
        lease.begin(Instant::now() + Duration::from_secs(60));
        assert!(!leads(&inbox).await, "a new lease needs a new term");
        inbox.send(Event::Leading(true)).await;
        while !leads(&inbox).await {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn outdated_election_result_has_no_effect() {
        let inbox = start_with_lease(Lease::new()).await;
        for _ in 0..20 {
            assert!(!leads(&inbox).await);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[test]
    fn store_panic_becomes_error() {
        let reason = "the store panicked, which is a defect: see the log or stderr";
        assert_eq!(
            run_job(&mut PanickingStore, Job::Load).unwrap().to_string(),
            format!("not loaded: store: load: {reason}")
        );
        let commit = Job::Commit { epoch: Epoch(1), changes: Vec::new() };
        assert_eq!(
            run_job(&mut PanickingStore, commit).unwrap().to_string(),
            format!("not committed: store: commit: {reason}")
        );
    }
}
